//! The client against both brokers: each test runs on the embedded one and on a real nats-server.
#![allow(clippy::unwrap_used, reason = "tests and their helpers")]

macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod embedded {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$name(super::Kind::Embedded).await })*
        }
        mod nats_server {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$name(super::Kind::NatsServer).await })*
        }
    };
}

mod credentials;
mod started;
mod streams;
mod tls;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bus::{Bus, Config, Connection, Error, Headers, Reason, Refusal, Reply, Request};
use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::timeout;

use started::{Kind, PATIENCE, Started, wait_for};

const SECOND: Duration = Duration::from_secs(1);

on_both![
    calls_carry_headers_payload_and_refusals,
    nobody_to_answer_is_known_at_once,
    five_megabytes_travel_both_ways,
    many_large_calls_at_once_cut_nobody_off,
    more_than_the_bound_is_refused,
    a_handler_ends_at_its_callers_deadline,
    a_panic_hurts_its_own_call_only,
    a_group_shares_the_calls,
    handlers_wait_and_then_are_refused,
    draining_waits_and_dropping_unsubscribes,
    everything_lives_again_after_the_broker_did,
    nothing_is_kept_while_down,
    garbage_is_dropped_and_counted,
    a_request_that_comes_again_is_not_carried_out_again,
    headers_that_kill_the_client_library_do_not_kill_us,
    a_subscription_that_is_not_read_is_bounded,
    a_wrong_token_is_told,
    closing_ends_what_listens,
    bad_subjects_and_headers_are_refused_here,
];

async fn calls_carry_headers_payload_and_refusals(kind: Kind) {
    let broker = Started::on(kind, None).await;
    let (a, b) = (broker.bus().await, broker.bus().await);
    let _serving = b
        .serve("echo".into(), None, 8, |request: Request| async move {
            if request.payload.is_empty() {
                return Err(Refusal { code: "empty".into(), message: "nothing to echo:\nsend something".into() });
            }
            assert!(request.deadline <= Instant::now() + PATIENCE);
            Ok(Reply { headers: request.headers, payload: request.payload })
        })
        .await
        .unwrap();
    let headers: Headers = [("traceparent".to_owned(), "00-4bf92f-00f067-01".to_owned())].into();
    let reply = a.call("echo".into(), headers.clone(), Bytes::from_static(b"hi"), PATIENCE).await.unwrap();
    assert_eq!(reply, Reply { headers, payload: Bytes::from_static(b"hi") });
    let error = call(&a, "echo", b"").await.unwrap_err();
    assert_eq!(error, Error::Refused { code: "empty".into(), message: "nothing to echo: send something".into() });
    // Both ways at once, and to oneself.
    let _back = a.serve("back".into(), None, 8, |_| async { Ok(Reply::default()) }).await.unwrap();
    let (there, back, own) = tokio::join!(call(&a, "echo", b"1"), call(&b, "back", b"2"), call(&b, "echo", b"3"));
    assert_eq!((there.unwrap(), back.unwrap(), own.unwrap()), ("1".into(), "".into(), "3".into()));
    assert_eq!((a.drops().total(), b.drops().total()), (0, 0));
}

async fn nobody_to_answer_is_known_at_once(kind: Kind) {
    let broker = Started::on(kind, None).await;
    let bus = broker.bus().await;
    let began = Instant::now();
    let error = call(&bus, "nobody.home", b"x").await.unwrap_err();
    assert_eq!(error, Error::NoResponders { subject: "nobody.home".into() });
    assert!(error.is_retryable() && error.to_string().contains("nobody.home"));
    let large = bus.call("nobody.home".into(), Headers::new(), megabytes(3, 0), PATIENCE).await;
    assert_eq!(large, Err(Error::NoResponders { subject: "nobody.home".into() }));
    assert!(began.elapsed() < SECOND);
}

async fn five_megabytes_travel_both_ways(kind: Kind) {
    let broker = Started::on(kind, None).await;
    let (a, b) = (broker.bus().await, broker.bus().await);
    let _serving = b
        .serve("turn".into(), None, 4, |request: Request| async move {
            let mut bytes = request.payload.to_vec();
            bytes.reverse();
            Ok(Reply { headers: request.headers, payload: bytes.into() })
        })
        .await
        .unwrap();
    let limit = a.message_bytes_max();
    assert!((900_000..1_048_576).contains(&limit), "{limit}");
    let headers: Headers = [("k".to_owned(), "v".to_owned())].into();
    for len in [0, 1, limit - 1, limit, limit + 1, 1_048_576, 5 * 1_048_576, 5 * 1_048_576 + 17] {
        let sent: Bytes = megabytes(6, 7).slice(..len);
        let reply = a.call("turn".into(), headers.clone(), sent.clone(), PATIENCE).await.unwrap();
        assert_eq!(reply.headers, headers);
        assert!(reply.payload.iter().eq(sent.iter().rev()), "{len} bytes came back wrong");
    }
    assert_eq!((a.drops().total(), b.drops().total()), (0, 0));
}

