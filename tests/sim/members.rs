//! A scheduler as `scheduler/src/control.rs` and `api` run one, without tasks, bus and gRPC: the real state and planner
//! between log, heartbeats and assignments. Must never decide anything that `plan` or `State` decides.

use crate::ctx::{Ctx, LATTICE, Mutation, Node, Packet, Timer, host_number};
use crate::history::History;
use crate::judge;
use crate::log::{Did, Log};
use prost::Message;
use proto::app::{HostId, Name};
use proto::v1 as pb;
use proto::v1::command::What;
use scheduler::plan::{self, Heard, Observed};
use scheduler::state::{self, State};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

const TICK_MS: u64 = 500;
const RAFT_TICK_MS: u64 = 100;
const ASSIGN_DEADLINE_MS: u64 = 5_000;
const ASK_DEADLINE_MS: u64 = 3_000;
const CALLS_MAX: usize = 256;
const BEAT_MS: u32 = 2_000;
const BUSY_MS: u64 = 1_000;
/// Raft ticks after which a member that leads no more answers who waits.
const PATIENCE_TICKS: u64 = 40;

pub(crate) struct Member {
    pub(crate) number: usize,
    pub(crate) boot: u64,
    pub(crate) up: bool,
    log: Box<dyn Log>,
    pub(crate) process: Process,
    /// The power goes when this event is done.
    pub(crate) doomed: bool,
    compared: u64,
}

/// What a crash ends.
#[derive(Default)]
pub(crate) struct Process {
    started_at: u64,
    pub(crate) state: State,
    pub(crate) observed: Observed,
    waiting: BTreeMap<u64, (u64, Waiter)>,
    inbox: VecDeque<Inbound>,
    /// The loop waits for its own proposal.
    awaiting: Option<Awaiting>,
    wants_step: bool,
    leading: bool,
    pub(crate) braking: bool,
    busy: BTreeMap<(HostId, Call), Option<u64>>,
    calls: BTreeMap<u64, (HostId, Call, u64)>,
    calls_made: u64,
    ticks: u64,
    led: u64,
    pub(crate) failed_here: BTreeSet<(HostId, Name, Name, u64)>,
    /// What a mutation sends again, and whom it sent something.
    first_sent: BTreeMap<HostId, pb::Assignment>,
    sent: BTreeSet<(HostId, u64)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Call {
    Assign,
    Hello,
    Inventory,
}

enum Waiter {
    Control,
    Client(usize),
}

enum Awaiting {
    Plan,
    Register,
}

enum Inbound {
    Hello(pb::Hello),
    Beat(HostId, pb::Beat),
    Back(HostId, Call, u64, Back),
}

enum Back {
    Hello(pb::Hello),
    Inventory(pb::Beat),
    Assigned(pb::Assigned),
    Failed,
}

impl Member {
    pub(crate) fn new(number: usize, log: Box<dyn Log>) -> Self {
        Self { number, boot: 0, up: false, log, process: Process::default(), doomed: false, compared: 0 }
    }

    fn me(&self) -> Node {
        Node::Member(self.number)
    }

    pub(crate) fn leads(&self) -> bool {
        self.up && self.log.leads()
    }

    pub(crate) fn term(&self) -> u64 {
        self.log.term()
    }

    /// This scheduler's own clock.
    pub(crate) fn now_ms(&self, ctx: &Ctx) -> u64 {
        ctx.now - self.process.started_at
    }

    pub(crate) fn timers(ctx: &Ctx) -> plan::Config {
        plan::Config { forget_ms: ctx.params.forget_ms, ..plan::Config::default() }
    }

    pub(crate) fn start(&mut self, ctx: &mut Ctx, history: &mut History) {
        if self.up {
            return;
        }
        self.boot += 1;
        self.up = true;
        if self.boot > 1 {
            ctx.count("scheduler restarted");
        }
        let (index, bytes) = self.log.open();
        self.process = Process { started_at: ctx.now, ..Process::default() };
        self.restore(ctx, history, index, &bytes);
        ctx.note(|| format!("s{} starts from a snapshot at {index}", self.number));
        ctx.wake(self.me(), self.boot, TICK_MS, Timer::Control);
        if ctx.params.members > 1 {
            ctx.wake(self.me(), self.boot, RAFT_TICK_MS, Timer::RaftTick);
        }
        self.turn(ctx, history);
        self.compared = 0;
        self.compare(ctx, history);
    }

