//! Programs: core modules of WASI preview 1 adapted at apply, run to their end by `lattice run`, on whichever host has
//! them. A C program is committed; odd ones are made of text.

use crate::harness::{Broker, Lattice, SOON, file, manifests, scenarios, until};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::Stdio;
use std::time::Instant;

scenarios!(
    a_c_program_counts_what_it_is_given,
    an_exit_code_is_the_programs_own,
    what_a_program_prints_comes_as_it_prints_it,
    programs_that_do_not_end_are_ended,
    a_program_of_wasi_0_2_writes_and_listens_where_it_may,
);

/// A module of WASI preview 1 whose `_start` is this text; it can print "tick\n", wait 50 ms and end with a code.
fn module(start: &str) -> Vec<u8> {
    let text = format!(
        r#"(module
        (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
        (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
        (memory (export "memory") 20)
        (data (i32.const 16) "tick\n")
        (func $print (param $fd i32) (param $at i32) (param $len i32) (result i32)
            (i32.store (i32.const 0) (local.get $at))
            (i32.store (i32.const 4) (local.get $len))
            (call $write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8)))
        (func $tick (drop (call $print (i32.const 1) (i32.const 16) (i32.const 5))))
        (func $wait ;; one subscription: a relative time of the monotonic clock
            (memory.fill (i32.const 100) (i32.const 0) (i32.const 48))
            (i32.store (i32.const 116) (i32.const 1))
            (i64.store (i32.const 124) (i64.const 50000000))
            (drop (call $poll (i32.const 100) (i32.const 200) (i32.const 1) (i32.const 300))))
        (func (export "_start") {start}))"#
    );
    wat::parse_str(text).unwrap()
}

fn run_app(lattice: &Lattice, name: &str, start: &str, traits: &[&str]) {
    let image = lattice.write(&format!("{name}.wasm"), module(start));
    lattice.apply(&manifests::actor(lattice, name, &image, traits));
}

fn a_c_program_counts_what_it_is_given(broker: Broker) {
    let mut lattice = Lattice::start(broker);
    lattice.add_host("b", &["disk=here"], false);
    lattice.until_hosts(&[("b", "ready")]);
    let applied = lattice.cli(&["apply", &manifests::words().display().to_string()]);
    assert_eq!(applied.code, 0, "{applied:#?}");
    assert!(applied.stdout.contains("app/words running 1/1"), "{applied:#?}");
    // The same module is the same component, each time.
    let again = lattice.ok(&["apply", &manifests::words().display().to_string()]);
    assert!(again.starts_with("app/words unchanged"), "{again}");

    let with_input = |args: &[&str], input: &[u8]| {
        let mut child =
            lattice.command(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        child.wait_with_output().unwrap()
    };
    let counted = with_input(&["run", "-i", "words/words"], b"one two\nthree\n");
    assert_eq!((counted.status.code(), counted.stdout.as_slice()), (Some(0), &b"2 3 14 -\n"[..]), "{counted:?}");
    // More than one message of the bus holds.
    let large = vec![b'x'; 2 * 1024 * 1024];
    let counted = with_input(&["run", "words/words", "-i", "--", "-c"], &large);
    assert_eq!(counted.stdout, b"2097152 -\n", "{counted:?}");
    let counted = with_input(&["run", "-i", "words/words"], &[large.as_slice(), b"x"].concat());
    assert_eq!(counted.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&counted.stderr).contains("more than 2 MiB"), "{counted:?}");
    // Without -i it reads nothing, whatever this command has.
    let counted = with_input(&["run", "words/words"], b"unread");
    assert_eq!(counted.stdout, b"0 0 0 -\n", "{counted:?}");

    let wrong = lattice.cli(&["run", "words/words", "--", "-x"]);
    assert_eq!((wrong.code, wrong.stdout.as_str()), (2, ""), "{wrong:#?}");
    assert_eq!(wrong.stderr, "words: -x: it is -l, -w or -c\n");
    // A file is there when its folder is granted, and only then. It is another host that has it.
    let folder = lattice.dir().join("texts");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("a.txt"), "a b c\n").unwrap();
    let denied = lattice.cli(&["run", "words/words", "--", "/texts/a.txt"]);
    assert_eq!(denied.code, 1, "{denied:#?}");
    assert!(denied.stderr.starts_with("words: /texts/a.txt: "), "{denied:#?}");
    let grants = format!(
        "{{type: grants, properties: {{folders: [{{host: {}, guest: /texts}}], args: [counter, -w]}}}}",
        folder.display()
    );
    let on_b = "{type: spreadscaler, properties: {instances: 1, spread: [{name: b, requirements: {disk: here}}]}}";
    let image = file("manifests/words/words.wasm");
    lattice.apply(&manifests::actor(&lattice, "granted", &image, &[&grants, on_b]));
    let counted = lattice.cli(&["run", "granted/a", "--", "/texts/a.txt", "/texts/gone.txt"]);
    assert_eq!((counted.code, counted.stdout.as_str()), (1, "3 /texts/a.txt\n"), "{counted:#?}");
    assert_eq!(counted.stderr, "counter: /texts/gone.txt: No such file or directory\n");
    // What it printed is in its log too.
    until("the log has it", SOON, || lattice.ok(&["logs", "granted"]).contains("3 /texts/a.txt").then_some(()));
    lattice.assert_alive();
}

