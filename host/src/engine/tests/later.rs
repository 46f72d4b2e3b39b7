//! WASI 0.3: a real component is served, and what is not granted it does not get, one thing after another.

use super::*;
use proto::app::{Folder, Grants, Limits, Random};
use std::time::{Duration, Instant};

fn later() -> Vec<u8> {
    committed("tests/guests/later/later.wasm")
}

async fn say(world: &World, grants: Grants, path: &str) -> String {
    let actor = world.actor(later(), Spec { grants, ..world.spec() }).await;
    match actor.http(get(path), None).await {
        Ok(response) => text(Ok(response)).await,
        Err(e) => format!("error: {e}"),
    }
}

#[tokio::test]
async fn it_answers_and_gives_bodies_back() {
    let world = World::new();
    let actor = world.actor(later(), world.spec()).await;
    assert_eq!(text(actor.http(get("/"), None).await).await, "Hello from WASI 0.3!\n");
    let text_sent: &str = "some text, ".repeat(100_000).leak();
    assert_eq!(text(actor.http(post("/echo", text_sent), None).await).await, text_sent);
    assert_eq!(text(actor.http(post("/echo", ""), None).await).await, "");
    let error = actor.http(get("/error"), None).await.unwrap_err().to_string();
    assert!(error.starts_with("actor shop/cart answered with an error: "), "{error}");
    assert!(error.contains("ConfigurationError"), "{error}");
    // It waits without holding up anybody, on one thread.
    let began = Instant::now();
    let waits = (0..5).map(|_| async { text(actor.http(get("/wait?300"), None).await).await });
    for waited in futures::future::join_all(waits).await {
        let ms: u64 = waited.strip_prefix("waited ").and_then(|w| w.strip_suffix(" ms\n")?.parse().ok()).unwrap();
        assert!((299..2_000).contains(&ms), "{waited}");
    }
    assert!(began.elapsed() < Duration::from_millis(1_400), "one after the other: {:?}", began.elapsed());
    assert!(text(actor.http(get("/print?so"), None).await).await == "printed\n");
    assert!(actor.drain(Duration::from_secs(10)).await);
    assert!(world.lines.0.lock().unwrap().contains(&("stdout".to_owned(), "printed so".to_owned())));
    assert_eq!((actor.stats().errors, actor.stats().in_flight), (1, 0));
}

#[tokio::test]
async fn many_requests_are_in_one_instance_at_once() {
    let world = World::new();
    let limits = Limits { reuse: 20, concurrency: 8, deadline_ms: 4_000, ..Limits::default() };
    let actor = world.actor(later(), Spec { replicas: 1, limits, ..world.spec() }).await;
    let say = async |path: &str| match actor.http(get(path), None).await {
        Ok(response) => response
            .into_body()
            .collect()
            .await
            .map_or_else(|e| format!("broken: {e}"), |body| String::from_utf8(body.to_bytes().to_vec()).unwrap()),
        Err(e) => format!("error: {e}"),
    };
    // Eight wait in one instance, and it counts them.
    let began = Instant::now();
    let waits = futures::future::join_all((0..8).map(|_| say("/wait?400"))).await;
    assert!(waits.iter().all(|waited| waited.starts_with("waited ")), "{waits:?}");
    assert!(began.elapsed() < Duration::from_millis(2_400), "one after the other: {:?}", began.elapsed());
    assert_eq!(say("/count").await, "1\n");
    assert_eq!(say("/count").await, "2\n", "an instance of its own");
    // The twentieth is its last.
    for n in 3..=12 {
        assert_eq!(say("/count").await, format!("{n}\n"));
    }
    assert_eq!(say("/count").await, "1\n", "it took more than limits.reuse");

    // A body stays in its seat, and comes whole beside others.
    let text_sent: &str = "some text, ".repeat(50_000).leak();
    let echoes = (0..4).map(|_| async { text(actor.http(post("/echo", text_sent), None).await).await });
    assert!(futures::future::join_all(echoes).await.iter().all(|echoed| echoed == text_sent));

    // A trap ends those that are in there with it, and nobody else.
    let (waited, trapped) = tokio::join!(say("/wait?2000"), async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        say("/trap").await
    });
    assert!(trapped.contains("trapped: ") && waited == trapped, "{waited}; {trapped}");
    assert_eq!(say("/count").await, "1\n");
    // One that is late takes nobody along, and its instance gets no other.
    let (late, waited) = tokio::join!(say("/wait?60000"), say("/wait?1000"));
    assert!(late.contains("ran past its 4 s deadline") && waited.starts_with("waited "), "{late}; {waited}");
    assert_eq!(say("/count").await, "1\n");
    assert!(actor.drain(Duration::from_secs(10)).await);
    assert_eq!(actor.stats().in_flight, 0);
}

