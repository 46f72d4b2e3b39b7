//! Each limit of an actor, broken by a real component: the error names it, and comes in time.

use super::*;
use proto::app::{Grants, Limits};
use std::time::{Duration, Instant};

async fn limited(world: &World, limits: Limits) -> Arc<Actor> {
    world.actor(hostile(), Spec { limits, ..world.spec() }).await
}

/// A component with one function `f`, made of a core module's text.
fn component(module: &str) -> Vec<u8> {
    let text = format!(
        "(component (core module $m {module}) (core instance $i (instantiate $m)) \
         (func (export \"f\") (result u32) (canon lift (core func $i \"f\"))))"
    );
    wat::parse_str(text).unwrap()
}

#[tokio::test]
async fn processor_time_ends_before_the_deadline_does() {
    let world = World::new();
    let limits = Limits { cpu_ms: 100, deadline_ms: 60_000, ..Limits::default() };
    let actor = limited(&world, limits).await;
    for path in ["/loop", "/flood?of=clock", "/flood?of=log", "/flood?of=poll"] {
        let began = Instant::now();
        let error = actor.http(get(path), None).await.unwrap_err();
        let text = "actor shop/cart used up its 100 ms of processor time; raise limits.cpu";
        assert_eq!(error, CallError::Deadline(text.into()), "{path}");
        assert!(began.elapsed() < Duration::from_secs(20), "{path} {:?}", began.elapsed());
    }
    // Waiting costs none of it.
    let slept = text(actor.http(get("/sleep?ms=300"), None).await).await;
    assert!(slept.starts_with("slept 3"), "{slept}");
    assert!(actor.drain(Duration::from_secs(10)).await);
}

#[tokio::test]
async fn tables_end_at_their_limit() {
    let world = World::new();
    let grows = component(
        r#"(table $t 10 funcref) (table $u 10 funcref)
           (func (export "f") (result i32)
             (if (i32.eq (table.grow $t (ref.null func) (i32.const 500)) (i32.const -1)) (then unreachable))
             (table.grow $u (ref.null func) (i32.const 500)))"#,
    );
    let limits = |table_elements_max| Limits { table_elements_max, ..Limits::default() };
    let actor = world.actor(grows.clone(), Spec { limits: limits(2_000), ..world.spec() }).await;
    assert_eq!(actor.call_wave("", "f", "").await.unwrap(), "10");
    // Refused is -1 to the guest, which may live with it; all its tables count together.
    let actor = world.actor(grows.clone(), Spec { limits: limits(800), ..world.spec() }).await;
    assert_eq!(actor.call_wave("", "f", "").await.unwrap(), u32::MAX.to_string());
    let actor = world.actor(grows, Spec { limits: limits(100), ..world.spec() }).await;
    let CallError::Trapped(message) = actor.call_wave("", "f", "").await.unwrap_err() else { panic!("no trap") };
    assert!(message.contains("wanted more than its 100 table elements; raise limits.table"), "{message}");
}

#[tokio::test]
async fn core_instances_end_at_their_limit() {
    let world = World::new();
    let many = "(core instance (instantiate $m))".repeat(5);
    let text = format!(
        "(component (core module $m (func (export \"f\") (result i32) (i32.const 7))) {many} \
         (core instance $i (instantiate $m)) (func (export \"f\") (result u32) (canon lift (core func $i \"f\"))))"
    );
    let bytes = wat::parse_str(text).unwrap();
    let limits = |instances_max| Limits { instances_max, ..Limits::default() };
    let actor = world.actor(bytes.clone(), Spec { limits: limits(6), ..world.spec() }).await;
    assert_eq!(actor.call_wave("", "f", "").await.unwrap(), "7");
    let actor = world.actor(bytes, Spec { limits: limits(5), ..world.spec() }).await;
    let CallError::Trapped(message) = actor.call_wave("", "f", "").await.unwrap_err() else { panic!("no trap") };
    assert!(message.contains("more core instances than its 5; raise limits.instances"), "{message}");
}

