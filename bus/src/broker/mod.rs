//! The embedded broker: core NATS for one machine, in this process. It has no TLS, no clustering and no JetStream, so
//! it listens on loopback only; whatever spans machines uses nats-server.
//!
//! Reading order: `protocol` and `subjects` (pure), `outbox` (writing to one client), `session` (one client) with `receivers`, then
//! this file (all of them). What must never happen: one client's slowness, garbage or absence holds up another, or
//! grows the process.

mod outbox;
mod protocol;
mod receivers;
mod session;
mod subjects;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};
use std::{fmt, io};

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use session::{Client, Subscription};
use subjects::Tree;

#[derive(Clone)]
pub struct Config {
    /// Loopback; port 0 takes a free one.
    pub listen: SocketAddr,
    /// What clients must show, if anything.
    pub token: Option<String>,
}

/// Without the token.
impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config").field("listen", &self.listen).finish_non_exhaustive()
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the embedded broker listens on loopback only, not on {addr}, as it has no TLS: run nats-server there")]
    NotLoopback { addr: SocketAddr },
    #[error("{addr} is in use: stop what listens there, name another port, or port 0 for a free one")]
    AddressInUse { addr: SocketAddr },
    #[error("can not listen on {addr}: {source}: name an address of this machine and a port above 1023")]
    Listen {
        addr: SocketAddr,
        #[source]
        source: io::Error,
    },
}

/// A running broker. It ends at `shutdown`, or when it is dropped.
#[derive(Debug)]
pub struct Broker {
    addr: SocketAddr,
    tasks: TaskTracker,
    stop: CancellationToken,
    _stop_at_drop: DropGuard,
}

/// Bounds, per client unless they say otherwise.
#[derive(Debug, Clone)]
struct Limits {
    payload_bytes_max: usize,
    pending_bytes_max: usize,
    subscriptions_len_max: usize,
    /// Of the broker.
    clients_len_max: usize,
    /// Of the broker.
    subscriptions_len_max_all: usize,
    /// A silent client is asked so often whether it lives; after two unanswered it is gone.
    ping_interval: Duration,
    auth_wait: Duration,
    /// A client that takes no byte for so long is gone.
    write_stall_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            payload_bytes_max: 1024 * 1024,
            pending_bytes_max: 64 * 1024 * 1024,
            subscriptions_len_max: 65_536,
            clients_len_max: 8_192,
            subscriptions_len_max_all: 1_000_000,
            ping_interval: Duration::from_secs(20),
            auth_wait: Duration::from_secs(2),
            write_stall_max: Duration::from_secs(10),
        }
    }
}

const LISTEN_BACKLOG: u32 = 1_024;
const SHUTDOWN_WAIT: Duration = Duration::from_secs(3);
/// After a failed accept, for example when files run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

impl Broker {
    /// Must be called within a tokio runtime. When it returns, clients can connect.
    pub fn start(config: Config) -> Result<Self, Error> {
        Self::start_with(config, Limits::default())
    }

    /// Where it listens; with the port it got.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Ends all connections after writing what is queued, and frees the port.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        if timeout(SHUTDOWN_WAIT, self.tasks.wait()).await.is_err() {
            warn!(addr = %self.addr, "broker clients did not end in time");
        }
    }

    fn start_with(config: Config, limits: Limits) -> Result<Self, Error> {
        let Config { listen, token } = config;
        if !listen.ip().is_loopback() {
            return Err(Error::NotLoopback { addr: listen });
        }
        let listener = bind(listen).map_err(|source| match source.kind() {
            io::ErrorKind::AddrInUse => Error::AddressInUse { addr: listen },
            _ => Error::Listen { addr: listen, source },
        })?;
        let addr = listener.local_addr().map_err(|source| Error::Listen { addr: listen, source })?;
        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        let hub = Arc::new(Hub {
            addr,
            token,
            limits,
            started: Instant::now(),
            tree: RwLock::default(),
            clients: Mutex::default(),
            next_id: AtomicU64::new(1),
        });
        tasks.spawn(accept(Arc::clone(&hub), listener, tasks.clone(), stop.clone()));
        tasks.spawn(watch(hub, stop.clone()));
        tasks.close();
        info!(%addr, "broker listening");
        Ok(Self { addr, tasks, _stop_at_drop: stop.clone().drop_guard(), stop })
    }
}

/// What the sessions share. Both locks are held for moments and never across an await.
struct Hub {
    addr: SocketAddr,
    token: Option<String>,
    limits: Limits,
    started: Instant,
    tree: RwLock<Tree<Arc<Subscription>>>,
    clients: Mutex<HashMap<u64, Arc<Client>>>,
    next_id: AtomicU64,
}

impl Hub {
    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn clients(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Arc<Client>>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a subscription out of both tables. Safe to call twice.
    fn remove(&self, subscription: &Arc<Subscription>) {
        subscription.client.forget(&subscription.sid);
        let group = subscription.group.as_deref();
        let mut tree = self.tree.write().unwrap_or_else(PoisonError::into_inner);
        tree.remove(&subscription.pattern, group, |other| Arc::ptr_eq(other, subscription));
    }
}

fn bind(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // So that a restart gets the port its predecessor's connections still linger on.
    #[cfg(unix)]
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    socket.listen(LISTEN_BACKLOG)
}

async fn accept(hub: Arc<Hub>, listener: TcpListener, tasks: TaskTracker, stop: CancellationToken) {
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => admit(&hub, stream, peer, &tasks, &stop),
            Err(error) => {
                warn!(%error, "broker can not accept");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn admit(hub: &Arc<Hub>, stream: TcpStream, peer: SocketAddr, tasks: &TaskTracker, stop: &CancellationToken) {
    let id = hub.next_id.fetch_add(1, Ordering::Relaxed);
    let _ = stream.set_nodelay(true);
    let (read, write) = stream.into_split();
    let client = Arc::new(Client::new(id, write, &hub.limits, hub.now_ms(), stop.child_token()));
    let is_full = {
        let mut clients = hub.clients();
        let is_full = clients.len() >= hub.limits.clients_len_max;
        if !is_full {
            clients.insert(id, Arc::clone(&client));
        }
        is_full
    };
    debug!(id, %peer, is_full, "broker client");
    if is_full {
        client.close(Some("maximum connections exceeded"));
    }
    tasks.spawn(session::run(Arc::clone(hub), client, read));
}

/// Looks after silent clients, once a second or more often when the limits are shorter.
async fn watch(hub: Arc<Hub>, stop: CancellationToken) {
    let pause = (hub.limits.ping_interval / 4).min(hub.limits.auth_wait / 4).min(Duration::from_secs(1));
    let ping_ms = u64::try_from(hub.limits.ping_interval.as_millis()).unwrap_or(u64::MAX);
    let auth_ms = u64::try_from(hub.limits.auth_wait.as_millis()).unwrap_or(u64::MAX);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(pause) => {}
        }
        let now_ms = hub.now_ms();
        let clients: Vec<_> = hub.clients().values().cloned().collect();
        for client in clients {
            client.look_after(now_ms, ping_ms, hub.token.as_ref().map(|_| auth_ms));
        }
    }
}
