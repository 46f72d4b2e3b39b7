//! The JSON and YAML that commands print: a promise to scripts. Fields are added, never renamed, removed or given
//! another type. Written out by hand, so that a change of the wire messages does not change them by accident.

use super::time::rfc3339;
use proto::v1;
use serde::Serialize;
use std::collections::BTreeMap;

/// Every list: `{"items": [...]}`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct List<T> {
    pub(crate) items: Vec<T>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct App {
    pub(crate) name: String,
    pub(crate) revision: u64,
    /// deploying | running | degraded | failed | deleting
    pub(crate) state: String,
    /// Replicas.
    pub(crate) desired: u32,
    pub(crate) running: u32,
    /// For `--if-version`.
    pub(crate) version: u64,
    pub(crate) message: String,
    pub(crate) urls: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Actor {
    pub(crate) app: String,
    pub(crate) actor: String,
    pub(crate) revision: u64,
    /// Id; empty when it is not placed.
    pub(crate) host: String,
    pub(crate) replicas: u32,
    pub(crate) running: u32,
    pub(crate) host_name: String,
    /// starting | running | failed | unplaced | lost
    pub(crate) state: String,
    pub(crate) message: String,
    /// actor | provider
    pub(crate) kind: String,
    pub(crate) requests: u64,
    pub(crate) errors: u64,
    /// Of the last heartbeat of its host, as are the others below.
    pub(crate) in_flight: u32,
    pub(crate) queued: u32,
    pub(crate) requests_per_s: f64,
    pub(crate) errors_per_s: f64,
    /// Microseconds from being asked to the answer or its head; 0 when nothing was asked.
    pub(crate) p50_us: u64,
    pub(crate) p99_us: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Host {
    pub(crate) id: String,
    pub(crate) name: String,
    /// ready | suspect | lost | cordoned | draining
    pub(crate) state: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) facts: Facts,
    /// Replicas.
    pub(crate) running: u32,
    pub(crate) ingress: String,
    /// Milliseconds since its last heartbeat.
    pub(crate) seen_ms: u64,
    /// Messages it refused since boot.
    pub(crate) dropped: u64,
    pub(crate) generation: u64,
    /// Of its last heartbeat, as are the others below; 0 in a watch. Thousandths of a core that the process used.
    pub(crate) cpu_millis: u32,
    pub(crate) resident_bytes: u64,
    /// Of all actors there.
    pub(crate) requests_per_s: f64,
    pub(crate) in_flight: u32,
    pub(crate) queued: u32,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct Facts {
    pub(crate) arch: String,
    pub(crate) os: String,
    pub(crate) cpus: u32,
    pub(crate) memory_bytes: u64,
    pub(crate) engine: String,
    pub(crate) version: String,
    pub(crate) interfaces: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Link {
    pub(crate) app: String,
    pub(crate) consumer: String,
    pub(crate) interface: String,
    pub(crate) name: String,
    pub(crate) provider: String,
    /// bound | waiting
    pub(crate) state: String,
    /// local | bus | local+bus
    pub(crate) path: String,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Revision {
    pub(crate) app: String,
    pub(crate) revision: u64,
    pub(crate) current: bool,
    /// RFC 3339, UTC.
    pub(crate) created: String,
    /// apply | scale | rollback to N
    pub(crate) cause: String,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Scheduler {
    pub(crate) id: u64,
    /// host:port where the others reach it; empty when it is alone.
    pub(crate) address: String,
    pub(crate) api: String,
    /// leader | voter | learner
    pub(crate) role: String,
    /// ready | behind | standby | joining | leaving | unreachable
    pub(crate) state: String,
    /// Log index up to which it has everything.
    pub(crate) index: u64,
    /// The newest version of log commands that it can apply.
    pub(crate) vocabulary: u32,
    pub(crate) message: String,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Access {
    pub(crate) name: String,
    /// admin | viewer
    pub(crate) role: String,
    /// RFC 3339, UTC.
    pub(crate) created: String,
    #[serde(skip)]
    pub(crate) created_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Event {
    pub(crate) id: String,
    /// RFC 3339, UTC.
    pub(crate) time: String,
    pub(crate) kind: String,
    pub(crate) subject: String,
    pub(crate) message: String,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct LogLine {
    /// RFC 3339, UTC.
    pub(crate) time: String,
    pub(crate) app: String,
    pub(crate) actor: String,
    pub(crate) host: String,
    pub(crate) instance: u64,
    /// stdout | stderr | trace | debug | info | warn | error | critical
    pub(crate) stream: String,
    pub(crate) text: String,
    /// Of the request that it was printed for; empty when there was none.
    pub(crate) request_id: String,
}

/// `describe app`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct AppDetail {
    #[serde(flatten)]
    pub(crate) app: App,
    pub(crate) actors: Vec<Actor>,
    pub(crate) links: Vec<Link>,
    pub(crate) revisions: Vec<Revision>,
    pub(crate) events: Vec<Event>,
    /// The current revision, as validated; null when the server sent none.
    pub(crate) spec: serde_json::Value,
}

/// `describe host`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct HostDetail {
    #[serde(flatten)]
    pub(crate) host: Host,
    pub(crate) actors: Vec<Actor>,
}

/// One app of `apply`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Applied {
    pub(crate) name: String,
    /// created | configured | unchanged
    pub(crate) change: String,
    pub(crate) revision: u64,
    pub(crate) version: u64,
    pub(crate) dry_run: bool,
    /// Last seen while following; null when nobody followed.
    pub(crate) state: Option<String>,
    pub(crate) desired: Option<u32>,
    pub(crate) running: Option<u32>,
    pub(crate) message: String,
    pub(crate) urls: Vec<String>,
}

/// `status`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Status {
    pub(crate) lattice: String,
    /// The address that answered.
    pub(crate) api: String,
    pub(crate) version: String,
    pub(crate) client_version: String,
    /// Id of the scheduler that answered; 0 when it is too old to say, as are the others below then.
    pub(crate) id: u64,
    /// Whether it leads.
    pub(crate) leader: bool,
    pub(crate) term: u64,
    pub(crate) index: u64,
    /// Whether a quorum said that nothing is missing in `index`.
    pub(crate) fresh: bool,
    /// Why this is what it knows alone; empty when it is fresh.
    pub(crate) alone: String,
    /// 0 when nobody leads.
    pub(crate) leader_id: u64,
    pub(crate) leader_address: String,
    pub(crate) leader_api: String,
    /// Its own: connected, or why not.
    pub(crate) bus: String,
    pub(crate) bus_up: bool,
    pub(crate) bus_problem: String,
    pub(crate) bus_urls: Vec<String>,
    pub(crate) dropped: u64,
    /// Id of the scheduler that sees what follows so: the leader, or the one that answered when none does.
    pub(crate) seen_by: u64,
    pub(crate) seen_by_bus: String,
    pub(crate) schedulers: u32,
    pub(crate) unreached: Vec<Unreached>,
    pub(crate) hosts: u32,
    pub(crate) silent: Vec<SilentHost>,
    /// Whether nothing is marked lost, since most hosts fell silent at once.
    pub(crate) brake: bool,
    /// Addresses of the API that were tried before, and why not.
    pub(crate) unanswered: Vec<Unanswered>,
}

/// A scheduler that another one does not reach.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Unreached {
    pub(crate) id: u64,
    pub(crate) address: String,
    /// Id of the one that does not reach it.
    pub(crate) from: u64,
    pub(crate) why: String,
}

/// A host that is not heard.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct SilentHost {
    pub(crate) id: String,
    pub(crate) name: String,
    /// suspect | lost
    pub(crate) state: String,
    /// Milliseconds since its last heartbeat, or since it was first waited for.
    pub(crate) silent_ms: u64,
    pub(crate) heard: bool,
}

/// An address of the API where nobody answers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Unanswered {
    pub(crate) api: String,
    pub(crate) why: String,
}

impl Status {
    pub(crate) fn new(api: String, unanswered: Vec<Unanswered>, s: v1::StatusResponse) -> Self {
        Self {
            lattice: s.lattice,
            api,
            version: s.version,
            client_version: env!("CARGO_PKG_VERSION").into(),
            id: s.id,
            leader: s.leader,
            term: s.term,
            index: s.index,
            fresh: s.fresh,
            alone: s.alone,
            leader_id: s.leader_id,
            leader_address: s.leader_peer,
            leader_api: s.leader_api,
            bus: s.bus,
            bus_up: s.bus_up,
            bus_problem: s.bus_problem,
            bus_urls: s.bus_urls,
            dropped: s.dropped,
            seen_by: s.seen_by,
            seen_by_bus: s.seen_by_bus,
            schedulers: s.schedulers,
            unreached: s.unreached.into_iter().map(Into::into).collect(),
            hosts: s.hosts,
            silent: s.silent.into_iter().map(Into::into).collect(),
            brake: s.brake,
            unanswered,
        }
    }
}

impl From<v1::Unreached> for Unreached {
    fn from(u: v1::Unreached) -> Self {
        Self { id: u.id, address: u.peer, from: u.from, why: u.why }
    }
}

impl From<v1::SilentHost> for SilentHost {
    fn from(h: v1::SilentHost) -> Self {
        Self { id: h.id, name: h.name, state: h.state, silent_ms: h.silent_ms, heard: h.heard }
    }
}

/// Rates are known to a tenth.
fn tenths(rate: f64) -> f64 {
    (rate * 10.0).round() / 10.0
}

impl From<v1::AppStatus> for App {
    fn from(s: v1::AppStatus) -> Self {
        Self {
            name: s.name,
            revision: s.revision,
            state: s.state,
            desired: s.desired,
            running: s.running,
            version: s.version,
            message: s.message,
            urls: s.urls,
        }
    }
}

impl From<v1::ActorStatus> for Actor {
    fn from(s: v1::ActorStatus) -> Self {
        Self {
            app: s.app,
            actor: s.actor,
            revision: s.revision,
            host: s.host,
            replicas: s.replicas,
            running: s.running,
            host_name: s.host_name,
            state: s.state,
            message: s.message,
            kind: s.kind,
            requests: s.requests,
            errors: s.errors,
            in_flight: s.in_flight,
            queued: s.queued,
            requests_per_s: tenths(s.requests_per_s),
            errors_per_s: tenths(s.errors_per_s),
            p50_us: s.p50_us,
            p99_us: s.p99_us,
        }
    }
}

impl From<v1::HostStatus> for Host {
    fn from(s: v1::HostStatus) -> Self {
        Self {
            id: s.id,
            name: s.name,
            state: s.state,
            labels: s.labels,
            facts: s.facts.map(Facts::from).unwrap_or_default(),
            running: s.running,
            ingress: s.ingress,
            seen_ms: s.seen_ms,
            dropped: s.dropped,
            generation: s.generation,
            cpu_millis: s.cpu_millis,
            resident_bytes: s.resident_bytes,
            requests_per_s: tenths(s.requests_per_s),
            in_flight: s.in_flight,
            queued: s.queued,
        }
    }
}

impl From<v1::Facts> for Facts {
    fn from(f: v1::Facts) -> Self {
        Self {
            arch: f.arch,
            os: f.os,
            cpus: f.cpus,
            memory_bytes: f.memory_bytes,
            engine: f.engine,
            version: f.version,
            interfaces: f.interfaces,
        }
    }
}

impl From<v1::LinkStatus> for Link {
    fn from(s: v1::LinkStatus) -> Self {
        Self {
            app: s.app,
            consumer: s.consumer,
            interface: s.interface,
            name: s.name,
            provider: s.provider,
            state: s.state,
            path: s.path,
        }
    }
}

impl From<v1::RevisionStatus> for Revision {
    fn from(s: v1::RevisionStatus) -> Self {
        Self { app: s.app, revision: s.revision, current: s.current, created: rfc3339(s.created_ms), cause: s.cause }
    }
}

impl From<v1::SchedulerStatus> for Scheduler {
    fn from(s: v1::SchedulerStatus) -> Self {
        Self {
            id: s.id,
            address: s.peer,
            api: s.api,
            role: s.role,
            state: s.state,
            index: s.index,
            vocabulary: s.vocabulary,
            message: s.message,
        }
    }
}

impl From<v1::AccessStatus> for Access {
    fn from(a: v1::AccessStatus) -> Self {
        Self { name: a.name, role: a.role, created: rfc3339(a.made_ms), created_ms: a.made_ms }
    }
}

impl From<v1::Event> for Event {
    fn from(e: v1::Event) -> Self {
        Self { id: e.id, time: rfc3339(e.time_ms), kind: e.kind, subject: e.subject, message: e.message }
    }
}

impl From<v1::LogLine> for LogLine {
    fn from(l: v1::LogLine) -> Self {
        Self {
            time: rfc3339(l.time_ms),
            app: l.app,
            actor: l.actor,
            host: l.host,
            instance: l.instance,
            stream: l.stream,
            text: l.text,
            request_id: l.request_id,
        }
    }
}

impl From<v1::AppDetail> for AppDetail {
    fn from(d: v1::AppDetail) -> Self {
        Self {
            app: d.app.unwrap_or_default().into(),
            actors: d.actors.into_iter().map(Into::into).collect(),
            links: d.links.into_iter().map(Into::into).collect(),
            revisions: d.revisions.into_iter().map(Into::into).collect(),
            events: d.events.into_iter().map(Into::into).collect(),
            spec: serde_json::from_str(&d.spec).unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    // Each test below is the promise in full: a change of one of them breaks scripts.

    #[test]
    fn hosts_keep_their_shape() {
        let status = v1::HostStatus {
            id: "01J".into(),
            name: "paris-1".into(),
            state: "ready".into(),
            labels: [("site".to_owned(), "paris".to_owned())].into(),
            facts: Some(v1::Facts {
                leases: true,
                arch: "x86_64".into(),
                os: "linux".into(),
                cpus: 2,
                memory_bytes: 1024,
                engine: "wasmtime 48".into(),
                version: "0.1.0".into(),
                interfaces: vec!["wasi:keyvalue/store".into()],
            }),
            running: 3,
            ingress: "127.0.0.1:8000".into(),
            seen_ms: 12,
            dropped: 1,
            generation: 7,
            cpu_millis: 250,
            resident_bytes: 4096,
            requests_per_s: 12.34,
            in_flight: 3,
            queued: 1,
        };
        assert_eq!(
            serde_json::to_value(List { items: vec![Host::from(status)] }).unwrap(),
            json!({"items": [{
                "id": "01J", "name": "paris-1", "state": "ready", "labels": {"site": "paris"},
                "facts": {"arch": "x86_64", "os": "linux", "cpus": 2, "memory_bytes": 1024, "engine": "wasmtime 48",
                    "version": "0.1.0", "interfaces": ["wasi:keyvalue/store"]},
                "running": 3, "ingress": "127.0.0.1:8000", "seen_ms": 12, "dropped": 1, "generation": 7,
                "cpu_millis": 250, "resident_bytes": 4096, "requests_per_s": 12.3, "in_flight": 3, "queued": 1,
            }]})
        );
    }

    #[test]
    fn apps_keep_their_shape() {
        let status = v1::AppStatus {
            name: "hello".into(),
            revision: 2,
            state: "running".into(),
            desired: 3,
            running: 3,
            version: 9,
            message: String::new(),
            urls: vec!["http://127.0.0.1:8000/".into()],
            failed: false,
            ..Default::default()
        };
        assert_eq!(
            serde_json::to_value(App::from(status)).unwrap(),
            json!({"name": "hello", "revision": 2, "state": "running", "desired": 3, "running": 3, "version": 9,
                "message": "", "urls": ["http://127.0.0.1:8000/"]})
        );
    }

    #[test]
    fn actors_keep_their_shape() {
        let status = v1::ActorStatus {
            app: "hello".into(),
            actor: "web".into(),
            revision: 2,
            host: "01J".into(),
            host_name: "paris-1".into(),
            replicas: 3,
            running: 2,
            state: "starting".into(),
            message: "m".into(),
            kind: "actor".into(),
            requests: 10,
            errors: 1,
            in_flight: 2,
            queued: 4,
            requests_per_s: 99.96,
            errors_per_s: 0.5,
            p50_us: 310,
            p99_us: 20_000,
        };
        assert_eq!(
            serde_json::to_value(Actor::from(status)).unwrap(),
            json!({"app": "hello", "actor": "web", "revision": 2, "host": "01J", "replicas": 3, "running": 2,
                "host_name": "paris-1", "state": "starting", "message": "m", "kind": "actor", "requests": 10,
                "errors": 1, "in_flight": 2, "queued": 4, "requests_per_s": 100.0, "errors_per_s": 0.5, "p50_us": 310,
                "p99_us": 20_000})
        );
    }

    #[test]
    fn links_revisions_and_events_keep_their_shape() {
        let link = v1::LinkStatus {
            app: "a".into(),
            consumer: "web".into(),
            interface: "wasi:keyvalue/store".into(),
            name: "default".into(),
            provider: "kv".into(),
            state: "bound".into(),
            path: "bus".into(),
        };
        assert_eq!(
            serde_json::to_value(Link::from(link)).unwrap(),
            json!({"app": "a", "consumer": "web", "interface": "wasi:keyvalue/store", "name": "default",
                "provider": "kv", "state": "bound", "path": "bus"})
        );
        let revision =
            v1::RevisionStatus { app: "a".into(), revision: 1, current: true, created_ms: 0, cause: "apply".into() };
        assert_eq!(
            serde_json::to_value(Revision::from(revision)).unwrap(),
            json!({"app": "a", "revision": 1, "current": true, "created": "1970-01-01T00:00:00.000Z",
                "cause": "apply"})
        );
        let event = v1::Event {
            id: "1".into(),
            time_ms: 0,
            kind: "host.lost".into(),
            subject: "host/x".into(),
            message: "m".into(),
            json: "{}".into(),
        };
        assert_eq!(
            serde_json::to_value(Event::from(event)).unwrap(),
            json!({"id": "1", "time": "1970-01-01T00:00:00.000Z", "kind": "host.lost", "subject": "host/x",
                "message": "m"})
        );
    }

    #[test]
    fn a_described_app_is_the_listed_app_and_more() {
        let detail = v1::AppDetail {
            app: Some(v1::AppStatus { name: "hello".into(), ..Default::default() }),
            spec: "{\"name\":\"hello\"}".into(),
            ..Default::default()
        };
        let value = serde_json::to_value(AppDetail::from(detail)).unwrap();
        assert_eq!(value["name"], "hello");
        assert_eq!(value["spec"]["name"], "hello");
        for list in ["actors", "links", "revisions", "events"] {
            assert_eq!(value[list], json!([]), "{list}");
        }
    }
}
