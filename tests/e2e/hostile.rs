//! A component that does its worst: its caller gets an error in time, its neighbours notice nothing, and what was not
//! granted is not reached.

use crate::harness::load::Load;
use crate::harness::{Broker, Lattice, SOON, http, manifests, scenarios, until};
use serde_json::json;
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

scenarios!(
    what_a_component_does_to_itself_hurts_nobody_else,
    what_was_not_granted_is_not_reached,
    more_requests_than_the_queue_holds_are_told_to_come_again,
);

/// The deadline in its manifest is 2 s; the rest is for a busy machine.
const IN_TIME: Duration = Duration::from_secs(6);
/// Heartbeats with what actors do come every 20 s.
const SIGNALS_SOON: Duration = Duration::from_secs(60);

fn start(broker: Broker) -> Lattice {
    let lattice = Lattice::start(broker);
    lattice.apply(&manifests::hello());
    lattice.apply(&manifests::hostile(&lattice, ""));
    lattice
}

fn ask(lattice: &Lattice, target: &str) -> std::io::Result<http::Response> {
    let at = lattice.ingress("a");
    http::Request { host: "hostile.localhost", ..http::Request::get(at, target) }.send()
}

fn what_a_component_does_to_itself_hurts_nobody_else(broker: Broker) {
    let mut lattice = start(broker);
    let neighbour = Load::start(lattice.ingress("a"), "");
    for (target, status) in [
        ("/trap", 500),
        ("/panic", 500),
        ("/recurse", 500),
        ("/memory?then=abort", 500),
        ("/memory?then=loop", 504),
        ("/loop", 504),
        ("/sleep?ms=60000", 504),
        ("/silent", 500),
    ] {
        let response = ask(&lattice, target).unwrap();
        assert_eq!(response.status, status, "{target}: {}", response.text());
        assert!(response.took < IN_TIME, "{target} took {:?}", response.took);
        assert!(response.text().contains("hostile"), "{target} names who failed: {}", response.text());
    }
    // Half an answer is seen to be half an answer.
    let begun = Instant::now();
    let cut = ask(&lattice, "/cut");
    assert!(cut.is_err() && begun.elapsed() < IN_TIME, "{cut:?} after {:?}", begun.elapsed());
    // Refused memory is no reason to end: 32 MiB in all.
    let memory = ask(&lattice, "/memory").unwrap();
    assert_eq!(memory.status, 200, "{}", memory.text());
    let taken = memory.text();
    let taken: u32 = taken.strip_prefix("denied: memory, after ").unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!((16..32).contains(&taken), "{taken} MiB of 32");

    // All of its slots at once, all in endless loops.
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let response = ask(&lattice, "/loop").unwrap();
                assert!(matches!(response.status, 503 | 504), "{} {}", response.status, response.text());
                assert!(response.took < IN_TIME * 2, "{:?}", response.took);
            });
        }
    });
    assert_eq!(ask(&lattice, "/").unwrap().status, 200, "each request has an instance of its own");

    let seen = neighbour.stop();
    eprintln!(
        "neighbour of a hostile component on {broker:?}: {} requests, {} failed, slowest {:.0} ms",
        seen.answered,
        seen.failed.len(),
        seen.slowest.as_secs_f64() * 1e3
    );
    assert!(seen.failed.is_empty(), "{:?}", seen.failed);
    assert!(seen.slowest < Duration::from_secs(3), "{:?}", seen.slowest);
    lattice.assert_alive();
    assert_eq!(lattice.host("a")["state"], "ready");
    // Counted for whoever looks: its own errors, none of its neighbour's.
    // Counters come with every tenth heartbeat, 20 s apart.
    until("the errors are counted", Duration::from_secs(30), || {
        let errors = |app: &str| lattice.items_of("actors", app)[0]["errors"].as_u64().unwrap();
        assert_eq!(errors("hello"), 0);
        (errors("hostile") >= 9).then_some(())
    });
}

