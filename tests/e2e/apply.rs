//! The first things that anybody does: apply, look, scale, go back, delete.

use crate::harness::{Broker, Lattice, SOON, file, http, manifests, scenarios, until};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

scenarios!(
    an_applied_app_answers_and_a_deleted_one_does_not,
    scale_and_rollback_make_revisions,
    a_million_replicas_are_a_number,
    exit_codes_say_how_it_ended,
    a_component_is_named_by_path_url_or_digest,
    recursion_ends_at_the_stack_that_the_manifest_gives,
);

fn an_applied_app_answers_and_a_deleted_one_does_not(broker: Broker) {
    let lattice = Lattice::start(broker);
    let at = lattice.ingress("a");
    let manifest = manifests::hello().display().to_string();
    assert_eq!(http::get(at, "/").status, 404, "nothing is applied yet");

    let begun = Instant::now();
    let cli = lattice.cli(&["apply", &manifest]);
    assert_eq!(cli.code, 0, "{cli:#?}");
    assert!(cli.stdout.starts_with("app/hello created\n"), "{cli:#?}");
    assert!(cli.stdout.contains(&format!("app/hello running 1/1  http://{at}/\n")), "{cli:#?}");
    let response = http::get(at, "/");
    eprintln!("apply to first 200 on {broker:?}: {:.2} s", begun.elapsed().as_secs_f64());
    assert_eq!((response.status, response.text().as_str()), (200, "Hello from lattice!\n"));

    let again = lattice.ok(&["apply", &manifest]);
    assert!(again.starts_with("app/hello unchanged\n"), "{again}");
    let app = &lattice.items("apps")[0];
    assert_eq!(
        (&app["name"], &app["revision"], &app["state"], &app["desired"], &app["running"]),
        (&json!("hello"), &json!(1), &json!("running"), &json!(1), &json!(1))
    );

    let begun = Instant::now();
    assert_eq!(lattice.ok(&["delete", "app", "hello"]), "app/hello deleted\n");
    until("the route is gone", Duration::from_secs(5), || (http::get(at, "/").status == 404).then_some(()));
    eprintln!("delete to 404 on {broker:?}: {:.2} s", begun.elapsed().as_secs_f64());
    assert!(lattice.items("apps").is_empty() && lattice.items("actors").is_empty());
    assert_eq!(lattice.host("a")["running"], 0);

    // A name is free again once its app is gone.
    assert!(lattice.ok(&["apply", &manifest]).starts_with("app/hello created\n"));
    assert_eq!(http::get(at, "/").status, 200);
    assert_eq!(lattice.ok(&["delete", "-f", &manifest]), "app/hello deleted\n");
    // Requests are noted nowhere unless that is asked for.
    let printed = std::fs::read_dir(lattice.dir()).unwrap().flatten().map(|entry| entry.path());
    let printed = printed.filter(|path| path.extension().is_some_and(|e| e == "out" || e == "err"));
    let printed: Vec<String> = printed.map(|path| std::fs::read_to_string(path).unwrap()).collect();
    assert!(!printed.is_empty() && !printed.iter().any(|text| text.contains("\"method\"")), "{printed:?}");
}

fn scale_and_rollback_make_revisions(broker: Broker) {
    let lattice = Lattice::start(broker);
    lattice.apply(&manifests::hello());
    let scaled = lattice.ok(&["scale", "hello/hello", "7"]);
    assert_eq!(scaled, "actor/hello/hello scaled to 7 (revision 2)\n");
    lattice.until_spread("hello", "hello", &[("a", 7)], SOON);
    assert_eq!(lattice.ok(&["scale", "hello/hello", "7"]), "actor/hello/hello unchanged\n");

    assert_eq!(lattice.ok(&["rollback", "hello"]), "app/hello rolled back (revision 3)\n");
    lattice.until_spread("hello", "hello", &[("a", 1)], SOON);
    assert_eq!(lattice.ok(&["rollback", "hello", "--to", "2"]), "app/hello rolled back to 2 (revision 4)\n");
    lattice.until_spread("hello", "hello", &[("a", 7)], SOON);

    let revisions = lattice.items_of("revisions", "hello");
    let told: Vec<_> =
        revisions.iter().map(|r| (r["revision"].clone(), r["cause"].clone(), r["current"].clone())).collect();
    assert_eq!(
        told,
        [
            (json!(1), json!("apply"), json!(false)),
            (json!(2), json!("scale"), json!(false)),
            (json!(3), json!("rollback to 1"), json!(false)),
            (json!(4), json!("rollback to 2"), json!(true)),
        ]
    );
    assert_eq!(http::get(lattice.ingress("a"), "/").status, 200);

    // None at all: the route stays and says why nobody answers.
    lattice.ok(&["scale", "hello/hello", "0"]);
    let response = until("nobody answers", SOON, || {
        let response = http::get(lattice.ingress("a"), "/");
        (response.status != 200).then_some(response)
    });
    assert_eq!(response.status, 503, "{}", response.text());
    assert!(response.text().contains("hello/hello"), "{}", response.text());
    lattice.ok(&["scale", "hello/hello", "1"]);
    until("it answers again", SOON, || (http::get(lattice.ingress("a"), "/").status == 200).then_some(()));
}

