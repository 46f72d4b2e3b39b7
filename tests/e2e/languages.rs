//! Guests of other languages' own tools, as their users build them: applied, asked, run. `tests/guests/build` makes
//! them; what it could not make is left out, by name.

use crate::harness::http::{self, Request};
use crate::harness::{Broker, Lattice, SOON, file, leave_out, manifests, run, until};
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::Duration;

/// Compiling a JavaScript or Python engine takes 10 s of a processor, and this one is shared.
const APPLIED: &str = "300s";
/// What these engines grow to.
const LIMITS: &str = "{type: limits, properties: {memory: 256MiB, deadline: 2m, cpu: 60s}}";
const INGRESS: &str = "{type: ingress, properties: {path: /}}";

/// The guest of that name, or none, which is then told.
fn built(name: &str) -> Option<PathBuf> {
    let folder = file("target/guests/large");
    let path = folder.join(format!("{name}.wasm"));
    if path.is_file() {
        return Some(path);
    }
    let why = fs::read_to_string(folder.join(format!("{name}.missing")))
        .unwrap_or_else(|_| "it is not built: run tests/guests/build".to_owned());
    leave_out(&format!("a guest in {name}: {}", why.trim()));
    None
}

fn apply(lattice: &Lattice, name: &str, image: &std::path::Path, traits: &[&str]) {
    let manifest = manifests::actor(lattice, name, image, traits);
    lattice.ok(&["apply", &manifest.display().to_string(), "--timeout", APPLIED]);
}

/// Applies an HTTP handler, asks it for a page, sends it a body, and looks at its log.
fn answers(name: &str, get: &str, post: &str) {
    let Some(image) = built(name) else { return };
    let lattice = Lattice::start(Broker::Embedded);
    // What its engine takes from the system: seeds of hash maps, and the time, are granted, nothing else.
    let grants = "{type: grants, properties: {random: true, clocks: {wall: true}}}";
    apply(&lattice, name, &image, &[INGRESS, LIMITS, grants]);
    let at = lattice.ingress("a");
    let ask = |method, target, body| {
        let request = Request { method, body, deadline: Duration::from_secs(120), ..Request::get(at, target) };
        request.send().unwrap()
    };
    let answer = ask("GET", "/page?x=1", &b""[..]);
    assert_eq!((answer.status, answer.text().as_str()), (200, get), "{answer:?}");
    assert_eq!(answer.header("x-language"), Some(name));
    let answer = ask("POST", "/form", b"some text");
    assert_eq!((answer.status, answer.text().as_str()), (200, post), "{answer:?}");
}

#[test]
fn a_handler_in_javascript_answers() {
    let test = |_| answers("javascript", "JavaScript: GET /page \n", "JavaScript: POST /form some text\n");
    run("a handler in JavaScript", Broker::Embedded, test);
}

#[test]
fn a_handler_in_python_answers() {
    let test = |_| answers("python", "Python: GET /page?x=1 \n", "Python: POST /form SOME TEXT\n");
    run("a handler in Python", Broker::Embedded, test);
}

#[test]
fn a_component_in_go_is_called() {
    run("a component in Go", Broker::Embedded, |broker| {
        let Some(module) = built("gocomponent") else { return };
        // The world goes into the module, as `wasm-tools component embed` would put it there.
        let mut resolve = wit_parser::Resolve::default();
        let package = resolve.push_path(file("tests/guests/gocomponent/wit")).unwrap().0;
        let world = resolve.select_world(&[package], Some("guest")).unwrap();
        let mut bytes = fs::read(module).unwrap();
        let encoding = wit_component::StringEncoding::UTF8;
        wit_component::embed_component_metadata(&mut bytes, &resolve, world, encoding).unwrap();
        let lattice = Lattice::start(broker);
        let image = lattice.write("sums.wasm", bytes);
        let inspected = lattice.ok(&["inspect", &image.display().to_string()]);
        assert!(inspected.contains("a core module of WASI preview 1 with a world of its own"), "{inspected}");
        let grants = "{type: grants, properties: {random: true, clocks: {wall: true}}}";
        apply(&lattice, "sums", &image, &[LIMITS, grants]);
        assert_eq!(lattice.ok(&["call", "sums/a", "lattice:sums/sums.add", "2", "40"]), "42\n");
        assert_eq!(lattice.ok(&["call", "sums/a", "lattice:sums/sums.primes", "1000"]), "168\n");
    });
}

