//! Three schedulers, each a process of its own: any of them is asked, the leader dies or is told to end, disks are lost,
//! members are removed and replaced. On nats-server only: the embedded broker belongs to a lattice in one process.

use crate::harness::{Broker, Cluster, PROGRAM, Process, SOON, clean, finish, http, run, throughout, until};
use proto::v1::ScaleRequest;
use proto::v1::control_client::ControlClient;
use std::process::Command;
use std::time::{Duration, Instant};

/// Of a leader, before another one is sought, at the least.
const SILENCE: Duration = Duration::from_secs(1);

#[test]
fn the_leader_dies_and_the_others_go_on() {
    run("the_leader_dies_and_the_others_go_on", Broker::Nats, |_| leader_dies());
}

#[test]
fn a_leader_that_is_told_to_end_hands_over() {
    run("a_leader_that_is_told_to_end_hands_over", Broker::Nats, |_| leader_ends());
}

#[test]
fn a_lost_disk_is_replaced_under_a_new_id() {
    run("a_lost_disk_is_replaced_under_a_new_id", Broker::Nats, |_| disk_lost());
}

#[test]
fn one_whose_folder_was_emptied_never_votes_under_its_old_id() {
    run("one_whose_folder_was_emptied_never_votes_under_its_old_id", Broker::Nats, |_| emptied());
}

#[test]
fn all_of_them_come_back_at_new_addresses() {
    run("all_of_them_come_back_at_new_addresses", Broker::Nats, |_| all_move());
}

#[test]
fn one_that_stands_by_replaces_one_that_is_gone_for_long() {
    run("one_that_stands_by_replaces_one_that_is_gone_for_long", Broker::Nats, |_| gone_for_long());
}

#[test]
fn certificates_are_renewed_and_one_from_the_cupboard_gets_in() {
    run("certificates_are_renewed_and_one_from_the_cupboard_gets_in", Broker::Nats, |_| short_leaves());
}

#[test]
fn who_joins_or_leaves_wrongly_is_told_so() {
    run("who_joins_or_leaves_wrongly_is_told_so", Broker::Nats, |_| wrong_ways());
}

fn leader_dies() {
    let mut cluster = Cluster::start(3);
    cluster.add_host("a", true);
    cluster.add_host("b", false);
    for id in 1..=3 {
        cluster.until_hosts(id, 2);
    }
    // By each of them, and at once seen at each of them.
    for id in 1..=3 {
        let app = format!("app{id}");
        cluster.ok(id, &["apply", &cluster.manifest(&app, &format!("/{app}"), 2)]);
        for other in 1..=3 {
            assert_eq!(cluster.replicas(other, &app), 2, "acknowledged by {id}, read at {other}");
        }
        for (other, n) in [(1, 3), (2, 4), (3, 5)] {
            cluster.ok(other, &["scale", &format!("{app}/hello"), &n.to_string()]);
            let seen: Vec<u64> = (1..=3).map(|reader| cluster.replicas(reader, &app)).collect();
            assert_eq!(seen, [n, n, n], "scaled at {other}");
        }
    }
    let at = cluster.ingress("a");
    until("it answers", SOON, || (http::get(at, "/app1").status == 200).then_some(()));

    let old = cluster.leader();
    let survivor = cluster.alive().into_iter().find(|id| *id != old).unwrap();
    cluster.kill(old);
    let killed = Instant::now();
    cluster.ok(survivor, &["scale", "app1/hello", "9"]);
    let took = killed.elapsed();
    eprintln!("leader killed to the next write accepted: {:.2} s", took.as_secs_f64());
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert_eq!(http::get(at, "/app1").status, 200, "who serves does not wait for schedulers");
    let new = cluster.leader();
    assert_ne!(new, old);
    let gone = cluster.list(survivor).into_iter().find(|item| item["id"] == old).unwrap();
    assert!(gone["state"] == "unreachable" && gone["message"].as_str().unwrap().contains("remove"), "{gone}");

    // The new leader plans: what a lost host ran goes to the other.
    cluster.hosts.get_mut("b").unwrap().0.kill();
    until("all of it runs on a", Duration::from_secs(30), || {
        let actors = cluster.items(survivor, &["get", "actors", "--app", "app1", "-o", "json"]);
        let all = actors.iter().all(|item| item["host_name"] == "a" && item["running"] == 9);
        (actors.len() == 1 && all).then_some(())
    });

    // The one that died comes back, at another address, and has everything.
    cluster.restart(old);
    cluster.until_ready(&[1, 2, 3]);
    assert_eq!(cluster.replicas(old, "app1"), 9);
    cluster.ok(old, &["scale", "app1/hello", "1"]);
    assert_eq!(cluster.replicas(survivor, "app1"), 1);
}

