//! Leases of hosts that run something strict: which heartbeats are worth one, and what is sent. Pure: the shell asks the
//! quorum in between, and sends.
//!
//! What makes it safe: a heartbeat is taken first, then a quorum says that this scheduler leads still. Whoever leads later
//! took office after that, and calls a host lost `lost_ms` after it took office or heard it last, whichever is later. The
//! host counts a shorter time from when it sent the heartbeat. Who was proposed to be lost gets no lease any more until it
//! is known what became of that.

use crate::plan::{Observed, Plan};
use crate::state::State;
use proto::app::HostId;
use proto::fault::{Fault, built_in};
use proto::v1 as pb;
use std::collections::{BTreeMap, BTreeSet};

/// Of the time after which a host is lost, so much is its lease: clocks may differ by the rest.
const SHARE: (u64, u64) = (9, 10);

/// How long a lease lasts, when a host is lost after `lost_ms`.
pub fn lease_ms(lost_ms: u64) -> u32 {
    let ms = if built_in(Fault::NoLeaseMargin) { lost_ms * 2 } else { lost_ms * SHARE.0 / SHARE.1 };
    u32::try_from(ms).unwrap_or(u32::MAX)
}

/// A heartbeat that was heard before the quorum was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Basis {
    host: HostId,
    boot: String,
    seq: u64,
}

/// What a leader remembers of its leases.
#[derive(Debug, Default)]
pub struct Leases {
    /// The heartbeat that each host has its lease for.
    granted: BTreeMap<HostId, (String, u64)>,
    /// Proposed to be lost, and not known what became of it.
    losing: BTreeSet<HostId>,
}

impl Leases {
    /// Another leader, or this one anew: nothing is remembered.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Hosts are proposed to be lost.
    pub fn proposes(&mut self, lost: &[HostId]) {
        if !built_in(Fault::LeaseWhileLosing) {
            self.losing.extend(lost.iter().cloned());
        }
    }

    /// The proposal is applied. One that is not known to be, is made again.
    pub fn proposed(&mut self) {
        self.losing.clear();
    }

    /// Adds to a plan what is to be proposed again.
    pub fn again(&self, state: &State, plan: &mut Plan) {
        let more = self.losing.iter().filter(|id| state.hosts.contains_key(*id) && !plan.lost.contains(id));
        let more: Vec<HostId> = more.cloned().collect();
        plan.lost.extend(more);
    }

    /// Hosts that are due a lease for a heartbeat that is newer than their last one's. The quorum is asked next.
    pub fn due(&self, state: &State, observed: &Observed) -> Vec<Basis> {
        let hosts: BTreeSet<&HostId> = state.strict_hosts().collect();
        let basis = |id: &&HostId| {
            let seen = observed.hosts.get(*id)?;
            let basis = Basis { host: (*id).clone(), boot: seen.boot.clone(), seq: seen.seq };
            let is_new = self.granted.get(*id).is_none_or(|(boot, seq)| (boot, *seq) != (&seen.boot, seen.seq));
            (is_new && seen.seq > 0 && self.may(state, observed, id)).then_some(basis)
        };
        hosts.iter().filter_map(basis).collect()
    }

    /// What is sent, once a quorum said that this scheduler leads still.
    pub fn grant(
        &mut self,
        state: &State,
        observed: &Observed,
        due: Vec<Basis>,
        lost_ms: u64,
    ) -> Vec<(HostId, pb::AskLease)> {
        self.granted.retain(|id, _| state.hosts.contains_key(id));
        let mut grants = Vec::new();
        for Basis { host, boot, seq } in due {
            if !self.may(state, observed, &host) {
                continue;
            }
            let generation = state.hosts.get(&host).map_or(0, |h| h.generation);
            self.granted.insert(host.clone(), (boot.clone(), seq));
            grants.push((host, pb::AskLease { boot, seq, generation, lease_ms: lease_ms(lost_ms) }));
        }
        grants
    }

