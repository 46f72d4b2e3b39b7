//! Whether a lattice has come to rest as it should: worked out again from the manifests and the hosts, naively and
//! apart from the planner.

use crate::ctx::{Ctx, LATTICE};
use crate::history::same_component;
use crate::hosts::Host;
use crate::process::Process;
use crate::seat::Seat;
use proto::app::{App, Builtin, Component, HostId, Kind, Name, Scaler, Spread};
use scheduler::peer::roster::{self, Due};
use scheduler::plan;
use scheduler::state::{HostState, State};
use std::collections::{BTreeMap, BTreeSet};

/// Time to come to rest once nothing goes wrong any more.
pub(crate) const REST_MS: u64 = 60_000;

/// What is not as it should be yet.
pub(crate) fn check(ctx: &Ctx, seats: &[Seat], hosts: &[Host]) -> Result<(), String> {
    let processes = || seats.iter().filter_map(|s| s.process.as_ref());
    let leader = processes().filter(|p| p.governs()).max_by_key(|p| p.status(|s| s.term)).ok_or("nobody leads")?;
    let guard = leader.replica.read();
    let state = &*guard;
    check_seats(ctx, state, leader, seats)?;
    for process in processes() {
        let replica = process.replica.read();
        let same = || {
            let mut copy = State::clone(&replica);
            copy.applied = state.applied;
            copy == *state
        };
        if replica.plan_base != state.plan_base || !same() {
            return Err(format!("s{} has not caught up", process.number));
        }
    }
    for host in hosts {
        check_host(ctx, state, host)?;
    }
    for (name, app) in &state.apps {
        if app.deleting {
            return Err(format!("app {name} is still being deleted"));
        }
        for (component, spec) in &app.spec().components {
            let placed = state.placements.get(&(name.clone(), component.clone())).cloned().unwrap_or_default();
            let lives = |id: &HostId| state.hosts.get(id).is_some_and(|h| !h.lost);
            if placed.iter().any(|(id, p)| lives(id) && p.revision != app.current) {
                return Err(format!("{name}/{component}: a rollout to r{} has not finished; {placed:?}", app.current));
            }
            let placed = placed.into_iter().map(|(h, p)| (h, u64::from(p.replicas))).collect();
            let home = state.homes.get(&(name.clone(), component.clone()));
            check_component(state, spec, &placed, home).map_err(|e| format!("{name}/{component}: {e}; {placed:?}"))?;
        }
    }
    // What is strict and stops is remembered until its host has said that it has.
    if let Some((app, component)) = state.homes.keys().find(|(app, _)| !state.apps.contains_key(app)) {
        return Err(format!("where {app}/{component} ran, which is gone, is remembered still"));
    }
    let plan = plan::plan(state, leader.control.leader.observed(), leader.now_ms(ctx), &Process::timers(ctx));
    if plan.brake || !plan.lost.is_empty() || !plan.returned.is_empty() || !plan.changes.is_empty() {
        return Err(format!("the plan is not empty: {plan:?}"));
    }
    Ok(())
}

/// The log's members are those that are wanted, and who was removed has ended.
fn check_seats(ctx: &Ctx, state: &State, leader: &Process, seats: &[Seat]) -> Result<(), String> {
    leader.status(|status| {
        if status.members.is_joint() {
            return Err("a change of members is half done".to_owned());
        }
        for seat in seats.iter().filter(|s| s.up()) {
            if !status.members.contains(seat.id) {
                return Err(format!("s{} is no member and has not ended", seat.number));
            }
        }
        if let Some(id) = state.members.keys().find(|id| !status.members.contains(**id)) {
            return Err(format!("scheduler {id} was taken in and is no member"));
        }
        let all = || status.members.voters.iter().chain(&status.members.learners);
        if let Some(id) = all().find(|id| ctx.params.joins() && !state.members.contains_key(id)) {
            return Err(format!("scheduler {id} was removed and is still a member"));
        }
        let reached = leader.reached(ctx, status);
        match roster::due(status, &state.members, reached) {
            due if due != Due::Nothing && ctx.params.joins() => Err(format!("about its members is due: {due:?}")),
            _ => Ok(()),
        }
    })
}

