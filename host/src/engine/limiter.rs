//! Bounds on what one instance may grow: its memories and tables against its actor's limits, its memory also against what
//! all instances of this host may have together. What was refused is remembered, so that the trap which usually follows
//! can be told by its cause.

use super::config;
use super::idle::Idle;
use super::state::Env;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use wasmtime::{ResourceLimiter, Result};

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

/// Sums all memories and tables of an instance against the actor's limits, and memory against what the engine may use.
pub(super) struct Limiter {
    budget: Arc<Budget>,
    idle: Weak<Idle>,
    used: u64,
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
    /// Tables over the actor's own limit.
    Table,
}

impl Limiter {
    pub(super) fn new(env: &Env) -> Self {
        let whole = |n: u32| usize::try_from(n).unwrap_or(usize::MAX);
        Self {
            budget: env.budget.clone(),
            idle: env.idle.clone(),
            used: 0,
            max: env.limits.memory_bytes,
            table_elements: 0,
            table_elements_max: whole(env.limits.table_elements_max),
            instances_max: whole(env.limits.instances_max.min(config::CORE_INSTANCES_MAX)),
            trying: 0,
            refused: None,
        }
    }
}

impl Drop for Limiter {
    fn drop(&mut self) {
        self.budget.give(self.used);
    }
}

impl ResourceLimiter for Limiter {
    fn memory_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> Result<bool> {
        let more = u64::try_from(desired.saturating_sub(current))?;
        if self.used.saturating_add(more) > self.max {
            self.refused = Some(Refused::Limit);
            return Ok(false);
        }
        // Whoever only waits makes room.
        while !self.budget.take(more) {
            if self.idle.upgrade().is_some_and(|idle| idle.evict()) {
                continue;
            }
            self.refused = Some(Refused::Budget);
            return Ok(false);
        }
        self.used += more;
        self.trying = more;
        Ok(true)
    }
    fn memory_grow_failed(&mut self, _: wasmtime::Error) -> Result<()> {
        let more = std::mem::take(&mut self.trying);
        self.used -= more;
        self.budget.give(more);
        Ok(())
    }
    fn table_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> Result<bool> {
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