    pub(crate) fn crash(&mut self, ctx: &mut Ctx) {
        self.doomed = false;
        if self.up {
            self.up = false;
            ctx.note(|| format!("s{} crashes", self.number));
            self.log.crash(&mut ctx.dice, ctx.mutation);
            self.process = Process::default();
        }
    }

    pub(crate) fn packet(&mut self, ctx: &mut Ctx, history: &mut History, packet: Packet) {
        match packet {
            Packet::Hello(hello) => self.process.inbox.push_back(Inbound::Hello(hello)),
            Packet::Beat(beat) => {
                if let Ok(id) = beat.host.parse() {
                    self.process.inbox.push_back(Inbound::Beat(id, beat));
                }
            }
            Packet::Assigned { call, assigned } => self.answered(call, Back::Assigned(assigned)),
            Packet::AnswerHello { call, hello } => self.answered(call, Back::Hello(hello)),
            Packet::AnswerInventory { call, beat } => self.answered(call, Back::Inventory(beat)),
            Packet::Raft { bytes, .. } => self.log.step(&bytes),
            Packet::Request { intent, command } => self.request(ctx, history, intent, command),
            other => ctx.fail(format!("a scheduler was sent {other:?}")),
        }
        self.turn(ctx, history);
    }

    pub(crate) fn timer(&mut self, ctx: &mut Ctx, history: &mut History, timer: Timer) {
        match timer {
            Timer::Control => {
                ctx.wake(self.me(), self.boot, TICK_MS, Timer::Control);
                self.process.wants_step = true;
            }
            Timer::RaftTick => {
                ctx.wake(self.me(), self.boot, RAFT_TICK_MS, Timer::RaftTick);
                self.raft_tick(ctx);
            }
            Timer::Flush => self.log.flush(),
            Timer::Deadline { call } => self.answered(call, Back::Failed),
            other => ctx.fail(format!("a scheduler was woken by {other:?}")),
        }
        self.turn(ctx, history);
    }

    /// The log does what is due, then the loop what it can.
    fn turn(&mut self, ctx: &mut Ctx, history: &mut History) {
        loop {
            let did = self.log.work();
            let idle = did.is_empty();
            for one in did {
                self.did(ctx, history, one);
            }
            // Whoever takes office looks around at once, though its state may be behind its log.
            self.process.wants_step |= self.log.leads() != self.process.leading;
            let moved = self.pump(ctx);
            if idle && !moved {
                break;
            }
        }
        if self.log.snapshot_due() {
            let mut state = self.process.state.clone();
            if ctx.mutation == Some(Mutation::SnapshotForgetsAnswers) {
                let bare = pb::Snapshot { answered: Vec::new(), ..state.to_snapshot() };
                state = State::from_snapshot(bare).expect("a snapshot without answers is one");
            }
            ctx.count("snapshot stored");
            self.log.store_snapshot(state.to_bytes());
        }
        if self.process.state.applied >= self.compared + 20 {
            self.compare(ctx, history);
        }
    }

    fn compare(&mut self, ctx: &mut Ctx, history: &History) {
        let state = &self.process.state;
        let entry_at = history.last();
        if entry_at > 0 && state.applied >= entry_at {
            self.compared = state.applied;
            history.compare(ctx, self.number, state);
        }
    }

