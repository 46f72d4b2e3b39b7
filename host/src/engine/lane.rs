//! Which threads guest code runs on. An invocation begins on the threads that serve everybody; one that has used more
//! processor time than a short turn goes on, for the rest of its life, on threads that the operating system runs only
//! when no other wants the processor. So one who computes for long makes nobody wait who answers at once. An actor whose
//! invocations were long or broke lately begins there: a trap is costly, too.
//!
//! Must never keep a guest from its deadline: that is watched by the task that asked, on the serving threads.

use super::apart::{self, Apart};
use super::clock::TICK_MS;
use crate::call::CallError;
use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::oneshot;
use tokio_util::task::AbortOnDropHandle;

/// Processor time that an invocation may use on the threads that serve.
pub(super) const TURN: Duration = Duration::from_millis(5);
/// Invocations of an actor that begin in the back after one that was long, and after one that broke; each adds as many.
const BACK_AFTER_LONG: u32 = 8;
const BACK_AFTER_BROKEN: u32 = 2;
const BACK_MAX: u32 = 64;

/// The threads in the back; clones are the same.
#[derive(Clone)]
pub(super) struct Lanes {
    inner: Arc<Back>,
}

struct Back {
    runtime: Option<Runtime>,
    handle: Handle,
}

impl Lanes {
    pub(super) fn start() -> io::Result<Self> {
        // One processor is left to those who answer at once: what is put aside on one takes a moment to be.
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get().saturating_sub(1).max(1));
        let apart = Apart::start(threads)?;
        let begin = move || {
            apart.serve_this_thread();
            yield_to_all();
        };
        let runtime = Builder::new_multi_thread()
            .worker_threads(threads)
            .thread_name("back")
            .enable_all()
            .on_thread_start(begin)
            .build()?;
        Ok(Self { inner: Arc::new(Back { handle: runtime.handle().clone(), runtime: Some(runtime) }) })
    }
}

impl Drop for Back {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Puts the calling thread behind all others of the machine.
fn yield_to_all() {
    // As much as any user may ask for; where there is more, it is asked for below.
    if let Err(error) = rustix::process::nice(19) {
        tracing::debug!(%error, "threads for long work have the priority of all others");
    }
    #[cfg(target_os = "linux")]
    {
        use thread_priority::{NormalThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy};
        let idle = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Idle);
        let thread = thread_priority::thread_native_id();
        if let Err(error) = thread_priority::set_thread_priority_and_policy(thread, ThreadPriority::Min, idle) {
            tracing::debug!(?error, "threads for long work have a low priority, not the idle one");
        }
    }
}

/// Turns shorter than this are counted by the time on the wall. Asking for a thread's processor time is a system call, so a
/// thread asks at most as often, not at each of its thousands of short turns.
const SHORT_NANOS: u64 = TICK_MS * 1_000_000;

thread_local! {
    /// When this thread asked for its processor time, and what that was.
    static ASKED: Cell<Option<(u64, u64)>> = const { Cell::new(None) };
}

/// Processor time that one invocation has used, shared by its future and its store. Of a turn it is what the thread has
/// used since a moment shortly before it, and never more than has passed: so who was made to wait is not blamed for it.
#[derive(Default)]
pub(super) struct Spent {
    /// Of all turns that are over, in nanoseconds.
    before: AtomicU64,
    /// When the present turn began, in nanoseconds since the first of this process; what the thread's clock had said.
    turn_began: AtomicU64,
    thread_began: AtomicU64,
    in_back: AtomicBool,
    /// Its instance was left to be dropped.
    has_left: AtomicBool,
}

impl Spent {
    /// Within a turn.
    pub(super) fn now(&self) -> Duration {
        Duration::from_nanos(self.before.load(Ordering::Relaxed) + self.this_turn())
    }

    fn this_turn(&self) -> u64 {
        let passed = wall_nanos().saturating_sub(self.turn_began.load(Ordering::Relaxed));
        match passed < SHORT_NANOS {
            true => passed,
            false => thread_nanos().saturating_sub(self.thread_began.load(Ordering::Relaxed)).min(passed),
        }
    }

    /// Another invocation in the same instance: each has a turn of its own.
    pub(super) fn forget(&self) {
        self.before.store(0, Ordering::Relaxed);
        self.begin_turn();
    }

    pub(super) fn in_back(&self) -> bool {
        self.in_back.load(Ordering::Relaxed)
    }

