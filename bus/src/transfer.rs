//! Bodies above the message limit. The sender announces a size, the receiver grants it piece by piece, the sender
//! sends what was granted. What is granted and not yet here is bounded per transfer and per connection, far below
//! what a server cuts slow consumers off at. A lost piece ends the transfer at its deadline: nothing is sent twice.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_nats::{Message, StatusCode};
use bytes::{Bytes, BytesMut};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::client::Link;
use crate::envelope::{self, Part};
use crate::{Error, Reason};

/// The largest body of a call, either way.
pub const CALL_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Grants are counted in these; a sender whose server allows less cuts them further.
const CHUNK_BYTES: usize = 256 * 1024;
/// Granted to one sender and not here yet.
const WINDOW_CHUNKS: usize = 8;
/// The same, over all senders to one connection: 16 MiB.
const WINDOW_CHUNKS_ALL: usize = 64;
/// Bodies being assembled or handled, each way.
const BODIES_BYTES_MAX: usize = 512 * 1024 * 1024;
/// A receiver that grants nothing for so long is gone.
const STALL_MAX: Duration = Duration::from_secs(30);

/// What one connection may hold at a time.
#[derive(Debug)]
pub(crate) struct Budget {
    window: Arc<Semaphore>,
    /// In chunks. Requests and replies apart, so that a handler that calls on never waits for its own room.
    pub(crate) requests: Arc<Semaphore>,
    pub(crate) replies: Arc<Semaphore>,
}

impl Default for Budget {
    fn default() -> Self {
        let bodies = BODIES_BYTES_MAX / CHUNK_BYTES;
        Self {
            window: Arc::new(Semaphore::new(WINDOW_CHUNKS_ALL)),
            requests: Arc::new(Semaphore::new(bodies)),
            replies: Arc::new(Semaphore::new(bodies)),
        }
    }
}

/// Chunks that a body of this size takes.
pub(crate) fn chunks(size: usize) -> u32 {
    u32::try_from(size.div_ceil(CHUNK_BYTES)).unwrap_or(u32::MAX)
}

/// A body on its way out.
#[derive(Debug)]
pub(crate) struct Outgoing {
    body: Bytes,
    sent: usize,
}

impl Outgoing {
    pub(crate) fn new(body: Bytes) -> Self {
        Self { body, sent: 0 }
    }

    pub(crate) fn is_done(&self) -> bool {
        self.sent == self.body.len()
    }

    /// Sends up to where the receiver allowed. A grant that makes no sense is dropped.
    pub(crate) async fn granted(&mut self, link: &Link, until: usize, message: &Message) -> Result<(), Error> {
        let to = message.reply.as_deref().filter(|to| envelope::check_subject(to).is_ok());
        let Some(to) = to.filter(|_| until <= self.body.len()) else {
            link.drops.count(Reason::Malformed);
            return Ok(());
        };
        let piece_max = CHUNK_BYTES.min(link.message_bytes_max());
        while self.sent < until {
            let end = until.min(self.sent + piece_max);
            let piece = self.body.slice(self.sent..end);
            link.send(to.to_owned(), None, envelope::piece(self.sent), piece).await?;
            self.sent = end;
        }
        Ok(())
    }
}

/// Sends an answer that is too large for one message, as the caller takes it.
pub(crate) async fn send_reply(
    link: &Link,
    reply_to: String,
    mut headers: async_nats::HeaderMap,
    body: Bytes,
) -> Result<(), Error> {
    let gone = Error::Deadline { subject: reply_to.clone(), after: STALL_MAX };
    let (ticket, mut grants) = link.inbox.stream()?;
    envelope::set_size(&mut headers, body.len());
    link.send(reply_to, Some(ticket.address()), headers, Bytes::new()).await?;
    let mut outgoing = Outgoing::new(body);
    while !outgoing.is_done() {
        let Ok(Some(message)) = timeout(STALL_MAX, grants.recv()).await else { return Err(gone) };
        if message.status == Some(StatusCode::NO_RESPONDERS) {
            return Err(gone);
        }
        match envelope::part(message.headers.as_ref()) {
            Ok(Part::Grant { until }) => outgoing.granted(link, until, &message).await?,
            _ => link.drops.count(Reason::Malformed),
        }
    }
    Ok(())
}

/// Takes a body of `size` bytes; grants go to `peer`. The caller has checked `size` and bounds the time.
pub(crate) async fn receive(link: &Link, size: usize, peer: &str) -> Result<Bytes, Error> {
    let (ticket, mut pieces) = link.inbox.stream()?;
    let chunks = size.div_ceil(CHUNK_BYTES);
    let mut granted = 0;
    let mut held: VecDeque<OwnedSemaphorePermit> = VecDeque::with_capacity(WINDOW_CHUNKS);
    let mut body = BytesMut::with_capacity(size);
    while body.len() < size {
        held.truncate(granted - body.len() / CHUNK_BYTES);
        if held.len() <= WINDOW_CHUNKS / 2 && granted < chunks {
            let more = take_window(link, WINDOW_CHUNKS.min(chunks - granted + held.len()), &mut held).await?;
            if more > 0 {
                granted += more;
                let grant = envelope::grant(size.min(granted * CHUNK_BYTES));
                link.send(peer.to_owned(), Some(ticket.address()), grant, Bytes::new()).await?;
            }
        }
        let garbled = || Error::Garbled { subject: peer.to_owned() };
        let message = pieces.recv().await.ok_or(Error::Closed)?;
        if message.status == Some(StatusCode::NO_RESPONDERS) {
            return Err(Error::NoResponders { subject: peer.to_owned() });
        }
        let room = size.min(granted * CHUNK_BYTES) - body.len();
        match envelope::part(message.headers.as_ref()) {
            Ok(Part::Piece { offset }) if offset == body.len() && (1..=room).contains(&message.payload.len()) => {
                body.extend_from_slice(&message.payload);
            }
            _ => {
                link.drops.count(Reason::Malformed);
                return Err(garbled());
            }
        }
    }
    Ok(body.freeze())
}

/// Fills `held` up to `want` permits; waits only for the first. Returns how many are new.
async fn take_window(link: &Link, want: usize, held: &mut VecDeque<OwnedSemaphorePermit>) -> Result<usize, Error> {
    let before = held.len();
    if held.is_empty() {
        let permit = Arc::clone(&link.budget.window).acquire_owned().await.map_err(|_| Error::Closed)?;
        held.push_back(permit);
    }
    while held.len() < want {
        match Arc::clone(&link.budget.window).try_acquire_owned() {
            Ok(permit) => held.push_back(permit),
            Err(_) => break,
        }
    }
    Ok(held.len() - before)
}
