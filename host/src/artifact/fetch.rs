//! Artifacts over the bus: from whoever holds them, piece by piece, verified by their digest.

use super::{Error as StoreError, Store};
use bus::{Bus, Headers};
use prost::Message;
use proto::app::{ARTIFACT_BYTES_MAX, Digest};
use proto::v1 as pb;
use std::time::{Duration, Instant};

/// Time for one piece.
const PIECE_DEADLINE: Duration = Duration::from_secs(10);
/// Holders that a piece is asked of, one after the other, when one gives none.
const TRIES: usize = 3;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("artifact {digest}: {source}; it is asked for again")]
    Bus { digest: Digest, source: bus::Error },
    #[error("artifact {digest}: nobody on the bus has it; apply the app again to upload it")]
    Nobody { digest: Digest },
    #[error("artifact {digest}: its holder sent {what}; it is asked for again")]
    Wrong { digest: Digest, what: String },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Makes sure that `digest` is in the store. `told` learns after each piece how many bytes are here, and of how many.
pub async fn fetch(bus: &Bus, store: &Store, digest: &Digest, told: impl Fn(u64, u64)) -> Result<(), Error> {
    if store.has(digest) {
        return Ok(());
    }
    let began = Instant::now();
    let mut writer = store.writer(digest)?;
    let mut offset = 0;
    loop {
        let chunk = any_piece(bus, digest, offset).await?;
        let wrong = |what: String| Error::Wrong { digest: digest.clone(), what };
        if chunk.size > ARTIFACT_BYTES_MAX {
            return Err(wrong(format!("a size of {} bytes, over the bound", chunk.size)));
        }
        if chunk.data.is_empty() && offset < chunk.size {
            return Err(wrong(format!("nothing at byte {offset} of {}", chunk.size)));
        }
        writer.write(&chunk.data)?;
        offset += chunk.data.len() as u64;
        told(offset, chunk.size);
        if offset >= chunk.size {
            break;
        }
    }
    writer.finish()?;
    let ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    tracing::info!(%digest, bytes = offset, ms, "artifact fetched");
    Ok(())
}

/// From whichever holder is asked; another is when that one has it no more, or does not answer.
async fn any_piece(bus: &Bus, digest: &Digest, offset: u64) -> Result<pb::BlobChunk, Error> {
    let mut tries = 1;
    loop {
        match piece(bus, digest, offset).await {
            Err(Error::Bus { source: bus::Error::Refused { .. } | bus::Error::Deadline { .. }, .. })
                if tries < TRIES =>
            {
                tries += 1;
            }
            other => return other,
        }
    }
}

async fn piece(bus: &Bus, digest: &Digest, offset: u64) -> Result<pb::BlobChunk, Error> {
    let request = pb::BlobRequest { digest: digest.to_string(), offset };
    let call = bus.call(bus.subjects().blob(digest), Headers::new(), bus::encode(&request), PIECE_DEADLINE).await;
    let reply = call.map_err(|source| match source {
        bus::Error::NoResponders { .. } => Error::Nobody { digest: digest.clone() },
        source => Error::Bus { digest: digest.clone(), source },
    })?;
    pb::BlobChunk::decode(&reply.payload[..])
        .map_err(|e| Error::Wrong { digest: digest.clone(), what: format!("something else: {e}") })
}