    /// Its instance is left to be dropped.
    pub(super) fn leaves(&self) {
        self.has_left.store(true, Ordering::Relaxed);
    }

    fn is_long(&self) -> bool {
        Duration::from_nanos(self.before.load(Ordering::Relaxed)) > TURN
    }

    fn begin_turn(&self) {
        let now = wall_nanos();
        self.thread_began.store(thread_nanos_lately(now), Ordering::Relaxed);
        self.turn_began.store(now, Ordering::Relaxed);
    }

    fn turn<T>(&self, poll: impl FnOnce() -> T) -> T {
        self.begin_turn();
        let polled = poll();
        self.before.fetch_add(self.this_turn(), Ordering::Relaxed);
        polled
    }
}

/// Since the first time that this was asked for.
fn wall_nanos() -> u64 {
    static FIRST: OnceLock<Instant> = OnceLock::new();
    u64::try_from(FIRST.get_or_init(Instant::now).elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// Processor time of this thread, as it was at most a short turn before `now`.
fn thread_nanos_lately(now: u64) -> u64 {
    match ASKED.get() {
        Some((asked, nanos)) if now.saturating_sub(asked) < SHORT_NANOS => nanos,
        _ => {
            let nanos = thread_nanos();
            ASKED.set(Some((now, nanos)));
            nanos
        }
    }
}

/// Processor time of this thread, in nanoseconds.
fn thread_nanos() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    let (seconds, nanos) = (u64::try_from(time.tv_sec).unwrap_or(0), u64::try_from(time.tv_nsec).unwrap_or(0));
    seconds * 1_000_000_000 + nanos
}

/// What an actor's invocations were like lately.
#[derive(Default)]
pub(super) struct Habit {
    /// How many of its next invocations begin in the back.
    back: AtomicU32,
}

impl Habit {
    fn begins_in_back(&self) -> bool {
        let less = |n: u32| n.checked_sub(1);
        self.back.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
    }

    fn note<T>(&self, spent: &Spent, ended: &Result<T, CallError>) {
        match ended {
            _ if spent.is_long() => self.add(BACK_AFTER_LONG),
            Err(CallError::Trapped(_) | CallError::Deadline(_)) => self.add(BACK_AFTER_BROKEN),
            _ => {}
        }
    }

    fn add(&self, more: u32) {
        let add = |n: u32| Some((n + more).min(BACK_MAX));
        let _ = self.back.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }
}

/// An invocation in its lane. Dropped, it ends wherever it is.
pub(super) struct Laned<T> {
    state: Lane<T>,
    /// It was put aside, and is known to be long by that.
    is_known: bool,
    lanes: Lanes,
    spent: Arc<Spent>,
    habit: Arc<Habit>,
}

pub(super) type Work<T> = Pin<Box<dyn Future<Output = Result<T, CallError>> + Send>>;

enum Lane<T> {
    Front(Work<T>),
    Back(AbortOnDropHandle<Ended<T>>),
    /// It has ended, or is between the two.
    Nowhere,
}

/// What came of an invocation, whose instance may not be gone yet.
pub(super) struct Ended<T> {
    pub(super) result: Result<T, CallError>,
    dropped: Option<oneshot::Receiver<()>>,
}

impl<T> Ended<T> {
    /// On the thread where it ended.
    fn of(result: Result<T, CallError>, spent: &Spent) -> Self {
        let has_left = spent.has_left.load(Ordering::Relaxed);
        Self { result, dropped: if has_left { apart::all_dropped() } else { None } }
    }

    /// The result, once the instance and its rights to run are gone. No deadline is for this: the work is done.
    pub(super) async fn told(self) -> Result<T, CallError> {
        if let Some(dropped) = self.dropped {
            let _ = dropped.await;
        }
        self.result
    }
}

impl<T: Send + 'static> Laned<T> {
    pub(super) fn new(work: Work<T>, lanes: &Lanes, spent: Arc<Spent>, habit: Arc<Habit>) -> Self {
        let mut laned = Self { state: Lane::Nowhere, is_known: false, lanes: lanes.clone(), spent, habit };
        laned.state = match laned.habit.begins_in_back() {
            true => laned.in_back(work),
            false => Lane::Front(work),
        };
        laned
    }

    fn in_back(&self, mut work: Work<T>) -> Lane<T> {
        let (spent, habit, is_known) = (self.spent.clone(), self.habit.clone(), self.is_known);
        spent.in_back.store(true, Ordering::Relaxed);
        let task = async move {
            let result = std::future::poll_fn(|cx| spent.turn(|| work.as_mut().poll(cx))).await;
            if !is_known {
                habit.note(&spent, &result);
            }
            drop(work);
            Ended::of(result, &spent)
        };
        Lane::Back(AbortOnDropHandle::new(self.lanes.inner.handle.spawn(task)))
    }
}

