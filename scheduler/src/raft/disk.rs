//! Ordered keys and values on disk, written in atomic batches, durable when `sync` returned. The one place that talks to
//! sled. Must never hold a value so large that sled moves it to a file of its own: those it does not make durable.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Error;

/// sled writes a tree page of more than a quarter of a segment to a file of its own, without ever syncing that. A page
/// holds up to 16 items before it splits, and up to 20 after a merge: 20 x 4 KiB stays far below 128 KiB.
pub(super) const VALUE_BYTES_MAX: usize = 4 << 10;
const SEGMENT_BYTES: usize = 512 << 10;
const CACHE_BYTES: u64 = 32 << 20;
/// Only sled's cleaning of old segments hangs on this; durability does not.
const CLEAN_EVERY_MS: u64 = 1000;
/// sled's own lock may outlive a store that was closed in this process, until its deferred memory is freed. Ours is held
/// when we wait for it, so nobody else has the store.
const LINGER_TRIES: u32 = 40;
const LINGER_WAIT: Duration = Duration::from_millis(50);

/// A key, and its value or none to remove it.
pub type Change = (Vec<u8>, Option<Vec<u8>>);
/// Sees one key and its value; an error ends the scan.
pub type Visit<'a> = dyn FnMut(&[u8], &[u8]) -> Result<(), Error> + 'a;

/// What the records of a member are kept on.
pub trait Disk: Send + 'static {
    /// The file to name when something is wrong with its content.
    fn file(&self) -> &Path;
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Error>;
    /// Visits at most `limit` keys from `from` until before `to`, in order.
    fn scan(&self, from: &[u8], to: &[u8], limit: usize, visit: &mut Visit<'_>) -> Result<(), Error>;
    /// All of it or none survives a crash, and nothing of it unless all that was written before does too.
    fn write(&mut self, changes: Vec<Change>) -> Result<(), Error>;
    /// Everything written before survives a power cut. After an error nothing is known: end the process, do not retry.
    fn sync(&mut self) -> Result<(), Error>;
}

pub(super) struct Sled {
    db: sled::Db,
    /// sled's `flush` is sync_file_range, which reaches neither the disk's cache nor the file's length: this does. Held
    /// open, as an error of writing back is told once to each file that was open when it happened.
    file: File,
    path: PathBuf,
    dir: PathBuf,
    /// Locked as long as this lives. Declared last: freed after sled closed.
    _lock: File,
}

impl Sled {
    pub(super) fn open(dir: &Path) -> Result<Self, Error> {
        let fresh = !dir.exists();
        fs::create_dir_all(dir).map_err(|source| io("cannot make directory", dir, source))?;
        let lock = lock(dir)?;
        let db_dir = dir.join("raft");
        let path = db_dir.join("db");
        let mut db = open_db(&db_dir, &path);
        for _ in 0..LINGER_TRIES {
            if !matches!(db, Err(Error::InUse { .. })) {
                break;
            }
            std::thread::sleep(LINGER_WAIT);
            db = open_db(&db_dir, &path);
        }
        let db = db?;
        let file = File::open(&path).map_err(|source| io("cannot open", &path, source))?;
        let mut disk = Self { db, file, path, dir: dir.to_path_buf(), _lock: lock };
        disk.sync()?;
        // What sled made must be found again after a power cut: the names in each directory above its files.
        sync_dir(&db_dir)?;
        sync_dir(dir)?;
        if fresh && let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            sync_dir(parent)?;
        }
        Ok(disk)
    }

    fn broken(&self, doing: &'static str, error: sled::Error) -> Error {
        classify(doing, &self.dir, &self.path, error)
    }
}

impl Disk for Sled {
    fn file(&self) -> &Path {
        &self.path
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        let found = self.db.get(key).map_err(|error| self.broken("cannot read", error))?;
        Ok(found.map(|value| value.to_vec()))
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize, visit: &mut Visit<'_>) -> Result<(), Error> {
        for item in self.db.range(from..to).take(limit) {
            let (key, value) = item.map_err(|error| self.broken("cannot read", error))?;
            visit(&key, &value)?;
        }
        Ok(())
    }

    fn write(&mut self, changes: Vec<Change>) -> Result<(), Error> {
        let mut batch = sled::Batch::default();
        for (key, value) in changes {
            match value {
                Some(value) => {
                    assert!(value.len() <= VALUE_BYTES_MAX, "larger values are not durable");
                    batch.insert(key, value);
                }
                None => batch.remove(key),
            }
        }
        self.db.apply_batch(batch).map_err(|error| self.broken("cannot write", error))
    }

    fn sync(&mut self) -> Result<(), Error> {
        self.db.flush().map_err(|error| self.broken("cannot flush", error))?;
        self.file.sync_all().map_err(|source| io("cannot sync", &self.path, source))
    }
}

fn lock(dir: &Path) -> Result<File, Error> {
    let path = dir.join("lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|source| io("cannot open", &path, source))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::InUse { dir: dir.to_path_buf() }),
        Err(TryLockError::Error(source)) => Err(io("cannot lock", &path, source)),
    }
}

/// sled panics on some kinds of damage, and reports others.
fn open_db(dir: &Path, file: &Path) -> Result<sled::Db, Error> {
    let config = sled::Config::new()
        .path(dir)
        .segment_size(SEGMENT_BYTES)
        .cache_capacity(CACHE_BYTES)
        .flush_every_ms(Some(CLEAN_EVERY_MS));
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| config.open())) {
        Ok(opened) => opened.map_err(|error| classify("cannot open", dir, file, error)),
        Err(_) => Err(Error::Damaged {
            file: file.to_path_buf(),
            record: "the store as a whole".to_owned(),
            detail: "sled can not make sense of it".to_owned(),
        }),
    }
}

fn classify(doing: &'static str, dir: &Path, file: &Path, error: sled::Error) -> Error {
    match error {
        sled::Error::Io(source) if source.to_string().contains("could not acquire lock") => {
            Error::InUse { dir: dir.to_path_buf() }
        }
        sled::Error::Io(source) => io(doing, file, source),
        other => Error::Damaged {
            file: file.to_path_buf(),
            record: "the store as a whole".to_owned(),
            detail: other.to_string(),
        },
    }
}

fn sync_dir(dir: &Path) -> Result<(), Error> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|source| io("cannot sync directory", dir, source))
}

fn io(doing: &'static str, path: &Path, source: std::io::Error) -> Error {
    Error::Io { doing, path: path.to_path_buf(), source }
}
