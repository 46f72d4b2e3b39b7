//! Who this scheduler is among the others, on its disk: id, key, certificate, authority. Readable by its user alone.

use super::{Error, authority};
use prost::Message;
use proto::v1 as pb;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

const FILE: &str = "identity";
/// For people and their tools: the authority's certificate alone.
const AUTHORITY_FILE: &str = "authority.pem";

/// An identity and where it is kept.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    dir: PathBuf,
    pub(super) identity: pb::PeerIdentity,
}

impl Kept {
    /// `None`: this scheduler never had to do with others.
    pub(super) fn load(dir: &Path) -> Result<Option<Self>, Error> {
        let path = dir.join(FILE);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(Error::Identity { path, detail: source.to_string() }),
        };
        match pb::PeerIdentity::decode(bytes.as_slice()) {
            Ok(identity) => Ok(Some(Self { dir: dir.to_path_buf(), identity })),
            Err(error) => Err(Error::Identity { path, detail: error.to_string() }),
        }
    }

    /// That of a scheduler which was here first: with an authority of its own.
    pub(super) fn found(dir: &Path, id: u64, own: Option<authority::Authority>) -> Result<Self, Error> {
        let (authority, authority_key) = match own {
            Some(own) => (own.certificate, own.key),
            None => authority::make()?,
        };
        let mut kept = Self::ask(dir)?;
        let public_key = authority::public_key(&kept.identity.key)?;
        kept.identity.id = id;
        let until = authority::Until::after(super::LEAF_LIFE);
        kept.identity.certificate = authority::sign(&authority_key, id, &public_key, until)?;
        kept.identity.authority = authority;
        kept.identity.authority_key = authority_key;
        kept.save()?;
        Ok(kept)
    }

    /// That of a scheduler which asks to be taken in. Kept, so that it asks as the same one when it asks again.
    pub(super) fn ask(dir: &Path) -> Result<Self, Error> {
        let log_id = ulid::Ulid::generate().to_string();
        let identity = pb::PeerIdentity { log_id, key: authority::key()?, ..pb::PeerIdentity::default() };
        Ok(Self { dir: dir.to_path_buf(), identity })
    }

    /// Durable when this returns, and never half written.
    pub(super) fn save(&self) -> Result<(), Error> {
        let path = self.dir.join(FILE);
        self.write(FILE, &self.identity.encode_to_vec())
            .and_then(|()| self.write(AUTHORITY_FILE, self.identity.authority.as_bytes()))
            .map_err(|source| Error::Identity { path, detail: source.to_string() })
    }

    fn write(&self, name: &str, bytes: &[u8]) -> std::io::Result<()> {
        write_private(&self.dir, name, bytes)
    }
}

/// Writes a file that only its user reads: durable when this returns, and never half written.
pub(crate) fn write_private(dir: &Path, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    fs::create_dir_all(dir)?;
    let new = dir.join(format!("{name}.new"));
    // Made anew, so that it has this mode whatever was there.
    match fs::remove_file(&new) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&new, dir.join(name))?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn an_identity_is_kept_for_its_user_alone() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Kept::load(dir.path()).unwrap().is_none());
        let kept = Kept::found(dir.path(), 4, None).unwrap();
        let again = Kept::load(dir.path()).unwrap().unwrap();
        assert_eq!(again.identity, kept.identity);
        assert_eq!((again.identity.id, again.identity.begun), (4, false));
        let mode = fs::metadata(dir.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        fs::write(dir.path().join(FILE), b"\xff\xff").unwrap();
        let error = Kept::load(dir.path()).unwrap_err().to_string();
        assert!(error.contains("identity") && error.contains("--join"), "{error}");
    }
}