/// Components of other frameworks, which import nothing but WASI: nothing is granted to them.
#[test]
fn handlers_of_other_frameworks_answer() {
    run("handlers of other frameworks", Broker::Embedded, |broker| {
        let lattice = Lattice::start(broker);
        let spin = file("tests/guests/spin/spin.wasm");
        for (name, image) in [("spin", Some(spin)), ("wstd", built("wstd"))] {
            let Some(image) = image else { continue };
            let inspected = lattice.ok(&["inspect", &image.display().to_string()]);
            assert!(inspected.contains("wasi:http/incoming-handler"), "{inspected}");
            assert!(!inspected.contains("fermyon:") && !inspected.contains("spin:"), "{inspected}");
            let ingress = format!("{{type: ingress, properties: {{host: {name}.localhost, path: /}}}}");
            apply(&lattice, name, &image, &[&ingress]);
            let host = format!("{name}.localhost");
            let at = lattice.ingress("a");
            until("it serves", SOON, || http::answers(at, &host));
            let title = if name == "spin" { "Spin" } else { name };
            let (get, post) = (format!("{title}: GET /page?x=1 \n"), format!("{title}: POST /form SOME TEXT\n"));
            for (method, target, body, says) in
                [("GET", "/page?x=1", &b""[..], get), ("POST", "/form", b"some text", post)]
            {
                let answer = Request { method, body, host: &host, ..Request::get(at, target) }.send().unwrap();
                assert_eq!((answer.status, answer.text()), (200, says), "{answer:?}");
                assert_eq!(answer.header("x-language"), Some(name));
            }
        }
    });
}

#[test]
fn programs_in_go_c_and_zig_run() {
    run("programs in Go, C and Zig", Broker::Embedded, |broker| {
        let lattice = Lattice::start(broker);
        if let Some(go) = built("go") {
            // Its runtime asks for randomness and the time as it starts.
            let grants = "{type: grants, properties: {random: true, clocks: {wall: true}}}";
            apply(&lattice, "sort", &go, &[LIMITS, grants]);
            let sorted = given(&lattice, &["run", "-i", "sort/a"], b"pear\napple\nfig\n");
            assert_eq!((sorted.status.code(), sorted.stdout.as_slice()), (Some(0), &b"apple\nfig\npear\n"[..]));
            let ended = given(&lattice, &["run", "sort/a", "--", "x", "y"], b"");
            assert_eq!((ended.status.code(), ended.stderr.as_slice()), (Some(3), &b"[x y]\n"[..]), "{ended:?}");
            until("its log has it", SOON, || lattice.ok(&["logs", "sort"]).contains("pear").then_some(()));
        }
        if let Some(c) = built("c") {
            apply(&lattice, "words", &c, &[]);
            let counted = given(&lattice, &["run", "-i", "words/a"], b"one two\n");
            assert_eq!((counted.status.code(), counted.stdout.as_slice()), (Some(0), &b"1 2 8 -\n"[..]));
            let committed = fs::read(file("manifests/words/words.wasm")).unwrap();
            assert_eq!(fs::read(&c).unwrap(), committed, "manifests/words/words.wasm: manifests/build words");
        }
        if let Some(zig) = built("zig") {
            apply(&lattice, "sum", &zig, &[]);
            let summed = given(&lattice, &["run", "-i", "sum/a"], b"1\n2\n-45\n");
            assert_eq!((summed.status.code(), summed.stdout.as_slice()), (Some(0), &b"-42 of 3\n"[..]), "{summed:?}");
            let wrong = given(&lattice, &["run", "-i", "sum/a"], b"1\nx\n");
            assert_eq!((wrong.status.code(), wrong.stderr.as_slice()), (Some(2), &b"no number: x\n"[..]), "{wrong:?}");
        }
        // A program is no page.
        assert_eq!(http::get(lattice.ingress("a"), "/").status, 404);
    });
}

fn given(lattice: &Lattice, args: &[&str], input: &[u8]) -> Output {
    let mut command = lattice.command(args);
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().unwrap();
    // One that reads nothing may be gone before all is written.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}
