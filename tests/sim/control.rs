//! The leader's loop as `scheduler/src/control.rs` runs it, without tasks and bus: the real planner between log,
//! heartbeats and assignments. Must never decide anything that `plan` or `State` decides.

use crate::ctx::{Ctx, LATTICE, Node, Packet, Timer, host_number};
use crate::judge;
use crate::process::{Came, Process, Waiter};
use proto::app::{HostId, Name};
use proto::fault::{Fault, built_in};
use proto::v1 as pb;
use proto::v1::command::What;
use scheduler::lease::{Basis, Leases};
use scheduler::plan::{self, Heard, Observed};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

pub(crate) const TICK_MS: u64 = 500;
const ASSIGN_DEADLINE_MS: u64 = 5_000;
const ASK_DEADLINE_MS: u64 = 3_000;
const CALLS_MAX: usize = 256;
const BEAT_MS: u32 = 2_000;
const BUSY_MS: u64 = 1_000;

#[derive(Default)]
pub(crate) struct Control {
    pub(crate) observed: Observed,
    pub(crate) inbox: VecDeque<Inbound>,
    /// The loop waits for its own proposal.
    pub(crate) awaiting: bool,
    pub(crate) wants_step: bool,
    /// The term in which this scheduler took office, while it leads.
    pub(crate) office: Option<u64>,
    pub(crate) braking: bool,
    leases: Leases,
    /// A quorum is being asked for leases.
    asking: bool,
    busy: BTreeMap<(HostId, Call), Option<u64>>,
    calls: BTreeMap<u64, (HostId, Call, u64)>,
    calls_made: u64,
    pub(crate) failed_here: BTreeSet<(HostId, Name, Name, u64)>,
    /// What a fault sends again, and whom it sent something.
    first_sent: BTreeMap<HostId, pb::Assignment>,
    sent: BTreeSet<(HostId, u64)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Call {
    Assign,
    Hello,
    Inventory,
}

pub(crate) enum Inbound {
    Hello(pb::Hello),
    Beat(HostId, pb::Beat),
    Back(HostId, Call, u64, Back),
}

pub(crate) enum Back {
    Hello(pb::Hello),
    Inventory(pb::Beat),
    Assigned(pb::Assigned),
    Failed,
}

impl Control {
    /// A plan is applied.
    pub(crate) fn proposed(&mut self) {
        self.leases.proposed();
    }
}

impl Process {
    /// What hosts say.
    pub(crate) fn hear(&mut self, ctx: &mut Ctx, packet: Packet) {
        match packet {
            Packet::Hello(hello) => self.control.inbox.push_back(Inbound::Hello(hello)),
            Packet::Beat(beat) => {
                if let Ok(id) = beat.host.parse() {
                    self.control.inbox.push_back(Inbound::Beat(id, beat));
                }
            }
            Packet::Assigned { call, assigned } => self.answered(call, Back::Assigned(assigned)),
            Packet::AnswerHello { call, hello } => self.answered(call, Back::Hello(hello)),
            Packet::AnswerInventory { call, beat } => self.answered(call, Back::Inventory(beat)),
            other => ctx.fail(format!("a scheduler was sent {other:?}")),
        }
    }

    pub(crate) fn late(&mut self, call: u64) {
        self.answered(call, Back::Failed);
    }

    /// The loop until it waits. Gives whether it did anything.
    pub(crate) fn pump(&mut self, ctx: &mut Ctx) -> bool {
        // Whoever takes office looks around at once.
        self.control.wants_step |= self.leads_in() != self.control.office;
        let mut moved = false;
        while !self.control.awaiting || self.hears_while_it_waits() {
            match self.control.inbox.pop_front() {
                Some(Inbound::Hello(hello)) => self.register(ctx, hello),
                Some(Inbound::Beat(id, beat)) => {
                    self.beat(ctx, &id, &beat);
                    if self.control.awaiting {
                        self.lease(ctx);
                    }
                }
                Some(Inbound::Back(id, call, generation, back)) => self.back(ctx, id, call, generation, back),
                None if self.control.wants_step => {
                    self.control.wants_step = false;
                    self.step(ctx);
                }
                None => return moved,
            }
            moved = true;
        }
        moved
    }

    /// The loop takes nothing in while it waits for its proposal; one with this fault takes heartbeats, and gives leases.
    fn hears_while_it_waits(&self) -> bool {
        built_in(Fault::LeaseWhileLosing) && matches!(self.control.inbox.front(), Some(Inbound::Beat(..)))
    }

