//! What this host says of itself while it lives: heartbeats, and the inventory when it changed.

use super::running::{Running, What};
use super::{Identity, start::Parts};
use crate::assignment::Key;
use crate::beats::{Beats, Now};
use crate::holding::{Holding, now_ms};
use crate::keeper::item;
use proto::v1 as pb;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// The latest state of what the loop tells, shared with who answers questions.
#[derive(Default)]
pub(super) struct Pulse {
    beats: Mutex<Beats>,
    /// The end of the lease, for those who run what is strict.
    pub(super) holding: Holding,
    /// A lease came.
    pub(super) leased: Notify,
}

impl Pulse {
    fn beats(&self) -> MutexGuard<'_, Beats> {
        self.beats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The latest beat with its inventory, under a number of its own.
    pub(super) fn latest(&self) -> pb::Beat {
        self.beats().latest(now_ms())
    }

    /// Whether the next beat tells the inventory although it did not change.
    pub(super) fn is_full_next(&self) -> bool {
        self.beats().is_full_next()
    }

    /// The next beat to publish. Without an inventory, that of the beat before holds.
    pub(super) fn next(&self, inventory: Option<Vec<pb::Running>>, now: Now) -> pb::Beat {
        self.beats().next(inventory, now, now_ms())
    }

    /// Takes a lease, or says why not.
    pub(super) fn grant(&self, lease: &pb::AskLease) -> Result<(), String> {
        let mut beats = self.beats();
        beats.grant(lease)?;
        self.holding.set(beats.lease().until_ms());
        self.leased.notify_one();
        Ok(())
    }

    /// Whether what is strict may run now, when the assignment of `generation` is stored.
    pub(super) fn is_leased(&self, generation: u64) -> bool {
        self.beats().lease().holds(now_ms(), generation)
    }

    pub(super) fn begin(&self, identity: &Identity) {
        let (lattice, host) = (identity.lattice.to_string(), identity.host.to_string());
        *self.beats() = Beats::new(lattice, host, identity.boot.clone());
    }
}

/// What runs, before what does not.
pub(super) fn inventory(running: &Running, not_up: Vec<pb::Running>) -> Vec<pb::Running> {
    let mut items = Vec::new();
    running.each(|app, component, have, what| {
        let (stats, failure) = match what {
            What::Actor(actor) => (actor.stats(), None),
            What::Provider(store) => (Default::default(), store.failure()),
        };
        let state = if failure.is_some() { pb::RunState::Failed } else { pb::RunState::Running };
        let key: Key = (app.clone(), component.clone());
        items.push(pb::Running {
            error: failure.unwrap_or_default(),
            requests: stats.requests,
            errors: stats.errors,
            ..item(&key, have.revision, have.replicas, state)
        });
    });
    items.extend(not_up);
    items
}

impl Identity {
    pub(super) fn hello(&self, parts: &Parts) -> pb::Hello {
        let (term, generation) = parts.pulse.beats().fence();
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
