//! What actors print: the latest lines of each, kept here and sent to whoever listens on the bus. A guest that prints
//! without end costs bounded memory and bounded traffic: the oldest lines go, and a line says how many. Never blocks
//! a guest.

use crate::assignment::Key;
use crate::capability::LogSink;
use bus::Bus;
use proto::app::{HostId, Name};
use proto::v1::{LogLine, LogLines};
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Lines kept of one actor, and waiting to be sent.
pub const LINES_MAX: usize = 1000;
/// Bytes of these lines.
pub const BYTES_MAX: usize = 256 * 1024;
/// Bytes of one line; the rest is cut off.
pub const LINE_BYTES_MAX: usize = 8 * 1024;
/// Bytes of all lines of all actors; then each gets its share.
const TOTAL_BYTES_MAX: usize = 64 * 1024 * 1024;
/// What a line costs beside its text.
const LINE_OVERHEAD_BYTES: usize = 160;
/// At most one message per actor in this time.
const SEND_EVERY: Duration = Duration::from_millis(100);
/// Lines of one message.
const BATCH_MAX: usize = LINES_MAX / 4;

/// Unix time in milliseconds.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// The lines of every actor of this host.
#[derive(Clone)]
pub struct Logs {
    inner: Arc<Inner>,
    _stop: Arc<DropGuard>,
}

struct Inner {
    host: HostId,
    clock: Clock,
    actors: Mutex<BTreeMap<Key, Kept>>,
    total: Arc<Total>,
}

struct Kept {
    ring: Arc<Ring>,
    /// The actor was not here any more at that time.
    unused: Option<Instant>,
}

#[derive(Default)]
struct Total {
    bytes: AtomicUsize,
    rings: AtomicUsize,
    /// Something waits to be sent.
    fresh: Notify,
    /// Of which actors: of each once, from its first line to when they are taken.
    waiting: Mutex<Vec<Key>>,
}

impl Logs {
    /// Sends lines on `bus`, if there is one, until the last clone is dropped. Within a tokio runtime.
    pub fn start(bus: Option<Bus>, host: HostId) -> Self {
        Self::start_with_clock(bus, host, Arc::new(now_ms))
    }

    pub fn start_with_clock(bus: Option<Bus>, host: HostId, clock: Clock) -> Self {
        let inner = Arc::new(Inner { host, clock, actors: Mutex::default(), total: Arc::default() });
        let stop = CancellationToken::new();
        if let Some(bus) = bus {
            tokio::spawn(send_fresh(bus, inner.clone(), stop.clone()));
        }
        Self { inner, _stop: Arc::new(stop.drop_guard()) }
    }

    /// Where the instances of `actor` of `app` print to.
    pub fn sink(&self, app: &Name, actor: &Name) -> Arc<dyn LogSink> {
        let mut actors = lock(&self.inner.actors);
        let kept = actors.entry((app.clone(), actor.clone())).or_insert_with(|| {
            self.inner.total.rings.fetch_add(1, Ordering::Relaxed);
            let ring = Ring {
                app: app.clone(),
                actor: actor.clone(),
                host: self.inner.host.clone(),
                clock: self.inner.clock.clone(),
                total: self.inner.total.clone(),
                lines: Mutex::default(),
            };
            Kept { ring: Arc::new(ring), unused: None }
        });
        kept.unused = None;
        kept.ring.clone()
    }

    /// At most `count` of its latest lines, oldest first.
    pub fn tail(&self, app: &Name, actor: &Name, count: usize) -> Vec<LogLine> {
        let ring = self.inner.ring(&(app.clone(), actor.clone()));
        ring.map(|ring| lock(&ring.lines).kept.tail(count)).unwrap_or_default()
    }