impl<T: Send + 'static> Future for Laned<T> {
    type Output = Ended<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if let Lane::Front(work) = &mut this.state {
            if let Poll::Ready(result) = this.spent.turn(|| work.as_mut().poll(cx)) {
                this.habit.note(&this.spent, &result);
                this.state = Lane::Nowhere;
                // Somebody in the back may have asked.
                return Poll::Ready(Ended::of(result, &this.spent));
            }
            if !this.spent.is_long() {
                return Poll::Pending;
            }
            if let Lane::Front(work) = std::mem::replace(&mut this.state, Lane::Nowhere) {
                // The others that come meanwhile need not show it first.
                this.is_known = true;
                this.habit.add(BACK_AFTER_LONG);
                this.state = this.in_back(work);
            }
        }
        let Lane::Back(handle) = &mut this.state else { return Poll::Pending };
        match std::task::ready!(Pin::new(handle).poll(cx)) {
            Ok(ended) => Poll::Ready(ended),
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // Its threads are going: so is whoever waits.
                Err(_) => Poll::Pending,
            },
        }
    }
}

impl<T> Drop for Laned<T> {
    /// Most that are long do not end by themselves: their time is over, or who asked has gone.
    fn drop(&mut self) {
        if let (Lane::Back(handle), false) = (&self.state, self.is_known)
            && !handle.is_finished()
        {
            // One that had no turn yet has shown nothing: the next one is as it would have been.
            self.habit.add(if self.spent.is_long() { BACK_AFTER_LONG } else { 1 });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    fn burn(time: Duration) {
        let began = thread_nanos();
        while Duration::from_nanos(thread_nanos() - began) < time {}
    }

    /// Burns some time in each turn; gives the names of the threads it ran on.
    fn work(turns: u32, each: Duration) -> Work<Vec<String>> {
        Box::pin(async move {
            let mut names = Vec::new();
            for _ in 0..turns {
                burn(each);
                names.push(std::thread::current().name().unwrap_or_default().to_owned());
                tokio::task::yield_now().await;
            }
            Ok(names)
        })
    }

    #[tokio::test]
    async fn long_work_goes_to_the_back_and_short_work_stays() {
        let (lanes, habit) = (Lanes::start().unwrap(), Arc::new(Habit::default()));
        let run = |turns, each| {
            let spent = Arc::new(Spent::default());
            let laned = Laned::new(work(turns, each), &lanes, spent.clone(), habit.clone());
            async move { (laned.await.result.unwrap(), spent) }
        };
        let (names, spent) = run(3, Duration::from_micros(10)).await;
        assert!(names.iter().all(|n| n != "back"), "{names:?}");
        assert!(!spent.in_back());
        let (names, spent) = run(6, TURN).await;
        assert_ne!(names[0], "back");
        assert_eq!(names[5], "back");
        assert!(spent.in_back() && Duration::from_nanos(spent.before.load(Ordering::Relaxed)) >= TURN * 6);
        // The next of that actor begin there, then it is forgiven.
        for n in 0..BACK_AFTER_LONG {
            let (names, _) = run(1, Duration::ZERO).await;
            assert_eq!(names, ["back"], "{n}");
        }
        let (names, _) = run(1, Duration::ZERO).await;
        assert_ne!(names, ["back"]);
        // So are those that break, of another actor.
        let habit = Arc::new(Habit::default());
        let breaks = || -> Work<()> { Box::pin(async { Err(CallError::Trapped("no".into())) }) };
        assert!(Laned::new(breaks(), &lanes, Arc::default(), habit.clone()).await.result.is_err());
        let spent = Arc::new(Spent::default());
        assert!(Laned::new(breaks(), &lanes, spent.clone(), habit).await.result.is_err());
        assert!(spent.in_back());
    }

    #[tokio::test]
    async fn what_is_dropped_ends_in_the_back_too() {
        let lanes = Lanes::start().unwrap();
        let (tx, rx) = oneshot::channel::<()>();
        let forever = |held: Option<oneshot::Sender<()>>| -> Work<()> {
            Box::pin(async move {
                let _held = held;
                loop {
                    burn(TURN);
                    tokio::task::yield_now().await;
                }
            })
        };
        let (spent, habit) = (Arc::new(Spent::default()), Arc::new(Habit::default()));
        let mut laned = Laned::new(forever(Some(tx)), &lanes, spent.clone(), habit.clone());
        while !spent.in_back() {
            std::future::poll_fn(|cx| {
                let _ = Pin::new(&mut laned).poll(cx);
                Poll::Ready(())
            })
            .await;
        }
        let back = || habit.back.load(Ordering::Relaxed);
        assert_eq!(back(), BACK_AFTER_LONG);
        drop(laned);
        assert!(rx.await.is_err());
        assert_eq!(back(), BACK_AFTER_LONG, "once for each");
        // One that began in the back is remembered when nobody waits for it any more, and one that did nothing changes nothing.
        let spent = Arc::new(Spent::default());
        let laned = Laned::new(forever(None), &lanes, spent.clone(), habit.clone());
        while !spent.is_long() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        drop(laned);
        assert_eq!(back(), 2 * BACK_AFTER_LONG - 1);
        let idle: Work<()> = Box::pin(std::future::pending());
        drop(Laned::new(idle, &lanes, Arc::default(), habit.clone()));
        assert_eq!(back(), 2 * BACK_AFTER_LONG - 1);
    }

    #[tokio::test]
    async fn what_ends_in_the_back_is_taken_apart_by_another_thread() {
        struct Broken;
        impl Drop for Broken {
            fn drop(&mut self) {
                panic!("of a test");
            }
        }
        struct Instance(Option<oneshot::Sender<Option<String>>>);
        impl Drop for Instance {
            fn drop(&mut self) {
                let _ = self.0.take().unwrap().send(std::thread::current().name().map(str::to_owned));
            }
        }
        let lanes = Lanes::start().unwrap();
        let (tx, mut rx) = oneshot::channel();
        let (habit, spent) = (Arc::new(Habit::default()), Arc::new(Spent::default()));
        habit.add(1);
        let its_own = spent.clone();
        let work: Work<()> = Box::pin(async move {
            its_own.leaves();
            // Nor does one that breaks keep the next from being dropped.
            apart::leave(Broken);
            apart::leave(Instance(Some(tx)));
            Ok(())
        });
        Laned::new(work, &lanes, spent, habit).await.told().await.unwrap();
        assert_eq!(rx.try_recv().unwrap().as_deref(), Some("apart"), "before the result is told");
        // Elsewhere it is done at once.
        let (tx, mut rx) = oneshot::channel();
        apart::leave(Instance(Some(tx)));
        assert!(rx.try_recv().unwrap().is_some());
        drop(lanes);
    }

    #[tokio::test]
    async fn what_has_ended_is_not_late_for_how_long_its_instance_takes_to_go() {
        struct Slow(mpsc::Receiver<()>);
        impl Drop for Slow {
            fn drop(&mut self) {
                let _ = self.0.recv();
            }
        }
        let lanes = Lanes::start().unwrap();
        let (go, goes) = mpsc::channel();
        let (habit, spent) = (Arc::new(Habit::default()), Arc::new(Spent::default()));
        habit.add(1);
        let its_own = spent.clone();
        let work: Work<()> = Box::pin(async move {
            its_own.leaves();
            apart::leave(Slow(goes));
            Ok(())
        });
        let ended = Laned::new(work, &lanes, spent, habit).await;
        assert!(ended.result.is_ok());
        let mut told = Box::pin(ended.told());
        assert!(futures::poll!(&mut told).is_pending(), "its instance is there");
        go.send(()).unwrap();
        told.await.unwrap();
    }

    #[tokio::test]
    async fn threads_in_the_back_give_way_to_all() {
        let lanes = Lanes::start().unwrap();
        let policy = lanes.inner.handle.spawn(async { thread_priority::thread_schedule_policy() }).await.unwrap();
        let idle = thread_priority::ThreadSchedulePolicy::Normal(thread_priority::NormalThreadSchedulePolicy::Idle);
        assert_eq!(policy.unwrap(), idle);
    }
}
