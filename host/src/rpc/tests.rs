//! Both ends over the embedded broker and real connections; only the providers behind them are the test's, or the
//! real store.
#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use crate::call::{Body, HttpServe, LinkContext, Serve};
use crate::capability::keystore::KeyStore;
use crate::capability::keyvalue::{self, KeyValue, VALUE_BYTES_MAX};
use crate::capability::wire::{KeyStoreOver, KeyValueOver};
use crate::on_bus::connect;
use crate::origin::Origin;
use crate::provider::keyvalue::KeyvalueStore;
use crate::provider::serve::KeyValueServer;
use ::http::{Request, Response, StatusCode};
use bus::broker::{self, Broker};
use bus::{Headers, Reason};
use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use proto::app::Name;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::mpsc;
use wasmtime_wasi_http::Error;

fn name(s: &str) -> Name {
    s.parse().unwrap()
}

fn broker() -> Broker {
    Broker::start(broker::Config { listen: "127.0.0.1:0".parse().unwrap(), token: None }).unwrap()
}

fn link(name: &str) -> LinkContext {
    LinkContext {
        app: "shop".into(),
        consumer: "cart".into(),
        name: name.into(),
        // What a caller says of its config is not believed.
        config: [("bucket".to_owned(), "forged".to_owned())].into(),
        deadline: Some(Duration::from_secs(10)),
        origin: Origin::from_texts(Some(&"request-1".to_owned()), Some(&TRACEPARENT.to_owned())),
    }
}

const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// Knows the links "default", "cache" (its bucket is "carts") and "slow".
fn permit() -> Permit {
    Arc::new(|caller| {
        let known = caller.app.as_str() == "shop" && caller.consumer.as_str() == "cart";
        match caller.link.as_str() {
            "default" | "slow" if known => Some(BTreeMap::new()),
            "cache" if known => Some([("bucket".to_owned(), "carts".to_owned())].into()),
            _ => None,
        }
    })
}

/// Fails as its function says; else answers what it was asked and for whom.
#[derive(Default)]
struct Odd {
    seen: Mutex<Option<LinkContext>>,
}

#[async_trait::async_trait]
impl Serve for Odd {
    async fn serve(
        &self,
        link: &LinkContext,
        interface: &str,
        function: &str,
        params: Bytes,
    ) -> Result<Bytes, CallError> {
        *self.seen.lock().unwrap() = Some(link.clone());
        match function {
            "hang" => std::future::pending().await,
            "panic" => panic!("as told"),
            "echo" => Ok(params),
            code => Err(CallError::from_code(code, format!("{interface} said {code}"))),
        }
    }
}

#[tokio::test]
async fn keyvalue_and_keystore_cross_the_bus() {
    let (dir, broker) = (tempfile::tempdir().unwrap(), broker());
    let (here, there) = (connect(&broker).await, connect(&broker).await);
    let store = KeyvalueStore::open(&dir.path().join("keyvalue")).unwrap();
    let server = Arc::new(KeyValueServer::new(store, name("shop"), name("kv")));
    let interfaces: Vec<String> = KeyValueServer::interfaces().iter().map(|i| (*i).to_owned()).collect();
    let serving = serve_component(&there, &name("shop"), &name("kv"), &interfaces, server, permit()).await.unwrap();

    let remote = Arc::new(RemoteServe::new(here, name("shop"), name("kv")));
    let plain = KeyValueOver::new(remote.clone(), link("default"));
    let cache = KeyValueOver::new(remote.clone(), link("cache"));
    let large = Bytes::from(vec![7; VALUE_BYTES_MAX]);
    plain.set("", "k", large.clone()).await.unwrap();
    assert_eq!(plain.get("default", "k").await.unwrap(), Some(large));
    assert_eq!(plain.increment("", "n", 2).await.unwrap(), 2);
    cache.set("", "k", Bytes::from_static(b"v")).await.unwrap();
    assert_eq!(
        plain.get("carts", "k").await.unwrap(),
        Some(Bytes::from_static(b"v")),
        "the provider's app names the bucket"
    );
    assert_eq!(plain.list_keys("forged", None).await.unwrap().0, Vec::<String>::new());
    let keystore = KeyStoreOver::new(remote.clone(), link("default"));
    keystore.set("k", Bytes::from_static(b"v"), Some(9)).await.unwrap();
    assert_eq!(keystore.get("k").await.unwrap(), Some(Bytes::from_static(b"v")));

    let denied = KeyValueOver::new(remote.clone(), link("none")).get("", "k").await.unwrap_err();
    assert!(
        matches!(&denied, keyvalue::Error::AccessDenied(m) if m.contains("link \"none\" of actor \"shop/cart\"")),
        "{denied}"
    );
    drop(serving);
}

