//! What a host tells of itself to those who watch it: whether it is well, and its page for Prometheus. Reads what others
//! count; holds nothing up.

use super::running::What;
use super::start::Parts;
use super::{Command, Identity};
use crate::call::CallError;
use crate::engine::Actor;
use crate::ingress::{Meter, SOCKETS_ENDED, tls};
use crate::metrics::{Book, CLASSES, Key, OTHER, Page, Series, Taken, Value};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use tokio::sync::mpsc;

/// Shared by the ingress, which counts, the loop, which says how far it is, and those who ask.
#[derive(Default)]
pub(super) struct Telemetry {
    pub(super) book: Book,
    pub(super) meter: Arc<Meter>,
    pub(super) certificates: OnceLock<Arc<tls::Certificates>>,
    progress: Mutex<Progress>,
    routed: Mutex<Series>,
    run: Mutex<Series>,
    /// As `run`, with those that nobody asked yet.
    placed: Mutex<Series>,
}

/// How far the loop is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// It has an assignment: components of it, how many of them are up, and how many failed to start.
    pub(super) assigned: bool,
    pub(super) wanted: usize,
    pub(super) up: usize,
    pub(super) failed: usize,
    /// All of the first assignment was up, or had failed, once.
    pub(super) settled: bool,
    pub(super) ending: bool,
}

impl Telemetry {
    pub(super) fn progress(&self) -> Progress {
        *self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the loop sees now. Once settled, a host stays so: a component that comes later takes nothing from the others.
    pub(super) fn goes_on(&self, now: Progress) {
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        let settled = progress.settled || (now.assigned && now.up + now.failed >= now.wanted);
        *progress = Progress { settled, ending: progress.ending, ..now };
    }

    pub(super) fn ends(&self) {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).ending = true;
    }
}

/// Whether a host is well. The text of an error is for people: what is missing.
#[derive(Clone)]
pub struct Health {
    pub(super) parts: Parts,
    pub(super) commands: mpsc::Sender<Command>,
}

impl Health {
    /// Its loop runs: else only another start helps.
    pub fn live(&self) -> Result<(), String> {
        if self.commands.is_closed() { Err("the host's loop has ended".to_owned()) } else { Ok(()) }
    }

    /// It can be sent requests.
    pub fn ready(&self) -> Result<(), String> {
        self.live()?;
        let bus = self.parts.bus.connection().borrow().up;
        readiness(self.parts.telemetry.progress(), bus)
    }

    /// What it does without meanwhile, though it is ready.
    pub fn lacks(&self) -> Option<String> {
        Some(format!("the bus is not connected: {}", self.parts.bus.down()?))
    }
}

fn readiness(progress: Progress, bus: bool) -> Result<(), String> {
    let Progress { assigned, wanted, up, failed, settled, ending } = progress;
    match () {
        () if ending => Err("the host is ending".to_owned()),
        () if settled => Ok(()),
        () if assigned => {
            Err(format!("{} of {wanted} components are being started", wanted - (up + failed).min(wanted)))
        }
        // A new host: nothing is missing here that it could have.
        () if bus => Ok(()),
        () => Err("no assignment yet, and the bus is not connected".to_owned()),
    }
}

/// The page of one host.
pub(super) struct Scrape {
    pub(super) identity: Identity,
    pub(super) parts: Parts,
}

impl fmt::Debug for Scrape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Scrape of {}", self.identity.host)
    }
}

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let mut page = Page::new(encoder);
        self.host(&mut page)?;
        self.ingress(&mut page)?;
        self.routes(&mut page)?;
        self.actors(&mut page)
    }
}

impl Scrape {
    fn host(&self, page: &mut Page<'_>) -> fmt::Result {
        let Identity { lattice, host, name, facts, .. } = &self.identity;
        let labels = [
            ("lattice", lattice.as_str()),
            ("host", host.as_str()),
            ("name", name.as_str()),
            ("version", facts.version.as_str()),
            ("engine", facts.engine.as_str()),
        ];
        page.family(
            "lattice_host",
            "The host, always 1; who it is stands in the labels",
            [(labels, Value::Gauge(1.0))],
        )?;
        let progress = self.parts.telemetry.progress();
        let states = [
            ([("state", "up")], Value::Gauge(progress.up as f64)),
            ([("state", "failed")], Value::Gauge(progress.failed as f64)),
            (
                [("state", "starting")],
                Value::Gauge(progress.wanted.saturating_sub(progress.up + progress.failed) as f64),
            ),
        ];
        page.family("lattice_host_components", "Components assigned to this host, by how far they are", states)?;
        let bus = if self.parts.bus.connection().borrow().up { 1.0 } else { 0.0 };
        page.one("lattice_host_bus_up", "Whether the bus is connected", Value::Gauge(bus))?;
        let dropped = Value::Count(self.parts.bus.drops().total());
        page.one("lattice_host_bus_dropped", "Messages from the bus that were refused", dropped)?;
        let (used, max) = self.parts.engine.memory_bytes();
        let guests = "Linear memory of all instances that are alive";
        page.one("lattice_host_guest_memory_bytes", guests, Value::Gauge(used as f64))?;
        let bound = "The most that all instances together may have";
        page.one("lattice_host_guest_memory_max_bytes", bound, Value::Gauge(max as f64))?;
        let (running, most) = (self.parts.engine.running(), self.parts.engine.instances_max());
        page.one("lattice_host_instances", "Instances that run now", Value::Gauge(f64::from(running)))?;
        page.one("lattice_host_instances_max", "The most that may run at once", Value::Gauge(f64::from(most)))?;
        let (compiled, cached) = self.parts.engine.loads();
        let loads = [([("from", "compiler")], Value::Count(compiled)), ([("from", "cache")], Value::Count(cached))];
        page.family("lattice_host_component_loads", "Components made ready, compiled or taken from the cache", loads)?;
        let (held, most) = self.parts.artifacts.bytes();
        page.one("lattice_host_artifact_bytes", "Components kept on disk", Value::Gauge(held as f64))?;
        page.one("lattice_host_artifact_max_bytes", "The most that is kept", Value::Gauge(most as f64))
    }

