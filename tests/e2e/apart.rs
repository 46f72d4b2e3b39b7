//! Two hosts: replicas spread over them, requests and capabilities that cross the bus between them.

use crate::harness::{Broker, Lattice, SOON, http, manifests, scenarios, until};
use serde_json::json;
use std::time::Duration;

scenarios!(
    a_daemon_has_its_replicas_on_every_host,
    four_replicas_spread_evenly_over_two_hosts,
    an_ingress_serves_an_app_that_runs_on_another_host,
    a_store_on_another_host_is_reached_over_the_bus,
    a_store_on_the_same_host_is_reached_without_the_bus,
);

fn four_replicas_spread_evenly_over_two_hosts(broker: Broker) {
    let mut lattice = Lattice::start(broker);
    lattice.add_host("b", &["site=paris"], false);
    lattice.until_hosts(&[("a", "ready"), ("b", "ready")]);
    lattice.apply(&manifests::Hello { replicas: 4, ..Default::default() }.write(&lattice));
    lattice.until_spread("hello", "hello", &[("a", 2), ("b", 2)], SOON);

    let actors = lattice.items("actors");
    let b = actors.iter().find(|a| a["host_name"] == "b").unwrap();
    let host = lattice.host("b");
    assert_eq!(b["host"], host["id"]);
    for (field, want) in [
        ("app", json!("hello")),
        ("actor", json!("hello")),
        ("revision", json!(1)),
        ("replicas", json!(2)),
        ("running", json!(2)),
        ("state", json!("running")),
        ("kind", json!("actor")),
    ] {
        assert_eq!(b[field], want, "{field} of {b}");
    }
    assert_eq!((&host["state"], &host["running"]), (&json!("ready"), &json!(2)));
    assert_eq!(host["labels"], json!({"site": "paris"}));
    assert_eq!(host["facts"]["arch"], std::env::consts::ARCH);

    // Nothing moves when nothing has to: one more goes to either, the others stay.
    lattice.ok(&["scale", "hello/hello", "5"]);
    until("five run", SOON, || {
        let spread = lattice.spread("hello", "hello");
        (spread.values().map(|s| s.1).sum::<u64>() == 5).then_some(())
    });
    let spread = lattice.spread("hello", "hello");
    assert!(spread.values().all(|(placed, _)| (2..=3).contains(placed)), "{spread:?}");
}

fn a_daemon_has_its_replicas_on_every_host(broker: Broker) {
    let mut lattice = Lattice::start_labelled(broker, &["tier=edge"]);
    lattice.add_host("b", &["tier=edge"], false);
    lattice.add_host("c", &["tier=cloud"], false);
    lattice.until_hosts(&[("a", "ready"), ("b", "ready"), ("c", "ready")]);
    let text = manifests::Hello { replicas: 2, on: "tier: edge", ..Default::default() }.text();
    let manifest = lattice.write("daemon.yaml", manifests::change(&text, "spreadscaler", "daemonscaler"));
    lattice.apply(&manifest);
    lattice.until_spread("hello", "hello", &[("a", 2), ("b", 2)], SOON);
    // Who comes later gets them, who goes takes them along.
    lattice.add_host("d", &["tier=edge"], false);
    lattice.until_spread("hello", "hello", &[("a", 2), ("b", 2), ("d", 2)], SOON);
    lattice.ok(&["drain", "b"]);
    lattice.until_spread("hello", "hello", &[("a", 2), ("d", 2)], SOON);
    assert_eq!(lattice.items("apps")[0]["desired"], 4);
}

