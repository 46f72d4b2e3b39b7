//! One revision of an actor on this host: linked once, then a fresh instance per invocation, as many at once as it has
//! replicas here, each within its limits.

use super::dynamic::{self, Failed};
use super::gate::{Closed, Entry, Gate, Permit};
use super::module::{Export, Module, without_version};
use super::output::Log;
use super::state::{Env, HEADER_BYTES_MAX, Refused, State};
use super::wasi::{HttpGrant, forbidden_headers};
use super::{Engine, Error, glue};
use crate::call::{CallError, LinkContext, Serve};
use crate::capability::{Imports, LogSink};
use crate::value::{decode_vals, encode_vals};
use bytes::Bytes;
use proto::app::{Grants, Limits, Name};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout_at;
use wasmtime::component::{InstancePre, Val};
use wasmtime::{PoolConcurrencyLimitError, Store, Trap, WasmBacktrace};
use wasmtime_wasi::I32Exit;
use wasmtime_wasi_http::WasiHttpCtx;
use wasmtime_wasi_http::p2::bindings::ProxyPre;

/// What an actor is to run as.
pub struct Spec {
    pub app: Name,
    pub actor: Name,
    pub revision: u64,
    /// Invocations that may run at once.
    pub replicas: u32,
    pub config: BTreeMap<String, String>,
    pub grants: Grants,
    pub limits: Limits,
    pub imports: Arc<dyn Imports>,
    pub logs: Arc<dyn LogSink>,
}

/// Counts since the actor was prepared, and what it does now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Invocations asked for.
    pub requests: u64,
    /// Those that ended with an error: refused, trapped, out of time.
    pub errors: u64,
    pub in_flight: u32,
    pub queued: u32,
}

/// A linked actor. Dropping it leaves running invocations alone.
pub struct Actor {
    pub(super) shared: Arc<Shared>,
    pub(super) proxy: Option<ProxyPre<State>>,
    pre: InstancePre<State>,
    module: Arc<Module>,
    revision: u64,
}

/// What an invocation needs that may outlive the call that began it.
pub(super) struct Shared {
    pub(super) env: Arc<Env>,
    engine: Engine,
    gate: Arc<Gate>,
    requests: AtomicU64,
    pub(super) errors: AtomicU64,
}

impl Actor {
    pub(super) fn new(engine: &Engine, module: &Arc<Module>, spec: Spec) -> Result<Self, Error> {
        let inner = &engine.inner;
        let (replicas, revision) = (spec.replicas, spec.revision);
        let env = env(engine, spec)?;
        let mut linker = inner.wasi.clone();
        module.link(&inner.engine, &mut linker, &env.label)?;
        let refused = |e: wasmtime::Error| Error::Link { actor: env.label.clone(), reason: format!("{e:#}") };
        let pre = linker.instantiate_pre(&module.component).map_err(refused)?;
        let proxy = match module.exports.contains_key(HANDLER) {
            true => Some(ProxyPre::new(pre.clone()).map_err(refused)?),
            false => None,
        };
        let shared = Shared {
            env: Arc::new(env),
            engine: engine.clone(),
            gate: Gate::new(replicas),
            requests: AtomicU64::new(0),
            errors: AtomicU64::new(0),
        };
        Ok(Self { shared: Arc::new(shared), proxy, pre, module: module.clone(), revision })
    }

    /// Calls an exported function with arguments in WAVE text (`"k", 3`); gives the results as WAVE text. `interface`
    /// is with or without version, "" for functions outside of one.
    pub async fn call_wave(&self, interface: &str, function: &str, args: &str) -> Result<String, CallError> {
        self.shared.count(self.try_wave(interface, function, args).await)
    }

    /// Interfaces it exports, without version.
    pub fn exports(&self) -> Vec<String> {
        self.module.exports()
    }

    pub fn revision(&self) -> u64 {
        self.revision
    }

    pub fn stats(&self) -> Stats {
        let (in_flight, queued) = self.shared.gate.len();
        Stats {
            requests: self.shared.requests.load(Ordering::Relaxed),
            errors: self.shared.errors.load(Ordering::Relaxed),
            in_flight,
            queued: u32::try_from(queued).unwrap_or(u32::MAX),
        }
    }

    /// More take effect at once, fewer as the running invocations end.
    pub fn set_replicas(&self, replicas: u32) {
        self.shared.gate.set_limit(replicas);
    }