fn a_million_replicas_are_a_number(broker: Broker) {
    let mut lattice = Lattice::start(broker);
    lattice.add_host("b", &[], false);
    lattice.until_hosts(&[("b", "ready")]);
    let begun = Instant::now();
    lattice.apply(&manifests::Hello { replicas: 1_000_000, ..Default::default() }.write(&lattice));
    lattice.until_spread("hello", "hello", &[("a", 500_000), ("b", 500_000)], SOON);
    eprintln!("a million replicas placed and ready on {broker:?}: {:.2} s", begun.elapsed().as_secs_f64());
    assert_eq!(http::get(lattice.ingress("a"), "/").status, 200);
    let more = lattice.cli(&["scale", "hello/hello", "1000001"]);
    assert_eq!(more.code, 2, "{more:#?}");
}

fn exit_codes_say_how_it_ended(broker: Broker) {
    let lattice = Lattice::start(broker);
    let hello = manifests::Hello { name: "nowhere", on: "site: atlantis", ..Default::default() }.write(&lattice);
    let hello = hello.display().to_string();

    // 3: accepted, but no host has the label.
    let begun = Instant::now();
    let late = lattice.cli(&["apply", &hello, "--timeout", "1s"]);
    assert_eq!(late.code, 3, "{late:#?}");
    assert!(late.stderr.contains("no ready host has site=atlantis"), "{late:#?}");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    let app = &lattice.items("apps")[0];
    assert_eq!((&app["state"], &app["running"]), (&json!("deploying"), &json!(0)));
    assert_eq!(lattice.items("actors")[0]["state"], "unplaced");
    // 0: asked to come back at once.
    assert_eq!(lattice.cli(&["apply", &hello, "--detach"]).code, 0);
    assert_eq!(lattice.cli(&["delete", "app", "nowhere"]).code, 0);

    // 1: refused.
    for args in [
        &["delete", "app", "nobody"][..],
        &["scale", "nobody/none", "1"],
        &["rollback", "nobody"],
        &["describe", "app", "nobody"],
        &["cordon", "nobody"],
        &["get", "apps", "nobody"],
        &["logs", "nobody"],
        &["apply", "/nonexistent/app.yaml"],
    ] {
        let cli = lattice.cli(args);
        assert_eq!(cli.code, 1, "{args:?}: {cli:#?}");
        assert!(cli.stderr.starts_with("error: ") || cli.stderr.contains("\nerror: "), "{args:?}: {cli:#?}");
        assert!(cli.stderr.contains("nobody") || cli.stderr.contains("/nonexistent"), "{args:?}: {cli:#?}");
    }
    // 2: wrong use.
    for args in [&["scale", "hello/hello", "1.5"][..], &["scale", "hello/hello", "-1"], &["apply"], &["frobnicate"]] {
        assert_eq!(lattice.cli(args).code, 2, "{args:?}");
    }
    let away = lattice.cli(&["get", "apps", "--api", "127.0.0.1:1"]);
    assert_eq!(away.code, 1, "{away:#?}");
    assert!(away.stderr.contains("127.0.0.1:1"), "{away:#?}");
}

