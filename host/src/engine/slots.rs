//! How many instances may be alive, and how many of them one actor's, by the rule of `fair`. Who is beyond its share
//! waits in a queue of its own; what is given back goes to the one in wait who has the least.
//!
//! Taking and giving back must take no lock while nobody waits.

use crate::fair::is_within_share;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;

/// The slots of one engine.
pub(super) struct Slots {
    free: AtomicU32,
    max: u32,
    /// How many wait, whether or not they have given up.
    waiting: AtomicU32,
    lines: Mutex<BTreeMap<u64, Line>>,
}

/// Those of one actor who wait.
struct Line {
    share: Arc<Share>,
    waiting: VecDeque<oneshot::Sender<Slot>>,
}

/// What one actor has of them.
pub(super) struct Share {
    slots: Arc<Slots>,
    number: u64,
    /// Slots that one of its instances takes.
    weight: u32,
    held: AtomicU32,
}

/// The right to one instance; given back when dropped.
pub(super) struct Slot {
    share: Arc<Share>,
    is_held: bool,
}

impl Slots {
    pub(super) fn new(max: u32) -> Arc<Self> {
        Arc::new(Self { free: AtomicU32::new(max), max, waiting: AtomicU32::new(0), lines: Mutex::default() })
    }

    /// For the actor of this number, each of whose instances takes as much as `weight` others.
    pub(super) fn share(self: &Arc<Self>, number: u64, weight: u32) -> Arc<Share> {
        let weight = weight.clamp(1, self.max.max(1));
        Arc::new(Share { slots: self.clone(), number, weight, held: AtomicU32::new(0) })
    }

    /// Whether somebody waits for one.
    pub(super) fn is_wanted(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    /// Gives what is free to those who wait, first to who has the least.
    fn hand_out(&self, mut lines: MutexGuard<'_, BTreeMap<u64, Line>>) {
        loop {
            lines.retain(|_, line| {
                while line.waiting.front().is_some_and(oneshot::Sender::is_closed) {
                    line.waiting.pop_front();
                    self.waiting.fetch_sub(1, Ordering::SeqCst);
                }
                !line.waiting.is_empty()
            });
            let least = lines.values_mut().filter(|line| line.share.may_take()).min_by_key(|line| line.share.held());
            let Some(line) = least else { return };
            let Some(slot) = line.share.take() else { return };
            let Some(waiter) = line.waiting.pop_front() else { return slot.give_back() };
            self.waiting.fetch_sub(1, Ordering::SeqCst);
            if let Err(unwanted) = waiter.send(slot) {
                // The lock is held: nothing is handed out by dropping it.
                unwanted.give_back();
            }
        }
    }

    fn lines(&self) -> MutexGuard<'_, BTreeMap<u64, Line>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Share {
    /// Slots that its instances have.
    pub(super) fn held(&self) -> u32 {
        self.held.load(Ordering::SeqCst)
    }

    /// Whether others could have one that this one can not.
    pub(super) fn is_beyond(&self) -> bool {
        self.held() > 0 && self.slots.free.load(Ordering::SeqCst) > 0
    }

    fn may_take(&self) -> bool {
        let free = self.slots.free.load(Ordering::SeqCst);
        is_within_share(self.held(), free) && self.weight <= free
    }

    /// A slot, if there is one within its share.
    pub(super) fn take(self: &Arc<Self>) -> Option<Slot> {
        let less = |free: u32| if is_within_share(self.held(), free) { free.checked_sub(self.weight) } else { None };
        self.slots.free.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).ok()?;
        self.held.fetch_add(self.weight, Ordering::SeqCst);
        Some(Slot { share: self.clone(), is_held: true })
    }

