//! A strict actor: its host is cut off from the bus and goes on by itself, and it never answers on two hosts at once.

use crate::buses::{Server, Wire};
use crate::harness::{Broker, Lattice, SOON, http, manifests, run, until};
use std::time::{Duration, Instant};

#[test]
fn what_is_strict_never_answers_twice() {
    run("what_is_strict_never_answers_twice", Broker::Nats, |_| moves_alone());
}

fn moves_alone() {
    let dir = tempfile::tempdir().unwrap();
    let mut hub = Server::new("hub", "");
    hub.start(dir.path());
    let wire = Wire::to(hub.port);
    let mut lattice = Lattice::on(&hub.url());
    lattice.use_bus(&format!("nats://127.0.0.1:{}", wire.port));
    lattice.add_host("b", &[], true);
    lattice.until_hosts(&[("a", "ready"), ("b", "ready")]);
    lattice.ok(&["cordon", "a"]);
    lattice.apply(&manifests::Hello { strict: true, ..Default::default() }.write(&lattice));
    lattice.ok(&["uncordon", "a"]);
    let (a, b) = (lattice.ingress("a"), lattice.ingress("b"));
    until("it answers on b", SOON, || http::answers(b, ""));

    wire.cut();
    let cut = Instant::now();
    let mut last = cut;
    let first = until("it answers on a", Duration::from_secs(40), || {
        if http::get(b, "/").status == 200 {
            last = Instant::now();
        }
        let asked = Instant::now();
        // What was under way over the bus when it was cut was answered by b.
        let over = asked.duration_since(cut) > Duration::from_secs(1);
        (over && http::get(a, "/").status == 200).then_some(asked)
    });
    eprintln!(
        "cut off at 0 s, the last answer there at {:.2} s, the first one elsewhere at {:.2} s",
        last.duration_since(cut).as_secs_f64(),
        first.duration_since(cut).as_secs_f64()
    );
    assert!(last < first, "it answered on both hosts");
    assert!(last.duration_since(cut) > Duration::from_secs(2), "a blink of the bus must not stop it");
    let refused = http::get(b, "/");
    assert_ne!(refused.status, 200, "b has no lease");

    // It stays where it is now, and moves when it is told to.
    wire.mend();
    lattice.until_hosts_within(&[("b", "ready")], Duration::from_secs(40));
    lattice.until_spread("hello", "hello", &[("a", 1)], SOON);
    lattice.ok(&["drain", "a"]);
    lattice.until_spread("hello", "hello", &[("b", 1)], SOON);
    until("it answers on b again", SOON, || http::answers(b, ""));
    lattice.ok(&["uncordon", "a"]);
    // A new revision takes the place of the old one, on the same host or not.
    lattice.apply(&manifests::Hello { strict: true, memory: "32MiB", ..Default::default() }.write(&lattice));
    until("the new revision answers", SOON, || http::answers(a, ""));
    lattice.interrupt_host("b");
    until("it answers on a again", Duration::from_secs(20), || http::answers(a, ""));
    lattice.until_spread("hello", "hello", &[("a", 1)], SOON);
    // It can not become an ordinary one under the same name, nor be two.
    let refused = lattice.cli(&["scale", "hello/hello", "2"]);
    assert!(refused.code == 1 && refused.stderr.contains("is strict"), "{refused:?}");
    let loose = manifests::Hello { replicas: 2, ..Default::default() }.write(&lattice).display().to_string();
    let refused = lattice.cli(&["apply", &loose]);
    assert!(refused.code == 1 && refused.stderr.contains("another name"), "{refused:?}");
    lattice.assert_alive();
}
