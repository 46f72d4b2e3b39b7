//! What is counted while requests run, and how it is told. Counting never locks and never allocates; labels are the names
//! of apps and actors, of which there are as many as the scheduler placed here, and beyond a bound they share one.
//!
//! Reading order: `Traffic` (one actor's requests at the ingress), `histogram`, `Series` (who has labels of its own),
//! `Page` (how a page for Prometheus is written).

mod histogram;

pub use histogram::{Histogram, Taken};

use http::StatusCode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use proto::app::Name;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

/// Actors with labels of their own in one scrape; all others are told as one.
pub const SERIES_MAX: usize = 1_000;
/// The label of those others.
pub const OTHER: &str = "_other";

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Classes of status, as Prometheus is told them.
pub const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// What an ingress did for one actor.
#[derive(Default)]
pub struct Traffic {
    classes: [Count; 5],
    pub sockets: Sockets,
    /// Until the head of the answer. Made at the first request: most routes of a large lattice are never used.
    took: OnceLock<Box<Histogram>>,
}

impl Traffic {
    pub fn answered(&self, status: StatusCode, took: Duration) {
        let class = usize::from(status.as_u16() / 100).clamp(1, 5) - 1;
        self.classes[class].add(1);
        self.took.get_or_init(Box::default).add(took);
    }

    pub fn classes(&self) -> [u64; 5] {
        self.classes.each_ref().map(Count::get)
    }

    pub fn took(&self) -> Taken {
        self.took.get().map(|took| took.take()).unwrap_or_default()
    }
}

/// The WebSockets of one actor, and their messages.
#[derive(Debug, Default)]
pub struct Sockets {
    pub opened: Count,
    pub ended: Count,
    /// From clients, and to them.
    pub received: Count,
    pub sent: Count,
}

impl Sockets {
    /// Opened, ended, received, sent.
    pub fn list(&self) -> [u64; 4] {
        [&self.opened, &self.ended, &self.received, &self.sent].map(Count::get)
    }
}

impl fmt::Debug for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.classes())
    }
}

/// App and actor.
pub type Key = (Name, Name);

/// The traffic of every actor that has a route, over changes of the table.
#[derive(Debug, Default)]
pub struct Book {
    all: Mutex<BTreeMap<Key, Arc<Traffic>>>,
}

impl Book {
    pub fn of(&self, app: &Name, actor: &Name) -> Arc<Traffic> {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry((app.clone(), actor.clone())).or_default().clone()
    }

    /// Forgets those that no table names any more.
    pub fn prune(&self) {
        self.all.lock().unwrap_or_else(PoisonError::into_inner).retain(|_, traffic| Arc::strong_count(traffic) > 1);
    }

    pub fn list(&self) -> Vec<(Key, Arc<Traffic>)> {
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().map(|(key, traffic)| (key.clone(), traffic.clone())).collect()
    }
}

/// Who has labels of its own: who was told first, as long as it is there.
#[derive(Debug, Default)]
pub struct Series {
    own: BTreeSet<Key>,
}

impl Series {
    /// `all` in two: those with labels of their own, and the rest.
    pub fn split<T>(&mut self, all: Vec<(Key, T)>) -> (Vec<(Key, T)>, Vec<T>) {
        let there: BTreeSet<&Key> = all.iter().map(|(key, _)| key).collect();
        self.own.retain(|key| there.contains(key));
        let (mut own, mut rest) = (Vec::new(), Vec::new());
        for (key, value) in all {
            if self.own.contains(&key) || (self.own.len() < SERIES_MAX && self.own.insert(key.clone())) {
                own.push((key, value));
            } else {
                rest.push(value);
            }
        }
        (own, rest)
    }
}

/// A page for Prometheus while it is written. Names get the unit and `_total` that the format wants.
pub struct Page<'a> {
    encoder: DescriptorEncoder<'a>,
}

/// One measured value.
pub enum Value<'a> {
    Count(u64),
    /// A count that has fractions.
    Sum(f64),
    Gauge(f64),
    Seconds(&'a Taken),
}

impl<'a> Page<'a> {
    pub fn new(encoder: DescriptorEncoder<'a>) -> Self {
        Self { encoder }
    }

    /// A family with one value for each set of labels; nothing when there is none.
    pub fn family<'v, L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (L, Value<'v>)>,
    ) -> fmt::Result {
        let mut values = values.into_iter().peekable();
        let Some((_, first)) = values.peek() else { return Ok(()) };
        let mut metric = self.encoder.encode_descriptor(name, help, None, first.kind())?;
        for (labels, value) in values {
            value.write(metric.encode_family(&labels)?)?;
        }
        Ok(())
    }

    /// A family with one value and no labels.
    pub fn one(&mut self, name: &str, help: &str, value: Value<'_>) -> fmt::Result {
        value.write(self.encoder.encode_descriptor(name, help, None, value.kind())?)
    }
}

impl Value<'_> {
    fn kind(&self) -> MetricType {
        match self {
            Self::Count(_) | Self::Sum(_) => MetricType::Counter,
            Self::Gauge(_) => MetricType::Gauge,
            Self::Seconds(_) => MetricType::Histogram,
        }
    }

    fn write(&self, mut to: MetricEncoder<'_>) -> fmt::Result {
        match self {
            Self::Count(n) => to.encode_counter::<NoLabelSet, u64, u64>(n, None),
            Self::Sum(n) => to.encode_counter::<NoLabelSet, f64, u64>(n, None),
            Self::Gauge(n) => to.encode_gauge(n),
            Self::Seconds(taken) => {
                to.encode_histogram::<NoLabelSet>(taken.sum_seconds(), taken.count(), &taken.buckets(), None)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "helpers of tests")]
    use super::*;

    fn key(n: usize) -> Key {
        ("app".parse().unwrap(), format!("a{n}").parse().unwrap())
    }

    #[test]
    fn labels_are_bounded_and_stay_with_who_has_them() {
        let mut series = Series::default();
        let all = |range: std::ops::Range<usize>| range.map(|n| (key(n), n)).collect::<Vec<_>>();
        let (own, rest) = series.split(all(5..5 + SERIES_MAX));
        assert_eq!((own.len(), rest.len()), (SERIES_MAX, 0));
        // Those that come later share one, even if they sort before.
        let (own, rest) = series.split(all(0..10 + SERIES_MAX));
        assert!(own.len() == SERIES_MAX && own.iter().all(|(_, n)| (5..5 + SERIES_MAX).contains(n)));
        assert_eq!(rest, [0, 1, 2, 3, 4, 1005, 1006, 1007, 1008, 1009]);
        // Who goes makes room.
        let (own, rest) = series.split(all(0..8));
        assert_eq!((own.len(), rest.len()), (8, 0));
    }

    #[test]
    fn traffic_outlives_a_table_and_not_its_actor() {
        let book = Book::default();
        let (app, actor) = key(1);
        let kept = book.of(&app, &actor);
        kept.answered(StatusCode::OK, Duration::from_millis(1));
        kept.answered(StatusCode::NOT_FOUND, Duration::from_millis(1));
        kept.answered(StatusCode::from_u16(999).unwrap(), Duration::from_millis(1));
        book.prune();
        assert_eq!(book.of(&app, &actor).classes(), [0, 1, 0, 1, 1]);
        assert_eq!(kept.took().count(), 3);
        drop(kept);
        book.prune();
        assert_eq!(book.list().len(), 0);
    }
}
