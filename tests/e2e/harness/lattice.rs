//! A lattice of processes: on the embedded broker `lattice up`, on nats-server a scheduler and a host "a"; further
//! hosts join either. Everything is kept over restarts: data, names and the address of the bus.

use super::broker::{Broker, NatsServer};
use super::process::Process;
use super::{SOON, until};
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tempfile::TempDir;

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_lattice");

pub(crate) struct Lattice {
    broker: Broker,
    nats: Option<NatsServer>,
    /// `up`, or the scheduler.
    main: Option<Process>,
    hosts: BTreeMap<String, Host>,
    bus: String,
    api: String,
    /// Where `up`, or the scheduler, tells how it is.
    admin: Option<SocketAddr>,
    labels: Vec<String>,
    /// What its processes find in their environment.
    env: Vec<(&'static str, String)>,
    // Last, so that it goes when all who write there have ended.
    dir: Option<TempDir>,
}

struct Host {
    labels: Vec<String>,
    /// Further arguments of its command line.
    more: Vec<String>,
    /// The program, behind what runs it if that is not this machine.
    program: Vec<PathBuf>,
    has_ingress: bool,
    ingress: Option<SocketAddr>,
    process: Option<Process>,
}

/// How one command ended.
#[derive(Debug)]
pub(crate) struct Cli {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Cli {
    pub(crate) fn json(&self) -> Value {
        assert_eq!(self.code, 0, "{self:#?}");
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {self:#?}"))
    }
}

impl Lattice {
    /// One host, "a", with an ingress.
    pub(crate) fn start(broker: Broker) -> Self {
        Self::start_labelled(broker, &[])
    }

    /// As `start`; the labels are those of "a".
    pub(crate) fn start_labelled(broker: Broker, labels: &[&str]) -> Self {
        Self::start_in(broker, labels, Vec::new())
    }

