//! A disk of one scheduler: it keeps what was synced, and of the rest as much as chance leaves; it fails, fills up, and
//! gives back other bytes than were written, when it is told to. What it holds are the records of `raft/storage.rs`.

use crate::dice::Dice;
use scheduler::raft::{Disk, DiskChange, Error, Visit};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const NAME: &str = "disk";

type Records = BTreeMap<Vec<u8>, Vec<u8>>;

#[derive(Default)]
struct Platter {
    durable: Records,
    /// What a process sees: the page cache.
    seen: Records,
    /// Batches since the last sync.
    unsynced: Vec<Vec<DiskChange>>,
    syncs: u64,
    fails_at: Option<(u64, Failing)>,
    full: bool,
    /// Each sync takes long.
    slow: bool,
    /// The power went in the middle of a sync.
    dark: bool,
    /// One record reads otherwise than it was written.
    damaged: Option<(Vec<u8>, Vec<u8>)>,
    /// It was read.
    bitten: bool,
}

/// How a sync ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failing {
    /// The power goes.
    Power,
    /// EIO, once; what was to be synced is dropped from the cache, as Linux does.
    Error,
}

/// Clones are the same disk.
#[derive(Clone, Default)]
pub(crate) struct SimDisk(Arc<Mutex<Platter>>);

impl SimDisk {
    fn at(&self) -> MutexGuard<'_, Platter> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One of the next syncs fails.
    pub(crate) fn fail_at_sync(&self, number: u64, how: Failing) {
        let mut at = self.at();
        at.fails_at = Some((at.syncs + number, how));
    }

    pub(crate) fn fill(&self, full: bool) {
        self.at().full = full;
    }

    pub(crate) fn slow(&self, slow: bool) {
        self.at().slow = slow;
    }

    /// Syncs until now, if they take long.
    pub(crate) fn slow_syncs(&self) -> Option<u64> {
        let at = self.at();
        at.slow.then_some(at.syncs)
    }

    /// Whether the power went in the middle of a sync since this was asked.
    pub(crate) fn went_dark(&self) -> bool {
        std::mem::take(&mut self.at().dark)
    }

    /// A power cut: of the batches since the last sync, the first so many survive.
    pub(crate) fn cut(&self, dice: &mut Dice) {
        let mut at = self.at();
        let unsynced = std::mem::take(&mut at.unsynced);
        let kept = dice.index(unsynced.len() + 1);
        for batch in unsynced.into_iter().take(kept) {
            put(&mut at.durable, batch);
        }
        at.seen = at.durable.clone();
        at.fails_at = None;
    }

    /// The process ended and the machine did not: everything that was written is there.
    pub(crate) fn survive(&self) {
        self.at().fails_at = None;
    }

    pub(crate) fn wipe(&self) {
        *self.at() = Platter::default();
    }

    /// One record reads with a bit flipped, or torn, until `mend`.
    pub(crate) fn damage(&self, dice: &mut Dice) {
        let mut at = self.at();
        if at.seen.is_empty() {
            return;
        }
        let nth = dice.index(at.seen.len());
        let (key, value) = at.seen.iter().nth(nth).map(|(k, v)| (k.clone(), v.clone())).expect("there are so many");
        let mut worse = value;
        if dice.percent(30) {
            worse.truncate(worse.len() / 2);
        } else {
            let bit = dice.index(worse.len() * 8);
            worse[bit / 8] ^= 1 << (bit % 8);
        }
        at.damaged = Some((key, worse));
        at.bitten = false;
    }

    pub(crate) fn is_damaged(&self) -> bool {
        self.at().damaged.is_some()
    }

    /// Whether what is damaged was read since, and not as rubbish that was removed.
    pub(crate) fn bitten(&self) -> bool {
        let at = self.at();
        at.bitten && at.damaged.as_ref().is_some_and(|(key, _)| at.seen.contains_key(key))
    }

    pub(crate) fn mend(&self) {
        let mut at = self.at();
        (at.damaged, at.bitten) = (None, false);
        (at.full, at.slow, at.dark) = (false, false, false);
    }
}

impl Disk for SimDisk {
    fn file(&self) -> &Path {
        Path::new(NAME)
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        let mut at = self.at();
        if let Some((damaged, value)) = &at.damaged
            && damaged == key
        {
            let value = value.clone();
            at.bitten = true;
            return Ok(Some(value));
        }
        Ok(at.seen.get(key).cloned())
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize, visit: &mut Visit<'_>) -> Result<(), Error> {
        let mut at = self.at();
        let damaged = at.damaged.clone();
        let mut bitten = false;
        let range = at.seen.range::<[u8], _>((std::ops::Bound::Included(from), std::ops::Bound::Excluded(to)));
        let result = range.take(limit).try_for_each(|(key, value)| match &damaged {
            Some((other, worse)) if other == key => {
                bitten = true;
                visit(key, worse)
            }
            _ => visit(key, value),
        });
        at.bitten |= bitten;
        result
    }

    fn write(&mut self, changes: Vec<DiskChange>) -> Result<(), Error> {
        let mut at = self.at();
        if at.full {
            return Err(error("cannot write", io::ErrorKind::StorageFull));
        }
        put(&mut at.seen, changes.clone());
        at.unsynced.push(changes);
        Ok(())
    }

    fn sync(&mut self) -> Result<(), Error> {
        let mut at = self.at();
        let at = &mut *at;
        at.syncs += 1;
        let syncs = at.syncs;
        if let Some((_, how)) = at.fails_at.take_if(|(number, _)| syncs >= *number) {
            if how == Failing::Error {
                at.unsynced.clear();
            }
            at.dark = how == Failing::Power;
            return Err(error("cannot sync", io::ErrorKind::Other));
        }
        let unsynced = std::mem::take(&mut at.unsynced);
        for batch in unsynced {
            put(&mut at.durable, batch);
        }
        Ok(())
    }
}

fn error(doing: &'static str, kind: io::ErrorKind) -> Error {
    Error::Io { doing, path: PathBuf::from(NAME), source: kind.into() }
}

fn put(records: &mut Records, changes: Vec<DiskChange>) {
    for (key, value) in changes {
        match value {
            Some(value) => records.insert(key, value),
            None => records.remove(&key),
        };
    }
}
