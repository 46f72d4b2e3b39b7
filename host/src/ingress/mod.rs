//! The way in: HTTP/1.1 and HTTP/2 on one address, to the actors that the route table names. Never listens beyond
//! loopback in the clear; never lets a client hold more than a connection and bounded memory.
//!
//! Reading order: `routes` (pure), `answer` (one request), `connection` (one client), `timer` (its patience), `sent`
//! (bodies), `shares` (who has how many), `websocket`, `dispatch` (here or elsewhere), `tls` (certificates), `access` (the
//! access log).

mod access;
mod answer;
mod connection;
mod dispatch;
mod routes;
mod sent;
mod shares;
mod timer;
pub mod tls;
mod websocket;

pub use access::{Access, Error as AccessError, Target as AccessTarget};
pub use dispatch::{Dispatch, Here, Nearest};
pub use routes::{Route, Routes};

use crate::metrics::Count;
use answer::Front;
use shares::Shares;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

/// Why there is no ingress.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "ingress {addr}: refuses to listen beyond loopback without TLS; give it a certificate and key, or an address \
         such as 127.0.0.1:{port}", port = addr.port()
    )]
    Clear { addr: SocketAddr },
    #[error("ingress {addr}: {source}; choose another address, or port 0 for a free one")]
    Listen { addr: SocketAddr, source: std::io::Error },
}

/// Bounds of an ingress.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Clients at a time; more wait in the kernel's queue.
    pub connections_max: usize,
    /// Connections that one address of a client may have, and WebSockets that one app may, however few are free.
    pub share_min: usize,
    /// Time for the TLS handshake, and for each request's head, which is also how long HTTP/1 may be idle.
    pub head_wait: Duration,
    /// How long HTTP/2 may be idle, and how long its client may take nothing of what it asked for; how long the client
    /// of a WebSocket may answer no ping.
    pub idle: Duration,
    /// Until the next piece of a request's body.
    pub body_wait: Duration,
    /// Until the client takes the next bytes written to it.
    pub take_wait: Duration,
    /// WebSockets at a time; they are connections as well.
    pub sockets_max: usize,
    /// Of one message of a WebSocket, either way, and of the messages that wait for its actor.
    pub message_bytes_max: usize,
    /// Of all that an actor says at a time to one WebSocket.
    pub answer_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 10_000,
            share_min: 64,
            head_wait: Duration::from_secs(10),
            idle: Duration::from_secs(60),
            body_wait: Duration::from_secs(30),
            take_wait: Duration::from_secs(30),
            sockets_max: 4_096,
            message_bytes_max: 1024 * 1024,
            // What crosses the bus.
            answer_bytes_max: crate::rpc::BODY_BYTES_MAX,
        }
    }
}

/// What is counted besides the requests of actors.
#[derive(Debug, Default)]
pub struct Meter {
    /// Connections taken, and those that have ended.
    pub taken: Count,
    pub ended: Count,
    pub handshakes_failed: Count,
    /// Requests for which there is no route, and those that no actor could be asked.
    pub unrouted: Count,
    pub refused: Count,
    /// Connections on which no head came in time, or not all of one.
    pub headless: Count,
    /// Connections cut because the client took nothing.
    pub stalled: Count,
    /// Those that were closed at once, since their address has its share.
    pub crowded: Count,
    /// WebSockets that have ended, by `SOCKETS_ENDED`.
    pub sockets_ended: [Count; SOCKETS_ENDED.len()],
}

/// Why WebSockets end.
pub const SOCKETS_ENDED: [&str; 14] = websocket::WHYS;

/// What a way in stands on, besides its address.
pub struct Behind {
    pub routes: watch::Receiver<Arc<Routes>>,
    pub dispatch: Arc<dyn Dispatch>,
    pub access: Option<Arc<Access>>,
    pub meter: Arc<Meter>,
    pub limits: Limits,
}