    /// The same, its processes in this environment.
    pub(crate) fn start_in(broker: Broker, labels: &[&str], env: Vec<(&'static str, String)>) -> Self {
        let mut lattice = Self::of_nobody(broker, labels);
        lattice.env = env;
        lattice.start_main();
        lattice.until_hosts(&[("a", "ready")]);
        lattice
    }

    fn of_nobody(broker: Broker, labels: &[&str]) -> Self {
        Self {
            broker,
            nats: None,
            main: None,
            hosts: BTreeMap::new(),
            bus: String::new(),
            api: String::new(),
            admin: None,
            labels: labels.iter().map(|l| (*l).to_owned()).collect(),
            env: Vec::new(),
            dir: Some(tempfile::Builder::new().prefix("lattice-e2e-").tempdir().unwrap()),
        }
    }

    /// A scheduler and host "a" on a bus that is there already.
    pub(crate) fn on(bus: &str) -> Self {
        let mut lattice = Self::of_nobody(Broker::Nats, &[]);
        lattice.use_bus(bus);
        lattice.start_scheduler();
        lattice.add_host("a", &[], true);
        lattice.until_hosts(&[("a", "ready")]);
        lattice
    }

    /// The bus of those that are started from now on.
    pub(crate) fn use_bus(&mut self, bus: &str) {
        bus.clone_into(&mut self.bus);
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.as_ref().unwrap().path()
    }

    pub(crate) fn bus(&self) -> &str {
        &self.bus
    }

    pub(crate) fn api(&self) -> &str {
        &self.api
    }

    fn bus_port(&self) -> u16 {
        self.bus.rsplit(':').next().and_then(|port| port.parse().ok()).unwrap_or(0)
    }

    /// Starts what holds the lattice together: bus, scheduler, host "a".
    pub(crate) fn start_main(&mut self) {
        match self.broker {
            Broker::Embedded => self.start_up(),
            Broker::Nats => {
                let nats = NatsServer::start(self.dir(), self.bus_port());
                self.bus = format!("nats://127.0.0.1:{}", nats.port());
                self.nats = Some(nats);
                self.start_scheduler();
                let labels: Vec<String> = self.labels.clone();
                let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
                self.add_host("a", &labels, true);
            }
        }
    }

    fn start_up(&mut self) {
        let mut command = Command::new(PROGRAM);
        command.args(["up", "--name", "a", "--api", "127.0.0.1:0", "--ingress", "127.0.0.1:0"]);
        command.args(["--admin", "127.0.0.1:0", "--data"]);
        command.arg(self.dir().join("up")).args(["--bus", &format!("127.0.0.1:{}", self.bus_port())]);
        for label in &self.labels {
            command.args(["--label", label]);
        }
        let mut process = Process::spawn("up", self.dir(), clean(&mut command).envs(self.env.iter().cloned()));
        self.api = process.field("api");
        self.bus = process.field("bus");
        self.admin = Some(address(&process.field("admin")));
        let ingress = Some(address(&process.field("ingress")));
        let (labels, has_ingress) = (self.labels.clone(), true);
        let (more, program) = (Vec::new(), vec![PROGRAM.into()]);
        self.hosts.insert("a".into(), Host { labels, more, program, has_ingress, ingress, process: None });
        self.main = Some(process);
    }

    pub(crate) fn start_scheduler(&mut self) {
        let mut command = Command::new(PROGRAM);
        command.args(["scheduler", "--api", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--nats", &self.bus, "--data"]);
        command.arg(self.dir().join("scheduler"));
        let mut process = Process::spawn("scheduler", self.dir(), clean(&mut command).envs(self.env.iter().cloned()));
        self.api = process.field("api");
        self.admin = Some(address(&process.field("admin")));
        self.main = Some(process);
    }

    /// Where `up`, or the scheduler, tells how it is.
    pub(crate) fn admin(&self) -> SocketAddr {
        self.admin.expect("it has started")
    }

    /// Starts another host. It may take a moment until it is ready: see `until_hosts`.
    pub(crate) fn add_host(&mut self, name: &str, labels: &[&str], has_ingress: bool) {
        self.add_host_with(name, labels, has_ingress, &[]);
    }

    /// The same, with further arguments.
    pub(crate) fn add_host_with(&mut self, name: &str, labels: &[&str], has_ingress: bool, more: &[&str]) {
        self.add_host_of(name, vec![PROGRAM.into()], labels, has_ingress, more);
    }

    /// The same, of another program.
    pub(crate) fn add_host_of(
        &mut self,
        name: &str,
        program: Vec<PathBuf>,
        labels: &[&str],
        has_ingress: bool,
        more: &[&str],
    ) {
        let owned = |texts: &[&str]| texts.iter().map(|l| (*l).to_owned()).collect();
        let (labels, more) = (owned(labels), owned(more));
        self.hosts.insert(name.into(), Host { labels, more, program, has_ingress, ingress: None, process: None });
        self.start_host(name);
    }

    /// Starts a host that was killed, on its own data.
    pub(crate) fn start_host(&mut self, name: &str) {
        let data = self.dir().join(format!("host-{name}"));
        let host = &self.hosts[name];
        let mut command = Command::new(&host.program[0]);
        command.args(&host.program[1..]);
        command.args(["host", "--name", name, "--nats", &self.bus, "--data"]).arg(data).args(&host.more);
        for label in &host.labels {
            command.args(["--label", label]);
        }
        if host.has_ingress {
            command.args(["--ingress", "127.0.0.1:0"]);
        }
        let command = clean(&mut command).envs(self.env.iter().cloned());
        let mut process = Process::spawn(&format!("host-{name}"), self.dir(), command);
        let ingress = host.has_ingress.then(|| address(&process.field("ingress")));
        process.field("id");
        let host = self.hosts.get_mut(name).unwrap();
        host.ingress = ingress;
        host.process = Some(process);
    }

    /// `kill -9` of a host that is a process of its own.
    pub(crate) fn kill_host(&mut self, name: &str) {
        let host = self.hosts.get_mut(name).unwrap();
        host.process.take().expect("a host that is its own process and runs").kill();
    }

    /// Ctrl-C for a host that is a process of its own.
    pub(crate) fn interrupt_host(&mut self, name: &str) {
        let host = self.hosts.get_mut(name).unwrap();
        host.process.take().expect("a host that is its own process and runs").interrupt();
    }

    /// A host that is a process of its own.
    pub(crate) fn process(&mut self, name: &str) -> &mut Process {
        let host = self.hosts.get_mut(name).unwrap();
        host.process.as_mut().expect("a host that is its own process and runs")
    }

    /// `kill -9` of what holds the lattice together: bus, scheduler and host "a".
    pub(crate) fn kill_main(&mut self) {
        if self.broker == Broker::Nats {
            self.kill_host("a");
        }
        self.main.take().expect("it runs").kill();
        if let Some(mut nats) = self.nats.take() {
            nats.kill();
        }
    }

    /// Ctrl-C for the same, each in turn.
    pub(crate) fn interrupt_main(&mut self) {
        if self.broker == Broker::Nats {
            self.interrupt_host("a");
        }
        self.main.take().expect("it runs").interrupt();
        if let Some(mut nats) = self.nats.take() {
            nats.kill();
        }
    }

    /// `kill -9` of the scheduler alone, and its start on the same data; on the embedded broker that is `up`.
    pub(crate) fn restart_scheduler(&mut self) {
        self.main.take().expect("it runs").kill();
        match self.broker {
            Broker::Embedded => self.start_up(),
            Broker::Nats => self.start_scheduler(),
        }
    }

    /// `kill -9` of the scheduler alone, on nats-server.
    pub(crate) fn kill_scheduler(&mut self) {
        assert_eq!(self.broker, Broker::Nats, "the embedded broker would go with it");
        self.main.take().expect("it runs").kill();
    }

    /// What a host that is a process of its own has logged since it was first started.
    pub(crate) fn log_of(&self, host: &str) -> String {
        std::fs::read_to_string(self.dir().join(format!("host-{host}.err"))).unwrap_or_default()
    }

    /// `kill -9` of the bus: nats-server, or `up` with the broker in it.
    pub(crate) fn kill_bus(&mut self) {
        match self.broker {
            Broker::Embedded => self.kill_main(),
            Broker::Nats => self.nats.take().expect("it runs").kill(),
        }
    }

    /// Starts the bus that was killed, at its old address.
    pub(crate) fn start_bus(&mut self) {
        match self.broker {
            Broker::Embedded => self.start_up(),
            Broker::Nats => self.nats = Some(NatsServer::start(self.dir(), self.bus_port())),
        }
    }

    /// Every process that was started and not ended here lives.
    pub(crate) fn assert_alive(&mut self) {
        if let Some(nats) = &mut self.nats {
            nats.assert_alive();
        }
        let hosts = self.hosts.values_mut().filter_map(|h| h.process.as_mut());
        self.main.iter_mut().chain(hosts).for_each(Process::assert_alive);
    }

    /// Where the ingress of a host listens.
    pub(crate) fn ingress(&self, host: &str) -> SocketAddr {
        self.hosts[host].ingress.unwrap_or_else(|| panic!("host {host} has no ingress"))
    }

    /// The program with these arguments and this lattice's API.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        clean(&mut command).env("LATTICE_API", &self.api).args(args).current_dir(self.dir());
        command
    }

    /// Runs one command to its end.
    pub(crate) fn cli(&self, args: &[&str]) -> Cli {
        let output = self.command(args).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("what it prints is UTF-8");
        let code = output.status.code().unwrap_or(-1);
        Cli { code, stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// As `cli`, where anything but exit code 0 fails the test.
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let cli = self.cli(args);
        assert_eq!(cli.code, 0, "lattice {}: {cli:#?}", args.join(" "));
        cli.stdout
    }

    /// A command that goes on until it is dropped; `name` is that of its files.
    pub(crate) fn background(&self, name: &str, args: &[&str]) -> Process {
        Process::spawn(name, self.dir(), &mut self.command(args))
    }

    /// Applies a manifest and waits until it runs.
    pub(crate) fn apply(&self, manifest: &Path) {
        self.ok(&["apply", &manifest.display().to_string()]);
    }

    /// A manifest in this lattice's folder.
    pub(crate) fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.dir().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// The items of `get KIND -o json`.
    pub(crate) fn items(&self, kind: &str) -> Vec<Value> {
        let list = self.cli(&["get", kind, "-o", "json"]).json();
        list["items"].as_array().unwrap_or_else(|| panic!("no items: {list}")).clone()
    }

    /// The items of an app.
    pub(crate) fn items_of(&self, kind: &str, app: &str) -> Vec<Value> {
        let key = if kind == "apps" { "name" } else { "app" };
        self.items(kind).into_iter().filter(|item| item[key] == app).collect()
    }

    /// Host name -> (replicas placed, running) of one actor.
    pub(crate) fn spread(&self, app: &str, actor: &str) -> BTreeMap<String, (u64, u64)> {
        let mut spread = BTreeMap::new();
        for item in self.items_of("actors", app).iter().filter(|item| item["actor"] == actor) {
            let host = item["host_name"].as_str().unwrap().to_owned();
            spread.insert(host, (item["replicas"].as_u64().unwrap(), item["running"].as_u64().unwrap()));
        }
        spread
    }

    /// Waits until one actor is placed and runs exactly so: host name, replicas.
    pub(crate) fn until_spread(&self, app: &str, actor: &str, want: &[(&str, u64)], within: Duration) {
        let want: BTreeMap<String, (u64, u64)> = want.iter().map(|(h, n)| ((*h).to_owned(), (*n, *n))).collect();
        let mut last = BTreeMap::new();
        let what = format!("{app}/{actor} runs as {want:?}");
        let end = std::time::Instant::now() + within;
        while last != want {
            assert!(std::time::Instant::now() < end, "not so within {within:?}: {what}; it is {last:?}");
            last = self.spread(app, actor);
            if last != want {
                std::thread::sleep(super::POLL);
            }
        }
    }

    /// Waits until each of these hosts is known and in this state.
    pub(crate) fn until_hosts(&self, want: &[(&str, &str)]) {
        self.until_hosts_within(want, SOON);
    }

    pub(crate) fn until_hosts_within(&self, want: &[(&str, &str)], within: Duration) {
        until(&format!("hosts are {want:?}"), within, || {
            // Before it has a leader the scheduler refuses.
            let cli = self.cli(&["get", "hosts", "-o", "json"]);
            let list: Value = serde_json::from_str(&cli.stdout).ok()?;
            let hosts = list["items"].as_array()?;
            want.iter()
                .all(|(name, state)| hosts.iter().any(|h| h["name"] == *name && h["state"] == *state))
                .then_some(())
        });
    }

    /// One host as `get hosts` shows it.
    pub(crate) fn host(&self, name: &str) -> Value {
        let hosts = self.items("hosts");
        hosts.into_iter().find(|h| h["name"] == name).unwrap_or_else(|| panic!("no host {name:?}"))
    }
}

impl Drop for Lattice {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(dir) = self.dir.take()
        {
            eprintln!("--- logs and data are kept in {}", dir.keep().display());
        }
    }
}

/// What the machine's user has set must not change a test.
pub(crate) fn clean(command: &mut Command) -> &mut Command {
    for name in
        ["LATTICE_API", "LATTICE_CONFIG", "LATTICE_KEEP_UNUSED", "LATTICE_LOG", "LATTICE_NATS_TOKEN", "LATTICE_TOKEN"]
    {
        command.env_remove(name);
    }
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("OTEL_")) {
        command.env_remove(name);
    }
    command.env("NO_COLOR", "1")
}

pub(crate) fn address(url: &str) -> SocketAddr {
    let bare = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://")).unwrap_or(url);
    bare.parse().unwrap_or_else(|e| panic!("{url}: {e}"))
}
