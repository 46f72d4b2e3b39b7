//! The ingress with the smallest actor, beside `wasmtime serve` of the same component and a bare hyper server; once with
//! a fresh instance for each request, once with instances that serve many.

use crate::figures::{Series, Table};
use crate::lattice::{App, Up};
use crate::load::{self, Load, Target};
use crate::process::{Process, Serve};
use crate::{Bench, machine};
use anyhow::{Context as _, Result};
use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

/// The last is one that all of them can bear: what a request costs when there is time between two.
const LOADS: [Load; 3] = [Load::all(16), Load::all(64), Load { connections: 64, per_second: Some(8_000) }];
/// `wasmtime serve` as it comes, pooled, and with all that was found to make it faster here: parts of a slot kept
/// resident and reset by what the kernel knows of them, and no component async, which this component does not need.
const SERVE_OPTIONS: [(&str, &str); 4] = [
    ("wasmtime serve", ""),
    ("wasmtime serve, pooling", "-O pooling-allocator=y"),
    (
        "wasmtime serve, tuned",
        "-O pooling-allocator=y -O pooling-memory-keep-resident=65536 -O pooling-table-keep-resident=65536 \
         -O pooling-pagemap-scan=auto -W component-model-async=n",
    ),
    (
        SERVE_REUSED,
        "-O pooling-allocator=y -O pooling-memory-keep-resident=65536 -O pooling-table-keep-resident=65536 \
         -O pooling-pagemap-scan=auto -W component-model-async=n --max-instance-reuse-count 1000",
    ),
];
/// With instances that serve a thousand requests each.
const REUSED: &str = "lattice up, reuse";
const SERVE_REUSED: &str = "wasmtime serve, reuse";
const REUSE: &str = "        - { type: limits, properties: { reuse: 1000 } }\n";
const BARE: &str = "bare hyper";
/// What reuse can not be cheaper than, however the component is served with the library that runs it.
const BARE_COMPONENT: &str = "bare hyper, component";
/// Makes this program a bare server: of a text, or of the component that is named next.
pub(crate) const BARE_ARGUMENT: &str = "--bare-server";

pub(crate) fn run(bench: &Bench) -> Result<()> {
    let dir = bench.folder("hello")?;
    let servers = start(bench, &dir)?;
    let mut measured: Vec<Vec<Figures>> = vec![vec![Figures::default(); servers.len()]; LOADS.len()];
    for _ in 0..bench.rounds() {
        for (load, figures) in LOADS.iter().zip(&mut measured) {
            for (server, figures) in servers.iter().zip(figures) {
                let pids = [server.process.pid()];
                let sample = load::run(&server.target, *load, bench.time(), &pids);
                let sample = bench.runtime.block_on(sample).with_context(|| server.name.to_owned())?;
                figures.per_second.push(sample.per_second);
                figures.cpu_us.push(sample.cpu_us[0]);
                figures.own_us.push(sample.own_us);
                figures.p50_us.push(sample.p50_us);
                figures.p99_us.push(sample.p99_us);
            }
        }
    }
    print(&servers, &measured);
    for (load, figures) in LOADS.iter().zip(&measured) {
        let at = |name| servers.iter().position(|server| server.name == name).map(|at| &figures[at].cpu_us);
        let Some(own) = at(REUSED) else { continue };
        for (one, own, name) in [
            (REUSED, Some(own), SERVE_REUSED),
            (REUSED, Some(own), BARE_COMPONENT),
            (REUSED, Some(own), BARE),
            (BARE_COMPONENT, at(BARE_COMPONENT), BARE),
        ] {
            let ratio = own.zip(at(name)).map_or_else(|| "-".to_owned(), |(own, other)| own.ratio_to(other));
            println!("  {one}, connections {load}: {ratio} the CPU of {name}");
        }
    }
    println!("  lattice/it: lattice's figure over this server's, median of the rounds' ratios.");
    for (name, options) in SERVE_OPTIONS.iter().filter(|(_, options)| !options.is_empty()) {
        println!("  {name}: {options}");
    }
    let resident = servers.iter().map(|server| {
        Ok(format!("{} {:.0} MB", server.name, machine::memory(server.process.pid())?.resident as f64 / 1e6))
    });
    println!("  resident after it: {}", resident.collect::<Result<Vec<_>>>()?.join(", "));
    Ok(())
}

/// A server, running.
struct Server {
    name: &'static str,
    process: Arc<Process>,
    target: Target,
}

#[derive(Default, Clone)]
struct Figures {
    per_second: Series,
    cpu_us: Series,
    own_us: Series,
    p50_us: Series,
    p99_us: Series,
}

/// All of them, lattice first.
fn start(bench: &Bench, dir: &Path) -> Result<Vec<Server>> {
    let component = bench.component("hello");
    let app = App { name: "hello", image: &component, at: None, store_at: None };
    let up = Up::start(&dir.join("up"), &[])?;
    up.apply(&app.write(dir)?)?;
    let target = Target::new(up.ingress, &app.host_name(), "/");
    let reused = App { name: "reused", ..app };
    up.apply(&reused.write_with(dir, REUSE)?)?;
    let process = Arc::new(up.process);
    let reused = Target::new(up.ingress, &reused.host_name(), "/");
    let mut servers = vec![
        Server { name: "lattice up", process: process.clone(), target },
        Server { name: REUSED, process, target: reused },
    ];
    if let Some(wasmtime) = bench.wasmtime() {
        for (number, (name, options)) in SERVE_OPTIONS.iter().enumerate() {
            let log = dir.join(format!("serve-{number}.log"));
            let options: Vec<&str> = options.split_whitespace().collect();
            let mut serve = Serve::start(&wasmtime, &component, &options, log)?;
            serve.process.listens(serve.addr).with_context(|| (*name).to_owned())?;
            let target = Target::new(serve.addr, "localhost", "/");
            servers.push(Server { name, process: Arc::new(serve.process), target });
        }
    }
    for (name, of) in [(BARE_COMPONENT, Some(component.as_os_str())), (BARE, None)] {
        servers.push(bare(name, of, &dir.join(format!("{name}.log")))?);
    }
    Ok(servers)
}

fn bare(name: &'static str, component: Option<&OsStr>, log: &Path) -> Result<Server> {
    let own = std::env::current_exe().context("this program has no path")?;
    let mut process = Process::start(Command::new(own).arg(BARE_ARGUMENT).args(component), log.to_owned())?;
    let addr = process.said("listens ")?.parse().with_context(|| format!("the address of {name}"))?;
    Ok(Server { name, process: Arc::new(process), target: Target::new(addr, "localhost", "/") })
}

fn print(servers: &[Server], measured: &[Vec<Figures>]) {
    let mut table = Table::new([
        "server",
        "connections",
        "req/s",
        "min-max",
        "p50 us",
        "p99 us",
        "CPU us/req",
        "min-max",
        "of the load",
        "lattice/it req/s",
        "lattice/it CPU",
    ]);
    for (load, figures) in LOADS.iter().zip(measured) {
        for (server, f) in servers.iter().zip(figures) {
            table.row([
                server.name.to_owned(),
                load.to_string(),
                f.per_second.show(),
                f.per_second.spread(),
                f.p50_us.show(),
                f.p99_us.show(),
                f.cpu_us.show(),
                f.cpu_us.spread(),
                f.own_us.show(),
                figures[0].per_second.ratio_to(&f.per_second),
                figures[0].cpu_us.ratio_to(&f.cpu_us),
            ]);
        }
    }
    table.print();
}