    fn step(&mut self, ctx: &mut Ctx) {
        let term = self.leads_in();
        let now = self.now_ms(ctx);
        let config = Self::timers(ctx);
        let goes_on = self.control.office == term || built_in(Fault::OfficeGoesOn) && self.control.office.is_some();
        if let Some(term) = term.filter(|_| !goes_on) {
            self.control.observed.since_ms = now;
            self.control.leases.clear();
            ctx.count("leader took office");
            ctx.note(|| format!("s{} leads in term {term}", self.number));
        }
        self.control.office = term;
        let (commands, plan) = {
            let state = self.replica.read();
            self.control.observed.prune(|host| state.hosts.contains_key(host), now, config.lost_ms);
            if term.is_none() {
                return;
            }
            let mut plan = plan::plan(&state, &self.control.observed, now, &config);
            judge::plan(ctx, &state, &self.control.observed, &plan, now, &config);
            self.judge_grace(ctx, &plan.lost, now, config.lost_ms);
            judge::rollouts(ctx, &state, &mut self.control);
            self.control.leases.again(&state, &mut plan);
            self.control.leases.proposes(&plan.lost);
            let mut commands = Vec::new();
            let mut command = |what| commands.push(pb::Command { request_id: String::new(), what: Some(what) });
            plan.lost.iter().for_each(|h| command(What::MarkLost(pb::MarkLost { host: h.to_string() })));
            plan.returned.iter().for_each(|h| command(What::MarkReturned(pb::MarkReturned { host: h.to_string() })));
            plan.forget.iter().for_each(|h| command(What::ForgetHost(pb::ForgetHost { host: h.to_string() })));
            if !plan.changes.is_empty() {
                let (based_on, changes) = (plan.based_on, plan.changes.clone());
                command(What::CommitPlan(pb::CommitPlan { based_on, changes }));
            }
            (commands, plan)
        };
        if plan.brake && !self.control.braking {
            ctx.count("brake pulled");
        }
        self.control.braking = plan.brake;
        if commands.is_empty() {
            return self.dispatch(ctx);
        }
        self.control.awaiting = true;
        self.propose(ctx, commands, Waiter::Plan);
    }

    /// Nobody is lost before a leader's grace ends, by the office that its log says it has.
    fn judge_grace(&self, ctx: &mut Ctx, lost: &[HostId], now: u64, lost_ms: u64) {
        let left = |id: &&HostId| self.control.observed.hosts.get(*id).is_some_and(|seen| seen.leaving);
        if let Some(id) = lost.iter().find(|id| !left(id))
            && now - self.took_office_ms < lost_ms
        {
            ctx.fail(format!("{id} is lost {} ms after s{} took office", now - self.took_office_ms, self.number));
        }
    }

    /// Asks a quorum whether this scheduler leads, for the hosts that are due a lease.
    fn lease(&mut self, ctx: &mut Ctx) {
        if self.control.asking {
            return;
        }
        let due = self.control.leases.due(&self.replica.read(), &self.control.observed);
        if due.is_empty() {
            return;
        }
        let term = self.status(|s| s.term);
        if built_in(Fault::LeaseUnconfirmed) {
            return self.grant(ctx, term, due);
        }
        self.control.asking = true;
        let handle = self.handle.clone();
        self.wait_for(async move { Came::Confirmed(term, due, handle.read_index().await) });
    }

    pub(crate) fn confirmed(&mut self, ctx: &mut Ctx, term: u64, due: Vec<Basis>, confirmed: bool) {
        self.control.asking = false;
        if confirmed && self.control.office == Some(term) && self.leads_in() == Some(term) {
            self.grant(ctx, term, due);
        } else {
            ctx.count("lease not confirmed");
        }
    }

    fn grant(&mut self, ctx: &mut Ctx, term: u64, due: Vec<Basis>) {
        let lost_ms = Self::timers(ctx).lost_ms;
        let grants = self.control.leases.grant(&self.replica.read(), &self.control.observed, due, lost_ms);
        for (id, lease) in grants {
            ctx.count("lease given");
            ctx.note(|| format!("s{} in term {term} leases {lease:?}", self.number));
            ctx.send(self.me(), Node::Host(host_number(&id)), Packet::Lease(lease));
        }
    }

