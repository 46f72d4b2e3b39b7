//! A key-value get without a guest around it: a call of the provider in this process, the same over the bus, and what
//! a bare request and reply costs on that bus.

use crate::Bench;
use crate::figures::{Series, Table, percentile};
use crate::machine;
use crate::process::Nats;
use anyhow::{Context as _, Result};
use bus::broker::{self, Broker};
use bytes::Bytes;
use futures::StreamExt as _;
use host::call::LinkContext;
use host::capability::keyvalue::KeyValue;
use host::capability::wire::KeyValueOver;
use host::provider::keyvalue::KeyvalueStore;
use host::provider::serve::KeyValueServer;
use host::rpc::{Permit, RemoteServe, serve_component};
use proto::app::Name;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

const IN_FLIGHT: [usize; 2] = [1, 64];
const VALUE: [u8; 100] = [7; 100];
const KEY: &str = "user:1000000000000001";
const BUCKET: &str = "carts";

pub(crate) fn run(bench: &Bench) -> Result<()> {
    let dir = bench.folder("keyvalue")?;
    let store = KeyvalueStore::open(&dir.join("store")).context("the store")?;
    let nats = bench.nats_server().map(|binary| Nats::start(&binary, &dir)).transpose()?;
    bench.runtime.block_on(Box::pin(async {
        let listen = "127.0.0.1:0".parse().context("an address")?;
        let broker = Broker::start(broker::Config { listen, token: None }).context("the embedded broker")?;
        let mut cases = vec![Case::here(&store).await?];
        if let Some(nats) = &nats {
            let pid = Some(nats.process.pid());
            cases.push(Case::bare("nats-server", &nats.url, pid).await?);
            cases.push(Case::over("nats-server", &nats.url, pid, &store).await?);
        }
        let url = format!("nats://{}", broker.addr());
        cases.push(Case::bare("embedded broker", &url, None).await?);
        cases.push(Case::over("embedded broker", &url, None, &store).await?);
        let measured = measure(bench, &cases).await?;
        print(&cases, &measured);
        Ok(())
    }))
}

/// One way to do one thing.
struct Case {
    what: String,
    /// Where its broker runs, if not in this process.
    broker: Option<u32>,
    /// Number of the case that this is compared with, counted back from this.
    beside: Option<usize>,
    call: Call,
    _serving: Vec<bus::Serving>,
}

#[derive(Clone)]
enum Call {
    Get(Arc<dyn KeyValue>),
    Bare(async_nats::Client),
}

impl Call {
    async fn once(&self) -> Result<()> {
        let value = match self {
            Self::Get(keyvalue) => keyvalue.get(BUCKET, KEY).await.context("get")?.context("the value is gone")?,
            Self::Bare(client) => client.request("bare", KEY.into()).await.context("a bare request")?.payload,
        };
        anyhow::ensure!(value == VALUE.as_slice(), "not the value that was set");
        Ok(())
    }
}

impl Case {
    async fn here(store: &KeyvalueStore) -> Result<Self> {
        let keyvalue = store.keyvalue(&name("shop")?, &name("store")?, link());
        keyvalue.set(BUCKET, KEY, Bytes::from_static(&VALUE)).await.context("the first set")?;
        let what = "get, co-located: a call".to_owned();
        Ok(Self { what, broker: None, beside: None, call: Call::Get(keyvalue), _serving: Vec::new() })
    }

    /// The client library's own request, and a task at the other end that replies with a value of the same size.
    async fn bare(on: &str, url: &str, broker: Option<u32>) -> Result<Self> {
        let (asking, answering) = (async_nats::connect(url).await?, async_nats::connect(url).await?);
        let mut requests = answering.subscribe("bare").await.context("subscribing")?;
        answering.flush().await.context("subscribing")?;
        tokio::spawn(async move {
            while let Some(request) = requests.next().await {
                let Some(reply) = request.reply else { continue };
                if answering.publish(reply, Bytes::from_static(&VALUE)).await.is_err() {
                    return;
                }
            }
        });
        let what = format!("bare request/reply, {on}");
        Ok(Self { what, broker, beside: Some(0), call: Call::Bare(asking), _serving: Vec::new() })
    }

    /// As two hosts do it, each with its own connection.
    async fn over(on: &str, url: &str, broker: Option<u32>, store: &KeyvalueStore) -> Result<Self> {
        let (here, there) = (connect(url).await?, connect(url).await?);
        let (app, component) = (name("shop")?, name("store")?);
        let server = Arc::new(KeyValueServer::new(store.clone(), app.clone(), component.clone()));
        let interfaces: Vec<String> = KeyValueServer::interfaces().iter().map(|i| (*i).to_owned()).collect();
        let permit: Permit = Arc::new(|_| Some(BTreeMap::new()));
        let serving = serve_component(&there, &app, &component, &interfaces, server, permit).await?;
        let remote = Arc::new(RemoteServe::new(here, app, component));
        let call = Call::Get(Arc::new(KeyValueOver::new(remote, link())));
        let what = format!("get, across hosts, {on}");
        Ok(Self { what, broker, beside: Some(1), call, _serving: serving })
    }
}

