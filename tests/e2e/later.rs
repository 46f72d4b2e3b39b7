//! WASI 0.3: a component of it is applied, asked here and from another host, and told apart from its drafts.

use crate::harness::http::{self, Request};
use crate::harness::{Broker, Lattice, SOON, file, manifests, scenarios, until};
use std::time::{Duration, Instant};

scenarios!(a_handler_of_wasi_0_3_answers_here_and_from_elsewhere);

fn a_handler_of_wasi_0_3_answers_here_and_from_elsewhere(broker: Broker) {
    let mut lattice = Lattice::start_labelled(broker, &["here=yes"]);
    lattice.add_host("b", &[], true);
    lattice.until_hosts(&[("b", "ready")]);
    let image = file("tests/guests/later/later.wasm");
    let inspected = lattice.ok(&["inspect", &image.display().to_string()]);
    for line in ["wasi:http/handler@0.3.0", "clocks: {wall: true}", "http: [api.example.org]", "- type: ingress"] {
        assert!(inspected.contains(line), "{line}: {inspected}");
    }
    assert!(!inspected.contains("nobody"), "{inspected}");
    let ingress = "{type: ingress, properties: {path: /}}";
    let on_a = "{type: spreadscaler, properties: {instances: 8, spread: [{name: a, requirements: {here: 'yes'}}]}}";
    lattice.apply(&manifests::actor(&lattice, "later", &image, &[ingress, on_a]));

    for host in ["a", "b"] {
        let at = lattice.ingress(host);
        until("its route is there", SOON, || (http::get(at, "/").status == 200).then_some(()));
        assert_eq!(http::get(at, "/").text(), "Hello from WASI 0.3!\n", "by {host}");
        let body = vec![b'x'; 3 << 20];
        let deadline = Duration::from_secs(60);
        let echoed = Request { method: "POST", body: &body, deadline, ..Request::get(at, "/echo") }.send().unwrap();
        assert_eq!((echoed.status, echoed.body == body), (200, true), "by {host}: {} bytes", echoed.body.len());
        let trapped = http::get(at, "/trap");
        assert_eq!(trapped.status, 500, "by {host}: {}", trapped.text());
        assert!(trapped.text().contains("trapped"), "by {host}: {}", trapped.text());
        let denied = http::get(at, "/time");
        assert!(denied.text().contains("grants.clocks.wall"), "by {host}: {}", denied.text());
    }
    // Who waits holds nobody up.
    let begun = Instant::now();
    let at = lattice.ingress("a");
    std::thread::scope(|scope| {
        let waiting: Vec<_> = (0..8).map(|_| scope.spawn(|| http::get(at, "/wait?1000"))).collect();
        for one in waiting {
            let answer = one.join().unwrap();
            assert!(answer.text().starts_with("waited "), "{}", answer.text());
        }
    });
    assert!(begun.elapsed() < Duration::from_secs(7), "one after the other: {:?}", begun.elapsed());

    // It is a program as well.
    let ended = lattice.cli(&["run", "later/a", "--", "x"]);
    assert_eq!((ended.code, ended.stdout.as_str(), ended.stderr.as_str()), (0, "a\nx\n", ""));
    let ended = lattice.cli(&["run", "later/a", "--", "x", "y"]);
    assert_eq!((ended.code, ended.stdout.as_str(), ended.stderr.as_str()), (1, "a\nx\ny\n", ""));

    let draft = wat::parse_str(
        r#"(component
            (import "wasi:http/types@0.3.0-rc-2026-03-15" (instance (export "fields" (type (sub resource))))))"#,
    );
    let draft = lattice.write("draft.wasm", draft.unwrap());
    let refused = lattice.cli(&["apply", &manifests::actor(&lattice, "draft", &draft, &[]).display().to_string()]);
    assert_eq!(refused.code, 1, "{refused:#?}");
    assert!(refused.stderr.contains("hosts serve wasi:http 0.2 and 0.3"), "{refused:#?}");
    lattice.assert_alive();
}