async fn many_large_calls_at_once_cut_nobody_off(kind: Kind) {
    let broker = Started::on(kind, None).await;
    let (a, b) = (broker.bus().await, broker.bus().await);
    let _serving = b
        .serve("echo".into(), None, 64, |request: Request| async move {
            Ok(Reply { headers: Headers::new(), payload: request.payload })
        })
        .await
        .unwrap();
    let calls = (0..48).map(|n| {
        let a = a.clone();
        async move {
            let sent = megabytes(4, n);
            let reply = a.call("echo".into(), Headers::new(), sent.clone(), PATIENCE * 3).await.unwrap();
            assert!(reply.payload == sent);
        }
    });
    futures::future::join_all(calls).await;
    assert_eq!(a.connection().borrow().count, 1);
    assert_eq!(b.connection().borrow().count, 1);
}

async fn more_than_the_bound_is_refused(kind: Kind) {
    let broker = Started::on(kind, None).await;
    let bus = broker.bus().await;
    let over = bus::CALL_BYTES_MAX + 1;
    let _serving = bus
        .serve("big".into(), None, 4, move |_| async move {
            Ok(Reply { headers: Headers::new(), payload: vec![0; over].into() })
        })
        .await
        .unwrap();
    let error = bus.call("big".into(), Headers::new(), vec![0; over].into(), PATIENCE).await.unwrap_err();
    assert_eq!(error, Error::TooLarge { subject: "big".into(), bytes: over, max: bus::CALL_BYTES_MAX });
    let error = call(&bus, "big", b"x").await.unwrap_err();
    assert!(matches!(&error, Error::Refused { code, .. } if code == "too-large"), "{error}");
    let error = bus.publish("big".into(), vec![0; 2_000_000].into()).await.unwrap_err();
    assert!(matches!(error, Error::TooLarge { .. }), "{error}");
}

async fn a_handler_ends_at_its_callers_deadline(kind: Kind) {
    struct Ends(Arc<Notify>);
    impl Drop for Ends {
        fn drop(&mut self) {
            self.0.notify_one();
        }
    }
    let broker = Started::on(kind, None).await;
    let (a, b) = (broker.bus().await, broker.bus().await);
    let ended = Arc::new(Notify::new());
    let guard = Arc::clone(&ended);
    let _serving = b
        .serve("slow".into(), None, 4, move |_| {
            let ends = Ends(Arc::clone(&guard));
            async move {
                let _ends = ends;
                std::future::pending().await
            }
        })
        .await
        .unwrap();
    let after = Duration::from_millis(200);
    let began = Instant::now();
    let error = a.call("slow".into(), Headers::new(), Bytes::new(), after).await.unwrap_err();
    assert_eq!(error, Error::Deadline { subject: "slow".into(), after });
    assert!(began.elapsed() < SECOND);
    timeout(SECOND, ended.notified()).await.expect("the handler goes on after its deadline");
}

async fn a_panic_hurts_its_own_call_only(kind: Kind) {
    let broker = Started::on(kind, None).await;
    let bus = broker.bus().await;
    let _serving = bus
        .serve("odd".into(), None, 1, |request: Request| {
            assert!(request.payload != "now", "before the first await");
            async move {
                assert!(request.payload != "later", "after it");
                Ok(Reply::default())
            }
        })
        .await
        .unwrap();
    for bad in [b"now".as_slice(), b"later"] {
        let error = call(&bus, "odd", bad).await.unwrap_err();
        assert!(matches!(&error, Error::Refused { code, .. } if code == "panicked"), "{error}");
        call(&bus, "odd", b"fine").await.unwrap();
    }
}

