//! Certificates of the ingress, from PEM files.

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::path::{Path, PathBuf};
use std::sync::Arc;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{}: {why}; name a readable PEM file", path.display())]
    Read { path: PathBuf, why: String },
    #[error("{}: {source}; check that --tls-cert and --tls-key belong together", path.display())]
    Pair { path: PathBuf, source: rustls::Error },
}

pub(super) fn server(cert: &Path, key: &Path) -> Result<Arc<ServerConfig>, Error> {
    let read = |path: &Path, why: String| Error::Read { path: path.to_owned(), why };
    let chain: Result<Vec<CertificateDer<'static>>, _> =
        CertificateDer::pem_file_iter(cert).and_then(Iterator::collect);
    let chain = chain.map_err(|e| read(cert, e.to_string()))?;
    if chain.is_empty() {
        return Err(read(cert, "holds no certificate".into()));
    }
    let secret = PrivateKeyDer::from_pem_file(key).map_err(|e| read(key, e.to_string()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let pair = |source| Error::Pair { path: cert.to_owned(), source };
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(pair)?
        .with_no_client_auth()
        .with_single_cert(chain, secret)
        .map_err(pair)?;
    Ok(Arc::new(config))
}
