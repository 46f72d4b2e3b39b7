//! Hosts and schedulers that die: what they ran answers elsewhere, what they knew is still known.

use crate::harness::{Broker, Lattice, SOON, http, manifests, scenarios, throughout, until};
use serde_json::json;
use std::time::{Duration, Instant};

scenarios!(
    what_a_lost_host_ran_answers_elsewhere_and_it_returns_without_strays,
    a_host_that_is_told_to_end_is_replaced_at_once,
    a_paused_host_wakes_without_strays,
    what_was_acknowledged_survives_a_kill,
    a_bus_that_went_away_is_found_again,
    everything_killed_is_back_without_an_apply,
    everything_interrupted_is_back_without_an_apply,
    a_host_boots_offline_from_its_last_assignment,
);

fn what_a_lost_host_ran_answers_elsewhere_and_it_returns_without_strays(broker: Broker) {
    let mut lattice = Lattice::start(broker);
    lattice.add_host("b", &[], false);
    lattice.until_hosts(&[("b", "ready")]);
    // "alone" runs on b only, "many" on both.
    lattice.ok(&["cordon", "a"]);
    lattice.apply(&manifests::Hello { name: "alone", ..Default::default() }.write(&lattice));
    lattice.ok(&["uncordon", "a"]);
    lattice.apply(&manifests::Hello { name: "many", replicas: 6, path: "/many", ..Default::default() }.write(&lattice));
    lattice.until_spread("alone", "hello", &[("b", 1)], SOON);
    until("six run", SOON, || {
        let spread = lattice.spread("many", "hello");
        (spread.len() == 2 && spread.values().map(|s| s.1).sum::<u64>() == 6).then_some(())
    });
    let at = lattice.ingress("a");
    assert_eq!(http::get(at, "/").status, 200, "over the bus");

    let killed = Instant::now();
    lattice.kill_host("b");
    until("it answers elsewhere", Duration::from_secs(20), || http::answers(at, ""));
    let moved = killed.elapsed();
    eprintln!("host killed to its actor answering elsewhere on {broker:?}: {:.2} s", moved.as_secs_f64());
    assert!(moved < Duration::from_secs(12), "{moved:?}");
    lattice.until_spread("alone", "hello", &[("a", 1)], SOON);
    lattice.until_spread("many", "hello", &[("a", 6)], SOON);
    assert_eq!((&lattice.host("b")["state"], &lattice.host("b")["running"]), (&json!("lost"), &json!(0)));

    // Back with its old assignment on disk, it stops what moved away, and nothing moves back.
    lattice.start_host("b");
    lattice.until_hosts(&[("b", "ready")]);
    until("b runs nothing", SOON, || (lattice.host("b")["running"] == 0).then_some(()));
    throughout("no strays", Duration::from_secs(3), || {
        let one = lattice.spread("alone", "hello") == [("a".to_owned(), (1, 1))].into();
        one && lattice.spread("many", "hello") == [("a".to_owned(), (6, 6))].into() && lattice.host("b")["running"] == 0
    });
    assert_eq!(http::get(at, "/").status, 200);
    // It is a host like any other: new replicas come to it.
    lattice.ok(&["scale", "many/hello", "8"]);
    lattice.until_spread("many", "hello", &[("a", 6), ("b", 2)], SOON);
}

/// Its goodbye goes with the connection that ends, and may be lost: then the timers see to it. Not twice, though.
fn a_host_that_is_told_to_end_is_replaced_at_once(broker: Broker) {
    let took = [(); 2].into_iter().map(|()| time_to_replace(broker)).find(|took| *took < Duration::from_secs(4));
    assert!(took.is_some(), "twice it was not told that the host ends");
}

/// From the host being told to end to its actor answering elsewhere.
fn time_to_replace(broker: Broker) -> Duration {
    let mut lattice = Lattice::start(broker);
    lattice.add_host("b", &[], false);
    lattice.until_hosts(&[("b", "ready")]);
    lattice.ok(&["cordon", "a"]);
    lattice.apply(&manifests::hello());
    lattice.ok(&["uncordon", "a"]);
    let at = lattice.ingress("a");
    assert_eq!(http::get(at, "/").status, 200);
    let told = Instant::now();
    lattice.interrupt_host("b");
    until("it answers elsewhere", SOON, || http::answers(at, ""));
    let took = told.elapsed();
    eprintln!("host told to end to its actor answering elsewhere on {broker:?}: {:.2} s", took.as_secs_f64());
    assert!(took < Duration::from_secs(14), "{took:?}");
    lattice.until_spread("hello", "hello", &[("a", 1)], SOON);
    lattice.start_host("b");
    lattice.until_hosts(&[("b", "ready")]);
    until("b runs nothing", SOON, || (lattice.host("b")["running"] == 0).then_some(()));
    took
}

