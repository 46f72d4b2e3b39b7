//! Hosts among themselves: a component that one has, another gets, with no scheduler in between. On nats-server only:
//! the embedded broker goes with the scheduler.

use crate::harness::{Broker, Lattice, SOON, http, manifests, run, until};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

/// How long it takes a host at most to try again what it could not start.
const RETRIED: Duration = Duration::from_secs(70);

#[test]
fn a_host_gets_a_component_from_another_when_the_scheduler_is_gone() {
    run("a component from another host", Broker::Nats, gets_it_from_another);
}

fn gets_it_from_another(broker: Broker) {
    let mut lattice = Lattice::start(broker);
    lattice.add_host("b", &[], true);
    lattice.until_hosts(&[("b", "ready")]);
    lattice.apply(&manifests::Hello { replicas: 2, ..Default::default() }.write(&lattice));
    lattice.until_spread("hello", "hello", &[("a", 1), ("b", 1)], SOON);
    let held = |host: &str| {
        let folder = lattice.dir().join(format!("host-{host}/artifacts"));
        let files: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
        assert_eq!(files.len(), 1, "{files:?}");
        files[0].clone()
    };
    let (of_a, of_b) = (held("a"), held("b"));
    let component = fs::read(&of_a).unwrap();
    let forget = |file: &PathBuf, lattice: &Lattice| {
        fs::remove_file(file).unwrap();
        fs::remove_dir_all(lattice.dir().join("host-b/compiled")).unwrap();
    };

    lattice.kill_scheduler();
    lattice.kill_host("b");
    forget(&of_b, &lattice);
    lattice.start_host("b");
    let served = || (http::get(lattice.ingress("b"), "/").status == 200).then_some(());
    until("b has the component", SOON, || (fs::read(&of_b).ok()? == component).then_some(()));
    // Not from b's neighbour by way of the bus: it says itself that it runs.
    until("b serves it", SOON, served);
    assert!(lattice.log_of("b").contains("artifact fetched"), "{}", lattice.log_of("b"));

    // What rotted on its holder's disk is not taken for it, and given up by its holder.
    lattice.kill_host("b");
    forget(&of_b, &lattice);
    let mut rotten = component.clone();
    let last = rotten.len() - 1;
    rotten[last] ^= 1;
    fs::write(&of_a, rotten).unwrap();
    lattice.kill_host("a");
    lattice.start_host("a");
    lattice.start_host("b");
    until("a gave it up", SOON, || (!of_a.exists()).then_some(()));
    until("b says so", SOON, || lattice.log_of("b").contains("not running").then_some(()));
    assert!(!of_b.exists(), "b has what nobody has");

    // The scheduler is back, and with it the component.
    lattice.start_scheduler();
    until("b has it again", RETRIED, || (fs::read(&of_b).ok()? == component).then_some(()));
    lattice.until_hosts(&[("a", "ready"), ("b", "ready")]);
    until("b serves it again", SOON, || (http::get(lattice.ingress("b"), "/").status == 200).then_some(()));
    lattice.assert_alive();
}
