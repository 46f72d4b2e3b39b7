//! Three schedulers, five hosts and a nats-server, each on a machine of its own as far as the network goes; each
//! scheduler's data on a disk of its own. Everything comes back at its old address.

use super::net::{HUB, Net};
use super::truth;
use crate::harness::{Disk, PROGRAM, Process, SOON, clean, manifests, nats_server, root, until};
use proto::v1 as pb;
use proto::v1::control_client::ControlClient;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;
use tempfile::TempDir;
use tonic::transport::Channel;

pub(super) const SCHEDULERS: [&str; 3] = ["s1", "s2", "s3"];
pub(super) const HOSTS: [&str; 5] = ["h1", "h2", "h3", "h4", "h5"];
/// Replicas of the app that hosts run while other things happen.
pub(super) const WORK: u32 = 10;
/// The app that must never run on two hosts at once.
pub(super) const STRICT: &str = "strict";
const API: &str = "127.0.0.1:7400";
/// Where each host says, on its own machine, what it really runs.
pub(super) const ADMIN: &str = "127.0.0.1:9400";
/// For everything to be as it was after a fault is over.
const HEALED: Duration = Duration::from_secs(60);

pub(super) struct World {
    processes: BTreeMap<&'static str, Process>,
    addresses: BTreeMap<&'static str, Ipv4Addr>,
    disks: BTreeMap<&'static str, Disk>,
    pub(super) net: Net,
    /// The scheduler whose clock can be set, if that is possible here.
    clock: Option<PathBuf>,
    dir: Option<TempDir>,
}

pub(super) type Api = ControlClient<Channel>;

impl World {
    pub(super) fn start() -> Result<Self, String> {
        let mut net = Net::make()?;
        let mut addresses = BTreeMap::new();
        for (names, first) in [(&SCHEDULERS[..], 11), (&HOSTS[..], 21)] {
            for (name, last) in names.iter().zip(first..) {
                addresses.insert(*name, net.add(name, last)?);
            }
        }
        let mut disks = BTreeMap::new();
        for name in SCHEDULERS {
            disks.insert(name, Disk::make(96)?);
        }
        let dir = tempfile::Builder::new().prefix("lattice-chaos-").tempdir().unwrap();
        let clock = faketime().is_some().then(|| dir.path().join("clock"));
        let mut world = Self { processes: BTreeMap::new(), addresses, disks, net, clock, dir: Some(dir) };
        world.set_clock(0);
        world.start_bus();
        world.start_one("s1", &[]);
        for name in &SCHEDULERS[1..] {
            let token = world.cli("s1", &["schedulers", "token"]);
            let at = format!("{}:7401", world.addresses["s1"]);
            world.start_one(name, &["--join", &at, "--token", token.trim()]);
        }
        for name in HOSTS {
            world.start_one(name, &[]);
        }
        for (name, replicas, strict) in [("work", WORK, false), ("register", 1, false), (STRICT, 1, true)] {
            let path = world.path().join(format!("{name}.yaml"));
            let host = format!("{name}.localhost");
            let hello = manifests::Hello { name, replicas, host, strict, ..Default::default() };
            std::fs::write(&path, hello.text()).unwrap();
            world.cli("s1", &["apply", "--detach", &path.display().to_string()]);
        }
        Ok(world)
    }

    pub(super) fn path(&self) -> &std::path::Path {
        self.dir.as_ref().unwrap().path()
    }

    pub(super) fn address(&self, name: &str) -> Ipv4Addr {
        self.addresses[name]
    }

    /// Where everybody else is.
    pub(super) fn others(&self, name: &str) -> Vec<Ipv4Addr> {
        SCHEDULERS.into_iter().filter(|other| *other != name).map(|other| self.addresses[other]).chain([HUB]).collect()
    }