    /// Sends its assignment to each host that has not confirmed the newest.
    pub(crate) fn dispatch(&mut self, ctx: &mut Ctx) {
        let term = self.status(|s| s.term);
        let now = self.now_ms(ctx);
        let mut assignments = Vec::new();
        {
            let state = self.replica.read();
            for (id, host) in state.hosts.iter().filter(|(_, h)| !h.lost) {
                let Some(seen) = self.control.observed.hosts.get(id) else { continue };
                if seen.generation != host.generation && self.free(id, Call::Assign, now) {
                    assignments.extend(state.assignment(LATTICE, id, term).map(|a| (id.clone(), a)));
                }
            }
        }
        self.lease(ctx);
        assignments.truncate(CALLS_MAX);
        if !assignments.is_empty() && ctx.faults && ctx.dice.percent(ctx.params.dispatch_crashes) {
            ctx.count("crash while dispatching");
            self.doomed = true;
        }
        for (id, mut assignment) in assignments {
            assignment.beat_ms = BEAT_MS;
            let generation = assignment.generation;
            if built_in(Fault::OldContent) {
                let first = self.control.first_sent.entry(id.clone()).or_insert_with(|| assignment.clone());
                assignment.apps.clone_from(&first.apps);
            }
            if built_in(Fault::SentOnce) && !self.control.sent.insert((id.clone(), generation)) {
                continue;
            }
            let call = self.call(ctx, &id, Call::Assign, generation, ASSIGN_DEADLINE_MS);
            let to = Node::Host(host_number(&id));
            ctx.send(self.me(), to, Packet::Assign { call, member: self.number, assignment });
        }
    }

    fn call(&mut self, ctx: &mut Ctx, id: &HostId, what: Call, generation: u64, deadline_ms: u64) -> u64 {
        self.control.calls_made += 1;
        let call = self.boot << 32 | self.control.calls_made;
        self.control.busy.insert((id.clone(), what), None);
        self.control.calls.insert(call, (id.clone(), what, generation));
        ctx.wake(self.me(), self.boot, deadline_ms, Timer::Deadline { call });
        call
    }

    /// Only the first answer to a call counts, and none after its deadline.
    fn answered(&mut self, call: u64, back: Back) {
        if let Some((id, what, generation)) = self.control.calls.remove(&call) {
            self.control.inbox.push_back(Inbound::Back(id, what, generation, back));
        }
    }

    fn free(&self, host: &HostId, what: Call, now: u64) -> bool {
        match self.control.busy.get(&(host.clone(), what)) {
            None => true,
            Some(None) => false,
            Some(Some(not_before)) => now >= *not_before,
        }
    }

    fn settle(&mut self, now: u64, host: HostId, what: Call, ok: bool) {
        if ok {
            self.control.busy.remove(&(host, what));
        } else {
            self.control.busy.insert((host, what), Some(now + BUSY_MS));
        }
    }

    fn register(&mut self, ctx: &mut Ctx, hello: pb::Hello) {
        if !self.governs() {
            return;
        }
        let Ok(id) = hello.host.parse::<HostId>() else { return };
        let now = self.now_ms(ctx);
        self.control.observed.hello(&id, &hello, now);
        let bare = pb::Hello { term: 0, generation: 0, ..hello.clone() };
        if self.replica.read().hosts.get(&id).is_some_and(|h| h.hello == bare && !h.lost) {
            return;
        }
        let what = What::RegisterHost(pb::RegisterHost { hello: Some(hello) });
        self.control.awaiting = true;
        let command = pb::Command { request_id: String::new(), what: Some(what) };
        self.propose(ctx, vec![command], Waiter::Register);
    }

    fn beat(&mut self, ctx: &mut Ctx, id: &HostId, beat: &pb::Beat) {
        let known = self.replica.read().hosts.get(id).map(|h| h.hello.boot == beat.boot);
        if known != Some(true) {
            self.ask_host(ctx, id, Call::Hello);
            if known.is_none() {
                return;
            }
        }
        let now = self.now_ms(ctx);
        let newest = |observed: &Observed| observed.hosts.get(id).map(|s| (s.boot.clone(), s.seq));
        let before = newest(&self.control.observed);
        let heard = self.control.observed.beat(id, beat, now);
        if newest(&self.control.observed) < before {
            ctx.fail(format!("s{} took an older heartbeat of {id} after a newer one", self.number));
        }
        match heard {
            Heard::Stale => ctx.count("stale heartbeat dropped"),
            Heard::Same => {}
            Heard::Changed => self.control.wants_step = true,
            Heard::AskInventory => self.ask_host(ctx, id, Call::Inventory),
        }
    }

    fn ask_host(&mut self, ctx: &mut Ctx, id: &HostId, what: Call) {
        let now = self.now_ms(ctx);
        if !self.governs() && what == Call::Hello || !self.free(id, what, now) {
            return;
        }
        if self.control.busy.values().filter(|b| b.is_none()).count() >= CALLS_MAX {
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
        self.control.wants_step = true;
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
                    && let Some(seen) = self.control.observed.hosts.get_mut(&id)
                {
                    (seen.generation, seen.term) = (generation, answer.term);
                }
                self.settle(now, id, call, answer.accepted);
            }
            Back::Failed => self.settle(now, id, call, false),
        }
    }
}
