//! One app's components: what is placed against what is desired. Nothing moves when nothing has to.

use super::fill::{Room, drain, fill};
use super::hosts::Columns;
use super::observed::Observed;
use super::spread::{attribute, daemon_target, shares};
use super::{Plan, Unplaced, strict};
use crate::state::{AppState, Placed, State};
use proto::app::{App, Component, HostId, Kind, Name, SPREADS_MAX, Scaler, Spread};
use proto::fault::{Fault, built_in};
use proto::v1 as pb;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// Of the hosts that run a component, so many may change to a new revision at once: one in four, at least one.
const ROLLOUT_SHARE: usize = 4;

pub(super) fn plan_app(
    state: &State,
    observed: &Observed,
    name: &Name,
    app: &AppState,
    columns: &mut Columns<'_>,
    plan: &mut Plan,
) {
    let spec = app.spec();
    let mut components: BTreeSet<&Name> = if app.deleting { BTreeSet::new() } else { spec.components.keys().collect() };
    let placed_of_app = state.placements.range((name.clone(), first_name())..).take_while(|((a, _), _)| a == name);
    let mut gone = Vec::new();
    for ((_, component), hosts) in placed_of_app {
        if !components.contains(component) {
            gone.extend(hosts.keys().map(|h| (component, h)));
        }
    }
    for (component, host) in gone {
        plan.changes.push(change(host, name, component, app.current, 0));
    }
    for component in std::mem::take(&mut components) {
        let key = (name.clone(), component.clone());
        Planned { state, observed, app, key: &key, spec: &spec.components[component] }.plan(columns, plan);
    }
}

/// The least name there can be: where a range of names starts.
fn first_name() -> Name {
    "0".parse().expect("a digit is a name")
}

pub(super) fn change(host: &HostId, app: &Name, component: &Name, revision: u64, replicas: u32) -> pb::Change {
    pb::Change { host: host.to_string(), app: app.to_string(), component: component.to_string(), revision, replicas }
}

pub(super) struct Planned<'a> {
    pub(super) state: &'a State,
    pub(super) observed: &'a Observed,
    app: &'a AppState,
    pub(super) key: &'a (Name, Name),
    spec: &'a Component,
}