    /// At most `count` latest lines of all actors of `app` here, by time.
    pub fn tail_app(&self, app: &Name, count: usize) -> Vec<LogLine> {
        let is_of_app = |(key, kept): (&Key, &Kept)| (key.0 == *app).then(|| kept.ring.clone());
        let rings: Vec<_> = lock(&self.inner.actors).iter().filter_map(is_of_app).collect();
        let mut lines: Vec<LogLine> = rings.iter().flat_map(|ring| lock(&ring.lines).kept.tail(count)).collect();
        lines.sort_by_key(|line| line.time_ms);
        lines.split_off(lines.len().saturating_sub(count))
    }

    /// Drops the lines of actors that have not been here for `keep`: whoever asks why one went has so long to read them.
    pub fn sweep(&self, is_here: impl Fn(&Key) -> bool, keep: Duration, now: Instant) {
        lock(&self.inner.actors).retain(|key, kept| {
            // What is on its way here, or ends at its leisure, prints still.
            let is_held = Arc::strong_count(&kept.ring) > 1;
            kept.unused = if is_held || is_here(key) { None } else { kept.unused.or(Some(now)) };
            kept.unused.is_none_or(|since| now.saturating_duration_since(since) < keep)
        });
    }
}

impl Inner {
    fn ring(&self, key: &Key) -> Option<Arc<Ring>> {
        lock(&self.actors).get(key).map(|kept| kept.ring.clone())
    }
}

/// The lines of one actor.
struct Ring {
    app: Name,
    actor: Name,
    host: HostId,
    clock: Clock,
    total: Arc<Total>,
    lines: Mutex<Lines>,
}

#[derive(Default)]
struct Lines {
    kept: Queue,
    fresh: Queue,
    /// Fresh lines that went before they could be sent.
    dropped: u64,
}

impl Drop for Ring {
    fn drop(&mut self) {
        let lines = self.lines.get_mut().unwrap_or_else(PoisonError::into_inner);
        self.total.bytes.fetch_sub(lines.kept.bytes + lines.fresh.bytes, Ordering::Relaxed);
        self.total.rings.fetch_sub(1, Ordering::Relaxed);
    }
}

impl LogSink for Ring {
    fn line(&self, instance: u64, request_id: &str, stream: &str, text: &str) {
        let text = text.strip_suffix('\n').unwrap_or(text);
        // A line is one line: what holds several is several.
        for text in text.split('\n') {
            self.push(LogLine {
                time_ms: (self.clock)(),
                app: self.app.to_string(),
                actor: self.actor.to_string(),
                host: self.host.to_string(),
                instance,
                stream: stream.to_owned(),
                request_id: request_id.to_owned(),
                text: cut(text.strip_suffix('\r').unwrap_or(text)).to_owned(),
            });
        }
    }
}

impl Ring {
    fn push(&self, line: LogLine) {
        let mut bytes_max = BYTES_MAX;
        if self.total.bytes.load(Ordering::Relaxed) > TOTAL_BYTES_MAX {
            bytes_max = TOTAL_BYTES_MAX / 2 / self.total.rings.load(Ordering::Relaxed).max(1);
        }
        let mut lines = lock(&self.lines);
        if lines.fresh.lines.is_empty() {
            lock(&self.total.waiting).push((self.app.clone(), self.actor.clone()));
        }
        let before = lines.kept.bytes + lines.fresh.bytes;
        lines.kept.push(line.clone(), bytes_max);
        lines.dropped += lines.fresh.push(line, bytes_max);
        let after = lines.kept.bytes + lines.fresh.bytes;
        if after >= before {
            self.total.bytes.fetch_add(after - before, Ordering::Relaxed);
        } else {
            self.total.bytes.fetch_sub(before - after, Ordering::Relaxed);
        }
        drop(lines);
        self.total.fresh.notify_one();
    }

