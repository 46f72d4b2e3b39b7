//! The host's loop: takes assignments, stores them, makes them so, and says what runs. Needs nothing but the bus; when
//! the bus is away it runs its last assignment.
//!
//! Reading order: `Agent` (start, shutdown), `run` (the loop), `start` (one component), `steps` (how far it is), `answer` (questions), `jobs`
//! (programs), `pulse` (heartbeats), `running` (what is up), `telemetry` (health, metrics), `disk` (what is remembered),
//! `away` (where the bus is).

mod answer;
mod away;
mod disk;
mod facts;
mod jobs;
mod load;
mod pulse;
mod run;
mod running;
mod start;
mod steps;
mod telemetry;

pub use telemetry::Health;

use crate::ingress::{self, Access, Behind, Ingress, Limits, Nearest, Routes, tls};
use crate::logs::Logs;
use crate::{artifact, engine};
use bus::Bus;
use disk::Disk;
use prometheus_client::collector::Collector;
use proto::app::{HostId, LatticeName};
use proto::policy::Policy;
use proto::v1 as pb;
use running::Running;
use start::Parts;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use telemetry::{Progress, Scrape, Telemetry};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinHandle;

/// Bytes of artifacts kept; at half of it, what nothing names goes at once.
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
    /// How long a component, and its compiled code, is kept that no app here names.
    pub keep_unused: Duration,
}

#[derive(Debug, Clone)]
pub struct IngressConfig {
    pub listen: SocketAddr,
    /// Where certificate chains and their keys are; the first is for clients that ask for no name of the others. None:
    /// no TLS.
    pub tls: Vec<ingress::tls::Source>,
    pub access_log: Option<ingress::AccessTarget>,
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
    Tls(#[from] ingress::tls::Error),
    #[error(transparent)]
    AccessLog(#[from] ingress::AccessError),
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
    keep_unused: Duration,
}

/// A running host.
pub struct Agent {
    identity: Identity,
    ingress: Option<SocketAddr>,
    commands: mpsc::Sender<Command>,
    parts: Parts,
    loop_task: JoinHandle<()>,
}

/// The way in, as it was asked for.
async fn listen(
    config: &IngressConfig,
    telemetry: &Telemetry,
    routes: watch::Receiver<Arc<Routes>>,
    running: Arc<Running>,
    bus: Bus,
) -> Result<Ingress, Error> {
    ingress::check_listen(config.listen, !config.tls.is_empty())?;
    let served = match config.tls.as_slice() {
        [] => None,
        sources => Some(tls::server(sources)?),
    };
    let access = config.access_log.as_ref().map(Access::open).transpose()?.map(Arc::new);
    let behind = Behind {
        routes,
        dispatch: Arc::new(Nearest::new(running, bus)),
        access,
        meter: telemetry.meter.clone(),
        limits: Limits::default(),
    };
    if let Some(served) = &served {
        let _ = telemetry.certificates.set(served.certificates.clone());
    }
    Ok(Ingress::start(config.listen, served.map(|s| s.config), behind).await?)
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
        let artifacts = Arc::new(artifact::Store::open(&config.data.join("artifacts"), ARTIFACT_STORE_BYTES_MAX)?);
        let share = artifact::Share::new(bus.clone(), artifacts.clone());
        share.begin().await;
        let running = Arc::new(Running::default());
        let telemetry = Arc::new(Telemetry::default());
        let (routes, routed) = watch::channel(Arc::new(Routes::default()));
        let ingress = match &config.ingress {
            Some(config) => Some(listen(config, &telemetry, routed, running.clone(), bus.clone()).await?),
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
            ingress_tls: config.ingress.as_ref().is_some_and(|i| !i.tls.is_empty()),
            host: host.clone(),
            keep_unused: config.keep_unused,
        };
        let parts = Parts {
            logs: Logs::start(Some(bus.clone()), host),
            bus,
            engine,
            artifacts,
            share,
            running,
            keyvalue: Arc::default(),
            keyvalue_dir: config.data.join("keyvalue"),
            pulse: Arc::default(),
            telemetry,
            doors: Arc::default(),
            steps: Arc::default(),
            fetches: Arc::new(Semaphore::new(start::FETCHES_MAX)),
        };
        let (commands, received) = mpsc::channel(16);
        let ends = answer::serve(&parts, &identity, commands.clone()).await?;
        let last = disk.assignment();
        if let Some(last) = &last {
            // Before anybody can ask whether it is ready.
            let wanted = last.apps.iter().map(|app| app.replicas.len()).sum();
            parts.telemetry.goes_on(Progress { assigned: true, wanted, ..Progress::default() });
        }
        let state = run::Loop::new(identity.clone(), parts.clone(), disk, routes, ingress, ends);
        let loop_task = tokio::spawn(state.run(last, received));
        Ok(Self { identity, ingress: addr, commands, parts, loop_task })
    }

    pub fn id(&self) -> &HostId {
        &self.identity.host
    }

    pub fn name(&self) -> &str {
        &self.identity.name
    }

    /// Whether it is well, to be asked at any time.
    pub fn health(&self) -> Health {
        Health { parts: self.parts.clone(), commands: self.commands.clone() }
    }

    /// What it counts, for Prometheus.
    pub fn metrics(&self) -> Box<dyn Collector> {
        Box::new(Scrape { identity: self.identity.clone(), parts: self.parts.clone() })
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

#[cfg(test)]
mod tests;
