//! The loop: it alone changes what runs. Decides by `assignment`, acts through `start`.

use super::answer::Ends;
use super::disk::Disk;
use super::load::Since;
use super::pulse::{Failure, inventory};
use super::running::{Instance, What};
use super::start::Parts;
use super::telemetry::Progress;
use super::{Command, Identity};
use crate::artifact::Unused;
use crate::assignment::{self, Action, Have, Key, Verdict, Wanted};
use crate::ingress::{Ingress, Routes};
use proto::app::Kind;
use proto::v1 as pb;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

const BEAT_MS_DEFAULT: u32 = 2_000;
/// Components brought up at once. Most of them wait: for their bytes, or for their turn to be compiled, each of which has
/// bounds of its own; what needs neither must not wait behind them.
const STARTS_MAX: usize = 1_024;
/// Time for requests under way when a component is stopped or replaced.
const DRAIN: Duration = Duration::from_secs(30);
/// As long as any invocation may take.
const PARTING_MAX: Duration = Duration::from_secs(24 * 3600);
/// How often it is seen, while something strict is up, whether the lease goes on.
const LEASE_LOOK: Duration = Duration::from_millis(200);
/// Time for requests under way when the host ends.
const SHUTDOWN_DRAIN: Duration = Duration::from_secs(5);
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);
/// Of the time, the share in which heartbeats that tell of a change are made: with thousands of components each of them
/// takes its time, and while those start there is always something to tell.
const TELLING_SHARE: u32 = 10;
const TELLING_PAUSE_MAX: Duration = Duration::from_millis(500);
/// A step of bringing something up is told when it has lasted for so long, and not more often: most are over before.
const STEP_TELL: Duration = Duration::from_millis(250);
/// How often expired values are looked for.
const SWEEP: Duration = Duration::from_secs(10);
const SWEEP_MIN: Duration = Duration::from_secs(1);

pub(super) struct Loop {
    identity: Identity,
    parts: Parts,
    disk: Disk,
    routes: watch::Sender<Arc<Routes>>,
    ingress: Option<Ingress>,
    _ends: Ends,
    stored: Option<pb::Assignment>,
    wanted: BTreeMap<Key, Wanted>,
    up: BTreeMap<Key, Instance>,
    /// Being brought up, in which revision.
    starting: BTreeMap<Key, u64>,
    failed: BTreeMap<Key, (Failure, u32, Instant)>,
    starts: JoinSet<(Key, Wanted, Result<Instance, String>)>,
    /// Of what is strict: stopped, and not gone yet, in which revision.
    parting: BTreeMap<Key, u64>,
    partings: JoinSet<Key>,
    unused: Unused,
    /// What the heartbeat before told of the load.
    since: Since,
    /// There is something to tell, and not before then.
    changed: bool,
    tell_at: Instant,
    /// When it is told that a step was taken.
    step_at: Option<Instant>,
    /// The last heartbeat told of something that is being brought up.
    step_told: bool,
    /// A store had failed when the last heartbeat was made.
    failing: bool,
    /// What shall run has to be compared with what does; what is under a lease, with whether there was one.
    unsure: bool,
    leased: bool,
    /// To be brought up when there is room, the next at the end; as the last comparison found.
    waiting: Vec<(Key, Wanted)>,
    /// When the first of those that failed is tried again.
    retry_at: Option<Instant>,
}

impl Loop {
    pub(super) fn new(
        identity: Identity,
        parts: Parts,
        disk: Disk,
        routes: watch::Sender<Arc<Routes>>,
        ingress: Option<Ingress>,
        ends: Ends,
    ) -> Self {
        parts.pulse.begin(&identity);
        let unused = Unused::new(identity.keep_unused);
        Self {
            identity,
            parts,
            disk,
            routes,
            ingress,
            _ends: ends,
            stored: None,
            wanted: BTreeMap::new(),
            up: BTreeMap::new(),
            starting: BTreeMap::new(),
            failed: BTreeMap::new(),
            starts: JoinSet::new(),
            parting: BTreeMap::new(),
            partings: JoinSet::new(),
            unused,
            since: Since::now(),
            changed: true,
            tell_at: Instant::now(),
            step_at: None,
            step_told: false,
            failing: false,
            unsure: true,
            leased: false,
            waiting: Vec::new(),
            retry_at: None,
        }
    }

