//! One revision of an actor on this host: linked once, then a fresh instance per invocation or, if it asked for that, one
//! that has answered before; as many at once as it has replicas here, each within its limits.

use super::env::env;
use super::gate::Gate;
use super::invocation::{Entering, Shared, Until};
use super::many::Many;
use super::mapped::{Linked, Mapped, Source};
use super::module::{Export, Module, without_version};
use super::state::State;
use super::{Engine, Error, dynamic, failed, glue, later};
use crate::call::{CallError, LinkContext, Serve};
use crate::capability::{Imports, LogSink};
use crate::holding::Holding;
use crate::metrics::{Count, Taken};
use crate::origin::Origin;
use crate::spans;
use crate::value::{decode_vals, encode_vals};
use bytes::Bytes;
use proto::app::{Grants, Limits, Name};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use wasmtime::component::{Accessor, Val};

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
    /// Of an actor that is strict: nothing of it runs when that is over.
    pub holding: Option<Holding>,
    /// The component's bytes again, should its compiled code be lost.
    pub source: Source,
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
    pub(super) many: Arc<Many>,
    /// Whether it takes HTTP as WASI 0.3 has it.
    is_service: bool,
    mapped: Arc<Mapped>,
    exports: Vec<String>,
    revision: u64,
}

impl Actor {
    pub(super) fn new(engine: &Engine, module: &Arc<Module>, spec: Spec) -> Result<Self, Error> {
        let inner = &engine.inner;
        let (replicas, revision, source) = (spec.replicas, spec.revision, spec.source.clone());
        let env = env(engine, spec)?;
        let mapped = Mapped::new(engine, &env, module, source)?;
        let wasm = module.component.engine().clone();
        let is_service = module.exports.contains_key(later::HANDLER);
        let at_once = at_once(replicas, &env.limits, is_service);
        let number = inner.actors.fetch_add(1, Ordering::Relaxed);
        let call_bytes_max = match module.passes_values() {
            true => VALUES_BYTES_MAX,
            false => usize::try_from(env.limits.memory_bytes).unwrap_or(usize::MAX).min(CALL_BYTES_MAX),
        };
        let shared = Shared {
            env: Arc::new(env),
            engine: engine.clone(),
            is_later: module.is_later(),
            wasm,
            number,
            gate: Gate::new(at_once),
            slots: inner.slots.share(number, module.weight()),
            call_bytes_max,
            habit: Arc::default(),
            requests: AtomicU64::new(0),
            errors: Default::default(),
            took: OnceLock::new(),
        };
        Ok(Self {
            shared: Arc::new(shared),
            many: Arc::default(),
            is_service,
            mapped,
            exports: module.exports(),
            revision,
        })
    }

    /// Calls an exported function with arguments in WAVE text (`"k", 3`); gives the results as WAVE text. `interface`
    /// is with or without version, "" for functions outside of one.
    pub async fn call_wave(&self, interface: &str, function: &str, args: &str) -> Result<String, CallError> {
        let begun = Instant::now();
        let ended = self.try_wave(interface, function, args).await;
        self.shared.ended(begun, ended)
    }

    /// How long invocations took, from being asked to the answer or its head.
    pub fn took(&self) -> Taken {
        self.shared.took.get().map(|took| took.take()).unwrap_or_default()
    }

    /// Those that ended with an error, by `CallError::CODES`.
    pub fn errors(&self) -> [u64; CallError::CODES.len()] {
        self.shared.errors.each_ref().map(Count::get)
    }

    /// Interfaces it exports, without version.
    pub fn exports(&self) -> Vec<String> {
        self.exports.clone()
    }

    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Whether it takes requests: what is strict does only while the host has its lease.
    pub fn may_run(&self) -> bool {
        self.shared.may_run()
    }

    /// Invocations asked for.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }

    pub fn stats(&self) -> Stats {
        let (in_flight, queued) = self.shared.gate.len();
        Stats {
            requests: self.requests(),
            errors: self.errors().iter().sum(),
            in_flight,
            queued: u32::try_from(queued).unwrap_or(u32::MAX),
        }
    }

    /// More take effect at once, fewer as the running invocations end.
    pub fn set_replicas(&self, replicas: u32) {
        let replicas = self.shared.policy().replicas_allowed(replicas);
        self.shared.gate.set_limit(at_once(replicas, &self.shared.env.limits, self.is_service));
    }

    /// Refuses new invocations and waits for those it has, at most until `deadline`. True if none is left.
    pub async fn drain(&self, deadline: Duration) -> bool {
        self.shared.gate.close();
        self.many.close_all();
        self.shared.engine.inner.idle.forget(self.shared.number);
        tokio::time::timeout(deadline, self.shared.gate.idle()).await.is_ok()
    }

    async fn try_wave(&self, interface: &str, function: &str, args: &str) -> Result<String, CallError> {
        let linked = self.linked().await?;
        let export = self.export(&linked, interface, function)?;
        self.check_plain(export, interface, function)?;
        let params = dynamic::parse_wave(function, args, &export.params)?;
        let results = Box::pin(self.call(&linked, export, params, None, Entering::First, Origin::default())).await?;
        dynamic::wave_text(&results)
    }

