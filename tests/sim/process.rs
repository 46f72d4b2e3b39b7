//! The process of a scheduler: the real log, stepped, with its real handle, records and replica, and what waits for it.
//! `control` and `ask` are what the rest of the process does.

use crate::control::Control;
use crate::ctx::{Ctx, LATTICE, Node, Packet, Timer};
use crate::disk::SimDisk;
use crate::history::History;
use crate::trouble::SYNC_MAX_MS;
use proto::app::Name;
use proto::fault::{Fault, built_in};
use proto::v1 as pb;
use scheduler::leader;
use scheduler::peer::roster::{self, Due, Stranger};
use scheduler::raft::{self, StateMachine, Status, Stepped};
use scheduler::{Replica, plan};
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

const TEND_MS: u64 = 200;
/// For a change of members to be agreed on.
const CHANGE_MS: u64 = 3_000;
/// For one that was removed to hand over.
const GO_MS: u64 = 8_000;
/// What may wait in a process at once.
const INBOX_MAX: usize = 10_000;

type Shared<T> = Arc<Mutex<Vec<T>>>;

fn taken<T>(shared: &Shared<T>) -> Vec<T> {
    std::mem::take(&mut *shared.lock().unwrap_or_else(PoisonError::into_inner))
}

fn push<T>(shared: &Shared<T>, one: T) {
    shared.lock().unwrap_or_else(PoisonError::into_inner).push(one);
}

/// What the log did to the state.
enum Did {
    Commit { index: u64, data: Vec<u8>, outcomes: Vec<u8> },
    Restore { index: u64 },
}

/// The real replica, and a note of what it was told.
struct Journal {
    replica: Replica,
    did: Shared<Did>,
}

impl StateMachine for Journal {
    fn apply(&mut self, index: u64, data: &[u8]) -> Vec<u8> {
        let outcomes = self.replica.apply(index, data);
        push(&self.did, Did::Commit { index, data: data.to_vec(), outcomes: outcomes.clone() });
        outcomes
    }

    fn pass(&mut self, index: u64) {
        self.replica.pass(index);
    }

    fn can_apply(&self, data: &[u8]) -> Result<(), String> {
        self.replica.can_apply(data)
    }

    fn can_restore(&self, snapshot: &[u8]) -> Result<(), String> {
        self.replica.can_restore(snapshot)
    }

    fn snapshot(&self) -> Vec<u8> {
        self.replica.snapshot()
    }

    fn restore(&mut self, index: u64, snapshot: &[u8]) -> Result<(), String> {
        push(&self.did, Did::Restore { index });
        self.replica.restore(index, snapshot)
    }
}

struct Outbox(Shared<(u64, Vec<u8>)>);

impl raft::Transport for Outbox {
    fn send(&mut self, to: u64, message: Vec<u8>) {
        push(&self.0, (to, message));
    }
}

/// Whoever waits for a commit.
pub(crate) enum Waiter {
    Loop,
    Ask { intent: usize, via: Option<usize> },
}

/// What a read is for.
pub(crate) struct Reading {
    pub(crate) intent: usize,
    pub(crate) app: Name,
}

pub(crate) enum Came {
    /// Whether this scheduler leads, which the loop asked for with that call.
    Confirmed(u64, Result<u64, raft::Error>),
    /// What was proposed, what became of it, who waits.
    Written(Vec<u8>, Result<raft::Applied, raft::Error>, Waiter),
    Fresh(Result<u64, raft::Error>, Reading),
    Changed(Result<raft::Applied, raft::Error>),
    Transferred(Result<(), raft::Error>, usize, Option<usize>),
    Abdicated(Result<(), raft::Error>),
}

