//! The replicated state: what is desired, which hosts there are, and what is placed where.
//!
//! Pure: `State::apply` reads nothing but itself and the entry, so every member that applies the same log holds the
//! same bytes. It never plans: it validates and stores a plan, or refuses one whose base has moved.
//!
//! Reading order: `State`, `apply` (one function per command), `member` (those about schedulers), `access`
//! (those about who may ask), `vocabulary` (which build knows which), `snapshot`, `invariant`.

mod access;
mod apply;
pub mod invariant;
mod member;
mod snapshot;
mod strict;
mod vocabulary;

pub use access::{ACCESS_MAX, Access, Role};
pub use member::{MEMBERS_MAX, Member, TOKEN_LIFE_MS_MAX, TOKENS_MAX, Wants};

pub(crate) use member::{lost_log, removed};
pub use snapshot::Corrupt;
pub use vocabulary::{VERSION, entry, expect_known};

use proto::app::{App, HostId, Name};
use proto::v1 as pb;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// Revisions kept of one app, beside those that are still placed.
pub const REVISIONS_MAX: usize = 10;
/// Request ids remembered, so that a retried write is applied once.
pub const ANSWERED_MAX: usize = 10_000;
/// Bytes of the reason for which a request is refused before it is proposed.
pub const REFUSAL_BYTES_MAX: usize = 4096;
/// Apps that are gone whose last revision is remembered.
pub const RETIRED_MAX: usize = 10_000;
/// Apps in one lattice.
pub const APPS_MAX: usize = 100_000;
/// Hosts in one lattice.
pub const HOSTS_MAX: usize = 50_000;

/// Everything the log decides.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct State {
    /// Log index of the last entry applied.
    pub applied: u64,
    /// Log index of the last change that a plan depends on.
    pub plan_base: u64,
    pub apps: BTreeMap<Name, AppState>,
    pub hosts: BTreeMap<HostId, HostState>,
    /// (app, component) -> host -> what is placed there.
    pub placements: BTreeMap<(Name, Name), BTreeMap<HostId, Placed>>,
    /// Stateful provider -> the host that has its data: it is placed there again, or waits. Something strict -> the host
    /// where it may run still, until that says that it stopped.
    pub homes: BTreeMap<(Name, Name), HostId>,
    /// The schedulers: who they are and where they are reached. Who of them votes is the log's own business.
    pub members: BTreeMap<u64, Member>,
    /// The next scheduler that joins gets this id; 0: none made itself known yet.
    pub next_member: u64,
    /// Who may use the API, by name of the token.
    pub access: BTreeMap<Name, Access>,
    /// The newest version of an entry that was applied: who knows less can not go on from here.
    pub vocabulary: u32,
    /// Join tokens that are good: hash of the secret -> Unix time of their end, in ms.
    tokens: BTreeMap<String, u64>,
    /// Host -> what is placed on it: the same facts by host, kept in step.
    by_host: BTreeMap<HostId, BTreeSet<(Name, Name)>>,
    answered: BTreeMap<String, pb::Outcome>,
    answered_order: VecDeque<String>,
    /// Apps that are gone, oldest first, with their last revision. A number is never used twice: a host that still
    /// runs revision 1 of the old app would take it for revision 1 of the new one.
    retired: VecDeque<(Name, u64)>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct AppState {
    /// Log index of the last change to what is desired.
    pub version: u64,
    pub current: u64,
    pub deleting: bool,
    pub created_ms: u64,
    pub revisions: BTreeMap<u64, Revision>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Revision {
    pub created_ms: u64,
    /// apply | scale | rollback to N
    pub cause: String,
    pub spec: Arc<App>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct HostState {
    pub hello: pb::Hello,
    pub cordoned: bool,
    pub draining: bool,
    pub lost: bool,
    /// Log index of the last change to what it shall run.
    pub generation: u64,
    pub changed_ms: u64,
}

/// What one host has of one component. A component has one revision on one host: a new one replaces it in place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placed {
    pub revision: u64,
    pub replicas: u32,
}

/// What an entry changed, for those who watch.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Touched {
    App(Name),
    AppGone(Name),
    Host(HostId),
    HostGone(HostId),
}

impl AppState {
    /// The revision that is desired now.
    pub fn spec(&self) -> &Arc<App> {
        &self.revisions.get(&self.current).expect("the current revision is kept until the app is gone").spec
    }
}

