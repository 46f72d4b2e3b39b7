//! Backups: everything is lost and comes back from a file, a majority is lost and one of those left becomes a cluster
//! again, and hosts follow who was restored and nobody else.

use crate::harness::{Broker, Cluster, PROGRAM, Process, SOON, clean, finish, http, run, throughout, until};
use std::process::Command;
use std::time::Duration;

#[test]
fn a_lattice_comes_back_from_its_backup_and_hosts_follow_it_alone() {
    run("a_lattice_comes_back_from_its_backup_and_hosts_follow_it_alone", Broker::Nats, |_| all_is_lost());
}

#[test]
fn one_of_a_lost_majority_becomes_a_cluster_again() {
    run("one_of_a_lost_majority_becomes_a_cluster_again", Broker::Nats, |_| majority_is_lost());
}

fn lattice(cluster: &Cluster, args: &[&str]) -> (i32, String, String) {
    finish(clean(&mut Command::new(PROGRAM)).args(args).current_dir(cluster.path()))
}

fn status(cluster: &Cluster, host: &str, path: &str) -> u16 {
    http::get(cluster.ingress(host), path).status
}

fn all_is_lost() {
    let mut cluster = Cluster::start(1);
    cluster.add_host("a", true);
    cluster.until_hosts(1, 1);
    cluster.ok(1, &["apply", &cluster.manifest("kept", "/kept", 2)]);
    let said = cluster.ok(1, &["backup", "one.backup"]);
    assert!(said.starts_with("one.backup: lattice default at log index ") && said.contains("1 app, 1 host"), "{said}");
    assert!(said.contains("1 component,"), "{said}");
    let stderr = cluster.refused(1, &["backup", "one.backup"]);
    assert!(stderr.contains("is there already"), "{stderr}");

    // What the file does not know, and the host confirms.
    cluster.ok(1, &["apply", &cluster.manifest("later", "/later", 1)]);
    for n in 3..8 {
        cluster.ok(1, &["scale", "kept/hello", &n.to_string()]);
    }
    until("both answer", SOON, || {
        (status(&cluster, "a", "/later") == 200 && status(&cluster, "a", "/kept") == 200).then_some(())
    });
    bad_files(&cluster);

    cluster.kill(1);
    cluster.schedulers.remove(&1);
    let data = cluster.path().join("restored");
    let data_text = data.display().to_string();
    let (code, stdout, stderr) = lattice(&cluster, &["restore", "one.backup", "--data", &data_text]);
    assert!(code == 2 && stdout.is_empty() && stderr.contains("--yes"), "{stderr}");
    let (code, stdout, stderr) = lattice(&cluster, &["restore", "one.backup", "--data", &data_text, "--yes"]);
    assert!(code == 0 && stdout.contains("next: lattice scheduler"), "{stdout}{stderr}");
    let (code, _, stderr) = lattice(&cluster, &["restore", "one.backup", "--data", &data_text, "--yes"]);
    assert!(code == 1 && stderr.contains("is not empty"), "{stderr}");
    assert_eq!(std::fs::read_dir(data.join("artifacts")).unwrap().count(), 1);

    assert_eq!(cluster.start_scheduler("restored", &[]), 1);
    cluster.until_hosts(1, 1);
    assert_eq!(cluster.replicas(1, "kept"), 2);
    until("the host follows it", SOON, || {
        let (kept, later) = (status(&cluster, "a", "/kept"), status(&cluster, "a", "/later"));
        (kept == 200 && later == 404).then_some(())
    });
    cluster.ok(1, &["apply", &cluster.manifest("new", "/new", 1)]);
    until("it goes on", SOON, || (status(&cluster, "a", "/new") == 200).then_some(()));
    assert!(!cluster.ok(1, &["events"]).contains("host.refused"));

    // The old one was not gone after all: no host takes anything of it.
    let old = cluster.path().join("one");
    let (name, mut command) = cluster.command("one", &old, &[]);
    let mut process = Process::spawn(&name, cluster.path(), &mut command);
    let api = process.field("api");
    until("the old one is refused", SOON, || {
        let events = finish(clean(&mut Command::new(PROGRAM)).env("LATTICE_API", &api).arg("events"));
        events.1.contains("host.refused").then_some(())
    });
    throughout("the host follows the new one", Duration::from_secs(2), || {
        status(&cluster, "a", "/new") == 200 && status(&cluster, "a", "/later") == 404
    });
    process.interrupt();
}

