//! What processes that have nothing to do keep in memory.

use crate::Bench;
use crate::figures::{Table, number, ratio};
use crate::lattice::{self, App, Up};
use crate::machine::{self, Memory};
use crate::process::{Nats, Serve};
use anyhow::{Context as _, Result};
use std::thread::sleep;
use std::time::Duration;

/// What their makers say that others keep in memory, in MB: https://docs.k3s.io/reference/resource-profiling and KubeEdge's
/// list of what it is good for. That of wasmCloud was measured on a machine like this, idle.
pub(crate) const PUBLISHED: &[(&str, f64)] = &[
    ("k3s agent, as published", 275.0),
    ("KubeEdge EdgeCore, as published", 70.0),
    ("wasmCloud host 1.9.2, measured before", 25.0),
];

pub(crate) fn run(bench: &Bench) -> Result<()> {
    let dir = bench.folder("memory")?;
    let component = bench.component("hello");
    let up = Up::start(&dir.join("up"), &[])?;
    let with_app = Up::start(&dir.join("app"), &[])?;
    with_app.apply(&App { name: "hello", image: &component, at: None, store_at: None }.write(&dir)?)?;
    let nats = bench.nats_server().map(|binary| Nats::start(&binary, &dir)).transpose()?;
    let bus = nats.as_ref().map_or(&up.bus, |nats| &nats.url);
    let host = lattice::host(&dir.join("host"), bus, &[])?;
    let serve = bench.wasmtime().map(|w| Serve::start(&w, &component, &[], dir.join("serve.log"))).transpose()?;
    // Whoever warms up has done so.
    sleep(Duration::from_secs(if bench.quick { 2 } else { 10 }));
    let mut processes = vec![
        ("lattice host, nothing to run", host.pid()),
        ("lattice up, nothing to run", up.process.pid()),
        ("lattice up, hello", with_app.process.pid()),
    ];
    processes.extend(serve.as_ref().map(|serve| ("wasmtime serve, hello", serve.process.pid())));
    processes.extend(nats.as_ref().map(|nats| ("nats-server, one client", nats.process.pid())));
    let measured: Vec<(&str, Memory)> = processes
        .into_iter()
        .map(|(name, pid)| Ok((name, machine::memory(pid).with_context(|| name.to_owned())?)))
        .collect::<Result<_>>()?;
    let mut table =
        Table::new(["process", "resident MB", "of it in no file MB", "threads", "resident to lattice host"]);
    let first = measured.first().map_or(0, |(_, memory)| memory.resident) as f64;
    for (name, memory) in &measured {
        table.row([
            (*name).to_owned(),
            number(memory.resident as f64 / 1e6),
            number(memory.anonymous as f64 / 1e6),
            memory.threads.to_string(),
            ratio(memory.resident as f64 / first),
        ]);
    }
    for (name, megabytes) in PUBLISHED {
        let none = || "-".to_owned();
        table.row([(*name).to_owned(), number(*megabytes), none(), none(), ratio(megabytes * 1e6 / first)]);
    }
    table.print();
    Ok(())
}
