//! The broker against raw bytes, as a client of any make would send them.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::*;

const HELLO: &str = "CONNECT {\"verbose\":false,\"headers\":true,\"no_responders\":true}\r\n";

struct Raw {
    stream: TcpStream,
    seen: Vec<u8>,
}

impl Raw {
    /// Connects and takes the INFO line.
    async fn open(broker: &Broker) -> Self {
        let stream = TcpStream::connect(broker.addr()).await.unwrap();
        let mut raw = Self { stream, seen: Vec::new() };
        raw.until("\r\n").await;
        raw
    }

    async fn hello(broker: &Broker) -> Self {
        let mut raw = Self::open(broker).await;
        raw.send(HELLO).await;
        raw
    }

    async fn send(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).await.unwrap();
    }

    /// What arrives, up to and with `end`.
    async fn until(&mut self, end: &str) -> String {
        loop {
            if let Some(at) = self.seen.windows(end.len()).position(|window| window == end.as_bytes()) {
                let text: Vec<u8> = self.seen.drain(..at + end.len()).collect();
                return String::from_utf8(text).unwrap();
            }
            let mut bytes = vec![0; 65_536];
            let n = timeout(Duration::from_secs(5), self.stream.read(&mut bytes)).await;
            let n = n.unwrap_or_else(|_| panic!("only {:?}", String::from_utf8_lossy(&self.seen))).unwrap();
            assert!(n > 0, "ended after {:?}", String::from_utf8_lossy(&self.seen));
            self.seen.extend_from_slice(&bytes[..n]);
        }
    }

    /// What arrives until a PONG that answers a PING sent now.
    async fn rest(&mut self) -> String {
        self.send("PING\r\n").await;
        let text = self.until("PONG\r\n").await;
        text.strip_suffix("PONG\r\n").unwrap().to_owned()
    }

    async fn ask(&mut self, text: &str) -> String {
        self.send(text).await;
        self.rest().await
    }

    /// What arrives until the broker ends the connection.
    async fn end(mut self) -> String {
        let mut bytes = self.seen;
        timeout(Duration::from_secs(5), self.stream.read_to_end(&mut bytes)).await.unwrap().unwrap();
        String::from_utf8(bytes).unwrap()
    }
}

fn start(limits: Limits) -> Broker {
    start_token(limits, None)
}

fn start_token(limits: Limits, token: Option<&str>) -> Broker {
    let listen = "127.0.0.1:0".parse().unwrap();
    Broker::start_with(Config { listen, token: token.map(str::to_owned) }, limits).unwrap()
}

#[tokio::test]
async fn info_says_what_clients_need() {
    let broker = start(Limits::default());
    let mut stream = TcpStream::connect(broker.addr()).await.unwrap();
    let mut bytes = vec![0; 4_096];
    let n = stream.read(&mut bytes).await.unwrap();
    let text = std::str::from_utf8(&bytes[..n]).unwrap();
    let info: serde_json::Value = serde_json::from_str(text.strip_prefix("INFO ").unwrap()).unwrap();
    assert_eq!(info["headers"], true);
    assert_eq!(info["max_payload"], 1024 * 1024);
    assert_eq!(info["auth_required"], false);
    assert_eq!(info["port"], broker.addr().port());
}

