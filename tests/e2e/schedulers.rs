//! Three schedulers, each a process of its own: any of them is asked, the leader dies or is told to end, disks are lost,
//! members are removed and replaced. On nats-server only: the embedded broker belongs to a lattice in one process.

use crate::harness::{Broker, NatsServer, PROGRAM, Process, SOON, clean, http, manifests, run, until};
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};
use tempfile::TempDir;

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
fn who_joins_or_leaves_wrongly_is_told_so() {
    run("who_joins_or_leaves_wrongly_is_told_so", Broker::Nats, |_| wrong_ways());
}

struct Scheduler {
    process: Option<Process>,
    api: String,
    peer: String,
    data: PathBuf,
}

struct Cluster {
    schedulers: BTreeMap<u64, Scheduler>,
    hosts: BTreeMap<String, (Process, Option<SocketAddr>)>,
    nats: NatsServer,
    // Last, so that it goes when all who write there have ended.
    dir: Option<TempDir>,
}

/// How one command ended: exit code, stdout, stderr.
type Ended = (i32, String, String);

fn finish(command: &mut Command) -> Ended {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (status.code().unwrap_or(-1), text(stdout), text(stderr))
}

impl Cluster {
    /// `count` schedulers, of whom all vote.
    fn start(count: u64) -> Self {
        let dir = tempfile::Builder::new().prefix("lattice-e2e-").tempdir().unwrap();
        let nats = NatsServer::start(dir.path(), 0);
        let mut cluster = Self { schedulers: BTreeMap::new(), hosts: BTreeMap::new(), nats, dir: Some(dir) };
        cluster.start_scheduler("one", &[]);
        for name in ["two", "three", "four"].iter().take(usize::try_from(count).unwrap() - 1) {
            cluster.join(name);
        }
        let ids: Vec<u64> = (1..=count).collect();
        cluster.until_ready(&ids);
        cluster
    }

    fn path(&self) -> &Path {
        self.dir.as_ref().unwrap().path()
    }

    fn command(&self, name: &str, data: &Path, more: &[&str]) -> (String, Command) {
        let mut command = Command::new(PROGRAM);
        let bus = format!("nats://127.0.0.1:{}", self.nats.port());
        command.args(["scheduler", "--api", "127.0.0.1:0", "--peer-listen", "127.0.0.1:0", "--nats", &bus, "--data"]);
        command.arg(data).args(more);
        clean(&mut command);
        (format!("scheduler-{name}"), command)
    }

    /// Starts a scheduler on `<dir>/<name>`; gives its id. Every start is at another address.
    fn start_scheduler(&mut self, name: &str, more: &[&str]) -> u64 {
        let data = self.path().join(name);
        let (name, mut command) = self.command(name, &data, more);
        let mut process = Process::spawn(&name, self.path(), &mut command);
        let (api, peer) = (process.field("api"), process.field("peer"));
        let id = process.stdout().split_whitespace().nth(1).and_then(|id| id.parse().ok());
        let id = id.unwrap_or_else(|| panic!("no id: {}", process.stdout()));
        self.schedulers.insert(id, Scheduler { process: Some(process), api, peer, data });
        id
    }

    /// A new scheduler joins, by one that need not lead.
    fn join(&mut self, name: &str) -> u64 {
        let by = *self.schedulers.iter().rfind(|(_, s)| s.process.is_some()).unwrap().0;
        let token = self.ok(by, &["schedulers", "token"]);
        let at = self.schedulers[&by].peer.clone();
        self.start_scheduler(name, &["--join", &at, "--token", token.trim()])
    }

    fn restart(&mut self, id: u64) {
        let name = self.schedulers[&id].data.file_name().unwrap().to_str().unwrap().to_owned();
        assert_eq!(self.start_scheduler(&name, &[]), id);
    }

    fn process(&mut self, id: u64) -> &mut Process {
        self.schedulers.get_mut(&id).unwrap().process.as_mut().expect("it runs")
    }

    fn kill(&mut self, id: u64) {
        self.schedulers.get_mut(&id).unwrap().process.take().expect("it runs").kill();
    }

    fn add_host(&mut self, name: &str, has_ingress: bool) {
        let mut command = Command::new(PROGRAM);
        let bus = format!("nats://127.0.0.1:{}", self.nats.port());
        command.args(["host", "--name", name, "--nats", &bus, "--data"]).arg(self.path().join(format!("host-{name}")));
        if has_ingress {
            command.args(["--ingress", "127.0.0.1:0"]);
        }
        let mut process = Process::spawn(&format!("host-{name}"), self.path(), clean(&mut command));
        let ingress = has_ingress.then(|| {
            let url = process.field("ingress");
            url.strip_prefix("http://").unwrap().parse().unwrap()
        });
        process.field("id");
        self.hosts.insert(name.into(), (process, ingress));
    }

    fn ingress(&self, host: &str) -> SocketAddr {
        self.hosts[host].1.unwrap()
    }