    /// What is to be sent now; in front, a line about those that were dropped.
    fn take_fresh(&self) -> VecDeque<LogLine> {
        let mut lines = lock(&self.lines);
        self.total.bytes.fetch_sub(lines.fresh.bytes, Ordering::Relaxed);
        let fresh = std::mem::take(&mut lines.fresh).lines;
        let dropped = std::mem::take(&mut lines.dropped);
        drop(lines);
        let about = fresh.front().filter(|_| dropped > 0).map(|first| LogLine {
            text: format!("… {dropped} lines dropped: this actor prints faster than the bus takes it"),
            stream: "warn".into(),
            ..first.clone()
        });
        about.into_iter().chain(fresh).collect()
    }
}

#[derive(Default)]
struct Queue {
    lines: VecDeque<LogLine>,
    bytes: usize,
}

impl Queue {
    /// Appends, and drops the oldest above the bounds; how many were dropped.
    fn push(&mut self, line: LogLine, bytes_max: usize) -> u64 {
        self.bytes += cost(&line);
        self.lines.push_back(line);
        let mut dropped = 0;
        while (self.lines.len() > LINES_MAX || self.bytes > bytes_max)
            && self.lines.len() > 1
            && let Some(oldest) = self.lines.pop_front()
        {
            self.bytes -= cost(&oldest);
            dropped += 1;
        }
        dropped
    }

    fn tail(&self, count: usize) -> Vec<LogLine> {
        self.lines.iter().skip(self.lines.len().saturating_sub(count)).cloned().collect()
    }
}

fn cost(line: &LogLine) -> usize {
    line.text.len() + line.request_id.len() + LINE_OVERHEAD_BYTES
}

/// At most `LINE_BYTES_MAX` bytes, whole characters.
fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(LINE_BYTES_MAX)]
}

