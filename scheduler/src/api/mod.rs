//! The control API over gRPC: everything the command line does and nothing besides, with reflection and health, so
//! that any gRPC client can drive it. Holds handles only: what is decided is decided in `state` and `plan`.

mod access;
mod apply;
mod backup;
mod run;
mod service;
mod status;
mod stream;
mod watch;

use crate::artifact::Artifacts;
use crate::control::Shared;
use crate::peer::{self, Authority, LEAF_LIFE, Peers};
use crate::tls;
use proto::v1::control_server::ControlServer;
use rustls::ServerConfig;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch as signal;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

pub use access::{Gate, OWN_TOKEN};
pub(crate) use service::{status_of, status_of_raft};
pub(crate) use status::told;

/// Bytes of one request message: a manifest, or one piece of an artifact.
const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// How often the API's certificate is made or read anew.
const RENEW: Duration = Duration::from_secs(24 * 3600);
/// Requests of one connection under way at once.
const CONCURRENT_MAX: usize = 256;

#[derive(Debug, Clone)]
pub struct Config {
    pub listen: SocketAddr,
    /// Certificate and key, PEM files. Without them only a loopback address is taken.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// TLS with a certificate of the lattice's own authority, which clients know by its fingerprint.
    pub own_tls: bool,
    /// Whether who asks must show a token. Beyond loopback that is always so.
    pub wants_token: bool,
}

impl Config {
    /// Whether who asks must show a token.
    pub fn demands_token(&self) -> bool {
        self.wants_token || !self.listen.ip().to_canonical().is_loopback()
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "--api {0}: listening beyond loopback needs TLS; give --own-tls, or --tls-cert and --tls-key, or a loopback address"
    )]
    NeedsTls(SocketAddr),
    #[error("--api {listen}: {source}; end what listens there, or choose another address")]
    Listen { listen: SocketAddr, source: io::Error },
    #[error("{}: {source}; make it readable and writable for this user, or remove it", path.display())]
    Token { path: PathBuf, source: io::Error },
    #[error("{}: {source}; name a readable PEM file", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("API: {0}; check that --tls-cert and --tls-key are PEM and belong together")]
    Tls(String),
    #[error(transparent)]
    Authority(#[from] peer::Error),
}

/// What a request needs.
#[derive(Clone)]
pub(crate) struct Service {
    pub(crate) shared: Shared,
    pub(crate) artifacts: Artifacts,
    pub(crate) peers: Peers,
    pub(crate) inspections: apply::Inspections,
    pub(crate) gate: Gate,
}

/// Where the API's certificate comes from.
pub enum Source {
    Files(PathBuf, PathBuf),
    Own(Authority),
}

impl Source {
    fn config(&self) -> Result<Arc<ServerConfig>, Error> {
        let (chain, key) = match self {
            Self::Files(cert, key) => {
                let read = |path: &PathBuf| {
                    std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.clone(), source })
                };
                (read(cert)?, read(key)?)
            }
            Self::Own(authority) => authority.for_api(LEAF_LIFE)?,
        };
        tls::config(&chain, &key, None).map_err(Error::Tls)
    }

    /// A certificate of our own is signed anew, and files are read again: whoever renews them need not restart us.
    async fn renew(self, current: signal::Sender<Arc<ServerConfig>>) {
        loop {
            tokio::time::sleep(RENEW).await;
            match self.config() {
                Ok(config) => drop(current.send_replace(config)),
                Err(error) => tracing::error!(%error, "the certificate of the API stays as it was"),
            }
        }
    }
}

/// Binds the address; gives it as it became.
pub async fn bind(config: &Config) -> Result<(SocketAddr, TcpListener), Error> {
    if config.tls.is_none() && !config.own_tls && !config.listen.ip().is_loopback() {
        return Err(Error::NeedsTls(config.listen));
    }
    let listen = |source| Error::Listen { listen: config.listen, source };
    let listener = TcpListener::bind(config.listen).await.map_err(listen)?;
    let addr = listener.local_addr().map_err(listen)?;
    Ok((addr, listener))
}

/// Serves what `bind` gave until `stop` fires.
pub async fn serve(
    source: Option<Source>,
    listener: TcpListener,
    shared: Shared,
    artifacts: Artifacts,
    peers: Peers,
    gate: Gate,
    mut stop: signal::Receiver<bool>,
) -> Result<impl Future<Output = ()> + Send + use<>, Error> {
    let mut server = Server::builder()
        .concurrency_limit_per_connection(CONCURRENT_MAX)
        .http2_keepalive_interval(Some(std::time::Duration::from_secs(30)))
        .timeout(std::time::Duration::from_secs(3600));
    let secured = match source {
        None => None,
        Some(source) => {
            let current = signal::Sender::new(source.config()?);
            Some((current.subscribe(), tokio::spawn(source.renew(current)).abort_handle()))
        }
    };
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<ControlServer<Service>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(proto::v1::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .expect("our own descriptors are well formed");
    let service = Service { shared, artifacts, peers, inspections: Default::default(), gate };
    let control = ControlServer::new(service)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(64 * 1024 * 1024);
    let serving = async move {
        let stopped = async move {
            let _ = stop.wait_for(|s| *s).await;
        };
        let router = server.add_service(control).add_service(health_service).add_service(reflection);
        let served = match secured {
            None => {
                let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
                router.serve_with_incoming_shutdown(incoming, stopped).await
            }
            Some((current, renewing)) => {
                let served = router.serve_with_incoming_shutdown(tls::incoming(listener, current), stopped).await;
                renewing.abort();
                served
            }
        };
        if let Err(error) = served {
            tracing::error!(%error, "API ended");
        }
    };
    Ok(serving)
}
