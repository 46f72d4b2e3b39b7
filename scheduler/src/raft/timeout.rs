//! How long a member waits for a leader before it seeks to be one: drawn from numbers that differ from member to member,
//! so that two seldom do so at once. Pure: the same numbers, the same time.

/// Ticks from `base` on, and below half as many more. More would make them differ more, and everybody wait for it: members
/// that draw the same still differ in when their ticks are.
pub(super) fn draw(base: usize, from: &[u64]) -> usize {
    let mixed = from.iter().fold(0, |mixed, number| mix(mixed ^ number));
    let span = (base / 2).max(1);
    base + usize::try_from(mixed % span as u64).expect("below a usize")
}

/// SplitMix64 (Steele, Lea, Flood 2014): one step, as a hash.
fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::draw;

    #[test]
    fn members_and_terms_differ_and_stay_within_bounds() {
        let drawn: Vec<usize> = (1..=200).map(|n| draw(20, &[7, n % 5, 1, n])).collect();
        assert!(drawn.iter().all(|ticks| (20..30).contains(ticks)));
        assert!((20..30).all(|ticks| drawn.contains(&ticks)), "{drawn:?}");
        assert_eq!(draw(10, &[1, 2]), draw(10, &[1, 2]));
        assert_eq!(draw(1, &[1, 2]), 1);
    }
}
