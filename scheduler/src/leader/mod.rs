//! The leader's loop without the loop: what is to be done about what hosts say, what the log did and time that passed.
//! Every scheduler has one, so that a new leader is warm. Pure: same input, same effects. `plan` decides what moves; the
//! shells, which are `control` and the one of the simulation, carry out effects and bring back what came of them. No clock,
//! bus or task here.
//!
//! Reading order: `Leader` (a round: `plan`, `carry_out`, `proposed`), `heard` (what hosts say), `calls` (whom it may
//! ask now), `notice` (what people are told), `sent` (what some faults remember).

mod calls;
mod heard;
mod notice;
mod sent;
#[cfg(test)]
mod tests;

pub use heard::Answer;
pub use notice::{Notice, Warning};

use crate::lease::{self, Leases};
use crate::plan::{self, Config as Timers, Heard, Observed, Plan, Unplaced};
use crate::state::State;
use crate::status::View;
use calls::{CALLS_MAX, Call, Calls};
use proto::app::HostId;
use proto::fault::{Fault, built_in};
use proto::v1 as pb;
use proto::v1::command::What;
use std::collections::{BTreeMap, BTreeSet};

/// How often the loop looks when nothing happens.
pub const TICK_MS: u64 = 500;
/// Time for a host to store and confirm an assignment.
pub const ASSIGN_DEADLINE_MS: u64 = 5_000;
/// Time for a host, or a quorum, to answer a question.
pub const ASK_DEADLINE_MS: u64 = 3_000;
/// How often the hosts beat.
const BEAT_MS: u32 = 2_000;

/// How things stand when something happens.
#[derive(Clone, Copy)]
pub struct Now<'a> {
    pub state: &'a State,
    /// The term of the log.
    pub term: u64,
    /// Whether this scheduler leads in it and knows all that was committed before it did.
    pub governs: bool,
    /// Milliseconds of the process's monotonic clock.
    pub ms: u64,
}

impl Now<'_> {
    /// The term in which this scheduler leads.
    fn leads_in(&self) -> Option<u64> {
        self.governs.then_some(self.term)
    }
}

/// What the shell does, in this order.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Propose these in one entry. `proposed` gets what became of it, before anything else happens here.
    Propose(Vec<pb::Command>),
    /// Send a host what `assignment` makes for this term, within `ASSIGN_DEADLINE_MS`; `answered` gets its word.
    Assign(HostId, u64),
    /// Ask a host who it is, within `ASK_DEADLINE_MS`; `answered` gets it.
    AskHello(HostId),
    /// Ask a host what it runs, within `ASK_DEADLINE_MS`; `answered` gets it.
    AskInventory(HostId),
    /// Ask a quorum whether this scheduler leads still, within `ASK_DEADLINE_MS`; `confirmed` gets it.
    AskQuorum,
    /// Send a host its lease. The next heartbeat is due another one: nobody waits for the answer.
    Lease(HostId, pb::AskLease),
    /// A heartbeat was heard, and meant this.
    Heard(Heard),
    /// A host says how far it is with what it starts: those who watch want to know, and nothing is decided by it.
    Progress,
    /// A message was dropped.
    Drop(bus::Reason),
    /// Tell people.
    Tell(Notice),
    /// Log it.
    Warn(Warning),
    /// Begin a round as soon as all this is done.
    Look,
}

/// What the shell was told to propose, and what for.
#[derive(Debug)]
enum Proposed {
    Plan { lost: Vec<HostId>, returned: Vec<HostId> },
    Host { name: String, is_new: bool },
}

/// What a scheduler knows of the hosts beside the log, and what it does about it while it leads.
pub struct Leader {
    lattice: String,
    timers: Timers,
    observed: Observed,
    /// From the latest plan.
    unplaced: Vec<Unplaced>,
    calls: Calls,
    /// The term in which this scheduler took office, while it leads.
    office: Option<u64>,
    /// Not known yet what became of it.
    waits_for: Option<Proposed>,
    braking: bool,
    /// What the latest plan says of it, not told yet.
    brake: bool,
    leases: Leases,
    /// A quorum is being asked, in that term, for leases for these heartbeats.
    asking: Option<(u64, Vec<lease::Basis>)>,
    /// Why each host did not take its assignment.
    refused: BTreeMap<HostId, String>,
    /// App -> its revision and state as last announced.
    announced: BTreeMap<String, (u64, String)>,
    sent: sent::Sent,
    /// What the plan under way is for, if it is of all apps.
    planned: Option<Basis>,
    /// For which there was nothing to do. As long as it stays nothing is planned but what moves by time alone.
    rests: Option<Basis>,
}

