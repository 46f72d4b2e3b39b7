//! Guests that trap, loop, grow and recurse: their caller is told in time, their neighbours do not notice.

use super::*;
use crate::holding::{Holding, now_ms};
use hyper::body::Body as _;
use proto::app::Limits;
use std::time::{Duration, Instant};

fn limits(deadline_ms: u64) -> Limits {
    Limits { deadline_ms, ..Limits::default() }
}

#[tokio::test]
async fn a_trap_names_its_reason_and_the_next_request_is_served() {
    let world = World::new();
    let actor = world.actor(hostile(), world.spec()).await;
    let error = actor.http(get("/trap"), None).await.unwrap_err();
    let CallError::Trapped(message) = &error else { panic!("{error:?}") };
    assert!(message.starts_with("actor shop/cart trapped: wasm `unreachable` instruction executed"), "{message}");
    assert!(message.contains(" in function "), "{message}");
    let error = actor.http(get("/panic"), None).await.unwrap_err();
    assert!(matches!(error, CallError::Trapped(_)), "{error:?}");
    let error = actor.http(get("/silent"), None).await.unwrap_err();
    assert_eq!(error, CallError::Trapped("actor shop/cart ended without a response".into()));
    assert!(text(actor.http(get("/"), None).await).await.contains("/trap"));
    // What broke before begins in the back now, and ends there a moment after its answer.
    assert!(actor.drain(Duration::from_secs(10)).await);
    let stats = actor.stats();
    assert_eq!((stats.requests, stats.errors, stats.in_flight, stats.queued), (4, 3, 0, 0));
    assert!(world.lines.0.lock().unwrap().iter().any(|(s, t)| s == "error" && t.contains("trapped")));
}

/// On one thread: a guest that never ends must give way by itself.
#[tokio::test]
async fn an_endless_loop_ends_at_its_deadline_while_a_neighbour_answers() {
    let world = World::new();
    let looping = world.actor(hostile(), Spec { limits: limits(300), ..world.spec() }).await;
    let hello = world.actor(hello(), world.spec()).await;
    let began = Instant::now();
    let answers = async {
        let mut answers = 0;
        while began.elapsed() < Duration::from_millis(250) {
            assert_eq!(text(hello.http(get("/"), None).await).await, "Hello from lattice!\n");
            answers += 1;
        }
        answers
    };
    let (looped, answers) = tokio::join!(looping.http(get("/loop"), None), answers);
    assert!(answers >= 3, "{answers} answers");
    let CallError::Deadline(message) = looped.unwrap_err() else { panic!("not a deadline") };
    assert_eq!(message, "actor shop/cart ran past its 300 ms deadline; raise limits.deadline or make it answer sooner");
    assert!(began.elapsed() < Duration::from_secs(5));
    // It ends where it runs, at its next turn.
    assert!(looping.drain(Duration::from_secs(10)).await);
}

/// A task that has used up its turn is put off by whatever it awaits; no answer may be lost over that.
#[tokio::test]
async fn many_requests_of_one_task_are_all_answered() {
    let world = World::new();
    let actor = world.actor(hello(), world.spec()).await;
    for _ in 0..1_000 {
        assert_eq!(text(actor.http(get("/"), None).await).await, "Hello from lattice!\n");
    }
    assert_eq!(actor.stats().errors, 0);
}

