//! Applying log entries: one function per command. Deterministic; refuses instead of panicking, because what is in
//! the log was accepted by some leader and must be applied the same way everywhere.

use super::{ANSWERED_MAX, APPS_MAX, AppState, HOSTS_MAX, HostState, Placed, REFUSAL_BYTES_MAX, RETIRED_MAX};
use super::{REVISIONS_MAX, Revision, State, Touched, strict};
use prost::Message;
use proto::app::{App, HostId, Kind, Name, REPLICAS_MAX, SPREADS_MAX, Scaler};
use proto::fault::{Fault, built_in};
use proto::v1 as pb;
use proto::v1::command::What;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Why a command changed nothing.
pub(super) struct Refused {
    code: &'static str,
    error: String,
}

pub(super) type Result<T> = std::result::Result<T, Refused>;

pub(super) fn refuse<T>(code: &'static str, error: impl Into<String>) -> Result<T> {
    Err(Refused { code, error: error.into() })
}

/// What one command did.
#[derive(Default)]
pub(super) struct Done {
    pub(super) change: &'static str,
    pub(super) version: u64,
    pub(super) revision: u64,
}

impl State {
    /// Applies one entry. The outcomes are in the order of its commands; `touched` gathers what changed.
    pub fn apply(&mut self, index: u64, entry: &pb::Entry, touched: &mut BTreeSet<Touched>) -> Vec<pb::Outcome> {
        assert!(index > self.applied || self.applied == 0, "log entries are applied once, in order");
        self.applied = index;
        self.vocabulary = self.vocabulary.max(entry.version);
        entry.commands.iter().map(|command| self.command(index, entry.time_ms, command, touched)).collect()
    }

    /// Decodes and applies one entry; gives the encoded `Outcomes`.
    pub fn apply_bytes(&mut self, index: u64, data: &[u8], touched: &mut BTreeSet<Touched>) -> Vec<u8> {
        let items = match pb::Entry::decode(data) {
            Ok(entry) if entry.version <= super::VERSION => self.apply(index, &entry, touched),
            Ok(entry) => {
                self.applied = index;
                vec![outcome(refuse(
                    "invalid",
                    format!(
                        "log entry {index} has version {}, this build knows {}: update it",
                        entry.version,
                        super::VERSION
                    ),
                ))]
            }
            Err(e) => {
                self.applied = index;
                vec![outcome(refuse("invalid", format!("log entry {index} does not decode: {e}")))]
            }
        };
        pb::Outcomes { items }.encode_to_vec()
    }

    fn command(
        &mut self,
        index: u64,
        now_ms: u64,
        command: &pb::Command,
        touched: &mut BTreeSet<Touched>,
    ) -> pb::Outcome {
        if !command.request_id.is_empty()
            && let Some(before) = self.answered.get(&command.request_id)
            && !built_in(Fault::NoDedup)
        {
            return before.clone();
        }
        let done = match &command.what {
            Some(What::ApplyApp(c)) => self.apply_app(index, now_ms, c, touched),
            Some(What::DeleteApp(c)) => self.delete_app(index, c, touched),
            Some(What::ScaleActor(c)) => self.scale_actor(index, now_ms, c, touched),
            Some(What::RollbackApp(c)) => self.rollback_app(index, now_ms, c, touched),
            Some(What::SetCordon(c)) => self.set_cordon(index, now_ms, c, touched),
            Some(What::RegisterHost(c)) => self.register_host(index, now_ms, c, touched),
            Some(What::MarkLost(c)) => self.mark_lost(index, now_ms, &c.host, true, touched),
            Some(What::MarkReturned(c)) => self.mark_lost(index, now_ms, &c.host, false, touched),
            Some(What::ForgetHost(c)) => self.forget_host(index, &c.host, touched),
            Some(What::CommitPlan(c)) => self.commit_plan(index, c, touched),
            Some(What::SetMember(c)) => self.set_member(c),
            Some(What::AddMember(c)) => self.add_member(now_ms, c),
            Some(What::PromoteMember(c)) => self.promote_member(c.id),
            Some(What::RemoveMember(c)) => self.remove_member(c.id),
            Some(What::IssueToken(c)) => self.issue_token(now_ms, c),
            Some(What::SetAccess(c)) => self.set_access(now_ms, c),
            Some(What::RemoveAccess(c)) => self.remove_access(c),
            Some(What::Refuse(c)) => refused(c),
            None => refuse("invalid", "a command of a kind this build does not know: update it"),
        };
        let outcome = outcome(done);
        if !command.request_id.is_empty() {
            self.remember(command.request_id.clone(), outcome.clone());
        }
        outcome
    }

