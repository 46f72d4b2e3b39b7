//! The control plane as its clients see it: acknowledged writes through the gRPC API of real processes, and how long
//! there is none after the leader was killed. Beside it etcd, with its own defaults, on the same disk, in turns.
//!
//! A write of lattice is a `Scale`: checked against the app, a new revision in the state, in the log of most schedulers,
//! synced. One of etcd is a `Put` of 256 bytes, which is about what that entry takes. Both are asked at any member.

use crate::figures::{Series, Table, number, percentile};
use crate::lattice::{App, Scheduler};
use crate::process::Nats;
use crate::{Bench, etcd};
use anyhow::{Context as _, Result, bail};
use proto::v1::control_client::ControlClient;
use proto::v1::{ListSchedulersRequest, ScaleRequest};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tonic::transport::{Channel, Endpoint};

const CLIENTS: [usize; 3] = [1, 64, 1_000];
const MEMBERS: [usize; 2] = [1, 3];
const VALUE_BYTES: usize = 256;
/// Connections that the clients share, and apps that they write to.
const CONNECTIONS: usize = 16;
const APPS: usize = 16;
/// For members to be there, and for a leader after one was killed.
const PATIENCE: Duration = Duration::from_secs(60);
/// A write that is not answered by then is given up and sent again: etcd holds one that came without a leader for 7 s.
const TRY: Duration = Duration::from_millis(300);
const POLL: Duration = Duration::from_millis(20);

/// What is written to.
#[derive(Clone)]
enum Target {
    Lattice(Vec<Channel>),
    Etcd(Vec<Channel>),
}

static NEXT: AtomicU32 = AtomicU32::new(1);

impl Target {
    fn name(&self) -> &'static str {
        match self {
            Self::Lattice(_) => "lattice",
            Self::Etcd(_) => "etcd",
        }
    }

    fn channels(&self) -> &[Channel] {
        let (Self::Lattice(channels) | Self::Etcd(channels)) = self;
        channels
    }

    /// One write of client `number`, acknowledged when this resolves.
    async fn write(&self, number: usize) -> Result<()> {
        let channel = self.channels()[number % self.channels().len()].clone();
        match self {
            Self::Etcd(_) => etcd::put(channel, &format!("key-{number}"), vec![7; VALUE_BYTES]).await,
            Self::Lattice(_) => {
                // Never what was there before: that would be no change.
                let replicas = NEXT.fetch_add(1, Ordering::Relaxed) % 1_000_000 + 1;
                let request = ScaleRequest {
                    app: format!("app-{}", number % APPS),
                    actor: "web".into(),
                    replicas,
                    ..ScaleRequest::default()
                };
                ControlClient::new(channel).scale(request).await.context("a scale was refused").map(drop)
            }
        }
    }
}

/// Several connections to each of these addresses.
fn channels(addresses: &[String]) -> Result<Vec<Channel>> {
    let mut channels = Vec::new();
    for number in 0..CONNECTIONS.max(addresses.len()) {
        let address = &addresses[number % addresses.len()];
        let url = if address.contains("://") { address.clone() } else { format!("http://{address}") };
        channels.push(Endpoint::from_shared(url).context("an address")?.tcp_nodelay(true).connect_lazy());
    }
    Ok(channels)
}