    pub(super) async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        if let Some(stored) = self.disk.assignment() {
            let wanted = assignment::wanted(&stored);
            let problem = wanted.as_ref().err().cloned();
            let (lattice, host) = (self.identity.lattice.as_str(), self.identity.host.as_str());
            if let (Verdict::Accept, Ok(wanted)) = (assignment::judge(None, &stored, problem, lattice, host), wanted) {
                tracing::info!(
                    generation = stored.generation,
                    apps = stored.apps.len(),
                    "starting from the last assignment"
                );
                self.adopt(stored, wanted);
            }
        }
        let mut connection = self.parts.bus.connection();
        let mut beat = tokio::time::interval(self.beat_every());
        let mut sweep = tokio::time::interval(self.identity.keep_unused.clamp(SWEEP_MIN, SWEEP));
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // A timer would wait for as long as the machine slept.
        let mut look = tokio::time::interval(LEASE_LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (pulse, steps) = (self.parts.pulse.clone(), self.parts.steps.clone());
        let mut greeted = 0;
        loop {
            let now = *connection.borrow_and_update();
            if now.up && now.count != greeted {
                greeted = now.count;
                self.hello().await;
                self.changed = true;
            }
            self.reconcile();
            if self.changed && Instant::now() >= self.tell_at {
                self.tell().await;
            }
            if self.step_at.is_some_and(|at| at <= Instant::now()) {
                self.tell_steps().await;
            }
            tokio::select! {
                command = commands.recv() => match command {
                    Some(Command::Assign(assignment, answer)) => {
                        let every = self.beat_every();
                        self.assign(*assignment, answer).await;
                        if self.beat_every() != every {
                            beat = tokio::time::interval(self.beat_every());
                        }
                    }
                    Some(Command::Shutdown { leaving, done }) => {
                        self.end(leaving).await;
                        let _ = done.send(());
                        return;
                    }
                    None => return self.end(false).await,
                },
                Some(started) = self.starts.join_next() => self.started(started),
                Some(gone) = self.partings.join_next() => self.parted(gone),
                () = pulse.leased.notified() => {}
                () = tokio::time::sleep_until(self.tell_at.into()), if self.changed => {}
                () = steps.moved.notified() => {
                    self.step_at.get_or_insert_with(|| Instant::now() + STEP_TELL);
                }
                () = until(self.step_at), if self.step_at.is_some() => {}
                _ = look.tick(), if self.up.values().any(|i| i.strict) => {}
                Ok(()) = connection.changed() => {}
                _ = beat.tick() => self.beat(false).await,
                _ = sweep.tick() => self.sweep(),
            }
        }
    }

    fn beat_every(&self) -> Duration {
        let asked = self.stored.as_ref().map_or(0, |s| s.beat_ms);
        let ms = if asked == 0 { BEAT_MS_DEFAULT } else { asked.clamp(100, 60_000) };
        Duration::from_millis(u64::from(ms))
    }

    async fn hello(&self) {
        let hello = self.identity.hello(&self.parts);
        let subject = self.parts.bus.subjects().hello(&self.identity.host);
        if let Err(error) = self.parts.bus.publish(subject, bus::encode(&hello)).await {
            tracing::debug!(%error, "hello not sent");
        }
    }

    /// Tells of a change.
    async fn tell(&mut self) {
        let begun = Instant::now();
        self.beat(false).await;
        self.tell_at = Instant::now() + (begun.elapsed() * (TELLING_SHARE - 1)).min(TELLING_PAUSE_MAX);
    }

    /// Tells of a step, unless all is over.
    async fn tell_steps(&mut self) {
        self.step_at = None;
        if self.step_told || !self.parts.steps.is_empty() {
            self.beat(false).await;
        }
    }

