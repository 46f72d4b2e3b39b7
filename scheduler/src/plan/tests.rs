//! Transcripts of the planner: a lattice in a few lines, what is desired, what the plan places.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use super::*;
use crate::state::invariant;
use proto::app::{App, Component, Kind, Provider, Scaler, Spread};
use std::collections::{BTreeMap, BTreeSet};

/// A lattice under test: the real state machine and planner; hosts that do at once what they are told.
pub(super) struct Lab {
    pub(super) state: State,
    pub(super) observed: Observed,
    pub(super) now_ms: u64,
    index: u64,
    seq: u64,
    /// Hosts that neither beat nor obey.
    pub(super) dead: BTreeSet<HostId>,
    /// Hosts that are told nothing, and report what they ran.
    pub(super) deaf: BTreeSet<HostId>,
    /// Hosts that beat but never report anything running.
    stuck: BTreeSet<HostId>,
    /// Hosts where nothing starts.
    failing: BTreeSet<HostId>,
}

pub(super) fn host_id(n: usize) -> HostId {
    ulid::Ulid::from(n as u128 + 1).to_string().parse().unwrap()
}

impl Lab {
    pub(super) fn new(labels: &[&str]) -> Self {
        let mut lab = Self {
            state: State::default(),
            observed: Observed::default(),
            now_ms: 1_000,
            index: 1,
            seq: 0,
            dead: BTreeSet::new(),
            deaf: BTreeSet::new(),
            stuck: BTreeSet::new(),
            failing: BTreeSet::new(),
        };
        for (n, label) in labels.iter().enumerate() {
            lab.join(n, label);
        }
        lab
    }

    fn join(&mut self, n: usize, labels: &str) {
        let pairs = labels.split(',').filter_map(|l| l.split_once('='));
        let interfaces = proto::app::Builtin::Keyvalue.interfaces().iter().map(|s| (*s).to_owned()).collect();
        let hello = pb::Hello {
            lattice: "test".into(),
            host: host_id(n).to_string(),
            name: format!("h{n}"),
            boot: ulid::Ulid::from(7u128).to_string(),
            labels: pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).collect(),
            facts: Some(pb::Facts {
                arch: "x86_64".into(),
                os: "linux".into(),
                interfaces,
                leases: true,
                ..Default::default()
            }),
            ..Default::default()
        };
        self.command(pb::command::What::RegisterHost(pb::RegisterHost { hello: Some(hello) }));
    }

    pub(super) fn command(&mut self, what: pb::command::What) -> pb::Outcome {
        self.index += 1;
        let commands = vec![pb::Command { request_id: String::new(), what: Some(what) }];
        let entry = pb::Entry { version: 1, time_ms: self.now_ms, commands };
        let outcome = self.state.apply(self.index, &entry, &mut BTreeSet::new()).remove(0);
        assert_eq!(invariant::check(&self.state), Vec::<String>::new());
        let copy = State::from_bytes(&self.state.to_bytes()).unwrap();
        assert!(copy == self.state, "a snapshot is the whole state");
        outcome
    }

    pub(super) fn apply(&mut self, app: &App) -> pb::Outcome {
        self.command(pb::command::What::ApplyApp(pb::ApplyApp { spec: app.to_json(), if_version: 0 }))
    }

    /// Living hosts report what they are told to run.
    fn beat(&mut self) {
        self.seq += 1;
        let hosts: Vec<HostId> =
            self.state.hosts.keys().filter(|h| !self.dead.contains(*h) && !self.deaf.contains(*h)).cloned().collect();
        for id in hosts {
            let fails = self.failing.contains(&id);
            let now = if fails { pb::RunState::Failed } else { pb::RunState::Running };
            let running = self.state.on_host(&id).map(|(app, component, p)| pb::Running {
                app: app.to_string(),
                component: component.to_string(),
                revision: p.revision,
                replicas: p.replicas,
                state: now.into(),
                ..Default::default()
            });
            let items = if self.stuck.contains(&id) { Vec::new() } else { running.collect() };
            let beat = pb::Beat {
                host: id.to_string(),
                boot: ulid::Ulid::from(7u128).to_string(),
                seq: self.seq,
                generation: self.state.hosts[&id].generation,
                inventory_version: self.seq,
                inventory: Some(pb::Inventory { items }),
                ..Default::default()
            };
            self.observed.beat(&id, &beat, self.now_ms);
        }
        for id in &self.deaf {
            let Some(seen) = self.observed.hosts.get(id) else { continue };
            let (seq, generation, inventory_version) = (self.seq, seen.generation, seen.inventory_version);
            let (host, boot) = (id.to_string(), seen.boot.clone());
            let beat = pb::Beat { host, boot, seq, generation, inventory_version, ..Default::default() };
            self.observed.beat(id, &beat, self.now_ms);
        }
    }

    /// One round of the leader.
    pub(super) fn round(&mut self) -> Plan {
        self.beat();
        let plan = plan(&self.state, &self.observed, self.now_ms, &Config::default());
        for host in plan.lost.clone() {
            self.command(pb::command::What::MarkLost(pb::MarkLost { host: host.to_string() }));
        }
        for host in plan.returned.clone() {
            self.command(pb::command::What::MarkReturned(pb::MarkReturned { host: host.to_string() }));
        }
        if !plan.changes.is_empty() {
            let commit = pb::CommitPlan { based_on: plan.based_on, changes: plan.changes.clone() };
            let outcome = self.command(pb::command::What::CommitPlan(commit));
            assert_eq!(outcome.error, "");
            assert_eq!(invariant::check_planned(&self.state), Vec::<String>::new());
        }
        self.now_ms += 1_000;
        plan
    }

    /// Rounds until nothing changes.
    pub(super) fn settle(&mut self) {
        for _ in 0..100 {
            let plan = self.round();
            if plan.changes.is_empty() && plan.lost.is_empty() && plan.returned.is_empty() {
                return;
            }
        }
        panic!("no rest after 100 rounds");
    }

    /// What is placed: "h0:2 h1:1".
    pub(super) fn placed(&self, component: &str) -> String {
        let key: (Name, Name) = ("shop".parse().unwrap(), component.parse().unwrap());
        let placed = self.state.placed(&key.0, &key.1);
        placed.map(|(h, p)| format!("{}:{}", self.state.hosts[h].hello.name, p.replicas)).collect::<Vec<_>>().join(" ")
    }

    fn revisions(&self, component: &str) -> Vec<u64> {
        let key: (Name, Name) = ("shop".parse().unwrap(), component.parse().unwrap());
        self.state.placed(&key.0, &key.1).map(|(_, p)| p.revision).collect()
    }
}