/// What a plan of all apps, and what is told of them, depend on.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Basis {
    /// The log index of the state.
    applied: u64,
    /// Of what hosts said.
    changes: u64,
    /// Hosts that are not heard as they should be.
    suspects: BTreeSet<HostId>,
}

impl Leader {
    pub fn new(lattice: String, timers: Timers) -> Self {
        Self {
            lattice,
            timers,
            observed: Observed::default(),
            unplaced: Vec::new(),
            calls: Calls::default(),
            office: None,
            waits_for: None,
            braking: false,
            brake: false,
            leases: Leases::default(),
            asking: None,
            refused: BTreeMap::new(),
            announced: BTreeMap::new(),
            sent: sent::Sent::default(),
            planned: None,
            rests: None,
        }
    }

    pub fn observed(&self) -> &Observed {
        &self.observed
    }

    /// The term in which it took office, as of its last round.
    pub fn office(&self) -> Option<u64> {
        self.office
    }

    /// Whether it waits for what became of its proposal: nothing else may happen before.
    pub fn waits(&self) -> bool {
        self.waits_for.is_some()
    }

    /// What people see.
    pub fn view<'a>(&'a self, state: &'a State, now_ms: u64) -> View<'a> {
        View { state, observed: &self.observed, unplaced: &self.unplaced, now_ms, timers: self.timers }
    }

    /// Begins a round: takes office or gives it up, forgets what is over, and plans if it leads.
    pub fn plan(&mut self, now: &Now<'_>) -> Option<Plan> {
        self.prune(now);
        let leads = now.leads_in();
        // By the term: it may have been deposed, and led again, while the loop waited for its proposal.
        let goes_on = self.office == leads || built_in(Fault::OfficeGoesOn) && self.office.is_some();
        if leads.is_some() && !goes_on {
            self.observed.since_ms = now.ms;
            self.leases.clear();
            self.rests = None;
        }
        self.office = leads;
        leads?;
        let basis = self.basis(now);
        if self.rests.as_ref() == Some(&basis) {
            self.planned = None;
            return Some(plan::by_time(now.state, &self.observed, now.ms, &self.timers));
        }
        (self.planned, self.rests) = (Some(basis), None);
        Some(plan::plan(now.state, &self.observed, now.ms, &self.timers))
    }

    fn basis(&self, now: &Now<'_>) -> Basis {
        let view = self.view(now.state, now.ms);
        Basis { applied: now.state.applied, changes: self.observed.changes, suspects: view.suspects() }
    }

    /// Forgets what is over, so that nothing invented on the bus stays.
    fn prune(&mut self, now: &Now<'_>) {
        let is_host = |host: &HostId| now.state.hosts.contains_key(host);
        self.calls.prune(now.ms);
        self.refused.retain(|host, _| is_host(host));
        self.observed.prune(is_host, now.ms, self.timers.lost_ms);
    }

    /// Goes on with the plan that this round began with.
    pub fn carry_out(&mut self, now: &Now<'_>, mut plan: Plan) -> Vec<Effect> {
        self.leases.again(now.state, &mut plan);
        let planned = self.planned.take();
        if plan.lost.is_empty() && plan.returned.is_empty() && planned.is_some() {
            self.unplaced = std::mem::take(&mut plan.unplaced);
        }
        self.brake = plan.brake;
        // Whoever led since it was made may have given leases to hosts that it calls lost.
        let leads = now.leads_in().is_some() && now.leads_in() == self.office;
        let (lost, returned) = (plan.lost.clone(), plan.returned.clone());
        let commands = if leads { commands(plan) } else { Vec::new() };
        if commands.is_empty() {
            let of_all = planned.is_some();
            if leads && of_all {
                self.rests = planned;
            }
            return self.finish(now, of_all);
        }
        self.rests = None;
        self.leases.proposes(&lost);
        self.waits_for = Some(Proposed::Plan { lost, returned });
        vec![Effect::Propose(commands)]
    }

    /// What became of the proposal: an outcome for each command, or why it is not known to be applied.
    pub fn proposed(&mut self, now: &Now<'_>, result: Result<Vec<pb::Outcome>, String>) -> Vec<Effect> {
        match self.waits_for.take() {
            Some(Proposed::Plan { lost, returned }) => {
                let mut effects = match result {
                    Ok(outcomes) => {
                        self.leases.proposed();
                        notice::moved(now.state, &lost, &returned, &outcomes)
                    }
                    Err(error) => vec![Effect::Warn(Warning { what: "plan not committed", host: None, error })],
                };
                effects.extend(self.finish(now, true));
                effects
            }
            Some(Proposed::Host { name, is_new }) => notice::registered(name, is_new, result),
            None => Vec::new(),
        }
    }

