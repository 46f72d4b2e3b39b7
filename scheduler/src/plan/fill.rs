//! Spreads a number of replicas evenly over hosts, by counts: a wave of identical replicas is one pass.

/// A host that can take replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Room {
    /// Its number in the plan's columns.
    pub(super) host: usize,
    /// Replicas of this component there already.
    pub(super) count: u64,
    /// How busy it is: breaks ties, lower first.
    pub(super) load: u64,
}

/// Adds `n` replicas so that the fullest host stays as low as possible; gives (host, added), in host order.
/// Takes nothing away. With no room, gives nothing.
pub(super) fn fill(n: u64, mut rooms: Vec<Room>) -> Vec<(usize, u64)> {
    if n == 0 || rooms.is_empty() {
        return Vec::new();
    }
    rooms.sort_unstable_by_key(|r| (r.count, r.load, r.host));
    // Find the hosts [0, active) that get any, and the level they are raised to.
    let mut active = 1;
    let mut sum = rooms[0].count;
    while active < rooms.len() {
        let next = rooms[active].count;
        if next * active as u64 >= n + sum {
            break;
        }
        sum += next;
        active += 1;
    }
    let level = (n + sum) / active as u64;
    let mut rest = (n + sum) % active as u64;
    let mut raised = rooms[..active].to_vec();
    // Whole levels are equal; what is left over goes to the least busy.
    raised.sort_unstable_by_key(|r| (r.load, r.host));
    let mut added: Vec<(usize, u64)> = raised
        .iter()
        .map(|r| {
            let one = u64::from(rest > 0);
            rest -= one;
            (r.host, level + one - r.count)
        })
        .filter(|(_, n)| *n > 0)
        .collect();
    added.sort_unstable();
    added
}

/// Takes `n` replicas away, from the fullest first; gives (host, taken), in host order.
pub(super) fn drain(n: u64, mut rooms: Vec<Room>) -> Vec<(usize, u64)> {
    let total: u64 = rooms.iter().map(|r| r.count).sum();
    let keep = total.saturating_sub(n);
    rooms.sort_unstable_by_key(|r| (r.count, r.host));
    // The highest level at which `keep` replicas remain: small hosts keep all, the others are cut to it.
    let mut left = keep;
    let mut taken = Vec::new();
    let hosts = rooms.len() as u64;
    for (i, room) in rooms.iter().enumerate() {
        let others = hosts - i as u64;
        let share = left / others;
        let kept = room.count.min(share);
        left -= kept;
        if kept < room.count {
            taken.push((room.host, room.count - kept));
        }
    }
    taken.sort_unstable();
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rooms(counts: &[u64]) -> Vec<Room> {
        counts.iter().enumerate().map(|(host, c)| Room { host, count: *c, load: *c }).collect()
    }

    #[test]
    fn fills_the_lowest_first() {
        let check =
            |n, counts: &[u64], want: &[(usize, u64)]| assert_eq!(fill(n, rooms(counts)), want, "{n} {counts:?}");
        check(4, &[0, 0], &[(0, 2), (1, 2)]);
        check(5, &[0, 0], &[(0, 3), (1, 2)]);
        check(1, &[3, 0, 1], &[(1, 1)]);
        check(3, &[3, 0, 1], &[(1, 2), (2, 1)]);
        check(10, &[3, 0, 1], &[(0, 1), (1, 5), (2, 4)]);
        check(0, &[1], &[]);
        check(3, &[], &[]);
    }

    #[test]
    fn takes_from_the_fullest() {
        let check =
            |n, counts: &[u64], want: &[(usize, u64)]| assert_eq!(drain(n, rooms(counts)), want, "{n} {counts:?}");
        check(1, &[1, 3], &[(1, 1)]);
        check(2, &[2, 2], &[(0, 1), (1, 1)]);
        check(4, &[2, 2], &[(0, 2), (1, 2)]);
        check(9, &[2, 2], &[(0, 2), (1, 2)]);
    }

    #[test]
    fn fill_is_even_and_exact() {
        for seed in 0..200u64 {
            let counts: Vec<u64> = (0..seed % 13 + 1).map(|i| (seed * 7 + i * i * 3) % 5).collect();
            let n = seed % 29;
            let mut after = counts.clone();
            for (host, add) in fill(n, rooms(&counts)) {
                after[host] += add;
            }
            assert_eq!(after.iter().sum::<u64>(), counts.iter().sum::<u64>() + n);
            let raised = (0..counts.len()).filter(|i| after[*i] > counts[*i]).map(|i| after[i]).max().unwrap_or(0);
            let lowest = after.iter().min().copied().unwrap_or(0);
            assert!(raised <= lowest + 1, "{counts:?} + {n} -> {after:?}");
        }
    }
}
