//! Several addresses of the API: while the scheduler at the first one is gone, commands, watches and logs go on at the next.

use crate::harness::{Broker, Cluster, PROGRAM, Process, SOON, clean, finish, run, until};
use serde_json::Value;
use std::net::{Ipv4Addr, TcpListener};
use std::process::Command;
use std::time::Duration;

#[test]
fn commands_go_on_at_the_next_address() {
    run("commands_go_on_at_the_next_address", Broker::Nats, |_| go_on());
}

fn command(cluster: &Cluster, api: &str, args: &[&str]) -> Command {
    let mut command = Command::new(PROGRAM);
    clean(&mut command).env("LATTICE_API", api).args(args).current_dir(cluster.path());
    command
}

fn go_on() {
    let mut cluster = Cluster::start(3);
    cluster.add_host("a", true);
    cluster.until_hosts(1, 1);
    let apis: Vec<String> = cluster.schedulers.values().map(|s| s.api.clone()).collect();
    let all = apis.join(",");
    let do_it = |cluster: &Cluster, args: &[&str]| {
        let (code, stdout, stderr) = finish(&mut command(cluster, &all, args));
        assert_eq!(code, 0, "lattice {}: {stdout}{stderr}", args.join(" "));
        stdout
    };
    let manifest = cluster.manifest("hello", "/", 2);
    do_it(&cluster, &["apply", &manifest]);
    let spawn = |cluster: &Cluster, name: &str, args: &[&str]| {
        Process::spawn(name, cluster.path(), &mut command(cluster, &all, args))
    };
    let mut watch = spawn(&cluster, "watch", &["get", "apps", "-w", "-o", "json"]);
    let mut logs = spawn(&cluster, "logs", &["logs", "hello", "-f"]);
    let mut events = spawn(&cluster, "events", &["events", "-w", "-o", "json"]);
    let asked = |cluster: &Cluster, n: usize| {
        (0..n).for_each(|_| assert_eq!(crate::harness::http::get(cluster.ingress("a"), "/").status, 200));
    };
    asked(&cluster, 1);
    until("each of them has begun", SOON, || {
        let desired = last(&watch)?["items"][0]["desired"].as_u64();
        (desired == Some(2) && events.stdout().contains("app.running")).then_some(())
    });

    // The one that all of them talk to, whether or not it leads.
    cluster.kill(1);
    do_it(&cluster, &["scale", "hello/hello", "5"]);
    until("the watch goes on", Duration::from_secs(30), || {
        (last(&watch)?["items"][0]["desired"].as_u64() == Some(5)).then_some(())
    });
    let second = cluster.manifest("second", "/second", 1);
    let applied = do_it(&cluster, &["apply", &second]);
    assert!(applied.contains("app/second created") && applied.contains("app/second running"), "{applied}");
    until("the events go on", Duration::from_secs(30), || events.stdout().contains("app/second").then_some(()));
    do_it(&cluster, &["delete", "app", "second"]);
    until("the watch tells what is gone", Duration::from_secs(30), || {
        (last(&watch)?["items"].as_array()?.len() == 1).then_some(())
    });
    let printed = events.stdout();
    let whole = &printed[..=printed.rfind('\n').unwrap()];
    let ids: Vec<String> = whole.lines().map(|l| json(l)["id"].as_str().unwrap().to_owned()).collect();
    let mut once = ids.clone();
    once.sort();
    once.dedup();
    assert_eq!(ids.len(), once.len(), "an event was shown twice: {}", events.stdout());
    [&mut watch, &mut logs, &mut events].into_iter().for_each(Process::assert_alive);
    // What is sent only once finds its way before it is sent.
    let backup = cluster.path().join("backup");
    do_it(&cluster, &["backup", &backup.display().to_string(), "--bare"]);
    let apps: Value = json(&do_it(&cluster, &["get", "apps", "-o", "json", "--api", &all]));
    assert_eq!(apps["items"][0]["desired"], 5);

    let status = json(&do_it(&cluster, &["status", "-o", "json"]));
    assert_eq!(status["api"], apis[1].as_str(), "{status}");
    assert_eq!(status["unanswered"][0]["api"], apis[0].as_str(), "{status}");
    assert!(status["unanswered"][0]["why"].as_str().unwrap().contains("refused"), "{status}");

    // By the context file, and where nobody is.
    let context = cluster.path().join("context.yaml");
    std::fs::write(&context, format!("current: c\ncontexts: {{c: {{api: {apis:?}}}}}\n")).unwrap();
    let mut by_context = command(&cluster, "", &["get", "apps", "-o", "name"]);
    let (code, stdout, stderr) = finish(by_context.env_remove("LATTICE_API").env("LATTICE_CONFIG", &context));
    assert_eq!((code, stdout.as_str()), (0, "app/hello\n"), "{stderr}");
    let nobody = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().to_string();
    let (code, _, stderr) = finish(&mut command(&cluster, &format!("{},{nobody}", apis[0]), &["get", "apps"]));
    assert_eq!(code, 1);
    for address in [&apis[0], &nobody] {
        assert!(stderr.contains(&format!("{address} (connection refused)")), "{stderr}");
    }

    // One that stands still answers nobody, and the others do.
    cluster.restart(1);
    cluster.until_ready(&[1, 2, 3]);
    cluster.process(2).pause();
    do_it(&cluster, &["scale", "hello/hello", "1", "--api", &format!("{},{}", apis[1], apis[2])]);
    cluster.process(2).resume();
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

/// The last whole line that it printed.
fn last(process: &Process) -> Option<Value> {
    let text = process.stdout();
    let whole = &text[..=text.rfind('\n')?];
    serde_json::from_str(whole.lines().last()?).ok()
}
