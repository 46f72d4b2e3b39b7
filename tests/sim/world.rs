//! Everything together under one seed: hosts, schedulers, clients, what goes wrong, and the end of it, after which the
//! lattice must come to rest as it should.

use crate::clients::{Clients, repaired};
use crate::ctx::{Ctx, Event, Mutation, Node, Packet, Params, Timer, Undo, What};
use crate::history::History;
use crate::hosts::Host;
use crate::log::{Log, Ordered};
use crate::members::Member;
use crate::quorum::Quorum;
use crate::settled::{self, REST_MS};
use proto::v1 as pb;
use proto::v1::command;

/// Time in which nothing may be planned after that.
const QUIET_MS: u64 = 30_000;
/// Time for clients to get the answers they wait for.
const ANSWERS_MS: u64 = 15_000;
/// Hosts that stay dead for good: more at once would rightly be taken for a broken bus.
const DEAD_MAX: usize = 2;

pub(crate) struct World {
    pub(crate) ctx: Ctx,
    hosts: Vec<Host>,
    members: Vec<Member>,
    clients: Clients,
    history: History,
    /// Hosts that never start again.
    dead: Vec<bool>,
    /// Milliseconds that it took to come to rest.
    pub(crate) rested_ms: u64,
}

impl World {
    pub(crate) fn new(params: Params, mutation: Option<Mutation>, trace: bool, print: bool) -> Self {
        let mut ctx = Ctx::new(params.clone(), mutation, trace, print);
        ctx.note(|| format!("{params:?}"));
        let hosts: Vec<Host> = (0..params.hosts).map(|number| Host::new(number, &mut ctx)).collect();
        let log = |number: usize| -> Box<dyn Log> {
            if params.members == 1 {
                return Box::new(Ordered::new(params.snapshot_entries));
            }
            Box::new(Quorum::new(number as u64 + 1, params.members, params.seed, params.snapshot_entries))
        };
        let members = (0..params.members).map(|number| Member::new(number, log(number))).collect();
        let dead = vec![false; params.hosts];
        Self { ctx, hosts, members, clients: Clients::default(), history: History::default(), dead, rested_ms: 0 }
    }

