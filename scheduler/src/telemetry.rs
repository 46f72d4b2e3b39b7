//! What a scheduler tells of itself to those who watch it: whether it is well, and its page for Prometheus. Counts what its
//! loops do; decides nothing.

use crate::control::Shared;
use crate::plan::Heard;
use crate::raft::Status;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeGaugeValue, EncodeMetric as _, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// What is counted while it works.
#[derive(Debug, Clone)]
pub(crate) struct Meter {
    /// From proposing an entry to its being committed, durable and applied here.
    commit: Histogram,
    refused: Counter,
    plan: Histogram,
    beats: Counter,
    beats_stale: Counter,
}

impl Default for Meter {
    fn default() -> Self {
        // A quarter of a millisecond to 8 s; a plan from 16 us to 2 s.
        let commit = Histogram::new(exponential_buckets(0.000_25, 2.0, 16));
        let plan = Histogram::new(exponential_buckets(0.000_016, 2.0, 18));
        let (refused, beats, beats_stale) = Default::default();
        Self { commit, refused, plan, beats, beats_stale }
    }
}

impl Meter {
    pub(crate) fn proposed(&self, took: Duration, ok: bool) {
        if ok {
            self.commit.observe(took.as_secs_f64());
        } else {
            self.refused.inc();
        }
    }
    pub(crate) fn planned(&self, took: Duration) {
        self.plan.observe(took.as_secs_f64());
    }
    pub(crate) fn heard(&self, heard: Heard) {
        let counter = if heard == Heard::Stale { &self.beats_stale } else { &self.beats };
        counter.inc();
    }
}

/// Whether a scheduler is well. The text of an error is for people: what is missing.
#[derive(Clone)]
pub struct Health {
    pub(crate) shared: Shared,
}

impl Health {
    /// Its log's loop runs: else only another start helps.
    pub fn live(&self) -> Result<(), String> {
        match self.shared.raft.status().has_changed() {
            Ok(_) => Ok(()),
            Err(_) => Err("the loop of its log has ended".to_owned()),
        }
    }

    /// It can be asked: there is a leader, and it has caught up with it once.
    pub fn ready(&self) -> Result<(), String> {
        self.live()?;
        let status = self.shared.raft.status();
        let status = status.borrow();
        match (status.leader, status.applied) {
            (None, _) => Err("no scheduler leads now; most of the voters must run and reach each other".to_owned()),
            (Some(_), 0) => Err("it has nothing of the log yet".to_owned()),
            _ => Ok(()),
        }
    }

    /// What it does without meanwhile, though it is ready.
    pub fn lacks(&self) -> Option<String> {
        Some(format!("the bus is not connected: {}", self.shared.bus.down()?))
    }
}

/// The page of one scheduler.
pub(crate) struct Scrape {
    pub(crate) id: u64,
    pub(crate) shared: Shared,
}

impl fmt::Debug for Scrape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Scrape of scheduler {}", self.id)
    }
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let status = self.shared.raft.status().borrow().clone();
        self.raft(&mut encoder, &status)?;
        let meter = &self.shared.meter;
        histogram(
            &mut encoder,
            "lattice_raft_commit_duration_seconds",
            "From proposing an entry here to its being durable with most voters and applied here",
            &meter.commit,
        )?;
        counter(
            &mut encoder,
            "lattice_raft_proposals_refused",
            "Entries proposed here that were not committed",
            meter.refused.get(),
        )?;
        histogram(
            &mut encoder,
            "lattice_scheduler_plan_duration_seconds",
            "Time to compute one plan; only the leader plans",
            &meter.plan,
        )?;
        counter(&mut encoder, "lattice_scheduler_heartbeats", "Heartbeats of hosts taken", meter.beats.get())?;
        let help = "Heartbeats that were older than what is known";
        counter(&mut encoder, "lattice_scheduler_heartbeats_stale", help, meter.beats_stale.get())?;
        let dropped = self.shared.bus.drops().total();
        counter(&mut encoder, "lattice_scheduler_bus_dropped", "Messages from the bus that were refused", dropped)?;
        let up = i64::from(self.shared.bus.connection().borrow().up);
        gauge(&mut encoder, "lattice_scheduler_bus_up", "Whether the bus is connected", up)?;
        self.lattice(&mut encoder)
    }
}

