//! Everything together under one seed: hosts, schedulers, clients, what goes wrong, and the end of it, after which the
//! lattice must come to rest as it should.

use crate::ambush::{Ambush, Snare};
use crate::clients::{Clients, Wish, repaired};
use crate::crowd::{self, Crowd};
use crate::ctx::{Ctx, Event, Node, Packet, Timer, Undo, What};
use crate::history::History;
use crate::hosts::Host;
use crate::operators::Operators;
use crate::params::Params;
use crate::seat::Seat;
use crate::settled::{self, REST_MS};
use crate::watch::Watchers;
use proto::v1 as pb;
use proto::v1::command;

/// Time in which nothing may be planned after that.
const QUIET_MS: u64 = 30_000;
/// Until each host that lives has been heard again: before that, one whose silence runs out is rightly lost.
const HEARD_MS: u64 = 3_000;
/// Time for clients to get the answers they wait for.
const ANSWERS_MS: u64 = 20_000;
/// Hosts that stay dead for good: more at once would rightly be taken for a broken bus.
const DEAD_MAX: usize = 2;

pub(crate) struct World {
    pub(crate) ctx: Ctx,
    pub(crate) hosts: Vec<Host>,
    pub(crate) seats: Vec<Seat>,
    clients: Clients,
    pub(crate) operators: Operators,
    watchers: Watchers,
    crowd: Crowd,
    pub(crate) history: History,
    /// A host that is cut off until its leader calls it lost.
    pub(crate) ambush: Option<Ambush>,
    pub(crate) snare: Option<Snare>,
    /// Nothing more goes wrong before.
    pub(crate) lull_until: u64,
    /// Hosts that never start again.
    dead: Vec<bool>,
    /// Milliseconds that it took to come to rest.
    pub(crate) rested_ms: u64,
}

impl World {
    pub(crate) fn new(params: Params, trace: bool, print: bool) -> Self {
        let mut ctx = Ctx::new(params.clone(), trace, print);
        ctx.note(|| format!("{params:?}"));
        let hosts: Vec<Host> = (0..params.hosts).map(|number| Host::new(number, &mut ctx)).collect();
        let founders: Vec<u64> = (1..=params.founders as u64).collect();
        let seat = |number: usize| Seat::new(number, founders[number], founders.clone());
        let seats: Vec<Seat> = (0..params.founders).map(seat).collect();
        seats.iter().for_each(|s| ctx.ids[s.number] = s.id);
        let (operators, watchers) = (Operators::new(&mut ctx), Watchers::new(&mut ctx));
        let dead = vec![false; params.hosts];
        let (clients, history, crowd) = (Clients::default(), History::default(), Crowd::default());
        Self {
            ctx,
            hosts,
            seats,
            clients,
            operators,
            watchers,
            crowd,
            history,
            ambush: None,
            snare: None,
            lull_until: 0,
            dead,
            rested_ms: 0,
        }
    }

    /// Runs this seed to its end, or to the first thing that is wrong.
    pub(crate) fn run(&mut self) {
        for number in 0..self.hosts.len() {
            let late = self.ctx.dice.below(5_000);
            self.ctx.wake(Node::Host(number), 0, late, Timer::Restart);
        }
        for number in 0..self.seats.len() {
            self.ctx.wake(Node::Member(number), 0, 0, Timer::Restart);
        }
        self.ctx.wake(Node::Client, 0, 1_000, Timer::NextRequest);
        self.ctx.wake(Node::World, 0, 3_000, Timer::NextFault);
        self.ctx.wake(Node::World, 0, crowd::EVERY_MS, Timer::Count);
        self.advance(self.ctx.params.faults_ms);
        self.heal();
        self.answers();
        // A member that lags may refuse what the others would take: they try again.
        for _ in 0..3 {
            self.repair();
            self.answers();
        }
        self.rest();
        if self.ctx.failure.is_some() {
            self.tell();
        }
    }

    /// What clients saw until now, put before the checker: also of a run that ended early.
    #[cfg(feature = "seeded-faults")]
    pub(crate) fn check_order(&mut self) {
        self.clients.check_order(&mut self.ctx);
    }

    fn advance(&mut self, ms: u64) {
        let until = self.ctx.now + ms;
        while self.ctx.failure.is_none()
            && let Some(event) = self.ctx.pop(until)
        {
            self.event(event);
        }
    }