    /// Runs this seed to its end, or to the first thing that is wrong.
    pub(crate) fn run(&mut self) {
        for number in 0..self.hosts.len() {
            let late = self.ctx.dice.below(5_000);
            self.ctx.wake(Node::Host(number), 0, late, Timer::Restart);
        }
        for number in 0..self.members.len() {
            self.ctx.wake(Node::Member(number), 0, 0, Timer::Restart);
        }
        self.ctx.wake(Node::Client, 0, 1_000, Timer::NextRequest);
        self.ctx.wake(Node::World, 0, 3_000, Timer::NextFault);
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
            Node::Member(number) => self.member_event(number, event),
            Node::Client => match event.what {
                What::Packet(packet) => self.clients.packet(&mut self.ctx, &self.history, *packet),
                What::Timer(timer) => self.clients.timer(&mut self.ctx, &self.history, timer),
            },
            Node::World => match event.what {
                What::Timer(Timer::NextFault) => self.next_fault(),
                What::Timer(Timer::Undo(undo)) => self.undo(undo),
                other => self.ctx.fail(format!("the world was sent {other:?}")),
            },
        }
    }

    fn host_event(&mut self, number: usize, event: Event) {
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
            What::Packet(packet) => host.packet(ctx, *packet),
            What::Timer(timer) => host.timer(ctx, timer),
        }
    }

    fn member_event(&mut self, number: usize, event: Event) {
        let (ctx, member) = (&mut self.ctx, &mut self.members[number]);
        if let What::Timer(Timer::Restart) = event.what {
            return member.start(ctx, &mut self.history);
        }
        if !member.up || (event.boot != 0 && event.boot != member.boot) {
            return;
        }
        let mark = ctx.mark();
        match event.what {
            What::Packet(packet) => {
                if let Packet::Beat(beat) = &*packet
                    && beat.leaving
                {
                    ctx.count("goodbye heard");
                }
                member.packet(ctx, &mut self.history, *packet);
            }
            What::Timer(timer) => member.timer(ctx, &mut self.history, timer),
        }
        if member.doomed {
            // What the others were told in the same moment may not have left the machine.
            if ctx.dice.percent(50) {
                ctx.unsend(number, mark);
            }
            self.crash_member(number);
        }
    }

    fn next_fault(&mut self) {
        if !self.ctx.faults {
            return;
        }
        let wait = 1 + self.ctx.dice.below(2 * self.ctx.params.fault_every_ms);
        self.ctx.wake(Node::World, 0, wait, Timer::NextFault);
        let number = self.ctx.dice.index(self.hosts.len());
        match self.ctx.dice.below(100) {
            0..25 => self.crash_host(number, 30_000),
            25..32 => {
                let down = self.ctx.dice.between(1_000, 40_000);
                self.hosts[number].leave(&mut self.ctx);
                self.ctx.wake(Node::Host(number), 0, down, Timer::Restart);
            }
            32..42 => {
                let pause = self.ctx.dice.between(500, 20_000);
                self.hosts[number].paused_until = self.ctx.now + pause;
                self.ctx.note(|| format!("h{number} pauses for {pause} ms"));
                self.ctx.count("host paused");
            }
            42..60 => self.cut_host(number),
            60..66 => self.stop_bus(),
            66..70 => (0..self.hosts.len()).for_each(|number| {
                if self.ctx.dice.percent(70) {
                    self.crash_host(number, 25_000);
                }
            }),
            70..88 => {
                let number = self.ctx.dice.index(self.members.len());
                self.crash_member(number);
            }
            _ => {
                let number = self.ctx.dice.index(self.members.len());
                let cut = self.ctx.dice.between(500, 15_000);
                self.ctx.net.isolated[number] = true;
                self.ctx.note(|| format!("s{number} is isolated for {cut} ms"));
                self.ctx.count("scheduler isolated");
                self.ctx.wake(Node::World, 0, cut, Timer::Undo(Undo::Member(number)));
            }
        }
    }

    fn crash_host(&mut self, number: usize, most_ms: u64) {
        let (ctx, host) = (&mut self.ctx, &mut self.hosts[number]);
        let torn = ctx.dice.percent(15);
        host.crash(ctx, torn);
        if ctx.dice.percent(10) {
            let zone = (*ctx.dice.pick(&["a", "b"])).to_owned();
            host.labels.insert("zone".into(), zone);
        }
        let down = ctx.dice.between(200, most_ms);
        ctx.wake(Node::Host(number), 0, down, Timer::Restart);
    }

    fn crash_member(&mut self, number: usize) {
        self.members[number].crash(&mut self.ctx);
        let down = self.ctx.dice.between(200, 12_000);
        self.ctx.wake(Node::Member(number), 0, down, Timer::Restart);
    }

    fn cut_host(&mut self, number: usize) {
        let ctx = &mut self.ctx;
        let kind = ctx.dice.below(4);
        let cut = ctx.dice.between(1_000, 30_000);
        ctx.net.cut_out[number] |= kind != 0;
        ctx.net.cut_in[number] |= kind != 1;
        ctx.note(|| format!("h{number} is cut off, way {kind}, for {cut} ms"));
        ctx.count("host cut off");
        if kind == 3 {
            self.hosts[number].connection(ctx, false);
        }
        self.ctx.wake(Node::World, 0, cut, Timer::Undo(Undo::Host(number)));
    }

    fn stop_bus(&mut self) {
        let down = self.ctx.dice.between(500, 25_000);
        self.ctx.net.bus_up = false;
        self.ctx.note(|| format!("the bus is down for {down} ms"));
        self.ctx.count("bus down");
        self.hosts.iter_mut().for_each(|h| h.connection(&mut self.ctx, false));
        self.ctx.wake(Node::World, 0, down, Timer::Undo(Undo::Bus));
    }

    fn undo(&mut self, undo: Undo) {
        let ctx = &mut self.ctx;
        ctx.note(|| format!("over: {undo:?}"));
        match undo {
            Undo::Bus => {
                ctx.net.bus_up = true;
                self.hosts.iter_mut().for_each(|h| h.connection(ctx, true));
            }
            Undo::Host(number) => {
                (ctx.net.cut_out[number], ctx.net.cut_in[number]) = (false, false);
                if ctx.net.bus_up {
                    self.hosts[number].connection(ctx, true);
                }
            }
            Undo::Member(number) => ctx.net.isolated[number] = false,
        }
    }

    /// Nothing goes wrong from here on; a few hosts stay dead.
    fn heal(&mut self) {
        if self.ctx.failure.is_some() {
            return;
        }
        self.ctx.faults = false;
        // Who pauses still, wakes first.
        let paused = self.hosts.iter().map(|h| h.paused_until).max().unwrap_or(0);
        self.advance(paused.saturating_sub(self.ctx.now));
        self.ctx.note(|| "healed".into());
        (self.ctx.net.loss, self.ctx.net.doubled, self.ctx.net.delay_ms) = (0, 0, 20);
        self.ctx.net.isolated.fill(false);
        for number in 0..self.members.len() {
            self.members[number].start(&mut self.ctx, &mut self.history);
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
        while self.ctx.failure.is_none() && self.ctx.now < until && self.clients.open() > 0 {
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
                self.clients.begin(&mut self.ctx, command::What::SetCordon(off));
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
        let mut rested = Err("it was not looked at".to_owned());
        while rested.is_err() && self.ctx.now < from + REST_MS && self.ctx.failure.is_none() {
            self.advance(500);
            let now = settled::check(&self.ctx, &self.members, &self.hosts);
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
        if let Err(why) = settled::check(&self.ctx, &self.members, &self.hosts) {
            self.ctx.fail(format!("no longer at rest: {why}"));
        }
        let (ctx, history) = (&mut self.ctx, &self.history);
        self.clients.check(ctx, &history.state);
        self.members.iter().for_each(|m| history.compare(ctx, m.number, &m.process.state));
    }

    fn tell(&mut self) {
        let failure = self.ctx.failure.clone().unwrap_or_default();
        for line in settled::told(&self.history.state) {
            self.ctx.note(|| line);
        }
        self.ctx.note(|| failure);
    }
}
