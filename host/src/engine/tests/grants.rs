//! Denied until granted, one thing after another: each is tried by a real component without its grant and with it.

use super::*;
use proto::app::{Folder, Grants, Random};
use proto::policy::Policy;

async fn say(world: &World, grants: Grants, path: &str) -> String {
    let actor = world.actor(hostile(), Spec { grants, ..world.spec() }).await;
    match actor.http(get(path), None).await {
        Ok(response) => text(Ok(response)).await,
        Err(e) => format!("error: {e}"),
    }
}

/// What the actor's log says of a denial.
fn logged(world: &World) -> String {
    let lines = world.lines.0.lock().unwrap();
    lines.iter().filter(|(stream, _)| stream == "warn").map(|(_, text)| text.clone()).collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn nothing_is_granted_by_default() {
    let world = World::new();
    let none = Grants::default;
    assert_eq!(say(&world, none(), "/env").await, "denied: no variables\n0 arguments\n");
    assert_eq!(say(&world, none(), "/stdin").await, "denied: nothing on stdin\n");
    let files = say(&world, none(), "/file").await;
    assert_eq!(files.matches("denied").count(), 3, "{files}");
    assert!(files.ends_with("0 folders\n"), "{files}");
    let addr = server();
    for (path, says, log) in [
        (
            format!("/socket?to={addr}"),
            "denied: connect",
            "wasi:sockets/tcp-create-socket.create-tcp-socket of actor shop/cart is denied",
        ),
        (
            format!("/udp?to={addr}"),
            "denied: send",
            "wasi:sockets/udp-create-socket.create-udp-socket of actor shop/cart is denied",
        ),
        (
            "/lookup?host=localhost".to_owned(),
            "denied: look up",
            "wasi:sockets/ip-name-lookup.resolve-addresses of actor shop/cart is denied",
        ),
        (format!("/out?url=http://{addr}/"), "HttpRequestDenied", "name it in grants.http"),
    ] {
        let said = say(&world, none(), &path).await;
        assert!(said.contains(says), "{path}: {said}");
        assert!(logged(&world).contains(log), "{path}: {}", logged(&world));
    }
    assert!(logged(&world).contains("add `sockets: {lookups: true}` to its grants"), "{}", logged(&world));
    // What has no way to say no ends the invocation, and says what to write.
    for (path, says) in [
        (
            "/time",
            "actor shop/cart called wasi:clocks/wall-clock.now without a grant (grants.clocks.wall): add `clocks: {wall: true}` to its grants trait",
        ),
        (
            "/random",
            "actor shop/cart called wasi:random/random.get-random-u64 without a grant (grants.random): add `random: true` to its grants trait",
        ),
    ] {
        assert_eq!(say(&world, none(), path).await, format!("error: {says}"));
    }
    let actor = world.actor(hostile(), world.spec()).await;
    let broken = actor.http(get("/exit"), None).await.unwrap().into_body().collect().await.unwrap_err().to_string();
    assert!(broken.contains("called wasi:cli/exit.exit without a grant (grants.exit): add `exit: true`"), "{broken}");
}

#[tokio::test]
async fn what_is_granted_is_there() {
    let world = World::new();
    let folder = world.dir.path().join("shared");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("note"), "hi").unwrap();
    let addr = server();
    let grants = Grants {
        env: BTreeMap::from([("MODE".to_owned(), "test".to_owned())]),
        args: vec!["cart".into(), "--fast".into()],
        http: vec![format!("http://{addr}")],
        folders: vec![Folder { host: folder.display().to_string(), guest: "/".into(), write: false }],
        tcp: vec![addr.to_string()],
        udp: vec!["127.0.0.0/8".into()],
        lookups: true,
        wall_clock: true,
        random: Some(Random::System),
        stdin: Some("typed".into()),
        exit: true,
        ..Grants::default()
    };
    let actor = world.actor(hostile(), Spec { grants, ..world.spec() }).await;
    let say = async |path: &str| text(actor.http(get(path), None).await).await;
    assert_eq!(say("/env").await, "MODE=test\nargument cart\nargument --fast\n2 arguments\n");
    assert_eq!(say("/stdin").await, "read \"typed\"\n");
    let files = say("/file?path=/note").await;
    assert!(files.contains("read 2 bytes of /note") && files.contains("denied: write"), "{files}");
    // Nor does a link lead out of it, to a file or by a folder.
    std::fs::write(world.dir.path().join("secret"), "hush").unwrap();
    std::os::unix::fs::symlink(world.dir.path().join("secret"), folder.join("link")).unwrap();
    std::os::unix::fs::symlink("..", folder.join("up")).unwrap();
    for path in ["/link", "/up/secret"] {
        let files = say(&format!("/file?path={path}")).await;
        assert!(files.contains(&format!("denied: read {path}")), "{files}");
    }
    let files = say("/file?path=/../../etc/passwd").await;
    assert!(files.contains("denied: read"), "{files}");
    let socket = say(&format!("/socket?to={addr}")).await;
    assert!(socket.starts_with("connected"), "{socket}");
    let socket = say("/socket?to=127.0.0.1:1").await;
    assert!(socket.starts_with("denied"), "{socket}");
    assert!(
        logged(&world).contains("wasi:sockets/tcp of actor shop/cart with 127.0.0.1:1 is denied"),
        "{}",
        logged(&world)
    );
    let udp = say(&format!("/udp?to={addr}")).await;
    assert!(udp.starts_with("sent 7 bytes"), "{udp}");
    let udp = say("/udp?to=192.168.7.7:53").await;
    assert!(udp.starts_with("denied"), "{udp}");
    let found = say("/lookup?host=localhost").await;
    assert!(found.starts_with("found "), "{found}");
    let out = say(&format!("/out?url=http://{addr}/")).await;
    assert!(out.starts_with("status 204"), "{out}");
    for url in ["http://127.0.0.1:1/".to_owned(), format!("https://{addr}/"), format!("http://{addr}@127.0.0.1:1/")] {
        let out = say(&format!("/out?url={url}")).await;
        assert!(out.starts_with("denied"), "{url}: {out}");
    }
    assert!(say("/time").await.starts_with("wall "));
    assert_ne!(say("/random").await, say("/random").await);
    assert_eq!(say("/exit?code=0").await, "said before it ended\n");
    assert_eq!(actor.stats().errors, 0);
}

