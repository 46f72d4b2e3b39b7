//! A real host on the embedded broker, told what to run as a scheduler tells it, with clients that never pause.
#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use crate::call::HttpServe as _;
use crate::on_bus::connect;
use crate::rpc::RemoteHttp;
use bus::Headers;
use bus::broker::{self, Broker};
use http::Request;
use http_body_util::{BodyExt as _, Empty, Full};
use hyper_util::rt::TokioIo;
use prost::Message as _;
use proto::app::{App, Digest, Kind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;

/// Revisions that replace each other, if nobody asks for another number.
fn swaps(usual: u64) -> u64 {
    std::env::var("LATTICE_SWAPS").ok().and_then(|n| n.parse().ok()).unwrap_or(usual)
}

/// The hello app, its component in this host's store.
struct Hello {
    app: App,
    agent: Agent,
    bus: Bus,
    dir: tempfile::TempDir,
}

fn config(data: &std::path::Path) -> Config {
    Config {
        lattice: "main".parse().unwrap(),
        data: data.to_owned(),
        name: "a".into(),
        labels: BTreeMap::new(),
        ingress: Some(IngressConfig { listen: "127.0.0.1:0".parse().unwrap(), tls: Vec::new(), access_log: None }),
        policy: Policy::default(),
        compiler: None,
        keep_unused: Duration::from_secs(3600),
    }
}

impl Hello {
    async fn start(broker: &Broker) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../manifests/hello");
        let component = std::fs::read(root.join("hello.wasm")).unwrap();
        let digest = Digest::of(&component);
        let store = artifact::Store::open(&dir.path().join("artifacts"), u64::MAX).unwrap();
        store.put(&digest, &component).unwrap();
        let text = std::fs::read_to_string(root.join("app.yaml")).unwrap();
        let mut app = proto::manifest::parse(&text, "app.yaml").unwrap().remove(0).app;
        for component in app.components.values_mut() {
            if let Kind::Actor(actor) = &mut component.kind {
                actor.digest = Some(digest.clone());
            }
        }
        let agent = Agent::start(config(dir.path()), connect(broker).await).await.unwrap();
        let hello = Self { app, agent, bus: connect(broker).await, dir };
        assert_eq!(hello.agent.health().ready(), Ok(()), "a new host has nothing to wait for");
        hello.run(1).await;
        hello
    }

    /// Revision after revision while clients ask: every request must be answered. Gives how many there were.
    async fn swapped(&self, swaps: u64, clients: &Clients, asking: tokio::task::JoinSet<()>) -> u64 {
        let begun = Instant::now();
        for revision in 2..=swaps + 1 {
            self.run(revision).await;
        }
        let took = begun.elapsed();
        clients.stop.store(true, Ordering::Relaxed);
        asking.join_all().await;
        let (answered, wrong) = (clients.answered.load(Ordering::Relaxed), clients.wrong.lock().unwrap().clone());
        eprintln!("{swaps} swaps in {took:?}: {answered} requests answered, {} not", wrong.len());
        assert!(wrong.is_empty(), "{:#?}", &wrong[..wrong.len().min(10)]);
        assert!(answered > swaps, "only {answered} requests");
        answered
    }

    fn at(&self) -> SocketAddr {
        self.agent.ingress().unwrap()
    }

    /// Assigns this revision and waits until it is what runs.
    async fn run(&self, revision: u64) {
        let slice = pb::AppSlice {
            app: "hello".into(),
            revision,
            spec: self.app.to_json(),
            replicas: [("hello".to_owned(), 8)].into(),
        };
        let route = pb::Route { path: "/".into(), app: "hello".into(), actor: "hello".into(), ..Default::default() };
        let assignment = pb::Assignment {
            lattice: "main".into(),
            host: self.agent.id().to_string(),
            term: 1,
            generation: revision,
            apps: vec![slice],
            routes: vec![route],
            beat_ms: 500,
        };
        let wait = Duration::from_secs(60);
        let subjects = self.bus.subjects();
        let assign = subjects.assign(self.agent.id());
        let answer = self.bus.call(assign, Headers::new(), bus::encode(&assignment), wait).await.unwrap();
        let assigned = pb::Assigned::decode(answer.payload).unwrap();
        assert!(assigned.accepted, "{}", assigned.error);
        let end = Instant::now() + wait;
        let running = &self.agent.parts.running;
        while running.actor_named("hello", "hello").map(|actor| actor.revision()) != Some(revision) {
            assert!(Instant::now() < end, "revision {revision} does not run");
            tokio::time::sleep(Duration::from_micros(500)).await;
        }
    }
}