pub(crate) struct Process {
    pub(crate) number: usize,
    pub(crate) boot: u64,
    pub(crate) id: u64,
    log_id: String,
    pub(crate) handle: raft::Handle,
    pub(crate) replica: Replica,
    raft: Stepped<Journal, SimDisk>,
    did: Shared<Did>,
    outbox: Shared<(u64, Vec<u8>)>,
    pub(crate) pending: Vec<Pin<Box<dyn Future<Output = Came>>>>,
    pub(crate) control: Control,
    pub(crate) started_at: u64,
    /// The term in which the log began to govern here last, and when.
    office: Option<u64>,
    pub(crate) took_office_ms: u64,
    /// A change of members is under way until then at most.
    changing: Option<u64>,
    /// It was removed, leads, and could hand over since then.
    could_go: Option<u64>,
    disk: SimDisk,
    /// Its last sync takes until then: the log's thread waits for that, the rest of the process does not.
    pub(crate) synced_at: u64,
    /// Ticks that passed meanwhile.
    ticks: u64,
    ticks_max: u64,
    compared: u64,
    /// The power goes when this event is done.
    pub(crate) doomed: bool,
    /// It finds itself out since then.
    linger: roster::Linger,
    /// It was removed.
    pub(crate) out: bool,
}

impl Process {
    pub(crate) fn open(
        ctx: &Ctx,
        number: usize,
        boot: u64,
        config: raft::Config,
        disk: SimDisk,
    ) -> Result<Self, raft::Error> {
        let (replica, did, outbox) = (Replica::default(), Shared::default(), Shared::default());
        let journal = Journal { replica: replica.clone(), did: Arc::clone(&did) };
        let (id, log_id) = (config.id, config.log_id.clone());
        let ticks_max = config.heartbeat_ticks as u64;
        let (raft, handle) = Stepped::open(config, disk.clone(), journal, Outbox(Arc::clone(&outbox)))?;
        Ok(Self {
            number,
            boot,
            id,
            log_id,
            handle,
            replica,
            raft,
            did,
            outbox,
            pending: Vec::new(),
            control: Control::new(ctx),
            started_at: ctx.now,
            office: None,
            took_office_ms: 0,
            changing: None,
            could_go: None,
            disk,
            synced_at: 0,
            ticks: 0,
            ticks_max,
            compared: 0,
            doomed: false,
            linger: roster::Linger::default(),
            out: false,
        })
    }

    pub(crate) fn begin(&mut self, ctx: &mut Ctx, history: &mut History) -> Result<(), raft::Error> {
        ctx.wake(self.me(), self.boot, leader::TICK_MS, Timer::Control);
        ctx.wake(self.me(), self.boot, raft::TICK_MS, Timer::RaftTick);
        if ctx.params.joins() {
            ctx.wake(self.me(), self.boot, TEND_MS, Timer::Tend);
        }
        self.turn(ctx, history, 0)
    }

    pub(crate) fn me(&self) -> Node {
        Node::Member(self.number)
    }

    pub(crate) fn status<T>(&self, f: impl FnOnce(&Status) -> T) -> T {
        let status = self.handle.status();
        let status = status.borrow();
        f(&status)
    }

    pub(crate) fn governs(&self) -> bool {
        self.leads_in().is_some()
    }

    /// The term in which it does.
    pub(crate) fn leads_in(&self) -> Option<u64> {
        self.status(|s| s.governs.then_some(s.term))
    }

    /// This process's own clock.
    pub(crate) fn now_ms(&self, ctx: &Ctx) -> u64 {
        ctx.by_clock_of(self.number, ctx.now - self.started_at)
    }

    pub(crate) fn timers(ctx: &Ctx) -> plan::Config {
        plan::Config { forget_ms: ctx.params.forget_ms, ..plan::Config::default() }
    }

    pub(crate) fn packet(&mut self, ctx: &mut Ctx, history: &mut History, packet: Packet) -> Result<(), raft::Error> {
        match packet {
            Packet::Raft { from, greeting, bytes } => {
                if self.admits(ctx, from, greeting.as_deref()) && !bytes.is_empty() {
                    // Beyond its bound it is dropped, as by a network.
                    let _ = self.handle.step(bytes);
                }
            }
            Packet::Ask { intent, via, what } => self.ask(ctx, intent, via, what),
            Packet::Answer { intent, told } => {
                ctx.send(self.me(), Node::Client, Packet::Answer { intent, told });
            }
            other => self.hear(ctx, other),
        }
        self.turn(ctx, history, 0)
    }

