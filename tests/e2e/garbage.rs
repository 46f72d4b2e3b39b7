//! Garbage, foreign, oversized and replayed messages on every subject of the bus, and garbage on every port: dropped
//! and counted, and nothing else happens.

use crate::harness::{Broker, Lattice, SOON, http, manifests, scenarios, until};
use async_nats::{Client, HeaderMap, Message};
use futures::StreamExt as _;
use prost::Message as _;
use proto::v1;
use serde_json::Value;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

scenarios!(
    garbage_on_every_subject_is_dropped_and_counted,
    replayed_messages_change_nothing,
    garbage_on_every_port_is_survived,
);

/// A member of the bus that is no part of the lattice.
struct Stranger {
    runtime: tokio::runtime::Runtime,
    client: Client,
}

impl Stranger {
    fn join(lattice: &Lattice) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let client = runtime.block_on(async_nats::connect(lattice.bus())).unwrap();
        Self { runtime, client }
    }

    fn send(&self, subject: &str, reply: Option<&str>, headers: Option<HeaderMap>, payload: Vec<u8>) {
        let (subject, payload) = (subject.to_owned(), payload.into());
        let sent = async {
            match (reply.map(str::to_owned), headers) {
                (None, None) => self.client.publish(subject, payload).await,
                (None, Some(headers)) => self.client.publish_with_headers(subject, headers, payload).await,
                (Some(reply), None) => self.client.publish_with_reply(subject, reply, payload).await,
                (Some(reply), Some(headers)) => {
                    self.client.publish_with_reply_and_headers(subject, reply, headers, payload).await
                }
            }
        };
        self.runtime.block_on(sent).unwrap();
    }

    fn flush(&self) {
        self.runtime.block_on(self.client.flush()).unwrap();
    }

    /// Gathers whatever is sent on these subjects from now on.
    fn listen(&self, subject: &'static str) -> Arc<Mutex<Vec<Message>>> {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let mut subscriber = self.runtime.block_on(self.client.subscribe(subject)).unwrap();
        self.flush();
        let into = heard.clone();
        self.runtime.spawn(async move {
            while let Some(message) = subscriber.next().await {
                into.lock().unwrap().push(message);
            }
        });
        heard
    }
}

/// Two hosts, an app on each, a store behind the bus.
fn start(broker: Broker) -> Lattice {
    let mut lattice = Lattice::start_labelled(broker, &["tier=cloud"]);
    lattice.add_host("b", &["tier=edge"], false);
    lattice.until_hosts(&[("a", "ready"), ("b", "ready")]);
    lattice
}

fn apply(lattice: &Lattice) {
    lattice.apply(&manifests::Hello { replicas: 2, ..Default::default() }.write(lattice));
    lattice.apply(&manifests::counter_apart());
    lattice.until_spread("hello", "hello", &[("a", 1), ("b", 1)], SOON);
}

/// What counts up by itself, or follows from what is done at the moment.
const MOVING: [&str; 12] = [
    "requests",
    "errors",
    "requests_per_s",
    "errors_per_s",
    "in_flight",
    "queued",
    "p50_us",
    "p99_us",
    "cpu_millis",
    "resident_bytes",
    "seen_ms",
    "dropped",
];

/// What is desired, what is placed and what is linked, without what moves.
fn state(lattice: &Lattice) -> Vec<Value> {
    let mut all: Vec<Value> =
        ["apps", "actors", "links", "revisions", "hosts"].into_iter().flat_map(|kind| lattice.items(kind)).collect();
    for item in all.iter_mut().filter_map(Value::as_object_mut) {
        item.retain(|field, _| !MOVING.contains(&field.as_str()));
    }
    all
}

fn dropped(lattice: &Lattice) -> [u64; 3] {
    let status = lattice.cli(&["status", "-o", "json"]).json();
    let of = |value: &Value| value["dropped"].as_u64().unwrap();
    [of(&status), of(&lattice.host("a")), of(&lattice.host("b"))]
}

/// The apps answer, the processes live, the state is what it was.
fn assert_unharmed(lattice: &mut Lattice, before: &[Value]) {
    lattice.assert_alive();
    let at = lattice.ingress("a");
    until("hello answers", Duration::from_secs(5), || (http::get(at, "/").status == 200).then_some(()));
    until("the counter answers", Duration::from_secs(5), || {
        (http::get_host(at, "counter-apart.localhost", "/cats").status == 200).then_some(())
    });
    until("both hosts are ready", SOON, || (state(lattice).len() == before.len()).then_some(()));
    assert_eq!(state(lattice), before);
}

/// Bytes that no one chose, the same at each run.
struct Noise(u64);

