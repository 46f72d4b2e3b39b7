//! A host as `host/src/agent` runs one, without threads, engine and disk: the real `assignment` core between a stored
//! assignment, starts that take time, and heartbeats. Must never decide anything that `assignment` decides.

use crate::assignment::{Action, Have, Key, Verdict, Wanted, accept, actions, wanted};
use crate::ctx::{Ctx, LATTICE, Node, Packet, Timer, host_id};
use crate::history::History;
use crate::lease::{Lease, STOP_MS};
use proto::app::{App, Builtin, HostId};
use proto::fault::{Fault, built_in};
use proto::v1 as pb;
use std::collections::BTreeMap;
use std::sync::Arc;

const BEAT_MS_DEFAULT: u32 = 2_000;
const STARTS_MAX: usize = 4;
const RETRY_MIN_MS: u64 = 1_000;
const RETRY_MAX_MS: u64 = 60_000;
const FULL_EVERY: u64 = 10;

pub(crate) struct Host {
    pub(crate) number: usize,
    pub(crate) id: HostId,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) arch: &'static str,
    pub(crate) ingress: bool,
    /// Counts starts of the process.
    pub(crate) boot: u64,
    pub(crate) up: bool,
    pub(crate) connected: bool,
    pub(crate) paused_until: u64,
    /// The last assignment that was stored; survives a crash unless that tore it.
    pub(crate) disk: Option<pb::Assignment>,
    pub(crate) running: Running,
    /// The highest (term, generation) it confirmed since its disk was last torn.
    confirmed: (u64, u64),
}

/// What a crash ends.
#[derive(Default)]
pub(crate) struct Running {
    pub(crate) stored: Option<pb::Assignment>,
    wanted: BTreeMap<Key, Wanted>,
    pub(crate) up: BTreeMap<Key, Instance>,
    starting: BTreeMap<Key, u64>,
    /// Of what is strict: stopped, and not gone yet.
    parting: BTreeMap<Key, u64>,
    lease: Lease,
    /// Revision, tries, not before.
    failed: BTreeMap<Key, (u64, u32, u64)>,
    changed: bool,
    beat: pb::Beat,
    bare: Vec<pb::Running>,
}

pub(crate) struct Instance {
    pub(crate) revision: u64,
    pub(crate) replicas: u32,
    strict: bool,
    /// What it was started from.
    pub(crate) app: Arc<App>,
}

fn fence(assignment: Option<&pb::Assignment>) -> (u64, u64) {
    assignment.map_or((0, 0), |a| (a.term, a.generation))
}

impl Host {
    pub(crate) fn new(number: usize, ctx: &mut Ctx) -> Self {
        let dice = &mut ctx.dice;
        let zone = (*dice.pick(&["a", "b"])).to_owned();
        let mut labels = BTreeMap::from([("zone".to_owned(), zone)]);
        if dice.percent(30) {
            labels.insert("disk".into(), "ssd".into());
        }
        Self {
            number,
            id: host_id(number),
            labels,
            arch: if dice.percent(80) { "x86_64" } else { "aarch64" },
            ingress: dice.percent(50),
            boot: 0,
            up: false,
            connected: false,
            paused_until: 0,
            disk: None,
            running: Running::default(),
            confirmed: (0, 0),
        }
    }

    fn me(&self) -> Node {
        Node::Host(self.number)
    }

    /// A new process on what the disk holds.
    pub(crate) fn start(&mut self, ctx: &mut Ctx) {
        if self.up {
            return;
        }
        let stored = fence(self.disk.as_ref());
        if stored < self.confirmed {
            ctx.fail(format!("host h{} confirmed {:?} and has {stored:?} on disk", self.number, self.confirmed));
        }
        self.boot += 1;
        (self.up, self.connected) = (true, ctx.net.bus_up);
        self.running = Running { changed: true, ..Running::default() };
        self.running.beat.lattice = LATTICE.to_owned();
        self.running.beat.host = self.id.to_string();
        let number = if built_in(Fault::BootsGoBack) { 1_000_000 - self.boot } else { self.boot };
        self.running.beat.boot = ulid::Ulid::from(u128::from(number) << 80 | self.number as u128).to_string();
        ctx.note(|| format!("h{} starts, boot {}, stored {stored:?}", self.number, self.boot));
        if let Some(stored) = self.disk.clone()
            && accept(None, &stored, LATTICE, self.id.as_str()) == Verdict::Accept
        {
            ctx.count("started from the last assignment");
            self.adopt(stored);
        }
        ctx.wake(self.me(), self.boot, BEAT_MS_DEFAULT.into(), Timer::Beat);
        if self.connected {
            self.hello(ctx);
        }
        self.turn(ctx);
    }

