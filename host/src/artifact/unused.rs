//! Which artifacts may go: those that no assignment has named for a while, and at once when room is short. Pure.

use proto::app::Digest;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Since when what is here is unnamed.
#[derive(Debug)]
pub struct Unused {
    /// How long something is kept that nothing names: a rollback may want it.
    keep: Duration,
    since: BTreeMap<Digest, Instant>,
}

impl Unused {
    pub fn new(keep: Duration) -> Self {
        Self { keep, since: BTreeMap::new() }
    }

    /// What may go now of `held`. Room is short once half of the bound is taken.
    pub fn may_go(&mut self, held: &[Digest], named: &BTreeSet<Digest>, is_short: bool, now: Instant) -> Vec<Digest> {
        let unnamed: BTreeSet<&Digest> = held.iter().filter(|digest| !named.contains(*digest)).collect();
        self.since.retain(|digest, _| unnamed.contains(digest));
        let mut go = Vec::new();
        for digest in unnamed {
            let since = *self.since.entry(digest.clone()).or_insert(now);
            if is_short || now.saturating_duration_since(since) >= self.keep {
                go.push(digest.clone());
            }
        }
        go
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nothing_names_goes_after_a_while_or_when_room_is_short() {
        let all: Vec<Digest> = (0_u8..3).map(|n| Digest::of(&[n])).collect();
        let named = |some: &[usize]| some.iter().map(|n| all[*n].clone()).collect::<BTreeSet<_>>();
        let begin = Instant::now();
        let mut unused = Unused::new(Duration::from_secs(3600));
        let mut at = |named: &BTreeSet<Digest>, is_short, minutes: u64| {
            let mut go = unused.may_go(&all, named, is_short, begin + Duration::from_secs(minutes * 60));
            go.sort_by_key(|digest| all.iter().position(|d| d == digest));
            go
        };
        assert_eq!(at(&named(&[0, 1]), false, 0), []);
        assert_eq!(at(&named(&[0]), false, 30), [], "too soon");
        assert_eq!(at(&named(&[0]), false, 61), [all[2].clone()], "an hour after the first look");
        assert_eq!(at(&named(&[0, 1]), false, 80), [all[2].clone()], "it is named again");
        assert_eq!(at(&named(&[0, 2]), false, 100), [], "its hour began anew");
        assert_eq!(at(&named(&[2]), true, 101), [all[0].clone(), all[1].clone()], "room is short");
    }
}
