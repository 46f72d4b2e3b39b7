//! The one history that there must be: every committed entry, in order, applied to a state that never saw a snapshot
//! or a crash. Whatever a member applied, answered or restored is compared with it.

use crate::ctx::{Ctx, host_number};
use prost::Message;
use proto::app::{App, HostId, Kind, Name, Scaler};
use proto::v1 as pb;
use proto::v1::command::What;
use scheduler::state::{State, invariant};
use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Default)]
pub(crate) struct History {
    entries: BTreeMap<u64, Entry>,
    pub(crate) state: State,
    /// Intent of a client -> times it took effect.
    effects: BTreeMap<usize, u32>,
    /// Where a provider was placed first: its data is there.
    stores: BTreeMap<(Name, Name), HostId>,
    /// Committed plans that changed something.
    pub(crate) plans: u64,
    /// Term -> who led in it.
    leaders: BTreeMap<u64, u64>,
    /// Ids that schedulers were given.
    ids: BTreeMap<u64, String>,
    /// The state's bytes after the entry at an index: several members are compared with them.
    bytes: RefCell<(u64, Vec<u8>)>,
}

struct Entry {
    data: Vec<u8>,
    outcomes: Vec<u8>,
}

/// `c<intent>`, with something behind when a mutation renames it.
pub(crate) fn request_id(intent: usize) -> String {
    format!("c{intent}")
}

fn intent_of(request_id: &str) -> Option<usize> {
    request_id.strip_prefix('c')?.split('x').next()?.parse().ok()
}

impl History {
    /// There is one leader a term.
    pub(crate) fn leads(&mut self, ctx: &mut Ctx, term: u64, id: u64) {
        let first = *self.leaders.entry(term).or_insert(id);
        if first != id {
            ctx.fail(format!("schedulers {first} and {id} both lead in term {term}"));
        }
    }

    /// What is committed at a log index, unless that is nothing to the state.
    pub(crate) fn data_at(&self, index: u64) -> Option<&[u8]> {
        self.entries.get(&index).map(|entry| &entry.data[..])
    }

    pub(crate) fn last(&self) -> u64 {
        self.entries.keys().next_back().copied().unwrap_or(0)
    }

    /// A member holds `data` to be committed at `index`, and got `outcomes` from its own state.
    pub(crate) fn commit(&mut self, ctx: &mut Ctx, index: u64, data: &[u8], outcomes: &[u8]) {
        if let Some(known) = self.entries.get(&index) {
            if known.data != data {
                ctx.fail(format!("two histories at log index {index}"));
            } else if known.outcomes != outcomes {
                ctx.fail(format!("entry {index} had another outcome when it was applied again"));
            }
            return;
        }
        if index < self.last() {
            ctx.fail(format!("log index {index} was empty and holds an entry now"));
            return;
        }
        let Ok(entry) = pb::Entry::decode(data) else { return ctx.fail(format!("entry {index} does not decode")) };
        let before = self.before(&entry);
        let lost: BTreeSet<_> = self.state.hosts.iter().filter(|(_, h)| h.lost).map(|(id, _)| id.clone()).collect();
        let mine = self.state.apply_bytes(index, data, &mut BTreeSet::new());
        if mine != outcomes {
            ctx.fail(format!("entry {index} has another outcome without the snapshot"));
        }
        let state = &self.state;
        self.stores.retain(|(app, _), host| state.apps.contains_key(app) && state.hosts.contains_key(host));
        for finding in invariant::check(&self.state) {
            ctx.fail(format!("after entry {index}: {finding}"));
        }
        let items = pb::Outcomes::decode(&mine[..]).map(|o| o.items).unwrap_or_default();
        for (command, outcome) in entry.commands.iter().zip(&items) {
            self.look(ctx, command, outcome, &before);
        }
        let back = lost.iter().filter(|id| self.state.hosts.get(*id).is_some_and(|h| !h.lost)).count();
        (0..back).for_each(|_| ctx.count("host returned after lost"));
        ctx.note(|| format!("entry {index}: {}", told(&entry, &items)));
        self.entries.insert(index, Entry { data: data.to_vec(), outcomes: mine });
    }

    /// Request ids of `entry` that were answered before, with the answer; and the state to compare with then.
    fn before(&self, entry: &pb::Entry) -> BTreeMap<String, pb::Outcome> {
        let ids = entry.commands.iter().map(|c| &c.request_id).filter(|id| !id.is_empty());
        ids.filter_map(|id| Some((id.clone(), self.state.answered(id)?.clone()))).collect()
    }

