//! What goes wrong in one moment that chance alone hardly meets: a host is cut off, and reached again just when its leader
//! has proposed that it is lost; what the others answer does not arrive at once, or not what they say of what they stored;
//! and then the leader falls, before it hears what became of its proposal. Whoever leads next takes that host for lost at
//! once. If the host got a lease meanwhile it is often cut off again: for as long as that lasts, nobody can tell it to stop.

use crate::ctx::{Node, Timer, Undo};
use crate::world::World;

/// A leader, by its seat and its start, and the host that it is made to call lost.
pub(crate) struct Ambush {
    leader: usize,
    boot: u64,
    host: usize,
}

/// Until a host that is silent is lost for sure.
const SILENCE_MS: u64 = 14_000;
/// Until another leads, and has placed elsewhere what that host ran.
const REPLACED_MS: u64 = 6_000;
/// For the next lease.
const LEASE_MS: u64 = 3_000;

/// A host that is cut off when it gets a lease, until then.
pub(crate) struct Snare {
    host: usize,
    until: u64,
}

impl World {
    /// Cuts off a host, of what is strict where there is any, until the leader calls it lost.
    pub(crate) fn waylay(&mut self, leader: Option<usize>) {
        let Some(leader) = leader.filter(|_| self.seats.iter().filter(|s| s.up()).count() > 2) else { return };
        let near: Vec<usize> = self.hosts.iter().filter(|h| h.up && h.connected).map(|h| h.number).collect();
        let strict = near.iter().copied().filter(|n| self.hosts[*n].runs_strict(&self.ctx));
        let strict: Vec<usize> = strict.collect();
        let from = if strict.is_empty() { near } else { strict };
        if self.ambush.is_some() || from.is_empty() {
            return;
        }
        let host = *self.ctx.dice.pick(&from);
        self.ctx.note(|| format!("h{host} is cut off until s{leader} calls it lost"));
        (self.ctx.net.cut_out[host], self.ctx.net.cut_in[host]) = (true, true);
        self.hosts[host].connection(&mut self.ctx, false);
        self.ctx.wake(Node::World, 0, SILENCE_MS, Timer::Undo(Undo::Ambush(host)));
        self.lull_until = self.ctx.now + SILENCE_MS;
        self.ambush = Some(Ambush { leader, boot: self.seats[leader].boot, host });
    }

    /// The moment has come, if it has.
    pub(crate) fn look_at_ambush(&mut self, seat: usize) {
        let Some(Ambush { leader, boot, host }) = self.ambush else { return };
        let id = &self.hosts[host].id;
        let at = &self.seats[leader];
        if seat != leader || at.boot != boot || !at.process.as_ref().is_some_and(|p| p.loses(id)) {
            return;
        }
        self.ambush = None;
        self.ctx.count("host heard while it was being lost");
        self.undo(Undo::Host(host));
        let falls = self.ctx.dice.between(20, 400);
        if self.ctx.dice.percent(50) {
            self.ctx.note(|| format!("s{leader} is not told what others have stored"));
            self.ctx.net.untold = Some(leader);
            self.ctx.wake(Node::World, 0, falls, Timer::Undo(Undo::Untold));
        } else {
            let deaf = self.ctx.dice.between(5, 60);
            self.ctx.note(|| format!("s{leader} is deaf for {deaf} ms"));
            for other in (0..self.seats.len()).filter(|other| *other != leader) {
                self.ctx.net.pairs.insert((other, leader));
                self.ctx.wake(Node::World, 0, deaf, Timer::Undo(Undo::Pair(other, leader)));
            }
        }
        self.lull_until = self.ctx.now + REPLACED_MS;
        if self.ctx.dice.percent(70) {
            self.set_snare(host);
        }
        self.ctx.note(|| format!("s{leader} falls in {falls} ms"));
        self.ctx.wake(Node::World, 0, falls, Timer::Strike(leader));
    }

    /// A host is cut off as soon as it gets a lease, if that is soon.
    pub(crate) fn set_snare(&mut self, host: usize) {
        self.snare = Some(Snare { host, until: self.ctx.now + LEASE_MS });
    }

    /// A host got a lease.
    pub(crate) fn look_at_snare(&mut self, number: usize) {
        if !self.ctx.faults || self.snare.take_if(|s| s.host == number && self.ctx.now < s.until).is_none() {
            return;
        }
        let cut = self.ctx.dice.between(2_000, 9_000);
        let is_silent = self.ctx.dice.percent(70);
        (self.ctx.net.cut_in[number], self.ctx.net.cut_out[number]) = (true, is_silent);
        self.ctx.note(|| format!("h{number} has a lease, and is cut off for {cut} ms; silent too: {is_silent}"));
        self.ctx.count("host cut off as it got a lease");
        self.ctx.wake(Node::World, 0, cut, Timer::Undo(Undo::Host(number)));
    }

    /// Nothing came of it.
    pub(crate) fn end_ambush(&mut self, host: usize) {
        if self.ambush.as_ref().is_some_and(|ambush| ambush.host == host) {
            self.ambush = None;
            self.undo(Undo::Host(host));
        }
    }

    pub(crate) fn strike(&mut self, number: usize) {
        if !self.ctx.faults || !self.seats[number].leads() {
            return;
        }
        self.ctx.count("leader fell while it lost a host");
        if self.ctx.dice.percent(50) {
            let pause = self.ctx.dice.between(3_000, 9_000);
            self.seats[number].pause(&mut self.ctx, pause);
        } else {
            let down = self.ctx.dice.between(3_000, 12_000);
            self.seats[number].crash(&mut self.ctx, true);
            self.ctx.up[number] = false;
            self.ctx.wake(Node::Member(number), 0, down, Timer::Restart);
        }
    }
}
