//! A real ingress on a real socket; only what answers for the actors is the test's.
#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use crate::call::{Body, CallError};
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use proto::v1;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;

/// Says what it was asked; some paths have other ends.
#[derive(Default)]
struct Actors {
    asked: AtomicUsize,
    slow_begun: Notify,
    slow_may_end: Notify,
}

fn body(text: String) -> Body {
    Full::from(text).map_err(|never| match never {}).boxed_unsync()
}

#[async_trait::async_trait]
impl Dispatch for Actors {
    async fn http(&self, route: &Route, request: Request<Body>) -> Result<Response<Body>, CallError> {
        let Route { app, actor, .. } = route;
        self.asked.fetch_add(1, Ordering::SeqCst);
        let path = request.uri().path().to_owned();
        match path.as_str() {
            "/overloaded" => return Err(CallError::Overloaded("actor app/root: its queue is full".into())),
            "/deadline" => return Err(CallError::Deadline("too slow".into())),
            "/trapped" => return Err(CallError::Trapped("trap:\nunreachable".into())),
            "/slow" => {
                self.slow_begun.notify_one();
                self.slow_may_end.notified().await;
            }
            _ => {}
        }
        let headers: Vec<String> = request.headers().keys().map(ToString::to_string).collect();
        let method = request.method().clone();
        let sent = request.into_body().collect().await.map_err(|e| CallError::Trapped(e.to_string()))?.to_bytes();
        let text = format!("{app}/{actor} {method} {path} {} [{}]", sent.len(), headers.join(" "));
        let mut response = Response::new(body(text));
        if path == "/switch" {
            *response.status_mut() = http::StatusCode::SWITCHING_PROTOCOLS;
        }
        response.headers_mut().insert("connection", "x-private".parse().unwrap());
        response.headers_mut().insert("x-private", "1".parse().unwrap());
        response.headers_mut().insert("x-own", "1".parse().unwrap());
        Ok(response)
    }
}

fn route(host: &str, path: &str, actor: &str) -> v1::Route {
    v1::Route { host: host.into(), path: path.into(), app: "app".into(), actor: actor.into(), deadline_ms: 0 }
}

struct Bench {
    ingress: Ingress,
    actors: Arc<Actors>,
    routes: watch::Sender<Arc<Routes>>,
}

async fn bench(limits: Limits) -> Bench {
    let table = [route("", "/", "root"), route("shop.example", "/cart", "cart"), route("shop.example", "/", "shop")];
    let (routes, seen) = watch::channel(Arc::new(Routes::from_wire(&table).0));
    let actors = Arc::new(Actors::default());
    let at = "127.0.0.1:0".parse().unwrap();
    let ingress = Ingress::start_with(at, None, seen, actors.clone(), limits).await.unwrap();
    Bench { ingress, actors, routes }
}

impl Bench {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.ingress.addr()).await.unwrap()
    }

    /// Sends these bytes and gives everything that comes back until the end.
    async fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect().await;
        // The other end may close before it has read all of it.
        let _ = stream.write_all(bytes).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    }

    async fn get(&self, host: &str, path: &str) -> String {
        self.raw(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").as_bytes()).await
    }
}

#[tokio::test]
async fn requests_go_where_the_routes_say() {
    let bench = bench(Limits::default()).await;
    for (host, path, expected) in [
        ("shop.example:8000", "/cart/1?x=y", "app/cart GET /cart/1 0"),
        ("SHOP.example", "/carts", "app/shop GET /carts 0"),
        ("127.0.0.1", "/", "app/root GET / 0"),
    ] {
        let answer = bench.get(host, path).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains(expected), "{host}{path}: {answer}");
    }
    bench.routes.send(Arc::new(Routes::from_wire(&[route("", "/new", "fresh")]).0)).unwrap();
    let answer = bench.get("shop.example", "/cart").await;
    assert!(
        answer.starts_with("HTTP/1.1 404 ") && answer.contains("shop.example/cart; `lattice get apps`"),
        "{answer}"
    );
    assert!(bench.get("x", "/new").await.contains("app/fresh"));
}

#[tokio::test]
async fn errors_are_named_in_one_line() {
    let bench = bench(Limits::default()).await;
    let overloaded = bench.get("x", "/overloaded").await;
    assert!(overloaded.starts_with("HTTP/1.1 503 ") && overloaded.contains("retry-after: 1\r\n"), "{overloaded}");
    assert!(overloaded.ends_with("\r\n\r\nactor app/root: its queue is full\n"), "{overloaded}");
    assert!(bench.get("x", "/deadline").await.starts_with("HTTP/1.1 504 "));
    let trapped = bench.get("x", "/trapped").await;
    assert!(trapped.starts_with("HTTP/1.1 500 ") && trapped.ends_with("\r\n\r\ntrap: unreachable\n"), "{trapped}");
    assert!(bench.get("x", "/switch").await.starts_with("HTTP/1.1 502 "));
}

