//! What this host did since it last said so, in few words: for whoever decides how many replicas there shall be, and for
//! `lattice top`. Bounded, however many actors there are.

use super::running::{Running, What};
use crate::assignment::Key;
use crate::metrics::Taken;
use proto::v1 as pb;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Actors that one heartbeat tells of.
const ACTORS_MAX: usize = 256;
/// Rates over less than this say nothing.
const WINDOW_MIN: Duration = Duration::from_millis(900);

/// What was known when it was told last.
pub(super) struct Since {
    at: Instant,
    cpu: Duration,
    /// Of those that were ever asked anything.
    actors: BTreeMap<Key, Before>,
}

#[derive(Clone, Copy)]
struct Before {
    revision: u64,
    errors: u64,
    took: Taken,
}

impl Since {
    pub(super) fn now() -> Self {
        Self { at: Instant::now(), cpu: cpu_time(), actors: BTreeMap::new() }
    }

    /// The load since the last one that was told; `None` when that was a moment ago.
    pub(super) fn load(&mut self, running: &Running) -> Option<pb::Load> {
        let window = self.at.elapsed();
        if window < WINDOW_MIN {
            return None;
        }
        let cpu = cpu_time();
        let used = cpu.saturating_sub(self.cpu).as_secs_f64() / window.as_secs_f64();
        (self.at, self.cpu) = (Instant::now(), cpu);
        let mut actors = self.actors(running);
        actors.sort_by_key(|a| std::cmp::Reverse((a.requests, a.in_flight, a.queued)));
        actors.truncate(ACTORS_MAX);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "not below zero; cut at the most")]
        let cpu_millis = (used * 1e3).round() as u32;
        Some(pb::Load {
            window_ms: u32::try_from(window.as_millis()).unwrap_or(u32::MAX),
            cpu_millis,
            memory_bytes: resident_bytes().unwrap_or(0),
            actors,
        })
    }

    fn actors(&mut self, running: &Running) -> Vec<pb::ActorLoad> {
        let mut loads = Vec::new();
        let mut now = BTreeMap::new();
        // Of thousands, most were never asked: those cost a look, and no more.
        running.each(|app, name, have, what| {
            let What::Actor(actor) = what else { return };
            if actor.requests() == 0 {
                return;
            }
            let (stats, took, key) = (actor.stats(), actor.took(), (app.clone(), name.clone()));
            let blank = Before { revision: have.revision, errors: 0, took: Taken::default() };
            let before = self.actors.get(&key).filter(|b| b.revision == have.revision).copied().unwrap_or(blank);
            let between = took.since(&before.took);
            let (requests, errors) = (between.count(), stats.errors.saturating_sub(before.errors));
            if requests + errors + u64::from(stats.in_flight) + u64::from(stats.queued) > 0 {
                loads.push(pb::ActorLoad {
                    app: key.0.to_string(),
                    actor: key.1.to_string(),
                    in_flight: stats.in_flight,
                    queued: stats.queued,
                    requests,
                    errors,
                    p50_us: between.quantile_us(0.5),
                    p99_us: between.quantile_us(0.99),
                });
            }
            now.insert(key, Before { revision: have.revision, errors: stats.errors, took });
        });
        self.actors = now;
        loads
    }
}

/// Processor time of this process since it began.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Memory of this process that is in the machine's.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_something() {
        let before = cpu_time();
        while cpu_time() <= before {}
        assert!(resident_bytes().is_none_or(|bytes| bytes > 100_000));
    }

    #[test]
    fn a_moment_is_no_window() {
        let (mut since, running) = (Since::now(), Running::default());
        assert_eq!(since.load(&running), None);
        since.at = since.at.checked_sub(Duration::from_secs(2)).unwrap();
        let load = since.load(&running).unwrap();
        assert!(load.window_ms >= 2_000 && load.actors.is_empty(), "{load:?}");
        assert_eq!(since.load(&running), None);
    }
}
