//! What goes wrong: drawn by the seed, one thing after the other, most of it undone after a while.

use crate::ctx::{Ctx, Node, Split, Timer, Undo};
use crate::disk::Failing;
use crate::world::World;
use std::collections::BTreeSet;

/// What a sync takes at most on a slow disk.
pub(crate) const SYNC_MAX_MS: u64 = 3_000;
const HOUR_MS: u64 = 3_600_000;

impl World {
    pub(crate) fn next_fault(&mut self) {
        if !self.ctx.faults {
            return;
        }
        let wait = 1 + self.ctx.dice.below(2 * self.ctx.params.fault_every_ms);
        self.ctx.wake(Node::World, 0, wait, Timer::NextFault);
        // What takes its time to go wrong is not always cut short by the next thing.
        if self.ctx.now < self.lull_until {
            return;
        }
        if self.ctx.dice.percent(45) { self.trouble_a_host() } else { self.trouble_a_scheduler() }
    }

    fn trouble_a_host(&mut self) {
        let number = self.ctx.dice.index(self.hosts.len());
        match self.ctx.dice.below(100) {
            0..38 => self.crash_host(number, 30_000),
            38..48 => {
                let down = self.ctx.dice.between(1_000, 40_000);
                self.hosts[number].leave(&mut self.ctx);
                self.ctx.wake(Node::Host(number), 0, down, Timer::Restart);
            }
            48..62 => {
                let pause = self.ctx.dice.between(200, 9_000);
                self.hosts[number].paused_until = self.ctx.now + pause;
                self.ctx.note(|| format!("h{number} pauses for {pause} ms"));
                self.ctx.count("host paused");
            }
            62..86 => self.cut_host(number),
            86..94 => self.stop_bus(),
            _ => (0..self.hosts.len()).for_each(|number| {
                if self.ctx.dice.percent(70) {
                    self.crash_host(number, 25_000);
                }
            }),
        }
    }

    fn trouble_a_scheduler(&mut self) {
        let leader = self.seats.iter().position(|s| s.leads());
        if self.ctx.dice.percent(12) && self.hosts.iter().any(|h| h.runs_strict(&self.ctx)) {
            return self.waylay(leader);
        }
        // Leaders have the most to lose.
        let number = match leader {
            Some(leader) if self.ctx.dice.percent(45) => leader,
            _ => self.ctx.dice.index(self.seats.len()),
        };
        match self.ctx.dice.below(100) {
            0..25 => self.crash_member(number),
            25..29 => {
                let all = self.ctx.dice.percent(50);
                (0..self.seats.len()).filter(|n| all || *n != number).for_each(|n| self.crash_member(n));
            }
            29..45 => {
                let pause = self.ctx.dice.between(200, 9_000);
                self.seats[number].pause(&mut self.ctx, pause);
            }
            45..56 => {
                let cut = self.ctx.dice.between(500, 15_000);
                self.ctx.net.isolated[number] = true;
                self.ctx.note(|| format!("s{number} is isolated for {cut} ms"));
                self.ctx.count("scheduler isolated");
                self.ctx.wake(Node::World, 0, cut, Timer::Undo(Undo::Member(number)));
            }
            56..62 => {
                let other = self.ctx.dice.index(self.seats.len());
                let cut = self.ctx.dice.between(500, 15_000);
                self.ctx.net.pairs.insert((number, other));
                self.ctx.note(|| format!("s{number} does not reach s{other} for {cut} ms"));
                self.ctx.count("one-way partition of schedulers");
                self.ctx.wake(Node::World, 0, cut, Timer::Undo(Undo::Pair(number, other)));
            }
            62..71 => self.split(leader),
            71..77 => self.waylay(leader),
            77..81 => {
                let slow = self.ctx.dice.between(2_000, 20_000);
                self.seats[number].disk.slow(true);
                self.ctx.stalls(number, slow + SYNC_MAX_MS);
                self.ctx.note(|| format!("the disk of s{number} is slow for {slow} ms"));
                self.ctx.wake(Node::World, 0, slow, Timer::Undo(Undo::SlowDisk(number)));
            }
            81..86 => {
                self.ctx.count("sync to fail with EIO");
                self.seats[number].trip(&mut self.ctx, Failing::Error);
            }
            86..90 => {
                let full = self.ctx.dice.between(500, 8_000);
                self.seats[number].disk.fill(true);
                self.ctx.note(|| format!("the disk of s{number} is full for {full} ms"));
                self.ctx.count("disk full");
                self.ctx.wake(Node::World, 0, full, Timer::Undo(Undo::FullDisk(number)));
            }
            90..94 => {
                let jump = self.ctx.dice.below(2 * HOUR_MS).cast_signed() - HOUR_MS.cast_signed();
                self.ctx.wall_off_ms[number] = jump;
                self.ctx.count("calendar of a scheduler jumped");
            }
            _ => self.wipe(number),
        }
    }

