//! One revision of an actor on this host: linked once, then a fresh instance per invocation or, if it asked for that, one
//! that has answered before; as many at once as it has replicas here, each within its limits.

use super::batch::Batch;
use super::env::env;
use super::gate::{Closed, Entry, Gate, Permit};
use super::idle::Warm;
use super::lane::{Habit, Laned, Spent, Work};
use super::many::Many;
use super::mapped::{Linked, Mapped, Source};
use super::module::{Export, Module, without_version};
use super::output::Log;
use super::slots::{self, Slot};
use super::state::{Env, State};
use super::{Engine, Error, config, dynamic, failed, glue, lane, later};
use crate::call::{CallError, LinkContext, Serve};
use crate::capability::{Imports, LogSink};
use crate::holding::Holding;
use crate::metrics::{Count, Histogram, Taken};
use crate::origin::Origin;
use crate::spans::{self, Kind, Span};
use crate::value::{decode_vals, encode_vals};
use bytes::Bytes;
use proto::app::{Grants, Limits, Name};
use proto::policy::Policy;
use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::time::timeout_at;
use wasmtime::component::{Accessor, Val};
use wasmtime::{Store, UpdateDeadline};
use wasmtime_wasi_http::p2::bindings::Proxy;

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

/// What an invocation needs that may outlive the call that began it.
pub(super) struct Shared {
    pub(super) env: Arc<Env>,
    engine: Engine,
    /// What its component was compiled by and for.
    wasm: wasmtime::Engine,
    pub(super) is_later: bool,
    /// Among all actors that this engine has ever prepared.
    number: u64,
    gate: Arc<Gate>,
    /// Its instances among those that may be alive.
    slots: Arc<slots::Share>,
    /// What one call may pass to the host.
    call_bytes_max: usize,
    habit: Arc<Habit>,
    requests: AtomicU64,
    /// By `CallError::CODES`.
    errors: [Count; CallError::CODES.len()],
    /// How long invocations took. Made at the first: most actors of a large host are never asked.
    took: OnceLock<Box<Histogram>>,
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
            is_later: !wasmtime::Engine::same(&wasm, &inner.engine),
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
/// Handles of all kinds that one instance may have, those among its own parts included.
const COMPONENT_HANDLES_MAX: usize = 10_000;
/// A week: further ahead, clocks overflow.
const DEADLINE_MS_MAX: u64 = 7 * 24 * 3600 * 1000;
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

/// One invocation: what it runs in, and its rights to run. The store goes first, so that its slot is free before
/// another may take it.
pub(super) struct Run {
    pub(super) store: Store<State>,
    pub(super) deadline: Instant,
    /// Requests that its instance has answered before.
    served: u32,
    slot: Slot,
    _permit: Permit,
    _running: Counted,
}

/// One of the instances that run now: while there are any, the clock ticks faster.
struct Counted(Arc<AtomicU32>);

impl Counted {
    fn new(running: &Arc<AtomicU32>) -> Self {
        running.fetch_add(1, Ordering::Relaxed);
        Self(running.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What is known of a run by whoever waits for it.
pub(super) struct Until {
    pub(super) deadline: Instant,
    pub(super) log: Arc<Log>,
    spent: Arc<Spent>,
}

impl Until {
    pub(super) fn of(run: &Run) -> Self {
        let state = run.store.data();
        Self { deadline: run.deadline, log: state.log().clone(), spent: state.spent.clone() }
    }
}

/// At a tick of the clock, in a guest that computes: it has had all its time, or its turn is over, or it goes on.
fn on_tick(state: &State) -> wasmtime::Result<UpdateDeadline> {
    if state.is_over {
        return Err(failed::KeepsTooMuch.into());
    }
    let spent = state.spent.now();
    if spent > Duration::from_millis(state.env().limits.cpu_ms) {
        return Err(failed::CpuSpent.into());
    }
    Ok(match state.spent.in_back() {
        true => UpdateDeadline::Yield(config::BACK_TURN_TICKS),
        false if spent > lane::TURN => UpdateDeadline::Yield(1),
        false => UpdateDeadline::Continue(1),
    })
}

/// It took too long.
#[derive(Debug)]
pub(super) struct Late;

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
        self.enter_with(asked, entering, None).await
    }

    /// The same, for a program with what its caller gave it.
    pub(super) async fn enter_with(
        &self,
        asked: Option<Duration>,
        entering: Entering,
        batch: Option<Batch>,
    ) -> Result<Run, CallError> {
        let deadline = self.deadline(asked);
        let permit = self.permit(deadline).await?;
        self.fresh(deadline, permit, entering, batch).await
    }

    /// An instance that is no invocation by itself: those in it have their own rights to run.
    pub(super) async fn instance(&self, deadline: Instant) -> Result<Run, CallError> {
        self.fresh(deadline, Permit::none(), Entering::First, None).await
    }

    /// The same for an HTTP request: an instance that waits for one is taken first.
    pub(super) async fn enter_http(&self, asked: Option<Duration>) -> Result<(Run, Option<Proxy>), CallError> {
        let deadline = self.deadline(asked);
        let permit = self.permit(deadline).await?;
        let engine = &self.engine.inner;
        let warm = if self.env.limits.reuse > 1 { engine.idle.take(self.number) } else { None };
        let Some(Warm { mut store, proxy, served, slot }) = warm else {
            return Ok((self.fresh(deadline, permit, Entering::First, None).await?, None));
        };
        store.data_mut().renew(deadline);
        store.set_epoch_deadline(1);
        let running = Counted::new(&engine.running);
        Ok((Run { store, deadline, served, slot, _permit: permit, _running: running }, Some(proxy)))
    }

    /// Keeps an instance that has answered for the next request, if it may have one and nothing is left of this.
    pub(super) fn keep(&self, mut run: Run, proxy: Proxy) {
        let served = run.served.saturating_add(1);
        let is_wanted = self.engine.inner.slots.is_wanted();
        if served < self.env.limits.reuse && !is_wanted && run.store.data_mut().is_done() {
            let warm = Warm { store: run.store, proxy, served, slot: run.slot };
            self.engine.inner.idle.put(self.number, warm, Instant::now());
        }
    }

    /// Of an invocation that is asked for now.
    pub(super) fn deadline(&self, asked: Option<Duration>) -> Instant {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let own = Duration::from_millis(self.env.limits.deadline_ms.min(DEADLINE_MS_MAX));
        Instant::now() + asked.map_or(own, |asked| asked.min(own))
    }

    async fn fresh(
        &self,
        deadline: Instant,
        permit: Permit,
        entering: Entering,
        batch: Option<Batch>,
    ) -> Result<Run, CallError> {
        let slot = self.slot(deadline, entering).await?;
        let engine = &self.engine.inner;
        let instance = engine.instances.fetch_add(1, Ordering::Relaxed) + 1;
        let state = State::new(&self.env, instance, deadline, batch).map_err(|e| {
            CallError::Unavailable(format!("actor {}: its grants can not be given: {e:#}", self.env.label))
        })?;
        let mut store = Store::new(&self.wasm, state);
        store.limiter(|state| &mut state.limiter);
        store.set_hostcall_fuel(self.call_bytes_max);
        store.set_max_component_handles(COMPONENT_HANDLES_MAX);
        store.set_epoch_deadline(1);
        store.epoch_deadline_callback(|store| on_tick(store.data()));
        let running = Counted::new(&engine.running);
        Ok(Run { store, deadline, served: 0, slot, _permit: permit, _running: running })
    }

    fn may_run(&self) -> bool {
        !self.env.holding.as_ref().is_some_and(Holding::is_over)
    }

    pub(super) async fn permit(&self, deadline: Instant) -> Result<Permit, CallError> {
        let label = &self.env.label;
        if !self.may_run() {
            return Err(CallError::Unavailable(self.lease_over()));
        }
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

    async fn slot(&self, deadline: Instant, entering: Entering) -> Result<Slot, CallError> {
        loop {
            if let Some(slot) = self.slots.take() {
                return Ok(slot);
            }
            // Whoever only waits makes room.
            if !self.engine.inner.idle.evict() {
                break;
            }
        }
        let queue_len_max = usize::try_from(self.env.limits.queue_len_max).unwrap_or(usize::MAX);
        if entering == Entering::First
            && let Some(place) = self.slots.wait(queue_len_max)
            && let Ok(Ok(slot)) = timeout_at(deadline.into(), place).await
        {
            return Ok(slot);
        }
        let (label, max, held) = (&self.env.label, self.engine.instances_max(), self.slots.held());
        Err(CallError::Overloaded(match self.slots.is_beyond() {
            true => format!(
                "actor {label} has {held} of the {max} instances that this host can run, as many as are left for all \
                 others; add hosts or try again"
            ),
            false => {
                format!("actor {label}: this host runs {max} instances, as many as it can; add hosts or try again")
            }
        }))
    }

    /// An invocation, in the lane where it belongs.
    pub(super) fn laned<T: Send + 'static>(&self, until: &Until, work: Work<T>) -> Laned<T> {
        Laned::new(work, &self.engine.inner.lanes, until.spent.clone(), self.habit.clone())
    }

    /// The same for an instance, whoever is in it.
    pub(super) fn laned_by<T: Send + 'static>(&self, spent: Arc<Spent>, work: Work<T>) -> Laned<T> {
        Laned::new(work, &self.engine.inner.lanes, spent, self.habit.clone())
    }