impl Noise {
    fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            // Xorshift, Marsaglia 2003.
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            bytes.extend(self.0.to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }
}

fn subjects(lattice: &Lattice) -> Vec<String> {
    let mut subjects: Vec<String> = ["evt.host.lost", "evt.garbage", "log.hello.hello", "log.nobody.none"]
        .iter()
        .chain(&["rpc.hello.hello.wasi_http_incoming-handler", "rpc.counter-apart.counter.wasi_http_incoming-handler"])
        .chain(&["rpc.counter-apart.store.wasi_keyvalue_store", "rpc.counter-apart.store.wasi_keyvalue_atomics"])
        .chain(&["rpc.nobody.none.wasi_keyvalue_store"])
        .map(|s| format!("lattice.v1.default.{s}"))
        .collect();
    let hosts = lattice.items("hosts");
    let ids = hosts.iter().map(|h| h["id"].as_str().unwrap()).chain(["01ARZ3NDEKTSV4RRFFQ69G5FAV", "nobody"]);
    for id in ids {
        subjects.extend(
            ["hello", "beat", "assign", "ask"].iter().map(|what| format!("lattice.v1.default.host.{id}.{what}")),
        );
    }
    let hello = std::fs::read(crate::harness::file("manifests/hello/hello.wasm")).unwrap();
    let digest = proto::app::Digest::of(&hello);
    subjects.push(format!("lattice.v1.default.blob.{}", digest.hex()));
    subjects.push("lattice.v1.default.blob.0000".to_owned());
    subjects
}

/// Well-formed messages that name another lattice or another host than the subject does.
fn foreign(lattice: &Lattice) -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    for host in lattice.items("hosts") {
        let id = host["id"].as_str().unwrap().to_owned();
        for (named, at) in [("elsewhere", id.clone()), ("default", "01ARZ3NDEKTSV4RRFFQ69G5FAV".to_owned())] {
            let (lattice, host) = (named.to_owned(), at);
            let hello = v1::Hello {
                lattice: lattice.clone(),
                host: host.clone(),
                name: "stranger".into(),
                boot: "7ZZZZZZZZZZZZZZZZZZZZZZZZZ".into(),
                ..Default::default()
            };
            let beat = v1::Beat {
                lattice: lattice.clone(),
                host: host.clone(),
                boot: "7ZZZZZZZZZZZZZZZZZZZZZZZZZ".into(),
                seq: u64::MAX,
                leaving: true,
                ..Default::default()
            };
            let assignment = v1::Assignment {
                lattice: lattice.clone(),
                host,
                term: u64::MAX,
                generation: u64::MAX,
                ..Default::default()
            };
            let ask =
                v1::Ask { lattice: "elsewhere".into(), what: Some(v1::ask::What::Inventory(v1::AskInventory {})) };
            let at = |what: &str| format!("lattice.v1.default.host.{id}.{what}");
            all.push((at("hello"), hello.encode_to_vec()));
            all.push((at("beat"), beat.encode_to_vec()));
            all.push((at("assign"), assignment.encode_to_vec()));
            all.push((at("ask"), ask.encode_to_vec()));
        }
    }
    all
}

/// Headers that mean something to the bus, saying what makes no sense.
fn odd_headers() -> Vec<HeaderMap> {
    let one = |name: &'static str, value: &str| {
        let mut map = HeaderMap::new();
        map.insert(name, value);
        map
    };
    vec![
        one("Bus-Size", "99999999999999999999"),
        one("Bus-Size", "1000000000"),
        one("Bus-Size", "-1"),
        one("Bus-Offset", "18446744073709551615"),
        one("Bus-Grant", "1000000000"),
        one("Bus-Deadline", "soon"),
        one("Bus-Deadline", "0"),
        one("Bus-Refused", &"x".repeat(10_000)),
        one("X", &"y".repeat(100_000)),
    ]
}

