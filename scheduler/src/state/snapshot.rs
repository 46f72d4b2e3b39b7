//! The state as bytes and back. Byte-stable: equal states give equal snapshots.

use super::{AppState, HostState, Placed, Revision, State, VERSION};
use prost::Message;
use proto::app::{App, HostId, Name};
use proto::fault::{Fault, built_in};
use proto::v1 as pb;
use std::sync::Arc;

/// A snapshot that this build can not read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "snapshot: {0}; restore a backup into an empty folder with `lattice restore`, or update lattice if a newer one wrote it"
)]
pub struct Corrupt(pub String);

impl State {
    pub fn to_snapshot(&self) -> pb::Snapshot {
        pb::Snapshot {
            version: self.vocabulary,
            applied: self.applied,
            plan_base: self.plan_base,
            apps: self.apps.iter().map(|(name, app)| app_record(name, app)).collect(),
            hosts: self
                .hosts
                .values()
                .map(|h| pb::HostRecord {
                    hello: Some(h.hello.clone()),
                    cordoned: h.cordoned,
                    draining: h.draining,
                    lost: h.lost,
                    generation: h.generation,
                    changed_ms: h.changed_ms,
                })
                .collect(),
            placements: self
                .placements
                .iter()
                .flat_map(|((app, component), hosts)| {
                    hosts.iter().map(move |(host, p)| pb::Change {
                        host: host.to_string(),
                        app: app.to_string(),
                        component: component.to_string(),
                        revision: p.revision,
                        replicas: p.replicas,
                    })
                })
                .collect(),
            answered: self
                .answered_order
                .iter()
                .filter(|_| !built_in(Fault::SnapshotForgetsAnswers))
                .filter_map(|id| {
                    let outcome = self.answered.get(id)?.encode_to_vec();
                    Some(pb::Answered { request_id: id.clone(), outcome })
                })
                .collect(),
            homes: self
                .homes
                .iter()
                .filter(|_| !built_in(Fault::SnapshotForgetsHomes))
                .map(|((app, component), host)| pb::Home {
                    app: app.to_string(),
                    component: component.to_string(),
                    host: host.to_string(),
                })
                .collect(),
            members: self.members.iter().map(|(id, member)| member.record(*id)).collect(),
            next_member: self.next_member,
            tokens: self
                .tokens
                .iter()
                .map(|(hash, expires_ms)| pb::IssueToken { hash: hash.clone(), expires_ms: *expires_ms })
                .collect(),
            access: self.access.iter().map(|(name, access)| access.record(name)).collect(),
            retired: self
                .retired
                .iter()
                .map(|(name, revision)| pb::Retired { name: name.to_string(), revision: *revision })
                .collect(),
        }
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        self.to_snapshot().encode_to_vec()
    }

    /// Makes this the beginning of a new log at `index`, which is above all that hosts have confirmed: what is desired and
    /// where it is placed stays, every host is told anew, and who the schedulers were is forgotten.
    pub fn begin_anew(&mut self, index: u64) {
        self.applied = index;
        self.plan_base = index;
        for host in self.hosts.values_mut() {
            host.generation = index;
        }
        self.members.clear();
        self.next_member = 0;
        self.tokens.clear();
    }

    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Corrupt> {
        let snapshot = pb::Snapshot::decode(bytes).map_err(|e| Corrupt(format!("does not decode: {e}")))?;
        Self::from_snapshot(snapshot)
    }

    pub fn from_snapshot(snapshot: pb::Snapshot) -> Result<Self, Corrupt> {
        if snapshot.version > VERSION {
            return Err(Corrupt(format!("version {} is newer than {VERSION}", snapshot.version)));
        }
        let mut state = Self { applied: snapshot.applied, plan_base: snapshot.plan_base, ..Self::default() };
        state.vocabulary = snapshot.version;
        for record in snapshot.apps {
            let (name, app) = app_from(record)?;
            state.apps.insert(name, app);
        }
        for record in snapshot.hosts {
            let hello = record.hello.ok_or_else(|| Corrupt("a host without hello".into()))?;
            let id: HostId = hello.host.parse().map_err(|e| Corrupt(format!("host {:?}: {e}", hello.host)))?;
            let host = HostState {
                hello,
                cordoned: record.cordoned,
                draining: record.draining,
                lost: record.lost,
                generation: record.generation,
                changed_ms: record.changed_ms,
            };
            state.hosts.insert(id, host);
        }
        for p in snapshot.placements {
            let key = (noun::<Name>(&p.app)?, noun::<Name>(&p.component)?);
            let host = noun::<HostId>(&p.host)?;
            state.set_placed(&key, &host, Placed { revision: p.revision, replicas: p.replicas });
        }
        for home in snapshot.homes {
            let key = (noun::<Name>(&home.app)?, noun::<Name>(&home.component)?);
            state.homes.insert(key, noun::<HostId>(&home.host)?);
        }
        for answered in snapshot.answered {
            let outcome = pb::Outcome::decode(answered.outcome.as_slice())
                .map_err(|e| Corrupt(format!("answer to {}: {e}", answered.request_id)))?;
            state.remember(answered.request_id, outcome);
        }
        state.next_member = snapshot.next_member;
        for record in snapshot.members {
            let (id, member) = super::Member::from_record(record).map_err(Corrupt)?;
            state.members.insert(id, member);
        }
        for record in snapshot.access {
            let (name, access) = super::Access::from_record(record).map_err(Corrupt)?;
            state.access.insert(name, access);
        }
        state.tokens = snapshot.tokens.into_iter().map(|token| (token.hash, token.expires_ms)).collect();
        for retired in snapshot.retired {
            state.retire(noun(&retired.name)?, retired.revision);
        }
        Ok(state)
    }
}

fn noun<T: std::str::FromStr<Err = proto::app::Invalid>>(text: &str) -> Result<T, Corrupt> {
    text.parse().map_err(|e| Corrupt(format!("{e}")))
}

fn app_record(name: &Name, app: &AppState) -> pb::AppRecord {
    pb::AppRecord {
        name: name.to_string(),
        version: app.version,
        current: app.current,
        deleting: app.deleting,
        created_ms: app.created_ms,
        revisions: app
            .revisions
            .iter()
            .map(|(revision, r)| pb::RevisionRecord {
                revision: *revision,
                created_ms: r.created_ms,
                spec: r.spec.to_json(),
                cause: r.cause.clone(),
            })
            .collect(),
    }
}

fn app_from(record: pb::AppRecord) -> Result<(Name, AppState), Corrupt> {
    let name: Name = noun(&record.name)?;
    let mut app = AppState {
        version: record.version,
        current: record.current,
        deleting: record.deleting,
        created_ms: record.created_ms,
        revisions: Default::default(),
    };
    for r in record.revisions {
        let spec = App::from_json(&r.spec).map_err(|e| Corrupt(format!("app {name}, revision {}: {e}", r.revision)))?;
        app.revisions.insert(r.revision, Revision { created_ms: r.created_ms, cause: r.cause, spec: Arc::new(spec) });
    }
    if !app.revisions.contains_key(&app.current) {
        return Err(Corrupt(format!("app {name} lacks its current revision {}", app.current)));
    }
    Ok((name, app))
}
