//! How long a member waits for a leader before it seeks to be one. Each voter has a time of its own, and terms take turns
//! at who is first: two that stood up at once would split the votes, and everybody would wait all over again. Pure: the
//! same numbers, the same time.

/// Ticks for member `id` in `term`: above `base`, and below twice as many. No two of `voters`, each of whom is named once,
/// have the same, as long as there are fewer than `base` of them. `first`, the same at all members, is where the turns begin.
///
/// One more than `base` is the least: members refuse to vote for `base` ticks after they heard a leader, and they need not
/// have heard it in the same tick.
pub(super) fn ticks(base: usize, id: u64, voters: impl Iterator<Item = u64>, first: u64, term: u64) -> usize {
    let (rank, count) = voters.fold((0_u64, 0_u64), |(rank, count), voter| (rank + u64::from(voter < id), count + 1));
    // Who does not vote stands for nothing; its time is of no account.
    let count = count.max(1);
    let slot = (rank + first % count + term % count) % count;
    let slot = usize::try_from(slot).expect("below the number of voters");
    let apart = (base / 2).saturating_sub(1) / usize::try_from(count).expect("a number of voters");
    (base + 1 + slot * apart.max(1)).min((2 * base).saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::ticks;
    use std::collections::BTreeSet;

    /// The times of all voters in a term.
    fn all(base: usize, voters: &[u64], first: u64, term: u64) -> Vec<usize> {
        voters.iter().map(|id| ticks(base, *id, voters.iter().copied(), first, term)).collect()
    }

    #[test]
    fn no_two_voters_share_a_time_and_all_are_within_bounds() {
        for base in [10, 20] {
            for count in 1..=9 {
                // Ids are in no order, and have gaps.
                let voters: Vec<u64> = (1..=count).map(|n| n * 7 % 31 + 1).collect();
                for (first, term) in [(0, 0), (0, 1), (5, 9), (u64::MAX, u64::MAX), (3, 1 << 40)] {
                    let times = all(base, &voters, first, term);
                    assert!(times.iter().all(|ticks| *ticks > base && *ticks < 2 * base), "{base}, {count}: {times:?}");
                    assert_eq!(times.iter().collect::<BTreeSet<_>>().len(), voters.len(), "{base}: {times:?}");
                }
            }
        }
    }

    #[test]
    fn the_usual_times_of_one_three_and_five() {
        assert_eq!(all(20, &[1], 0, 7), [21]);
        assert_eq!(all(20, &[1, 2, 3], 0, 3), [21, 24, 27]);
        assert_eq!(all(20, &[1, 2, 3], 0, 4), [24, 27, 21]);
        assert_eq!(all(20, &[1, 2, 3, 4, 5], 0, 5), [21, 22, 23, 24, 25]);
    }

    #[test]
    fn each_voter_is_first_in_one_of_as_many_terms() {
        let voters = [2, 3, 5, 8, 9];
        for first in [0, 1, 77] {
            let winner = |term| {
                let times = all(20, &voters, first, term);
                (0..times.len()).min_by_key(|n| times[*n]).unwrap()
            };
            assert_eq!((100..105).map(winner).collect::<BTreeSet<_>>().len(), voters.len());
        }
    }

    #[test]
    fn who_does_not_vote_has_a_time_too() {
        for (id, voters) in [(4, vec![1, 2, 3]), (1, vec![]), (1, vec![2])] {
            let time = ticks(20, id, voters.iter().copied(), 0, 11);
            assert!(time > 20 && time < 40, "{time}");
        }
        // The least that a configuration may say.
        assert_eq!(all(2, &[1, 2, 3], 0, 0), [3, 3, 3]);
    }
}
