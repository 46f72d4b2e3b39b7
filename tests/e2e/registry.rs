//! Components in a real OCI registry: pushed, applied from there by tag and by digest, pulled; and what a registry may
//! refuse, lose or damage.

use crate::harness::manifests::Hello;
use crate::harness::{Broker, Lattice, PROGRAM, Process, SOON, clean, file, http, leave_out, run, until};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

#[test]
fn components_come_from_a_registry() {
    run("components_come_from_a_registry", Broker::Embedded, from_a_registry);
}

fn from_a_registry(broker: Broker) {
    let Some(registry) = Registry::start("") else { return };
    let lattice = Lattice::start(broker);
    let hello = file("manifests/hello/hello.wasm");
    let pushed = registry.ok(&["push", &hello.display().to_string(), &registry.reference("acme/hello:1")]);
    let pinned = pushed.strip_prefix("pushed ").and_then(|rest| rest.split(' ').next()).unwrap().to_owned();
    assert!(pinned.starts_with(&registry.reference("acme/hello:1@sha256:")), "{pushed}");

    // By tag, with and without the scheme, and by digest: three apps of one component.
    for (name, image) in [
        ("tagged", registry.reference("acme/hello:1")),
        ("schemed", format!("oci://{}", registry.reference("acme/hello:1"))),
        ("pinned", pinned.clone()),
    ] {
        lattice.apply(&app(name, &image).write(&lattice));
        let answer = until("it answers", SOON, || http::answers(lattice.ingress("a"), &format!("{name}.localhost")));
        assert_eq!(answer.text(), "Hello from lattice!\n");
    }
    // What it would need is told without an app.
    for reference in [registry.reference("acme/hello:1"), pinned.clone()] {
        let inspected = registry.ok(&["inspect", &reference]);
        assert!(inspected.starts_with(&format!("{reference} ")), "{inspected}");
        let of_file = lattice.ok(&["inspect", &hello.display().to_string()]);
        assert!(inspected.lines().skip(1).eq(of_file.lines().skip(1)), "{inspected}{of_file}");
    }
    let (code, _, stderr) = registry.lattice(&["inspect", &registry.reference("acme/hello:2")]);
    assert!(code == 1 && stderr.contains("has no 2 of acme/hello"), "{stderr}");

    // What runs has the digest: the registry may go.
    let (out, copy) = (lattice.dir().join("copy.wasm"), fs::read(&hello).unwrap());
    registry.ok(&["pull", &pinned, "-o", &out.display().to_string()]);
    assert_eq!(fs::read(&out).unwrap(), copy);

    let index = || lattice.cli(&["status", "-o", "json"]).json()["index"].as_u64().unwrap();
    let before = index();
    let refused = |image: &str, says: &[&str]| {
        let path = app("wrong", image).write(&lattice);
        let cli = lattice.cli(&["apply", &path.display().to_string()]);
        assert_eq!(cli.code, 1, "{image}: {cli:#?}");
        // Long lines are wrapped for people.
        let said = cli.stderr.split_whitespace().collect::<Vec<_>>().join(" ");
        for word in says.iter().chain(&["wrong.yaml", "nothing was changed"]) {
            assert!(said.contains(word), "{image}: no {word:?} in {said}");
        }
    };
    refused(&registry.reference("acme/hello:2"), &["has no 2 of acme/hello", "lattice push"]);
    refused(&registry.reference("acme/nothing:1"), &["has no 1 of acme/nothing"]);
    let other = format!("{}@sha256:{}", registry.reference("acme/hello"), "0".repeat(64));
    refused(&other, &["has no sha256:0000"]);
    refused("127.0.0.1:1/acme/hello:1", &["registry 127.0.0.1:1 can not be reached", "check its host and port"]);
    // What is stored there is no longer what was pushed.
    registry.damage(&copy);
    refused(&pinned, &["sha256:"]);
    assert_eq!(index(), before, "nothing of that reached the log");
    until("what runs goes on", SOON, || http::answers(lattice.ingress("a"), "pinned.localhost"));
}

