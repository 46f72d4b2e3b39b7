//! Who may ask what. Beyond loopback each request carries a token: one that the log knows, or the one that this scheduler
//! keeps in its own data folder for whoever may read that. Must never answer more to who has none than that, nor keep a
//! token of the log but as its hash.

use super::{Error, Service};
use crate::events::unix_ms;
use crate::peer::{hash, write_private};
use crate::state::Role;
use proto::v1 as pb;
use proto::v1::command::What;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use tonic::metadata::MetadataMap;
use tonic::{Request, Status};

/// Beneath the scheduler's data folder: the token of who may read it.
pub const OWN_TOKEN: &str = "api/admin-token";
/// How a token begins.
const KIND: &str = "la1-";
const SECRET_BYTES: usize = 20;

/// What is demanded of who asks.
#[derive(Clone)]
pub enum Gate {
    /// Only this machine reaches the API: nothing.
    Open,
    /// A token. This one, which is kept in a file, may do all.
    Token { own_hash: Arc<str>, file: Arc<Path> },
}

impl Gate {
    /// Finds the scheduler's own token, or makes it.
    pub(crate) fn open(demanded: bool, data: &Path) -> Result<Self, Error> {
        if !demanded {
            return Ok(Self::Open);
        }
        let file = data.join(OWN_TOKEN);
        let failed = |source| Error::Token { path: file.clone(), source };
        let token = match fs::read_to_string(&file) {
            Ok(text) if text.trim().len() > KIND.len() + SECRET_BYTES => text.trim().to_owned(),
            // One that was cut short is none.
            Ok(_) => make(&file).map_err(failed)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => make(&file).map_err(failed)?,
            Err(error) => return Err(failed(error)),
        };
        Ok(Self::Token { own_hash: hash(token.as_bytes()).into(), file: file.into() })
    }
}

fn make(file: &Path) -> std::io::Result<String> {
    let mut secret = [0; SECRET_BYTES];
    getrandom::fill(&mut secret).map_err(|error| std::io::Error::other(error.to_string()))?;
    let token = format!("{KIND}{}", crate::peer::hex(&secret));
    let folder = file.parent().unwrap_or(Path::new("."));
    let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    write_private(folder, name, format!("{token}\n").as_bytes())?;
    Ok(token)
}

impl Service {
    /// The request of who may look.
    pub(super) fn viewer<T>(&self, request: Request<T>) -> Result<T, Status> {
        self.expect(Role::Viewer, request.metadata())?;
        Ok(request.into_inner())
    }

    /// The request of who may do all.
    pub(super) fn admin<T>(&self, request: Request<T>) -> Result<T, Status> {
        self.expect(Role::Admin, request.metadata())?;
        Ok(request.into_inner())
    }

    fn expect(&self, needed: Role, metadata: &MetadataMap) -> Result<(), Status> {
        let Gate::Token { own_hash, file } = &self.gate else { return Ok(()) };
        let shown = metadata.get("authorization").and_then(|value| value.to_str().ok());
        let Some(token) = shown.and_then(|value| value.strip_prefix("Bearer ")) else {
            return Err(Status::unauthenticated(format!(
                "this API wants a token: put one into the context, LATTICE_TOKEN or --token-file; `lattice access add NAME` \
                 makes one where there is one, and {} on the scheduler's machine has its own",
                file.display()
            )));
        };
        // Hashes are compared: how long that takes tells nothing of a token.
        let hash = hash(token.trim().as_bytes());
        if *hash == **own_hash {
            return Ok(());
        }
        let state = self.shared.replica.read();
        match state.access_of(&hash) {
            Some((_, role)) if role >= needed => Ok(()),
            Some((name, role)) => Err(Status::permission_denied(format!(
                "token {name} has the role {}, this needs {}; ask with another, or make one: `lattice access add NAME --role \
                 {}`",
                role.name(),
                needed.name(),
                needed.name()
            ))),
            None => Err(Status::unauthenticated(
                "the token is not known here, or was removed; make one with `lattice access add NAME`",
            )),
        }
    }

    pub(super) async fn add_access_of(&self, request: pb::AddAccessRequest) -> Result<pb::ChangeResponse, Status> {
        let pb::AddAccessRequest { name, role, hash, request_id } = request;
        let Some(role) = Role::named(&role) else {
            return Err(Status::invalid_argument(format!("{role:?} is no role; a token is of an admin or a viewer")));
        };
        let set = pb::SetAccess { name, hash, role: role.number() };
        self.change(request_id, What::SetAccess(set)).await.map(tonic::Response::into_inner)
    }

    pub(super) fn access_list(&self) -> pb::AccessList {
        let state = self.shared.replica.read();
        let items = state.access.iter().map(|(name, access)| pb::AccessStatus {
            name: name.to_string(),
            role: access.role.name().to_owned(),
            made_ms: access.made_ms.min(unix_ms()),
        });
        pb::AccessList { items: items.collect() }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "test helpers")]

    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_own_token_is_made_once_and_for_its_user_alone() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(Gate::open(false, dir.path()).unwrap(), Gate::Open));
        assert!(!dir.path().join(OWN_TOKEN).exists());
        let hash_of = |gate| match gate {
            Gate::Token { own_hash, .. } => own_hash,
            Gate::Open => panic!("a token is demanded"),
        };
        let first = hash_of(Gate::open(true, dir.path()).unwrap());
        assert_eq!(hash_of(Gate::open(true, dir.path()).unwrap()), first);
        let file = dir.path().join(OWN_TOKEN);
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let token = fs::read_to_string(&file).unwrap();
        assert_eq!(*hash(token.trim().as_bytes()), *first);
        fs::write(&file, "\n").unwrap();
        assert_ne!(hash_of(Gate::open(true, dir.path()).unwrap()), first);
    }
}
