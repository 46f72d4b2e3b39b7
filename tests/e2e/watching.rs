//! What operators see while a lattice works: health, metrics, load, and what belongs to one request.

use crate::harness::http::{self, Request};
use crate::harness::load::Load;
use crate::harness::{Broker, Lattice, SOON, address, manifests, scenarios, until};
use serde_json::Value;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

scenarios!(
    processes_say_how_they_are_and_what_they_did,
    a_request_is_known_by_its_id_on_every_host,
    bodies_stream_both_ways_at_once,
);

/// The value of one line of a page for Prometheus.
fn value(page: &str, name: &str) -> Option<f64> {
    page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

fn page(at: SocketAddr) -> String {
    let page = http::get(at, "/metrics");
    assert_eq!(page.status, 200);
    assert!(page.header("content-type").unwrap().starts_with("application/openmetrics-text"), "{page:?}");
    let text = page.text();
    assert!(text.ends_with("# EOF\n"), "{text}");
    text
}

fn processes_say_how_they_are_and_what_they_did(broker: Broker) {
    let mut lattice = Lattice::start(broker);
    let log = lattice.dir().join("access.log").display().to_string();
    lattice.add_host_with("b", &["tier=edge"], true, &["--admin", "127.0.0.1:0", "--access-log", &log]);
    lattice.until_hosts(&[("b", "ready")]);
    let admin = address(&lattice.process("b").field("admin"));
    for at in [admin, lattice.admin()] {
        assert_eq!(http::get(at, "/healthz").text(), "ok\n");
        until("it is ready", SOON, || (http::get(at, "/readyz").text() == "ready\n").then_some(()));
        assert_eq!(http::get(at, "/").status, 404);
        assert_eq!((Request { method: "POST", ..Request::get(at, "/metrics") }).send().unwrap().status, 405);
    }
    // An actor's own paths of these names are its own.
    let hello = manifests::Hello { on: "tier: edge", replicas: 2, ..Default::default() };
    lattice.apply(&hello.write(&lattice));
    let ingress = lattice.ingress("b");
    until("b serves", SOON, || http::answers(ingress, ""));
    assert_ne!(http::get(ingress, "/healthz").text(), "ok\n");

    let load = Load::start(ingress, "");
    let busy = until("the scheduler knows of the load", SOON, || {
        let actors = lattice.items_of("actors", "hello");
        actors.into_iter().find(|a| a["requests_per_s"].as_f64() > Some(1.0) && a["p50_us"].as_u64() > Some(0))
    });
    assert!(busy["p99_us"].as_u64() >= busy["p50_us"].as_u64(), "{busy}");
    let host = lattice.host("b");
    assert!(host["requests_per_s"].as_f64() > Some(1.0) && host["resident_bytes"].as_u64() > Some(1_000_000), "{host}");
    let top = lattice.cli(&["top", "--once", "-o", "json"]).json();
    let find = |list: &Value, name: &str| list.as_array().unwrap().iter().find(|i| i["name"] == name).cloned();
    assert!(find(&top["hosts"], "b").unwrap()["cpu_millis"].as_u64() > Some(0), "{top}");
    assert_eq!(top["actors"].as_array().unwrap().len(), 1);
    let table = lattice.ok(&["top", "hello", "--once"]);
    assert!(table.contains("requests/s") && table.lines().any(|l| l.starts_with("hello   hello")), "{table}");
    assert_eq!(lattice.cli(&["top", "nobody", "--once"]).code, 1);
    let seen = load.stop();
    assert!(seen.failed.is_empty(), "{:#?}", seen.failed);

    let of_hello = "app=\"hello\",actor=\"hello\"";
    let text = page(admin);
    let answered = value(&text, &format!("lattice_ingress_requests_total{{{of_hello},code=\"2xx\"}}")).unwrap();
    assert!(answered >= seen.answered as f64, "{answered} of {}", seen.answered);
    let took = value(&text, &format!("lattice_actor_invocation_duration_seconds_count{{{of_hello}}}")).unwrap();
    assert!(took >= seen.answered as f64);
    assert_eq!(value(&text, &format!("lattice_actor_replicas{{{of_hello}}}")), Some(2.0));
    assert!(
        value(&text, "process_resident_memory_bytes") > Some(1e6)
            && value(&text, "process_cpu_seconds_total") > Some(0.0)
    );
    let text = page(lattice.admin());
    for (name, least) in [
        ("lattice_raft_is_leader", 1.0),
        ("lattice_raft_term", 1.0),
        ("lattice_raft_applied_index", 2.0),
        ("lattice_raft_commit_duration_seconds_count", 1.0),
        ("lattice_scheduler_plan_duration_seconds_count", 1.0),
        ("lattice_scheduler_heartbeats_total", 2.0),
        ("lattice_hosts{state=\"ready\"}", 2.0),
        ("lattice_apps{state=\"running\"}", 1.0),
        ("lattice_replicas{state=\"running\"}", 2.0),
    ] {
        assert!(value(&text, name) >= Some(least), "{name} in\n{text}");
    }
    let log = std::fs::read_to_string(&log).unwrap_or_default();
    let lines: Vec<Value> = log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    assert!(lines.iter().any(|l| l["app"] == "hello" && l["status"] == 200 && l["client"] == "127.0.0.1"), "{log}");

    // A host that was told to end takes no more requests; one that is gone says nothing.
    lattice.interrupt_host("b");
    assert!(Request::get(admin, "/healthz").send().is_err());
}

fn a_request_is_known_by_its_id_on_every_host(broker: Broker) {
    let mut lattice = Lattice::start(broker);
    lattice.add_host("b", &["tier=edge"], false);
    lattice.until_hosts(&[("b", "ready")]);
    lattice.apply(&manifests::hostile(&lattice, "tier: edge"));
    let ask = |target: &str, more: &str| {
        let at = lattice.ingress("a");
        let request = Request { host: "hostile.localhost", more, ..Request::get(at, target) };
        request.send().unwrap()
    };
    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    let given = format!("X-Request-Id: order-7\r\ntraceparent: 00-{TRACE}-00f067aa0ba902b7-01\r\ntracestate: v=1\r\n");
    let told = ask("/headers", &given);
    assert_eq!(told.header("x-request-id"), Some("order-7"));
    for wanted in ["x-request-id: order-7", &format!("00-{TRACE}-"), "tracestate: v=1"] {
        assert!(told.text().contains(wanted), "{wanted} in\n{}", told.text());
    }
    // Made where there is none, and known to the guest.
    let made = ask("/headers", "");
    let id = made.header("x-request-id").unwrap();
    assert!(id.len() == 32 && made.text().contains(id), "{}", made.text());
    // What a guest prints says for which request.
    assert_eq!(ask("/log?text=ordered", &given).status, 200);
    assert_eq!(ask("/log?text=other", "").status, 200);
    let lines = until("the lines of one request", SOON, || {
        let lines = lattice.ok(&["logs", "hostile", "--request", "order-7", "-o", "json"]);
        (lines.lines().count() >= 3).then_some(lines)
    });
    for line in lines.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        assert_eq!(line["request_id"], "order-7");
        assert!(!line["text"].as_str().unwrap().contains("other"), "{line}");
    }
    assert!(lattice.ok(&["logs", "hostile"]).lines().any(|line| line.contains(" order-7 ")));
}

