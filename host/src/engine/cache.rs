//! Compiled code on disk: one file per component and engine setup, with a checksum that only this host can make, so
//! that what is loaded is what this host compiled. A damaged, foreign or half-written file counts as absent.
//!
//! It must never give the engine bytes whose checksum did not fit: compiled code is not checked again.

use proto::app::Digest;
use sha2::{Digest as _, Sha256};
use std::fs::{self, File, OpenOptions};
use std::hash::{Hash, Hasher};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;
use wasmtime::Engine;
use wasmtime::component::Component;

/// Compiled code kept on disk; over it, what was loaded longest ago goes.
const CACHE_BYTES_MAX: u64 = 4 * 1024 * 1024 * 1024;
/// The folder is gone through each time so much was added to it: not at each of thousands of files.
const LOOK_BYTES: u64 = CACHE_BYTES_MAX / 64;
const KEY_BYTES: usize = 32;
/// Block size of SHA-256, for HMAC (RFC 2104).
const BLOCK_BYTES: usize = 64;

pub(super) struct Cache {
    dir: PathBuf,
    key: [u8; KEY_BYTES],
    /// Names the setup: code made for another one is another file.
    setup: String,
    /// Makes names of temporary files distinct within this process.
    counter: AtomicU64,
    /// Bytes added since the folder was gone through.
    added: AtomicU64,
}

impl Cache {
    pub(super) fn open(dir: &Path, engine: &Engine) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        if fs::metadata(dir)?.permissions().mode() & 0o022 != 0 {
            return Err(io::Error::other("other users can write to it: chmod go-w"));
        }
        let key = read_or_make_key(dir)?;
        let cache = Self {
            dir: dir.to_owned(),
            key,
            setup: setup(engine),
            counter: AtomicU64::new(0),
            added: AtomicU64::new(LOOK_BYTES),
        };
        cache.remove_leftovers()?;
        Ok(cache)
    }

    pub(super) fn setup(&self) -> &str {
        &self.setup
    }

    /// The compiled component, or `None` if there is none that this host made for this engine.
    pub(super) fn load(&self, engine: &Engine, digest: &Digest) -> Option<Component> {
        let path = self.path(digest);
        let sum = fs::read(path.with_extension("mac")).ok()?;
        let mut file = File::open(&path).ok()?;
        if self.sum(digest, &mut file).ok()?.as_slice() != sum.as_slice() {
            tracing::warn!(%digest, path = %path.display(), "compiled code is damaged; compiling again");
            return None;
        }
        // When it was last wanted; `shrink` goes by it. Failing to note it does no harm.
        let _ = file.set_modified(SystemTime::now());
        match map(engine, &path) {
            Ok(component) => Some(component),
            Err(error) => {
                tracing::warn!(%digest, %error, "compiled code was refused; compiling again");
                None
            }
        }
    }

    /// Keeps compiled code for later starts. The checksum comes last: without it the code counts as absent.
    pub(super) fn store(&self, digest: &Digest, code: &[u8]) -> io::Result<()> {
        let path = self.path(digest);
        let sum = self.sum(digest, &mut io::Cursor::new(code))?;
        let _ = fs::remove_file(path.with_extension("mac"));
        self.write(&path, code)?;
        self.write(&path.with_extension("mac"), &sum)?;
        let len = u64::try_from(code.len()).unwrap_or(u64::MAX);
        if self.added.fetch_add(len, Ordering::Relaxed).saturating_add(len) < LOOK_BYTES {
            return Ok(());
        }
        self.added.store(0, Ordering::Relaxed);
        // The engine for 0.3 adds to the same folder by a count of its own.
        self.shrink(CACHE_BYTES_MAX - 2 * LOOK_BYTES)
    }

    /// Removes the compiled code of a component, if there is any.
    pub(super) fn forget(&self, digest: &Digest) {
        let path = self.path(digest);
        let _ = fs::remove_file(path.with_extension("mac"));
        let _ = fs::remove_file(path);
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(format!("{}-{}.cwasm", digest.hex(), self.setup))
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let n = self.counter.fetch_add(1, Ordering::Relaxed);
        let tmp = self.dir.join(format!("{}-{n}.tmp", std::process::id()));
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&tmp)?;
        let written = file.write_all(bytes).and_then(|()| file.sync_data()).and_then(|()| fs::rename(&tmp, path));
        if written.is_err() {
            let _ = fs::remove_file(&tmp);
        }
        written
    }

    /// HMAC-SHA256 (RFC 2104) over whose code it is, and the code.
    fn sum(&self, digest: &Digest, code: &mut impl Read) -> io::Result<[u8; 32]> {
        let pad = |with: u8| {
            let mut block = [with; BLOCK_BYTES];
            block.iter_mut().zip(self.key).for_each(|(b, k)| *b ^= k);
            block
        };
        let mut inner = Sha256::new_with_prefix(pad(0x36));
        inner.update(digest.as_str());
        inner.update(&self.setup);
        let mut buffer = vec![0; 128 * 1024];
        loop {
            match code.read(&mut buffer)? {
                0 => break,
                n => inner.update(&buffer[..n]),
            }
        }
        let mut outer = Sha256::new_with_prefix(pad(0x5c));
        outer.update(inner.finalize());
        Ok(outer.finalize().into())
    }

    /// Temporary files of processes that ended while writing.
    fn remove_leftovers(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == "tmp") {
                let _ = fs::remove_file(path);
            }
        }
        Ok(())
    }

    /// Removes what was wanted longest ago until the rest is at most `bytes_max`.
    fn shrink(&self, bytes_max: u64) -> io::Result<()> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let path = entry.path();
            if path.extension().is_some_and(|e| e == "cwasm")
                && let Ok(meta) = entry.metadata()
            {
                files.push((meta.modified().unwrap_or(SystemTime::UNIX_EPOCH), meta.len(), path));
            }
        }
        files.sort();
        let mut bytes = files.iter().map(|(_, len, _)| len).sum::<u64>();
        for (_, len, path) in files {
            if bytes <= bytes_max {
                break;
            }
            let _ = fs::remove_file(path.with_extension("mac"));
            let _ = fs::remove_file(path);
            bytes -= len;
        }
        Ok(())
    }
}