async fn a_group_shares_the_calls(kind: Kind) {
    let broker = Started::on(kind, None).await;
    let caller = broker.bus().await;
    let mut members = Vec::new();
    for _ in 0..3 {
        let bus = broker.bus().await;
        let count = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&count);
        let serving = bus
            .serve("shared".into(), Some("group".into()), 64, move |_| {
                counter.fetch_add(1, Ordering::Relaxed);
                std::future::ready(Ok(Reply::default()))
            })
            .await
            .unwrap();
        members.push((bus, serving, count));
    }
    for _ in 0..300 {
        call(&caller, "shared", b"").await.unwrap();
    }
    let counts: Vec<_> = members.iter().map(|(_, _, count)| count.load(Ordering::Relaxed)).collect();
    assert_eq!(counts.iter().sum::<usize>(), 300);
    assert!(counts.iter().all(|n| *n > 50), "{counts:?}");
    // The others take over from one that leaves, without a call lost.
    members.remove(0).1.drain().await;
    for _ in 0..100 {
        call(&caller, "shared", b"").await.unwrap();
    }
}

async fn handlers_wait_and_then_are_refused(kind: Kind) {
    let broker = Started::on(kind, None).await;
    let (a, b) = (broker.bus().await, broker.bus().await);
    let running = Arc::new(AtomicUsize::new(0));
    let most = Arc::new(AtomicUsize::new(0));
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let _serving = {
        let (running, most, gate) = (Arc::clone(&running), Arc::clone(&most), Arc::clone(&gate));
        b.serve("narrow".into(), None, 2, move |_| {
            let (running, most, gate) = (Arc::clone(&running), Arc::clone(&most), Arc::clone(&gate));
            async move {
                most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                gate.acquire().await.unwrap().forget();
                running.fetch_sub(1, Ordering::SeqCst);
                Ok(Reply::default())
            }
        })
        .await
        .unwrap()
    };
    let mut calls: Vec<_> = (0..10)
        .map(|_| {
            let a = a.clone();
            tokio::spawn(async move { call(&a, "narrow", b"").await })
        })
        .collect();
    // Six of ten are refused while none has been answered.
    let mut refused = 0;
    let began = Instant::now();
    while refused < 6 {
        assert!(began.elapsed() < PATIENCE, "{refused} refused");
        tokio::task::yield_now().await;
        let (done, rest): (Vec<_>, Vec<_>) = calls.into_iter().partition(tokio::task::JoinHandle::is_finished);
        calls = rest;
        for call in done {
            let error = call.await.unwrap().unwrap_err();
            assert!(matches!(&error, Error::Refused { code, .. } if code == "overloaded"), "{error}");
            assert!(error.is_retryable());
            refused += 1;
        }
    }
    assert_eq!(calls.len(), 4);
    gate.add_permits(4);
    for call in calls {
        call.await.unwrap().unwrap();
    }
    assert_eq!(most.load(Ordering::SeqCst), 2);
    assert_eq!(b.drops().get(Reason::Overflow), 6);
}

async fn draining_waits_and_dropping_unsubscribes(kind: Kind) {
    let broker = Started::on(kind, None).await;
    let (a, b) = (broker.bus().await, broker.bus().await);
    let began = Arc::new(Notify::new());
    let signal = Arc::clone(&began);
    let serving = b
        .serve("work".into(), None, 4, move |_| {
            let signal = Arc::clone(&signal);
            async move {
                signal.notify_one();
                tokio::time::sleep(Duration::from_millis(200)).await;
                Ok(Reply { headers: Headers::new(), payload: Bytes::from_static(b"done") })
            }
        })
        .await
        .unwrap();
    let caller = a.clone();
    let running = tokio::spawn(async move { call(&caller, "work", b"").await });
    began.notified().await;
    serving.drain().await;
    assert_eq!(running.await.unwrap().unwrap(), "done");
    assert!(matches!(call(&a, "work", b"").await, Err(Error::NoResponders { .. })));

    let serving = b.serve("work".into(), None, 4, |_| async { Ok(Reply::default()) }).await.unwrap();
    call(&a, "work", b"").await.unwrap();
    drop(serving);
    until(async || matches!(call(&a, "work", b"").await, Err(Error::NoResponders { .. }))).await;
}

