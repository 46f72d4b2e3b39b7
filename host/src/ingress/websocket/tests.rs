//! A real ingress and real clients of WebSocket; only what answers for the actor is the test's.
#![allow(clippy::unwrap_used, reason = "tests")]

use super::events::{Event, Kind, MEDIA_TYPE, decode, encode};
use super::full;
use crate::call::{Body, CallError};
use crate::ingress::tests::certificates::{connect_tls, write_pair};
use crate::ingress::tests::{self, route, table};
use crate::ingress::{Access, AccessTarget, Behind, Dispatch, Ingress, Limits, Route, SOCKETS_ENDED, tls};
use crate::metrics::Book;
use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _};
use http::header::{CONTENT_TYPE, HeaderMap, SEC_WEBSOCKET_PROTOCOL};
use http::{Request, Response};
use http_body_util::BodyExt as _;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

/// For what should come at once, on a machine that does other things as well.
const SOON: Duration = Duration::from_secs(30);

/// One request that the actor got.
struct Asked {
    actor: String,
    headers: HeaderMap,
    events: Vec<Event>,
}

/// Speaks WebSocket-over-HTTP as an actor does; what a text says is what it does.
#[derive(Default)]
struct Chat {
    asked: Mutex<Vec<Asked>>,
    slow_begun: Notify,
    slow_may_end: Notify,
}

fn text(text: impl Into<Bytes>) -> Event {
    Event { kind: Kind::Text, content: text.into() }
}

