//! What this build costs, beside its peers, in one run on this machine: `cargo bench --bench lattice`. Figures of
//! different runs are not to be compared, ratios of one run are: all that is compared takes turns, round by round.
//!
//!     cargo bench --bench lattice                     everything, some minutes
//!     cargo bench --bench lattice -- hello apply      sections with one of these in their name
//!     cargo bench --bench lattice -- --quick          few and short rounds: to see that it works
//!     LATTICE_BENCH_PROGRAM=target/dist/lattice cargo bench --bench lattice       another build of it
//!
//! The peers are those that `tests/run` installs; one that is missing is named and the run ends with exit code 1.
//! Must only end processes that it started, and write beneath the target folder only.
//!
//! Reading order: this file, then a file per section; `load`, `process`, `lattice` and `machine` are what they use,
//! `figures` is the arithmetic.

mod apply;
mod compile;
mod control;
mod counter;
mod density;
mod etcd;
mod figures;
mod hello;
mod keyvalue;
mod lattice;
mod load;
mod machine;
mod memory;
mod plan;
mod process;
mod raft;
mod recovery;
mod small;
mod walls;

use anyhow::{Context as _, Result};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use tokio::runtime::Runtime;

/// Name, what it measures, and how.
type Section = (&'static str, &'static str, fn(&Bench) -> Result<()>);

const SECTIONS: &[Section] = &[
    ("hello", "requests to an actor that answers one line, a fresh instance for each", hello::run),
    ("keyvalue", "one wasi:keyvalue get of 100 bytes, as the host's own code calls it", keyvalue::run),
    ("counter", "requests to an actor that gets one value of wasi:keyvalue and answers it", counter::run),
    ("plan", "placement on 5,000 hosts", plan::run),
    ("apply", "from `lattice apply` to the first answer", apply::run),
    ("compile", "components that nobody has seen, and their neighbour meanwhile", compile::run),
    ("raft", "committed entries of 1 KiB, one member, beside the same disk alone", raft::run),
    ("control", "writes through the API of 1 and 3 schedulers, beside etcd on the same disk", control::run),
    ("failover", "from the leader killed to the next write, three schedulers beside three of etcd", control::failover),
    ("recovery", "killed with a long log, started, until it answers: one scheduler beside one etcd", recovery::run),
    ("memory", "resident memory of idle processes", memory::run),
    ("density", "a host with 10,000 apps of distinct components that few call", density::run),
    ("walls", "what one actor's clients notice of a hundred hostile actors beside it", walls::run),
];

/// What a section needs to know.
pub(crate) struct Bench {
    pub(crate) quick: bool,
    pub(crate) runtime: Runtime,
    /// An empty folder, on the disk that the target folder is on.
    dir: tempfile::TempDir,
    root: PathBuf,
}

fn main() -> ExitCode {
    let typed: Vec<String> = std::env::args().skip(1).collect();
    match typed.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [hello::BARE_ARGUMENT] => return ended(peers::serve_text()),
        [hello::BARE_ARGUMENT, component] => return ended(peers::serve_component(component.as_ref())),
        _ => {}
    }
    // cargo adds --bench.
    let (flags, names): (Vec<_>, Vec<_>) = typed.iter().filter(|a| *a != "--bench").partition(|a| a.starts_with('-'));
    let unknown = flags.iter().find(|flag| **flag != "--quick");
    let chosen: Vec<_> =
        SECTIONS.iter().filter(|s| names.is_empty() || names.iter().any(|n| s.0.contains(*n))).collect();
    if unknown.is_some() || chosen.is_empty() {
        let sections: Vec<_> = SECTIONS.iter().map(|(name, ..)| *name).collect();
        eprintln!("usage: cargo bench --bench lattice -- [NAME…] [--quick]; names are: {}", sections.join(" "));
        return ExitCode::from(2);
    }
    match Bench::new(!flags.is_empty()) {
        Ok(bench) => ended(bench.all(&chosen)),
        Err(error) => ended(Err(error)),
    }
}