#[tokio::test]
async fn a_loop_among_many_is_ended() {
    let world = World::new();
    let limits = Limits { reuse: 20, concurrency: 8, cpu_ms: 300, ..Limits::default() };
    let actor = world.actor(later(), Spec { replicas: 1, limits, ..world.spec() }).await;
    let error = actor.http(get("/loop"), None).await.unwrap_err().to_string();
    assert!(error.contains("used up its 300 ms of processor time"), "{error}");
    assert_eq!(text(actor.http(get("/"), None).await).await, "Hello from WASI 0.3!\n");
}

/// The next host process finds the compiled code, and one that has no such component makes no second engine.
#[tokio::test]
async fn its_code_is_kept_apart_from_that_of_the_other_engine() {
    let world = World::new();
    assert_eq!(say(&world, Grants::default(), "/").await, "Hello from WASI 0.3!\n");
    let plain = world.actor(hello(), world.spec()).await;
    assert_eq!(text(plain.http(get("/"), None).await).await, "Hello from lattice!\n");
    let compiled = || {
        let files = std::fs::read_dir(world.dir.path().join("cache")).unwrap();
        files.filter(|f| f.as_ref().unwrap().path().extension().is_some_and(|e| e == "cwasm")).count()
    };
    assert_eq!(compiled(), 2);
    let again = World { engine: Engine::new(config(&world.dir)).unwrap(), ..world };
    assert_eq!(say(&again, Grants::default(), "/").await, "Hello from WASI 0.3!\n");
}

#[tokio::test]
async fn nothing_is_granted_by_default() {
    let world = World::new();
    let none = Grants::default;
    assert_eq!(say(&world, none(), "/env").await, "[] []\n");
    assert_eq!(say(&world, none(), "/folders").await, "0\n");
    assert_eq!(say(&world, none(), "/tick").await, "false\n", "a clock finer than a millisecond");
    for (path, says) in [
        ("/ask?127.0.0.1:1", "HttpRequestDenied"),
        ("/tcp?1", "AccessDenied"),
        ("/udp", "AccessDenied"),
        // Nothing was looked up: this machine knows that name.
        ("/lookup?localhost", "PermanentResolverFailure"),
    ] {
        let said = say(&world, none(), path).await;
        assert!(said.contains(says), "{path}: {said}");
    }
    for (path, function, grant) in [
        ("/time", "wasi:clocks/system-clock.now", "(grants.clocks.wall): add `clocks: {wall: true}`"),
        ("/resolution", "wasi:clocks/system-clock.get-resolution", "(grants.clocks.wall)"),
        ("/random", "wasi:random/random.get-random-bytes", "(grants.random): add `random: true`"),
        ("/number", "wasi:random/random.get-random-u64", "(grants.random)"),
        ("/insecure", "wasi:random/insecure.get-insecure-random-bytes", "(grants.random)"),
        ("/insecure-number", "wasi:random/insecure.get-insecure-random-u64", "(grants.random)"),
        ("/exit", "wasi:cli/exit.exit-with-code", "(grants.exit): add `exit: true`"),
    ] {
        let said = say(&world, none(), path).await;
        let wanted = format!("error: actor shop/cart called {function} without a grant {grant}");
        assert!(said.starts_with(&wanted), "{path}: {said}");
    }
}

