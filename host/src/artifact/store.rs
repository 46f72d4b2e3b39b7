//! A folder of artifacts, each named by the SHA-256 of its bytes: `<dir>/<64 hex digits>`. What is in it is whole: a
//! file gets its name only after its bytes were verified and are on disk, and they are verified again when read.
//!
//! It never holds more than its bound: at the bound a put is refused, with an error that says so.

use proto::app::{ARTIFACT_BYTES_MAX, Digest};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Why an artifact was not kept or not found.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path}: {source}")]
    Io { path: String, source: io::Error },
    #[error("artifact {expected} arrived damaged: its bytes have the digest {found}; fetch it again")]
    Damaged { expected: Digest, found: Digest },
    #[error("artifact {digest} is damaged on disk and was removed; fetch it again")]
    Rotten { digest: Digest },
    #[error("artifact {digest} is more than {bytes_max} bytes, the most that is allowed")]
    TooLarge { digest: Digest, bytes_max: u64 },
    #[error(
        "artifact {digest} does not fit: the store {dir} holds {used} of {bytes_max} bytes; remove what is not used"
    )]
    Full { digest: Digest, dir: String, used: u64, bytes_max: u64 },
}

/// The folder, and what is in it. Its calls block: use them off the threads that serve.
pub struct Store {
    dir: PathBuf,
    bytes_max: u64,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    /// Bytes by digest.
    files: BTreeMap<Digest, u64>,
    /// Of files and of writers that have not finished.
    bytes: u64,
    /// Makes names of temporary files distinct.
    counter: u64,
}

impl Store {
    /// Opens the folder, making it if need be; what a process that ended had half written is removed.
    pub fn open(dir: &Path, bytes_max: u64) -> Result<Self, Error> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(at(dir))?;
        let mut held = Held::default();
        for entry in fs::read_dir(dir).map_err(at(dir))? {
            let path = entry.map_err(at(dir))?.path();
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            if let Ok(digest) = format!("sha256:{name}").parse::<Digest>() {
                let bytes = fs::metadata(&path).map_err(at(&path))?.len();
                held.bytes += bytes;
                held.files.insert(digest, bytes);
            } else if path.extension().is_some_and(|e| e == "tmp") {
                fs::remove_file(&path).map_err(at(&path))?;
            }
        }
        Ok(Self { dir: dir.to_owned(), bytes_max, held: Mutex::new(held) })
    }

    /// Keeps `bytes`, which must have the digest.
    pub fn put(&self, digest: &Digest, bytes: &[u8]) -> Result<(), Error> {
        let mut writer = self.writer(digest)?;
        writer.write(bytes)?;
        writer.finish()
    }

    /// Takes an artifact piece by piece; nothing is kept unless it is finished with the right digest.
    pub fn writer(&self, digest: &Digest) -> Result<Writer<'_>, Error> {
        let mut held = self.held();
        held.counter += 1;
        let path = self.dir.join(format!("{}-{}.tmp", std::process::id(), held.counter));
        drop(held);
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path);
        let file = file.map_err(at(&path))?;
        Ok(Writer { store: self, digest: digest.clone(), path, file, sum: Sha256::new(), bytes: 0 })
    }

    pub fn has(&self, digest: &Digest) -> bool {
        self.held().files.contains_key(digest)
    }

    /// The bytes, verified; `None` if it is not here.
    pub fn read(&self, digest: &Digest) -> Result<Option<Vec<u8>>, Error> {
        if !self.has(digest) {
            return Ok(None);
        }
        let path = self.path(digest);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                self.remove(digest)?;
                return Ok(None);
            }
            Err(e) => return Err(at(&path)(e)),
        };
        if Digest::of(&bytes) != *digest {
            self.remove(digest)?;
            return Err(Error::Rotten { digest: digest.clone() });
        }
        Ok(Some(bytes))
    }

    /// The file, to send pieces of it; the receiver verifies them.
    pub fn file(&self, digest: &Digest) -> Result<Option<File>, Error> {
        if !self.has(digest) {
            return Ok(None);
        }
        let path = self.path(digest);
        File::open(&path).map(Some).map_err(at(&path))
    }

    /// What is here, with its size in bytes.
    pub fn list(&self) -> Vec<(Digest, u64)> {
        self.held().files.iter().map(|(digest, bytes)| (digest.clone(), *bytes)).collect()
    }

    /// Bytes held, and the bound.
    pub fn bytes(&self) -> (u64, u64) {
        (self.held().bytes, self.bytes_max)
    }

    /// Removing what is not there is no error.
    pub fn remove(&self, digest: &Digest) -> Result<(), Error> {
        let mut held = self.held();
        let path = self.path(digest);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(at(&path)(e)),
            _ => {}
        }
        if let Some(bytes) = held.files.remove(digest) {
            held.bytes -= bytes;
        }
        Ok(())
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(digest.hex())
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts bytes before they are written.
    fn reserve(&self, digest: &Digest, bytes: u64) -> Result<(), Error> {
        let mut held = self.held();
        if held.bytes.saturating_add(bytes) > self.bytes_max {
            let dir = self.dir.display().to_string();
            return Err(Error::Full { digest: digest.clone(), dir, used: held.bytes, bytes_max: self.bytes_max });
        }
        held.bytes += bytes;
        Ok(())
    }
}

