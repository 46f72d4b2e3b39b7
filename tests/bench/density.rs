//! A host with many apps of distinct components, of which few are called: what they keep in memory, how soon one answers
//! that nobody called for long, whether the host is heard in time meanwhile, and what it does when nothing happens.
//!
//! The components are the smallest there are, so that it takes minutes and not an hour to compile them; hello in their
//! place has 0.2 MB more for each of the few hundred whose code is mapped.

use crate::Bench;
use crate::apply::distinct;
use crate::figures::{Table, number, percentile};
use crate::lattice::{self, App, Up};
use crate::load::{Connection, Target};
use crate::machine;
use crate::memory::PUBLISHED;
use crate::small;
use anyhow::{Context as _, Result, ensure};
use futures::StreamExt as _;
use proto::subject::Subjects;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Apps of one apply.
const AT_ONCE: usize = 100;
/// Apps that are called of each kind, one request each.
const CALLED: usize = 200;
/// And of those that are mapped so many before, which are not counted: after a pause a machine fetches from afar what a
/// request needs, whatever is called.
const BEFORE: usize = 50;
/// More than a host has mapped at a time.
const MAPPED_MAX: usize = 512;
const IDLE: Duration = Duration::from_secs(30);
const RESTART_MAX: Duration = Duration::from_secs(600);

