//! `schedulers add`: what it prints, typed as it is, starts a scheduler that joins.

use crate::harness::{Broker, Cluster, PROGRAM, Process, SOON, clean, run, until};
use serde_json::Value;
use std::net::{Ipv4Addr, TcpListener};
use std::process::Command;

#[test]
fn what_add_prints_is_what_to_type() {
    run("what_add_prints_is_what_to_type", Broker::Nats, |_| as_printed());
}

fn as_printed() {
    let cluster = Cluster::start(1);
    let listen = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().to_string();
    let added: Value =
        serde_json::from_str(&cluster.ok(1, &["schedulers", "add", "--peer-listen", &listen, "-o", "json"])).unwrap();
    let typed = added["command"].as_str().unwrap();
    assert!(typed.contains(added["token"].as_str().unwrap()) && typed.contains(&cluster.bus()), "{added}");
    let mut words = typed.split(' ');
    assert_eq!(words.next(), Some("lattice"));
    let mut command = Command::new(PROGRAM);
    // Only what tells it apart from the other one on this machine is added.
    command.args(words).args(["--api", "127.0.0.1:0", "--data"]).arg(cluster.path().join("added"));
    let mut process = Process::spawn("added", cluster.path(), clean(&mut command));
    assert_eq!(process.field("peer"), listen);
    until("it is one of them", SOON, || {
        let list = cluster.list(1);
        list.iter().any(|item| item["address"] == listen.as_str() && item["state"] == "standby").then_some(())
    });

    // For people: the token, then the command; without the new machine's address there is a word for it.
    let text = cluster.ok(1, &["schedulers", "add", "--life", "168h", "--standby"]);
    let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
    let [token, command] = lines[..] else { panic!("{text}") };
    let peer = &cluster.schedulers[&1].peer;
    let bus = cluster.bus();
    assert_eq!(
        command.trim(),
        format!("lattice scheduler --nats {bus} --peer-listen NEW-IP:7401 --join {peer} --token {token} --standby")
    );
    let (code, _, stderr) = cluster.cli(1, &["schedulers", "token", "--life", "169h"]);
    assert!(code == 2 && stderr.contains("at most 168h"), "{stderr}");
    let alone = cluster.ok(1, &["schedulers", "token"]);
    assert_eq!((alone.lines().count(), alone.trim().len()), (1, token.len()));
}