#[test]
fn a_registry_with_a_door_wants_the_credentials_of_docker() {
    crate::harness::alone(|| {
        // secret, as htpasswd -B writes it
        let Some(registry) = Registry::start("ada:$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n")
        else {
            return;
        };
        let hello = file("manifests/hello/hello.wasm").display().to_string();
        let push = ["push", &hello, &registry.reference("acme/hello:1")];
        let (code, _, stderr) = registry.lattice(&push);
        assert!(code == 1 && stderr.contains("docker login"), "{stderr}");
        // ada:wrong, then ada:secret
        for (auth, expected) in [("YWRhOndyb25n", 1), ("YWRhOnNlY3JldA==", 0)] {
            let config = format!("{{\"auths\": {{\"{}\": {{\"auth\": \"{auth}\"}}}}}}", registry.at);
            fs::write(registry.dir.path().join("config.json"), config).unwrap();
            let copy = registry.dir.path().join("copy.wasm").display().to_string();
            let reference = registry.reference("acme/hello:1");
            for args in [&push[..], &["inspect", &reference], &["pull", &reference, "-o", &copy]] {
                let (code, stdout, stderr) = registry.lattice(args);
                assert_eq!(code, expected, "{args:?}: {stdout}{stderr}");
            }
        }
        fs::write(registry.dir.path().join("config.json"), "{").unwrap();
        let (code, _, stderr) = registry.lattice(&push);
        assert!(code == 1 && stderr.contains("config.json"), "{stderr}");
    });
}

#[test]
fn what_is_no_component_is_not_pushed() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("text.wasm");
    fs::write(&text, "hello").unwrap();
    let none = dir.path().join("none.wasm");
    for (path, says) in [(&text, "text.wasm"), (&none, "no such file")] {
        let args = ["push", &path.display().to_string(), "127.0.0.1:1/a:1"];
        let output = clean(Command::new(PROGRAM).args(args)).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(1) && stderr.contains(says), "{stderr}");
    }
    for (args, says) in
        [(["push", "a.wasm", "./a.wasm"], "registry reference"), (["pull", "ghcr.io/A:1", "-ox"], "registry reference")]
    {
        let output = clean(Command::new(PROGRAM).args(args)).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && stderr.contains(says), "{stderr}");
    }
}

/// A registry on a port of its choice.
struct Registry {
    at: String,
    _process: Process,
    /// Also where the credentials of Docker are.
    dir: TempDir,
}

impl Registry {
    /// `users` is a password file; without one everybody may do everything. `None` where there is no registry to start.
    fn start(users: &str) -> Option<Self> {
        let program = file("target/tools/bin/docker-registry");
        if !program.exists() {
            leave_out("components from an OCI registry: docker-registry could not be installed from Debian's packages");
            return None;
        }
        let dir = tempfile::Builder::new().prefix("lattice-registry-").tempdir().unwrap();
        let mut config = format!(
            "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"127.0.0.1:0\"}}\n",
            dir.path().join("data").display()
        );
        if !users.is_empty() {
            let path = dir.path().join("users");
            fs::write(&path, users).unwrap();
            config += &format!("auth: {{htpasswd: {{realm: test, path: {}}}}}\n", path.display());
        }
        let path = dir.path().join("config.yml");
        fs::write(&path, config).unwrap();
        let process = Process::spawn("registry", dir.path(), Command::new(program).arg("serve").arg(path));
        let at = until("the registry listens", SOON, || {
            let log = process.stderr();
            let rest = log.split("listening on ").nth(1)?;
            Some(rest.split('"').next()?.to_owned()).filter(|_| rest.contains('"'))
        });
        Some(Self { at, _process: process, dir })
    }

    fn reference(&self, name: &str) -> String {
        format!("{}/{name}", self.at)
    }

    fn lattice(&self, args: &[&str]) -> (i32, String, String) {
        let output = clean(Command::new(PROGRAM).args(args).env("DOCKER_CONFIG", self.dir.path())).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
    }

    fn ok(&self, args: &[&str]) -> String {
        let (code, stdout, stderr) = self.lattice(args);
        assert_eq!(code, 0, "lattice {}: {stdout}{stderr}", args.join(" "));
        stdout
    }

    /// Changes a byte of every copy of `bytes` that it stores.
    fn damage(&self, bytes: &[u8]) {
        let mut damaged = 0;
        for path in files(&self.dir.path().join("data")) {
            let mut stored = fs::read(&path).unwrap();
            if stored == bytes {
                let middle = stored.len() / 2;
                stored[middle] ^= 1;
                fs::write(&path, stored).unwrap();
                damaged += 1;
            }
        }
        assert!(damaged > 0, "it stores the component somewhere else");
    }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// The hello component by a reference, reached by a host name that begins with the app's.
fn app(name: &'static str, image: &str) -> Hello {
    Hello { name, image: image.to_owned(), host: format!("{name}.localhost"), ..Hello::default() }
}
