//! Schedulers of different versions together: nothing is proposed that one of them can not apply, and one that is older
//! than its log ends, says why and keeps it.

use crate::harness::{Broker, Cluster, Process, SOON, finish, run, until};

/// A build before there were tokens of the API.
const OLDER: [&str; 2] = ["--vocabulary", "1"];
/// Of this build.
const NEWEST: u64 = 4;

#[test]
fn schedulers_of_two_versions_never_diverge() {
    run("schedulers_of_two_versions_never_diverge", Broker::Nats, |_| mixed());
}

fn mixed() {
    let mut cluster = Cluster::start(3);
    cluster.ok(1, &["apply", "--detach", &cluster.manifest("hello", "/", 1)]);
    until_known(&cluster, 2, NEWEST);
    cluster.kill(2);
    assert_eq!(cluster.start_scheduler("two", &OLDER), 2);
    until_known(&cluster, 2, 1);

    // Whoever leads, the older one too.
    for leader in [2, 1] {
        cluster.ok(3, &["schedulers", "transfer-leader", "--to", &leader.to_string()]);
        for id in 1..=3 {
            let stderr = cluster.refused(id, &["access", "add", "ci"]);
            assert!(stderr.contains("scheduler 2 (") && stderr.contains("upgrade it"), "asked {id}: {stderr}");
            cluster.ok(id, &["scale", "hello/hello", &(leader * 10 + id).to_string()]);
        }
    }
    cluster.kill(2);
    cluster.restart(2);
    until_known(&cluster, 2, NEWEST);
    cluster.until_ready(&[1, 2, 3]);
    cluster.ok(2, &["access", "add", "ci"]);

    // Back to the older version, behind a log that is newer: it ends in time.
    cluster.kill(3);
    let data = cluster.schedulers[&3].data.clone();
    let (_, mut command) = cluster.command("older", &data, &OLDER);
    let mut process = Process::spawn("older", cluster.path(), &mut command);
    assert_eq!(process.exit_code(), Some(1));
    let log = process.stderr();
    assert!(log.contains("can not be applied here") && log.contains("newer version of lattice"), "{log}");
    // A newcomer that is older is not taken in at all.
    let token = cluster.ok(1, &["schedulers", "token"]);
    let at = cluster.schedulers[&1].peer.clone();
    let join = ["--join", &at, "--token", token.trim()];
    let (_, mut command) = cluster.command("newcomer", &cluster.path().join("newcomer"), &[&join[..], &OLDER].concat());
    let (code, _, stderr) = finish(&mut command);
    assert!(code == 1 && stderr.contains("start it with a newer lattice"), "{stderr}");

    cluster.restart(3);
    cluster.until_ready(&[1, 2, 3]);
    for id in 1..=3 {
        assert_eq!(cluster.replicas(id, "hello"), 13);
        assert_eq!(cluster.ok(id, &["access", "list", "-o", "name"]), "access/ci\n");
    }
}

/// Waits until everybody knows which version this one is of.
fn until_known(cluster: &Cluster, id: u64, vocabulary: u64) {
    until("its version is known", SOON, || {
        let list = cluster.list(1);
        let item = list.iter().find(|item| item["id"] == id)?;
        (item["vocabulary"] == vocabulary && item["state"] == "ready").then_some(())
    });
}
