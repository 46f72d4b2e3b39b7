//! Schedulers, each a process of its own, on one nats-server, with hosts and the command line: what scenarios about several
//! schedulers stand on.

use super::{NatsServer, PROGRAM, Process, SOON, clean, manifests, until};
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};
use tempfile::TempDir;

pub(crate) struct Scheduler {
    pub(crate) process: Option<Process>,
    pub(crate) api: String,
    pub(crate) peer: String,
    pub(crate) data: PathBuf,
}

pub(crate) struct Cluster {
    pub(crate) schedulers: BTreeMap<u64, Scheduler>,
    pub(crate) hosts: BTreeMap<String, (Process, Option<SocketAddr>)>,
    nats: NatsServer,
    /// Arguments of each scheduler.
    more: Vec<String>,
    // Last, so that it goes when all who write there have ended.
    dir: Option<TempDir>,
}

/// How one command ended: exit code, stdout, stderr.
pub(crate) type Ended = (i32, String, String);

pub(crate) fn finish(command: &mut Command) -> Ended {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (status.code().unwrap_or(-1), text(stdout), text(stderr))
}

impl Cluster {
    /// `count` schedulers, of whom all vote.
    pub(crate) fn start(count: u64) -> Self {
        Self::start_with(count, &[])
    }

    /// The same, each with these arguments.
    pub(crate) fn start_with(count: u64, more: &[&str]) -> Self {
        let dir = tempfile::Builder::new().prefix("lattice-e2e-").tempdir().unwrap();
        let nats = NatsServer::start(dir.path(), 0);
        let more = more.iter().map(|text| (*text).to_owned()).collect();
        let mut cluster = Self { schedulers: BTreeMap::new(), hosts: BTreeMap::new(), nats, more, dir: Some(dir) };
        cluster.start_scheduler("one", &[]);
        for name in ["two", "three", "four"].iter().take(usize::try_from(count).unwrap() - 1) {
            cluster.join(name);
        }
        let ids: Vec<u64> = (1..=count).collect();
        cluster.until_ready(&ids);
        cluster
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.as_ref().unwrap().path()
    }

    pub(crate) fn bus(&self) -> String {
        format!("nats://127.0.0.1:{}", self.nats.port())
    }

    /// `kill -9` to the bus.
    pub(crate) fn kill_bus(&mut self) {
        self.nats.kill();
    }

    /// The bus is back where it was.
    pub(crate) fn restart_bus(&mut self) {
        self.nats = NatsServer::start(self.path(), self.nats.port());
    }

    pub(crate) fn command(&self, name: &str, data: &Path, more: &[&str]) -> (String, Command) {
        let mut command = Command::new(PROGRAM);
        let bus = format!("nats://127.0.0.1:{}", self.nats.port());
        command.args(["scheduler", "--api", "127.0.0.1:0", "--peer-listen", "127.0.0.1:0", "--nats", &bus, "--data"]);
        command.arg(data).args(&self.more).args(more);
        clean(&mut command);
        (format!("scheduler-{name}"), command)
    }

    /// Starts a scheduler on `<dir>/<name>`; gives its id. Every start is at another address.
    pub(crate) fn start_scheduler(&mut self, name: &str, more: &[&str]) -> u64 {
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
    pub(crate) fn join(&mut self, name: &str) -> u64 {
        let by = *self.schedulers.iter().rfind(|(_, s)| s.process.is_some()).unwrap().0;
        let token = self.ok(by, &["schedulers", "token"]);
        let at = self.schedulers[&by].peer.clone();
        self.start_scheduler(name, &["--join", &at, "--token", token.trim()])
    }

    pub(crate) fn restart(&mut self, id: u64) {
        let name = self.schedulers[&id].data.file_name().unwrap().to_str().unwrap().to_owned();
        assert_eq!(self.start_scheduler(&name, &[]), id);
    }

    pub(crate) fn process(&mut self, id: u64) -> &mut Process {
        self.schedulers.get_mut(&id).unwrap().process.as_mut().expect("it runs")
    }

    pub(crate) fn kill(&mut self, id: u64) {
        self.schedulers.get_mut(&id).unwrap().process.take().expect("it runs").kill();
    }

    pub(crate) fn add_host(&mut self, name: &str, has_ingress: bool) {
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

    pub(crate) fn ingress(&self, host: &str) -> SocketAddr {
        self.hosts[host].1.unwrap()
    }

    /// Asks one scheduler.
    pub(crate) fn cli(&self, id: u64, args: &[&str]) -> Ended {
        let token = std::fs::read_to_string(self.schedulers[&id].data.join("api/admin-token")).ok();
        self.cli_with(id, token.as_deref().map(str::trim), args)
    }

    /// With this token, if any.
    pub(crate) fn cli_with(&self, id: u64, token: Option<&str>, args: &[&str]) -> Ended {
        let mut command = Command::new(PROGRAM);
        clean(&mut command).env("LATTICE_API", &self.schedulers[&id].api).args(args).current_dir(self.path());
        finish(command.envs(token.map(|token| ("LATTICE_TOKEN", token))))
    }

    pub(crate) fn ok(&self, id: u64, args: &[&str]) -> String {
        let (code, stdout, stderr) = self.cli(id, args);
        assert_eq!(code, 0, "lattice {} at scheduler {id}: {stdout}{stderr}", args.join(" "));
        stdout
    }

    /// Exit code 1, and what was said.
    pub(crate) fn refused(&self, id: u64, args: &[&str]) -> String {
        let (code, stdout, stderr) = self.cli(id, args);
        assert_eq!((code, stdout.as_str()), (1, ""), "lattice {} at scheduler {id}: {stderr}", args.join(" "));
        stderr
    }

    pub(crate) fn items(&self, id: u64, args: &[&str]) -> Vec<Value> {
        let list: Value = serde_json::from_str(&self.ok(id, args)).unwrap();
        list["items"].as_array().unwrap().clone()
    }

    pub(crate) fn list(&self, id: u64) -> Vec<Value> {
        self.items(id, &["schedulers", "list", "-o", "json"])
    }

    pub(crate) fn alive(&self) -> Vec<u64> {
        self.schedulers.iter().filter(|(_, s)| s.process.is_some()).map(|(id, _)| *id).collect()
    }

    /// Waits until these, and only these, are schedulers that vote and have everything, as each of them sees it.
    pub(crate) fn until_ready(&self, ids: &[u64]) {
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
    pub(crate) fn leader(&self) -> u64 {
        let by = self.alive()[0];
        until("there is a leader", SOON, || {
            let list = self.list(by);
            list.iter().find(|item| item["role"] == "leader")?["id"].as_u64()
        })
    }

    pub(crate) fn replicas(&self, id: u64, app: &str) -> u64 {
        let apps = self.items(id, &["get", "apps", "-o", "json"]);
        let app = apps.iter().find(|item| item["name"] == app).unwrap_or_else(|| panic!("no {app} at {id}: {apps:?}"));
        app["desired"].as_u64().unwrap()
    }

    pub(crate) fn manifest(&self, name: &str, path: &str, replicas: u32) -> String {
        let hello = manifests::Hello { replicas, ..Default::default() };
        let text = manifests::change(&hello.text(), "metadata: {name: hello}", &format!("metadata: {{name: {name}}}"));
        let text = manifests::change(&text, "path: /\n", &format!("path: {path}\n"));
        let file = self.path().join(format!("{name}.yaml"));
        std::fs::write(&file, text).unwrap();
        file.display().to_string()
    }

    pub(crate) fn until_hosts(&self, id: u64, count: usize) {
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