async fn everything_lives_again_after_the_broker_did(kind: Kind) {
    let mut broker = Started::on(kind, None).await;
    let (a, b) = (broker.bus().await, broker.bus().await);
    let _serving = b
        .serve("echo".into(), None, 4, |request: Request| async move {
            Ok(Reply { headers: Headers::new(), payload: request.payload })
        })
        .await
        .unwrap();
    let mut events = b.subscribe("evt.>".into()).await.unwrap();
    call(&a, "echo", b"1").await.unwrap();

    broker.stop().await;
    wait_for(&a, |connection| !connection.up).await;
    let caller = a.clone();
    let waiting = tokio::spawn(async move { call(&caller, "echo", b"2").await });
    broker.start().await;
    wait_for(&a, |connection| connection == Connection { up: true, count: 2 }).await;
    wait_for(&b, |connection| connection == Connection { up: true, count: 2 }).await;
    // Sent as soon as the caller was back: the other end may not have been.
    match waiting.await.unwrap() {
        Ok(reply) => assert_eq!(reply, "2"),
        Err(error) => assert!(matches!(error, Error::NoResponders { .. }), "{error}"),
    }
    until(async || call(&a, "echo", b"3").await.is_ok()).await;
    a.publish("evt.x".into(), Bytes::from_static(b"news")).await.unwrap();
    let event = timeout(PATIENCE, events.next()).await.unwrap().unwrap();
    assert_eq!((event.subject.as_str(), event.payload.as_ref()), ("evt.x", b"news".as_slice()));
}

async fn nothing_is_kept_while_down(kind: Kind) {
    let mut broker = Started::on(kind, None).await;
    broker.stop().await;
    let began = Instant::now();
    let bus = Bus::connect(&broker.config()).await.unwrap();
    assert!(began.elapsed() < SECOND);
    assert_eq!(*bus.connection().borrow(), Connection { up: false, count: 0 });
    assert_eq!(bus.publish("a".into(), Bytes::new()).await, Err(Error::Disconnected));
    let after = Duration::from_millis(300);
    let began = Instant::now();
    let result = bus.call("a".into(), Headers::new(), Bytes::new(), after).await;
    assert_eq!(result, Err(Error::Disconnected));
    assert!((after..SECOND).contains(&began.elapsed()), "{:?}", began.elapsed());
    // What listens before the first connection hears after it.
    let _serving = bus.serve("a".into(), None, 1, |_| async { Ok(Reply::default()) }).await.unwrap();
    let mut heard = bus.subscribe("b".into()).await.unwrap();
    broker.start().await;
    call(&bus, "a", b"").await.unwrap();
    bus.publish("b".into(), Bytes::from_static(b"x")).await.unwrap();
    assert_eq!(timeout(PATIENCE, heard.next()).await.unwrap().unwrap().payload, "x");
}

async fn garbage_is_dropped_and_counted(kind: Kind) {
    let broker = Started::on(kind, None).await;
    let bus = broker.bus().await;
    let _serving = bus.serve("in".into(), None, 4, |_| async { Ok(Reply::default()) }).await.unwrap();
    let mut raw = broker.raw().await;
    // Learn the inbox: it is where the answer to us would go.
    raw.write(b"SUB out 1\r\nSUB spy.* 2\r\n").await;
    let headed = |reply: &str, headers: &str, payload: &str| {
        let block = format!("NATS/1.0\r\n{headers}\r\n");
        let total = block.len() + payload.len();
        format!("HPUB in {reply} {} {total}\r\n{block}{payload}\r\n", block.len())
    };
    let long = format!("x: {}\r\n", "y".repeat(20_000));
    let malformed = [
        "PUB in 3\r\nabc\r\n".to_owned(),
        headed("", "Bus-Deadline: soon\r\n", ""),
        headed("out", "Bus-Deadline: soon\r\n", ""),
        headed("out", "Bus-Deadline: -5\r\n", ""),
        headed("out", "Bus-Deadline: 99999999999999999999999\r\n", ""),
        headed("out", "Bus-Size: lots\r\n", ""),
    ];
    let oversized = [headed("out", &long, ""), headed("out", "Bus-Size: 18446744073709551615\r\n", "")];
    for message in malformed.iter().chain(&oversized) {
        raw.write(message.as_bytes()).await;
    }
    until(async || bus.drops().total() >= 8).await;
    assert_eq!(bus.drops().get(Reason::Malformed), u64::try_from(malformed.len()).unwrap());
    assert_eq!(bus.drops().get(Reason::Oversized), 2);
    // A body that is announced and never comes, and one whose pieces make no sense, end in time.
    raw.write(headed("spy.1", "Bus-Deadline: 200\r\nBus-Size: 1000\r\n", "").as_bytes()).await;
    let granted = raw.until("Bus-Grant: 1000").await;
    let line = granted.lines().rfind(|line| line.starts_with("HMSG spy.1")).unwrap();
    let stream = line.split(' ').nth(3).unwrap().to_owned();
    raw.write(format!("PUB {stream} 5\r\nwrong\r\n").as_bytes()).await;
    raw.until("Bus-Refused: bad-request").await;
    // Then the stream is unknown.
    raw.write(format!("PUB {stream} 5\r\nagain\r\n").as_bytes()).await;
    until(async || bus.drops().get(Reason::Stale) == 1).await;
    let inbox = stream.rsplit_once('.').unwrap().0;
    raw.write(format!("PUB {inbox}.garbage 0\r\n\r\nPUB {inbox}.-1 0\r\n\r\n").as_bytes()).await;
    until(async || bus.drops().get(Reason::Malformed) == 9).await;
    assert!(bus.decode::<proto::v1::Beat>(b"\xff\xff\xff").is_none());
    assert_eq!(bus.drops().get(Reason::Malformed), 10);
    call(&bus, "in", b"").await.unwrap();
    assert_eq!(bus.connection().borrow().count, 1);
}