    /// Whether a host is none that was lost, or will be, and has stored the newest that it shall run.
    fn may(&self, state: &State, observed: &Observed, id: &HostId) -> bool {
        let Some(host) = state.hosts.get(id) else { return false };
        let stored = observed.hosts.get(id).is_some_and(|seen| seen.generation == host.generation);
        !host.lost && !self.losing.contains(id) && (stored || built_in(Fault::LeaseForOldContent))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "helpers of tests")]
    use super::*;
    use crate::state::{AppState, HostState, Placed, Revision};
    use proto::app::{Actor, App, Component, Kind, Scaler};
    use std::sync::Arc;

    fn id() -> HostId {
        ulid::Ulid::from(1u128).to_string().parse().unwrap()
    }

    /// One host that runs something strict, with generation 7 stored, heard with heartbeat 3.
    fn lattice() -> (State, Observed) {
        let actor = Actor {
            image: String::new(),
            digest: None,
            exports: Vec::new(),
            ingress: Vec::new(),
            grants: Default::default(),
            limits: Default::default(),
        };
        let component =
            Component { kind: Kind::Actor(actor), scaler: Scaler::default(), strict: true, config: BTreeMap::new() };
        let (app, name): (proto::app::Name, proto::app::Name) = ("shop".parse().unwrap(), "cart".parse().unwrap());
        let spec = App {
            name: app.clone(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            components: [(name.clone(), Box::new(component))].into(),
            links: Vec::new(),
        };
        let mut state = State::default();
        let revision = Revision { created_ms: 0, cause: String::new(), spec: Arc::new(spec) };
        let revisions = [(1, revision)].into();
        let at = AppState { version: 1, current: 1, deleting: false, created_ms: 0, revisions };
        state.apps.insert(app.clone(), at);
        let (cordoned, draining, lost) = (false, false, false);
        let host = HostState { hello: pb::Hello::default(), cordoned, draining, lost, generation: 7, changed_ms: 0 };
        state.hosts.insert(id(), host);
        state.placements.insert((app.clone(), name.clone()), [(id(), Placed { revision: 1, replicas: 1 })].into());
        state.homes.insert((app, name), id());
        let mut observed = Observed::default();
        observed.beat(&id(), &beat(3), 0);
        (state, observed)
    }

    fn beat(seq: u64) -> pb::Beat {
        pb::Beat { boot: "b".into(), seq, generation: 7, ..Default::default() }
    }

    #[test]
    fn one_for_each_heartbeat_after_the_quorum() {
        let (state, mut observed) = lattice();
        let mut leases = Leases::default();
        let due = leases.due(&state, &observed);
        assert_eq!(due, [Basis { host: id(), boot: "b".into(), seq: 3 }]);
        let granted = leases.grant(&state, &observed, due, 10_000);
        let lease = pb::AskLease { boot: "b".into(), seq: 3, generation: 7, lease_ms: 9_000 };
        assert_eq!(granted, [(id(), lease)]);
        assert_eq!(leases.due(&state, &observed), []);
        observed.beat(&id(), &beat(4), 2_000);
        assert_eq!(leases.due(&state, &observed).len(), 1);
    }

    #[test]
    fn none_for_who_is_lost_or_will_be_or_runs_what_is_old() {
        let (mut state, observed) = lattice();
        let mut leases = Leases::default();
        let due = leases.due(&state, &observed);
        leases.proposes(&[id()]);
        assert_eq!(leases.due(&state, &observed), []);
        assert_eq!(leases.grant(&state, &observed, due.clone(), 10_000), [], "it was asked before");
        let mut plan = Plan::default();
        leases.again(&state, &mut plan);
        assert_eq!(plan.lost, [id()], "what became of it is not known");
        leases.proposed();
        assert_eq!(leases.due(&state, &observed), due);
        state.hosts.get_mut(&id()).unwrap().lost = true;
        assert_eq!(leases.due(&state, &observed), []);
        state.hosts.get_mut(&id()).unwrap().lost = false;
        state.hosts.get_mut(&id()).unwrap().generation = 8;
        assert_eq!(leases.grant(&state, &observed, due, 10_000), []);
    }
}
