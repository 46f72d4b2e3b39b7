//! What `lattice status` says while a scheduler, a host, the bus and the quorum are gone, one after the other, and what it
//! says once they are back; and what a host says of itself without a bus.

use crate::harness::http;
use crate::harness::{Broker, Cluster, PROGRAM, Process, SOON, address, clean, run, until};
use serde_json::{Value, json};
use std::process::Command;
use std::time::{Duration, Instant};

/// A host is lost after 10 s.
const LOST: Duration = Duration::from_secs(40);

#[test]
fn status_names_what_is_not_reached() {
    run("status_names_what_is_not_reached", Broker::Nats, |_| named());
}

fn named() {
    let mut cluster = Cluster::start(3);
    let mut host = with_admin(&cluster);
    let admin = address(&host.field("admin"));
    cluster.add_host("b", false);
    cluster.add_host("c", false);
    (1..=3).for_each(|id| cluster.until_hosts(id, 3));
    all_well(&cluster);
    assert_eq!(http::get(admin, "/readyz").text(), "ready\n");

    scheduler_gone(&mut cluster);
    host_gone(&mut cluster);
    bus_gone(&mut cluster, &host, admin);
    quorum_gone(&mut cluster);
}

fn with_admin(cluster: &Cluster) -> Process {
    let mut command = Command::new(PROGRAM);
    command.args(["host", "--name", "a", "--admin", "127.0.0.1:0", "--nats", &cluster.bus(), "--data"]);
    Process::spawn("host-a", cluster.path(), clean(&mut command).arg(cluster.path().join("host-a")))
}

fn status(cluster: &Cluster, id: u64) -> Value {
    serde_json::from_str(&cluster.ok(id, &["status", "-o", "json"])).unwrap()
}

