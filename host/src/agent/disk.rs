//! What a host remembers: who it is, and its last assignment. Durable before it is confirmed.

use prost::Message;
use proto::app::{Digest, HostId};
use proto::v1 as pb;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
#[error("{}: {source}; make the folder writable or give another --data", path.display())]
pub struct Error {
    path: PathBuf,
    source: io::Error,
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> Error + '_ {
    move |source| Error { path: path.to_owned(), source }
}

/// The host's folder, held by one process at a time.
pub(super) struct Disk {
    dir: PathBuf,
    /// Locked while this lives.
    _lock: File,
}

impl Disk {
    pub(super) fn open(dir: &Path) -> Result<Self, Error> {
        fs::create_dir_all(dir).map_err(at(dir))?;
        let path = dir.join("lock");
        let lock = File::create(&path).map_err(at(&path))?;
        lock.try_lock().map_err(|_| Error {
            path: dir.to_owned(),
            source: io::Error::new(io::ErrorKind::AddrInUse, "another lattice process uses it; end that one"),
        })?;
        Ok(Self { dir: dir.to_owned(), _lock: lock })
    }

    /// This host's identity, made at its first start.
    pub(super) fn identity(&self) -> Result<HostId, Error> {
        let path = self.dir.join("host-id");
        match fs::read_to_string(&path) {
            Ok(text) => {
                let wrong =
                    || io::Error::new(io::ErrorKind::InvalidData, "holds no host id; remove it to join as a new host");
                text.trim().parse().map_err(|_| at(&path)(wrong()))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let id = ulid::Ulid::generate().to_string();
                self.replace("host-id", id.as_bytes())?;
                Ok(id.parse().expect("a ULID is a host id"))
            }
            Err(e) => Err(at(&path)(e)),
        }
    }

    /// A new boot id: behind the last one of this host in order, whatever the clock says.
    pub(super) fn boot(&self) -> Result<String, Error> {
        let path = self.dir.join("boot");
        let last = match fs::read_to_string(&path) {
            // A damaged one counts as none.
            Ok(text) => text.trim().parse::<ulid::Ulid>().ok(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(at(&path)(e)),
        };
        let boot = boot_after(last, ulid::Ulid::generate());
        self.replace("boot", boot.to_string().as_bytes())?;
        Ok(boot.to_string())
    }

    /// The last assignment that was stored. A damaged one counts as none: the scheduler sends it again.
    pub(super) fn assignment(&self) -> Option<pb::Assignment> {
        let path = self.dir.join("assignment");
        let bytes = fs::read(&path).ok()?;
        let (sum, body) = bytes.split_at_checked(64)?;
        let found = (Digest::of(body).hex().as_bytes() == sum).then(|| pb::Assignment::decode(body).ok()).flatten();
        if found.is_none() {
            tracing::warn!(path = %path.display(), "stored assignment is damaged; waiting for the scheduler's");
        }
        found
    }

    /// Stores an assignment; it survives a power cut when this returns.
    pub(super) fn store(&self, assignment: &pb::Assignment) -> Result<(), Error> {
        let body = assignment.encode_to_vec();
        let mut bytes = Digest::of(&body).hex().as_bytes().to_vec();
        bytes.extend_from_slice(&body);
        self.replace("assignment", &bytes)
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let (path, temporary) = (self.dir.join(name), self.dir.join(format!("{name}.new")));
        let write = || -> io::Result<()> {
            let mut file = File::create(&temporary)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&temporary, &path)?;
            File::open(&self.dir)?.sync_all()
        };
        write().map_err(at(&path))
    }
}

/// `fresh` if the clock went on since `last`, else the id behind `last`.
fn boot_after(last: Option<ulid::Ulid>, fresh: ulid::Ulid) -> ulid::Ulid {
    match last {
        Some(last) if fresh <= last => last.increment().unwrap_or(last),
        _ => fresh,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_is_behind_the_last_one_even_when_the_clock_went_back() {
        let id = |ms, random| ulid::Ulid::from_parts(ms, random);
        assert_eq!(boot_after(None, id(5, 1)), id(5, 1));
        assert_eq!(boot_after(Some(id(5, 9)), id(6, 1)), id(6, 1));
        assert_eq!(boot_after(Some(id(5, 9)), id(4, 1)), id(5, 10));
        assert_eq!(boot_after(Some(id(5, 9)), id(5, 9)), id(5, 10));
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::open(dir.path()).unwrap();
        let future = id(ulid::Ulid::generate().timestamp_ms() + 1_000_000, 7).to_string();
        fs::write(dir.path().join("boot"), &future).unwrap();
        let (first, second) = (disk.boot().unwrap(), disk.boot().unwrap());
        assert!(future < first && first < second, "{future} {first} {second}");
        fs::write(dir.path().join("boot"), "garbage").unwrap();
        assert!(disk.boot().unwrap() < future);
    }

    #[test]
    fn identity_and_assignment_survive_and_damage_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let assignment = pb::Assignment { lattice: "l".into(), term: 3, generation: 9, ..Default::default() };
        let id = {
            let disk = Disk::open(dir.path()).unwrap();
            assert!(disk.assignment().is_none());
            disk.store(&assignment).unwrap();
            assert!(Disk::open(dir.path()).is_err(), "one process at a time");
            disk.identity().unwrap()
        };
        let disk = Disk::open(dir.path()).unwrap();
        assert_eq!(disk.identity().unwrap(), id);
        assert_eq!(disk.assignment(), Some(assignment));
        let path = dir.path().join("assignment");
        let mut bytes = fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&path, bytes).unwrap();
        assert!(disk.assignment().is_none());
    }
}