    fn did(&mut self, ctx: &mut Ctx, history: &mut History, did: Did) {
        match did {
            Did::Send { to, bytes } => {
                if !ctx.send(self.me(), Node::Member(to), Packet::Raft { from: self.number, bytes }) {
                    self.log.unreachable(to);
                }
            }
            Did::Restore { index, state } => {
                ctx.count("snapshot of the leader taken over");
                self.restore(ctx, history, index, &state);
                let later = self.process.waiting.split_off(&(index + 1));
                let gone = std::mem::replace(&mut self.process.waiting, later);
                gone.into_values().for_each(|(_, waiter)| self.resolve(ctx, waiter, None));
            }
            Did::Commit { term, index, data } => {
                let outcomes = self.process.state.apply_bytes(index, &data, &mut BTreeSet::new());
                history.commit(ctx, index, &data, &outcomes);
                self.process.wants_step = true;
                if let Some((waits, waiter)) = self.process.waiting.remove(&index) {
                    let outcomes = pb::Outcomes::decode(&outcomes[..]).map(|o| o.items).unwrap_or_default();
                    self.resolve(ctx, waiter, Some(outcomes).filter(|_| waits == term));
                }
                while let Some(last) = self.process.waiting.last_entry().filter(|last| last.get().0 < term) {
                    let waiter = last.remove().1;
                    self.resolve(ctx, waiter, None);
                }
            }
        }
    }

    fn restore(&mut self, ctx: &mut Ctx, history: &mut History, index: u64, bytes: &[u8]) {
        let restored = if bytes.is_empty() { Ok(State::default()) } else { State::from_bytes(bytes) };
        match restored {
            Ok(state) => self.process.state = state,
            Err(e) => ctx.fail(e.to_string()),
        }
        self.process.state.applied = index;
        self.process.wants_step = true;
        self.compare(ctx, history);
    }

    fn raft_tick(&mut self, ctx: &mut Ctx) {
        self.log.tick();
        let leads = self.log.leads();
        let process = &mut self.process;
        process.ticks += 1;
        if leads {
            process.led = process.ticks;
        }
        if process.ticks - process.led > PATIENCE_TICKS {
            let waiting = std::mem::take(&mut process.waiting);
            waiting.into_values().for_each(|(_, waiter)| self.resolve(ctx, waiter, None));
        }
    }

    fn propose(&mut self, ctx: &mut Ctx, commands: Vec<pb::Command>, waiter: Waiter) -> Result<(), Waiter> {
        let entry = pb::Entry { version: state::VERSION, time_ms: 1_700_000_000_000 + ctx.now, commands };
        let Some((term, index)) = self.log.propose(entry.encode_to_vec()) else { return Err(waiter) };
        if let Some((_, older)) = self.process.waiting.insert(index, (term, waiter)) {
            self.resolve(ctx, older, None);
        }
        let takes = ctx.dice.between(1, 15);
        ctx.wake(self.me(), self.boot, takes, Timer::Flush);
        Ok(())
    }

    /// Who proposed learns what came of it; `None`: unknown.
    fn resolve(&mut self, ctx: &mut Ctx, waiter: Waiter, outcomes: Option<Vec<pb::Outcome>>) {
        if outcomes.is_none() {
            ctx.count("outcome unknown to who proposed");
        }
        match waiter {
            Waiter::Client(intent) => {
                let outcome = outcomes.and_then(|o| o.into_iter().next());
                ctx.send(self.me(), Node::Client, Packet::Response { intent, outcome });
            }
            Waiter::Control => {
                if let Some(Awaiting::Plan) = self.process.awaiting.take() {
                    self.dispatch(ctx);
                }
            }
        }
    }

    /// As `api`: a manifest is tried out first, all else is proposed as it is.
    fn request(&mut self, ctx: &mut Ctx, history: &History, intent: usize, command: pb::Command) {
        let me = self.me();
        if let Some(What::ApplyApp(_)) = &command.what {
            let outcome = trial(&self.process.state, &command);
            if !outcome.error.is_empty() {
                if trial(&history.state, &command).error.is_empty() {
                    ctx.count("refused on a state that lags");
                }
                ctx.send(me, Node::Client, Packet::Response { intent, outcome: Some(outcome) });
                return;
            }
        }
        if self.propose(ctx, vec![command], Waiter::Client(intent)).is_err() {
            ctx.send(me, Node::Client, Packet::Response { intent, outcome: None });
        }
    }

