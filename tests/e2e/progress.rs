//! Whoever waits for an app is told what its hosts do meanwhile.

use crate::harness::{Broker, Lattice, SOON, file, http, manifests, scenarios, until};
use std::process::Stdio;

scenarios!(who_waits_is_told_what_a_host_does);

/// Functions of the part that takes its time to compile: some 4 MB, a few seconds.
const FUNCTIONS: usize = 4_000;
const OPERATIONS: usize = 150;
/// What is fetched besides, and not compiled.
const PADDING_BYTES: usize = 24_000_000;

fn who_waits_is_told_what_a_host_does(broker: Broker) {
    let lattice = Lattice::start(broker);
    let image = lattice.write("large.wasm", large()).display().to_string();
    let manifest = manifests::Hello { image, ..Default::default() }.write(&lattice).display().to_string();
    let mut apply = lattice.command(&["apply", &manifest, "--timeout", "5m"]);
    let applying = apply.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let message = until("the host says what it does", SOON * 3, || {
        let actor = lattice.items_of("actors", "hello").into_iter().next()?;
        let message = actor["message"].as_str().unwrap().to_owned();
        (actor["state"] == "starting" && !message.is_empty()).then_some(message)
    });
    assert!(STEPS.iter().any(|step| message.starts_with(step)), "{message}");

    let output = applying.wait_with_output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{text}");
    let told: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("hello/hello on a: ")).collect();
    // Where lines stay each step is one line, however long it takes.
    for step in STEPS {
        assert!(told.iter().filter(|line| line.starts_with(step)).count() <= 1, "{text}");
    }
    assert!(told.iter().any(|line| line.starts_with("fetching") || line.starts_with("compiling")), "{text}");
    assert!(told.iter().all(|line| STEPS.iter().any(|step| line.starts_with(step))), "{text}");

    assert_eq!(http::get(lattice.ingress("a"), "/").status, 200);
    let actor = &lattice.items_of("actors", "hello")[0];
    assert_eq!((actor["state"].as_str(), actor["message"].as_str()), (Some("running"), Some("")), "{actor}");
}

const STEPS: [&str; 5] = ["waits to be fetched", "fetching", "waits to be compiled", "compiling", "starting"];

/// The component of hello with a module besides, which nothing uses, and a section of zeros.
fn large() -> Vec<u8> {
    let mut component = std::fs::read(file("manifests/hello/hello.wasm")).unwrap();
    component.extend(section(1, &module()));
    let name = b"padding";
    let mut padding = leb(name.len());
    padding.extend_from_slice(name);
    padding.resize(padding.len() + PADDING_BYTES, 0);
    component.extend(section(0, &padding));
    component
}

/// Functions from i32 to i32, no two of them alike.
fn module() -> Vec<u8> {
    let types = [1, 0x60, 1, 0x7f, 1, 0x7f];
    let mut functions = leb(FUNCTIONS);
    functions.resize(functions.len() + FUNCTIONS, 0);
    let mut code = leb(FUNCTIONS);
    for n in 0..FUNCTIONS {
        // No locals; local.get 0, and then again and again: local.get 0, i32.rotl, i32.const, i32.xor.
        let mut body = vec![0, 0x20, 0];
        for m in 0..OPERATIONS {
            // Below 64 a byte is a number of its own in signed LEB128.
            let constant = u8::try_from((n * 31 + m * 7) % 64).unwrap();
            body.extend([0x20, 0, 0x77, 0x41, constant, 0x73]);
        }
        body.push(0x0b);
        code.extend(leb(body.len()));
        code.extend(body);
    }
    let mut module = b"\0asm\x01\0\0\0".to_vec();
    for (id, body) in [(1, types.as_slice()), (3, &functions), (10, &code)] {
        module.extend(section(id, body));
    }
    module
}

fn section(id: u8, body: &[u8]) -> Vec<u8> {
    let mut section = vec![id];
    section.extend(leb(body.len()));
    section.extend_from_slice(body);
    section
}

/// Unsigned LEB128.
fn leb(mut n: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let low = u8::try_from(n & 0x7f).unwrap();
        n >>= 7;
        if n == 0 {
            bytes.push(low);
            return bytes;
        }
        bytes.push(low | 0x80);
    }
}