    fn look(
        &mut self,
        ctx: &mut Ctx,
        command: &pb::Command,
        outcome: &pb::Outcome,
        answered: &BTreeMap<String, pb::Outcome>,
    ) {
        if let Some(first) = answered.get(&command.request_id) {
            ctx.count("retry answered from memory");
            if first != outcome {
                ctx.fail(format!("request {} was answered {first:?}, now {outcome:?}", command.request_id));
            }
            return;
        }
        let took_effect = outcome.error.is_empty() && outcome.change != "unchanged";
        if let Some(intent) = intent_of(&command.request_id).filter(|_| took_effect) {
            let times = self.effects.entry(intent).or_default();
            *times += 1;
            if *times > 1 {
                ctx.fail(format!("request {} was applied {times} times", command.request_id));
            }
        }
        match &command.what {
            Some(What::CommitPlan(plan)) if outcome.error.is_empty() => {
                self.plans += 1;
                for finding in invariant::check_planned(&self.state) {
                    ctx.fail(format!("after a plan: {finding}"));
                }
                self.count_replicas(ctx);
                self.look_at_stores(ctx);
                for change in plan.changes.iter().filter(|c| c.replicas == 0) {
                    ctx.count("placement removed");
                    let host = self.state.hosts.get_key_value(change.host.as_str());
                    if host.is_some_and(|(id, h)| h.draining && !h.lost && self.state.on_host(id).next().is_none()) {
                        ctx.count("drain finished");
                    }
                }
            }
            Some(What::CommitPlan(_)) if outcome.code == "stale" => ctx.count("plan refused as stale"),
            Some(What::CommitPlan(_)) => ctx.fail(format!("the log refused a plan: {}", outcome.error)),
            Some(What::AddMember(add)) if outcome.change == "created" => {
                ctx.count("scheduler joined");
                let id = self.state.member_with(&add.log_id).unwrap_or(0);
                if let Some(first) = self.ids.insert(id, add.log_id.clone()) {
                    ctx.fail(format!("id {id} of {first} is given to {} again", add.log_id));
                }
            }
            Some(What::RemoveMember(_)) if outcome.error.is_empty() => ctx.count("scheduler removed"),
            Some(What::ForgetHost(_)) if outcome.error.is_empty() => ctx.count("host forgotten"),
            Some(What::MarkLost(_)) => ctx.count("host lost"),
            Some(What::ApplyApp(_)) if outcome.change == "created" => {
                ctx.count("app created");
                let app = intent_of(&command.request_id).and(Some(outcome.revision));
                if app.is_some_and(|r| r > 1) {
                    ctx.count("app created again after its deletion");
                }
            }
            _ => {}
        }
    }

    /// Naively: after a plan, no component has more replicas than it asks for now, but for those that drain.
    fn count_replicas(&self, ctx: &mut Ctx) {
        for ((app, component), hosts) in &self.state.placements {
            let spec = self.state.apps.get(app).filter(|a| !a.deleting).map(|a| a.spec());
            let Some(Scaler::Spread { replicas, .. }) =
                spec.and_then(|s| s.components.get(component)).map(|c| &c.scaler)
            else {
                continue;
            };
            let drains = |id| self.state.hosts.get(id).is_some_and(|h| h.draining);
            let placed: u32 = hosts.iter().filter(|(id, _)| !drains(*id)).map(|(_, p)| p.replicas).sum();
            if placed > *replicas {
                ctx.fail(format!("{app}/{component} has {placed} replicas placed and asks for {replicas}"));
            }
        }
    }

    /// A provider never moves away from its data while its app and that host exist.
    fn look_at_stores(&mut self, ctx: &mut Ctx) {
        let state = &self.state;
        for (key, hosts) in &state.placements {
            let component = state.apps.get(&key.0).and_then(|a| a.spec().components.get(&key.1));
            if component.is_none_or(|c| matches!(c.kind, Kind::Actor(_))) {
                continue;
            }
            for host in hosts.keys() {
                let home = self.stores.entry(key.clone()).or_insert_with(|| host.clone());
                if home != host {
                    ctx.fail(format!("{}/{} moved from {home} to {host}, without its data", key.0, key.1));
                }
            }
        }
    }

    /// Whether this request took effect.
    pub(crate) fn took_effect(&self, intent: usize) -> bool {
        self.effects.contains_key(&intent)
    }