    /// Refuses new invocations and waits for those it has, at most until `deadline`. True if none is left.
    pub async fn drain(&self, deadline: Duration) -> bool {
        self.shared.gate.close();
        tokio::time::timeout(deadline, self.shared.gate.idle()).await.is_ok()
    }

    async fn try_wave(&self, interface: &str, function: &str, args: &str) -> Result<String, CallError> {
        let export = self.export(interface, function)?;
        self.check_plain(export, interface, function)?;
        let params = dynamic::parse_wave(function, args, &export.params)?;
        let results = Box::pin(self.call(export, &params, None, Entering::First)).await?;
        dynamic::wave_text(&results)
    }

    async fn try_serve(
        &self,
        link: &LinkContext,
        interface: &str,
        function: &str,
        params: Bytes,
    ) -> Result<Bytes, CallError> {
        let export = self.export(interface, function)?;
        if let Some(known) = glue::keystore_function(without_version(interface), function) {
            let call = known.read(params)?;
            return Box::pin(self.call_keystore(export, call, link.deadline)).await;
        }
        self.check_plain(export, interface, function)?;
        let params = decode_vals(&params, &export.params)?;
        let results = Box::pin(self.call(export, &params, link.deadline, Entering::Nested)).await?;
        encode_vals(&results, &export.results)
    }

    fn export(&self, interface: &str, function: &str) -> Result<&Export, CallError> {
        let (label, exports) = (&self.shared.env.label, &self.module.exports);
        let of_itself = interface.is_empty();
        let Some(functions) = exports.get(without_version(interface)) else {
            let what = if of_itself { format!("function {function:?} by itself") } else { format!("{interface:?}") };
            let has = list(exports.keys());
            return Err(CallError::Invalid(format!("actor {label} exports no {what}; it has {has}")));
        };
        functions.get(function).ok_or_else(|| {
            let names = list(functions.keys());
            let whose = if of_itself { format!("actor {label}") } else { format!("{interface} of actor {label}") };
            CallError::Invalid(format!("{whose} has no function {function:?}; it has {names}"))
        })
    }

    fn check_plain(&self, export: &Export, interface: &str, function: &str) -> Result<(), CallError> {
        if !export.typed_only {
            return Ok(());
        }
        let label = &self.shared.env.label;
        Err(CallError::Invalid(format!(
            "{interface}.{function} of actor {label} takes or gives resources: only values can be passed"
        )))
    }

    async fn call(
        &self,
        export: &Export,
        params: &[Val],
        deadline: Option<Duration>,
        entering: Entering,
    ) -> Result<Vec<Val>, CallError> {
        let mut run = self.shared.enter(deadline, entering).await?;
        let mut results = vec![Val::Bool(false); export.results.len()];
        let call = async {
            let instance = self.pre.instantiate_async(&mut run.store).await?;
            let func = instance.get_func(&mut run.store, export.index).ok_or_else(lost)?;
            func.call_async(&mut run.store, params, &mut results).await
        };
        let ended = timeout_at(run.deadline.into(), call).await;
        self.shared.ended(&run, ended)?;
        Ok(results)
    }

    async fn call_keystore(
        &self,
        export: &Export,
        call: glue::KeystoreCall,
        deadline: Option<Duration>,
    ) -> Result<Bytes, CallError> {
        let mut run = self.shared.enter(deadline, Entering::Nested).await?;
        let call = async {
            let instance = self.pre.instantiate_async(&mut run.store).await?;
            let func = instance.get_func(&mut run.store, export.index).ok_or_else(lost)?;
            call.run(&mut run.store, func).await
        };
        let ended = timeout_at(run.deadline.into(), call).await;
        self.shared.ended(&run, ended)
    }
}

/// A week: further ahead, clocks overflow.
const DEADLINE_MS_MAX: u64 = 7 * 24 * 3600 * 1000;
/// Names listed in a message.
const NAMES_MAX: usize = 30;

/// The interface through which HTTP comes in.
pub(super) const HANDLER: &str = "wasi:http/incoming-handler";

fn lost() -> wasmtime::Error {
    wasmtime::Error::msg("the function is not in the instance")
}