fn name(text: &str) -> Result<Name> {
    text.parse().with_context(|| format!("the name {text:?}"))
}

fn link() -> LinkContext {
    let deadline = Some(Duration::from_secs(10));
    LinkContext {
        app: "shop".into(),
        consumer: "cart".into(),
        name: "default".into(),
        config: BTreeMap::new(),
        deadline,
        ..LinkContext::default()
    }
}

async fn connect(url: &str) -> Result<bus::Bus> {
    let config = bus::Config {
        urls: vec![url.to_owned()],
        credentials: None,
        token: None,
        tls_ca: None,
        tls_cert: None,
        tls_key: None,
        name: "bench".into(),
        lattice: "bench".parse().context("a lattice's name")?,
    };
    let bus = bus::Bus::connect(&config).await?;
    bus.connection().wait_for(|connection| connection.up).await.context("the bus")?;
    Ok(bus)
}

#[derive(Default, Clone)]
struct Figures {
    per_second: Series,
    p50_us: Series,
    p99_us: Series,
    cpu_us: Series,
    broker_us: Series,
}

async fn measure(bench: &Bench, cases: &[Case]) -> Result<Vec<Vec<Figures>>> {
    let mut measured = vec![vec![Figures::default(); cases.len()]; IN_FLIGHT.len()];
    for _ in 0..bench.rounds() {
        for (in_flight, figures) in IN_FLIGHT.iter().zip(&mut measured) {
            for (case, figures) in cases.iter().zip(figures) {
                // Warm, uncounted.
                flood(case, *in_flight, bench.time() / 10, &mut Figures::default()).await?;
                flood(case, *in_flight, bench.time(), figures).await.with_context(|| case.what.clone())?;
            }
        }
    }
    Ok(measured)
}

/// So many calls at once, each followed by the next, for so long.
async fn flood(case: &Case, in_flight: usize, time: Duration, figures: &mut Figures) -> Result<()> {
    let (own, broker) = (machine::cpu(std::process::id())?, case.broker.map(machine::cpu).transpose()?);
    let began = Instant::now();
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..in_flight {
        callers.spawn(caller(case.call.clone(), began, time));
    }
    let (mut calls, mut times) = (0u64, Vec::new());
    while let Some(done) = callers.join_next().await {
        let (count, own_times) = done.context("a caller's task")??;
        calls += count;
        times.extend(own_times);
    }
    let seconds = began.elapsed().as_secs_f64();
    let used = |now: Duration, before: Duration| (now - before).as_secs_f64() * 1e6 / calls as f64;
    figures.cpu_us.push(used(machine::cpu(std::process::id())?, own));
    if let (Some(pid), Some(before)) = (case.broker, broker) {
        figures.broker_us.push(used(machine::cpu(pid)?, before));
    }
    times.sort_unstable();
    figures.per_second.push(calls as f64 / seconds);
    // Times are in tens of nanoseconds: a call that stays in the process takes less than a microsecond.
    figures.p50_us.push(percentile(&times, 0.5) / 100.0);
    figures.p99_us.push(percentile(&times, 0.99) / 100.0);
    Ok(())
}

/// Times of every eighth call, to keep the clock out of the figures of fast calls.
async fn caller(call: Call, began: Instant, time: Duration) -> Result<(u64, Vec<u32>)> {
    let (mut count, mut times) = (0, Vec::new());
    while began.elapsed() < time {
        let start = Instant::now();
        call.once().await?;
        times.push(u32::try_from(start.elapsed().as_nanos() / 10).unwrap_or(u32::MAX));
        for _ in 0..7 {
            call.once().await?;
        }
        count += 8;
    }
    Ok((count, times))
}

fn print(cases: &[Case], measured: &[Vec<Figures>]) {
    let mut table = Table::new([
        "call",
        "in flight",
        "calls/s",
        "min-max",
        "p50 us",
        "p99 us",
        "CPU us/call",
        "of a broker",
        "calls/s to bare",
        "p50 to bare",
    ]);
    for (in_flight, figures) in IN_FLIGHT.iter().zip(measured) {
        for (number, (case, f)) in cases.iter().zip(figures).enumerate() {
            let beside = case.beside.map(|back| &figures[number - back]);
            table.row([
                case.what.clone(),
                in_flight.to_string(),
                f.per_second.show(),
                f.per_second.spread(),
                f.p50_us.show(),
                f.p99_us.show(),
                f.cpu_us.show(),
                case.broker.map_or_else(|| "-".into(), |_| f.broker_us.show()),
                beside.map_or_else(|| "-".into(), |b| f.per_second.ratio_to(&b.per_second)),
                beside.map_or_else(|| "-".into(), |b| f.p50_us.ratio_to(&b.p50_us)),
            ]);
        }
    }
    table.print();
    println!("  CPU is that of this process: both ends of a call, and the embedded broker.");
}
