//! Heartbeats, counted: which one is next, whether the inventory goes along, and the lease that comes for one. Pure: whoever
//! holds it says what runs and what time it is.

use crate::lease::Lease;
use proto::v1 as pb;

/// Every so many beats the inventory goes along although it did not change.
const FULL_EVERY: u64 = 10;

/// What a heartbeat tells beside the inventory.
#[derive(Debug, Default)]
pub struct Now {
    /// Term and generation of what is stored.
    pub fence: (u64, u64),
    pub leaving: bool,
    /// Messages dropped since the start.
    pub dropped: u64,
    pub load: Option<pb::Load>,
    /// How far what is being brought up is.
    pub starting: Vec<pb::Starting>,
}

/// The latest heartbeat, and the lease.
#[derive(Debug, Default)]
pub struct Beats {
    beat: pb::Beat,
    lease: Lease,
}

impl Beats {
    pub fn new(lattice: String, host: String, boot: String) -> Self {
        Self { beat: pb::Beat { lattice, host, boot, ..Default::default() }, lease: Lease::default() }
    }

    pub fn boot(&self) -> &str {
        &self.beat.boot
    }

    /// What the latest told: the term and generation of what was stored.
    pub fn fence(&self) -> (u64, u64) {
        (self.beat.term, self.beat.generation)
    }

    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    /// Takes a lease, or says why not.
    pub fn grant(&mut self, lease: &pb::AskLease) -> Result<(), String> {
        self.lease.grant(&self.beat.boot, lease)
    }

    /// Whether the next one tells the inventory although it did not change.
    pub fn is_full_next(&self) -> bool {
        is_full(self.beat.seq + 1)
    }

    /// The latest with its inventory, under a number of its own.
    pub fn latest(&mut self, now_ms: u64) -> pb::Beat {
        self.count(now_ms);
        self.beat.clone()
    }

    /// The next one to publish. Without an inventory, that of the one before holds.
    pub fn next(&mut self, inventory: Option<Vec<pb::Running>>, now: Now, now_ms: u64) -> pb::Beat {
        let first = self.beat.seq == 0;
        let before = self.beat.inventory.take().unwrap_or_default();
        let changed = first || inventory.as_ref().is_some_and(|now| is_change(&before.items, now));
        if changed {
            self.beat.inventory_version += 1;
        }
        self.count(now_ms);
        (self.beat.term, self.beat.generation) = now.fence;
        self.beat.leaving = now.leaving;
        self.beat.dropped = now.dropped;
        self.beat.load = now.load;
        self.beat.starting = now.starting;
        let mut beat = self.beat.clone();
        let items = inventory.map_or(before, |items| pb::Inventory { items });
        if changed || is_full(beat.seq) {
            beat.inventory = Some(items.clone());
        }
        self.beat.inventory = Some(items);
        beat
    }

    /// The next number: a lease that comes for it counts from now.
    fn count(&mut self, now_ms: u64) {
        self.beat.seq += 1;
        self.lease.sent(self.beat.seq, now_ms);
    }
}

fn is_full(seq: u64) -> bool {
    seq.is_multiple_of(FULL_EVERY)
}

/// Whether more than counters differs.
fn is_change(before: &[pb::Running], now: &[pb::Running]) -> bool {
    let same = |a: &pb::Running, b: &pb::Running| {
        let pb::Running { app, component, revision, replicas, state, error, requests: _, errors: _ } = a;
        (app, component, revision, replicas, state, error)
            == (&b.app, &b.component, &b.revision, &b.replicas, &b.state, &b.error)
    };
    before.len() != now.len() || !before.iter().zip(now).all(|(a, b)| same(a, b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_inventory_goes_along_when_it_changed_and_now_and_then() {
        let mut beats = Beats::new("l".into(), "h".into(), "b".into());
        let one = |requests| pb::Running { app: "shop".into(), requests, ..Default::default() };
        let mut next = |items: Option<Vec<pb::Running>>| {
            let beat = beats.next(items, Now::default(), 0);
            (beat.seq, beat.inventory_version, beat.inventory.map(|i| i.items.len()))
        };
        assert_eq!(next(Some(Vec::new())), (1, 1, Some(0)));
        assert_eq!(next(None), (2, 1, None));
        assert_eq!(next(Some(vec![one(1)])), (3, 2, Some(1)));
        assert_eq!(next(Some(vec![one(2)])), (4, 2, None), "counters are no change");
        (5..10).for_each(|seq| assert_eq!(next(None), (seq, 2, None)));
        assert_eq!(next(None), (10, 2, Some(1)));
        let latest = beats.latest(0);
        assert_eq!((latest.seq, latest.inventory_version, latest.inventory.is_some()), (11, 2, true));
    }
}
