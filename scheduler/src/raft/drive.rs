//! The one loop that owns machine, disk and state machine: gathers what arrived, lets the machine decide, makes that
//! durable with one flush for all of it, applies, answers. Runs on a thread of its own, as it blocks on the disk. Must
//! never answer before the flush, and never go on after the disk failed.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use proto::fault::{Fault, built_in};
use tokio::sync::{OwnedSemaphorePermit, oneshot, watch};
use tracing::{error, info, warn};

use super::disk::Disk;
use super::handle::{self, Applied, Event, Handle, Status};
use super::node::{Committed, Installed, Node, NotTaken, Outgoing, Read, Role, Settings, Work};
use super::storage::{Begin, GENESIS, Store};
use super::{Config, Error, StateMachine, Transport};

/// What one round takes in before it turns to the disk.
const ROUND_EVENTS_MAX: usize = 4096;
const ROUND_BYTES_MAX: usize = 4 << 20;
/// Stale records removed in one round.
const SWEEP_RECORDS: usize = 1000;
/// Share of the log that stays behind a snapshot for members that are a little behind.
const KEEP_SHARE: u64 = 8;
/// Election timeouts after which a read that nobody confirmed, or a proposal of a member that leads no more, is answered.
const GIVE_UP_ELECTIONS: u64 = 4;

/// Called once when the member can not go on; production ends the process in it.
pub(super) type OnFatal = Box<dyn FnOnce(&Error) + Send>;

/// A member whose disk failed or whose state is unknown must not take part any longer, not even to say goodbye.
pub(super) fn abort(error: &Error) {
    // Nothing is wrong with the disk or what is on it: it ends in good order, and a newer build goes on.
    if matches!(error, Error::Newer { .. }) {
        error!(%error, "this scheduler ends");
        return;
    }
    error!(%error, "the replicated log can not go on, the process ends");
    eprintln!("lattice: the replicated log can not go on: {error}");
    std::process::abort();
}

pub(super) fn start<S: StateMachine, D: Disk>(
    config: Config,
    disk: D,
    state: S,
    transport: Box<dyn Transport>,
    on_fatal: OnFatal,
) -> Result<Handle, Error> {
    let (driver, handle, events) = open(config, disk, state, transport)?;
    let guard = Guard { on_fatal: Some(on_fatal) };
    std::thread::Builder::new()
        .name("raft".to_owned())
        .spawn(move || driver.run(&events, guard))
        .map_err(|source| Error::Io { doing: "cannot start the thread of", path: "raft".into(), source })?;
    Ok(handle)
}

/// A member that does not move yet, who speaks to it, and what it is told.
pub(super) type Opened<S, D> = (Driver<S, D>, Handle, Receiver<Event>);

/// Reads the disk and restores the state; nothing moves yet.
pub(super) fn open<S: StateMachine, D: Disk>(
    config: Config,
    disk: D,
    mut state: S,
    transport: Box<dyn Transport>,
) -> Result<Opened<S, D>, Error> {
    let begin = Begin { voters: &config.voters, log_id: &config.log_id, may_begin: config.may_begin, at: GENESIS };
    let (store, opened) = Store::open(disk, &config.dir, config.id, &begin, || state.snapshot())?;
    let applied = opened.start.snapshot.index;
    if !opened.fresh {
        state.can_restore(&opened.state).map_err(|detail| Error::Newer { index: applied, detail })?;
        state.restore(applied, &opened.state).map_err(|detail| Error::Restore { index: applied, detail })?;
    }
    let settings = Settings {
        id: config.id,
        election_ticks: config.election_ticks,
        heartbeat_ticks: config.heartbeat_ticks,
        seed: config.seed,
        boots: opened.boots,
    };
    let node = Node::new(settings, opened.start).map_err(Error::Machine)?;
    info!(member = config.id, boots = opened.boots, snapshot = applied, last = node.last_index(), "log opened");

    let (status, receiver) = watch::channel(observe(&node, applied, 0, 0));
    let (handle, events) = handle::channel(receiver, opened.log_id, config.proposals_max, config.entry_bytes_max);
    let driver = Driver {
        node,
        state,
        transport,
        store,
        applied,
        log_bytes_due: config.log_bytes_max,
        waiting: BTreeMap::new(),
        reads: Reads::default(),
        ticks: 0,
        led: 0,
        refused: 0,
        config,
        status,
    };
    Ok((driver, handle, events))
}

/// A proposal that waits for its commit.
struct Waiting {
    term: u64,
    answer: oneshot::Sender<Result<Applied, Error>>,
    _permit: OwnedSemaphorePermit,
}

struct Asked {
    answer: oneshot::Sender<Result<u64, Error>>,
    _permit: OwnedSemaphorePermit,
    /// Tick of its arrival.
    since: u64,
}