    fn ingress(&self, page: &mut Page<'_>) -> fmt::Result {
        if self.identity.ingress.is_empty() {
            return Ok(());
        }
        let meter = &self.parts.telemetry.meter;
        let open = meter.taken.get().saturating_sub(meter.ended.get());
        page.one("lattice_ingress_connections", "Clients that are connected", Value::Gauge(open as f64))?;
        let taken = Value::Count(meter.taken.get());
        page.one("lattice_ingress_connections_accepted", "Connections that were taken", taken)?;
        let cut = [
            ([("why", "handshake")], Value::Count(meter.handshakes_failed.get())),
            ([("why", "no-head")], Value::Count(meter.headless.get())),
            ([("why", "stalled")], Value::Count(meter.stalled.get())),
            ([("why", "crowded")], Value::Count(meter.crowded.get())),
        ];
        page.family("lattice_ingress_connections_cut", "Connections ended because of what the client did", cut)?;
        let refused = [
            ([("why", "no-route")], Value::Count(meter.unrouted.get())),
            ([("why", "bad-request")], Value::Count(meter.refused.get())),
        ];
        page.family("lattice_ingress_refused", "Requests that no actor was asked", refused)?;
        let ended = SOCKETS_ENDED.iter().zip(&meter.sockets_ended).map(|(why, n)| ([("why", *why)], n.get()));
        let ended = ended.filter(|(_, n)| *n > 0).map(|(why, n)| (why, Value::Count(n)));
        page.family("lattice_ingress_websockets_ended", "WebSockets that have ended, and why", ended)?;
        if let Some(certificates) = self.parts.telemetry.certificates.get() {
            let help = "Changed certificate files that could not be used";
            page.one("lattice_ingress_certificate_failures", help, Value::Count(certificates.failed()))?;
        }
        Ok(())
    }

    fn routes(&self, page: &mut Page<'_>) -> fmt::Result {
        let all = self.parts.telemetry.book.list();
        let used = all
            .into_iter()
            .map(|(key, t)| (key, (t.classes(), t.took(), t.sockets.list())))
            .filter(|(_, t)| t.1.count() > 0);
        let mut series = self.parts.telemetry.routed.lock().unwrap_or_else(PoisonError::into_inner);
        let (own, rest) = series.split(used.collect());
        drop(series);
        let mut others = ([0; 5], Taken::default(), [0; 4]);
        for (classes, took, sockets) in &rest {
            others.0.iter_mut().zip(classes).for_each(|(to, n)| *to += n);
            others.1.add(took);
            others.2.iter_mut().zip(sockets).for_each(|(to, n)| *to += n);
        }
        let rows = labelled(&own, (!rest.is_empty()).then_some(&others));
        let classes = rows.iter().flat_map(|(app, actor, (classes, _, _))| {
            let told = CLASSES.iter().zip(classes).filter(|(_, n)| **n > 0);
            told.map(|(class, n)| ([("app", *app), ("actor", *actor), ("code", *class)], Value::Count(*n)))
        });
        page.family("lattice_ingress_requests", "Requests answered at this ingress, by status class", classes)?;
        let took =
            rows.iter().map(|(app, actor, (_, took, _))| ([("app", *app), ("actor", *actor)], Value::Seconds(took)));
        page.family("lattice_ingress_request_duration_seconds", "Until the head of the answer", took)?;
        let with_sockets = || rows.iter().filter(|(_, _, (_, _, sockets))| sockets[0] > 0);
        let open = with_sockets().map(|(app, actor, (_, _, [opened, ended, ..]))| {
            ([("app", *app), ("actor", *actor)], Value::Gauge(opened.saturating_sub(*ended) as f64))
        });
        page.family("lattice_ingress_websockets", "WebSockets that are open", open)?;
        let messages = with_sockets().flat_map(|(app, actor, (_, _, [_, _, received, sent]))| {
            let told = [("in", received), ("out", sent)];
            told.map(|(way, n)| ([("app", *app), ("actor", *actor), ("direction", way)], Value::Count(*n)))
        });
        page.family("lattice_ingress_websocket_messages", "Messages of WebSockets, from and to clients", messages)
    }

