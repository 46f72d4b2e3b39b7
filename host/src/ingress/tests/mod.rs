//! A real ingress on a real socket; only what answers for the actors is the test's.
#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use crate::call::{Body, CallError};
use crate::metrics::Book;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use proto::v1;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;

mod bounds;
pub(super) mod certificates;

/// Says what it was asked; some paths have other ends.
#[derive(Default)]
pub(super) struct Actors {
    asked: AtomicUsize,
    slow_begun: Notify,
    slow_may_end: Notify,
    /// Told when a body without end was dropped.
    endless_ended: Arc<Notify>,
}

/// A body that goes on for as long as it is taken.
struct Endless(Arc<Notify>);

impl hyper::body::Body for Endless {
    type Data = bytes::Bytes;
    type Error = wasmtime_wasi_http::Error;
    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<hyper::body::Frame<bytes::Bytes>, Self::Error>>> {
        std::task::Poll::Ready(Some(Ok(hyper::body::Frame::data(bytes::Bytes::from_static(&[0; 16_384])))))
    }
}

impl Drop for Endless {
    fn drop(&mut self) {
        self.0.notify_one();
    }
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
            "/endless" => return Ok(Response::new(Endless(self.endless_ended.clone()).boxed_unsync())),
            "/slow" => {
                self.slow_begun.notify_one();
                self.slow_may_end.notified().await;
            }
            _ => {}
        }
        let mut headers: Vec<String> = request.headers().keys().map(ToString::to_string).collect();
        headers.sort();
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

pub(super) fn route(host: &str, path: &str, actor: &str) -> v1::Route {
    v1::Route { host: host.into(), path: path.into(), app: "app".into(), actor: actor.into(), ..v1::Route::default() }
}

pub(super) fn table(routes: &[v1::Route], book: &Book) -> Arc<Routes> {
    Arc::new(Routes::from_wire(routes, book).0)
}

/// An ingress, and what is behind it.
pub(super) struct Bench<A = Actors> {
    pub(super) ingress: Ingress,
    pub(super) actors: Arc<A>,
    pub(super) routes: watch::Sender<Arc<Routes>>,
    pub(super) book: Book,
    pub(super) meter: Arc<Meter>,
}

async fn bench(limits: Limits) -> Bench {
    bench_with(limits, None).await
}

async fn bench_with(limits: Limits, access: Option<Arc<Access>>) -> Bench {
    let routes = [route("", "/", "root"), route("shop.example", "/cart", "cart"), route("shop.example", "/", "shop")];
    Bench::start(&routes, limits, access).await
}

impl<A: Dispatch + Default + 'static> Bench<A> {
    pub(super) async fn start(routes: &[v1::Route], limits: Limits, access: Option<Arc<Access>>) -> Self {
        let book = Book::default();
        let (routes, seen) = watch::channel(table(routes, &book));
        let (actors, meter) = (Arc::<A>::default(), Arc::<Meter>::default());
        let behind = Behind { limits, access, meter: meter.clone(), ..Behind::new(seen, actors.clone()) };
        let ingress = Ingress::start("127.0.0.1:0".parse().unwrap(), None, behind).await.unwrap();
        Self { ingress, actors, routes, book, meter }
    }
}

impl<A> Bench<A> {
    pub(super) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.ingress.addr()).await.unwrap()
    }

    /// Sends these bytes on a connection of their own and gives everything that comes back until the end.
    pub(super) async fn exchange(&self, bytes: &[u8]) -> Vec<u8> {
        let mut stream = self.connect().await;
        // The other end may close before it has read all of it.
        let _ = stream.write_all(bytes).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        answer
    }
}

