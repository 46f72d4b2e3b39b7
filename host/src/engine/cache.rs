//! Compiled code on disk: one file per component and engine setup, with a checksum that only this host can make, so
//! that what is loaded is what this host compiled. A damaged, foreign or half-written file counts as absent.
//!
//! It must never give the engine bytes whose checksum did not fit: compiled code is not checked again.

use proto::app::Digest;
use sha2::{Digest as _, Sha256};
use std::fs::{self, File, OpenOptions};
use std::hash::{Hash, Hasher};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;
use wasmtime::Engine;
use wasmtime::component::Component;

/// Compiled code kept on disk, and the share of what the disk has free for it; over either, what was loaded longest ago
/// goes.
const CACHE_BYTES_MAX: u64 = 4 * 1024 * 1024 * 1024;
const DISK_SHARE: u64 = 4;
/// The folder is gone through each time so much was added to it: not at each of thousands of files.
const LOOK_BYTES: u64 = CACHE_BYTES_MAX / 64;
const KEY_BYTES: usize = 32;
/// Block size of SHA-256, for HMAC (RFC 2104).
const BLOCK_BYTES: usize = 64;

/// Makes names of temporary files distinct within this process, in which several caches may have one folder.
static WRITTEN: AtomicU64 = AtomicU64::new(0);

pub(super) struct Cache {
    dir: PathBuf,
    key: [u8; KEY_BYTES],
    /// Names the setup: code made for another one is another file.
    setup: String,
    /// Bytes added since the folder was gone through, which it is after so many.
    added: AtomicU64,
    look_bytes: u64,
    bytes_max: u64,
}

