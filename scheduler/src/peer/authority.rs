//! The lattice's own certificate authority: made by the first scheduler, shared by all. A certificate says which member
//! its holder is; that it still is one, the log says. So nothing here expires on a box that nobody looks after, and who
//! is removed is out at once.

use super::Error;
use super::token::hex;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SignatureAlgorithm, date_time_ymd,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use sha2::{Digest, Sha256};

/// Every scheduler's certificate is good for this name too: who joins knows no member's.
pub(super) const ANY: &str = "scheduler.lattice.internal";
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
pub(super) fn sign(authority_key: &str, id: u64, public_key: &[u8]) -> Result<String, Error> {
    sign_with(authority_key, id, public_key).map(|certificate| certificate.pem()).map_err(Error::certificate)
}

fn sign_with(authority_key: &str, id: u64, public_key: &[u8]) -> Result<Certificate, rcgen::Error> {
    let issuer = Issuer::new(params()?, KeyPair::from_pem(authority_key)?);
    let mut params = CertificateParams::new(vec![name(id), ANY.to_owned()])?;
    params.distinguished_name.push(DnType::CommonName, format!("lattice scheduler {id}"));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    ages(&mut params);
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
    fn a_certificate_is_that_of_one_member() {
        let (authority, authority_key) = make().unwrap();
        let key = key().unwrap();
        let public = public_key(&key).unwrap();
        assert!(is_public_key(&public) && !is_public_key(&public[1..]));
        let pem = sign(&authority_key, 3, &public).unwrap();
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        assert!(is_of(&der, 3));
        assert!(!is_of(&der, 33) && !is_of(&der, 1));
        assert!(!is_of(&CertificateDer::from(vec![1, 2, 3]), 3));
        assert_ne!(fingerprint_of_pem(&authority).unwrap(), fingerprint_of_pem(&pem).unwrap());
    }
}