#[tokio::test]
async fn headers_of_one_connection_stay_there() {
    let bench = bench(Limits::default()).await;
    let request = "POST /p HTTP/1.1\r\nHost: x\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\nTE: gzip\r\nUpgrade: h2c\r\n\
                   Transfer-Encoding: chunked\r\nX-End: 1\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    let answer = bench.raw(request.as_bytes()).await;
    assert!(answer.contains("app/root POST /p 5 [host x-end]"), "{answer}");
    assert!(answer.contains("x-own: 1") && !answer.contains("x-private"), "{answer}");
}

#[tokio::test]
async fn one_connection_takes_many_requests() {
    let bench = bench(Limits::default()).await;
    let mut stream = bench.connect().await;
    for n in 0..3 {
        stream.write_all(format!("GET /{n} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
        let expected = format!("GET /{n} 0");
        let mut answer = String::new();
        while !answer.contains(&expected) {
            let mut buffer = [0; 1024];
            let read = stream.read(&mut buffer).await.unwrap();
            assert!(read > 0, "{answer}");
            answer += &String::from_utf8_lossy(&buffer[..read]);
        }
    }
}

#[tokio::test]
async fn http2_in_the_clear_is_spoken() {
    let bench = bench(Limits::default()).await;
    let io = TokioIo::new(bench.connect().await);
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    let connection = tokio::spawn(connection);
    for path in ["/cart", "/cart/2"] {
        let request = Request::builder().uri(format!("http://shop.example:80{path}")).body(body("abc".into())).unwrap();
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(response.version(), http::Version::HTTP_2);
        let text = response.into_body().collect().await.unwrap().to_bytes();
        assert!(text.starts_with(format!("app/cart GET {path} 3").as_bytes()), "{text:?}");
    }
    assert!(bench.ingress.stop(Duration::from_secs(5)).await, "an idle HTTP/2 client does not hold it up");
    let _ = connection.await.unwrap();
}

#[tokio::test]
async fn an_idle_http2_client_is_let_go() {
    let limits = Limits { idle: Duration::from_millis(50), ..Limits::default() };
    let bench = bench(limits).await;
    let io = TokioIo::new(bench.connect().await);
    let (sender, connection) =
        hyper::client::conn::http2::handshake::<_, _, Body>(TokioExecutor::new(), io).await.unwrap();
    tokio::time::timeout(Duration::from_secs(5), connection).await.unwrap().unwrap();
    drop(sender);
}

#[tokio::test]
async fn slow_heads_are_cut_off() {
    let limits = Limits { head_wait: Duration::from_millis(100), ..Limits::default() };
    let bench = bench(limits).await;
    for begun in ["", "P", "PRI * HTTP", "GET / HTTP/1.1\r\nHost: x\r\nX-Slow: "] {
        let answer = tokio::time::timeout(Duration::from_secs(5), bench.raw(begun.as_bytes())).await;
        assert!(answer.is_ok(), "{begun:?} still holds its connection");
    }
    let mut stream = bench.connect().await;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n").await.unwrap();
    // Sending a little now and then does not help.
    let dripped = async {
        while stream.write_all(b"X-A: b\r\n").await.is_ok() {
            tokio::task::yield_now().await
        }
    };
    tokio::time::timeout(Duration::from_secs(5), dripped).await.unwrap();
    assert_eq!(bench.actors.asked.load(Ordering::SeqCst), 0);
    assert!(bench.get("x", "/").await.starts_with("HTTP/1.1 200"), "others are served");
}

#[tokio::test]
async fn wrong_requests_are_refused_and_the_next_is_served() {
    let bench = bench(Limits { head_wait: Duration::from_millis(300), ..Limits::default() }).await;
    let large = format!("GET / HTTP/1.1\r\nHost: x\r\nX-Large: {}\r\n\r\n", "a".repeat(70_000));
    let many: String = (0..200).map(|n| format!("X-{n}: 1\r\n")).collect();
    let many = format!("GET / HTTP/1.1\r\nHost: x\r\n{many}\r\n");
    let huge_h2 = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &[0xff; 4096]].concat();
    for (bytes, status) in [
        (large.as_bytes(), "HTTP/1.1 431 "),
        (many.as_bytes(), "HTTP/1.1 431 "),
        (b"GET / HTTP/1.1\r\n\r\n".as_slice(), "HTTP/1.1 400 "),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "HTTP/1.1 400 "),
        (b"GET / HTTP/9.9\r\nHost: a\r\n\r\n", "HTTP/1.1 400 "),
        (b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 501 "),
        (b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 404 "),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", "HTTP/1.1 400 "),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "HTTP/1.1 400 "),
        (&[0; 2048], "HTTP/1.1 400 "),
        (&huge_h2, ""),
    ] {
        let answer = tokio::time::timeout(Duration::from_secs(5), bench.raw(bytes)).await.unwrap();
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(60)]);
        assert!(answer.starts_with(status), "{shown:?}: {answer:?}");
    }
    assert_eq!(bench.actors.asked.load(Ordering::SeqCst), 0);
    assert!(bench.get("x", "/").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn a_full_house_waits_for_a_place() {
    let limits = Limits { connections_max: 1, head_wait: Duration::from_millis(200), ..Limits::default() };
    let bench = bench(limits).await;
    let _idle = bench.connect().await;
    // Served when the idle one has been cut off.
    let answer = tokio::time::timeout(Duration::from_secs(5), bench.get("x", "/")).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn stopping_finishes_what_is_under_way() {
    let bench = bench(Limits::default()).await;
    let (actors, addr) = (bench.actors.clone(), bench.ingress.addr());
    let mut stream = bench.connect().await;
    stream.write_all(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    actors.slow_begun.notified().await;
    let stopping = tokio::spawn(bench.ingress.stop(Duration::from_secs(10)));
    while TcpStream::connect(addr).await.is_ok() {
        tokio::task::yield_now().await;
    }
    actors.slow_may_end.notify_one();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.contains("app/root GET /slow"), "{answer}");
    assert!(stopping.await.unwrap());
}

#[tokio::test]
async fn stopping_does_not_wait_for_ever() {
    let bench = bench(Limits::default()).await;
    let mut stream = bench.connect().await;
    stream.write_all(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    bench.actors.slow_begun.notified().await;
    assert!(!bench.ingress.stop(Duration::from_millis(50)).await);
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest).await;
    assert_eq!(rest, b"");
}

#[tokio::test]
async fn only_loopback_is_listened_on_in_the_clear() {
    for (addr, tls, ok) in [
        ("127.0.0.1:0", false, true),
        ("127.9.9.9:0", false, true),
        ("[::1]:0", false, true),
        ("[::ffff:127.0.0.1]:0", false, true),
        ("0.0.0.0:8000", false, false),
        ("[::]:8000", false, false),
        ("10.0.0.1:8000", false, false),
        ("0.0.0.0:8000", true, true),
    ] {
        let got = check_listen(addr.parse().unwrap(), tls);
        assert_eq!(got.is_ok(), ok, "{addr}");
        if let Err(error) = got {
            assert!(error.to_string().contains("127.0.0.1:8000"), "{error}");
        }
    }
    let (_sender, routes) = watch::channel(Arc::new(Routes::default()));
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let started = Ingress::start(taken.local_addr().unwrap(), None, routes, Arc::new(Actors::default())).await;
    assert!(matches!(started.err(), Some(Error::Listen { .. })));
}

#[tokio::test]
async fn tls_speaks_both_versions() {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let made = rcgen::generate_simple_self_signed(vec!["shop.example".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let server = rustls::ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
    let server = server.unwrap().with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key).unwrap();
    let (_routes, seen) = watch::channel(Arc::new(Routes::from_wire(&[route("", "/", "root")]).0));
    let limits = Limits { head_wait: Duration::from_millis(500), ..Limits::default() };
    let at = "127.0.0.1:0".parse().unwrap();
    let actors = Arc::new(Actors::default());
    let ingress = Ingress::start_with(at, Some(Arc::new(server)), seen, actors, limits).await.unwrap();

    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let client = |alpn: &[u8]| {
        let client =
            rustls::ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
        let mut client = client.unwrap().with_root_certificates(roots.clone()).with_no_client_auth();
        client.alpn_protocols = vec![alpn.to_vec()];
        tokio_rustls::TlsConnector::from(Arc::new(client))
    };
    let connect = async |alpn: &[u8]| {
        let stream = TcpStream::connect(ingress.addr()).await.unwrap();
        client(alpn).connect("shop.example".try_into().unwrap(), stream).await.unwrap()
    };
    let mut http1 = connect(b"http/1.1").await;
    http1.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    http1.read_to_string(&mut answer).await.unwrap();
    assert!(answer.contains("app/root GET /"), "{answer}");

    let io = TokioIo::new(connect(b"h2").await);
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    let request = Request::builder().uri("https://shop.example/two").body(body(String::new())).unwrap();
    let text = sender.send_request(request).await.unwrap().into_body().collect().await.unwrap().to_bytes();
    assert!(text.starts_with(b"app/root GET /two"), "{text:?}");

    // Who never shakes hands, or speaks in the clear, is cut off.
    for bytes in [b"".as_slice(), b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"] {
        let mut stream = TcpStream::connect(ingress.addr()).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut answer)).await;
        assert!(ended.is_ok() && !answer.starts_with(b"HTTP"), "{answer:?}");
    }
}
