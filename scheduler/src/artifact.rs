//! Artifacts by content hash on this scheduler's disk, and their way to the hosts over the bus.

use bus::{Bus, Refusal, Reply};
use prost::Message;
use proto::app::{ARTIFACT_BYTES_MAX, Digest};
use proto::v1 as pb;
use sha2::Digest as _;
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Bytes of all artifacts together.
const STORE_BYTES_MAX: u64 = 16 * 1024 * 1024 * 1024;
/// Bytes in one piece on the bus.
const CHUNK_BYTES: u64 = 512 * 1024;
/// Pieces served at once per artifact.
const SERVE_MAX: usize = 8;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("artifact {digest}: {source}; check the disk under {}", path.display())]
    Io { digest: String, path: PathBuf, source: io::Error },
    #[error("artifact {digest}: its bytes have the digest {found}; upload it again")]
    Mismatch { digest: Digest, found: Digest },
    #[error("artifact {digest}: {size} bytes are too many; the most is {ARTIFACT_BYTES_MAX}")]
    TooLarge { digest: Digest, size: u64 },
    #[error("artifact {digest}: more bytes came than the {announced} that the first piece announced; upload it again")]
    Longer { digest: Digest, announced: u64 },
    #[error("artifact store {}: holds {STORE_BYTES_MAX} bytes, its bound; delete apps that are not needed", .0.display())]
    Full(PathBuf),
}

#[derive(Clone)]
pub struct Artifacts {
    dir: Arc<Path>,
    bus: Bus,
    serving: Arc<Mutex<BTreeMap<Digest, bus::Serving>>>,
}

/// An upload under way.
pub struct Upload {
    digest: Digest,
    path: PathBuf,
    file: fs::File,
    sum: sha2::Sha256,
    size: u64,
    /// What the room for it was checked against.
    announced: u64,
}

impl Artifacts {
    /// Opens the store and begins to serve what it holds.
    pub async fn open(dir: PathBuf, bus: Bus) -> Result<Self, Error> {
        let io = |source| Error::Io { digest: "store".into(), path: dir.clone(), source };
        fs::create_dir_all(&dir).map_err(io)?;
        let mut held = Vec::new();
        for entry in fs::read_dir(&dir).map_err(io)? {
            let path = entry.map_err(io)?.path();
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            match format!("sha256:{name}").parse::<Digest>() {
                Ok(digest) => held.push(digest),
                // What an upload left behind.
                Err(_) => drop(fs::remove_file(&path)),
            }
        }
        let store = Self { dir: dir.into(), bus, serving: Arc::default() };
        for digest in held {
            store.serve(digest).await;
        }
        Ok(store)
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(digest.hex())
    }