fn a_component_is_named_by_path_url_or_digest(broker: Broker) {
    let lattice = Lattice::start(broker);
    std::fs::create_dir(lattice.dir().join("parts")).unwrap();
    let hello = lattice.write("parts/hello.wasm", std::fs::read(file("manifests/hello/hello.wasm")).unwrap());
    let inspected = lattice.cli(&["inspect", "parts/hello.wasm", "-o", "json"]).json();
    let digest = inspected["digest"].as_str().unwrap().to_owned();
    assert!(digest.starts_with("sha256:"), "{digest}");
    let app = |name: &str, image: &str| {
        let route = format!("{{type: ingress, properties: {{host: {name}.localhost, path: /}}}}");
        manifests::actor(&lattice, name, Path::new(image), &[&route]).display().to_string()
    };
    let refused = |name: &str, image: &str, says: &[&str]| {
        let cli = lattice.cli(&["apply", &app(name, image)]);
        assert_eq!(cli.code, 1, "{image}: {cli:#?}");
        // Long lines are wrapped for people.
        let said = cli.stderr.split_whitespace().collect::<Vec<_>>().join(" ");
        for word in says.iter().chain(&["nothing was changed"]) {
            assert!(said.contains(word), "{image}: no {word:?} in {said}");
        }
    };
    // Nobody has uploaded it yet.
    refused("early", &digest, &["early.yaml", &digest]);
    for (name, image) in [
        ("path", "parts/hello.wasm".to_owned()),
        ("below", "./parts/hello.wasm".to_owned()),
        ("url", format!("file://{}", hello.display())),
        ("relative", "file://parts/hello.wasm".to_owned()),
        ("digest", digest.clone()),
    ] {
        lattice.ok(&["apply", &app(name, &image)]);
        let answer = until("it answers", SOON, || http::answers(lattice.ingress("a"), &format!("{name}.localhost")));
        assert_eq!(answer.text(), "Hello from lattice!\n", "{image}");
    }
    for image in ["file:///no/such/hello.wasm", "file://parts", "http://127.0.0.1/hello.wasm"] {
        refused("wrong", image, &["wrong.yaml"]);
    }
    // What a host compiled of it is no component, nor is it ever taken for one.
    let compiled = find(lattice.dir(), "cwasm").expect("the host keeps what it compiled");
    std::fs::copy(compiled, lattice.dir().join("parts/compiled.wasm")).unwrap();
    refused("wrong", "parts/compiled.wasm", &["wrong.yaml", "not Wasm: it looks like a native program"]);
}

/// A file with this extension, in the folder or below.
fn find(folder: &Path, extension: &str) -> Option<PathBuf> {
    std::fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path()).find_map(|path| match path.is_dir() {
        true => find(&path, extension),
        false => path.extension().is_some_and(|found| found == extension).then_some(path),
    })
}

fn recursion_ends_at_the_stack_that_the_manifest_gives(broker: Broker) {
    let lattice = Lattice::start(broker);
    // It calls itself as often as it is told to.
    let deep = r#"(component
        (core module $m (func $f (export "f") (param i32) (result i32)
          (if (result i32) (local.get 0)
            (then (i32.add (call $f (i32.sub (local.get 0) (i32.const 1))) (i32.const 1)))
            (else (i32.const 0)))))
        (core instance $i (instantiate $m))
        (func $f (param "depth" u32) (result u32) (canon lift (core func $i "f")))
        (instance (export "acme:test/calls") (export "down" (func $f))))"#;
    let image = lattice.write("deep.wasm", wat::parse_str(deep).unwrap());
    for (name, stack) in [("usual", "512KiB"), ("deep", "4MiB")] {
        let limits = format!("{{type: limits, properties: {{stack: {stack}}}}}");
        lattice.apply(&manifests::actor(&lattice, name, &image, &[&limits]));
    }
    let down = |app: &str, depth: &str| lattice.cli(&["call", &format!("{app}/a"), "acme:test/calls.down", depth]);
    let depths = [1_000, 50_000, 1_000_000];
    let [shallow, between, endless] = depths.map(|depth: u32| depth.to_string());
    for (app, depth) in [("usual", &shallow), ("deep", &shallow), ("deep", &between)] {
        let called = down(app, depth);
        assert_eq!((called.code, called.stdout.trim()), (0, depth.as_str()), "{app}: {called:#?}");
    }
    for (app, depth, stack) in [("usual", &between, "512 KiB"), ("deep", &endless, "4 MiB")] {
        let called = down(app, depth);
        let said = called.stderr.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(called.code == 1 && said.contains(&format!("used up its {stack} of call stack")), "{app}: {called:#?}");
        assert!(said.contains("raise limits.stack"), "{said}");
    }
}