    /// The control loop until it waits. Gives whether it did anything.
    fn pump(&mut self, ctx: &mut Ctx) -> bool {
        let mut moved = false;
        while self.process.awaiting.is_none() {
            match self.process.inbox.pop_front() {
                Some(Inbound::Hello(hello)) => self.register(ctx, hello),
                Some(Inbound::Beat(id, beat)) => self.beat(ctx, &id, &beat),
                Some(Inbound::Back(id, call, generation, back)) => self.back(ctx, id, call, generation, back),
                None if self.process.wants_step => {
                    self.process.wants_step = false;
                    self.step(ctx);
                }
                None => return moved,
            }
            moved = true;
        }
        moved
    }

    fn step(&mut self, ctx: &mut Ctx) {
        let leads = self.log.leads();
        let now = self.now_ms(ctx);
        if leads && !self.process.leading {
            self.process.observed.since_ms = now;
            ctx.count("leader took office");
            ctx.note(|| format!("s{} leads in term {}", self.number, self.log.term()));
        }
        self.process.leading = leads;
        if !leads {
            return;
        }
        let plan = plan::plan(&self.process.state, &self.process.observed, now, &Self::timers(ctx));
        if plan.brake && !self.process.braking {
            ctx.count("brake pulled");
        }
        self.process.braking = plan.brake;
        judge::plan(ctx, &self.process.state, &self.process.observed, &plan);
        judge::rollouts(ctx, &mut self.process);
        let mut commands = Vec::new();
        let mut command = |what| commands.push(pb::Command { request_id: String::new(), what: Some(what) });
        plan.lost.iter().for_each(|h| command(What::MarkLost(pb::MarkLost { host: h.to_string() })));
        plan.returned.iter().for_each(|h| command(What::MarkReturned(pb::MarkReturned { host: h.to_string() })));
        plan.forget.iter().for_each(|h| command(What::ForgetHost(pb::ForgetHost { host: h.to_string() })));
        if !plan.changes.is_empty() {
            command(What::CommitPlan(pb::CommitPlan { based_on: plan.based_on, changes: plan.changes }));
        }
        if !commands.is_empty() && self.propose(ctx, commands, Waiter::Control).is_ok() {
            self.process.awaiting = Some(Awaiting::Plan);
            return;
        }
        self.dispatch(ctx);
    }

    fn dispatch(&mut self, ctx: &mut Ctx) {
        let term = self.log.term();
        let now = self.now_ms(ctx);
        let due = |(id, host): &(&HostId, &state::HostState)| {
            let seen = self.process.observed.hosts.get(*id);
            seen.is_some_and(|seen| seen.generation != host.generation) && self.free(id, Call::Assign, now)
        };
        let due: Vec<HostId> = self
            .process
            .state
            .hosts
            .iter()
            .filter(|(_, h)| !h.lost)
            .filter(due)
            .map(|(id, _)| id.clone())
            .take(CALLS_MAX)
            .collect();
        if !due.is_empty() && ctx.faults && ctx.dice.percent(ctx.params.dispatch_crashes) {
            ctx.count("crash while dispatching");
            self.doomed = true;
        }
        for id in due {
            let Some(mut assignment) = self.process.state.assignment(LATTICE, &id, term) else { continue };
            assignment.beat_ms = BEAT_MS;
            let generation = assignment.generation;
            if ctx.mutation == Some(Mutation::OldContent) {
                let first = self.process.first_sent.entry(id.clone()).or_insert_with(|| assignment.clone());
                assignment.apps.clone_from(&first.apps);
            }
            if ctx.mutation == Some(Mutation::SendsOnce) && !self.process.sent.insert((id.clone(), generation)) {
                continue;
            }
            let call = self.call(ctx, &id, Call::Assign, generation, ASSIGN_DEADLINE_MS);
            let to = Node::Host(host_number(&id));
            ctx.send(self.me(), to, Packet::Assign { call, member: self.number, assignment });
        }
    }

    fn call(&mut self, ctx: &mut Ctx, id: &HostId, what: Call, generation: u64, deadline_ms: u64) -> u64 {
        self.process.calls_made += 1;
        let call = self.boot << 32 | self.process.calls_made;
        self.process.busy.insert((id.clone(), what), None);
        self.process.calls.insert(call, (id.clone(), what, generation));
        ctx.wake(self.me(), self.boot, deadline_ms, Timer::Deadline { call });
        call
    }

