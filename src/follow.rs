//! Follows apps until they run, or until one can not, or the time is over. `Progress` is pure: events in, lines out.

use crate::client::{Client, Seen};
use crate::failure::Failure;
use crate::print::live::Live;
use crate::starting::{self, Told};
use crate::{duration, print};
use proto::v1::watch_event::What;
use proto::v1::{AppChange, AppStatus, WatchEvent};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How often what goes on by time alone is drawn.
const REDRAW: Duration = Duration::from_secs(1);

/// What became of the apps of one `apply`.
#[derive(Debug)]
pub(crate) struct Progress {
    apps: BTreeMap<String, Followed>,
    told: Told,
}

#[derive(Debug)]
struct Followed {
    revision: u64,
    /// Log index of the change: what was deleted before it is not of interest.
    version: u64,
    phase: Phase,
    last: Option<AppStatus>,
    /// When that was heard, since it is followed.
    heard: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    Waiting,
    Running,
    Failed(String),
}

impl Progress {
    pub(crate) fn new(changes: &[AppChange]) -> Self {
        let followed = |change: &AppChange| Followed {
            revision: change.revision,
            version: change.version,
            phase: Phase::Waiting,
            last: None,
            heard: Duration::ZERO,
        };
        let apps = changes.iter().map(|change| (change.app.clone(), followed(change))).collect();
        Self { apps, told: Told::default() }
    }

