//! The walls around an actor as a person meets them: what is granted, what a host's policy takes away, what a component
//! wants, and what its neighbours do not notice.

use crate::harness::load::Load;
use crate::harness::{Broker, Lattice, PROGRAM, SOON, clean, file, http, manifests, scenarios, until};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

scenarios!(
    a_policy_takes_away_what_a_manifest_grants,
    grants_and_limits_hold_from_the_manifest_to_the_guest,
    twenty_hostile_actors_are_not_noticed,
);

/// The hostile guest with a trait of its own.
pub(crate) fn with_trait(lattice: &Lattice, name: &str, trait_: &str, on: &str) -> std::path::PathBuf {
    let text = std::fs::read_to_string(file("tests/guests/hostile/app.yaml")).unwrap();
    let image = file("tests/guests/hostile/hostile.wasm").display().to_string();
    let mut text = manifests::change(&text, "./hostile.wasm", &image);
    text = manifests::change(&text, "name: hostile\nspec", &format!("name: {name}\nspec"));
    let route = format!("            path: /\n            host: {name}.localhost\n");
    text = manifests::change(&text, "            path: /\n", &route);
    if !on.is_empty() {
        let spread = format!("instances: 4\n            spread: [{{name: there, requirements: {{{on}}}}}]");
        text = manifests::change(&text, "instances: 4", &spread);
    }
    text.push_str(trait_);
    lattice.write(&format!("{name}.yaml"), text)
}

fn ask(at: SocketAddr, host: &str, target: &str) -> http::Response {
    http::Request { host, ..http::Request::get(at, target) }.send().unwrap_or_else(|e| panic!("{host}{target}: {e}"))
}

fn a_policy_takes_away_what_a_manifest_grants(broker: Broker) {
    let mut lattice = Lattice::start_labelled(broker, &["box=large"]);
    let policy = lattice.write("policy.yaml", "grants: {http: [], clocks: {wall: true}}\nlimits: {memory: 32MiB}\n");
    let policy = policy.display().to_string();
    lattice.add_host_with("b", &["box=small"], false, &["--policy", &policy]);
    lattice.until_hosts(&[("a", "ready"), ("b", "ready")]);

    let grants = "        - type: grants\n          properties: {http: [api.example.org], clocks: {wall: true}}\n";
    let refused = with_trait(&lattice, "refused", grants, "box: small").display().to_string();
    let cli = lattice.cli(&["apply", &refused, "--timeout", "10s"]);
    assert_ne!(cli.code, 0, "{cli:#?}");
    let says = "grants.http names \"api.example.org\", which the policy of this host does not allow";
    until("the refusal is told", SOON, || {
        let actor = lattice.items_of("actors", "refused").first().cloned()?;
        let told = actor["message"].as_str().unwrap_or_default().contains(says) && actor["state"] == "failed";
        told.then_some(())
    });
    let described = lattice.cli(&["describe", "app", "refused"]);
    assert!(described.stdout.contains(says), "{described:#?}");

    // What it lets pass runs there, and reaches what is granted.
    let grants = "        - type: grants\n          properties: {clocks: {wall: true}}\n";
    let allowed = with_trait(&lattice, "allowed", grants, "box: small");
    lattice.apply(&allowed);
    let time = ask(lattice.ingress("a"), "allowed.localhost", "/time");
    assert!(time.text().starts_with("wall "), "{}", time.text());
    // It never adds: what the manifest does not grant is denied, whatever the policy would allow.
    lattice.apply(&with_trait(&lattice, "asked-for-nothing", "", "box: small"));
    let time = ask(lattice.ingress("a"), "asked-for-nothing.localhost", "/time");
    assert!(time.status == 500 && time.text().contains("grants.clocks.wall"), "{} {}", time.status, time.text());
    // Where there is no policy, the manifest is all that counts.
    let grants = "        - type: grants\n          properties: {http: [api.example.org]}\n";
    lattice.apply(&with_trait(&lattice, "elsewhere", grants, "box: large"));

    // A file that is wrong is no policy: every mistake is told, and nothing starts.
    let wrong = lattice.write("wrong.yaml", "grants: {htp: []}\nlimits: {memory: lots}\n").display().to_string();
    let data = lattice.dir().join("never").display().to_string();
    let mut command = Command::new(PROGRAM);
    command.args(["host", "--nats", lattice.bus(), "--data", &data, "--policy", &wrong]);
    let output = clean(&mut command).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("wrong.yaml:1:") && stderr.contains("did you mean \"http\""), "{stderr}");
    assert!(stderr.contains("wrong.yaml:2:") && stderr.contains("not an amount of memory"), "{stderr}");
}

