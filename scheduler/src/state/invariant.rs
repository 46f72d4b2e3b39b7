//! What must hold in every state, and what must hold after every plan, checked apart from the code that makes it so.
//! Used by the simulation after every step and by tests; each finding is one sentence.

use super::{ANSWERED_MAX, APPS_MAX, HOSTS_MAX, RETIRED_MAX, State};
use proto::app::Scaler;
use std::collections::BTreeMap;

/// Findings in any state; empty when all is well.
pub fn check(state: &State) -> Vec<String> {
    let mut found = Vec::new();
    check_bounds(state, &mut found);
    check_references(state, &mut found);
    check_routes(state, &mut found);
    found
}

/// Findings in a state that a plan has just made. Before the next plan, a host whose drain was ended may still hold
/// what was replaced meanwhile.
pub fn check_planned(state: &State) -> Vec<String> {
    let mut found = check(state);
    check_counts(state, &mut found);
    found
}

fn check_bounds(state: &State, found: &mut Vec<String>) {
    if state.apps.len() > APPS_MAX || state.hosts.len() > HOSTS_MAX || state.answered.len() > ANSWERED_MAX {
        found.push(format!(
            "bounds: {} apps, {} hosts, {} answers",
            state.apps.len(),
            state.hosts.len(),
            state.answered.len()
        ));
    }
    if state.retired.len() > RETIRED_MAX || state.retired.iter().any(|(name, _)| state.apps.contains_key(name)) {
        found.push(format!("{} apps that are gone, or one of them is not", state.retired.len()));
    }
    if state.answered.len() != state.answered_order.len() {
        found.push("answers and their order differ in number".into());
    }
    if state.access.len() > super::ACCESS_MAX {
        found.push(format!("bounds: {} tokens of the API", state.access.len()));
    }
    if state.members.len() > super::MEMBERS_MAX || state.tokens.len() > super::TOKENS_MAX {
        found.push(format!("bounds: {} schedulers, {} join tokens", state.members.len(), state.tokens.len()));
    }
    if state.members.keys().any(|id| *id == 0 || *id >= state.next_member) {
        found.push(format!("a scheduler has an id that was not given: the next one is {}", state.next_member));
    }
    for (id, host) in &state.hosts {
        if host.generation > state.applied {
            found.push(format!("host {id} has generation {} beyond index {}", host.generation, state.applied));
        }
    }
}

fn check_references(state: &State, found: &mut Vec<String>) {
    let mut by_host = 0;
    for ((app, component), hosts) in &state.placements {
        for (host, placed) in hosts {
            by_host += 1;
            if !state.hosts.contains_key(host) {
                found.push(format!("{app}/{component} is placed on {host}, which is not known"));
            }
            let known = state.apps.get(app).and_then(|a| a.revisions.get(&placed.revision));
            if !known.is_some_and(|r| r.spec.components.contains_key(component)) {
                found.push(format!("{app}/{component} is placed in revision {}, which is not kept", placed.revision));
            }
            if placed.replicas == 0 {
                found.push(format!("{app}/{component} is placed on {host} with no replica"));
            }
        }
    }
    let listed: usize = state.hosts.keys().map(|h| state.on_host(h).count()).sum();
    if listed != by_host {
        found.push(format!("{by_host} placements, {listed} of them listed by host"));
    }
    for (name, app) in &state.apps {
        if !app.revisions.contains_key(&app.current) {
            found.push(format!("app {name} lacks its current revision {}", app.current));
        }
    }
}

/// Never more placed than was asked for in some revision that is still placed; what drains may be there twice.
fn check_counts(state: &State, found: &mut Vec<String>) {
    for ((app, component), hosts) in &state.placements {
        let Some(at) = state.apps.get(app) else { continue };
        let asked = at
            .revisions
            .iter()
            .filter(|(r, _)| **r == at.current || hosts.values().any(|p| p.revision == **r))
            .filter_map(|(_, r)| match &r.spec.components.get(component)?.scaler {
                Scaler::Spread { replicas, .. } => Some(u64::from(*replicas)),
                Scaler::Daemon { replicas, spread } => {
                    Some(u64::from(*replicas) * hosts.len() as u64 * spread.len().max(1) as u64)
                }
            })
            .max()
            .unwrap_or(0);
        let draining = |h| state.hosts.get(h).is_some_and(|h: &super::HostState| h.draining);
        let placed: u64 = hosts.iter().filter(|(h, _)| !draining(*h)).map(|(_, p)| u64::from(p.replicas)).sum();
        if placed > asked {
            found.push(format!("{app}/{component}: {placed} placed, {asked} asked for"));
        }
    }
}

fn check_routes(state: &State, found: &mut Vec<String>) {
    let mut owners: BTreeMap<(String, String), String> = BTreeMap::new();
    for (name, app) in state.apps.iter().filter(|(_, a)| !a.deleting) {
        for (_, _, route) in app.spec().routes() {
            let before = owners.insert((route.host.clone(), route.path.clone()), name.to_string());
            if before.is_some_and(|b| b != name.as_str()) {
                found.push(format!("route {}{} has two owners", route.host, route.path));
            }
        }
    }
}
