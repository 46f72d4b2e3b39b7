//! Bad manifests and bad components: each refused with the place and the thing, by `validate` word for word as by
//! `apply`, and nothing is changed.

use crate::harness::{Broker, Lattice, file, manifests, scenarios};
use serde_json::Value;

scenarios!(bad_manifests_are_refused_and_change_nothing, an_app_that_another_stands_in_the_way_of_is_refused);

/// A manifest, and what must be said of it.
struct Bad {
    name: &'static str,
    bytes: Vec<u8>,
    says: Vec<String>,
}

fn bad(name: &'static str, text: impl Into<Vec<u8>>, says: &[&str]) -> Bad {
    Bad { name, bytes: text.into(), says: says.iter().map(|s| (*s).to_owned()).collect() }
}

/// One component "web" from line 7 on: its image in line 9, `traits` from line 11 on.
fn web(image: &str, traits: &str) -> String {
    let image =
        if image.is_empty() { file("manifests/hello/hello.wasm").display().to_string() } else { image.to_owned() };
    let head = "apiVersion: core.oam.dev/v1beta1\nkind: Application\nmetadata:\n  name: bad\nspec:\n  components:\n";
    let traits = if traits.is_empty() { String::new() } else { format!("      traits:\n{traits}") };
    format!("{head}    - name: web\n      type: component\n      properties: {{image: {image}}}\n{traits}")
}

/// `web` with a spreadscaler; `instances` stands in line 13.
fn scaled(instances: &str) -> String {
    web("", &format!("        - type: spreadscaler\n          properties:\n            instances: {instances}\n"))
}

/// `web` and then `more` components, with a link of "web" in line 11 whose target is in line 13.
fn linked(target: &str, more: &str) -> String {
    let link = format!(
        "        - type: link\n          properties:\n            target: {{name: {target}}}\n            \
         namespace: wasi\n            package: keyvalue\n            interfaces: [store]\n"
    );
    web("", &link) + more
}

fn texts() -> Vec<Bad> {
    let hello = std::fs::read_to_string(manifests::hello()).unwrap();
    let duplicate = manifests::change(&scaled("1"), "  name: bad\n", "  name: bad\n  name: worse\n");
    let slip = manifests::change(&scaled("1"), "instances", "instnces");
    let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for n in 1..30 {
        bomb.push_str(&format!("a{n}: &a{n} [{}]\n", vec![format!("*a{}", n - 1); 10].join(", ")));
    }
    let circle = "    - name: db\n      type: component\n      properties: {image: HELLO}\n      traits:\n        \
                  - type: link\n          properties: {target: {name: web}, namespace: wasi, package: keyvalue, interfaces: [store]}\n"
        .replace("HELLO", &file("manifests/hello/hello.wasm").display().to_string());
    vec![
        bad("empty", "", &["declares no app"]),
        bad("comments only", "# nothing\n", &["declares no app"]),
        bad("cut in a line", &hello[..hello.find("image:").unwrap() + 3], &["app.yaml:"]),
        bad("cut between lines", &hello[..hello.find("spec:").unwrap()], &["app.yaml:", "spec"]),
        bad("not YAML", "kind: [Application\n", &["app.yaml:1:", "not valid YAML"]),
        bad("prose", "hello there\n", &["app.yaml:1:", "not a manifest"]),
        bad("bytes", &b"\x7fELF\x02\x01\x01\xff\xfe"[..], &["not UTF-8"]),
        bad("zeros", vec![0; 4096], &["NUL"]),
        bad("2 MiB", format!("{hello}# {}\n", "x".repeat(2 * 1024 * 1024)), &["1048576 bytes", "split it"]),
        bad("alias bomb", bomb, &["app.yaml:", "alias"]),
        bad("deep", format!("kind: {}", "[".repeat(100_000)), &["app.yaml:1:"]),
        bad("duplicate key", duplicate, &["app.yaml:5:", "duplicate key", "name", "line 4"]),
        bad("unknown field", slip, &["app.yaml:13:", "instnces", "instances"]),
        bad(
            "another kind",
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\n",
            &["app.yaml:2:", "Deployment"],
        ),
        bad("negative", scaled("-1"), &["app.yaml:13:", "instances", "-1"]),
        bad("huge", scaled("99999999999999999999"), &["app.yaml:13:", "instances"]),
        bad("more than a million", scaled("1000001"), &["app.yaml:13:", "instances", "1000000"]),
        bad("fractional", scaled("1.5"), &["app.yaml:13:", "instances", "1.5"]),
        bad("a word", scaled("many"), &["app.yaml:13:", "instances", "many"]),
        bad("a number as text", scaled("\"3\""), &["app.yaml:13:", "instances"]),
        bad("link to nobody", linked("nobody", ""), &["app.yaml:13:", "nobody"]),
        bad("link to itself", linked("web", ""), &["app.yaml:13:", "web", "itself"]),
        bad("links in a circle", linked("db", &circle), &["app.yaml:", "web", "db", "circle"]),
    ]
}

