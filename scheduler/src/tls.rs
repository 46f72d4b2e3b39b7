//! TLS for what listens here, with a certificate that may change while it listens. Must never hand on a connection whose
//! handshake is not through.

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;

/// For a handshake, before which nobody is known.
const HANDSHAKE: Duration = Duration::from_secs(5);
const HANDSHAKES_MAX: usize = 256;
/// Connections that wait to be served.
const ACCEPTED_MAX: usize = 16;
/// After an accept that failed: too many files are open, say.
const PAUSE: Duration = Duration::from_millis(100);

pub(crate) type Incoming = ReceiverStream<io::Result<TlsStream<TcpStream>>>;

/// Connections as they come, each with the certificate that is current then, until what is returned is dropped.
pub(crate) fn incoming(listener: TcpListener, config: watch::Receiver<Arc<ServerConfig>>) -> Incoming {
    let (sender, receiver) = mpsc::channel(ACCEPTED_MAX);
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    tokio::spawn(async move {
        while let Ok(permit) = handshakes.clone().acquire_owned().await {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = sender.closed() => return,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "a connection was not accepted");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            let _ = stream.set_nodelay(true);
            let (sender, acceptor) = (sender.clone(), TlsAcceptor::from(config.borrow().clone()));
            tokio::spawn(async move {
                let _permit = permit;
                match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
                    Ok(Ok(stream)) => drop(sender.send(Ok(stream)).await),
                    Ok(Err(error)) => tracing::debug!(%error, "a handshake failed"),
                    Err(_) => tracing::debug!("a handshake took too long"),
                }
            });
        }
    });
    ReceiverStream::new(receiver)
}

/// For HTTP/2 with this chain and key, PEM; with an authority, who has a certificate of it is known by that.
pub(crate) fn config(chain: &str, key: &str, clients_of: Option<&str>) -> Result<Arc<ServerConfig>, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain.as_bytes()).collect();
    let chain = chain.map_err(|error| format!("certificate: {error}"))?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|error| format!("key: {error}"))?;
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone());
    let builder = builder.with_safe_default_protocol_versions().map_err(|error| text(&error))?;
    let builder = match clients_of {
        None => builder.with_no_client_auth(),
        Some(authority) => {
            let authority = CertificateDer::from_pem_slice(authority.as_bytes()).map_err(|error| text(&error))?;
            let mut roots = RootCertStore::empty();
            roots.add(authority).map_err(|error| text(&error))?;
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider)
                .allow_unauthenticated()
                .build()
                .map_err(|error| text(&error))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|error| text(&error))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}
