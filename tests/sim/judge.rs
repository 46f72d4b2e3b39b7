//! Looks at a plan before it is proposed: what a leader may do with what it knows. Must never change anything.

use crate::ctx::Ctx;
use crate::history::same_component;
use crate::members::Process;
use proto::app::{HostId, Name};
use proto::v1 as pb;
use scheduler::plan::{Observed, Plan};
use scheduler::state::State;
use std::collections::BTreeMap;

/// What a leader that just took office does not know is not "not running": no more hosts change their revision at
/// once than a rollout may.
pub(crate) fn plan(ctx: &mut Ctx, state: &State, observed: &Observed, plan: &Plan) {
    let mut blind: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for change in plan.changes.iter().filter(|c| c.replicas > 0) {
        let (Ok(app), Ok(component), Ok(host)) =
            (change.app.parse::<Name>(), change.component.parse::<Name>(), change.host.parse::<HostId>())
        else {
            return ctx.fail(format!("a plan names {change:?}"));
        };
        let before = state.placed(&app, &component).find(|(h, _)| **h == host).map(|(_, p)| p);
        let Some(before) = before.filter(|b| b.revision != change.revision) else { continue };
        let Some(at) = state.apps.get(&app) else { continue };
        let spec = |r| at.revisions.get(&r).map(|r| r.spec.clone());
        let (Some(old), Some(new)) = (spec(before.revision), spec(change.revision)) else { continue };
        if same_component(&old, &new, &component) || state.hosts.get(&host).is_none_or(|h| h.lost) {
            continue;
        }
        ctx.count("revision replaced on a host");
        if observed.hosts.get(&host).is_none_or(|s| s.inventory_version == 0) {
            *blind.entry((&change.app, &change.component)).or_default() += 1;
        }
    }
    for ((app, component), hosts) in blind {
        let (Ok(a), Ok(c)) = (app.parse(), component.parse()) else { continue };
        let most = (state.placed(&a, &c).count() / 4).max(1);
        if hosts > most {
            ctx.fail(format!("{app}/{component} changes at once on {hosts} hosts that were not heard, not {most}"));
        }
    }
}

/// Counts rollouts that wait for a host where the new revision failed.
pub(crate) fn rollouts(ctx: &mut Ctx, process: &mut Process) {
    for ((app, component), hosts) in &process.state.placements {
        let Some(at) = process.state.apps.get(app) else { continue };
        let mixed = hosts.values().any(|p| p.revision != at.current);
        for (host, _) in hosts.iter().filter(|(_, p)| mixed && p.revision == at.current) {
            let key = (app.clone(), component.clone());
            let running = process.observed.running(host, &key);
            let failed = running.iter().any(|r| r.revision == at.current && r.state == pb::RunState::Failed);
            if failed && process.failed_here.insert((host.clone(), key.0, key.1, at.current)) {
                ctx.count("rollout stopped");
            }
        }
    }
}
