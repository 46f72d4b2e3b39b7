//! Replicas that move and change while requests run through them: none of the requests may notice.

use crate::harness::load::{Load, Seen};
use crate::harness::{Broker, Lattice, SOON, http, manifests, scenarios, throughout, until};
use serde_json::json;
use std::time::Duration;

scenarios!(
    a_drain_fails_no_request,
    a_new_revision_fails_no_request,
    a_cordoned_host_keeps_what_it_has_and_gets_nothing_new,
);

fn unharmed(what: &str, broker: Broker, seen: &Seen) {
    eprintln!(
        "{what} on {broker:?}: {} requests, {} failed, slowest {:.0} ms",
        seen.answered,
        seen.failed.len(),
        seen.slowest.as_secs_f64() * 1e3
    );
    assert!(seen.failed.is_empty(), "{what}: {:#?}", &seen.failed[..seen.failed.len().min(10)]);
    assert!(seen.answered > 10, "{what}: only {} requests", seen.answered);
}

fn a_drain_fails_no_request(broker: Broker) {
    let mut lattice = Lattice::start(broker);
    lattice.add_host("b", &[], false);
    lattice.until_hosts(&[("b", "ready")]);
    // All of it on b, all requests by the ingress of a: over the bus until the drain, then within a.
    lattice.ok(&["cordon", "a"]);
    lattice.apply(&manifests::Hello { replicas: 4, ..Default::default() }.write(&lattice));
    lattice.until_spread("hello", "hello", &[("b", 4)], SOON);
    assert_eq!(lattice.ok(&["uncordon", "a"]), "host/a uncordoned\n");

    let load = Load::start(lattice.ingress("a"), "");
    assert_eq!(lattice.ok(&["drain", "b"]), "host/b draining\n");
    lattice.until_spread("hello", "hello", &[("a", 4)], SOON);
    until("b runs nothing", SOON, || (lattice.host("b")["running"] == 0).then_some(()));
    unharmed("drain", broker, &load.stop());
    assert_eq!(lattice.host("b")["state"], "draining");

    // The way back, from the host with the ingress.
    lattice.ok(&["uncordon", "b"]);
    let load = Load::start(lattice.ingress("a"), "");
    lattice.ok(&["drain", "a"]);
    lattice.until_spread("hello", "hello", &[("b", 4)], SOON);
    until("a runs nothing", SOON, || (lattice.host("a")["running"] == 0).then_some(()));
    unharmed("drain of the ingress host", broker, &load.stop());
}

fn a_new_revision_fails_no_request(broker: Broker) {
    let mut lattice = Lattice::start(broker);
    lattice.add_host("b", &[], true);
    lattice.until_hosts(&[("b", "ready")]);
    let hello = manifests::Hello { replicas: 4, ..Default::default() };
    lattice.apply(&hello.write(&lattice));
    lattice.until_spread("hello", "hello", &[("a", 2), ("b", 2)], SOON);

    let loads = [Load::start(lattice.ingress("a"), ""), Load::start(lattice.ingress("b"), "")];
    for (revision, memory) in [(2, "32MiB"), (3, "48MiB"), (4, "16MiB")] {
        lattice.apply(&manifests::Hello { memory, ..hello.clone() }.write(&lattice));
        until("every host runs it", SOON, || {
            let actors = lattice.items_of("actors", "hello");
            actors.iter().all(|a| a["revision"] == revision && a["running"] == 2).then_some(())
        });
    }
    // More and fewer replicas, and an earlier revision again.
    lattice.ok(&["scale", "hello/hello", "9"]);
    lattice.ok(&["scale", "hello/hello", "2"]);
    lattice.until_spread("hello", "hello", &[("a", 1), ("b", 1)], SOON);
    lattice.ok(&["rollback", "hello", "--to", "1"]);
    lattice.until_spread("hello", "hello", &[("a", 2), ("b", 2)], SOON);
    for load in loads {
        unharmed("new revisions", broker, &load.stop());
    }
}

fn a_cordoned_host_keeps_what_it_has_and_gets_nothing_new(broker: Broker) {
    let mut lattice = Lattice::start(broker);
    lattice.add_host("b", &[], false);
    lattice.until_hosts(&[("b", "ready")]);
    lattice.apply(&manifests::Hello { replicas: 4, ..Default::default() }.write(&lattice));
    lattice.until_spread("hello", "hello", &[("a", 2), ("b", 2)], SOON);
    assert_eq!(lattice.ok(&["cordon", "b"]), "host/b cordoned\n");
    assert_eq!(lattice.ok(&["cordon", "b"]), "host/b unchanged\n");
    assert_eq!(lattice.host("b")["state"], "cordoned");
    lattice.ok(&["scale", "hello/hello", "8"]);
    lattice.until_spread("hello", "hello", &[("a", 6), ("b", 2)], SOON);
    lattice.ok(&["uncordon", "b"]);
    lattice.until_hosts(&[("b", "ready")]);
    // Nothing moves because there is room again.
    throughout("nothing moves", Duration::from_secs(2), || {
        lattice.spread("hello", "hello") == [("a".to_owned(), (6, 6)), ("b".to_owned(), (2, 2))].into()
    });
    // Known by its id too.
    let id = lattice.host("b")["id"].as_str().unwrap().to_owned();
    lattice.ok(&["cordon", &id]);
    assert_eq!(lattice.host("b")["state"], json!("cordoned"));
    assert_eq!(http::get(lattice.ingress("a"), "/").status, 200);
}