fn an_ingress_serves_an_app_that_runs_on_another_host(broker: Broker) {
    let mut lattice = Lattice::start(broker);
    lattice.add_host("b", &["tier=edge"], false);
    lattice.until_hosts(&[("b", "ready")]);
    lattice.apply(&manifests::hostile(&lattice, "tier: edge"));
    lattice.until_spread("hostile", "hostile", &[("b", 4)], SOON);
    let at = lattice.ingress("a");
    let ask = |method: &str, target: &str, body: &[u8]| {
        let host = "hostile.localhost";
        http::Request { at, method, host, target, body, more: "", deadline: Duration::from_secs(30) }.send().unwrap()
    };

    let headers = ask("GET", "/headers?x=1", b"");
    assert_eq!(headers.status, 200, "{}", headers.text());
    assert!(headers.text().starts_with("authority: hostile.localhost"), "{}", headers.text());
    assert_eq!(ask("GET", "/none", b"").status, 404, "a status of the actor's own");

    // More than one message of the bus carries, there and back.
    let sent: Vec<u8> = (0..3 * 1024 * 1024u32).map(|n| n.to_le_bytes()[(n % 3) as usize]).collect();
    let echoed = ask("POST", "/echo", &sent);
    assert_eq!(echoed.status, 200, "{}", echoed.text());
    assert!(echoed.body == sent, "{} bytes came back of {}", echoed.body.len(), sent.len());
    let large = ask("GET", "/body?bytes=5000000", b"");
    assert_eq!((large.status, large.body.len()), (200, 5_000_000));
    eprintln!("3 MiB echoed over the bus on {broker:?}: {:.3} s", echoed.took.as_secs_f64());

    // What goes wrong there is told here, and in time.
    let trap = ask("GET", "/trap", b"");
    assert_eq!(trap.status, 500, "{}", trap.text());
    let late = ask("GET", "/loop", b"");
    assert_eq!(late.status, 504, "{}", late.text());
    assert!(late.took < Duration::from_secs(8), "{:?}", late.took);
}

fn a_store_on_another_host_is_reached_over_the_bus(broker: Broker) {
    let mut lattice = Lattice::start_labelled(broker, &["tier=cloud"]);
    lattice.add_host("b", &["tier=edge"], false);
    lattice.until_hosts(&[("a", "ready"), ("b", "ready")]);
    lattice.apply(&manifests::counter_apart());
    lattice.until_spread("counter-apart", "counter", &[("a", 1)], SOON);
    lattice.until_spread("counter-apart", "store", &[("b", 1)], SOON);
    let at = lattice.ingress("a");
    let count = |path: &str| http::get_host(at, "counter-apart.localhost", path);
    for n in 1..=5 {
        let response = count("/cats");
        assert_eq!((response.status, response.text()), (200, format!("{n}\n")));
    }
    assert_eq!(count("/dogs").text(), "1\n");
    let links = lattice.items_of("links", "counter-apart");
    assert_eq!(links.len(), 2, "{links:?}");
    for link in &links {
        assert_eq!((&link["state"], &link["path"]), (&json!("bound"), &json!("bus")), "{link}");
        assert_eq!((&link["consumer"], &link["provider"]), (&json!("counter"), &json!("store")));
    }

    // Without its host a call ends with an error that names who is missing: at its deadline of 30 s when it was on its
    // way as the host died, and at once as soon as the bus has noticed.
    lattice.kill_host("b");
    let fails = |deadline: u64| {
        let (host, deadline) = ("counter-apart.localhost", Duration::from_secs(deadline));
        let request = http::Request { host, deadline, ..http::Request::get(at, "/cats?peek") };
        let gone = request.send().unwrap();
        assert!(gone.status >= 500, "{} {}", gone.status, gone.text());
        gone
    };
    let first = fails(40);
    let second = fails(5);
    assert!(second.text().contains("store") && second.text().contains("wasi:keyvalue"), "{}", second.text());
    eprintln!(
        "calls to a killed provider failed after {:.2} s and {:.3} s on {broker:?}",
        first.took.as_secs_f64(),
        second.took.as_secs_f64()
    );

    // The store waits for its data instead of starting empty elsewhere.
    lattice.start_host("b");
    let back = until("the store is back", Duration::from_secs(30), || {
        let response = count("/cats?peek");
        (response.status == 200).then(|| response.text())
    });
    assert_eq!(back, "5\n");
    assert_eq!(count("/cats").text(), "6\n");
}

fn a_store_on_the_same_host_is_reached_without_the_bus(broker: Broker) {
    let lattice = Lattice::start(broker);
    lattice.apply(&manifests::counter());
    let at = lattice.ingress("a");
    for n in 1..=3 {
        assert_eq!(http::get_host(at, "counter.localhost", "/cats").text(), format!("{n}\n"));
    }
    for link in lattice.items_of("links", "counter") {
        assert_eq!((&link["state"], &link["path"]), (&json!("bound"), &json!("local")), "{link}");
    }
    // A route by host name: this one belongs to nobody.
    assert_eq!(http::get_host(at, "else.localhost", "/cats").status, 404);
}
