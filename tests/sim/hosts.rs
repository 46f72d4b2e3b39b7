//! A host as `host/src/agent` runs one, without threads, engine and disk: the real cores, `keeper` and `beats`, between a
//! stored assignment, starts that take time, and the bus. Must never decide anything that they decide.

use crate::assignment::{Action, Key, Verdict, Wanted};
use crate::beats::{Beats, Now};
use crate::ctx::{Ctx, LATTICE, Node, Packet, Timer, host_id};
use crate::history::History;
use crate::keeper::{Came, Keeper, item};
use crate::lease::STOP_MS;
use proto::app::{App, Builtin, HostId};
use proto::fault::{Fault, built_in};
use proto::v1 as pb;
use std::collections::BTreeMap;
use std::sync::Arc;

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
    pub(crate) keeper: Keeper,
    beats: Beats,
    /// What each that is up was started from.
    pub(crate) apps: BTreeMap<Key, Arc<App>>,
    /// How often each was tried in vain.
    tries: BTreeMap<Key, u32>,
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
        let number = if built_in(Fault::BootsGoBack) { 1_000_000 - self.boot } else { self.boot };
        let boot = ulid::Ulid::from(u128::from(number) << 80 | self.number as u128).to_string();
        let beats = Beats::new(LATTICE.to_owned(), self.id.to_string(), boot);
        self.running = Running { keeper: Keeper::new(), beats, ..Running::default() };
        ctx.note(|| format!("h{} starts, boot {}, stored {stored:?}", self.number, self.boot));
        if let Some(stored) = self.disk.clone()
            && let (Verdict::Accept, wanted) = self.running.keeper.judge(&stored, LATTICE, self.id.as_str())
        {
            ctx.count("started from the last assignment");
            self.running.keeper.adopt(stored, wanted);
        }
        ctx.wake(self.me(), self.boot, self.running.keeper.beat_ms().into(), Timer::Beat);
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
            self.running.keeper.change();
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
                if self.running.beats.grant(&lease).is_ok() {
                    let left = self.running.beats.lease().until_ms().saturating_sub(ctx.host_ms(self.number));
                    // As often as the loop looks.
                    let look = 1 + ctx.dice.below(200);
                    ctx.wake(self.me(), self.boot, left.saturating_sub(STOP_MS) + look, Timer::LeaseEnd);
                    self.turn(ctx);
                }
            }
            Packet::AskInventory { call, member } => {
                let beat = self.running.beats.latest(ctx.host_ms(self.number));
                ctx.send(self.me(), Node::Member(member), Packet::AnswerInventory { call, beat });
            }
            other => ctx.fail(format!("a host was sent {other:?}")),
        }
    }

    pub(crate) fn timer(&mut self, ctx: &mut Ctx, timer: Timer) {
        match timer {
            Timer::Beat => {
                ctx.wake(self.me(), self.boot, self.running.keeper.beat_ms().into(), Timer::Beat);
                self.beat(ctx, false);
            }
            Timer::Started { key, wanted, ok } => self.started(ctx, *key, &wanted, ok),
            Timer::LeaseEnd => {}
            Timer::Gone(key) => self.running.keeper.parted(Some(&*key)),
            Timer::Stored(assignment) => self.disk = Some(*assignment),
            other => ctx.fail(format!("a host was woken by {other:?}")),
        }
        self.turn(ctx);
    }

    fn is_leased(&self, ctx: &Ctx) -> bool {
        self.running.beats.lease().holds(ctx.host_ms(self.number), self.running.keeper.fence().1)
    }

    /// What is strict and runs here, or may at once. A process that pauses does nothing, and looks at its lease first when
    /// it goes on.
    pub(crate) fn strict(&self, ctx: &Ctx) -> impl Iterator<Item = &Key> {
        let frozen = self.paused_until >= ctx.now && self.paused_until > 0;
        let over = ctx.host_ms(self.number) >= self.running.beats.lease().until_ms();
        let running = (self.up && !(frozen && over)).then_some(&self.running.keeper);
        running
            .into_iter()
            .flat_map(|k| k.up().iter().chain(k.parting()).filter(|(_, have)| have.strict).map(|(key, _)| key))
    }

    pub(crate) fn runs_strict(&self, ctx: &Ctx) -> bool {
        self.strict(ctx).next().is_some()
    }

    /// What is strict, and parting: it is gone when the work under way is done, at the end of the lease at the latest.
    fn part(&mut self, ctx: &mut Ctx, key: &Key) {
        let left = self.running.beats.lease().until_ms().saturating_sub(ctx.host_ms(self.number));
        let takes = ctx.dice.below(left.min(4_000) + 1);
        ctx.count("something strict stopped");
        ctx.wake(self.me(), self.boot, takes, Timer::Gone(Box::new(key.clone())));
    }

    /// What the loop of the agent does before it waits.
    fn turn(&mut self, ctx: &mut Ctx) {
        self.reconcile(ctx);
        self.look(ctx);
        if self.running.keeper.has_changed() {
            self.beat(ctx, false);
        }
    }

    /// What runs is what was assigned: strays are stopped at once, counts follow.
    fn look(&self, ctx: &mut Ctx) {
        let keeper = &self.running.keeper;
        for (key, instance) in keeper.up() {
            match keeper.wanted().get(key) {
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
        let newest = self.running.keeper.stored().is_some_and(|s| s.generation == record.generation);
        if !self.up || !newest {
            return;
        }
        let keeper = &self.running.keeper;
        for (key, instance) in keeper.up() {
            let placed = state.placements.get(key).and_then(|hosts| hosts.get(&self.id)).map_or(0, |p| p.replicas);
            let turning = keeper.wanted().get(key).is_some_and(|w| w.revision != instance.revision);
            if instance.replicas > placed && !turning {
                let (n, app, component) = (instance.replicas, &key.0, &key.1);
                ctx.fail(format!("h{} runs {n} replicas of {app}/{component}, {placed} are placed there", self.number));
            }
        }
        ctx.count("host compared with the log");
    }

    /// Replicas of a component that run here; of one that changes its revision, those that are placed.
    pub(crate) fn truly_runs(&self, key: &Key, history: &History) -> u32 {
        let keeper = &self.running.keeper;
        let Some(instance) = keeper.up().get(key) else { return 0 };
        let turning = keeper.wanted().get(key).is_some_and(|w| w.revision != instance.revision);
        let placed = history.state.placements.get(key).and_then(|hosts| hosts.get(&self.id));
        if turning { placed.map_or(0, |p| p.replicas).min(instance.replicas) } else { instance.replicas }
    }

    pub(crate) fn greeting(&self) -> pb::Hello {
        let interfaces = Builtin::Keyvalue.interfaces().iter().map(|i| (*i).to_owned()).collect();
        let (arch, os) = (self.arch.to_owned(), "linux".to_owned());
        // Its port is another one after some starts.
        let port = 8_000 + self.boot / 3;
        let (term, generation) = self.running.beats.fence();
        pb::Hello {
            lattice: LATTICE.to_owned(),
            host: self.id.to_string(),
            name: format!("h{}", self.number),
            boot: self.running.beats.boot().to_owned(),
            labels: self.labels.clone(),
            facts: Some(pb::Facts { arch, os, interfaces, leases: true, ..Default::default() }),
            ingress: if self.ingress { format!("127.0.0.1:{port}") } else { String::new() },
            ingress_tls: false,
            term,
            generation,
        }
    }

    fn hello(&self, ctx: &mut Ctx) {
        for member in (0..ctx.seats).filter(|m| ctx.up[*m]).collect::<Vec<_>>() {
            ctx.send(self.me(), Node::Member(member), Packet::Hello(self.greeting()));
        }
    }

    fn assign(&mut self, ctx: &mut Ctx, call: u64, member: usize, new: pb::Assignment) {
        let got = fence(Some(&new));
        let have = self.running.keeper.fence();
        let (verdict, wanted) = self.running.keeper.judge(&new, LATTICE, self.id.as_str());
        ctx.note(|| format!("h{} is assigned {got:?} on {have:?}: {verdict:?}", self.number));
        let error = match verdict {
            Verdict::Same => {
                ctx.count("assignment confirmed again");
                String::new()
            }
            Verdict::Refuse(why) => {
                ctx.count("stale assignment refused");
                if got.0 > have.0 && got.1 < have.1 {
                    ctx.fail(format!(
                        "a leader in term {} sent h{} generation {} after {have:?}",
                        got.0, self.number, got.1
                    ));
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
                self.running.keeper.adopt(new, wanted);
                String::new()
            }
        };
        let (term, generation) = self.running.keeper.fence();
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

    fn reconcile(&mut self, ctx: &mut Ctx) {
        let (now_ms, leased) = (ctx.host_ms(self.number), self.is_leased(ctx));
        for action in self.running.keeper.due(now_ms, leased) {
            match action {
                Action::Stop(key) => {
                    self.running.apps.remove(&key);
                    if self.running.keeper.parting().contains_key(&key) {
                        self.part(ctx, &key);
                    }
                }
                Action::Scale(..) => {}
                Action::Start(key, wanted) => {
                    let bad = wanted.app.components[&key.1].config.get("start").is_some_and(|s| s == "fails");
                    // Chance fails a few times only: waits would grow beyond what the end of a run allows.
                    let tries = self.running.tries.get(&key).copied().unwrap_or(0);
                    let unlucky = ctx.faults && tries < 2 && ctx.dice.percent(ctx.params.start_fails);
                    let most = if ctx.faults { ctx.params.start_ms } else { ctx.params.start_ms.min(800) };
                    let takes = 1 + ctx.dice.below(most);
                    let (key, wanted, ok) = (Box::new(key), Box::new(wanted), !bad && !unlucky);
                    ctx.wake(self.me(), self.boot, takes, Timer::Started { key, wanted, ok });
                }
            }
        }
    }

    fn started(&mut self, ctx: &mut Ctx, key: Key, started: &Wanted, ok: bool) {
        let (now_ms, leased) = (ctx.host_ms(self.number), self.is_leased(ctx));
        let result = if ok { Ok(()) } else { Err("it fails".to_owned()) };
        let before = self.running.keeper.up().get(&key).copied();
        let came = self.running.keeper.started(&key, started, result, now_ms, leased);
        match came {
            Came::Up => {
                if before.is_some_and(|before| before.strict || started.strict) {
                    let (number, app, component) = (self.number, &key.0, &key.1);
                    ctx.fail(format!("h{number} runs two revisions of {app}/{component}, one of them strict"));
                }
                self.running.tries.remove(&key);
                self.running.apps.insert(key, started.app.clone());
            }
            Came::Unwanted => {
                ctx.count("started for nothing");
                // Nobody was let in: it is gone at once.
                if started.strict {
                    self.running.keeper.parted(Some(&key));
                }
            }
            Came::Failed => {
                ctx.count("start failed");
                *self.running.tries.entry(key).or_default() += 1;
            }
        }
    }

    /// A heartbeat that waited for the bus would be old news: it is made and dropped.
    fn beat(&mut self, ctx: &mut Ctx, leaving: bool) {
        let keeper = &mut self.running.keeper;
        let new = keeper.take_changed() || leaving || self.running.beats.is_full_next();
        let inventory = new.then(|| {
            let up = keeper.up().iter().map(|(k, up)| item(k, up.revision, up.replicas, pb::RunState::Running));
            up.chain(keeper.not_up()).collect()
        });
        let now = Now { fence: keeper.fence(), leaving, ..Now::default() };
        let beat = self.running.beats.next(inventory, now, ctx.host_ms(self.number));
        if !self.connected {
            return;
        }
        for member in (0..ctx.seats).filter(|m| ctx.up[*m]).collect::<Vec<_>>() {
            ctx.send(self.me(), Node::Member(member), Packet::Beat(beat.clone()));
        }
    }
}