#[tokio::test]
async fn sockets_true_is_all_of_them() {
    let world = World::new();
    let addr = server();
    let grants = Grants { sockets: true, ..Grants::default() };
    let said = say(&world, grants.clone(), &format!("/socket?to={addr}")).await;
    assert!(said.starts_with("connected"), "{said}");
    assert!(say(&world, grants, "/lookup?host=localhost").await.starts_with("found"));
}

/// A name that stands for an address of this machine or its network, now or after it was looked at.
#[tokio::test]
async fn a_granted_name_leads_to_nothing_private() {
    let world = World::new();
    let addr = server();
    let name = format!("localhost.localdomain:{}", addr.port());
    let known = tokio::net::lookup_host(&name).await.is_ok();
    let url = if known { format!("http://{name}/") } else { format!("http://127.1:{}/", addr.port()) };
    let out = say(&world, Grants { http: vec!["*".into()], ..Grants::default() }, &format!("/out?url={url}")).await;
    assert!(out.contains("DestinationIpProhibited"), "{out}");
    assert!(logged(&world).contains("private, loopback or link-local"), "{}", logged(&world));
    // Named as an address, it is meant.
    let grants = Grants { http: vec!["*".into(), "127.0.0.0/8".into(), "[::1]".into()], ..Grants::default() };
    assert!(say(&world, grants, &format!("/out?url={url}")).await.starts_with("status 204"));
}

#[tokio::test]
async fn the_bus_is_reached_by_address_and_port_only() {
    let dir = tempfile::tempdir().unwrap();
    let addr = server();
    let engine = Engine::new(Config { bus: bus_at(&[addr]), ..config(&dir) }).unwrap();
    let world = World { engine, dir, lines: Arc::default() };
    let out = format!("/out?url=http://{addr}/");
    for granted in ["127.0.0.0/8", "127.0.0.1", "localhost"] {
        let http = |text: &str| Grants { http: vec![text.into(), "127.0.0.1".into()], ..Grants::default() };
        let said = say(&world, http(granted), &out).await;
        assert!(said.contains("DestinationIpProhibited"), "{granted}: {said}");
    }
    let tcp = Grants { tcp: vec!["127.0.0.0/8".into()], ..Grants::default() };
    assert!(say(&world, tcp, &format!("/socket?to={addr}")).await.starts_with("denied"));
    assert!(logged(&world).contains("it is the bus of the lattice"), "{}", logged(&world));
    let exact = Grants { http: vec![addr.to_string()], tcp: vec![addr.to_string()], ..Grants::default() };
    assert!(say(&world, exact.clone(), &out).await.starts_with("status 204"));
    assert!(say(&world, exact, &format!("/socket?to={addr}")).await.starts_with("connected"));
}

