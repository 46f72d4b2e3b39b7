//! Instances that have answered and wait for their actor's next request, of actors that asked for it (`limits.reuse`).
//! They take a slot and their memory as live ones do, so they are the first to go: the one that waited longest when a
//! slot or memory is wanted, and every one that nobody wanted for a while.
//!
//! An instance must never come to another actor, nor to another revision of its own: each prepared actor has a number
//! of its own, and an instance is found by that number only.

use super::slots::Slot;
use super::state::State;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use wasmtime::Store;
use wasmtime_wasi_http::p2::bindings::Proxy;

/// How long an instance waits at most.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// An instance between two requests. The store goes first, so that its slot is free before another may take it.
pub(super) struct Warm {
    pub(super) store: Store<State>,
    pub(super) proxy: Proxy,
    /// Requests that it has answered.
    pub(super) served: u32,
    pub(super) slot: Slot,
}

/// A bounded number of things that wait, each of one actor: the last to come is the first to be wanted, and the first to
/// come the first to go.
pub(super) struct Idle<T = Warm> {
    inner: Mutex<Inner<T>>,
    len_max: usize,
}

struct Inner<T> {
    /// By the actor's number and their own.
    waiting: BTreeMap<(u64, u64), (Instant, T)>,
    /// Actors by the numbers of what waits, in the order in which they came.
    order: BTreeMap<u64, u64>,
    next: u64,
}

impl<T> Idle<T> {
    pub(super) fn new(len_max: usize) -> Self {
        let inner = Inner { waiting: BTreeMap::new(), order: BTreeMap::new(), next: 0 };
        Self { inner: Mutex::new(inner), len_max }
    }

    /// Gives the one back that has to go for it.
    pub(super) fn put(&self, actor: u64, thing: T, now: Instant) -> Option<T> {
        let mut inner = self.lock();
        let number = inner.next;
        inner.next += 1;
        inner.waiting.insert((actor, number), (now, thing));
        inner.order.insert(number, actor);
        // Dropping an instance takes its time: not under the lock, here and below.
        if inner.order.len() > self.len_max { inner.oldest() } else { None }
    }

    pub(super) fn take(&self, actor: u64) -> Option<T> {
        let mut inner = self.lock();
        let (key, _) = inner.waiting.range((actor, 0)..=(actor, u64::MAX)).next_back()?;
        let key = *key;
        inner.remove(key)
    }

    /// Lets the one go that waited longest; whether there was one. Its slot and memory are free when this returns.
    pub(super) fn evict(&self) -> bool {
        let oldest = self.lock().oldest();
        oldest.is_some()
    }

    /// Lets all of an actor go.
    pub(super) fn forget(&self, actor: u64) {
        while let Some(thing) = self.take(actor) {
            drop(thing);
        }
    }

    /// Lets those go that waited for too long.
    pub(super) fn sweep(&self, now: Instant) {
        loop {
            let mut inner = self.lock();
            let Some((&number, &actor)) = inner.order.first_key_value() else { return };
            let since = inner.waiting.get(&(actor, number)).map(|(since, _)| *since);
            if since.is_some_and(|since| now.saturating_duration_since(since) < WAIT_MAX) {
                return;
            }
            let gone = inner.remove((actor, number));
            drop(inner);
            drop(gone);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner<T>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Inner<T> {
    fn oldest(&mut self) -> Option<T> {
        let (&number, &actor) = self.order.first_key_value()?;
        self.remove((actor, number))
    }

    fn remove(&mut self, key: (u64, u64)) -> Option<T> {
        self.order.remove(&key.1);
        self.waiting.remove(&key).map(|(_, thing)| thing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_is_wanted_first_and_the_first_goes_first() {
        let (idle, now) = (Idle::new(3), Instant::now());
        for (actor, thing) in [(1, "a"), (2, "b"), (1, "c"), (2, "d")] {
            idle.put(actor, thing, now);
        }
        // A fourth is over the bound: the oldest has gone.
        assert_eq!((idle.take(1), idle.take(1)), (Some("c"), None));
        assert_eq!(idle.take(3), None);
        assert!(idle.evict());
        assert_eq!((idle.take(2), idle.take(2)), (Some("d"), None));
        assert!(!idle.evict());
    }

    #[test]
    fn what_nobody_wants_for_long_goes_and_so_does_what_is_forgotten() {
        let (idle, now) = (Idle::new(9), Instant::now());
        idle.put(1, "a", now);
        idle.put(1, "b", now + WAIT_MAX / 2);
        idle.put(2, "c", now + WAIT_MAX / 2);
        idle.sweep(now + WAIT_MAX);
        assert_eq!(idle.lock().order.len(), 2);
        idle.forget(1);
        assert_eq!((idle.take(1), idle.take(2)), (None, Some("c")));
        assert!(idle.lock().waiting.is_empty() && idle.lock().order.is_empty());
    }
}