fn share(weight: u32, requirements: &str) -> Spread {
    let pairs = requirements.split(',').filter_map(|l| l.split_once('='));
    Spread { name: String::new(), requirements: pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).collect(), weight }
}

pub(super) fn app(image: &str, scaler: Scaler) -> App {
    let actor = proto::app::Actor {
        image: image.to_owned(),
        digest: Some(proto::app::Digest::of(image.as_bytes())),
        exports: Vec::new(),
        ingress: Vec::new(),
        grants: Default::default(),
        limits: Default::default(),
    };
    let component = Component { kind: Kind::Actor(actor), scaler, strict: false, config: BTreeMap::new() };
    App {
        name: "shop".parse().unwrap(),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        components: [("cart".parse().unwrap(), Box::new(component))].into(),
        links: Vec::new(),
    }
}

fn spread(replicas: u32, spread: &[Spread]) -> App {
    app("a", Scaler::Spread { replicas, spread: spread.to_vec() })
}

#[test]
fn replicas_are_spread_evenly() {
    let mut lab = Lab::new(&["", "", ""]);
    lab.apply(&spread(7, &[]));
    lab.settle();
    assert_eq!(lab.placed("cart"), "h0:3 h1:2 h2:2");
}

#[test]
fn shares_follow_weights_and_requirements() {
    let mut lab = Lab::new(&["site=paris", "site=lyon", "site=lyon"]);
    lab.apply(&spread(10, &[share(80, "site=lyon"), share(20, "site=paris")]));
    lab.settle();
    assert_eq!(lab.placed("cart"), "h0:2 h1:4 h2:4");
}

#[test]
fn overlapping_shares_come_to_rest() {
    let mut lab = Lab::new(&["site=paris", "site=lyon"]);
    lab.apply(&spread(4, &[share(50, ""), share(50, "site=paris")]));
    lab.settle();
    let before = lab.placed("cart");
    assert!(lab.round().changes.is_empty());
    assert_eq!(lab.placed("cart"), before);
}

#[test]
fn facts_count_as_labels() {
    let mut lab = Lab::new(&["", "arch=mine"]);
    lab.apply(&spread(2, &[share(100, "arch=x86_64")]));
    lab.settle();
    assert_eq!(lab.placed("cart"), "h0:2", "a label of the operator hides the fact");
}

#[test]
fn nothing_moves_when_a_host_joins() {
    let mut lab = Lab::new(&["", ""]);
    lab.apply(&spread(4, &[]));
    lab.settle();
    lab.join(2, "");
    lab.settle();
    assert_eq!(lab.placed("cart"), "h0:2 h1:2");
    lab.apply(&spread(6, &[]));
    lab.settle();
    assert_eq!(lab.placed("cart"), "h0:2 h1:2 h2:2");
}