#[tokio::test]
async fn what_is_granted_is_there() {
    let world = World::new();
    let addr = server();
    let grants = Grants {
        env: BTreeMap::from([("MODE".to_owned(), "test".to_owned())]),
        args: vec!["cart".into()],
        http: vec![format!("http://{addr}")],
        folders: vec![Folder { host: world.dir.path().display().to_string(), guest: "/".into(), write: false }],
        tcp: vec![addr.to_string()],
        udp: vec!["127.0.0.0/8".into()],
        lookups: true,
        wall_clock: true,
        random: Some(Random::Seed(7)),
        ..Grants::default()
    };
    let say = async |path: &str| say(&world, grants.clone(), path).await;
    assert_eq!(say("/env").await, "[(\"MODE\", \"test\")] [\"cart\"]\n");
    assert_eq!(say("/folders").await, "1\n");
    assert_eq!(say(&format!("/ask?{addr}")).await, "status 204\n");
    // Another address of the same machine is not.
    let barred = say("/ask?127.0.0.1:1").await;
    assert!(barred.contains("Denied"), "{barred}");
    assert_eq!(say(&format!("/tcp?{}", addr.port())).await, "connected\n");
    let barred = say("/tcp?1").await;
    assert!(barred.contains("AccessDenied"), "{barred}");
    assert_eq!(say("/udp").await, "made\n");
    let found = say("/lookup?localhost").await;
    assert!(found.starts_with("Ok("), "{found}");
    let time: u64 = say("/time").await.strip_suffix(" s\n").unwrap().parse().unwrap();
    assert!(time > 1_700_000_000, "{time}");
    assert_eq!(say("/random").await, say("/random").await, "the same seed");
    assert!(!say("/random").await.starts_with("error"));
}

#[tokio::test]
async fn folders_stdin_and_exit_are_as_they_were_granted() {
    let world = World::new();
    let [kept, made] = ["kept", "made"].map(|name| {
        let folder = world.dir.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        folder
    });
    std::fs::write(kept.join("note"), "noted").unwrap();
    std::fs::write(world.dir.path().join("secret"), "told").unwrap();
    std::os::unix::fs::symlink(world.dir.path().join("secret"), kept.join("link")).unwrap();
    let folder = |host: &std::path::Path, write| Grants {
        folders: vec![Folder { host: host.display().to_string(), guest: "/".into(), write }],
        ..Grants::default()
    };
    assert_eq!(say(&world, Grants::default(), "/read?note").await, "no folder\n");
    assert_eq!(say(&world, folder(&kept, false), "/read?note").await, "noted\n");
    for path in ["/read?../secret", "/read?link", "/read?/etc/passwd", "/write?new=text", "/write?note=text"] {
        let said = say(&world, folder(&kept, false), path).await;
        assert!(said.starts_with("ErrorCode::") || said.starts_with("Error"), "{path}: {said}");
    }
    assert_eq!(std::fs::read_dir(&kept).unwrap().count(), 2);
    assert_eq!(std::fs::read(kept.join("note")).unwrap(), b"noted");
    assert_eq!(say(&world, folder(&made, true), "/write?new=text").await, "written\n");
    assert_eq!(std::fs::read(made.join("new")).unwrap(), b"text");
    assert_eq!(say(&world, folder(&made, true), "/read?new").await, "text\n");

    assert_eq!(say(&world, Grants::default(), "/stdin").await, "read \"\"\n");
    let typed = Grants { stdin: Some("typed".into()), ..Grants::default() };
    assert_eq!(say(&world, typed, "/stdin").await, "read \"typed\"\n");
    let exit = Grants { exit: true, ..Grants::default() };
    let said = say(&world, exit, "/exit?3").await;
    assert_eq!(said, "error: actor shop/cart exited with code 3 before it was done");
}

