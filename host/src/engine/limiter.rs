//! Bounds on what one instance may grow: its memories and tables against its actor's limits, its memory also against what
//! all instances of this host may have together, of which an actor may take more only while it has at most as much as is
//! free. What was refused is remembered, so that the trap which usually follows can be told by its cause.

use super::config;
use super::state::Env;
use crate::fair::is_within_share;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use wasmtime::ResourceLimiter;

/// Memory of all instances of this engine together.
pub(super) struct Budget {
    used: AtomicU64,
    max: u64,
}

impl Budget {
    pub(super) fn new(max: u64) -> Arc<Self> {
        Arc::new(Self { used: AtomicU64::new(0), max })
    }
    pub(super) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }
    fn take(&self, bytes: u64) -> bool {
        let before = self.used.fetch_add(bytes, Ordering::Relaxed);
        let fits = before.saturating_add(bytes) <= self.max;
        if !fits {
            self.give(bytes);
        }
        fits
    }
    fn give(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// What the instances of one actor have of it.
pub(super) struct Share {
    budget: Arc<Budget>,
    held: AtomicU64,
}

impl Share {
    pub(super) fn of(budget: &Arc<Budget>) -> Self {
        Self { budget: budget.clone(), held: AtomicU64::new(0) }
    }
    pub(super) fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }
    fn take(&self, bytes: u64) -> Result<(), Refused> {
        let free = self.budget.max.saturating_sub(self.budget.used());
        match (is_within_share(self.held(), free), free > 0) {
            (false, true) => Err(Refused::Share),
            (true, _) if self.budget.take(bytes) => {
                self.held.fetch_add(bytes, Ordering::Relaxed);
                Ok(())
            }
            _ => Err(Refused::Budget),
        }
    }
    fn give(&self, bytes: u64) {
        self.held.fetch_sub(bytes, Ordering::Relaxed);
        self.budget.give(bytes);
    }
}

/// Sums all memories and tables of an instance against the actor's limits, and memory against what the engine may use.
pub(super) struct Limiter {
    env: Arc<Env>,
    /// All that it has, and what of it the host keeps for it.
    used: u64,
    kept: u64,
    max: u64,
    table_elements: usize,
    table_elements_max: usize,
    instances_max: usize,
    /// The growth that is being tried, so that it can be taken back.
    trying: u64,
    pub(super) refused: Option<Refused>,
}

/// What was asked for and not given; the guest will probably trap on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// Over the actor's own limit.
    Limit,
    /// The host has no more.
    Budget,
    /// It has as much as the host has left for all others.
    Share,
    /// Tables over the actor's own limit.
    Table,
}

impl Limiter {
    pub(super) fn new(env: &Arc<Env>) -> Self {
        let whole = |n: u32| usize::try_from(n).unwrap_or(usize::MAX);
        Self {
            env: env.clone(),
            used: 0,
            kept: 0,
            max: env.limits.memory_bytes,
            table_elements: 0,
            table_elements_max: whole(env.limits.table_elements_max),
            instances_max: whole(env.limits.instances_max.min(config::CORE_INSTANCES_MAX)),
            trying: 0,
            refused: None,
        }
    }

    /// The host keeps so much for the instance now; whether it may.
    pub(super) fn keep(&mut self, bytes: u64) -> bool {
        let before = std::mem::replace(&mut self.kept, bytes);
        if let Some(less) = before.checked_sub(bytes) {
            self.used -= less;
            self.env.memory.give(less);
            return true;
        }
        let may = self.take(bytes - before);
        if !may {
            self.kept = before;
        }
        may
    }

    /// What a call under way passes on is no memory of the instance, but of the host's.
    pub(super) fn hold(&mut self, bytes: usize) -> Result<Held, Refused> {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let taken = self.take_of_host(bytes);
        taken.map(|()| Held { env: self.env.clone(), bytes }).inspect_err(|refused| self.refused = Some(*refused))
    }

    fn take(&mut self, more: u64) -> bool {
        let taken = match self.used.saturating_add(more) > self.max {
            true => Err(Refused::Limit),
            false => self.take_of_host(more),
        };
        match taken {
            Ok(()) => self.used += more,
            Err(refused) => self.refused = Some(refused),
        }
        taken.is_ok()
    }

    fn take_of_host(&self, more: u64) -> Result<(), Refused> {
        loop {
            let taken = self.env.memory.take(more);
            // Whoever only waits makes room.
            if taken.is_ok() || !self.env.idle.upgrade().is_some_and(|idle| idle.evict()) {
                return taken;
            }
        }
    }
}

impl Drop for Limiter {
    fn drop(&mut self) {
        self.env.memory.give(self.used);
    }
}

/// Memory that a call under way needs; given back when dropped.
pub(super) struct Held {
    env: Arc<Env>,
    bytes: u64,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.env.memory.give(self.bytes);
    }
}

impl ResourceLimiter for Limiter {
    fn memory_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        let more = u64::try_from(desired.saturating_sub(current))?;
        if !self.take(more) {
            return Ok(false);
        }
        self.trying = more;
        Ok(true)
    }
    fn memory_grow_failed(&mut self, _: wasmtime::Error) -> wasmtime::Result<()> {
        let more = std::mem::take(&mut self.trying);
        self.used -= more;
        self.env.memory.give(more);
        Ok(())
    }
    fn table_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        let all = self.table_elements.saturating_add(desired.saturating_sub(current));
        let fits = all <= self.table_elements_max && desired <= config::TABLE_ELEMENTS_MAX;
        match fits {
            true => self.table_elements = all,
            false => self.refused = Some(Refused::Table),
        }
        Ok(fits)
    }
    fn instances(&self) -> usize {
        self.instances_max
    }
    fn tables(&self) -> usize {
        config::TABLES_MAX as usize
    }
    fn memories(&self) -> usize {
        config::MEMORIES_MAX as usize
    }
}