#[tokio::test]
async fn a_shorter_deadline_of_the_caller_holds() {
    let world = World::new();
    let actor = world.actor(hostile(), world.spec()).await;
    let began = Instant::now();
    let error = actor.http(get("/sleep?ms=60000"), Some(Duration::from_millis(50))).await.unwrap_err();
    assert!(matches!(error, CallError::Deadline(_)), "{error:?}");
    assert!(began.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn what_is_strict_runs_while_the_host_has_its_lease() {
    let world = World::new();
    let holding = Holding::default();
    let actor = world.actor(hostile(), Spec { holding: Some(holding.clone()), ..world.spec() }).await;
    let refused = actor.http(get("/"), None).await.unwrap_err();
    assert!(matches!(&refused, CallError::Unavailable(why) if why.contains("shop/cart is strict")), "{refused:?}");
    holding.set(now_ms() + 300);
    let ended = actor.http(get("/sleep?ms=60000"), None).await.unwrap_err();
    assert!(matches!(&ended, CallError::Unavailable(why) if why.contains("strict")), "{ended:?}");
    let looped = || actor.http(get("/loop"), None);
    holding.set(now_ms() + 300);
    let ended = looped().await.unwrap_err();
    assert!(matches!(&ended, CallError::Unavailable(_)), "{ended:?}");
    // A lease that goes on carries what began under the one before.
    holding.set(now_ms() + 500);
    let slow = actor.http(get("/sleep?ms=1500"), None);
    let renewed = async {
        for _ in 0..40 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            holding.set(now_ms() + 2_000);
        }
    };
    let (answer, ()) = tokio::join!(slow, renewed);
    assert_eq!(answer.unwrap().status(), 200);
}

#[tokio::test]
async fn memory_ends_at_the_limit_and_is_given_back() {
    let world = World::new();
    let limits = Limits { memory_bytes: 8 << 20, deadline_ms: 5000, ..Limits::default() };
    let actor = world.actor(hostile(), Spec { limits, ..world.spec() }).await;
    let refused = text(actor.http(get("/memory"), None).await).await;
    let mib =
        refused.strip_prefix("denied: memory, after ").unwrap().split(' ').next().unwrap().parse::<u32>().unwrap();
    assert!((5..8).contains(&mib), "{refused}");
    let error = actor.http(get("/memory?then=abort"), None).await.unwrap_err();
    let CallError::Trapped(message) = error else { panic!("{error:?}") };
    assert!(message.contains("wanted more than its 8 MiB of memory; raise limits.memory"), "{message}");
    assert_eq!(world.engine.memory_bytes().0, 0);
    // What does not even fit at the start is told the same way.
    let limits = Limits { memory_bytes: 65_536, ..Limits::default() };
    let small = world.actor(hostile(), Spec { limits, ..world.spec() }).await;
    let error = small.http(get("/"), None).await.unwrap_err();
    assert!(error.to_string().contains("raise limits.memory"), "{error}");
}

#[tokio::test]
async fn the_memory_of_all_instances_together_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::new(Config { memory_bytes: 4 << 20, ..config(&dir) }).unwrap();
    let world = World { engine, dir, lines: Arc::default() };
    let actor = world.actor(hostile(), world.spec()).await;
    let error = actor.http(get("/memory?then=abort"), None).await.unwrap_err();
    let CallError::Overloaded(message) = error else { panic!("{error:?}") };
    assert!(message.contains("of this host's memory for actors, as much as is left for all others"), "{message}");
    assert!(text(actor.http(get("/"), None).await).await.contains("/trap"));
}

#[tokio::test]
async fn endless_recursion_is_a_trap() {
    let world = World::new();
    let actor = world.actor(hostile(), world.spec()).await;
    let error = actor.http(get("/recurse"), None).await.unwrap_err();
    // A Rust guest keeps a stack of its own in its memory: which of the two ends first is its business.
    let CallError::Trapped(message) = error else { panic!("{error:?}") };
    assert!(message.contains("of call stack") || message.contains("out of bounds"), "{message}");
}

#[tokio::test]
async fn a_body_that_breaks_off_ends_with_an_error() {
    let world = World::new();
    let actor = world.actor(hostile(), world.spec()).await;
    let response = actor.http(get("/cut"), None).await.unwrap();
    let broken = response.into_body().collect().await.unwrap_err();
    assert!(broken.to_string().contains("actor shop/cart trapped"), "{broken}");
    assert_eq!(actor.stats().errors, 1);
}

#[tokio::test]
async fn an_answer_that_is_there_in_one_piece_says_how_long_it_is() {
    let world = World::new();
    let actor = world.actor(hostile(), world.spec()).await;
    let body = actor.http(get("/"), None).await.unwrap().into_body();
    let told = body.size_hint().exact();
    let bytes = body.collect().await.unwrap().to_bytes();
    assert_eq!(told, u64::try_from(bytes.len()).ok());
    assert!(!bytes.is_empty());
    // What is still being written, or broke off, does not.
    for path in ["/body?bytes=20000000", "/cut"] {
        let body = actor.http(get(path), None).await.unwrap().into_body();
        assert_eq!(body.size_hint().exact(), None, "{path}");
    }
}

