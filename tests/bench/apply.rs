//! How long a developer waits: from the start of `lattice apply` until the ingress answers with the app, for bytes
//! that no host has seen and for bytes that it has compiled before; beside `wasmtime serve` from its start.

use crate::Bench;
use crate::figures::{Series, Table};
use crate::lattice::{App, Up};
use crate::load::{Connection, Target};
use crate::process::Serve;
use anyhow::{Context as _, Result, bail, ensure};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

const ANSWER_WAIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(1);

pub(crate) fn run(bench: &Bench) -> Result<()> {
    let dir = bench.folder("apply")?;
    let up = Up::start(&dir.join("up"), &[])?;
    let times = if bench.quick { 3 } else { 10 };
    let (mut fresh, mut again, mut serve) = (Times::default(), Times::default(), Series::default());
    for number in 0..times {
        let component = new_component(bench, &dir, number)?;
        fresh.take(apply(bench, &up, &dir, &format!("fresh-{number}"), &component)?);
        again.take(apply(bench, &up, &dir, &format!("again-{number}"), &component)?);
        if let Some(wasmtime) = bench.wasmtime() {
            serve.push(serve_once(bench, &wasmtime, &component, &dir)?);
        }
    }
    let mut table = Table::new([
        "from the start of",
        "first 200 ms",
        "min-max",
        "apply comes back ms",
        "min-max",
        "to wasmtime serve",
    ]);
    for (name, times) in [("lattice apply, bytes never seen", &fresh), ("lattice apply, bytes compiled before", &again)]
    {
        table.row([
            name.to_owned(),
            times.answer_ms.show(),
            times.answer_ms.spread(),
            times.exit_ms.show(),
            times.exit_ms.spread(),
            times.answer_ms.ratio_to(&serve),
        ]);
    }
    if bench.wasmtime().is_some() {
        let none = || "-".to_owned();
        table.row([
            "wasmtime serve, a new process".into(),
            serve.show(),
            serve.spread(),
            none(),
            none(),
            "1.00x".into(),
        ]);
    }
    table.print();
    Ok(())
}

#[derive(Default)]
struct Times {
    answer_ms: Series,
    exit_ms: Series,
}

impl Times {
    fn take(&mut self, (answer, exit): (Duration, Duration)) {
        self.answer_ms.push(answer.as_secs_f64() * 1e3);
        self.exit_ms.push(exit.as_secs_f64() * 1e3);
    }
}

/// Hello with a section of its own, so that its digest is new.
pub(crate) fn new_component(bench: &Bench, dir: &Path, number: usize) -> Result<PathBuf> {
    let hello = std::fs::read(bench.component("hello")).context("the component of hello")?;
    let path = dir.join(format!("hello-{number}.wasm"));
    let bytes = distinct(hello, number)?;
    std::fs::write(&path, bytes).with_context(|| format!("can not write {}", path.display()))?;
    Ok(path)
}

/// A component with a section of its own.
pub(crate) fn distinct(mut component: Vec<u8>, number: usize) -> Result<Vec<u8>> {
    let own = format!("bench {number} {:?} {}", std::time::SystemTime::now(), std::process::id());
    // A custom section of a component: id 0, its size, the name's size, the name, anything.
    let name = b"bench";
    let len = u8::try_from(1 + name.len() + own.len()).context("a section of more than a byte's length")?;
    ensure!(len < 0x80, "a section whose size takes two bytes");
    component.extend([0, len, u8::try_from(name.len())?]);
    component.extend_from_slice(name);
    component.extend_from_slice(own.as_bytes());
    Ok(component)
}

/// Until the first answer, and until the command came back, which waits for the app to run.
fn apply(bench: &Bench, up: &Up, dir: &Path, name: &str, component: &Path) -> Result<(Duration, Duration)> {
    let app = App { name, image: component, at: None, store_at: None };
    let manifest = app.write(dir)?;
    let manifest = manifest.to_str().context("the target folder has a name that is not text")?;
    let target = Target::new(up.ingress, &app.host_name(), "/");
    let mut command = up.command(&["apply", manifest]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let began = Instant::now();
    let mut child = command.spawn().context("can not start lattice apply")?;
    let waiter = std::thread::spawn(move || child.wait().map(|status| (status, Instant::now())));
    let answered = bench.runtime.block_on(first_answer(&target));
    let Ok(ended) = waiter.join() else { bail!("the thread that waits for lattice apply panicked") };
    let (status, at) = ended.context("lattice apply")?;
    ensure!(status.success(), "lattice apply {manifest} ended with {status}; see `up.log`");
    Ok((answered? - began, at - began))
}

/// When the first 200 was there.
async fn first_answer(target: &Target) -> Result<Instant> {
    let looking = async {
        loop {
            if let Ok(mut connection) = Connection::open(target.clone()).await {
                // An answer that is no 200 leaves the connection open.
                while let Ok(status) = connection.get().await {
                    if status == 200 {
                        return Instant::now();
                    }
                    tokio::time::sleep(POLL).await;
                }
            }
            tokio::time::sleep(POLL).await;
        }
    };
    tokio::time::timeout(ANSWER_WAIT, looking).await.with_context(|| format!("no 200 in {ANSWER_WAIT:?}"))
}

/// Milliseconds from the start of the process to its first answer.
fn serve_once(bench: &Bench, wasmtime: &Path, component: &Path, dir: &Path) -> Result<f64> {
    let began = Instant::now();
    let serve = Serve::start(wasmtime, component, &["-O", "pooling-allocator=y"], dir.join("serve.log"))?;
    let answered = bench.runtime.block_on(first_answer(&Target::new(serve.addr, "localhost", "/")))?;
    Ok((answered - began).as_secs_f64() * 1e3)
}
