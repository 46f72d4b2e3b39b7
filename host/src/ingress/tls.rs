//! The certificates of the ingress: several, chosen by the name that a client asks for (SNI), read from PEM files and read
//! again when these change. A new file that can not be used leaves the certificate before it in place, and says so.

use rustls::client::verify_server_name;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, crypto};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, Weak};
use std::time::Duration;

/// Certificates of one ingress: each is looked at until one has the name.
pub const CERTIFICATES_MAX: usize = 256;
/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{}: {why}; name a readable PEM file", path.display())]
    Read { path: PathBuf, why: String },
    #[error("{}: {source}; check that --tls-cert and --tls-key belong together", path.display())]
    Pair { path: PathBuf, source: rustls::Error },
    #[error("{len} certificates: an ingress has at most {CERTIFICATES_MAX}; use one that names several hosts")]
    TooMany { len: usize },
}

/// A certificate chain and its key, PEM files.
pub type Pair = (PathBuf, PathBuf);

/// What `pairs` hold, kept up to date for as long as the result is used. Within a tokio runtime.
pub fn server(pairs: &[Pair]) -> Result<Served, Error> {
    if pairs.len() > CERTIFICATES_MAX {
        return Err(Error::TooMany { len: pairs.len() });
    }
    let provider = Arc::new(crypto::ring::default_provider());
    let mut loaded = Vec::with_capacity(pairs.len());
    for pair in pairs {
        let seen = Seen::of(pair);
        loaded.push(Loaded { seen, certificate: load(pair, &provider)? });
    }
    let certificates = Arc::new(Certificates {
        now: RwLock::new(loaded.iter().map(|l| l.certificate.clone()).collect()),
        failed: AtomicU64::new(0),
    });
    let mut config = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|source| Error::Pair { path: pairs.first().map(|p| p.0.clone()).unwrap_or_default(), source })?
        .with_no_client_auth()
        .with_cert_resolver(certificates.clone());
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    tokio::spawn(keep(pairs.to_vec(), loaded, Arc::downgrade(&certificates), provider));
    Ok(Served { config: Arc::new(config), certificates })
}

/// A server's side of TLS.
#[derive(Clone)]
pub struct Served {
    pub config: Arc<ServerConfig>,
    pub certificates: Arc<Certificates>,
}

/// What is shown to clients now, in the order given.
#[derive(Debug)]
pub struct Certificates {
    now: RwLock<Vec<Certificate>>,
    failed: AtomicU64,
}

#[derive(Debug, Clone)]
struct Certificate {
    key: Arc<CertifiedKey>,
}

impl Certificates {
    /// How often changed files could not be used.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// The first that has this name, else the first of all: a client that knows it otherwise may still take it.
    fn named(&self, name: Option<&str>) -> Option<Arc<CertifiedKey>> {
        let now = self.now.read().unwrap_or_else(PoisonError::into_inner);
        let name = name.filter(|_| now.len() > 1).and_then(|name| ServerName::try_from(name).ok());
        let found = name.and_then(|name| now.iter().find(|certificate| certificate.is_for(&name)));
        found.or(now.first()).map(|certificate| certificate.key.clone())
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.named(hello.server_name())
    }
}

impl Certificate {
    fn is_for(&self, name: &ServerName<'_>) -> bool {
        let leaf = self.key.cert.first().and_then(|leaf| ParsedCertificate::try_from(leaf).ok());
        leaf.is_some_and(|leaf| verify_server_name(&leaf, name).is_ok())
    }
}

/// What tells one state of two files from another.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen([Option<(u64, u64, i64, i64)>; 2]);

impl Seen {
    fn of(pair: &Pair) -> Self {
        let file = |path: &Path| {
            // Behind links: a mounted secret changes by where its link leads.
            let found = fs::metadata(path).ok()?;
            Some((found.ino(), found.len(), found.ctime(), found.ctime_nsec()))
        };
        Self([file(&pair.0), file(&pair.1)])
    }
}

struct Loaded {
    seen: Seen,
    certificate: Certificate,
}

fn load((cert, key): &Pair, provider: &CryptoProvider) -> Result<Certificate, Error> {
    let read = |path: &Path, why: String| Error::Read { path: path.to_owned(), why };
    let chain: Result<Vec<CertificateDer<'static>>, _> =
        CertificateDer::pem_file_iter(cert).and_then(Iterator::collect);
    let chain = chain.map_err(|e| read(cert, e.to_string()))?;
    if chain.is_empty() {
        return Err(read(cert, "holds no certificate".into()));
    }
    let secret = PrivateKeyDer::from_pem_file(key).map_err(|e| read(key, e.to_string()))?;
    let pair = |source| Error::Pair { path: cert.to_owned(), source };
    let key = CertifiedKey::from_der(chain, secret, provider).map_err(pair)?;
    Ok(Certificate { key: Arc::new(key) })
}

