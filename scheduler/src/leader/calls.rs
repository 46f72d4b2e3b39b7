//! Calls to hosts: one of a kind at a time to each, none again at once after one that failed, and not too many together.

use crate::state::HOSTS_MAX;
use proto::app::HostId;
use std::collections::BTreeMap;

/// Calls to hosts under way at once; the next round goes on with the others.
pub(super) const CALLS_MAX: usize = 256;
/// Calls to hosts that are remembered: those that failed lately are not made again at once.
const BUSY_MAX: usize = 2 * HOSTS_MAX;
/// Until a call that failed is made again.
const AGAIN_MS: u64 = 1_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Call {
    Assign,
    Hello,
    Inventory,
}

/// Hosts with a call under way, or whose last one failed: not before then.
#[derive(Debug, Default)]
pub(super) struct Calls(BTreeMap<(HostId, Call), Option<u64>>);

impl Calls {
    /// Whether a call of this kind may begin: none is under way and the last failure is a while ago.
    pub(super) fn may(&self, host: &HostId, call: Call, now_ms: u64) -> bool {
        match self.0.get(&(host.clone(), call)) {
            None => true,
            Some(None) => false,
            Some(Some(not_before)) => now_ms >= *not_before,
        }
    }

    /// Whether there is room for a question more.
    pub(super) fn has_room(&self) -> bool {
        self.0.len() < BUSY_MAX && self.0.values().filter(|b| b.is_none()).count() < CALLS_MAX
    }

    pub(super) fn begin(&mut self, host: &HostId, call: Call) {
        self.0.insert((host.clone(), call), None);
    }

    /// It did not begin.
    pub(super) fn forget(&mut self, host: &HostId, call: Call) {
        self.0.remove(&(host.clone(), call));
    }

    /// It ended.
    pub(super) fn settle(&mut self, host: HostId, call: Call, ok: bool, now_ms: u64) {
        if ok {
            self.0.remove(&(host, call));
        } else {
            self.0.insert((host, call), Some(now_ms + AGAIN_MS));
        }
    }

    pub(super) fn prune(&mut self, now_ms: u64) {
        self.0.retain(|_, not_before| not_before.is_none_or(|at| now_ms < at));
    }
}
