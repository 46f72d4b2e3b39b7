//! A host on another processor: `tests/cross` builds the program for it, an emulator runs it here, and it has the same
//! bytes of the same components as the host beside it. Left out, by name, where it was not built.

use crate::harness::{Broker, Lattice, file, http, leave_out, manifests, run, until};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

/// An emulated processor is some ten times slower, and compiles what it runs.
const SLOWLY: Duration = Duration::from_secs(180);

/// The emulator keeps an account of each page of the address space, which a pool of instances reserves by the terabyte.
const WITHIN: &str = "ulimit -v 40000000; exec \"$0\" \"$@\"";

/// As `tests/cross` names them.
const PROCESSORS: &[&str] = &["aarch64", "riscv64", "s390x", "i686", "armv7"];

#[test]
fn the_same_bytes_run_on_a_host_of_another_processor() {
    let (built, absent): (Vec<&str>, Vec<&str>) = PROCESSORS
        .iter()
        .partition(|arch| emulator(arch).exists() && file(&format!("target/cross/lattice-{arch}")).is_file());
    if !absent.is_empty() {
        leave_out(&format!(
            "hosts on {}: not built: run tests/run cross, or tests/cross with that name",
            absent.join(", ")
        ));
    }
    for arch in built {
        run(&format!("a host on {arch}"), Broker::Nats, |broker| runs_beside(arch, broker));
    }
}

fn emulator(arch: &str) -> PathBuf {
    file(&format!("target/tools/cross/qemu-{arch}"))
}

fn runs_beside(arch: &str, broker: Broker) {
    let binary = file(&format!("target/cross/lattice-{arch}"));
    let program = vec!["/bin/sh".into(), "-c".into(), WITHIN.into(), emulator(arch), binary.clone()];
    let mut lattice = Lattice::start(broker);
    // Nor does the kernel know how to start its compiler.
    let compiler = lattice.dir().join("compiler");
    let script = format!("#!/bin/sh\nexec {:?} {binary:?} \"$@\"\n", emulator(arch));
    fs::write(&compiler, script).unwrap();
    fs::set_permissions(&compiler, fs::Permissions::from_mode(0o755)).unwrap();
    let more = ["--compiler", compiler.to_str().unwrap()];
    lattice.add_host_of("other", program, &["cpu=other"], true, &more);
    lattice.until_hosts_within(&[("other", "ready")], SLOWLY);
    // Rust's names of the 32-bit ones are shorter.
    let named = match arch {
        "i686" => "x86",
        "armv7" => "arm",
        arch => arch,
    };
    assert_eq!(lattice.host("other")["facts"]["arch"], named, "{}", lattice.host("other"));
    let manifest = manifests::Hello { replicas: 2, ..Default::default() }.write(&lattice).display().to_string();
    lattice.ok(&["apply", &manifest, "--timeout", "180s"]);
    lattice.until_spread("hello", "hello", &[("a", 1), ("other", 1)], SLOWLY);
    let artifact = |host: &str| {
        let folder = lattice.dir().join(format!("host-{host}/artifacts"));
        let files: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(files.len(), 1, "{files:?}");
        files[0].clone()
    };
    assert_eq!(artifact("a"), artifact("other"));
    until("it answers", SLOWLY, || (http::get(lattice.ingress("other"), "/").status == 200).then_some(()));
    // Alone: what answers now is what runs there.
    lattice.kill_host("a");
    let answer = until("it answers alone", SLOWLY, || {
        let answer = http::get(lattice.ingress("other"), "/");
        (answer.status == 200).then_some(answer)
    });
    assert_eq!(answer.text(), "Hello from lattice!\n");
    lattice.process("other").assert_alive();
}
