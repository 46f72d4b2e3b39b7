//! The lattice's own certificate authority: made by the first scheduler, shared by all. A certificate says which member
//! its holder is; that it still is one, the log says: who
//! is removed is out at once.
//!
//! Certificates of schedulers are good for a few days. Each scheduler holds the authority and its own key, so it signs
//! its certificate anew at each start and while it runs: also after two years in a cupboard.

use super::Error;
use super::token::hex;
use crate::events::unix_ms;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SignatureAlgorithm, date_time_ymd,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use sha2::{Digest, Sha256};
use std::path::Path;
use std::time::Duration;

/// Every scheduler's certificate is good for this name too: who joins knows no member's.
pub(super) const ANY: &str = "scheduler.lattice.internal";
/// What an API's certificate of this authority is good for, at whatever address it is reached.
const API: &str = "api.lattice.internal";
/// Authority of a scheduler that has no others: certificate and key.
const AUTHORITY_FILE: &str = "authority.pem";
/// An uncompressed point of P-256.
const PUBLIC_KEY_BYTES: usize = 65;

/// The name that the certificate of a member has.
pub(super) fn name(id: u64) -> String {
    format!("scheduler-{id}.lattice.internal")
}

/// A key pair of a scheduler, PEM.
pub(super) fn key() -> Result<String, Error> {
    Ok(pair()?.serialize_pem())
}

/// A new authority: certificate and key, PEM.
pub(super) fn make() -> Result<(String, String), Error> {
    let key = pair()?;
    let certificate = params().and_then(|params| params.self_signed(&key)).map_err(Error::certificate)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

/// A certificate of this authority for member `id`, PEM.
pub(super) fn sign(authority_key: &str, id: u64, public_key: &[u8], until: Until) -> Result<String, Error> {
    let signed = sign_with(authority_key, vec![name(id), ANY.to_owned()], public_key, until);
    signed.map(|certificate| certificate.pem()).map_err(Error::certificate)
}

/// An authority and its key, PEM.
#[derive(Clone)]
pub struct Authority {
    pub(super) certificate: String,
    pub(super) key: String,
}

impl Authority {
    /// The one kept in this folder by a scheduler that has no others, made if there is none.
    pub(crate) fn open(dir: &Path) -> Result<Self, Error> {
        if let Some(found) = Self::load(dir)? {
            return Ok(found);
        }
        let (certificate, key) = make()?;
        let wrong = |source: std::io::Error| Error::Identity { path: dir.to_path_buf(), detail: source.to_string() };
        let whole = format!("{certificate}{key}");
        super::identity::write_private(dir, AUTHORITY_FILE, whole.as_bytes()).map_err(wrong)?;
        Ok(Self { certificate, key })
    }

    pub(super) fn load(dir: &Path) -> Result<Option<Self>, Error> {
        let path = dir.join(AUTHORITY_FILE);
        let wrong = |detail: String| Error::Identity { path: path.clone(), detail };
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(wrong(error.to_string())),
        };
        let at = text.find("-----BEGIN PRIVATE KEY-----").ok_or_else(|| wrong("it holds no key".into()))?;
        let (certificate, key) = text.split_at(at);
        fingerprint_of_pem(certificate)?;
        Ok(Some(Self { certificate: certificate.to_owned(), key: key.to_owned() }))
    }

    /// By what clients know it: SHA-256 in hex.
    pub(crate) fn fingerprint(&self) -> Result<String, Error> {
        fingerprint_of_pem(&self.certificate).map(|sum| hex(&sum))
    }

    /// What an API shows for so long: chain and key, PEM.
    pub(crate) fn for_api(&self, life: Duration) -> Result<(String, String), Error> {
        let pair = pair()?;
        let names = vec![API.to_owned(), "localhost".to_owned()];
        let leaf =
            sign_with(&self.key, names, pair.public_key_raw(), Until::after(life)).map_err(Error::certificate)?;
        Ok((format!("{}{}", leaf.pem(), self.certificate), pair.serialize_pem()))
    }
}

/// Seconds since 1970 until which a certificate is good.
#[derive(Debug, Clone, Copy)]
pub(super) struct Until(u64);

impl Until {
    /// So long from now on, by this machine's clock.
    pub(super) fn after(life: Duration) -> Self {
        Self(unix_ms() / 1000 + life.as_secs().max(1))
    }
}

