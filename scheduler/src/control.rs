//! The leader's loop: observe, plan, propose, dispatch. Decides nothing itself: `plan` does. One task owns it; every
//! scheduler listens to heartbeats, so that a new leader is warm.

use crate::events::Events;
use crate::lease::{Basis, Leases};
use crate::plan::{self, Config as Timers, Heard, Observed, Unplaced};
use crate::raft;
use crate::replica::{Replica, outcomes};
use crate::state::HOSTS_MAX;
use crate::status::View;
use crate::telemetry::Meter;
use bus::{Bus, Headers};
use prost::Message;
use proto::app::HostId;
use proto::v1 as pb;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};

/// How often the loop looks when nothing happens.
const TICK: Duration = Duration::from_millis(500);
/// Time for a host to store and confirm an assignment.
const ASSIGN_DEADLINE: Duration = Duration::from_secs(5);
/// Time for a host to answer a question.
const ASK_DEADLINE: Duration = Duration::from_secs(3);
/// Calls to hosts under way at once; the next round goes on with the others.
const CALLS_MAX: usize = 256;
/// Calls to hosts that are remembered: those that failed lately are not made again at once.
const BUSY_MAX: usize = 2 * HOSTS_MAX;
/// How often the hosts beat.
const BEAT_MS: u32 = 2_000;

/// What the API and the loop share.
#[derive(Clone)]
pub struct Shared {
    pub lattice: String,
    pub bus: Bus,
    pub raft: raft::Handle,
    pub replica: Replica,
    pub events: Events,
    pub timers: Timers,
    pub(crate) meter: Meter,
    memory: Arc<Mutex<Memory>>,
    /// Counts up with each change of what was observed.
    seen: Arc<watch::Sender<u64>>,
    started: Instant,
}

/// What is not in the log.
#[derive(Default)]
struct Memory {
    observed: Observed,
    unplaced: Vec<Unplaced>,
}

impl Shared {
    pub fn new(
        lattice: String,
        bus: Bus,
        raft: raft::Handle,
        replica: Replica,
        events: Events,
        timers: Timers,
    ) -> Self {
        Self {
            lattice,
            bus,
            raft,
            replica,
            events,
            timers,
            meter: Meter::default(),
            memory: Arc::default(),
            seen: Arc::new(watch::Sender::new(0)),
            started: Instant::now(),
        }
    }

