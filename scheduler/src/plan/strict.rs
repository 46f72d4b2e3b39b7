//! Components of which at most one replica runs at any time: stopped where it runs before it is placed elsewhere, and
//! placed only when nobody can run it any more. A host that is lost can not: its lease ended before.

use super::component::{Planned, change};
use super::fill::{Room, fill};
use super::hosts::Columns;
use super::observed::Observed;
use super::spread::shares;
use super::{Plan, Unplaced};
use crate::state::{HostState, Placed, State};
use proto::app::{HostId, Name, Spread};
use proto::fault::{Fault, built_in};
use std::collections::BTreeMap;

/// The host that shall have it, if any may now.
pub(super) fn want(
    planned: &Planned<'_>,
    replicas: u32,
    spread: &[Spread],
    placed: &BTreeMap<HostId, Placed>,
    columns: &mut Columns<'_>,
    plan: &mut Plan,
) -> BTreeMap<usize, u64> {
    let Some((share, _)) = shares(replicas, spread).into_iter().find(|(_, n)| *n > 0) else { return BTreeMap::new() };
    let fits = planned.fits(spread, columns)[share].clone();
    let able = |number: usize| fits[number] && leases(columns.hosts[number]);
    let here = placed.keys().find_map(|id| columns.number(id)).filter(|number| able(*number));
    if let Some(number) = here
        && !columns.hosts[number].lost
        && !columns.hosts[number].draining
    {
        return BTreeMap::from([(number, 1)]);
    }
    let room = |host| Room { host, count: 0, load: columns.load[host] };
    let others = (0..columns.ids.len()).filter(|n| Some(*n) != here && able(*n) && columns.hosts[*n].takes_new());
    let rooms: Vec<Room> = others.map(room).collect();
    if rooms.is_empty() {
        // A host that is lost may come back with it; one that drains goes on until there is another.
        if here.is_none() {
            plan.unplaced.push(planned.unplaced(share, 1, None));
        }
        return here.map(|number| (number, 1)).into_iter().collect();
    }
    let runs_on = placed.keys().chain(planned.state.homes.get(planned.key));
    let mut may_run = runs_on.filter(|host| !is_over(planned.state, planned.observed, host, planned.key, placed));
    if let Some(host) = may_run.next() {
        // Where it may run still, it may also run again.
        let again = columns.number(host).filter(|n| placed.is_empty() && rooms.iter().any(|room| room.host == *n));
        if again.is_none() {
            plan.unplaced.push(waits_for(planned, host));
        }
        return again.map(|number| (number, 1)).into_iter().collect();
    }
    let chosen = fill(1, rooms);
    for (host, n) in &chosen {
        columns.load[*host] += n;
    }
    chosen.into_iter().collect()
}

/// Whether it runs on `host` no more, and can not begin to.
fn is_over(
    state: &State,
    observed: &Observed,
    host: &HostId,
    key: &(Name, Name),
    placed: &BTreeMap<HostId, Placed>,
) -> bool {
    let Some(record) = state.hosts.get(host) else { return true };
    let stopped = !placed.contains_key(host) && observed.has_stopped(host, key, record.generation);
    record.lost || stopped || built_in(Fault::SlotFreedEarly)
}

/// Whether a host knows what a lease is.
fn leases(host: &HostState) -> bool {
    host.hello.facts.as_ref().is_some_and(|facts| facts.leases)
}

fn waits_for(planned: &Planned<'_>, host: &HostId) -> Unplaced {
    let name = planned.state.hosts.get(host).map_or(host.as_str(), |record| record.hello.name.as_str());
    let why =
        format!("it is strict, and host {name} has not said that it stopped it; it is placed when it does, or is lost");
    Unplaced { app: planned.key.0.clone(), component: planned.key.1.clone(), missing: 1, why }
}