/// `main` of Rust's standard library, as `cargo build --target wasm32-wasip2` makes a component of it.
fn a_program_of_wasi_0_2_writes_and_listens_where_it_may(broker: Broker) {
    let lattice = Lattice::start(broker);
    let image = file("tests/guests/tool/tool.wasm");
    let [write, read] = ["write", "read"].map(|name| lattice.dir().join(name));
    for folder in [&write, &read] {
        std::fs::create_dir(folder).unwrap();
        std::fs::write(folder.join("there.txt"), "there").unwrap();
    }
    let folders = format!(
        "{{type: grants, properties: {{args: [tool], folders: [{{host: {}, guest: /write, write: true}}, \
         {{host: {}, guest: /read}}]}}}}",
        write.display(),
        read.display()
    );
    lattice.apply(&manifests::actor(&lattice, "tool", &image, &[&folders]));
    let run = |args: &[&str]| lattice.cli(&[&["run", "tool/a", "--"][..], args].concat());
    for args in [
        &["write", "/write/new.txt", "some"][..],
        &["append", "/write/new.txt", " text"],
        &["folder", "/write/deep"],
        &["write", "/write/deep/x", "x"],
        &["remove", "/write/there.txt"],
    ] {
        let ended = run(args);
        assert_eq!((ended.code, ended.stdout.as_str(), ended.stderr.as_str()), (0, "", ""), "{args:?}");
    }
    assert_eq!(std::fs::read_to_string(write.join("new.txt")).unwrap(), "some text");
    assert!(write.join("deep/x").is_file() && !write.join("there.txt").exists());
    let ended = run(&["read", "/write/new.txt"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (0, "some text"));

    // The other folder is there to read, and stays as it is.
    let ended = run(&["read", "/read/there.txt"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (0, "there"));
    for args in [
        &["write", "/read/new.txt", "x"][..],
        &["write", "/read/there.txt", "x"],
        &["append", "/read/there.txt", "x"],
        &["folder", "/read/deep"],
        &["remove", "/read/there.txt"],
        &["write", "/new.txt", "x"],
        &["write", "/write/../read/new.txt", "x"],
        // Without the grant nothing listens.
        &["echo", "127.0.0.1:0"],
    ] {
        let ended = run(args);
        // Of a code WASI 0.2 carries only whether it is 0.
        assert_eq!((ended.code, ended.stdout.as_str()), (1, ""), "{args:?}: {ended:#?}");
        assert!(ended.stderr.contains("os error"), "{args:?}: {ended:#?}");
    }
    let left: Vec<_> = std::fs::read_dir(&read).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["there.txt"]);
    assert_eq!(std::fs::read_to_string(read.join("there.txt")).unwrap(), "there");

    let open = "{type: grants, properties: {args: [tool], sockets: true}}";
    lattice.apply(&manifests::actor(&lattice, "open", &image, &[open]));
    let mut child = lattice.command(&["run", "open/a", "--", "echo", "127.0.0.1:0"]);
    let mut child = child.stdout(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
    let at = said.next().unwrap().unwrap();
    let mut stream = std::net::TcpStream::connect(&at).unwrap();
    stream.write_all(b"hello there").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut back = String::new();
    stream.read_to_string(&mut back).unwrap();
    assert_eq!((back.as_str(), said.next().unwrap().unwrap().as_str()), ("hello there", "11 bytes"));
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

fn an_exit_code_is_the_programs_own(broker: Broker) {
    let lattice = Lattice::start(broker);
    let start = "(call $tick) (call $exit (i32.const 42)) (call $tick)";
    run_app(&lattice, "answer", start, &[]);
    let ended = lattice.cli(&["run", "answer/a"]);
    assert_eq!((ended.code, ended.stdout.as_str(), ended.stderr.as_str()), (42, "tick\n", ""));
    run_app(&lattice, "well", "(call $tick)", &[]);
    let ended = lattice.cli(&["run", "well/a"]);
    assert_eq!((ended.code, ended.stdout.as_str(), ended.stderr.as_str()), (0, "tick\n", ""));
    run_app(&lattice, "trap", "(call $tick) unreachable", &[]);
    let ended = lattice.cli(&["run", "trap/a"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (1, "tick\n"), "{ended:#?}");
    assert!(ended.stderr.starts_with("error: actor trap/a trapped: "), "{ended:#?}");

    // What runs nowhere, or is no program, says so.
    lattice.apply(&manifests::hello());
    for (what, says) in [
        ("hello/hello", "exports no \"wasi:cli/run\"; it has wasi:http/incoming-handler"),
        ("hello/other", "has no actor \"other\""),
        ("none/a", "there is no app \"none\""),
    ] {
        let ended = lattice.cli(&["run", what]);
        assert_eq!(ended.code, 1, "{ended:#?}");
        assert!(ended.stderr.starts_with("error: ") && ended.stderr.contains(says), "{ended:#?}");
    }
    lattice.ok(&["scale", "well/a", "0"]);
    lattice.until_spread("well", "a", &[], SOON);
    let nowhere = lattice.cli(&["run", "well/a"]);
    assert!(nowhere.code == 1 && nowhere.stderr.contains("runs nowhere now"), "{nowhere:#?}");
}

fn what_a_program_prints_comes_as_it_prints_it(broker: Broker) {
    let lattice = Lattice::start(broker);
    // 64 MiB through bounds of a few: nothing is lost, and the program waits for its reader.
    let much = "(local $n i32) (local.set $n (i32.const 1024))
        (memory.fill (i32.const 65536) (i32.const 120) (i32.const 65536))
        (loop $again
            (drop (call $print (i32.const 1) (i32.const 65536) (i32.const 65536)))
            (local.set $n (i32.sub (local.get $n) (i32.const 1)))
            (br_if $again (local.get $n)))";
    run_app(&lattice, "much", much, &["{type: limits, properties: {deadline: 5m, cpu: 1m}}"]);
    let begun = Instant::now();
    let out = lattice.command(&["run", "much/a"]).output().unwrap();
    assert_eq!(out.status.code(), Some(0), "{}", String::from_utf8_lossy(&out.stderr));
    assert_eq!(out.stdout.len(), 64 << 20);
    assert!(out.stdout.iter().all(|byte| *byte == b'x'));
    eprintln!("64 MiB from a program on {broker:?}: {:.2} s", begun.elapsed().as_secs_f64());

    // The first line is there while the program still runs, and long after the last one.
    let slow = "(local $n i32) (call $tick) (local.set $n (i32.const 200))
        (loop $again (call $wait) (local.set $n (i32.sub (local.get $n) (i32.const 1))) (br_if $again (local.get $n)))
        (call $exit (i32.const 7))";
    run_app(&lattice, "slow", slow, &[]);
    let mut child = lattice.command(&["run", "slow/a"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut first = [0; 5];
    child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    assert_eq!((&first, child.try_wait().unwrap()), (b"tick\n", None));
    assert_eq!(child.wait().unwrap().code(), Some(7));
}

fn programs_that_do_not_end_are_ended(broker: Broker) {
    let mut lattice = Lattice::start(broker);
    run_app(&lattice, "loops", "(loop $again (br $again))", &["{type: limits, properties: {cpu: 300ms}}"]);
    let ended = lattice.cli(&["run", "loops/a"]);
    assert_eq!(ended.code, 1, "{ended:#?}");
    assert!(ended.stderr.contains("used up its 300 ms of processor time; raise limits.cpu"), "{ended:#?}");
    run_app(&lattice, "waits", "(loop $again (call $wait) (call $tick) (br $again))", &[]);
    let ended = lattice.cli(&["run", "waits/a", "--timeout", "300ms"]);
    assert!(ended.code == 1 && ended.stderr.contains("ran past its"), "{ended:#?}");

    // When its caller is gone the program is, too: its only replica is free again long before its deadline.
    let mut command = lattice.command(&["run", "waits/a"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut first = [0; 5];
    child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let next = lattice.cli(&["run", "waits/a", "--timeout", "12s"]);
    assert!(next.stdout.starts_with("tick\n"), "it waited for the one before: {next:#?}");
    lattice.assert_alive();
}
