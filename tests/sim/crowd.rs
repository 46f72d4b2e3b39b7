//! How many replicas of a component run on all hosts together, by what the hosts truly run: no more than are asked for.
//! Beyond that the design allows what a host runs that is out of touch, drains, or serves an old revision until the new
//! one is ready. Must never change anything.

use crate::ctx::{Ctx, Node};
use crate::history::History;
use crate::hosts::Host;
use crate::seat::Seat;
use proto::app::{Name, Scaler};
use std::collections::BTreeMap;

pub(crate) const EVERY_MS: u64 = 1_000;
/// So long after a host is in touch with a leader it runs what is placed on it, though its assignment be lost a few times.
const TOUCH_MS: u64 = 30_000;
/// Of a hundred messages: where more are lost, that takes longer.
const LOSS_MAX: u64 = 2;

#[derive(Default)]
pub(crate) struct Crowd {
    /// Seat and term of who leads.
    office: Option<(usize, u64)>,
    /// Of each host that is in touch with it.
    touch: BTreeMap<usize, Touch>,
    /// What is asked for, and since when.
    asked: BTreeMap<(Name, Name), (u32, u64)>,
}

struct Touch {
    boot: u64,
    draining: bool,
    since: u64,
}

impl Crowd {
    pub(crate) fn look(&mut self, ctx: &mut Ctx, seats: &[Seat], hosts: &[Host], history: &History) {
        if ctx.params.loss > LOSS_MAX {
            return;
        }
        self.keep_touch(ctx, seats, hosts, history);
        self.keep_asked(ctx, history);
        let old = |since: u64| ctx.now - since >= TOUCH_MS;
        let near: Vec<&Host> =
            hosts.iter().filter(|h| self.touch.get(&h.number).is_some_and(|t| !t.draining && old(t.since))).collect();
        let mut wrong = None;
        for (key, (replicas, _)) in self.asked.iter().filter(|(_, (_, since))| old(*since)) {
            let running: u32 = near.iter().map(|host| host.truly_runs(key, history)).sum();
            if running > *replicas {
                wrong = Some(format!("{running} replicas of {}/{} run, {replicas} are asked for", key.0, key.1));
            }
        }
        if let Some(wrong) = wrong {
            ctx.fail(wrong);
        }
        if near.len() > 1 {
            ctx.count("running replicas counted on all hosts");
        }
    }

    fn keep_touch(&mut self, ctx: &Ctx, seats: &[Seat], hosts: &[Host], history: &History) {
        let leads = |s: &Seat| s.process.as_ref().and_then(|p| p.leads_in()).map(|term| (s.number, term));
        let office = seats.iter().filter_map(leads).max_by_key(|(_, term)| *term);
        if self.office != office {
            self.touch.clear();
        }
        self.office = office;
        let Some((leader, _)) = office.filter(|(leader, _)| seats[*leader].acts(ctx.now)) else {
            return self.touch.clear();
        };
        for host in hosts {
            let (there, here) = (Node::Host(host.number), Node::Member(leader));
            let near = host.up && host.connected && host.paused_until <= ctx.now;
            if !near || !ctx.net.reaches(here, there) || !ctx.net.reaches(there, here) {
                self.touch.remove(&host.number);
                continue;
            }
            let draining = history.state.hosts.get(&host.id).is_some_and(|h| h.draining);
            let fresh = Touch { boot: host.boot, draining, since: ctx.now };
            let touch = self.touch.entry(host.number).or_insert(fresh);
            if (touch.boot, touch.draining) != (host.boot, draining) {
                *touch = Touch { boot: host.boot, draining, since: ctx.now };
            }
        }
    }

    fn keep_asked(&mut self, ctx: &Ctx, history: &History) {
        let mut asked = BTreeMap::new();
        for (name, app) in history.state.apps.iter().filter(|(_, app)| !app.deleting) {
            for (component, spec) in &app.spec().components {
                let Scaler::Spread { replicas, .. } = spec.scaler else { continue };
                let key = (name.clone(), component.clone());
                let before = self.asked.get(&key).filter(|(before, _)| *before == replicas);
                let since = before.map_or(ctx.now, |(_, since)| *since);
                asked.insert(key, (replicas, since));
            }
        }
        self.asked = asked;
    }
}