impl Cache {
    pub(super) fn open(dir: &Path, engine: &Engine) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        check_owner(dir)?;
        let key = read_or_make_key(dir)?;
        let cache = Self {
            dir: dir.to_owned(),
            key,
            setup: setup(engine),
            added: AtomicU64::new(LOOK_BYTES),
            look_bytes: LOOK_BYTES,
            // The engines of the other kind add to the same folder by a count of their own.
            bytes_max: CACHE_BYTES_MAX - 2 * LOOK_BYTES,
        };
        cache.remove_leftovers()?;
        Ok(cache)
    }

    /// The same folder, for an engine of another setup.
    pub(super) fn of_other(&self, engine: &Engine) -> Self {
        let (dir, added) = (self.dir.clone(), AtomicU64::new(LOOK_BYTES));
        Self { dir, setup: setup(engine), added, ..*self }
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
        if self.added.fetch_add(len, Ordering::Relaxed).saturating_add(len) < self.look_bytes {
            return Ok(());
        }
        self.added.store(0, Ordering::Relaxed);
        self.shrink(self.bytes_max, free_bytes(&self.dir))
    }

    /// Whether there is code of this component for this setup.
    pub(super) fn has(&self, digest: &Digest) -> bool {
        self.path(digest).exists()
    }

    /// Whether there is code of this component for another setup.
    pub(super) fn has_other(&self, digest: &Digest) -> bool {
        let own = self.path(digest);
        self.of(digest).is_ok_and(|all| all.iter().any(|path| path.extension() == own.extension() && *path != own))
    }

    /// Removes what there is of a component that nobody names any more.
    pub(super) fn forget(&self, digest: &Digest) -> io::Result<()> {
        self.of(digest)?.iter().try_for_each(fs::remove_file)
    }

    /// The files of one component, for whichever setup.
    fn of(&self, digest: &Digest) -> io::Result<Vec<PathBuf>> {
        let start = format!("{}-", digest.hex());
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            if entry.file_name().to_str().is_some_and(|name| name.starts_with(&start)) {
                found.push(entry.path());
            }
        }
        Ok(found)
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(format!("{}-{}.cwasm", digest.hex(), self.setup))
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let n = WRITTEN.fetch_add(1, Ordering::Relaxed);
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

    /// Temporary files of processes that ended while writing. Once, before anything is written.
    fn remove_leftovers(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == "tmp") {
                let _ = fs::remove_file(path);
            }
        }
        Ok(())
    }

    /// Removes what was wanted longest ago until the rest is at most `bytes_max`, and no more than its share of what
    /// the disk would have free without it.
    fn shrink(&self, bytes_max: u64, disk_free: Option<u64>) -> io::Result<()> {
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
        let bytes_max = disk_free.map_or(bytes_max, |free| bytes_max.min(free.saturating_add(bytes) / DISK_SHARE));
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
#[allow(unsafe_code, reason = "our own compiled code, its checksum verified with this host's key")]
fn map(engine: &Engine, path: &Path) -> wasmtime::Result<Component> {
    // SAFETY: the file was made by `Component::serialize` in a process of this host: its keyed checksum was verified
    // by the only caller. It is in a folder of mode 0700, and files in it are replaced whole, never changed in place.
    unsafe { Component::deserialize_file(engine, path) }
}

/// Loads code from memory, for when it could not be kept.
#[allow(unsafe_code, reason = "the same exception: code that our own child has just made, and nobody else has touched")]
pub(super) fn of_child(engine: &Engine, code: &[u8]) -> wasmtime::Result<Component> {
    // SAFETY: the only caller has these bytes from the child process that it started itself, of this very program, with an
    // engine of the same setup: they are what `precompile_component` gave, and came by a pipe that no other process has.
    unsafe { Component::deserialize(engine, code) }
}

/// What is loaded from the folder runs as this process: nobody else may have a say in it.
fn check_owner(dir: &Path) -> io::Result<()> {
    let meta = fs::metadata(dir)?;
    if meta.uid() != rustix::process::geteuid().as_raw() {
        return Err(io::Error::other("it is another user's folder: name one of this user's"));
    }
    match meta.permissions().mode() {
        // What they may have put there nobody knows.
        mode if mode & 0o022 != 0 => Err(io::Error::other("other users can write to it: chmod go-w")),
        mode if mode & 0o077 != 0 => fs::set_permissions(dir, fs::Permissions::from_mode(0o700)),
        _ => Ok(()),
    }
}

/// What this process may still write where the folder is.
fn free_bytes(dir: &Path) -> Option<u64> {
    let disk = rustix::fs::statvfs(dir).ok()?;
    Some(disk.f_bavail.saturating_mul(disk.f_frsize))
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn cache(dir: &Path) -> Cache {
        Cache::open(dir, &Engine::default()).unwrap()
    }

    #[test]
    fn what_was_wanted_longest_ago_goes_first() {
        let dir = tempfile::tempdir().unwrap();
        let cache = cache(dir.path());
        let digests: Vec<_> = (0..4_u8).map(|n| Digest::of(&[n])).collect();
        for (at, digest) in digests.iter().enumerate() {
            cache.store(digest, &[0; 1_000]).unwrap();
            let file = File::options().write(true).open(cache.path(digest)).unwrap();
            let age = Duration::from_secs(100 - u64::try_from(at).unwrap());
            file.set_modified(SystemTime::now() - age).unwrap();
        }
        let left = || digests.iter().map(|digest| cache.path(digest).exists()).collect::<Vec<_>>();
        cache.shrink(4_000, None).unwrap();
        assert_eq!(left(), [true; 4]);
        cache.shrink(3_500, Some(u64::MAX)).unwrap();
        assert_eq!(left(), [false, true, true, true]);
        assert!(!cache.path(&digests[0]).with_extension("mac").exists());
        // A quarter of 5,000 free bytes and the 3,000 that it has.
        cache.shrink(4_000, Some(5_000)).unwrap();
        assert_eq!(left(), [false, false, true, true]);
        cache.forget(&digests[2]).unwrap();
        assert_eq!(left(), [false, false, false, true]);
        cache.shrink(0, None).unwrap();
        assert_eq!(left(), [false; 4]);
    }

    #[test]
    fn what_is_kept_stays_within_its_bound() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache { look_bytes: 2_000, bytes_max: 10_000, ..cache(dir.path()) };
        let digests: Vec<_> = (0..100_u8).map(|n| Digest::of(&[n])).collect();
        for digest in &digests {
            cache.store(digest, &[0; 500]).unwrap();
            let kept = digests.iter().filter(|digest| cache.has(digest)).count();
            assert!(kept * 500 <= 12_000, "{kept}");
        }
        let last = digests.last().unwrap();
        assert!(cache.has(last) && !cache.has(&digests[0]));
        let sums = fs::read_dir(dir.path())
            .unwrap()
            .filter(|entry| entry.as_ref().unwrap().path().extension().is_some_and(|extension| extension == "mac"));
        assert_eq!(sums.count(), digests.iter().filter(|digest| cache.has(digest)).count(), "checksums go along");
    }

    #[test]
    fn what_was_left_half_written_goes_at_the_start_and_only_then() {
        let dir = tempfile::tempdir().unwrap();
        // In a container each start has the same number.
        let left = dir.path().join(format!("{}-7.tmp", std::process::id()));
        fs::write(&left, b"half").unwrap();
        let cache = cache(dir.path());
        assert!(!left.exists());
        fs::write(&left, b"half").unwrap();
        let other = cache.of_other(&Engine::default());
        assert!(left.exists() && other.key == cache.key && other.dir == cache.dir);
    }

    #[test]
    fn a_folder_that_others_can_see_is_closed() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        cache(dir.path());
        assert_eq!(fs::metadata(dir.path()).unwrap().permissions().mode() & 0o777, 0o700);
        // Another's: who is root can make one, who is not finds one.
        let other = match rustix::process::geteuid().is_root() {
            true => {
                std::os::unix::fs::chown(dir.path(), Some(1), None).unwrap();
                dir.path()
            }
            false => Path::new("/"),
        };
        assert!(check_owner(other).unwrap_err().to_string().contains("another user's folder"));
    }
}
