//! What one instance carries: its WASI context, its limits, and what it shares with the actor's other instances.

use super::among::Among;
use super::batch::Batch;
use super::granted::Granted;
use super::guard::Seeded;
use super::idle::Idle;
use super::kept::{self, UNCOUNTED_BYTES_MAX};
use super::lane::Spent;
use super::limiter::{Limiter, Share};
use super::output::{Log, Rate};
use super::wasi;
use crate::call::LinkContext;
use crate::capability::{Imports, LogSink};
use crate::holding::Holding;
use crate::origin::Origin;
use proto::app::{Limits, Random};
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Instant;
use tokio::sync::Semaphore;
use wasmtime::Result;
use wasmtime::component::ResourceTable;
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::p2::body::{HostIncomingBody, HostOutgoingBody};
use wasmtime_wasi_http::p2::types::{
    HostFutureIncomingResponse, HostIncomingRequest, HostIncomingResponse, HostOutgoingRequest, HostOutgoingResponse,
    HostResponseOutparam,
};
use wasmtime_wasi_http::{ForbiddenHeaderFilter, WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

/// Handles that one instance may hold: open files, streams, headers, buckets.
pub(super) const RESOURCES_MAX: usize = 1_024;
/// Handles that one instance may keep from one request to the next: its output, its folders.
const KEPT_HANDLES_MAX: usize = 64;
/// Header bytes of one message, as `wasi:http` counts them.
pub(super) const HEADER_BYTES_MAX: usize = 64 * 1024;

/// What all instances of an actor share; made once.
pub(super) struct Env {
    pub(super) app: String,
    pub(super) actor: String,
    /// "shop/cart", for messages.
    pub(super) label: String,
    pub(super) config: BTreeMap<String, String>,
    pub(super) granted: Granted,
    pub(super) limits: Limits,
    /// The right to outgoing requests, and to print.
    pub(super) outgoing: Arc<Semaphore>,
    pub(super) log_rate: Rate,
    pub(super) imports: Arc<dyn Imports>,
    pub(super) logs: Arc<dyn LogSink>,
    pub(super) memory: Share,
    pub(super) holding: Option<Holding>,
    pub(super) idle: Weak<Idle>,
    pub(super) forbidden: ForbiddenHeaderFilter,
    pub(super) http: WasiHttpCtx,
}

/// The data of a store.
pub(super) struct State {
    /// Made when the guest first asks for something of it, which many never do.
    wasi: Option<WasiCtx>,
    begun: Instant,
    http: WasiHttpCtx,
    pub(super) table: ResourceTable,
    hooks: Hooks,
    pub(super) limiter: Limiter,
    pub(super) deadline: Instant,
    pub(super) spent: Arc<Spent>,
    seeded: Option<Seeded>,
    /// Of an instance that many requests are in.
    pub(super) among: Option<Box<Among>>,
    /// Where pages of `wasi:keyvalue` listings go on, for the draft whose cursors are numbers.
    pub(super) cursors: Vec<String>,
    /// It is a program, whose last word is its exit code.
    pub(super) is_batch: bool,
    /// What calls since the last look may have left with the host, at most.
    left: usize,
    /// It left more than it may.
    pub(super) is_over: bool,
}

/// Decides about outgoing HTTP; see `outgoing`.
pub(super) struct Hooks {
    pub(super) env: Arc<Env>,
    pub(super) log: Arc<Log>,
    /// What caused the invocation.
    pub(super) origin: Origin,
}

impl State {
    pub(super) fn new(env: &Arc<Env>, instance: u64, deadline: Instant, batch: Option<Batch>) -> Result<Self> {
        let log = Log::new(env.clone(), instance);
        let begun = Instant::now();
        // Folders can be gone, and a program's caller gave it more: these are seen to at once.
        let wasi = match batch.is_some() || !env.granted.folders.is_empty() {
            true => Some(wasi::context(env, &log, begun, batch.as_ref())?),
            false => None,
        };
        let mut table = ResourceTable::new();
        table.set_max_capacity(RESOURCES_MAX);
        Ok(Self {
            wasi,
            begun,
            http: env.http.clone(),
            table,
            hooks: Hooks { env: env.clone(), log, origin: Origin::default() },
            limiter: Limiter::new(env),
            deadline,
            spent: Arc::default(),
            seeded: None,
            among: None,
            cursors: Vec::new(),
            is_batch: batch.is_some(),
            left: 0,
            is_over: false,
        })
    }

    /// A call may leave so much with the host. Once that comes to much, it is seen what is there.
    pub(super) fn leaves(&mut self, bytes: usize) {
        self.left += bytes;
        if self.left > UNCOUNTED_BYTES_MAX {
            self.look();
        }
    }

    fn look(&mut self) {
        self.left = 0;
        let handles = self.table.iter_mut().map(|handle| kept::weight(handle)).sum::<usize>();
        let kept = handles + self.cursors.iter().map(|key| key.len() + size_of::<String>()).sum::<usize>();
        if !self.limiter.keep(u64::try_from(kept).unwrap_or(u64::MAX)) {
            // It ends when the guest goes on; until then nothing is added.
            self.is_over = true;
            self.http.set_field_size_limit(0);
            self.table.set_max_capacity(0);
        }
    }
    /// Another request is in this instance, until `deadline`.
    pub(super) fn joined(&mut self, deadline: Instant) {
        self.deadline = self.deadline.max(deadline);
        self.spent.forget();
        self.log().again();
    }

    /// For another request to the same instance: times and counts begin anew, what the guest has it keeps.
    pub(super) fn renew(&mut self, deadline: Instant) {
        self.deadline = deadline;
        self.spent = Arc::default();
        self.log().begin();
    }

    /// Whether nothing of the request that was answered is left: no message half read or half written, no other request
    /// under way, no limit that was hit. Only then may the instance have another.
    pub(super) fn is_done(&mut self) -> bool {
        let mut handles = 0;
        let is_left = self.table.iter_mut().any(|handle| {
            handles += 1;
            handle.is::<HostIncomingRequest>()
                || handle.is::<HostIncomingBody>()
                || handle.is::<HostOutgoingResponse>()
                || handle.is::<HostResponseOutparam>()
                || handle.is::<HostOutgoingBody>()
                || handle.is::<HostOutgoingRequest>()
                || handle.is::<HostFutureIncomingResponse>()
                || handle.is::<HostIncomingResponse>()
        });
        !is_left && handles <= KEPT_HANDLES_MAX && self.limiter.refused.is_none()
    }

    pub(super) fn env(&self) -> &Arc<Env> {
        &self.hooks.env
    }
    pub(super) fn log(&self) -> &Arc<Log> {
        &self.hooks.log
    }
    pub(super) fn origin(&self) -> &Origin {
        &self.hooks.origin
    }
    /// Says what caused the invocation that begins; its lines and calls say so from then on.
    pub(super) fn caused_by(&mut self, origin: Origin) {
        self.log().works_for(origin.request_id.clone());
        self.hooks.origin = origin;
    }
    /// The numbers of a seeded actor.
    pub(super) fn seeded(&mut self) -> &mut Seeded {
        let seed = match self.env().granted.grants.random {
            Some(Random::Seed(seed)) => seed,
            _ => 0,
        };
        self.seeded.get_or_insert_with(|| Seeded::new(seed))
    }
    /// On whose behalf a call over the link `name` is made now.
    pub(super) fn link_context(&self, name: &str) -> LinkContext {
        LinkContext {
            app: self.env().app.clone(),
            consumer: self.env().actor.clone(),
            name: name.to_owned(),
            config: BTreeMap::new(),
            deadline: Some(self.deadline.saturating_duration_since(Instant::now())),
            origin: self.hooks.origin.clone(),
        }
    }
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        let Hooks { env, log, .. } = &self.hooks;
        let make = || wasi::context(env, log, self.begun, None).expect("without folders nothing in it can fail");
        WasiCtxView { ctx: self.wasi.get_or_insert_with(make), table: &mut self.table }
    }
}

impl WasiHttpView for State {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        self.leaves(kept::CALL_BYTES);
        WasiHttpCtxView { ctx: &mut self.http, table: &mut self.table, hooks: &mut self.hooks }
    }
}