fn check_host(ctx: &Ctx, state: &State, host: &Host) -> Result<(), String> {
    let (number, known) = (host.number, state.hosts.get(&host.id));
    if !host.up {
        return match known {
            Some(known) if !known.lost => Err(format!("h{number} is dead and not lost")),
            Some(_) if ctx.params.forget_ms < REST_MS && state.on_host(&host.id).next().is_none() => {
                Err(format!("h{number} is dead, empty and not forgotten"))
            }
            _ => Ok(()),
        };
    }
    let known = known.ok_or_else(|| format!("h{number} is not registered"))?;
    if known.lost {
        return Err(format!("h{number} lives and is lost"));
    }
    let hello = host.greeting();
    if (&known.hello.boot, &known.hello.labels, &known.hello.ingress) != (&hello.boot, &hello.labels, &hello.ingress) {
        return Err(format!("h{number} is registered as it was before it started again"));
    }
    let wants = state.assignment(LATTICE, &host.id, 0).ok_or_else(|| format!("h{number} has no assignment"))?;
    match host.running.keeper.stored() {
        Some(has) if has.generation == wants.generation && has.apps == wants.apps && has.routes == wants.routes => {}
        Some(has) => {
            return Err(format!(
                "h{number} has generation {}, {} is its content now",
                has.generation, wants.generation
            ));
        }
        None if wants.apps.is_empty() && wants.generation == 0 => {}
        None => return Err(format!("h{number} has no assignment stored")),
    }
    let mut strays: BTreeSet<_> = host.running.keeper.up().keys().cloned().collect();
    for (app, component, placed) in state.on_host(&host.id) {
        let key = (app.clone(), component.clone());
        strays.remove(&key);
        let spec = &state.apps[app].revisions[&placed.revision].spec;
        let Some(runs) = host.running.keeper.up().get(&key) else {
            return Err(format!("h{number} does not run {app}/{component}"));
        };
        if (runs.revision, runs.replicas) != (placed.revision, placed.replicas) {
            return Err(format!(
                "h{number} runs {app}/{component} r{} x{}, not r{} x{}",
                runs.revision, runs.replicas, placed.revision, placed.replicas
            ));
        }
        if !host.running.apps.get(&key).is_some_and(|app| same_component(app, spec, component)) {
            return Err(format!(
                "h{number} runs {app}/{component} r{} with other content than that revision has",
                runs.revision
            ));
        }
    }
    match strays.first() {
        Some((app, component)) => Err(format!("h{number} runs {app}/{component}, which is not placed there")),
        None => Ok(()),
    }
}

/// Whether this many replicas are where they should be.
fn check_component(
    state: &State,
    spec: &Component,
    placed: &BTreeMap<HostId, u64>,
    home: Option<&HostId>,
) -> Result<(), String> {
    let builtin = match &spec.kind {
        Kind::Provider(p) => Some(p.builtin),
        Kind::Actor(_) => None,
    };
    match &spec.scaler {
        Scaler::Spread { replicas, spread } => {
            let share_of = shares_of(spread);
            match builtin {
                Some(builtin) => check_provider(state, builtin, u64::from(*replicas), &share_of, placed, home),
                None => check_spread(state, u64::from(*replicas), &share_of, placed),
            }
        }
        Scaler::Daemon { replicas, spread } => {
            for (id, host) in &state.hosts {
                let met = shares_of(spread).iter().filter(|s| fits(host, s, builtin)).count() as u64;
                let (now, target) = (placed.get(id).copied().unwrap_or(0), met * u64::from(*replicas));
                let right = match (host.draining, host.lost || host.cordoned) {
                    (true, _) => now == 0,
                    (false, true) => now <= target,
                    (false, false) => now == target,
                };
                if !right {
                    return Err(format!("{now} on {}, {target} asked for", host.hello.name));
                }
            }
            Ok(())
        }
    }
}

fn shares_of(spread: &[Spread]) -> Vec<Spread> {
    if spread.is_empty() {
        return vec![Spread { name: String::new(), requirements: BTreeMap::new(), weight: 1 }];
    }
    spread.to_vec()
}

fn fits(host: &HostState, share: &Spread, builtin: Option<Builtin>) -> bool {
    let facts = host.hello.facts.clone().unwrap_or_default();
    let serves = builtin.is_none() || !facts.interfaces.is_empty();
    serves
        && share.requirements.iter().all(|(key, value)| {
            let fact = if key == "arch" { Some(&facts.arch) } else { None };
            host.hello.labels.get(key).or(fact) == Some(value)
        })
}

/// A provider stays with its data, wherever that is; it waits while its host takes nothing.
fn check_provider(
    state: &State,
    builtin: Builtin,
    replicas: u64,
    shares: &[Spread],
    placed: &BTreeMap<HostId, u64>,
    home: Option<&HostId>,
) -> Result<(), String> {
    let total: u64 = placed.values().sum();
    if total > replicas {
        return Err(format!("{total} placed, {replicas} asked for"));
    }
    let takes = |(id, h): (&HostId, &HostState)| {
        let ready = !h.lost && !h.cordoned && !h.draining;
        ready && home.is_none_or(|home| home == id) && shares.iter().any(|s| fits(h, s, Some(builtin)))
    };
    if total < replicas && state.hosts.iter().any(takes) {
        return Err("the provider is placed nowhere".into());
    }
    Ok(())
}

