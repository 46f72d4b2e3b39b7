//! What the hosts said, in memory only: heartbeats never enter the log. Pure: the shell passes messages and the time.

use crate::state::HOSTS_MAX;
use proto::app::{HostId, Name};
use proto::fault::{Fault, built_in};
use proto::starting::STARTING_MAX;
use proto::v1 as pb;
use std::cmp::Ordering;
use std::collections::BTreeMap;

/// Items of one inventory that are taken; more is a broken host.
const INVENTORY_MAX: usize = 100_000;
/// Actors of one load that are taken.
const LOADS_MAX: usize = 256;
/// Hosts that are remembered: more than there may be, for those that greet before they are registered.
const OBSERVED_MAX: usize = HOSTS_MAX + 1_024;

#[derive(Debug, Clone, Default)]
pub struct Observed {
    pub hosts: BTreeMap<HostId, Seen>,
    /// When this scheduler took office.
    pub since_ms: u64,
    /// Counts whatever changed of what decides where something runs: while it stays, only time has passed.
    pub changes: u64,
}

/// The latest of one host.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    pub at_ms: u64,
    pub boot: String,
    pub seq: u64,
    /// Of the assignment that the host has stored.
    pub term: u64,
    pub generation: u64,
    pub inventory_version: u64,
    /// Of the assignment that `running` is what came of.
    pub told_generation: u64,
    /// Two entries for one component while a revision replaces another.
    pub running: BTreeMap<(Name, Name), Vec<RunningNow>>,
    pub dropped: u64,
    pub leaving: bool,
    /// The latest it told; kept while heartbeats tell none.
    pub load: LoadNow,
    /// How far it is with what it brings up, of the last heartbeat. Not what decides anything: what is told of it.
    pub starting: BTreeMap<(Name, Name), pb::Starting>,
}

/// What a host did in a while. Not what decides a placement: what is told of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoadNow {
    pub window_ms: u32,
    pub cpu_millis: u32,
    pub memory_bytes: u64,
    pub actors: BTreeMap<(Name, Name), pb::ActorLoad>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningNow {
    pub revision: u64,
    pub replicas: u32,
    pub state: pb::RunState,
    pub error: String,
    pub requests: u64,
    pub errors: u64,
}

/// What a heartbeat meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// Older than what is known: replayed or reordered.
    Stale,
    /// Taken; the inventory changed.
    Changed,
    /// Taken; nothing new.
    Same,
    /// Taken, but its inventory is newer than what is known here: ask for it.
    AskInventory,
}

impl Seen {
    /// Takes a heartbeat that is newer than the latest.
    fn take(&mut self, beat: &pb::Beat, now_ms: u64) -> Heard {
        let leaving_changed = self.leaving != beat.leaving;
        let confirmed_changed = (self.term, self.generation) != (beat.term, beat.generation);
        self.at_ms = now_ms;
        self.seq = beat.seq;
        self.term = beat.term;
        self.generation = beat.generation;
        self.dropped = beat.dropped;
        self.leaving = beat.leaving;
        self.starting = starting_of(&beat.starting);
        if let Some(load) = &beat.load {
            self.load = load_of(load);
        }
        if let Some(inventory) = &beat.inventory {
            let changed = self.inventory_version != beat.inventory_version;
            self.inventory_version = beat.inventory_version;
            let running = running_of(inventory);
            let changed = changed || running != self.running;
            self.running = running;
            self.told_generation = beat.generation;
            return if changed || leaving_changed || confirmed_changed { Heard::Changed } else { Heard::Same };
        }
        if self.inventory_version == beat.inventory_version {
            self.told_generation = beat.generation;
        }
        if leaving_changed {
            // What it runs does not matter any more; that it ends must not wait for the answer.
            Heard::Changed
        } else if self.inventory_version != beat.inventory_version {
            Heard::AskInventory
        } else if confirmed_changed {
            Heard::Changed
        } else {
            Heard::Same
        }
    }
}

impl Observed {
    /// Takes one heartbeat.
    pub fn beat(&mut self, host: &HostId, beat: &pb::Beat, now_ms: u64) -> Heard {
        let seen = self.hosts.entry(host.clone()).or_default();
        if seen.boot == beat.boot {
            if beat.seq <= seen.seq && !built_in(Fault::OldBeatTaken) {
                return Heard::Stale;
            }
        } else {
            // Boot ids are ULIDs: a later boot sorts behind an earlier one of the same host.
            if beat.boot < seen.boot && !built_in(Fault::OldBootTaken) {
                return Heard::Stale;
            }
            *seen = Seen { boot: beat.boot.clone(), ..Seen::default() };
            self.changes += 1;
        }
        let stored = |seen: &Seen| (seen.term, seen.generation, seen.told_generation);
        let before = stored(seen);
        let heard = seen.take(beat, now_ms);
        self.changes += u64::from(heard == Heard::Changed || stored(seen) != before);
        heard
    }

    /// Takes that a host has stored an assignment.
    pub fn stored(&mut self, host: &HostId, term: u64, generation: u64) {
        if let Some(seen) = self.hosts.get_mut(host) {
            self.changes += u64::from((seen.term, seen.generation) != (term, generation));
            (seen.term, seen.generation) = (term, generation);
        }
    }