#[tokio::test]
async fn the_stack_ends_at_its_bound() {
    let world = World::new();
    let deep = component(r#"(func $f (export "f") (result i32) (i32.add (call $f) (i32.const 1)))"#);
    let actor = world.actor(deep, world.spec()).await;
    let began = Instant::now();
    let CallError::Trapped(message) = actor.call_wave("", "f", "").await.unwrap_err() else { panic!("no trap") };
    assert!(message.contains("call stack exhausted: more than 524288 bytes of it"), "{message}");
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn bodies_end_at_their_limits() {
    let world = World::new();
    let limits = Limits { request_bytes_max: 1_000, response_bytes_max: 100_000, ..Limits::default() };
    let actor = limited(&world, limits).await;
    assert_eq!(text(actor.http(post("/echo", "short"), None).await).await, "short");
    // One that says how long it is does not even begin.
    let long: &'static str = "x".repeat(1_001).leak();
    let error = actor.http(post("/echo", long), None).await.unwrap_err();
    let text = "the body of a request to actor shop/cart has more than 1000 bytes; raise limits.request";
    assert_eq!(error, CallError::TooLarge(text.into()));
    // One that does not say so breaks off.
    let pieces = (0..20).map(|_| Ok(hyper::body::Frame::data(Bytes::from_static(&[b'x'; 100]))));
    let body = http_body_util::StreamBody::new(futures::stream::iter(pieces)).boxed_unsync();
    let request = http::Request::builder().uri("/echo").header("host", "shop.example").body(body).unwrap();
    let broken = actor.http(request, None).await.unwrap().into_body().collect().await;
    assert!(broken.is_err() || broken.unwrap().to_bytes().len() <= 1_000);

    let body = actor.http(get("/body?bytes=100000"), None).await.unwrap().into_body();
    assert_eq!(body.collect().await.unwrap().to_bytes().len(), 100_000);
    let body = actor.http(get("/body?bytes=100001"), None).await.unwrap().into_body();
    let error = body.collect().await.unwrap_err().to_string();
    assert!(
        error.contains("the answer of actor shop/cart has more than 100000 bytes; raise limits.response"),
        "{error}"
    );
}

#[tokio::test]
async fn a_second_of_log_ends_at_its_limit() {
    let world = World::new();
    let limits = Limits { log_bytes_per_s: 10_000, cpu_ms: 300, ..Limits::default() };
    let actor = limited(&world, limits).await;
    let began = Instant::now();
    actor.http(get("/flood?of=log"), None).await.unwrap_err();
    let seconds = began.elapsed().as_secs() + 2;
    let lines = world.lines.0.lock().unwrap();
    let bytes: usize = lines.iter().filter(|(stream, _)| stream == "stdout").map(|(_, text)| text.len()).sum();
    assert!((5_000..10_000 * usize::try_from(seconds).unwrap()).contains(&bytes), "{bytes} in {seconds} s");
    let told = lines.iter().filter(|(stream, text)| stream == "warn" && text.contains("raise limits.log")).count();
    assert!((1..=usize::try_from(seconds).unwrap()).contains(&told), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outgoing_requests_at_once_end_at_their_limit() {
    let world = World::new();
    // Takes connections and never answers.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let limits = Limits { outgoing_len_max: 3, deadline_ms: 2_000, ..Limits::default() };
    let grants = Grants { http: vec![addr.to_string()], ..Grants::default() };
    let actor = world.actor(hostile(), Spec { limits, grants, ..world.spec() }).await;
    let error = actor.http(get(&format!("/outs?n=5&url=http://{addr}/")), None).await.unwrap_err();
    assert!(matches!(error, CallError::Deadline(_)), "{error:?}");
    let refused = {
        let lines = world.lines.0.lock().unwrap();
        lines
            .iter()
            .filter(|(_, text)| text.contains("3 requests are under way already; raise limits.outgoing"))
            .count()
    };
    assert_eq!(refused, 2);
    // They end with the invocation that made them, and others may be made.
    drop(listener);
    let end = Instant::now() + Duration::from_secs(10);
    let mut said = String::from("ConnectionLimitReached");
    // What was put aside on another thread may take a moment to be gone.
    while said.contains("ConnectionLimitReached") && Instant::now() < end {
        said = text(actor.http(get(&format!("/out?url=http://{addr}/")), None).await).await;
    }
    assert!(said.contains("ConnectionRefused"), "{said}");
}
