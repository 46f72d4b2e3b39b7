//! The consensus machine without IO or clock: time is `tick()`, input `step(message)` and `propose(data)`, output one
//! `Work` at a time, handed back through `advance`. Pure: same start, same inputs, same outputs, so that a simulation
//! runs what production runs. Must never see a disk, a socket, a clock or a source of randomness besides its seed.

use std::collections::BTreeMap;

use bytes::Bytes;
use proto::fault::{Fault, built_in};
use proto::v1::{RaftEntry, RaftHardState, RaftSnapshotMeta};
use raft::eraftpb::{Entry, EntryType, Message, MessageType};
use raft::{ProgressState, RawNode, ReadOnlyOption, ReadState, Ready, SnapshotStatus, StateRole};

use super::log::{Log, Position};
use super::members::{self, Change, Members};
pub use super::wire::Refused;
use super::{timeout, wire};

/// No entry is larger, whatever the configuration.
pub const ENTRY_BYTES_LIMIT: usize = 16 << 20;
/// Bytes of entries in one message, unless one entry is larger.
const MESSAGE_BYTES_MAX: u64 = 1 << 20;
const MESSAGES_IN_FLIGHT_MAX: usize = 64;
/// Bytes proposed and not committed: at this bound the leader refuses.
const UNCOMMITTED_BYTES_MAX: u64 = 64 << 20;
/// Bytes of committed entries in one piece of work.
const COMMITTED_BYTES_MAX: u64 = 16 << 20;
/// A snapshot that is not acknowledged after so many election timeouts is held to be lost, and sent again.
const SNAPSHOT_ELECTIONS_MAX: u64 = 60;

#[derive(Clone, Debug)]
pub struct Settings {
    pub id: u64,
    pub election_ticks: usize,
    pub heartbeat_ticks: usize,
    /// Where the turns of the election timeouts begin: the same at all members.
    pub seed: u64,
    /// Starts of this member so far: no two may share it, or a read could take the answer to an older one.
    pub boots: u64,
}

/// What a member starts from: all of it read from its disk.
#[derive(Clone, Debug)]
pub struct Start {
    pub hard: RaftHardState,
    pub snapshot: RaftSnapshotMeta,
    /// Term and index of the entry before the first of `entries`.
    pub log_start: (u64, u64),
    pub entries: Vec<RaftEntry>,
}

/// What shall be done now, in this order: send `messages`; apply `committed`, which is durable already; write `snapshot`,
/// `entries` (in place of any with the same or a later index) and `hard` in one piece, and make them durable if
/// `must_sync`; take over the state of `snapshot`; send `messages_after`; hand `receipt` to `advance` and do what that
/// returns; tell `applied`.
#[derive(Debug)]
pub struct Work {
    pub messages: Vec<Outgoing>,
    pub snapshot: Option<Installed>,
    pub entries: Vec<RaftEntry>,
    pub hard: Option<RaftHardState>,
    pub must_sync: bool,
    pub messages_after: Vec<Outgoing>,
    pub committed: Vec<Committed>,
    pub reads: Vec<Read>,
    pub receipt: Receipt,
}

/// What becomes possible once a piece of work is durable.
#[derive(Debug)]
pub struct After {
    pub messages: Vec<Outgoing>,
    pub committed: Vec<Committed>,
}

/// Proof that work was taken; `advance` wants it back.
#[derive(Debug)]
pub struct Receipt(Ready);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    pub to: u64,
    pub bytes: Vec<u8>,
}

/// A snapshot of the leader, which replaces log and state.
#[derive(Clone, Debug, PartialEq)]
pub struct Installed {
    pub meta: RaftSnapshotMeta,
    pub data: Bytes,
}

/// An entry to apply. No data: the first entry of a new leader, which says nothing to the state machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    pub term: u64,
    pub index: u64,
    pub data: Bytes,
    /// It changes the members: `apply_change` takes it, not the state machine, and not before the disk knows that it is
    /// committed. A member that forgot that would take itself for one of the old configuration, and might elect itself.
    pub change: bool,
}

/// A quorum confirmed the read round `round`: what is applied up to `index` is fresh for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    pub round: u64,
    pub index: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Follower,
    PreCandidate,
    Candidate,
    Leader,
}

