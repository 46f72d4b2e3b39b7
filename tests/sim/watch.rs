//! People who watch: each has a picture of apps and hosts, kept from what a scheduler tells it, across streams that
//! break in the middle and go on at another scheduler, once that is as new as anything they saw. The picture must be what
//! that scheduler's state says.

use crate::ctx::{Ctx, LATTICE, Node, Timer};
use crate::process::Process;
use crate::seat::Seat;
use proto::app::HostId;
use proto::v1 as pb;
use proto::v1::watch_event::What;
use scheduler::raft;
use scheduler::state::State;
use scheduler::status::View;
use scheduler::watched::Watched;
use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

const WATCHERS: usize = 2;
const EVERY_MS: u64 = 900;

pub(crate) struct Watchers(Vec<Watcher>);

/// A scheduler finds out how new its state must be: seat, its boot.
type Asked = (usize, u64, Pin<Box<dyn Future<Output = Result<u64, raft::Error>>>>);

#[derive(Default)]
struct Watcher {
    /// Seat, its boot, and what the scheduler there remembers of this watch.
    stream: Option<(usize, u64, Watched)>,
    asked: Option<Asked>,
    /// Index of the last event that arrived.
    last: u64,
    /// How far the state was that the last event came from: cut in the middle, a picture is in part that new.
    seen: u64,
    /// App -> version, revision.
    apps: BTreeMap<String, (u64, u64)>,
    hosts: BTreeSet<String>,
}

impl Watchers {
    pub(crate) fn new(ctx: &mut Ctx) -> Self {
        (0..WATCHERS).for_each(|n| ctx.wake(Node::Client, 0, 2_000 + 300 * n as u64, Timer::Watch(n)));
        Self((0..WATCHERS).map(|_| Watcher::default()).collect())
    }

    pub(crate) fn step(&mut self, ctx: &mut Ctx, seats: &[Seat], number: usize) {
        ctx.wake(Node::Client, 0, EVERY_MS, Timer::Watch(number));
        self.0[number].step(ctx, seats);
    }
}

fn with_view<T>(ctx: &Ctx, process: &Process, f: impl FnOnce(&View<'_>) -> T) -> T {
    let state = process.replica.read();
    f(&process.control.leader.view(&state, process.now_ms(ctx)))
}

impl Watcher {
    fn step(&mut self, ctx: &mut Ctx, seats: &[Seat]) {
        let Some((seat, boot, mut watched)) = self.stream.take() else { return self.find(ctx, seats) };
        let at = &seats[seat];
        let Some(process) = at.process.as_ref().filter(|_| at.boot == boot) else { return };
        if at.paused_until > ctx.now {
            self.stream = Some((seat, boot, watched));
            return;
        }
        let events = with_view(ctx, process, |view| watched.round(view));
        let (all, applied) = (events.len(), process.replica.read().applied);
        let cut = ctx.faults && ctx.dice.percent(15);
        let arrive = if cut { ctx.dice.index(all + 1) } else { all };
        let (at_index, of) = (self.last, self.apps.len());
        if all > 0 {
            ctx.note(|| format!("watch at s{seat} behind {at_index}, {of} apps: {arrive} of {all} events arrive"));
        }
        for event in events.into_iter().take(arrive) {
            if event.index < self.last {
                ctx.fail(format!("a watch went back from index {} to {}", self.last, event.index));
            }
            (self.last, self.seen) = (event.index, self.seen.max(applied));
            self.take(event);
        }
        if cut {
            ctx.count(if arrive < all { "watch cut in the middle" } else { "watch cut" });
            return;
        }
        let truth = picture(&process.replica.read());
        if (&self.apps, &self.hosts) != (&truth.0, &truth.1) {
            let (mine, last) = ((&self.apps, &self.hosts), self.last);
            ctx.fail(format!(
                "a watch at s{seat}, index {last}, missed something: it shows {mine:?}, there is {truth:?}"
            ));
        }
        self.stream = Some((seat, boot, watched));
    }

    fn take(&mut self, event: pb::WatchEvent) {
        match event.what {
            Some(What::App(app)) => drop(self.apps.insert(app.name, (app.version, app.revision))),
            Some(What::AppDeleted(name)) => drop(self.apps.remove(&name)),
            Some(What::Host(host)) => drop(self.hosts.insert(host.id)),
            Some(What::HostForgotten(id)) => drop(self.hosts.remove(&id)),
            Some(What::Synced(_)) | None => {}
        }
    }

    /// Asks a scheduler; goes on there when it is new enough.
    fn find(&mut self, ctx: &mut Ctx, seats: &[Seat]) {
        let (seat, boot, mut fresh) = match self.asked.take() {
            Some(asked) => asked,
            None => {
                let seat = ctx.dice.index(seats.len());
                let Some(process) = running(ctx, &seats[seat]) else { return };
                let handle = process.handle.clone();
                (seat, seats[seat].boot, Box::pin(async move { handle.read_index().await }) as _)
            }
        };
        let at = &seats[seat];
        if at.boot != boot || at.process.is_none() {
            return;
        }
        let Some(process) = running(ctx, at) else { return self.asked = Some((seat, boot, fresh)) };
        match fresh.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Pending => self.asked = Some((seat, boot, fresh)),
            Poll::Ready(Err(_)) => ctx.count("watch sent elsewhere"),
            Poll::Ready(Ok(_)) => self.resume(ctx, process, seat, boot),
        }
    }

    fn resume(&mut self, ctx: &mut Ctx, process: &Process, seat: usize, boot: u64) {
        let applied = process.replica.read().applied;
        if applied < self.seen {
            // What it saw a part of may vanish here before it was here: that would not be told.
            return ctx.fail(format!("a watch that saw index {} goes on at s{seat}, at {applied}", self.seen));
        }
        if self.last == 0 {
            // It is told everything again.
            *self = Self::default();
        }
        let request = pb::WatchRequest { after: self.last, hosts: true, ..Default::default() };
        let mut watched = Watched::new(request);
        let replica = &process.replica;
        let (touched, compacted) = (replica.touched_after(self.last), replica.compacted());
        match with_view(ctx, process, |view| watched.resume(view, touched, compacted)) {
            Ok(()) => {
                ctx.count(if self.last > 0 { "watch resumed" } else { "watch began" });
                self.stream = Some((seat, boot, watched));
            }
            Err(why) if why.contains("was compacted") => {
                ctx.count("watch began anew");
                *self = Self::default();
            }
            Err(why) => ctx.fail(format!("{LATTICE}: {why}")),
        }
    }
}

fn running<'a>(ctx: &Ctx, at: &'a Seat) -> Option<&'a Process> {
    at.process.as_ref().filter(|_| at.paused_until <= ctx.now)
}

fn picture(state: &State) -> (BTreeMap<String, (u64, u64)>, BTreeSet<String>) {
    let apps = state.apps.iter().map(|(name, app)| (name.to_string(), (app.version, app.current))).collect();
    (apps, state.hosts.keys().map(HostId::to_string).collect())
}