    /// The end of a round: assignments, leases, and what people are told. Whoever was deposed while its proposal was on the
    /// way leaves that to the next leader. `of_all`: of all apps, not only of what moved by time.
    fn finish(&mut self, now: &Now<'_>, of_all: bool) -> Vec<Effect> {
        if now.leads_in().is_none() || now.leads_in() != self.office {
            return Vec::new();
        }
        let mut effects = self.dispatch(now);
        effects.extend(self.lease(now));
        effects.extend(self.tell_brake());
        if of_all {
            effects.extend(self.announce(now));
        }
        effects
    }

    /// Sends its assignment to each host that has not confirmed the newest.
    fn dispatch(&mut self, now: &Now<'_>) -> Vec<Effect> {
        let mut due = Vec::new();
        for (id, host) in now.state.hosts.iter().filter(|(_, h)| !h.lost) {
            let Some(seen) = self.observed.hosts.get(id) else { continue };
            // A term alone changes nothing: the generation is the log index of the content.
            if seen.generation != host.generation && self.calls.may(id, Call::Assign, now.ms) {
                due.push(id.clone());
            }
        }
        due.truncate(CALLS_MAX);
        due.iter().for_each(|id| self.calls.begin(id, Call::Assign));
        due.into_iter().map(|id| Effect::Assign(id, now.term)).collect()
    }

    /// What `Effect::Assign` sends, by the newest state: made one by one, so that the log need not wait for all of them.
    pub fn assignment(&mut self, state: &State, host: &HostId, term: u64) -> Option<pb::Assignment> {
        let made = state.assignment(&self.lattice, host, term).and_then(|a| self.sent.next(a));
        if made.is_none() {
            self.calls.forget(host, Call::Assign);
        }
        made.map(|assignment| pb::Assignment { beat_ms: BEAT_MS, ..assignment })
    }

    /// Asks a quorum whether this scheduler leads, for the hosts that are due a lease.
    fn lease(&mut self, now: &Now<'_>) -> Vec<Effect> {
        if self.asking.is_some() {
            return Vec::new();
        }
        let due = self.leases.due(now.state, &self.observed);
        if due.is_empty() {
            return Vec::new();
        }
        if built_in(Fault::LeaseUnconfirmed) {
            return self.grant(now, due);
        }
        self.asking = Some((now.term, due));
        vec![Effect::AskQuorum]
    }

    /// What a quorum said. This scheduler led before it was asked and leads now, in one term: so it is the one that was
    /// confirmed.
    pub fn confirmed(&mut self, now: &Now<'_>, confirmed: bool) -> Vec<Effect> {
        let Some((term, due)) = self.asking.take() else { return Vec::new() };
        let mut effects = Vec::new();
        if confirmed && self.office == Some(term) && now.leads_in() == Some(term) {
            effects = self.grant(now, due);
        }
        // Of heartbeats that came meanwhile. Where nothing was given the next round is soon enough: asked again at once,
        // a quorum that can not say would be asked without end.
        if !effects.is_empty() {
            effects.push(Effect::Look);
        }
        effects
    }

    fn grant(&mut self, now: &Now<'_>, due: Vec<lease::Basis>) -> Vec<Effect> {
        let grants = self.leases.grant(now.state, &self.observed, due, self.timers.lost_ms);
        grants.into_iter().map(|(host, lease)| Effect::Lease(host, lease)).collect()
    }
}

/// What a plan proposes. Those of hosts that are lost come first, then those that returned: `notice::moved` counts on it.
fn commands(plan: Plan) -> Vec<pb::Command> {
    let mut commands = Vec::new();
    let mut command = |what| commands.push(pb::Command { request_id: String::new(), what: Some(what) });
    for host in &plan.lost {
        command(What::MarkLost(pb::MarkLost { host: host.to_string() }));
    }
    for host in &plan.returned {
        command(What::MarkReturned(pb::MarkReturned { host: host.to_string() }));
    }
    for host in &plan.forget {
        command(What::ForgetHost(pb::ForgetHost { host: host.to_string() }));
    }
    if !plan.changes.is_empty() {
        command(What::CommitPlan(pb::CommitPlan { based_on: plan.based_on, changes: plan.changes }));
    }
    commands
}