fn sign_with(
    authority_key: &str,
    names: Vec<String>,
    public_key: &[u8],
    until: Until,
) -> Result<Certificate, rcgen::Error> {
    let issuer = Issuer::new(params()?, KeyPair::from_pem(authority_key)?);
    let common = names.first().cloned().unwrap_or_default();
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name.push(DnType::CommonName, common);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    ages(&mut params);
    params.not_after = date_time_ymd(1970, 1, 1) + Duration::from_secs(until.0);
    params.signed_by(&PublicKey(public_key.to_vec()), &issuer)
}

/// The public half of a key, as `sign` takes it.
pub(super) fn public_key(key: &str) -> Result<Vec<u8>, Error> {
    Ok(KeyPair::from_pem(key).map_err(Error::certificate)?.public_key_raw().to_vec())
}

/// Whether these bytes can be a public key.
pub(super) fn is_public_key(bytes: &[u8]) -> bool {
    bytes.len() == PUBLIC_KEY_BYTES && bytes.first() == Some(&4)
}

/// SHA-256 of a certificate.
pub(super) fn fingerprint(certificate: &CertificateDer<'_>) -> [u8; 32] {
    Sha256::digest(certificate).into()
}

/// SHA-256 of the first certificate of a PEM text.
pub(super) fn fingerprint_of_pem(pem: &str) -> Result<[u8; 32], Error> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes())
        .map_err(|error| Error::Certificate(format!("the authority's certificate is no PEM: {error}")))?;
    Ok(fingerprint(&der))
}

/// Whether a certificate, whose chain was verified before, is that of member `id`.
pub(super) fn is_of(certificate: &CertificateDer<'_>, id: u64) -> bool {
    let Ok(parsed) = rustls::server::ParsedCertificate::try_from(certificate) else { return false };
    let Ok(name) = ServerName::try_from(name(id)) else { return false };
    rustls::client::verify_server_name(&parsed, &name).is_ok()
}

pub(super) fn shown(fingerprint: &[u8]) -> String {
    hex(fingerprint).chars().take(16).collect()
}

fn pair() -> Result<KeyPair, Error> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(Error::certificate)
}

/// The same for making the authority and for signing with it: its name must not differ.
fn params() -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name.push(DnType::CommonName, "lattice schedulers");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    ages(&mut params);
    Ok(params)
}

/// Wide: clocks at the edge are wrong.
fn ages(params: &mut CertificateParams) {
    params.not_before = date_time_ymd(2000, 1, 1);
    params.not_after = date_time_ymd(2120, 1, 1);
}

struct PublicKey(Vec<u8>);

impl PublicKeyData for PublicKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_alone_is_made_once_and_goes_on_among_several() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Authority::load(dir.path()).unwrap().is_none());
        let first = Authority::open(dir.path()).unwrap();
        let again = Authority::open(dir.path()).unwrap();
        assert_eq!(first.fingerprint().unwrap(), again.fingerprint().unwrap());
        assert_eq!(first.fingerprint().unwrap().len(), 64);
        let (chain, key) = first.for_api(Duration::from_secs(60)).unwrap();
        assert!(crate::tls::config(&chain, &key, None).is_ok());
        std::fs::write(dir.path().join(AUTHORITY_FILE), "nothing").unwrap();
        assert!(Authority::open(dir.path()).is_err());
    }

    #[test]
    fn a_certificate_is_that_of_one_member() {
        let (authority, authority_key) = make().unwrap();
        let key = key().unwrap();
        let public = public_key(&key).unwrap();
        assert!(is_public_key(&public) && !is_public_key(&public[1..]));
        let pem = sign(&authority_key, 3, &public, Until::after(Duration::from_secs(60))).unwrap();
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        assert!(is_of(&der, 3));
        assert!(!is_of(&der, 33) && !is_of(&der, 1));
        assert!(!is_of(&CertificateDer::from(vec![1, 2, 3]), 3));
        // Good for as long as it was signed for, and no longer.
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.as_bytes()).unwrap()).unwrap();
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let verifier =
            rustls::server::WebPkiClientVerifier::builder_with_provider(roots.into(), provider).build().unwrap();
        let at = |seconds: u64| {
            let now = Duration::from_secs(unix_ms() / 1000 + seconds);
            verifier.verify_client_cert(&der, &[], rustls::pki_types::UnixTime::since_unix_epoch(now)).is_ok()
        };
        assert!(at(0) && at(50) && !at(70));
        assert_ne!(fingerprint_of_pem(&authority).unwrap(), fingerprint_of_pem(&pem).unwrap());
    }
}