    /// Asks one scheduler.
    fn cli(&self, id: u64, args: &[&str]) -> Ended {
        let mut command = Command::new(PROGRAM);
        finish(clean(&mut command).env("LATTICE_API", &self.schedulers[&id].api).args(args).current_dir(self.path()))
    }

    fn ok(&self, id: u64, args: &[&str]) -> String {
        let (code, stdout, stderr) = self.cli(id, args);
        assert_eq!(code, 0, "lattice {} at scheduler {id}: {stdout}{stderr}", args.join(" "));
        stdout
    }

    /// Exit code 1, and what was said.
    fn refused(&self, id: u64, args: &[&str]) -> String {
        let (code, stdout, stderr) = self.cli(id, args);
        assert_eq!((code, stdout.as_str()), (1, ""), "lattice {} at scheduler {id}: {stderr}", args.join(" "));
        stderr
    }

    fn items(&self, id: u64, args: &[&str]) -> Vec<Value> {
        let list: Value = serde_json::from_str(&self.ok(id, args)).unwrap();
        list["items"].as_array().unwrap().clone()
    }

    fn list(&self, id: u64) -> Vec<Value> {
        self.items(id, &["schedulers", "list", "-o", "json"])
    }

    fn alive(&self) -> Vec<u64> {
        self.schedulers.iter().filter(|(_, s)| s.process.is_some()).map(|(id, _)| *id).collect()
    }

    /// Waits until these, and only these, are schedulers that vote and have everything, as each of them sees it.
    fn until_ready(&self, ids: &[u64]) {
        for id in ids {
            let mut last = Vec::new();
            let end = Instant::now() + SOON;
            loop {
                let ready = |item: &Value| {
                    item["state"] == "ready" && ["leader", "voter"].contains(&item["role"].as_str().unwrap())
                };
                let listed = last.iter().map(|item: &Value| item["id"].as_u64().unwrap());
                if listed.eq(ids.iter().copied()) && last.iter().all(ready) {
                    break;
                }
                assert!(Instant::now() < end, "schedulers {ids:?} are not ready, {id} says: {last:#?}");
                std::thread::sleep(Duration::from_millis(50));
                last = self.list(*id);
            }
        }
    }

    /// The leader, as somebody who lives sees it.
    fn leader(&self) -> u64 {
        let by = self.alive()[0];
        until("there is a leader", SOON, || {
            let list = self.list(by);
            list.iter().find(|item| item["role"] == "leader")?["id"].as_u64()
        })
    }

    fn replicas(&self, id: u64, app: &str) -> u64 {
        let apps = self.items(id, &["get", "apps", "-o", "json"]);
        let app = apps.iter().find(|item| item["name"] == app).unwrap_or_else(|| panic!("no {app} at {id}: {apps:?}"));
        app["desired"].as_u64().unwrap()
    }

    fn manifest(&self, name: &str, path: &str, replicas: u32) -> String {
        let hello = manifests::Hello { replicas, ..Default::default() };
        let text = manifests::change(&hello.text(), "metadata: {name: hello}", &format!("metadata: {{name: {name}}}"));
        let text = manifests::change(&text, "path: /\n", &format!("path: {path}\n"));
        let file = self.path().join(format!("{name}.yaml"));
        std::fs::write(&file, text).unwrap();
        file.display().to_string()
    }

    fn until_hosts(&self, id: u64, count: usize) {
        until("hosts are ready", SOON, || {
            let hosts = self.items(id, &["get", "hosts", "-o", "json"]);
            (hosts.iter().filter(|host| host["state"] == "ready").count() == count).then_some(())
        });
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(dir) = self.dir.take()
        {
            eprintln!("--- logs and data are kept in {}", dir.keep().display());
        }
    }
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
    let mut slowest = Duration::ZERO;
    let mut replicas = 1;
    for round in 0..3 {
        let old = cluster.leader();
        let other = cluster.alive().into_iter().find(|id| *id != old).unwrap();
        let mut process = cluster.schedulers.get_mut(&old).unwrap().process.take().unwrap();
        let ending = std::thread::spawn(move || {
            process.interrupt();
            process.stderr()
        });
        // Somebody writes all the while.
        while !ending.is_finished() {
            replicas = replicas % 20 + 1;
            let begun = Instant::now();
            cluster.ok(other, &["scale", "hello/hello", &replicas.to_string()]);
            slowest = slowest.max(begun.elapsed());
        }
        let log = ending.join().unwrap();
        assert!(log.contains("leadership handed over"), "round {round}: {log}");
        assert_ne!(cluster.leader(), old);
        assert_eq!(cluster.replicas(other, "hello"), replicas);
        cluster.restart(old);
        cluster.until_ready(&[1, 2, 3]);
    }
    eprintln!("leader told to end, three times: the slowest write took {:.2} s", slowest.as_secs_f64());
    assert!(slowest < Duration::from_secs(5), "{slowest:?}");

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