    /// A member's state against the one that never saw a snapshot, when both are at the same entry.
    pub(crate) fn compare(&self, ctx: &mut Ctx, member: usize, state: &State) {
        for finding in invariant::check(state) {
            ctx.fail(format!("member {member}: {finding}"));
        }
        let mut mine = Cow::Borrowed(state);
        if state.applied != self.state.applied {
            // What a new leader begins with counts in the log and not here.
            mine.to_mut().applied = self.state.applied;
        }
        let mut kept = self.bytes.borrow_mut();
        if kept.0 != self.last() {
            *kept = (self.last(), self.state.to_bytes());
        }
        let bytes = mine.to_bytes();
        if bytes != kept.1 {
            ctx.fail(format!("member {member}: snapshot and tail differ from a full replay at {}", state.applied));
        }
        match State::from_bytes(&bytes) {
            Ok(copy) if copy == *mine => {}
            Ok(_) => ctx.fail(format!("member {member}: its snapshot is another state")),
            Err(e) => ctx.fail(format!("member {member}: {e}")),
        }
    }
}

/// Whether one component is the same in both: kind, configuration, links.
pub(crate) fn same_component(one: &App, other: &App, component: &Name) -> bool {
    let links = |app: &App| -> Vec<_> { app.links.iter().filter(|l| l.consumer == *component).cloned().collect() };
    match (one.components.get(component), other.components.get(component)) {
        (Some(a), Some(b)) => a.kind == b.kind && a.config == b.config && links(one) == links(other),
        _ => false,
    }
}

fn told(entry: &pb::Entry, outcomes: &[pb::Outcome]) -> String {
    let short = |id: &str| id.parse().map_or_else(|_| id.to_owned(), |id| format!("h{}", host_number(&id)));
    let one = |(command, outcome): (&pb::Command, &pb::Outcome)| {
        let what = match &command.what {
            Some(What::ApplyApp(c)) => match App::from_json(&c.spec) {
                Ok(app) => format!("apply {} {}", app.name, scalers(&app)),
                Err(e) => e.to_string(),
            },
            Some(What::DeleteApp(c)) => format!("delete {}", c.app),
            Some(What::ScaleActor(c)) => format!("scale {}/{} to {}", c.app, c.actor, c.replicas),
            Some(What::RollbackApp(c)) => format!("roll {} back to {}", c.app, c.to),
            Some(What::SetCordon(c)) => format!("cordon {} {} {}", short(&c.host), c.cordoned, c.draining),
            Some(What::RegisterHost(c)) => {
                let hello = c.hello.as_ref();
                format!("register {} {:?}", hello.map_or("?", |h| &h.name), hello.map(|h| &h.labels))
            }
            Some(What::MarkLost(c)) => format!("{} is lost", short(&c.host)),
            Some(What::MarkReturned(c)) => format!("{} is back", short(&c.host)),
            Some(What::ForgetHost(c)) => format!("forget {}", short(&c.host)),
            Some(What::CommitPlan(c)) => {
                let changes = c
                    .changes
                    .iter()
                    .map(|c| format!("{} {}/{} r{} x{}", short(&c.host), c.app, c.component, c.revision, c.replicas));
                format!("plan on {}: {}", c.based_on, changes.collect::<Vec<_>>().join(", "))
            }
            Some(What::SetMember(c)) => format!("scheduler {} is at {}", c.id, c.peer),
            Some(What::AddMember(c)) => format!("a scheduler joins at {}", c.peer),
            Some(What::PromoteMember(c)) => format!("scheduler {} shall vote", c.id),
            Some(What::RemoveMember(c)) => format!("scheduler {} shall go", c.id),
            Some(What::IssueToken(c)) => format!("a join token until {}", c.expires_ms),
            Some(What::SetAccess(c)) => format!("token {} may ask", c.name),
            Some(What::RemoveAccess(c)) => format!("token {} may not ask any more", c.name),
            Some(What::Refuse(c)) => format!("refuse: {}", c.error),
            None => "nothing".into(),
        };
        let id = &command.request_id;
        format!("{id} {what} -> {}{} r{}", outcome.change, outcome.error, outcome.revision)
    };
    entry.commands.iter().zip(outcomes).map(one).collect::<Vec<_>>().join("; ")
}

/// What an app asks for, in a line.
pub(crate) fn scalers(app: &App) -> String {
    let one = |name: &Name, c: &proto::app::Component| {
        let (kind, n, spread) = match &c.scaler {
            proto::app::Scaler::Spread { replicas, spread } => ("", replicas, spread),
            proto::app::Scaler::Daemon { replicas, spread } => ("daemon ", replicas, spread),
        };
        let shares: Vec<String> = spread.iter().map(|s| format!("{:?}:{}", s.requirements, s.weight)).collect();
        format!("{name}={kind}{n}{}{:?}", shares.join(","), c.config)
    };
    app.components.iter().map(|(name, c)| one(name, c)).collect::<Vec<_>>().join(" ")
}