pub(crate) fn run(bench: &Bench) -> Result<()> {
    let nats = bench.nats_server().context("there is no nats-server: the schedulers need a bus")?;
    let mut table =
        Table::new(["what", "members", "clients", "writes/s", "min-max", "p50 ms", "p99 ms", "to etcd's writes/s"]);
    for count in MEMBERS {
        let dir = bench.folder(&format!("control-{count}"))?;
        let bus = Nats::start(&nats, &dir)?;
        let schedulers = schedulers(bench, &dir, &bus.url, count)?;
        let members = match bench.etcd() {
            Some(binary) => etcd::start(&binary, &dir, count)?,
            None => Vec::new(),
        };
        let _in_context = bench.runtime.enter();
        let mut targets =
            vec![Target::Lattice(channels(&schedulers.iter().map(|s| s.api.clone()).collect::<Vec<_>>())?)];
        if !members.is_empty() {
            targets.push(Target::Etcd(channels(&members.iter().map(|m| m.api.clone()).collect::<Vec<_>>())?));
        }
        for target in &targets {
            bench.runtime.block_on(until_writable(target))?;
        }
        let mut figures = vec![vec![Figures::default(); CLIENTS.len()]; targets.len()];
        for _ in 0..bench.rounds() {
            for (at, clients) in CLIENTS.iter().enumerate() {
                for (target, figures) in targets.iter().zip(&mut figures) {
                    bench.runtime.block_on(measure(target, *clients, bench.time(), &mut figures[at]))?;
                }
            }
        }
        for (at, clients) in CLIENTS.iter().enumerate() {
            for (target, own) in targets.iter().zip(&figures) {
                let (own, theirs) = (&own[at], figures.last().map(|f| &f[at].per_second));
                let to = theirs.filter(|_| targets.len() > 1).map(|theirs| own.per_second.ratio_to(theirs));
                table.row([
                    target.name().into(),
                    count.to_string(),
                    clients.to_string(),
                    own.per_second.show(),
                    own.per_second.spread(),
                    own.p50_ms.show(),
                    own.p99_ms.show(),
                    to.unwrap_or_else(|| "-".into()),
                ]);
            }
        }
    }
    table.print();
    println!("  a write of lattice is a new revision of an app, one of etcd a value of {VALUE_BYTES} bytes");
    Ok(())
}

#[derive(Default, Clone)]
struct Figures {
    per_second: Series,
    p50_ms: Series,
    p99_ms: Series,
}

async fn measure(target: &Target, clients: usize, time: Duration, figures: &mut Figures) -> Result<()> {
    let target = Arc::new(target.clone());
    let began = Instant::now();
    let mut writing = JoinSet::new();
    for client in 0..clients {
        let target = target.clone();
        writing.spawn(async move {
            let mut times = Vec::new();
            while began.elapsed() < time {
                let asked = Instant::now();
                target.write(client).await?;
                times.push(u32::try_from(asked.elapsed().as_micros()).unwrap_or(u32::MAX));
            }
            anyhow::Ok(times)
        });
    }
    let mut times = Vec::new();
    while let Some(done) = writing.join_next().await {
        times.extend(done.context("a client's task")??);
    }
    figures.per_second.push(times.len() as f64 / began.elapsed().as_secs_f64());
    times.sort_unstable();
    figures.p50_ms.push(percentile(&times, 0.5) / 1e3);
    figures.p99_ms.push(percentile(&times, 0.99) / 1e3);
    Ok(())
}

async fn until_writable(target: &Target) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    loop {
        match target.write(0).await {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() > end => {
                return Err(error.context(format!("{} takes no write", target.name())));
            }
            Err(_) => tokio::time::sleep(POLL).await,
        }
    }
}

/// So many schedulers that vote, with apps to write to.
fn schedulers(bench: &Bench, dir: &Path, url: &str, count: usize) -> Result<Vec<Scheduler>> {
    let mut all = vec![Scheduler::start(&dir.join("s1"), url, None)?];
    for number in 2..=count {
        let token = all[0].run(&["schedulers", "token"])?;
        all.push(Scheduler::start(&dir.join(format!("s{number}")), url, Some((&all[0].peer, token.trim())))?);
    }
    let end = Instant::now() + PATIENCE;
    loop {
        let list = all[0].run(&["schedulers", "list", "-o", "json"])?;
        if list.matches("\"ready\"").count() == count {
            break;
        }
        if Instant::now() > end {
            bail!("{count} schedulers were not ready in time: {list}");
        }
        std::thread::sleep(POLL);
    }
    let image = bench.component("hello");
    for number in 0..APPS {
        let name = format!("app-{number}");
        let manifest = App { name: &name, image: &image, at: None, store_at: None }.write(dir)?;
        all[0].run(&["apply", "--detach", &manifest.display().to_string()])?;
    }
    Ok(all)
}

