//! An invocation of an actor: how it gets in, which is a right to run, a place on this host and an instance, or one that
//! waits; for how long it may run; and how it ends.

use super::batch::Batch;
use super::clock::Running;
use super::gate::{Closed, Entry, Gate, Permit};
use super::idle::Warm;
use super::lane::{Habit, Laned, Spent, Work};
use super::output::Log;
use super::slots::{self, Slot};
use super::state::{Env, State};
use super::{Engine, apart, config, failed, lane};
use crate::call::CallError;
use crate::holding::Holding;
use crate::metrics::{Count, Histogram};
use crate::origin::Origin;
use crate::spans::{self, Kind, Span};
use proto::policy::Policy;
use std::ops::{Deref, DerefMut};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::time::timeout_at;
use wasmtime::{Store, UpdateDeadline};
use wasmtime_wasi_http::p2::bindings::Proxy;

/// Handles of all kinds that one instance may have, those among its own parts included.
const COMPONENT_HANDLES_MAX: usize = 10_000;
/// A week: further ahead, clocks overflow.
const DEADLINE_MS_MAX: u64 = 7 * 24 * 3600 * 1000;

/// What an invocation needs that may outlive the call that began it.
pub(super) struct Shared {
    pub(super) env: Arc<Env>,
    pub(super) engine: Engine,
    /// What its component was compiled by and for.
    pub(super) wasm: wasmtime::Engine,
    pub(super) is_later: bool,
    /// Among all actors that this engine has ever prepared.
    pub(super) number: u64,
    pub(super) gate: Arc<Gate>,
    /// Its instances among those that may be alive.
    pub(super) slots: Arc<slots::Share>,
    /// What one call may pass to the host.
    pub(super) call_bytes_max: usize,
    pub(super) habit: Arc<Habit>,
    pub(super) requests: AtomicU64,
    /// By `CallError::CODES`.
    pub(super) errors: [Count; CallError::CODES.len()],
    /// How long invocations took. Made at the first: most actors of a large host are never asked.
    pub(super) took: OnceLock<Box<Histogram>>,
}

/// One invocation: what it runs in, and its rights to run. These end when its store has, before its result is told, or on
/// their own when nobody waits for that any more.
pub(super) struct Run {
    alive: Option<Alive>,
    pub(super) deadline: Instant,
    /// Requests that its instance has answered before.
    served: u32,
}

/// The store goes first, so that its slot is free before another may take it.
pub(super) struct Alive {
    pub(super) store: Store<State>,
    slot: Slot,
    _permit: Permit,
    _running: Running,
}

impl Deref for Run {
    type Target = Alive;

    fn deref(&self) -> &Alive {
        self.alive.as_ref().expect("taken as it ends")
    }
}

impl DerefMut for Run {
    fn deref_mut(&mut self) -> &mut Alive {
        self.alive.as_mut().expect("taken as it ends")
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if let Some(alive) = self.alive.take() {
            alive.store.data().spent.leaves();
            apart::leave(alive);
        }
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
        Ok((self.run(store, slot, permit, deadline, served), Some(proxy)))
    }

    fn run(&self, mut store: Store<State>, slot: Slot, permit: Permit, deadline: Instant, served: u32) -> Run {
        store.set_epoch_deadline(1);
        let running = self.engine.inner.clock.enter();
        Run { alive: Some(Alive { store, slot, _permit: permit, _running: running }), deadline, served }
    }

    /// Keeps an instance that has answered for the next request, if it may have one and nothing is left of this.
    pub(super) fn keep(&self, mut run: Run, proxy: Proxy) {
        let served = run.served.saturating_add(1);
        let is_wanted = self.engine.inner.slots.is_wanted();
        if served < self.env.limits.reuse
            && !is_wanted
            && run.store.data_mut().is_done()
            && let Some(Alive { store, slot, .. }) = run.alive.take()
        {
            let spent = store.data().spent.clone();
            let warm = Warm { store, proxy, served, slot };
            if let Some(over) = self.engine.inner.idle.put(self.number, warm, Instant::now()) {
                // It may be this one.
                spent.leaves();
                apart::leave(over);
            }
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
        store.epoch_deadline_callback(|store| on_tick(store.data()));
        Ok(self.run(store, slot, permit, deadline, 0))
    }

    pub(super) fn may_run(&self) -> bool {
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
            Ok(ended) => ended.told().await,
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
