//! What people see on a terminal: `top` drawn again and again, and what `apply`, `push` and `pull` show while they last.
//! The terminal is one that util-linux's `script` makes.

use crate::harness::{Broker, Lattice, Process, SOON, file, leave_out, manifests, run, until};
use std::process::Command;

#[test]
fn what_goes_on_is_drawn_on_a_terminal() {
    run("what_goes_on_is_drawn_on_a_terminal", Broker::Embedded, drawn);
}

/// From where the terminal is cleared.
const CLEAR: &str = "\x1b[H\x1b[2J";

fn drawn(broker: Broker) {
    if !Command::new("script").arg("--version").output().is_ok_and(|output| output.status.success()) {
        return leave_out("what is drawn on a terminal: there is no `script`: install it (Debian: bsdutils)");
    }
    let lattice = Lattice::start(broker);
    let hello = manifests::hello().display().to_string();
    let mut apply = on_terminal(&lattice, "apply", &["apply", &hello]);
    assert_eq!(apply.exit_code(), Some(0), "{}", apply.stdout());
    let drawn = apply.stdout();
    assert!(drawn.contains("uploading ") && drawn.contains("hello.wasm"), "{drawn:?}");
    assert!(drawn.contains("app/hello created\r\n") && drawn.contains("app/hello running 1/1"), "{drawn:?}");
    // What was drawn meanwhile is not left: the last of it is taken away.
    let told = drawn.rsplit('\r').find(|line| line.contains("uploading ") || line.contains("running 1/1")).unwrap();
    assert!(told.contains("running 1/1"), "{drawn:?}");

    let top = on_terminal(&lattice, "top", &["top", "--every", "200ms"]);
    let drawn = until("top has drawn it three times", SOON, || {
        let drawn = top.stdout();
        (drawn.matches(CLEAR).count() > 3).then_some(drawn)
    });
    let pages: Vec<&str> = drawn.split(CLEAR).skip(1).take(3).collect();
    for page in pages {
        assert!(page.contains("requests/s") && page.lines().any(|line| line.starts_with("hello   hello")), "{page}");
    }
    drop(top);

    // Nobody watches a pipe: nothing is drawn into it.
    let piped = lattice.cli(&["apply", &hello]);
    assert!(!piped.stdout.contains('\x1b') && !piped.stderr.contains('\x1b'), "{piped:#?}");
    let unwatched =
        lattice.cli(&["push", &file("manifests/hello/hello.wasm").display().to_string(), "127.0.0.1:1/a:1"]);
    assert!(unwatched.code == 1 && !unwatched.stderr.contains('\x1b'), "{unwatched:#?}");
}

/// A command whose output goes to a terminal, and what it draws there.
fn on_terminal(lattice: &Lattice, name: &str, args: &[&str]) -> Process {
    let asked = lattice.command(args);
    let words = [asked.get_program()].into_iter().chain(asked.get_args());
    let line: Vec<String> = words.map(|word| format!("'{}'", word.to_str().unwrap())).collect();
    let mut command = Command::new("script");
    command.args(["-qefc", &line.join(" "), "/dev/null"]);
    for (key, value) in asked.get_envs() {
        match value {
            Some(value) => command.env(key, value),
            None => command.env_remove(key),
        };
    }
    command.env("TERM", "xterm");
    if let Some(dir) = asked.get_current_dir() {
        command.current_dir(dir);
    }
    Process::spawn(name, lattice.dir(), &mut command)
}