    pub(crate) fn timer(&mut self, ctx: &mut Ctx, history: &mut History, timer: Timer) -> Result<(), raft::Error> {
        let mut ticks = 0;
        match timer {
            Timer::Control => {
                ctx.wake(self.me(), self.boot, leader::TICK_MS, Timer::Control);
                self.control.look = true;
            }
            Timer::RaftTick => {
                ctx.wake(self.me(), self.boot, raft::TICK_MS, Timer::RaftTick);
                ticks = 1;
            }
            Timer::Tend => {
                ctx.wake(self.me(), self.boot, TEND_MS, Timer::Tend);
                self.tend(ctx);
            }
            Timer::Deadline { call } => self.late(call),
            other => ctx.fail(format!("a scheduler was woken by {other:?}")),
        }
        self.turn(ctx, history, ticks)
    }

    /// The log does what is due, then everyone who waited, then the loop what it can.
    fn turn(&mut self, ctx: &mut Ctx, history: &mut History, ticks: u64) -> Result<(), raft::Error> {
        // As many as the log's loop makes up for.
        self.ticks = (self.ticks + ticks).min(self.ticks_max);
        loop {
            if ctx.now >= self.synced_at {
                self.round(ctx, history)?;
            }
            let mut moved = self.poll(ctx, history);
            moved |= self.pump(ctx);
            if !moved || ctx.failure.is_some() {
                break;
            }
        }
        let leads = self.status(|s| (s.role == raft::Role::Leader).then_some(s.term));
        if let Some(term) = leads {
            history.leads(ctx, term, self.id);
        }
        if self.control.inbox.len() + self.pending.len() > INBOX_MAX {
            ctx.fail(format!("s{}: more than {INBOX_MAX} things wait", self.number));
        }
        if self.replica.read().applied >= self.compared + 20 {
            self.compare(ctx, history);
            self.compared = self.replica.read().applied;
        }
        Ok(())
    }

    fn round(&mut self, ctx: &mut Ctx, history: &mut History) -> Result<(), raft::Error> {
        let before = self.disk.slow_syncs();
        let round = self.raft.round(std::mem::take(&mut self.ticks));
        self.journal(ctx, history);
        self.post(ctx);
        if round? == ControlFlow::Break(()) {
            ctx.fail(format!("s{} ended by itself", self.number));
        }
        let office = self.leads_in();
        if office != self.office {
            (self.office, self.took_office_ms) = (office, self.now_ms(ctx));
        }
        if before.is_some_and(|before| self.disk.slow_syncs() > Some(before)) {
            self.synced_at = ctx.now + ctx.dice.between(300, SYNC_MAX_MS);
            ctx.count("sync took long");
        }
        Ok(())
    }

    fn compare(&self, ctx: &mut Ctx, history: &History) {
        let state = self.replica.read();
        let entry_at = history.last();
        if entry_at > 0 && state.applied >= entry_at {
            history.compare(ctx, self.number, &state);
        }
    }

    fn journal(&mut self, ctx: &mut Ctx, history: &mut History) {
        let mut restored = false;
        for did in taken(&self.did) {
            self.control.look = true;
            match did {
                Did::Commit { index, data, outcomes } => history.commit(ctx, index, &data, &outcomes),
                Did::Restore { index } if index > 1 => {
                    ctx.count("snapshot taken over");
                    if !ctx.net.pairs.is_empty() || ctx.net.isolated.iter().any(|i| *i) {
                        ctx.count("snapshot taken over during a partition");
                    }
                    restored = true;
                }
                Did::Restore { .. } => {}
            }
        }
        if restored {
            self.compare(ctx, history);
        }
    }

    fn post(&mut self, ctx: &mut Ctx) {
        for (to, bytes) in taken(&self.outbox) {
            let greeting = ctx.params.joins().then(|| {
                let (lattice, log_id) = (LATTICE.to_owned(), self.log_id.clone());
                Box::new(pb::PeerGreeting { lattice, from: self.id, to, log_id, peer: String::new() })
            });
            let seat = ctx.seat_of(to);
            let packet = Packet::Raft { from: self.number, greeting, bytes };
            if !seat.is_some_and(|seat| ctx.send(self.me(), Node::Member(seat), packet)) {
                self.handle.unreachable(to);
            }
        }
    }