/// What was sent comes back before the next of it is sent: neither body waits for the end of the other.
fn bodies_stream_both_ways_at_once(broker: Broker) {
    let lattice = Lattice::start(broker);
    lattice.apply(&manifests::hostile(&lattice, ""));
    let at = lattice.ingress("a");
    until("it serves", SOON, || http::answers(at, "hostile.localhost"));
    let mut stream = TcpStream::connect(at).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let head = "POST /echo HTTP/1.1\r\nHost: hostile.localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = String::new();
    for piece in ["first", "second", "third"] {
        stream.write_all(format!("{:x}\r\n{piece}\r\n", piece.len()).as_bytes()).unwrap();
        while !answer.contains(piece) {
            let mut buffer = [0; 4096];
            let n = stream.read(&mut buffer).unwrap_or_else(|e| panic!("{piece} did not come back: {e}; {answer}"));
            assert!(n > 0, "{answer}");
            answer += &String::from_utf8_lossy(&buffer[..n]);
        }
    }
    stream.write_all(b"0\r\n\r\n").unwrap();
    while !answer.ends_with("\r\n0\r\n\r\n") {
        let mut buffer = [0; 4096];
        let n = stream.read(&mut buffer).unwrap();
        assert!(n > 0, "{answer}");
        answer += &String::from_utf8_lossy(&buffer[..n]);
    }
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}
