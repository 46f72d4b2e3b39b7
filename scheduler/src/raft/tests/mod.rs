//! Shared by the tests of the log: a state machine that shows order and loss, and a disk that forgets what was not synced.

#![allow(clippy::unwrap_used, reason = "test helpers")]

mod cluster;
mod crash;
mod disk;
mod hostile;
mod members;
mod reads;
mod sim;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use super::disk::{Change, Disk, Visit};
use super::node::{Settings, Start};
use super::{Error, StateMachine};

/// Log index and data of entries, in the order in which they were applied.
pub(super) type Entries = Vec<(u64, Vec<u8>)>;

/// Keeps every entry in order, so that any loss, doubling or swap shows. Clones look at the same state.
#[derive(Clone, Default)]
pub(super) struct Words(Arc<Mutex<Entries>>);

impl Words {
    pub(super) fn all(&self) -> Entries {
        self.0.lock().unwrap().clone()
    }
}

impl StateMachine for Words {
    fn apply(&mut self, index: u64, data: &[u8]) -> Vec<u8> {
        self.0.lock().unwrap().push((index, data.to_vec()));
        [b"did ", data].concat()
    }

    fn snapshot(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for (index, data) in self.all() {
            out.extend(index.to_be_bytes());
            out.extend((data.len() as u64).to_be_bytes());
            out.extend(data);
        }
        out
    }

    fn restore(&mut self, _index: u64, mut snapshot: &[u8]) -> Result<(), String> {
        let mut all = Vec::new();
        while let Some((index, rest)) = snapshot.split_first_chunk::<8>() {
            let (len, rest) = rest.split_first_chunk::<8>().ok_or("no length")?;
            let len = usize::try_from(u64::from_be_bytes(*len)).map_err(|error| error.to_string())?;
            let (data, rest) = rest.split_at_checked(len).ok_or("short")?;
            all.push((u64::from_be_bytes(*index), data.to_vec()));
            snapshot = rest;
        }
        *self.0.lock().unwrap() = all;
        Ok(())
    }
}

#[derive(Default)]
struct Platter {
    durable: BTreeMap<Vec<u8>, Vec<u8>>,
    seen: BTreeMap<Vec<u8>, Vec<u8>>,
    unsynced: Vec<Vec<Change>>,
    syncs: u64,
    /// The power goes at this sync: before it took effect.
    fails_at: Option<u64>,
    /// Says that it synced, and did not.
    lies: bool,
}

/// Keeps what was synced. Clones are the same disk.
#[derive(Clone, Default)]
pub(super) struct Memory(Arc<Mutex<Platter>>);

impl Memory {
    pub(super) fn lying() -> Self {
        let memory = Self::default();
        memory.0.lock().unwrap().lies = true;
        memory
    }

    pub(super) fn fail_at_sync(&self, number: u64) {
        let mut platter = self.0.lock().unwrap();
        platter.fails_at = Some(platter.syncs + number);
    }

    /// A power cut: of the batches since the last sync the first `keep` survive.
    pub(super) fn cut(&self, keep: usize) {
        let mut platter = self.0.lock().unwrap();
        let unsynced = std::mem::take(&mut platter.unsynced);
        for batch in unsynced.into_iter().take(keep) {
            put(&mut platter.durable, batch);
        }
        platter.seen = platter.durable.clone();
        platter.fails_at = None;
    }

    pub(super) fn unsynced(&self) -> usize {
        self.0.lock().unwrap().unsynced.len()
    }
}

impl Disk for Memory {
    fn file(&self) -> &Path {
        Path::new("memory")
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        Ok(self.0.lock().unwrap().seen.get(key).cloned())
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize, visit: &mut Visit<'_>) -> Result<(), Error> {
        let platter = self.0.lock().unwrap();
        let range = platter.seen.range(from.to_vec()..to.to_vec());
        range.take(limit).try_for_each(|(key, value)| visit(key, value))
    }

    fn write(&mut self, changes: Vec<Change>) -> Result<(), Error> {
        let mut platter = self.0.lock().unwrap();
        put(&mut platter.seen, changes.clone());
        platter.unsynced.push(changes);
        Ok(())
    }

    fn sync(&mut self) -> Result<(), Error> {
        let mut platter = self.0.lock().unwrap();
        platter.syncs += 1;
        if platter.fails_at.is_some_and(|at| platter.syncs >= at) {
            let source = std::io::Error::other("no power");
            return Err(Error::Io { doing: "cannot sync", path: "memory".into(), source });
        }
        if platter.lies {
            return Ok(());
        }
        let unsynced = std::mem::take(&mut platter.unsynced);
        for batch in unsynced {
            put(&mut platter.durable, batch);
        }
        Ok(())
    }
}

fn put(map: &mut BTreeMap<Vec<u8>, Vec<u8>>, changes: Vec<Change>) {
    for (key, value) in changes {
        match value {
            Some(value) => map.insert(key, value),
            None => map.remove(&key),
        };
    }
}

/// Numbers that only depend on the seed.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}

pub(super) fn settings(id: u64, seed: u64, boots: u64) -> Settings {
    Settings { id, election_ticks: 10, heartbeat_ticks: 2, seed, boots }
}

/// A brand-new member, as its disk would give it.
pub(super) fn genesis(voters: &[u64]) -> Start {
    use proto::v1::{RaftConfState, RaftHardState, RaftSnapshotMeta};
    let conf = RaftConfState { voters: voters.to_vec(), ..RaftConfState::default() };
    Start {
        hard: RaftHardState { term: 1, vote: 0, commit: 1 },
        snapshot: RaftSnapshotMeta { index: 1, term: 1, conf: Some(conf) },
        log_start: (1, 1),
        entries: Vec::new(),
    }
}