    /// The leader and a host or two do not reach the others, nor are they reached. Those others are enough to elect
    /// another leader, and hosts that one may call lost: the brake does not hold for two.
    fn split(&mut self, leader: Option<usize>) {
        let Some(leader) = leader.filter(|_| self.seats.iter().filter(|s| s.up()).count() > 2) else { return };
        if self.ctx.net.split.is_some() {
            return;
        }
        let strict: Vec<usize> = self.hosts.iter().filter(|h| h.runs_strict(&self.ctx)).map(|h| h.number).collect();
        let dice = &mut self.ctx.dice;
        let mut hosts = BTreeSet::from([dice.index(self.hosts.len())]);
        // What runs under a lease has the most to lose.
        if !strict.is_empty() && dice.percent(80) {
            hosts = BTreeSet::from([*dice.pick(&strict)]);
        }
        if dice.percent(50) {
            hosts.insert(dice.index(self.hosts.len()));
        }
        let mut cut = dice.between(3_000, 25_000);
        let pauses = dice.percent(60);
        // The longer, the less is left of the time after which the others call its hosts lost; when others are silent for as
        // long, it calls them lost and waits for that.
        let pause = if dice.percent(50) { dice.between(5_000, 9_000) } else { dice.between(2_000, 8_000) };
        let lull = dice.percent(60);
        self.ctx.count("bus split");
        self.ctx.note(|| format!("s{leader} is alone with the hosts {hosts:?}"));
        self.ctx.net.split = Some(Split { hosts, members: BTreeSet::from([leader]) });
        if pauses {
            // When it goes on it hears its hosts, and nobody who would say that it leads no more.
            self.seats[leader].pause(&mut self.ctx, pause);
            // Long enough for the others to call those hosts lost.
            cut = cut.max(pause + 9_000);
            if lull {
                self.lull_until = self.ctx.now + cut;
            }
        }
        self.ctx.note(|| format!("for {cut} ms"));
        self.ctx.wake(Node::World, 0, cut, Timer::Undo(Undo::Split));
    }

    /// A scheduler loses its disk for good, if the others can do without it.
    fn wipe(&mut self, number: usize) {
        let Some(leader) = self.seats.iter().find_map(|s| s.process.as_ref().filter(|p| p.governs())) else { return };
        let id = self.seats[number].id;
        let spared = leader.status(|s| {
            let lives = |id: &&u64| self.seats.iter().any(|seat| seat.id == **id && seat.lives() && !seat.wiped);
            let left = s.members.voters.iter().filter(lives).filter(|other| **other != id);
            // Whoever has not heard that a change is through asks the voters before it, which may be this one alone.
            let knows = |other: &&u64| {
                let at = self.seats.iter().find(|seat| seat.id == **other);
                let process = at.and_then(|seat| seat.process.as_ref());
                process.is_some_and(|p| p.status(|o| !o.members.is_joint() && o.members.voters == s.members.voters))
            };
            let left = left.filter(knows).count();
            let wanted = |id: &u64| self.history.state.members.contains_key(id);
            let steady = !self.ctx.params.joins() || s.members.voters.iter().all(wanted);
            s.members.contains(id) && !s.members.is_joint() && steady && left > s.members.voters.len() / 2
        });
        if !spared || self.operators.removing() {
            return;
        }
        self.ctx.count("disk of a scheduler wiped");
        self.seats[number].crash(&mut self.ctx, true);
        self.seats[number].disk.wipe();
        self.seats[number].wiped = true;
        self.ctx.note(|| format!("the disk of s{number} is wiped"));
        self.ctx.wake(Node::Member(number), 0, 1_000, Timer::Restart);
    }