/// Why a proposal was not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotTaken {
    NotLeader {
        leader: Option<u64>,
    },
    /// Too many bytes wait for their commit.
    Full,
    /// Another change of the members is not through yet.
    Changing,
    /// Not a voter, or the leader itself.
    NotVoter(u64),
    /// A change that leaves no voter, say.
    Impossible(String),
}

pub struct Node {
    raw: RawNode<Log>,
    settings: Settings,
    rounds: u64,
    /// Members that are being sent a snapshot -> ticks since.
    snapshots: BTreeMap<u64, u64>,
}

impl Node {
    pub fn new(settings: Settings, start: Start) -> Result<Self, String> {
        let conf = start.snapshot.conf.as_ref().ok_or("the snapshot names no members")?;
        // A member that was just taken in knows nobody yet: the leader's snapshot tells it.
        if start.snapshot.index > 0 {
            wire::check_conf(conf)?;
        }
        let snapshot = Position { term: start.snapshot.term, index: start.snapshot.index };
        let log_start = Position { term: start.log_start.0, index: start.log_start.1 };
        let entries = start.entries.into_iter().map(wire::entry_in).collect();
        let log = Log::new(wire::hard_in(&start.hard), wire::conf_in(conf), log_start, snapshot, entries);
        let config = raft::Config {
            id: settings.id,
            election_tick: settings.election_ticks,
            heartbeat_tick: settings.heartbeat_ticks,
            applied: snapshot.index,
            max_size_per_msg: MESSAGE_BYTES_MAX,
            max_inflight_msgs: MESSAGES_IN_FLIGHT_MAX,
            check_quorum: true,
            pre_vote: true,
            read_only_option: ReadOnlyOption::Safe,
            batch_append: true,
            max_uncommitted_size: UNCOMMITTED_BYTES_MAX,
            max_committed_size_per_ready: COMMITTED_BYTES_MAX,
            ..raft::Config::default()
        };
        config.validate().map_err(|error| error.to_string())?;
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let raw = RawNode::new(&config, log, &logger).map_err(|error| error.to_string())?;
        let mut node = Self { raw, settings, rounds: 0, snapshots: BTreeMap::new() };
        node.set_timeout();
        Ok(node)
    }

    /// Time passes.
    pub fn tick(&mut self) {
        self.raw.tick();
        if self.raw.raft.state != StateRole::Leader {
            self.raw.mut_store().withdraw();
        }
        self.watch_snapshots();
        self.set_timeout();
    }

    /// Seeks leadership now rather than after a timeout; a member that is alone leads when this returns.
    pub fn campaign(&mut self) -> Result<(), String> {
        let result = self.raw.campaign().map_err(|error| error.to_string());
        self.set_timeout();
        result
    }

    /// Takes a message of another member, or says why not. The sender needs no answer to a refused one.
    pub fn step(&mut self, bytes: &[u8]) -> Result<(), Refused> {
        let raft = &self.raw.raft;
        let facts = wire::Facts {
            id: self.settings.id,
            term: raft.term,
            leads: raft.state == StateRole::Leader,
            last: raft.raft_log.last_index(),
            settled: raft.raft_log.persisted == raft.raft_log.last_index(),
            conf: raft.store().conf(),
        };
        let message = wire::decode(bytes, &facts)?;
        let from = message.from;
        let stepped = self.raw.step(message);
        self.set_timeout();
        // Members are those of the conf, so the machine knows every sender; it drops what it has no use for.
        stepped.map_err(|_| Refused::Stranger(from))
    }

    /// Appends an entry at the leader; returns the (term, index) that it has if it is ever committed.
    pub fn propose(&mut self, data: Vec<u8>) -> Result<(u64, u64), NotTaken> {
        if self.raw.raft.state != StateRole::Leader {
            return Err(NotTaken::NotLeader { leader: self.leader() });
        }
        if self.raw.raft.lead_transferee.is_some() {
            return Err(NotTaken::NotLeader { leader: None });
        }
        self.raw.propose(Vec::new(), data).map_err(|_| NotTaken::Full)?;
        Ok((self.raw.raft.term, self.raw.raft.raft_log.last_index()))
    }