fn bad_files(cluster: &Cluster) {
    let check = |file: &str, more: &[&str]| lattice(cluster, &[&["restore", file], more].concat());
    let (code, stdout, _) = check("one.backup", &["--check"]);
    assert!(code == 0 && stdout.contains("one.backup is whole: lattice default"), "{stdout}");
    let whole = std::fs::read(cluster.path().join("one.backup")).unwrap();
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    let mut newer = whole.clone();
    newer[19] = 9;
    for (name, bytes, says) in [
        ("short", &whole[..whole.len() - 1000], "is cut short"),
        ("flipped", flipped.as_slice(), "is damaged"),
        ("newer", newer.as_slice(), "format 9"),
        ("strange", b"\x7fELF and so on".as_slice(), "not a backup"),
    ] {
        std::fs::write(cluster.path().join(name), bytes).unwrap();
        let (code, stdout, stderr) = check(name, &["--check"]);
        assert!(code == 1 && stdout.is_empty() && stderr.contains(says), "{name}: {stderr}");
        let (code, _, stderr) = check(name, &["--data", "never", "--yes"]);
        assert!(code == 1 && stderr.contains(says), "{name}: {stderr}");
    }
    let (code, _, stderr) = check("one.backup", &["--data", "never", "--lattice", "plant", "--yes"]);
    assert!(code == 1 && stderr.contains("--lattice default"), "{stderr}");
    let left = std::fs::read_dir(cluster.path().join("never")).map_or(0, |entries| entries.count());
    assert_eq!(left, 0, "of a restore that was refused nothing is left");
}

fn majority_is_lost() {
    let mut cluster = Cluster::start(3);
    cluster.add_host("a", true);
    cluster.until_hosts(1, 1);
    cluster.ok(1, &["apply", &cluster.manifest("hello", "/", 3)]);
    until("it answers", SOON, || (status(&cluster, "a", "/") == 200).then_some(()));
    for id in [1, 2] {
        cluster.kill(id);
        std::fs::remove_dir_all(&cluster.schedulers[&id].data).unwrap();
        cluster.schedulers.remove(&id);
    }
    let left = cluster.schedulers[&3].data.display().to_string();
    let (code, _, stderr) = lattice(&cluster, &["backup", "rest.backup", "--data", &left]);
    assert!(code == 1 && stderr.contains("is in use"), "{stderr}");
    assert!(!cluster.path().join("rest.backup").exists());
    cluster.kill(3);
    cluster.schedulers.remove(&3);
    let (code, stdout, stderr) = lattice(&cluster, &["backup", "rest.backup", "--data", &left]);
    assert!(code == 0 && stdout.contains("1 app, 1 host"), "{stdout}{stderr}");
    let (code, _, stderr) = lattice(&cluster, &["restore", "rest.backup", "--data", "again", "--yes"]);
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(status(&cluster, "a", "/"), 200, "who serves does not wait for schedulers");

    assert_eq!(cluster.start_scheduler("again", &[]), 1);
    assert_eq!(cluster.replicas(1, "hello"), 3);
    cluster.until_hosts(1, 1);
    cluster.ok(1, &["scale", "hello/hello", "5"]);
    for name in ["second", "third"] {
        cluster.join(name);
    }
    cluster.until_ready(&[1, 2, 3]);
    until("the host follows", SOON, || {
        let actors = cluster.items(2, &["get", "actors", "-o", "json"]);
        (actors.len() == 1 && actors[0]["running"] == 5).then_some(())
    });
}
