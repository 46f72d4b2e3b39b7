//! Counters of what arrived and was refused. A drop is never silent: it is one of these.

use std::sync::atomic::{AtomicU64, Ordering};

/// Why a message was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// It does not decode, or lacks what it must have.
    Malformed,
    /// It names another lattice or another host.
    Foreign,
    /// It, or the body it announces, is above the limit.
    Oversized,
    /// The queue it was for is full. At least so many: the client library tells of a burst at its own queue only in
    /// part.
    Overflow,
    /// What it answers has ended, or something newer is known.
    Stale,
    /// It was taken already.
    Replayed,
}

impl Reason {
    pub const ALL: [Self; 6] =
        [Self::Malformed, Self::Foreign, Self::Oversized, Self::Overflow, Self::Stale, Self::Replayed];

    pub fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Foreign => "foreign",
            Self::Oversized => "oversized",
            Self::Overflow => "overflow",
            Self::Stale => "stale",
            Self::Replayed => "replayed",
        }
    }
}

#[derive(Debug, Default)]
pub struct Drops {
    counts: [AtomicU64; 6],
}

impl Drops {
    /// Counts one more.
    pub fn count(&self, reason: Reason) {
        self.counts[reason as usize].fetch_add(1, Ordering::Relaxed);
    }
    /// How many so far.
    pub fn get(&self, reason: Reason) -> u64 {
        self.counts[reason as usize].load(Ordering::Relaxed)
    }
    pub fn total(&self) -> u64 {
        Reason::ALL.iter().map(|reason| self.get(*reason)).sum()
    }
    pub fn each(&self) -> impl Iterator<Item = (Reason, u64)> + '_ {
        Reason::ALL.into_iter().map(|reason| (reason, self.get(reason)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_its_own_counter() {
        let drops = Drops::default();
        for (n, reason) in Reason::ALL.into_iter().enumerate() {
            for _ in 0..=n {
                drops.count(reason);
            }
        }
        let each: Vec<_> = drops.each().map(|(reason, count)| (reason.name(), count)).collect();
        let names = ["malformed", "foreign", "oversized", "overflow", "stale", "replayed"];
        assert_eq!(each, names.into_iter().zip(1..).collect::<Vec<_>>());
        assert_eq!(drops.total(), 21);
    }
}