impl HostState {
    /// Whether new replicas may be placed there.
    pub fn takes_new(&self) -> bool {
        !self.lost && !self.cordoned && !self.draining
    }
}

impl State {
    /// Components that `host` shall run.
    pub fn on_host(&self, host: &HostId) -> impl Iterator<Item = (&Name, &Name, Placed)> {
        self.by_host.get(host).into_iter().flatten().filter_map(move |key| {
            let placed = self.placements.get(key)?.get(host)?;
            Some((&key.0, &key.1, *placed))
        })
    }

    /// Where something strict was placed last, and may be stopping still; a host once for each.
    pub fn strict_hosts(&self) -> impl Iterator<Item = &HostId> {
        let is_strict = |key: &(Name, Name)| match self.apps.get(&key.0) {
            Some(app) => app.revisions.values().any(|r| r.spec.components.get(&key.1).is_some_and(|c| c.strict)),
            // Of an app that is gone nothing else has a home.
            None => true,
        };
        self.homes.iter().filter(move |(key, _)| is_strict(key)).map(|(_, host)| host)
    }

    pub fn placed(&self, app: &Name, component: &Name) -> impl Iterator<Item = (&HostId, Placed)> {
        // A tuple key of references needs an owned pair; names are short.
        self.placements.get(&(app.clone(), component.clone())).into_iter().flatten().map(|(h, p)| (h, *p))
    }

    /// The host that `text` names: its id, or its name when only one host has it.
    pub fn find_host(&self, text: &str) -> Option<&HostId> {
        if let Some((id, _)) = self.hosts.get_key_value(text) {
            return Some(id);
        }
        let mut named = self.hosts.iter().filter(|(_, h)| h.hello.name == text);
        let (id, _) = named.next()?;
        named.next().is_none().then_some(id)
    }

    /// Every ingress route of every app that is desired: host, path, app, actor; in order, one owner per route.
    pub fn routes(&self) -> Vec<pb::Route> {
        let mut routes = BTreeMap::new();
        for (name, app) in self.apps.iter().filter(|(_, a)| !a.deleting) {
            for (component, actor, route) in app.spec().routes() {
                routes.entry((route.host.clone(), route.path.clone())).or_insert((name, component, &actor.limits));
            }
        }
        routes
            .into_iter()
            .map(|((host, path), (app, actor, limits))| pb::Route {
                host,
                path,
                app: app.to_string(),
                actor: actor.to_string(),
                deadline_ms: limits.deadline_ms,
                request_bytes_max: Some(limits.request_bytes_max),
            })
            .collect()
    }

    /// What `host` shall run now, fenced by the caller's term.
    pub fn assignment(&self, lattice: &str, host: &HostId, term: u64) -> Option<pb::Assignment> {
        let record = self.hosts.get(host)?;
        let mut slices: BTreeMap<(&Name, u64), pb::AppSlice> = BTreeMap::new();
        for (app, component, placed) in self.on_host(host) {
            let Some(spec) = self.apps.get(app).and_then(|a| a.revisions.get(&placed.revision)) else { continue };
            slices
                .entry((app, placed.revision))
                .or_insert_with(|| pb::AppSlice {
                    app: app.to_string(),
                    revision: placed.revision,
                    spec: spec.spec.to_json(),
                    replicas: BTreeMap::new(),
                })
                .replicas
                .insert(component.to_string(), placed.replicas);
        }
        Some(pb::Assignment {
            lattice: lattice.to_owned(),
            host: host.to_string(),
            term,
            generation: record.generation,
            apps: slices.into_values().collect(),
            routes: if record.hello.ingress.is_empty() { Vec::new() } else { self.routes() },
            beat_ms: 0,
        })
    }

    /// The answer given before to this request id.
    pub fn answered(&self, request_id: &str) -> Option<&pb::Outcome> {
        self.answered.get(request_id)
    }

    /// The answers given before to these request ids, if all of them were answered.
    pub fn answered_all<'a>(&self, mut ids: impl Iterator<Item = &'a str>) -> Option<Vec<pb::Outcome>> {
        ids.try_fold(Vec::new(), |mut all, id| {
            all.push(self.answered(id).filter(|_| !id.is_empty())?.clone());
            Some(all)
        })
    }
}