fn leader_ends() {
    let mut cluster = Cluster::start(3);
    cluster.add_host("a", false);
    cluster.until_hosts(1, 1);
    cluster.ok(1, &["apply", &cluster.manifest("hello", "/", 1)]);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let mut slowest = Vec::new();
    let mut replicas = 1;
    for round in 0..3 {
        let old = cluster.leader();
        let other = cluster.alive().into_iter().find(|id| *id != old).unwrap();
        let url = format!("http://{}", cluster.schedulers[&other].api);
        let mut api = runtime.block_on(ControlClient::connect(url)).unwrap();
        let mut process = cluster.schedulers.get_mut(&old).unwrap().process.take().unwrap();
        let ending = std::thread::spawn(move || {
            if round % 2 == 0 {
                process.terminate();
            } else {
                process.interrupt();
            }
            process.stderr()
        });
        // Somebody writes all the while, over another one.
        let mut times = Vec::new();
        while !ending.is_finished() {
            replicas = replicas % 20 + 1;
            let request_id = format!("{round}-{}", times.len());
            let (app, actor) = ("hello".into(), "hello".into());
            let request = ScaleRequest { app, actor, replicas, request_id, if_version: 0 };
            let begun = Instant::now();
            runtime.block_on(api.scale(request)).unwrap();
            times.push(begun.elapsed());
        }
        let log = ending.join().unwrap();
        assert!(log.contains("leadership handed over"), "round {round}: {log}");
        assert_ne!(cluster.leader(), old);
        assert_eq!(cluster.replicas(other, "hello"), u64::from(replicas));
        slowest.extend(times.into_iter().max());
        cluster.restart(old);
        cluster.until_ready(&[1, 2, 3]);
    }
    slowest.sort();
    eprintln!("leader told to end, three times: the slowest write over another one took {slowest:.2?}");
    // Whoever waits for an election waits for the silence before it. One round may have met a slow disk.
    assert!(slowest[1] < SILENCE, "nobody took over before the leader was missed: {slowest:?}");

    // And by request.
    let old = cluster.leader();
    let to = cluster.alive().into_iter().find(|id| *id != old).unwrap();
    let said = cluster.ok(old, &["schedulers", "transfer-leader", "--to", &to.to_string()]);
    assert_eq!(said, format!("scheduler/{to} leads\n"));
    assert_eq!(cluster.leader(), to);
}

fn disk_lost() {
    let mut cluster = Cluster::start(3);
    cluster.ok(1, &["apply", "--detach", &cluster.manifest("before", "/before", 1)]);
    let victim = cluster.alive().into_iter().find(|id| *id != cluster.leader()).unwrap();
    let other = cluster.alive().into_iter().find(|id| *id != victim).unwrap();
    cluster.kill(victim);
    let data = cluster.schedulers[&victim].data.clone();
    std::fs::remove_dir_all(data.join("raft")).unwrap();
    let (_, mut command) = cluster.command("lost", &data, &[]);
    let (code, stdout, stderr) = finish(&mut command);
    assert_eq!((code, stdout.as_str()), (1, ""), "{stderr}");
    assert!(stderr.contains(&format!("lattice schedulers remove {victim}")) && stderr.contains("--join"), "{stderr}");

    cluster.ok(other, &["schedulers", "remove", &victim.to_string()]);
    let ids: Vec<u64> = cluster.list(other).iter().map(|item| item["id"].as_u64().unwrap()).collect();
    assert!(ids.len() == 2 && !ids.contains(&victim), "{ids:?}");
    let new = cluster.join("instead");
    assert_eq!(new, 4, "an id is never given again");
    let mut all = ids;
    all.push(new);
    cluster.until_ready(&all);
    assert_eq!(cluster.replicas(new, "before"), 1);
    cluster.ok(new, &["apply", "--detach", &cluster.manifest("after", "/after", 1)]);
    // The newcomer counts: with another one gone, there still is a quorum.
    let gone = all.iter().copied().find(|id| *id != new && *id != other).unwrap();
    cluster.kill(gone);
    cluster.ok(new, &["scale", "after/hello", "3"]);
    assert_eq!(cluster.replicas(other, "after"), 3);
}