/// Reads, in the order of what they wait for: a round, its confirmation, the state to catch up with it.
#[derive(Default)]
struct Reads {
    queued: Vec<Asked>,
    /// Round -> (tick of its begin, who shares it).
    rounds: BTreeMap<u64, (u64, Vec<Asked>)>,
    confirmed: BTreeMap<u64, Vec<Asked>>,
}

/// Tells of an end by panic, which would otherwise only be seen as silence.
struct Guard {
    on_fatal: Option<OnFatal>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(on_fatal) = self.on_fatal.take()
        {
            on_fatal(&Error::Machine("panicked, see the message above".to_owned()));
        }
    }
}

pub(super) struct Driver<S, D> {
    node: Node,
    state: S,
    transport: Box<dyn Transport>,
    store: Store<D>,
    applied: u64,
    /// The log is truncated when it holds more.
    log_bytes_due: u64,
    /// By log index.
    waiting: BTreeMap<u64, Waiting>,
    reads: Reads,
    ticks: u64,
    /// Tick at which this member was last seen leading.
    led: u64,
    refused: u64,
    config: Config,
    /// Dropped last: who waits for the end sees the directory free.
    status: watch::Sender<Status>,
}

impl<S: StateMachine, D: Disk> Driver<S, D> {
    fn run(mut self, events: &Receiver<Event>, mut guard: Guard) {
        let ended = self.turn(events);
        if let (Err(error), Some(on_fatal)) = (&ended, guard.on_fatal.take()) {
            on_fatal(error);
        }
        let Self { status, store, state, waiting, reads, .. } = self;
        drop((waiting, reads, store, state));
        drop(status);
    }

    fn turn(&mut self, events: &Receiver<Event>) -> Result<(), Error> {
        self.begin()?;
        let tick = Duration::from_millis(self.config.tick_ms);
        let mut due = Instant::now() + tick;
        loop {
            let flow = self.gather(events, due);
            // After a pause, a tick or two are enough: the rest of it was nobody's silence.
            for _ in 0..self.config.heartbeat_ticks {
                if Instant::now() >= due {
                    due += tick;
                    self.tick();
                }
            }
            due = due.max(Instant::now());
            self.finish_round()?;
            if flow.is_break() {
                return Ok(());
            }
        }
    }

    /// Does what was committed before; a member that is alone leads at once.
    pub(super) fn begin(&mut self) -> Result<(), Error> {
        // What is committed may change the members: only then it is known who is alone.
        self.work()?;
        if self.node.is_alone() {
            self.node.campaign().map_err(Error::Machine)?;
            self.work()?;
        }
        self.publish();
        Ok(())
    }

    /// What follows from the events that were taken and the ticks that passed.
    pub(super) fn finish_round(&mut self) -> Result<(), Error> {
        self.begin_reads();
        self.work()?;
        self.truncate()?;
        self.store.sweep(SWEEP_RECORDS)?;
        self.publish();
        Ok(())
    }

    /// Takes in what arrived, waiting until `due` for the first.
    fn gather(&mut self, events: &Receiver<Event>, due: Instant) -> ControlFlow<()> {
        match events.recv_timeout(due.saturating_duration_since(Instant::now())) {
            Ok(event) => self.take(event)?,
            Err(RecvTimeoutError::Timeout) => return ControlFlow::Continue(()),
            Err(RecvTimeoutError::Disconnected) => return ControlFlow::Break(()),
        };
        let mut bytes = 0;
        for _ in 1..ROUND_EVENTS_MAX {
            if bytes >= ROUND_BYTES_MAX {
                break;
            }
            match events.try_recv() {
                Ok(event) => {
                    bytes += match &event {
                        Event::Propose { data, .. } => data.len(),
                        Event::Step { message, .. } => message.len(),
                        _ => 0,
                    };
                    self.take(event)?;
                }
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return ControlFlow::Break(()),
            }
        }
        ControlFlow::Continue(())
    }

    pub(super) fn take(&mut self, event: Event) -> ControlFlow<()> {
        match event {
            Event::Propose { data, answer, permit } => {
                let taken = self.node.propose(data);
                self.proposed(taken, answer, permit);
            }
            Event::Change { changes, answer, permit } => {
                let taken = self.node.propose_change(&changes);
                self.proposed(taken, answer, permit);
            }
            Event::Transfer { to, answer } => {
                let _ = answer.send(self.node.transfer(to).map_err(|why| not_taken(why, self.waiting.len())));
            }
            Event::Read { answer, .. } if built_in(Fault::StaleRead) => {
                let _ = answer.send(Ok(self.applied));
            }
            Event::Read { answer, permit } => {
                self.reads.queued.push(Asked { answer, _permit: permit, since: self.ticks });
            }
            Event::Step { message, permit } => {
                drop(permit);
                if let Err(reason) = self.node.step(&message) {
                    self.refused += 1;
                    warn!(bytes = message.len(), %reason, "message of another member refused");
                }
            }
            Event::Unreachable { member } => self.node.unreachable(member),
            Event::Shutdown => return ControlFlow::Break(()),
        }
        ControlFlow::Continue(())
    }