    async fn try_serve(
        &self,
        link: &LinkContext,
        interface: &str,
        function: &str,
        params: Bytes,
    ) -> Result<Bytes, CallError> {
        let linked = self.linked().await?;
        let export = self.export(&linked, interface, function)?;
        if let Some(known) = glue::keystore_function(without_version(interface), function) {
            let call = known.read(params)?;
            return Box::pin(self.call_keystore(&linked, export, call, link)).await;
        }
        self.check_plain(export, interface, function)?;
        let params = decode_vals(&params, &export.params)?;
        let (deadline, origin) = (link.deadline, link.origin.clone());
        let results = Box::pin(self.call(&linked, export, params, deadline, Entering::Nested, origin)).await?;
        encode_vals(&results, &export.results)
    }

    /// Its code, mapped again if nobody had called it for long.
    pub(super) async fn linked(&self) -> Result<Arc<Linked>, CallError> {
        let Shared { engine, env, .. } = &*self.shared;
        self.mapped
            .get(engine, env)
            .await
            .map_err(|e| CallError::Unavailable(format!("actor {}: its code can not be mapped again: {e}", env.label)))
    }

    pub(super) fn export<'a>(
        &self,
        linked: &'a Linked,
        interface: &str,
        function: &str,
    ) -> Result<&'a Export, CallError> {
        let (label, exports) = (&self.shared.env.label, &linked.module.exports);
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
        linked: &Linked,
        export: &Export,
        params: Vec<Val>,
        deadline: Option<Duration>,
        entering: Entering,
        origin: Origin,
    ) -> Result<Vec<Val>, CallError> {
        let mut run = self.shared.enter(deadline, entering).await?;
        run.store.data_mut().caused_by(origin);
        let held = run.store.data_mut().limiter.hold(dynamic::weight(&params));
        let held = held.map_err(|refused| failed::no_room(&self.shared.env, refused))?;
        let (shared, pre, index) = (self.shared.clone(), linked.pre.clone(), export.index);
        let mut results = vec![Val::Bool(false); export.results.len()];
        let until = Until::of(&run);
        let work = async move {
            let _held = held;
            let call = async {
                let instance = pre.instantiate_async(&mut run.store).await?;
                let func = instance.get_func(&mut run.store, index).ok_or_else(lost)?;
                match shared.is_later {
                    true => {
                        let call = async |by: &Accessor<State>| func.call_concurrent(by, &params, &mut results).await;
                        run.store.run_concurrent(call).await?
                    }
                    false => func.call_async(&mut run.store, &params, &mut results).await,
                }
            };
            match call.await {
                Ok(()) => Ok(results),
                Err(e) => Err(shared.failed(&run.store, &e)),
            }
        };
        self.shared.in_time(until, Box::pin(work)).await
    }

    async fn call_keystore(
        &self,
        linked: &Linked,
        export: &Export,
        call: glue::KeystoreCall,
        link: &LinkContext,
    ) -> Result<Bytes, CallError> {
        let mut run = self.shared.enter(link.deadline, Entering::Nested).await?;
        run.store.data_mut().caused_by(link.origin.clone());
        let (shared, pre, index) = (self.shared.clone(), linked.pre.clone(), export.index);
        let until = Until::of(&run);
        let work = async move {
            let call = async {
                let instance = pre.instantiate_async(&mut run.store).await?;
                let func = instance.get_func(&mut run.store, index).ok_or_else(lost)?;
                call.run(&mut run.store, func).await
            };
            call.await.map_err(|e| shared.failed(&run.store, &e))
        };
        self.shared.in_time(until, Box::pin(work)).await
    }
}

/// Invocations that may run at once: a replica is an instance, and one of WASI 0.3 may have several.
fn at_once(replicas: u32, limits: &Limits, is_service: bool) -> u32 {
    if is_service { replicas.saturating_mul(limits.concurrency) } else { replicas }
}

/// What a guest may pass to the host in one call. Values of a link take many times their own size.
const CALL_BYTES_MAX: usize = 16 * 1024 * 1024;
const VALUES_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Names listed in a message.
const NAMES_MAX: usize = 30;

/// The interface through which HTTP comes in.
pub(super) const HANDLER: &str = "wasi:http/incoming-handler";

pub(super) fn lost() -> wasmtime::Error {
    wasmtime::Error::msg("the function is not in the instance")
}

fn list<'a>(names: impl Iterator<Item = &'a String>) -> String {
    let names: Vec<_> = names.map(String::as_str).filter(|name| !name.is_empty()).take(NAMES_MAX).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

impl Drop for Actor {
    fn drop(&mut self) {
        self.shared.engine.inner.idle.forget(self.shared.number);
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
        let begun = Instant::now();
        let mut span = self.shared.span(|| link.origin.clone(), function);
        let caused;
        let link = match span.is_on() {
            true => {
                caused = LinkContext { origin: spans::caused_by(&span, &link.origin), ..link.clone() };
                &caused
            }
            false => link,
        };
        let ended = self.try_serve(link, interface, function, params).await;
        spans::ended(&mut span, &ended);
        self.shared.ended(begun, ended)
    }
}