#[tokio::test]
async fn clocks_are_coarse_unless_they_are_granted_to_be_fine() {
    let world = World::new();
    let numbers = |said: String| -> Vec<u64> {
        said.lines().map(|line| line.split(' ').nth(1).unwrap().parse().unwrap()).collect()
    };
    for _ in 0..5 {
        let coarse = numbers(say(&world, Grants::default(), "/ticks").await);
        assert_eq!((coarse[0] % 1_000_000, coarse[1]), (0, 1_000_000));
    }
    let fine = Grants { fine_clock: true, ..Grants::default() };
    let resolution = numbers(say(&world, fine, "/ticks").await)[1];
    assert!(resolution < 1_000_000, "{resolution}");
    // The time of day is no back door to a finer one.
    let wall = say(&world, Grants { wall_clock: true, ..Grants::default() }, "/time").await;
    let nanos: u64 = wall.lines().next().unwrap().split('.').nth(1).unwrap().parse().unwrap();
    assert_eq!(nanos % 1_000_000, 0, "{wall}");
    let seconds: u64 = wall["wall ".len()..].split('.').next().unwrap().parse().unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    assert!(now.abs_diff(seconds) < 60, "{seconds} {now}");
}

#[tokio::test]
async fn a_seed_makes_every_instance_the_same() {
    let world = World::new();
    let seed = |seed| Grants { random: Some(Random::Seed(seed)), ..Grants::default() };
    let one = say(&world, seed(1), "/random").await;
    assert_eq!(say(&world, seed(1), "/random").await, one);
    assert_ne!(say(&world, seed(2), "/random").await, one);
    // Hash maps have a seed without any grant: the same in all instances, unlike that of another actor.
    let hash = say(&world, Grants::default(), "/seed").await;
    assert_eq!(say(&world, Grants::default(), "/seed").await, hash);
    let other = world.actor(hostile(), Spec { actor: "other".parse().unwrap(), ..world.spec() }).await;
    assert_ne!(text(other.http(get("/seed"), None).await).await, hash);
}

#[tokio::test]
async fn grants_that_can_not_be_given_are_refused_when_prepared() {
    let world = World::new();
    let bytes = hello();
    let module = world.engine.load(&Digest::of(&bytes), || Ok(bytes)).await.unwrap();
    let folders = vec![Folder { host: "/no/such/folder".into(), guest: "/".into(), write: false }];
    for grants in [
        Grants { folders, ..Grants::default() },
        Grants { http: vec!["not a host".into()], ..Grants::default() },
        Grants { tcp: vec!["name:1".into()], ..Grants::default() },
    ] {
        let error = world.engine.prepare(&module, Spec { grants, ..world.spec() }).err().unwrap();
        assert!(matches!(error, crate::engine::Error::Grant { .. }), "{error}");
    }
}

#[tokio::test]
async fn the_policy_of_a_host_takes_away() {
    let dir = tempfile::tempdir().unwrap();
    let (data, secret) = (dir.path().join("data"), dir.path().join("secret"));
    std::fs::create_dir(&data).unwrap();
    std::fs::create_dir(&secret).unwrap();
    std::os::unix::fs::symlink(&secret, data.join("link")).unwrap();
    let real = |path: &std::path::Path| std::fs::canonicalize(path).unwrap().display().to_string();
    let policy = format!("grants: {{http: [], folders: [{}]}}\nlimits: {{memory: 32MiB}}\n", real(&data));
    let policy = Arc::new(Policy::parse(policy.as_bytes(), "policy.yaml").unwrap());
    let engine = Engine::new(Config { policy, ..config(&dir) }).unwrap();
    let world = World { engine, dir, lines: Arc::default() };
    let bytes = hostile();
    let module = world.engine.load(&Digest::of(&bytes), || Ok(bytes)).await.unwrap();
    let limits = proto::app::Limits { memory_bytes: 32 << 20, ..Default::default() };
    let prepare = |grants, limits| world.engine.prepare(&module, Spec { grants, limits, ..world.spec() });
    let folder =
        |host: String| Grants { folders: vec![Folder { host, guest: "/".into(), write: false }], ..Grants::default() };
    assert!(prepare(folder(real(&data)), limits.clone()).is_ok());
    for (grants, limits, says) in [
        (
            Grants { http: vec!["api.example.org".into()], ..Grants::default() },
            limits.clone(),
            "grants.http names \"api.example.org\"",
        ),
        (folder("/etc".into()), limits.clone(), "grants.folders names /etc"),
        (
            folder(format!("{}/link", real(&data))),
            limits.clone(),
            "/secret), which the policy of this host does not allow",
        ),
        (
            Grants::default(),
            Default::default(),
            "limits.memory is 67108864 bytes, and the policy of this host allows 33554432",
        ),
    ] {
        let error = prepare(grants, limits).err().unwrap();
        assert!(matches!(error, crate::engine::Error::Policy { .. }), "{error}");
        assert!(error.to_string().contains(says), "{error}");
    }
}