#[tokio::test]
async fn errors_keep_their_names_across_the_bus() {
    let broker = broker();
    let (here, there) = (connect(&broker).await, connect(&broker).await);
    let odd = Arc::new(Odd::default());
    let interfaces = ["a:b/c@1.0.0".to_owned()];
    let _serving =
        serve_component(&there, &name("shop"), &name("odd"), &interfaces, odd.clone(), permit()).await.unwrap();
    let remote = RemoteServe::new(here.clone(), name("shop"), name("odd"));
    let call = async |link_name: &str, function: &str, wait: Duration| {
        let link = LinkContext { deadline: Some(wait), ..link(link_name) };
        remote.serve(&link, "a:b/c", function, Bytes::from_static(b"xy")).await
    };
    let long = Duration::from_secs(10);
    assert_eq!(call("default", "echo", long).await.unwrap().as_ref(), b"xy");
    let seen = odd.seen.lock().unwrap().clone().unwrap();
    assert_eq!((seen.consumer.as_str(), seen.name.as_str()), ("cart", "default"));
    assert_eq!(seen.origin, link("default").origin, "what caused it goes along");
    assert!(seen.config.is_empty() && seen.deadline.is_some_and(|left| left <= long && left > long / 2), "{seen:?}");
    for code in ["unavailable", "overloaded", "deadline", "trapped", "denied", "invalid", "too-large"] {
        let error = call("default", code, long).await.unwrap_err();
        assert_eq!((error.code(), error.to_string()), (code, format!("a:b/c said {code}")));
    }
    assert!(matches!(call("default", "panic", long).await, Err(CallError::Trapped(_))));
    assert!(matches!(call("none", "echo", long).await, Err(CallError::Denied(_))));
    let late = call("slow", "hang", Duration::from_millis(50)).await.unwrap_err();
    assert!(
        matches!(&late, CallError::Deadline(m) if m.contains("link \"slow\" of actor \"cart\": a:b/c of shop/odd")),
        "{late}"
    );

    let large = Bytes::from(vec![0; crate::value::ENCODED_BYTES_MAX + 1]);
    let large = remote.serve(&link("default"), "a:b/c", "echo", large).await;
    assert!(matches!(large, Err(CallError::TooLarge(m)) if m.contains("a:b/c")));

    let nobody = RemoteServe::new(here, name("shop"), name("kv"));
    let nobody = nobody.serve(&link("default"), "wasi:keyvalue/store", "get", Bytes::new()).await.unwrap_err();
    let expected =
        "link \"default\" of actor \"cart\": no host offers wasi:keyvalue/store of shop/kv; check `lattice get actors`";
    assert_eq!(nobody, CallError::Unavailable(expected.into()));
}

#[tokio::test]
async fn garbage_is_refused_and_counted() {
    let broker = broker();
    let (here, there) = (connect(&broker).await, connect(&broker).await);
    let interfaces = ["a:b/c".to_owned()];
    let odd = Arc::new(Odd::default());
    let _serving = serve_component(&there, &name("shop"), &name("odd"), &interfaces, odd, permit()).await.unwrap();
    let subject = there.subjects().rpc(&name("shop"), &name("odd"), "a:b/c");
    let whole = ["echo", "shop", "cart", "default"];
    let mut broken = vec![None];
    for i in 0..whole.len() {
        broken.push(Some(whole[..i].join(" ")));
        for value in [String::new(), "x".repeat(300), "../../etc".into()] {
            // Functions and links may have any name.
            if value == "../../etc" && (i == 0 || i == 3) {
                continue;
            }
            let mut parts = whole.map(str::to_owned);
            parts[i] = value;
            broken.push(Some(parts.join(" ")));
        }
    }
    assert_eq!(broken.len(), 15);
    let before = there.drops().get(Reason::Malformed);
    for call in &broken {
        let headers: Headers = call.iter().map(|call| ("Lattice-Call".to_owned(), call.clone())).collect();
        let error = here.call(subject.clone(), headers, Bytes::new(), Duration::from_secs(5)).await.unwrap_err();
        assert!(matches!(&error, bus::Error::Refused { code, .. } if code == "invalid"), "{call:?}: {error}");
    }
    assert_eq!(there.drops().get(Reason::Malformed) - before, 15);
}