    fn apply_app(
        &mut self,
        index: u64,
        now_ms: u64,
        c: &pb::ApplyApp,
        touched: &mut BTreeSet<Touched>,
    ) -> Result<Done> {
        let app = match App::from_json(&c.spec) {
            Ok(app) => app,
            Err(e) => return refuse("invalid", format!("the app does not decode: {e}")),
        };
        let name = app.name.clone();
        if let Some(problem) = too_many_spreads(&app) {
            return refuse("invalid", problem);
        }
        if let Some(at) = self.apps.get(&name) {
            if at.deleting {
                return refuse(
                    "conflict",
                    format!("app {name:?} is being deleted; apply it again when it is gone", name = name.as_str()),
                );
            }
            self.expect_version(&name, c.if_version)?;
            let at = &self.apps[&name];
            if **at.spec() == app {
                return Ok(Done { change: "unchanged", version: at.version, revision: at.current });
            }
        } else if c.if_version != 0 {
            return refuse(
                "conflict",
                format!("app \"{name}\" does not exist, version {} was expected; get it again", c.if_version),
            );
        } else if self.apps.len() >= APPS_MAX {
            return refuse("invalid", format!("the lattice holds {APPS_MAX} apps, its bound; delete some first"));
        }
        if let Some(problem) = self.route_taken(&app) {
            return refuse("conflict", problem);
        }
        if let Some(problem) = strict::problem(self.apps.get(&name), &app) {
            return refuse("invalid", problem);
        }
        let created = !self.apps.contains_key(&name);
        let revision = self.add_revision(index, now_ms, app, "apply", touched);
        Ok(Done { change: if created { "created" } else { "configured" }, version: index, revision })
    }

    /// A route belongs to one app.
    fn route_taken(&self, app: &App) -> Option<String> {
        let wanted: BTreeSet<(&str, &str)> = routes_of(app).collect();
        if wanted.is_empty() || built_in(Fault::RouteTwice) {
            return None;
        }
        for (other, at) in self.apps.iter().filter(|(n, a)| **n != app.name && !a.deleting) {
            if let Some((host, path)) = routes_of(at.spec()).find(|r| wanted.contains(r)) {
                let host = if host.is_empty() { "any host" } else { host };
                return Some(format!(
                    "ingress route {path} of {host} belongs to app \"{other}\" already; choose another path or host for app \"{}\"",
                    app.name
                ));
            }
        }
        None
    }

    fn add_revision(&mut self, index: u64, now_ms: u64, app: App, cause: &str, touched: &mut BTreeSet<Touched>) -> u64 {
        let routes_before: Option<Vec<_>> = self.apps.get(&app.name).map(|a| owned_routes(a.spec()));
        let routes_after = owned_routes(&app);
        let name = app.name.clone();
        let retired = self.retired.iter().position(|(n, _)| *n == name).and_then(|at| self.retired.remove(at));
        let retired = retired.filter(|_| !built_in(Fault::RevisionUsedTwice));
        let at = self.apps.entry(name.clone()).or_insert_with(|| AppState {
            version: 0,
            current: 0,
            deleting: false,
            created_ms: now_ms,
            revisions: Default::default(),
        });
        let before = at.revisions.keys().next_back().copied().or(retired.map(|(_, last)| last));
        let revision = before.unwrap_or(0) + 1;
        at.revisions.insert(revision, Revision { created_ms: now_ms, cause: cause.to_owned(), spec: Arc::new(app) });
        at.current = revision;
        at.version = index;
        self.plan_base = index;
        if routes_before.unwrap_or_default() != routes_after {
            self.touch_ingress_hosts(index);
        }
        self.trim_revisions(&name);
        touched.insert(Touched::App(name));
        revision
    }

