//! What people see: status = f(state, observed). Pure.

use crate::plan::{Config, Observed, RunningNow, Seen, Unplaced, brakes, daemon_target, meets};
use crate::state::{AppState, HostState, State};
use proto::app::{Component, HostId, Kind, Link, Name, Scaler};
use proto::starting::{self, STARTING_MAX};
use proto::v1 as pb;
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::net::SocketAddr;

/// Everything a status is computed from.
pub struct View<'a> {
    pub state: &'a State,
    pub observed: &'a Observed,
    /// From the latest plan.
    pub unplaced: &'a [Unplaced],
    pub now_ms: u64,
    pub timers: Config,
}

/// One component's numbers.
#[derive(Default)]
struct Tally {
    desired: u64,
    /// Running in any revision.
    running: u64,
    /// Running in the current revision.
    current: u64,
    failed: Option<String>,
    waiting: Option<String>,
    /// What hosts do to bring it up.
    starting: Vec<pb::StartStatus>,
}

impl View<'_> {
    pub fn apps(&self, only: &str) -> Vec<pb::AppStatus> {
        self.state
            .apps
            .iter()
            .filter(|(n, _)| only.is_empty() || n.as_str() == only)
            .map(|(n, a)| self.app(n, a))
            .collect()
    }

    pub fn app_named(&self, name: &Name) -> Option<pb::AppStatus> {
        self.state.apps.get(name).map(|a| self.app(name, a))
    }

    fn app(&self, name: &Name, app: &AppState) -> pb::AppStatus {
        let mut tallies: Vec<Tally> =
            app.spec().components.iter().map(|(component, spec)| self.tally(name, app, component, spec)).collect();
        let sum = |f: fn(&Tally) -> u64| u32::try_from(tallies.iter().map(f).sum::<u64>()).unwrap_or(u32::MAX);
        let (desired, running, current) = (sum(|t| t.desired), sum(|t| t.running), sum(|t| t.current));
        let failed = tallies.iter().find_map(|t| t.failed.clone());
        let waiting = tallies.iter().find_map(|t| t.waiting.clone());
        let unrouted = if current >= desired { self.unrouted(app) } else { None };
        let state = match (app.deleting, &failed, &waiting) {
            (true, ..) => "deleting",
            (_, None, _) if current >= desired && unrouted.is_none() => "running",
            (_, Some(_), _) if running == 0 => "failed",
            (_, Some(_), _) => "degraded",
            (_, None, Some(_)) if running > 0 => "degraded",
            _ => "deploying",
        };
        let mut starting: Vec<_> = tallies.iter_mut().flat_map(|t| std::mem::take(&mut t.starting)).collect();
        let more = starting.len().saturating_sub(STARTING_MAX);
        starting.truncate(STARTING_MAX);
        let has_failed = failed.is_some();
        let message =
            if state == "running" { String::new() } else { failed.or(unrouted).or(waiting).unwrap_or_default() };
        pb::AppStatus {
            name: name.to_string(),
            revision: app.current,
            state: state.to_owned(),
            desired,
            running,
            version: app.version,
            message,
            urls: self.urls(app),
            failed: has_failed,
            starting,
            starting_more: u32::try_from(more).unwrap_or(u32::MAX),
        }
    }

    /// An ingress that does not know the app's routes yet: who is told that it runs may ask there at once. Hosts that are
    /// silent are not waited for, nor is what others changed since.
    fn unrouted(&self, app: &AppState) -> Option<String> {
        app.spec().routes().next()?;
        self.state.hosts.iter().filter(|(_, record)| !record.lost && !record.hello.ingress.is_empty()).find_map(
            |(id, record)| {
                let seen = self.observed.hosts.get(id)?;
                let is_heard = self.silence_ms(id) < self.timers.suspect_ms && !seen.leaving;
                let knows = seen.generation >= record.generation.min(app.version);
                let name = &record.hello.name;
                (is_heard && !knows).then(|| format!("the ingress of host {name} has not taken the routes yet"))
            },
        )
    }

    fn tally(&self, name: &Name, app: &AppState, component: &Name, spec: &Component) -> Tally {
        let mut tally = Tally { desired: self.desired(spec), ..Tally::default() };
        let key = (name.clone(), component.clone());
        for (host, placed) in self.state.placed(name, component) {
            let Some(record) = self.state.hosts.get(host) else { continue };
            if record.lost {
                let host = &record.hello.name;
                let step = match spec.kind {
                    Kind::Actor(_) => "start it again, or add a host that fits",
                    Kind::Provider(_) => "its data is there: start it again",
                };
                let n = placed.replicas;
                let are = if n == 1 { "1 replica is" } else { &format!("{n} replicas are") };
                tally.waiting = Some(format!("{component}: {are} on host {host}, which is lost; {step}"));
                continue;
            }
            for now in self.observed.running(host, &key) {
                if now.state == pb::RunState::Running {
                    let n = u64::from(now.replicas.min(placed.replicas));
                    tally.running += n;
                    tally.current += if now.revision == app.current { n } else { 0 };
                } else if now.state == pb::RunState::Failed && now.revision == app.current {
                    tally.failed = Some(format!("{component} on host {}: {}", record.hello.name, now.error));
                } else if let Some(starting) = self.starting(host, &key, now).cloned() {
                    let host_name = record.hello.name.clone();
                    tally.starting.push(pb::StartStatus { host_name, starting: Some(starting) });
                }
            }
        }
        if let Some(u) = self.unplaced.iter().find(|u| u.app == *name && u.component == *component) {
            tally.waiting = Some(format!("{component}: {} of {} replicas wait: {}", u.missing, tally.desired, u.why));
        }
        tally
    }

    /// How far a host is with a component that it said to be starting.
    fn starting(&self, host: &HostId, key: &(Name, Name), now: &RunningNow) -> Option<&pb::Starting> {
        let seen = self.observed.hosts.get(host).filter(|_| now.state == pb::RunState::Starting)?;
        seen.starting.get(key).filter(|starting| starting.revision == now.revision)
    }

    fn desired(&self, spec: &Component) -> u64 {
        match &spec.scaler {
            Scaler::Spread { replicas, .. } => u64::from(*replicas),
            Scaler::Daemon { replicas, spread } => {
                let live = self.state.hosts.values().filter(|h| !h.lost && !h.draining);
                let met = |h: &HostState| {
                    if spread.is_empty() { 1 } else { spread.iter().filter(|s| meets(h, &s.requirements)).count() }
                };
                live.map(|h| daemon_target(*replicas, met(h))).sum()
            }
        }
    }

    /// Where the app's routes answer: every ready ingress.
    fn urls(&self, app: &AppState) -> Vec<String> {
        let ingresses: Vec<(&str, Cow<'_, str>)> = self
            .state
            .hosts
            .values()
            .filter(|h| !h.lost && !h.hello.ingress.is_empty())
            .map(|h| (if h.hello.ingress_tls { "https" } else { "http" }, reachable(&h.hello)))
            .collect();
        let mut urls = Vec::new();
        for (_, _, route) in app.spec().routes() {
            for (scheme, ingress) in ingresses.iter().take(8) {
                let port = ingress.rsplit(':').next().unwrap_or_default();
                let host = if route.host.is_empty() { ingress.to_string() } else { format!("{}:{port}", route.host) };
                urls.push(format!("{scheme}://{host}{}", route.path));
            }
        }
        urls
    }

    pub fn actors(&self, only: &str) -> Vec<pb::ActorStatus> {
        let mut items = Vec::new();
        for (name, app) in self.state.apps.iter().filter(|(n, _)| only.is_empty() || n.as_str() == only) {
            for (component, spec) in &app.spec().components {
                self.actors_of(name, app, component, spec, &mut items);
            }
        }
        items
    }

    fn actors_of(
        &self,
        name: &Name,
        app: &AppState,
        component: &Name,
        spec: &Component,
        items: &mut Vec<pb::ActorStatus>,
    ) {
        let key = (name.clone(), component.clone());
        let kind = if matches!(spec.kind, Kind::Actor(_)) { "actor" } else { "provider" };
        let blank = pb::ActorStatus {
            app: name.to_string(),
            actor: component.to_string(),
            revision: app.current,
            kind: kind.to_owned(),
            ..Default::default()
        };
        for (host, placed) in self.state.placed(name, component) {
            let Some(record) = self.state.hosts.get(host) else { continue };
            let all = self.observed.running(host, &key);
            let now = all.iter().find(|r| r.revision == placed.revision);
            let serving = all.iter().find(|r| r.state == pb::RunState::Running);
            let (state, mut message) = state_of(record, now);
            if let Some(starting) = now.filter(|_| !record.lost).and_then(|now| self.starting(host, &key, now)) {
                message = starting::text(starting, self.silence_ms(host));
            }
            let live = if record.lost { None } else { serving };
            let load = live.and_then(|_| self.observed.hosts.get(host)).map(|seen| &seen.load);
            let told = load.and_then(|load| Some((load, load.actors.get(&key)?)));
            items.push(pb::ActorStatus {
                in_flight: told.map_or(0, |(_, a)| a.in_flight),
                queued: told.map_or(0, |(_, a)| a.queued),
                requests_per_s: told.map_or(0.0, |(load, a)| load.per_s(a.requests)),
                errors_per_s: told.map_or(0.0, |(load, a)| load.per_s(a.errors)),
                p50_us: told.map_or(0, |(_, a)| a.p50_us),
                p99_us: told.map_or(0, |(_, a)| a.p99_us),
                revision: placed.revision,
                host: host.to_string(),
                host_name: record.hello.name.clone(),
                replicas: placed.replicas,
                running: live.map_or(0, |r| r.replicas.min(placed.replicas)),
                state,
                message,
                requests: all.iter().map(|r| r.requests).sum(),
                errors: all.iter().map(|r| r.errors).sum(),
                ..blank.clone()
            });
        }
        if let Some(u) = self.unplaced.iter().find(|u| u.app == *name && u.component == *component) {
            items.push(pb::ActorStatus {
                replicas: u32::try_from(u.missing).unwrap_or(u32::MAX),
                state: "unplaced".into(),
                message: u.why.clone(),
                ..blank
            });
        }
    }

    pub fn hosts(&self) -> Vec<pb::HostStatus> {
        self.state.hosts.keys().filter_map(|id| self.host(id)).collect()
    }

    pub fn host(&self, id: &HostId) -> Option<pb::HostStatus> {
        let record = self.state.hosts.get(id)?;
        let (seen, silent_ms) = (self.observed.hosts.get(id), self.silence_ms(id));
        let state = if record.lost {
            "lost"
        } else if record.draining {
            "draining"
        } else if record.cordoned {
            "cordoned"
        } else if silent_ms >= self.timers.suspect_ms {
            "suspect"
        } else {
            "ready"
        };
        let running = seen.map_or(0, |s| {
            let all = s.running.values().flatten().filter(|r| r.state == pb::RunState::Running);
            all.map(|r| r.replicas).sum()
        });
        Some(pb::HostStatus {
            id: id.to_string(),
            name: record.hello.name.clone(),
            state: state.to_owned(),
            labels: record.hello.labels.clone(),
            facts: record.hello.facts.clone(),
            running: if record.lost { 0 } else { running },
            ingress: record.hello.ingress.clone(),
            seen_ms: silent_ms,
            dropped: seen.map_or(0, |s| s.dropped),
            generation: record.generation,
            ..host_load(record, seen)
        })
    }

    /// Hosts that are not heard as they should be, and not lost yet.
    pub fn suspects(&self) -> BTreeSet<HostId> {
        let is_suspect = |id: &HostId| self.silence_ms(id) >= self.timers.suspect_ms;
        let hosts = self.state.hosts.iter().filter(|(_, record)| !record.lost);
        hosts.map(|(id, _)| id).filter(|id| is_suspect(id)).cloned().collect()
    }

    /// Since a host's last heartbeat, or since this scheduler took office where it has heard none.
    fn silence_ms(&self, id: &HostId) -> u64 {
        let heard_ms = self.observed.hosts.get(id).map_or(self.observed.since_ms, |seen| seen.at_ms);
        self.now_ms.saturating_sub(heard_ms)
    }

    /// Hosts that are lost or not heard for a while, whatever else is asked of them; the longest silent first.
    pub fn silent(&self) -> Vec<pb::SilentHost> {
        let mut all: Vec<pb::SilentHost> = self
            .state
            .hosts
            .iter()
            .filter_map(|(id, record)| {
                let (heard, silent_ms) = (self.observed.hosts.contains_key(id), self.silence_ms(id));
                let state = match (record.lost, silent_ms >= self.timers.suspect_ms) {
                    (true, _) => "lost",
                    (false, true) => "suspect",
                    (false, false) => return None,
                };
                let (id, name) = (id.to_string(), record.hello.name.clone());
                Some(pb::SilentHost { id, name, state: state.to_owned(), silent_ms, heard })
            })
            .collect();
        all.sort_by(|a, b| b.silent_ms.cmp(&a.silent_ms).then_with(|| a.name.cmp(&b.name)));
        all
    }

    /// Whether so many hosts are silent at once that none of them is given up.
    pub fn brake(&self) -> bool {
        brakes(self.state, self.observed, self.now_ms, &self.timers)
    }

    pub fn links(&self, only: &str) -> Vec<pb::LinkStatus> {
        let mut items = Vec::new();
        for (name, app) in self.state.apps.iter().filter(|(n, _)| only.is_empty() || n.as_str() == only) {
            for link in &app.spec().links {
                let (state, path) = self.link(name, link);
                for interface in link.interface_names() {
                    items.push(pb::LinkStatus {
                        app: name.to_string(),
                        consumer: link.consumer.to_string(),
                        interface,
                        name: link.name.clone(),
                        provider: link.provider.to_string(),
                        state: state.to_owned(),
                        path: path.to_owned(),
                    });
                }
            }
        }
        items
    }

    /// Whether a link is bound now, and which way its calls go.
    fn link(&self, app: &Name, link: &Link) -> (&'static str, &'static str) {
        let on = |component: &Name| -> Vec<&HostId> {
            let key = (app.clone(), component.clone());
            let live = |h: &HostId| self.state.hosts.get(h).is_some_and(|r| !r.lost);
            let runs = |h: &HostId| self.observed.running(h, &key).iter().any(|r| r.state == pb::RunState::Running);
            self.state.placed(app, component).map(|(h, _)| h).filter(|h| live(h) && runs(h)).collect()
        };
        let (consumers, providers) = (on(&link.consumer), on(&link.provider));
        let state = if providers.is_empty() { "waiting" } else { "bound" };
        let here = consumers.iter().filter(|h| providers.contains(h)).count();
        let path = match (providers.is_empty() || consumers.is_empty(), here) {
            (true, _) => "",
            (_, 0) => "bus",
            (_, n) if n == consumers.len() => "local",
            _ => "local+bus",
        };
        (state, path)
    }

    pub fn revisions(&self, only: &str) -> Vec<pb::RevisionStatus> {
        let apps = self.state.apps.iter().filter(|(n, _)| only.is_empty() || n.as_str() == only);
        apps.flat_map(|(name, app)| {
            app.revisions.iter().map(|(revision, r)| pb::RevisionStatus {
                app: name.to_string(),
                revision: *revision,
                current: *revision == app.current,
                created_ms: r.created_ms,
                cause: r.cause.clone(),
            })
        })
        .collect()
    }

    /// Hosts that run this actor now, for calls and logs.
    pub fn hosts_running(&self, app: &Name, actor: &Name) -> Vec<HostId> {
        let key = (app.clone(), actor.clone());
        let running = |h: &HostId| self.observed.running(h, &key).iter().any(|r| r.state == pb::RunState::Running);
        self.state.placed(app, actor).map(|(h, _)| h.clone()).filter(running).collect()
    }
}