    fn actors(&self, page: &mut Page<'_>) -> fmt::Result {
        let mut placed: Vec<(Key, f64)> = Vec::new();
        let mut run: Vec<(Key, Told)> = Vec::new();
        self.parts.running.each(|app, component, have, what| {
            let What::Actor(actor) = what else { return };
            let (key, told) = ((app.clone(), component.clone()), Told::of(actor));
            if told.requests > 0 {
                run.push((key.clone(), told));
            }
            placed.push((key, if actor.may_run() { f64::from(have.replicas) } else { 0.0 }));
        });
        let mut series = self.parts.telemetry.placed.lock().unwrap_or_else(PoisonError::into_inner);
        let (own, rest) = series.split(placed);
        drop(series);
        let others: f64 = rest.iter().sum();
        let rows = labelled(&own, (!rest.is_empty()).then_some(&others)).into_iter();
        let rows = rows.map(|(app, actor, n)| ([("app", app), ("actor", actor)], Value::Gauge(*n)));
        let help = "Replicas that run on this host, or would if they were asked; of what is strict, only under a lease";
        page.family("lattice_actor_replicas", help, rows)?;
        let mut series = self.parts.telemetry.run.lock().unwrap_or_else(PoisonError::into_inner);
        let (own, rest) = series.split(run);
        drop(series);
        let mut others = Told::default();
        rest.iter().for_each(|told| others.add(told));
        let rows = labelled(&own, (!rest.is_empty()).then_some(&others));
        let each = |value: fn(&Told) -> Value<'_>| {
            rows.iter().map(move |(app, actor, told)| ([("app", *app), ("actor", *actor)], value(told)))
        };
        let help = "Invocations asked for on this host: requests, and calls over links";
        page.family("lattice_actor_invocations", help, each(|t| Value::Count(t.requests)))?;
        let errors = rows.iter().flat_map(|(app, actor, told)| {
            let codes = CallError::CODES.iter().zip(told.errors).filter(|(_, n)| *n > 0);
            codes.map(|(code, n)| ([("app", *app), ("actor", *actor), ("error", *code)], Value::Count(n)))
        });
        page.family("lattice_actor_errors", "Invocations that gave no answer: traps, limits, deadlines", errors)?;
        page.family(
            "lattice_actor_invocation_duration_seconds",
            "From being asked, waiting included, to the answer or its head",
            each(|t| Value::Seconds(&t.took)),
        )?;
        page.family("lattice_actor_in_flight", "Invocations that run now", each(|t| Value::Gauge(t.in_flight)))?;
        page.family("lattice_actor_queued", "Invocations that wait for a replica", each(|t| Value::Gauge(t.queued)))
    }
}

/// What is told of one actor.
#[derive(Default)]
struct Told {
    requests: u64,
    errors: [u64; CallError::CODES.len()],
    took: Taken,
    in_flight: f64,
    queued: f64,
}

impl Told {
    fn of(actor: &Actor) -> Self {
        let stats = actor.stats();
        Self {
            requests: stats.requests,
            errors: actor.errors(),
            took: actor.took(),
            in_flight: f64::from(stats.in_flight),
            queued: f64::from(stats.queued),
        }
    }

    fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.errors.iter_mut().zip(other.errors).for_each(|(to, n)| *to += n);
        self.took.add(&other.took);
        self.in_flight += other.in_flight;
        self.queued += other.queued;
    }
}

/// App, actor and value of each row, the others at the end.
fn labelled<'a, T>(own: &'a [(Key, T)], others: Option<&'a T>) -> Vec<(&'a str, &'a str, &'a T)> {
    let rows = own.iter().map(|((app, actor), value)| (app.as_str(), actor.as_str(), value));
    rows.chain(others.map(|value| (OTHER, OTHER, value))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_ready_when_it_serves_what_it_was_assigned() {
        let telemetry = Telemetry::default();
        let is = |bus| readiness(telemetry.progress(), bus);
        assert!(is(true).is_ok() && is(false).unwrap_err().contains("bus"));
        let at = |up, failed| Progress { assigned: true, wanted: 3, up, failed, ..Progress::default() };
        telemetry.goes_on(at(1, 0));
        assert_eq!(is(true).unwrap_err(), "2 of 3 components are being started");
        telemetry.goes_on(at(2, 1));
        assert!(is(false).is_ok(), "it serves without the bus, and what fails is not for it to mend");
        // What comes later takes nothing from what is there.
        telemetry.goes_on(at(1, 0));
        assert!(is(true).is_ok());
        telemetry.ends();
        telemetry.goes_on(at(3, 0));
        assert!(is(true).unwrap_err().contains("ending"));
    }
}