#[tokio::test]
async fn one_client_transcripts() {
    let broker = start(Limits::default());
    let cases = [
        ("SUB a 1\r\nPUB a 2\r\nhi\r\n", "MSG a 1 2\r\nhi\r\n"),
        ("SUB\ta.* x\r\npub  a.b\tr 2\r\nhi\r\n", "MSG a.b x r 2\r\nhi\r\n"),
        ("SUB a.> 1\r\nPUB a 1\r\nx\r\nPUB a.b.c 0\r\n\r\n", "MSG a.b.c 1 0\r\n\r\n"),
        ("SUB a 1\r\nHPUB a 12 13\r\nNATS/1.0\r\n\r\nx\r\n", "HMSG a 1 12 13\r\nNATS/1.0\r\n\r\nx\r\n"),
        ("SUB a 1\r\nHPUB a 12 13\r\nGARBAGE!\r\n\r\nx\r\n", "-ERR 'Malformed Headers'\r\n"),
        ("SUB a 1\r\nUNSUB 1\r\nPUB a 1\r\nx\r\n", ""),
        (
            "SUB a 1\r\nUNSUB 1 2\r\nPUB a 1\r\n1\r\nPUB a 1\r\n2\r\nPUB a 1\r\n3\r\n",
            "MSG a 1 1\r\n1\r\nMSG a 1 1\r\n2\r\n",
        ),
        ("SUB a 1\r\nPUB a 1\r\n1\r\nUNSUB 1 1\r\nPUB a 1\r\n2\r\n", "MSG a 1 1\r\n1\r\n"),
        ("SUB a 1\r\nSUB b 1\r\nPUB a 1\r\nx\r\nPUB b 1\r\ny\r\n", "MSG a 1 1\r\nx\r\n"),
        ("UNSUB 99\r\n", ""),
        ("SUB i.* 7\r\nPUB q i.5 1\r\nx\r\n", "HMSG i.5 7 33 33\r\nNATS/1.0 503\r\nNats-Subject: q\r\n\r\n\r\n"),
        ("PUB q 1\r\nx\r\n", ""),
        ("SUB a..b 1\r\n", "-ERR 'Invalid Subject'\r\n"),
        ("SUB a.>.b 1\r\n", "-ERR 'Invalid Subject'\r\n"),
        ("SUB > 1\r\nPUB a.* 1\r\nx\r\n", "-ERR 'Invalid Publish Subject'\r\n"),
        ("PUB a..b 1\r\nx\r\n", "-ERR 'Invalid Publish Subject'\r\n"),
        ("PING\r\n", "PONG\r\n"),
        ("+OK\r\nPONG\r\nINFO {}\r\n", ""),
    ];
    for (sent, expected) in cases {
        let mut raw = Raw::hello(&broker).await;
        raw.send(sent).await;
        let mut got = raw.rest().await;
        if expected.ends_with("PONG\r\n") {
            got.push_str("PONG\r\n");
        }
        assert_eq!(got, expected, "{sent:?}");
    }
}

#[tokio::test]
async fn faults_are_named_and_end_the_connection() {
    let broker = start(Limits::default());
    let long = format!("SUB {} 1\r\n", "a".repeat(5_000));
    let big = format!("PUB a {}\r\n{}\r\n", 1024 * 1024 + 1, "x".repeat(1024 * 1024 + 1));
    let cases = [
        ("HELLO\r\n", "-ERR 'Unknown Protocol Operation'\r\n"),
        ("\x16\x03\x01", "-ERR 'Unknown Protocol Operation'\r\n"),
        ("PUB a 1\r\nxyz\r\n", "-ERR 'Unknown Protocol Operation'\r\n"),
        (long.as_str(), "-ERR 'maximum control line exceeded'\r\n"),
        (big.as_str(), "-ERR 'Maximum Payload Violation'\r\n"),
        ("PUB a -1\r\n", "-ERR 'Parser Error'\r\n"),
        ("SUB a\r\n", "-ERR 'Parser Error'\r\n"),
        ("CONNECT {\r\n", "-ERR 'Parser Error'\r\n"),
        ("CONNECT {\"no_responders\":true}\r\n", "-ERR 'no responders requires headers support'\r\n"),
        ("-ERR 'bye'\r\n", ""),
    ];
    for (sent, expected) in cases {
        let mut raw = Raw::hello(&broker).await;
        let shown: String = sent.chars().take(40).collect();
        // The broker may end the connection while we still send.
        let _ = raw.stream.write_all(sent.as_bytes()).await;
        assert_eq!(raw.end().await, expected, "{shown:?}");
    }
}

#[tokio::test]
async fn payload_of_the_limit_arrives_and_split_writes_make_no_difference() {
    let broker = start(Limits::default());
    let mut raw = Raw::hello(&broker).await;
    let body = "x".repeat(1024 * 1024);
    let got = raw.ask(&format!("SUB a 1\r\nPUB a {}\r\n{body}\r\n", body.len())).await;
    assert_eq!(got.len(), "MSG a 1 1048576\r\n\r\n".len() + body.len());

    for byte in "SUB b 2\r\nHPUB b r 12 14\r\nNATS/1.0\r\n\r\nhi\r\n".bytes() {
        raw.stream.write_all(&[byte]).await.unwrap();
        raw.stream.flush().await.unwrap();
        tokio::task::yield_now().await;
    }
    assert_eq!(raw.rest().await, "HMSG b 2 r 12 14\r\nNATS/1.0\r\n\r\nhi\r\n");
}