#[async_trait::async_trait]
impl Dispatch for Chat {
    async fn http(&self, route: &Route, request: Request<Body>) -> Result<Response<Body>, CallError> {
        let (head, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let events = decode(&body, 100_000).unwrap();
        let (headers, actor) = (head.headers.clone(), route.actor.to_string());
        self.asked.lock().unwrap().push(Asked { actor: actor.clone(), headers, events: events.clone() });
        let mut response = Response::builder().header(CONTENT_TYPE, MEDIA_TYPE);
        let mut said = Vec::new();
        match head.uri.path() {
            "/refuse" => return Ok(Response::builder().status(403).body(full("members only\n".into())).unwrap()),
            "/plain" => return Ok(Response::new(full("no events\n".into()))),
            "/silent" => return Ok(response.body(full(Bytes::new())).unwrap()),
            "/broken" => return Ok(response.body(full("OPEN\r\nTEXT 9\r\n".into())).unwrap()),
            "/trap" => return Err(CallError::Trapped("trapped: unreachable".into())),
            "/ticking" => response = response.header("keep-alive-interval", "1"),
            "/chosen" => response = response.header(SEC_WEBSOCKET_PROTOCOL, "other"),
            _ => {}
        }
        if events.is_empty() {
            said.push(text("tick"));
        }
        for Event { kind, content } in events {
            let words = String::from_utf8_lossy(&content).into_owned();
            let (word, number) = words.split_once(':').unwrap_or((&words, ""));
            match (kind, word) {
                (Kind::Open, _) => {
                    said.push(Event::bare(Kind::Open));
                    if let Some(offered) = head.headers.get(SEC_WEBSOCKET_PROTOCOL) {
                        let first = offered.to_str().unwrap().split(',').next().unwrap().trim();
                        response = response.header(SEC_WEBSOCKET_PROTOCOL, first).header("set-meta-room", "7");
                        said.push(text("welcome"));
                    }
                }
                (Kind::Text, "slow") => {
                    self.slow_begun.notify_one();
                    self.slow_may_end.notified().await;
                    said.push(text("slow"));
                }
                (Kind::Text, "trap") => return Err(CallError::Trapped("trapped: unreachable".into())),
                (Kind::Text, "busy") => return Err(CallError::Overloaded("its queue is full".into())),
                (Kind::Text, "late") => return Err(CallError::Deadline("ran past its deadline".into())),
                (Kind::Text, "huge-request") => return Err(CallError::TooLarge("raise limits.request".into())),
                (Kind::Text, "status") => return Ok(Response::builder().status(500).body(full("no".into())).unwrap()),
                (Kind::Text, "plain") => return Ok(Response::new(full("no events\n".into()))),
                (Kind::Text, "garbage") => return Ok(response.body(full("garbage\r\n".into())).unwrap()),
                (Kind::Text, "latin") => said.push(text(Bytes::from_static(b"\xe9t\xe9"))),
                (Kind::Text, "code") => {
                    said.push(Event { kind: Kind::Close, content: Bytes::from_static(b"\x03\xed") })
                }
                (Kind::Text, "close") => {
                    said.push(Event { kind: Kind::Close, content: Bytes::from_static(b"\x0f\xa0bye") });
                }
                (Kind::Text, "drop") => said.push(Event::bare(Kind::Disconnect)),
                (Kind::Text, "ping") => said.push(Event::bare(Kind::Ping)),
                (Kind::Text, "flood") => said.extend(vec![text("x".repeat(1_000)); number.parse().unwrap()]),
                (Kind::Text, "large") => said.push(text("x".repeat(number.parse().unwrap()))),
                (Kind::Text, _) => said.push(text(format!("{actor}: {words}"))),
                (Kind::Binary, _) => said.push(Event { kind, content }),
                (Kind::Pong, _) => said.push(text("ponged")),
                _ => {}
            }
        }
        Ok(response.body(full(encode(&said))).unwrap())
    }
}

type Bench = tests::Bench<Chat>;

async fn bench(limits: Limits) -> Bench {
    bench_with(limits, None).await
}

async fn bench_with(limits: Limits, access: Option<Arc<Access>>) -> Bench {
    Bench::start(&[route("x", "/", "chat")], limits, access).await
}

type Client<S = TcpStream> = WebSocketStream<S>;

impl Bench {
    async fn open(&self, path: &str, more: &[(&'static str, &str)]) -> Result<(Client, Response<()>), (u16, String)> {
        let mut request = format!("ws://x{path}").into_client_request().unwrap();
        for (name, value) in more {
            request.headers_mut().insert(*name, value.parse().unwrap());
        }
        let stream = self.connect().await;
        match client_async(request, stream).await {
            Ok((client, response)) => Ok((client, response.map(drop))),
            Err(tungstenite::Error::Http(response)) => {
                let (head, body) = response.into_parts();
                Err((head.status.as_u16(), String::from_utf8(body.unwrap_or_default()).unwrap()))
            }
            Err(error) => panic!("{path}: {error}"),
        }
    }

    async fn client(&self) -> Client {
        self.open("/", &[]).await.unwrap().0
    }

    /// Sends these bytes on a connection of their own and gives all that comes back.
    async fn raw(&self, bytes: &[u8]) -> Vec<u8> {
        tokio::time::timeout(SOON, self.exchange(bytes)).await.expect("the end of the connection")
    }

    /// Waits until so many have ended for this reason.
    async fn until_ended(&self, why: &str, count: u64) {
        let at = SOCKETS_ENDED.iter().position(|w| *w == why).unwrap();
        until(why, || self.meter.sockets_ended[at].get() == count).await;
    }

    fn kinds(&self) -> Vec<Kind> {
        self.actors.asked.lock().unwrap().iter().flat_map(|asked| &asked.events).map(|event| event.kind).collect()
    }
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + SOON;
    while !is_so() {
        assert!(Instant::now() < end, "not so: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The next message that is none of the protocol's own.
async fn next<S: AsyncRead + AsyncWrite + Unpin>(client: &mut Client<S>) -> Message {
    loop {
        let message = tokio::time::timeout(SOON, client.next()).await.expect("a message").unwrap().unwrap();
        if !message.is_ping() && !message.is_pong() {
            return message;
        }
    }
}

async fn says<S: AsyncRead + AsyncWrite + Unpin>(client: &mut Client<S>, text: &str) {
    client.send(Message::text(text)).await.unwrap();
}

async fn hears<S: AsyncRead + AsyncWrite + Unpin>(client: &mut Client<S>, expected: &str) {
    let message = next(client).await;
    assert_eq!(message, Message::text(expected));
}

async fn closed<S: AsyncRead + AsyncWrite + Unpin>(client: &mut Client<S>) -> (u16, String) {
    match next(client).await {
        Message::Close(Some(frame)) => (frame.code.into(), frame.reason.to_string()),
        other => panic!("no close: {other:?}"),
    }
}

#[tokio::test]
async fn messages_go_both_ways_in_order_and_in_batches() {
    let bench = bench(Limits::default()).await;
    let more = [
        ("origin", "https://shop.example"),
        ("x-request-id", "mine-7"),
        ("sec-websocket-protocol", "chat.v2, chat.v1"),
        ("meta-room", "forged"),
        ("connection-id", "forged"),
    ];
    let (mut client, response) = bench.open("/room?x=y", &more).await.unwrap();
    assert_eq!(response.headers()[SEC_WEBSOCKET_PROTOCOL], "chat.v2");
    assert_eq!(response.headers()["x-request-id"], "mine-7");
    assert!(!response.headers().contains_key("set-meta-room"));
    hears(&mut client, "welcome").await;

    says(&mut client, "slow").await;
    bench.actors.slow_begun.notified().await;
    for message in [Message::text("a"), Message::binary(vec![0, 1, 255]), Message::text(""), Message::text("é")] {
        client.send(message).await.unwrap();
    }
    let sockets = || bench.book.list()[0].1.sockets.list();
    until("all were read", || sockets()[2] == 5).await;
    bench.actors.slow_may_end.notify_one();
    hears(&mut client, "slow").await;
    hears(&mut client, "chat: a").await;
    assert_eq!(next(&mut client).await, Message::binary(vec![0, 1, 255]));
    hears(&mut client, "chat: ").await;
    hears(&mut client, "chat: é").await;
    assert_eq!(sockets(), [1, 0, 5, 6]);

    client.close(Some(CloseFrame { code: 4001.into(), reason: "done".into() })).await.unwrap();
    assert_eq!(closed(&mut client).await, (4001, "done".to_owned()));
    bench.until_ended("client", 1).await;
    let asked = bench.actors.asked.lock().unwrap();
    assert_eq!(asked.len(), 4, "what waited went at once");
    assert_eq!(asked[0].events, [Event::bare(Kind::Open)]);
    assert_eq!(asked[2].events.len(), 4);
    assert_eq!(asked[3].events, [Event { kind: Kind::Close, content: Bytes::from_static(b"\x0f\xa1done") }]);
    let id = asked[0].headers["connection-id"].clone();
    assert!(id.len() == 32, "{id:?}");
    for (n, asked) in asked.iter().enumerate() {
        let headers = &asked.headers;
        assert_eq!(headers["connection-id"], id);
        assert_eq!(
            (&headers["origin"], &headers["x-request-id"]),
            (&"https://shop.example".parse().unwrap(), &"mine-7".parse().unwrap())
        );
        assert!(headers.contains_key("traceparent") && !headers.contains_key("sec-websocket-key"), "{headers:?}");
        let room = headers.get("meta-room").map(|v| v.to_str().unwrap());
        assert_eq!(room, (n > 0).then_some("7"), "never the client's");
    }
    assert_eq!(sockets()[1], 1);
}

#[tokio::test]
async fn the_actor_decides_before_there_is_a_websocket() {
    let bench = bench(Limits::default()).await;
    for (path, status, body) in [
        ("/refuse", 403, "members only\n"),
        ("/plain", 200, "no events\n"),
        ("/silent", 200, ""),
        ("/broken", 502, "answered with events that can not be read: the event at byte 6 is cut off"),
        ("/trap", 500, "trapped: unreachable\n"),
        ("/chosen", 502, "chose the subprotocol \"other\", which the client did not offer"),
    ] {
        let Err((got, text)) = bench.open(path, &[]).await else { panic!("{path} was opened") };
        assert!(got == status && text.contains(body), "{path}: {got} {text}");
    }
    bench.routes.send(table(&[route("x", "/chat", "chat")], &bench.book)).unwrap();
    let Err((404, text)) = bench.open("/other", &[]).await else { panic!("no route, and opened") };
    assert!(text.contains("no app has a route for x/other"), "{text}");
    assert_eq!(bench.book.list()[0].1.sockets.list()[0], 0);
}

#[tokio::test]
async fn what_is_no_handshake_is_answered_as_http() {
    let bench = bench(Limits::default()).await;
    let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    for (first, headers, status, text) in [
        ("GET / HTTP/1.1", "Sec-WebSocket-Version: 13\r\n", "400", "Sec-WebSocket-Key"),
        ("GET / HTTP/1.1", "Sec-WebSocket-Key: short\r\nSec-WebSocket-Version: 13\r\n", "400", "Sec-WebSocket-Key"),
        ("GET / HTTP/1.1", &format!("{key}Sec-WebSocket-Version: 8\r\n"), "426", "sec-websocket-version: 13"),
        ("GET / HTTP/1.1", key, "426", "only version 13"),
        ("POST / HTTP/1.1", &format!("{key}Sec-WebSocket-Version: 13\r\nContent-Length: 0\r\n"), "400", "with GET"),
        ("GET / HTTP/1.0", &format!("{key}Sec-WebSocket-Version: 13\r\n"), "400", "HTTP/1.1"),
        ("GET /none HTTP/1.1\r\nHost: y\r\nX: y", "", "400", "more than one Host"),
    ] {
        let request =
            format!("{first}\r\nHost: x\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n{headers}\r\n");
        let answer = String::from_utf8(bench.raw(request.as_bytes()).await).unwrap();
        let begins = answer.split(' ').nth(1) == Some(status);
        assert!(begins && answer.contains(text), "{request}\n{answer}");
    }
    // Nobody else's events reach an actor.
    let forged = "POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/WebSocket-Events\r\n\
                  Content-Length: 6\r\n\r\nOPEN\r\n";
    let answer = String::from_utf8(bench.raw(forged.as_bytes()).await).unwrap();
    assert!(answer.starts_with("HTTP/1.1 403 ") && answer.contains("connect by WebSocket"), "{answer}");
    assert!(bench.actors.asked.lock().unwrap().is_empty());
}

/// One frame as a client sends it; `mask` none is what it must not do.
fn frame(first: u8, payload: &[u8], mask: Option<[u8; 4]>) -> Vec<u8> {
    assert!(payload.len() < 126);
    let mut bytes = vec![first, u8::try_from(payload.len()).unwrap() | if mask.is_some() { 0x80 } else { 0 }];
    bytes.extend(mask.unwrap_or_default().iter().take(if mask.is_some() { 4 } else { 0 }));
    bytes.extend(payload.iter().zip(mask.unwrap_or_default().iter().cycle()).map(|(b, m)| b ^ m));
    bytes
}

#[tokio::test]
async fn what_breaks_the_protocol_or_a_bound_is_closed_with_its_code() {
    let bench = bench(Limits { message_bytes_max: 1_000, ..Limits::default() }).await;
    let mask = Some([1, 2, 3, 4]);
    let large = [vec![0x82, 0x80 | 127, 0, 0, 0, 1, 0, 0, 0, 0], vec![0; 3_000]].concat();
    let whole = [vec![0x82, 0x80 | 126, 0x03, 0xe9, 0, 0, 0, 0], vec![0; 1_001]].concat();
    let parts = [frame(0x01, &[b'x'; 120], mask), frame(0x00, &[b'x'; 120], mask).repeat(8)].concat();
    for (what, bytes, code, why) in [
        ("4 GiB announced", large, 1009, "too-large"),
        ("a byte too many", whole, 1009, "too-large"),
        ("too much in fragments", parts, 1009, "too-large"),
        ("not UTF-8", frame(0x81, b"\xff\xfe", mask), 1007, "bad-text"),
        ("unmasked", frame(0x81, b"hello", None), 1002, "bad-frame"),
        ("reserved bits", frame(0xc1, b"hello", mask), 1002, "bad-frame"),
        ("an unknown kind", frame(0x83, b"hello", mask), 1002, "bad-frame"),
        ("a large ping in parts", frame(0x09, b"hello", mask), 1002, "bad-frame"),
        ("a part without beginning", frame(0x80, b"hello", mask), 1002, "bad-frame"),
        ("another protocol", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), 1002, "bad-frame"),
    ] {
        let request = "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: \
                       dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
        let before = ended(&bench, why);
        let mut stream = TcpStream::connect(bench.ingress.addr()).await.unwrap();
        stream.write_all(&[request.as_bytes(), &bytes].concat()).await.unwrap();
        let mut answer = Vec::new();
        tokio::time::timeout(SOON, stream.read_to_end(&mut answer)).await.expect("an end").unwrap();
        let at = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
        assert!(answer.starts_with(b"HTTP/1.1 101 ") && answer[at] == 0x88, "{what}: {:x?}", &answer[at..]);
        assert_eq!(u16::from_be_bytes([answer[at + 2], answer[at + 3]]), code, "{what}");
        assert!(answer.len() > at + 4, "{what}: without a reason");
        drop(stream);
        bench.until_ended(why, before + 1).await;
    }
    assert_eq!(bench.kinds(), [Kind::Open, Kind::Disconnect].repeat(10));
    // Just not too much, and fragments with a ping between them.
    let mut client = bench.client().await;
    let most = "x".repeat(994);
    client.send(Message::text(most.clone())).await.unwrap();
    hears(&mut client, &format!("chat: {most}")).await;
}

fn ended(bench: &Bench, why: &str) -> u64 {
    bench.meter.sockets_ended[SOCKETS_ENDED.iter().position(|w| *w == why).unwrap()].get()
}

#[tokio::test]
async fn an_actor_that_fails_ends_its_connection_and_is_told() {
    let bench = bench(Limits { message_bytes_max: 10_000, answer_bytes_max: 30_000, ..Limits::default() }).await;
    for (says_it, code, reason, last) in [
        ("trap", 1011, "trapped: unreachable", Some(Kind::Disconnect)),
        ("late", 1011, "ran past its deadline", Some(Kind::Disconnect)),
        ("busy", 1013, "its queue is full", Some(Kind::Disconnect)),
        ("huge-request", 1011, "raise limits.request", Some(Kind::Disconnect)),
        ("status", 1011, "actor app/chat answered with status 500", Some(Kind::Disconnect)),
        ("plain", 1011, "answered with something else than application/websocket-events", Some(Kind::Disconnect)),
        ("garbage", 1011, "the event at byte 0 has no name", Some(Kind::Disconnect)),
        ("latin", 1011, "a TEXT event that is not UTF-8", Some(Kind::Disconnect)),
        ("code", 1011, "the close code 1005", Some(Kind::Disconnect)),
        ("large:10001", 1011, "a message of 10001 bytes: it may have 10000", Some(Kind::Disconnect)),
        ("flood:30", 1011, "more than 30000 bytes of events", Some(Kind::Disconnect)),
        ("close", 4000, "bye", None),
    ] {
        let mut client = bench.client().await;
        says(&mut client, "before").await;
        hears(&mut client, "chat: before").await;
        says(&mut client, says_it).await;
        let got = closed(&mut client).await;
        assert!(got.0 == code && got.1.contains(reason) && got.1.len() <= 123, "{says_it}: {got:?}");
        while client.next().await.is_some_and(|m| m.is_ok()) {}
        until("it has ended", || bench.book.list()[0].1.sockets.list()[1] == bench.book.list()[0].1.sockets.list()[0])
            .await;
        let kinds = bench.kinds();
        assert_eq!(kinds.last(), Some(&last.unwrap_or(Kind::Text)), "{says_it}");
    }
    let mut client = bench.client().await;
    says(&mut client, "drop").await;
    assert!(tokio::time::timeout(SOON, client.next()).await.unwrap().is_some_and(|m| m.is_err()), "no close frame");
    bench.until_ended("dropped", 1).await;
}

#[tokio::test]
async fn websockets_have_places_of_their_own() {
    let bench = bench(Limits { sockets_max: 2, ..Limits::default() }).await;
    let (first, _second) = (bench.client().await, bench.client().await);
    let Err((503, text)) = bench.open("/", &[]).await else { panic!("a third one") };
    assert!(text.contains("2 WebSockets are open at this ingress"), "{text}");
    let answer = bench.raw(b"GET /plain HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    assert!(answer.starts_with(b"HTTP/1.1 200 "), "others are served");
    drop(first);
    bench.until_ended("gone", 1).await;
    let mut third = bench.client().await;
    says(&mut third, "a").await;
    hears(&mut third, "chat: a").await;
}

#[tokio::test]
async fn one_app_has_its_share_of_the_websockets() {
    let bench = bench(Limits { sockets_max: 5, share_min: 1, ..Limits::default() }).await;
    let _open = [bench.client().await, bench.client().await, bench.client().await];
    let Err((503, text)) = bench.open("/", &[]).await else { panic!("a fourth one") };
    assert!(text.contains("app app has 3 of the 5 WebSockets that this ingress can have"), "{text}");
}

#[tokio::test]
async fn a_silent_client_is_let_go_and_one_that_answers_pings_is_not() {
    let bench = bench(Limits { idle: Duration::from_secs(3), ..Limits::default() }).await;
    let mut living = bench.client().await;
    let request = "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: \
                   dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
    let silent = async {
        let mut silent = TcpStream::connect(bench.ingress.addr()).await.unwrap();
        silent.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        silent.read_to_end(&mut answer).await.unwrap();
        answer
    };
    let pinged = async {
        let mut pings = 0;
        while pings < 4 {
            pings += usize::from(living.next().await.unwrap().unwrap().is_ping());
        }
        says(&mut living, "here").await;
        hears(&mut living, "chat: here").await;
    };
    let (answer, ()) = tokio::time::timeout(SOON, async { tokio::join!(silent, pinged) }).await.unwrap();
    let close = answer.windows(4).position(|w| w[0] == 0x88 && w[2..] == 1008u16.to_be_bytes());
    assert!(close.is_some(), "{:?}", String::from_utf8_lossy(&answer));
    bench.until_ended("silent", 1).await;
    // A ping of the actor's own comes back to it.
    says(&mut living, "ping").await;
    hears(&mut living, "ponged").await;
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_cut() {
    let limits = Limits { take_wait: Duration::from_millis(300), answer_bytes_max: 64 << 20, ..Limits::default() };
    let bench = bench(limits).await;
    let mut client = bench.client().await;
    // More than the buffers of both ends have room for.
    for _ in 0..40 {
        client.feed(Message::text("large:1000000")).await.unwrap();
    }
    client.flush().await.unwrap();
    bench.until_ended("stalled", 1).await;
    until("the actor was told", || bench.kinds().last() == Some(&Kind::Disconnect)).await;
}

#[tokio::test]
async fn an_ingress_that_ends_answers_what_is_under_way_and_closes() {
    let bench = bench(Limits::default()).await;
    let (mut idle, mut busy) = (bench.client().await, bench.client().await);
    says(&mut busy, "slow").await;
    bench.actors.slow_begun.notified().await;
    let stopping = tokio::spawn(bench.ingress.stop(SOON));
    let idle_closed = closed(&mut idle).await;
    assert_eq!(idle_closed, (1001, "this ingress ends: connect again".to_owned()));
    bench.actors.slow_may_end.notify_one();
    hears(&mut busy, "slow").await;
    assert_eq!(closed(&mut busy).await.0, 1001);
    for mut client in [idle, busy] {
        while client.next().await.is_some_and(|m| m.is_ok()) {}
    }
    assert!(stopping.await.unwrap(), "all had ended");
    let disconnects =
        bench.actors.asked.lock().unwrap().iter().filter(|a| a.events == [Event::bare(Kind::Disconnect)]).count();
    assert_eq!(disconnects, 2);
}

#[tokio::test]
async fn a_connection_stays_with_its_actor_and_not_with_another() {
    let bench = bench(Limits::default()).await;
    let mut client = bench.client().await;
    // The same route, told again, with other limits and others beside it.
    let mut again = route("x", "/", "chat");
    (again.deadline_ms, again.request_bytes_max) = (5_000, Some(1_000));
    bench.routes.send(table(&[again, route("y", "/", "other")], &bench.book)).unwrap();
    says(&mut client, "a").await;
    hears(&mut client, "chat: a").await;
    bench.routes.send(table(&[route("x", "/", "other")], &bench.book)).unwrap();
    assert_eq!(closed(&mut client).await.0, 1001);
    bench.until_ended("no-route", 1).await;
    assert!(bench.actors.asked.lock().unwrap().iter().all(|asked| asked.actor == "chat"));
}

#[tokio::test]
async fn an_actor_may_speak_by_itself_every_so_often() {
    let bench = bench(Limits::default()).await;
    let (mut client, _) = bench.open("/ticking", &[]).await.unwrap();
    hears(&mut client, "tick").await;
    hears(&mut client, "tick").await;
    says(&mut client, "a").await;
    let mut heard = next(&mut client).await;
    while heard == Message::text("tick") {
        heard = next(&mut client).await;
    }
    assert_eq!(heard, Message::text("chat: a"));
}

#[tokio::test]
async fn websockets_go_over_tls_too() {
    let dir = tempfile::tempdir().unwrap();
    let (pair, certificate) = write_pair(dir.path(), "x", "x.example");
    let served = tls::server(&[tls::Source::Files(pair)]).unwrap();
    let (_routes, seen) = watch::channel(table(&[route("", "/", "chat")], &Book::default()));
    let behind = Behind::new(seen, Arc::<Chat>::default());
    let ingress = Ingress::start("127.0.0.1:0".parse().unwrap(), Some(served.config), behind).await.unwrap();
    let stream = connect_tls(ingress.addr(), "x.example", b"http/1.1", &certificate).await.unwrap();
    let (mut client, _) = client_async("wss://x.example/", stream).await.unwrap();
    says(&mut client, "a").await;
    hears(&mut client, "chat: a").await;
    client.close(None).await.unwrap();
    assert_eq!(next(&mut client).await, Message::Close(None));
}

#[tokio::test]
async fn a_websocket_has_one_line_in_the_access_log() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("access.log");
    let access = Arc::new(Access::open(&AccessTarget::File(path.clone())).unwrap());
    let bench = bench_with(Limits::default(), Some(access)).await;
    let mut client = bench.client().await;
    for _ in 0..2 {
        says(&mut client, "abc").await;
        hears(&mut client, "chat: abc").await;
    }
    client.close(None).await.unwrap();
    let mut text = String::new();
    until("its line", || {
        text = std::fs::read_to_string(&path).unwrap();
        text.ends_with('\n')
    })
    .await;
    let line: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&line["status"], &line["complete"], &line["bytes"]), (&101.into(), &true.into(), &18.into()), "{line}");
    let expected = serde_json::json!({"messages_in": 2, "bytes_in": 6, "messages_out": 2, "ended": "client"});
    assert_eq!(line["websocket"], expected);
}
