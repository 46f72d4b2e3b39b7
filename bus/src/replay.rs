//! Which requests were taken already. A request names the inbox that waits for its answer, and each call of a
//! connection has an inbox of its own, numbered upwards: so a request that comes a second time is known by it. Pure.
//!
//! Bounded: so many connections, and so many of the latest calls of each. It does not outlive the process, and knows
//! only what came here: of a queue group, another member may take a copy. Inboxes that are not numbered are not ours and
//! are let through.

use std::collections::HashMap;

/// Connections remembered; the one that has been silent longest makes room.
const CALLERS_MAX: usize = 1_024;
/// Calls of one connection between the newest and the oldest that is still told apart; an older one counts as taken.
const WINDOW: u64 = 16_384;
const WORDS: usize = (WINDOW / 64) as usize;

#[derive(Debug, Default)]
pub(crate) struct Taken {
    callers: HashMap<String, Caller>,
    /// Counts requests, to tell who was silent longest.
    now: u64,
}

#[derive(Debug)]
struct Caller {
    newest: u64,
    /// One bit a call, in a ring: the newest `WINDOW` numbers.
    seen: Box<[u64; WORDS]>,
    at: u64,
}

impl Taken {
    /// Whether a request that is to be answered at `inbox` comes for the first time. It counts as taken then.
    pub(crate) fn take(&mut self, inbox: &str) -> bool {
        let Some((prefix, number)) = split(inbox) else { return true };
        self.now += 1;
        let now = self.now;
        if let Some(caller) = self.callers.get_mut(prefix) {
            caller.at = now;
            return caller.take(number);
        }
        if self.callers.len() >= CALLERS_MAX {
            let oldest = self.callers.iter().min_by_key(|(_, caller)| caller.at).map(|(prefix, _)| prefix.clone());
            oldest.map(|prefix| self.callers.remove(&prefix));
        }
        let mut caller = Caller { newest: number, seen: Box::new([0; WORDS]), at: now };
        let first = caller.take(number);
        self.callers.insert(prefix.to_owned(), caller);
        first
    }
}

impl Caller {
    fn take(&mut self, number: u64) -> bool {
        if number > self.newest {
            self.forget(number);
            self.newest = number;
        } else if self.newest - number >= WINDOW {
            return false;
        }
        let (word, bit) = place(number);
        let first = self.seen[word] & bit == 0;
        self.seen[word] |= bit;
        first
    }

    /// What the ring says of the numbers after the newest up to `number` is of a lap ago.
    fn forget(&mut self, number: u64) {
        if number - self.newest >= WINDOW {
            self.seen.fill(0);
            return;
        }
        let mut n = self.newest + 1;
        while n <= number {
            let (word, bit) = place(n);
            if bit == 1 && number - n >= 63 {
                self.seen[word] = 0;
                n += 64;
            } else {
                self.seen[word] &= !bit;
                n += 1;
            }
        }
    }
}

fn place(number: u64) -> (usize, u64) {
    let at = number % WINDOW;
    (usize::try_from(at / 64).unwrap_or_default(), 1 << (at % 64))
}

/// `_INBOX.<connection>.<number>`, as `inbox` writes it.
fn split(inbox: &str) -> Option<(&str, u64)> {
    let (prefix, digits) = inbox.rsplit_once('.')?;
    let ours = prefix.starts_with("_INBOX.") && digits.bytes().all(|b| b.is_ascii_digit());
    if ours { Some((prefix, digits.parse().ok()?)) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_taken_once_in_any_order() {
        let mut taken = Taken::default();
        for n in [5, 3, 4, 70, 69, 1] {
            assert!(taken.take(&format!("_INBOX.a.{n}")), "{n}");
            assert!(!taken.take(&format!("_INBOX.a.{n}")), "{n} again");
        }
        assert!(taken.take("_INBOX.b.5"), "another connection");
        assert!(!taken.take("_INBOX.a.3"));
    }

    #[test]
    fn numbers_of_a_lap_ago_do_not_hide_new_ones() {
        let mut taken = Taken::default();
        for n in 1..=3 * WINDOW {
            assert!(taken.take(&format!("_INBOX.a.{n}")), "{n}");
        }
        assert!(!taken.take("_INBOX.a.1"), "long ago: counts as taken");
        assert!(!taken.take(&format!("_INBOX.a.{}", 2 * WINDOW + 1)));
        assert!(taken.take(&format!("_INBOX.a.{}", 9 * WINDOW)), "a jump");
        assert!(taken.take(&format!("_INBOX.a.{}", 8 * WINDOW + 1)), "skipped before");
        assert!(!taken.take(&format!("_INBOX.a.{}", 8 * WINDOW)));
    }

    #[test]
    fn a_jump_forgets_what_it_passes_and_nothing_else() {
        for (from, to) in
            [(0, 1), (5, 70), (60, 64), (63, 64), (64, 192), (1, WINDOW), (7, WINDOW + 6), (9, 3 * WINDOW)]
        {
            let mut caller = Caller { newest: from, seen: Box::new([u64::MAX; WORDS]), at: 0 };
            caller.forget(to);
            for n in 0..WINDOW {
                let (word, bit) = place(n);
                let passed = (to - from) >= WINDOW || (from + 1..=to).any(|number| number % WINDOW == n);
                assert_eq!(caller.seen[word] & bit == 0, passed, "{n} of {from}..={to}");
            }
        }
    }

    #[test]
    fn inboxes_that_are_not_numbered_are_let_through() {
        let mut taken = Taken::default();
        for inbox in ["_INBOX.a.x1", "mine", "mine.5", "_INBOX.5", "_INBOX.a.99999999999999999999999", ""] {
            assert!(taken.take(inbox) && taken.take(inbox), "{inbox}");
        }
    }

    #[test]
    fn the_connection_that_was_silent_longest_makes_room() {
        let mut taken = Taken::default();
        for n in 0..CALLERS_MAX {
            assert!(taken.take(&format!("_INBOX.c{n}.1")));
        }
        assert!(!taken.take("_INBOX.c0.1"));
        assert!(taken.take("_INBOX.new.1"));
        assert_eq!(taken.callers.len(), CALLERS_MAX);
        assert!(!taken.take("_INBOX.c0.1"), "kept: it was heard lately");
        assert!(taken.take("_INBOX.c1.1"), "forgotten");
    }
}
