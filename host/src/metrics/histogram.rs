//! How long things took: counts by time, four steps to each doubling, from 16 microseconds to two minutes. Counting is two
//! additions; nothing is ever forgotten, so what was in between is a difference.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Doublings: the first step holds all below 16 microseconds, the last all above 2 ^ 27 (134 s).
const FIRST: u32 = 4;
const LAST: u32 = 27;
/// The first bound that Prometheus is told: 128 microseconds.
const FIRST_TOLD: u32 = 7;
/// Steps to each doubling.
const STEPS: usize = 4;
const LEN: usize = 1 + (LAST - FIRST) as usize * STEPS;

pub struct Histogram {
    counts: [AtomicU64; LEN],
    /// In microseconds.
    sum: AtomicU64,
}

/// A histogram as it was at one time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    counts: [u64; LEN],
    sum: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: std::array::from_fn(|_| AtomicU64::new(0)), sum: AtomicU64::new(0) }
    }
}

impl Default for Taken {
    fn default() -> Self {
        Self { counts: [0; LEN], sum: 0 }
    }
}

impl Histogram {
    pub fn add(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.counts[step(us)].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(us, Ordering::Relaxed);
    }

    pub fn take(&self) -> Taken {
        let mut taken = Taken { sum: self.sum.load(Ordering::Relaxed), ..Taken::default() };
        for (to, from) in taken.counts.iter_mut().zip(&self.counts) {
            *to = from.load(Ordering::Relaxed);
        }
        taken
    }
}

fn step(us: u64) -> usize {
    let doubling = us.max(1).ilog2();
    if doubling < FIRST {
        return 0;
    }
    if doubling >= LAST {
        return LEN - 1;
    }
    let within = usize::try_from(us >> (doubling - 2) & 3).unwrap_or(0);
    1 + (doubling - FIRST) as usize * STEPS + within
}

/// Microseconds at which a step begins.
fn begins(step: usize) -> u64 {
    let Some(step) = step.checked_sub(1) else { return 0 };
    let doubling = u64::from(FIRST) + (step / STEPS) as u64;
    (4 + (step % STEPS) as u64) << (doubling - 2)
}

impl Taken {
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    pub fn sum_seconds(&self) -> f64 {
        Duration::from_micros(self.sum).as_secs_f64()
    }

    /// What came after `before` was taken. Counts that went back (there was another start) are all new.
    pub fn since(&self, before: &Self) -> Self {
        let mut between = *self;
        if self.counts.iter().zip(&before.counts).any(|(now, then)| now < then) {
            return between;
        }
        for (now, then) in between.counts.iter_mut().zip(&before.counts) {
            *now -= then;
        }
        between.sum = self.sum.saturating_sub(before.sum);
        between
    }

    pub fn add(&mut self, other: &Self) {
        for (to, from) in self.counts.iter_mut().zip(&other.counts) {
            *to += from;
        }
        self.sum = self.sum.saturating_add(other.sum);
    }

    /// The time within which a share of all was done, in microseconds; exact to a step, which is a fifth of it.
    pub fn quantile_us(&self, share: f64) -> u64 {
        let count = self.count();
        if count == 0 {
            return 0;
        }
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a count")]
        let rank = ((count as f64 * share).ceil() as u64).clamp(1, count);
        let mut below = 0;
        for (at, n) in self.counts.iter().enumerate().filter(|(_, n)| **n > 0) {
            if below + n >= rank {
                let (begin, end) = (begins(at), begins((at + 1).min(LEN - 1)).max(begins(at) + 1));
                // As if evenly spread within the step.
                return begin + (end - begin) * (rank - below) / n;
            }
            below += n;
        }
        begins(LEN - 1)
    }

    /// For Prometheus: upper bounds in seconds, each twice the one before, and how many were between the two.
    pub fn buckets(&self) -> Vec<(f64, u64)> {
        let first = 1 + (FIRST_TOLD - FIRST) as usize * STEPS;
        let seconds = |doubling: u32| Duration::from_micros(1 << doubling).as_secs_f64();
        let mut buckets = vec![(seconds(FIRST_TOLD), self.counts[..first].iter().sum())];
        for (doubling, counts) in (FIRST_TOLD + 1..).zip(self.counts[first..].chunks(STEPS)) {
            // The last step holds what took longer still.
            let end = if doubling == LAST { f64::INFINITY } else { seconds(doubling) };
            buckets.push((end, counts.iter().sum()));
        }
        buckets
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_a_quarter_of_a_doubling() {
        assert_eq!((begins(0), begins(1), begins(2), begins(5), begins(6)), (0, 16, 20, 32, 40));
        for at in 0..LEN {
            assert_eq!(step(begins(at)), at);
            assert_eq!(step(begins(at + 1) - 1), at.min(LEN - 1));
        }
        assert_eq!(step(u64::MAX), LEN - 1);
    }

    #[test]
    fn quantiles_are_right_to_a_fifth() {
        let histogram = Histogram::default();
        for ms in 1..=1_000 {
            histogram.add(Duration::from_millis(ms));
        }
        let taken = histogram.take();
        for (share, us) in [(0.5, 500_000_f64), (0.9, 900_000.0), (0.99, 990_000.0), (0.001, 1_000.0)] {
            let got = taken.quantile_us(share) as f64;
            assert!((got / us - 1.0).abs() < 0.25, "{share}: {got} for {us}");
        }
        assert_eq!((taken.count(), Taken::default().quantile_us(0.5)), (1_000, 0));
        assert!((taken.sum_seconds() - 500.5).abs() < 1e-6);
        let one = Histogram::default();
        one.add(Duration::from_micros(70));
        assert!((64..=80).contains(&one.take().quantile_us(0.99)), "{}", one.take().quantile_us(0.99));
    }

    #[test]
    fn what_was_in_between_is_a_difference() {
        let histogram = Histogram::default();
        histogram.add(Duration::from_secs(1));
        let before = histogram.take();
        histogram.add(Duration::from_millis(1));
        let between = histogram.take().since(&before);
        assert_eq!(between.count(), 1);
        assert!(between.quantile_us(1.0) < 1_300 && (between.sum_seconds() - 0.001).abs() < 1e-9);
        // Another start of the same actor.
        assert_eq!(between.since(&before), between);
        let mut both = before;
        both.add(&between);
        assert_eq!(both, histogram.take());
    }

    #[test]
    fn buckets_hold_everything() {
        let histogram = Histogram::default();
        for us in [1, 16, 17, 100, 5_000, 1 << 26, 1 << 30, u64::MAX >> 1] {
            histogram.add(Duration::from_micros(us));
        }
        let buckets = histogram.take().buckets();
        assert_eq!(buckets.iter().map(|b| b.1).sum::<u64>(), 8);
        assert_eq!((buckets[0], buckets[1]), ((0.000_128, 4), (0.000_256, 0)));
        assert_eq!(buckets.last(), Some(&(f64::INFINITY, 3)));
        assert!(buckets.is_sorted_by(|a, b| a.0 < b.0) && buckets.len() == 21, "{buckets:?}");
    }
}