async fn a_request_that_comes_again_is_not_carried_out_again(kind: Kind) {
    let broker = Started::on(kind, None).await;
    let (a, b) = (broker.bus().await, broker.bus().await);
    let carried_out = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&carried_out);
    let handler = move |_| {
        count.fetch_add(1, Ordering::SeqCst);
        async { Ok(Reply::default()) }
    };
    let _serving = b.serve("once".into(), None, 4, handler).await.unwrap();
    let mut raw = broker.raw().await;
    raw.write(b"SUB once 1\r\nPING\r\n").await;
    raw.until("PONG").await;
    for _ in 0..3 {
        call(&a, "once", b"cents").await.unwrap();
    }
    let heard = raw.until("cents").await;
    let inbox = heard.split_whitespace().find(|word| word.starts_with("_INBOX.")).unwrap();
    for n in 1..=5u64 {
        raw.write(format!("PUB once {inbox} 5\r\ncents\r\n").as_bytes()).await;
        until(async || b.drops().get(Reason::Replayed) == n).await;
    }
    assert_eq!(carried_out.load(Ordering::SeqCst), 3);
    call(&a, "once", b"cents").await.unwrap();
    assert_eq!(carried_out.load(Ordering::SeqCst), 4);
}

async fn headers_that_kill_the_client_library_do_not_kill_us(kind: Kind) {
    let broker = Started::on(kind, None).await;
    let (a, b) = (broker.bus().await, broker.bus().await);
    let _serving = b
        .serve("echo".into(), None, 4, |request: Request| async move {
            Ok(Reply { headers: Headers::new(), payload: request.payload })
        })
        .await
        .unwrap();
    let mut heard = b.subscribe("echo".into()).await.unwrap();
    let poisons: [&[u8]; 4] =
        [b"NATS/1.0\r\na: b\rc\r\n\r\n", b"GARBAGE\r\n\r\n", b"NATS/1.0\r\na: \xff\r\n\r\n", b"NATS/1.0 abc\r\n\r\n"];
    for poison in poisons {
        let mut raw = broker.raw().await;
        raw.write(format!("HPUB echo {} {}\r\n", poison.len(), poison.len()).as_bytes()).await;
        raw.write(poison).await;
        raw.write(b"\r\nPING\r\n").await;
        raw.until("PONG").await;
        // Twice in a row, and a little apart: it may work once more before it breaks.
        for _ in 0..2 {
            until(async || quick_call(&a, "echo", b"x").await.is_ok()).await;
        }
    }
    a.publish("echo".into(), Bytes::from_static(b"last")).await.unwrap();
    let last = async { while heard.next().await.unwrap().payload != "last" {} };
    timeout(PATIENCE, last).await.unwrap();
}

async fn a_subscription_that_is_not_read_is_bounded(kind: Kind) {
    let broker = Started::on(kind, None).await;
    let (a, b) = (broker.bus().await, broker.bus().await);
    let mut many = b.subscribe("many".into()).await.unwrap();
    let mut other = b.subscribe("other".into()).await.unwrap();
    for _ in 0..20_000 {
        a.publish("many".into(), Bytes::from_static(b"x")).await.unwrap();
    }
    a.publish("other".into(), Bytes::from_static(b"x")).await.unwrap();
    timeout(PATIENCE, other.next()).await.unwrap().unwrap();
    until(async || b.drops().get(Reason::Overflow) > 0).await;
    // Those before the bound are there; then it goes on. While some still come, one more may be one too many.
    for _ in 0..8_000 {
        timeout(PATIENCE, many.next()).await.unwrap().unwrap();
    }
    let (mut more, began) = (0, Instant::now());
    loop {
        match timeout(Duration::from_millis(50), many.next()).await {
            Ok(message) if message.as_ref().unwrap().payload == "last" => break,
            Ok(_) => more += 1,
            Err(_) => a.publish("many".into(), Bytes::from_static(b"last")).await.unwrap(),
        }
        assert!(began.elapsed() < PATIENCE, "nothing comes any more, after {more}");
    }
    assert!(more < 10_000, "{more}");
}