fn ended(result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// At Ctrl-C or SIGTERM nothing is left behind.
async fn end_when_told(dir: PathBuf) -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    process::end_all();
    let _ = std::fs::remove_dir_all(dir);
    std::process::exit(130);
}

impl Bench {
    fn new(quick: bool) -> Result<Self> {
        let runtime = Runtime::new().context("can not start a runtime")?;
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).context("no folder beneath the target folder")?;
        runtime.spawn(end_when_told(dir.path().to_owned()));
        Ok(Self { quick, runtime, dir, root: PathBuf::from(env!("CARGO_MANIFEST_DIR")) })
    }

    /// Runs the sections one after the other. What fails does not keep the others from running.
    fn all(&self, sections: &[&Section]) -> Result<()> {
        println!("{}", machine::line());
        println!("{}", self.versions());
        if self.quick {
            println!("--quick: rounds are too few and too short for figures to be trusted");
        }
        let mut problems = self.missing();
        for (name, what, run) in sections {
            println!("\n== {name}: {what}");
            let others = machine::Others::watch()?;
            if let Err(error) = run(self) {
                eprintln!("  FAILED: {error:#}");
                problems.push(format!("{name}: {error:#}"));
            }
            println!("  (others took {:.0}% of the cpus meanwhile)", others.percent()?);
        }
        if problems.is_empty() { Ok(()) } else { anyhow::bail!("not all was measured:\n  {}", problems.join("\n  ")) }
    }

    fn versions(&self) -> String {
        let version = |path: Option<PathBuf>| {
            path.and_then(|p| process::output(std::process::Command::new(p).arg("--version")).ok())
        };
        let peers = [self.wasmtime(), self.nats_server()].map(version);
        let peers: Vec<_> = peers.iter().flatten().map(|v| v.trim()).collect();
        let other = std::env::var(lattice::OTHER).map(|path| format!(", {path}")).unwrap_or_default();
        format!("lattice {}{other}; beside it: {}", env!("CARGO_PKG_VERSION"), peers.join(", "))
    }

    fn missing(&self) -> Vec<String> {
        let lacks = |name: &str, found: Option<PathBuf>| {
            let problem =
                format!("MISSING: {name}: not in target/tools/bin; `tests/run` installs it. Going on without");
            found.is_none().then(|| {
                eprintln!("{problem}");
                problem
            })
        };
        [lacks("wasmtime", self.wasmtime()), lacks("nats-server", self.nats_server()), lacks("etcd", self.etcd())]
            .into_iter()
            .flatten()
            .collect()
    }

    /// The wasmtime command line, if it is here.
    pub(crate) fn wasmtime(&self) -> Option<PathBuf> {
        self.tool("wasmtime")
    }

    pub(crate) fn etcd(&self) -> Option<PathBuf> {
        self.tool("etcd")
    }

    pub(crate) fn nats_server(&self) -> Option<PathBuf> {
        self.tool("nats-server")
    }

    fn tool(&self, name: &str) -> Option<PathBuf> {
        let path = self.root.join("target/tools/bin").join(name);
        path.is_file().then_some(path)
    }

    /// The component of an example.
    pub(crate) fn component(&self, example: &str) -> PathBuf {
        self.root.join(format!("manifests/{example}/{example}.wasm"))
    }

    /// A folder of this run for one section, made.
    pub(crate) fn folder(&self, section: &str) -> Result<PathBuf> {
        let path = self.path().join(section);
        std::fs::create_dir_all(&path).with_context(|| format!("can not make {}", path.display()))?;
        Ok(path)
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn rounds(&self) -> usize {
        if self.quick { 2 } else { 5 }
    }

    /// Of one round.
    pub(crate) fn time(&self) -> Duration {
        Duration::from_millis(if self.quick { 400 } else { 2_000 })
    }
}