fn grants_and_limits_hold_from_the_manifest_to_the_guest(broker: Broker) {
    let mut lattice = Lattice::start(broker);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n");
        }
    });
    let bus = lattice.bus().trim_start_matches("nats://").to_owned();
    let grants = format!(
        "        - type: grants\n          properties:\n            env: {{MODE: test}}\n            args: [hostile, --fast]\n            \
         http: [\"http://{addr}\", \"127.0.0.0/8\"]\n            sockets: {{tcp: [\"{addr}\", \"127.0.0.0/8\"], lookups: true}}\n            \
         clocks: {{wall: true}}\n            random: {{seed: 7}}\n            stdin: typed\n            exit: true\n"
    );
    let granted = with_trait(&lattice, "granted", &grants, "");
    let limits = "            cpu: 200ms\n            request: 1KB\n            response: 100KB\n";
    let text = std::fs::read_to_string(&granted).unwrap();
    let text = manifests::change(&text, "            queue: 8\n", &format!("            queue: 8\n{limits}"));
    lattice.apply(&lattice.write("granted.yaml", text));
    let at = lattice.ingress("a");
    let said = |target: &str| ask(at, "granted.localhost", target);
    assert_eq!(said("/env").text(), "MODE=test\nargument hostile\nargument --fast\n2 arguments\n");
    assert_eq!(said("/stdin").text(), "read \"typed\"\n");
    assert!(said("/time").text().starts_with("wall "));
    assert_eq!(said("/random").text(), said("/random").text());
    assert_eq!(said("/exit").text(), "said before it ended\n");
    assert!(said("/lookup?host=localhost").text().starts_with("found "));
    assert!(said(&format!("/out?url=http://{addr}/")).text().starts_with("status 204"));
    assert!(said(&format!("/socket?to={addr}")).text().starts_with("connected"));
    // A range that holds the bus does not name it.
    let out = said(&format!("/out?url=http://{bus}/")).text();
    assert!(out.contains("DestinationIpProhibited"), "{out}");
    assert!(said(&format!("/socket?to={bus}")).text().starts_with("denied"), "{bus}");

    // Its processor time ends it, or, where the machine has none to give, its deadline.
    for target in ["/loop", "/flood?of=poll"] {
        let response = said(target);
        let text = response.text();
        assert_eq!(response.status, 504, "{target}: {text}");
        let named = text.contains("used up its 200 ms of processor time; raise limits.cpu")
            || text.contains("ran past its 2 s deadline; raise limits.deadline");
        assert!(named && text.contains("granted/hostile"), "{target}: {text}");
        assert!(response.took < Duration::from_secs(6), "{target}: {:?}", response.took);
    }
    let body = vec![b'x'; 1_001];
    let large =
        http::Request { method: "POST", host: "granted.localhost", body: &body, ..http::Request::get(at, "/echo") };
    let large = large.send().unwrap();
    assert_eq!((large.status, large.text().contains("raise limits.request")), (413, true), "{}", large.text());
    let cut = http::Request { host: "granted.localhost", ..http::Request::get(at, "/body?bytes=200000") }.send();
    assert!(cut.is_err(), "{cut:?}");

    // A body that never ends: the invocation does, at its deadline.
    let begun = Instant::now();
    let mut stream = TcpStream::connect(at).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
    let head = "POST /echo HTTP/1.1\r\nHost: granted.localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!((1..8).contains(&begun.elapsed().as_secs()), "{:?}: {}", begun.elapsed(), String::from_utf8_lossy(&answer));
    lattice.assert_alive();
}

