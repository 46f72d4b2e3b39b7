//! People who watch: each has a picture of apps and hosts, kept from what a scheduler tells it, across streams that
//! break in the middle and go on at another scheduler. The picture must be what that scheduler's state says.

use crate::ctx::{Ctx, LATTICE, Node, Timer};
use crate::process::Process;
use crate::seat::Seat;
use proto::v1 as pb;
use proto::v1::watch_event::What;
use scheduler::status::View;
use scheduler::watched::Watched;
use std::collections::{BTreeMap, BTreeSet};

const WATCHERS: usize = 2;
const EVERY_MS: u64 = 900;

pub(crate) struct Watchers(Vec<Watcher>);

#[derive(Default)]
struct Watcher {
    /// Seat, its boot, and what the scheduler there remembers of this watch.
    stream: Option<(usize, u64, Watched)>,
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
    let (observed, now_ms) = (&process.control.observed, process.now_ms(ctx));
    f(&View { state: &state, observed, unplaced: &[], now_ms, timers: Process::timers(ctx) })
}

impl Watcher {
    fn step(&mut self, ctx: &mut Ctx, seats: &[Seat]) {
        let Some((seat, boot, mut watched)) = self.stream.take() else { return self.connect(ctx, seats) };
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
        let truth = with_view(ctx, process, picture);
        // Where it goes on, the state may be older than what it saw a part of.
        if applied >= self.seen && (&self.apps, &self.hosts) != (&truth.0, &truth.1) {
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

    fn connect(&mut self, ctx: &mut Ctx, seats: &[Seat]) {
        if self.last == 0 {
            // It is told everything again.
            *self = Self::default();
        }
        let seat = ctx.dice.index(seats.len());
        let at = &seats[seat];
        let Some(process) = at.process.as_ref().filter(|_| at.paused_until <= ctx.now) else { return };
        if process.replica.read().applied < self.seen {
            // What it saw a part of may vanish here before it was here: that is not told.
            return ctx.count("watch sent elsewhere");
        }
        let request = pb::WatchRequest { after: self.last, app: String::new(), hosts: true };
        let mut watched = Watched::new(request);
        let replica = &process.replica;
        let (touched, compacted) = (replica.touched_after(self.last), replica.compacted());
        match with_view(ctx, process, |view| watched.resume(view, touched, compacted)) {
            Ok(()) => {
                ctx.count(if self.last > 0 { "watch resumed" } else { "watch began" });
                self.stream = Some((seat, at.boot, watched));
            }
            Err(why) if why.contains("was compacted") => {
                ctx.count("watch began anew");
                *self = Self::default();
            }
            Err(why) if why.contains("is not there yet") => ctx.count("watch sent elsewhere"),
            Err(why) => ctx.fail(format!("{LATTICE}: {why}")),
        }
    }
}

fn picture(view: &View<'_>) -> (BTreeMap<String, (u64, u64)>, BTreeSet<String>) {
    let apps = view.apps("").into_iter().map(|a| (a.name, (a.version, a.revision))).collect();
    (apps, view.hosts().into_iter().map(|h| h.id).collect())
}
