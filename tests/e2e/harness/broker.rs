//! The two buses that every scenario runs on, and a real nats-server.

use super::process::Process;
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Broker {
    /// Inside `lattice up`.
    Embedded,
    /// nats-server, a process of its own.
    Nats,
}

/// The program that `tests/run` installs, or the one that LATTICE_NATS_SERVER names.
pub(crate) fn nats_server() -> PathBuf {
    let path = match std::env::var_os("LATTICE_NATS_SERVER") {
        Some(path) => PathBuf::from(path),
        None => super::root().join("target/tools/bin/nats-server"),
    };
    assert!(
        path.is_file(),
        "{} is missing: run tests/run, which installs it, or name a nats-server in LATTICE_NATS_SERVER",
        path.display()
    );
    path
}

pub(crate) struct NatsServer {
    process: Process,
    port: u16,
}

impl NatsServer {
    /// Listens on `port` of loopback; 0 picks a free one.
    pub(crate) fn start(dir: &Path, port: u16) -> Self {
        let ports = dir.join("nats-ports");
        let _ = std::fs::remove_dir_all(&ports);
        std::fs::create_dir(&ports).unwrap();
        let asked = if port == 0 { "-1".to_owned() } else { port.to_string() };
        let mut command = Command::new(nats_server());
        command.args(["--addr", "127.0.0.1", "--port", &asked, "--ports_file_dir"]).arg(&ports);
        let mut process = Process::spawn("nats-server", dir, &mut command);
        let port = super::until("nats-server listens", super::SOON, || {
            process.assert_alive();
            let file = std::fs::read_dir(&ports).unwrap().next()?.unwrap().path();
            let text = std::fs::read_to_string(file).ok()?;
            let json: serde_json::Value = serde_json::from_str(&text).ok()?;
            json["nats"][0].as_str()?.rsplit(':').next()?.parse().ok()
        });
        Self { process, port }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn kill(&mut self) {
        self.process.kill();
    }

    pub(crate) fn assert_alive(&mut self) {
        self.process.assert_alive();
    }
}