    /// Only the first answer to a call counts, and none after its deadline.
    fn answered(&mut self, call: u64, back: Back) {
        if let Some((id, what, generation)) = self.process.calls.remove(&call) {
            self.process.inbox.push_back(Inbound::Back(id, what, generation, back));
        }
    }

    fn free(&self, host: &HostId, what: Call, now: u64) -> bool {
        match self.process.busy.get(&(host.clone(), what)) {
            None => true,
            Some(None) => false,
            Some(Some(not_before)) => now >= *not_before,
        }
    }

    fn settle(&mut self, now: u64, host: HostId, what: Call, ok: bool) {
        if ok {
            self.process.busy.remove(&(host, what));
        } else {
            self.process.busy.insert((host, what), Some(now + BUSY_MS));
        }
    }

    fn register(&mut self, ctx: &mut Ctx, hello: pb::Hello) {
        if !self.log.leads() {
            return;
        }
        let Ok(id) = hello.host.parse::<HostId>() else { return };
        let now = self.now_ms(ctx);
        self.process.observed.hello(&id, &hello, now);
        let bare = pb::Hello { term: 0, generation: 0, ..hello.clone() };
        if self.process.state.hosts.get(&id).is_some_and(|h| h.hello == bare && !h.lost) {
            return;
        }
        let what = What::RegisterHost(pb::RegisterHost { hello: Some(hello) });
        let command = pb::Command { request_id: String::new(), what: Some(what) };
        if self.propose(ctx, vec![command], Waiter::Control).is_ok() {
            self.process.awaiting = Some(Awaiting::Register);
        }
    }

    fn beat(&mut self, ctx: &mut Ctx, id: &HostId, beat: &pb::Beat) {
        let known = self.process.state.hosts.get(id).map(|h| h.hello.boot == beat.boot);
        if known != Some(true) {
            self.ask(ctx, id, Call::Hello);
            if known.is_none() {
                return;
            }
        }
        let now = self.now_ms(ctx);
        match self.process.observed.beat(id, beat, now) {
            Heard::Stale => ctx.count("stale heartbeat dropped"),
            Heard::Same => {}
            Heard::Changed => self.process.wants_step = true,
            Heard::AskInventory => self.ask(ctx, id, Call::Inventory),
        }
    }

    fn ask(&mut self, ctx: &mut Ctx, id: &HostId, what: Call) {
        let now = self.now_ms(ctx);
        if !self.log.leads() && what == Call::Hello || !self.free(id, what, now) {
            return;
        }
        if self.process.busy.values().filter(|b| b.is_none()).count() >= CALLS_MAX {
            return;
        }
        let call = self.call(ctx, id, what, 0, ASK_DEADLINE_MS);
        let member = self.number;
        let packet = match what {
            Call::Hello => Packet::AskHello { call, member },
            _ => Packet::AskInventory { call, member },
        };
        ctx.count(if what == Call::Hello { "hello asked for" } else { "inventory asked for" });
        ctx.send(self.me(), Node::Host(host_number(id)), packet);
    }

    fn back(&mut self, ctx: &mut Ctx, id: HostId, call: Call, generation: u64, back: Back) {
        let now = self.now_ms(ctx);
        self.process.wants_step = true;
        match back {
            Back::Hello(hello) => {
                self.settle(now, id, call, true);
                self.register(ctx, hello);
            }
            Back::Inventory(beat) => {
                self.settle(now, id.clone(), call, true);
                self.beat(ctx, &id, &beat);
            }
            Back::Assigned(answer) => {
                if answer.accepted
                    && let Some(seen) = self.process.observed.hosts.get_mut(&id)
                {
                    (seen.generation, seen.term) = (generation, answer.term);
                }
                self.settle(now, id, call, answer.accepted);
            }
            Back::Failed => self.settle(now, id, call, false),
        }
    }
}

/// What `command` would give on `state`.
fn trial(state: &State, command: &pb::Command) -> pb::Outcome {
    let mut trial = state.clone();
    let entry = pb::Entry { version: state::VERSION, time_ms: 0, commands: vec![command.clone()] };
    trial.apply(trial.applied + 1, &entry, &mut BTreeSet::new()).swap_remove(0)
}
