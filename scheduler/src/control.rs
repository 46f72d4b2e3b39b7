//! The leader's loop: hands `leader` what happens, and carries out what that says. Decides nothing itself. One task owns
//! it; every scheduler listens to heartbeats, so that a new leader is warm.

use crate::events::Events;
use crate::leader::{self, Answer, Effect, Leader, Now};
use crate::plan::{Config as Timers, Heard, Plan};
use crate::raft;
use crate::replica::{Replica, outcomes};
use crate::status::View;
use crate::telemetry::Meter;
use bus::{Bus, Headers};
use prost::Message;
use proto::app::HostId;
use proto::v1 as pb;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};

const TICK: Duration = Duration::from_millis(leader::TICK_MS);
const ASSIGN_DEADLINE: Duration = Duration::from_millis(leader::ASSIGN_DEADLINE_MS);
const ASK_DEADLINE: Duration = Duration::from_millis(leader::ASK_DEADLINE_MS);
/// Answers of hosts that may wait for the loop.
const BACKS_MAX: usize = 256;

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
    leader: Arc<Mutex<Leader>>,
    /// Counts up with each change of what was observed.
    seen: Arc<watch::Sender<u64>>,
    started: Instant,
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
        let leader = Arc::new(Mutex::new(Leader::new(lattice.clone(), timers)));
        Self {
            lattice,
            bus,
            raft,
            replica,
            events,
            timers,
            meter: Meter::default(),
            leader,
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
        let leader = self.leader.lock().unwrap_or_else(PoisonError::into_inner);
        f(&leader.view(&state, self.now_ms()))
    }

    /// Changes when hosts said something new.
    pub fn seen(&self) -> watch::Receiver<u64> {
        self.seen.subscribe()
    }

    /// Whether this scheduler leads and knows all that was committed before it did.
    pub fn is_leader(&self) -> bool {
        self.raft.status().borrow().governs
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

    /// Hands something to the core, with how things stand.
    fn lead<T>(&self, f: impl FnOnce(&mut Leader, &Now<'_>) -> T) -> T {
        let (term, governs) = {
            let status = self.raft.status();
            let status = status.borrow();
            (status.term, status.governs)
        };
        let state = self.replica.read();
        let mut leader = self.leader.lock().unwrap_or_else(PoisonError::into_inner);
        f(&mut leader, &Now { state: &state, term, governs, ms: self.now_ms() })
    }

    fn changed(&self) {
        self.seen.send_modify(|n| *n += 1);
    }
}

/// What comes back to the loop.
enum Back {
    Answer(HostId, Box<Answer>),
    /// A quorum said that this scheduler leads, or did not.
    Confirmed(bool),
}

struct Control {
    shared: Shared,
    back: mpsc::Sender<Back>,
    /// A round is due.
    look: bool,
}

/// Runs until `stop` fires.
pub(crate) async fn run(shared: Shared, mut stop: watch::Receiver<bool>) -> Result<(), bus::Error> {
    let subjects = shared.bus.subjects().clone();
    let mut hellos = shared.bus.subscribe(subjects.every_hello()).await?;
    let mut beats = shared.bus.subscribe(subjects.every_beat()).await?;
    let mut events = shared.bus.subscribe(subjects.every_event()).await?;
    let (back, mut backs) = mpsc::channel(BACKS_MAX);
    let mut applied = shared.replica.applied();
    let mut status = shared.raft.status();
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut control = Control { shared, back, look: false };
    loop {
        tokio::select! {
            biased;
            _ = stop.changed() => return Ok(()),
            Some(message) = backs.recv() => control.back(message).await,
            Some(message) = hellos.next() => control.hello(&message).await,
            Some(message) = beats.next() => control.beat(&message).await,
            Some(message) = events.next() => {
                if !control.shared.events.take(&message.payload) {
                    control.shared.bus.drops().count(bus::Reason::Malformed);
                }
            }
            Ok(()) = applied.changed() => control.look = true,
            Ok(()) = status.changed() => control.look = true,
            _ = tick.tick() => control.look = true,
        }
        if std::mem::take(&mut control.look) {
            control.round().await;
        }
    }
}

impl Control {
    /// One round: plan on what is known, propose, send assignments.
    async fn round(&mut self) {
        let Some(plan) = self.plan() else { return };
        let effects = self.shared.lead(|leader, now| leader.carry_out(now, plan));
        self.carry_out(effects).await;
    }

    fn plan(&self) -> Option<Plan> {
        self.shared.lead(|leader, now| {
            let begun = Instant::now();
            let plan = leader.plan(now)?;
            self.shared.meter.planned(begun.elapsed());
            Some(plan)
        })
    }

    async fn hello(&mut self, message: &bus::Message) {
        let Some(hello) = self.shared.bus.decode::<pb::Hello>(&message.payload) else { return };
        let Some(from) = self.sender(message) else { return };
        let effects = self.shared.lead(|leader, now| leader.hello(now, &from, hello));
        self.carry_out(effects).await;
    }

    async fn beat(&mut self, message: &bus::Message) {
        let Some(beat) = self.shared.bus.decode::<pb::Beat>(&message.payload) else { return };
        let Some(from) = self.sender(message) else { return };
        let effects = self.shared.lead(|leader, now| leader.beat(now, &from, &beat));
        self.carry_out(effects).await;
    }

    /// The host whose subject a message came on.
    fn sender(&self, message: &bus::Message) -> Option<HostId> {
        let host = self.shared.bus.subjects().host_of(&message.subject);
        if host.is_none() {
            self.shared.bus.drops().count(bus::Reason::Foreign);
        }
        host
    }

    async fn back(&mut self, message: Back) {
        let effects = self.shared.lead(|leader, now| match message {
            Back::Answer(host, answer) => leader.answered(now, host, *answer),
            Back::Confirmed(confirmed) => leader.confirmed(now, confirmed),
        });
        self.carry_out(effects).await;
    }

    async fn carry_out(&mut self, effects: Vec<Effect>) {
        let mut more = Vec::new();
        for effect in effects {
            match effect {
                Effect::Propose(commands) => more.extend(self.propose(commands).await),
                other => self.effect(other).await,
            }
        }
        // What comes of a proposal proposes nothing.
        for effect in more {
            self.effect(effect).await;
        }
    }

    async fn propose(&self, commands: Vec<pb::Command>) -> Vec<Effect> {
        let result = self.shared.propose(commands).await.map_err(|e| e.to_string());
        self.shared.lead(|leader, now| leader.proposed(now, result))
    }

    async fn effect(&mut self, effect: Effect) {
        let shared = &self.shared;
        match effect {
            Effect::Propose(_) => unreachable!("`carry_out` proposes"),
            Effect::Assign(host, term) => self.assign(host, term),
            Effect::AskHello(host) => self.ask(host, pb::ask::What::Hello(pb::AskHello {}), |answer| {
                Answer::Hello(match answer {
                    Some(pb::answer::What::Hello(hello)) => Some(hello),
                    _ => None,
                })
            }),
            Effect::AskInventory(host) => self.ask(host, pb::ask::What::Inventory(pb::AskInventory {}), |answer| {
                Answer::Inventory(match answer {
                    Some(pb::answer::What::Beat(beat)) => Some(beat),
                    _ => None,
                })
            }),
            Effect::AskQuorum => self.ask_quorum(),
            Effect::Lease(host, lease) => self.lease(host, lease),
            Effect::Heard(heard) => {
                shared.meter.heard(heard);
                if heard == Heard::Changed {
                    shared.changed();
                }
            }
            Effect::Progress => shared.changed(),
            Effect::Drop(reason) => shared.bus.drops().count(reason),
            Effect::Tell(n) => shared.events.emit(&shared.bus, &n.kind, n.subject, n.message).await,
            Effect::Warn(w) => tracing::warn!(host = w.host, error = w.error, "{}", w.what),
            Effect::Look => self.look = true,
        }
    }

    fn assign(&self, host: HostId, term: u64) {
        let made = self.shared.lead(|leader, now| leader.assignment(now.state, &host, term));
        let Some(assignment) = made else { return };
        let (bus, back) = (self.shared.bus.clone(), self.back.clone());
        tokio::spawn(async move {
            let subject = bus.subjects().assign(&host);
            let answer = bus.call(subject, Headers::new(), bus::encode(&assignment), ASSIGN_DEADLINE).await;
            let result = match answer {
                Ok(reply) => pb::Assigned::decode(&reply.payload[..]).map_err(|e| e.to_string()),
                Err(error) => Err(error.to_string()),
            };
            let _ = back.send(Back::Answer(host, Box::new(Answer::Assigned(assignment.generation, result)))).await;
        });
    }

    /// `read` makes of what comes, or of nothing, what the leader takes.
    fn ask(&self, host: HostId, what: pb::ask::What, read: fn(Option<pb::answer::What>) -> Answer) {
        let question = self.question(what);
        let (bus, back) = (self.shared.bus.clone(), self.back.clone());
        tokio::spawn(async move {
            let answer = read(ask(&bus, &host, &question).await);
            let _ = back.send(Back::Answer(host, Box::new(answer))).await;
        });
    }

    fn ask_quorum(&self) {
        let (raft, back) = (self.shared.raft.clone(), self.back.clone());
        tokio::spawn(async move {
            let confirmed = matches!(tokio::time::timeout(ASK_DEADLINE, raft.read_index()).await, Ok(Ok(_)));
            let _ = back.send(Back::Confirmed(confirmed)).await;
        });
    }

    fn lease(&self, host: HostId, lease: pb::AskLease) {
        let question = self.question(pb::ask::What::Lease(lease));
        let bus = self.shared.bus.clone();
        tokio::spawn(async move {
            let subject = bus.subjects().ask(&host);
            if let Err(error) = bus.call(subject, Headers::new(), bus::encode(&question), ASK_DEADLINE).await {
                tracing::debug!(%host, %error, "lease not taken");
            }
        });
    }

    fn question(&self, what: pb::ask::What) -> pb::Ask {
        pb::Ask { lattice: self.shared.lattice.clone(), what: Some(what) }
    }
}

async fn ask(bus: &Bus, host: &HostId, question: &pb::Ask) -> Option<pb::answer::What> {
    let reply = bus.call(bus.subjects().ask(host), Headers::new(), bus::encode(question), ASK_DEADLINE).await.ok()?;
    pb::Answer::decode(&reply.payload[..]).ok()?.what
}
