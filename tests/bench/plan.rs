//! The planner and the state machine, without a log or a bus: how fast replicas are given hosts, and what it costs to
//! look when nothing is to be done.

use crate::Bench;
use crate::figures::{Series, Table, number, ratio};
use anyhow::{Context as _, Result, ensure};
use proto::app::{Actor, App, Component, Digest, Kind, Scaler, Spread};
use proto::v1::{self as pb, command::What};
use scheduler::plan::{Config, Observed, Plan, meets, plan};
use scheduler::state::State;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

const HOSTS: usize = 5_000;
const REPLICAS: u32 = 100_000;
/// One host in so many is lost.
const LOST_ONE_IN: usize = 10;
/// Replicas placed by the plain scan: it takes as long for each.
const SCANNED: u32 = 2_000;

pub(crate) fn run(bench: &Bench) -> Result<()> {
    let mut table = Table::new([
        "placing",
        "replicas moved",
        "plans",
        "plan ms",
        "min-max",
        "State::apply ms",
        "placements/s of plan",
        "with apply",
        "to a plain scan",
    ]);
    let fleet = Lab::fleet()?;
    let scan: Series = (0..bench.rounds()).map(|_| fleet.plain_scan()).collect();
    table.row([
        "plain scan of all hosts for each replica".into(),
        number(SCANNED.into()),
        "-".into(),
        "-".into(),
        "-".into(),
        "-".into(),
        scan.show(),
        "-".into(),
        ratio(1.0),
    ]);
    for apps in [1, 1_000] {
        let mut desired = fleet.clone();
        for number in 0..apps {
            desired.apply(&format!("app-{number}"), REPLICAS / apps)?;
        }
        let title = if apps == 1 { "1 app".to_owned() } else { format!("{} apps", number(apps.into())) };
        let mut steps = [Step::default(), Step::default(), Step::default()];
        for _ in 0..bench.rounds() {
            let mut lab = desired.clone();
            steps[0].take(lab.settle()?);
            lab.beat();
            let unchanged = lab.settle()?;
            ensure!(unchanged.moved == 0, "something moved with nothing to do");
            steps[1].take(unchanged);
            lab.lose()?;
            steps[2].take(lab.settle()?);
        }
        for (step, what) in steps.iter().zip(["from nothing", "nothing to do", "10% of the hosts lost"]) {
            step.row(&format!("{title} x {}: {what}", number((REPLICAS / apps).into())), &scan, &mut table);
        }
    }
    table.print();
    Ok(())
}

/// What coming to rest took, of several rounds.
#[derive(Default)]
struct Step {
    moved: u64,
    plans: u32,
    plan_ms: Series,
    apply_ms: Series,
    per_second: Series,
    with_apply: Series,
}

/// The same of one.
struct Rest {
    moved: u64,
    plans: u32,
    planning: Duration,
    applying: Duration,
}

impl Step {
    fn take(&mut self, rest: Rest) {
        self.moved = rest.moved;
        self.plans = rest.plans;
        self.plan_ms.push(rest.planning.as_secs_f64() * 1e3);
        self.apply_ms.push(rest.applying.as_secs_f64() * 1e3);
        self.per_second.push(rest.moved as f64 / rest.planning.as_secs_f64());
        self.with_apply.push(rest.moved as f64 / (rest.planning + rest.applying).as_secs_f64());
    }

    fn row(&self, title: &str, scan: &Series, table: &mut Table) {
        let or_none = |text: String| if self.moved == 0 { "-".to_owned() } else { text };
        table.row([
            title.to_owned(),
            number(self.moved as f64),
            self.plans.to_string(),
            self.plan_ms.show(),
            self.plan_ms.spread(),
            or_none(self.apply_ms.show()),
            or_none(self.per_second.show()),
            or_none(self.with_apply.show()),
            or_none(self.per_second.ratio_to(scan)),
        ]);
    }
}

/// The real state machine and planner, and hosts that do at once what they are told.
#[derive(Clone)]
struct Lab {
    state: State,
    observed: Observed,
    index: u64,
    seq: u64,
    now_ms: u64,
}

const SECOND_MS: u64 = 1_000;

impl Lab {
    fn fleet() -> Result<Self> {
        let mut lab =
            Self { state: State::default(), observed: Observed::default(), index: 1, seq: 0, now_ms: SECOND_MS };
        for number in 0..HOSTS {
            let labels = [("tier", "edge".to_owned()), ("site", format!("site-{}", number % 100))];
            let hello = pb::Hello {
                lattice: "bench".into(),
                host: ulid::Ulid::from(number as u128 + 1).to_string(),
                name: format!("host-{number}"),
                boot: boot(),
                labels: labels.map(|(key, value)| (key.to_owned(), value)).into(),
                facts: Some(pb::Facts { arch: "x86_64".into(), os: "linux".into(), ..Default::default() }),
                ..Default::default()
            };
            lab.command(What::RegisterHost(pb::RegisterHost { hello: Some(hello) }))?;
        }
        lab.beat();
        Ok(lab)
    }

