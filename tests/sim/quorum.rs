//! The real consensus machine, `scheduler::raft::node`, on a disk in memory that keeps what was synced: one member of
//! several. Does with its work what the loop of `raft/drive.rs` does with it.

use crate::ctx::Mutation;
use crate::dice::Dice;
use crate::log::{Did, Log};
use proto::v1::{RaftConfState, RaftEntry, RaftHardState, RaftSnapshotMeta};
use scheduler::raft::node::{Committed, Node, Outgoing, Role, Settings, Start};

const ELECTION_TICKS: usize = 10;
const HEARTBEAT_TICKS: usize = 2;
/// The list of members is the first entry of every log.
const GENESIS: u64 = 1;

/// What a power cut leaves.
struct Disk {
    boots: u64,
    hard: RaftHardState,
    meta: RaftSnapshotMeta,
    state: Vec<u8>,
    /// (term, index) of the entry before the first.
    start: (u64, u64),
    entries: Vec<RaftEntry>,
}

pub(crate) struct Quorum {
    id: u64,
    seed: u64,
    disk: Disk,
    log_bytes_max: u64,
    node: Option<Node>,
    /// The newest term, vote and commit, written with the next batch that has to be durable.
    hard: RaftHardState,
    applied: u64,
}

impl Quorum {
    pub(crate) fn new(id: u64, members: usize, seed: u64, snapshot_entries: u64) -> Self {
        let conf = RaftConfState { voters: (1..=members as u64).collect(), ..Default::default() };
        let hard = RaftHardState { term: GENESIS, vote: 0, commit: GENESIS };
        let meta = RaftSnapshotMeta { index: GENESIS, term: GENESIS, conf: Some(conf) };
        let disk = Disk { boots: 0, hard, meta, state: Vec::new(), start: (GENESIS, GENESIS), entries: Vec::new() };
        Self { id, seed, disk, log_bytes_max: snapshot_entries * 300, node: None, hard, applied: 0 }
    }

    fn node(&self) -> &Node {
        self.node.as_ref().expect("asked while it runs only")
    }

    fn node_mut(&mut self) -> &mut Node {
        self.node.as_mut().expect("asked while it runs only")
    }

    fn send(did: &mut Vec<Did>, messages: Vec<Outgoing>) {
        did.extend(messages.into_iter().map(|m| Did::Send { to: member(m.to), bytes: m.bytes }));
    }

    fn commit(&mut self, did: &mut Vec<Did>, entries: Vec<Committed>) {
        for Committed { term, index, data, .. } in entries {
            assert_eq!(index, self.applied + 1, "entries are applied in order, each once");
            self.applied = index;
            if !data.is_empty() {
                did.push(Did::Commit { term, index, data: data.to_vec() });
            }
        }
    }

    fn write(&mut self, entries: Vec<RaftEntry>, must_sync: bool) {
        if !must_sync {
            return;
        }
        if let Some(first) = entries.first() {
            self.disk.entries.retain(|e| e.index < first.index);
            self.disk.entries.extend(entries);
        }
        self.disk.hard = self.hard;
    }
}

fn member(id: u64) -> usize {
    usize::try_from(id).expect("ids are small") - 1
}

impl Log for Quorum {
    fn open(&mut self) -> (u64, Vec<u8>) {
        let disk = &mut self.disk;
        disk.boots += 1;
        let settings = Settings {
            id: self.id,
            election_ticks: ELECTION_TICKS,
            heartbeat_ticks: HEARTBEAT_TICKS,
            seed: self.seed,
            boots: disk.boots,
        };
        let start = Start {
            hard: disk.hard,
            snapshot: disk.meta.clone(),
            log_start: disk.start,
            entries: disk.entries.clone(),
        };
        let mut node = Node::new(settings, start).expect("what was written can be opened");
        if node.is_alone() {
            node.campaign().expect("a member that is alone can lead");
        }
        self.node = Some(node);
        self.hard = disk.hard;
        self.applied = disk.meta.index;
        (disk.meta.index, disk.state.clone())
    }

    fn crash(&mut self, dice: &mut Dice, mutation: Option<Mutation>) {
        self.node = None;
        if mutation == Some(Mutation::ForgetsVote) {
            let disk = &mut self.disk;
            for _ in 0..dice.below(4) {
                if disk.entries.last().is_some_and(|e| e.index > disk.meta.index) {
                    disk.entries.pop();
                }
            }
            let last = disk.entries.last().map_or(disk.start.1, |e| e.index);
            disk.hard = RaftHardState { vote: 0, commit: disk.hard.commit.min(last), ..disk.hard };
        }
    }

    fn leads(&self) -> bool {
        self.node().role() == Role::Leader
    }

    fn term(&self) -> u64 {
        self.node().term()
    }

    fn propose(&mut self, data: Vec<u8>) -> Option<(u64, u64)> {
        self.node_mut().propose(data).ok()
    }

    fn flush(&mut self) {}

    fn tick(&mut self) {
        self.node_mut().tick();
    }

    fn step(&mut self, bytes: &[u8]) {
        // What does not fit any more is refused, as in production.
        let _ = self.node_mut().step(bytes);
    }

    fn unreachable(&mut self, member: usize) {
        self.node_mut().unreachable(member as u64 + 1);
    }

    fn work(&mut self) -> Vec<Did> {
        let mut did = Vec::new();
        while let Some(work) = self.node_mut().ready().expect("the machine goes on") {
            Self::send(&mut did, work.messages);
            self.commit(&mut did, work.committed);
            if let Some(hard) = work.hard {
                self.hard = hard;
            }
            if let Some(installed) = work.snapshot {
                assert!(work.must_sync, "a snapshot is made durable before it is used");
                let index = installed.meta.index;
                self.disk.start = (installed.meta.term, index);
                self.disk.meta = installed.meta;
                self.disk.state = installed.data.to_vec();
                self.disk.entries.clear();
                self.applied = index;
                did.push(Did::Restore { index, state: self.disk.state.clone() });
            }
            self.write(work.entries, work.must_sync);
            Self::send(&mut did, work.messages_after);
            let after = self.node_mut().advance(work.receipt).expect("the machine goes on");
            Self::send(&mut did, after.messages);
            self.commit(&mut did, after.committed);
            let applied = self.applied;
            self.node_mut().applied(applied);
        }
        if self.node().snapshot_wanted() {
            let (meta, state) = (self.disk.meta.clone(), self.disk.state.clone());
            self.node_mut().offer_snapshot(&meta, state);
        }
        did
    }

    fn snapshot_due(&self) -> bool {
        self.node().log_bytes() > self.log_bytes_max && self.applied > self.node().snapshot_index()
    }

    fn store_snapshot(&mut self, state: Vec<u8>) {
        let Some(meta) = self.node().snapshot_meta(self.applied) else { return };
        let start = self.node().truncation(&meta, self.log_bytes_max / 8);
        self.disk.meta = meta.clone();
        self.disk.state = state;
        self.disk.start = start;
        self.disk.entries.retain(|e| e.index > start.1);
        self.hard.commit = self.hard.commit.max(meta.index);
        self.disk.hard.commit = self.disk.hard.commit.max(meta.index);
        self.node_mut().truncate(&meta, start);
    }
}