    /// The process ends as by a power cut.
    pub(crate) fn crash(&mut self, ctx: &mut Ctx, torn: bool) {
        if !self.up {
            return;
        }
        self.up = false;
        self.paused_until = 0;
        self.running = Running::default();
        ctx.note(|| format!("h{} crashes{}", self.number, if torn { ", its assignment torn" } else { "" }));
        ctx.count("host crashed");
        if torn && self.disk.take().is_some() {
            ctx.count("torn assignment");
            self.confirmed = (0, 0);
        }
    }

    /// Ends cleanly and says so.
    pub(crate) fn leave(&mut self, ctx: &mut Ctx) {
        if self.up {
            self.beat(ctx, true);
            self.up = false;
            self.paused_until = 0;
            self.running = Running::default();
            ctx.note(|| format!("h{} leaves", self.number));
            ctx.count("host left");
        }
    }

    /// The connection to the bus broke or came back, and the host knows.
    pub(crate) fn connection(&mut self, ctx: &mut Ctx, connected: bool) {
        let again = connected && !self.connected;
        self.connected = connected;
        if again && self.up {
            self.hello(ctx);
            self.running.changed = true;
            self.turn(ctx);
        }
    }

    pub(crate) fn packet(&mut self, ctx: &mut Ctx, packet: Packet) {
        match packet {
            Packet::Assign { call, member, assignment } => self.assign(ctx, call, member, assignment),
            Packet::AskHello { call, member } => {
                let hello = self.greeting();
                ctx.send(self.me(), Node::Member(member), Packet::AnswerHello { call, hello });
            }
            Packet::Lease(lease) => {
                let boot = self.running.beat.boot.clone();
                if self.running.lease.grant(&boot, &lease).is_ok() {
                    let left = self.running.lease.until_ms().saturating_sub(ctx.host_ms(self.number));
                    // As often as the loop looks.
                    let look = 1 + ctx.dice.below(200);
                    ctx.wake(self.me(), self.boot, left.saturating_sub(STOP_MS) + look, Timer::LeaseEnd);
                    self.turn(ctx);
                }
            }
            Packet::AskInventory { call, member } => {
                self.count(ctx);
                let beat = self.running.beat.clone();
                ctx.send(self.me(), Node::Member(member), Packet::AnswerInventory { call, beat });
            }
            other => ctx.fail(format!("a host was sent {other:?}")),
        }
    }

    pub(crate) fn timer(&mut self, ctx: &mut Ctx, timer: Timer) {
        match timer {
            Timer::Beat => {
                let asked = self.running.stored.as_ref().map_or(0, |s| s.beat_ms);
                let every = if asked == 0 { BEAT_MS_DEFAULT } else { asked.clamp(100, 60_000) };
                ctx.wake(self.me(), self.boot, every.into(), Timer::Beat);
                self.beat(ctx, false);
            }
            Timer::Started { key, wanted, ok } => self.started(ctx, *key, &wanted, ok),
            Timer::LeaseEnd => {}
            Timer::Gone(key) => {
                self.running.parting.remove(&*key);
                self.running.changed = true;
            }
            Timer::Stored(assignment) => self.disk = Some(*assignment),
            other => ctx.fail(format!("a host was woken by {other:?}")),
        }
        self.turn(ctx);
    }

    /// The next heartbeat: a lease that comes for it counts from now.
    fn count(&mut self, ctx: &Ctx) {
        self.running.beat.seq += 1;
        let now = ctx.host_ms(self.number);
        self.running.lease.sent(self.running.beat.seq, now);
    }

    fn is_leased(&self, ctx: &Ctx) -> bool {
        self.running.lease.holds(ctx.host_ms(self.number), fence(self.running.stored.as_ref()).1)
    }

