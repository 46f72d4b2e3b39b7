//! The host's side of leases: until when it may run what is strict. Pure: whoever holds it says what time it is, by a
//! clock that goes on while the machine sleeps.

use proto::fault::{Fault, built_in};
use proto::v1 as pb;
use std::collections::VecDeque;

/// Heartbeats that a lease may come for; a later answer is too late.
const SENT_MAX: usize = 64;
/// So long before the end of its lease a host begins to stop what is strict.
pub const STOP_MS: u64 = 1_500;

#[derive(Debug, Default)]
pub struct Lease {
    /// Heartbeats, and when each was sent.
    sent: VecDeque<(u64, u64)>,
    until_ms: u64,
    /// What has to be stored for it to count.
    generation: u64,
}

impl Lease {
    /// A heartbeat is about to be sent.
    pub fn sent(&mut self, seq: u64, now_ms: u64) {
        if self.sent.len() >= SENT_MAX {
            self.sent.pop_front();
        }
        self.sent.push_back((seq, now_ms));
    }

    /// Takes a lease for a heartbeat of `boot`, or says why not. One that ends sooner than the one there is changes nothing.
    pub fn grant(&mut self, boot: &str, lease: &pb::AskLease) -> Result<(), String> {
        if lease.boot != boot {
            return Err("it is for an earlier start of this host".to_owned());
        }
        let Some((_, sent_ms)) = self.sent.iter().find(|(seq, _)| *seq == lease.seq) else {
            return Err(format!("it is for heartbeat {}, which is too long ago", lease.seq));
        };
        let until_ms = sent_ms + u64::from(lease.lease_ms);
        if until_ms > self.until_ms {
            (self.until_ms, self.generation) = (until_ms, lease.generation);
        }
        Ok(())
    }

    /// Whether what is strict may run, when the assignment of `generation` is stored.
    pub fn holds(&self, now_ms: u64, generation: u64) -> bool {
        let stored = generation >= self.generation || built_in(Fault::LeaseForOldContent);
        now_ms + STOP_MS < self.until_ms && stored || built_in(Fault::LeaseIgnored)
    }

    /// Until then at most.
    pub fn until_ms(&self) -> u64 {
        self.until_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(boot: &str, seq: u64, generation: u64, lease_ms: u32) -> pb::AskLease {
        pb::AskLease { boot: boot.into(), seq, generation, lease_ms }
    }

    #[test]
    fn it_counts_from_the_heartbeat_and_never_ends_sooner() {
        let mut held = Lease::default();
        assert!(!held.holds(0, 0));
        held.sent(1, 1_000);
        held.sent(2, 3_000);
        held.grant("b", &lease("b", 2, 7, 9_000)).unwrap();
        assert_eq!(held.until_ms(), 12_000);
        assert!(held.holds(10_499, 7) && !held.holds(10_500, 7));
        assert!(!held.holds(5_000, 6), "what it shall run now is not stored");
        held.grant("b", &lease("b", 1, 7, 9_000)).unwrap();
        assert_eq!(held.until_ms(), 12_000, "an older one arrives later");
        assert!(held.grant("a", &lease("b", 2, 7, 9_000)).unwrap_err().contains("earlier start"));
        assert!(held.grant("b", &lease("b", 3, 7, 9_000)).unwrap_err().contains("heartbeat 3"));
        for seq in 3..200 {
            held.sent(seq, 3_000 + seq);
        }
        assert!(held.grant("b", &lease("b", 100, 7, 9_000)).is_err());
    }
}
