//! What every scenario stands on: real processes in a folder of their own, on ports that nobody chose, on either bus.
//! Waiting is always for a state, with a deadline; nothing here sleeps to let time pass.

mod broker;
mod cluster;
#[cfg(target_os = "linux")]
mod disk;
pub(crate) mod http;
mod lattice;
pub(crate) mod load;
pub(crate) mod manifests;
mod process;

pub(crate) use broker::{Broker, NatsServer, nats_server};
pub(crate) use cluster::{Cluster, finish};
#[cfg(target_os = "linux")]
pub(crate) use disk::Disk;
pub(crate) use lattice::{Lattice, PROGRAM, address, clean};
pub(crate) use process::Process;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often a state is looked at.
pub(crate) const POLL: Duration = Duration::from_millis(50);
/// For what takes a moment on an idle machine: a state that should come at once.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// Scenarios at once: each has several processes, and the machine may have two cores.
const AT_ONCE: usize = 2;

static RUNNING: Mutex<usize> = Mutex::new(0);
static ENDED: Condvar = Condvar::new();

struct Turn;

impl Turn {
    fn take() -> Self {
        let running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        let mut running = ENDED.wait_while(running, |n| *n >= AT_ONCE).unwrap_or_else(PoisonError::into_inner);
        *running += 1;
        Self
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *RUNNING.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        ENDED.notify_one();
    }
}

/// Runs one scenario on one bus when its turn has come.
pub(crate) fn run(name: &str, broker: Broker, scenario: impl FnOnce(Broker)) {
    let _turn = Turn::take();
    let begun = Instant::now();
    scenario(broker);
    eprintln!("{name} on {broker:?}: {:.1} s", begun.elapsed().as_secs_f64());
}

/// Runs what needs no bus when its turn has come.
pub(crate) fn alone(scenario: fn()) {
    let _turn = Turn::take();
    scenario();
}

/// Makes two tests of each scenario: one on the embedded broker, one on nats-server.
macro_rules! scenarios {
    ($($name:ident),+ $(,)?) => {$(
        mod $name {
            use crate::harness::{Broker, run};

            #[test]
            fn on_the_embedded_broker() {
                run(stringify!($name), Broker::Embedded, super::$name);
            }
            #[test]
            fn on_nats_server() {
                run(stringify!($name), Broker::Nats, super::$name);
            }
        }
    )+};
}
pub(crate) use scenarios;

/// Looks at `state` until it gives something; fails when it gave nothing for so long.
pub(crate) fn until<T>(what: &str, within: Duration, mut state: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + within;
    loop {
        if let Some(found) = state() {
            return found;
        }
        assert!(Instant::now() < end, "not so within {within:?}: {what}");
        std::thread::sleep(POLL);
    }
}

/// Fails when `state` is ever not so during `time`: for what must not happen.
pub(crate) fn throughout(what: &str, time: Duration, mut state: impl FnMut() -> bool) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        assert!(state(), "no longer so: {what}");
        std::thread::sleep(POLL);
    }
}

/// Says, at the end of the run too, what was not tested here and why.
pub(crate) fn leave_out(what: &str) {
    eprintln!("left out: {what}");
    let list = file("target/left-out.txt");
    let mut list = std::fs::OpenOptions::new().create(true).append(true).open(list).unwrap();
    list.write_all(format!("{what}\n").as_bytes()).unwrap();
}

/// The folder of the workspace.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A file of the workspace.
pub(crate) fn file(path: &str) -> PathBuf {
    root().join(path)
}

/// Runs a command of the machine to its end, or says why it did not do what it should.
pub(crate) fn shell(command: &mut Command) -> Result<(), String> {
    let name = command.get_program().display().to_string();
    let output = command.output().map_err(|e| format!("{name}: {e}"))?;
    let says = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if output.status.success() { Ok(()) } else { Err(format!("{name}: {says}")) }
}