#[test]
fn scaling_down_takes_from_the_fullest() {
    let mut lab = Lab::new(&["", ""]);
    lab.apply(&spread(5, &[]));
    lab.settle();
    lab.apply(&spread(2, &[]));
    lab.settle();
    assert_eq!(lab.placed("cart"), "h0:1 h1:1");
}

#[test]
fn daemons_run_on_each_matching_host() {
    let mut lab = Lab::new(&["tier=edge", "tier=edge", "tier=cloud"]);
    lab.apply(&app("a", Scaler::Daemon { replicas: 2, spread: vec![share(100, "tier=edge")] }));
    lab.settle();
    assert_eq!(lab.placed("cart"), "h0:2 h1:2");
    lab.join(3, "tier=edge");
    lab.settle();
    assert_eq!(lab.placed("cart"), "h0:2 h1:2 h3:2");
}

#[test]
fn what_a_lost_host_ran_is_placed_elsewhere_and_stays_there() {
    let mut lab = Lab::new(&["", "", ""]);
    lab.apply(&spread(6, &[]));
    lab.settle();
    lab.dead.insert(host_id(0));
    for _ in 0..12 {
        lab.round();
    }
    assert_eq!(lab.placed("cart"), "h1:3 h2:3");
    lab.dead.clear();
    lab.settle();
    assert!(!lab.state.hosts[&host_id(0)].lost);
    assert_eq!(lab.placed("cart"), "h1:3 h2:3");
}

#[test]
fn a_lost_host_keeps_what_nobody_else_can_take() {
    let mut lab = Lab::new(&["site=paris", "site=lyon"]);
    lab.apply(&spread(2, &[share(100, "site=paris")]));
    lab.settle();
    lab.dead.insert(host_id(0));
    for _ in 0..12 {
        lab.round();
    }
    assert_eq!(lab.placed("cart"), "h0:2");
    assert_eq!(lab.round().unplaced[0].missing, 2);
}

#[test]
fn silence_of_most_hosts_pulls_the_brake() {
    let mut lab = Lab::new(&["", "", "", "", ""]);
    lab.apply(&spread(5, &[]));
    lab.settle();
    lab.dead.extend((0..4).map(host_id));
    for _ in 0..20 {
        lab.round();
    }
    assert!(lab.round().brake);
    assert_eq!(lab.placed("cart"), "h0:1 h1:1 h2:1 h3:1 h4:1");
}

/// Heartbeats come every two seconds, and not from all hosts at once.
#[test]
fn hosts_that_one_cut_silences_one_after_the_other_pull_the_brake() {
    let mut lab = Lab::new(&["", "", "", "", ""]);
    lab.apply(&spread(5, &[]));
    lab.settle();
    for n in 0..3 {
        lab.dead.insert(host_id(n));
        lab.round();
    }
    for _ in 0..20 {
        assert_eq!(lab.round().lost, []);
    }
    assert!(lab.round().brake);
    assert_eq!(lab.placed("cart"), "h0:1 h1:1 h2:1 h3:1 h4:1");
    // One that is gone for longer than it takes to tell the others apart is lost by itself.
    lab.dead.clear();
    lab.settle();
    lab.dead.insert(host_id(0));
    for _ in 0..6 {
        lab.round();
    }
    lab.dead.extend([host_id(1), host_id(2)]);
    let lost: Vec<HostId> = (0..4).flat_map(|_| lab.round().lost).collect();
    assert_eq!(lost, [host_id(0)]);
}

#[test]
fn a_new_leader_waits_before_it_calls_a_host_lost() {
    let mut lab = Lab::new(&["", ""]);
    lab.observed.since_ms = 50_000;
    let at = |lab: &Lab, now| plan(&lab.state, &lab.observed, now, &Config::default()).lost.len();
    assert_eq!(at(&lab, 59_999), 0);
    assert_eq!(at(&lab, 60_000), 2);
}

#[test]
fn a_forgotten_host_that_was_only_cut_off_comes_back() {
    let mut lab = Lab::new(&["", ""]);
    lab.round();
    lab.dead.insert(host_id(1));
    lab.now_ms += 10_000;
    lab.round();
    lab.command(pb::command::What::ForgetHost(pb::ForgetHost { host: host_id(1).to_string() }));
    // The same process greets again a day later.
    lab.now_ms += Config::default().forget_ms;
    let boot = ulid::Ulid::from(7u128).to_string();
    lab.observed.hello(&host_id(1), &pb::Hello { boot, ..Default::default() }, lab.now_ms);
    lab.join(1, "");
    lab.beat();
    assert_eq!(plan(&lab.state, &lab.observed, lab.now_ms, &Config::default()).lost, []);
}

