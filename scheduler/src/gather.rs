//! Components that apps name and this scheduler lacks, fetched from whoever has them: after any one scheduler is lost,
//! the others still have the bytes. Must never keep what does not have the digest it was asked for by.

use crate::artifact::{self, Artifacts};
use bus::{Bus, Headers};
use prost::Message;
use proto::app::{ARTIFACT_BYTES_MAX, Digest};
use proto::v1 as pb;
use std::collections::BTreeSet;
use std::time::Duration;

/// Time for one piece.
const PIECE_DEADLINE: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("artifact {digest}: {source}; it is asked for again")]
    Bus { digest: Digest, source: bus::Error },
    #[error("artifact {digest}: its holder sent {what}; it is asked for again")]
    Wrong { digest: Digest, what: &'static str },
    #[error(transparent)]
    Store(#[from] artifact::Error),
}

/// Every component that some revision names.
pub(crate) fn named(state: &crate::state::State) -> BTreeSet<Digest> {
    let revisions = state.apps.values().flat_map(|app| app.revisions.values());
    revisions.flat_map(|revision| revision.spec.digests()).cloned().collect()
}

/// Makes sure that `digest` is in the store.
pub(crate) async fn fetch(bus: &Bus, artifacts: &Artifacts, digest: &Digest) -> Result<(), Error> {
    if artifacts.has(digest) {
        return Ok(());
    }
    let wrong = |what| Error::Wrong { digest: digest.clone(), what };
    let mut chunk = piece(bus, digest, 0).await?;
    if chunk.size > ARTIFACT_BYTES_MAX {
        return Err(wrong("a size over the bound"));
    }
    let size = chunk.size;
    let mut upload = artifacts.begin(digest.clone(), size)?;
    let mut offset = 0;
    loop {
        let checked = if chunk.size != size || (chunk.data.is_empty() && offset < size) {
            Err(wrong("pieces that do not fit together"))
        } else {
            upload.write(&chunk.data).map_err(Error::from)
        };
        if let Err(error) = checked {
            upload.abandon();
            return Err(error);
        }
        offset += chunk.data.len() as u64;
        if offset >= size {
            break;
        }
        chunk = match piece(bus, digest, offset).await {
            Ok(chunk) => chunk,
            Err(error) => {
                upload.abandon();
                return Err(error);
            }
        };
    }
    artifacts.finish(upload).await?;
    Ok(())
}

async fn piece(bus: &Bus, digest: &Digest, offset: u64) -> Result<pb::BlobChunk, Error> {
    let request = pb::BlobRequest { digest: digest.to_string(), offset };
    let call = bus.call(bus.subjects().blob(digest), Headers::new(), bus::encode(&request), PIECE_DEADLINE).await;
    let reply = call.map_err(|source| Error::Bus { digest: digest.clone(), source })?;
    pb::BlobChunk::decode(&reply.payload[..])
        .map_err(|_| Error::Wrong { digest: digest.clone(), what: "something else" })
}
