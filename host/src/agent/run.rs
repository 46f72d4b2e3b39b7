//! The loop: it alone changes what runs. Decides by `keeper`, acts through `start`.

use super::answer::Ends;
use super::disk::Disk;
use super::load::Since;
use super::pulse::inventory;
use super::running::{Instance, What};
use super::start::Parts;
use super::telemetry::Progress;
use super::{Command, Identity};
use crate::artifact::Unused;
use crate::assignment::{Action, Key, Verdict, Wanted};
use crate::beats::Now;
use crate::heap::{self, Moves};
use crate::ingress::{Ingress, Routes};
use crate::keeper::{Came, Keeper};
use proto::v1 as pb;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

/// Time for requests under way when a component is stopped or replaced.
const DRAIN: Duration = Duration::from_secs(30);
/// As long as any invocation may take.
const PARTING_MAX: Duration = Duration::from_secs(24 * 3600);
/// How often it is seen, while something strict is up, whether the lease goes on.
const LEASE_LOOK: Duration = Duration::from_millis(200);
/// Time for requests under way when the host ends.
const SHUTDOWN_DRAIN: Duration = Duration::from_secs(5);
/// Of the time, the share in which heartbeats that tell of a change are made: with thousands of components each of them
/// takes its time, and while those start there is always something to tell.
const TELLING_SHARE: u32 = 10;
const TELLING_PAUSE_MAX: Duration = Duration::from_millis(500);
/// A step of bringing something up is told when it has lasted for so long, and not more often: most are over before.
const STEP_TELL: Duration = Duration::from_millis(250);
/// A host that no scheduler has assigned anything says again that it is there: after so long, then twice that, and so on
/// until its heartbeats say so as often.
const GREET_AGAIN: Duration = Duration::from_millis(100);
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
    keeper: Keeper,
    /// The keeper's clock begins then.
    begun: Instant,
    up: BTreeMap<Key, Instance>,
    starts: JoinSet<(Key, Wanted, Result<Instance, String>)>,
    /// Of what the keeper waits for.
    partings: JoinSet<Key>,
    unused: Unused,
    /// What the heartbeat before told of the load.
    since: Since,
    /// A change is not told before then.
    tell_at: Instant,
    /// When it is told that a step was taken.
    step_at: Option<Instant>,
    /// The last heartbeat told of something that is being brought up.
    step_told: bool,
    /// A store had failed when the last heartbeat was made.
    failing: bool,
    moves: Moves,
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
            keeper: Keeper::new(),
            begun: Instant::now(),
            up: BTreeMap::new(),
            starts: JoinSet::new(),
            partings: JoinSet::new(),
            unused,
            since: Since::now(),
            tell_at: Instant::now(),
            step_at: None,
            step_told: false,
            failing: false,
            moves: Moves::default(),
        }
    }

    /// `last`: what it was assigned before it started.
    pub(super) async fn run(mut self, last: Option<pb::Assignment>, mut commands: mpsc::Receiver<Command>) {
        if let Some(stored) = last {
            let (lattice, host) = (self.identity.lattice.as_str(), self.identity.host.as_str());
            if let (Verdict::Accept, wanted) = self.keeper.judge(&stored, lattice, host) {
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
        let (mut greeted, mut greet_at, mut greet_pause) = (0, None, GREET_AGAIN);
        loop {
            let now = *connection.borrow_and_update();
            let is_new = now.up && now.count != greeted;
            if self.keeper.fence().1 > 0 {
                greet_at = None;
            }
            if is_new || greet_at.is_some_and(|at| at <= Instant::now()) {
                greet_pause = if is_new { GREET_AGAIN } else { greet_pause * 2 };
                greeted = now.count;
                self.hello().await;
                self.keeper.change();
                // The scheduler may connect a moment later; one that knows this host need not be told again.
                let is_unknown = self.keeper.fence().1 == 0 && greet_pause < self.beat_every();
                greet_at = is_unknown.then(|| Instant::now() + greet_pause);
            }
            self.reconcile();
            if self.keeper.has_changed() && Instant::now() >= self.tell_at {
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
                () = tokio::time::sleep_until(self.tell_at.into()), if self.keeper.has_changed() => {}
                () = steps.moved.notified() => {
                    self.step_at.get_or_insert_with(|| Instant::now() + STEP_TELL);
                }
                () = until(self.step_at), if self.step_at.is_some() => {}
                () = until(greet_at), if greet_at.is_some() => {}
                _ = look.tick(), if self.keeper.has_strict() => {}
                Ok(()) = connection.changed() => {}
                _ = beat.tick() => self.beat(false).await,
                _ = sweep.tick() => self.sweep(),
            }
        }
    }

    fn beat_every(&self) -> Duration {
        Duration::from_millis(u64::from(self.keeper.beat_ms()))
    }

    /// By the keeper's clock.
    fn now_ms(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
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
        let failing = self.up.values().any(|i| matches!(&i.what, What::Provider(store) if store.failure().is_some()));
        // What runs is gone through only if there is something to tell.
        let changed = self.keeper.take_changed();
        let new = changed | std::mem::replace(&mut self.failing, failing) | failing | leaving;
        if new {
            self.tell_progress();
        }
        let items =
            (new || self.parts.pulse.is_full_next()).then(|| inventory(&self.parts.running, self.keeper.not_up()));
        let now = Now {
            fence: self.keeper.fence(),
            leaving,
            dropped: self.parts.bus.drops().total(),
            load: self.since.load(&self.parts.running),
            starting: self.parts.steps.told(),
        };
        let beat = self.parts.pulse.next(items, now);
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

    fn is_leased(&self) -> bool {
        self.parts.pulse.is_leased(self.keeper.fence().1)
    }

    /// Takes or refuses an assignment. Stored before it is confirmed.
    async fn assign(&mut self, new: pb::Assignment, answer: oneshot::Sender<pb::Assigned>) {
        let (lattice, host) = (self.identity.lattice.as_str(), self.identity.host.as_str());
        let (verdict, wanted) = self.keeper.judge(&new, lattice, host);
        let error = match verdict {
            Verdict::Same => None,
            Verdict::Refuse(why) => {
                let reason =
                    if new.lattice == lattice && new.host == host { bus::Reason::Stale } else { bus::Reason::Foreign };
                self.parts.bus.drops().count(reason);
                Some(why)
            }
            Verdict::Accept => match self.keep(&new) {
                Ok(()) => {
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
        let (term, generation) = self.keeper.fence();
        let accepted = error.is_none();
        // Who asked may have stopped waiting.
        let _ = answer.send(pb::Assigned { accepted, term, generation, error: error.unwrap_or_default() });
    }

    fn keep(&self, assignment: &pb::Assignment) -> Result<(), String> {
        tokio::task::block_in_place(|| self.disk.store(assignment)).map_err(|e| e.to_string())
    }

    fn adopt(&mut self, assignment: pb::Assignment, wanted: BTreeMap<Key, Wanted>) {
        let (routes, refused) = Routes::from_wire(&assignment.routes, &self.parts.telemetry.book);
        if refused > 0 {
            tracing::warn!(refused, "routes that this host can not read were left out; update it");
        }
        drop(self.routes.send_replace(Arc::new(routes)));
        self.parts.telemetry.book.prune();
        self.keeper.adopt(assignment, wanted);
        self.moved();
    }

    /// Begins whatever has to happen and can begin now.
    fn reconcile(&mut self) {
        let (now_ms, leased) = (self.now_ms(), self.is_leased());
        for action in self.keeper.due(now_ms, leased) {
            match action {
                Action::Stop(key) => {
                    tracing::info!(app = %key.0, component = %key.1, "stopped");
                    self.stop(key);
                }
                Action::Scale(key, replicas) => {
                    if let Some(instance) = self.up.get_mut(&key) {
                        instance.replicas = replicas;
                        if let What::Actor(actor) = &instance.what {
                            actor.set_replicas(replicas);
                        }
                        self.parts.running.put(&key, instance);
                    }
                }
                Action::Start(key, wanted) => {
                    let parts = self.parts.clone();
                    self.starts.spawn(async move {
                        let result = parts.start(&key, &wanted).await;
                        (key, wanted, result)
                    });
                }
            }
        }
    }

    fn stop(&mut self, key: Key) {
        self.parts.running.remove(&key);
        if let Some(mut instance) = self.up.remove(&key) {
            // Nor does anything strict run beside it.
            instance.strict |= self.keeper.parting().contains_key(&key);
            self.retire(key, instance);
        }
    }

    fn started(&mut self, joined: Result<(Key, Wanted, Result<Instance, String>), tokio::task::JoinError>) {
        self.moved();
        let (key, started, result) = match joined {
            Ok(done) => done,
            Err(error) => {
                tracing::error!(%error, "bringing up a component ended without a word");
                return self.keeper.lost_track();
            }
        };
        let (instance, result) = match result {
            Ok(instance) => (Some(instance), Ok(())),
            Err(error) => {
                tracing::warn!(app = %key.0, component = %key.1, revision = started.revision, %error, "not running");
                (None, Err(error))
            }
        };
        let (now_ms, leased) = (self.now_ms(), self.is_leased());
        let came = self.keeper.started(&key, &started, result, now_ms, leased);
        let Some(instance) = instance else { return };
        if came != Came::Up {
            return self.retire(key, instance);
        }
        tracing::info!(app = %key.0, component = %key.1, revision = instance.revision, "running");
        self.parts.running.put(&key, &instance);
        if let (Some(door), What::Actor(actor)) = (&instance.door, &instance.what) {
            door.slot.set(actor.clone());
        }
        if let Some(old) = self.up.insert(key.clone(), instance) {
            self.retire(key, old);
        }
    }

    /// Housekeeping: expired values, artifacts that nothing names, memory that nothing uses.
    fn sweep(&mut self) {
        if let Some(store) = self.parts.keyvalue.get().cloned() {
            tokio::spawn(async move {
                if let Err(error) = store.sweep().await {
                    tracing::warn!(error, "expired values not removed");
                }
            });
        }
        let is_here = |key: &Key| self.keeper.wanted().contains_key(key) || self.up.contains_key(key);
        self.parts.logs.sweep(is_here, self.identity.keep_unused, Instant::now());
        let named: BTreeSet<_> = self.keeper.wanted().values().flat_map(|w| w.app.digests()).cloned().collect();
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
        // Until what was stopped has ended too.
        if self.moves.is_within(DRAIN * 2, Instant::now()) {
            tokio::task::spawn_blocking(heap::give_back);
        }
    }

    /// Something was assigned, brought up or stopped.
    fn moved(&mut self) {
        if self.moves.note(Instant::now()) {
            tokio::task::spawn_blocking(heap::give_back);
        }
    }

    fn tell_progress(&self) {
        let (up, failed) = self.keeper.progress();
        self.parts.telemetry.goes_on(Progress {
            assigned: self.keeper.stored().is_some(),
            wanted: self.keeper.wanted().len(),
            up,
            failed,
            ..Progress::default()
        });
    }

    /// Lets go of what was stopped or replaced, beside the loop.
    fn retire(&mut self, key: Key, instance: Instance) {
        self.moved();
        if instance.strict {
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
        if let Err(error) = &gone {
            tracing::error!(%error, "stopping something ended without a word");
        }
        self.keeper.parted(gone.ok().as_ref());
    }

    /// Whether nothing strict runs any more: who leaves is replaced at once.
    async fn part(&mut self) -> bool {
        for key in self.keeper.part() {
            self.stop(key);
        }
        let all = async { while self.partings.join_next().await.is_some() {} };
        tokio::time::timeout(SHUTDOWN_DRAIN, all).await.is_ok()
    }

    async fn end(&mut self, leaving: bool) {
        self.parts.telemetry.ends();
        self.starts.shutdown().await;
        let alone = self.part().await;
        if leaving && alone {
            self.keeper.gone();
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