    /// Appends a change of the members at the leader, as `propose` does; none of them ends a change that is half done.
    pub fn propose_change(&mut self, changes: &[Change]) -> Result<(u64, u64), NotTaken> {
        let raft = &self.raw.raft;
        if raft.state != StateRole::Leader || raft.lead_transferee.is_some() {
            return Err(NotTaken::NotLeader { leader: self.leader().filter(|id| *id != self.settings.id) });
        }
        // The machine would append an entry without effect in its place.
        if raft.has_pending_conf() || self.members().is_joint() != changes.is_empty() {
            return Err(NotTaken::Changing);
        }
        let change = members::change(changes);
        // What can not be applied must not get into the log: every member would end on it.
        members::rehearse(self.raw.raft.prs(), &change).map_err(NotTaken::Impossible)?;
        self.raw.propose_conf_change(Vec::new(), change).map_err(|_| NotTaken::Full)?;
        Ok((self.raw.raft.term, self.raw.raft.raft_log.last_index()))
    }

    /// Takes over the members that a committed entry makes.
    pub fn apply_change(&mut self, entry: &Committed) -> Result<(), String> {
        let change = members::decode(&entry.data)?;
        let conf = self.raw.apply_conf_change(&change).map_err(|error| error.to_string())?;
        self.raw.mut_store().set_conf(conf);
        // It was elected when its own removal was in its log already. The machine goes on leading, and panics at the next
        // answer, as it does not find itself among the members. That all is committed was said to the others before.
        let me = self.settings.id;
        if self.raw.raft.state == StateRole::Leader && !self.members().contains(me) && !built_in(Fault::RemovedLeads) {
            let term = self.raw.raft.term;
            self.raw.raft.become_follower(term, raft::INVALID_ID);
            self.set_timeout();
        }
        Ok(())
    }

    /// Hands leadership over to another voter, as soon as it has all entries. It may fail: nothing is proposed meanwhile,
    /// and after an election timeout this member goes on leading.
    pub fn transfer(&mut self, to: u64) -> Result<(), NotTaken> {
        if self.raw.raft.state != StateRole::Leader {
            return Err(NotTaken::NotLeader { leader: self.leader() });
        }
        if to == self.settings.id || !self.members().is_voter(to) {
            return Err(NotTaken::NotVoter(to));
        }
        self.raw.transfer_leader(to);
        Ok(())
    }

    /// Who takes part, as of what is applied here.
    pub fn members(&self) -> Members {
        Members::of(self.raw.store().conf())
    }

    /// What the leader knows of each member: (id, log index up to which it has everything). Empty elsewhere.
    pub fn progress(&self) -> Vec<(u64, u64)> {
        if self.raw.raft.state != StateRole::Leader {
            return Vec::new();
        }
        let mut all: Vec<(u64, u64)> = self.raw.raft.prs().iter().map(|(id, peer)| (*id, peer.matched)).collect();
        all.sort_unstable();
        all
    }

    /// Begins a read round and returns its number. `None`: nobody could confirm it now, as no leader is known, or this
    /// one has not committed an entry of its term yet. A round may be lost like any message: begin another.
    pub fn read_index(&mut self) -> Option<u64> {
        let raft = &self.raw.raft;
        let able = match raft.state {
            StateRole::Leader => raft.commit_to_current_term(),
            _ => raft.leader_id != raft::INVALID_ID,
        };
        if !able {
            return None;
        }
        self.rounds += 1;
        let context = [self.settings.id, self.settings.boots, self.rounds];
        self.raw.read_index(context.iter().flat_map(|number| number.to_be_bytes()).collect());
        Some(self.rounds)
    }

    /// A message to `member` was lost.
    pub fn unreachable(&mut self, member: u64) {
        if self.snapshots.remove(&member).is_some() {
            self.raw.report_snapshot(member, SnapshotStatus::Failure);
        }
        self.raw.report_unreachable(member);
    }

