//! Until when an actor that is strict may run, for everyone who runs it: read at each of its invocations.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The end of the host's lease.
#[derive(Debug, Clone, Default)]
pub struct Holding(Arc<AtomicU64>);

impl Holding {
    /// By `now_ms`.
    pub fn set(&self, until_ms: u64) {
        self.0.store(until_ms, Ordering::Release);
    }

    /// When it ends; now, if it has.
    pub fn end(&self) -> Instant {
        Instant::now() + Duration::from_millis(self.left_ms())
    }

    pub fn is_over(&self) -> bool {
        self.left_ms() == 0
    }

    fn left_ms(&self) -> u64 {
        self.0.load(Ordering::Acquire).saturating_sub(now_ms())
    }
}

/// Milliseconds of a clock that goes on while the machine sleeps: nobody else's clock stops for it.
pub fn now_ms() -> u64 {
    #[cfg(target_os = "linux")]
    let clock = rustix::time::ClockId::Boottime;
    #[cfg(not(target_os = "linux"))]
    let clock = rustix::time::ClockId::Monotonic;
    let now = rustix::time::clock_gettime(clock);
    let (s, ns) = (u64::try_from(now.tv_sec).unwrap_or(0), u64::try_from(now.tv_nsec).unwrap_or(0));
    s * 1_000 + ns / 1_000_000
}
