//! A whole scheduler: starts its parts in order and ends them in the other.

use crate::artifact::{self, Artifacts};
use crate::control::{self, Shared};
use crate::events::Events;
use crate::plan::Config as Timers;
use crate::replica::Replica;
use crate::telemetry::{Health, Scrape};
use crate::{api, backup, gather, peer, raft};
use bus::Bus;
use prometheus_client::collector::Collector;
use proto::app::LatticeName;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How often artifacts that nothing names are looked for.
const SWEEP: Duration = Duration::from_secs(600);
const SWEEP_MIN: Duration = Duration::from_secs(1);
/// How often components that are missing here are looked for, at least and at most.
const HOLD_EVERY: Duration = Duration::from_secs(10);
const HOLD_PAUSE: Duration = Duration::from_secs(1);
/// Bytes of one log entry: a plan over ten thousand hosts, or a manifest.
const ENTRY_BYTES_MAX: usize = 16 * 1024 * 1024;

/// For leadership to be handed over at the end.
const HAND_OVER: Duration = Duration::from_secs(3);

#[derive(Debug, Clone)]
pub struct Config {
    /// Its id among the schedulers of the lattice if it is the first one; who joins is given one.
    pub id: u64,
    pub lattice: LatticeName,
    /// Log, state and artifacts live under it.
    pub data: PathBuf,
    pub api: api::Config,
    /// None: it is alone, and nobody can join.
    pub peer: Option<peer::Config>,
    pub timers: Timers,
    /// Log bytes before a snapshot.
    pub log_bytes_max: u64,
    /// The newest version of commands that it applies: that of this build, unless it shall act as an older one.
    pub vocabulary: u32,
    /// How long a component is kept that no app names.
    pub keep_unused: Duration,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Raft(#[from] raft::Error),
    #[error(transparent)]
    Peer(#[from] peer::Error),
    #[error(transparent)]
    Artifact(#[from] artifact::Error),
    #[error(transparent)]
    Api(#[from] api::Error),
    #[error(transparent)]
    Backup(#[from] backup::Error),
    #[error("{}: {source}; make the folder writable or give another --data", path.display())]
    Data { path: PathBuf, source: std::io::Error },
}

/// A running scheduler.
pub struct Scheduler {
    addr: SocketAddr,
    fingerprint: Option<String>,
    shared: Shared,
    peers: peer::Peers,
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
        backup::expect_whole(&data)?;
        let gate = api::Gate::open(config.api.demands_token(), &data)?;
        let replica = Replica::of(config.vocabulary);
        let (addr, listener) = api::bind(&config.api).await?;
        let mut door = peer::open(config.peer.as_ref(), config.id, config.lattice.as_str(), &data).await?;
        let (source, fingerprint) = match (&config.api.tls, config.api.own_tls) {
            (Some((cert, key)), _) => (Some(api::Source::Files(cert.clone(), key.clone())), None),
            (None, true) => {
                let authority = door.authority(&data)?;
                let fingerprint = authority.fingerprint()?;
                (Some(api::Source::Own(authority)), Some(fingerprint))
            }
            (None, false) => (None, None),
        };
        let log = raft::Config {
            log_bytes_max: config.log_bytes_max,
            entry_bytes_max: ENTRY_BYTES_MAX,
            voters: door.voters.clone(),
            log_id: door.log_id.clone(),
            may_begin: door.may_begin,
            ..raft::Config::alone(door.id, data.join("raft"))
        };
        let outbox = peer::Outbox::default();
        let (state, transport) = (replica.clone(), outbox.clone());
        // Opening replays the log: not on a thread that serves.
        let opened = tokio::task::spawn_blocking(move || raft::start(log, state, transport)).await;
        let raft = opened.expect("opening the log does not panic")?;
        door.begun()?;
        outbox.connect(raft.clone());
        let tls = config.api.tls.is_some() || config.api.own_tls;
        let (peers, inbox) =
            peer::Peers::new(config.lattice.to_string(), raft.clone(), replica.clone(), outbox, addr, tls, door)?;
        let artifacts = Artifacts::open(data.join("artifacts"), bus.clone()).await?;
        let events = Events::new(format!("/lattice/{}/scheduler", config.lattice));
        let shared = Shared::new(config.lattice.to_string(), bus, raft, replica, events, config.timers);
        let telling = shared.clone();
        peers.tells(Box::new(move || api::told(&telling)));
        let (stop, stopped) = watch::channel(false);
        let serving =
            api::serve(source, listener, shared.clone(), artifacts.clone(), peers.clone(), gate, stopped.clone())
                .await?;
        let mut tasks = vec![tokio::spawn(serving)];
        let fetch: peer::Fetch = {
            let (bus, artifacts) = (shared.bus.clone(), artifacts.clone());
            Arc::new(move |digest| {
                let (bus, artifacts) = (bus.clone(), artifacts.clone());
                Box::pin(async move { gather::fetch(&bus, &artifacts, &digest).await.map_err(|e| e.to_string()) })
            })
        };
        tasks.push(tokio::spawn(peer::serve(peers.clone(), inbox, fetch, stopped.clone())));
        tasks.push(tokio::spawn(peer::keep(peers.clone(), stopped.clone())));
        tasks.push(tokio::spawn(peer::announce(peers.clone(), shared.bus.clone(), stopped.clone())));
        let (broken, _) = watch::channel(false);
        tasks.push(tokio::spawn(watched(observe(shared.clone(), stopped.clone()), broken.clone())));
        tasks.push(tokio::spawn(hold(shared.clone(), artifacts.clone(), stopped.clone())));
        tasks.push(tokio::spawn(sweep(shared.clone(), artifacts, config.keep_unused, stopped)));
        Ok(Self { addr, fingerprint, shared, peers, stop, tasks, broken })
    }

    /// Its id among the schedulers of the lattice.
    pub fn id(&self) -> u64 {
        self.peers.id()
    }

    /// Where other schedulers reach it, if they do.
    pub fn peer(&self) -> Option<String> {
        self.peers.peer().map(str::to_owned)
    }

    /// Whether it is well, to be asked at any time.
    pub fn health(&self) -> Health {
        Health { shared: self.shared.clone() }
    }

    /// What it counts, for Prometheus.
    pub fn metrics(&self) -> Box<dyn Collector> {
        Box::new(Scrape { id: self.id(), shared: self.shared.clone() })
    }

    /// By what clients know the API's certificate, if that is of the lattice's own authority.
    pub fn fingerprint(&self) -> Option<&str> {
        self.fingerprint.as_deref()
    }

    /// Where the API listens.
    pub fn api(&self) -> SocketAddr {
        self.addr
    }

    /// Resolves when the log's loop has ended, whoever ended it, the control loop broke, so that nothing would be
    /// planned, or the others removed this scheduler.
    pub fn ended(&self) -> impl Future<Output = ()> + Send + use<> {
        let (mut status, mut broken) = (self.shared.raft.status(), self.broken.subscribe());
        let mut removed = self.peers.removed();
        async move {
            let log = async { while status.changed().await.is_ok() {} };
            tokio::select! {
                () = log => {}
                _ = broken.wait_for(|b| *b) => {}
                _ = removed.wait_for(|r| *r) => {}
            }
        }
    }

    /// Ends it: the log is closed when this returns. If it leads, another one does before: writes wait for a blink.
    pub async fn shutdown(self) {
        let _ = tokio::time::timeout(HAND_OVER, self.peers.transfer_away()).await;
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

async fn sweep(shared: Shared, artifacts: Artifacts, keep: Duration, mut stop: watch::Receiver<bool>) {
    let mut tick = tokio::time::interval(keep.clamp(SWEEP_MIN, SWEEP));
    loop {
        tokio::select! {
            _ = stop.changed() => return,
            _ = tick.tick() => {}
        }
        let named = gather::named(&shared.replica.read());
        artifacts.sweep(&named, keep);
    }
}

/// Fetches what apps name and is not here: it was uploaded to another scheduler.
async fn hold(shared: Shared, artifacts: Artifacts, mut stop: watch::Receiver<bool>) {
    let mut applied = shared.replica.applied();
    let mut told = None;
    loop {
        let missing: Vec<_> =
            gather::named(&shared.replica.read()).into_iter().filter(|digest| !artifacts.has(digest)).collect();
        for digest in missing {
            if let Err(error) = gather::fetch(&shared.bus, &artifacts, &digest).await {
                let error = error.to_string();
                if told.as_ref() != Some(&error) {
                    tracing::warn!(%error, "a component is not held here");
                    told = Some(error);
                }
            }
        }
        tokio::select! {
            _ = stop.wait_for(|s| *s) => return,
            () = tokio::time::sleep(HOLD_EVERY) => {}
            // At most once a second, however much is written.
            _ = async { let _ = applied.changed().await; tokio::time::sleep(HOLD_PAUSE).await } => {}
        }
    }
}
