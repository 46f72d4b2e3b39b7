//! A host on another processor: `tests/cross` builds the program for it, an emulator runs it here, and it has the same
//! bytes of the same components as the host beside it. Left out, by name, where it was not built.

use crate::harness::{Broker, Lattice, file, http, leave_out, manifests, run, until};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

/// An emulated processor is some ten times slower, and compiles what it runs.
const SLOWLY: Duration = Duration::from_secs(180);

/// The emulator keeps an account of each page of the address space, which a pool of instances reserves by the terabyte.
const WITHIN: &str = "ulimit -v 40000000; exec \"$0\" \"$@\"";

#[test]
fn the_same_bytes_run_on_a_host_of_another_processor() {
    run("a host on aarch64", Broker::Nats, |broker| {
        let (emulator, program) = (file("target/tools/cross/qemu-aarch64"), file("target/cross/lattice-aarch64"));
        match program.is_file() && emulator.exists() {
            true => runs_beside(vec!["/bin/sh".into(), "-c".into(), WITHIN.into(), emulator, program], broker),
            false => leave_out("a host on aarch64: it is not built: run tests/cross"),
        }
    });
}

fn runs_beside(program: Vec<PathBuf>, broker: Broker) {
    let mut lattice = Lattice::start(broker);
    lattice.add_host_of("arm", program, &["cpu=arm"], true, &[]);
    lattice.until_hosts_within(&[("arm", "ready")], SLOWLY);
    assert_eq!(lattice.host("arm")["facts"]["arch"], "aarch64", "{}", lattice.host("arm"));
    let manifest = manifests::Hello { replicas: 2, ..Default::default() }.write(&lattice).display().to_string();
    lattice.ok(&["apply", &manifest, "--timeout", "180s"]);
    lattice.until_spread("hello", "hello", &[("a", 1), ("arm", 1)], SLOWLY);
    let artifact = |host: &str| {
        let folder = lattice.dir().join(format!("host-{host}/artifacts"));
        let files: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(files.len(), 1, "{files:?}");
        files[0].clone()
    };
    assert_eq!(artifact("a"), artifact("arm"));
    until("it answers", SLOWLY, || (http::get(lattice.ingress("arm"), "/").status == 200).then_some(()));
    // Alone: what answers now is what runs there.
    lattice.kill_host("a");
    let answer = until("it answers alone", SLOWLY, || {
        let answer = http::get(lattice.ingress("arm"), "/");
        (answer.status == 200).then_some(answer)
    });
    assert_eq!(answer.text(), "Hello from lattice!\n");
    lattice.process("arm").assert_alive();
}