    /// Takes one event, so long after it began; returns lines when it changed what is to be told.
    pub(crate) fn see(&mut self, event: &WatchEvent, now: Duration) -> Vec<String> {
        match &event.what {
            Some(What::App(status)) => {
                let Some(app) = self.apps.get_mut(&status.name) else { return Vec::new() };
                // An older revision's state says nothing about the one that was applied.
                if status.revision < app.revision || app.phase != Phase::Waiting {
                    return Vec::new();
                }
                app.phase = match status.state.as_str() {
                    "running" => Phase::Running,
                    _ if status.failed => Phase::Failed(why(status)),
                    "deleting" => Phase::Failed("it was deleted meanwhile".into()),
                    _ => Phase::Waiting,
                };
                let line = line(status);
                let news = app.last.as_ref().is_none_or(|last| self::line(last) != line);
                (app.last, app.heard) = (Some(status.clone()), now);
                let starting = self.told.news(status);
                news.then_some(line).into_iter().chain(starting).collect()
            }
            Some(What::AppDeleted(name)) => {
                let Some(app) = self.apps.get_mut(name) else { return Vec::new() };
                if event.index > app.version && app.phase == Phase::Waiting {
                    app.phase = Phase::Failed("it was deleted meanwhile".into());
                }
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    /// The last status seen of an app, of the revision that was applied or a later one.
    pub(crate) fn last(&self, app: &str) -> Option<&AppStatus> {
        self.apps.get(app)?.last.as_ref()
    }

    /// Once every app runs or has failed: what that means.
    pub(crate) fn outcome(&self) -> Option<Result<(), Failure>> {
        if self.apps.values().any(|app| app.phase == Phase::Waiting) {
            return None;
        }
        let failed: Vec<String> = self
            .apps
            .iter()
            .filter_map(|(name, app)| match &app.phase {
                Phase::Failed(why) => Some(format!("app/{name} failed: {why}")),
                _ => None,
            })
            .collect();
        Some(if failed.is_empty() { Ok(()) } else { Err(Failure::Refused(failed.join("\n       "))) })
    }

    /// When the time is over.
    fn late(&self, after: Duration) -> Failure {
        let mut lines = Vec::new();
        for (name, app) in &self.apps {
            match (&app.phase, &app.last) {
                (Phase::Running, _) => {}
                (Phase::Failed(why), _) => lines.push(format!("app/{name} failed: {why}")),
                (Phase::Waiting, Some(status)) => lines.push(format!(
                    "app/{name} is not running after {}: {} of {} run{}; it goes on, see `lattice describe app {name}`",
                    duration::text(after),
                    status.running,
                    status.desired,
                    because(status),
                )),
                (Phase::Waiting, None) => lines.push(format!(
                    "app/{name} was accepted, but nothing was heard of revision {} within {}; see `lattice describe app {name}`",
                    app.revision,
                    duration::text(after),
                )),
            }
        }
        Failure::NotInTime(lines.join("\n       "))
    }

    fn names(&self) -> String {
        self.apps.keys().map(|name| format!("app/{name}")).collect::<Vec<_>>().join(", ")
    }

    /// What hosts do to bring up those that are still waited for.
    fn starting(&self, now: Duration) -> Vec<String> {
        let waiting = self.apps.values().filter(|app| app.phase == Phase::Waiting);
        let lines = waiting.filter_map(|app| {
            let later = now.saturating_sub(app.heard).as_millis();
            Some(starting::lines(app.last.as_ref()?, u64::try_from(later).unwrap_or(u64::MAX)))
        });
        lines.flatten().collect()
    }

    /// One line for all that are still waited for.
    fn summary(&self) -> String {
        let waiting: Vec<String> = self
            .apps
            .iter()
            .filter(|(_, app)| app.phase == Phase::Waiting)
            .map(|(name, app)| app.last.as_ref().map_or_else(|| format!("app/{name}"), line))
            .collect();
        waiting.join("   ")
    }
}

/// `app/hello deploying 1/2: reason`.
fn line(status: &AppStatus) -> String {
    let message = print::clean(&status.message);
    let message = if message.is_empty() { message } else { format!(": {message}") };
    format!("app/{} {} {}/{}{message}", status.name, status.state, status.running, status.desired)
}

/// `: reason`, or what hosts were at when they were heard last.
fn because(status: &AppStatus) -> String {
    let why = match print::clean(&status.message) {
        message if message.is_empty() => starting::lines(status, 0).join(", "),
        message => message,
    };
    if why.is_empty() { why } else { format!(": {why}") }
}

fn why(status: &AppStatus) -> String {
    match print::clean(&status.message) {
        message if message.is_empty() => format!("see `lattice describe app {}`", status.name),
        message => message,
    }
}

/// Watches until each app runs with its revision. On a terminal lines that are redrawn show how far it is and what hosts
/// do for it; elsewhere each change, and each step of a host, is a line on stderr. Ctrl-C stops the watching only.
pub(crate) async fn until_running(
    client: &Client,
    changes: &[AppChange],
    timeout: Duration,
) -> (Progress, Result<(), Failure>) {
    let mut progress = Progress::new(changes);
    let mut live = Live::start();
    let began = Instant::now();
    let only = match changes {
        [one] => one.app.as_str(),
        _ => "",
    };
    let mut watcher = client.watch(only, false).with_progress();
    let end = tokio::time::sleep(timeout);
    tokio::pin!(end);
    let outcome = loop {
        if let Some(outcome) = progress.outcome() {
            break outcome;
        }
        tokio::select! {
            seen = redrawn(&mut live, &progress, began, watcher.next()) => match seen {
                Ok(Seen::Anew | Seen::Again) => {}
                Ok(Seen::Event(event)) => {
                    let lines = progress.see(&event, began.elapsed());
                    if live.is_none() {
                        lines.into_iter().for_each(print::note);
                    }
                }
                Err(failure) => break Err(unseen(&progress, &failure)),
            },
            () = &mut end => break Err(progress.late(timeout)),
            _ = tokio::signal::ctrl_c() => break Err(Failure::Interrupted(format!(
                "no longer following; {} stays applied and goes on: see `lattice get apps`",
                progress.names()
            ))),
        }
    };
    (progress, outcome)
}

/// Waits for `next`, and draws meanwhile how far it is: times go on although nothing is heard.
async fn redrawn<T>(live: &mut Option<Live>, progress: &Progress, began: Instant, next: impl Future<Output = T>) -> T {
    let Some(live) = live else { return next.await };
    let mut redraw = tokio::time::interval(REDRAW);
    tokio::pin!(next);
    loop {
        tokio::select! {
            biased;
            next = &mut next => return next,
            _ = redraw.tick() => live.show(progress.summary(), progress.starting(began.elapsed())),
        }
    }
}

/// It was accepted; that it can no longer be watched does not undo that.
fn unseen(progress: &Progress, failure: &Failure) -> Failure {
    Failure::NotInTime(format!("{} was accepted, but can not be followed: {failure}", progress.names()))
}

/// Watches until each of these apps is gone.
pub(crate) async fn until_gone(client: &Client, apps: &[String], timeout: Duration) -> Result<(), Failure> {
    let mut left: std::collections::BTreeSet<&str> = apps.iter().map(String::as_str).collect();
    // What the list at the beginning of the watch still has.
    let mut listed: std::collections::BTreeSet<String> = Default::default();
    let mut live = Live::start();
    let mut watcher = client.watch("", false);
    let end = tokio::time::sleep(timeout);
    tokio::pin!(end);
    loop {
        if left.is_empty() {
            break Ok(());
        }
        let names = left.iter().map(|name| format!("app/{name}")).collect::<Vec<_>>().join(", ");
        if let Some(live) = &mut live {
            live.show(format!("{names}: its actors are being stopped"), Vec::new());
        }
        tokio::select! {
            seen = watcher.next() => match seen {
                Ok(Seen::Anew | Seen::Again) => listed.clear(),
                Ok(Seen::Event(event)) => match event.what {
                    // An app of that name which is not being deleted is a new one: the old one is gone.
                    Some(What::App(status)) if status.state == "deleting" => { listed.insert(status.name); }
                    Some(What::App(_)) => {}
                    Some(What::AppDeleted(name)) => { left.remove(name.as_str()); }
                    Some(What::Synced(true)) => left.retain(|name| listed.contains(*name)),
                    _ => {}
                },
                Err(failure) => break Err(Failure::NotInTime(format!("{names}: deleted, but not seen to be gone: {failure}"))),
            },
            () = &mut end => break Err(Failure::NotInTime(format!(
                "{names}: deleted, but not gone after {}: a host that can not be reached may still run it; see `lattice get actors`",
                duration::text(timeout)
            ))),
            _ = tokio::signal::ctrl_c() => break Err(Failure::Interrupted(format!(
                "no longer following; {names} is being deleted all the same"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::starting::tests::on;
    use proto::v1::StartStep;

    fn change(app: &str, revision: u64, version: u64) -> AppChange {
        AppChange { app: app.into(), change: "configured".into(), revision, version }
    }
    fn status(app: &str, revision: u64, state: &str, message: &str) -> WatchEvent {
        let status = AppStatus {
            name: app.into(),
            revision,
            state: state.into(),
            desired: 2,
            running: 1,
            message: message.into(),
            ..Default::default()
        };
        WatchEvent { index: 10, what: Some(What::App(status)) }
    }

    #[test]
    fn done_when_every_app_runs_with_its_revision() {
        let mut progress = Progress::new(&[change("a", 2, 5), change("b", 1, 5)]);
        let nothing: [&str; 0] = [];
        assert_eq!(progress.see(&status("a", 1, "running", ""), Duration::ZERO), nothing, "an older revision");
        assert!(progress.outcome().is_none());
        assert_eq!(progress.see(&status("a", 2, "deploying", ""), Duration::ZERO), ["app/a deploying 1/2"]);
        assert_eq!(progress.see(&status("a", 2, "deploying", ""), Duration::ZERO), nothing, "nothing new");
        progress.see(&status("a", 2, "running", ""), Duration::ZERO);
        progress.see(&status("b", 3, "running", ""), Duration::ZERO);
        assert_eq!(progress.outcome(), Some(Ok(())));
    }

    #[test]
    fn what_hosts_do_meanwhile_is_told_and_goes_on_by_time() {
        let mut progress = Progress::new(&[change("a", 1, 5)]);
        let seconds = Duration::from_secs;
        let at = |step, for_ms| {
            let mut event = status("a", 1, "deploying", "");
            let Some(What::App(app)) = &mut event.what else { panic!("no app") };
            app.starting = vec![on("edge", "web", step, for_ms)];
            event
        };
        let lines = progress.see(&at(StartStep::Fetching, 0), seconds(1));
        assert_eq!(lines, ["app/a deploying 1/2", "a/web on edge: fetching 3.1 of 12.4 MB"]);
        assert_eq!(progress.see(&at(StartStep::Compiling, 500), seconds(3)), ["a/web on edge: compiling"]);
        assert_eq!(progress.starting(seconds(7)), ["a/web on edge: compiling for 4 s"]);
        assert!(progress.see(&at(StartStep::Compiling, 6_000), seconds(9)).is_empty());
        assert_eq!(progress.starting(seconds(9)), ["a/web on edge: compiling for 6 s"]);
        let late = progress.late(seconds(60)).to_string();
        assert!(late.contains("1 of 2 run: a/web on edge: compiling for 6 s; it goes on"), "{late}");
        progress.see(&status("a", 1, "running", ""), seconds(10));
        assert!(progress.starting(seconds(10)).is_empty());
    }

    #[test]
    fn a_failed_app_gives_exit_code_1_and_its_reason() {
        let mut progress = Progress::new(&[change("a", 1, 5)]);
        let mut event = status("a", 1, "failed", "actor \"web\": traps at start\nwasm backtrace");
        let Some(What::App(app)) = &mut event.what else { panic!("no app") };
        app.failed = true;
        progress.see(&event, Duration::ZERO);
        let failure = progress.outcome().unwrap().unwrap_err();
        assert_eq!(failure.code(), 1);
        assert_eq!(failure.to_string(), "app/a failed: actor \"web\": traps at start wasm backtrace");
    }

    #[test]
    fn a_revision_that_fails_beside_a_running_one_gives_exit_code_1() {
        let mut progress = Progress::new(&[change("a", 2, 5)]);
        let mut event = status("a", 2, "degraded", "actor \"web\": traps at start");
        let Some(What::App(app)) = &mut event.what else { panic!("no app") };
        app.failed = true;
        progress.see(&event, Duration::ZERO);
        assert_eq!(progress.outcome().unwrap().unwrap_err().code(), 1);
    }

    #[test]
    fn time_over_gives_exit_code_3_and_the_reason() {
        let mut progress = Progress::new(&[change("a", 1, 5), change("b", 1, 5)]);
        progress.see(&status("a", 1, "deploying", "no host has label site=paris"), Duration::ZERO);
        progress.see(&status("b", 1, "running", ""), Duration::ZERO);
        let failure = progress.late(Duration::from_secs(60));
        assert_eq!(failure.code(), 3);
        let text = failure.to_string();
        assert!(text.contains("app/a is not running after 60s: 1 of 2 run: no host has label site=paris"), "{text}");
        assert!(!text.contains("app/b"), "{text}");
    }

    #[test]
    fn deleted_while_followed_fails_but_not_when_deleted_before() {
        let mut progress = Progress::new(&[change("a", 1, 5)]);
        progress.see(&WatchEvent { index: 4, what: Some(What::AppDeleted("a".into())) }, Duration::ZERO);
        assert!(progress.outcome().is_none());
        progress.see(&WatchEvent { index: 6, what: Some(What::AppDeleted("a".into())) }, Duration::ZERO);
        assert!(progress.outcome().unwrap().unwrap_err().to_string().contains("deleted meanwhile"));
    }
}