fn emptied() {
    let mut cluster = Cluster::start(3);
    cluster.ok(1, &["apply", "--detach", &cluster.manifest("before", "/before", 1)]);
    let victim = cluster.alive().into_iter().find(|id| *id != cluster.leader()).unwrap();
    let other = cluster.alive().into_iter().find(|id| *id != victim).unwrap();
    let token = cluster.ok(other, &["schedulers", "token"]).trim().to_owned();
    let at = cluster.schedulers[&other].peer.clone();
    cluster.kill(victim);
    let data = cluster.schedulers.remove(&victim).unwrap().data;
    let name = data.file_name().unwrap().to_str().unwrap().to_owned();
    let is_away = |cluster: &Cluster| {
        let item = cluster.list(other).into_iter().find(|item| item["id"] == victim).unwrap();
        item["state"] == "unreachable"
    };
    // Without all that it knew it is nobody: the others neither hear it nor count it.
    std::fs::remove_dir_all(&data).unwrap();
    let (stranger, mut command) = cluster.command("stranger", &data, &[]);
    let mut process = Process::spawn(&stranger, cluster.path(), &mut command);
    let api = process.field("api");
    throughout("the old one is away", Duration::from_secs(3), || is_away(&cluster));
    let (_, apps, _) =
        finish(clean(&mut Command::new(PROGRAM)).env("LATTICE_API", &api).args(["get", "apps", "-o", "name"]));
    assert_eq!(apps, "", "it knows nothing of the others");
    process.kill();
    // As its unit file has it, it joins: under a new id.
    std::fs::remove_dir_all(&data).unwrap();
    let new = cluster.start_scheduler(&name, &["--join", &at, "--token", &token]);
    assert_eq!(new, 4);
    assert!(is_away(&cluster));
    assert_eq!(cluster.replicas(new, "before"), 1);
    cluster.ok(other, &["schedulers", "remove", &victim.to_string()]);
    cluster.until_ready(&cluster.alive());
    cluster.ok(new, &["scale", "before/hello", "2"]);
}

fn all_move() {
    let mut cluster = Cluster::start(3);
    cluster.ok(1, &["apply", "--detach", &cluster.manifest("before", "/before", 1)]);
    let before: Vec<String> = cluster.schedulers.values().map(|s| s.peer.clone()).collect();
    for id in 1..=3 {
        cluster.kill(id);
    }
    // Nobody is where anybody was told to look: they find each other on the bus.
    for id in 1..=3 {
        cluster.restart(id);
    }
    let moved = cluster.schedulers.values().filter(|s| !before.contains(&s.peer)).count();
    assert!(moved >= 2, "port 0 gave old ports again");
    cluster.until_ready(&[1, 2, 3]);
    assert_eq!(cluster.replicas(2, "before"), 1);
    cluster.ok(3, &["scale", "before/hello", "2"]);
}

fn gone_for_long() {
    let mut cluster = Cluster::start_with(3, &["--replace-after", "3s"]);
    let at = cluster.schedulers[&1].peer.clone();
    let token = cluster.ok(1, &["schedulers", "token"]);
    let spare = cluster.start_scheduler("spare", &["--join", &at, "--token", token.trim()]);
    until("it stands by: three voters are enough", SOON, || {
        let item = cluster.list(1).into_iter().find(|item| item["id"] == spare)?;
        (item["role"] == "learner" && item["state"] == "standby").then_some(())
    });
    let victim = cluster.alive().into_iter().find(|id| *id != cluster.leader() && *id != spare).unwrap();
    cluster.kill(victim);
    let left: Vec<u64> = cluster.alive();
    cluster.until_ready(&left);
    assert!(left.contains(&spare) && left.len() == 3);
    // One that comes back after that hears that its place is taken, and ends.
    let name = cluster.schedulers[&victim].data.file_name().unwrap().to_str().unwrap().to_owned();
    assert_eq!(cluster.start_scheduler(&name, &[]), victim);
    let process = cluster.process(victim);
    until("it has ended", SOON, || (!process.is_alive()).then_some(()));
    assert!(process.stderr().contains(&format!("scheduler {victim} was removed")), "{}", process.stderr());
    cluster.schedulers.remove(&victim);
    // With nobody standing by, nobody is removed, however long one is gone.
    let other = left.iter().copied().find(|id| *id != cluster.leader()).unwrap();
    cluster.kill(other);
    let leader = cluster.leader();
    throughout("all three are members", Duration::from_secs(6), || cluster.list(leader).len() == 3);
    cluster.restart(other);
    cluster.until_ready(&left);
}