impl Behind {
    pub fn new(routes: watch::Receiver<Arc<Routes>>, dispatch: Arc<dyn Dispatch>) -> Self {
        Self { routes, dispatch, access: None, meter: Arc::default(), limits: Limits::default() }
    }
}

/// That `addr` may be listened on.
pub fn check_listen(addr: SocketAddr, tls: bool) -> Result<(), Error> {
    if tls || addr.ip().to_canonical().is_loopback() { Ok(()) } else { Err(Error::Clear { addr }) }
}

/// A running ingress. Dropping it stops it as `stop` does, without waiting.
pub struct Ingress {
    addr: SocketAddr,
    connections: TaskTracker,
    stop: DropGuard,
    /// Ends what is under way, too.
    cut: CancellationToken,
}

impl Ingress {
    /// Listens on `addr` and serves what the routes say then. `tls` speaks HTTP/2 where the client can.
    pub async fn start(
        addr: SocketAddr,
        tls: Option<Arc<rustls::ServerConfig>>,
        behind: Behind,
    ) -> Result<Self, Error> {
        check_listen(addr, tls.is_some())?;
        let listener = TcpListener::bind(addr).await.map_err(|source| Error::Listen { addr, source })?;
        let addr = listener.local_addr().map_err(|source| Error::Listen { addr, source })?;
        let connections = TaskTracker::new();
        let (stop, cut) = (CancellationToken::new(), CancellationToken::new());
        let accept = Accept {
            listener,
            tls: tls.map(acceptor),
            limits: behind.limits,
            front: Arc::new(Front::new(behind)),
            connections: connections.clone(),
            stop: stop.clone(),
            cut: cut.clone(),
        };
        connections.spawn(accept.run());
        Ok(Self { addr, connections, stop: stop.drop_guard(), cut })
    }

    /// Where it listens, with the port that was chosen.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Takes no more connections and requests; waits at most `grace` for those under way, then ends them. Whether all
    /// were finished.
    pub async fn stop(self, grace: Duration) -> bool {
        drop(self.stop);
        self.connections.close();
        let finished = tokio::time::timeout(grace, self.connections.wait()).await.is_ok();
        self.cut.cancel();
        self.connections.wait().await;
        finished
    }
}

fn acceptor(config: Arc<rustls::ServerConfig>) -> TlsAcceptor {
    if !config.alpn_protocols.is_empty() {
        return TlsAcceptor::from(config);
    }
    let mut config = (*config).clone();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    TlsAcceptor::from(Arc::new(config))
}

struct Accept {
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    front: Arc<Front>,
    limits: Limits,
    connections: TaskTracker,
    stop: CancellationToken,
    cut: CancellationToken,
}

impl Accept {
    async fn run(self) {
        let room = Arc::new(Semaphore::new(self.limits.connections_max));
        let shares = Shares::new(self.limits.connections_max, self.limits.share_min);
        loop {
            let next = async {
                let place = room.clone().acquire_owned().await.expect("never closed");
                (place, self.listener.accept().await)
            };
            let (place, accepted) = tokio::select! {
                () = self.stop.cancelled() => return,
                next = next => next,
            };
            match accepted {
                Ok(accepted) => {
                    let (tls, front, stop) = (self.tls.clone(), self.front.clone(), self.stop.clone());
                    let (limits, cut, meter) = (self.limits, self.cut.clone(), self.front.meter.clone());
                    let Ok(share) = shares.take(shares::client(accepted.1.ip())) else {
                        meter.crowded.add(1);
                        continue;
                    };
                    meter.taken.add(1);
                    self.connections.spawn(async move {
                        tokio::select! {
                            () = connection::serve(accepted, tls, front, limits, stop) => {}
                            () = cut.cancelled() => {}
                        }
                        meter.ended.add(1);
                        drop((share, place));
                    });
                }
                // The client was gone already, or the process has no file left: neither ends the ingress.
                Err(error) => {
                    tracing::debug!(%error, "ingress accepts no connection");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
