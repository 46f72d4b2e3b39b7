//! A host with many apps of distinct components, of which few are called: what they keep in memory, how soon one answers
//! that nobody called for long, and what the host does when nothing happens.

use crate::Bench;
use crate::apply::new_component;
use crate::figures::{Table, number, percentile};
use crate::lattice::{self, App, Up};
use crate::load::{Connection, Target};
use crate::machine;
use anyhow::{Context as _, Result, ensure};
use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Apps of one apply.
const AT_ONCE: usize = 50;
/// Apps that are called, one request each.
const CALLED: usize = 300;
const IDLE: Duration = Duration::from_secs(10);

pub(crate) fn run(bench: &Bench) -> Result<()> {
    let dir = bench.folder("density")?;
    let apps = if bench.quick { 100 } else { 1_000 };
    let up = Up::start(&dir.join("up"), &["--label", "role=ingress"])?;
    let mut host = lattice::host(&dir.join("host"), &up.bus, &["--label", "role=dense", "--ingress", "127.0.0.1:0"])?;
    let ingress = host.said("ingress ")?;
    let ingress = ingress.trim_start_matches("http://").trim_end_matches('/').parse().context("the host's ingress")?;
    let before = machine::memory(host.pid())?.resident;
    let began = Instant::now();
    for first in (0..apps).step_by(AT_ONCE) {
        let mut text = String::new();
        for number in first..apps.min(first + AT_ONCE) {
            let component = new_component(bench, &dir, number)?;
            let name = format!("app-{number}");
            let app = App { name: &name, image: &component, at: Some(("role", "dense")), store_at: None };
            text.push_str("---\n");
            text.push_str(&fs::read_to_string(app.write(&dir)?)?);
        }
        let manifest = dir.join("many.yaml");
        fs::write(&manifest, text)?;
        up.apply(&manifest)?;
    }
    println!("  {apps} apps of distinct components applied in {:.0} s", began.elapsed().as_secs_f64());
    let placed = machine::memory(host.pid())?.resident;
    let cpu = machine::cpu(host.pid())?;
    sleep(IDLE);
    let idle = (machine::cpu(host.pid())? - cpu).as_secs_f64() / IDLE.as_secs_f64();
    // In an order in which none was wanted lately.
    let mut times = bench.runtime.block_on(async {
        let mut times = Vec::new();
        for turn in 0..CALLED.min(apps) {
            let target = Target::new(ingress, &format!("app-{}.localhost", turn * 37 % apps), "/");
            let mut connection = Connection::open(target).await?;
            let began = Instant::now();
            let status = connection.get().await?;
            ensure!(status == 200, "app-{} answered {status}", turn * 37 % apps);
            times.push(u32::try_from(began.elapsed().as_micros()).unwrap_or(u32::MAX));
        }
        anyhow::Ok(times)
    })?;
    times.sort_unstable();
    let hosts = up.run(&["get", "hosts"])?;
    ensure!(!hosts.contains("suspect") && !hosts.contains("lost"), "a host was not heard in time:\n{hosts}");
    let called = machine::memory(host.pid())?.resident;
    let mut table = Table::new(["of the host", "figure"]);
    let mega = |bytes: u64| format!("{} MB", number(bytes as f64 / 1e6));
    table.row(["resident, nothing placed".to_owned(), mega(before)]);
    table.row([format!("resident, {apps} apps placed"), mega(placed)]);
    table.row(["resident, after the calls".to_owned(), mega(called)]);
    table.row([
        "first request, p50 and p99".to_owned(),
        format!("{:.0}, {:.0} us", percentile(&times, 0.5), percentile(&times, 0.99)),
    ]);
    table.row(["processor time when idle".to_owned(), format!("{:.2}% of one", idle * 100.0)]);
    table.print();
    Ok(())
}