    /// Keeps the latest revisions and those still placed somewhere.
    fn trim_revisions(&mut self, name: &Name) {
        let placed: BTreeSet<u64> = self.placed_revisions(name);
        let Some(at) = self.apps.get_mut(name) else { return };
        let oldest_kept = at.revisions.keys().rev().nth(REVISIONS_MAX - 1).copied().unwrap_or(0);
        at.revisions.retain(|r, _| *r >= oldest_kept || placed.contains(r));
    }

    fn placed_revisions(&self, name: &Name) -> BTreeSet<u64> {
        let Some(at) = self.apps.get(name) else { return BTreeSet::new() };
        let components: BTreeSet<&Name> = at.revisions.values().flat_map(|r| r.spec.components.keys()).collect();
        components.into_iter().flat_map(|c| self.placed(name, c)).map(|(_, p)| p.revision).collect()
    }

    fn delete_app(&mut self, index: u64, c: &pb::DeleteApp, touched: &mut BTreeSet<Touched>) -> Result<Done> {
        let name = self.expect_app(&c.app)?;
        self.expect_version(&name, c.if_version)?;
        let at = self.apps.get_mut(&name).expect("looked up above");
        let revision = at.current;
        let had_routes = routes_of(at.spec()).next().is_some();
        at.deleting = true;
        at.version = index;
        self.plan_base = index;
        if had_routes {
            self.touch_ingress_hosts(index);
        }
        if !self.drop_if_empty(&name, touched) {
            touched.insert(Touched::App(name));
        }
        Ok(Done { change: "deleted", version: index, revision })
    }

    /// An app that is being deleted is gone when nothing of it is placed.
    fn drop_if_empty(&mut self, name: &Name, touched: &mut BTreeSet<Touched>) -> bool {
        let gone = self.apps.get(name).is_some_and(|a| a.deleting)
            && (self.placed_revisions(name).is_empty() || built_in(Fault::GoneTooEarly));
        if gone {
            // Of what is strict, in an earlier life of the app too, it is remembered until the host says that it stopped.
            let specs: Vec<_> = self.apps[name].revisions.values().map(|r| r.spec.clone()).collect();
            let kind = |c: &Name| specs.iter().find_map(|s| s.components.get(c).map(|c| c.kind.clone()));
            self.homes.retain(|(app, c), _| app != name || !matches!(kind(c), Some(Kind::Provider(_))));
            if let Some((last, _)) = self.apps.remove(name).and_then(|app| app.revisions.into_iter().next_back()) {
                self.retire(name.clone(), last);
            }
            touched.remove(&Touched::App(name.clone()));
            touched.insert(Touched::AppGone(name.clone()));
        }
        gone
    }

    fn scale_actor(
        &mut self,
        index: u64,
        now_ms: u64,
        c: &pb::ScaleActor,
        touched: &mut BTreeSet<Touched>,
    ) -> Result<Done> {
        let name = self.expect_app(&c.app)?;
        self.expect_version(&name, c.if_version)?;
        if c.replicas > REPLICAS_MAX {
            return refuse("invalid", format!("{} replicas are too many; the most is {REPLICAS_MAX}", c.replicas));
        }
        let at = &self.apps[&name];
        let mut app = App::clone(at.spec());
        let Some(component) = app.components.get_mut(c.actor.as_str()) else {
            let known: Vec<&str> = app.components.keys().map(Name::as_str).collect();
            return refuse(
                "not_found",
                format!("app \"{name}\" has no actor {:?}; it has {}", c.actor, known.join(", ")),
            );
        };
        if matches!(component.kind, Kind::Provider(_)) && c.replicas > 1 {
            return refuse("invalid", format!("\"{}\" keeps its data on one host: it has 0 or 1 replicas", c.actor));
        }
        if component.strict && c.replicas > 1 {
            return refuse("invalid", format!("\"{}\" is strict: it has 0 or 1 replicas", c.actor));
        }
        let (Scaler::Spread { replicas, .. } | Scaler::Daemon { replicas, .. }) = &mut component.scaler;
        if *replicas == c.replicas {
            return Ok(Done { change: "unchanged", version: at.version, revision: at.current });
        }
        *replicas = c.replicas;
        let revision = self.add_revision(index, now_ms, app, "scale", touched);
        Ok(Done { change: "scaled", version: index, revision })
    }