/// Manifests whose component is what is wrong, with the components written into the lattice's folder.
fn components(lattice: &Lattice) -> Vec<Bad> {
    let hello = std::fs::read(file("manifests/hello/hello.wasm")).unwrap();
    let component = |text: &str| wat::parse_str(text).unwrap();
    let ungranted = component(
        r#"(component
            (import "acme:missing/thing@1.0.0" (instance (export "f" (func))))
            (import "acme:other/stuff" (instance (export "g" (func)))))"#,
    );
    lattice.write("text.wasm", "not a component at all\n");
    lattice.write("core.wasm", component("(module (func (export \"f\")))"));
    lattice.write("cut.wasm", &hello[..hello.len() / 2]);
    lattice.write("empty.wasm", "");
    lattice.write("ungranted.wasm", ungranted);
    std::fs::create_dir_all(lattice.dir().join("folder.wasm")).unwrap();
    let route = "        - type: ingress\n          properties: {path: /bad}\n";
    let counter = file("manifests/counter/counter.wasm").display().to_string();
    vec![
        bad("missing", web("./gone.wasm", ""), &["app.yaml:9:", "gone.wasm"]),
        bad("a folder", web("./folder.wasm", ""), &["app.yaml:9:", "folder.wasm"]),
        bad("empty file", web("./empty.wasm", ""), &["app.yaml:9:", "empty.wasm"]),
        bad("not Wasm", web("./text.wasm", ""), &["app.yaml:9:", "text.wasm"]),
        bad("core module", web("./core.wasm", ""), &["app.yaml:9:", "core.wasm", "module"]),
        bad("truncated", web("./cut.wasm", ""), &["app.yaml:9:", "cut.wasm"]),
        bad(
            "imports that nobody grants",
            web("./ungranted.wasm", ""),
            &["app.yaml:9:", "acme:missing/thing", "acme:other/stuff", "web"],
        ),
        bad(
            "a store without a link",
            web(&counter, ""),
            &["app.yaml:9:", "wasi:keyvalue/store", "wasi:keyvalue/atomics"],
        ),
        bad(
            "a route to who does not answer HTTP",
            web("./ungranted.wasm", route),
            &["app.yaml:12:", "incoming-handler"],
        ),
    ]
}

/// All that a refused manifest must leave as it is.
fn state(lattice: &Lattice) -> (Vec<Value>, Vec<Value>, Value) {
    let status = lattice.cli(&["status", "-o", "json"]).json();
    (lattice.items("apps"), lattice.items("revisions"), status["index"].clone())
}

fn bad_manifests_are_refused_and_change_nothing(broker: Broker) {
    let lattice = Lattice::start(broker);
    lattice.apply(&manifests::hello());
    let before = state(&lattice);
    let mut all = texts();
    all.extend(components(&lattice));
    let mut wrong = Vec::new();
    for Bad { name, bytes, says } in &all {
        lattice.write("app.yaml", bytes);
        let applied = lattice.cli(&["apply", "app.yaml"]);
        let validated = lattice.cli(&["validate", "app.yaml", "--log", "text"]);
        let missing: Vec<_> = says.iter().filter(|s| !applied.stderr.contains(s.as_str())).collect();
        if applied.code != 1 || !missing.is_empty() || !applied.stderr.contains("app.yaml") {
            wrong.push(format!("{name}: exit code {}, not said: {missing:?}\n{}", applied.code, applied.stderr));
        }
        if (validated.code, &validated.stderr) != (applied.code, &applied.stderr) {
            wrong.push(format!("{name}: validate says otherwise, exit code {}\n{}", validated.code, validated.stderr));
        }
        if applied.stderr.len() > 20_000 {
            wrong.push(format!("{name}: {} bytes of message", applied.stderr.len()));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), all.len(), wrong.join("\n"));
    assert_eq!(state(&lattice), before);

    // All or none: a good file beside a bad one is not applied either.
    let good = manifests::Hello { name: "good", path: "/good", ..Default::default() }.write(&lattice);
    lattice.write("app.yaml", scaled("-1"));
    let both = lattice.cli(&["apply", &good.display().to_string(), "app.yaml"]);
    assert_eq!(both.code, 1, "{both:#?}");
    // Every problem at once, of all files.
    lattice.write("more.yaml", manifests::change(&scaled("1.5"), "spreadscaler", "spredscaler"));
    let all = lattice.cli(&["apply", "app.yaml", "more.yaml"]);
    assert!(all.stderr.contains("app.yaml:13:") && all.stderr.contains("more.yaml:11:"), "{all:#?}");
    assert_eq!(state(&lattice), before);
}

fn an_app_that_another_stands_in_the_way_of_is_refused(broker: Broker) {
    let lattice = Lattice::start(broker);
    lattice.apply(&manifests::hello());
    let before = state(&lattice);
    // The scheduler alone knows who has the route.
    let other = manifests::Hello { name: "other", ..Default::default() }.write(&lattice);
    let cli = lattice.cli(&["apply", &other.display().to_string()]);
    assert_eq!(cli.code, 1, "{cli:#?}");
    assert!(cli.stderr.contains("\"hello\"") && cli.stderr.contains("route"), "{cli:#?}");
    // So it is with a version that has moved on.
    let version = before.0[0]["version"].as_u64().unwrap();
    let stale = (version - 1).to_string();
    for args in [
        &["scale", "hello/hello", "3", "--if-version", &stale][..],
        &["delete", "app", "hello", "--if-version", &stale],
        &["rollback", "hello", "--if-version", &stale],
    ] {
        let cli = lattice.cli(args);
        assert_eq!(cli.code, 1, "{args:?}: {cli:#?}");
        assert!(cli.stderr.contains(&version.to_string()), "{args:?}: {cli:#?}");
    }
    let after = state(&lattice);
    assert_eq!((after.0, after.1), (before.0, before.1));
    lattice.ok(&["scale", "hello/hello", "3", "--if-version", &version.to_string()]);
}