#[tokio::test]
async fn its_bodies_log_and_requests_out_are_bounded() {
    let world = World::new();
    let of = |limits: Limits| Spec { limits, ..world.spec() };
    let actor = world.actor(later(), of(Limits { request_bytes_max: 1_000, ..Limits::default() })).await;
    let error = actor.http(post("/echo", "x".repeat(1_001).leak()), None).await.unwrap_err();
    let too_large = "the body of a request to actor shop/cart has more than 1000 bytes; raise limits.request";
    assert_eq!(error, CallError::TooLarge(too_large.into()));
    let pieces = (0..20).map(|_| Ok(hyper::body::Frame::data(Bytes::from_static(&[b'x'; 100]))));
    let body = http_body_util::StreamBody::new(futures::stream::iter(pieces)).boxed_unsync();
    let request = http::Request::builder().uri("/echo").header("host", "shop.example").body(body).unwrap();
    let broken = actor.http(request, None).await.unwrap().into_body().collect().await;
    assert!(broken.is_err() || broken.unwrap().to_bytes().len() <= 1_000);

    let actor = world.actor(later(), of(Limits { response_bytes_max: 500, ..Limits::default() })).await;
    assert_eq!(text(actor.http(post("/echo", "x".repeat(500).leak()), None).await).await.len(), 500);
    let broken = actor.http(post("/echo", "x".repeat(501).leak()), None).await.unwrap().into_body().collect().await;
    let error = broken.unwrap_err().to_string();
    assert!(error.contains("has more than 500 bytes; raise limits.response"), "{error}");

    let actor = world.actor(later(), of(Limits { log_bytes_per_s: 1_000, ..Limits::default() })).await;
    let long = format!("/print?{}", "x".repeat(400));
    let begun = Instant::now();
    for _ in 0..20 {
        assert_eq!(text(actor.http(get(&long), None).await).await, "printed\n");
    }
    assert!(actor.drain(Duration::from_secs(10)).await);
    let seconds = usize::try_from(begun.elapsed().as_secs()).unwrap() + 2;
    let lines = std::mem::take(&mut *world.lines.0.lock().unwrap());
    let printed = lines.iter().filter(|(stream, _)| stream == "stdout").count();
    assert!((1..=3 * seconds).contains(&printed), "{printed} in {seconds} s");
    assert!(lines.iter().any(|(stream, text)| stream == "warn" && text.contains("raise limits.log")), "{lines:?}");

    let addr = server();
    let limits = Limits { outgoing_len_max: 0, ..Limits::default() };
    let grants = Grants { http: vec![addr.to_string()], ..Grants::default() };
    let actor = world.actor(later(), Spec { limits, grants, ..world.spec() }).await;
    let said = text(actor.http(get(&format!("/ask?{addr}")), None).await).await;
    assert!(said.contains("ConnectionLimitReached"), "{said}");
    let lines = world.lines.0.lock().unwrap();
    assert!(lines.iter().any(|(_, text)| text.contains("raise limits.outgoing")), "{lines:?}");
}

#[tokio::test]
async fn neither_all_names_nor_a_range_leads_to_this_machine_or_to_the_bus() {
    let (dir, bus, other) = (tempfile::tempdir().unwrap(), server(), server());
    let engine = Engine::new(Config { bus: bus_at(&[bus]), ..config(&dir) }).unwrap();
    let world = World { engine, dir, lines: Arc::default() };
    for (granted, addr, is_reached) in
        [("*", other, false), ("127.0.0.0/8", other, true), ("127.0.0.0/8", bus, false), (&bus.to_string(), bus, true)]
    {
        let granted = vec![granted.to_owned()];
        let grants = Grants { http: granted.clone(), tcp: granted.clone(), ..Grants::default() };
        let said = say(&world, grants.clone(), &format!("/ask?{addr}")).await;
        let denied = said.contains("Denied") || said.contains("Prohibited");
        assert_eq!((said == "status 204\n", denied), (is_reached, !is_reached), "{granted:?} {addr}: {said}");
        let said = say(&world, grants, &format!("/tcp?{}", addr.port())).await;
        assert_eq!(
            (said == "connected\n", said.contains("AccessDenied")),
            (is_reached, !is_reached),
            "{granted:?}: {said}"
        );
    }
}

#[tokio::test]
async fn what_does_not_end_is_ended_with_its_reason() {
    let world = World::new();
    // What computes for long runs only when nothing else does: on a busy machine its time takes long to be used up.
    let limits = Limits { cpu_ms: 300, ..Limits::default() };
    let patient = world.actor(later(), Spec { limits: limits.clone(), ..world.spec() }).await;
    let limits = Limits { deadline_ms: 5_000, ..limits };
    let actor = world.actor(later(), Spec { limits, ..world.spec() }).await;
    for (path, says) in [
        ("/trap", "trapped: "),
        ("/loop", "used up its 300 ms of processor time; raise limits.cpu"),
        ("/memory", "wanted more than its 64 MiB of memory; raise limits.memory"),
        ("/streams", "actor shop/cart "),
        ("/wait?60000", "ran past its 5 s deadline"),
    ] {
        let began = Instant::now();
        let asked = if path.starts_with("/wait") { &actor } else { &patient };
        let error = asked.http(get(path), None).await.unwrap_err().to_string();
        assert!(error.contains(says), "{path}: {error}");
        assert!(began.elapsed() < Duration::from_secs(30), "{path}: {:?}", began.elapsed());
    }
    assert_eq!(text(patient.http(get("/"), None).await).await, "Hello from WASI 0.3!\n");
    assert!(actor.drain(Duration::from_secs(20)).await);
}
