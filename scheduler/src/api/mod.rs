//! The control API over gRPC: everything the command line does and nothing besides, with reflection and health, so
//! that any gRPC client can drive it. Holds handles only: what is decided is decided in `state` and `plan`.

mod access;
mod apply;
mod backup;
mod run;
mod service;
mod stream;
mod watch;

use crate::artifact::Artifacts;
use crate::control::Shared;
use crate::peer::Peers;
use proto::v1::control_server::ControlServer;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use tokio::net::TcpListener;
use tokio::sync::watch as signal;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Identity, Server, ServerTlsConfig};

pub use access::Gate;
pub use access::OWN_TOKEN;
pub(crate) use service::{status_of, status_of_raft};

/// Bytes of one request message: a manifest, or one piece of an artifact.
const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Requests of one connection under way at once.
const CONCURRENT_MAX: usize = 256;

#[derive(Debug, Clone)]
pub struct Config {
    pub listen: SocketAddr,
    /// Certificate and key, PEM files. Without them only a loopback address is taken.
    pub tls: Option<(PathBuf, PathBuf)>,
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
    #[error("--api {0}: listening beyond loopback needs TLS; give --tls-cert and --tls-key, or a loopback address")]
    NeedsTls(SocketAddr),
    #[error("--api {listen}: {source}; end what listens there, or choose another address")]
    Listen { listen: SocketAddr, source: io::Error },
    #[error("{}: {source}; make it readable and writable for this user, or remove it", path.display())]
    Token { path: PathBuf, source: io::Error },
    #[error("{}: {source}; name a readable PEM file", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("API: {0}; check that --tls-cert and --tls-key belong together")]
    Tls(tonic::transport::Error),
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

/// Binds the address; gives it as it became.
pub async fn bind(config: &Config) -> Result<(SocketAddr, TcpListener), Error> {
    if config.tls.is_none() && !config.listen.ip().is_loopback() {
        return Err(Error::NeedsTls(config.listen));
    }
    let listen = |source| Error::Listen { listen: config.listen, source };
    let listener = TcpListener::bind(config.listen).await.map_err(listen)?;
    let addr = listener.local_addr().map_err(listen)?;
    Ok((addr, listener))
}

/// Serves what `bind` gave until `stop` fires.
pub async fn serve(
    config: &Config,
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
    if let Some((cert, key)) = &config.tls {
        let read = |path: &PathBuf| std::fs::read(path).map_err(|source| Error::Read { path: path.clone(), source });
        let identity = Identity::from_pem(read(cert)?, read(key)?);
        server = server.tls_config(ServerTlsConfig::new().identity(identity)).map_err(Error::Tls)?;
    }
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
        let served = server
            .add_service(control)
            .add_service(health_service)
            .add_service(reflection)
            .serve_with_incoming_shutdown(TcpIncoming::from(listener).with_nodelay(Some(true)), stopped);
        if let Err(error) = served.await {
            tracing::error!(%error, "API ended");
        }
    };
    Ok(serving)
}