/// Looks at the files until nobody uses what they hold.
async fn keep(pairs: Vec<Pair>, mut loaded: Vec<Loaded>, to: Weak<Certificates>, provider: Arc<CryptoProvider>) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let (pairs, provider) = (pairs.clone(), provider.clone());
        if to.strong_count() == 0 {
            return;
        }
        let looked = tokio::task::spawn_blocking(move || {
            let failed = refresh(&pairs, &mut loaded, &provider);
            (loaded, failed)
        });
        let Ok((next, changes)) = looked.await else { return };
        loaded = next;
        let Some(certificates) = to.upgrade() else { return };
        certificates.failed.fetch_add(changes.failed, Ordering::Relaxed);
        if changes.taken > 0 {
            let now = loaded.iter().map(|l| l.certificate.clone()).collect();
            *certificates.now.write().unwrap_or_else(PoisonError::into_inner) = now;
        }
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Changes {
    taken: u64,
    failed: u64,
}

fn refresh(pairs: &[Pair], loaded: &mut [Loaded], provider: &CryptoProvider) -> Changes {
    let mut changes = Changes::default();
    for (pair, before) in pairs.iter().zip(loaded) {
        // Before it is read: what changes meanwhile is seen the next time.
        let seen = Seen::of(pair);
        if seen == before.seen {
            continue;
        }
        before.seen = seen;
        match load(pair, provider) {
            Ok(certificate) if certificate.key.cert == before.certificate.key.cert => {}
            Ok(certificate) => {
                tracing::info!(certificate = %pair.0.display(), "a new certificate is shown from now on");
                before.certificate = certificate;
                changes.taken += 1;
            }
            Err(error) => {
                tracing::error!(%error, "the certificate of before is kept");
                changes.failed += 1;
            }
        }
    }
    changes
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "helpers of tests")]
    use super::*;

    fn write(dir: &Path, file: &str, names: &[&str]) -> Pair {
        let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        let pair = (dir.join(format!("{file}.pem")), dir.join(format!("{file}.key")));
        fs::write(&pair.0, made.cert.pem()).unwrap();
        fs::write(&pair.1, made.signing_key.serialize_pem()).unwrap();
        pair
    }

    fn provider() -> CryptoProvider {
        crypto::ring::default_provider()
    }

    fn loaded(pairs: &[Pair]) -> Vec<Loaded> {
        let one = |pair| Loaded { seen: Seen::of(pair), certificate: load(pair, &provider()).unwrap() };
        pairs.iter().map(one).collect()
    }

    #[test]
    fn the_name_chooses_and_the_first_is_for_all_others() {
        let dir = tempfile::tempdir().unwrap();
        let pairs = [
            write(dir.path(), "a", &["a.example"]),
            write(dir.path(), "wild", &["*.b.example", "b.example"]),
            write(dir.path(), "c", &["x.b.example", "c.example"]),
        ];
        let loaded = loaded(&pairs);
        let all: Vec<_> = loaded.iter().map(|l| l.certificate.clone()).collect();
        let certificates = Certificates { now: RwLock::new(all.clone()), failed: AtomicU64::new(0) };
        for (name, expected) in [
            (Some("a.example"), 0),
            (Some("A.Example"), 0),
            (Some("b.example"), 1),
            (Some("y.b.example"), 1),
            (Some("x.b.example"), 1),
            (Some("z.y.b.example"), 0),
            (Some("c.example"), 2),
            (Some("nobody.example"), 0),
            (None, 0),
        ] {
            let found = certificates.named(name).unwrap();
            assert!(Arc::ptr_eq(&found, &all[expected].key), "{name:?}");
        }
    }

    #[test]
    fn changed_files_are_taken_and_broken_ones_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let pairs = [write(dir.path(), "a", &["a.example"]), write(dir.path(), "b", &["b.example"])];
        let mut now = loaded(&pairs);
        let before: Vec<_> = now.iter().map(|l| l.certificate.key.clone()).collect();
        let kept = |now: &[Loaded], n: usize| Arc::ptr_eq(&now[n].certificate.key, &before[n]);
        assert_eq!(refresh(&pairs, &mut now, &provider()), Changes::default());

        // Half of a change: the key does not belong to the certificate yet.
        let other = write(dir.path(), "other", &["a.example"]);
        fs::copy(&other.0, &pairs[0].0).unwrap();
        fs::write(&pairs[1].0, "garbage").unwrap();
        assert_eq!(refresh(&pairs, &mut now, &provider()), Changes { taken: 0, failed: 2 });
        assert!(kept(&now, 0) && kept(&now, 1));
        assert_eq!(refresh(&pairs, &mut now, &provider()), Changes::default(), "it is said once");

        fs::copy(&other.1, &pairs[0].1).unwrap();
        fs::remove_file(&pairs[1].0).unwrap();
        assert_eq!(refresh(&pairs, &mut now, &provider()), Changes { taken: 1, failed: 1 });
        assert!(!kept(&now, 0) && kept(&now, 1));
        write(dir.path(), "b", &["b.example"]);
        assert_eq!(refresh(&pairs, &mut now, &provider()), Changes { taken: 1, failed: 0 });
    }

    #[test]
    fn wrong_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (write(dir.path(), "a", &["a.example"]), write(dir.path(), "b", &["b.example"]));
        let error = |cert: &Path, key: &Path| load(&(cert.into(), key.into()), &provider()).err().unwrap().to_string();
        assert!(error(&dir.path().join("none"), &a.1).contains("none: "));
        assert!(error(&a.1, &a.1).contains("holds no certificate"));
        assert!(error(&a.0, &a.0).contains("a.pem: "));
        assert!(error(&a.0, &b.1).contains("belong together"));
    }
}
