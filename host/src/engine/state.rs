//! What one instance carries: its WASI context, its limits, and what it shares with the actor's other instances.

use super::output::Log;
use super::wasi::HttpGrant;
use super::{config, wasi};
use crate::call::LinkContext;
use crate::capability::{Imports, LogSink};
use proto::app::{Grants, Limits};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use wasmtime::component::ResourceTable;
use wasmtime::{ResourceLimiter, Result};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::{ForbiddenHeaderFilter, WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

/// Handles that one instance may hold: open files, streams, headers, buckets.
const RESOURCES_MAX: usize = 10_000;
/// Header bytes of one message, as `wasi:http` counts them.
pub(super) const HEADER_BYTES_MAX: usize = 64 * 1024;

/// What all instances of an actor share; made once.
pub(super) struct Env {
    pub(super) app: String,
    pub(super) actor: String,
    /// "shop/cart", for messages.
    pub(super) label: String,
    pub(super) config: BTreeMap<String, String>,
    pub(super) grants: Grants,
    pub(super) http_grants: Vec<HttpGrant>,
    pub(super) limits: Limits,
    pub(super) imports: Arc<dyn Imports>,
    pub(super) logs: Arc<dyn LogSink>,
    pub(super) budget: Arc<Budget>,
    pub(super) forbidden: ForbiddenHeaderFilter,
    pub(super) http: WasiHttpCtx,
}

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

/// The data of a store.
pub(super) struct State {
    wasi: WasiCtx,
    http: WasiHttpCtx,
    pub(super) table: ResourceTable,
    hooks: Hooks,
    pub(super) limiter: Limiter,
    pub(super) deadline: Instant,
    /// Where pages of `wasi:keyvalue` listings go on, for the draft whose cursors are numbers.
    pub(super) cursors: Vec<String>,
}

/// Decides about outgoing HTTP; see `wasi`.
pub(super) struct Hooks {
    pub(super) env: Arc<Env>,
    pub(super) log: Arc<Log>,
}

impl State {
    pub(super) fn new(env: &Arc<Env>, instance: u64, deadline: Instant) -> Result<Self> {
        let log = Log::new(env.clone(), instance);
        let mut table = ResourceTable::new();
        table.set_max_capacity(RESOURCES_MAX);
        Ok(Self {
            wasi: wasi::context(&env.grants, &log)?,
            http: env.http.clone(),
            table,
            hooks: Hooks { env: env.clone(), log },
            limiter: Limiter::new(env),
            deadline,
            cursors: Vec::new(),
        })
    }
    pub(super) fn env(&self) -> &Arc<Env> {
        &self.hooks.env
    }
    pub(super) fn log(&self) -> &Arc<Log> {
        &self.hooks.log
    }
    /// On whose behalf a call over the link `name` is made now.
    pub(super) fn link_context(&self, name: &str) -> LinkContext {
        LinkContext {
            app: self.env().app.clone(),
            consumer: self.env().actor.clone(),
            name: name.to_owned(),
            config: BTreeMap::new(),
            deadline: Some(self.deadline.saturating_duration_since(Instant::now())),
        }
    }
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl WasiHttpView for State {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView { ctx: &mut self.http, table: &mut self.table, hooks: &mut self.hooks }
    }
}

/// Sums all memories of an instance against the actor's limit, and against what the engine may use.
pub(super) struct Limiter {
    budget: Arc<Budget>,
    used: u64,
    max: u64,
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
    /// A table over its bound.
    Table,
}

impl Limiter {
    fn new(env: &Env) -> Self {
        Self { budget: env.budget.clone(), used: 0, max: env.limits.memory_bytes, trying: 0, refused: None }
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
        if !self.budget.take(more) {
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
    fn table_growing(&mut self, _: usize, desired: usize, _: Option<usize>) -> Result<bool> {
        let fits = desired <= config::TABLE_ELEMENTS_MAX;
        if !fits {
            self.refused = Some(Refused::Table);
        }
        Ok(fits)
    }
    fn instances(&self) -> usize {
        config::CORE_INSTANCES_MAX as usize
    }
    fn tables(&self) -> usize {
        config::TABLES_MAX as usize
    }
    fn memories(&self) -> usize {
        config::MEMORIES_MAX as usize
    }
}