    pub(super) fn start_bus(&mut self) {
        let mut command = self.net.command("bus", nats_server());
        command.args(["--addr", &HUB.to_string(), "--port", "4222"]);
        let process = Process::spawn("nats-server", self.path(), &mut command);
        self.processes.insert("bus", process);
        let net = &self.net;
        until("nats-server listens", SOON, || {
            net.inside("bus", || std::net::TcpStream::connect((HUB, 4222)).ok().map(drop))
        });
    }

    /// Starts a scheduler or a host, on its own data.
    pub(super) fn start_one(&mut self, name: &'static str, more: &[&str]) {
        let bus = format!("nats://{HUB}:4222");
        let mut command = self.net.command(name, PROGRAM);
        clean(&mut command);
        let is_scheduler = self.disks.contains_key(name);
        if is_scheduler {
            let peer = format!("{}:7401", self.addresses[name]);
            command.args(["scheduler", "--api", API, "--peer-listen", &peer, "--nats", &bus, "--data"]);
            command.arg(self.disks[name].path().join("data"));
        } else {
            command.args(["host", "--name", name, "--admin", ADMIN, "--nats", &bus, "--data"]);
            command.arg(self.path().join(name));
        }
        if name == "s1"
            && let (Some(clock), Some(library)) = (&self.clock, faketime())
        {
            command.env("LD_PRELOAD", library).env("FAKETIME_TIMESTAMP_FILE", clock);
            command.env("FAKETIME_CACHE_DURATION", "1").env("DONT_FAKE_MONOTONIC", "1");
        }
        command.args(more);
        let mut process = Process::spawn(name, self.path(), &mut command);
        process.field(if is_scheduler { "api" } else { "id" });
        self.processes.insert(name, process);
    }

    pub(super) fn process(&mut self, name: &str) -> &mut Process {
        self.processes.get_mut(name).unwrap_or_else(|| panic!("{name} runs"))
    }

    /// `kill -9`.
    pub(super) fn kill(&mut self, name: &str) {
        self.process(name).kill();
    }

    pub(super) fn disk(&mut self, name: &str) -> &mut Disk {
        self.disks.get_mut(name).unwrap()
    }

    /// Whether `set_clock` does anything.
    pub(super) fn has_clock(&self) -> bool {
        self.clock.is_some()
    }

    /// By how many seconds the wall clock of s1 is wrong.
    pub(super) fn set_clock(&self, seconds: i64) {
        let Some(clock) = &self.clock else { return };
        std::fs::write(clock, format!("{seconds:+}\n")).unwrap();
    }