#[tokio::test]
async fn verbose_clients_are_told_and_deaf_ones_hear_nothing_of_their_own() {
    let broker = start(Limits::default());
    let mut raw = Raw::open(&broker).await;
    let got = raw.ask("CONNECT {\"echo\":false}\r\nSUB a 1\r\nPUB a 1\r\nx\r\nUNSUB 1\r\n").await;
    assert_eq!(got, "+OK\r\n+OK\r\n+OK\r\n+OK\r\n");
}

#[tokio::test]
async fn headers_are_cut_off_for_clients_without_them() {
    let broker = start(Limits::default());
    let mut old = Raw::open(&broker).await;
    old.ask("CONNECT {\"verbose\":false}\r\nSUB a 1\r\n").await;
    let mut new = Raw::hello(&broker).await;
    new.ask("HPUB a 12 13\r\nNATS/1.0\r\n\r\nx\r\n").await;
    assert_eq!(old.until("x\r\n").await, "MSG a 1 1\r\nx\r\n");
    old.send("HPUB a 12 13\r\nNATS/1.0\r\n\r\nx\r\n").await;
    assert_eq!(old.end().await, "-ERR 'message headers not supported'\r\n");
}

#[tokio::test]
async fn groups_share_and_others_get_all() {
    let broker = start(Limits::default());
    let mut members = Vec::new();
    for n in 0..3 {
        let mut raw = Raw::hello(&broker).await;
        // The same group under another pattern is the same group.
        let pattern = if n == 0 { "work.*" } else { "work.a" };
        raw.ask(&format!("SUB {pattern} group 1\r\n")).await;
        members.push(raw);
    }
    let mut all = Raw::hello(&broker).await;
    all.ask("SUB work.> 1\r\n").await;
    let mut sender = Raw::hello(&broker).await;
    sender.ask(&"PUB work.a 1\r\nx\r\n".repeat(300)).await;
    let mut counts = Vec::new();
    for member in &mut members {
        counts.push(member.rest().await.matches("MSG ").count());
    }
    assert_eq!(counts.iter().sum::<usize>(), 300);
    assert!(counts.iter().all(|n| *n > 50), "{counts:?}");
    assert_eq!(all.rest().await.matches("MSG ").count(), 300);
}

#[tokio::test]
async fn a_member_that_left_gets_nothing() {
    let broker = start(Limits::default());
    let mut stays = Raw::hello(&broker).await;
    stays.ask("SUB work group 1\r\n").await;
    let mut leaves = Raw::hello(&broker).await;
    leaves.ask("SUB work group 1\r\nSUB left 2\r\n").await;
    drop(leaves);
    let mut sender = Raw::hello(&broker).await;
    sender.ask("SUB inbox 1\r\n").await;
    while !sender.ask("PUB left inbox 0\r\n\r\n").await.contains("503") {}
    sender.ask(&"PUB work 1\r\nx\r\n".repeat(100)).await;
    assert_eq!(stays.rest().await.matches("MSG ").count(), 100);
}

#[tokio::test]
async fn tokens() {
    let limits = || Limits { auth_wait: Duration::from_millis(300), ..Limits::default() };
    let broker = start_token(limits(), Some("secret"));
    let cases = [
        ("CONNECT {}\r\n", "-ERR 'Authorization Violation'\r\n"),
        ("CONNECT {\"auth_token\":\"secre\"}\r\n", "-ERR 'Authorization Violation'\r\n"),
        ("CONNECT {\"auth_token\":\"secret2\"}\r\n", "-ERR 'Authorization Violation'\r\n"),
        ("CONNECT {\"auth_token\":null}\r\n", "-ERR 'Authorization Violation'\r\n"),
        ("SUB a 1\r\n", "-ERR 'Authorization Violation'\r\n"),
        ("PUB a 0\r\n\r\n", "-ERR 'Authorization Violation'\r\n"),
        ("", "-ERR 'Authentication Timeout'\r\n"),
    ];
    for (sent, expected) in cases {
        let mut raw = Raw::open(&broker).await;
        raw.send(sent).await;
        assert_eq!(raw.end().await, expected, "{sent:?}");
    }
    let mut raw = Raw::open(&broker).await;
    let got = raw.ask("CONNECT {\"auth_token\":\"secret\",\"verbose\":false}\r\nSUB a 1\r\nPUB a 1\r\nx\r\n").await;
    assert_eq!(got, "MSG a 1 1\r\nx\r\n");
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(raw.rest().await, "");
}

