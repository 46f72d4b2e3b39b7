//! What compiling costs: how long a developer waits for a component that nobody has seen, and what it takes from who is
//! served meanwhile.

use crate::figures::{Series, Table, ratio};
use crate::lattice::{App, Up};
use crate::load::{self, Load, Target};
use crate::{Bench, machine};
use anyhow::{Context as _, Result};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Compiled while a neighbour serves.
const COMPONENTS: usize = 20;
/// Bytes of each of them, and of the one that is waited for.
const SMALL_BYTES: usize = 400_000;
const LARGE_BYTES: usize = 2_000_000;
const LOAD: Load = Load::all(16);

pub(crate) fn run(bench: &Bench) -> Result<()> {
    let dir = bench.folder("compile")?;
    let up = Up::start(&dir.join("up"), &[])?;
    let mut waited = Series::default();
    for number in 0..if bench.quick { 2 } else { 5 } {
        let component = larger(bench, &dir, &format!("large-{number}"), LARGE_BYTES)?;
        let app = App { name: &format!("large-{number}"), image: &component, at: None, store_at: None };
        let manifest = app.write(&dir)?;
        let began = Instant::now();
        up.apply(&manifest)?;
        waited.push(began.elapsed().as_secs_f64() * 1e3);
    }
    println!("  apply of {LARGE_BYTES} bytes never seen, until it runs: {} ms ({})", waited.show(), waited.spread());

    let good = App { name: "good", image: &bench.component("hello"), at: None, store_at: None };
    up.apply(&good.write(&dir)?)?;
    let target = Target::new(up.ingress, &good.host_name(), "/");
    let manifests: Vec<PathBuf> = (0..COMPONENTS)
        .map(|number| {
            let name = format!("small-{number}");
            let component = larger(bench, &dir, &name, SMALL_BYTES)?;
            App { name: &name, image: &component, at: None, store_at: None }.write(&dir)
        })
        .collect::<Result<_>>()?;
    let pids = [up.process.pid()];
    let before = bench.runtime.block_on(load::run(&target, LOAD, bench.time() * 2, &pids))?;
    let children = machine::cpu_of_children(pids[0])?;
    let (during, took) = std::thread::scope(|scope| {
        let applying = scope.spawn(|| {
            let began = Instant::now();
            manifests.iter().try_for_each(|manifest| up.apply(manifest)).map(|()| began.elapsed())
        });
        let mut samples = Vec::new();
        // As long as it takes, and once at least.
        while samples.is_empty() || !applying.is_finished() {
            samples.push(bench.runtime.block_on(load::run(&target, LOAD, Duration::from_secs(1), &pids)));
        }
        let took = applying.join().ok().context("whoever applied panicked")??;
        anyhow::Ok((samples.into_iter().collect::<Result<Vec<_>>>()?, took))
    })?;
    let compiler = machine::cpu_of_children(pids[0])? - children;
    let mut table = Table::new(["a neighbour", "req/s", "p99 us", "req/s to before"]);
    let mut row = |name: &str, per_second: f64, p99: f64| {
        let cells = [format!("{per_second:.0}"), format!("{p99:.0}"), ratio(per_second / before.per_second)];
        let [per_second, p99, to_before] = cells;
        table.row([name.to_owned(), per_second, p99, to_before]);
    };
    row("before", before.per_second, before.p99_us);
    let median = |of: fn(&load::Sample) -> f64| during.iter().map(of).collect::<Series>().median();
    row("while they are compiled", median(|s| s.per_second), median(|s| s.p99_us));
    table.print();
    println!(
        "  {COMPONENTS} components of {SMALL_BYTES} bytes, one apply after the other: {:.1} s; the compiler took {:.0}% of a \
         core meanwhile",
        took.as_secs_f64(),
        compiler.as_secs_f64() / took.as_secs_f64() * 100.0
    );
    println!("  wasmCloud host 1.9.2, measured before: 10,676 requests/s before, 946 while 20 are started");
    Ok(())
}

/// Hello with a core module that nobody calls, of about so many bytes, and in no other.
fn larger(bench: &Bench, dir: &Path, name: &str, bytes: usize) -> Result<PathBuf> {
    /// Bytes of a step of a function, and its steps.
    const STEP_BYTES: usize = 12;
    const STEPS: usize = 100;
    let own: u32 = name.bytes().fold(std::process::id(), |sum, b| sum.wrapping_mul(31).wrapping_add(b.into()));
    let mut text = String::from("(module");
    for function in 0..bytes / (STEP_BYTES * STEPS) {
        let _ = write!(text, "(func (export \"{function}\") (param i32 i32) (result i32)");
        for step in 0..STEPS {
            let number = own.wrapping_add(u32::try_from(function * STEPS + step)?) | 1 << 30;
            let _ = write!(text, " local.get 0 i32.const {number} i32.mul local.get 1 i32.xor local.set 0");
        }
        text.push_str(" local.get 0)");
    }
    text.push(')');
    let module = wat::parse_str(&text).context("a module of the bench's own")?;
    let mut component = std::fs::read(bench.component("hello")).context("the component of hello")?;
    // A section of a component that holds a core module: id 1, its size in LEB128, the module.
    component.push(1);
    let mut rest = module.len();
    while rest >= 0x80 {
        component.push(u8::try_from(rest & 0x7f)? | 0x80);
        rest >>= 7;
    }
    component.push(u8::try_from(rest)?);
    component.extend_from_slice(&module);
    let path = dir.join(format!("{name}.wasm"));
    std::fs::write(&path, component).with_context(|| format!("can not write {}", path.display()))?;
    Ok(path)
}