impl Planned<'_> {
    fn plan(&self, columns: &mut Columns<'_>, plan: &mut Plan) {
        let none = BTreeMap::new();
        let placed = self.state.placements.get(self.key).unwrap_or(&none);
        if self.is_settled(placed, columns) {
            return;
        }
        let want = match &self.spec.scaler {
            Scaler::Spread { replicas, spread } if self.spec.strict => {
                strict::want(self, *replicas, spread, placed, columns, plan)
            }
            Scaler::Spread { replicas, spread } => self.spread(*replicas, spread, placed, columns, plan),
            Scaler::Daemon { replicas, spread } => self.daemon(*replicas, spread, placed, columns),
        };
        self.emit(placed, &want, columns, plan);
    }

    /// Whether it is as desired, seen cheaply: most components are, most of the time. May say no where a plan finds
    /// nothing to do, never yes where it would.
    fn is_settled(&self, placed: &BTreeMap<HostId, Placed>, columns: &mut Columns<'_>) -> bool {
        let Scaler::Spread { replicas, spread } = &self.spec.scaler else { return false };
        if spread.len() > 1 {
            return false;
        }
        let fits = self.fits(spread, columns);
        let mut sum = 0;
        for (number, p) in columns.placed(self.key).iter().zip(placed.values()) {
            let Some(number) = *number else { return false };
            let host = columns.hosts[number];
            if p.revision != self.app.current || host.lost || host.draining || !fits[0][number] {
                return false;
            }
            sum += u64::from(p.replicas);
        }
        sum == shares(*replicas, spread).iter().map(|(_, n)| n).sum::<u64>()
    }

    /// For each share, which hosts meet it; one share that all meet when the manifest names none.
    pub(super) fn fits(&self, spread: &[Spread], columns: &mut Columns<'_>) -> Vec<Rc<Vec<bool>>> {
        let builtin = match &self.spec.kind {
            Kind::Provider(p) => Some(p.builtin),
            Kind::Actor(_) => None,
        };
        let none = BTreeMap::new();
        if spread.is_empty() {
            return vec![columns.fits((&none, builtin))];
        }
        spread.iter().map(|s| columns.fits((&s.requirements, builtin))).collect()
    }

    fn daemon(
        &self,
        replicas: u32,
        spread: &[Spread],
        placed: &BTreeMap<HostId, Placed>,
        columns: &mut Columns<'_>,
    ) -> BTreeMap<usize, u64> {
        let fits = self.fits(spread, columns);
        let mut want = BTreeMap::new();
        for (number, host) in columns.hosts.iter().enumerate() {
            let met = fits.iter().filter(|f| f[number]).count();
            let target = daemon_target(replicas, met);
            let now = placed.get(columns.ids[number]).map_or(0, |p| u64::from(p.replicas));
            let n = match (host.draining, host.lost || host.cordoned) {
                (true, _) => 0,
                // Keeps what it has, gets nothing new.
                (false, true) => target.min(now),
                (false, false) => target,
            };
            if n > 0 {
                want.insert(number, n);
            }
        }
        want
    }

    fn spread(
        &self,
        replicas: u32,
        spread: &[Spread],
        placed: &BTreeMap<HostId, Placed>,
        columns: &mut Columns<'_>,
        plan: &mut Plan,
    ) -> BTreeMap<usize, u64> {
        let fits = self.fits(spread, columns);
        let shares = shares(replicas, spread);
        let need: Vec<u64> = {
            let mut need = vec![0; fits.len()];
            shares.iter().for_each(|(i, n)| need[*i] = *n);
            need
        };
        let mask = |number: usize| {
            // A log of an older build may hold more shares than there are bits: those beyond get nothing.
            let met = fits.iter().take(SPREADS_MAX).enumerate().filter(|(_, f)| f[number]);
            met.fold(0u64, |bits, (i, _)| bits | 1 << i)
        };
        let sticky = matches!(self.spec.kind, Kind::Provider(_)) && !built_in(Fault::StoreMoves);
        let mut kept = Groups::default();
        let mut lost = Groups::default();
        let mut draining = Groups::default();
        for (id, p) in placed {
            let Some(number) = columns.number(id) else { continue };
            let host = columns.hosts[number];
            let group = match (host.lost, host.draining) {
                // A provider's data is on its host: it waits for it instead of starting empty elsewhere.
                _ if sticky => &mut kept,
                (true, _) => &mut lost,
                (false, true) => &mut draining,
                (false, false) => &mut kept,
            };
            group.add(mask(number), number, u64::from(p.replicas));
        }
        let (surplus, open) = attribute(&kept.supply(), &need);
        let mut want = kept.without(&surplus);
        let unfilled = self.fill(&shares, &fits, open, &mut want, columns, plan);
        // What no live host can take stays where it was: the host may come back with it.
        let (surplus, unfilled) = attribute(&lost.supply(), &unfilled);
        want.extend(lost.without(&surplus));
        let replaced = self.all_running(&want, columns) || built_in(Fault::EagerDrain);
        if replaced {
            let (surplus, _) = attribute(&draining.supply(), &unfilled);
            want.extend(draining.without(&surplus));
        } else {
            // Made before broken: what drains goes on until its replacement runs.
            want.extend(draining.all());
        }
        want
    }

    /// Places what is still open on hosts that take new replicas. Gives what stayed open.
    fn fill(
        &self,
        shares: &[(usize, u64)],
        fits: &[Rc<Vec<bool>>],
        mut open: Vec<u64>,
        want: &mut BTreeMap<usize, u64>,
        columns: &mut Columns<'_>,
        plan: &mut Plan,
    ) -> Vec<u64> {
        // Where an actor of that name was strict, in an earlier life of the app, binds this one to nothing.
        let has_data = matches!(self.spec.kind, Kind::Provider(_)) && !built_in(Fault::StoreMoves);
        let home = self.state.homes.get(self.key).filter(|_| has_data);
        for (share, _) in shares {
            if open[*share] == 0 {
                continue;
            }
            let rooms: Vec<Room> = (0..columns.ids.len())
                .filter(|n| {
                    fits[*share][*n] && columns.hosts[*n].takes_new() && home.is_none_or(|h| h == columns.ids[*n])
                })
                .map(|host| Room { host, count: want.get(&host).copied().unwrap_or(0), load: columns.load[host] })
                .collect();
            if rooms.is_empty() {
                plan.unplaced.push(self.unplaced(*share, open[*share], home));
                continue;
            }
            for (host, n) in fill(open[*share], rooms) {
                *want.entry(host).or_default() += n;
                columns.load[host] += n;
            }
            open[*share] = 0;
        }
        open
    }

    pub(super) fn unplaced(&self, share: usize, missing: u64, home: Option<&HostId>) -> Unplaced {
        if let Some(record) = home.and_then(|h| self.state.hosts.get(h)) {
            let why = format!(
                "its data is on host {}, which is lost, cordoned or no longer fits; bring it back, or delete the app to begin \
                 with an empty store",
                record.hello.name
            );
            return Unplaced { app: self.key.0.clone(), component: self.key.1.clone(), missing, why };
        }
        let requirements = match &self.spec.scaler {
            Scaler::Spread { spread, .. } | Scaler::Daemon { spread, .. } => spread.get(share).map(|s| &s.requirements),
        };
        let labels = requirements
            .map(|r| r.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(","))
            .unwrap_or_default();
        let why = if labels.is_empty() {
            "no host is ready; start one with `lattice host`, or uncordon one".to_owned()
        } else {
            format!("no ready host has {labels}; start one with `lattice host --label`, or change the requirements")
        };
        Unplaced { app: self.key.0.clone(), component: self.key.1.clone(), missing, why }
    }

    /// Whether every replica of `want` on hosts that stay is running.
    fn all_running(&self, want: &BTreeMap<usize, u64>, columns: &Columns<'_>) -> bool {
        want.iter().filter(|(n, _)| !columns.hosts[**n].lost).all(|(n, count)| {
            let running = self.observed.running(columns.ids[*n], self.key);
            running.iter().any(|r| r.state == pb::RunState::Running && u64::from(r.replicas) >= *count)
        })
    }

    /// Turns counts into changes; a new revision reaches the hosts in steps.
    fn emit(
        &self,
        placed: &BTreeMap<HostId, Placed>,
        want: &BTreeMap<usize, u64>,
        columns: &Columns<'_>,
        plan: &mut Plan,
    ) {
        let current = self.app.current;
        let (app, component) = self.key;
        for (host, _) in placed.iter().filter(|(h, _)| !columns.number(h).is_some_and(|n| want.contains_key(&n))) {
            plan.changes.push(change(host, app, component, current, 0));
        }
        let mut budget = self.rollout_budget(placed, columns);
        for (number, count) in want {
            let host = columns.ids[*number];
            let replicas = u32::try_from(*count).expect("a manifest asks for at most a million");
            let before = placed.get(host).copied();
            let revision = match before {
                Some(p) if p.revision != current => {
                    // A host that was not heard yet, by a new leader say, may well run it.
                    let blind = built_in(Fault::SilenceIsIdleness);
                    let known = columns.hosts[*number].lost || self.observed.is_told(host) || blind;
                    let idle = known && !self.observed.is_running(host, self.key, p.revision);
                    let free = idle || self.same_as_current(p.revision);
                    if free {
                        current
                    } else if budget > 0 {
                        budget -= 1;
                        current
                    } else {
                        p.revision
                    }
                }
                _ => current,
            };
            if before != Some(Placed { revision, replicas }) {
                plan.changes.push(change(host, app, component, revision, replicas));
            }
        }
    }

    /// How many more hosts may change now. None while one of them failed with the new revision.
    fn rollout_budget(&self, placed: &BTreeMap<HostId, Placed>, columns: &Columns<'_>) -> usize {
        if built_in(Fault::RolloutAtOnce) {
            return placed.len();
        }
        let current = self.app.current;
        let mut changing = 0;
        for (host, _) in placed.iter().filter(|(_, p)| p.revision == current) {
            if columns.number(host).is_some_and(|n| columns.hosts[n].lost) {
                continue;
            }
            let now = self.observed.running(host, self.key);
            let failed = now.iter().any(|r| r.revision == current && r.state == pb::RunState::Failed);
            if failed && !built_in(Fault::RolloutThroughFailures) {
                return 0;
            }
            changing += usize::from(!self.observed.is_running(host, self.key, current));
        }
        (placed.len() / ROLLOUT_SHARE).max(1).saturating_sub(changing)
    }

    /// Whether this component is the same in `revision` and the current one: then nothing restarts.
    fn same_as_current(&self, revision: u64) -> bool {
        let Some(then) = self.app.revisions.get(&revision) else { return false };
        let component = &self.key.1;
        let bare = |app: &App| {
            app.components.get(component).map(|c| {
                let links: Vec<_> = app.links.iter().filter(|l| l.consumer == *component).cloned().collect();
                (c.kind.clone(), c.config.clone(), links)
            })
        };
        bare(&then.spec) == bare(self.app.spec())
    }
}

/// Hosts grouped by the shares that they can count for.
#[derive(Default)]
struct Groups {
    by_mask: BTreeMap<u64, Vec<Room>>,
}

impl Groups {
    fn add(&mut self, mask: u64, host: usize, count: u64) {
        self.by_mask.entry(mask).or_default().push(Room { host, count, load: 0 });
    }
    fn supply(&self) -> Vec<(u64, u64)> {
        self.by_mask.iter().map(|(mask, rooms)| (*mask, rooms.iter().map(|r| r.count).sum())).collect()
    }
    /// What is left when each group gives up its surplus, from the fullest hosts.
    fn without(&self, surplus: &[u64]) -> BTreeMap<usize, u64> {
        let mut kept = self.all();
        for (rooms, n) in self.by_mask.values().zip(surplus) {
            for (host, taken) in drain(*n, rooms.clone()) {
                if let Some(count) = kept.get_mut(&host) {
                    *count -= taken;
                }
            }
        }
        kept.retain(|_, n| *n > 0);
        kept
    }
    fn all(&self) -> BTreeMap<usize, u64> {
        self.by_mask.values().flatten().map(|r| (r.host, r.count)).collect()
    }
}
