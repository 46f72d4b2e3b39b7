//! The replicated log behind a seam: what a scheduler's shell needs of it, and the simplest thing that has it: an
//! ordered list on one disk, which crashes and comes back as snapshot and tail.

use crate::ctx::Mutation;
use crate::dice::Dice;

/// What the log gives a member to do.
#[derive(Debug)]
pub(crate) enum Did {
    Commit {
        term: u64,
        index: u64,
        data: Vec<u8>,
    },
    /// The state as of `index` replaces that of the member.
    Restore {
        index: u64,
        state: Vec<u8>,
    },
    Send {
        to: usize,
        bytes: Vec<u8>,
    },
}

pub(crate) trait Log {
    /// A new process reads its disk: index and bytes of its snapshot; empty: none yet.
    fn open(&mut self) -> (u64, Vec<u8>);
    /// The process ends; what was not durable may be gone.
    fn crash(&mut self, dice: &mut Dice, mutation: Option<Mutation>);
    fn leads(&self) -> bool;
    fn term(&self) -> u64;
    /// (term, index) that it has if it is ever committed; `None`: does not lead.
    fn propose(&mut self, data: Vec<u8>) -> Option<(u64, u64)>;
    /// The disk caught up with what was proposed.
    fn flush(&mut self);
    fn tick(&mut self);
    fn step(&mut self, bytes: &[u8]);
    /// A message to this member was lost.
    fn unreachable(&mut self, member: usize);
    /// What is to be done now. Called until it gives nothing.
    fn work(&mut self) -> Vec<Did>;
    fn snapshot_due(&self) -> bool;
    /// Keeps `state`, which is that after everything given out.
    fn store_snapshot(&mut self, state: Vec<u8>);
}

/// One scheduler alone.
pub(crate) struct Ordered {
    term: u64,
    snapshot: (u64, Vec<u8>),
    /// Durable, behind the snapshot.
    entries: Vec<(u64, Vec<u8>)>,
    /// Proposed, not durable.
    pending: Vec<Vec<u8>>,
    /// Index handed out as committed.
    given: u64,
    snapshot_entries: u64,
}

impl Ordered {
    pub(crate) fn new(snapshot_entries: u64) -> Self {
        Self {
            term: 0,
            snapshot: (0, Vec::new()),
            entries: Vec::new(),
            pending: Vec::new(),
            given: 0,
            snapshot_entries,
        }
    }

    fn persist(&mut self, entries: Vec<Vec<u8>>) {
        let term = self.term;
        self.entries.extend(entries.into_iter().map(|data| (term, data)));
    }
}

impl Log for Ordered {
    fn open(&mut self) -> (u64, Vec<u8>) {
        self.term += 1;
        self.given = self.snapshot.0;
        self.snapshot.clone()
    }

    fn crash(&mut self, dice: &mut Dice, mutation: Option<Mutation>) {
        // Of what was under way to the disk, some may have arrived.
        let mut pending = std::mem::take(&mut self.pending);
        pending.truncate(dice.index(pending.len() + 1));
        self.persist(pending);
        if mutation == Some(Mutation::LosesLastEntry) {
            self.entries.pop();
        }
    }

    fn leads(&self) -> bool {
        true
    }

    fn term(&self) -> u64 {
        self.term
    }

    fn propose(&mut self, data: Vec<u8>) -> Option<(u64, u64)> {
        self.pending.push(data);
        Some((self.term, self.snapshot.0 + (self.entries.len() + self.pending.len()) as u64))
    }

    fn flush(&mut self) {
        let pending = std::mem::take(&mut self.pending);
        self.persist(pending);
    }

    fn tick(&mut self) {}

    fn step(&mut self, _bytes: &[u8]) {}

    fn unreachable(&mut self, _member: usize) {}

    fn work(&mut self) -> Vec<Did> {
        let skip = usize::try_from(self.given - self.snapshot.0).expect("entries are few");
        let mut did = Vec::new();
        for (term, data) in &self.entries[skip..] {
            self.given += 1;
            did.push(Did::Commit { term: *term, index: self.given, data: data.clone() });
        }
        did
    }

    fn snapshot_due(&self) -> bool {
        self.given - self.snapshot.0 > self.snapshot_entries
    }

    fn store_snapshot(&mut self, state: Vec<u8>) {
        let gone = usize::try_from(self.given - self.snapshot.0).expect("entries are few");
        self.entries.drain(..gone);
        self.snapshot = (self.given, state);
    }
}