/// Of apps that are gone: where something strict ran, and is over now, needs not be remembered.
pub(super) fn forget(state: &State, observed: &Observed, plan: &mut Plan) {
    let none = BTreeMap::new();
    let gone = state.homes.iter().filter(|(key, _)| !state.apps.contains_key(&key.0));
    for (key, host) in gone.filter(|(key, host)| is_over(state, observed, host, key, &none)) {
        plan.changes.push(change(host, &key.0, &key.1, 0, 0));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "helpers of tests")]
    use super::super::tests::{Lab, app, host_id};
    use proto::app::{App, Scaler, Spread};
    use proto::v1 as pb;
    use proto::v1::command::What;

    fn solo(image: &str, replicas: u32) -> App {
        let mut app = app(image, Scaler::Spread { replicas, spread: Vec::new() });
        app.components.get_mut("cart").unwrap().strict = true;
        app
    }

    fn drain(lab: &mut Lab, host: &str, draining: bool) {
        lab.command(What::SetCordon(pb::SetCordon { host: host.into(), cordoned: draining, draining }));
    }

    /// On h0, of two hosts.
    fn lab() -> Lab {
        let mut lab = Lab::new(&["", ""]);
        drain(&mut lab, "h1", true);
        lab.apply(&solo("a", 1));
        lab.settle();
        drain(&mut lab, "h1", false);
        lab.settle();
        assert_eq!(lab.placed("cart"), "h0:1");
        lab
    }

    #[test]
    fn it_stops_here_before_it_starts_there() {
        let mut lab = lab();
        lab.deaf.insert(host_id(0));
        drain(&mut lab, "h0", true);
        lab.round();
        assert_eq!(lab.placed("cart"), "", "it stops first");
        for _ in 0..30 {
            let plan = lab.round();
            assert!(plan.unplaced[0].why.contains("host h0 has not said that it stopped"), "{:?}", plan.unplaced);
        }
        lab.deaf.clear();
        lab.settle();
        assert_eq!(lab.placed("cart"), "h1:1");
    }

    #[test]
    fn a_lost_host_has_no_lease_any_more() {
        let mut lab = lab();
        lab.dead.insert(host_id(0));
        while !lab.state.hosts[&host_id(0)].lost {
            assert_eq!(lab.placed("cart"), "h0:1");
            lab.round();
        }
        lab.settle();
        assert_eq!(lab.placed("cart"), "h1:1");
        // Nothing moves when it returns.
        lab.dead.clear();
        lab.settle();
        assert_eq!(lab.placed("cart"), "h1:1");
        // When nobody can take it, it waits where it was.
        lab.dead.extend([host_id(0), host_id(1)]);
        (0..14).for_each(|_| drop(lab.round()));
        assert_eq!(lab.placed("cart"), "h1:1");
    }

    #[test]
    fn an_app_that_was_deleted_and_is_back_waits_for_the_host_that_may_run_it() {
        let mut lab = lab();
        lab.deaf.insert(host_id(0));
        drain(&mut lab, "h0", true);
        lab.command(What::DeleteApp(pb::DeleteApp { app: "shop".into(), if_version: 0 }));
        lab.round();
        assert!(lab.state.apps.is_empty());
        lab.apply(&solo("b", 1));
        for _ in 0..5 {
            lab.round();
            assert_eq!(lab.placed("cart"), "");
        }
        // Without it in between, too.
        let mut other = solo("c", 1);
        let component = *other.components.remove("cart").unwrap();
        let mail = proto::app::Component { strict: false, ..component };
        other.components.insert("mail".parse().unwrap(), Box::new(mail));
        for app in [&other, &solo("d", 1)] {
            lab.command(What::DeleteApp(pb::DeleteApp { app: "shop".into(), if_version: 0 }));
            lab.round();
            lab.apply(app);
            lab.round();
            assert_eq!(lab.placed("cart"), "");
        }
        lab.deaf.clear();
        lab.settle();
        assert_eq!(lab.placed("cart"), "h1:1");
        // What is not needed is not remembered.
        lab.command(What::DeleteApp(pb::DeleteApp { app: "shop".into(), if_version: 0 }));
        lab.settle();
        lab.settle();
        assert!(lab.state.homes.is_empty(), "{:?}", lab.state.homes);
    }

    #[test]
    fn where_it_may_run_still_does_not_bind_what_is_not_strict_any_more() {
        let mut lab = lab();
        lab.dead.insert(host_id(0));
        lab.command(What::DeleteApp(pb::DeleteApp { app: "shop".into(), if_version: 0 }));
        lab.round();
        assert!(lab.state.apps.is_empty() && !lab.state.homes.is_empty());
        let loose = app("b", Scaler::Spread { replicas: 3, spread: Vec::new() });
        assert_eq!(lab.apply(&loose).error, "");
        while !lab.state.hosts[&host_id(0)].lost {
            lab.round();
        }
        lab.settle();
        assert_eq!(lab.placed("cart"), "h1:3");
    }

    #[test]
    fn it_is_scaled_to_nothing_and_back_and_its_revisions_follow() {
        let mut lab = lab();
        lab.apply(&solo("a", 0));
        lab.settle();
        assert_eq!(lab.placed("cart"), "");
        lab.apply(&solo("b", 1));
        lab.settle();
        assert_eq!(lab.placed("cart").len(), 4);
        let scale = |replicas| pb::ScaleActor { app: "shop".into(), actor: "cart".into(), replicas, if_version: 0 };
        assert!(lab.command(What::ScaleActor(scale(2))).error.contains("is strict"));
        let two = lab.apply(&solo("b", 2));
        assert!(two.error.contains("is strict: it has 0 or 1"), "{two:?}");
        let mut loose = solo("b", 1);
        loose.components.get_mut("cart").unwrap().strict = false;
        let refused = lab.apply(&loose);
        assert!(refused.error.contains("give the component another name"), "{refused:?}");
    }

    #[test]
    fn it_needs_a_host_that_knows_leases_and_fits() {
        let mut lab = lab();
        let mut app = solo("a", 1);
        let scaler = &mut app.components.get_mut("cart").unwrap().scaler;
        let requirements = [("zone".to_owned(), "b".to_owned())].into();
        *scaler = Scaler::Spread { replicas: 1, spread: vec![Spread { name: String::new(), requirements, weight: 1 }] };
        lab.apply(&app);
        lab.settle();
        assert_eq!(lab.placed("cart"), "");
        let mut hello = lab.state.hosts[&host_id(1)].hello.clone();
        hello.labels.insert("zone".into(), "b".into());
        hello.facts.as_mut().unwrap().leases = false;
        let mut register = |lab: &mut Lab, leases| {
            hello.facts.as_mut().unwrap().leases = leases;
            lab.command(What::RegisterHost(pb::RegisterHost { hello: Some(hello.clone()) }));
            lab.settle();
        };
        register(&mut lab, false);
        assert_eq!(lab.placed("cart"), "");
        register(&mut lab, true);
        assert_eq!(lab.placed("cart"), "h1:1");
    }
}