fn short_leaves() {
    const LIFE: Duration = Duration::from_secs(4);
    let mut cluster = Cluster::start_with(3, &["--leaf-life", "4s"]);
    cluster.ok(1, &["apply", "--detach", &cluster.manifest("hello", "/", 1)]);
    cluster.kill(3);
    let away = Instant::now();
    // Those that run connect anew all the while: one of them is started again and again.
    while away.elapsed() < 3 * LIFE {
        cluster.kill(2);
        cluster.restart(2);
        cluster.ok(2, &["scale", "hello/hello", "2"]);
        cluster.ok(1, &["scale", "hello/hello", "1"]);
    }
    // Its certificate ended while it was away; its membership did not.
    cluster.restart(3);
    cluster.until_ready(&[1, 2, 3]);
    cluster.ok(3, &["scale", "hello/hello", "7"]);
    assert_eq!(cluster.replicas(1, "hello"), 7);
}

fn wrong_ways() {
    let mut cluster = Cluster::start(3);
    let at = cluster.schedulers[&1].peer.clone();
    let token = cluster.ok(2, &["schedulers", "token"]).trim().to_owned();
    let try_join = |cluster: &Cluster, token: &str| {
        let data = cluster.path().join("stranger");
        let (_, mut command) = cluster.command("stranger", &data, &["--join", &at, "--token", token]);
        let (code, stdout, stderr) = finish(&mut command);
        assert_eq!(stdout, "", "{stderr}");
        (code, stderr)
    };
    let wrong_secret = format!("{}{}", &token[..token.len() - 8], "00000000");
    let (code, stderr) = try_join(&cluster, &wrong_secret);
    assert!(code == 1 && stderr.contains("lattice schedulers token"), "{stderr}");
    let (kind, rest) = token.split_at(4);
    let (code, stderr) = try_join(&cluster, &format!("{kind}{}{}", "0".repeat(64), &rest[64..]));
    assert!(code == 1 && stderr.contains("of another lattice"), "{stderr}");
    assert_eq!(try_join(&cluster, "nonsense").0, 2);
    assert_eq!(cluster.list(1).len(), 3, "nobody came in");

    assert!(cluster.refused(1, &["schedulers", "remove", "9"]).contains("there is no scheduler 9"));
    assert!(cluster.refused(2, &["schedulers", "promote", "9"]).contains("there is no scheduler 9"));
    let stderr = cluster.refused(3, &["schedulers", "transfer-leader", "--to", "9"]);
    assert!(stderr.contains("scheduler 9") && stderr.contains("schedulers list"), "{stderr}");

    // One that stands by does not vote until it is told to.
    let standby = cluster.start_scheduler("standby", &["--join", &at, "--token", &token, "--standby"]);
    until("it stands by", SOON, || {
        let item = cluster.list(1).into_iter().find(|item| item["id"] == standby)?;
        (item["role"] == "learner" && item["state"] == "standby").then_some(())
    });
    // One that lives and is removed ends, and says why.
    cluster.ok(1, &["schedulers", "remove", &standby.to_string()]);
    let process = cluster.process(standby);
    until("it has ended", SOON, || (!process.is_alive()).then_some(()));
    assert!(process.stderr().contains(&format!("scheduler {standby} was removed")), "{}", process.stderr());
    cluster.schedulers.remove(&standby);

    // Three become one; the last one stays.
    let leader = cluster.leader();
    cluster.ok(leader, &["schedulers", "remove", &leader.to_string()]);
    cluster.schedulers.remove(&leader);
    let left = cluster.alive();
    cluster.until_ready(&left);
    cluster.ok(left[0], &["schedulers", "remove", &left[1].to_string()]);
    cluster.until_ready(&left[..1]);
    let stderr = cluster.refused(left[0], &["schedulers", "remove", &left[0].to_string()]);
    assert!(stderr.contains("is the last one"), "{stderr}");
    cluster.ok(left[0], &["apply", "--detach", &cluster.manifest("alone", "/", 1)]);
}