    async fn beat(&mut self, leaving: bool) {
        let fence = self.stored.as_ref().map_or((0, 0), |s| (s.term, s.generation));
        let failing = self.up.values().any(|i| matches!(&i.what, What::Provider(store) if store.failure().is_some()));
        // What runs is gone through only if there is something to tell.
        let new = std::mem::take(&mut self.changed) | std::mem::replace(&mut self.failing, failing) | failing | leaving;
        if new {
            self.tell_progress();
        }
        let items = (new || self.parts.pulse.is_full_next()).then(|| {
            let failed = self.failed.iter().map(|(k, (f, ..))| (k.clone(), f.clone())).collect();
            inventory(&self.parts.running, &self.wanted, &failed, self.stopping())
        });
        let load = self.since.load(&self.parts.running);
        let beat = self.parts.pulse.next(&self.parts, items, fence, leaving, load);
        (self.step_at, self.step_told) = (None, !beat.starting.is_empty());
        // A beat that waited for the bus would be old news: it is made and dropped.
        if !self.parts.bus.connection().borrow().up {
            return;
        }
        let subject = self.parts.bus.subjects().beat(&self.identity.host);
        let mut payload = bus::encode(&beat);
        if payload.len() > self.parts.bus.message_bytes_max() {
            // Too much for one message: the scheduler asks for it, and gets it in pieces.
            payload = bus::encode(&pb::Beat { inventory: None, ..beat });
        }
        if let Err(error) = self.parts.bus.publish(subject, payload).await {
            tracing::debug!(%error, "heartbeat not sent");
        }
    }

    /// Of what is strict, all that may run still although it shall not.
    fn stopping(&self) -> impl Iterator<Item = (Key, u64)> {
        let unwanted = self.starting.iter().filter(|(key, _)| !self.wanted.contains_key(*key));
        self.parting.iter().chain(unwanted).map(|(key, revision)| (key.clone(), *revision))
    }

    fn is_leased(&self) -> bool {
        self.parts.pulse.is_leased(self.stored.as_ref().map_or(0, |s| s.generation))
    }

    /// Takes or refuses an assignment. Stored before it is confirmed.
    async fn assign(&mut self, new: pb::Assignment, answer: oneshot::Sender<pb::Assigned>) {
        let (lattice, host) = (self.identity.lattice.as_str(), self.identity.host.as_str());
        let before = self.stored.as_ref().map(|stored| (stored, &self.wanted));
        let wanted = assignment::wanted_after(before, &new);
        let problem = wanted.as_ref().err().cloned();
        let verdict = assignment::judge(self.stored.as_ref(), &new, problem, lattice, host);
        let error = match verdict {
            Verdict::Same => None,
            Verdict::Refuse(why) => {
                let reason =
                    if new.lattice == lattice && new.host == host { bus::Reason::Stale } else { bus::Reason::Foreign };
                self.parts.bus.drops().count(reason);
                Some(why)
            }
            Verdict::Accept => match wanted.and_then(|wanted| self.keep(&new).map(|()| wanted)) {
                Ok(wanted) => {
                    tracing::info!(
                        term = new.term,
                        generation = new.generation,
                        apps = new.apps.len(),
                        "assignment accepted"
                    );
                    self.adopt(new, wanted);
                    None
                }
                Err(problem) => Some(problem),
            },
        };
        let (term, generation) = self.stored.as_ref().map_or((0, 0), |s| (s.term, s.generation));
        let accepted = error.is_none();
        // Who asked may have stopped waiting.
        let _ = answer.send(pb::Assigned { accepted, term, generation, error: error.unwrap_or_default() });
    }

    fn keep(&self, assignment: &pb::Assignment) -> Result<(), String> {
        tokio::task::block_in_place(|| self.disk.store(assignment)).map_err(|e| e.to_string())
    }

    fn adopt(&mut self, assignment: pb::Assignment, wanted: BTreeMap<Key, Wanted>) {
        self.wanted = wanted;
        let (routes, refused) = Routes::from_wire(&assignment.routes, &self.parts.telemetry.book);
        if refused > 0 {
            tracing::warn!(refused, "routes that this host can not read were left out; update it");
        }
        drop(self.routes.send_replace(Arc::new(routes)));
        self.parts.telemetry.book.prune();
        self.failed.retain(|k, (f, ..)| self.wanted.get(k).is_some_and(|w| w.revision == f.revision));
        self.stored = Some(assignment);
        self.changed = true;
        self.unsure = true;
    }

