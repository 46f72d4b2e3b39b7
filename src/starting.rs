//! What hosts do to bring an app up, as lines for whoever waits for it. Pure.

use crate::print;
use proto::starting;
use proto::v1::{AppStatus, StartStatus, Starting};
use std::collections::{BTreeMap, BTreeSet};

/// Hosts that a line names; of more it has the number.
const NAMES_MAX: usize = 3;
/// Steps that are told in all where nothing is redrawn.
const TOLD_MAX: usize = 200;

/// `hello/web on edge-1: fetching 3.1 of 12.4 MB`, as of `later_ms` after it was told: a line for all hosts that do the
/// same for an actor.
pub(crate) fn lines(app: &AppStatus, later_ms: u64) -> Vec<String> {
    let mut lines = merged(app, app.starting.iter(), later_ms);
    if app.starting_more > 0 {
        lines.push(format!("{}: {} more are being started", app.name, app.starting_more));
    }
    lines
}

/// What was told already, where every line stays. Bounded: what comes beyond is not told.
#[derive(Debug, Default)]
pub(crate) struct Told(BTreeSet<(String, String, String, i32)>);

impl Told {
    /// Lines for what hosts do now and did not before: a step that is taken again, after a failure, is not told again.
    pub(crate) fn news(&mut self, app: &AppStatus) -> Vec<String> {
        let mut is_new = |one: &&StartStatus| {
            let Some(Starting { component, step, .. }) = &one.starting else { return false };
            let key = (app.name.clone(), component.clone(), one.host_name.clone(), *step);
            self.0.len() < TOLD_MAX && self.0.insert(key)
        };
        let fresh: Vec<&StartStatus> = app.starting.iter().filter(|one| is_new(one)).collect();
        merged(app, fresh.into_iter(), 0)
    }
}

fn merged<'a>(app: &AppStatus, all: impl Iterator<Item = &'a StartStatus>, later_ms: u64) -> Vec<String> {
    let mut alike: BTreeMap<(&str, i32), Vec<(&str, &Starting)>> = BTreeMap::new();
    for one in all {
        let Some(starting) = &one.starting else { continue };
        alike.entry((&starting.component, starting.step)).or_default().push((&one.host_name, starting));
    }
    let line = |((actor, _), hosts): ((&str, i32), Vec<(&str, &Starting)>)| {
        let text = starting::text(&together(&hosts), later_ms);
        print::clean(&format!("{}/{actor} on {}: {text}", app.name, named(&hosts)))
    };
    alike.into_iter().map(line).collect()
}

/// All bytes, and the longest time.
fn together(hosts: &[(&str, &Starting)]) -> Starting {
    let sum = |of: fn(&Starting) -> u64| hosts.iter().map(|(_, one)| of(one)).fold(0, u64::saturating_add);
    let for_ms = hosts.iter().map(|(_, one)| one.for_ms).max().unwrap_or(0);
    let step = hosts.first().map_or(0, |(_, one)| one.step);
    Starting { step, for_ms, bytes: sum(|s| s.bytes), bytes_total: sum(|s| s.bytes_total), ..Starting::default() }
}

fn named(hosts: &[(&str, &Starting)]) -> String {
    if hosts.len() > NAMES_MAX {
        return format!("{} hosts", hosts.len());
    }
    hosts.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proto::v1::StartStep;

    pub(crate) fn on(host: &str, actor: &str, step: StartStep, for_ms: u64) -> StartStatus {
        let (bytes, bytes_total) = if step == StartStep::Fetching { (3_100_000, 12_400_000) } else { (0, 0) };
        let component = actor.to_owned();
        let starting = Starting { component, step: step.into(), for_ms, bytes, bytes_total, ..Starting::default() };
        StartStatus { host_name: host.to_owned(), starting: Some(starting) }
    }

    fn app(starting: Vec<StartStatus>) -> AppStatus {
        AppStatus { name: "shop".into(), starting, ..AppStatus::default() }
    }

    #[test]
    fn hosts_that_do_the_same_are_one_line() {
        use StartStep::{CompileQueued, Compiling, Fetching};
        assert!(lines(&app(Vec::new()), 0).is_empty());
        let some = app(vec![
            on("a", "web", Compiling, 1_000),
            on("b", "web", Compiling, 3_000),
            on("c", "web", Fetching, 0),
            on("d", "web", Fetching, 0),
            on("a", "cart", CompileQueued, 500),
        ]);
        assert_eq!(
            lines(&some, 1_000),
            [
                "shop/cart on a: waits to be compiled",
                "shop/web on c, d: fetching 6.2 of 24.8 MB",
                "shop/web on a, b: compiling for 4 s",
            ]
        );
        let names: Vec<String> = (0..4).map(|n| format!("h{n}")).collect();
        let many = names.iter().map(|name| on(name, "web", Compiling, 0)).collect();
        let many = AppStatus { starting_more: 7, ..app(many) };
        assert_eq!(lines(&many, 0), ["shop/web on 4 hosts: compiling", "shop: 7 more are being started"]);
        // What a host calls itself moves no cursor.
        assert!(!lines(&app(vec![on("\x1b[2J", "web", Compiling, 0)]), 0)[0].contains('\x1b'));
    }

    #[test]
    fn where_lines_stay_each_step_is_told_once() {
        use StartStep::{Compiling, Fetching};
        let mut told = Told::default();
        let one = app(vec![on("a", "web", Fetching, 0)]);
        assert_eq!(told.news(&one), ["shop/web on a: fetching 3.1 of 12.4 MB"]);
        assert!(told.news(&one).is_empty());
        let both = app(vec![on("a", "web", Compiling, 0), on("b", "web", Compiling, 0)]);
        assert_eq!(told.news(&both), ["shop/web on a, b: compiling"]);
        let later = app(vec![on("a", "web", Compiling, 9_000), on("b", "web", Fetching, 0)]);
        assert_eq!(told.news(&later), ["shop/web on b: fetching 3.1 of 12.4 MB"]);
        // It failed, and begins once more.
        assert!(told.news(&one).is_empty());
        let names: Vec<String> = (0..TOLD_MAX * 2).map(|n| format!("h{n}")).collect();
        for name in &names {
            told.news(&app(vec![on(name, "web", Compiling, 0)]));
        }
        assert_eq!(told.0.len(), TOLD_MAX);
    }
}
