//! Decides where replicas run. Pure: same input, same plan. No clock, no IO, no randomness.
//!
//! Reading order: `Observed` (what the hosts said), `plan` (leases, then each component), `spread` (how many where by
//! wadm's rules), `strict` (at most one), `fill` (even distribution over hosts), `hosts` (who fits what).

mod component;
mod fill;
mod hosts;
mod observed;
mod spread;
mod strict;
#[cfg(test)]
mod tests;

pub use hosts::meets;
pub use observed::{Heard, Observed, RunningNow, Seen};
pub use spread::daemon_target;

use crate::state::State;
use proto::app::{HostId, Name};
use proto::fault::{Fault, built_in};
use proto::v1 as pb;

/// Changes in one plan: keeps one log entry below the bound of an entry.
pub const CHANGES_MAX: usize = 20_000;

/// Timers of the plan, in milliseconds.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// A host unheard for so long is suspect: shown, not acted on.
    pub suspect_ms: u64,
    /// A host unheard for so long is lost: what it ran is placed elsewhere.
    pub lost_ms: u64,
    /// A lost host with nothing placed on it is forgotten after so long.
    pub forget_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self { suspect_ms: 6_000, lost_ms: 10_000, forget_ms: 24 * 3600 * 1000 }
    }
}

/// What to propose. Empty when nothing has to move.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// The state's `plan_base` this was made on.
    pub based_on: u64,
    pub lost: Vec<HostId>,
    /// Hosts that were lost and are heard again.
    pub returned: Vec<HostId>,
    pub forget: Vec<HostId>,
    pub changes: Vec<pb::Change>,
    /// Replicas that no host can take.
    pub unplaced: Vec<Unplaced>,
    /// So many hosts fell silent at once that the network or the bus is the likelier cause: nothing is marked lost.
    pub brake: bool,
}

/// Why replicas have no host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unplaced {
    pub app: Name,
    pub component: Name,
    pub missing: u64,
    pub why: String,
}

/// Compares what is desired with what is placed and heard. `now_ms` is the same monotonic clock as in `observed`.
pub fn plan(state: &State, observed: &Observed, now_ms: u64, config: &Config) -> Plan {
    let mut plan = by_time(state, observed, now_ms, config);
    if !plan.lost.is_empty() || !plan.returned.is_empty() {
        // Their commands move the base: the rest is planned on what comes of them.
        return plan;
    }
    strict::forget(state, observed, &mut plan);
    let mut columns = hosts::Columns::new(state);
    // Hosts that a rollout may wait for: lost ones never answer.
    for (name, app) in &state.apps {
        component::plan_app(state, observed, name, app, &mut columns, &mut plan);
        if plan.changes.len() >= CHANGES_MAX {
            break;
        }
    }
    plan
}

/// The part of a plan that moves by time alone: which hosts are lost, have returned, are forgotten.
pub fn by_time(state: &State, observed: &Observed, now_ms: u64, config: &Config) -> Plan {
    let mut plan = Plan { based_on: state.plan_base, ..Plan::default() };
    leases(state, observed, now_ms, config, &mut plan);
    plan
}

/// Whether so many hosts are silent at once that nothing is marked lost. A large share of a fleet does not die in the
/// same moment. Heartbeats are apart, so hosts that the same cut silences are not lost in the same moment either: those
/// that are suspect by then count as well.
pub fn brakes(state: &State, observed: &Observed, now_ms: u64, config: &Config) -> bool {
    let (mut alive, mut fading, mut silent) = (0usize, 0usize, 0usize);
    for (id, _) in state.hosts.iter().filter(|(_, host)| !host.lost) {
        match silence(observed, id, now_ms) {
            _ if observed.hosts.get(id).is_some_and(|seen| seen.leaving) => {}
            ms if ms >= config.lost_ms => silent += 1,
            ms if ms >= config.suspect_ms => fading += 1,
            _ => alive += 1,
        }
    }
    let gone = silent + fading;
    silent > 0 && gone > alive && gone >= 3 && !built_in(Fault::NoBrake)
}

/// For how long a host was not heard. A leader takes nothing from a host that it has not heard from before the grace
/// period since it took office has passed.
fn silence(observed: &Observed, host: &HostId, now_ms: u64) -> u64 {
    let since_ms = if built_in(Fault::NoGrace) { 0 } else { observed.since_ms };
    let heard_ms = observed.hosts.get(host).map_or(0, |seen| seen.at_ms).max(since_ms);
    now_ms.saturating_sub(heard_ms)
}

/// Marks hosts lost and returned.
fn leases(state: &State, observed: &Observed, now_ms: u64, config: &Config, plan: &mut Plan) {
    plan.brake = brakes(state, observed, now_ms, config);
    let mut left = Vec::new();
    for (id, host) in &state.hosts {
        let seen = observed.hosts.get(id);
        let silence_ms = silence(observed, id, now_ms);
        let is_silent = silence_ms >= config.lost_ms;
        let is_leaving = seen.is_some_and(|s| s.leaving);
        match (host.lost, is_leaving, is_silent) {
            (false, true, _) => left.push(id.clone()),
            (false, false, true) if !plan.brake => plan.lost.push(id.clone()),
            (false, ..) => {}
            (true, false, false)
                if seen.is_some_and(|s| s.at_ms >= observed.since_ms) && !built_in(Fault::LostForGood) =>
            {
                plan.returned.push(id.clone());
            }
            (true, ..) => {
                let empty = state.on_host(id).next().is_none();
                if empty && silence_ms >= config.forget_ms {
                    plan.forget.push(id.clone());
                }
            }
        }
    }
    plan.lost.extend(left);
}