/// Clients that ask again as soon as they were answered.
#[derive(Default)]
struct Clients {
    stop: AtomicBool,
    answered: AtomicU64,
    wrong: std::sync::Mutex<Vec<String>>,
}

impl Clients {
    fn note(&self, answer: Result<(u16, usize), String>) {
        match answer {
            Ok((200, 1..)) => drop(self.answered.fetch_add(1, Ordering::Relaxed)),
            other => self.wrong.lock().unwrap().push(format!("{other:?}")),
        }
    }

    /// One connection for all of its requests.
    async fn over_http(self: Arc<Self>, at: SocketAddr) {
        let io = TokioIo::new(TcpStream::connect(at).await.unwrap());
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
        tokio::spawn(connection);
        while !self.stop.load(Ordering::Relaxed) {
            let request = Request::get("/").header("host", "x").body(Empty::<bytes::Bytes>::new()).unwrap();
            let answer = async {
                sender.ready().await.map_err(|e| e.to_string())?;
                let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
                let status = response.status().as_u16();
                Ok((status, response.into_body().collect().await.map_err(|e| e.to_string())?.to_bytes().len()))
            };
            self.note(answer.await);
        }
    }

    /// As an ingress on another host asks. What must not be sent twice is what is asked here.
    async fn over_the_bus(self: Arc<Self>, bus: Bus) {
        let name = || "hello".parse().unwrap();
        let remote = RemoteHttp::new(bus, name(), name());
        while !self.stop.load(Ordering::Relaxed) {
            let body = Full::from("x").map_err(|never| match never {}).boxed_unsync();
            let request = Request::post("/").header("host", "x").body(body).unwrap();
            let answer = async {
                let response = remote.http(request, Some(Duration::from_secs(30))).await.map_err(|e| e.to_string())?;
                let status = response.status().as_u16();
                Ok((status, response.into_body().collect().await.map_err(|e| e.to_string())?.to_bytes().len()))
            };
            self.note(answer.await);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_while_revisions_replace_each_other() {
    let broker = Broker::start(broker::Config { listen: "127.0.0.1:0".parse().unwrap(), token: None }).unwrap();
    let hello = Hello::start(&broker).await;
    let clients = Arc::<Clients>::default();
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..4 {
        asking.spawn(clients.clone().over_http(hello.at()));
    }
    let answered = hello.swapped(swaps(1_000), &clients, asking).await;
    let mut up = 0;
    hello.agent.parts.running.each(|_, _, _, _| up += 1);
    assert_eq!((up, hello.agent.health().ready()), (1, Ok(())));
    let page = page(&hello.agent);
    let counted = page.lines().filter_map(|line| line.strip_prefix(ROUTED)?.rsplit(' ').next()?.parse::<u64>().ok());
    assert_eq!(counted.sum::<u64>(), answered, "counts outlive revisions");
    let health = hello.agent.health();
    hello.agent.shutdown(false).await;
    assert!(health.live().is_err() && health.ready().is_err());
}

#[test]
fn a_host_that_starts_again_is_ready_once_it_runs_what_it_had() {
    use tokio::runtime::Builder;
    let threads = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (broker, dir) = threads.block_on(async {
        let broker = Broker::start(broker::Config { listen: "127.0.0.1:0".parse().unwrap(), token: None }).unwrap();
        let Hello { agent, dir, .. } = Hello::start(&broker).await;
        agent.shutdown(false).await;
        (broker, dir)
    });
    let start = async || Agent::start(config(dir.path()), connect(&broker).await).await.unwrap();
    // In one thread: what it begins does not go on before it is asked.
    let thread = Builder::new_current_thread().enable_all().build().unwrap();
    let ready = thread.block_on(async { start().await.health().ready() });
    assert_eq!(ready.unwrap_err(), "1 of 1 components are being started");
    drop(thread);
    threads.block_on(async {
        let agent = start().await;
        let end = Instant::now() + Duration::from_secs(60);
        while agent.health().ready().is_err() {
            assert!(Instant::now() < end, "it is never ready");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(agent.parts.running.actor_named("hello", "hello").is_some());
        agent.shutdown(false).await;
    });
}

const ROUTED: &str = "lattice_ingress_requests_total{app=\"hello\",actor=\"hello\",code=\"2xx\"}";

fn page(agent: &Agent) -> String {
    let mut registry = prometheus_client::registry::Registry::default();
    registry.register_collector(agent.metrics());
    let mut page = String::new();
    prometheus_client::encoding::text::encode(&mut page, &registry).unwrap();
    page
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_does_one_that_comes_over_the_bus() {
    let broker = Broker::start(broker::Config { listen: "127.0.0.1:0".parse().unwrap(), token: None }).unwrap();
    let hello = Hello::start(&broker).await;
    let clients = Arc::<Clients>::default();
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..4 {
        asking.spawn(clients.clone().over_the_bus(connect(&broker).await));
    }
    hello.swapped(swaps(1_000), &clients, asking).await;
}

#[tokio::test]
async fn a_host_that_nobody_heard_says_again_that_it_is_there() {
    let broker = Broker::start(broker::Config { listen: "127.0.0.1:0".parse().unwrap(), token: None }).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let agent = Agent::start(config(dir.path()), connect(&broker).await).await.unwrap();
    // As a scheduler that connects a moment later.
    let bus = connect(&broker).await;
    let mut hellos = bus.subscribe(bus.subjects().every_hello()).await.unwrap();
    for _ in 0..2 {
        let message = tokio::time::timeout(Duration::from_secs(60), hellos.next()).await.unwrap().unwrap();
        assert!(bus.decode::<pb::Hello>(&message.payload).is_some());
    }
    drop(agent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_tells_what_it_does() {
    let broker = Broker::start(broker::Config { listen: "127.0.0.1:0".parse().unwrap(), token: None }).unwrap();
    let hello = Hello::start(&broker).await;
    let mut beats = hello.bus.subscribe(hello.bus.subjects().every_beat()).await.unwrap();
    let clients = Arc::<Clients>::default();
    let asking = tokio::spawn(clients.clone().over_http(hello.at()));
    let load = loop {
        let message = tokio::time::timeout(Duration::from_secs(60), beats.next()).await.unwrap().unwrap();
        let beat = hello.bus.decode::<pb::Beat>(&message.payload).unwrap();
        if let Some(load) = beat.load.filter(|load| !load.actors.is_empty()) {
            break load;
        }
    };
    clients.stop.store(true, Ordering::Relaxed);
    asking.await.unwrap();
    let actor = &load.actors[0];
    assert_eq!((actor.app.as_str(), actor.actor.as_str(), actor.errors), ("hello", "hello", 0));
    assert!(actor.requests > 0 && actor.p50_us > 0 && actor.p99_us >= actor.p50_us, "{actor:?}");
    assert!(load.window_ms >= 900 && load.cpu_millis > 0 && load.memory_bytes > 1_000_000, "{load:?}");

    // Who was answered has gone before the invocation has.
    let at_rest = "lattice_actor_in_flight{app=\"hello\",actor=\"hello\"} 0";
    let page = loop {
        let page = page(&hello.agent);
        if page.contains(at_rest) {
            break page;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    for wanted in [
        "# TYPE lattice_ingress_requests counter",
        "# HELP lattice_ingress_requests ",
        "# TYPE lattice_ingress_request_duration_seconds histogram",
        "lattice_ingress_request_duration_seconds_bucket{le=\"+Inf\",app=\"hello\",actor=\"hello\"}",
        "lattice_actor_invocations_total{app=\"hello\",actor=\"hello\"}",
        "lattice_host_components{state=\"up\"} 1",
        "lattice_host_component_loads_total{from=\"compiler\"} 1",
        "lattice_ingress_connections_accepted_total 1",
        "lattice_host_bus_up 1",
    ] {
        assert!(page.contains(wanted), "{wanted} in\n{page}");
    }
    assert!(page.ends_with("# EOF\n"));
}
