//! A whole scheduler: starts its parts in order and ends them in the other.

use crate::artifact::{self, Artifacts};
use crate::control::{self, Shared};
use crate::events::Events;
use crate::plan::Config as Timers;
use crate::replica::Replica;
use crate::{api, raft};
use bus::Bus;
use proto::app::{Kind, LatticeName};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How often artifacts that nothing names are looked for.
const SWEEP: Duration = Duration::from_secs(600);
/// Bytes of one log entry: a plan over ten thousand hosts, or a manifest.
const ENTRY_BYTES_MAX: usize = 16 * 1024 * 1024;

#[derive(Debug, Clone)]
pub struct Config {
    /// Its id in the Raft group, from 1; never given to another.
    pub id: u64,
    pub lattice: LatticeName,
    /// Log, state and artifacts live under it.
    pub data: PathBuf,
    pub api: api::Config,
    pub timers: Timers,
    /// Log bytes before a snapshot.
    pub log_bytes_max: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Raft(#[from] raft::Error),
    #[error(transparent)]
    Artifact(#[from] artifact::Error),
    #[error(transparent)]
    Api(#[from] api::Error),
    #[error("{}: {source}; make the folder writable or give another --data", path.display())]
    Data { path: PathBuf, source: std::io::Error },
}

/// A running scheduler.
pub struct Scheduler {
    addr: SocketAddr,
    shared: Shared,
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
    /// Turns true when the control loop broke.
    broken: watch::Sender<bool>,
}

impl Scheduler {
    /// Opens the log, begins to listen. The bus may still be unreachable.
    pub async fn start(config: Config, bus: Bus) -> Result<Self, Error> {
        let data = config.data.clone();
        std::fs::create_dir_all(&data).map_err(|source| Error::Data { path: data.clone(), source })?;
        let replica = Replica::default();
        let log = raft::Config {
            log_bytes_max: config.log_bytes_max,
            entry_bytes_max: ENTRY_BYTES_MAX,
            ..raft::Config::alone(config.id, data.join("raft"))
        };
        let state = replica.clone();
        // Opening replays the log: not on a thread that serves.
        let opened = tokio::task::spawn_blocking(move || raft::start(log, state, raft::Alone)).await;
        let raft = opened.expect("opening the log does not panic")?;
        let artifacts = Artifacts::open(data.join("artifacts"), bus.clone()).await?;
        let events = Events::new(format!("/lattice/{}/scheduler", config.lattice));
        let shared = Shared::new(config.lattice.to_string(), bus, raft, replica, events, config.timers);
        let (stop, stopped) = watch::channel(false);
        let (addr, serving) = api::bind(&config.api, shared.clone(), artifacts.clone(), stopped.clone()).await?;
        let mut tasks = vec![tokio::spawn(serving)];
        let (broken, _) = watch::channel(false);
        tasks.push(tokio::spawn(watched(observe(shared.clone(), stopped.clone()), broken.clone())));
        tasks.push(tokio::spawn(sweep(shared.clone(), artifacts, stopped)));
        Ok(Self { addr, shared, stop, tasks, broken })
    }

    /// Where the API listens.
    pub fn api(&self) -> SocketAddr {
        self.addr
    }

    /// Resolves when the log's loop has ended, whoever ended it, or the control loop broke: nothing would be planned.
    pub fn ended(&self) -> impl Future<Output = ()> + Send + use<> {
        let (mut status, mut broken) = (self.shared.raft.status(), self.broken.subscribe());
        async move {
            let log = async { while status.changed().await.is_ok() {} };
            tokio::select! {
                () = log => {}
                _ = broken.wait_for(|b| *b) => {}
            }
        }
    }

    /// Ends it: the log is closed when this returns.
    pub async fn shutdown(self) {
        self.stop.send_replace(true);
        for task in self.tasks {
            // Open streams are not waited for without end.
            let mut task = task;
            if tokio::time::timeout(Duration::from_secs(2), &mut task).await.is_err() {
                task.abort();
            }
        }
        self.shared.raft.shutdown().await;
    }
}

/// Runs a task on its own and says when it panicked.
async fn watched(task: impl Future<Output = ()> + Send + 'static, broken: watch::Sender<bool>) {
    let running = tokio::spawn(task);
    let stop = running.abort_handle();
    let _stop_with_this = AbortOnDrop(stop);
    if let Err(error) = running.await
        && error.is_panic()
    {
        tracing::error!("the control loop broke; this scheduler ends, and goes on from its log when started again");
        broken.send_replace(true);
    }
}

struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The control loop; subscribes again if the bus refuses at first.
async fn observe(shared: Shared, stop: watch::Receiver<bool>) {
    loop {
        match control::run(shared.clone(), stop.clone()).await {
            Ok(()) => return,
            Err(error) => tracing::warn!(%error, "control loop has no bus; trying again"),
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn sweep(shared: Shared, artifacts: Artifacts, mut stop: watch::Receiver<bool>) {
    let mut tick = tokio::time::interval(SWEEP);
    loop {
        tokio::select! {
            _ = stop.changed() => return,
            _ = tick.tick() => {}
        }
        let named: BTreeSet<_> = {
            let state = shared.replica.read();
            let revisions = state.apps.values().flat_map(|a| a.revisions.values());
            let components = revisions.flat_map(|r| r.spec.components.values());
            components
                .filter_map(|c| match &c.kind {
                    Kind::Actor(a) => a.digest.clone(),
                    Kind::Provider(_) => None,
                })
                .collect()
        };
        artifacts.sweep(&named);
    }
}
