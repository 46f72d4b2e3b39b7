//! Trust in one certificate, byte for byte: how `up` talks to its own API, whose certificate may name any address but
//! the one that this process reaches it by. Never used for another machine.

use crate::failure::Failure;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, Error, SignatureScheme};
use std::path::Path;
use std::sync::Arc;
use tonic::transport::{ClientTlsConfig, Endpoint};

/// Makes `target` accept the first certificate of this PEM file and no other.
pub(crate) fn trust(target: Endpoint, file: &Path) -> Result<Endpoint, Failure> {
    let refuse = |why: String| Failure::Refused(format!("--tls-cert {}: {why}", file.display()));
    let certificate = CertificateDer::from_pem_file(file).map_err(|e| refuse(format!("{e}; it must be PEM")))?;
    // The name is not looked at, but there must be one.
    let tls = ClientTlsConfig::new().domain_name("localhost");
    target.tls_config_with_verifier(tls, Arc::new(Pin::new(certificate))).map_err(|e| refuse(e.to_string()))
}

#[derive(Debug)]
struct Pin {
    certificate: CertificateDer<'static>,
    provider: CryptoProvider,
}

impl Pin {
    fn new(certificate: CertificateDer<'static>) -> Self {
        Self { certificate, provider: ring::default_provider() }
    }
}

impl ServerCertVerifier for Pin {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if *shown == self.certificate {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(Error::General("another process answers there: it shows another certificate".into()))
        }
    }

    // The signatures prove that whoever shows the certificate has its key.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_certificate_is_trusted_and_no_other() {
        let pin = Pin::new(CertificateDer::from(vec![1, 2, 3]));
        let name = ServerName::try_from("localhost").unwrap();
        let verify = |shown: Vec<u8>| {
            pin.verify_server_cert(
                &CertificateDer::from(shown),
                &[],
                &name,
                &[],
                UnixTime::since_unix_epoch(Default::default()),
            )
        };
        assert!(verify(vec![1, 2, 3]).is_ok());
        assert!(verify(vec![1, 2, 4]).is_err());
    }
}
