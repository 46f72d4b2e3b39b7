//! What this host says of itself while it lives: heartbeats, and the inventory when it changed.

use super::running::{Running, What};
use super::{Identity, start::Parts};
use crate::assignment::{Key, Wanted};
use crate::holding::{Holding, now_ms};
use crate::lease::Lease;
use proto::v1 as pb;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use tokio::sync::Notify;

/// Every so many beats the inventory goes along although it did not change.
const FULL_EVERY: u64 = 10;

/// The latest state of what the loop tells, shared with who answers questions.
#[derive(Default)]
pub(super) struct Pulse {
    state: Mutex<State>,
    /// The end of the lease, for those who run what is strict.
    pub(super) holding: Holding,
    /// A lease came.
    pub(super) leased: Notify,
}

#[derive(Default)]
struct State {
    beat: pb::Beat,
    lease: Lease,
}

impl State {
    /// The next heartbeat: a lease that comes for it counts from now.
    fn count(&mut self) {
        self.beat.seq += 1;
        self.lease.sent(self.beat.seq, now_ms());
    }
}

fn is_full(seq: u64) -> bool {
    seq.is_multiple_of(FULL_EVERY)
}

/// Whether more than counters differs.
fn is_change(before: &[pb::Running], now: &[pb::Running]) -> bool {
    let same = |a: &pb::Running, b: &pb::Running| {
        let pb::Running { app, component, revision, replicas, state, error, requests: _, errors: _ } = a;
        (app, component, revision, replicas, state, error)
            == (&b.app, &b.component, &b.revision, &b.replicas, &b.state, &b.error)
    };
    before.len() != now.len() || !before.iter().zip(now).all(|(a, b)| same(a, b))
}

/// Why a component is not up.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    pub(super) revision: u64,
    pub(super) error: String,
}

impl Pulse {
    /// The latest beat with its inventory, under a number of its own.
    pub(super) fn latest(&self) -> pb::Beat {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.count();
        state.beat.clone()
    }

    /// Whether the next beat tells the inventory although it did not change.
    pub(super) fn is_full_next(&self) -> bool {
        is_full(self.state.lock().unwrap_or_else(PoisonError::into_inner).beat.seq + 1)
    }

    /// The next beat to publish. Without an inventory, that of the beat before holds.
    pub(super) fn next(
        &self,
        parts: &Parts,
        inventory: Option<Vec<pb::Running>>,
        fence: (u64, u64),
        leaving: bool,
        load: Option<pb::Load>,
    ) -> pb::Beat {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let first = state.beat.seq == 0;
        let before = state.beat.inventory.take().unwrap_or_default();
        let changed = first || inventory.as_ref().is_some_and(|now| is_change(&before.items, now));
        if changed {
            state.beat.inventory_version += 1;
        }
        state.count();
        (state.beat.term, state.beat.generation) = fence;
        state.beat.leaving = leaving;
        state.beat.dropped = parts.bus.drops().total();
        state.beat.load = load;
        state.beat.starting = parts.steps.told();
        let mut beat = state.beat.clone();
        let now = inventory.map_or(before, |items| pb::Inventory { items });
        if changed || is_full(beat.seq) {
            beat.inventory = Some(now.clone());
        }
        state.beat.inventory = Some(now);
        beat
    }

    /// Takes a lease, or says why not.
    pub(super) fn grant(&self, lease: &pb::AskLease) -> Result<(), String> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let boot = state.beat.boot.clone();
        state.lease.grant(&boot, lease)?;
        self.holding.set(state.lease.until_ms());
        self.leased.notify_one();
        Ok(())
    }

    /// Whether what is strict may run now, when the assignment of `generation` is stored.
    pub(super) fn is_leased(&self, generation: u64) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).lease.holds(now_ms(), generation)
    }

    pub(super) fn begin(&self, identity: &Identity) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.beat.lattice = identity.lattice.to_string();
        state.beat.host = identity.host.to_string();
        state.beat.boot = identity.boot.clone();
    }
}

/// What runs, what is being brought up, and what failed.
pub(super) fn inventory(
    running: &Running,
    wanted: &BTreeMap<Key, Wanted>,
    failed: &BTreeMap<Key, Failure>,
    stopping: impl Iterator<Item = (Key, u64)>,
) -> Vec<pb::Running> {
    let mut items = Vec::new();
    running.each(|app, component, have, what| {
        let (stats, failure) = match what {
            What::Actor(actor) => (actor.stats(), None),
            What::Provider(store) => (Default::default(), store.failure()),
        };
        let state = if failure.is_some() { pb::RunState::Failed } else { pb::RunState::Running };
        items.push(pb::Running {
            app: app.to_string(),
            component: component.to_string(),
            revision: have.revision,
            replicas: have.replicas,
            state: state.into(),
            error: failure.unwrap_or_default(),
            requests: stats.requests,
            errors: stats.errors,
        });
    });
    for (key, want) in wanted {
        if running.have(key).is_some_and(|have| have.revision == want.revision) {
            continue;
        }
        let failure = failed.get(key).filter(|f| f.revision == want.revision);
        items.push(pb::Running {
            app: key.0.to_string(),
            component: key.1.to_string(),
            revision: want.revision,
            replicas: want.replicas,
            state: if failure.is_some() { pb::RunState::Failed } else { pb::RunState::Starting }.into(),
            error: failure.map(|f| f.error.chars().take(2_000).collect()).unwrap_or_default(),
            ..Default::default()
        });
    }
    items.extend(stopping.map(|(key, revision)| pb::Running {
        app: key.0.to_string(),
        component: key.1.to_string(),
        revision,
        replicas: 1,
        state: pb::RunState::Stopping.into(),
        ..Default::default()
    }));
    items
}

impl Identity {
    pub(super) fn hello(&self, parts: &Parts) -> pb::Hello {
        let (term, generation) = parts.pulse.fence();
        pb::Hello {
            lattice: self.lattice.to_string(),
            host: self.host.to_string(),
            name: self.name.clone(),
            boot: self.boot.clone(),
            labels: self.labels.clone(),
            facts: Some(self.facts.clone()),
            ingress: self.ingress.clone(),
            ingress_tls: self.ingress_tls,
            term,
            generation,
        }
    }
}

impl Pulse {
    fn fence(&self) -> (u64, u64) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        (state.beat.term, state.beat.generation)
    }
}