    /// Everyone whose answer is there goes on. Gives whether anyone did.
    fn poll(&mut self, ctx: &mut Ctx, history: &History) -> bool {
        let mut context = Context::from_waker(Waker::noop());
        let mut came = Vec::new();
        self.pending.retain_mut(|future| match future.as_mut().poll(&mut context) {
            Poll::Ready(one) => {
                came.push(one);
                false
            }
            Poll::Pending => true,
        });
        let any = !came.is_empty();
        for one in came {
            match one {
                Came::Written(data, result, waiter) => {
                    if let Ok(applied) = &result
                        && history.data_at(applied.index) != Some(&data)
                    {
                        let (number, index) = (self.number, applied.index);
                        ctx.fail(format!(
                            "s{number} was told of log index {index}, where something else was committed"
                        ));
                    }
                    self.written(ctx, result, waiter);
                }
                Came::Fresh(result, reading) => self.fresh(ctx, result, reading),
                Came::Confirmed(call, result) => self.confirmed(call, result.is_ok()),
                Came::Changed(result) => {
                    self.changing = None;
                    if result.is_ok() {
                        ctx.count("members changed");
                        if self.status(|s| s.members.voters.len()) == roster::VOTERS_MAX {
                            ctx.count("as many schedulers vote as may");
                        }
                    }
                }
                Came::Abdicated(result) => {
                    if result.is_ok() {
                        ctx.count("removed leader handed over");
                    }
                }
                Came::Transferred(result, intent, via) => self.transferred(ctx, result, intent, via),
            }
        }
        any
    }

