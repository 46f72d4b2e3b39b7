//! The certificates of the ingress: several, chosen by the name that a client asks for (SNI), read from PEM files and read
//! again when these change. A new file that can not be used leaves the certificate before it in place, and says so.
//!
//! Files may also be a secret as Kubernetes mounts it and cert-manager writes it: a folder with `tls.crt` and `tls.key`,
//! or a folder of such folders, in which certificates come and go while this runs.

use rustls::client::verify_server_name;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, crypto};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, Weak};
use std::time::Duration;

/// Certificates of one ingress: each is looked at until one has the name.
pub const CERTIFICATES_MAX: usize = 256;
/// What a secret's files are called.
const SECRET: (&str, &str) = ("tls.crt", "tls.key");
/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{}: {why}; name a readable PEM file", path.display())]
    Read { path: PathBuf, why: String },
    #[error("{}: {why}; name a folder that holds tls.crt and tls.key, or folders that do", path.display())]
    Secret { path: PathBuf, why: String },
    #[error("{}: {source}; check that certificate and key belong together", path.display())]
    Pair { path: PathBuf, source: rustls::Error },
    #[error("{len} certificates: an ingress has at most {CERTIFICATES_MAX}; use one that names several hosts")]
    TooMany { len: usize },
}

/// A certificate chain and its key, PEM files.
pub type Pair = (PathBuf, PathBuf);

/// Where certificates are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// These two files, always.
    Files(Pair),
    /// A folder with `tls.crt` and `tls.key`, or one of such folders, in the order of their names.
    Secret(PathBuf),
}

impl Source {
    /// What is there now.
    fn pairs(&self) -> io::Result<Vec<Pair>> {
        let folder = match self {
            Self::Files(pair) => return Ok(vec![pair.clone()]),
            Self::Secret(folder) => folder,
        };
        let pair = |folder: &Path| (folder.join(SECRET.0), folder.join(SECRET.1));
        let mut folders = Vec::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            // What begins with a point is how a secret is mounted: a link that moves from one version to the next.
            let is_hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
            if !is_hidden && pair(&entry.path()).0.is_file() {
                folders.push(entry.path());
            }
        }
        folders.sort();
        let own = pair(folder);
        let own = own.0.is_file().then_some(own);
        Ok(own.into_iter().chain(folders.iter().map(|folder| pair(folder))).collect())
    }
}

/// What `sources` hold, kept up to date for as long as the result is used. Within a tokio runtime. A secret may be empty
/// at first, and what is wrong in it is told rather than returned: its folder is another's to fill.
pub fn server(sources: &[Source]) -> Result<Served, Error> {
    let provider = Arc::new(crypto::ring::default_provider());
    let mut loaded = Vec::new();
    let mut failed = 0;
    for source in sources {
        match source {
            Source::Files(pair) => {
                let seen = Seen::of(pair);
                loaded.push(Loaded { pair: pair.clone(), seen, certificate: Some(load(pair, &provider)?) });
            }
            Source::Secret(path) => {
                let found = source.pairs().map_err(|e| Error::Secret { path: path.clone(), why: e.to_string() })?;
                if found.is_empty() {
                    tracing::warn!(secret = %path.display(), "holds no certificate yet");
                }
                failed += refresh(&found, &mut loaded, &provider).failed;
            }
        }
    }
    if loaded.len() > CERTIFICATES_MAX {
        return Err(Error::TooMany { len: loaded.len() });
    }
    let certificates = Arc::new(Certificates { now: RwLock::new(shown(&loaded)), failed: AtomicU64::new(failed) });
    let mut config = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|source| Error::Pair { path: loaded.first().map(|l| l.pair.0.clone()).unwrap_or_default(), source })?
        .with_no_client_auth()
        .with_cert_resolver(certificates.clone());
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    tokio::spawn(keep(sources.to_vec(), loaded, Arc::downgrade(&certificates), provider));
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
#[derive(Debug, Clone, Default, PartialEq, Eq)]
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
    pair: Pair,
    seen: Seen,
    /// None: there never was one that could be used.
    certificate: Option<Certificate>,
}