pub(crate) fn run(bench: &Bench) -> Result<()> {
    let dir = bench.folder("density")?;
    let apps = if bench.quick { 1_000 } else { 10_000 };
    let up = Up::start(&dir.join("up"), &["--label", "role=ingress"])?;
    let start = || {
        let more = ["--label", "role=dense", "--ingress", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
        let mut host = lattice::host(&dir.join("host"), &up.bus, &more)?;
        let at = |said: String| said.trim_start_matches("http://").trim_end_matches('/').parse::<SocketAddr>();
        let (ingress, admin) = (at(host.said("ingress ")?)?, at(host.said("admin ")?)?);
        anyhow::Ok((host, ingress, admin))
    };
    let (mut host, ..) = start()?;
    let id = host.said("id ")?;
    let beats = bench.runtime.block_on(Beats::watch(&up.bus, &id))?;
    let before = machine::memory(host.pid())?.resident;
    let began = Instant::now();
    apply(&up, &dir, apps)?;
    println!("  {apps} apps of distinct components applied in {:.0} s", began.elapsed().as_secs_f64());
    let (placed, gap) = (machine::memory(host.pid())?, beats.longest());
    sleep(IDLE);
    let placed_idle = machine::memory(host.pid())?;

    // Another start: everything is in the cache.
    host.kill()?;
    drop(host);
    let began = Instant::now();
    let (host, ingress, admin) = start()?;
    until_ready(bench, admin)?;
    let restart = began.elapsed();
    let resident = machine::memory(host.pid())?;
    beats.longest();

    let (cpu, beside) = (machine::cpu(host.pid())?, up_cpu(&up)?);
    sleep(IDLE);
    let share = |used: Duration| used.as_secs_f64() / IDLE.as_secs_f64() * 100.0;
    let (idle, idle_up) = (share(machine::cpu(host.pid())? - cpu), share(up_cpu(&up)? - beside));
    let (resident_idle, idle_gap) = (machine::memory(host.pid())?, beats.longest());

    // They start in the order of their names, and what started last is mapped.
    let mut names: Vec<String> = (0..apps).map(|number| format!("app-{number}")).collect();
    names.sort();
    let (unmapped, mapped) = names.split_at(apps - MAPPED_MAX.min(apps / 2));
    let far: Vec<&String> = unmapped.iter().step_by((unmapped.len() / CALLED).max(1)).take(CALLED).collect();
    let near: Vec<&String> = mapped.iter().rev().take(BEFORE + CALLED).collect();
    call_each(bench, ingress, &near[..BEFORE])?;
    let near = call_each(bench, ingress, &near[BEFORE..])?;
    let far_first = call_each(bench, ingress, &far)?;
    let far_again = call_each(bench, ingress, &far)?;
    let (called, call_gap) = (machine::memory(host.pid())?.resident, beats.longest());
    let hosts = up.run(&["get", "hosts"])?;
    ensure!(!hosts.contains("suspect") && !hosts.contains("lost"), "a host was not heard in time:\n{hosts}");

    let mut table = Table::new(["of the host", "figure"]);
    let mega = |bytes: u64| format!("{} MB", number(bytes as f64 / 1e6));
    let times = |times: &[u32]| {
        let [half, most] = [0.5, 0.99].map(|share| percentile(times, share) / 1e3);
        format!("{half:.2}, {most:.2} ms")
    };
    table.row(["resident, nothing placed".to_owned(), mega(before)]);
    table.row([format!("resident, {apps} apps placed one after the other"), mega(placed.resident)]);
    table.row([format!("  {} s later", IDLE.as_secs()), mega(placed_idle.resident)]);
    table.row([format!("resident, {apps} apps after a restart"), mega(resident.resident)]);
    table.row([format!("  {} s later", IDLE.as_secs()), mega(resident_idle.resident)]);
    table.row(["  of it in no file".to_owned(), mega(resident_idle.anonymous)]);
    table.row(["resident, after the calls".to_owned(), mega(called)]);
    table
        .row(["from its start until all are up, from the cache".to_owned(), format!("{:.1} s", restart.as_secs_f64())]);
    table.row(["first request to one that is mapped, p50 and p99".to_owned(), times(&near)]);
    table.row(["first request to one that is not, p50 and p99".to_owned(), times(&far_first)]);
    table.row(["the request after that".to_owned(), times(&far_again)]);
    table.row(["processor time when idle".to_owned(), format!("{idle:.2}% of one")]);
    table.row(["of scheduler, broker and ingress beside it".to_owned(), format!("{idle_up:.2}% of one")]);
    for (when, gap) in [("they are placed", gap), ("it is idle", idle_gap), ("they are called", call_gap)] {
        table.row([format!("longest time between heartbeats while {when}"), format!("{:.1} s", gap.as_secs_f64())]);
    }
    table.print();
    let others: Vec<_> = PUBLISHED.iter().map(|(name, megabytes)| format!("{name} {megabytes} MB")).collect();
    println!("  others with nothing to run: {}", others.join("; "));
    Ok(())
}

fn up_cpu(up: &Up) -> Result<Duration> {
    machine::cpu(up.process.pid())
}

/// So many apps, each of a component that nobody has seen.
fn apply(up: &Up, dir: &Path, apps: usize) -> Result<()> {
    let small = small::component()?;
    for first in (0..apps).step_by(AT_ONCE) {
        let mut text = String::new();
        for number in first..apps.min(first + AT_ONCE) {
            let image = dir.join(format!("small-{number}.wasm"));
            std::fs::write(&image, distinct(small.clone(), number)?).context("a component")?;
            let name = format!("app-{number}");
            let app = App { name: &name, image: &image, at: Some(("role", "dense")), store_at: None };
            let _ = write!(text, "---\n{}", app.manifest(""));
        }
        let manifest = dir.join("many.yaml");
        std::fs::write(&manifest, text).context("the manifest of many")?;
        let manifest = manifest.to_str().context("the target folder has a name that is not text")?;
        up.run(&["apply", manifest, "--timeout", "600s"])?;
    }
    Ok(())
}

/// Until the host says that all that it was assigned is up.
fn until_ready(bench: &Bench, admin: SocketAddr) -> Result<()> {
    let end = Instant::now() + RESTART_MAX;
    bench.runtime.block_on(async {
        let mut connection = Connection::open(Target::new(admin, "localhost", "/readyz")).await?;
        while connection.get().await? != 200 {
            ensure!(Instant::now() < end, "the host is not ready after {RESTART_MAX:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    })
}

/// One request to each, on a connection that is there already; in order of the time they took.
fn call_each(bench: &Bench, ingress: SocketAddr, names: &[&String]) -> Result<Vec<u32>> {
    let mut times = bench.runtime.block_on(async {
        let mut times = Vec::new();
        for name in names {
            let mut connection = Connection::open(Target::new(ingress, &format!("{name}.localhost"), "/")).await?;
            let began = Instant::now();
            let status = connection.get().await?;
            times.push(u32::try_from(began.elapsed().as_micros()).unwrap_or(u32::MAX));
            ensure!(status == 200, "{name} answered {status}");
        }
        anyhow::Ok(times)
    })?;
    times.sort_unstable();
    Ok(times)
}

/// When a host was heard, as anybody on the bus hears it.
struct Beats(Arc<Mutex<Heard>>);

struct Heard {
    last: Instant,
    longest: Duration,
}

impl Beats {
    async fn watch(bus: &str, host: &str) -> Result<Self> {
        let subjects = Subjects::new(&"default".parse()?);
        let client = async_nats::connect(bus).await.context("the bus")?;
        let mut beats = client.subscribe(subjects.beat(&host.parse()?)).await.context("the bus")?;
        let heard = Arc::new(Mutex::new(Heard { last: Instant::now(), longest: Duration::ZERO }));
        let noted = heard.clone();
        tokio::spawn(async move {
            let _client = client;
            while beats.next().await.is_some() {
                let mut heard = noted.lock().unwrap_or_else(PoisonError::into_inner);
                heard.longest = heard.longest.max(heard.last.elapsed());
                heard.last = Instant::now();
            }
        });
        Ok(Self(heard))
    }

    /// Since this was asked last.
    fn longest(&self) -> Duration {
        let mut heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut heard.longest).max(heard.last.elapsed())
    }
}
