//! The host's loop: takes assignments, stores them, makes them so, and says what runs. Needs nothing but the bus; when
//! the bus is away it runs its last assignment.
//!
//! Reading order: `Agent` (start, shutdown), `run` (the loop), `start` (one component), `answer` (questions),
//! `pulse` (heartbeats), `running` (what is up), `disk` (what is remembered), `away` (where the bus is).

mod answer;
mod away;
mod disk;
mod facts;
mod pulse;
mod run;
mod running;
mod start;
mod tls;

use crate::ingress::{self, Ingress, Nearest, Routes};
use crate::logs::Logs;
use crate::{artifact, engine};
use bus::Bus;
use disk::Disk;
use proto::app::{HostId, LatticeName};
use proto::policy::Policy;
use proto::v1 as pb;
use running::Running;
use start::Parts;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

/// Bytes of artifacts kept; the oldest that nothing names go first.
const ARTIFACT_STORE_BYTES_MAX: u64 = 4 * 1024 * 1024 * 1024;
/// Instances alive at once, cut to what the machine can carry.
const INSTANCES_MAX: u32 = 1_000;

#[derive(Debug, Clone)]
pub struct Config {
    pub lattice: LatticeName,
    /// Identity, last assignment, artifacts, compiled code and the built-in store live under it.
    pub data: PathBuf,
    /// What people call this host.
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub ingress: Option<IngressConfig>,
    /// What this host takes away from what manifests grant.
    pub policy: Policy,
    /// Who compiles components; without one this process does.
    pub compiler: Option<engine::Compiler>,
}

#[derive(Debug, Clone)]
pub struct IngressConfig {
    pub listen: SocketAddr,
    /// Certificate chain and key, PEM files.
    pub tls: Option<(PathBuf, PathBuf)>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Disk(#[from] disk::Error),
    #[error(transparent)]
    Engine(#[from] engine::Error),
    #[error(transparent)]
    Artifact(#[from] artifact::Error),
    #[error(transparent)]
    Ingress(#[from] ingress::Error),
    #[error(transparent)]
    Bus(#[from] bus::Error),
    #[error(transparent)]
    Tls(#[from] tls::Error),
}

/// Who this host is, for every message it sends.
#[derive(Debug, Clone)]
struct Identity {
    lattice: LatticeName,
    host: HostId,
    name: String,
    boot: String,
    labels: BTreeMap<String, String>,
    facts: pb::Facts,
    ingress: String,
    ingress_tls: bool,
}

/// A running host.
pub struct Agent {
    identity: Identity,
    ingress: Option<SocketAddr>,
    commands: mpsc::Sender<Command>,
    loop_task: JoinHandle<()>,
}

/// From the ends of the bus, and from those who hold the agent, to the loop.
enum Command {
    Assign(Box<pb::Assignment>, oneshot::Sender<pb::Assigned>),
    Shutdown { leaving: bool, done: oneshot::Sender<()> },
}

impl Agent {
    /// Opens the host's folder and starts what was assigned last. The bus may be unreachable.
    pub async fn start(config: Config, bus: Bus) -> Result<Self, Error> {
        let disk = Disk::open(&config.data)?;
        let host = disk.identity()?;
        let engine = engine::Engine::new(engine::Config {
            cache_dir: config.data.join("compiled"),
            memory_bytes: 0,
            instances_max: INSTANCES_MAX,
            policy: Arc::new(config.policy),
            bus: away::addresses(&bus).await,
            compiler: config.compiler,
        })?;
        let artifacts = artifact::Store::open(&config.data.join("artifacts"), ARTIFACT_STORE_BYTES_MAX)?;
        let running = Arc::new(Running::default());
        let (routes, routed) = watch::channel(Arc::new(Routes::default()));
        let ingress = match &config.ingress {
            Some(c) => {
                let tls = c.tls.as_ref().map(|(cert, key)| tls::server(cert, key)).transpose()?;
                let nearest = Arc::new(Nearest::new(running.clone(), bus.clone()));
                Some(Ingress::start(c.listen, tls, routed, nearest).await?)
            }
            None => None,
        };
        let addr = ingress.as_ref().map(Ingress::addr);
        let identity = Identity {
            lattice: config.lattice,
            name: config.name,
            boot: disk.boot()?,
            labels: config.labels,
            facts: facts::find_out(),
            ingress: addr.map(|a| a.to_string()).unwrap_or_default(),
            ingress_tls: config.ingress.as_ref().is_some_and(|i| i.tls.is_some()),
            host: host.clone(),
        };
        let parts = Parts {
            logs: Logs::start(Some(bus.clone()), host),
            bus,
            engine,
            artifacts: Arc::new(artifacts),
            running,
            keyvalue: Arc::default(),
            keyvalue_dir: config.data.join("keyvalue"),
            pulse: Arc::default(),
        };
        let (commands, received) = mpsc::channel(16);
        let ends = answer::serve(&parts, &identity, commands.clone()).await?;
        let state = run::Loop::new(identity.clone(), parts, disk, routes, ingress, ends);
        let loop_task = tokio::spawn(state.run(received));
        Ok(Self { identity, ingress: addr, commands, loop_task })
    }

    pub fn id(&self) -> &HostId {
        &self.identity.host
    }

    pub fn name(&self) -> &str {
        &self.identity.name
    }

    /// Where its ingress listens.
    pub fn ingress(&self) -> Option<SocketAddr> {
        self.ingress
    }

    /// Resolves when the host's loop has ended, whoever ended it.
    pub fn ended(&self) -> impl Future<Output = ()> + Send + use<> {
        let commands = self.commands.clone();
        async move { commands.closed().await }
    }

    /// Ends the host: requests under way are finished. A host that is `leaving` tells the scheduler, which then places
    /// what it ran elsewhere at once; else the scheduler waits for it as for one that was cut off.
    pub async fn shutdown(self, leaving: bool) {
        let (done, finished) = oneshot::channel();
        if self.commands.send(Command::Shutdown { leaving, done }).await.is_ok() {
            let _ = finished.await;
        }
        let _ = self.loop_task.await;
    }
}