fn list<'a>(names: impl Iterator<Item = &'a String>) -> String {
    let names: Vec<_> = names.map(String::as_str).filter(|name| !name.is_empty()).take(NAMES_MAX).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

fn env(engine: &Engine, spec: Spec) -> Result<Env, Error> {
    let label = format!("{}/{}", spec.app, spec.actor);
    let grant = |reason| Error::Grant { actor: label.clone(), reason };
    let mut http_grants = Vec::new();
    for text in &spec.grants.http {
        http_grants.push(HttpGrant::parse(text).ok_or_else(|| {
            grant(format!("{text:?} in grants.http is not a host name, perhaps with a port, perhaps after \"*.\""))
        })?);
    }
    for folder in &spec.grants.folders {
        match std::fs::metadata(&folder.host) {
            Ok(meta) if meta.is_dir() => {}
            Ok(_) => return Err(grant(format!("{} is not a folder", folder.host))),
            Err(e) => return Err(grant(format!("folder {}: {e}", folder.host))),
        }
    }
    let mut http = WasiHttpCtx::new();
    http.set_field_size_limit(HEADER_BYTES_MAX);
    Ok(Env {
        app: spec.app.to_string(),
        actor: spec.actor.to_string(),
        label,
        config: spec.config,
        grants: spec.grants,
        http_grants,
        limits: spec.limits,
        imports: spec.imports,
        logs: spec.logs,
        budget: engine.inner.budget.clone(),
        forbidden: forbidden_headers(),
        http,
    })
}

/// One invocation: what it runs in, and its rights to run. The store goes first, so that its slot is free before
/// another may take it.
pub(super) struct Run {
    pub(super) store: Store<State>,
    pub(super) deadline: Instant,
    _slot: OwnedSemaphorePermit,
    _permit: Permit,
}

/// Who asks. A call from another actor must not wait for a free instance: that actor holds one meanwhile, and all of
/// them could wait for each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entering {
    First,
    Nested,
}

