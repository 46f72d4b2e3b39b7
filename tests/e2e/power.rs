//! A true power cut: the file system under a lattice stops in the middle of a write, and what was not made durable is
//! gone. What was acknowledged must not be. Needs root, a loop device and mkfs.ext4; without them it says so at the end
//! of the run.

use crate::harness::{Disk, PROGRAM, Process, SOON, alone, clean, http, leave_out, manifests, until};
use serde_json::Value;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How long it writes before each cut.
const WRITING_MS: [u64; 8] = [150, 700, 40, 330, 1_100, 90, 480, 250];
const KEYS: usize = 4;

#[test]
fn what_was_acknowledged_survives_power_cuts() {
    alone(|| match Disk::make(256) {
        Err(why) => {
            leave_out(&format!("power cuts on a real file system (root, loop devices and mkfs.ext4 are needed): {why}"))
        }
        Ok(disk) => cut_again_and_again(disk),
    });
}

fn cut_again_and_again(mut disk: Disk) {
    let mut up = Up::start(&disk);
    up.ok(&["apply", &manifests::hello().display().to_string()]);
    up.ok(&["apply", &manifests::counter().display().to_string()]);
    let mut acknowledged = Acknowledged::default();
    let mut true_cuts = 0;
    for (round, ms) in WRITING_MS.into_iter().enumerate() {
        // Another each time: what an earlier cut left would be there again.
        let unsynced = disk.path().join(format!("unsynced-{round}"));
        up.write_until_cut(&mut acknowledged, &disk, Duration::from_millis(ms), || {
            std::fs::write(&unsynced, [7; 100_000]).unwrap();
        });
        up.process.kill();
        disk.unmount();
        disk.mount().unwrap();
        let left = std::fs::read(&unsynced).unwrap_or_default();
        // The kernel may have written it by itself just before, though not each time.
        true_cuts += usize::from(left != [7; 100_000]);
        up = Up::start(&disk);
        up.check(&acknowledged, round);
    }
    assert!(true_cuts * 2 > WRITING_MS.len(), "cuts were none: what nobody synced was there after most of them");
    let Acknowledged { replicas, counts } = &acknowledged;
    let writes: u64 = counts.iter().sum();
    eprintln!("{} power cuts: {writes} counts and {replicas} scalings acknowledged, none lost", WRITING_MS.len());
    assert!(writes > 100 && *replicas > 8, "too little was written to tell: {writes}, {replicas}");
    drop(up);
    disk.unmount();
}

/// What the writers were told.
#[derive(Default)]
struct Acknowledged {
    replicas: u64,
    counts: [u64; KEYS],
}

struct Up {
    process: Process,
    api: String,
    ingress: SocketAddr,
}

impl Up {
    fn start(disk: &Disk) -> Self {
        let mut command = Command::new(PROGRAM);
        clean(&mut command).args(["up", "--name", "a", "--data"]).arg(disk.path().join("data"));
        for port in ["--api", "--bus", "--ingress"] {
            command.args([port, "127.0.0.1:0"]);
        }
        let mut process = Process::spawn("up", disk.beside(), &mut command);
        let ingress = process.field("ingress").trim_start_matches("http://").parse().unwrap();
        Self { api: process.field("api"), ingress, process }
    }

    fn cli(&self, args: &[&str]) -> (i32, String) {
        let output = clean(Command::new(PROGRAM).args(args)).env("LATTICE_API", &self.api).output().unwrap();
        (output.status.code().unwrap_or(-1), String::from_utf8(output.stdout).unwrap())
    }

    fn ok(&self, args: &[&str]) -> String {
        let (code, stdout) = self.cli(args);
        assert_eq!(code, 0, "lattice {}: {stdout}", args.join(" "));
        stdout
    }

    fn count(&self, target: &str) -> Option<u64> {
        let request = http::Request { host: "counter.localhost", ..http::Request::get(self.ingress, target) };
        let response = request.send().ok().filter(|response| response.status == 200)?;
        response.text().trim().parse().ok()
    }

    /// Counts and scales without a pause until the power is cut.
    fn write_until_cut(
        &self,
        acknowledged: &mut Acknowledged,
        disk: &Disk,
        time: Duration,
        just_before: impl FnOnce(),
    ) {
        let cut = AtomicBool::new(false);
        let is_on = || !cut.load(Ordering::SeqCst);
        let Acknowledged { replicas, counts } = acknowledged;
        std::thread::scope(|scope| {
            for (key, last) in counts.iter_mut().enumerate() {
                scope.spawn(move || {
                    while is_on() {
                        if let Some(sum) = self.count(&format!("/key-{key}")) {
                            *last = sum;
                        }
                    }
                });
            }
            scope.spawn(move || {
                let mut next = *replicas;
                while is_on() {
                    next += 1;
                    if self.cli(&["scale", "hello/hello", &next.to_string()]).0 == 0 {
                        *replicas = next;
                    }
                }
            });
            std::thread::sleep(time);
            just_before();
            disk.cut();
            // A write that was under way may still be answered: it was durable, or it is a lie.
            std::thread::sleep(Duration::from_millis(100));
            cut.store(true, Ordering::SeqCst);
            kill(&self.process);
        });
    }

    fn check(&self, acknowledged: &Acknowledged, round: usize) {
        for (key, last) in acknowledged.counts.iter().enumerate() {
            let target = format!("/key-{key}?peek");
            let now = until("the store answers", SOON, || self.count(&target));
            assert!(now >= *last, "cut {round}: key-{key} was {last} when it was acknowledged, and is {now}");
        }
        let apps: Value = serde_json::from_str(&self.ok(&["get", "apps", "-o", "json"])).unwrap();
        let hello = apps["items"].as_array().unwrap().iter().find(|app| app["name"] == "hello").unwrap();
        let (now, last) = (hello["desired"].as_u64().unwrap(), acknowledged.replicas);
        assert!(now >= last, "cut {round}: scaling to {last} was acknowledged, and {now} are desired");
    }
}

/// From a thread that only looks on: who owns it waits for its end later.
fn kill(process: &Process) {
    let killed = Command::new("kill").args(["-KILL", &process.pid().to_string()]).status();
    // It may have ended by itself: its disk is gone.
    let _ = killed;
}