    /// Takes a hello: who greets lives. What it runs is in its next heartbeat. Gives false when there is no room for one
    /// more host.
    pub fn hello(&mut self, host: &HostId, hello: &pb::Hello, now_ms: u64) -> bool {
        if self.hosts.len() >= OBSERVED_MAX && !self.hosts.contains_key(host) {
            return false;
        }
        let seen = self.hosts.entry(host.clone()).or_default();
        match hello.boot.cmp(&seen.boot) {
            Ordering::Less => {}
            // Its heartbeats were dropped while it was not registered: they are no measure.
            Ordering::Equal => seen.at_ms = now_ms,
            Ordering::Greater => {
                *seen = Seen {
                    at_ms: now_ms,
                    boot: hello.boot.clone(),
                    term: hello.term,
                    generation: hello.generation,
                    ..Seen::default()
                };
                self.changes += 1;
            }
        }
        true
    }

    /// Forgets what greeted and did not become a host: `is_host` knows those that are.
    pub fn prune(&mut self, is_host: impl Fn(&HostId) -> bool, now_ms: u64, after_ms: u64) {
        let before = self.hosts.len();
        self.hosts.retain(|host, seen| is_host(host) || now_ms.saturating_sub(seen.at_ms) < after_ms);
        self.changes += u64::from(self.hosts.len() != before);
    }

    /// What `host` runs of one component.
    pub fn running(&self, host: &HostId, key: &(Name, Name)) -> &[RunningNow] {
        self.hosts.get(host).and_then(|s| s.running.get(key)).map_or(&[], Vec::as_slice)
    }

    /// Whether `host` told what it runs since it started: what it did not name then is not running.
    pub fn is_told(&self, host: &HostId) -> bool {
        self.hosts.get(host).is_some_and(|s| s.inventory_version > 0)
    }

    /// Whether `host` stored the assignment of `generation`, or a newer one, and said since that it runs nothing of it.
    pub fn has_stopped(&self, host: &HostId, key: &(Name, Name), generation: u64) -> bool {
        let told = self.hosts.get(host).is_some_and(|s| s.told_generation >= generation);
        told && self.running(host, key).is_empty()
    }

    /// Whether `host` runs this revision of it now.
    pub fn is_running(&self, host: &HostId, key: &(Name, Name), revision: u64) -> bool {
        self.running(host, key).iter().any(|r| r.revision == revision && r.state == pb::RunState::Running)
    }
}

fn starting_of(all: &[pb::Starting]) -> BTreeMap<(Name, Name), pb::Starting> {
    let named = all.iter().take(STARTING_MAX).filter_map(|one| {
        let key = (one.app.parse().ok()?, one.component.parse().ok()?);
        Some((key, one.clone()))
    });
    named.collect()
}

fn load_of(load: &pb::Load) -> LoadNow {
    let mut actors = BTreeMap::new();
    for actor in load.actors.iter().take(LOADS_MAX) {
        let (Ok(app), Ok(name)) = (actor.app.parse(), actor.actor.parse()) else { continue };
        actors.insert((app, name), actor.clone());
    }
    LoadNow { window_ms: load.window_ms, cpu_millis: load.cpu_millis, memory_bytes: load.memory_bytes, actors }
}

impl LoadNow {
    /// How often something happened in a second.
    pub fn per_s(&self, count: u64) -> f64 {
        if self.window_ms == 0 { 0.0 } else { count as f64 * 1_000.0 / f64::from(self.window_ms) }
    }
}

fn running_of(inventory: &pb::Inventory) -> BTreeMap<(Name, Name), Vec<RunningNow>> {
    let mut running: BTreeMap<(Name, Name), Vec<RunningNow>> = BTreeMap::new();
    for item in inventory.items.iter().take(INVENTORY_MAX) {
        let (Ok(app), Ok(component)) = (item.app.parse(), item.component.parse()) else { continue };
        running.entry((app, component)).or_default().push(RunningNow {
            revision: item.revision,
            replicas: item.replicas,
            state: item.state(),
            error: item.error.chars().take(2_000).collect(),
            requests: item.requests,
            errors: item.errors,
        });
    }
    running
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "helpers of tests")]
    use super::*;

    #[test]
    fn what_is_brought_up_is_as_the_last_heartbeat_says() {
        let host: HostId = ulid::Ulid::from(1u128).to_string().parse().unwrap();
        let mut observed = Observed::default();
        let starting = |component: &str| pb::Starting {
            app: "shop".into(),
            component: component.into(),
            step: pb::StartStep::Compiling.into(),
            ..pb::Starting::default()
        };
        let mut beat = pb::Beat { boot: "b".into(), seq: 1, ..pb::Beat::default() };
        beat.starting = vec![starting("web"), starting("no such name"), starting("cart")];
        // It decides nothing: nothing else has changed.
        observed.beat(&host, &pb::Beat { seq: 0, ..pb::Beat::default() }, 1);
        observed.beat(&host, &beat, 2);
        let named = |observed: &Observed| -> Vec<String> {
            observed.hosts[&host].starting.keys().map(|(_, component)| component.to_string()).collect()
        };
        assert_eq!(named(&observed), ["cart", "web"]);
        beat =
            pb::Beat { seq: 2, starting: (0..STARTING_MAX + 9).map(|n| starting(&format!("a{n}"))).collect(), ..beat };
        assert_eq!(observed.beat(&host, &beat, 3), Heard::Same);
        assert_eq!(named(&observed).len(), STARTING_MAX);
        // One that was on its way for long changes nothing.
        assert_eq!(observed.beat(&host, &pb::Beat { starting: Vec::new(), ..beat.clone() }, 4), Heard::Stale);
        assert_eq!(named(&observed).len(), STARTING_MAX);
        observed.beat(&host, &pb::Beat { seq: 3, starting: Vec::new(), ..beat }, 5);
        assert!(named(&observed).is_empty());
    }
}
