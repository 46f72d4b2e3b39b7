//! WebSocket through the ingress, to a component that knows nothing but wasi:http: on its own host and from another one,
//! over a change of its revision, to its traps and to the end of a host.

use crate::harness::http;
use crate::harness::{Broker, Lattice, SOON, address, file, manifests, scenarios, until};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{self, Error, Message, WebSocket};

scenarios!(a_websocket_outlives_revisions_and_not_a_trap);

struct Client(WebSocket<TcpStream>);

impl Client {
    /// The status when there is no WebSocket.
    fn open(at: SocketAddr, path: &str) -> Result<Self, (u16, String)> {
        let stream = TcpStream::connect(at).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        let mut request = format!("ws://{at}{path}").into_client_request().unwrap();
        request.headers_mut().insert("sec-websocket-protocol", "chat.v1, chat.v0".parse().unwrap());
        match tungstenite::client(request, stream) {
            Ok((socket, response)) => {
                assert_eq!(response.headers()["sec-websocket-protocol"], "chat.v1");
                Ok(Self(socket))
            }
            Err(tungstenite::HandshakeError::Failure(Error::Http(response))) => {
                let text = response.body().clone().unwrap_or_default();
                Err((response.status().as_u16(), String::from_utf8(text).unwrap()))
            }
            Err(error) => panic!("no answer from {at}{path}: {error}"),
        }
    }

    fn next(&mut self) -> Message {
        loop {
            match self.0.read().unwrap() {
                Message::Ping(_) | Message::Pong(_) => {}
                message => return message,
            }
        }
    }

    fn ask(&mut self, text: &str) -> String {
        self.0.send(Message::text(text)).unwrap();
        match self.next() {
            Message::Text(text) => text.to_string(),
            other => panic!("{text:?} was answered with {other:?}"),
        }
    }

    fn closed(&mut self) -> (u16, String) {
        match self.next() {
            Message::Close(Some(frame)) => (frame.code.into(), frame.reason.to_string()),
            other => panic!("no close: {other:?}"),
        }
    }
}

fn chat(lattice: &Lattice, name: &str) -> std::path::PathBuf {
    let on_a = "{type: spreadscaler, properties: {instances: 4, spread: [{name: a, requirements: {here: 'yes'}}]}}";
    let env = format!("{{type: grants, properties: {{env: {{NAME: {name}}}}}}}");
    let ingress = "{type: ingress, properties: {path: /}}";
    manifests::actor(lattice, "chat", &file("tests/guests/chat/chat.wasm"), &[ingress, on_a, &env])
}

fn a_websocket_outlives_revisions_and_not_a_trap(broker: Broker) {
    let mut lattice = Lattice::start_labelled(broker, &["here=yes"]);
    lattice.add_host_with("b", &[], true, &["--admin", "127.0.0.1:0"]);
    lattice.until_hosts(&[("b", "ready")]);
    lattice.apply(&chat(&lattice, "one"));
    let hosts = ["a", "b"].map(|host| lattice.ingress(host));
    for at in hosts {
        until("its route is there", SOON, || (http::get(at, "/").text() == "connect by WebSocket\n").then_some(()));
        let Err((403, text)) = Client::open(at, "/refuse") else { panic!("{at} opened what the actor refused") };
        // In pieces of HTTP, which this client does not put together.
        assert!(text.contains("members only\n"), "{text}");
    }
    let mut clients = hosts.map(|at| Client::open(at, "/room?x=y").unwrap());
    for client in &mut clients {
        assert_eq!(client.ask("hello"), "one 1: hello");
        let bytes = vec![7; 100_000];
        client.0.send(Message::binary(bytes.clone())).unwrap();
        assert_eq!(client.next(), Message::binary(bytes));
    }

    // A new revision takes over between two messages of a connection; nothing is lost or asked twice.
    lattice.apply(&chat(&lattice, "two"));
    let mut counts = [2, 2];
    for (client, count) in clients.iter_mut().zip(&mut counts) {
        let end = Instant::now() + SOON;
        loop {
            *count += 1;
            let answer = client.ask("again");
            if answer == format!("two {count}: again") {
                break;
            }
            assert_eq!(answer, format!("one {count}: again"));
            assert!(Instant::now() < end, "still the old revision");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    // Many at once come back in order, however they were batched.
    for (client, count) in clients.iter_mut().zip(counts) {
        for n in 0..200 {
            client.0.write(Message::text(format!("{n}"))).unwrap();
        }
        client.0.flush().unwrap();
        for n in 0..200 {
            assert_eq!(client.next(), Message::text(format!("two {}: {n}", count + 1 + n)));
        }
    }

    // A trap ends its own connection only.
    for at in hosts {
        let mut other = Client::open(at, "/").unwrap();
        other.0.send(Message::text("trap")).unwrap();
        let (code, reason) = other.closed();
        assert!(code == 1011 && reason.contains("trapped"), "{code} {reason}");
    }
    let mut ticking = Client::open(hosts[1], "/ticking").unwrap();
    assert_eq!(ticking.next(), Message::text("tick"));
    let mut leaving = Client::open(hosts[0], "/").unwrap();
    leaving.0.send(Message::text("close")).unwrap();
    assert_eq!(leaving.closed(), (4000, "bye".to_owned()));

    let [mut here, mut there] = clients;
    assert!(here.ask("still").ends_with(": still"));
    let admin = address(&lattice.process("b").field("admin"));
    let page = http::get(admin, "/metrics").text();
    for line in [
        "lattice_ingress_websockets{app=\"chat\",actor=\"a\"} 2",
        "lattice_ingress_websockets_ended_total{why=\"failed\"} 1",
    ] {
        assert!(page.contains(line), "{line}: {page}");
    }
    let received = "lattice_ingress_websocket_messages_total{app=\"chat\",actor=\"a\",direction=\"in\"} ";
    let received = page.lines().find_map(|l| l.strip_prefix(received)?.parse::<u64>().ok());
    assert!(received >= Some(204), "{page}");

    // The end of a connection is told to the actor, and that of a host to its clients.
    here.0.close(None).unwrap();
    until("the actor knows", SOON, || lattice.ok(&["logs", "chat"]).contains("CLOSE of ").then_some(()));
    lattice.interrupt_host("b");
    assert_eq!(there.closed(), (1001, "this ingress ends: connect again".to_owned()));
}