    /// What there is to do, if anything. Nothing else may be called before its receipt came back.
    pub fn ready(&mut self) -> Result<Option<Work>, String> {
        if !self.raw.has_ready() {
            return Ok(None);
        }
        let mut ready = self.raw.ready();
        let snapshot = (!ready.snapshot().is_empty()).then(|| Installed {
            meta: wire::meta_out(ready.snapshot().get_metadata()),
            data: ready.snapshot().data.clone(),
        });
        Ok(Some(Work {
            messages: self.outgoing(ready.take_messages())?,
            snapshot,
            entries: ready.entries().iter().map(wire::entry_out).collect(),
            hard: ready.hs().map(wire::hard_out),
            must_sync: ready.must_sync(),
            messages_after: self.outgoing(ready.take_persisted_messages())?,
            committed: committed(ready.take_committed_entries()),
            reads: ready.take_read_states().iter().filter_map(|read| self.read(read)).collect(),
            receipt: Receipt(ready),
        }))
    }

    /// The work is written, and durable if it had to be.
    pub fn advance(&mut self, receipt: Receipt) -> Result<After, String> {
        let ready = receipt.0;
        let log = self.raw.mut_store();
        if !ready.snapshot().is_empty() {
            log.install(ready.snapshot().get_metadata());
        }
        log.append(ready.entries());
        let mut light = self.raw.advance_append(ready);
        let messages = self.outgoing(light.take_messages())?;
        Ok(After { messages, committed: committed(light.take_committed_entries()) })
    }

    /// Everything up to `index` is applied.
    pub fn applied(&mut self, index: u64) {
        self.raw.advance_apply_to(index);
    }

    /// Whether a member is so far behind that it needs the stored snapshot: `offer_snapshot` is awaited.
    pub fn snapshot_wanted(&self) -> bool {
        self.raw.store().snapshot_wanted()
    }

    /// Whether the stored snapshot would not be taken by who needs it: store a new one first.
    pub fn snapshot_is_strange(&self) -> bool {
        self.raw.store().snapshot_is_strange()
    }

    /// The stored snapshot, to be sent to who needs it. `meta` is that of the last `truncate`, `Installed` or `Start`.
    pub fn offer_snapshot(&mut self, meta: &RaftSnapshotMeta, data: Vec<u8>) {
        self.raw.mut_store().offer(wire::snapshot_in(meta, data));
    }

    /// The position of a snapshot of everything applied up to `index`.
    pub fn snapshot_meta(&self, index: u64) -> Option<RaftSnapshotMeta> {
        let position = self.raw.store().position(index)?;
        let log = self.raw.store();
        let old = built_in(Fault::SnapshotOfOldMembers);
        let conf = wire::conf_out(if old { log.snapshot_conf() } else { log.conf() });
        Some(RaftSnapshotMeta { index, term: position.term, conf: Some(conf) })
    }

    /// Where the log would begin after a snapshot at `meta`. Others may be a little behind: about `keep_bytes` of
    /// entries stay for them, nothing when this member is alone. Returns (term, index).
    pub fn truncation(&self, meta: &RaftSnapshotMeta, keep_bytes: u64) -> (u64, u64) {
        let log = self.raw.store();
        let snapshot = Position { term: meta.term, index: meta.index };
        let conf = log.conf();
        let alone = conf.voters.len() + conf.learners.len() + conf.voters_outgoing.len() == 1;
        let start = if alone { snapshot } else { log.start_keeping(keep_bytes, snapshot) };
        (start.term, start.index)
    }

    /// The snapshot at `meta` is durable, and the log begins after `start` (term, index), which `truncation` gave.
    pub fn truncate(&mut self, meta: &RaftSnapshotMeta, start: (u64, u64)) {
        let snapshot = Position { term: meta.term, index: meta.index };
        self.raw.mut_store().truncate(snapshot, Position { term: start.0, index: start.1 });
    }

    pub fn id(&self) -> u64 {
        self.settings.id
    }

    pub fn role(&self) -> Role {
        match self.raw.raft.state {
            StateRole::Follower => Role::Follower,
            StateRole::PreCandidate => Role::PreCandidate,
            StateRole::Candidate => Role::Candidate,
            StateRole::Leader => Role::Leader,
        }
    }

    /// Whether it leads and has applied what earlier leaders committed: what it then sees is not of the past.
    pub fn governs(&self) -> bool {
        self.role() == Role::Leader && self.raw.raft.apply_to_current_term()
    }

