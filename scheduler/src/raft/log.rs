//! The log as the consensus machine sees it: every entry since it was last truncated, in memory. Pure: what is written
//! here was made durable by `storage` before, or is being replayed from it. Must never hold the bytes of a snapshot
//! longer than one message needs.

use std::cell::Cell;
use std::collections::VecDeque;

use raft::eraftpb::{ConfState, Entry, HardState, Snapshot, SnapshotMetadata};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};

use super::members::Members;

/// What an entry costs besides its data, roughly: keys, checksums, lengths.
const ENTRY_OVERHEAD_BYTES: u64 = 48;

/// (term, index) of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) term: u64,
    pub(super) index: u64,
}

pub(super) struct Log {
    hard: HardState,
    conf: ConfState,
    /// The entry before the first one held.
    start: Position,
    entries: VecDeque<Entry>,
    bytes: u64,
    /// Index and term of the snapshot on disk.
    snapshot: Position,
    /// The members that it names.
    snapshot_conf: ConfState,
    /// The member that needs the snapshot, until it is offered.
    wanted: Cell<Option<u64>>,
    offered: Option<Snapshot>,
}

impl Log {
    /// `entries` follow `start` without a gap, `snapshot` is not before `start`.
    pub(super) fn new(
        hard: HardState,
        conf: ConfState,
        start: Position,
        snapshot: Position,
        entries: Vec<Entry>,
    ) -> Self {
        let bytes = entries.iter().map(cost).sum();
        let entries = entries.into();
        let snapshot_conf = conf.clone();
        Self { hard, conf, start, entries, bytes, snapshot, snapshot_conf, wanted: Cell::new(None), offered: None }
    }

    /// Takes entries over, in place of any with the same or a later index.
    pub(super) fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        assert!(first.index > self.start.index && first.index <= self.last() + 1, "entries must follow the log");
        while self.last() >= first.index {
            let gone = self.entries.pop_back().expect("the last index is above the start");
            self.bytes -= cost(&gone);
        }
        self.bytes += entries.iter().map(cost).sum::<u64>();
        self.entries.extend(entries.iter().cloned());
    }

    /// A snapshot of another member replaces everything.
    pub(super) fn install(&mut self, meta: &SnapshotMetadata) {
        self.snapshot = Position { term: meta.term, index: meta.index };
        self.start = self.snapshot;
        self.conf = meta.get_conf_state().clone();
        self.snapshot_conf = self.conf.clone();
        self.entries.clear();
        self.bytes = 0;
        self.offered = None;
    }

    /// The state after the entry `snapshot` is on disk: entries up to `start`, which is not after it, can go.
    pub(super) fn truncate(&mut self, snapshot: Position, start: Position) {
        assert!(start.index <= snapshot.index && snapshot.index <= self.last(), "only what a snapshot covers can go");
        self.snapshot = snapshot;
        self.snapshot_conf = self.conf.clone();
        while self.entries.front().is_some_and(|entry| entry.index <= start.index) {
            let gone = self.entries.pop_front().expect("looked at just now");
            self.bytes -= cost(&gone);
        }
        self.start = start;
        self.offered = None;
    }

    /// The newest position up to which the log can go so that at least `keep_bytes` stay, if there are as many.
    pub(super) fn start_keeping(&self, keep_bytes: u64, snapshot: Position) -> Position {
        let mut kept = 0;
        for entry in self.entries.iter().rev() {
            if kept >= keep_bytes && entry.index <= snapshot.index {
                return Position { term: entry.term, index: entry.index };
            }
            kept += cost(entry);
        }
        self.start
    }

    pub(super) fn conf(&self) -> &ConfState {
        &self.conf
    }

    /// The members that the stored snapshot names.
    pub(super) fn snapshot_conf(&self) -> &ConfState {
        &self.snapshot_conf
    }

    /// The members as of what is applied.
    pub(super) fn set_conf(&mut self, conf: ConfState) {
        self.conf = conf;
    }

    pub(super) fn snapshot_position(&self) -> Position {
        self.snapshot
    }

    pub(super) fn position(&self, index: u64) -> Option<Position> {
        self.term(index).ok().map(|term| Position { term, index })
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn snapshot_wanted(&self) -> bool {
        self.wanted.get().is_some()
    }

    /// Whether the stored snapshot is older than the membership of who needs it, who would not take it.
    pub(super) fn snapshot_is_strange(&self) -> bool {
        self.wanted.get().is_some_and(|id| !Members::of(&self.snapshot_conf).contains(id))
    }

    pub(super) fn offer(&mut self, snapshot: Snapshot) {
        self.wanted.set(None);
        self.offered = Some(snapshot);
    }

    /// Forgets the offered bytes: a message carries them now.
    pub(super) fn withdraw(&mut self) {
        self.offered = None;
    }

    pub(super) fn last(&self) -> u64 {
        self.start.index + self.entries.len() as u64
    }

    fn at(&self, index: u64) -> Option<&Entry> {
        let offset = index.checked_sub(self.start.index + 1)?;
        self.entries.get(usize::try_from(offset).ok()?)
    }
}

impl Storage for Log {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState::new(self.hard.clone(), self.conf.clone()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low <= self.start.index {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        if high > self.last() + 1 {
            return Err(raft::Error::Store(StorageError::Unavailable));
        }
        let max = max_size.into().unwrap_or(u64::MAX);
        let mut taken: Vec<Entry> = Vec::new();
        let mut bytes = 0;
        for index in low..high {
            let entry = self.at(index).expect("between the first and the last index");
            bytes += cost(entry);
            if bytes > max && !taken.is_empty() {
                break;
            }
            taken.push(entry.clone());
        }
        Ok(taken)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == self.start.index {
            return Ok(self.start.term);
        }
        if index == self.snapshot.index {
            return Ok(self.snapshot.term);
        }
        if index < self.start.index {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        self.at(index).map(|entry| entry.term).ok_or(raft::Error::Store(StorageError::Unavailable))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.start.index + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        match &self.offered {
            Some(snapshot) if snapshot.get_metadata().index >= request_index && names(snapshot, to) => {
                Ok(snapshot.clone())
            }
            _ => {
                self.wanted.set(Some(to));
                Err(raft::Error::Store(StorageError::SnapshotTemporarilyUnavailable))
            }
        }
    }
}

fn names(snapshot: &Snapshot, id: u64) -> bool {
    Members::of(snapshot.get_metadata().get_conf_state()).contains(id)
}

fn cost(entry: &Entry) -> u64 {
    entry.data.len() as u64 + ENTRY_OVERHEAD_BYTES
}
