//! Whose component is compiled next. One processor is left to those who are served, each other compiles one component at
//! a time; of those that wait the shortest goes first, and at every fourth turn the one that waited longest, so that
//! none waits for ever. What was refused for its own sake is remembered for a while, and not compiled again meanwhile.

use super::Error;
use proto::app::Digest;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Every so many turns is the longest waiting one's.
const OLDEST_EVERY: u64 = 4;
/// Refusals that are remembered, and for how long.
const REFUSED_MAX: usize = 1_024;
const REFUSED_FOR: Duration = Duration::from_secs(3_600);

pub(super) struct Queue {
    inner: Mutex<Inner>,
}

struct Inner {
    free: usize,
    turns: u64,
    /// In the order in which they came.
    waiting: VecDeque<Waiting>,
}

struct Waiting {
    bytes: u64,
    turn: oneshot::Sender<Turn>,
}

/// The right to compile; passed on when dropped.
pub(super) struct Turn(Option<Arc<Queue>>);

impl Queue {
    pub(super) fn new() -> Arc<Self> {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
        Self::with(processors.saturating_sub(1).max(1))
    }

    fn with(free: usize) -> Arc<Self> {
        Arc::new(Self { inner: Mutex::new(Inner { free, turns: 0, waiting: VecDeque::new() }) })
    }

    /// Waits for the turn of a component of so many bytes.
    pub(super) async fn turn(self: &Arc<Self>, bytes: u64) -> Turn {
        let place = {
            let mut inner = self.lock();
            let (turn, place) = oneshot::channel();
            inner.waiting.push_back(Waiting { bytes, turn });
            self.pass_on(inner);
            place
        };
        match place.await {
            Ok(turn) => turn,
            // Never: who waits is told before it is forgotten.
            Err(_) => Turn(None),
        }
    }

    fn pass_on(self: &Arc<Self>, mut inner: MutexGuard<'_, Inner>) {
        while inner.free > 0 {
            let bytes: Vec<_> = inner.waiting.iter().map(|waiting| waiting.bytes).collect();
            let Some(next) = next(&bytes, inner.turns).and_then(|at| inner.waiting.remove(at)) else { return };
            if let Err(mut unwanted) = next.turn.send(Turn(Some(self.clone()))) {
                // It gave up: this was never taken.
                unwanted.0 = None;
                continue;
            }
            inner.free -= 1;
            inner.turns += 1;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Which of these, in the order in which they came, is next.
fn next(bytes: &[u64], turns: u64) -> Option<usize> {
    match turns % OLDEST_EVERY {
        n if n == OLDEST_EVERY - 1 => (!bytes.is_empty()).then_some(0),
        _ => bytes.iter().enumerate().min_by_key(|(_, bytes)| **bytes).map(|(at, _)| at),
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(queue) = self.0.take() {
            let mut inner = queue.lock();
            inner.free += 1;
            queue.pass_on(inner);
        }
    }
}

/// What can not be compiled.
#[derive(Default)]
pub(super) struct Refusals(Mutex<VecDeque<Refusal>>);

struct Refusal {
    digest: Digest,
    is_component: bool,
    reason: String,
    since: Instant,
}

impl Refusals {
    /// What was said of this one lately.
    pub(super) fn of(&self, digest: &Digest, now: Instant) -> Option<Error> {
        let mut all = self.lock();
        all.retain(|one| now.saturating_duration_since(one.since) < REFUSED_FOR);
        let found = all.iter().find(|one| one.digest == *digest)?;
        let (digest, reason) = (digest.clone(), found.reason.clone());
        Some(match found.is_component {
            true => Error::Compile { digest, reason },
            false => Error::NotComponent { digest, reason },
        })
    }

    pub(super) fn note(&self, error: &Error, now: Instant) {
        let (digest, reason, is_component) = match error {
            Error::Compile { digest, reason } => (digest.clone(), reason.clone(), true),
            Error::NotComponent { digest, reason } => (digest.clone(), reason.clone(), false),
            _ => return,
        };
        let mut all = self.lock();
        if all.len() >= REFUSED_MAX {
            all.pop_front();
        }
        all.push_back(Refusal { digest, is_component, reason, since: now });
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Refusal>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;

    #[test]
    fn the_shortest_is_next_and_now_and_then_the_oldest() {
        assert_eq!(next(&[], 0), None);
        assert_eq!(next(&[], OLDEST_EVERY - 1), None);
        assert_eq!(next(&[9, 3, 5, 3], 0), Some(1));
        assert_eq!(next(&[9, 3, 5, 3], OLDEST_EVERY - 1), Some(0));
        // However many short ones come, a long one has its turn.
        let (mut waiting, mut turns) = (vec![1_000, 1, 1], 0);
        while waiting.contains(&1_000) {
            let at = next(&waiting, turns).unwrap();
            waiting.remove(at);
            waiting.push(1);
            turns += 1;
        }
        assert_eq!(turns, OLDEST_EVERY);
    }

    #[tokio::test]
    async fn a_turn_is_passed_on_whatever_becomes_of_who_has_it() {
        let queue = Queue::with(1);
        let first = queue.turn(5).await;
        let mut long = Box::pin(queue.turn(9));
        let mut gave_up = Box::pin(queue.turn(1));
        let mut short = Box::pin(queue.turn(2));
        assert!((&mut long).now_or_never().is_none());
        assert!((&mut gave_up).now_or_never().is_none());
        assert!((&mut short).now_or_never().is_none());
        drop(gave_up);
        drop(first);
        assert!((&mut long).now_or_never().is_none());
        let second = (&mut short).now_or_never().unwrap();
        drop(second);
        // Given to one that goes before it has seen it.
        let mut last = Box::pin(queue.turn(1));
        assert!((&mut last).now_or_never().is_none());
        drop(long);
        assert!(last.now_or_never().is_some());
    }

    #[test]
    fn what_is_refused_is_remembered_for_a_while() {
        let (refusals, now) = (Refusals::default(), Instant::now());
        let digest = |n: usize| Digest::of(&n.to_le_bytes());
        let refused = |n| Error::Compile { digest: digest(n), reason: format!("no {n}") };
        refusals.note(&refused(0), now);
        refusals.note(&Error::NotComponent { digest: digest(1), reason: "it is none".into() }, now);
        refusals.note(&Error::NoCompiler { digest: digest(2), reason: "busy".into() }, now);
        assert_eq!(refusals.of(&digest(0), now).unwrap().to_string(), refused(0).to_string());
        assert!(matches!(refusals.of(&digest(1), now), Some(Error::NotComponent { .. })));
        assert!(refusals.of(&digest(2), now).is_none());
        assert!(refusals.of(&digest(0), now + REFUSED_FOR).is_none());
        for n in 0..REFUSED_MAX + 1 {
            refusals.note(&refused(n), now);
        }
        assert!(refusals.of(&digest(0), now).is_none() && refusals.of(&digest(1), now).is_some());
        assert_eq!(refusals.lock().len(), REFUSED_MAX);
    }
}