    fn event(&mut self, event: Event) {
        match event.node {
            Node::Host(number) => self.host_event(number, event),
            Node::Member(number) => {
                if let What::Packet(packet) = &event.what
                    && let Packet::Beat(beat) = &**packet
                    && beat.leaving
                {
                    self.ctx.count("goodbye heard");
                }
                let Some(seat) = self.seats.get_mut(number) else { return };
                let boot = seat.boot;
                seat.event(&mut self.ctx, &mut self.history, event);
                self.look_at_start(number, boot);
                self.look_at_ambush(number);
            }
            Node::Client => self.client_event(event),
            Node::World => match event.what {
                What::Timer(Timer::NextFault) => self.next_fault(),
                What::Timer(Timer::NextChange) => {
                    let Self { ctx, clients, history, seats, operators, .. } = self;
                    operators.step(ctx, clients, history, seats);
                }
                What::Timer(Timer::Undo(undo)) => self.undo(undo),
                What::Timer(Timer::Strike(number)) => self.strike(number),
                What::Timer(Timer::Count) => {
                    self.ctx.wake(Node::World, 0, crowd::EVERY_MS, Timer::Count);
                    let Self { ctx, crowd, seats, hosts, history, .. } = self;
                    crowd.look(ctx, seats, hosts, history);
                }
                other => self.ctx.fail(format!("the world was sent {other:?}")),
            },
        }
    }

    /// What others had sent to a scheduler that starts again was lost with its connections, and they see it then at the
    /// latest.
    fn look_at_start(&mut self, number: usize, boot_before: u64) {
        let seat = &self.seats[number];
        self.ctx.up[number] = seat.up();
        if !seat.up() || seat.boot == boot_before {
            return;
        }
        let id = seat.id;
        let others = self.seats.iter().filter(|seat| seat.number != number);
        others.filter_map(|seat| seat.process.as_ref()).for_each(|process| process.handle.unreachable(id));
    }

    fn client_event(&mut self, event: Event) {
        let Self { ctx, clients, history, seats, watchers, .. } = self;
        match event.what {
            What::Packet(packet) => match *packet {
                Packet::Answer { intent, told } => clients.answer(ctx, history, intent, told),
                other => ctx.fail(format!("a client was sent {other:?}")),
            },
            What::Timer(Timer::Retry { intent, attempt }) => clients.retry(ctx, intent, attempt),
            What::Timer(Timer::NextRequest) => clients.next_request(ctx, history),
            What::Timer(Timer::Watch(number)) => watchers.step(ctx, seats, number),
            What::Timer(other) => ctx.fail(format!("a client was woken by {other:?}")),
        }
    }

    /// The truth about what is strict: nowhere twice.
    fn look_at_strict(&mut self, number: usize) {
        let here: Vec<_> = self.hosts[number].strict(&self.ctx).cloned().collect();
        for (at, key) in here.iter().enumerate() {
            let others = self.hosts.iter().filter(|h| h.number != number);
            let other = others.filter(|h| h.strict(&self.ctx).any(|k| k == key)).map(|h| h.number).next();
            if let Some(other) = other.or_else(|| here[..at].contains(key).then_some(number)) {
                let (app, component) = key;
                self.ctx.fail(format!("{app}/{component} is strict and runs on h{number} and h{other}"));
            }
        }
        if !here.is_empty() {
            self.ctx.count("something strict ran");
        }
    }

    fn host_event(&mut self, number: usize, event: Event) {
        self.host_does(number, event);
        self.look_at_strict(number);
    }

    fn host_does(&mut self, number: usize, event: Event) {
        let (ctx, host) = (&mut self.ctx, &mut self.hosts[number]);
        if let What::Timer(Timer::Restart) = event.what {
            if !self.dead[number] {
                host.start(ctx);
            }
            return;
        }
        if !host.up || (event.boot != 0 && event.boot != host.boot) {
            return;
        }
        if host.paused_until > ctx.now {
            return ctx.postpone(event, host.paused_until);
        }
        match event.what {
            What::Packet(packet) => {
                let (assigned, leased) =
                    (matches!(*packet, Packet::Assign { .. }), matches!(*packet, Packet::Lease(_)));
                host.packet(ctx, *packet);
                if assigned {
                    host.compare(ctx, &self.history);
                }
                if leased {
                    self.look_at_snare(number);
                }
            }
            What::Timer(timer) => host.timer(ctx, timer),
        }
    }