/// Asleep long enough to be lost, it wakes with all it ran and knows of nothing.
fn a_paused_host_wakes_without_strays(broker: Broker) {
    let mut lattice = Lattice::start(broker);
    lattice.add_host("b", &[], true);
    lattice.until_hosts(&[("b", "ready")]);
    lattice.apply(&manifests::Hello { replicas: 4, ..Default::default() }.write(&lattice));
    lattice.until_spread("hello", "hello", &[("a", 2), ("b", 2)], SOON);
    lattice.process("b").pause();
    lattice.until_hosts(&[("b", "suspect")]);
    lattice.until_hosts(&[("b", "lost")]);
    lattice.until_spread("hello", "hello", &[("a", 4)], SOON);
    lattice.process("b").resume();
    lattice.until_hosts(&[("b", "ready")]);
    until("b runs nothing", SOON, || (lattice.host("b")["running"] == 0).then_some(()));
    // Its ingress serves by the others.
    until("its ingress answers", SOON, || http::answers(lattice.ingress("b"), ""));
    lattice.until_spread("hello", "hello", &[("a", 4)], SOON);
}

fn what_was_acknowledged_survives_a_kill(broker: Broker) {
    const ROUNDS: usize = 5;
    const NAMES: [&str; ROUNDS] = ["one", "two", "three", "four", "five"];
    let mut lattice = Lattice::start(broker);
    for (round, name) in NAMES.into_iter().enumerate() {
        let path: &'static str = ["/1", "/2", "/3", "/4", "/5"][round];
        let manifest = manifests::Hello { name, path, replicas: 2, ..Default::default() }.write(&lattice);
        lattice.ok(&["apply", "--detach", &manifest.display().to_string()]);
        let actor = format!("{name}/hello");
        lattice.ok(&["scale", &actor, "3"]);
        if round > 0 {
            lattice.ok(&["delete", "app", NAMES[round - 1], "--detach"]);
        }
        // The moment after the answer.
        lattice.restart_scheduler();
        until("it leads again", SOON, || (lattice.cli(&["get", "apps"]).code == 0).then_some(()));
        let apps = lattice.items("apps");
        let here = apps.iter().find(|a| a["name"] == name).unwrap_or_else(|| panic!("{name} is lost: {apps:?}"));
        assert_eq!((&here["revision"], &here["desired"]), (&json!(2), &json!(3)));
        if round > 0 {
            let gone = NAMES[round - 1];
            assert!(apps.iter().all(|a| a["name"] != gone || a["state"] == "deleting"), "{gone} is back: {apps:?}");
        }
    }
    until("the last one alone runs", SOON, || {
        let apps = lattice.items("apps");
        (apps.len() == 1 && apps[0]["state"] == "running" && apps[0]["running"] == 3).then_some(())
    });
    until("its route alone answers", SOON, || {
        let at = lattice.ingress("a");
        (http::get(at, "/5").status == 200 && http::get(at, "/4").status == 404).then_some(())
    });
}

fn a_bus_that_went_away_is_found_again(broker: Broker) {
    let mut lattice = Lattice::start_labelled(broker, &["tier=cloud"]);
    lattice.add_host("b", &["tier=edge"], true);
    lattice.until_hosts(&[("a", "ready"), ("b", "ready")]);
    lattice.apply(&manifests::Hello { on: "tier: edge", ..Default::default() }.write(&lattice));
    lattice.apply(&manifests::counter_apart());
    let count = |lattice: &Lattice| http::get_host(lattice.ingress("a"), "counter-apart.localhost", "/cats");
    assert_eq!(count(&lattice).text(), "1\n");
    let edge = lattice.ingress("b");
    for n in 2..=4 {
        lattice.kill_bus();
        // What needs no bus goes on as if nothing were.
        throughout("the edge answers alone", Duration::from_secs(1), || http::answers(edge, "").is_some());
        let begun = Instant::now();
        lattice.start_bus();
        let at = lattice.ingress("a");
        until("a reaches b again", SOON, || http::answers(at, ""));
        eprintln!("bus back to a call over it on {broker:?}: {:.2} s", begun.elapsed().as_secs_f64());
        until("the store is reached again", SOON, || {
            let response = count(&lattice);
            (response.status == 200).then(|| assert_eq!(response.text(), format!("{n}\n")))
        });
        lattice.until_hosts(&[("a", "ready"), ("b", "ready")]);
    }
    // Nothing was moved, nothing was lost.
    lattice.until_spread("hello", "hello", &[("b", 1)], SOON);
    assert_eq!(lattice.items("revisions").len(), 2);
    lattice.ok(&["scale", "hello/hello", "2"]);
    lattice.until_spread("hello", "hello", &[("b", 2)], SOON);
}