#[tokio::test]
async fn bodies_stream_both_ways_within_the_deadline() {
    let world = World::new();
    let actor = world.actor(hostile(), world.spec()).await;
    assert_eq!(text(actor.http(post("/echo", "there and back"), None).await).await, "there and back");
    let big = actor.http(get("/body?bytes=20000000"), None).await.unwrap();
    assert_eq!(big.into_body().collect().await.unwrap().to_bytes().len(), 20_000_000);
    // Nobody reads: the guest is held back, then stopped, and the body says so.
    let slow = world.actor(hostile(), Spec { limits: limits(200), ..world.spec() }).await;
    let mut body = slow.http(get("/body?bytes=200000000"), None).await.unwrap().into_body();
    slow.drain(Duration::from_secs(10)).await;
    let mut bytes = 0;
    let error = loop {
        match body.frame().await.unwrap() {
            Ok(frame) => bytes += frame.into_data().unwrap().len(),
            Err(e) => break e,
        }
    };
    assert!(bytes < 8 << 20, "{bytes} bytes were buffered");
    assert!(error.to_string().contains("deadline"), "{error}");
}

#[tokio::test]
async fn the_queue_is_bounded_and_a_drain_waits() {
    let world = World::new();
    let limits = Limits { queue_len_max: 1, deadline_ms: 10_000, ..Limits::default() };
    let actor = world.actor(hostile(), Spec { replicas: 1, limits, ..world.spec() }).await;
    let one = actor.http(get("/sleep?ms=300"), None);
    let two = actor.http(get("/sleep?ms=1"), None);
    let three = async {
        while actor.stats().queued == 0 {
            tokio::task::yield_now().await;
        }
        let refused = actor.http(get("/"), None).await.unwrap_err();
        let drained = actor.drain(Duration::from_secs(10)).await;
        (refused, drained)
    };
    let (one, two, (refused, drained)) = tokio::join!(one, two, three);
    assert_eq!(
        refused,
        CallError::Overloaded("actor shop/cart: 1 invocations wait already; scale it up or raise limits.queue".into())
    );
    assert!(one.is_ok() && two.is_ok() && drained);
    let error = actor.http(get("/"), None).await.unwrap_err();
    assert!(matches!(error, CallError::Unavailable(_)), "{error:?}");
}

#[tokio::test]
async fn oversized_and_nameless_requests_are_refused() {
    let world = World::new();
    let actor = world.actor(hello(), world.spec()).await;
    let mut many = get("/");
    for n in 0..300 {
        many.headers_mut().append("x-many", n.into());
    }
    assert!(matches!(actor.http(many, None).await, Err(CallError::TooLarge(_))));
    let mut nameless = get("/");
    nameless.headers_mut().clear();
    assert!(matches!(actor.http(nameless, None).await, Err(CallError::Invalid(_))));
    assert_eq!(actor.stats().errors, 2);
}

#[tokio::test]
async fn output_is_cut_into_lines_and_bounded() {
    let world = World::new();
    let actor = world.actor(hostile(), world.spec()).await;
    assert_eq!(text(actor.http(get("/log?text=hi"), None).await).await, "logged\n");
    {
        let lines = world.lines.0.lock().unwrap();
        assert!(lines.contains(&("stdout".into(), "stdout hi".into())), "{lines:?}");
        assert!(lines.contains(&("stderr".into(), "stderr hi".into())), "{lines:?}");
        assert!(lines.contains(&("warn".into(), "hostile: hi".into())), "{lines:?}");
    }
    assert_eq!(text(actor.http(get("/config?key=color"), None).await).await, "color=green\n");
    let env = actor.shared.env.clone();
    world.lines.0.lock().unwrap().clear();
    let log = crate::engine::output::Log::new(env, 7);
    let stream = crate::engine::output::Stream::new(&log, "stdout");
    let mut out = wasmtime_wasi::cli::StdoutStream::p2_stream(&stream);
    out.write(Bytes::from(vec![b'x'; 20_000])).unwrap();
    for _ in 0..2_000 {
        out.write(Bytes::from_static(b"\n")).unwrap();
    }
    let lines = world.lines.0.lock().unwrap();
    assert_eq!(lines.len(), 1_001);
    assert_eq!(lines.iter().take(3).map(|(_, t)| t.len()).collect::<Vec<_>>(), [8192, 8192, 3616]);
    assert!(lines[1000].1.contains("dropped"));
}

