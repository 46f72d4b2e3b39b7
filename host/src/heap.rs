//! Memory that the allocator keeps for later, given back to the machine.

use std::time::{Duration, Instant};

/// Gives back what is free. glibc by itself gives back only the end of a heap: of ten thousand components that came one after
/// the other as much again stayed as they use. It takes some milliseconds, in which others may wait for memory; other
/// allocators give back by themselves.
pub(crate) fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[allow(unsafe_code, reason = "no safe call of it is at hand; it takes no pointer and locks what it looks at")]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// What was assigned, brought up or stopped: it leaves free what it was done with.
#[derive(Debug, Default)]
pub(crate) struct Moves {
    last: Option<Instant>,
    count: u32,
}

/// So many leave enough that it is given back before the next look.
const MOVES_MAX: u32 = 1_000;

impl Moves {
    /// Whether memory is to be given back now.
    pub(crate) fn note(&mut self, now: Instant) -> bool {
        self.last = Some(now);
        self.count = (self.count + 1) % MOVES_MAX;
        self.count == 0
    }

    pub(crate) fn is_within(&self, time: Duration, now: Instant) -> bool {
        self.last.is_some_and(|last| now.saturating_duration_since(last) < time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_moves_are_told_at_once_and_few_for_a_while() {
        let (mut moves, begun) = (Moves::default(), Instant::now());
        assert!(!moves.is_within(Duration::MAX, begun));
        let told = (0..2 * MOVES_MAX + 1).filter(|_| moves.note(begun)).count();
        assert_eq!(told, 2);
        let minute = Duration::from_secs(60);
        assert!(moves.is_within(minute, begun + minute / 2) && !moves.is_within(minute, begun + minute));
    }
}