    fn proposed(
        &mut self,
        taken: Result<(u64, u64), NotTaken>,
        answer: oneshot::Sender<Result<Applied, Error>>,
        permit: OwnedSemaphorePermit,
    ) {
        match taken {
            Ok((term, index)) => {
                let waiting = Waiting { term, answer, _permit: permit };
                if let Some(older) = self.waiting.insert(index, waiting) {
                    // Of an earlier term, overwritten here; another member may still have it.
                    let _ = older.answer.send(Err(Error::Uncertain { index }));
                }
            }
            Err(why) => {
                let _ = answer.send(Err(not_taken(why, self.waiting.len())));
            }
        }
    }

    pub(super) fn tick(&mut self) {
        self.ticks += 1;
        self.node.tick();
        if self.node.role() == Role::Leader {
            self.led = self.ticks;
        }
        let election = self.config.election_ticks as u64;
        let patience = GIVE_UP_ELECTIONS * election;
        if self.ticks - self.led > patience {
            for (index, waiting) in std::mem::take(&mut self.waiting) {
                let _ = waiting.answer.send(Err(Error::Uncertain { index }));
            }
        }
        // A round may have been lost, or forgotten by a leader that is no more: ask again.
        let ticks = self.ticks;
        let lost: Vec<u64> = self
            .reads
            .rounds
            .iter()
            .filter(|(_, (begun, _))| ticks - begun > election)
            .map(|(round, _)| *round)
            .collect();
        for round in lost {
            let (_, asked) = self.reads.rounds.remove(&round).expect("listed just now");
            self.reads.queued.extend(asked);
        }
        let leader = self.node.leader();
        for asked in self.reads.queued.extract_if(.., |asked| ticks - asked.since > patience) {
            let error = if leader.is_none() { Error::NotLeader { leader } } else { Error::Unconfirmed };
            let _ = asked.answer.send(Err(error));
        }
        let applied = self.applied;
        for (index, asked) in &mut self.reads.confirmed {
            for asked in asked.extract_if(.., |asked| ticks - asked.since > patience) {
                let _ = asked.answer.send(Err(Error::Behind { applied, index: *index }));
            }
        }
        self.reads.confirmed.retain(|_, asked| !asked.is_empty());
    }

    /// All reads that wait share one round.
    fn begin_reads(&mut self) {
        if self.reads.queued.is_empty() {
            return;
        }
        if let Some(round) = self.node.read_index() {
            self.reads.rounds.insert(round, (self.ticks, std::mem::take(&mut self.reads.queued)));
        }
    }

    /// Does what the machine wants until it wants nothing more.
    fn work(&mut self) -> Result<(), Error> {
        while let Some(work) = self.node.ready().map_err(Error::Machine)? {
            let Work { messages, snapshot, entries, hard, must_sync, messages_after, committed, reads, receipt } = work;
            self.send(messages);
            let mut messages_after = messages_after;
            if built_in(Fault::SendBeforeWrite) {
                self.send(std::mem::take(&mut messages_after));
            }
            self.apply(committed)?;
            if let Some(Installed { meta, data }) = &snapshot {
                let refused = |detail| Error::Newer { index: meta.index, detail };
                self.state.can_restore(data).map_err(refused)?;
            }
            self.store.write(snapshot.as_ref(), &entries, hard, must_sync)?;
            if let Some(installed) = snapshot {
                self.install(&installed)?;
            }
            self.send(messages_after);
            self.confirm(reads);
            let after = self.node.advance(receipt).map_err(Error::Machine)?;
            self.send(after.messages);
            self.apply(after.committed)?;
            self.node.applied(self.applied);
            self.answer_reads();
        }
        if self.node.snapshot_wanted() {
            if self.node.snapshot_is_strange() {
                self.store_snapshot()?;
            }
            let (meta, state) = self.store.load_snapshot()?;
            self.node.offer_snapshot(&meta, state);
        }
        Ok(())
    }

    fn send(&mut self, messages: Vec<Outgoing>) {
        for message in messages {
            self.transport.send(message.to, message.bytes);
        }
    }

