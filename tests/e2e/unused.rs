//! Components that no app names any more, and what was compiled of them, leave the disks of schedulers and hosts.

use crate::harness::{Broker, Lattice, SOON, file, http, manifests, scenarios, until};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

scenarios!(what_no_app_names_leaves_every_disk);

/// Disks are looked at as often: what is noticed at the first look goes at the second or the third.
const KEEP: Duration = Duration::from_secs(4);

fn what_no_app_names_leaves_every_disk(broker: Broker) {
    let env = vec![("LATTICE_KEEP_UNUSED", format!("{}s", KEEP.as_secs()))];
    let mut lattice = Lattice::start_in(broker, &[], env);
    let [hello, counter] = ["hello", "counter"].map(|name| {
        let component = file(&format!("manifests/{name}/{name}.wasm")).display().to_string();
        let inspected = lattice.cli(&["inspect", &component, "-o", "json"]).json();
        inspected["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap().to_owned()
    });
    lattice.apply(&manifests::hello());
    lattice.apply(&manifests::counter());
    until("it serves", SOON, || http::answers(lattice.ingress("a"), "hello.localhost"));
    // The scheduler's copy, the host's, and what was compiled.
    let kept = files(lattice.dir(), &counter);
    for extension in [None, Some("cwasm"), Some("mac")] {
        for digest in [&hello, &counter] {
            let found = files(lattice.dir(), digest);
            assert!(found.iter().any(|path| path.extension().and_then(|e| e.to_str()) == extension), "{found:?}");
        }
    }
    let plain = |found: &[PathBuf]| found.iter().filter(|path| path.extension().is_none()).count();
    assert_eq!(plain(&kept), 2, "{kept:?}");

    lattice.ok(&["delete", "app", "hello"]);
    let deleted = Instant::now();
    until("nothing is left of it", SOON, || files(lattice.dir(), &hello).is_empty().then_some(()));
    // The host counts from when nothing named it.
    assert!(deleted.elapsed() >= KEEP - Duration::from_secs(1), "it went after {:?}", deleted.elapsed());
    assert_eq!(files(lattice.dir(), &counter), kept, "what an app names stays");
    until("the other serves", SOON, || http::answers(lattice.ingress("a"), "counter.localhost"));

    // It comes again as it came the first time.
    lattice.apply(&manifests::hello());
    until("it serves again", SOON, || http::answers(lattice.ingress("a"), "hello.localhost"));
    assert!(!files(lattice.dir(), &hello).is_empty());
    lattice.assert_alive();
}

/// The files below `dir` that are named after that digest, in order.
fn files(dir: &Path, digest: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    // What goes meanwhile is gone.
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files(&path, digest));
        } else if entry.file_name().to_string_lossy().starts_with(digest) {
            found.push(path);
        }
    }
    found.sort();
    found
}