#[test]
fn a_drain_moves_replicas_once_their_replacement_runs() {
    let mut lab = Lab::new(&["", ""]);
    lab.apply(&spread(4, &[]));
    lab.settle();
    lab.stuck.insert(host_id(1));
    let drain = pb::SetCordon { host: "h0".into(), cordoned: true, draining: true };
    lab.command(pb::command::What::SetCordon(drain));
    for _ in 0..5 {
        lab.round();
    }
    assert_eq!(lab.placed("cart"), "h0:2 h1:4", "nothing is taken away before its replacement runs");
    lab.stuck.clear();
    lab.settle();
    assert_eq!(lab.placed("cart"), "h1:4");
}

#[test]
fn cordoned_hosts_keep_what_they_have() {
    let mut lab = Lab::new(&["", ""]);
    lab.apply(&spread(2, &[]));
    lab.settle();
    lab.command(pb::command::What::SetCordon(pb::SetCordon { host: "h0".into(), cordoned: true, draining: false }));
    lab.apply(&spread(6, &[]));
    lab.settle();
    assert_eq!(lab.placed("cart"), "h0:1 h1:5");
}

#[test]
fn a_revision_reaches_the_hosts_in_steps() {
    let mut lab = Lab::new(&["", "", "", ""]);
    lab.apply(&spread(4, &[]));
    lab.settle();
    lab.apply(&app("b", Scaler::Spread { replicas: 4, spread: Vec::new() }));
    lab.round();
    assert_eq!(lab.revisions("cart"), [2, 1, 1, 1]);
    lab.settle();
    assert_eq!(lab.revisions("cart"), [2, 2, 2, 2]);
}

#[test]
fn a_rollout_stops_where_the_new_revision_does_not_run() {
    let mut lab = Lab::new(&["", "", "", ""]);
    lab.apply(&spread(4, &[]));
    lab.settle();
    lab.apply(&app("b", Scaler::Spread { replicas: 4, spread: Vec::new() }));
    lab.round();
    lab.stuck.insert(host_id(0));
    for _ in 0..5 {
        lab.round();
    }
    assert_eq!(lab.revisions("cart"), [2, 1, 1, 1]);
}

#[test]
fn a_rollout_that_fails_on_one_of_many_goes_no_further() {
    let mut lab = Lab::new(&[""; 12]);
    lab.apply(&spread(12, &[]));
    lab.settle();
    lab.apply(&app("b", Scaler::Spread { replicas: 12, spread: Vec::new() }));
    // Of the first of them, one fails; what it ran before did not.
    lab.round();
    lab.failing.insert(host_id(0));
    for _ in 0..5 {
        lab.round();
        let new = lab.revisions("cart").into_iter().filter(|r| *r == 2).count();
        assert_eq!(new, 3, "one in four change at once, and the others wait for the one that fails");
    }
    lab.failing.clear();
    lab.settle();
    assert_eq!(lab.revisions("cart"), [2; 12]);
}

#[test]
fn a_new_leader_does_not_take_silence_for_idleness() {
    let mut lab = Lab::new(&["", "", "", ""]);
    lab.apply(&spread(4, &[]));
    lab.settle();
    lab.apply(&app("b", Scaler::Spread { replicas: 4, spread: Vec::new() }));
    let unheard = Observed { since_ms: lab.now_ms, ..Observed::default() };
    let plan = plan(&lab.state, &unheard, lab.now_ms, &Config::default());
    assert_eq!(plan.changes.len(), 1, "four hosts that were not heard yet may well run what is replaced");
}

#[test]
fn scaling_alone_restarts_nothing() {
    let mut lab = Lab::new(&["", "", "", ""]);
    lab.apply(&spread(4, &[]));
    lab.settle();
    lab.apply(&spread(8, &[]));
    lab.round();
    assert_eq!(lab.revisions("cart"), [2, 2, 2, 2]);
}

#[test]
fn a_provider_waits_for_its_host() {
    let mut lab = Lab::new(&["", ""]);
    let mut app = spread(1, &[]);
    let provider = Provider { image: "builtin:keyvalue".into(), builtin: proto::app::Builtin::Keyvalue };
    let component =
        Component { kind: Kind::Provider(provider), scaler: Scaler::default(), strict: false, config: BTreeMap::new() };
    app.components.insert("store".parse().unwrap(), Box::new(component));
    lab.apply(&app);
    lab.settle();
    assert_eq!(lab.placed("store"), "h1:1");
    lab.dead.insert(host_id(1));
    for _ in 0..14 {
        lab.round();
    }
    assert!(lab.state.hosts[&host_id(1)].lost);
    assert_eq!(lab.placed("store"), "h1:1");
}

