//! The bounded queue in front of an actor: as many invocations run as it has replicas here, so many wait, and the next
//! is refused. First come, first served.
//!
//! It must never hold its lock across an await, and never lose a permit: one that was handed to a waiter who gave up
//! goes to the next.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, oneshot};

/// Why the gate did not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Closed {
    /// This many were waiting already.
    Full(usize),
    /// The actor is draining.
    Draining,
}

pub(super) struct Gate {
    inner: Mutex<Inner>,
    /// Told when the last invocation of a draining actor ended.
    idle: Notify,
}

struct Inner {
    limit: u32,
    running: u32,
    draining: bool,
    waiting: VecDeque<oneshot::Sender<Permit>>,
}

/// The right to run one invocation; given back when dropped.
pub(super) struct Permit(Option<Arc<Gate>>);

impl Permit {
    /// Of what is no invocation by itself.
    pub(super) fn none() -> Self {
        Self(None)
    }
}

impl Gate {
    pub(super) fn new(limit: u32) -> Arc<Self> {
        let inner = Inner { limit, running: 0, draining: false, waiting: VecDeque::new() };
        Arc::new(Self { inner: Mutex::new(inner), idle: Notify::new() })
    }

    /// A permit now, or a place in the queue, or neither.
    pub(super) fn enter(self: &Arc<Self>, queue_len_max: usize) -> Result<Entry, Closed> {
        let mut inner = self.lock();
        if inner.draining {
            return Err(Closed::Draining);
        }
        if inner.running < inner.limit && inner.waiting.is_empty() {
            inner.running += 1;
            return Ok(Entry::Now(Permit(Some(self.clone()))));
        }
        if inner.waiting.len() >= queue_len_max {
            inner.waiting.retain(|w| !w.is_closed());
            if inner.waiting.len() >= queue_len_max {
                return Err(Closed::Full(inner.waiting.len()));
            }
        }
        let (tx, rx) = oneshot::channel();
        inner.waiting.push_back(tx);
        Ok(Entry::Later(rx))
    }

    /// How many may run; more of the waiting start at once, fewer take effect as the running end.
    pub(super) fn set_limit(self: &Arc<Self>, limit: u32) {
        let mut inner = self.lock();
        inner.limit = limit;
        self.admit(inner);
    }

    /// Running and waiting.
    pub(super) fn len(&self) -> (u32, usize) {
        let inner = self.lock();
        (inner.running, inner.waiting.iter().filter(|w| !w.is_closed()).count())
    }

    /// Lets nobody in any more; those who wait still run.
    pub(super) fn close(self: &Arc<Self>) {
        let mut inner = self.lock();
        inner.draining = true;
        self.admit(inner);
    }

    /// Ends when nothing runs or waits.
    pub(super) async fn idle(&self) {
        loop {
            let told = self.idle.notified();
            if self.len() == (0, 0) {
                return;
            }
            told.await;
        }
    }

    /// Starts as many of the waiting as may run.
    fn admit(self: &Arc<Self>, mut inner: MutexGuard<'_, Inner>) {
        while inner.running < inner.limit {
            let Some(waiter) = inner.waiting.pop_front() else { break };
            if let Err(mut unwanted) = waiter.send(Permit(Some(self.clone()))) {
                // The waiter gave up: this permit was never counted.
                unwanted.0 = None;
                continue;
            }
            inner.running += 1;
        }
        if inner.draining && inner.limit == 0 {
            // Nothing will ever run them.
            inner.waiting.clear();
        }
        let idle = inner.draining && inner.running == 0;
        drop(inner);
        if idle {
            self.idle.notify_waiters();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) enum Entry {
    Now(Permit),
    Later(oneshot::Receiver<Permit>),
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(gate) = self.0.take() {
            let mut inner = gate.lock();
            inner.running -= 1;
            gate.admit(inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now(entry: Result<Entry, Closed>) -> Option<Permit> {
        match entry {
            Ok(Entry::Now(permit)) => Some(permit),
            _ => None,
        }
    }
    fn later(entry: Result<Entry, Closed>) -> Option<oneshot::Receiver<Permit>> {
        match entry {
            Ok(Entry::Later(rx)) => Some(rx),
            _ => None,
        }
    }

    #[test]
    fn the_queue_is_bounded_and_first_come_first_served() {
        let gate = Gate::new(1);
        let first = now(gate.enter(2)).unwrap();
        let mut second = later(gate.enter(2)).unwrap();
        let mut third = later(gate.enter(2)).unwrap();
        assert_eq!(gate.enter(2).err(), Some(Closed::Full(2)));
        assert_eq!(gate.len(), (1, 2));
        drop(first);
        let second = second.try_recv().unwrap();
        assert!(third.try_recv().is_err());
        drop(second);
        drop(third.try_recv().unwrap());
        assert_eq!(gate.len(), (0, 0));
    }

    #[test]
    fn a_waiter_that_gave_up_loses_no_permit() {
        let gate = Gate::new(1);
        let first = now(gate.enter(2)).unwrap();
        drop(later(gate.enter(2)).unwrap());
        let mut third = later(gate.enter(1)).unwrap();
        drop(first);
        let third = third.try_recv().unwrap();
        assert_eq!(gate.len(), (1, 0));
        drop(third);
        // A permit handed over but never taken comes back as well.
        let a = now(gate.enter(1)).unwrap();
        let b = later(gate.enter(1)).unwrap();
        drop(a);
        drop(b);
        assert_eq!(gate.len(), (0, 0));
    }

    #[test]
    fn fewer_replicas_take_effect_as_the_running_end() {
        let gate = Gate::new(2);
        let (a, b) = (now(gate.enter(1)).unwrap(), now(gate.enter(1)).unwrap());
        let mut c = later(gate.enter(1)).unwrap();
        gate.set_limit(1);
        drop(a);
        assert!(c.try_recv().is_err());
        drop(b);
        assert!(c.try_recv().is_ok());
        gate.set_limit(0);
        let mut d = later(gate.enter(1)).unwrap();
        gate.close();
        assert_eq!(gate.enter(1).err(), Some(Closed::Draining));
        assert_eq!(d.try_recv().err(), Some(oneshot::error::TryRecvError::Closed));
        assert_eq!(gate.len(), (0, 0));
    }

    impl std::fmt::Debug for Entry {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("Entry")
        }
    }
}