fn garbage_on_every_subject_is_dropped_and_counted(broker: Broker) {
    let mut lattice = start(broker);
    apply(&lattice);
    let stranger = Stranger::join(&lattice);
    let before = state(&lattice);
    let dropped_before = dropped(&lattice);
    let mut noise = Noise(0x9E37_79B9_7F4A_7C15);
    let inbox = stranger.client.new_inbox();
    for subject in subjects(&lattice) {
        for len in [0, 1, 100, 5_000] {
            stranger.send(&subject, None, None, noise.bytes(len));
            stranger.send(&subject, Some(&inbox), None, noise.bytes(len));
        }
        for text in ["{}", "null", "[[[[", "{\"specversion\":\"1.0\"}"] {
            stranger.send(&subject, None, None, text.into());
        }
        for headers in odd_headers() {
            stranger.send(&subject, Some(&inbox), Some(headers), noise.bytes(64));
        }
        // As large as the bus takes it, and as deep as protobuf nests.
        stranger.send(&subject, Some(&inbox), None, noise.bytes(1_000_000));
        stranger.send(&subject, Some(&inbox), None, [0x0a, 0x7f].repeat(100_000));
        stranger.flush();
    }
    for (subject, payload) in foreign(&lattice) {
        stranger.send(&subject, None, None, payload.clone());
        stranger.send(&subject, Some(&inbox), None, payload);
    }
    stranger.flush();
    assert_unharmed(&mut lattice, &before);
    let counted = until("the drops are counted", SOON, || {
        let now = dropped(&lattice);
        let grown: Vec<u64> = now.iter().zip(dropped_before).map(|(n, b)| n - b).collect();
        grown.iter().all(|n| *n > 20).then_some(grown)
    });
    eprintln!("dropped on {broker:?}: scheduler {}, host a {}, host b {}", counted[0], counted[1], counted[2]);
    // Nothing of it is taken for news.
    let events = lattice.cli(&["events", "-o", "json"]).json();
    for event in events["items"].as_array().unwrap() {
        assert!(!event["message"].as_str().unwrap().contains("stranger"), "{event}");
    }
    // The lattice still does what it is told.
    lattice.ok(&["scale", "hello/hello", "4"]);
    lattice.until_spread("hello", "hello", &[("a", 2), ("b", 2)], SOON);
}

/// Nothing of what is desired, placed, told or stored.
fn replayed_messages_change_nothing(broker: Broker) {
    let mut lattice = Lattice::start_labelled(broker, &["tier=cloud"]);
    let stranger = Stranger::join(&lattice);
    let heard = stranger.listen("lattice.v1.default.>");
    lattice.add_host("b", &["tier=edge"], false);
    lattice.until_hosts(&[("a", "ready"), ("b", "ready")]);
    apply(&lattice);
    let at = lattice.ingress("a");
    assert_eq!(http::get_host(at, "counter-apart.localhost", "/cats").status, 200);
    // A boot that is over, an app that is gone, replicas that are elsewhere.
    lattice.apply(&manifests::Hello { name: "gone", path: "/gone", ..Default::default() }.write(&lattice));
    lattice.ok(&["delete", "app", "gone"]);
    // Its last heartbeat said that it leaves.
    lattice.interrupt_host("b");
    let calls_before_restart = heard.lock().unwrap().iter().filter(|m| m.subject.contains(".rpc.")).count();
    lattice.start_host("b");
    lattice.until_hosts(&[("b", "ready")]);
    // A call that is on its way before b listens is heard by the stranger alone, so nobody says that nobody is there.
    let ask = |target| {
        until("the store answers", SOON, || {
            let deadline = Duration::from_secs(2);
            let request = http::Request { host: "counter-apart.localhost", deadline, ..http::Request::get(at, target) };
            request.send().ok().filter(|answer| answer.status == 200).map(|answer| answer.text())
        })
    };
    ask("/replayed");
    ask("/replayed");
    lattice.ok(&["scale", "hello/hello", "6"]);
    until("six run", SOON, || (lattice.spread("hello", "hello").values().map(|s| s.1).sum::<u64>() == 6).then_some(()));
    lattice.ok(&["drain", "b"]);
    lattice.ok(&["uncordon", "b"]);
    lattice.ok(&["scale", "hello/hello", "2"]);
    until("two run", SOON, || {
        (lattice.items("apps").iter().all(|a| a["state"] == "running")
            && lattice.spread("hello", "hello").values().map(|s| s.1).sum::<u64>() == 2)
            .then_some(())
    });
    let mut heard: Vec<Message> = heard.lock().unwrap().clone();
    // Which calls it took, a host that ended took with it.
    let calls = heard.iter().filter(|m| m.subject.contains(".rpc.")).count();
    let mut left = calls_before_restart;
    heard.retain(|m| {
        let is_old = m.subject.contains(".rpc.") && left > 0;
        left -= usize::from(is_old);
        !is_old
    });
    assert!(calls > calls_before_restart, "{calls} calls, {calls_before_restart} before the restart");
    for kind in [".hello", ".beat", ".assign", ".evt.", ".rpc.", ".blob."] {
        assert!(heard.iter().any(|m| m.subject.contains(kind)), "none of {kind} among {} messages", heard.len());
    }
    let before = state(&lattice);
    let dropped_before = dropped(&lattice);
    let events_before = lattice.cli(&["events", "-o", "json"]).json()["items"].as_array().unwrap().len();
    let counted_before = ask("/replayed?peek");
    for round in 0..3 {
        // In order, then from the newest to the oldest.
        let mut again: Vec<&Message> = heard.iter().collect();
        if round == 1 {
            again.reverse();
        }
        for message in again {
            stranger.send(
                &message.subject,
                message.reply.as_deref(),
                message.headers.clone(),
                message.payload.to_vec(),
            );
        }
        stranger.flush();
    }
    assert_unharmed(&mut lattice, &before);
    until("the drops are counted", SOON, || {
        let now = dropped(&lattice);
        (now.iter().zip(dropped_before).all(|(now, before)| *now > before)).then_some(())
    });
    assert_eq!(ask("/replayed?peek"), counted_before, "a call is carried out once");
    let events = lattice.cli(&["events", "-o", "json"]).json()["items"].as_array().unwrap().len();
    assert_eq!(events, events_before, "an event is told once");
    eprintln!("replayed {} messages three times on {broker:?}", heard.len());
}

