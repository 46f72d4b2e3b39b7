//! Compiling in a child process: the real program, started by an engine as a host starts it. A script in between notes
//! each start, and makes the child's life hard.

#![cfg(feature = "host")]
#![allow(clippy::unwrap_used, reason = "a test that meets what it did not expect shall end")]

use host::engine::{Compiler, Config, Engine, Error};
use proto::app::Digest;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

const BINARY: &str = env!("CARGO_BIN_EXE_lattice");

/// An engine whose child is started by a script of these lines, after one that notes the start.
fn engine(dir: &Path, name: &str, lines: &str) -> Engine {
    let script = dir.join(format!("{name}.sh"));
    fs::write(&script, format!("#!/bin/sh\necho started >> {}/{name}.log\n{lines}\n", dir.display())).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o700)).unwrap();
    engine_with(dir, name, script.as_path())
}

fn engine_with(dir: &Path, name: &str, program: &Path) -> Engine {
    let none: Arc<[std::net::SocketAddr]> = Arc::from([]);
    let config = Config {
        cache_dir: dir.join(name),
        memory_bytes: 1 << 30,
        instances_max: 16,
        policy: Arc::default(),
        bus: tokio::sync::watch::channel(none).1,
        compiler: Some(Compiler::at(program.to_owned())),
    };
    Engine::new(config).unwrap()
}

fn starts(dir: &Path, name: &str) -> usize {
    fs::read_to_string(dir.join(format!("{name}.log"))).map_or(0, |log| log.lines().count())
}

fn hello() -> Vec<u8> {
    fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/manifests/hello/hello.wasm")).unwrap()
}

async fn load(engine: &Engine, bytes: Vec<u8>) -> Result<(), Error> {
    engine.load(&Digest::of(&bytes), move || Ok(bytes)).await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_component_is_compiled_once_by_a_child_and_comes_from_the_cache() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path(), "child", &format!("exec {BINARY} \"$@\""));
    let (one, two) = tokio::join!(load(&engine, hello()), load(&engine, hello()));
    one.unwrap();
    two.unwrap();
    assert_eq!(starts(dir.path(), "child"), 1);
    // What the child made is this host's: another start neither compiles nor asks for the bytes.
    let lost = || Err(io::Error::other("nobody has it"));
    engine_with(dir.path(), "child", Path::new("/nowhere")).load(&Digest::of(&hello()), lost).await.unwrap();
}

#[tokio::test]
async fn a_child_that_is_refused_memory_or_breaks_is_told_by_name() {
    let dir = tempfile::tempdir().unwrap();
    for (name, lines, said) in [
        ("small", format!("exec {BINARY} \"$1\" \"$2\" 4000000"), "can not be compiled: "),
        ("aborts", "kill -ABRT $$".to_owned(), "MiB of memory; make it smaller"),
        ("broken", "echo C; kill -SEGV $$".to_owned(), "the compiler broke"),
    ] {
        let engine = engine(dir.path(), name, &lines);
        for _ in 0..2 {
            let error = load(&engine, hello()).await.unwrap_err();
            assert!(matches!(error, Error::Compile { .. }), "{name}: {error}");
            assert!(error.to_string().contains(said), "{name}: {error}");
        }
        // It is remembered, and not tried again at once.
        assert_eq!(starts(dir.path(), name), 1);
    }
    for (name, lines, said) in [
        ("late", "exit 124", "it was not done after 10 minutes, since the machine is busy; it is tried again"),
        ("killed", "kill -KILL $$", "its compiler was killed, as when a machine runs out of memory; it is tried again"),
    ] {
        let engine = engine(dir.path(), name, lines);
        for _ in 0..2 {
            let error = load(&engine, hello()).await.unwrap_err();
            assert!(matches!(error, Error::NoCompiler { .. }), "{name}: {error}");
            assert!(error.to_string().contains(said), "{name}: {error}");
        }
        assert_eq!(starts(dir.path(), name), 2);
    }
}

/// What the machine's memory is short of goes first, and is not the host; and it runs when no other wants the processor.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn the_child_is_the_first_to_go_when_memory_is_short_and_the_last_to_run() {
    let dir = tempfile::tempdir().unwrap();
    // The child waits for the end of its input, which the script keeps back until it was looked at.
    let look = format!(
        "mkfifo {0}/in; {BINARY} \"$@\" < {0}/in & exec 3> {0}/in\n\
         until grep -q 1000 /proc/$!/oom_score_adj; do :; done\n\
         cat /proc/$!/oom_score_adj > {0}/score; cat /proc/$!/stat > {0}/stat; cat /proc/$!/limits > {0}/limits; cat >&3; exec 3>&-; wait $!",
        dir.path().display()
    );
    let engine = engine(dir.path(), "child", &format!("PATH=/usr/bin:/bin\n{look}"));
    load(&engine, hello()).await.unwrap();
    let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
    assert_eq!(read("score").trim(), "1000");
    // Behind the name in brackets: its niceness is the 19th field of proc_pid_stat(5).
    let stat = read("stat");
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    assert_eq!(fields[19 - 3], "19", "{stat}");
    let limits = read("limits");
    for bound in ["Max cpu time", "Max address space"] {
        let line = limits.lines().find(|line| line.starts_with(bound)).unwrap();
        assert!(!line[bound.len()..].trim_start().starts_with("unlimited"), "{line}");
    }
}

#[tokio::test]
async fn bytes_that_are_no_component_and_a_child_that_can_not_be_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path(), "child", &format!("exec {BINARY} \"$@\""));
    let error = load(&engine, b"\0asm\x01\0\0\0".to_vec()).await.unwrap_err();
    assert!(error.to_string().contains("it is a core module"), "{error}");
    let error = load(&engine, b"hello".to_vec()).await.unwrap_err();
    assert!(error.to_string().contains("it is no WebAssembly at all"), "{error}");
    assert_eq!(starts(dir.path(), "child"), 2);
    // No such program, and one of another version, which says nothing: what a stranger sent is not compiled here.
    let error = load(&engine_with(dir.path(), "none", Path::new("/nowhere")), hello()).await.unwrap_err();
    assert!(matches!(error, Error::NoCompiler { .. }), "{error}");
    let other = self::engine(dir.path(), "other", &format!("exec {BINARY} \"$1\" 0123456789abcdef \"$3\""));
    let error = load(&other, hello()).await.unwrap_err();
    assert!(error.to_string().contains("of another version; it is tried again"), "{error}");
    assert_eq!(starts(dir.path(), "other"), 1);
}

#[tokio::test]
async fn code_that_can_not_be_kept_runs_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path(), "child", &format!("exec {BINARY} \"$@\""));
    fs::remove_dir_all(dir.path().join("child")).unwrap();
    load(&engine, hello()).await.unwrap();
    assert_eq!(starts(dir.path(), "child"), 1);
}
