//! The counter example's read through two lattice processes: its store on the same host, and on the other one. Hello
//! on the same host is what a request costs without a store.

use crate::Bench;
use crate::figures::{Series, Table};
use crate::lattice::{self, App, Up};
use crate::load::{self, Load, Target};
use crate::process::Nats;
use anyhow::{Context as _, Result, bail};
use std::time::{Duration, Instant};

const LOADS: [Load; 2] = [Load::all(1), Load::all(64)];
const JOIN_WAIT: Duration = Duration::from_secs(30);
const CLOUD: Option<(&str, &str)> = Some(("tier", "cloud"));
const EDGE: Option<(&str, &str)> = Some(("tier", "edge"));

pub(crate) fn run(bench: &Bench) -> Result<()> {
    let dir = bench.folder("counter")?;
    let nats = bench.nats_server().map(|binary| Nats::start(&binary, &dir)).transpose()?;
    let mut more = vec!["--label", "tier=cloud"];
    if let Some(nats) = &nats {
        more.extend(["--nats", &nats.url]);
    }
    let up = Up::start(&dir.join("up"), &more)?;
    let edge = lattice::host(&dir.join("edge"), &up.bus, &["--label", "tier=edge", "--name", "edge"])?;
    wait_for_hosts(&up, 2)?;
    let (hello, counter) = (bench.component("hello"), bench.component("counter"));
    let cases = [
        ("hello", "/", App { name: "hello", image: &hello, at: CLOUD, store_at: None }),
        ("counter, co-located", "/cats?peek", App { name: "here", image: &counter, at: CLOUD, store_at: CLOUD }),
        ("counter, across hosts", "/cats?peek", App { name: "apart", image: &counter, at: CLOUD, store_at: EDGE }),
    ];
    for (.., app) in &cases {
        up.apply(&app.write(&dir)?)?;
    }
    let pids: Vec<u32> =
        [up.process.pid(), edge.pid()].into_iter().chain(nats.as_ref().map(|n| n.process.pid())).collect();
    let mut measured = vec![vec![Figures::new(pids.len()); cases.len()]; LOADS.len()];
    for _ in 0..bench.rounds() {
        for (load, figures) in LOADS.iter().zip(&mut measured) {
            for ((name, path, app), figures) in cases.iter().zip(figures) {
                let target = Target::new(up.ingress, &app.host_name(), path);
                let sample = bench.runtime.block_on(load::run(&target, *load, bench.time(), &pids));
                figures.take(&sample.with_context(|| (*name).to_owned())?);
            }
        }
    }
    print(&cases.map(|(name, ..)| name), &measured);
    println!(
        "  a counter's request opens its bucket and gets one key; the bus is {}",
        if nats.is_some() { "a nats-server" } else { "the embedded broker, in `up`" }
    );
    Ok(())
}

fn wait_for_hosts(up: &Up, count: usize) -> Result<()> {
    let began = Instant::now();
    while up.run(&["get", "hosts", "-o", "name"])?.lines().count() < count {
        if began.elapsed() > JOIN_WAIT {
            bail!("{count} hosts did not join in {JOIN_WAIT:?}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

#[derive(Clone)]
struct Figures {
    per_second: Series,
    p50_us: Series,
    p99_us: Series,
    /// Of each process.
    cpu_us: Vec<Series>,
    /// Of all of them.
    all_us: Series,
}

impl Figures {
    fn new(processes: usize) -> Self {
        let none = Series::default;
        Self { per_second: none(), p50_us: none(), p99_us: none(), cpu_us: vec![none(); processes], all_us: none() }
    }

    fn take(&mut self, sample: &load::Sample) {
        self.per_second.push(sample.per_second);
        self.p50_us.push(sample.p50_us);
        self.p99_us.push(sample.p99_us);
        self.cpu_us.iter_mut().zip(&sample.cpu_us).for_each(|(series, cpu)| series.push(*cpu));
        self.all_us.push(sample.cpu_us.iter().sum());
    }

    fn process(&self, number: usize) -> String {
        self.cpu_us.get(number).map_or_else(|| "-".into(), Series::show)
    }
}

fn print(names: &[&str], measured: &[Vec<Figures>]) {
    let mut table = Table::new([
        "actor",
        "connections",
        "req/s",
        "min-max",
        "p50 us",
        "p99 us",
        "CPU us/req up",
        "host",
        "nats-server",
        "req/s to hello",
        "p50 to hello",
        "CPU to hello",
    ]);
    for (load, figures) in LOADS.iter().zip(measured) {
        for (name, f) in names.iter().zip(figures) {
            table.row([
                (*name).to_owned(),
                load.to_string(),
                f.per_second.show(),
                f.per_second.spread(),
                f.p50_us.show(),
                f.p99_us.show(),
                f.process(0),
                f.process(1),
                f.process(2),
                f.per_second.ratio_to(&figures[0].per_second),
                f.p50_us.ratio_to(&figures[0].p50_us),
                f.all_us.ratio_to(&figures[0].all_us),
            ]);
        }
    }
    table.print();
}