    /// What this host takes away.
    pub(super) fn policy(&self) -> &Policy {
        &self.engine.inner.policy
    }

    /// Its result, or that it is late.
    pub(super) async fn in_time<T: Send + 'static>(&self, until: Until, work: Work<T>) -> Result<T, CallError> {
        match self.until(until.deadline, self.laned(&until, work)).await {
            Ok(ended) => ended,
            Err(Late) => Err(self.late(&until.log)),
        }
    }

    /// What comes of it by then; of an actor that is strict, only while the host has its lease.
    pub(super) async fn until<F: Future>(&self, deadline: Instant, work: F) -> Result<F::Output, Late> {
        let Some(holding) = &self.env.holding else {
            return timeout_at(deadline.into(), work).await.map_err(|_| Late);
        };
        let mut work = pin!(work);
        loop {
            let end = holding.end();
            if let Ok(done) = timeout_at(end.min(deadline).into(), &mut work).await {
                return Ok(done);
            }
            // Mostly there is a longer one by now.
            if deadline <= end || holding.is_over() {
                return Err(Late);
            }
        }
    }

    /// Counts what came of an invocation.
    pub(super) fn count<T>(&self, outcome: Result<T, CallError>) -> Result<T, CallError> {
        if let Err(error) = &outcome {
            let at = CallError::CODES.iter().position(|code| *code == error.code());
            self.errors[at.expect("every code is in the list")].add(1);
        }
        outcome
    }

