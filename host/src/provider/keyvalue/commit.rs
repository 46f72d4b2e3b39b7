//! The one writer: applies what is queued, syncs once for all of it, then answers. Being alone, it needs no lock to
//! read and change a key in one step. After a disk error it never writes or syncs again.

use super::table::{Fault, Table};
use super::{Clock, Stats};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

/// Writes waiting for the writer; the next waits to get in.
const QUEUE_LEN_MAX: usize = 1024;
/// Bytes of all waiting writes.
const QUEUE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Writes that share a sync.
const GROUP_LEN_MAX: usize = 512;
/// Expired records removed in one turn.
const SWEEP_MAX: usize = 1000;

/// One change. Keys are whole record keys.
#[derive(Debug)]
pub(super) enum Write {
    Set {
        key: Vec<u8>,
        value: Bytes,
        expires_ms: u64,
    },
    SetMany(BTreeMap<Vec<u8>, Bytes>),
    Delete(BTreeSet<Vec<u8>>),
    /// `name` is the guest's key, for messages.
    Increment {
        key: Vec<u8>,
        name: String,
        delta: i64,
    },
    Swap {
        key: Vec<u8>,
        old: Option<Bytes>,
        new: Bytes,
    },
    Sweep,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Done,
    Sum(i64),
    /// What was there instead of `old`.
    Differs(Option<Bytes>),
    Swept(usize),
}

struct Job {
    write: Write,
    answer: oneshot::Sender<Result<Outcome, Fault>>,
    _room: OwnedSemaphorePermit,
}

/// The way to the writer's queue. The writer ends when the last is dropped.
pub(super) struct Queue {
    jobs: mpsc::Sender<Job>,
    room: Arc<Semaphore>,
}

impl Queue {
    /// Comes back when the change is durable. Waits while the queue is full.
    pub(super) async fn write(&self, write: Write) -> Result<Outcome, Fault> {
        let bytes = u32::try_from(write.bytes().min(QUEUE_BYTES_MAX)).unwrap_or(u32::MAX);
        let room = self.room.clone().acquire_many_owned(bytes).await.map_err(|_| ended())?;
        let (answer, answered) = oneshot::channel();
        self.jobs.send(Job { write, answer, _room: room }).await.map_err(|_| ended())?;
        answered.await.map_err(|_| ended())?
    }

    /// For threads of our own: gives up instead of waiting.
    pub(super) fn try_sweep(&self) -> Option<oneshot::Receiver<Result<Outcome, Fault>>> {
        let room = self.room.clone().try_acquire_owned().ok()?;
        let (answer, answered) = oneshot::channel();
        self.jobs.try_send(Job { write: Write::Sweep, answer, _room: room }).ok()?;
        Some(answered)
    }
}

fn ended() -> Fault {
    Fault::Broken("the store is closed".into())
}

impl Write {
    fn bytes(&self) -> usize {
        match self {
            Self::Set { key, value, .. } => key.len() + value.len(),
            Self::SetMany(pairs) => pairs.iter().map(|(k, v)| k.len() + v.len()).sum(),
            Self::Delete(keys) => keys.iter().map(Vec::len).sum(),
            Self::Increment { key, .. } => key.len(),
            Self::Swap { key, old, new } => key.len() + new.len() + old.as_ref().map_or(0, Bytes::len),
            Self::Sweep => 1,
        }
    }
}

/// Counters and the one lasting failure, read by everybody.
#[derive(Debug, Default)]
pub(super) struct Health {
    writes: AtomicU64,
    syncs: AtomicU64,
    failure: OnceLock<String>,
}

impl Health {
    pub(super) fn stats(&self) -> Stats {
        Stats { writes: self.writes.load(Ordering::Relaxed), syncs: self.syncs.load(Ordering::Relaxed) }
    }
    pub(super) fn failure(&self) -> Option<&str> {
        self.failure.get().map(String::as_str)
    }
    pub(super) fn check(&self) -> Result<(), Fault> {
        self.failure().map_or(Ok(()), |why| Err(Fault::Broken(why.to_owned())))
    }
}

pub(super) type Sync = Box<dyn FnMut(&Table) -> Result<(), Fault> + Send>;

/// Starts the writer's thread. `dir` is for messages.
pub(super) fn start(
    table: Arc<Table>,
    health: Arc<Health>,
    clock: Clock,
    sync: Sync,
    dir: String,
) -> Result<(Queue, std::thread::JoinHandle<()>), super::Error> {
    let (jobs, queued) = mpsc::channel(QUEUE_LEN_MAX);
    let chunk_id = table.chunk_id_after_last().map_err(|f| super::Error::Damaged {
        dir: dir.clone(),
        why: match f {
            Fault::Refused(why) | Fault::Broken(why) => why,
        },
    })?;
    let mut writer = Writer { table, health, clock, sync, dir: dir.clone(), chunk_id };
    let thread = std::thread::Builder::new()
        .name("keyvalue-writer".into())
        .spawn(move || writer.run(queued))
        .map_err(|source| super::Error::Folder { dir, source })?;
    Ok((Queue { jobs, room: Arc::new(Semaphore::new(QUEUE_BYTES_MAX)) }, thread))
}