    /// Begins whatever has to happen and can begin now.
    fn reconcile(&mut self) {
        let (now, leased) = (Instant::now(), self.is_leased());
        self.unsure |= self.retry_at.is_some_and(|at| at <= now);
        self.unsure |= std::mem::replace(&mut self.leased, leased) != leased;
        while std::mem::take(&mut self.unsure) {
            self.compare(now, leased);
        }
        while self.starts.len() < STARTS_MAX
            && let Some((key, wanted)) = self.waiting.pop()
        {
            self.starting.insert(key.clone(), wanted.revision);
            let parts = self.parts.clone();
            self.starts.spawn(async move {
                let result = parts.start(&key, &wanted).await;
                (key, wanted, result)
            });
        }
    }

    /// Goes through all components: with thousands of them, not at each turn of the loop.
    fn compare(&mut self, now: Instant, leased: bool) {
        let have: BTreeMap<Key, Have> =
            self.up.iter().map(|(k, i)| (k.clone(), Have { revision: i.revision, replicas: i.replicas })).collect();
        let mut busy = self.starting.clone();
        busy.extend(self.failed.iter().filter(|(_, f)| f.2 > now).map(|(k, f)| (k.clone(), f.0.revision)));
        self.retry_at = self.failed.values().map(|f| f.2).filter(|at| *at > now).min();
        self.waiting.clear();
        for action in assignment::actions(&self.wanted, &have, &busy, leased) {
            match action {
                Action::Stop(key) => {
                    tracing::info!(app = %key.0, component = %key.1, "stopped");
                    self.parts.running.remove(&key);
                    if let Some(old) = self.up.remove(&key) {
                        self.retire(key, old);
                    }
                    self.changed = true;
                    // Another revision may have waited for that.
                    self.unsure = true;
                }
                Action::Scale(key, replicas) => {
                    if let Some(instance) = self.up.get_mut(&key) {
                        instance.replicas = replicas;
                        if let What::Actor(actor) = &instance.what {
                            actor.set_replicas(replicas);
                        }
                        self.parts.running.put(&key, instance);
                    }
                    self.changed = true;
                }
                Action::Start(key, wanted) => {
                    if !self.starting.contains_key(&key) && !self.parting.contains_key(&key) {
                        self.waiting.push((key, wanted));
                    }
                }
            }
        }
        self.waiting.reverse();
    }

    fn started(&mut self, joined: Result<(Key, Wanted, Result<Instance, String>), tokio::task::JoinError>) {
        self.changed = true;
        let (key, started, result) = match joined {
            Ok(done) => done,
            Err(error) => {
                tracing::error!(%error, "bringing up a component ended without a word");
                self.starting.clear();
                self.unsure = true;
                return;
            }
        };
        self.starting.remove(&key);
        match result {
            Ok(instance) => {
                // What it was started for may have changed meanwhile: `reconcile` sees to the rest.
                self.unsure |= self.wanted.get(&key) != Some(&started);
                if !self.wanted.contains_key(&key) || instance.strict && !self.is_leased() {
                    return self.retire(key, instance);
                }
                tracing::info!(app = %key.0, component = %key.1, revision = instance.revision, "running");
                self.failed.remove(&key);
                self.parts.running.put(&key, &instance);
                if let (Some(door), What::Actor(actor)) = (&instance.door, &instance.what) {
                    door.slot.set(actor.clone());
                }
                if let Some(old) = self.up.insert(key.clone(), instance) {
                    self.retire(key, old);
                }
            }
            Err(error) => {
                tracing::warn!(app = %key.0, component = %key.1, revision = started.revision, %error, "not running");
                let tries = self.failed.get(&key).filter(|f| f.0.revision == started.revision).map_or(0, |f| f.1) + 1;
                let wait = RETRY_MIN.saturating_mul(1 << tries.min(6)).min(RETRY_MAX);
                let failure = Failure { revision: started.revision, error };
                let again = Instant::now() + wait;
                self.unsure |= self.wanted.get(&key) != Some(&started);
                self.retry_at = Some(self.retry_at.map_or(again, |at| at.min(again)));
                self.failed.insert(key, (failure, tries, again));
            }
        }
    }

