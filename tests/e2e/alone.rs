//! What needs no lattice, and how a process begins: files checked offline, scripts for shells, addresses refused.

use crate::harness::{PROGRAM, Process, SOON, alone, clean, file, http, manifests, until};
use std::process::{Command, Output};

fn lattice(args: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(PROGRAM);
    // Whoever is asked, nobody answers.
    clean(&mut command).env("LATTICE_API", "127.0.0.1:1").args(args);
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (status.code().unwrap_or(-1), text(stdout), text(stderr))
}

#[test]
fn examples_are_valid_without_a_server() {
    let examples = [
        ("hello", manifests::hello()),
        ("counter", manifests::counter()),
        ("counter-apart", manifests::counter_apart()),
        ("keystore", manifests::keystore_builtin()),
        ("keystore-actor", manifests::keystore_actor()),
        ("hostile", file("tests/guests/hostile/app.yaml")),
    ];
    let mut args = vec!["validate".to_owned()];
    args.extend(examples.iter().map(|(_, path)| path.display().to_string()));
    let (code, stdout, stderr) = lattice(&args.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(code, 0, "{stderr}");
    for (name, path) in &examples {
        let line = format!("app/{name} valid ({})\n", path.display());
        assert!(stdout.contains(&line), "{line} in\n{stdout}");
    }
}

#[test]
fn every_shell_gets_its_completion() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let (code, stdout, _) = lattice(&["completion", shell]);
        assert_eq!(code, 0, "{shell}");
        for verb in ["apply", "rollback", "uncordon"] {
            assert!(stdout.contains(verb), "{verb} for {shell}");
        }
    }
    assert_eq!(lattice(&["completion", "cmd"]).0, 2);
}

#[test]
fn help_and_version_are_no_failures() {
    let (code, stdout, _) = lattice(&["--version"]);
    assert_eq!((code, stdout), (0, format!("lattice {}\n", env!("CARGO_PKG_VERSION"))));
    for verb in ["up", "scheduler", "host", "apply", "get", "call"] {
        let (code, stdout, _) = lattice(&[verb, "--help"]);
        assert!(code == 0 && stdout.contains("Examples:"), "{verb}: {stdout}");
    }
}

#[test]
fn nothing_listens_beyond_this_machine_without_tls() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().display().to_string();
    for (flag, says) in [("--api", "--tls-cert"), ("--ingress", "--tls-cert"), ("--bus", "nats-server")] {
        let (code, stdout, stderr) = lattice(&["up", "--data", &data, flag, "0.0.0.0:0"]);
        assert_eq!((code, stdout.as_str()), (2, ""), "{flag}: {stderr}");
        assert!(stderr.contains(flag) && stderr.contains(says), "{flag}: {stderr}");
    }
    let away = "nats://127.0.0.1:1";
    let (code, _, stderr) = lattice(&["scheduler", "--data", &data, "--nats", away, "--api", "[::]:0"]);
    assert!(code == 2 && stderr.contains("--tls-cert"), "{stderr}");
    let (code, _, stderr) = lattice(&["host", "--data", &data, "--nats", away, "--ingress", "0.0.0.0:0"]);
    assert!(code == 2 && stderr.contains("--tls-cert"), "{stderr}");
}

/// `lattice up` on free ports with more arguments.
fn up(dir: &std::path::Path, name: &str, more: &[&str]) -> Process {
    let mut command = Command::new(PROGRAM);
    clean(&mut command).args(["up", "--data"]).arg(dir.join("data"));
    for port in ["--api", "--bus", "--ingress"] {
        if !more.contains(&port) {
            command.args([port, "127.0.0.1:0"]);
        }
    }
    Process::spawn(name, dir, command.args(more))
}

#[test]
fn up_with_a_file_serves_it_and_says_what_to_type() {
    alone(|| {
        let dir = tempfile::tempdir().unwrap();
        let manifest = manifests::hello().display().to_string();
        let mut first = up(dir.path(), "first", &[&manifest]);
        let ingress = first.field("ingress");
        until("it says what to type", SOON, || {
            first.assert_alive();
            first.stdout().contains(&format!("next: curl {ingress}/")).then_some(())
        });
        let at = ingress.strip_prefix("http://").unwrap().parse().unwrap();
        assert_eq!(http::get(at, "/").status, 200);

        // One process to a folder, and to a port.
        let mut second = up(dir.path(), "second", &[]);
        until("the second ends", SOON, || (!second.is_alive()).then_some(()));
        assert!(second.stderr().contains("data"), "{}", second.stderr());
        let other = tempfile::tempdir().unwrap();
        let api = first.field("api");
        let mut third = up(other.path(), "third", &["--api", &api]);
        until("the third ends", SOON, || (!third.is_alive()).then_some(()));
        assert!(third.stderr().contains(&api), "{}", third.stderr());
        first.assert_alive();
        assert_eq!(http::get(at, "/").status, 200);
        first.interrupt();
    });
}

#[test]
fn up_with_a_bad_file_starts_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bad.yaml");
    std::fs::write(&path, "kind: [\n").unwrap();
    let data = dir.path().join("data");
    let (code, stdout, stderr) = lattice(&["up", &path.display().to_string(), "--data", &data.display().to_string()]);
    assert_eq!((code, stdout.as_str()), (1, ""), "{stderr}");
    assert!(stderr.contains("bad.yaml:1:") && !data.exists(), "{stderr}");
}

#[test]
fn the_log_may_be_lines_of_json() {
    alone(|| {
        let dir = tempfile::tempdir().unwrap();
        let mut process = up(dir.path(), "json", &["--log", "json"]);
        process.field("api");
        process.interrupt();
        let log = process.stderr();
        let lines: Vec<serde_json::Value> =
            log.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect();
        assert!(!lines.is_empty(), "{log}");
        for line in &lines {
            for name in ["timestamp", "level", "target", "fields"] {
                assert!(!line[name].is_null(), "no {name}: {line}");
            }
        }
    });
}
