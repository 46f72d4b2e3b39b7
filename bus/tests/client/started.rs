//! Brokers of both kinds to test against, and a peer that keeps to no rule.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bus::broker::Broker;
use bus::{Bus, Config, Connection};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    Embedded,
    NatsServer,
}

/// A broker of either kind that can be stopped and started on the same port.
pub(crate) struct Started {
    kind: Kind,
    port: u16,
    token: Option<String>,
    running: Option<Running>,
}

enum Running {
    Embedded(Broker),
    NatsServer(Child, tempfile::TempDir),
}

impl Started {
    pub(crate) async fn on(kind: Kind, token: Option<&str>) -> Self {
        let mut this = Self { kind, port: 0, token: token.map(str::to_owned), running: None };
        this.start().await;
        this
    }

    pub(crate) async fn start(&mut self) {
        self.running = Some(match self.kind {
            Kind::Embedded => {
                let listen = ([127, 0, 0, 1], self.port).into();
                let broker = Broker::start(bus::broker::Config { listen, token: self.token.clone() }).unwrap();
                self.port = broker.addr().port();
                Running::Embedded(broker)
            }
            Kind::NatsServer => {
                let dir = tempfile::tempdir().unwrap();
                let mut command = Command::new(nats_server());
                let port = if self.port == 0 { "-1".to_owned() } else { self.port.to_string() };
                command.args(["-a", "127.0.0.1", "-p", &port, "--ports_file_dir"]).arg(dir.path());
                if let Some(token) = &self.token {
                    command.args(["--auth", token]);
                }
                let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
                let ports = dir.path().join(format!("nats-server_{}.ports", child.id()));
                self.port = port_of(&ports).await;
                Running::NatsServer(child, dir)
            }
        });
    }

    pub(crate) async fn stop(&mut self) {
        match self.running.take() {
            Some(Running::Embedded(broker)) => broker.shutdown().await,
            Some(Running::NatsServer(mut child, _dir)) => {
                child.kill().unwrap();
                child.wait().unwrap();
            }
            None => {}
        }
    }

    pub(crate) fn config(&self) -> Config {
        Config {
            urls: vec![format!("nats://127.0.0.1:{}", self.port)],
            credentials: None,
            token: self.token.clone(),
            tls_ca: None,
            tls_cert: None,
            tls_key: None,
            name: "test".into(),
            lattice: "test".parse().unwrap(),
        }
    }

    /// The server knows where it is reached, so that an address of it may be handed to another connection by any way.
    pub(crate) async fn bus(&self) -> Bus {
        let bus = Bus::connect(&self.config()).await.unwrap();
        wait_for(&bus, |connection| connection.up).await;
        bus.subscribe("settled".into()).await.unwrap();
        bus
    }

    pub(crate) async fn raw(&self) -> Raw {
        let mut raw = Raw { stream: TcpStream::connect(("127.0.0.1", self.port)).await.unwrap(), seen: String::new() };
        raw.write(b"CONNECT {\"verbose\":false,\"headers\":true}\r\n").await;
        raw
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if let Some(Running::NatsServer(child, _)) = &mut self.running {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A nats-server with arguments of its own, on a port of its choice. Killed when the test ends, however it ends.
pub(crate) struct Server {
    child: Child,
    pub(crate) port: u16,
}

impl Server {
    /// `dir` is where it says which port it has.
    pub(crate) async fn start(dir: &Path, args: &[&OsStr]) -> Self {
        let mut command = Command::new(nats_server());
        command.args(["-a", "127.0.0.1", "-p", "-1", "--ports_file_dir"]).arg(dir).args(args);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let mut server = Self { child, port: 0 };
        server.port = port_of(&dir.join(format!("nats-server_{}.ports", server.child.id()))).await;
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A peer that keeps to no rule.
pub(crate) struct Raw {
    stream: TcpStream,
    seen: String,
}

impl Raw {
    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// Everything that arrived so far, once `text` is in it.
    pub(crate) async fn until(&mut self, text: &str) -> String {
        let mut bytes = vec![0; 8_192];
        while !self.seen.contains(text) {
            let read = timeout(PATIENCE, self.stream.read(&mut bytes)).await;
            let n = read.unwrap_or_else(|_| panic!("no {text:?} in {:?}", self.seen)).unwrap();
            assert!(n > 0, "ended: {:?}", self.seen);
            self.seen.push_str(&String::from_utf8_lossy(&bytes[..n]));
        }
        self.seen.clone()
    }
}

pub(crate) async fn wait_for(bus: &Bus, mut is_it: impl FnMut(Connection) -> bool) {
    let mut connection = bus.connection();
    let waited = timeout(PATIENCE, connection.wait_for(|connection| is_it(*connection))).await;
    if waited.is_err() {
        panic!("the connection stays at {:?}: {:?}", bus.connection().borrow(), bus.problem());
    }
}

pub(crate) fn nats_server() -> PathBuf {
    let path = std::env::var_os("LATTICE_NATS_SERVER").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/tools/bin/nats-server")),
        PathBuf::from,
    );
    assert!(
        path.exists(),
        "no nats-server at {}: run tests/run, which brings one, or name one in LATTICE_NATS_SERVER",
        path.display()
    );
    path
}

/// nats-server writes where it listens once it does.
pub(crate) async fn port_of(file: &std::path::Path) -> u16 {
    let began = Instant::now();
    loop {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let port = text.split("://127.0.0.1:").nth(1).and_then(|rest| rest.split('"').next());
        if let Some(port) = port.and_then(|port| port.parse().ok()) {
            return port;
        }
        assert!(began.elapsed() < PATIENCE, "nats-server did not start: {text:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