    /// The span of an invocation, if somebody records.
    pub(super) fn span(&self, origin: impl FnOnce() -> Origin, function: &str) -> Span {
        let mut span = spans::begin(Kind::Within, origin, || format!("{} {function}", self.env.label));
        if span.is_on() {
            span.set("lattice.app", self.env.app.clone());
            span.set("lattice.actor", self.env.actor.clone());
        }
        span
    }

    /// As `count`, for the whole of an invocation that was asked for at `begun`.
    pub(super) fn ended<T>(&self, begun: Instant, outcome: Result<T, CallError>) -> Result<T, CallError> {
        self.took.get_or_init(Box::default).add(begun.elapsed());
        self.count(outcome)
    }

    /// The invocation ran past its deadline.
    pub(super) fn late(&self, log: &Log) -> CallError {
        let late = self.late_quietly();
        log.note("error", &late.to_string());
        late
    }

    fn lease_over(&self) -> String {
        let label = &self.env.label;
        format!("actor {label} is strict, and no scheduler has confirmed lately that this host may run it: try again")
    }

    pub(super) fn late_quietly(&self) -> CallError {
        if self.env.holding.as_ref().is_some_and(Holding::is_over) {
            return CallError::Unavailable(self.lease_over());
        }
        CallError::Deadline(format!(
            "actor {} ran past its {} deadline; raise limits.deadline or make it answer sooner",
            self.env.label,
            self.deadline_text()
        ))
    }

    fn deadline_text(&self) -> String {
        failed::time_text(self.env.limits.deadline_ms)
    }

    /// Why the guest ended, for its caller and its log.
    pub(super) fn failed(&self, store: &Store<State>, e: &wasmtime::Error) -> CallError {
        let error = failed::explain(&self.env, store.data().limiter.refused, e);
        store.data().log().note("error", &error.to_string());
        error
    }
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
