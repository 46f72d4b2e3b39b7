//! Trust in an API by the fingerprint of the authority that signed its certificate: what a lattice that made its own
//! certificates is known by, at whatever address it is reached. Must never trust a certificate for what it shows alone.

use crate::failure::Failure;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use tonic::transport::{ClientTlsConfig, Endpoint};

/// The name that such a certificate has.
const NAME: &str = "api.lattice.internal";

/// Makes `target` accept certificates of the authority with this SHA-256 and no others.
pub(crate) fn trust(target: Endpoint, fingerprint: [u8; 32]) -> Result<Endpoint, Failure> {
    let known = Known { fingerprint, provider: Arc::new(ring::default_provider()) };
    let tls = ClientTlsConfig::new().domain_name(NAME);
    let made = target.tls_config_with_verifier(tls, Arc::new(known));
    made.map_err(|e| Failure::Refused(format!("TLS: {e}; this is a fault in lattice, please report it")))
}

#[derive(Debug)]
struct Known {
    fingerprint: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Known {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let fits = |c: &&CertificateDer<'_>| Sha256::digest(c).as_slice() == self.fingerprint;
        let authority = chain.iter().find(fits).ok_or_else(|| {
            Error::General(
                "its certificate is not of the authority with this fingerprint: it is another lattice".into(),
            )
        })?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(roots.into(), self.provider.clone());
        let verifier = verifier.build().map_err(|error| Error::General(error.to_string()))?;
        verifier.verify_server_cert(shown, &[], name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
