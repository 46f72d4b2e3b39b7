//! Looks at a plan before it is proposed: what a leader may do with what it knows, worked out again and apart from the
//! planner. Must never change anything.

use crate::ctx::Ctx;
use crate::history::same_component;
use proto::app::{Component, HostId, Kind, Name, Scaler};
use proto::v1 as pb;
use scheduler::plan::{Config, Observed, Plan};
use scheduler::state::{AppState, Placed, State};
use std::collections::{BTreeMap, BTreeSet};

/// Of the hosts that have a component, so many may change their revision at once.
const ROLLOUT_SHARE: usize = 4;

/// Host, component and revision.
pub(crate) type FailedHere = BTreeSet<(HostId, Name, Name, u64)>;
type Changes = BTreeMap<(Name, Name), BTreeMap<HostId, (u64, u32)>>;

pub(crate) fn plan(ctx: &mut Ctx, state: &State, observed: &Observed, plan: &Plan, now: u64, config: &Config) {
    leases(ctx, state, observed, plan, now, config);
    let mut changes = Changes::new();
    for change in &plan.changes {
        let (Ok(app), Ok(component), Ok(host)) = (change.app.parse(), change.component.parse(), change.host.parse())
        else {
            return ctx.fail(format!("a plan names {change:?}"));
        };
        changes.entry((app, component)).or_default().insert(host, (change.revision, change.replicas));
    }
    for (key, hosts) in &changes {
        let Some(app) = state.apps.get(&key.0).filter(|a| !a.deleting) else { continue };
        let Some(spec) = app.spec().components.get(&key.1) else { continue };
        let one = One { state, observed, key, app, spec, hosts };
        one.drains(ctx);
        one.rollout(ctx);
    }
}

/// Nobody is lost before the grace of a new leader ends, nor are most hosts at once.
fn leases(ctx: &mut Ctx, state: &State, observed: &Observed, plan: &Plan, now: u64, config: &Config) {
    let mut silent = 0;
    for id in &plan.lost {
        let seen = observed.hosts.get(id);
        if seen.is_some_and(|s| s.leaving) {
            continue;
        }
        silent += 1;
        let heard = seen.map_or(0, |s| s.at_ms).max(observed.since_ms);
        if now - heard < config.lost_ms {
            ctx.fail(format!("{id} is lost {} ms after it was heard or this leader took office", now - heard));
        }
    }
    let alive = state.hosts.iter().filter(|(id, h)| !h.lost && !plan.lost.contains(id)).count();
    if silent >= 3 && silent > alive {
        ctx.fail(format!("{silent} hosts are lost at once, and {alive} are left: that is the bus"));
    }
}

/// What a plan does to one component.
struct One<'a> {
    state: &'a State,
    observed: &'a Observed,
    key: &'a (Name, Name),
    app: &'a AppState,
    spec: &'a Component,
    hosts: &'a BTreeMap<HostId, (u64, u32)>,
}

impl One<'_> {
    fn placed(&self) -> BTreeMap<&HostId, Placed> {
        self.state.placements.get(self.key).into_iter().flatten().map(|(id, p)| (id, *p)).collect()
    }

    fn lost(&self, id: &HostId) -> bool {
        self.state.hosts.get(id).is_none_or(|h| h.lost)
    }

    fn draining(&self, id: &HostId) -> bool {
        self.state.hosts.get(id).is_some_and(|h| h.draining)
    }

    /// What drains goes on until its replacement runs.
    fn drains(&self, ctx: &mut Ctx) {
        let Scaler::Spread { .. } = self.spec.scaler else { return };
        // What is strict stops first.
        if self.spec.strict || matches!(self.spec.kind, Kind::Provider(_)) {
            return;
        }
        let placed = self.placed();
        let gives_up = |(id, (_, n)): &(&HostId, &(u64, u32))| {
            !self.lost(id) && self.draining(id) && placed.get(id).is_some_and(|p| *n < p.replicas)
        };
        let Some((from, _)) = self.hosts.iter().find(gives_up) else { return };
        let mut after: BTreeMap<&HostId, u32> = placed.iter().map(|(id, p)| (*id, p.replicas)).collect();
        after.extend(self.hosts.iter().map(|(id, (_, n))| (id, *n)));
        for (id, n) in after.into_iter().filter(|(id, n)| *n > 0 && !self.lost(id) && !self.draining(id)) {
            let running = self.observed.running(id, self.key);
            if !running.iter().any(|r| r.state == pb::RunState::Running && r.replicas >= n) {
                ctx.fail(format!("{}/{} leaves {from} before it runs on {id}", self.key.0, self.key.1));
            }
        }
        ctx.count("drain waited for its replacement");
    }

    /// No more hosts change their revision at once than a rollout may, and none while the new one fails somewhere. What
    /// a leader has not heard is not "not running".
    fn rollout(&self, ctx: &mut Ctx) {
        let current = self.app.current;
        let placed = self.placed();
        let spec = |r| self.app.revisions.get(r).map(|r| r.spec.clone());
        let (mut swapped, mut changing, mut failed) = (0, 0, false);
        for (id, before) in &placed {
            if self.lost(id) {
                continue;
            }
            let running = self.observed.running(id, self.key);
            if before.revision == current {
                changing += usize::from(!self.observed.is_running(id, self.key, current));
                failed |= running.iter().any(|r| r.revision == current && r.state == pb::RunState::Failed);
                continue;
            }
            let Some((revision, n)) = self.hosts.get(*id) else { continue };
            let (Some(old), Some(new)) = (spec(&before.revision), spec(revision)) else { continue };
            if *n == 0 || *revision != current || same_component(&old, &new, &self.key.1) {
                continue;
            }
            ctx.count("revision replaced on a host");
            let idle = self.observed.is_told(id) && !self.observed.is_running(id, self.key, before.revision);
            swapped += usize::from(!idle);
        }
        let most = (placed.len() / ROLLOUT_SHARE).max(1).saturating_sub(changing);
        let (app, component) = self.key;
        if failed && swapped > 0 {
            ctx.fail(format!("{app}/{component} changes on {swapped} more hosts though it failed on one"));
        }
        if swapped > most {
            ctx.fail(format!(
                "{app}/{component} changes at once on {swapped} hosts that ran or were not heard, not {most}"
            ));
        }
    }
}

/// Counts rollouts that wait for a host where the new revision failed.
pub(crate) fn rollouts(ctx: &mut Ctx, state: &State, observed: &Observed, failed_here: &mut FailedHere) {
    for ((app, component), hosts) in &state.placements {
        let Some(at) = state.apps.get(app) else { continue };
        let mixed = hosts.values().any(|p| p.revision != at.current);
        for (host, _) in hosts.iter().filter(|(_, p)| mixed && p.revision == at.current) {
            let key = (app.clone(), component.clone());
            let running = observed.running(host, &key);
            let failed = running.iter().any(|r| r.revision == at.current && r.state == pb::RunState::Failed);
            if failed && failed_here.insert((host.clone(), key.0, key.1, at.current)) {
                ctx.count("rollout stopped");
            }
        }
    }
}