impl Shared {
    /// Waits for a replica and for room on this host, then makes a store. Refuses rather than queue without bound.
    pub(super) async fn enter(&self, asked: Option<Duration>, entering: Entering) -> Result<Run, CallError> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let own = Duration::from_millis(self.env.limits.deadline_ms.min(DEADLINE_MS_MAX));
        let deadline = Instant::now() + asked.map_or(own, |asked| asked.min(own));
        let permit = self.permit(deadline).await?;
        let slot = self.slot(deadline, entering).await?;
        let engine = &self.engine.inner;
        let instance = engine.instances.fetch_add(1, Ordering::Relaxed) + 1;
        let state = State::new(&self.env, instance, deadline).map_err(|e| {
            CallError::Unavailable(format!("actor {}: its grants can not be given: {e:#}", self.env.label))
        })?;
        let mut store = Store::new(&engine.engine, state);
        store.limiter(|state| &mut state.limiter);
        store.set_epoch_deadline(1);
        store.epoch_deadline_async_yield_and_update(1);
        Ok(Run { store, deadline, _slot: slot, _permit: permit })
    }

    async fn permit(&self, deadline: Instant) -> Result<Permit, CallError> {
        let label = &self.env.label;
        let queue_len_max = usize::try_from(self.env.limits.queue_len_max).unwrap_or(usize::MAX);
        match self.gate.enter(queue_len_max) {
            Ok(Entry::Now(permit)) => Ok(permit),
            Ok(Entry::Later(place)) => match timeout_at(deadline.into(), place).await {
                Ok(Ok(permit)) => Ok(permit),
                Ok(Err(_)) => Err(CallError::Unavailable(format!("actor {label} ended while this waited: try again"))),
                Err(_) => Err(CallError::Deadline(format!(
                    "actor {label}: no replica was free within its {} deadline; scale it up or raise limits.deadline",
                    self.deadline_text()
                ))),
            },
            Err(Closed::Full(waiting)) => Err(CallError::Overloaded(format!(
                "actor {label}: {waiting} invocations wait already; scale it up or raise limits.queue"
            ))),
            Err(Closed::Draining) => {
                Err(CallError::Unavailable(format!("actor {label} is being stopped on this host: try again")))
            }
        }
    }

    async fn slot(&self, deadline: Instant, entering: Entering) -> Result<OwnedSemaphorePermit, CallError> {
        let slots = &self.engine.inner.slots;
        if let Ok(slot) = slots.clone().try_acquire_owned() {
            return Ok(slot);
        }
        if entering == Entering::First
            && let Ok(Ok(slot)) = timeout_at(deadline.into(), Semaphore::acquire_owned(slots.clone())).await
        {
            return Ok(slot);
        }
        Err(CallError::Overloaded(format!(
            "actor {}: this host runs {} instances, as many as it can; add hosts or try again",
            self.env.label,
            self.engine.instances_max()
        )))
    }

    fn ended<T>(
        &self,
        run: &Run,
        ended: Result<wasmtime::Result<T>, tokio::time::error::Elapsed>,
    ) -> Result<T, CallError> {
        match ended {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(e)) => Err(self.failed(&run.store, &e)),
            Err(_) => Err(self.late(run.store.data().log())),
        }
    }

    /// Counts what came of an invocation.
    pub(super) fn count<T>(&self, outcome: Result<T, CallError>) -> Result<T, CallError> {
        if outcome.is_err() {
            self.errors.fetch_add(1, Ordering::Relaxed);
        }
        outcome
    }

    /// The invocation ran past its deadline.
    pub(super) fn late(&self, log: &Log) -> CallError {
        let text = format!(
            "actor {} ran past its {} deadline; raise limits.deadline or make it answer sooner",
            self.env.label,
            self.deadline_text()
        );
        log.note("error", &text);
        CallError::Deadline(text)
    }

    fn deadline_text(&self) -> String {
        match self.env.limits.deadline_ms {
            ms if ms % 1000 == 0 => format!("{} s", ms / 1000),
            ms => format!("{ms} ms"),
        }
    }

    /// Why the guest ended, for its caller and its log.
    pub(super) fn failed(&self, store: &Store<State>, e: &wasmtime::Error) -> CallError {
        let error = self.explain(store.data().limiter.refused, e);
        store.data().log().note("error", &error.to_string());
        error
    }

    fn explain(&self, refused: Option<Refused>, e: &wasmtime::Error) -> CallError {
        let label = &self.env.label;
        if let Some(failed) = e.downcast_ref::<Failed>() {
            return failed.for_caller(label);
        }
        if e.is::<PoolConcurrencyLimitError>() {
            return CallError::Overloaded(format!(
                "actor {label}: this host has no room for it now: {}",
                e.root_cause()
            ));
        }
        if let Some(I32Exit(code)) = e.downcast_ref::<I32Exit>() {
            return CallError::Trapped(format!("actor {label} exited with code {code} before it was done"));
        }
        let place = e.downcast_ref::<WasmBacktrace>().map_or(String::new(), place);
        let reason = match e.downcast_ref::<Trap>() {
            Some(trap) => trap.to_string(),
            None => e.root_cause().to_string(),
        };
        let reason = reason.strip_prefix("wasm trap: ").unwrap_or(&reason);
        match refused {
            Some(Refused::Budget) => CallError::Overloaded(format!(
                "actor {label}: the memory of this host for actors is used up; add hosts or try again ({reason}{place})"
            )),
            Some(Refused::Limit) => CallError::Trapped(format!(
                "actor {label} wanted more than its {} of memory; raise limits.memory ({reason}{place})",
                bytes_text(self.env.limits.memory_bytes)
            )),
            Some(Refused::Table) => {
                CallError::Trapped(format!("actor {label} wanted a table over the bound ({reason}{place})"))
            }
            None => CallError::Trapped(format!("actor {label} trapped: {reason}{place}")),
        }
    }
}

/// " in function f", or as much as the component says.
fn place(backtrace: &WasmBacktrace) -> String {
    let Some(frame) = backtrace.frames().first() else { return String::new() };
    match frame.func_name() {
        // Names come from the component: as long as its author likes.
        Some(name) => format!(" in function {}", name.chars().take(120).collect::<String>()),
        None => format!(" in function number {}", frame.func_index()),
    }
}

fn bytes_text(bytes: u64) -> String {
    match bytes {
        b if b % (1 << 20) == 0 => format!("{} MiB", b >> 20),
        b => format!("{b} bytes"),
    }
}

#[async_trait::async_trait]
impl Serve for Actor {
    async fn serve(
        &self,
        link: &LinkContext,
        interface: &str,
        function: &str,
        params: Bytes,
    ) -> Result<Bytes, CallError> {
        self.shared.count(self.try_serve(link, interface, function, params).await)
    }
}