#[tokio::test]
async fn a_reader_that_stops_is_cut_off_and_hurts_nobody() {
    let broker = start(Limits { pending_bytes_max: 12 * 1024 * 1024, ..Limits::default() });
    let mut slow = Raw::hello(&broker).await;
    slow.ask("SUB a 1\r\n").await;
    let mut quick = Raw::hello(&broker).await;
    let mut sender = Raw::hello(&broker).await;
    let message = format!("PUB a 100000\r\n{}\r\n", "x".repeat(100_000));
    for n in 0..300 {
        sender.send(&message).await;
        if n % 50 == 0 {
            assert_eq!(quick.rest().await, "");
        }
    }
    sender.rest().await;
    let mut bytes = Vec::new();
    let _ = timeout(Duration::from_secs(5), slow.stream.read_to_end(&mut bytes)).await.unwrap();
    assert!(bytes.len() < 20_000_000, "{}", bytes.len());
    quick.ask("SUB b 1\r\n").await;
    sender.send("PUB b 1\r\nx\r\n").await;
    assert_eq!(quick.until("x\r\n").await, "MSG b 1 1\r\nx\r\n");
}

#[tokio::test]
async fn silent_clients_are_asked_and_then_ended() {
    let broker = start(Limits { ping_interval: Duration::from_millis(100), ..Limits::default() });
    let silent = Raw::hello(&broker).await;
    assert_eq!(silent.end().await, "PING\r\nPING\r\n-ERR 'Stale Connection'\r\n");
    let mut alive = Raw::hello(&broker).await;
    for _ in 0..5 {
        alive.until("PING\r\n").await;
        alive.send("PONG\r\n").await;
    }
    alive.rest().await;
}

#[tokio::test]
async fn bounds_on_clients_and_subscriptions() {
    let broker = start(Limits { clients_len_max: 2, subscriptions_len_max: 3, ..Limits::default() });
    let _first = Raw::hello(&broker).await;
    let mut second = Raw::hello(&broker).await;
    let stream = TcpStream::connect(broker.addr()).await.unwrap();
    let third = Raw { stream, seen: Vec::new() };
    assert_eq!(third.end().await, "-ERR 'maximum connections exceeded'\r\n");
    second.send("SUB a 1\r\nSUB a 2\r\nSUB a 3\r\nSUB a 4\r\n").await;
    assert_eq!(second.end().await, "-ERR 'maximum subscriptions exceeded'\r\n");
}

#[tokio::test]
async fn addresses_that_can_not_be_listened_on_are_named() {
    let broker = start(Limits::default());
    let error = |listen: &str| {
        let config = Config { listen: listen.parse().unwrap(), token: None };
        Broker::start(config).unwrap_err().to_string()
    };
    let taken = error(&broker.addr().to_string());
    assert!(taken.contains(&format!("{} is in use", broker.addr())), "{taken}");
    for open in ["0.0.0.0:0", "[::]:0", "192.0.2.1:4222"] {
        let text = error(open);
        assert!(text.contains("loopback") && text.contains("nats-server"), "{text}");
    }
}

#[tokio::test]
async fn shutdown_frees_the_port_and_ends_clients() {
    let broker = start(Limits::default());
    let raw = Raw::hello(&broker).await;
    let addr = broker.addr();
    let (_, text) = tokio::join!(broker.shutdown(), raw.end());
    assert_eq!(text, "");
    let again = Broker::start(Config { listen: addr, token: None }).unwrap();
    assert_eq!(again.addr(), addr);
}

#[tokio::test]
async fn random_bytes_end_connections_and_nothing_else() {
    let broker = start(Limits::default());
    let mut state: u64 = 42;
    let mut dice = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    for _ in 0..100 {
        let mut raw = Raw::hello(&broker).await;
        let bytes: Vec<u8> = (0..64).flat_map(|_| dice()).collect();
        let _ = raw.stream.write_all(&bytes).await;
        raw.end().await;
    }
    assert_eq!(Raw::hello(&broker).await.ask("SUB a 1\r\nPUB a 1\r\nx\r\n").await, "MSG a 1 1\r\nx\r\n");
}