/// Each replica is a unit, each replica that a share is due is a slot: the slots that some ready host can fill must be
/// matched by what is placed.
fn check_spread(state: &State, replicas: u64, shares: &[Spread], placed: &BTreeMap<HostId, u64>) -> Result<(), String> {
    let total: u64 = placed.values().sum();
    if total > replicas {
        return Err(format!("{total} placed, {replicas} asked for"));
    }
    let fillable =
        |share: &Spread| state.hosts.values().any(|h| !h.lost && !h.cordoned && !h.draining && fits(h, share, None));
    let lives = |id: &HostId| state.hosts.get(id).is_some_and(|h| !h.lost);
    let units: Vec<&HostState> =
        placed.iter().filter(|(id, _)| lives(id)).flat_map(|(id, n)| (0..*n).map(|_| &state.hosts[id])).collect();
    let mut slots = Vec::new();
    let mut all_fillable = true;
    for (share, due) in shares.iter().zip(due(replicas, shares)) {
        if fillable(share) {
            slots.extend((0..due).map(|_| share));
        } else if due > 0 {
            all_fillable = false;
        }
    }
    let mut taken: Vec<Option<usize>> = vec![None; units.len()];
    for slot in 0..slots.len() {
        let edge = |slot: usize, unit: usize| fits(units[unit], slots[slot], None);
        if !seat(slot, &edge, &mut taken, &mut vec![false; units.len()]) {
            return Err(format!("a replica of share {:?} is missing", slots[slot].requirements));
        }
    }
    if all_fillable && units.iter().any(|h| h.draining) {
        return Err("a drain has not finished".into());
    }
    Ok(())
}

/// Kuhn's way of matching: finds a seat for `slot`, moving others if needed.
fn seat(slot: usize, edge: &dyn Fn(usize, usize) -> bool, taken: &mut [Option<usize>], seen: &mut [bool]) -> bool {
    for unit in 0..taken.len() {
        if seen[unit] || !edge(slot, unit) {
            continue;
        }
        seen[unit] = true;
        if taken[unit].is_none_or(|other| seat(other, edge, taken, seen)) {
            taken[unit] = Some(slot);
            return true;
        }
    }
    false
}

/// What each share is due: its part by weight rounded down, the rest one by one to the heaviest, the first of equals.
fn due(replicas: u64, shares: &[Spread]) -> Vec<u64> {
    let even = shares.iter().all(|s| s.weight == 0);
    let weights: Vec<u64> = shares.iter().map(|s| if even { 1 } else { u64::from(s.weight) }).collect();
    let total: u64 = weights.iter().sum();
    let mut due: Vec<u64> = weights.iter().map(|w| replicas * w / total).collect();
    let mut served = vec![false; due.len()];
    while due.iter().sum::<u64>() < replicas {
        let left = (0..due.len()).filter(|i| !served[*i]);
        let next = left.max_by_key(|i| (weights[*i], std::cmp::Reverse(*i))).expect("less is left over than shares");
        due[next] += 1;
        served[next] = true;
    }
    due
}

/// For the trace of a run that failed.
pub(crate) fn told(state: &State) -> Vec<String> {
    let mut lines = Vec::new();
    for host in state.hosts.values() {
        let HostState { hello, cordoned, draining, lost, generation, .. } = host;
        lines.push(format!(
            "{} {:?} cordoned={cordoned} draining={draining} lost={lost} generation={generation}",
            hello.name, hello.labels
        ));
    }
    for (name, app) in &state.apps {
        lines.push(format!("{name} r{} deleting={} {}", app.current, app.deleting, line(app.spec())));
        for ((a, component), hosts) in &state.placements {
            if a == name {
                let at = |(h, p): (&HostId, &scheduler::state::Placed)| {
                    let host = state.hosts.get(h).map_or("?", |h| h.hello.name.as_str());
                    format!("{host}: r{} x{}", p.revision, p.replicas)
                };
                let at: Vec<String> = hosts.iter().map(at).collect();
                lines.push(format!("  {component}: {}", at.join(", ")));
            }
        }
    }
    lines
}

fn line(app: &App) -> String {
    let names: Vec<&str> = app.components.keys().map(Name::as_str).collect();
    format!("{} [{}]", crate::history::scalers(app), names.join(" "))
}
