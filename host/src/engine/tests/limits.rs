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
async fn the_stack_ends_at_its_limit() {
    let world = World::new();
    let deep = component(r#"(func $f (export "f") (result i32) (i32.add (call $f) (i32.const 1)))"#);
    let began = Instant::now();
    for (stack_bytes, said) in [(512 << 10, "512 KiB"), (1 << 20, "1 MiB"), (3 << 20, "4 MiB"), (8 << 20, "8 MiB")] {
        let limits = Limits { stack_bytes, ..Limits::default() };
        let actor = world.actor(deep.clone(), Spec { limits, ..world.spec() }).await;
        let CallError::Trapped(message) = actor.call_wave("", "f", "").await.unwrap_err() else { panic!("no trap") };
        let told = format!("actor shop/cart used up its {said} of call stack in function ");
        assert!(message.starts_with(&told) && message.ends_with("; raise limits.stack"), "{message}");
    }
    assert!(began.elapsed() < Duration::from_secs(20));
}

#[tokio::test]
async fn a_larger_stack_takes_deeper_calls_and_more_of_the_host() {
    let world = World::new();
    let deep = r#"(component
        (core module $m (func $f (export "f") (param i32) (result i32)
          (if (result i32) (local.get 0)
            (then (i32.add (call $f (i32.sub (local.get 0) (i32.const 1))) (i32.const 1)))
            (else (i32.const 0)))))
        (core instance $i (instantiate $m))
        (func (export "f") (param "depth" u32) (result u32) (canon lift (core func $i "f"))))"#;
    let deep = wat::parse_str(deep).unwrap();
    let mut reached = Vec::new();
    for stack_bytes in [512 << 10, 1 << 20, 8 << 20] {
        let limits = Limits { stack_bytes, ..Limits::default() };
        let actor = world.actor(deep.clone(), Spec { limits, ..world.spec() }).await;
        let (mut least, mut most) = (1_u32, 1_000_000);
        while most - least > least / 64 {
            let depth = least.midpoint(most);
            match actor.call_wave("", "f", &depth.to_string()).await {
                Ok(said) => {
                    assert_eq!(said, depth.to_string());
                    least = depth;
                }
                Err(_) => most = depth,
            }
        }
        reached.push(least);
    }
    let [usual, double, most] = reached[..] else { panic!("{reached:?}") };
    assert!(usual > 1_000, "{reached:?}");
    assert!((usual * 19 / 10..usual * 21 / 10).contains(&double), "{reached:?}");
    assert!((usual * 15..usual * 17).contains(&most), "{reached:?}");
    // Compiled once, whatever its stack.
    assert_eq!(world.engine.loads(), (1, 2));
    let digest = Digest::of(&deep);
    for (stack_bytes, slots) in [(512 << 10, 1), (1 << 20, 2), (8 << 20, 16)] {
        let bytes = deep.clone();
        let module = world.engine.load_sized(&digest, stack_bytes, 0, || Ok(bytes), |_| ()).await.unwrap();
        assert_eq!(module.weight(), slots);
    }
}

/// wasmtime gives the whole call stack to each entry: who recurses in the memory that the host asks for, deep in a call, has
/// it twice. Beyond the fiber's end the process would end.
#[tokio::test]
async fn recursion_in_what_the_host_asks_for_is_a_trap_as_well() {
    let world = World::new();
    let text = |version: &str, parameter: &str| {
        format!(
            r#"(component
            (import "wasi:random/random@{version}" (instance $random
              (export "get-random-bytes" (func (param "{parameter}" u64) (result (list u8))))))
            (core module $a
              (memory (export "memory") 1)
              (func $deep (result i32) (i32.add (call $deep) (i32.const 1)))
              (func (export "realloc") (param i32 i32 i32 i32) (result i32) (call $deep)))
            (core instance $a (instantiate $a))
            (alias core export $a "memory" (core memory $memory))
            (alias core export $a "realloc" (core func $realloc))
            (core func $bytes (canon lower (func $random "get-random-bytes") (memory $memory) (realloc $realloc)))
            (core module $b
              (import "random" "bytes" (func $bytes (param i64 i32)))
              (func $f (export "f") (param i32 i32) (result i32)
                (if (result i32) (local.get 0)
                  (then (i32.add (call $f (i32.sub (local.get 0) (i32.const 1)) (local.get 1)) (i32.const 1)))
                  (else (if (local.get 1) (then (call $bytes (i64.const 1) (i32.const 16)))) (i32.const 0)))))
            (core instance $b (instantiate $b (with "random" (instance (export "bytes" (func $bytes))))))
            (func (export "f") (param "depth" u32) (param "asks" u32) (result u32) (canon lift (core func $b "f"))))"#
        )
    };
    for (version, parameter) in [("0.2.0", "len"), ("0.3.0", "max-len")] {
        let bytes = wat::parse_str(text(version, parameter)).unwrap();
        for stack_bytes in [512 << 10, 1 << 20, 2 << 20, 4 << 20, 8 << 20] {
            let limits = Limits { stack_bytes, ..Limits::default() };
            let grants = Grants { random: Some(proto::app::Random::Seed(7)), ..Grants::default() };
            let actor = world.actor(bytes.clone(), Spec { limits, grants, ..world.spec() }).await;
            let (mut least, mut most) = (1_u32, 1_000_000);
            while most - least > least / 64 {
                let depth = least.midpoint(most);
                match actor.call_wave("", "f", &format!("{depth}, 0")).await {
                    Ok(_) => least = depth,
                    Err(_) => most = depth,
                }
            }
            assert!(least > 1_000, "{least}");
            // As deep as it may, and half as deep.
            for depth in [least - least / 32, least / 2, 0] {
                let error = actor.call_wave("", "f", &format!("{depth}, 1")).await.unwrap_err();
                let CallError::Trapped(message) = &error else { panic!("{error:?}") };
                assert!(message.contains("of call stack") && message.contains("raise limits.stack"), "{message}");
            }
            assert_eq!(actor.call_wave("", "f", "7, 0").await.unwrap(), "7");
        }
    }
}

#[tokio::test]
async fn requests_run_on_a_larger_stack_as_on_the_usual_one() {
    let world = World::new();
    for bytes in [hello(), committed("tests/guests/later/later.wasm")] {
        let limits = Limits { stack_bytes: 2 << 20, reuse: 3, ..Limits::default() };
        let actor = world.actor(bytes, Spec { limits, ..world.spec() }).await;
        for _ in 0..7 {
            assert!(text(actor.http(get("/"), None).await).await.starts_with("Hello"));
        }
        assert!(actor.drain(Duration::from_secs(10)).await);
    }
    // Its clock ticks too.
    let limits = Limits { stack_bytes: 2 << 20, cpu_ms: 100, ..Limits::default() };
    let actor = world.actor(hostile(), Spec { limits, ..world.spec() }).await;
    let error = actor.http(get("/loop"), None).await.unwrap_err().to_string();
    assert!(error.contains("used up its 100 ms of processor time"), "{error}");
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
