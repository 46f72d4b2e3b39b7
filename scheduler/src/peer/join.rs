//! How a new scheduler is taken in: it asks one that is there, which it knows by the fingerprint in its token, and gets
//! an id, a certificate and the addresses of the others. Must never tell its secret to anybody else.

use super::identity::Kept;
use super::{Error, Join, authority, carry, root_cause};
use proto::v1 as pb;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, RootCertStore, SignatureScheme};
use std::sync::Arc;
use std::time::Duration;
use tonic::Code;
use tonic::transport::ClientTlsConfig;

/// For the others to agree on the newcomer.
const PATIENCE: Duration = Duration::from_secs(20);
const AGAIN: Duration = Duration::from_millis(500);

/// Asks to be taken in; gives the identity that came of it, on disk.
pub(super) async fn join(join: &Join, lattice: &str, peer: &str, mut kept: Kept) -> Result<Kept, Error> {
    // Asked again after a crash, it is the same one who asks.
    kept.save()?;
    let fail = |detail: String| Error::Join { addr: join.addr.clone(), detail };
    let request = pb::JoinRequest {
        lattice: lattice.to_owned(),
        secret: join.token.secret.to_vec(),
        peer: peer.to_owned(),
        api: String::new(),
        log_id: kept.identity.log_id.clone(),
        public_key: authority::public_key(&kept.identity.key)?,
        standby: join.standby,
        vocabulary: join.vocabulary,
    };
    let end = tokio::time::Instant::now() + PATIENCE;
    let answer = loop {
        let wait = match ask(join, request.clone()).await {
            Ok(answer) => break answer,
            Err(Failed::Now(detail)) => return Err(fail(detail)),
            Err(Failed::Again(detail)) => detail,
        };
        if tokio::time::Instant::now() + AGAIN > end {
            return Err(fail(format!("{wait}; see that a leader runs (`lattice schedulers list`), and try again")));
        }
        tokio::time::sleep(AGAIN).await;
    };
    if authority::fingerprint_of_pem(&answer.authority)? != join.token.fingerprint || answer.id == 0 {
        return Err(fail("the answer is of another authority than the token; make a new token".into()));
    }
    let identity = &mut kept.identity;
    identity.id = answer.id;
    identity.certificate = answer.certificate;
    identity.authority = answer.authority;
    identity.authority_key = answer.authority_key;
    identity.peers = answer.peers;
    kept.save()?;
    tracing::info!(scheduler = kept.identity.id, "joined the lattice");
    Ok(kept)
}

enum Failed {
    Now(String),
    Again(String),
}

async fn ask(join: &Join, request: pb::JoinRequest) -> Result<pb::JoinAnswer, Failed> {
    let pinned = Arc::new(Pinned { fingerprint: join.token.fingerprint, provider: Arc::new(ring::default_provider()) });
    let tls = ClientTlsConfig::new().domain_name(authority::ANY);
    let endpoint = carry::endpoint(&join.addr).and_then(|endpoint| endpoint.tls_config_with_verifier(tls, pinned));
    let endpoint = endpoint.map_err(|error| {
        Failed::Now(format!("{}; --join names the --peer-listen of a scheduler, HOST:PORT", root_cause(&error)))
    })?;
    let connected = tokio::time::timeout(super::CONNECT, endpoint.connect()).await;
    let channel = match connected {
        Ok(Ok(channel)) => channel,
        Ok(Err(error)) => {
            let cause = root_cause(&error);
            return Err(if cause.contains(OTHER_AUTHORITY) { Failed::Now(cause) } else { Failed::Again(cause) });
        }
        Err(_) => return Err(Failed::Again("no answer in time".into())),
    };
    match tokio::time::timeout(PATIENCE, carry::client(channel).join(request)).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) if status.code() == Code::Unavailable => Err(Failed::Again(status.message().to_owned())),
        Ok(Err(status)) => Err(Failed::Now(status.message().to_owned())),
        Err(_) => Err(Failed::Again("no answer in time".into())),
    }
}

const OTHER_AUTHORITY: &str = "does not have the authority that the token names";

/// Trust in whoever has a certificate of the authority with this fingerprint.
#[derive(Debug)]
struct Pinned {
    fingerprint: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let other = || {
            let found =
                chain.last().map_or_else(|| "none".to_owned(), |c| authority::shown(&authority::fingerprint(c)));
            let wanted = authority::shown(&self.fingerprint);
            rustls::Error::General(format!(
                "what answers there {OTHER_AUTHORITY} (it is {found}…, the token's {wanted}…): the token is of another \
                 lattice, or the address is wrong; make a token with `lattice schedulers token` where you join"
            ))
        };
        let authority = chain.iter().find(|c| authority::fingerprint(c) == self.fingerprint).ok_or_else(other)?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned()).map_err(|_| other())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(roots.into(), self.provider.clone())
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        verifier.verify_server_cert(shown, &[], name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
