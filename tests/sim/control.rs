//! The leader's loop without tasks and bus: hands the real core what happens, and carries out what that says, as
//! `scheduler/src/control.rs` does. Must never decide anything.

use crate::ctx::{Ctx, LATTICE, Node, Packet, Timer, host_number};
use crate::judge::{self, FailedHere};
use crate::process::{Came, Process, Waiter};
use prost::Message as _;
use proto::app::HostId;
use proto::fault::{Fault, built_in};
use proto::v1 as pb;
use proto::v1::command::What;
use scheduler::leader::{ASK_DEADLINE_MS, ASSIGN_DEADLINE_MS, Answer, Effect, Leader, Now};
use scheduler::plan::{Heard, Plan};
use scheduler::raft;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

pub(crate) struct Control {
    pub(crate) leader: Leader,
    pub(crate) inbox: VecDeque<Inbound>,
    /// A round is due.
    pub(crate) look: bool,
    braking: bool,
    /// Of its proposal that is under way: hosts that it calls lost.
    losing: BTreeSet<String>,
    /// Calls whose answer is not there, and whose time is not over.
    calls: BTreeMap<u64, Call>,
    calls_made: u64,
    failed_here: FailedHere,
}

/// What was asked of whom.
enum Call {
    /// And of which generation the assignment is.
    Assign(HostId, u64),
    Hello(HostId),
    Inventory(HostId),
    Quorum,
}

pub(crate) enum Inbound {
    Hello(HostId, pb::Hello),
    Beat(HostId, pb::Beat),
    Answer(HostId, Answer),
    Confirmed(bool),
}

enum Back {
    Hello(pb::Hello),
    Inventory(pb::Beat),
    Assigned(pb::Assigned),
    Confirmed(bool),
    Failed,
}

impl Control {
    pub(crate) fn new(ctx: &Ctx) -> Self {
        Self {
            leader: Leader::new(LATTICE.to_owned(), Process::timers(ctx)),
            inbox: VecDeque::new(),
            look: false,
            braking: false,
            losing: BTreeSet::new(),
            calls: BTreeMap::new(),
            calls_made: 0,
            failed_here: FailedHere::new(),
        }
    }
}