    /// Housekeeping: expired values, artifacts that nothing names.
    fn sweep(&mut self) {
        if let Some(store) = self.parts.keyvalue.get().cloned() {
            tokio::spawn(async move {
                if let Err(error) = store.sweep().await {
                    tracing::warn!(error, "expired values not removed");
                }
            });
        }
        let named = self.wanted.values().flat_map(|w| w.app.components.values()).filter_map(|c| match &c.kind {
            Kind::Actor(a) => a.digest.clone(),
            Kind::Provider(_) => None,
        });
        let named: BTreeSet<_> = named.collect();
        let (bytes, max) = self.parts.artifacts.bytes();
        let held: Vec<_> = self.parts.artifacts.list().into_iter().map(|(digest, _)| digest).collect();
        for digest in self.unused.may_go(&held, &named, bytes * 2 >= max, Instant::now()) {
            match self.parts.share.remove(&digest) {
                Ok(()) => {
                    self.parts.engine.forget(&digest);
                    tracing::info!(%digest, "artifact removed: nothing names it");
                }
                Err(error) => tracing::warn!(%digest, %error, "artifact not removed"),
            }
        }
    }

    fn tell_progress(&self) {
        let up = self.wanted.iter().filter(|(k, w)| self.up.get(*k).is_some_and(|i| i.revision == w.revision)).count();
        let failed =
            self.wanted.iter().filter(|(k, w)| self.failed.get(*k).is_some_and(|f| f.0.revision == w.revision));
        self.parts.telemetry.goes_on(Progress {
            assigned: self.stored.is_some(),
            wanted: self.wanted.len(),
            up,
            failed: failed.count(),
            ..Progress::default()
        });
    }

    /// Lets go of what was stopped or replaced, beside the loop.
    fn retire(&mut self, key: Key, instance: Instance) {
        if instance.strict {
            self.parting.insert(key.clone(), instance.revision);
            self.partings.spawn(async move {
                // Its invocations end with the lease at the latest, or by their own limits.
                instance.let_go(PARTING_MAX).await;
                key
            });
        } else {
            tokio::spawn(instance.let_go(DRAIN));
        }
    }

    fn parted(&mut self, gone: Result<Key, tokio::task::JoinError>) {
        self.changed = true;
        self.unsure = true;
        match gone {
            Ok(key) => _ = self.parting.remove(&key),
            Err(error) => tracing::error!(%error, "stopping something strict ended without a word"),
        }
    }

    /// Whether nothing strict runs any more: who leaves is replaced at once.
    async fn part(&mut self) -> bool {
        let strict: Vec<Key> = self.up.iter().filter(|(_, i)| i.strict).map(|(key, _)| key.clone()).collect();
        self.wanted.retain(|_, wanted| !wanted.strict);
        for key in strict {
            self.parts.running.remove(&key);
            if let Some(instance) = self.up.remove(&key) {
                self.retire(key, instance);
            }
        }
        let all = async { while self.partings.join_next().await.is_some() {} };
        tokio::time::timeout(SHUTDOWN_DRAIN, all).await.is_ok()
    }

    async fn end(&mut self, leaving: bool) {
        self.parts.telemetry.ends();
        self.starts.shutdown().await;
        let alone = self.part().await;
        if leaving && alone {
            self.parting.clear();
            self.starting.clear();
            self.beat(true).await;
        }
        if let Some(ingress) = self.ingress.take() {
            ingress.stop(SHUTDOWN_DRAIN).await;
        }
        let mut ending = JoinSet::new();
        for (key, instance) in std::mem::take(&mut self.up) {
            self.parts.running.remove(&key);
            ending.spawn(instance.let_go(SHUTDOWN_DRAIN));
        }
        let _ = tokio::time::timeout(SHUTDOWN_DRAIN, ending.join_all()).await;
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