/// An actor that answers HTTP.
struct Web;

#[async_trait::async_trait]
impl HttpServe for Web {
    async fn http(&self, request: Request<Body>, deadline: Option<Duration>) -> Result<Response<Body>, CallError> {
        assert!(deadline.is_some());
        let (parts, body) = request.into_parts();
        let sent = body.collect().await.unwrap().to_bytes();
        match parts.uri.path() {
            "/busy" => Err(CallError::Overloaded("actor shop/web: its queue is full".into())),
            "/large" => Ok(Response::new(full(Bytes::from(vec![1; BODY_BYTES_MAX + 1])))),
            "/echo" => Ok(Response::new(full(sent))),
            "/late" => Ok(Response::new(body_of(stream::iter(["first, ", "last"]).then(|text| async move {
                tokio::time::sleep(Duration::from_millis(20)).await;
                Ok(Bytes::from(text))
            })))),
            _ => {
                let headers: Vec<&str> = parts.headers.keys().map(|k| k.as_str()).collect();
                let text = format!("{} {} {} {}", parts.method, parts.uri, headers.join(","), sent.len());
                let mut response = Response::new(full(text.into()));
                *response.status_mut() = StatusCode::ACCEPTED;
                response.headers_mut().insert("x-own", "1".parse().unwrap());
                response.headers_mut().insert("transfer-encoding", "chunked".parse().unwrap());
                Ok(response)
            }
        }
    }
}

fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

#[tokio::test]
async fn http_crosses_the_bus() {
    let broker = broker();
    let (here, there) = (connect(&broker).await, connect(&broker).await);
    let _serving = serve_http(&there, &name("shop"), &name("web"), Slot::new(Arc::new(Web))).await.unwrap();
    let remote = RemoteHttp::new(here.clone(), name("shop"), name("web"));
    let ask = async |path: &str, body: Bytes| {
        let request = Request::builder().method("POST").uri(path).header("host", "shop.example").header("upgrade", "x");
        let answer = remote.http(request.body(full(body)).unwrap(), Some(Duration::from_secs(20))).await?;
        let (parts, body) = answer.into_parts();
        Ok::<_, CallError>((parts, body.collect().await.unwrap().to_bytes()))
    };
    let (parts, body) = ask("/a?b=c", Bytes::from_static(b"123")).await.unwrap();
    assert_eq!((parts.status, body.as_ref()), (StatusCode::ACCEPTED, b"POST /a?b=c host 3".as_slice()));
    assert!(parts.headers.contains_key("x-own") && !parts.headers.contains_key("transfer-encoding"));
    let large = Bytes::from(vec![5; 3 * 1024 * 1024]);
    assert_eq!(ask("/echo", large.clone()).await.unwrap().1, large);
    assert_eq!(ask("/busy", Bytes::new()).await.unwrap_err().code(), "overloaded");
    let larger = Bytes::from(vec![1; BODY_BYTES_MAX + 1]);
    assert_eq!(ask("/large", Bytes::new()).await.unwrap().1, larger);
    assert_eq!(ask("/echo", larger.clone()).await.unwrap().1, larger);

    // A caller that knows no streams.
    let subject = there.subjects().rpc(&name("shop"), &name("web"), HTTP_INTERFACE);
    let old = async |path: &str| {
        let (parts, ()) = Request::builder().uri(path).body(()).unwrap().into_parts();
        let message = head::encode_request(&parts, &body::Carried::Whole(Bytes::new())).unwrap();
        here.call(subject.clone(), Headers::new(), message, Duration::from_secs(20)).await
    };
    let late = head::decode_response(old("/late").await.unwrap().payload).unwrap();
    assert_eq!(*late.body(), body::Carried::Whole("first, last".into()));
    let error = old("/large").await.unwrap_err();
    assert!(matches!(&error, bus::Error::Refused { code, message } if code == "too-large" && message.contains("web")));

    let garbage = here.call(subject, Headers::new(), Bytes::from_static(b"GET /"), Duration::from_secs(5)).await;
    assert!(matches!(garbage, Err(bus::Error::Refused { code, .. }) if code == "invalid"));
    let nobody = RemoteHttp::new(here, name("shop"), name("gone"));
    let nobody = nobody.http(Request::new(full(Bytes::new())), Some(Duration::from_secs(5))).await.err().unwrap();
    assert!(matches!(&nobody, CallError::Unavailable(m) if m.contains("no host offers HTTP of shop/gone")), "{nobody}");
}

