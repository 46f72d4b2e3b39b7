//! How many replicas each share of a scaler gets, by wadm's rules, and which of the replicas that are there already
//! count for which share.

use proto::app::Spread;

/// wadm's spreadscaler: shares ordered by weight, heaviest first (stable), each gets its part rounded down; what
/// rounding left over goes one each to the heaviest. Gives (index in `spread`, replicas). Without shares there is one
/// that has no requirements: index 0.
pub(super) fn shares(replicas: u32, spread: &[Spread]) -> Vec<(usize, u64)> {
    let replicas = u64::from(replicas);
    if spread.is_empty() {
        return vec![(0, replicas)];
    }
    let mut order: Vec<usize> = (0..spread.len()).collect();
    order.sort_by_key(|i| std::cmp::Reverse(spread[*i].weight));
    // All weights 0 would divide by nothing: then they are equal.
    let all_zero = spread.iter().all(|s| s.weight == 0);
    let weight = |i: usize| if all_zero { 1 } else { u64::from(spread[i].weight) };
    let total: u64 = order.iter().map(|i| weight(*i)).sum();
    let mut shares: Vec<(usize, u64)> = order.iter().map(|i| (*i, replicas * weight(*i) / total)).collect();
    let mut rest = replicas - shares.iter().map(|s| s.1).sum::<u64>();
    for share in &mut shares {
        if rest == 0 {
            break;
        }
        share.1 += 1;
        rest -= 1;
    }
    shares
}

/// wadm's daemonscaler: `replicas` for each share whose requirements the host meets.
pub fn daemon_target(replicas: u32, shares_met: usize) -> u64 {
    // Nobody asks for more on one host than for one component in all.
    (u64::from(replicas) * shares_met as u64).min(u64::from(proto::app::REPLICAS_MAX))
}

/// Distributes what is there (`supply`: a set of shares that it can count for, as bits, and a number) over the
/// shares' `need`, as much as can be. Gives what each supply has left over, and what each share still needs.
/// Augmenting paths over at most 64 shares; supplies with the same bits are best merged before.
pub(super) fn attribute(supply: &[(u64, u64)], need: &[u64]) -> (Vec<u64>, Vec<u64>) {
    let shares = need.len();
    let mut left: Vec<u64> = supply.iter().map(|s| s.1).collect();
    let mut open = need.to_vec();
    let mut flow = vec![vec![0u64; shares]; supply.len()];
    for from in 0..supply.len() {
        while left[from] > 0 {
            let Some(path) = augment(supply, &flow, &open, from) else { break };
            push(&mut flow, &mut open, &mut left, from, &path);
        }
    }
    (left, open)
}

/// A way from supply `from` to a share that is still open: shares taken, with the supply that is moved on from each.
fn augment(supply: &[(u64, u64)], flow: &[Vec<u64>], open: &[u64], from: usize) -> Option<Vec<(usize, usize)>> {
    // (supply, share, index of the step before)
    let mut steps: Vec<(usize, usize, Option<usize>)> = Vec::new();
    let mut seen = vec![false; open.len()];
    let mut at = 0;
    let reach = |supply_at: usize, before: Option<usize>, seen: &mut Vec<bool>, steps: &mut Vec<_>| {
        for (share, was_seen) in seen.iter_mut().enumerate().take(64) {
            if supply[supply_at].0 & (1 << share) != 0 && !*was_seen {
                *was_seen = true;
                steps.push((supply_at, share, before));
            }
        }
    };
    reach(from, None, &mut seen, &mut steps);
    while at < steps.len() {
        let (_, share, _) = steps[at];
        if open[share] > 0 {
            let mut path = Vec::new();
            let mut cursor = Some(at);
            while let Some(i) = cursor {
                path.push((steps[i].0, steps[i].1));
                cursor = steps[i].2;
            }
            path.reverse();
            return Some(path);
        }
        for (other, given) in flow.iter().enumerate() {
            if given[share] > 0 {
                reach(other, Some(at), &mut seen, &mut steps);
            }
        }
        at += 1;
    }
    None
}

fn push(flow: &mut [Vec<u64>], open: &mut [u64], left: &mut [u64], from: usize, path: &[(usize, usize)]) {
    let last = path.last().expect("a path has a step").1;
    let mut amount = left[from].min(open[last]);
    for pair in path.windows(2) {
        amount = amount.min(flow[pair[1].0][pair[0].1]);
    }
    for (i, (supply, share)) in path.iter().enumerate() {
        flow[*supply][*share] += amount;
        if let Some((next, _)) = path.get(i + 1) {
            flow[*next][*share] -= amount;
        }
    }
    left[from] -= amount;
    open[last] -= amount;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(weights: &[u32]) -> Vec<Spread> {
        weights.iter().map(|w| Spread { name: String::new(), requirements: Default::default(), weight: *w }).collect()
    }

    #[test]
    fn shares_are_wadms() {
        let check = |n, weights: &[u32], want: &[(usize, u64)]| assert_eq!(shares(n, &spread(weights)), want);
        check(9, &[], &[(0, 9)]);
        check(10, &[80, 20], &[(0, 8), (1, 2)]);
        check(10, &[20, 80], &[(1, 8), (0, 2)]);
        // 13 by thirds: rounding leaves one over, the first of the heaviest gets it.
        check(13, &[100, 100, 100], &[(0, 5), (1, 4), (2, 4)]);
        check(103, &[33, 42, 12], &[(1, 50), (0, 39), (2, 14)]);
        check(5, &[0, 0], &[(0, 3), (1, 2)]);
        check(1, &[100, 100], &[(0, 1), (1, 0)]);
        check(0, &[7], &[(0, 0)]);
    }

    #[test]
    fn what_is_there_counts_wherever_it_can() {
        // Share 0: any host; share 1: paris only. Paris has 3, the other host 1.
        assert_eq!(attribute(&[(0b11, 3), (0b01, 1)], &[2, 2]), (vec![0, 0], vec![0, 0]));
        // Greedy would give the flexible supply away to share 0 first: a path moves it.
        assert_eq!(attribute(&[(0b11, 2), (0b01, 2)], &[2, 2]), (vec![0, 0], vec![0, 0]));
        assert_eq!(attribute(&[(0b01, 5)], &[2, 2]), (vec![3], vec![0, 2]));
        assert_eq!(attribute(&[(0b00, 5)], &[2]), (vec![5], vec![2]));
    }
}