/// Memory of this process, in bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[tokio::test]
async fn what_the_host_keeps_for_a_guest_is_the_guests_memory() {
    let world = World::new();
    let limits = Limits { memory_bytes: 32 << 20, ..limits(20_000) };
    let actor = world.actor(hostile(), Spec { limits, ..world.spec() }).await;
    actor.http(get("/"), None).await.unwrap();
    let before = resident();
    for of in ["headers", "bodies"] {
        let CallError::Trapped(message) = actor.http(get(&format!("/hoard?of={of}")), None).await.unwrap_err() else {
            panic!("{of} is no trap")
        };
        assert!(message.contains("wanted more than its 32 MiB of memory; raise limits.memory"), "{of}: {message}");
        assert_eq!(world.engine.memory_bytes().0, 0, "{of}");
    }
    // Its limit each time, and what else this process does meanwhile.
    let more = resident().saturating_sub(before);
    assert!(more < 512 << 20, "{more} bytes more");
}

#[tokio::test]
async fn what_a_guest_hoards_or_passes_at_once_is_bounded() {
    let world = World::new();
    let actor = world.actor(hostile(), Spec { limits: limits(20_000), ..world.spec() }).await;
    let error = actor.http(get("/hoard?of=handles"), None).await.unwrap_err().to_string();
    assert!(error.contains("actor shop/cart has more than 1024 handles; drop those that are done with"), "{error}");
    let error = actor.http(get("/hoard?of=bytes"), None).await.unwrap_err().to_string();
    assert!(error.contains("actor shop/cart passed too much to the host in one call; pass it in pieces"), "{error}");
    assert_eq!(text(actor.http(get("/hoard?of=targets"), None).await).await, "denied: an authority of 1 MiB\n");
}

/// Everything of one actor waits, for as long as it may; another is answered.
#[tokio::test]
async fn one_actor_takes_neither_all_instances_nor_all_memory() {
    let world = World::new();
    let slots = world.engine.instances_max();
    let limits = Limits { queue_len_max: 500, deadline_ms: 3_600_000, ..Limits::default() };
    let greedy = world.actor(hostile(), Spec { replicas: 1_000, limits: limits.clone(), ..world.spec() }).await;
    let other = Spec { app: "other".parse().unwrap(), limits: Limits { queue_len_max: 0, ..limits }, ..world.spec() };
    let neighbour = world.actor(hello(), other).await;
    let mut sleeping = tokio::task::JoinSet::new();
    for _ in 0..1_000 {
        let greedy = greedy.clone();
        sleeping.spawn(async move { greedy.http(get("/sleep?ms=3600000"), None).await.map(drop) });
    }
    // As many as it may have run, as many as may wait do, and the rest is refused.
    let refused = 1_000 - 500 - (slots / 2 + 1);
    for _ in 0..refused {
        let error = sleeping.join_next().await.unwrap().unwrap().unwrap_err();
        let CallError::Overloaded(message) = &error else { panic!("{error:?}") };
        assert!(
            message.contains("of the 64 instances that this host can run, as many as are left for all"),
            "{message}"
        );
    }
    assert_eq!(greedy.stats().in_flight, 500 + slots / 2 + 1);
    for _ in 0..20 {
        assert_eq!(text(neighbour.http(get("/"), None).await).await, "Hello from lattice!\n");
    }
    assert_eq!(neighbour.stats().errors, 0);
    sleeping.abort_all();
    while sleeping.join_next().await.is_some() {}
}

/// A few that have much, and one that has little.
#[tokio::test]
async fn memory_is_left_for_others() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::new(Config { memory_bytes: 64 << 20, ..config(&dir) }).unwrap();
    let world = World { engine, dir, lines: Arc::default() };
    let greedy = world.actor(hostile(), Spec { limits: limits(60_000), ..world.spec() }).await;
    let neighbour = world.actor(hello(), Spec { app: "other".parse().unwrap(), ..world.spec() }).await;
    let takes_all = greedy.http(get("/memory?then=loop"), None);
    let asked = async {
        // Until it has all that it may have.
        while world.engine.memory_bytes().0 <= 32 << 20 {
            tokio::task::yield_now().await;
        }
        for _ in 0..20 {
            assert_eq!(text(neighbour.http(get("/"), None).await).await, "Hello from lattice!\n");
        }
    };
    tokio::select! {
        ended = takes_all => panic!("{ended:?}"),
        () = asked => {}
    }
}