/// Waits until scheduler `id` says so; gives what it says, and the text for people.
fn until_said(
    cluster: &Cluster,
    id: u64,
    what: &str,
    within: Duration,
    so: impl Fn(&Value) -> bool,
) -> (Value, String) {
    let end = Instant::now() + within;
    loop {
        let said = status(cluster, id);
        if so(&said) {
            return (said, cluster.ok(id, &["status"]));
        }
        assert!(Instant::now() < end, "scheduler {id} does not say {what} within {within:?}: {said:#}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Every scheduler says that nothing is missing, and who leads.
fn all_well(cluster: &Cluster) {
    for id in 1..=3 {
        let (said, text) = until_said(cluster, id, "that all is well", LOST, |said| {
            let lists =
                said["unreached"] == json!([]) && said["silent"] == json!([]) && said["unanswered"] == json!([]);
            let bus = said["bus"] == "connected" && said["bus_up"] == true && said["seen_by_bus"] == "connected";
            said["fresh"] == true && said["brake"] == false && lists && bus
        });
        let leader = said["leader_id"].as_u64().unwrap();
        let at = &cluster.schedulers[&leader];
        assert_eq!((said["id"].as_u64(), said["seen_by"].as_u64()), (Some(id), Some(leader)), "{said}");
        assert_eq!((said["leader_address"].as_str(), said["leader_api"].as_str()), (Some(&*at.peer), Some(&*at.api)));
        assert_eq!((&said["schedulers"], &said["hosts"], &said["alone"]), (&json!(3), &json!(3), &json!("")), "{said}");
        assert_eq!(said["leader"] == true, leader == id, "{said}");
        for line in [
            format!("Leader:       scheduler {leader} at {}, API {}", at.peer, at.api),
            "Bus:          connected".into(),
            "Schedulers:   3".into(),
            "Hosts:        3".into(),
        ] {
            assert!(text.lines().any(|l| l.trim_end() == line), "{line}: {text}");
        }
        // The log may have gone on between the two.
        let index = text.lines().find_map(|l| l.strip_prefix("Log index:")).map(str::trim);
        let index = index.and_then(|l| l.strip_suffix(", confirmed by most schedulers")?.parse::<u64>().ok());
        assert!(index >= said["index"].as_u64() && index.is_some(), "{text}");
        assert!(!text.contains("not reached") && !text.contains("not heard") && !text.contains("Brake"), "{text}");
    }
}

fn scheduler_gone(cluster: &mut Cluster) {
    let leader = cluster.leader();
    let mut others = (1..=3).filter(|id| *id != leader);
    let (gone, left) = (others.next().unwrap(), others.next().unwrap());
    cluster.kill(gone);
    for id in [leader, left] {
        let (said, text) = until_said(cluster, id, "who is gone", SOON, |said| {
            // As the leader sees it, and as it sees it itself.
            let all = said["unreached"].as_array().unwrap();
            let refused = |u: &Value| u["id"] == gone && u["why"].as_str().unwrap().contains("refused");
            [leader, id].iter().all(|from| all.iter().any(|u| u["from"] == *from && refused(u)))
        });
        let peer = &cluster.schedulers[&gone].peer;
        let all = said["unreached"].as_array().unwrap();
        assert!(all.iter().all(|u| u["id"] == gone && u["address"].as_str() == Some(peer.as_str())), "{said}");
        let why = all[0]["why"].as_str().unwrap();
        assert!(why.contains(&format!("lattice schedulers remove {gone}")), "{said}");
        assert!(said["fresh"] == true && said["silent"] == json!([]), "{said}");
        assert!(text.contains("Schedulers:   3, 1 not reached"), "{text}");
        let row =
            text.lines().find(|l| l.trim_start().starts_with(&format!("{gone} "))).unwrap_or_else(|| panic!("{text}"));
        assert!(
            row.contains(peer.as_str()) && row.contains(&format!("scheduler {leader}")) && row.contains(why),
            "{row}"
        );
    }
    cluster.restart(gone);
    all_well(cluster);
}

fn host_gone(cluster: &mut Cluster) {
    cluster.hosts.get_mut("b").unwrap().0.kill();
    let silent = |said: &Value, state: &str| {
        let all = said["silent"].as_array().unwrap();
        all.len() == 1
            && all[0]["name"] == "b"
            && all[0]["state"] == state
            && all[0]["silent_ms"].as_u64() >= Some(6_000)
    };
    let (_, text) = until_said(cluster, 1, "that b is suspect", LOST, |said| silent(said, "suspect"));
    assert!(text.contains("Hosts:        3, 1 suspect") || text.contains("Hosts:        3, 1 lost"), "{text}");
    for id in 1..=3 {
        let (said, text) = until_said(cluster, id, "that b is lost", LOST, |said| silent(said, "lost"));
        assert!(
            said["silent"][0]["heard"] == true && said["brake"] == false && said["unreached"] == json!([]),
            "{said}"
        );
        assert!(text.contains("Hosts:        3, 1 lost"), "{text}");
        let title = format!("Hosts not heard by scheduler {}:", said["leader_id"]);
        assert!(text.contains(&title) && text.lines().any(|l| l.starts_with("  b ") && l.contains("lost")), "{text}");
    }
    cluster.add_host("b", false);
    all_well(cluster);
}

fn bus_gone(cluster: &mut Cluster, host: &Process, admin: std::net::SocketAddr) {
    let gauge = || {
        let page = http::get(admin, "/metrics").text();
        page.lines().find_map(|line| line.strip_prefix("lattice_host_bus_up ")?.parse::<f64>().ok()).unwrap()
    };
    assert_eq!(gauge(), 1.0);
    assert!(!host.stderr().contains("bus disconnected"), "{}", host.stderr());
    cluster.kill_bus();
    for id in 1..=3 {
        let (said, text) = until_said(cluster, id, "that the bus is gone and the brake holds", LOST, |said| {
            let problem = said["bus_problem"].as_str().unwrap();
            said["bus_up"] == false && !problem.is_empty() && said["brake"] == true
        });
        let bus = said["bus"].as_str().unwrap();
        assert!(bus.starts_with("not connected: ") && bus.contains("check --nats"), "{said}");
        assert!(said["seen_by_bus"].as_str().unwrap().starts_with("not connected: "), "{said}");
        // Schedulers need no bus among themselves, and nothing is given up.
        assert!(said["fresh"] == true && said["unreached"] == json!([]), "{said}");
        let silent = said["silent"].as_array().unwrap();
        assert!(silent.len() == 3 && silent.iter().all(|host| host["state"] == "suspect"), "{said}");
        assert!(text.contains(&format!("Bus:          {bus}")), "{text}");
        assert!(
            text.contains("Hosts:        3, 3 suspect") && text.contains("Brake:        holds: most hosts"),
            "{text}"
        );
    }
    let lacks = until("the host says that it has no bus", SOON, || {
        let answer = http::get(admin, "/readyz");
        (answer.status == 200 && answer.text().contains("check --nats")).then(|| answer.text())
    });
    assert!(lacks.starts_with("ready\nhost: the bus is not connected: "), "{lacks}");
    assert_eq!(gauge(), 0.0);
    let log = host.stderr();
    assert!(log.contains("bus disconnected"), "{log}");
    cluster.restart_bus();
    all_well(cluster);
    until("the host is well again", SOON, || (http::get(admin, "/readyz").text() == "ready\n").then_some(()));
    assert_eq!(gauge(), 1.0);
}

fn quorum_gone(cluster: &mut Cluster) {
    let leader = cluster.leader();
    let mut others = (1..=3).filter(|id| *id != leader);
    let (other, left) = (others.next().unwrap(), others.next().unwrap());
    cluster.kill(leader);
    cluster.kill(other);
    let (said, text) = until_said(cluster, left, "that it is alone", SOON, |said| {
        let away: Vec<u64> = said["unreached"].as_array().unwrap().iter().filter_map(|u| u["id"].as_u64()).collect();
        said["fresh"] == false && said["leader_id"] == 0 && away.contains(&leader) && away.contains(&other)
    });
    assert!(
        !said["alone"].as_str().unwrap().is_empty() && said["seen_by"] == left && said["silent"] == json!([]),
        "{said}"
    );
    assert!(text.contains("Leader:       nobody leads") && text.contains("Schedulers:   3, 2 not reached"), "{text}");
    assert!(text.contains(&format!("{}, what scheduler {left} knows alone: ", said["index"])), "{text}");
    cluster.restart(leader);
    cluster.restart(other);
    all_well(cluster);
}
