//! Gives pieces of what is in the store to whoever asks on the bus: hosts that lack a component get it from any that
//! has it, with or without a scheduler. The receiver verifies what it gets; the giver looks once, so that what has rotted
//! on its disk is not given for ever.

use super::Store;
use bus::{Bus, Refusal, Reply, Request, Serving};
use prost::Message;
use proto::app::Digest;
use proto::v1 as pb;
use std::collections::VecDeque;
use std::io::{self, Read, Seek, SeekFrom};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::OnceCell;

/// Artifacts offered at a time, each a subscription: the ones that came last.
const OFFERED_MAX: usize = 512;
/// Bytes of one piece.
const PIECE_BYTES_MAX: u64 = 512 * 1024;
/// Pieces given at once of each.
const PIECES_MAX: usize = 4;

/// The store of a host, and what of it is offered on the bus.
#[derive(Clone)]
pub struct Share {
    bus: Bus,
    store: Arc<Store>,
    /// The oldest first.
    offered: Arc<Mutex<VecDeque<(Digest, Serving)>>>,
}

impl Share {
    pub fn new(bus: Bus, store: Arc<Store>) -> Self {
        Self { bus, store, offered: Arc::default() }
    }

    /// Offers what is in the store already.
    pub async fn begin(&self) {
        for (digest, _) in self.store.list().into_iter().take(OFFERED_MAX) {
            self.offer(&digest).await;
        }
    }

    /// Offers it from now on, in place of the one that was offered longest if there are too many.
    pub async fn offer(&self, digest: &Digest) {
        if !self.store.has(digest) || self.offered().iter().any(|(offered, _)| offered == digest) {
            return;
        }
        let (store, looked) = (self.store.clone(), Arc::<OnceCell<()>>::default());
        let (wanted, offered) = (digest.clone(), Arc::downgrade(&self.offered));
        let give = move |request: Request| {
            let (store, digest, looked) = (store.clone(), wanted.clone(), looked.clone());
            let offered = offered.clone();
            async move {
                let given = give(store.clone(), digest.clone(), &looked, request).await;
                // What rotted was removed when it was looked at: others shall ask elsewhere.
                if let (false, Some(offered)) = (store.has(&digest), offered.upgrade()) {
                    offered.lock().unwrap_or_else(PoisonError::into_inner).retain(|(one, _)| *one != digest);
                }
                given
            }
        };
        // One queue with the schedulers: whoever is nearest gives.
        let serving = self.bus.serve(self.bus.subjects().blob(digest), Some("blob".into()), PIECES_MAX, give).await;
        match serving {
            Ok(serving) => {
                let mut offered = self.offered();
                offered.push_back((digest.clone(), serving));
                if offered.len() > OFFERED_MAX {
                    offered.pop_front();
                }
            }
            Err(error) => tracing::warn!(%digest, %error, "artifact not offered on the bus"),
        }
    }

    /// Removes it from the store, and offers it no more.
    pub fn remove(&self, digest: &Digest) -> Result<(), super::Error> {
        self.offered().retain(|(offered, _)| offered != digest);
        self.store.remove(digest)
    }

    fn offered(&self) -> MutexGuard<'_, VecDeque<(Digest, Serving)>> {
        self.offered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn give(store: Arc<Store>, digest: Digest, looked: &OnceCell<()>, request: Request) -> Result<Reply, Refusal> {
    let refuse = |code: &str, message: String| Refusal { code: code.to_owned(), message };
    let asked =
        pb::BlobRequest::decode(&request.payload[..]).map_err(|e| refuse("invalid", format!("blob request: {e}")))?;
    if asked.digest != digest.as_str() {
        return Err(refuse("invalid", format!("blob request for {:?} on the subject of {digest}", asked.digest)));
    }
    let gone = |what: String| refuse("unavailable", format!("artifact {digest}: {what}"));
    let blocking = |e: tokio::task::JoinError| gone(e.to_string());
    looked
        .get_or_try_init(|| async {
            let (store, digest) = (store.clone(), digest.clone());
            let read = tokio::task::spawn_blocking(move || store.read(&digest)).await.map_err(blocking)?;
            match read {
                Ok(Some(_)) => Ok(()),
                Ok(None) => Err(gone("this host has it no more".to_owned())),
                Err(e) => Err(refuse("unavailable", e.to_string())),
            }
        })
        .await?;
    let (held, wanted) = (store.clone(), digest.clone());
    let piece = tokio::task::spawn_blocking(move || piece(&held, &wanted, asked.offset)).await.map_err(blocking)?;
    match piece {
        Ok(Some(piece)) => Ok(Reply { payload: bus::encode(&piece), ..Reply::default() }),
        Ok(None) => Err(gone("this host has it no more".to_owned())),
        Err(e) => Err(gone(e.to_string())),
    }
}

fn piece(store: &Store, digest: &Digest, offset: u64) -> io::Result<Option<pb::BlobChunk>> {
    let Some(mut file) = store.file(digest).map_err(io::Error::other)? else { return Ok(None) };
    let size = file.metadata()?.len();
    file.seek(SeekFrom::Start(offset.min(size)))?;
    let mut data = Vec::new();
    file.take(PIECE_BYTES_MAX).read_to_end(&mut data)?;
    Ok(Some(pb::BlobChunk { size, data }))
}