    fn rollback_app(
        &mut self,
        index: u64,
        now_ms: u64,
        c: &pb::RollbackApp,
        touched: &mut BTreeSet<Touched>,
    ) -> Result<Done> {
        let name = self.expect_app(&c.app)?;
        self.expect_version(&name, c.if_version)?;
        let at = &self.apps[&name];
        let wanted = match c.to {
            0 => at.revisions.range(..at.current).next_back().map(|(r, _)| *r),
            to => Some(to),
        };
        let kept = || at.revisions.keys().map(u64::to_string).collect::<Vec<_>>().join(", ");
        let Some(to) = wanted else {
            return refuse(
                "not_found",
                format!("app \"{name}\" has no revision before {}; it keeps {}", at.current, kept()),
            );
        };
        let Some(revision) = at.revisions.get(&to) else {
            return refuse("not_found", format!("app \"{name}\" has no revision {to}; it keeps {}", kept()));
        };
        let app = App::clone(&revision.spec);
        if app == **at.spec() {
            return Ok(Done { change: "unchanged", version: at.version, revision: at.current });
        }
        if let Some(problem) = self.route_taken(&app) {
            return refuse("conflict", problem);
        }
        if let Some(problem) = strict::problem(Some(at), &app) {
            return refuse("invalid", problem);
        }
        let revision = self.add_revision(index, now_ms, app, &format!("rollback to {to}"), touched);
        Ok(Done { change: "rolled back", version: index, revision })
    }

    fn set_cordon(
        &mut self,
        index: u64,
        now_ms: u64,
        c: &pb::SetCordon,
        touched: &mut BTreeSet<Touched>,
    ) -> Result<Done> {
        let id = self.expect_host(&c.host)?;
        let host = self.hosts.get_mut(&id).expect("looked up above");
        let cordoned = c.cordoned || c.draining;
        if (host.cordoned, host.draining) == (cordoned, c.draining) {
            return Ok(Done { change: "unchanged", version: self.plan_base, revision: 0 });
        }
        (host.cordoned, host.draining, host.changed_ms) = (cordoned, c.draining, now_ms);
        self.plan_base = index;
        touched.insert(Touched::Host(id));
        let change = match (cordoned, c.draining) {
            (_, true) => "draining",
            (true, false) => "cordoned",
            (false, false) => "uncordoned",
        };
        Ok(Done { change, version: index, revision: 0 })
    }

    fn register_host(
        &mut self,
        index: u64,
        now_ms: u64,
        c: &pb::RegisterHost,
        touched: &mut BTreeSet<Touched>,
    ) -> Result<Done> {
        let Some(hello) = &c.hello else { return refuse("invalid", "a host registers with its hello") };
        let Ok(id) = hello.host.parse::<HostId>() else {
            return refuse("invalid", format!("{:?} is not a host id", hello.host));
        };
        let hello = pb::Hello { term: 0, generation: 0, ..hello.clone() };
        let full = self.hosts.len() >= HOSTS_MAX;
        match self.hosts.get_mut(&id) {
            Some(host) => {
                let same_but_boot = pb::Hello { boot: hello.boot.clone(), ..host.hello.clone() } == hello;
                if host.hello != hello || host.lost {
                    let moved = !same_but_boot || host.lost;
                    let ingress_changed = host.hello.ingress != hello.ingress;
                    host.hello = hello;
                    host.lost = false;
                    host.changed_ms = now_ms;
                    if ingress_changed {
                        host.generation = index;
                    }
                    if moved {
                        self.plan_base = index;
                    }
                    touched.insert(Touched::Host(id));
                }
            }
            None if full => {
                return refuse(
                    "invalid",
                    format!("the lattice has {HOSTS_MAX} hosts, its bound; forget lost ones first"),
                );
            }
            None => {
                self.hosts.insert(
                    id.clone(),
                    HostState {
                        hello,
                        cordoned: false,
                        draining: false,
                        lost: false,
                        generation: index,
                        changed_ms: now_ms,
                    },
                );
                self.plan_base = index;
                touched.insert(Touched::Host(id));
            }
        }
        Ok(Done { change: "registered", version: index, revision: 0 })
    }

