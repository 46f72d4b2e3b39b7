//! A disk that fails: strace makes one system call on the log's file fail, as a broken disk would, and all later ones
//! succeed. The scheduler must end there and then, and say why: after a sync that failed nobody knows what is on the disk,
//! and the next one would lie. Needs strace, and leave to use it; without them it says so at the end of the run.

use crate::harness::{Broker, Cluster, PROGRAM, Process, SOON, clean, file, leave_out, run, shell, until};
use proto::v1::ScaleRequest;
use proto::v1::control_client::ControlClient;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// What fails, and at which of these calls of a thread: when the log is opened, and while it is written.
const FAILING: [(&str, u32); 3] = [("fsync,fdatasync", 2), ("fsync,fdatasync", 30), ("fsync,fdatasync", 80)];

/// By so many writes it must have failed.
const WRITES_MAX: u64 = 5_000;

#[test]
fn a_scheduler_ends_at_the_first_sync_that_fails_and_loses_nothing() {
    match strace() {
        Ok(_) => run("a_scheduler_ends_at_the_first_sync_that_fails_and_loses_nothing", Broker::Nats, |_| fail()),
        Err(why) => leave_out(&format!("a scheduler on a disk whose syncs fail (strace is needed): {why}")),
    }
}

/// One that works: where processes may not be traced, it does not.
fn strace() -> Result<PathBuf, String> {
    let program = Some(file("target/tools/bin/strace")).filter(|path| path.exists()).unwrap_or_else(|| "strace".into());
    let tried = shell(Command::new(&program).args(["-D", "-f", "-q", "--seccomp-bpf", "-e", "trace=fsync", "true"]));
    tried.map(|()| program)
}

fn fail() {
    let mut cluster = Cluster::start(1);
    cluster.ok(1, &["apply", "--detach", &cluster.manifest("hello", "/", 1)]);
    let mut acknowledged = 1;
    for (round, (calls, number)) in FAILING.into_iter().enumerate() {
        cluster.kill(1);
        let begun = acknowledged;
        let trace = cluster.path().join(format!("{round}.strace"));
        let mut traced = traced(&cluster, &trace, calls, number);
        // At the second call it has not even opened the log.
        if number > 2 {
            let api = traced.field("api");
            acknowledged = write_until_it_ends(&api, acknowledged);
            assert!(acknowledged > begun, "{calls} {number}: nothing was written before it failed");
        }
        assert_ne!(traced.exit_code(), Some(0), "{calls} {number}");
        let (log, trace) = (traced.stderr(), until_traced(&trace));
        assert!(log.contains("Input/output error") && log.contains("raft/raft/db"), "{calls} {number}: {log}");
        // It did not try again. One that was not up yet had promised nothing to anybody, and closes its log as it ends.
        let (_, after) = trace.split_once("(INJECTED)").expect("waited for");
        let again = |line: &&str| line.contains("fsync") || line.contains("fdatasync");
        assert!(number == 2 || !after.lines().any(|line| again(&line)), "{calls} {number}: {after}");
        cluster.restart(1);
        let desired = cluster.replicas(1, "hello");
        assert!(desired >= acknowledged, "{calls} {number}: {acknowledged} were acknowledged, {desired} are there");
        acknowledged = desired;
    }
    eprintln!("{} failures of a scheduler's disk: {acknowledged} writes acknowledged, none lost", FAILING.len());
}

/// The scheduler, with one call on its log's file to fail: the `number`th of a thread.
fn traced(cluster: &Cluster, trace: &Path, calls: &str, number: u32) -> Process {
    let data = &cluster.schedulers[&1].data;
    let (_, command) = cluster.command("one", data, &[]);
    let mut strace = Command::new(strace().unwrap());
    // The tracer stands beside it, not above: what is ended, and waited for, is the scheduler.
    strace.args(["-D", "-f", "-q", "-y", "--seccomp-bpf", "-e", "signal=none", "-o"]).arg(trace);
    strace.arg("-P").arg(data.join("raft/raft/db"));
    strace.args(["-e", "trace=fsync,fdatasync,sync_file_range,pwrite64", "-e"]);
    strace.arg(format!("inject={calls}:error=EIO:when={number}")).arg(PROGRAM).args(command.get_args());
    Process::spawn(&format!("traced-{calls}-{number}"), cluster.path(), clean(&mut strace))
}

/// Scales one by one; gives the last that was acknowledged.
fn write_until_it_ends(api: &str, mut acknowledged: u64) -> u64 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut api = ControlClient::connect(format!("http://{api}")).await.unwrap();
        for next in acknowledged + 1..acknowledged + WRITES_MAX {
            let request = ScaleRequest {
                app: "hello".into(),
                actor: "hello".into(),
                replicas: u32::try_from(next).unwrap(),
                request_id: format!("scale-{next}"),
                if_version: 0,
            };
            let answer = tokio::time::timeout(Duration::from_secs(60), api.scale(request)).await;
            if answer.expect("an answer, or an end").is_err() {
                break;
            }
            acknowledged = next;
        }
        acknowledged
    })
}

/// The tracer writes a little later than whom it traces does what it does.
fn until_traced(trace: &Path) -> String {
    until("the failure is in the trace", SOON, || {
        let text = std::fs::read_to_string(trace).unwrap_or_default();
        text.contains("(INJECTED)").then_some(text)
    })
}