    /// Nothing goes wrong from here on; a few hosts stay dead.
    fn heal(&mut self) {
        if self.ctx.failure.is_some() {
            return;
        }
        self.ctx.faults = false;
        self.ambush = None;
        // Who pauses still, wakes first.
        let paused = self.hosts.iter().map(|h| h.paused_until);
        let paused = paused.chain(self.seats.iter().map(|s| s.paused_until)).max().unwrap_or(0);
        self.advance(paused.saturating_sub(self.ctx.now));
        self.ctx.note(|| "healed".into());
        Self::end_trouble(&mut self.ctx);
        for number in 0..self.seats.len() {
            let seat = &mut self.seats[number];
            seat.disk.survive();
            seat.disk.mend();
            let boot = seat.boot;
            seat.start(&mut self.ctx, &mut self.history);
            self.look_at_start(number, boot);
        }
        for number in 0..self.hosts.len() {
            let dead = self.dead.iter().filter(|d| **d).count();
            self.undo(Undo::Host(number));
            if !self.hosts[number].up && dead < DEAD_MAX && self.ctx.dice.percent(40) {
                self.dead[number] = true;
            } else {
                self.hosts[number].start(&mut self.ctx);
            }
        }
        self.undo(Undo::Bus);
    }

    /// Clients get every answer they wait for.
    fn answers(&mut self) {
        let until = self.ctx.now + ANSWERS_MS;
        let idle = |s: &Self| s.clients.open() == 0 && s.operators.idle(&s.history, &s.seats);
        while self.ctx.failure.is_none() && self.ctx.now < until && !idle(self) {
            self.advance(500);
        }
        if self.clients.open() > 0 {
            self.ctx.fail(format!("{} requests got no answer within {ANSWERS_MS} ms", self.clients.open()));
        }
    }

    /// What operators do when it is quiet again: end most drains, put right what can not start.
    fn repair(&mut self) {
        let state = self.history.state.clone();
        for (id, host) in state.hosts.iter().filter(|(_, h)| h.cordoned) {
            if self.ctx.dice.percent(70) {
                let host = if host.draining { id.to_string() } else { host.hello.name.clone() };
                let off = pb::SetCordon { host, cordoned: false, draining: false };
                self.clients.begin(&mut self.ctx, Wish::Write(command::What::SetCordon(off)));
            }
        }
        for app in state.apps.values().filter(|a| !a.deleting) {
            if let Some(apply) = repaired(app.spec()) {
                self.clients.begin(&mut self.ctx, apply);
            }
        }
    }

    fn rest(&mut self) {
        let from = self.ctx.now;
        self.advance(HEARD_MS);
        let mut rested = Err("it was not looked at".to_owned());
        while rested.is_err() && self.ctx.now < from + REST_MS && self.ctx.failure.is_none() {
            self.advance(500);
            let now = settled::check(&self.ctx, &self.seats, &self.hosts);
            if now != rested {
                self.ctx.note(|| format!("at rest: {now:?}"));
            }
            rested = now;
        }
        if let Err(why) = rested {
            return self.ctx.fail(format!("not at rest after {REST_MS} ms: {why}"));
        }
        self.rested_ms = self.ctx.now - from;
        let plans = self.history.plans;
        self.advance(QUIET_MS);
        if self.history.plans != plans {
            self.ctx.fail(format!("{} more plans after it had come to rest", self.history.plans - plans));
        }
        if let Err(why) = settled::check(&self.ctx, &self.seats, &self.hosts) {
            self.ctx.fail(format!("no longer at rest: {why}"));
        }
        let (ctx, history) = (&mut self.ctx, &self.history);
        self.clients.check(ctx, history);
        for process in self.seats.iter().filter_map(|s| s.process.as_ref()) {
            history.compare(ctx, process.number, &process.replica.read());
        }
    }

    fn tell(&mut self) {
        let failure = self.ctx.failure.clone().unwrap_or_default();
        for line in settled::told(&self.history.state) {
            self.ctx.note(|| line);
        }
        for seat in &self.seats {
            let status = seat.process.as_ref().map(|p| p.status(|s| format!("{s:?}")));
            self.ctx.note(|| format!("s{} is {}: {}", seat.number, seat.id, status.as_deref().unwrap_or("down")));
        }
        self.ctx.note(|| failure);
    }
}