pub(crate) fn failover(bench: &Bench) -> Result<()> {
    let nats = bench.nats_server().context("there is no nats-server: the schedulers need a bus")?;
    let dir = bench.folder("failover")?;
    let bus = Nats::start(&nats, &dir)?;
    let kills = if bench.quick { 2 } else { 10 };
    let mut schedulers = schedulers(bench, &dir, &bus.url, 3)?;
    let mut members = match bench.etcd() {
        Some(binary) => etcd::start(&binary, &dir, 3)?,
        None => Vec::new(),
    };
    let _in_context = bench.runtime.enter();
    let (mut own, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..kills {
        let (leader, others) = bench.runtime.block_on(leader_of_lattice(&schedulers))?;
        let target = Target::Lattice(channels(&others)?);
        let old = schedulers.remove(leader);
        own.push(bench.runtime.block_on(outage(&target, || drop(old.process.kill())))?);
        schedulers.push(old.again()?);
        drop(old);
        if members.is_empty() {
            continue;
        }
        let (leader, others) = bench.runtime.block_on(leader_of_etcd(&members))?;
        let target = Target::Etcd(channels(&others)?);
        let old = members.remove(leader);
        theirs.push(bench.runtime.block_on(outage(&target, || drop(old.process.kill())))?);
        members.push(old.again()?);
        drop(old);
    }
    let mut table = Table::new(["leader killed -> next write", "kills", "p50 s", "p90 s", "p99 s", "slowest s"]);
    for (name, mut took) in [("lattice", own), ("etcd", theirs)] {
        if took.is_empty() {
            continue;
        }
        took.sort_unstable();
        let show = |share| number(percentile(&took, share) / 1e3);
        table.row([name.into(), took.len().to_string(), show(0.5), show(0.9), show(0.99), show(1.0)]);
    }
    table.print();
    Ok(())
}

/// Milliseconds from `kill` until one of these members takes a write.
async fn outage(target: &Target, kill: impl FnOnce()) -> Result<u32> {
    // Connected before, so that only the election is measured.
    until_writable(target).await?;
    kill();
    let began = Instant::now();
    let mut tries = JoinSet::new();
    for number in 0..target.channels().len().min(2) {
        let target = target.clone();
        tries.spawn(async move {
            while tokio::time::timeout(TRY, target.write(number)).await.map_or(true, |done| done.is_err()) {
                tokio::time::sleep(POLL).await;
            }
        });
    }
    match tokio::time::timeout(PATIENCE, tries.join_next()).await {
        Ok(_) => Ok(u32::try_from(began.elapsed().as_millis()).unwrap_or(u32::MAX)),
        Err(_) => bail!("{} took no write for {PATIENCE:?} after its leader was killed", target.name()),
    }
}

/// Which of them leads, once all are ready, and where the others are.
async fn leader_of_lattice(schedulers: &[Scheduler]) -> Result<(usize, Vec<String>)> {
    let end = Instant::now() + PATIENCE;
    loop {
        let channel = channels(&[schedulers[0].api.clone()])?.swap_remove(0);
        let list = ControlClient::new(channel).list_schedulers(ListSchedulersRequest {}).await;
        if let Ok(list) = list {
            let items = list.into_inner().items;
            let ready = items.iter().filter(|item| item.state == "ready").count();
            let leader = items.iter().find(|item| item.role == "leader").map(|item| item.id);
            let at = schedulers.iter().position(|s| Some(s.id) == leader);
            if let (Some(at), true) = (at, ready == schedulers.len()) {
                return Ok((at, others(schedulers.iter().map(|s| &s.api), at)));
            }
        }
        if Instant::now() > end {
            bail!("three schedulers were not ready in time");
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn leader_of_etcd(members: &[etcd::Member]) -> Result<(usize, Vec<String>)> {
    let end = Instant::now() + PATIENCE;
    loop {
        let mut answered = 0;
        let mut leader = None;
        for (at, member) in members.iter().enumerate() {
            let channel = channels(std::slice::from_ref(&member.api))?.swap_remove(0);
            if let Ok(leads) = etcd::leads(channel).await {
                answered += 1;
                leader = leader.or(leads.then_some(at));
            }
        }
        if let (Some(at), true) = (leader, answered == members.len()) {
            return Ok((at, others(members.iter().map(|m| &m.api), at)));
        }
        if Instant::now() > end {
            bail!("three members of etcd were not ready in time");
        }
        tokio::time::sleep(POLL).await;
    }
}

fn others<'a>(all: impl Iterator<Item = &'a String>, without: usize) -> Vec<String> {
    all.enumerate().filter(|(at, _)| *at != without).map(|(_, address)| address.clone()).collect()
}