    fn command(&mut self, what: What) -> Result<()> {
        self.index += 1;
        let commands = vec![pb::Command { request_id: String::new(), what: Some(what) }];
        let entry = pb::Entry { version: 1, time_ms: self.now_ms, commands };
        let outcomes = self.state.apply(self.index, &entry, &mut BTreeSet::new());
        let refused = outcomes.iter().find(|outcome| !outcome.error.is_empty());
        ensure!(refused.is_none(), "a command was refused: {}", refused.map_or("", |outcome| &outcome.error));
        Ok(())
    }

    /// An app of one actor that asks for hosts at the edge, which all are.
    fn apply(&mut self, name: &str, replicas: u32) -> Result<()> {
        let actor = Actor {
            image: "./hello.wasm".into(),
            digest: Some(Digest::of(name.as_bytes())),
            exports: Vec::new(),
            ingress: Vec::new(),
            grants: Default::default(),
            limits: Default::default(),
        };
        let spread = vec![Spread { name: "edge".into(), requirements: requirements(), weight: 100 }];
        let scaler = Scaler::Spread { replicas, spread };
        let component = Component { kind: Kind::Actor(actor), scaler, strict: false, config: BTreeMap::new() };
        let app = App {
            name: name.parse().with_context(|| format!("the name {name:?}"))?,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            components: [("web".parse().context("a name")?, Box::new(component))].into(),
            links: Vec::new(),
        };
        self.command(What::ApplyApp(pb::ApplyApp { spec: app.to_json(), if_version: 0 }))
    }

    /// Living hosts say that they run what they are told to.
    fn beat(&mut self) {
        self.seq += 1;
        for id in self.state.hosts.iter().filter(|(_, host)| !host.lost).map(|(id, _)| id) {
            let running = self.state.on_host(id).map(|(app, component, placed)| pb::Running {
                app: app.to_string(),
                component: component.to_string(),
                revision: placed.revision,
                replicas: placed.replicas,
                state: pb::RunState::Running.into(),
                ..Default::default()
            });
            let beat = pb::Beat {
                host: id.to_string(),
                boot: boot(),
                seq: self.seq,
                inventory_version: self.seq,
                inventory: Some(pb::Inventory { items: running.collect() }),
                ..Default::default()
            };
            self.observed.beat(id, &beat, self.now_ms);
        }
    }

    /// Every so many hosts fall silent for so long that they are lost.
    fn lose(&mut self) -> Result<()> {
        self.now_ms += Config::default().lost_ms;
        for (number, seen) in self.observed.hosts.values_mut().enumerate() {
            if number % LOST_ONE_IN != 0 {
                seen.at_ms = self.now_ms;
            }
        }
        Ok(())
    }

    /// Plans and commits until there is nothing left to do; the last plan, which finds that, is part of it.
    fn settle(&mut self) -> Result<Rest> {
        let mut rest = Rest { moved: 0, plans: 0, planning: Duration::ZERO, applying: Duration::ZERO };
        loop {
            let began = Instant::now();
            let plan = plan(&self.state, &self.observed, self.now_ms, &Config::default());
            rest.planning += began.elapsed();
            rest.plans += 1;
            ensure!(plan.unplaced.is_empty() && !plan.brake, "the plan places not all: {:?}", plan.unplaced.first());
            if plan.changes.is_empty() && plan.lost.is_empty() {
                return Ok(rest);
            }
            rest.moved += self.added(&plan);
            let began = Instant::now();
            for host in &plan.lost {
                self.command(What::MarkLost(pb::MarkLost { host: host.to_string() }))?;
            }
            if !plan.changes.is_empty() {
                let Plan { based_on, changes, .. } = plan;
                self.command(What::CommitPlan(pb::CommitPlan { based_on, changes }))?;
            }
            rest.applying += began.elapsed();
        }
    }

    /// Replicas that get a new host by this plan. Each app here has one component.
    fn added(&self, plan: &Plan) -> u64 {
        let apps: BTreeMap<&str, _> =
            self.state.placements.iter().map(|((app, _), hosts)| (app.as_str(), hosts)).collect();
        let before = |change: &pb::Change| {
            let placed = apps.get(change.app.as_str()).and_then(|hosts| hosts.get(change.host.as_str()));
            placed.map_or(0, |placed| placed.replicas)
        };
        plan.changes.iter().map(|change| u64::from(change.replicas.saturating_sub(before(change)))).sum()
    }

    /// The simplest placement there is, for scale: for each replica look at every host, take the least loaded that
    /// fits. Placements per second.
    fn plain_scan(&self) -> f64 {
        let requirements = requirements();
        let hosts: Vec<_> = self.state.hosts.values().collect();
        let mut load = vec![0u32; hosts.len()];
        let began = Instant::now();
        for _ in 0..SCANNED {
            let fitting = (0..hosts.len()).filter(|n| hosts[*n].takes_new() && meets(hosts[*n], &requirements));
            if let Some(best) = fitting.min_by_key(|n| load[*n]) {
                load[best] += 1;
            }
        }
        f64::from(load.iter().sum::<u32>()) / began.elapsed().as_secs_f64()
    }
}

fn requirements() -> BTreeMap<String, String> {
    [("tier".to_owned(), "edge".to_owned())].into()
}

fn boot() -> String {
    ulid::Ulid::from(7u128).to_string()
}