/// Sends bytes, takes what comes back for a moment, and goes away.
fn poke(at: SocketAddr, bytes: &[u8]) {
    let Ok(mut stream) = TcpStream::connect(at) else { panic!("nobody listens at {at}") };
    stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    // It may hang up in the middle.
    let _ = stream.write_all(bytes);
    let _ = stream.read(&mut [0; 4096]);
}

fn pokes() -> Vec<Vec<u8>> {
    let mut noise = Noise(0xD1B5_4A32_D192_ED03);
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let mut frames = preface.to_vec();
    frames.extend([0xff; 64]);
    let mut settings = preface.to_vec();
    settings.extend([0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 4, 0xff, 0xff, 0xff, 0xff]);
    let mut all = vec![
        Vec::new(),
        noise.bytes(1),
        noise.bytes(10_000),
        noise.bytes(3_000_000),
        vec![b'\n'; 100_000],
        vec![0; 100_000],
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n".to_vec(),
        b"GET / HTTP/9.9\r\nHost: a\r\n\r\n".to_vec(),
        b"GET\r\n\r\n".to_vec(),
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n".to_vec(),
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\nx".to_vec(),
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_vec(),
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFFF\r\n".to_vec(),
        format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(1_000_000)).into_bytes(),
        format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(100_000)).into_bytes(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        preface.to_vec(),
        frames,
        settings,
        b"CONNECT {\r\n".to_vec(),
        b"CONNECT {}\r\nSUB\r\nSUB a b c d e f\r\nUNSUB 99 -1\r\n".to_vec(),
        b"CONNECT {}\r\nPUB x 99999999999\r\n".to_vec(),
        b"CONNECT {}\r\nPUB x 5\r\nhello there, this is longer\r\n".to_vec(),
        b"CONNECT {}\r\nHPUB x 10 5\r\nNATS/1.0\r\n\r\n\r\n".to_vec(),
        b"CONNECT {}\r\nHPUB x 999999999 999999999\r\nNATS/1.0\r\n".to_vec(),
        b"CONNECT {}\r\nSUB a..b 1\r\nSUB >.a 2\r\nPUB a.* 0\r\n\r\n".to_vec(),
        format!("CONNECT {{}}\r\nSUB {} 1\r\n", "a.".repeat(100_000)).into_bytes(),
        format!("CONNECT {{\"name\":\"{}\"}}\r\n", "n".repeat(2_000_000)).into_bytes(),
        b"PING\r\n".repeat(20_000),
    ];
    // Each of them broken off at its beginning, too.
    let cut: Vec<Vec<u8>> = all.iter().filter(|b| b.len() > 4).map(|b| b[..b.len().min(30) / 2].to_vec()).collect();
    all.extend(cut);
    all
}

fn garbage_on_every_port_is_survived(broker: Broker) {
    let mut lattice = start(broker);
    apply(&lattice);
    let before = state(&lattice);
    let bus: SocketAddr = lattice.bus().strip_prefix("nats://").unwrap().parse().unwrap();
    let ports = [lattice.ingress("a"), lattice.api().parse().unwrap(), bus];
    let mut open = Vec::new();
    for at in ports {
        for bytes in pokes() {
            poke(at, &bytes);
        }
        // Some say nothing, or half of something, and stay.
        for _ in 0..50 {
            let mut stream = TcpStream::connect(at).unwrap();
            let _ = stream.write_all(b"GET / HT");
            open.push(stream);
        }
        assert_unharmed(&mut lattice, &before);
    }
    lattice.ok(&["scale", "hello/hello", "4"]);
    lattice.until_spread("hello", "hello", &[("a", 2), ("b", 2)], SOON);
}