    /// Milliseconds of this process's monotonic clock.
    pub fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Computes something from state and observations as they are now.
    pub fn view<T>(&self, f: impl FnOnce(&View<'_>) -> T) -> T {
        let state = self.replica.read();
        let memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        f(&View {
            state: &state,
            observed: &memory.observed,
            unplaced: &memory.unplaced,
            now_ms: self.now_ms(),
            timers: self.timers,
        })
    }

    /// Changes when hosts said something new.
    pub fn seen(&self) -> watch::Receiver<u64> {
        self.seen.subscribe()
    }

    /// Whether this scheduler leads and knows all that was committed before it did.
    pub fn is_leader(&self) -> bool {
        self.leads_in().is_some()
    }

    /// The term in which it does.
    fn leads_in(&self) -> Option<u64> {
        let status = self.raft.status();
        let status = status.borrow();
        status.governs.then_some(status.term)
    }

    /// Proposes commands in one entry; gives an outcome for each.
    pub async fn propose(&self, commands: Vec<pb::Command>) -> Result<Vec<pb::Outcome>, raft::Error> {
        let me = self.raft.status().borrow().id;
        let entry = self.replica.entry(me, commands)?;
        let begun = Instant::now();
        let applied = self.raft.propose(entry.encode_to_vec()).await;
        self.meter.proposed(begun.elapsed(), applied.is_ok());
        Ok(outcomes(&applied?))
    }

    fn with_memory<T>(&self, f: impl FnOnce(&mut Memory) -> T) -> T {
        f(&mut self.memory.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn changed(&self) {
        self.seen.send_modify(|n| *n += 1);
    }
}

/// What calls to hosts bring back to the loop.
enum Back {
    Hello(HostId, Option<pb::Hello>),
    Inventory(HostId, Option<pb::Beat>),
    Assigned(HostId, u64, Result<pb::Assigned, String>),
    /// A quorum said that this scheduler leads, or did not; asked in that term.
    Confirmed(u64, Vec<Basis>, bool),
}

struct Control {
    shared: Shared,
    back: mpsc::Sender<Back>,
    /// Hosts with a call under way, or whose last one failed: not before.
    busy: BTreeMap<(HostId, &'static str), Option<Instant>>,
    /// The term in which this scheduler took office, while it leads.
    office: Option<u64>,
    braking: bool,
    leases: Leases,
    /// A quorum is being asked for leases.
    asking: bool,
    refused: BTreeMap<HostId, String>,
    /// App -> its state as last announced.
    announced: BTreeMap<String, (u64, String)>,
}

/// Runs until `stop` fires.
pub(crate) async fn run(shared: Shared, mut stop: watch::Receiver<bool>) -> Result<(), bus::Error> {
    let subjects = shared.bus.subjects().clone();
    let mut hellos = shared.bus.subscribe(subjects.every_hello()).await?;
    let mut beats = shared.bus.subscribe(subjects.every_beat()).await?;
    let mut events = shared.bus.subscribe(subjects.every_event()).await?;
    let (back, mut backs) = mpsc::channel(CALLS_MAX);
    let mut applied = shared.replica.applied();
    let mut status = shared.raft.status();
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut control = Control {
        shared,
        back,
        busy: BTreeMap::new(),
        office: None,
        braking: false,
        leases: Leases::default(),
        asking: false,
        refused: BTreeMap::new(),
        announced: BTreeMap::new(),
    };
    loop {
        tokio::select! {
            biased;
            _ = stop.changed() => return Ok(()),
            Some(message) = backs.recv() => control.back(message).await,
            Some(message) = hellos.next() => { control.hello_message(&message).await; continue }
            Some(message) = beats.next() => if !control.beat_message(&message) { continue },
            Some(message) = events.next() => {
                if !control.shared.events.take(&message.payload) {
                    control.shared.bus.drops().count(bus::Reason::Malformed);
                }
                continue
            }
            Ok(()) = applied.changed() => {}
            Ok(()) = status.changed() => {}
            _ = tick.tick() => {}
        }
        control.step().await;
    }
}

impl Control {
    /// One round: plan on what is known, propose, send assignments.
    async fn step(&mut self) {
        let term = self.shared.leads_in();
        self.prune();
        // By the term: it may have been deposed, and led again, while the loop waited for its proposal.
        if term.is_some() && self.office != term {
            let now = self.shared.now_ms();
            self.shared.with_memory(|m| m.observed.since_ms = now);
            self.leases.clear();
        }
        self.office = term;
        let Some(term) = term else { return };
        let plan = self.plan();
        let brake = plan.brake;
        self.carry_out(plan, term).await;
        self.dispatch();
        self.lease();
        self.tell_brake(brake).await;
        self.announce().await;
    }

    async fn tell_brake(&mut self, brake: bool) {
        if brake != self.braking {
            self.braking = brake;
            let message = if brake {
                "most hosts fell silent at once: the network or the bus is the likelier cause; nothing is moved until they are heard"
            } else {
                "hosts are heard again"
            };
            self.shared.events.emit(&self.shared.bus, "lattice.brake", "lattice".into(), message.into()).await;
        }
    }

    /// Forgets what is over, so that nothing invented on the bus stays.
    fn prune(&mut self) {
        let now = Instant::now();
        self.busy.retain(|_, not_before| not_before.is_none_or(|at| now < at));
        let state = self.shared.replica.read();
        self.refused.retain(|host, _| state.hosts.contains_key(host));
        let (now_ms, after_ms) = (self.shared.now_ms(), self.shared.timers.lost_ms);
        self.shared.with_memory(|m| m.observed.prune(|host| state.hosts.contains_key(host), now_ms, after_ms));
    }

    fn plan(&self) -> plan::Plan {
        let shared = &self.shared;
        let state = shared.replica.read();
        let now = shared.now_ms();
        shared.with_memory(|memory| {
            let begun = Instant::now();
            let mut plan = plan::plan(&state, &memory.observed, now, &shared.timers);
            self.leases.again(&state, &mut plan);
            shared.meter.planned(begun.elapsed());
            if plan.lost.is_empty() && plan.returned.is_empty() {
                memory.unplaced.clone_from(&plan.unplaced);
            }
            plan
        })
    }

    async fn carry_out(&mut self, plan: plan::Plan, term: u64) {
        use pb::command::What;
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
        if commands.is_empty() {
            return;
        }
        // Whoever led in between may have given leases to hosts that this plan calls lost.
        if self.shared.leads_in() != Some(term) {
            return;
        }
        self.leases.proposes(&plan.lost);
        let mut done = Vec::new();
        match self.shared.propose(commands).await {
            Ok(outcomes) => {
                done = moved(&plan.lost, &plan.returned, &outcomes);
                self.leases.proposed();
                for outcome in outcomes.iter().filter(|o| !o.error.is_empty() && o.code != "stale") {
                    tracing::warn!(error = outcome.error, "the log refused a plan");
                }
            }
            Err(error) => tracing::warn!(%error, "plan not committed"),
        }
        for (kind, host) in done {
            let name = self.host_name(host);
            let message = format!("host {name} is {kind}");
            let events = &self.shared.events;
            events.emit(&self.shared.bus, &format!("host.{kind}"), format!("host/{name}"), message).await;
        }
    }

    fn host_name(&self, host: &HostId) -> String {
        self.shared.replica.read().hosts.get(host).map_or_else(|| host.to_string(), |h| h.hello.name.clone())
    }

    /// Sends its assignment to each host that has not confirmed the newest.
    fn dispatch(&mut self) {
        let term = self.shared.raft.status().borrow().term;
        let mut due = Vec::new();
        {
            let state = self.shared.replica.read();
            let now = Instant::now();
            self.shared.with_memory(|memory| {
                for (id, host) in state.hosts.iter().filter(|(_, h)| !h.lost) {
                    let Some(seen) = memory.observed.hosts.get(id) else { continue };
                    // A term alone changes nothing: the generation is the log index of the content.
                    if seen.generation != host.generation && self.free(id, "assign", now) {
                        due.push(id.clone());
                    }
                }
            });
            due.truncate(CALLS_MAX);
        }
        for id in due {
            let assignment = self.shared.replica.read().assignment(&self.shared.lattice, &id, term);
            let Some(mut assignment) = assignment else { continue };
            assignment.beat_ms = BEAT_MS;
            let generation = assignment.generation;
            self.busy.insert((id.clone(), "assign"), None);
            let (bus, back) = (self.shared.bus.clone(), self.back.clone());
            let subject = bus.subjects().assign(&id);
            tokio::spawn(async move {
                let payload = bus::encode(&assignment);
                let answer = bus.call(subject, Headers::new(), payload, ASSIGN_DEADLINE).await;
                let result = match answer {
                    Ok(reply) => pb::Assigned::decode(&reply.payload[..]).map_err(|e| e.to_string()),
                    Err(error) => Err(error.to_string()),
                };
                let _ = back.send(Back::Assigned(id, generation, result)).await;
            });
        }
    }

    /// Asks a quorum whether this scheduler leads, for the hosts that are due a lease.
    fn lease(&mut self) {
        if self.asking {
            return;
        }
        let due = {
            let state = self.shared.replica.read();
            self.shared.with_memory(|memory| self.leases.due(&state, &memory.observed))
        };
        if due.is_empty() {
            return;
        }
        self.asking = true;
        let (raft, back) = (self.shared.raft.clone(), self.back.clone());
        tokio::spawn(async move {
            let term = raft.status().borrow().term;
            let confirmed = matches!(tokio::time::timeout(ASK_DEADLINE, raft.read_index()).await, Ok(Ok(_)));
            let _ = back.send(Back::Confirmed(term, due, confirmed)).await;
        });
    }

    /// It led before the quorum was asked and leads now, in one term: so it was this scheduler that was confirmed.
    fn confirmed(&mut self, term: u64, due: Vec<Basis>, confirmed: bool) {
        self.asking = false;
        let leads = self.office == Some(term) && self.shared.leads_in() == Some(term);
        if !confirmed || !leads {
            return;
        }
        let grants = {
            let state = self.shared.replica.read();
            let lost_ms = self.shared.timers.lost_ms;
            self.shared.with_memory(|memory| self.leases.grant(&state, &memory.observed, due, lost_ms))
        };
        for (id, lease) in grants {
            let ask = pb::Ask { lattice: self.shared.lattice.clone(), what: Some(pb::ask::What::Lease(lease)) };
            let bus = self.shared.bus.clone();
            // The next heartbeat is due another one: nobody waits for the answer.
            tokio::spawn(async move {
                let subject = bus.subjects().ask(&id);
                if let Err(error) = bus.call(subject, Headers::new(), bus::encode(&ask), ASK_DEADLINE).await {
                    tracing::debug!(host = %id, %error, "lease not taken");
                }
            });
        }
    }

    /// Whether a call of this kind may begin: none is under way and the last failure is a while ago.
    fn free(&self, host: &HostId, what: &'static str, now: Instant) -> bool {
        match self.busy.get(&(host.clone(), what)) {
            None => true,
            Some(None) => false,
            Some(Some(not_before)) => now >= *not_before,
        }
    }

    fn settle(&mut self, host: HostId, what: &'static str, ok: bool) {
        if ok {
            self.busy.remove(&(host, what));
        } else {
            self.busy.insert((host, what), Some(Instant::now() + Duration::from_secs(1)));
        }
    }

    async fn hello_message(&mut self, message: &bus::Message) {
        let Some(hello) = self.shared.bus.decode::<pb::Hello>(&message.payload) else { return };
        let of_subject = self.shared.bus.subjects().host_of(&message.subject);
        if hello.lattice != self.shared.lattice || of_subject.is_none_or(|id| id.as_str() != hello.host) {
            self.shared.bus.drops().count(bus::Reason::Foreign);
            return;
        }
        self.register(hello).await;
    }

    async fn register(&mut self, hello: pb::Hello) {
        if !self.shared.is_leader() || !sane(&hello) {
            if !sane(&hello) {
                self.shared.bus.drops().count(bus::Reason::Malformed);
            }
            return;
        }
        let Ok(id) = hello.host.parse::<HostId>() else { return };
        let now = self.shared.now_ms();
        if !self.shared.with_memory(|m| m.observed.hello(&id, &hello, now)) {
            self.shared.bus.drops().count(bus::Reason::Overflow);
            return;
        }
        let bare = pb::Hello { term: 0, generation: 0, ..hello.clone() };
        let (known, new) = {
            let state = self.shared.replica.read();
            let at = state.hosts.get(&id);
            (at.is_some_and(|h| h.hello == bare && !h.lost), at.is_none())
        };
        if known {
            return;
        }
        let name = hello.name.clone();
        let what = pb::command::What::RegisterHost(pb::RegisterHost { hello: Some(hello) });
        match self.shared.propose(vec![pb::Command { request_id: String::new(), what: Some(what) }]).await {
            Ok(outcomes) => {
                if let Some(error) = outcomes.iter().map(|o| &o.error).find(|e| !e.is_empty()) {
                    tracing::warn!(host = name, %error, "host not registered");
                } else if new {
                    let events = &self.shared.events;
                    let message = format!("host {name} joined");
                    events.emit(&self.shared.bus, "host.joined", format!("host/{name}"), message).await;
                }
            }
            Err(error) => tracing::warn!(host = name, %error, "host not registered"),
        }
    }

    /// Takes a heartbeat; gives whether the loop has something to do.
    fn beat_message(&mut self, message: &bus::Message) -> bool {
        let Some(beat) = self.shared.bus.decode::<pb::Beat>(&message.payload) else { return false };
        let of_subject = self.shared.bus.subjects().host_of(&message.subject);
        let Some(id) = of_subject.filter(|id| id.as_str() == beat.host && beat.lattice == self.shared.lattice) else {
            self.shared.bus.drops().count(bus::Reason::Foreign);
            return false;
        };
        self.beat(id, &beat)
    }

    fn beat(&mut self, id: HostId, beat: &pb::Beat) -> bool {
        let known = self.shared.replica.read().hosts.get(&id).map(|h| h.hello.boot == beat.boot);
        if known != Some(true) {
            self.ask(&id, "hello", pb::ask::What::Hello(pb::AskHello {}));
            if known.is_none() {
                return false;
            }
        }
        let now = self.shared.now_ms();
        let heard = self.shared.with_memory(|m| m.observed.beat(&id, beat, now));
        self.shared.meter.heard(heard);
        match heard {
            Heard::Stale => {
                self.shared.bus.drops().count(bus::Reason::Stale);
                false
            }
            Heard::Same => {
                // For those who watch: there is nothing to decide.
                if !beat.starting.is_empty() {
                    self.shared.changed();
                }
                false
            }
            Heard::Changed => {
                self.shared.changed();
                true
            }
            Heard::AskInventory => {
                self.ask(&id, "inventory", pb::ask::What::Inventory(pb::AskInventory {}));
                false
            }
        }
    }

    fn ask(&mut self, id: &HostId, what: &'static str, question: pb::ask::What) {
        if !self.shared.is_leader() && what == "hello" || !self.free(id, what, Instant::now()) {
            return;
        }
        if self.busy.len() >= BUSY_MAX || self.busy.values().filter(|b| b.is_none()).count() >= CALLS_MAX {
            return;
        }
        self.busy.insert((id.clone(), what), None);
        let ask = pb::Ask { lattice: self.shared.lattice.clone(), what: Some(question) };
        let (bus, back, id) = (self.shared.bus.clone(), self.back.clone(), id.clone());
        tokio::spawn(async move {
            let subject = bus.subjects().ask(&id);
            let reply = bus.call(subject, Headers::new(), bus::encode(&ask), ASK_DEADLINE).await;
            let answer = reply.ok().and_then(|r| pb::Answer::decode(&r.payload[..]).ok()).and_then(|a| a.what);
            let message = match (what, answer) {
                ("hello", Some(pb::answer::What::Hello(hello))) => Back::Hello(id, Some(hello)),
                ("inventory", Some(pb::answer::What::Beat(beat))) => Back::Inventory(id, Some(beat)),
                ("hello", _) => Back::Hello(id, None),
                _ => Back::Inventory(id, None),
            };
            let _ = back.send(message).await;
        });
    }

    async fn back(&mut self, message: Back) {
        match message {
            Back::Hello(id, hello) => {
                let hello = hello.filter(|h| h.host == id.as_str() && h.lattice == self.shared.lattice);
                self.settle(id, "hello", hello.is_some());
                if let Some(hello) = hello {
                    self.register(hello).await;
                }
            }
            Back::Inventory(id, beat) => {
                self.settle(id.clone(), "inventory", beat.is_some());
                if let Some(beat) = beat.filter(|b| b.host == id.as_str()) {
                    self.beat(id, &beat);
                }
            }
            Back::Assigned(id, generation, result) => self.assigned(id, generation, result).await,
            Back::Confirmed(term, due, confirmed) => self.confirmed(term, due, confirmed),
        }
    }

    async fn assigned(&mut self, id: HostId, generation: u64, result: Result<pb::Assigned, String>) {
        let error = match result {
            Ok(answer) if answer.accepted => {
                self.shared.with_memory(|m| {
                    if let Some(seen) = m.observed.hosts.get_mut(&id) {
                        seen.generation = generation;
                        seen.term = answer.term;
                    }
                });
                self.refused.remove(&id);
                self.settle(id, "assign", true);
                return;
            }
            Ok(answer) => answer.error,
            Err(error) => error,
        };
        self.settle(id.clone(), "assign", false);
        if self.refused.get(&id) != Some(&error) {
            self.refused.insert(id.clone(), error.clone());
            let name = self.host_name(&id);
            let message = format!("host {name} did not take its assignment: {error}");
            let events = &self.shared.events;
            events.emit(&self.shared.bus, "host.refused", format!("host/{name}"), message).await;
        }
    }

    /// Tells when an app's state changed.
    async fn announce(&mut self) {
        let apps = self.shared.view(|v| v.apps(""));
        let mut names = BTreeSet::new();
        for app in apps {
            names.insert(app.name.clone());
            let now = (app.revision, app.state.clone());
            let before = self.announced.insert(app.name.clone(), now.clone());
            if before.as_ref() == Some(&now) {
                continue;
            }
            let mut message = format!("app {} is {} ({} of {})", app.name, app.state, app.running, app.desired);
            if !app.message.is_empty() {
                message = format!("{message}: {}", app.message);
            }
            let kind = format!("app.{}", app.state);
            self.shared.events.emit(&self.shared.bus, &kind, format!("app/{}", app.name), message).await;
        }
        let gone: Vec<String> = self.announced.keys().filter(|n| !names.contains(*n)).cloned().collect();
        for name in gone {
            self.announced.remove(&name);
            let message = format!("app {name} is gone");
            self.shared.events.emit(&self.shared.bus, "app.deleted", format!("app/{name}"), message).await;
        }
    }
}

/// Of the hosts that were proposed to be lost, or to have returned, those that the log took so: outcomes are in the order of
/// the commands, which begin with these.
fn moved<'a>(lost: &'a [HostId], returned: &'a [HostId], outcomes: &[pb::Outcome]) -> Vec<(&'static str, &'a HostId)> {
    let hosts = lost.iter().map(|host| ("lost", host)).chain(returned.iter().map(|host| ("returned", host)));
    hosts.zip(outcomes).filter(|(_, outcome)| outcome.error.is_empty()).map(|(host, _)| host).collect()
}

/// Bounds of what a host may say of itself.
fn sane(hello: &pb::Hello) -> bool {
    let short = |s: &str| s.len() <= 256 && !s.chars().any(char::is_control);
    hello.host.parse::<HostId>().is_ok()
        && !hello.name.is_empty()
        && short(&hello.name)
        && hello.boot.len() == 26
        && short(&hello.ingress)
        && hello.labels.len() <= 64
        && hello.labels.iter().all(|(k, v)| short(k) && short(v))
        && hello.facts.as_ref().is_some_and(|f| f.interfaces.len() <= 256 && f.interfaces.iter().all(|i| short(i)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "helpers of tests")]
    use super::*;

    #[test]
    fn only_what_the_log_took_is_told() {
        let host = |n: u128| ulid::Ulid::from(n).to_string().parse::<HostId>().unwrap();
        let (lost, returned) = ([host(1), host(2)], [host(3)]);
        let outcome = |error: &str| pb::Outcome { error: error.to_owned(), ..Default::default() };
        let taken = [outcome(""), outcome("there is no host"), outcome(""), outcome("stale")];
        assert_eq!(moved(&lost, &returned, &taken), [("lost", &lost[0]), ("returned", &returned[0])]);
        assert!(moved(&lost, &returned, &[]).is_empty(), "none is known to be committed");
    }
}