    /// What is strict and runs here, or may at once. A process that pauses does nothing, and looks at its lease first when
    /// it goes on.
    pub(crate) fn strict(&self, ctx: &Ctx) -> impl Iterator<Item = &Key> {
        let frozen = self.paused_until >= ctx.now && self.paused_until > 0;
        let over = ctx.host_ms(self.number) >= self.running.lease.until_ms();
        let running = (self.up && !(frozen && over)).then_some(&self.running);
        running
            .into_iter()
            .flat_map(|r| r.up.iter().filter(|(_, i)| i.strict).map(|(key, _)| key).chain(r.parting.keys()))
    }

    /// Stops it: at once, or, of what is strict, when the work under way is done, at the end of the lease at the latest.
    fn stop(&mut self, ctx: &mut Ctx, key: &Key) {
        let me = self.me();
        let Some(Instance { revision, strict: true, .. }) = self.running.up.remove(key) else { return };
        let left = self.running.lease.until_ms().saturating_sub(ctx.host_ms(self.number));
        let takes = ctx.dice.below(left.min(4_000) + 1);
        ctx.count("something strict stopped");
        self.running.parting.insert(key.clone(), revision);
        ctx.wake(me, self.boot, takes, Timer::Gone(Box::new(key.clone())));
    }

    /// What the loop of the agent does before it waits.
    fn turn(&mut self, ctx: &mut Ctx) {
        self.reconcile(ctx);
        self.look(ctx);
        if std::mem::take(&mut self.running.changed) {
            self.beat(ctx, false);
        }
    }

    /// What runs is what was assigned: strays are stopped at once, counts follow.
    fn look(&self, ctx: &mut Ctx) {
        let running = &self.running;
        for (key, instance) in &running.up {
            match running.wanted.get(key) {
                None => ctx.fail(format!("h{} runs {}/{}, which it was not assigned", self.number, key.0, key.1)),
                Some(w) if w.revision == instance.revision && w.replicas != instance.replicas => ctx.fail(format!(
                    "h{} runs {} replicas of {}/{}, not {}",
                    self.number, instance.replicas, key.0, key.1, w.replicas
                )),
                Some(_) => {}
            }
        }
    }

    /// The truth about a host that has the newest assignment: it never runs more than is placed on it.
    pub(crate) fn compare(&self, ctx: &mut Ctx, history: &History) {
        let state = &history.state;
        let Some(record) = state.hosts.get(&self.id) else { return };
        let newest = self.running.stored.as_ref().is_some_and(|s| s.generation == record.generation);
        if !self.up || !newest {
            return;
        }
        for (key, instance) in &self.running.up {
            let placed = state.placements.get(key).and_then(|hosts| hosts.get(&self.id)).map_or(0, |p| p.replicas);
            let turning = self.running.wanted.get(key).is_some_and(|w| w.revision != instance.revision);
            if instance.replicas > placed && !turning {
                let (n, app, component) = (instance.replicas, &key.0, &key.1);
                ctx.fail(format!("h{} runs {n} replicas of {app}/{component}, {placed} are placed there", self.number));
            }
        }
        ctx.count("host compared with the log");
    }

    /// Replicas of a component that run here; of one that changes its revision, those that are placed.
    pub(crate) fn truly_runs(&self, key: &Key, history: &History) -> u32 {
        let Some(instance) = self.running.up.get(key) else { return 0 };
        let turning = self.running.wanted.get(key).is_some_and(|w| w.revision != instance.revision);
        let placed = history.state.placements.get(key).and_then(|hosts| hosts.get(&self.id));
        if turning { placed.map_or(0, |p| p.replicas).min(instance.replicas) } else { instance.replicas }
    }

    pub(crate) fn greeting(&self) -> pb::Hello {
        let interfaces = Builtin::Keyvalue.interfaces().iter().map(|i| (*i).to_owned()).collect();
        let (arch, os) = (self.arch.to_owned(), "linux".to_owned());
        // Its port is another one after some starts.
        let port = 8_000 + self.boot / 3;
        pb::Hello {
            lattice: LATTICE.to_owned(),
            host: self.id.to_string(),
            name: format!("h{}", self.number),
            boot: self.running.beat.boot.clone(),
            labels: self.labels.clone(),
            facts: Some(pb::Facts { arch, os, interfaces, leases: true, ..Default::default() }),
            ingress: if self.ingress { format!("127.0.0.1:{port}") } else { String::new() },
            ingress_tls: false,
            term: self.running.beat.term,
            generation: self.running.beat.generation,
        }
    }