struct Writer {
    table: Arc<Table>,
    health: Arc<Health>,
    clock: Clock,
    sync: Sync,
    dir: String,
    chunk_id: u64,
}

impl Writer {
    fn run(&mut self, mut queued: mpsc::Receiver<Job>) {
        while let Some(first) = queued.blocking_recv() {
            let mut group = vec![first];
            while group.len() < GROUP_LEN_MAX
                && let Ok(job) = queued.try_recv()
            {
                group.push(job);
            }
            self.commit(group);
        }
    }

    /// Applies a group, syncs it, answers it.
    fn commit(&mut self, group: Vec<Job>) {
        let mut results = Vec::with_capacity(group.len());
        let mut changed = false;
        for job in group {
            let result = match self.health.check() {
                Ok(()) => self.apply(job.write),
                Err(broken) => Err(broken),
            };
            let result = result.map(|(outcome, change)| {
                changed |= change;
                outcome
            });
            if let Err(Fault::Broken(why)) = &result {
                self.fail(why);
            }
            results.push((job.answer, result));
        }
        if changed && self.health.failure().is_none() {
            match (self.sync)(&self.table) {
                Ok(()) => {
                    self.health.syncs.fetch_add(1, Ordering::Relaxed);
                }
                Err(Fault::Broken(why) | Fault::Refused(why)) => self.fail(&why),
            }
        }
        for (answer, result) in results {
            // Who stopped waiting needs no answer.
            let _ = answer.send(self.health.check().and(result));
        }
    }

    /// The kernel forgets what an fsync failed to write, so a later one that succeeds proves nothing: stop for good.
    fn fail(&self, why: &str) {
        let text = format!(
            "the disk under {} failed ({why}): the store serves nothing until the disk is checked and the host restarted",
            self.dir
        );
        if self.health.failure.set(text).is_ok() {
            tracing::error!(dir = %self.dir, why, "key-value store stopped: the disk failed");
        }
    }

    /// What came of one write, and whether anything changed.
    fn apply(&mut self, write: Write) -> Result<(Outcome, bool), Fault> {
        let now_ms = (self.clock)();
        self.health.writes.fetch_add(1, Ordering::Relaxed);
        let table = self.table.clone();
        let mut stage = table.stage();
        let outcome = match write {
            Write::Set { key, value, expires_ms } => {
                stage.put(&key, &value, expires_ms, self.next_chunk_id())?;
                Outcome::Done
            }
            Write::SetMany(pairs) => {
                for (key, value) in pairs {
                    stage.put(&key, &value, 0, self.next_chunk_id())?;
                }
                Outcome::Done
            }
            Write::Delete(keys) => {
                for key in keys {
                    stage.remove(&key)?;
                }
                Outcome::Done
            }
            Write::Increment { key, name, delta } => {
                let sum = add(table.get(&key, now_ms)?.as_deref(), &name, delta)?;
                stage.put(&key, sum.to_string().as_bytes(), 0, 0)?;
                Outcome::Sum(sum)
            }
            Write::Swap { key, old, new } => {
                let current = table.get(&key, now_ms)?;
                if current != old {
                    return Ok((Outcome::Differs(current), false));
                }
                stage.put(&key, &new, 0, self.next_chunk_id())?;
                Outcome::Done
            }
            Write::Sweep => {
                let expired = table.expired(now_ms, SWEEP_MAX)?;
                for (expires_ms, key) in &expired {
                    stage.expire(key, *expires_ms)?;
                }
                Outcome::Swept(expired.len())
            }
        };
        Ok((outcome, stage.apply()?))
    }

    /// Ids are never used again, so that a reader of the old value can not be given pieces of the new one.
    fn next_chunk_id(&mut self) -> u64 {
        self.chunk_id += 1;
        self.chunk_id
    }
}

/// The sum of the decimal number that is stored and `delta`.
fn add(stored: Option<&[u8]>, name: &str, delta: i64) -> Result<i64, Fault> {
    let current = match stored {
        None => 0,
        Some(bytes) => std::str::from_utf8(bytes).ok().and_then(|text| text.parse::<i64>().ok()).ok_or_else(|| {
            Fault::Refused(format!("key {name:?} holds no decimal number to add to: set it to one, or delete it"))
        })?,
    };
    current.checked_add(delta).ok_or_else(|| {
        Fault::Refused(format!("key {name:?}: {current} and {delta} is more than a signed 64-bit number holds"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums() {
        assert_eq!(add(None, "n", 5), Ok(5));
        assert_eq!(add(Some(b"-7"), "n", 5), Ok(-2));
        for stored in [b"".as_slice(), b"x", b"1.5", b" 1", &[0xff]] {
            assert!(matches!(add(Some(stored), "n", 1), Err(Fault::Refused(m)) if m.contains("\"n\"")));
        }
        assert!(matches!(add(Some(i64::MAX.to_string().as_bytes()), "n", 1), Err(Fault::Refused(_))));
    }
}