    fn mark_lost(
        &mut self,
        index: u64,
        now_ms: u64,
        host: &str,
        lost: bool,
        touched: &mut BTreeSet<Touched>,
    ) -> Result<Done> {
        let id = self.expect_host(host)?;
        let record = self.hosts.get_mut(&id).expect("looked up above");
        if record.lost != lost {
            record.lost = lost;
            record.changed_ms = now_ms;
            self.plan_base = index;
            touched.insert(Touched::Host(id));
        }
        Ok(Done { change: if lost { "lost" } else { "returned" }, version: index, revision: 0 })
    }

    fn forget_host(&mut self, index: u64, host: &str, touched: &mut BTreeSet<Touched>) -> Result<Done> {
        let id = self.expect_host(host)?;
        if !self.hosts[&id].lost {
            return refuse("conflict", format!("host {id} is not lost; end it first"));
        }
        if self.by_host.get(&id).is_some_and(|s| !s.is_empty()) {
            return refuse("conflict", format!("host {id} still has replicas that no other host can take"));
        }
        self.hosts.remove(&id);
        self.homes.retain(|_, home| *home != id);
        self.by_host.remove(&id);
        self.plan_base = index;
        touched.insert(Touched::HostGone(id));
        Ok(Done { change: "forgotten", version: index, revision: 0 })
    }

    fn commit_plan(&mut self, index: u64, c: &pb::CommitPlan, touched: &mut BTreeSet<Touched>) -> Result<Done> {
        if c.based_on != self.plan_base && !built_in(Fault::StalePlanTaken) {
            return refuse(
                "stale",
                format!("the plan was made on {}, the state has moved to {}", c.based_on, self.plan_base),
            );
        }
        let mut changes = Vec::with_capacity(c.changes.len());
        for change in &c.changes {
            changes.push(self.check_change(change)?);
        }
        let mut apps = BTreeSet::new();
        let mut hosts = BTreeSet::new();
        for (key, host, placed) in changes {
            self.set_placed(&key, &host, placed);
            if placed.replicas > 0 && self.has_home(&key, placed.revision) {
                self.homes.insert(key.clone(), host.clone());
            } else if !self.apps.contains_key(&key.0) {
                self.homes.remove(&key);
            }
            hosts.insert(host);
            apps.insert(key.0);
        }
        for id in hosts {
            if let Some(host) = self.hosts.get_mut(&id)
                && !built_in(Fault::GenerationKept)
            {
                host.generation = index;
            }
            touched.insert(Touched::Host(id));
        }
        for app in apps {
            self.trim_revisions(&app);
            if !self.drop_if_empty(&app, touched) {
                touched.insert(Touched::App(app));
            }
        }
        self.plan_base = index;
        Ok(Done { change: "planned", version: index, revision: 0 })
    }

    /// Where it was placed last matters: its data is there, or it is strict and may run there still.
    fn has_home(&self, key: &(Name, Name), revision: u64) -> bool {
        let spec = self.apps.get(&key.0).and_then(|a| a.revisions.get(&revision));
        let component = spec.and_then(|r| r.spec.components.get(&key.1));
        component.is_some_and(|c| c.strict || matches!(c.kind, Kind::Provider(_)))
    }

    fn check_change(&self, change: &pb::Change) -> Result<((Name, Name), HostId, Placed)> {
        let host = self.expect_host(&change.host)?;
        let (Ok(app), Ok(component)) = (change.app.parse::<Name>(), change.component.parse::<Name>()) else {
            return refuse("invalid", format!("{:?}/{:?} are not names", change.app, change.component));
        };
        if change.replicas > 0 {
            let Some(revision) = self.apps.get(&app).and_then(|a| a.revisions.get(&change.revision)) else {
                return refuse("invalid", format!("app \"{app}\" has no revision {}", change.revision));
            };
            if !revision.spec.components.contains_key(&component) {
                return refuse("invalid", format!("revision {} of \"{app}\" has no \"{component}\"", change.revision));
            }
        }
        Ok(((app, component), host, Placed { revision: change.revision, replicas: change.replicas }))
    }