fn twenty_hostile_actors_are_not_noticed(broker: Broker) {
    let mut lattice = Lattice::start(broker);
    lattice.apply(&manifests::hello());
    let names: Vec<String> = (0..20).map(|n| format!("hostile-{n}")).collect();
    for name in &names {
        with_trait(&lattice, name, "", "");
    }
    let files: Vec<String> =
        names.iter().map(|n| lattice.dir().join(format!("{n}.yaml")).display().to_string()).collect();
    let mut args = vec!["apply"];
    args.extend(files.iter().map(String::as_str));
    lattice.ok(&args);
    let at = lattice.ingress("a");
    let attacks = ["/loop", "/memory?then=loop", "/recurse", "/flood?of=clock", "/flood?of=log", "/trap"];
    let neighbour = Load::start(at, "");
    std::thread::scope(|scope| {
        for (number, name) in names.iter().enumerate() {
            scope.spawn(move || {
                let host = format!("{name}.localhost");
                for _ in 0..2 {
                    let response = ask(at, &host, attacks[number % attacks.len()]);
                    assert!(matches!(response.status, 500 | 503 | 504), "{} {}", response.status, response.text());
                    assert!(response.text().contains(name.as_str()), "{}", response.text());
                }
            });
        }
    });
    let seen = neighbour.stop();
    eprintln!(
        "neighbour of 20 hostile actors on {broker:?}: {} requests, {} failed, slowest {:.0} ms",
        seen.answered,
        seen.failed.len(),
        seen.slowest.as_secs_f64() * 1e3
    );
    assert!(seen.failed.is_empty(), "{:?}", seen.failed);
    // Forty loops of two seconds on two processors: were it to take turns with them, it would wait for most of them.
    assert!(seen.slowest < Duration::from_secs(5), "{:?}", seen.slowest);
    lattice.assert_alive();
}

/// `inspect` needs no lattice.
#[test]
fn inspect_says_what_a_component_needs() {
    let dir = tempfile::tempdir().unwrap();
    let run = |path: &std::path::Path, more: &[&str]| {
        let output = clean(Command::new(PROGRAM).arg("inspect").arg(path).args(more)).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let (code, stdout, stderr) = run(&file("tests/guests/hostile/hostile.wasm"), &[]);
    assert_eq!(code, Some(0), "{stderr}");
    for line in ["wasi:clocks/wall-clock@0.2", "clocks: {wall: true}", "- type: grants", "- type: ingress"] {
        assert!(stdout.contains(line), "{line}: {stdout}");
    }
    let (_, stdout, _) = run(&file("manifests/counter/counter.wasm"), &["-o", "json"]);
    let json: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    let needs = |name: &str| {
        let imports = json["imports"].as_array().unwrap().iter();
        imports.filter(|i| i["interface"].as_str().unwrap().starts_with(name)).map(|i| i["needs"].clone()).next()
    };
    assert_eq!(needs("wasi:keyvalue/store@").unwrap(), "link");
    assert_eq!(needs("wasi:io/streams@").unwrap(), "always");
    assert_eq!(needs("wasi:cli/exit@").unwrap(), "grant-if-used");
    assert!(json["manifest"].as_str().unwrap().contains("package: keyvalue"), "{json}");
    assert_eq!(json["exports"][0].as_str().unwrap().split('@').next(), Some("wasi:http/incoming-handler"));

    let hello = std::fs::read(file("manifests/hello/hello.wasm")).unwrap();
    let core = wat::parse_str("(module (func (export \"f\")))").unwrap();
    for (name, bytes, says) in [
        ("text.wasm", &b"hello"[..], "not Wasm: it looks like text"),
        ("core.wasm", &core[..], "a core module, not a component"),
        ("cut.wasm", &hello[..hello.len() / 2], "truncated at byte"),
        ("empty.wasm", &b""[..], "empty"),
    ] {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let (code, stdout, stderr) = run(&path, &[]);
        assert_eq!((code, stdout.as_str()), (Some(1), ""), "{name}");
        assert!(stderr.contains(says) && stderr.contains(name), "{name}: {stderr}");
    }
    let (code, _, stderr) = run(&dir.path().join("gone.wasm"), &[]);
    assert!(code == Some(1) && stderr.contains("no such file"), "{stderr}");
}