impl Scrape {
    fn raft(&self, encoder: &mut DescriptorEncoder, status: &Status) -> fmt::Result {
        let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let leads = i64::from(status.leader == Some(status.id));
        gauge(encoder, "lattice_raft_id", "Id of this scheduler", number(status.id))?;
        gauge(
            encoder,
            "lattice_raft_leader",
            "Id of the leader; 0 when there is none",
            number(status.leader.unwrap_or(0)),
        )?;
        gauge(encoder, "lattice_raft_is_leader", "Whether this scheduler leads", leads)?;
        gauge(encoder, "lattice_raft_term", "Term of the log", number(status.term))?;
        gauge(encoder, "lattice_raft_commit_index", "Log index up to which it is committed", number(status.committed))?;
        gauge(
            encoder,
            "lattice_raft_applied_index",
            "Log index up to which it is applied here",
            number(status.applied),
        )?;
        gauge(encoder, "lattice_raft_log_bytes", "Log held since it was last truncated", number(status.log_bytes))?;
        counter(encoder, "lattice_raft_syncs", "Durable writes of the log", status.syncs)?;
        counter(
            encoder,
            "lattice_raft_messages_refused",
            "Messages of other schedulers that were refused",
            status.refused,
        )
    }

    fn lattice(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let states = |known: &[&'static str]| known.iter().map(|s| (*s, 0)).collect::<BTreeMap<&'static str, i64>>();
        let mut hosts = states(&["ready", "suspect", "lost", "cordoned", "draining"]);
        let mut apps = states(&["deploying", "running", "degraded", "failed", "deleting"]);
        let (mut desired, mut running, mut waiting) = (0, 0, 0);
        self.shared.view(|view| {
            for host in view.hosts() {
                hosts.entry(known(&hosts, &host.state)).and_modify(|n| *n += 1);
            }
            for app in view.apps("") {
                apps.entry(known(&apps, &app.state)).and_modify(|n| *n += 1);
                desired += i64::from(app.desired);
                running += i64::from(app.running);
            }
            waiting = view.unplaced.iter().map(|u| i64::try_from(u.missing).unwrap_or(i64::MAX)).sum();
        });
        by_state(encoder, "lattice_hosts", "Hosts by state", &hosts)?;
        by_state(encoder, "lattice_apps", "Apps by state", &apps)?;
        let replicas = BTreeMap::from([("desired", desired), ("running", running), ("waiting", waiting)]);
        by_state(encoder, "lattice_replicas", "Replicas desired, running, and waiting for a host that fits", &replicas)
    }
}

/// The state as it is in the table; what is not is told as the first.
fn known(states: &BTreeMap<&'static str, i64>, state: &str) -> &'static str {
    states.get_key_value(state).or(states.first_key_value()).map_or("", |(state, _)| state)
}

fn by_state(
    encoder: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    states: &BTreeMap<&'static str, i64>,
) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (state, n) in states {
        metric.encode_family(&[("state", *state)])?.encode_gauge(n)?;
    }
    Ok(())
}

fn gauge(encoder: &mut DescriptorEncoder, name: &str, help: &str, value: impl EncodeGaugeValue) -> fmt::Result {
    encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)
}

fn counter(encoder: &mut DescriptorEncoder, name: &str, help: &str, value: u64) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    metric.encode_counter::<NoLabelSet, u64, u64>(&value, None)
}

fn histogram(encoder: &mut DescriptorEncoder, name: &str, help: &str, histogram: &Histogram) -> fmt::Result {
    histogram.encode(encoder.encode_descriptor(name, help, None, histogram.metric_type())?)
}
