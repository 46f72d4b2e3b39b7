//! Small machines: a host in a control group of 64 MB, where what compiles for it is too; and the program that is built
//! for such machines, measured where it was built (`tests/cross`). Left out, by name, where a group can not be made.

use crate::harness::{
    Broker, Lattice, PROGRAM, Process, SOON, file, http, leave_out, manifests, run, throughout, until,
};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const MEMORY_BYTES: u64 = 64 << 20;
/// What a host keeps in memory when it has nothing to do, and what its program has on disk.
const IDLE_BYTES_MAX: u64 = 40_000_000;
const PROGRAM_BYTES_MAX: u64 = 25_000_000;
/// A small machine compiles slowly, and this one is shared.
const SLOWLY: Duration = Duration::from_secs(120);

/// A control group with this much memory; those in it end with it.
struct Group(PathBuf);

impl Group {
    /// Of version 1 or 2, whichever this machine limits memory by.
    fn make(bytes: u64) -> Result<Self, String> {
        let name = format!("lattice-e2e-{}", std::process::id());
        let (one, two) = (Path::new("/sys/fs/cgroup/memory"), Path::new("/sys/fs/cgroup"));
        let delegated = fs::read_to_string(two.join("cgroup.subtree_control")).unwrap_or_default();
        let (folder, limit) = match delegated.split_whitespace().any(|word| word == "memory") {
            true => (two.join(name), "memory.max"),
            false if one.join("memory.limit_in_bytes").exists() => (one.join(name), "memory.limit_in_bytes"),
            false => return Err("no hierarchy of control groups limits memory here".into()),
        };
        fs::create_dir(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        let group = Self(folder);
        fs::write(group.0.join(limit), bytes.to_string()).map_err(|e| format!("{limit}: {e}"))?;
        // What is bounded is memory: there is no disk to move it to.
        let _ = fs::write(group.0.join("memory.swap.max"), "0");
        let _ = fs::write(group.0.join("memory.swappiness"), "0");
        Ok(group)
    }

    /// The program, begun within.
    fn program(&self) -> Vec<PathBuf> {
        let enter = format!("echo $$ > {}/cgroup.procs && exec \"$0\" \"$@\"", self.0.display());
        vec!["/bin/sh".into(), "-c".into(), enter.into(), PROGRAM.into()]
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let procs = self.0.join("cgroup.procs");
        let ended = || {
            let pids = fs::read_to_string(&procs).unwrap_or_default();
            for pid in pids.lines() {
                let _ = Command::new("kill").args(["-s", "KILL", pid]).status();
            }
            fs::remove_dir(&self.0).ok()
        };
        if !std::thread::panicking() {
            until("the group is gone", SOON, ended);
        } else if ended().is_none() {
            eprintln!("{} is left", self.0.display());
        }
    }
}

#[test]
fn a_host_in_64_mb_is_useful() {
    run("a host in 64 MB", Broker::Nats, |broker| match Group::make(MEMORY_BYTES) {
        Ok(group) => is_useful(&group, broker),
        Err(why) => leave_out(&format!("a host in 64 MB: {why}")),
    });
}

fn is_useful(group: &Group, broker: Broker) {
    let mut lattice = Lattice::start(broker);
    lattice.add_host_of("edge", group.program(), &["tier=edge"], true, &[]);
    lattice.until_hosts(&[("edge", "ready")]);
    assert_eq!(lattice.host("edge")["facts"]["memory_bytes"], MEMORY_BYTES);
    let log = lattice.log_of("edge");
    let said = log.lines().find(|line| line.contains("what this machine can carry at once"));
    let said = said.unwrap_or_else(|| panic!("it does not say what it can carry: {log}"));
    // What the host needs for itself is left to it.
    assert!(said.contains(&format!("memory_bytes={}", 24 << 20)), "{said}");
    assert!(said.contains("instances=24") && said.contains("mapped=16"), "{said}");

    // Never seen: compiled in the same 64 MB. Then bytes that are in the cache.
    let apply = |lattice: &Lattice, name: &'static str| {
        let hello =
            manifests::Hello { name, host: format!("{name}.localhost"), on: "tier: edge", ..Default::default() };
        lattice.apply(&hello.write(lattice));
        lattice.until_spread(name, "hello", &[("edge", 1)], SLOWLY);
        answers(lattice, &format!("{name}.localhost"));
    };
    apply(&lattice, "first");
    assert!(lattice.log_of("edge").contains("apart=true"), "{}", lattice.log_of("edge"));
    apply(&lattice, "second");

    // More than it can compile is told by name, and those who run go on.
    let image = lattice.write("hard.wasm", hard());
    let hard = manifests::actor(
        &lattice,
        "hard",
        &image,
        &["{type: spreadscaler, properties: {instances: 1, spread: [{name: here, requirements: {tier: edge}}]}}"],
    );
    let refused = lattice.cli(&["apply", &hard.display().to_string(), "--timeout", "120s"]);
    assert_ne!(refused.code, 0, "{refused:#?}");
    assert!(refused.stderr.contains("can not be compiled: it takes more than"), "{refused:#?}");
    // It is tried again and again meanwhile.
    throughout("both answer", Duration::from_secs(5), || {
        ["first", "second"].iter().all(|name| {
            let host = format!("{name}.localhost");
            http::get_host(lattice.ingress("edge"), &host, "/").status == 200
        })
    });
    lattice.process("edge").assert_alive();

    // From what it has kept.
    lattice.kill_host("edge");
    lattice.start_host("edge");
    answers(&lattice, "second.localhost");
    let resident = resident_bytes(lattice.process("edge"));
    eprintln!("resident in 64 MB, with two actors: {:.1} MB", resident as f64 / 1e6);
}

fn answers(lattice: &Lattice, host: &str) {
    until(&format!("{host} answers"), SLOWLY, || http::answers(lattice.ingress("edge"), host));
}

/// A component of one function so large that its compiler needs more than there is.
fn hard() -> Vec<u8> {
    const STEPS: u32 = 40_000;
    let mut text = String::from("(component (core module (func (export \"f\") (param i32 i32) (result i32)");
    for step in 0..STEPS {
        let _ = write!(text, " local.get 0 i32.const {} i32.mul local.get 1 i32.xor local.set 0", step | 1 << 30);
    }
    text.push_str(" local.get 0)))");
    wat::parse_str(&text).unwrap()
}

/// Memory of a process that is in the machine's.
fn resident_bytes(process: &Process) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", process.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
}

#[test]
fn a_host_with_nothing_to_do_takes_little() {
    run("an idle host", Broker::Nats, |broker| {
        let edge = file("target/cross/lattice-native");
        let mut lattice = Lattice::start(broker);
        let mut programs = vec![("whole", PathBuf::from(PROGRAM))];
        match edge.is_file() {
            true => programs.push(("edge", edge)),
            false => leave_out("the program for small machines: it is not built: run tests/cross native"),
        }
        for (name, program) in programs {
            if name == "edge" {
                let bytes = fs::metadata(&program).unwrap().len();
                eprintln!("the edge program: {:.1} MB", bytes as f64 / 1e6);
                assert!(bytes < PROGRAM_BYTES_MAX, "{bytes}");
            }
            lattice.add_host_of(name, vec![program], &[], true, &[]);
            lattice.until_hosts(&[(name, "ready")]);
            let resident = resident_bytes(lattice.process(name));
            eprintln!("the {name} program, idle: {:.1} MB", resident as f64 / 1e6);
            assert!(resident < IDLE_BYTES_MAX, "{name}: {resident}");
        }
    });
}