impl Bench {
    async fn raw(&self, bytes: &[u8]) -> String {
        String::from_utf8_lossy(&self.exchange(bytes).await).into_owned()
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
    bench.routes.send(table(&[route("", "/new", "fresh")], &bench.book)).unwrap();
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
    assert!(answer.contains("app/root POST /p 5 [host traceparent x-end x-request-id]"), "{answer}");
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
    let behind = Behind::new(routes, Arc::new(Actors::default()));
    let started = Ingress::start(taken.local_addr().unwrap(), None, behind).await;
    assert!(matches!(started.err(), Some(Error::Listen { .. })));
}

#[tokio::test]
async fn requests_have_an_id_and_a_trace() {
    let bench = bench(Limits::default()).await;
    let answer = bench.get("x", "/").await;
    let id = answer.lines().find_map(|line| line.strip_prefix("x-request-id: ")).unwrap();
    assert!(id.len() == 32 && answer.contains("[host traceparent x-request-id]"), "{answer}");
    assert_ne!(bench.get("x", "/").await.lines().find_map(|line| line.strip_prefix("x-request-id: ")), Some(id));
    let given = "GET / HTTP/1.1\r\nHost: x\r\nX-Request-Id: mine-7\r\nConnection: close\r\n\r\n";
    assert!(bench.raw(given.as_bytes()).await.contains("x-request-id: mine-7\r\n"));
    // Errors have one too: they are what people ask about.
    assert!(bench.get("x", "/overloaded").await.contains("x-request-id: "));
    let traffic = bench.book.list().into_iter().find(|(key, _)| key.1.as_str() == "root").unwrap().1;
    assert_eq!((traffic.classes(), traffic.took().count()), ([0, 3, 0, 0, 1], 4));
}

#[tokio::test]
async fn other_upgrades_may_be_ignored() {
    let bench = bench(Limits::default()).await;
    let asked = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, close\r\nUpgrade: h2c\r\n\r\n";
    assert!(bench.raw(asked).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn the_access_log_has_a_line_for_each_request() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("access.log");
    let access = Arc::new(Access::open(&AccessTarget::File(path.clone())).unwrap());
    let bench = bench_with(Limits::default(), Some(access)).await;
    let asked = "POST /cart/7?secret=1 HTTP/1.1\r\nHost: shop.example\r\nX-Request-Id: r-1\r\nUser-Agent: t/1 \"q\"\r\n\
                 Content-Length: 3\r\nConnection: close\r\n\r\nabc";
    let answer = bench.raw(asked.as_bytes()).await;
    let bytes = answer.split("\r\n\r\n").nth(1).unwrap().len();
    assert!(bench.get("x", "/trapped").await.starts_with("HTTP/1.1 500 "));
    bench.routes.send(table(&[], &bench.book)).unwrap();
    assert!(bench.get("x", "/none").await.starts_with("HTTP/1.1 404 "));
    assert!(bench.ingress.stop(Duration::from_secs(5)).await);
    drop((bench.routes, bench.actors));
    // The writer is behind by a moment.
    let end = std::time::Instant::now() + Duration::from_secs(20);
    let lines = loop {
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<serde_json::Value> = text.lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
        if lines.len() == 3 {
            break lines;
        }
        assert!(std::time::Instant::now() < end, "{text}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    let first = &lines[0];
    for (name, value) in [
        ("request_id", serde_json::json!("r-1")),
        ("client", "127.0.0.1".into()),
        ("method", "POST".into()),
        ("scheme", "http".into()),
        ("host", "shop.example".into()),
        // Without its query: that may hold what is nobody's business.
        ("path", "/cart/7".into()),
        ("protocol", "HTTP/1.1".into()),
        ("user_agent", "t/1 \"q\"".into()),
        ("app", "app".into()),
        ("actor", "cart".into()),
        ("status", 200.into()),
        ("bytes", bytes.into()),
        ("complete", true.into()),
    ] {
        assert_eq!(first[name], value, "{name} of {first}");
    }
    assert!(first["total_ms"].as_f64() >= first["head_ms"].as_f64() && first["trace_id"].as_str().is_some(), "{first}");
    assert_eq!((&lines[1]["status"], &lines[2]["status"]), (&500.into(), &404.into()));
    assert!(lines[2]["actor"].is_null());
}
