//! The processes that are measured. Each is ended when what holds it is dropped; none that was not started here is
//! ever touched.

use anyhow::{Context as _, Result, bail};
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

const START_WAIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(5);

/// What runs now, for `end_all`.
static RUNNING: Mutex<Vec<Arc<Mutex<Child>>>> = Mutex::new(Vec::new());

/// A running process, its output in `log`.
pub(crate) struct Process {
    child: Arc<Mutex<Child>>,
    pid: u32,
    log: PathBuf,
}

/// Ends every process that runs: for when this one is told to end.
pub(crate) fn end_all() {
    for child in lock(&RUNNING).iter() {
        let _ = lock(child).kill();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Process {
    /// Starts it with its output in `log`. It has a pipe as standard input, which ends with this. It takes no
    /// backtraces, which would cost more than what is measured.
    pub(crate) fn start(command: &mut Command, log: PathBuf) -> Result<Self> {
        let out = File::create(&log).with_context(|| format!("can not write {}", log.display()))?;
        let err = out.try_clone().context("can not share a log")?;
        command.env_remove("RUST_BACKTRACE").env_remove("RUST_LIB_BACKTRACE");
        let child = command.stdin(Stdio::piped()).stdout(out).stderr(err).spawn();
        let child = child.with_context(|| format!("can not start {:?}", command.get_program()))?;
        let pid = child.id();
        let child = Arc::new(Mutex::new(child));
        lock(&RUNNING).push(child.clone());
        Ok(Self { child, pid, log })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Ends it at once, as a power cut would.
    pub(crate) fn kill(&self) -> Result<()> {
        let mut child = lock(&self.child);
        child.kill().context("can not end a process")?;
        child.wait().map(drop).context("can not wait for a process that was ended")
    }

    /// What follows `name` on the line of its output that begins with it.
    pub(crate) fn said(&mut self, name: &str) -> Result<String> {
        let log = self.log.clone();
        self.wait_for(&format!("says {name:?}"), || {
            let text = fs::read_to_string(&log).unwrap_or_default();
            let lines = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
            let mut found = lines.filter_map(|line| line.trim_start().strip_prefix(name));
            found.find_map(|rest| rest.split_whitespace().next().map(str::to_owned))
        })
    }

    /// Waits until something listens on `addr`.
    pub(crate) fn listens(&mut self, addr: SocketAddr) -> Result<()> {
        self.wait_for(&format!("listens on {addr}"), || TcpStream::connect(addr).ok().map(drop))
    }

    fn wait_for<T>(&mut self, what: &str, mut look: impl FnMut() -> Option<T>) -> Result<T> {
        let began = Instant::now();
        loop {
            if let Some(found) = look() {
                return Ok(found);
            }
            let ended = lock(&self.child).try_wait().context("can not look after a process")?;
            if ended.is_some() || began.elapsed() > START_WAIT {
                let text = fs::read_to_string(&self.log).unwrap_or_default();
                let why = ended.map_or_else(|| "in time".to_owned(), |status| format!("before it ended with {status}"));
                bail!("it never {what} {why}; its output:\n{}", text.trim_end());
            }
            sleep(POLL);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        lock(&RUNNING).retain(|other| !Arc::ptr_eq(other, &self.child));
        let mut child = lock(&self.child);
        // It may have ended by itself.
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// A port of loopback that was free a moment ago.
pub(crate) fn free_addr() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port on loopback")?;
    listener.local_addr().context("no free port on loopback")
}

/// Runs a command to its end and gives what it printed.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let out = command.stdin(Stdio::null()).output();
    let out = out.with_context(|| format!("can not start {:?}", command.get_program()))?;
    if !out.status.success() {
        bail!("{command:?} ended with {}: {}", out.status, String::from_utf8_lossy(&out.stderr).trim_end());
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// A nats-server of its own, on loopback.
pub(crate) struct Nats {
    pub(crate) process: Process,
    pub(crate) url: String,
}

impl Nats {
    pub(crate) fn start(binary: &Path, dir: &Path) -> Result<Self> {
        let addr = free_addr()?;
        let mut command = Command::new(binary);
        command.args(["-a", "127.0.0.1", "-p", &addr.port().to_string()]);
        let mut process = Process::start(&mut command, dir.join("nats-server.log"))?;
        process.listens(addr).context("nats-server")?;
        Ok(Self { process, url: format!("nats://{addr}") })
    }
}

/// `wasmtime serve` of one component.
pub(crate) struct Serve {
    pub(crate) process: Process,
    pub(crate) addr: SocketAddr,
}

impl Serve {
    /// `more` are further options. Returns as soon as it is started, before it listens.
    pub(crate) fn start(binary: &Path, component: &Path, more: &[&str], log: PathBuf) -> Result<Self> {
        let addr = free_addr()?;
        let mut command = Command::new(binary);
        command.args(["serve", "--addr", &addr.to_string(), "-S", "cli=y"]).args(more).arg(component);
        Ok(Self { process: Process::start(&mut command, log)?, addr })
    }
}