    fn crash_host(&mut self, number: usize, most_ms: u64) {
        let (ctx, host) = (&mut self.ctx, &mut self.hosts[number]);
        let torn = ctx.dice.percent(15);
        host.crash(ctx, torn);
        if ctx.dice.percent(10) {
            let zone = (*ctx.dice.pick(&["a", "b"])).to_owned();
            host.labels.insert("zone".into(), zone);
        }
        let down = silence(ctx, 200, most_ms);
        ctx.wake(Node::Host(number), 0, down, Timer::Restart);
    }

    fn crash_member(&mut self, number: usize) {
        let (ctx, seat) = (&mut self.ctx, &mut self.seats[number]);
        if ctx.dice.percent(ctx.params.sync_crashes) {
            ctx.count("power to go in the middle of a sync");
            seat.trip(ctx, Failing::Power);
            return;
        }
        let power = ctx.dice.percent(60);
        seat.crash(ctx, power);
        ctx.up[number] = false;
        let down = ctx.dice.between(200, 12_000);
        ctx.wake(Node::Member(number), 0, down, Timer::Restart);
    }

    fn cut_host(&mut self, number: usize) {
        if self.ctx.dice.percent(15) && self.hosts[number].runs_strict(&self.ctx) {
            return self.set_snare(number);
        }
        let ctx = &mut self.ctx;
        let kind = ctx.dice.below(4);
        let cut = silence(ctx, 1_000, 30_000);
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

    pub(crate) fn undo(&mut self, undo: Undo) {
        let ctx = &mut self.ctx;
        ctx.note(|| format!("over: {undo:?}"));
        match undo {
            Undo::Bus => {
                ctx.net.bus_up = true;
                self.hosts.iter_mut().for_each(|h| h.connection(ctx, true));
            }
            Undo::Host(number) => {
                (ctx.net.cut_out[number], ctx.net.cut_in[number]) = (false, false);
                if ctx.faults && ctx.dice.percent(25) {
                    let thin = ctx.dice.between(1_000, 8_000);
                    ctx.net.thin[number] = true;
                    ctx.note(|| format!("nothing large reaches h{number} for {thin} ms"));
                    ctx.wake(Node::World, 0, thin, Timer::Undo(Undo::Thin(number)));
                }
                if ctx.net.bus_up {
                    self.hosts[number].connection(ctx, true);
                }
            }
            Undo::Thin(number) => ctx.net.thin[number] = false,
            Undo::Ambush(number) => self.end_ambush(number),
            Undo::Member(number) => ctx.net.isolated[number] = false,
            Undo::Pair(from, to) => _ = ctx.net.pairs.remove(&(from, to)),
            Undo::Untold => ctx.net.untold = None,
            Undo::Split => ctx.net.split = None,
            Undo::FullDisk(number) => self.seats[number].disk.fill(false),
            Undo::SlowDisk(number) => self.seats[number].disk.slow(false),
        }
    }

    /// Nothing goes wrong from here on.
    pub(crate) fn end_trouble(ctx: &mut Ctx) {
        (ctx.net.loss, ctx.net.doubled, ctx.net.delay_ms) = (0, 0, 20);
        ctx.net.isolated.fill(false);
        ctx.net.thin.fill(false);
        ctx.net.pairs.clear();
        ctx.net.untold = None;
        ctx.net.split = None;
        ctx.wall_off_ms.fill(0);
    }
}

/// How long a host is not heard: often about as long as it takes to be lost, when the two may cross.
fn silence(ctx: &mut Ctx, least_ms: u64, most_ms: u64) -> u64 {
    if ctx.dice.percent(25) { ctx.dice.between(9_000, 12_500) } else { ctx.dice.between(least_ms, most_ms) }
}