fn body_of(pieces: impl Stream<Item = Result<Bytes, Error>> + Send + 'static) -> Body {
    StreamBody::new(pieces.map(|piece| piece.map(Frame::data))).boxed_unsync()
}

/// A body whose pieces are sent from elsewhere.
fn by_hand() -> (mpsc::Sender<Bytes>, Body) {
    let (sender, mut receiver) = mpsc::channel(1);
    (sender, body_of(stream::poll_fn(move |cx| receiver.poll_recv(cx)).map(Ok)))
}

/// Answers before it has read, breaks off, or never ends.
#[derive(Default)]
struct Bitwise {
    made: Arc<AtomicUsize>,
    taken: Arc<AtomicUsize>,
}

#[async_trait::async_trait]
impl HttpServe for Bitwise {
    async fn http(&self, request: Request<Body>, _: Option<Duration>) -> Result<Response<Body>, CallError> {
        let (parts, body) = request.into_parts();
        Ok(Response::new(match parts.uri.path() {
            "/shout" => body_of(body.into_data_stream().map(|piece| piece.map(|p| p.to_ascii_uppercase().into()))),
            "/early" => {
                let taken = self.taken.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    let body = body.collect().await.unwrap().to_bytes();
                    taken.store(body.len(), Ordering::SeqCst);
                });
                full("accepted".into())
            }
            "/breaks" => body_of(stream::iter([true, false]).then(|fine| async move {
                tokio::time::sleep(Duration::from_millis(20)).await;
                if fine { Ok(Bytes::from("half")) } else { Err(Error::InternalError(Some("the guest trapped".into()))) }
            })),
            _ => {
                let made = self.made.clone();
                body_of(stream::repeat_with(move || {
                    made.fetch_add(1 << 16, Ordering::SeqCst);
                    Ok(Bytes::from(vec![7; 1 << 16]))
                }))
            }
        }))
    }
}

#[tokio::test]
async fn bodies_cross_the_bus_as_they_come() {
    let broker = broker();
    let (here, there) = (connect(&broker).await, connect(&broker).await);
    let bitwise = Bitwise::default();
    let (made, taken) = (bitwise.made.clone(), bitwise.taken.clone());
    let _serving = serve_http(&there, &name("shop"), &name("web"), Slot::new(Arc::new(bitwise))).await.unwrap();
    let remote = RemoteHttp::new(here.clone(), name("shop"), name("web"));
    let ask = async |path: &str, body: Body| {
        let request = Request::builder().uri(path).body(body).unwrap();
        remote.http(request, Some(Duration::from_secs(20))).await.unwrap().into_body()
    };
    let (sender, body) = by_hand();
    let mut answer = ask("/shout", body).await;
    for word in ["one", "two", "three"] {
        sender.send(word.into()).await.unwrap();
        let piece = answer.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(piece, word.to_uppercase());
    }
    drop(sender);
    assert!(answer.frame().await.is_none());

    // Who wants no more of the answer ends all of it.
    let (sender, body) = by_hand();
    drop(ask("/shout", body).await);
    tokio::time::timeout(Duration::from_secs(5), sender.closed()).await.unwrap();

    // Who answers before it has read everything reads on.
    let answer = ask("/early", full(vec![1; 3 << 20].into())).await;
    assert_eq!(answer.collect().await.unwrap().to_bytes(), "accepted");
    tokio::time::timeout(Duration::from_secs(5), async {
        while taken.load(Ordering::SeqCst) != 3 << 20 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .unwrap();

    let mut answer = ask("/breaks", full(Bytes::new())).await;
    assert_eq!(answer.frame().await.unwrap().unwrap().into_data().unwrap(), "half");
    let error = answer.frame().await.unwrap().unwrap_err().to_string();
    assert!(error.contains("the response of shop/web broke off") && error.contains("the guest trapped"), "{error}");

    // No more is made than is read, save what is on its way.
    let mut answer = ask("/endless", full(Bytes::new())).await;
    let mut read = 0;
    while read < 4 << 20 {
        read += answer.frame().await.unwrap().unwrap().into_data().unwrap().len();
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    let on_the_way = made.load(Ordering::SeqCst) - read;
    assert!(on_the_way <= 1 << 20, "{on_the_way}");
    drop(answer);
    tokio::time::sleep(Duration::from_millis(200)).await;
    let before = made.load(Ordering::SeqCst);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(made.load(Ordering::SeqCst), before);
}