/// Maps code that this process has just verified.
#[allow(unsafe_code, reason = "the one exception: our own compiled code, its checksum verified with this host's key")]
fn map(engine: &Engine, path: &Path) -> wasmtime::Result<Component> {
    // SAFETY: the file was made by `Component::serialize` in a process of this host: its keyed checksum was verified
    // by the only caller. It is in a folder of mode 0700, and files in it are replaced whole, never changed in place.
    unsafe { Component::deserialize_file(engine, path) }
}

/// The host's own key: made once, readable by nobody else. Two processes that start at once agree on one.
fn read_or_make_key(dir: &Path) -> io::Result<[u8; KEY_BYTES]> {
    let path = dir.join("key");
    if let Ok(bytes) = fs::read(&path)
        && let Ok(key) = bytes.try_into()
    {
        return Ok(key);
    }
    let mut key = [0; KEY_BYTES];
    getrandom::fill(&mut key).map_err(io::Error::other)?;
    let tmp = dir.join(format!("key-{}.tmp", std::process::id()));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&tmp)?;
    file.write_all(&key)?;
    file.sync_data()?;
    // A key of the wrong length is worth nothing; one that another process made meanwhile is as good as ours.
    if fs::metadata(&path).is_ok_and(|m| m.len() != KEY_BYTES as u64) {
        fs::remove_file(&path)?;
    }
    let linked = fs::hard_link(&tmp, &path);
    let _ = fs::remove_file(&tmp);
    match linked {
        Ok(()) => Ok(key),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            fs::read(&path)?.try_into().map_err(|_| io::Error::other("the key of the compiled-code cache is damaged"))
        }
        Err(e) => Err(e),
    }
}

/// Names how an engine is set up: code made by one is for all of the same name.
pub(super) fn setup(engine: &Engine) -> String {
    let mut hasher = Fingerprint(Sha256::new());
    engine.precompile_compatibility_hash().hash(&mut hasher);
    hex(&hasher.0.finalize()[..8])
}

/// A `Hasher` whose result does not change between builds of this program.
struct Fingerprint(Sha256);

impl Hasher for Fingerprint {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }
    fn finish(&self) -> u64 {
        let sum: [u8; 32] = self.0.clone().finalize().into();
        u64::from_le_bytes([sum[0], sum[1], sum[2], sum[3], sum[4], sum[5], sum[6], sum[7]])
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut s, b| {
        use std::fmt::Write as _;
        let _ = write!(s, "{b:02x}");
        s
    })
}