    /// Asks the log, which hears it in the next round.
    pub(crate) fn wait_for(&mut self, future: impl Future<Output = Came> + 'static) {
        let mut future: Pin<Box<dyn Future<Output = Came>>> = Box::pin(future);
        match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            // It is handed out with the others.
            Poll::Ready(came) => self.pending.push(Box::pin(std::future::ready(came))),
            Poll::Pending => self.pending.push(future),
        }
    }

    pub(crate) fn propose(&mut self, ctx: &mut Ctx, commands: Vec<pb::Command>, waiter: Waiter) {
        use prost::Message as _;
        let time_ms = ctx.wall_ms(self.number);
        let entry = scheduler::state::entry(&self.replica.read(), self.id, self.replica.knows(), time_ms, commands);
        let entry = match entry {
            Ok(entry) => entry,
            Err(why) => return ctx.fail(format!("s{} can not propose: {why}", self.number)),
        };
        let (handle, data) = (self.handle.clone(), entry.encode_to_vec());
        self.wait_for(async move { Came::Written(data.clone(), handle.propose(data).await, waiter) });
    }

    /// Whether a message of another scheduler is taken, as `peer/serve.rs` decides it.
    fn admits(&self, ctx: &mut Ctx, from: usize, greeting: Option<&pb::PeerGreeting>) -> bool {
        let Some(greeting) = greeting else { return true };
        let state = self.replica.read();
        let admitted = self.status(|s| roster::admit(&state, &s.members, self.id, LATTICE, greeting));
        match admitted {
            Ok(()) => true,
            Err(Stranger::Removed(_)) => {
                ctx.send(self.me(), Node::Member(from), Packet::Out);
                false
            }
            Err(Stranger::Refused(why)) => {
                ctx.note(|| format!("s{} refuses s{from}: {why}", self.number));
                ctx.count("stranger refused");
                false
            }
        }
    }

    /// One step of the leader towards the members that are wanted, as `peer/keep.rs` makes it.
    fn tend(&mut self, ctx: &mut Ctx) {
        self.look_at_removed(ctx);
        let (out, due) = {
            let state = self.replica.read();
            self.status(|status| {
                let free = status.governs && self.changing.is_none_or(|until| ctx.now >= until);
                let due = || roster::due(status, &state.members, self.reached(ctx, status));
                (roster::is_out(self.id, &state, &status.members), if free { due() } else { Due::Nothing })
            })
        };
        if let Due::HandOver(heir) = due {
            self.changing = Some(ctx.now + CHANGE_MS);
            let handle = self.handle.clone();
            self.wait_for(async move { Came::Abdicated(handle.transfer(heir).await) });
        }
        self.out |= self.linger.is_over(out, ctx.now);
        // Who hears of no leader greets everyone: it may have been removed. One without a vote takes whom it heard of last
        // for its leader for ever.
        if self.status(|s| s.leader.is_none() || !s.members.is_voter(self.id)) {
            for id in ctx.ids.into_iter().filter(|id| *id != 0 && *id != self.id) {
                push(&self.outbox, (id, Vec::new()));
            }
        }
        if let Due::Change(changes) = due {
            ctx.note(|| format!("s{} changes members: {changes:?}", self.number));
            self.changing = Some(ctx.now + CHANGE_MS);
            self.may_crash_in_a_change(ctx, changes.iter().any(|c| matches!(c, raft::Change::Remove(_))));
            let handle = self.handle.clone();
            self.wait_for(async move { Came::Changed(handle.change(changes).await) });
        }
    }

    /// A change of members is begun here: this process may end in the middle of it.
    pub(crate) fn may_crash_in_a_change(&self, ctx: &mut Ctx, removes: bool) {
        // Who is removed may lead then.
        let percent = if removes { 3 * ctx.params.change_crashes } else { ctx.params.change_crashes };
        if ctx.faults && ctx.dice.percent(percent) {
            let after = ctx.dice.between(1, 250);
            ctx.wake(self.me(), self.boot, after, Timer::Crash);
        }
    }

    /// One that was removed hands over, as soon as there is somebody to hand over to.
    fn look_at_removed(&mut self, ctx: &mut Ctx) {
        let could_go = ctx.net.is_calm() && ctx.now >= self.synced_at && {
            let state = self.replica.read();
            self.status(|status| {
                let removed = !state.members.is_empty() && !state.members.contains_key(&self.id);
                let ready = roster::ready(status, self.reached(ctx, status));
                let heir = roster::heir(self.id, &state.members, &status.members, &ready, &status.progress);
                let heir = heir.filter(|id| state.members.contains_key(id));
                let acts = |id| ctx.seat_of(id).is_some_and(|seat| ctx.stalled_until[seat] <= ctx.now);
                status.governs && removed && !status.members.is_joint() && heir.is_some_and(acts)
            })
        };
        let since = *self.could_go.get_or_insert(ctx.now);
        if !could_go {
            self.could_go = None;
        } else if ctx.now - since > GO_MS {
            ctx.fail(format!("s{} was removed and leads for {} ms since", self.number, ctx.now - since));
        }
    }

    /// Members that are reached from here, this one included.
    pub(crate) fn reached(&self, ctx: &Ctx, status: &Status) -> BTreeSet<u64> {
        let reached = |id: &u64| {
            let seat = ctx.seat_of(*id).filter(|seat| ctx.up[*seat]);
            *id == self.id || seat.is_some_and(|seat| ctx.net.reaches(self.me(), Node::Member(seat)))
        };
        status.members.voters.iter().chain(&status.members.learners).copied().filter(reached).collect()
    }

    fn written(&mut self, ctx: &mut Ctx, result: Result<raft::Applied, raft::Error>, waiter: Waiter) {
        if let Err(error) = &result
            && matches!(error, raft::Error::Uncertain { .. })
        {
            ctx.count("outcome unknown to who proposed");
        }
        match waiter {
            Waiter::Loop => self.proposed(ctx, result),
            Waiter::Ask { intent, via } => {
                let done = built_in(Fault::UncertainIsDone)
                    && matches!(result, Err(raft::Error::Uncertain { .. } | raft::Error::Superseded { .. }));
                self.told(ctx, intent, via, result.ok(), done);
            }
        }
    }
}