fn shown(loaded: &[Loaded]) -> Vec<Certificate> {
    loaded.iter().filter_map(|l| l.certificate.clone()).collect()
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
async fn keep(sources: Vec<Source>, mut loaded: Vec<Loaded>, to: Weak<Certificates>, provider: Arc<CryptoProvider>) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let (sources, provider) = (sources.clone(), provider.clone());
        if to.strong_count() == 0 {
            return;
        }
        let looked = tokio::task::spawn_blocking(move || {
            let changes = look(&sources, &mut loaded, &provider);
            (loaded, changes)
        });
        let Ok((next, changes)) = looked.await else { return };
        loaded = next;
        let Some(certificates) = to.upgrade() else { return };
        certificates.failed.fetch_add(changes.failed, Ordering::Relaxed);
        if changes.taken > 0 {
            let now = shown(&loaded);
            *certificates.now.write().unwrap_or_else(PoisonError::into_inner) = now;
        }
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Changes {
    taken: u64,
    failed: u64,
}

/// Looks at all there is, and lets go what is there no more.
fn look(sources: &[Source], loaded: &mut Vec<Loaded>, provider: &CryptoProvider) -> Changes {
    let mut found = Vec::new();
    for source in sources {
        match source.pairs() {
            Ok(pairs) => found.extend(pairs),
            // A folder that can not be read just now says nothing about what is in it.
            Err(_) => {
                let Source::Secret(folder) = source else { continue };
                found.extend(loaded.iter().map(|l| l.pair.clone()).filter(|pair| pair.0.starts_with(folder)));
            }
        }
    }
    found.truncate(CERTIFICATES_MAX);
    let mut changes = refresh(&found, loaded, provider);
    let is_here = |l: &Loaded| found.contains(&l.pair);
    // The last certificate stays: a client that is shown an old one may still take it.
    if loaded.iter().any(|l| is_here(l) && l.certificate.is_some()) {
        for gone in loaded.extract_if(.., |l| !is_here(l)).filter(|l| l.certificate.is_some()) {
            tracing::info!(certificate = %gone.pair.0.display(), "is gone: it is shown no more");
            changes.taken += 1;
        }
    }
    let place = |l: &Loaded| found.iter().position(|pair| *pair == l.pair);
    loaded.sort_by_key(place);
    changes
}

/// Reads those of `pairs` that are new or have changed.
fn refresh(pairs: &[Pair], loaded: &mut Vec<Loaded>, provider: &CryptoProvider) -> Changes {
    let mut changes = Changes::default();
    for pair in pairs {
        // Before it is read: what changes meanwhile is seen the next time.
        let seen = Seen::of(pair);
        let at = loaded.iter().position(|l| l.pair == *pair).unwrap_or_else(|| {
            loaded.push(Loaded { pair: pair.clone(), seen: Seen::default(), certificate: None });
            loaded.len() - 1
        });
        let before = &mut loaded[at];
        if seen == before.seen {
            continue;
        }
        before.seen = seen;
        match load(pair, provider) {
            Ok(new) if before.certificate.as_ref().is_some_and(|old| old.key.cert == new.key.cert) => {}
            Ok(new) => {
                tracing::info!(certificate = %pair.0.display(), "a new certificate is shown from now on");
                before.certificate = Some(new);
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
        let mut loaded = Vec::new();
        assert_eq!(refresh(pairs, &mut loaded, &provider()).failed, 0);
        loaded
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
        let all = shown(&loaded);
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
        let before = shown(&now);
        let kept = |now: &[Loaded], n: usize| Arc::ptr_eq(&shown(now)[n].key, &before[n].key);
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

    /// A folder as Kubernetes mounts a secret: the files are links through one link, which is what changes.
    fn mount(at: &Path, version: &str, name: &str) {
        fs::create_dir_all(at.join(version)).unwrap();
        let made = write(at, "made", &[name]);
        fs::rename(&made.0, at.join(version).join(SECRET.0)).unwrap();
        fs::rename(&made.1, at.join(version).join(SECRET.1)).unwrap();
        std::os::unix::fs::symlink(version, at.join("..next")).unwrap();
        fs::rename(at.join("..next"), at.join("..data")).unwrap();
        for file in [SECRET.0, SECRET.1] {
            let _ = std::os::unix::fs::symlink(Path::new("..data").join(file), at.join(file));
        }
    }

    #[test]
    fn secrets_are_taken_as_they_come_change_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let (own, all) = (dir.path().join("own"), dir.path().join("all"));
        fs::create_dir_all(all.join("empty")).unwrap();
        let mut loaded = Vec::new();
        let sources = [Source::Secret(own.clone()), Source::Secret(all.clone())];
        mount(&own, "..1", "own.example");
        let mut looked = || {
            (
                look(&sources, &mut loaded, &provider()),
                Certificates { now: RwLock::new(shown(&loaded)), failed: AtomicU64::new(0) },
            )
        };
        let names = |certificates: &Certificates, name: &'static str| {
            let name = ServerName::try_from(name).unwrap();
            certificates.now.read().unwrap().iter().position(|c| c.is_for(&name))
        };
        let (changes, now) = looked();
        assert_eq!((changes, names(&now, "own.example")), (Changes { taken: 1, failed: 0 }, Some(0)));
        assert_eq!(now.now.read().unwrap().len(), 1, "what is mounted is not seen twice");
        // New ones are shown by name.
        mount(&all.join("b"), "..1", "b.example");
        mount(&all.join("a"), "..1", "*.a.example");
        let (changes, now) = looked();
        assert_eq!(changes, Changes { taken: 2, failed: 0 });
        assert_eq!((names(&now, "x.a.example"), names(&now, "b.example")), (Some(1), Some(2)));
        // A link that leads elsewhere is a new certificate.
        mount(&own, "..2", "new.example");
        let (changes, now) = looked();
        assert_eq!(changes, Changes { taken: 1, failed: 0 });
        assert_eq!((names(&now, "own.example"), names(&now, "new.example")), (None, Some(0)));
        assert_eq!(looked().0, Changes::default());
        // One that is broken stays as it was, one that is gone goes, the last one stays.
        fs::write(all.join("a/..1/tls.key"), "garbage").unwrap();
        fs::remove_dir_all(all.join("b")).unwrap();
        let (changes, now) = looked();
        assert_eq!(changes, Changes { taken: 1, failed: 1 });
        assert_eq!((names(&now, "x.a.example"), names(&now, "b.example")), (Some(1), None));
        fs::remove_dir_all(all.join("a")).unwrap();
        fs::remove_file(own.join(SECRET.0)).unwrap();
        let (changes, now) = looked();
        assert_eq!((changes, names(&now, "new.example")), (Changes::default(), Some(0)));
        fs::remove_dir_all(&own).unwrap();
        assert_eq!(names(&looked().1, "new.example"), Some(0));
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
