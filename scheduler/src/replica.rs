//! This member's copy of the state: what the log drives, and what the rest of the scheduler reads.

use crate::events::unix_ms;
use crate::raft;
use crate::state::{self, State, Touched, VERSION};
use prost::Message;
use proto::fault::{Fault, built_in};
use proto::v1 as pb;
use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};
use tokio::sync::watch;

/// Touches remembered, so that a watch can resume.
const FEED_MAX: usize = 10_000;

/// The state, shared: one writer (the log), many short readers. Never hold the guard across an await.
#[derive(Clone)]
pub struct Replica {
    state: Arc<RwLock<State>>,
    feed: Arc<Feed>,
    /// The newest version of commands that it applies.
    knows: u32,
}

impl Default for Replica {
    fn default() -> Self {
        Self::of(VERSION)
    }
}

/// What changed, by log index.
struct Feed {
    ring: Mutex<Ring>,
    applied: watch::Sender<u64>,
}

#[derive(Default)]
struct Ring {
    touched: VecDeque<(u64, Touched)>,
    /// Touches at or below this index are no longer known.
    compacted: u64,
}

impl Default for Feed {
    fn default() -> Self {
        Self { ring: Mutex::default(), applied: watch::Sender::new(0) }
    }
}

impl Replica {
    /// One that applies commands up to this version, as an older build would.
    pub fn of(knows: u32) -> Self {
        Self { state: Arc::default(), feed: Arc::default(), knows: knows.min(VERSION) }
    }
    pub fn knows(&self) -> u32 {
        self.knows
    }
    /// The entry by which scheduler `me`, which leads, proposes these commands; refused when not all can apply them.
    pub(crate) fn entry(&self, me: u64, commands: Vec<pb::Command>) -> Result<pb::Entry, raft::Error> {
        state::entry(&self.read(), me, self.knows, unix_ms(), commands).map_err(raft::Error::Outdated)
    }
    pub fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }
    /// Changes with each applied entry: the log index.
    pub fn applied(&self) -> watch::Receiver<u64> {
        self.feed.applied.subscribe()
    }
    /// What was touched after `index`; `None` when that is no longer known.
    pub fn touched_after(&self, index: u64) -> Option<BTreeSet<Touched>> {
        let ring = self.feed.ring.lock().unwrap_or_else(PoisonError::into_inner);
        if index < ring.compacted {
            return None;
        }
        let index = index + u64::from(built_in(Fault::WatchMissesOne));
        Some(ring.touched.iter().rev().take_while(|(i, _)| *i > index).map(|(_, t)| t.clone()).collect())
    }
    /// The oldest index that a watch can resume behind.
    pub fn compacted(&self) -> u64 {
        self.feed.ring.lock().unwrap_or_else(PoisonError::into_inner).compacted
    }
}

impl raft::StateMachine for Replica {
    fn apply(&mut self, index: u64, data: &[u8]) -> Vec<u8> {
        let mut touched = BTreeSet::new();
        // Who reads the state sees what was touched to make it, never less: a watch would miss it.
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let outcomes = state.apply_bytes(index, data, &mut touched);
        {
            let mut ring = self.feed.ring.lock().unwrap_or_else(PoisonError::into_inner);
            ring.touched.extend(touched.into_iter().map(|t| (index, t)));
            while ring.touched.len() > FEED_MAX {
                if let Some((index, _)) = ring.touched.pop_front() {
                    ring.compacted = index;
                }
            }
        }
        drop(state);
        self.feed.applied.send_replace(index);
        outcomes
    }

    /// The index counts all the same: by it, watches and lists of different schedulers are compared.
    fn pass(&mut self, index: u64) {
        self.state.write().unwrap_or_else(PoisonError::into_inner).applied = index;
        self.feed.applied.send_replace(index);
    }

    fn can_apply(&self, data: &[u8]) -> Result<(), String> {
        state::expect_known(data, self.knows)
    }

    fn can_restore(&self, snapshot: &[u8]) -> Result<(), String> {
        state::expect_known(snapshot, self.knows)
    }

    fn snapshot(&self) -> Vec<u8> {
        self.read().to_bytes()
    }

    fn restore(&mut self, index: u64, snapshot: &[u8]) -> Result<(), String> {
        let mut state = if snapshot.is_empty() {
            State::default()
        } else {
            State::from_bytes(snapshot).map_err(|e| e.to_string())?
        };
        state.applied = index;
        let mut shared = self.state.write().unwrap_or_else(PoisonError::into_inner);
        *shared = state;
        let mut ring = self.feed.ring.lock().unwrap_or_else(PoisonError::into_inner);
        ring.touched.clear();
        if !built_in(Fault::WatchAcrossSnapshot) {
            ring.compacted = index;
        }
        drop((ring, shared));
        self.feed.applied.send_replace(index);
        Ok(())
    }
}

/// The outcomes that the log gave for one entry.
pub(crate) fn outcomes(applied: &raft::Applied) -> Vec<pb::Outcome> {
    pb::Outcomes::decode(applied.outcome.as_slice()).map(|o| o.items).unwrap_or_default()
}