async fn a_wrong_token_is_told(kind: Kind) {
    let broker = Started::on(kind, Some("secret")).await;
    let right = broker.bus().await;
    right.publish("a".into(), Bytes::new()).await.unwrap();
    let wrong = Bus::connect(&Config { token: Some("wrong".into()), ..broker.config() }).await.unwrap();
    until(async || wrong.problem().is_some_and(|problem| problem.contains("authorization violation"))).await;
    assert!(!wrong.connection().borrow().up);
    assert_eq!(right.problem(), None);
}

async fn closing_ends_what_listens(kind: Kind) {
    let broker = Started::on(kind, None).await;
    let (a, b) = (broker.bus().await, broker.bus().await);
    let mut heard = b.subscribe("a".into()).await.unwrap();
    let serving = b.serve("c".into(), None, 1, |_| async { Ok(Reply::default()) }).await.unwrap();
    let _stuck = a.serve("stuck".into(), None, 1, |_| std::future::pending()).await.unwrap();
    let caller = b.clone();
    let waiting = tokio::spawn(async move { call(&caller, "stuck", b"").await });
    a.publish("a".into(), Bytes::from_static(b"last")).await.unwrap();
    a.close().await;
    assert_eq!(heard.next().await.unwrap().payload, "last");
    timeout(PATIENCE, b.close()).await.unwrap();
    let waited = timeout(SECOND, waiting).await.unwrap().unwrap();
    assert!(matches!(waited, Err(Error::Closed | Error::NoResponders { .. })), "{waited:?}");
    assert_eq!(heard.next().await, None);
    assert_eq!(b.publish("a".into(), Bytes::new()).await, Err(Error::Closed));
    assert_eq!(call(&b, "a", b"").await, Err(Error::Closed));
    assert!(b.subscribe("a".into()).await.is_err());
    timeout(PATIENCE, serving.drain()).await.unwrap();
}

async fn bad_subjects_and_headers_are_refused_here(kind: Kind) {
    let broker = Started::on(kind, None).await;
    let bus = broker.bus().await;
    for bad in ["", "a b", "a..b", "a.*", "a\r\nPUB x 0"] {
        assert!(matches!(bus.publish(bad.into(), Bytes::new()).await, Err(Error::Subject { .. })), "{bad:?}");
        assert!(matches!(call(&bus, bad, b"").await, Err(Error::Subject { .. })), "{bad:?}");
    }
    for bad in ["", "a b", "a..b", "a.>.b"] {
        assert!(bus.subscribe(bad.into()).await.is_err(), "{bad:?}");
        assert!(bus.serve(bad.into(), None, 1, |_| async { Ok(Reply::default()) }).await.is_err(), "{bad:?}");
    }
    let headers: Headers = [("x".to_owned(), "a\r\nb".to_owned())].into();
    assert!(matches!(bus.call("a".into(), headers, Bytes::new(), SECOND).await, Err(Error::Header { .. })));
}

async fn call(bus: &Bus, subject: &str, payload: &[u8]) -> Result<Bytes, Error> {
    bus.call(subject.into(), Headers::new(), Bytes::copy_from_slice(payload), PATIENCE).await.map(|r| r.payload)
}

async fn quick_call(bus: &Bus, subject: &str, payload: &'static [u8]) -> Result<Reply, Error> {
    bus.call(subject.into(), Headers::new(), Bytes::from_static(payload), Duration::from_millis(250)).await
}

async fn until(mut is_so: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !is_so().await {
        assert!(began.elapsed() < PATIENCE, "it never was so");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Bytes that do not repeat within a chunk.
fn megabytes(n: usize, seed: u32) -> Bytes {
    let words = (0..u32::try_from(n * 1_048_576 / 4).unwrap()).map(|word| word.wrapping_mul(2_654_435_761) ^ seed);
    words.flat_map(u32::to_le_bytes).collect::<Vec<u8>>().into()
}