    /// The command line, on the machine of a scheduler; it must do what it should.
    pub(super) fn cli(&self, name: &str, args: &[&str]) -> String {
        let mut command = self.net.command(name, PROGRAM);
        let output = clean(&mut command).env("LATTICE_API", API).args(args).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "lattice {}: {}", args.join(" "), text(&output.stderr));
        text(&output.stdout)
    }

    /// Asks a scheduler, from its own machine.
    pub(super) fn ask<T, F>(&self, name: &str, question: impl FnOnce(Api) -> F + Send) -> Result<T, tonic::Status>
    where
        T: Send,
        F: Future<Output = Result<T, tonic::Status>>,
    {
        self.net.inside(name, || {
            block(async {
                let asked = tokio::time::timeout(Duration::from_secs(5), question(api()));
                asked.await.unwrap_or_else(|_| Err(tonic::Status::deadline_exceeded("no answer in time")))
            })
        })
    }

    /// Who leads, as `by` sees it.
    pub(super) fn leader_by(&self, by: &str) -> Option<&'static str> {
        let list = self.ask(by, |mut api| async move { api.list_schedulers(pb::ListSchedulersRequest {}).await });
        let items = list.ok()?.into_inner().items;
        let leader = items.into_iter().find(|item| item.role == "leader")?;
        SCHEDULERS.into_iter().find(|name| leader.peer == format!("{}:7401", self.addresses[name]))
    }

    pub(super) fn leader(&self) -> &'static str {
        until("somebody leads", SOON, || SCHEDULERS.into_iter().find_map(|by| self.leader_by(by)))
    }

    /// Running replicas of the app that must go on, by host; hosts that are not ready do not count.
    pub(super) fn running(&self, by: &str) -> Option<BTreeMap<String, u32>> {
        self.running_of(by, "work")
    }

    pub(super) fn running_of(&self, by: &str, app: &str) -> Option<BTreeMap<String, u32>> {
        let request = || pb::ListRequest { app: app.into(), ..Default::default() };
        let list = self.ask(by, |mut api| async move { api.list_actors(request()).await }).ok()?.into_inner();
        Some(list.items.into_iter().filter(|item| item.running > 0).map(|i| (i.host_name, i.running)).collect())
    }

    /// What a host itself says that it runs now, by app; `None` when it says nothing.
    pub(super) fn really(&self, host: &str) -> Option<BTreeMap<String, u32>> {
        self.net.inside(host, truth::look)
    }

    /// Whether a host is as the schedulers see it.
    pub(super) fn host_is(&self, by: &str, host: &str, state: &str) -> bool {
        let hosts = self.ask(by, |mut api| async move { api.list_hosts(pb::ListRequest::default()).await });
        hosts.is_ok_and(|list| list.into_inner().items.iter().any(|item| item.name == host && item.state == state))
    }

    /// Waits until all of it is as it should be, as every scheduler sees it.
    pub(super) fn until_healed(&self, after: &str) {
        let mut last = String::new();
        let end = std::time::Instant::now() + HEALED;
        while let Err(why) = SCHEDULERS.into_iter().try_for_each(|by| self.is_healed(by)) {
            last.clone_from(&why);
            assert!(std::time::Instant::now() < end, "not as before after {after}: {last}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn is_healed(&self, by: &str) -> Result<(), String> {
        let asked = self.ask(by, |mut api| async move {
            let schedulers = api.list_schedulers(pb::ListSchedulersRequest {}).await?.into_inner().items;
            let hosts = api.list_hosts(pb::ListRequest::default()).await?.into_inner().items;
            Ok((schedulers, hosts))
        });
        let (schedulers, hosts) = asked.map_err(|e| format!("{by}: {e}"))?;
        if schedulers.len() != 3 || schedulers.iter().any(|s| s.state != "ready" || s.role == "learner") {
            return Err(format!("{by}: {schedulers:?}"));
        }
        if hosts.len() != HOSTS.len() || hosts.iter().any(|host| host.state != "ready") {
            return Err(format!("{by}: {hosts:?}"));
        }
        let running = self.running(by).ok_or_else(|| format!("{by} does not say what runs"))?;
        if running.values().sum::<u32>() != WORK {
            return Err(format!("{by}: {WORK} shall run: {running:?}"));
        }
        let strict = self.running_of(by, STRICT).ok_or_else(|| format!("{by} does not say what runs"))?;
        if strict.values().sum::<u32>() != 1 {
            return Err(format!("{by}: one of {STRICT} shall run: {strict:?}"));
        }
        Ok(())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.processes.clear();
        if std::thread::panicking()
            && let Some(dir) = self.dir.take()
        {
            eprintln!("--- logs are kept in {}", dir.keep().display());
        }
        for disk in self.disks.values_mut() {
            disk.unmount();
        }
    }
}

/// The library that gives a process another clock.
fn faketime() -> Option<PathBuf> {
    let paths = ["target/tools/lib/libfaketimeMT.so.1", "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1"];
    paths.into_iter().map(|path| root().join(path)).find(|path| path.is_file())
}

/// The API of the scheduler on this thread's machine.
pub(super) fn api() -> Api {
    ControlClient::new(Channel::from_shared(format!("http://{API}")).unwrap().connect_lazy())
}

pub(super) fn block<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// Whether this machine has what the network and the disks need.
pub(super) fn needs() -> Result<(), String> {
    for program in ["ip", "nsenter", "mkfs.ext4", "mount"] {
        let found =
            Command::new(program).arg("--version").output().or_else(|_| Command::new(program).arg("-V").output());
        found.map_err(|e| format!("{program}: {e}"))?;
    }
    Ok(())
}