    /// Who leads, as far as is known here. Who does not vote never seeks a leader itself, and would know for ever one that
    /// is gone: after two election timeouts of silence it knows none.
    pub fn leader(&self) -> Option<u64> {
        let raft = &self.raw.raft;
        let silent = raft.state == StateRole::Follower && raft.election_elapsed >= 2 * self.settings.election_ticks;
        Some(raft.leader_id).filter(|id| *id != raft::INVALID_ID && !silent)
    }

    pub fn term(&self) -> u64 {
        self.raw.raft.term
    }

    pub fn committed(&self) -> u64 {
        self.raw.raft.raft_log.committed
    }

    pub fn last_index(&self) -> u64 {
        self.raw.raft.raft_log.last_index()
    }

    pub fn log_bytes(&self) -> u64 {
        self.raw.store().bytes()
    }

    pub fn snapshot_index(&self) -> u64 {
        self.raw.store().snapshot_position().index
    }

    /// Whether this member is the only one.
    pub fn is_alone(&self) -> bool {
        let conf = self.raw.store().conf();
        conf.voters == [self.settings.id] && conf.voters_outgoing.is_empty()
    }

    fn outgoing(&mut self, messages: Vec<Message>) -> Result<Vec<Outgoing>, String> {
        let mut out = Vec::with_capacity(messages.len());
        for message in messages {
            let to = message.to;
            if message.get_msg_type() == MessageType::MsgSnapshot {
                self.snapshots.insert(to, 0);
                self.raw.mut_store().withdraw();
            }
            out.push(Outgoing { to, bytes: wire::encode(message).map_err(|error| error.to_string())? });
        }
        Ok(out)
    }

    fn read(&self, state: &ReadState) -> Option<Read> {
        let numbers: Vec<u64> = state
            .request_ctx
            .chunks_exact(8)
            .map(|bytes| bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
            .collect();
        match numbers.as_slice() {
            [id, boots, round] if (*id, *boots) == (self.settings.id, self.settings.boots) => {
                Some(Read { round: *round, index: state.index })
            }
            _ => None,
        }
    }

    /// The machine sends nothing to a member whose snapshot is under way, so a lost one must be noticed, and one that
    /// arrived too, although the answer was lost: the member's heartbeats say how far it is.
    fn watch_snapshots(&mut self) {
        let max = SNAPSHOT_ELECTIONS_MAX * self.settings.election_ticks as u64;
        let tracker = self.raw.raft.prs();
        let has = |id: &u64| tracker.get(*id).is_some_and(|peer| peer.committed_index >= peer.pending_snapshot);
        let arrived: Vec<u64> = self.snapshots.keys().filter(|id| has(id)).copied().collect();
        self.snapshots.retain(|id, _| tracker.get(*id).is_some_and(|peer| peer.state == ProgressState::Snapshot));
        for ticks in self.snapshots.values_mut() {
            *ticks += 1;
        }
        let lost: Vec<u64> = self.snapshots.iter().filter(|(_, ticks)| **ticks > max).map(|(id, _)| *id).collect();
        for id in lost {
            self.snapshots.remove(&id);
            self.raw.report_snapshot(id, SnapshotStatus::Failure);
        }
        for id in arrived {
            if self.snapshots.remove(&id).is_some() {
                self.raw.report_snapshot(id, SnapshotStatus::Finish);
            }
        }
    }

    /// The machine draws its election timeout from the thread's own randomness whenever it starts over. In its place
    /// goes one that only depends on the voters, the term and the seed.
    fn set_timeout(&mut self) {
        let Settings { seed, id, election_ticks, .. } = self.settings;
        let conf = self.raw.store().conf();
        let outgoing = conf.voters_outgoing.iter().filter(|id| !conf.voters.contains(id));
        let voters = conf.voters.iter().chain(outgoing).copied();
        let ticks = timeout::ticks(election_ticks, id, voters, seed, self.raw.raft.term);
        self.raw.raft.set_randomized_election_timeout(ticks);
    }
}

fn committed(entries: Vec<Entry>) -> Vec<Committed> {
    let committed = |entry: Entry| Committed {
        term: entry.term,
        index: entry.index,
        change: entry.get_entry_type() == EntryType::EntryConfChangeV2,
        data: entry.data,
    };
    entries.into_iter().map(committed).collect()
}