    pub(super) fn set_placed(&mut self, key: &(Name, Name), host: &HostId, placed: Placed) {
        if placed.replicas > 0 {
            self.placements.entry(key.clone()).or_default().insert(host.clone(), placed);
            self.by_host.entry(host.clone()).or_default().insert(key.clone());
            return;
        }
        if let Some(hosts) = self.placements.get_mut(key) {
            hosts.remove(host);
            if hosts.is_empty() {
                self.placements.remove(key);
            }
        }
        if let Some(keys) = self.by_host.get_mut(host) {
            keys.remove(key);
            if keys.is_empty() {
                self.by_host.remove(host);
            }
        }
    }

    fn touch_ingress_hosts(&mut self, index: u64) {
        for host in self.hosts.values_mut().filter(|h| !h.hello.ingress.is_empty()) {
            host.generation = index;
        }
    }

    pub(super) fn retire(&mut self, name: Name, revision: u64) {
        if self.retired.len() >= RETIRED_MAX {
            self.retired.pop_front();
        }
        self.retired.push_back((name, revision));
    }

    pub(super) fn remember(&mut self, request_id: String, outcome: pb::Outcome) {
        while self.answered_order.len() >= ANSWERED_MAX {
            if let Some(oldest) = self.answered_order.pop_front() {
                self.answered.remove(&oldest);
            }
        }
        self.answered_order.push_back(request_id.clone());
        self.answered.insert(request_id, outcome);
    }

    fn expect_app(&self, name: &str) -> Result<Name> {
        match self.apps.get_key_value(name) {
            Some((_, at)) if at.deleting => refuse("conflict", format!("app {name:?} is being deleted")),
            Some((name, _)) => Ok(name.clone()),
            None => refuse("not_found", format!("there is no app {name:?}; `lattice get apps` shows what there is")),
        }
    }

    fn expect_version(&self, name: &Name, if_version: u64) -> Result<()> {
        let version = self.apps.get(name).map_or(0, |a| a.version);
        if if_version != 0 && if_version != version && !built_in(Fault::IfVersionIgnored) {
            return refuse(
                "conflict",
                format!("app \"{name}\" is at version {version}, not {if_version}; get it again and repeat the change"),
            );
        }
        Ok(())
    }

    fn expect_host(&self, host: &str) -> Result<HostId> {
        match self.find_host(host) {
            Some(id) => Ok(id.clone()),
            None => refuse(
                "not_found",
                format!(
                    "there is no host {host:?}, or more than one has that name; `lattice get hosts` shows their ids"
                ),
            ),
        }
    }
}

/// What was refused before it was proposed.
fn refused(c: &pb::Refuse) -> Result<Done> {
    if c.error.is_empty() || c.error.len() > REFUSAL_BYTES_MAX {
        return refuse("invalid", format!("a refusal has 1 to {REFUSAL_BYTES_MAX} bytes"));
    }
    let known = ["not_found", "conflict", "denied", "precondition"];
    let code = known.into_iter().find(|code| *code == c.code).unwrap_or("invalid");
    refuse(code, c.error.clone())
}

/// Manifests are checked for it; what another client proposes is too, because the planner counts shares as bits.
fn too_many_spreads(app: &App) -> Option<String> {
    let over = |c: &proto::app::Component| {
        let (Scaler::Spread { spread, .. } | Scaler::Daemon { spread, .. }) = &c.scaler;
        spread.len() > SPREADS_MAX
    };
    let (name, _) = app.components.iter().find(|(_, c)| over(c))?;
    Some(format!("\"{name}\" has more than {SPREADS_MAX} spreads; merge those with the same requirements"))
}

fn routes_of(app: &App) -> impl Iterator<Item = (&str, &str)> {
    app.routes().map(|(_, _, route)| (route.host.as_str(), route.path.as_str()))
}

/// Routes with the actor that serves each, and its deadline.
fn owned_routes(app: &App) -> Vec<(Name, proto::app::IngressRoute, u64)> {
    app.routes().map(|(name, actor, route)| (name.clone(), route.clone(), actor.limits.deadline_ms)).collect()
}

fn outcome(done: Result<Done>) -> pb::Outcome {
    match done {
        Ok(done) => pb::Outcome {
            change: done.change.to_owned(),
            version: done.version,
            revision: done.revision,
            ..Default::default()
        },
        Err(refused) => pb::Outcome { code: refused.code.to_owned(), error: refused.error, ..Default::default() },
    }
}