fn everything_killed_is_back_without_an_apply(broker: Broker) {
    let mut lattice = Lattice::start_labelled(broker, &["tier=cloud"]);
    lattice.add_host("b", &["tier=edge"], false);
    lattice.until_hosts(&[("a", "ready"), ("b", "ready")]);
    lattice.apply(&manifests::hello());
    lattice.apply(&manifests::counter_apart());
    let count = |lattice: &Lattice| http::get_host(lattice.ingress("a"), "counter-apart.localhost", "/cats");
    assert_eq!(count(&lattice).text(), "1\n");
    let revisions = lattice.items("revisions");

    lattice.kill_host("b");
    lattice.kill_main();
    let begun = Instant::now();
    lattice.start_main();
    lattice.start_host("b");
    let at = lattice.ingress("a");
    until("hello answers", SOON, || (http::get(at, "/").status == 200).then_some(()));
    eprintln!("everything started again to first 200 on {broker:?}: {:.2} s", begun.elapsed().as_secs_f64());
    until("the counter goes on", SOON, || {
        let response = count(&lattice);
        (response.status == 200).then(|| assert_eq!(response.text(), "2\n"))
    });
    lattice.until_hosts(&[("a", "ready"), ("b", "ready")]);
    assert_eq!(lattice.items("revisions"), revisions);
    until("both apps run", SOON, || lattice.items("apps").iter().all(|a| a["state"] == "running").then_some(()));
}

fn everything_interrupted_is_back_without_an_apply(broker: Broker) {
    let mut lattice = Lattice::start(broker);
    lattice.apply(&manifests::hello());
    lattice.apply(&manifests::counter());
    let count = |lattice: &Lattice| http::get_host(lattice.ingress("a"), "counter.localhost", "/cats");
    assert_eq!(count(&lattice).text(), "1\n");
    for n in 2..=3 {
        lattice.interrupt_main();
        lattice.start_main();
        let at = lattice.ingress("a");
        until("hello answers", SOON, || (http::get(at, "/").status == 200).then_some(()));
        until("the counter goes on", SOON, || {
            let response = count(&lattice);
            (response.status == 200).then(|| assert_eq!(response.text(), format!("{n}\n")))
        });
    }
    until("both apps run", SOON, || lattice.items("apps").iter().all(|a| a["state"] == "running").then_some(()));
    assert_eq!(lattice.items("hosts").len(), 1, "it is the same host");
}

fn a_host_boots_offline_from_its_last_assignment(broker: Broker) {
    let mut lattice = Lattice::start(broker);
    lattice.add_host("b", &[], true);
    lattice.until_hosts(&[("b", "ready")]);
    lattice.ok(&["cordon", "a"]);
    lattice.apply(&manifests::hello());
    lattice.apply(&manifests::counter());
    let count = |lattice: &Lattice| http::get_host(lattice.ingress("b"), "counter.localhost", "/cats");
    assert_eq!(count(&lattice).text(), "1\n");

    lattice.kill_host("b");
    lattice.kill_main();
    let begun = Instant::now();
    lattice.start_host("b");
    let at = lattice.ingress("b");
    until("hello answers offline", SOON, || (http::get(at, "/").status == 200).then_some(()));
    eprintln!("offline boot to first 200 on {broker:?}: {:.2} s", begun.elapsed().as_secs_f64());
    // Its store takes a moment to open; a call that comes before that looks for it on the bus, which is away.
    until("its store is open", SOON, || {
        let opened = lattice.process("b").stderr().matches("component=store").count();
        (opened == 2).then_some(())
    });
    until("the counter goes on offline", SOON, || {
        let response = count(&lattice);
        (response.status == 200).then(|| assert_eq!(response.text(), "2\n"))
    });

    // The others come back, and it joins with what it runs.
    lattice.start_main();
    lattice.until_hosts_within(&[("b", "ready")], Duration::from_secs(30));
    lattice.until_spread("hello", "hello", &[("b", 1)], SOON);
    assert_eq!(http::get(at, "/").status, 200);
    assert_eq!(count(&lattice).text(), "3\n");
    lattice.ok(&["scale", "hello/hello", "3"]);
    lattice.until_spread("hello", "hello", &[("b", 3)], SOON);
}