/// The part of a status that a host's load fills.
fn host_load(record: &HostState, seen: Option<&Seen>) -> pb::HostStatus {
    let Some(load) = seen.map(|seen| &seen.load).filter(|_| !record.lost) else { return pb::HostStatus::default() };
    let actors = || load.actors.values();
    pb::HostStatus {
        cpu_millis: load.cpu_millis,
        resident_bytes: load.memory_bytes,
        requests_per_s: load.per_s(actors().map(|a| a.requests).sum()),
        in_flight: actors().map(|a| a.in_flight).fold(0, u32::saturating_add),
        queued: actors().map(|a| a.queued).fold(0, u32::saturating_add),
        ..pb::HostStatus::default()
    }
}

/// An ingress that listens on every address of its machine is reached by the machine's name.
fn reachable(hello: &pb::Hello) -> Cow<'_, str> {
    match hello.ingress.parse::<SocketAddr>() {
        Ok(at) if at.ip().is_unspecified() => format!("{}:{}", hello.name, at.port()).into(),
        _ => hello.ingress.as_str().into(),
    }
}

fn state_of(record: &HostState, now: Option<&RunningNow>) -> (String, String) {
    if record.lost {
        return ("lost".into(), format!("host {} is lost", record.hello.name));
    }
    match now.map(|n| (n.state, n)) {
        Some((pb::RunState::Running, _)) => ("running".into(), String::new()),
        Some((pb::RunState::Failed, n)) => ("failed".into(), n.error.clone()),
        _ => ("starting".into(), String::new()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "helpers of tests")]
    use super::*;
    use crate::plan::plan;
    use pb::command::What;
    use std::collections::BTreeSet;

    fn host(n: usize) -> HostId {
        ulid::Ulid::from(n as u128 + 1).to_string().parse().unwrap()
    }

    fn apply(state: &mut State, what: Vec<What>) {
        let commands = what.into_iter().map(|what| pb::Command { request_id: String::new(), what: Some(what) });
        let entry = pb::Entry { version: 1, time_ms: 1, commands: commands.collect() };
        let index = state.applied + 1;
        for outcome in state.apply(index, &entry, &mut BTreeSet::new()) {
            assert_eq!(outcome.error, "");
        }
    }

    /// An actor with a replica on each of so many hosts.
    fn placed(hosts: usize) -> State {
        let mut state = State::default();
        let facts = Some(pb::Facts { arch: "x86_64".into(), os: "linux".into(), leases: true, ..Default::default() });
        let hello = |n| pb::Hello {
            lattice: "test".into(),
            host: host(n).to_string(),
            name: format!("h{n}"),
            boot: "b".into(),
            facts: facts.clone(),
            ..Default::default()
        };
        let register = |n| What::RegisterHost(pb::RegisterHost { hello: Some(hello(n)) });
        apply(&mut state, (0..hosts).map(register).collect());
        let web = serde_json::json!({ "kind": { "actor": { "image": "a" } },
            "scaler": { "spread": { "replicas": hosts, "spread": [] } } });
        let spec = serde_json::json!({ "name": "shop", "components": { "web": web } }).to_string().into_bytes();
        apply(&mut state, vec![What::ApplyApp(pb::ApplyApp { spec, if_version: 0 })]);
        let plan = plan(&state, &Observed::default(), 0, &Config::default());
        let commit = pb::CommitPlan { based_on: plan.based_on, changes: plan.changes };
        apply(&mut state, vec![What::CommitPlan(commit)]);
        state
    }

    fn beat(seq: u64, starting: bool) -> pb::Beat {
        let state = if starting { pb::RunState::Starting } else { pb::RunState::Running };
        let (app, component) = ("shop".to_owned(), "web".to_owned());
        let running =
            pb::Running { app, component, revision: 1, replicas: 1, state: state.into(), ..Default::default() };
        let at = pb::Starting {
            app: running.app.clone(),
            component: running.component.clone(),
            revision: 1,
            step: pb::StartStep::Compiling.into(),
            for_ms: 1_500,
            ..Default::default()
        };
        pb::Beat {
            boot: "b".into(),
            seq,
            inventory_version: seq,
            inventory: Some(pb::Inventory { items: vec![running] }),
            starting: if starting { vec![at] } else { Vec::new() },
            ..Default::default()
        }
    }

    #[test]
    fn what_hosts_bring_up_is_told_within_bounds_until_it_runs() {
        let hosts = STARTING_MAX + 6;
        let (mut state, mut observed) = (placed(hosts), Observed::default());
        for n in 0..hosts {
            observed.beat(&host(n), &beat(1, true), 1_000);
        }
        observed.beat(&host(1), &beat(2, false), 1_000);
        apply(&mut state, vec![What::MarkLost(pb::MarkLost { host: host(2).to_string() })]);
        let view = View { state: &state, observed: &observed, unplaced: &[], now_ms: 3_500, timers: Config::default() };
        let app = view.apps("").remove(0);
        // Without the one that runs it and the one that is lost.
        assert_eq!((app.starting.len(), app.starting_more), (STARTING_MAX, 4));
        assert_eq!(app.starting[0].host_name, "h0");
        assert_eq!(app.starting[0].starting.as_ref().unwrap().for_ms, 1_500, "as it was told");
        let actors = view.actors("");
        let told = |n: usize| (actors[n].state.as_str(), actors[n].message.as_str());
        assert_eq!(told(0), ("starting", "compiling for 4 s"));
        assert_eq!(told(1), ("running", ""));
        assert_eq!(told(2), ("lost", "host h2 is lost"));
    }
}