fn what_was_not_granted_is_not_reached(broker: Broker) {
    let lattice = start(broker);
    let trap = TcpListener::bind("127.0.0.1:0").unwrap();
    trap.set_nonblocking(true).unwrap();
    let port = trap.local_addr().unwrap().port();
    let said = |target: &str| {
        let response = ask(&lattice, target).unwrap();
        assert_eq!(response.status, 200, "{target}: {}", response.text());
        response.text()
    };
    assert_eq!(said("/env"), "denied: no variables\n0 arguments\n");
    let file = said("/file?path=/etc/hostname");
    assert!(
        file.starts_with("denied: read") && file.contains("denied: list") && file.contains("denied: write"),
        "{file}"
    );
    assert!(file.ends_with("0 folders\n"), "{file}");
    for to in [format!("127.0.0.1:{port}"), lattice.api().to_owned(), "1.1.1.1:80".to_owned()] {
        let text = said(&format!("/socket?to={to}"));
        assert!(text.starts_with("denied: "), "{text}");
    }
    for url in [format!("http://127.0.0.1:{port}/"), format!("http://{}/", lattice.ingress("a"))] {
        let text = said(&format!("/out?url={url}"));
        assert!(text.starts_with("denied: "), "{text}");
    }
    assert_eq!(trap.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "nothing came out");
    // What its manifest does give it.
    assert_eq!(said("/config?key=greeting"), "greeting=hello\n");
    assert_eq!(said("/config?key=HOME"), "denied: no \"HOME\"\n");
}

fn more_requests_than_the_queue_holds_are_told_to_come_again(broker: Broker) {
    let lattice = start(broker);
    assert_eq!(ask(&lattice, "/").unwrap().status, 200);
    // Four run, eight wait, and there is no room for the others.
    let answers: Vec<http::Response> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..30).map(|_| scope.spawn(|| ask(&lattice, "/sleep?ms=1000").unwrap())).collect();
        let neighbour = http::get(lattice.ingress("a"), "/");
        assert_eq!(neighbour.status, 200);
        clients.into_iter().map(|c| c.join().unwrap()).collect()
    });
    let count = |status: u16| answers.iter().filter(|a| a.status == status).count();
    assert!(count(503) >= 12, "{:?}", answers.iter().map(|a| a.status).collect::<Vec<_>>());
    assert!(count(200) >= 4, "{:?}", answers.iter().map(|a| a.status).collect::<Vec<_>>());
    assert_eq!(count(200) + count(503) + count(504), 30);
    for refused in answers.iter().filter(|a| a.status == 503) {
        assert_eq!(refused.header("retry-after"), Some("1"));
        assert!(refused.text().contains("hostile"), "{}", refused.text());
    }
    // Whoever would scale it sees how many run and how many wait, while they do.
    let (is_seen, begun) = (AtomicBool::new(false), Instant::now());
    std::thread::scope(|scope| {
        for _ in 0..10 {
            // They end by themselves too: a failure below must not leave them asking for ever.
            scope.spawn(|| {
                while !is_seen.load(Ordering::Relaxed) && begun.elapsed() < SIGNALS_SOON {
                    let _ = ask(&lattice, "/sleep?ms=500");
                }
            });
        }
        until("some run and some wait", SIGNALS_SOON, || {
            let actor = &lattice.items_of("actors", "hostile")[0];
            let [running, waiting] = ["in_flight", "queued"].map(|name| actor[name].as_u64().unwrap());
            ((1..=4).contains(&running) && (1..=8).contains(&waiting)).then_some(())
        });
        is_seen.store(true, Ordering::Relaxed);
    });
    until("there is room again", SOON, || (ask(&lattice, "/").unwrap().status == 200).then_some(()));
    let actor = &lattice.items_of("actors", "hostile")[0];
    assert_eq!((&actor["state"], &actor["running"]), (&json!("running"), &json!(4)));
}