    /// A place in its queue; `None` when so many wait already.
    pub(super) fn wait(self: &Arc<Self>, queue_len_max: usize) -> Option<oneshot::Receiver<Slot>> {
        let mut lines = self.slots.lines();
        let line = lines.entry(self.number).or_insert_with(|| Line { share: self.clone(), waiting: VecDeque::new() });
        let before = line.waiting.len();
        if before >= queue_len_max {
            line.waiting.retain(|waiter| !waiter.is_closed());
            let gone = u32::try_from(before - line.waiting.len()).unwrap_or(u32::MAX);
            self.slots.waiting.fetch_sub(gone, Ordering::SeqCst);
        }
        if line.waiting.len() >= queue_len_max {
            return None;
        }
        let (tx, rx) = oneshot::channel();
        line.waiting.push_back(tx);
        self.slots.waiting.fetch_add(1, Ordering::SeqCst);
        // What was given back since it was looked for.
        self.slots.hand_out(lines);
        Some(rx)
    }
}

impl Slot {
    fn give_back(mut self) {
        self.put();
    }

    fn put(&mut self) {
        if std::mem::take(&mut self.is_held) {
            self.share.held.fetch_sub(self.share.weight, Ordering::SeqCst);
            self.share.slots.free.fetch_add(self.share.weight, Ordering::SeqCst);
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if !self.is_held {
            return;
        }
        self.put();
        let slots = &self.share.slots;
        if slots.waiting.load(Ordering::SeqCst) > 0 {
            slots.hand_out(slots.lines());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(share: &Arc<Share>) -> Vec<Slot> {
        std::iter::from_fn(|| share.take()).collect()
    }

    #[test]
    fn each_may_have_as_many_as_are_free() {
        let slots = Slots::new(100);
        let (one, two, three) = (slots.share(1, 1), slots.share(2, 1), slots.share(3, 1));
        let first = all(&one);
        assert_eq!(first.len(), 51);
        let second = all(&two);
        assert_eq!((second.len(), one.is_beyond()), (25, true));
        assert_eq!(all(&three).len(), 13);
        // As one has less the other may have more.
        drop(first);
        assert_eq!(all(&two).len() + second.len(), 51);
        drop(second);
        assert_eq!(slots.free.load(Ordering::SeqCst), 100);
        assert_eq!(all(&Slots::new(1).share(1, 9)).len(), 1);
    }

    #[test]
    fn one_that_takes_more_counts_for_more() {
        let slots = Slots::new(64);
        let (heavy, light) = (slots.share(1, 8), slots.share(2, 1));
        let taken = all(&heavy);
        assert_eq!((taken.len(), heavy.held()), (5, 40));
        assert_eq!(all(&light).len(), 13);
        drop(taken);
        assert_eq!(slots.free.load(Ordering::SeqCst), 64);
    }

    #[test]
    fn what_is_given_back_goes_to_who_has_least() {
        let slots = Slots::new(4);
        let (greedy, modest) = (slots.share(1, 1), slots.share(2, 1));
        let mut greedy_has = all(&greedy);
        let modest_has = all(&modest);
        assert_eq!((greedy_has.len(), modest_has.len()), (3, 1));
        let mut greedy_waits = greedy.wait(9).unwrap();
        let (given_up, mut modest_waits) = (modest.wait(2).unwrap(), modest.wait(2).unwrap());
        assert!(modest.wait(2).is_none() && slots.is_wanted());
        drop(given_up);
        drop(greedy_has.pop());
        assert!(greedy_waits.try_recv().is_err());
        let got = modest_waits.try_recv().unwrap();
        drop((got, modest_has));
        drop(greedy_has);
        assert!(greedy_waits.try_recv().is_ok());
        assert!(!slots.is_wanted());
        assert_eq!(slots.free.load(Ordering::SeqCst), 4);
    }

    #[test]
    fn nothing_is_lost_between_threads() {
        let slots = Slots::new(8);
        std::thread::scope(|scope| {
            for number in 0..4 {
                let share = slots.share(number, 1);
                scope.spawn(move || {
                    for _ in 0..2_000 {
                        let slot = share.take().or_else(|| share.wait(1).and_then(|waits| waits.blocking_recv().ok()));
                        drop(slot.unwrap());
                    }
                });
            }
        });
        assert_eq!((slots.free.load(Ordering::SeqCst), slots.is_wanted()), (8, false));
    }
}
