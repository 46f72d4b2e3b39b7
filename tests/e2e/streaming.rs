//! Bodies of an actor on another host: as large as they come, as they come, and ended at both ends when one ends.

use crate::harness::{Broker, Lattice, SOON, file, http, manifests, scenarios, until};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

scenarios!(bodies_stream_from_one_host_to_another);

/// More than crosses the bus in one message, or in one piece.
const LARGE: usize = 24 * 1024 * 1024;

/// A request whose body has no length yet, and its answer.
struct Open(TcpStream);

impl Open {
    fn post(at: SocketAddr, target: &str) -> Self {
        let mut stream = TcpStream::connect(at).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        let head = format!("POST {target} HTTP/1.1\r\nHost: {at}\r\nTransfer-Encoding: chunked\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        Self(stream)
    }

    fn send(&mut self, text: &str) {
        self.0.write_all(format!("{:x}\r\n{text}\r\n", text.len()).as_bytes()).unwrap();
    }

    /// What came until `text` has.
    fn until(&mut self, text: &str) -> String {
        let mut seen = String::new();
        while !seen.contains(text) {
            let mut piece = [0; 4_096];
            let n = self.0.read(&mut piece).unwrap_or_else(|e| panic!("no {text:?} in {seen:?}: {e}"));
            assert!(n > 0, "ended without {text:?}: {seen}");
            seen += std::str::from_utf8(&piece[..n]).unwrap();
        }
        seen
    }

    /// Whether the connection ends before its answer does.
    fn breaks_off(&mut self) -> bool {
        let mut rest = Vec::new();
        self.0.read_to_end(&mut rest).is_err() || !rest.ends_with(b"0\r\n\r\n")
    }
}

fn bodies_stream_from_one_host_to_another(broker: Broker) {
    let mut lattice = Lattice::start_labelled(broker, &["here=yes"]);
    lattice.add_host("b", &["there=yes"], true);
    lattice.until_hosts(&[("b", "ready")]);
    let on_b = "{type: spreadscaler, properties: {instances: 2, spread: [{name: b, requirements: {there: 'yes'}}]}}";
    let ingress = "{type: ingress, properties: {path: /}}";
    let limits = "{type: limits, properties: {memory: 32MiB, deadline: 20s, queue: 8}}";
    let image = file("tests/guests/hostile/hostile.wasm");
    lattice.apply(&manifests::actor(&lattice, "far", &image, &[ingress, on_b, limits]));
    lattice.until_spread("far", "a", &[("b", 2)], SOON);
    let [a, b] = ["a", "b"].map(|host| lattice.ingress(host));

    let body: Vec<u8> = (0..LARGE).map(|n| u8::try_from(n / 7 % 251).expect("less than 256")).collect();
    let target = format!("/body?bytes={}", 2 * LARGE);
    let mut took = Vec::new();
    for at in [b, a] {
        let ask = |target: &str, body: &[u8]| {
            let request = http::Request { method: "POST", body, deadline: SOON * 2, ..http::Request::get(at, target) };
            let response = request.send().unwrap();
            assert_eq!(response.status, 200, "{target}: {}", response.text());
            response
        };
        let echo = ask("/echo", &body);
        assert!(echo.body == body, "{} of {LARGE} bytes came back", echo.body.len());
        let filled = ask(&target, b"");
        assert!(filled.body.len() == 2 * LARGE && filled.body.iter().all(|b| *b == b'x'), "{}", filled.body.len());
        took.push((echo.took, filled.took));

        // Each word comes back before the next is sent.
        let mut open = Open::post(at, "/echo");
        for word in ["one", "two", "three"] {
            open.send(word);
            open.until(word);
        }
        open.0.write_all(b"0\r\n\r\n").unwrap();
        open.until("0\r\n\r\n");
        // Nothing of it may have gone out yet.
        let cut = http::Request::get(at, "/cut").send();
        assert!(cut.as_ref().map_or(true, |cut| cut.status == 500), "half an answer is taken for a whole one: {cut:?}");
    }
    eprintln!(
        "{broker:?}: {} MiB there and back, {} MiB back; within a host, from another: {took:?}",
        LARGE >> 20,
        LARGE >> 19
    );

    // Who goes away in the middle of an endless answer or of its own body leaves nothing behind: there are two instances.
    for n in 0..8 {
        let mut open = Open::post(a, if n % 2 == 0 { "/body?bytes=99999999999" } else { "/echo" });
        open.send("some");
        open.until(if n % 2 == 0 { "xxx" } else { "some" });
    }
    let begun = Instant::now();
    let response = http::get(a, "/headers");
    assert_eq!(response.status, 200, "{}", response.text());
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());

    // An answer outlives neither its deadline nor its host.
    let mut open = Open::post(a, "/echo");
    open.send("some");
    open.until("some");
    let begun = Instant::now();
    assert!(open.breaks_off());
    assert!(begun.elapsed() < Duration::from_secs(40), "{:?}", begun.elapsed());
    let mut open = Open::post(a, "/echo");
    open.send("some");
    open.until("some");
    lattice.kill_host("b");
    assert!(open.breaks_off());
    lattice.start_host("b");
    until("it answers again", SOON * 2, || http::answers(a, "").map(drop));
    lattice.assert_alive();
}
