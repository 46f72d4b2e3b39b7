//! The built-in key-value provider: durable, on sled, one store per host for every provider placed there. A write
//! that was answered survives a power cut; reads and writes of different apps, providers, buckets and capabilities
//! never meet. It never retries a disk that failed.
//!
//! Reading order: `record` (the bytes, pure), `table` (sled), `commit` (the one writer), `views` (what links see).

mod commit;
mod record;
mod table;
mod views;

use crate::call::LinkContext;
use crate::capability::keystore::KeyStore;
use crate::capability::keyvalue::{BUCKET_BYTES_MAX, KeyValue, VALUE_BYTES_MAX};
use commit::{Health, Outcome, Queue, Write};
use proto::app::Name;
use record::Namespace;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::Duration;
use table::{Fault, Table};

/// Bytes of all values that one `set_many` takes or one `get_many` gives.
pub const BATCH_BYTES_MAX: usize = 8 * 1024 * 1024;
/// How often expired records are removed. They are invisible from the moment they expire.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// Unix time in milliseconds.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("key-value store {dir}: {source}; check that the folder is writable and the disk not full")]
    Folder { dir: String, source: std::io::Error },
    #[error("key-value store {dir} is open in another process: stop that host, or give this one its own data folder")]
    Busy { dir: String },
    #[error("key-value store {dir} is damaged ({why}): restore the folder from a copy, or move it away to begin anew")]
    Damaged { dir: String, why: String },
}

impl Error {
    fn from_open(dir: &Path, e: sled::Error) -> Self {
        let dir = dir.display().to_string();
        match e {
            // sled names no kind for it.
            sled::Error::Io(io) if io.to_string().contains("could not acquire lock") => Self::Busy { dir },
            sled::Error::Io(source) => Self::Folder { dir, source },
            other => Self::Damaged { dir, why: other.to_string() },
        }
    }
}

/// Counted since the store was opened. Fewer syncs than writes is what group commit is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stats {
    pub writes: u64,
    pub syncs: u64,
}

/// The host's store. Cheap to clone; closed when the last clone and the last view are dropped.
#[derive(Clone)]
pub struct KeyvalueStore {
    inner: Arc<Inner>,
}

struct Inner {
    table: Arc<Table>,
    health: Arc<Health>,
    clock: Clock,
    /// `None` only while closing.
    queue: Option<Arc<Queue>>,
    writer: Option<std::thread::JoinHandle<()>>,
    sweeper: Option<(mpsc::Sender<()>, std::thread::JoinHandle<()>)>,
}

impl KeyvalueStore {
    pub fn open(dir: &Path) -> Result<Self, Error> {
        Self::open_with_clock(dir, Arc::new(now_ms))
    }

    /// With another notion of time, for expiry.
    pub fn open_with_clock(dir: &Path, clock: Clock) -> Result<Self, Error> {
        Self::open_with(dir, clock, Box::new(Table::sync))
    }

    fn open_with(dir: &Path, clock: Clock, sync: commit::Sync) -> Result<Self, Error> {
        let table = Arc::new(Table::open(dir)?);
        let health = Arc::new(Health::default());
        let at = dir.display().to_string();
        let (queue, writer) = commit::start(table.clone(), health.clone(), clock.clone(), sync, at.clone())?;
        let queue = Arc::new(queue);
        let sweeper = sweep_regularly(queue.clone()).map_err(|source| Error::Folder { dir: at, source })?;
        let (queue, writer, sweeper) = (Some(queue), Some(writer), Some(sweeper));
        Ok(Self { inner: Arc::new(Inner { table, health, clock, queue, writer, sweeper }) })
    }

    /// wasi:keyvalue as `link` sees the provider `component` of `app`.
    pub fn keyvalue(&self, app: &Name, component: &Name, link: LinkContext) -> Arc<dyn KeyValue> {
        Arc::new(views::View::new(self.clone(), Namespace::KeyValue, app, component, link))
    }

    /// lattice:keystore as `link` sees the provider `component` of `app`.
    pub fn keystore(&self, app: &Name, component: &Name, link: LinkContext) -> Arc<dyn KeyStore> {
        Arc::new(views::View::new(self.clone(), Namespace::KeyStore, app, component, link))
    }

    pub fn stats(&self) -> Stats {
        self.inner.health.stats()
    }

    /// Why the store stopped serving: the disk failed. Lasts until the host is restarted.
    pub fn failure(&self) -> Option<String> {
        self.inner.health.failure().map(str::to_owned)
    }

    /// Removes what has expired; how many. Done every second anyway.
    pub async fn sweep(&self) -> Result<usize, String> {
        match self.inner.write(Write::Sweep).await {
            Ok(Outcome::Swept(count)) => Ok(count),
            Ok(_) => Ok(0),
            Err(Fault::Refused(why) | Fault::Broken(why)) => Err(why),
        }
    }
}

impl Inner {
    async fn write(&self, write: Write) -> Result<Outcome, Fault> {
        self.health.check()?;
        self.queue.as_ref().expect("taken only when dropped").write(write).await
    }

    /// Runs a read; a disk error there is told but does not end the store: nothing was promised by a read.
    fn read<T>(&self, read: impl FnOnce(&Table, u64) -> Result<T, Fault>) -> Result<T, Fault> {
        self.health.check()?;
        read(&self.table, (self.clock)())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some((stop, sweeper)) = self.sweeper.take() {
            drop(stop);
            let _ = sweeper.join();
        }
        drop(self.queue.take());
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// A thread that asks for sweeps until its sender is dropped.
fn sweep_regularly(queue: Arc<Queue>) -> std::io::Result<(mpsc::Sender<()>, std::thread::JoinHandle<()>)> {
    let (stop, stopped) = mpsc::channel::<()>();
    let run = move || {
        while let Err(mpsc::RecvTimeoutError::Timeout) = stopped.recv_timeout(SWEEP_EVERY) {
            // A full turn means that there may be more.
            while let Some(answer) = queue.try_sweep() {
                match answer.blocking_recv() {
                    Ok(Ok(Outcome::Swept(n))) if n > 0 => {}
                    _ => break,
                }
            }
        }
    };
    let thread = std::thread::Builder::new().name("keyvalue-sweeper".into()).spawn(run)?;
    Ok((stop, thread))
}

#[cfg(test)]
mod tests;