    fn hello(&self, ctx: &mut Ctx) {
        for member in (0..ctx.seats).filter(|m| ctx.up[*m]).collect::<Vec<_>>() {
            ctx.send(self.me(), Node::Member(member), Packet::Hello(self.greeting()));
        }
    }

    fn assign(&mut self, ctx: &mut Ctx, call: u64, member: usize, new: pb::Assignment) {
        let got = fence(Some(&new));
        let have = fence(self.running.stored.as_ref());
        let verdict = accept(self.running.stored.as_ref(), &new, LATTICE, self.id.as_str());
        ctx.note(|| format!("h{} is assigned {got:?} on {have:?}: {verdict:?}", self.number));
        let error = match verdict {
            Verdict::Same => {
                ctx.count("assignment confirmed again");
                String::new()
            }
            Verdict::Refuse(why) => {
                ctx.count("stale assignment refused");
                if got.0 > have.0 {
                    ctx.count("assignment of a leader that lags refused");
                }
                why
            }
            Verdict::Accept => {
                if got < have || got.1 < have.1 {
                    ctx.fail(format!("host h{} went back from {have:?} to {got:?}", self.number));
                }
                if ctx.faults && ctx.dice.percent(ctx.params.store_crashes) {
                    return self.crash_in_store(ctx, new);
                }
                if built_in(Fault::ConfirmedBeforeStored) {
                    ctx.wake(self.me(), self.boot, 300, Timer::Stored(Box::new(new.clone())));
                } else {
                    self.disk = Some(new.clone());
                }
                self.adopt(new);
                String::new()
            }
        };
        let (term, generation) = fence(self.running.stored.as_ref());
        let accepted = error.is_empty();
        if accepted {
            self.confirmed = self.confirmed.max((term, generation));
        }
        let assigned = pb::Assigned { accepted, term, generation, error };
        ctx.send(self.me(), Node::Member(member), Packet::Assigned { call, assigned });
        self.turn(ctx);
    }

    /// The power goes while it stores: the old one is there, or the new one, or neither can be read.
    fn crash_in_store(&mut self, ctx: &mut Ctx, new: pb::Assignment) {
        ctx.count("crash while storing");
        let torn = match ctx.dice.below(3) {
            0 => false,
            1 => {
                self.disk = Some(new);
                false
            }
            _ => true,
        };
        self.crash(ctx, torn);
        let down = ctx.dice.between(500, 15_000);
        ctx.wake(self.me(), 0, down, Timer::Restart);
    }

    fn adopt(&mut self, assignment: pb::Assignment) {
        let running = &mut self.running;
        running.wanted = wanted(&assignment).expect("an assignment is checked before it is adopted");
        running.failed.retain(|k, f| running.wanted.get(k).is_some_and(|w| w.revision == f.0));
        running.stored = Some(assignment);
        running.changed = true;
    }

    fn reconcile(&mut self, ctx: &mut Ctx) {
        let me = self.me();
        let leased = self.is_leased(ctx);
        let running = &mut self.running;
        let have: BTreeMap<Key, Have> =
            running.up.iter().map(|(k, i)| (k.clone(), Have { revision: i.revision, replicas: i.replicas })).collect();
        let mut busy = running.starting.clone();
        busy.extend(running.failed.iter().filter(|(_, f)| f.2 > ctx.now).map(|(k, f)| (k.clone(), f.0)));
        let all = actions(&running.wanted, &have, &busy, leased);
        for action in all {
            let running = &mut self.running;
            match action {
                Action::Stop(key) => {
                    running.changed = true;
                    self.stop(ctx, &key);
                }
                Action::Scale(key, replicas) => {
                    if let Some(instance) = running.up.get_mut(&key) {
                        instance.replicas = replicas;
                    }
                    running.changed = true;
                }
                Action::Start(key, wanted) => {
                    let waits = running.starting.contains_key(&key) || running.parting.contains_key(&key);
                    if running.starting.len() >= STARTS_MAX || waits && !built_in(Fault::StrictOverlaps) {
                        continue;
                    }
                    running.starting.insert(key.clone(), wanted.revision);
                    let bad = wanted.app.components[&key.1].config.get("start").is_some_and(|s| s == "fails");
                    let tries = running.failed.get(&key).map_or(0, |f| f.1);
                    // Chance fails a few times only: waits would grow beyond what the end of a run allows.
                    let unlucky = ctx.faults && tries < 2 && ctx.dice.percent(ctx.params.start_fails);
                    let most = if ctx.faults { ctx.params.start_ms } else { ctx.params.start_ms.min(800) };
                    let takes = 1 + ctx.dice.below(most);
                    let (key, wanted, ok) = (Box::new(key), Box::new(wanted), !bad && !unlucky);
                    ctx.wake(me, self.boot, takes, Timer::Started { key, wanted, ok });
                }
            }
        }
    }

