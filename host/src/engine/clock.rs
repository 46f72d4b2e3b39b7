//! The clock of the epochs: what makes a guest that computes give way. It ticks fast while a guest runs and slowly while
//! none does, and when none has for a while it stands still until the next one enters, but for a look each second: an idle
//! host takes next to no processor time for it. One for all engines.

use super::idle::Idle;
use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};
use wasmtime::EngineWeak;

/// While a guest runs. At a tick a guest that computes is looked at: whether it has used up its turn, or all of its time.
pub(super) const TICK_MS: u64 = 1;
/// While none runs, and it does not stand still.
const TICK_IDLE_MS: u64 = 10;
/// It stands still after so many idle ticks: who is asked often shall not have to wake it each time.
const QUIET_TICKS: u32 = 100;
/// How often instances are looked at that wait for a request.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// Ticks of all clocks.
static TICKS: AtomicU64 = AtomicU64::new(0);

/// How often they have ticked: an order in time, not a measure of it.
pub(super) fn ticks() -> u64 {
    TICKS.load(Ordering::Relaxed)
}

/// What the clock looks at.
#[derive(Default)]
pub(super) struct Clock {
    /// Those whose epochs it moves on.
    engines: Mutex<Vec<EngineWeak>>,
    /// Instances that run now.
    running: AtomicU32,
    /// Whether it stands still, 1 or 0. Written before `running` is read, as `running` is before this is: one of the two sees the
    /// other.
    standing: AtomicU32,
    entered: Condvar,
    lock: Mutex<()>,
}

/// One of the instances that run now.
pub(super) struct Running(Arc<Clock>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Clock {
    pub(super) fn running(&self) -> u32 {
        self.running.load(Ordering::Relaxed)
    }

    /// An instance runs from now on, as long as this is held.
    pub(super) fn enter(self: &Arc<Self>) -> Running {
        self.running.fetch_add(1, Ordering::SeqCst);
        if self.standing.load(Ordering::SeqCst) > 0 {
            drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner));
            self.entered.notify_all();
        }
        Running(self.clone())
    }

    /// Until an instance runs, and for so long at most. Whether one entered.
    fn stand(&self, at_most: Duration) -> bool {
        let guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        self.standing.fetch_add(1, Ordering::SeqCst);
        let entered = match self.running.load(Ordering::SeqCst) {
            0 => !self.entered.wait_timeout(guard, at_most).unwrap_or_else(PoisonError::into_inner).1.timed_out(),
            _ => true,
        };
        self.standing.fetch_sub(1, Ordering::SeqCst);
        entered
    }

    /// Moves the epoch of this engine on as well, from now on.
    pub(super) fn tick(&self, engine: &wasmtime::Engine) {
        self.engines().push(engine.weak());
    }

    fn engines(&self) -> MutexGuard<'_, Vec<EngineWeak>> {
        self.engines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves the epochs on; whether there are any.
    fn epochs(&self) -> bool {
        let mut engines = self.engines();
        engines.retain(|engine| engine.upgrade().map(|engine| engine.increment_epoch()).is_some());
        !engines.is_empty()
    }

    /// Ticks until the engines are gone. Also counts the ticks and looks after the instances that wait for a request.
    pub(super) fn start(self: &Arc<Self>, waiting: Weak<Idle>) -> io::Result<()> {
        let clock = self.clone();
        let (mut swept, mut quiet) = (Instant::now(), 0);
        let run = move || {
            while clock.epochs() {
                TICKS.fetch_add(1, Ordering::Relaxed);
                if swept.elapsed() >= SWEEP_EVERY {
                    swept = Instant::now();
                    let Some(waiting) = waiting.upgrade() else { return };
                    waiting.sweep(swept);
                }
                quiet = if clock.running() > 0 { 0 } else { quiet + 1 };
                match quiet {
                    0 => std::thread::sleep(Duration::from_millis(TICK_MS)),
                    1..QUIET_TICKS => std::thread::sleep(Duration::from_millis(TICK_IDLE_MS)),
                    // Somebody entered: more may follow.
                    _ => quiet = if clock.stand(SWEEP_EVERY) { 0 } else { QUIET_TICKS },
                }
            }
        };
        std::thread::Builder::new().name("epoch".into()).spawn(run).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_stands_still_until_somebody_enters() {
        let clock = Arc::new(Clock::default());
        // While somebody runs it does not stand at all.
        let running = clock.enter();
        let long = Duration::from_secs(3_600);
        assert!(clock.stand(long));
        drop(running);
        assert_eq!(clock.running(), 0);
        assert!(!clock.stand(Duration::from_millis(1)));
        let stands = clock.clone();
        let standing = std::thread::spawn(move || stands.stand(long));
        while clock.standing.load(Ordering::SeqCst) == 0 {
            std::thread::yield_now();
        }
        let _running = clock.enter();
        assert!(standing.join().expect("it was woken"));
        assert_eq!((clock.running(), clock.standing.load(Ordering::SeqCst)), (1, 0));
    }

    #[test]
    fn whoever_enters_as_it_begins_to_stand_wakes_it() {
        let clock = Arc::new(Clock::default());
        for _ in 0..2_000 {
            let stands = clock.clone();
            let standing = std::thread::spawn(move || stands.stand(Duration::from_secs(3_600)));
            let running = clock.enter();
            standing.join().expect("it was woken");
            drop(running);
        }
    }

    #[test]
    fn it_goes_on_when_somebody_has_entered() {
        let engine = wasmtime::Engine::default();
        let (clock, idle) = (Arc::new(Clock::default()), Arc::new(Idle::new(1)));
        clock.tick(&engine);
        clock.start(Arc::downgrade(&idle)).expect("a thread");
        while clock.standing.load(Ordering::SeqCst) == 0 {
            std::thread::sleep(Duration::from_millis(10));
        }
        let _running = clock.enter();
        let (begun, began) = (ticks(), Instant::now());
        while ticks() < begun + 200 {
            assert!(began.elapsed() < Duration::from_secs(60), "it ticks");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
