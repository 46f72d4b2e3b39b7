//! Who has how many of what there is a bounded number of: connections by the address of the client, WebSockets by the app.
//! One may have a few in any case, and more by the rule of `fair`.

use crate::fair::is_within_share;
use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub(super) struct Shares<K> {
    max: usize,
    /// What each may have, whatever is free.
    each_min: usize,
    inner: Mutex<Held<K>>,
}

struct Held<K> {
    all: usize,
    by: HashMap<K, usize>,
}

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Full {
    All,
    /// This one has so many.
    Share(usize),
}

/// One of them; given back when dropped.
pub(super) struct Place<K: Hash + Eq> {
    shares: Arc<Shares<K>>,
    of: K,
}

impl<K: Hash + Eq + Clone> Shares<K> {
    pub(super) fn new(max: usize, each_min: usize) -> Arc<Self> {
        Arc::new(Self { max, each_min, inner: Mutex::new(Held { all: 0, by: HashMap::new() }) })
    }

    /// A place, if there is one and this one has not its share.
    pub(super) fn take(self: &Arc<Self>, of: K) -> Result<Place<K>, Full> {
        let mut held = self.lock();
        let free = self.max.saturating_sub(held.all);
        if free == 0 {
            return Err(Full::All);
        }
        let has = held.by.get(&of).copied().unwrap_or(0);
        if has >= self.each_min && !is_within_share(has, free) {
            return Err(Full::Share(has));
        }
        held.all += 1;
        held.by.insert(of.clone(), has + 1);
        Ok(Place { shares: self.clone(), of })
    }
}

impl<K> Shares<K> {
    fn lock(&self) -> MutexGuard<'_, Held<K>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Hash + Eq> Drop for Place<K> {
    fn drop(&mut self) {
        let mut held = self.shares.lock();
        held.all -= 1;
        let left = held.by.get_mut(&self.of).map_or(0, |has| {
            *has -= 1;
            *has
        });
        if left == 0 {
            held.by.remove(&self.of);
        }
    }
}

/// Whose address this is: of IPv6 one client has a whole network.
pub(super) fn client(addr: IpAddr) -> IpAddr {
    match addr.to_canonical() {
        IpAddr::V6(addr) => IpAddr::V6(Ipv6Addr::from_bits(addr.to_bits() & !u128::from(u64::MAX))),
        addr => addr,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_may_have_as_many_as_are_free_and_a_few_in_any_case() {
        let shares = Shares::new(20, 3);
        let mut one: Vec<_> = std::iter::from_fn(|| shares.take("one").ok()).collect();
        assert_eq!((one.len(), shares.take("one").err()), (11, Some(Full::Share(11))));
        let two: Vec<_> = std::iter::from_fn(|| shares.take("two").ok()).collect();
        assert_eq!(two.len(), 5);
        let three: Vec<_> = std::iter::from_fn(|| shares.take("three").ok()).collect();
        assert_eq!((three.len(), shares.take("three").err()), (3, Some(Full::Share(3))));
        let four = shares.take("four").ok().unwrap();
        assert_eq!(shares.take("five").err(), Some(Full::All));
        drop((two, three, four));
        assert_eq!(shares.lock().by.len(), 1);
        one.truncate(9);
        assert!(shares.take("one").is_ok());
        drop(one);
        let held = shares.lock();
        assert_eq!((held.all, held.by.len()), (0, 0));
    }

    #[test]
    fn one_client_has_one_address_or_one_network() {
        let of = |text: &str| client(text.parse().unwrap());
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
        assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:ffff::9"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
    }
}