#[test]
fn a_store_comes_back_to_its_data_or_waits() {
    let mut lab = Lab::new(&["", ""]);
    let provider = Provider { image: "builtin:keyvalue".into(), builtin: proto::app::Builtin::Keyvalue };
    let store =
        |scaler| Component { kind: Kind::Provider(provider.clone()), scaler, strict: false, config: BTreeMap::new() };
    let mut app = spread(3, &[]);
    let mut with = |scaler| {
        app.components.insert("store".parse().unwrap(), Box::new(store(scaler)));
        app.clone()
    };
    let one = Scaler::Spread { replicas: 1, spread: Vec::new() };
    lab.apply(&with(one.clone()));
    lab.settle();
    assert_eq!(lab.placed("store"), "h1:1");
    lab.apply(&with(Scaler::Spread { replicas: 0, spread: Vec::new() }));
    lab.settle();
    assert_eq!(lab.placed("store"), "");
    // The other host is the less busy one now, and has no data.
    lab.command(pb::command::What::SetCordon(pb::SetCordon { host: "h1".into(), cordoned: true, draining: false }));
    lab.apply(&with(one));
    let plan = lab.round();
    assert!(plan.unplaced[0].why.contains("its data is on host h1"), "{:?}", plan.unplaced);
    lab.command(pb::command::What::SetCordon(pb::SetCordon { host: "h1".into(), cordoned: false, draining: false }));
    lab.settle();
    assert_eq!(lab.placed("store"), "h1:1");
}

#[test]
fn more_shares_than_bits_stop_nobody() {
    let mut lab = Lab::new(&["", ""]);
    let outcome = lab.apply(&spread(70, &vec![share(1, ""); 70]));
    assert!(outcome.error.contains("more than 64 spreads"), "{outcome:?}");
    lab.apply(&app("a", Scaler::Daemon { replicas: 1_000_000, spread: vec![share(1, ""); 64] }));
    lab.settle();
    assert_eq!(lab.placed("cart"), "h0:1000000 h1:1000000");
}

#[test]
fn a_deleted_app_leaves_nothing() {
    let mut lab = Lab::new(&["", ""]);
    lab.apply(&spread(4, &[]));
    lab.settle();
    lab.command(pb::command::What::DeleteApp(pb::DeleteApp { app: "shop".into(), if_version: 0 }));
    lab.settle();
    assert!(lab.state.apps.is_empty() && lab.state.placements.is_empty());
}

#[test]
fn an_app_that_comes_back_uses_no_revision_again() {
    let mut lab = Lab::new(&[""]);
    lab.apply(&spread(4, &[]));
    lab.settle();
    lab.command(pb::command::What::DeleteApp(pb::DeleteApp { app: "shop".into(), if_version: 0 }));
    lab.settle();
    // The host may still run revision 1 of what is gone.
    assert_eq!(lab.apply(&app("b", Scaler::default())).revision, 2);
}

#[test]
fn a_drain_that_is_ended_leaves_no_replica_too_many() {
    let mut lab = Lab::new(&["", "", ""]);
    lab.apply(&spread(4, &[]));
    lab.settle();
    lab.stuck.insert(host_id(1));
    for draining in [true, false] {
        lab.command(pb::command::What::SetCordon(pb::SetCordon { host: "h0".into(), cordoned: draining, draining }));
        lab.round();
    }
    let placed: u32 = lab.state.placements.values().flat_map(|hosts| hosts.values()).map(|p| p.replicas).sum();
    assert_eq!(placed, 4);
}

#[test]
fn a_plan_on_a_moved_base_is_refused() {
    let mut lab = Lab::new(&["", ""]);
    lab.apply(&spread(4, &[]));
    lab.beat();
    let plan = plan(&lab.state, &lab.observed, lab.now_ms, &Config::default());
    lab.apply(&spread(2, &[]));
    let commit = pb::CommitPlan { based_on: plan.based_on, changes: plan.changes };
    assert_eq!(lab.command(pb::command::What::CommitPlan(commit)).code, "stale");
}

#[test]
fn a_million_replicas_are_a_number() {
    let mut lab = Lab::new(&["", "", ""]);
    lab.apply(&spread(1_000_000, &[]));
    lab.settle();
    assert_eq!(lab.placed("cart"), "h0:333334 h1:333333 h2:333333");
}