    fn started(&mut self, ctx: &mut Ctx, key: Key, started: &Wanted, ok: bool) {
        let leased = self.is_leased(ctx);
        let running = &mut self.running;
        running.changed = true;
        running.starting.remove(&key);
        if ok {
            if !running.wanted.contains_key(&key) || started.strict && !leased {
                ctx.count("started for nothing");
                return;
            }
            running.failed.remove(&key);
            let Wanted { revision, replicas, strict, app } = started.clone();
            if strict && running.up.contains_key(&key) {
                let (number, app, component) = (self.number, &key.0, &key.1);
                ctx.fail(format!("h{number} runs two revisions of {app}/{component}, which is strict"));
            }
            running.up.insert(key, Instance { revision, replicas, strict, app });
            return;
        }
        ctx.count("start failed");
        let tries = running.failed.get(&key).filter(|f| f.0 == started.revision).map_or(0, |f| f.1) + 1;
        let wait = (RETRY_MIN_MS << tries.min(6)).min(RETRY_MAX_MS);
        running.failed.insert(key, (started.revision, tries, ctx.now + wait));
    }

    fn beat(&mut self, ctx: &mut Ctx, leaving: bool) {
        let items = self.inventory();
        self.count(ctx);
        let running = &mut self.running;
        let beat = &mut running.beat;
        let changed = items != running.bare || beat.seq == 1;
        if changed {
            running.bare.clone_from(&items);
            beat.inventory_version += 1;
        }
        (beat.term, beat.generation) = fence(running.stored.as_ref());
        beat.leaving = leaving;
        beat.inventory = Some(pb::Inventory { items });
        if !self.connected {
            return;
        }
        let full = changed || beat.seq.is_multiple_of(FULL_EVERY);
        let beat = pb::Beat { inventory: beat.inventory.clone().filter(|_| full), ..beat.clone() };
        for member in (0..ctx.seats).filter(|m| ctx.up[*m]).collect::<Vec<_>>() {
            ctx.send(self.me(), Node::Member(member), Packet::Beat(beat.clone()));
        }
    }

    fn inventory(&self) -> Vec<pb::Running> {
        let item = |key: &Key, revision, replicas, state: pb::RunState| pb::Running {
            app: key.0.to_string(),
            component: key.1.to_string(),
            revision,
            replicas,
            state: state.into(),
            ..Default::default()
        };
        let running = &self.running;
        let mut items: Vec<pb::Running> =
            running.up.iter().map(|(k, i)| item(k, i.revision, i.replicas, pb::RunState::Running)).collect();
        for (key, want) in &running.wanted {
            if running.up.get(key).is_some_and(|i| i.revision == want.revision) {
                continue;
            }
            let failed = running.failed.get(key).is_some_and(|f| f.0 == want.revision);
            let state = if failed { pb::RunState::Failed } else { pb::RunState::Starting };
            items.push(item(key, want.revision, want.replicas, state));
        }
        let unwanted = running.starting.iter().filter(|(key, _)| !running.wanted.contains_key(*key));
        let stopping = running.parting.iter().chain(unwanted);
        items.extend(stopping.map(|(key, revision)| item(key, *revision, 1, pb::RunState::Stopping)));
        items
    }
}