/// Sends what is fresh, then rests, so that many lines make one message.
async fn send_fresh(bus: Bus, inner: Arc<Inner>, stop: CancellationToken) {
    let work = async {
        loop {
            inner.total.fresh.notified().await;
            let waiting = std::mem::take(&mut *lock(&inner.total.waiting));
            for actor in waiting {
                let Some(ring) = inner.ring(&actor) else { continue };
                let subject = bus.subjects().log(&ring.app, &ring.actor);
                let mut lines = ring.take_fresh();
                while !lines.is_empty() {
                    let batch = lines.drain(..lines.len().min(BATCH_MAX)).collect();
                    let payload = bus::encode(&LogLines { lines: batch });
                    if let Err(error) = bus.publish(subject.clone(), payload).await {
                        // Nobody is promised these: `tail` still has them.
                        tracing::debug!(%error, subject, "log lines not sent");
                    }
                    // Others print as much: who answers requests does not wait for all of it.
                    tokio::task::yield_now().await;
                }
            }
            tokio::time::sleep(SEND_EVERY).await;
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = work => {}
    }
}

fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The state behind a lock is whole at every step, so a panic elsewhere does not spoil it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "helpers of tests")]
    use super::*;

    fn name(s: &str) -> Name {
        s.parse().unwrap()
    }

    fn logs() -> Logs {
        Logs::start_with_clock(None, "01J9Z3NDEKTSV4RRFFQ69G5FAV".parse().unwrap(), Arc::new(|| 7))
    }

    fn texts(lines: &[LogLine]) -> Vec<&str> {
        lines.iter().map(|l| l.text.as_str()).collect()
    }

    #[tokio::test]
    async fn the_latest_lines_are_kept() {
        let logs = logs();
        let sink = logs.sink(&name("shop"), &name("cart"));
        for i in 0..1500 {
            sink.line(1, "", "stdout", &format!("line {i}\n"));
        }
        sink.line(2, "", "stderr", "two\r\nlines");
        let all = logs.tail(&name("shop"), &name("cart"), usize::MAX);
        assert_eq!(all.len(), LINES_MAX);
        assert_eq!(texts(&all[..1]), ["line 502"]);
        let last = logs.tail(&name("shop"), &name("cart"), 2);
        assert_eq!(texts(&last), ["two", "lines"]);
        assert_eq!((last[0].instance, last[0].stream.as_str(), last[0].time_ms), (2, "stderr", 7));
        assert_eq!(logs.tail(&name("shop"), &name("other"), 5), vec![]);
        logs.sink(&name("shop"), &name("other")).line(3, "", "info", "x");
        assert_eq!(logs.tail_app(&name("shop"), 3).len(), 3);
        // It goes, comes back, and goes for good.
        drop(sink);
        let (keep, begun) = (Duration::from_secs(60), Instant::now());
        let sweep =
            |cart, secs| logs.sweep(|(_, actor)| cart || *actor == name("other"), keep, begun + keep * secs / 60);
        let left = || logs.tail_app(&name("shop"), usize::MAX).len();
        let all = left();
        for (cart, secs) in [(false, 0), (false, 59), (true, 60), (false, 61), (false, 120)] {
            sweep(cart, secs);
            assert_eq!(left(), all, "{secs}");
        }
        sweep(false, 121);
        assert_eq!(left(), 1);
    }

    #[tokio::test]
    async fn long_lines_are_cut_and_bytes_are_bounded() {
        let logs = logs();
        let sink = logs.sink(&name("shop"), &name("cart"));
        for _ in 0..200 {
            sink.line(1, "", "stdout", &"é".repeat(10_000));
        }
        let all = logs.tail(&name("shop"), &name("cart"), usize::MAX);
        assert!(all.iter().all(|l| l.text.len() == LINE_BYTES_MAX));
        let bytes: usize = all.iter().map(|l| l.text.len()).sum();
        assert!(bytes <= BYTES_MAX && bytes > BYTES_MAX / 2, "{bytes}");
        assert!(logs.inner.total.bytes.load(Ordering::Relaxed) <= 2 * BYTES_MAX);
        logs.sweep(|_| false, Duration::ZERO, Instant::now());
        assert!(!logs.tail(&name("shop"), &name("cart"), 1).is_empty(), "it may print still");
        drop(sink);
        logs.sweep(|_| false, Duration::ZERO, Instant::now());
        assert_eq!(logs.inner.total.bytes.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn lines_are_sent_together_on_the_bus() {
        let listen = "127.0.0.1:0".parse().unwrap();
        let broker = bus::broker::Broker::start(bus::broker::Config { listen, token: None }).unwrap();
        let bus = crate::on_bus::connect(&broker).await;
        let mut seen = bus.subscribe(bus.subjects().every_log(&name("shop"))).await.unwrap();
        let logs = Logs::start(Some(bus.clone()), "01J9Z3NDEKTSV4RRFFQ69G5FAV".parse().unwrap());
        let sink = logs.sink(&name("shop"), &name("cart"));
        for i in 0..600 {
            sink.line(1, "", "stdout", &i.to_string());
        }
        let (mut lines, mut messages) = (Vec::new(), 0);
        while lines.len() < 600 {
            let message = seen.next().await.unwrap();
            assert_eq!(message.subject, bus.subjects().log(&name("shop"), &name("cart")));
            lines.extend(bus.decode::<LogLines>(&message.payload).unwrap().lines);
            messages += 1;
        }
        assert_eq!(texts(&lines), (0..600).map(|i| i.to_string()).collect::<Vec<_>>());
        assert!(messages <= 6, "{messages} messages");
    }

    #[tokio::test]
    async fn what_could_not_be_sent_is_counted() {
        let logs = logs();
        logs.sink(&name("shop"), &name("cart"));
        let ring = lock(&logs.inner.actors).values().next().unwrap().ring.clone();
        for i in 0..1010 {
            ring.line(1, "", "stdout", &i.to_string());
        }
        let fresh = ring.take_fresh();
        assert_eq!(fresh.len(), 1001);
        assert!(fresh[0].text.starts_with("… 10 lines dropped"));
        assert_eq!(fresh[1].text, "10");
        assert!(ring.take_fresh().is_empty());
    }
}