/// An artifact on its way in. Dropped before it is finished, it leaves nothing.
pub struct Writer<'a> {
    store: &'a Store,
    digest: Digest,
    path: PathBuf,
    file: File,
    sum: Sha256,
    /// Written, and counted as held.
    bytes: u64,
}

impl Writer<'_> {
    pub fn write(&mut self, piece: &[u8]) -> Result<(), Error> {
        let len = u64::try_from(piece.len()).unwrap_or(u64::MAX);
        if self.bytes.saturating_add(len) > ARTIFACT_BYTES_MAX {
            return Err(Error::TooLarge { digest: self.digest.clone(), bytes_max: ARTIFACT_BYTES_MAX });
        }
        self.store.reserve(&self.digest, len)?;
        self.bytes += len;
        self.sum.update(piece);
        self.file.write_all(piece).map_err(at(&self.path))
    }

    /// Verifies, and only then gives the file its name.
    pub fn finish(mut self) -> Result<(), Error> {
        let sum: [u8; 32] = self.sum.finalize_reset().into();
        if hex(&sum) != self.digest.hex() {
            let found = format!("sha256:{}", hex(&sum)).parse().unwrap_or_else(|_| self.digest.clone());
            return Err(Error::Damaged { expected: self.digest.clone(), found });
        }
        self.file.sync_all().map_err(at(&self.path))?;
        let mut held = self.store.held();
        let path = self.store.path(&self.digest);
        fs::rename(&self.path, &path).map_err(at(&path))?;
        // The name has to survive a power cut as well.
        File::open(&self.store.dir).and_then(|d| d.sync_all()).map_err(at(&self.store.dir))?;
        if let Some(before) = held.files.insert(self.digest.clone(), self.bytes) {
            held.bytes -= before;
        }
        self.bytes = 0;
        Ok(())
    }
}

impl Drop for Writer<'_> {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
        self.store.held().bytes -= self.bytes;
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut s, b| {
        use std::fmt::Write as _;
        let _ = write!(s, "{b:02x}");
        s
    })
}

fn at(path: &Path) -> impl Fn(io::Error) -> Error {
    let path = path.display().to_string();
    move |source| Error::Io { path: path.clone(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_is_read_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let digest = Digest::of(b"bytes");
        let store = Store::open(dir.path(), 100).unwrap();
        assert!(!store.has(&digest));
        store.put(&digest, b"bytes").unwrap();
        store.put(&digest, b"bytes").unwrap();
        assert_eq!(store.bytes(), (5, 100));
        fs::write(dir.path().join("1-1.tmp"), "half").unwrap();
        let store = Store::open(dir.path(), 100).unwrap();
        assert_eq!(store.list(), vec![(digest.clone(), 5)]);
        assert_eq!(store.read(&digest).unwrap().unwrap(), b"bytes");
        assert!(!dir.path().join("1-1.tmp").exists());
        store.remove(&digest).unwrap();
        store.remove(&digest).unwrap();
        assert_eq!((store.has(&digest), store.bytes().0), (false, 0));
    }

    #[test]
    fn damaged_bytes_are_never_kept_nor_given() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), 100).unwrap();
        let digest = Digest::of(b"bytes");
        assert!(matches!(store.put(&digest, b"other"), Err(Error::Damaged { .. })));
        assert_eq!((store.has(&digest), store.bytes().0), (false, 0));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        store.put(&digest, b"bytes").unwrap();
        fs::write(store.path(&digest), "rot").unwrap();
        assert!(matches!(store.read(&digest), Err(Error::Rotten { .. })));
        assert_eq!(store.read(&digest).unwrap(), None);
        assert_eq!(store.bytes().0, 0);
    }

    #[test]
    fn the_bound_refuses_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), 8).unwrap();
        store.put(&Digest::of(b"bytes"), b"bytes").unwrap();
        let error = store.put(&Digest::of(b"more"), b"more").unwrap_err();
        assert!(matches!(error, Error::Full { used: 5, bytes_max: 8, .. }), "{error}");
        assert_eq!(store.bytes().0, 5);
        store.put(&Digest::of(b"mor"), b"mor").unwrap();
    }
}