    fn apply(&mut self, entries: Vec<Committed>) -> Result<(), Error> {
        for entry in entries {
            let Committed { term, index, .. } = entry;
            assert_eq!(index, self.applied + 1, "entries are applied in order, each once");
            let outcome = if entry.change {
                if !built_in(Fault::ChangeBeforeCommit) {
                    self.store.commit(index)?;
                }
                self.node.apply_change(&entry).map_err(Error::Machine)?;
                info!(index, members = ?self.node.members(), "members changed");
                self.state.pass(index);
                Vec::new()
            } else if entry.data.is_empty() {
                self.state.pass(index);
                Vec::new()
            } else {
                self.state.can_apply(&entry.data).map_err(|detail| Error::Newer { index, detail })?;
                self.state.apply(index, &entry.data)
            };
            self.applied = index;
            match self.waiting.remove(&index) {
                Some(waiting) if waiting.term == term || built_in(Fault::TermOfWaiterIgnored) => {
                    let _ = waiting.answer.send(Ok(Applied { index, outcome }));
                }
                Some(waiting) => {
                    let _ = waiting.answer.send(Err(Error::Superseded { index }));
                }
                None => {}
            }
            // Terms never fall along a log: what an older term put behind this entry can not be committed any more.
            while let Some(last) = self.waiting.last_entry().filter(|last| last.get().term < term) {
                let index = *last.key();
                let _ = last.remove().answer.send(Err(Error::Superseded { index }));
            }
        }
        Ok(())
    }

    /// A snapshot of the leader is durable here: take its state over.
    fn install(&mut self, installed: &Installed) -> Result<(), Error> {
        let index = installed.meta.index;
        info!(index, bytes = installed.data.len(), "snapshot of the leader taken over");
        self.state.restore(index, &installed.data).map_err(|detail| Error::Restore { index, detail })?;
        self.applied = index;
        let later = self.waiting.split_off(&(index + 1));
        for (index, waiting) in std::mem::replace(&mut self.waiting, later) {
            let _ = waiting.answer.send(Err(Error::Uncertain { index }));
        }
        Ok(())
    }

    fn confirm(&mut self, reads: Vec<Read>) {
        for Read { round, index } in reads {
            if let Some((_, asked)) = self.reads.rounds.remove(&round) {
                self.reads.confirmed.entry(index).or_default().extend(asked);
            }
        }
    }

    fn answer_reads(&mut self) {
        let all = built_in(Fault::ReadBeforeApplied);
        let applied = self.applied;
        while let Some(first) = self.reads.confirmed.first_entry().filter(|first| all || *first.key() <= applied) {
            let index = *first.key();
            for asked in first.remove() {
                let _ = asked.answer.send(Ok(index));
            }
        }
    }

    /// Stores the state and drops the log before it, once that is long enough.
    fn truncate(&mut self) -> Result<(), Error> {
        if self.node.log_bytes() <= self.log_bytes_due || self.applied <= self.node.snapshot_index() {
            return Ok(());
        }
        self.store_snapshot()
    }

    fn store_snapshot(&mut self) -> Result<(), Error> {
        let Some(meta) = self.node.snapshot_meta(self.applied) else { return Ok(()) };
        let max = self.config.log_bytes_max;
        let state = self.state.snapshot();
        let start = self.node.truncation(&meta, max / KEEP_SHARE);
        self.store.store_snapshot(&meta, &state, start)?;
        self.node.truncate(&meta, start);
        let left = self.node.log_bytes();
        // What is not committed can not go: do not store the state again for every entry of it.
        self.log_bytes_due = max.max(left + max / 2);
        info!(index = meta.index, bytes = state.len(), log_bytes = left, "snapshot stored, log truncated");
        Ok(())
    }

    fn publish(&self) {
        let now = observe(&self.node, self.applied, self.store.syncs(), self.refused);
        self.status.send_if_modified(|status| {
            let differs = *status != now;
            *status = now;
            differs
        });
    }
}

fn not_taken(why: NotTaken, waiting: usize) -> Error {
    match why {
        NotTaken::NotLeader { leader } => Error::NotLeader { leader },
        NotTaken::Full => Error::Overloaded { what: "proposals", limit: waiting },
        NotTaken::Changing => Error::Changing,
        NotTaken::NotVoter(id) => Error::NotVoter { id },
        NotTaken::Impossible(detail) => Error::Impossible { detail },
    }
}

fn observe(node: &Node, applied: u64, syncs: u64, refused: u64) -> Status {
    Status {
        id: node.id(),
        leader: node.leader(),
        term: node.term(),
        role: node.role(),
        governs: node.governs(),
        applied,
        committed: node.committed(),
        log_bytes: node.log_bytes(),
        snapshot: node.snapshot_index(),
        syncs,
        refused,
        members: node.members(),
        progress: node.progress(),
    }
}