    /// The folder that holds them, each under the hex digits of its digest.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn has(&self, digest: &Digest) -> bool {
        self.path(digest).is_file()
    }

    pub fn read(&self, digest: &Digest) -> Result<Vec<u8>, Error> {
        let path = self.path(digest);
        fs::read(&path).map_err(|source| Error::Io { digest: digest.to_string(), path, source })
    }

    /// Begins an upload of so many bytes.
    pub fn begin(&self, digest: Digest, size: u64) -> Result<Upload, Error> {
        if size > ARTIFACT_BYTES_MAX {
            return Err(Error::TooLarge { digest, size });
        }
        let held: u64 = fs::read_dir(&self.dir)
            .map(|d| d.flatten().filter_map(|e| e.metadata().ok()).map(|m| m.len()).sum())
            .unwrap_or(0);
        if held + size > STORE_BYTES_MAX {
            return Err(Error::Full(self.dir.to_path_buf()));
        }
        let path = self.dir.join(format!("upload-{}", ulid::Ulid::generate()));
        let file = fs::File::create(&path).map_err(|source| Error::Io {
            digest: digest.to_string(),
            path: path.clone(),
            source,
        })?;
        Ok(Upload { digest, path, file, sum: sha2::Sha256::new(), size: 0, announced: size })
    }

    /// Verifies and keeps an upload: durable when this returns.
    pub async fn finish(&self, upload: Upload) -> Result<u64, Error> {
        let mut hex = String::with_capacity(71);
        hex.push_str("sha256:");
        for byte in upload.sum.finalize() {
            use std::fmt::Write as _;
            let _ = write!(hex, "{byte:02x}");
        }
        let found: Digest = hex.parse().expect("a sum in hex is a digest");
        if found != upload.digest {
            let _ = fs::remove_file(&upload.path);
            return Err(Error::Mismatch { digest: upload.digest, found });
        }
        let target = self.path(&upload.digest);
        let kept = upload
            .file
            .sync_all()
            .and_then(|()| fs::rename(&upload.path, &target))
            .and_then(|()| fs::File::open(&self.dir)?.sync_all());
        kept.map_err(|source| Error::Io { digest: upload.digest.to_string(), path: target, source })?;
        let size = upload.size;
        self.serve(upload.digest).await;
        Ok(size)
    }

    /// Removes what no revision names and what is older than `keep`: an apply may be under way.
    pub fn sweep(&self, named: &std::collections::BTreeSet<Digest>, keep: Duration) {
        let Ok(entries) = fs::read_dir(&self.dir) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let digest = name.to_str().and_then(|n| format!("sha256:{n}").parse::<Digest>().ok());
            let age = entry.metadata().and_then(|m| m.modified()).ok().and_then(|t| t.elapsed().ok());
            let old = age.is_some_and(|a| a > keep);
            let wanted = digest.as_ref().is_some_and(|d| named.contains(d));
            if old && !wanted {
                if let Some(digest) = digest {
                    self.serving.lock().unwrap_or_else(PoisonError::into_inner).remove(&digest);
                }
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    async fn serve(&self, digest: Digest) {
        if self.serving.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&digest) {
            return;
        }
        let path = self.path(&digest);
        let served = digest.clone();
        let handler = move |request: bus::Request| {
            let (path, digest) = (path.clone(), served.clone());
            async move { piece(&path, &digest, &request.payload) }
        };
        let subject = self.bus.subjects().blob(&digest);
        match self.bus.serve(subject, Some("blob".into()), SERVE_MAX, handler).await {
            Ok(serving) => {
                self.serving.lock().unwrap_or_else(PoisonError::into_inner).insert(digest, serving);
            }
            Err(error) => tracing::warn!(%digest, %error, "artifact not served on the bus"),
        }
    }
}

impl Upload {
    pub fn write(&mut self, data: &[u8]) -> Result<(), Error> {
        self.size += data.len() as u64;
        if self.size > ARTIFACT_BYTES_MAX {
            return Err(Error::TooLarge { digest: self.digest.clone(), size: self.size });
        }
        if self.size > self.announced {
            return Err(Error::Longer { digest: self.digest.clone(), announced: self.announced });
        }
        self.sum.update(data);
        self.file.write_all(data).map_err(|source| Error::Io {
            digest: self.digest.to_string(),
            path: self.path.clone(),
            source,
        })
    }
}

/// An upload that was not finished leaves nothing.
impl Upload {
    pub fn abandon(self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn piece(path: &Path, digest: &Digest, request: &[u8]) -> Result<Reply, Refusal> {
    let refuse = |code: &str, message: String| Refusal { code: code.to_owned(), message };
    let request = pb::BlobRequest::decode(request).map_err(|e| refuse("invalid", format!("blob request: {e}")))?;
    if request.digest != digest.as_str() {
        return Err(refuse("invalid", format!("blob request for {:?} on the subject of {digest}", request.digest)));
    }
    let read = || -> io::Result<pb::BlobChunk> {
        let mut file = fs::File::open(path)?;
        let size = file.metadata()?.len();
        file.seek(SeekFrom::Start(request.offset.min(size)))?;
        let mut data = Vec::new();
        file.take(CHUNK_BYTES).read_to_end(&mut data)?;
        Ok(pb::BlobChunk { size, data })
    };
    let chunk = read().map_err(|e| refuse("unavailable", format!("artifact {digest}: {e}")))?;
    Ok(Reply { payload: chunk.encode_to_vec().into(), ..Reply::default() })
}