impl Process {
    /// What hosts say.
    pub(crate) fn hear(&mut self, ctx: &mut Ctx, packet: Packet) {
        match packet {
            Packet::Hello(hello) => {
                if let Ok(id) = hello.host.parse() {
                    self.control.inbox.push_back(Inbound::Hello(id, hello));
                }
            }
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

    pub(crate) fn confirmed(&mut self, call: u64, confirmed: bool) {
        self.answered(call, Back::Confirmed(confirmed));
    }

    /// Only the first answer to a call counts, and none after its deadline.
    fn answered(&mut self, call: u64, back: Back) {
        let Some(call) = self.control.calls.remove(&call) else { return };
        let inbound = match (call, back) {
            (Call::Assign(id, generation), Back::Assigned(answer)) => {
                Inbound::Answer(id, Answer::Assigned(generation, Ok(answer)))
            }
            (Call::Assign(id, generation), _) => {
                Inbound::Answer(id, Answer::Assigned(generation, Err("no answer".to_owned())))
            }
            (Call::Hello(id), Back::Hello(hello)) => Inbound::Answer(id, Answer::Hello(Some(hello))),
            (Call::Hello(id), _) => Inbound::Answer(id, Answer::Hello(None)),
            (Call::Inventory(id), Back::Inventory(beat)) => Inbound::Answer(id, Answer::Inventory(Some(beat))),
            (Call::Inventory(id), _) => Inbound::Answer(id, Answer::Inventory(None)),
            (Call::Quorum, Back::Confirmed(confirmed)) => Inbound::Confirmed(confirmed),
            (Call::Quorum, _) => Inbound::Confirmed(false),
        };
        self.control.inbox.push_back(inbound);
    }

    /// The loop until it waits. Gives whether it did anything.
    pub(crate) fn pump(&mut self, ctx: &mut Ctx) -> bool {
        // Whoever takes office looks around at once.
        self.control.look |= self.leads_in() != self.control.leader.office();
        let mut moved = false;
        while let Some(at) = self.next() {
            match self.control.inbox.remove(at) {
                Some(inbound) => self.take(ctx, inbound),
                None if self.control.look => {
                    self.control.look = false;
                    self.look_around(ctx);
                }
                None => return moved,
            }
            moved = true;
        }
        moved
    }

    /// Which of what waits the loop takes next, if it may. It takes nothing in while it waits for its proposal; one with
    /// this fault takes heartbeats, and gives leases.
    fn next(&self) -> Option<usize> {
        if !self.control.leader.waits() {
            return Some(0);
        }
        let leases = |inbound: &Inbound| matches!(inbound, Inbound::Beat(..) | Inbound::Confirmed(_));
        built_in(Fault::LeaseWhileLosing).then(|| self.control.inbox.iter().position(leases)).flatten()
    }

    /// Hands something to the core, with how things stand.
    fn with_leader<T>(&mut self, ctx: &Ctx, f: impl FnOnce(&mut Leader, &Now<'_>) -> T) -> T {
        let (term, governs) = self.status(|s| (s.term, s.governs));
        let ms = self.now_ms(ctx);
        let state = self.replica.read();
        f(&mut self.control.leader, &Now { state: &state, term, governs, ms })
    }

    fn take(&mut self, ctx: &mut Ctx, inbound: Inbound) {
        let of = match &inbound {
            Inbound::Beat(id, _) | Inbound::Answer(id, Answer::Inventory(_)) => Some(id.clone()),
            _ => None,
        };
        let newest = |leader: &Leader| {
            let seen = of.as_ref().and_then(|id| leader.observed().hosts.get(id));
            seen.map(|s| (s.boot.clone(), s.seq))
        };
        let before = newest(&self.control.leader);
        if matches!(inbound, Inbound::Confirmed(yes) if !yes || self.control.leader.office() != self.leads_in()) {
            ctx.count("lease not confirmed");
        }
        let effects = self.with_leader(ctx, |leader, now| match inbound {
            Inbound::Hello(id, hello) => leader.hello(now, &id, hello),
            Inbound::Beat(id, beat) => leader.beat(now, &id, &beat),
            Inbound::Answer(id, answer) => leader.answered(now, id, answer),
            Inbound::Confirmed(confirmed) => leader.confirmed(now, confirmed),
        });
        if newest(&self.control.leader) < before {
            ctx.fail(format!("s{} took an older heartbeat of {of:?} after a newer one", self.number));
        }
        self.carry_out(ctx, effects);
    }

    fn look_around(&mut self, ctx: &mut Ctx) {
        let before = self.control.leader.office();
        let plan = self.with_leader(ctx, Leader::plan);
        let office = self.control.leader.office();
        if let Some(term) = office.filter(|_| office != before) {
            ctx.count("leader took office");
            ctx.note(|| format!("s{} leads in term {term}", self.number));
        }
        let Some(plan) = plan else { return };
        self.judge(ctx, &plan);
        if plan.brake && !self.control.braking {
            ctx.count("brake pulled");
        }
        self.control.braking = plan.brake;
        let effects = self.with_leader(ctx, |leader, now| leader.carry_out(now, plan));
        self.carry_out(ctx, effects);
    }

    fn judge(&mut self, ctx: &mut Ctx, plan: &Plan) {
        let (now, config) = (self.now_ms(ctx), Self::timers(ctx));
        let state = self.replica.read();
        let observed = self.control.leader.observed();
        judge::plan(ctx, &state, observed, plan, now, &config);
        judge::rollouts(ctx, &state, observed, &mut self.control.failed_here);
        // Nobody is lost before a leader's grace ends, by the office that its log says it has.
        let left = |id: &&HostId| observed.hosts.get(*id).is_some_and(|seen| seen.leaving);
        let in_office = now - self.took_office_ms;
        if let Some(id) = plan.lost.iter().find(|id| !left(id))
            && in_office < config.lost_ms
        {
            ctx.fail(format!("{id} is lost {in_office} ms after s{} took office", self.number));
        }
    }

    /// Whether the loop waits for its proposal that this host is lost.
    pub(crate) fn loses(&self, id: &HostId) -> bool {
        self.control.leader.waits() && self.control.losing.contains(id.as_str())
    }

    /// What became of the proposal of the loop.
    pub(crate) fn proposed(&mut self, ctx: &mut Ctx, result: Result<raft::Applied, raft::Error>) {
        let outcomes = |a: raft::Applied| pb::Outcomes::decode(a.outcome.as_slice()).map(|o| o.items);
        let result = result.map(|a| outcomes(a).unwrap_or_default()).map_err(|e| e.to_string());
        let effects = self.with_leader(ctx, |leader, now| leader.proposed(now, result));
        self.carry_out(ctx, effects);
    }

    fn carry_out(&mut self, ctx: &mut Ctx, effects: Vec<Effect>) {
        let dispatches = effects.iter().any(|e| matches!(e, Effect::Assign(..)));
        if dispatches && ctx.faults && ctx.dice.percent(ctx.params.dispatch_crashes) {
            ctx.count("crash while dispatching");
            self.doomed = true;
        }
        for effect in effects {
            self.effect(ctx, effect);
        }
    }

    fn effect(&mut self, ctx: &mut Ctx, effect: Effect) {
        let (me, member) = (self.me(), self.number);
        match effect {
            Effect::Propose(commands) => {
                let lost = |command: &pb::Command| match &command.what {
                    Some(What::MarkLost(lost)) => Some(lost.host.clone()),
                    _ => None,
                };
                self.control.losing = commands.iter().filter_map(lost).collect();
                self.propose(ctx, commands, Waiter::Loop);
            }
            Effect::Assign(id, term) => {
                let made = self.with_leader(ctx, |leader, now| leader.assignment(now.state, &id, term));
                let Some(assignment) = made else { return };
                let to = Node::Host(host_number(&id));
                let call = self.call(ctx, Call::Assign(id, assignment.generation), ASSIGN_DEADLINE_MS);
                ctx.send(me, to, Packet::Assign { call, member, assignment });
            }
            Effect::AskHello(id) => {
                ctx.count("hello asked for");
                let to = Node::Host(host_number(&id));
                let call = self.call(ctx, Call::Hello(id), ASK_DEADLINE_MS);
                ctx.send(me, to, Packet::AskHello { call, member });
            }
            Effect::AskInventory(id) => {
                ctx.count("inventory asked for");
                let to = Node::Host(host_number(&id));
                let call = self.call(ctx, Call::Inventory(id), ASK_DEADLINE_MS);
                ctx.send(me, to, Packet::AskInventory { call, member });
            }
            Effect::AskQuorum => {
                let call = self.call(ctx, Call::Quorum, ASK_DEADLINE_MS);
                let handle = self.handle.clone();
                self.wait_for(async move { Came::Confirmed(call, handle.read_index().await) });
            }
            Effect::Lease(id, lease) => {
                ctx.count("lease given");
                ctx.note(|| format!("s{member} in term {} leases {lease:?}", self.status(|s| s.term)));
                ctx.send(me, Node::Host(host_number(&id)), Packet::Lease(lease));
            }
            Effect::Heard(Heard::Stale) => ctx.count("stale heartbeat dropped"),
            Effect::Heard(_) | Effect::Progress => {}
            Effect::Drop(_) => {}
            Effect::Tell(notice) => ctx.note(|| format!("s{member} tells: {}", notice.message)),
            Effect::Warn(warning) => ctx.note(|| format!("s{member} warns: {warning:?}")),
            Effect::Look => self.control.look = true,
        }
    }

    /// The number of a call that begins.
    fn call(&mut self, ctx: &mut Ctx, what: Call, deadline_ms: u64) -> u64 {
        self.control.calls_made += 1;
        let call = self.boot << 32 | self.control.calls_made;
        self.control.calls.insert(call, what);
        ctx.wake(self.me(), self.boot, deadline_ms, Timer::Deadline { call });
        call
    }
}
