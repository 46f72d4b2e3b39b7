//! Messages of the log to other members: a bounded queue and a connection for each, made again with growing pauses.
//! Must never block the log, nor keep what is too much: that is dropped, as a network would, and the log is told.

use super::{CONNECT, Peers, authority, pieces, root_cause};
use crate::raft;
use proto::v1 as pb;
use proto::v1::peer_client::PeerClient;
use proto::v1::peer_frame::What;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Status};

/// Messages, and their bytes, that wait for one member.
const QUEUE_MAX: usize = 1024;
const QUEUE_BYTES_MAX: usize = 16 << 20;
/// Messages that wait to be sent in pieces; one may have any size that a message may have.
const LARGE_MAX: usize = 4;
const LARGE_BYTES_MAX: usize = 64 << 20;
/// Frames handed to the connection and not sent yet.
const FRAMES_MAX: usize = 16;
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// A connection on which nothing is heard for so long is dead.
const KEEPALIVE: Duration = Duration::from_secs(2);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(3);
/// Bytes under way on one stream.
const WINDOW_BYTES: u32 = 4 << 20;
/// Of an answer: a list, an outcome.
pub(super) const ANSWER_BYTES_MAX: usize = 20 << 20;

pub(super) type Client = PeerClient<Channel>;

/// Where the log puts its messages.
#[derive(Clone, Default)]
pub(crate) struct Outbox(Arc<Shared>);

#[derive(Default)]
struct Shared {
    links: Mutex<BTreeMap<u64, Tended>>,
    raft: OnceLock<raft::Handle>,
}

/// A link and who tends it, as long as this is kept.
struct Tended {
    link: Arc<Link>,
    _task: AbortOnDrop,
}

/// The way to one member.
#[derive(Default)]
pub(super) struct Link {
    queue: Mutex<Queue>,
    wake: Notify,
    /// The other end was heard of while there is no connection.
    heard: Notify,
    /// While it is connected.
    client: Mutex<Option<Client>>,
    /// Why it is not.
    problem: Mutex<String>,
    /// Bytes of what is to be sent and is larger than anything may be: a state. 0: nothing is.
    too_large: AtomicUsize,
}

/// What became of a message.
#[derive(Debug, PartialEq, Eq)]
enum Put {
    Queued,
    Dropped,
    /// It can never be sent.
    TooLarge,
}

struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[derive(Default)]
struct Queue {
    small: VecDeque<Vec<u8>>,
    small_bytes: usize,
    large: VecDeque<Vec<u8>>,
    large_bytes: usize,
    /// Bytes of the first of `large` that are sent.
    sent: usize,
}

impl Queue {
    fn put(&mut self, message: Vec<u8>) -> bool {
        let bytes = message.len();
        if bytes > pieces::PIECE_BYTES {
            let fits = self.large.len() < LARGE_MAX && self.large_bytes + bytes <= LARGE_BYTES_MAX;
            if !(fits || self.large.is_empty()) {
                return false;
            }
            self.large_bytes += bytes;
            self.large.push_back(message);
            return true;
        }
        if self.small.len() >= QUEUE_MAX || self.small_bytes + bytes > QUEUE_BYTES_MAX {
            return false;
        }
        self.small_bytes += bytes;
        self.small.push_back(message);
        true
    }

    /// The next frame. A heartbeat never waits behind a snapshot.
    fn next(&mut self) -> Option<What> {
        if let Some(message) = self.small.pop_front() {
            self.small_bytes -= message.len();
            return Some(What::Message(message));
        }
        let message = self.large.front()?;
        let piece = pieces::piece(message, self.sent).expect("a large message has a piece that was not sent");
        self.sent += piece.data.len();
        if self.sent == message.len() {
            self.large_bytes -= message.len();
            self.large.pop_front();
            self.sent = 0;
        }
        Some(What::Piece(piece))
    }
}

impl raft::Transport for Outbox {
    fn send(&mut self, to: u64, message: Vec<u8>) {
        let link = self.link(to).filter(|link| link.client().is_some());
        match link.map(|link| link.put(message)) {
            Some(Put::Queued) => {}
            // The log has it for under way until it gives it up, after a minute. Told of the loss it would make the whole
            // state again at once, and again.
            Some(Put::TooLarge) => tracing::error!(
                scheduler = to,
                bytes_max = pieces::MESSAGE_BYTES_MAX,
                "the state is too large to be sent; see `lattice schedulers list`"
            ),
            Some(Put::Dropped) | None => self.lost(to),
        }
    }
}

impl Outbox {
    /// Tells where losses are told; once.
    pub(crate) fn connect(&self, raft: raft::Handle) {
        let _ = self.0.raft.set(raft);
    }

    fn lost(&self, to: u64) {
        if let Some(raft) = self.0.raft.get() {
            raft.unreachable(to);
        }
    }

    pub(super) fn link(&self, to: u64) -> Option<Arc<Link>> {
        self.0.links.lock().unwrap_or_else(PoisonError::into_inner).get(&to).map(|tended| tended.link.clone())
    }

    /// Whether `id` is connected; if not, why.
    pub(super) fn problem(&self, id: u64) -> Option<String> {
        let Some(link) = self.link(id) else { return Some("not tried yet".into()) };
        match link.client() {
            Some(_) => None,
            None => Some(link.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()),
        }
    }

    /// `id` is there: who is not connected to it tries now. It may have just started, and those that vote for it or are to
    /// have its vote need the way back as well.
    pub(super) fn heard_of(&self, id: u64) {
        if let Some(link) = self.link(id).filter(|link| link.client().is_none()) {
            link.heard.notify_one();
        }
    }

    /// Bytes of the state, if it is too large to be sent to `id`, who needs it.
    pub(super) fn too_large(&self, id: u64) -> Option<usize> {
        self.link(id)?.too_large()
    }

    /// Keeps a way to each of `ids`, and to nobody else.
    pub(super) fn keep(&self, peers: &Peers, ids: &[u64]) {
        let mut links = self.0.links.lock().unwrap_or_else(PoisonError::into_inner);
        links.retain(|id, _| ids.contains(id));
        for id in ids {
            links.entry(*id).or_insert_with(|| {
                let link = Arc::new(Link::default());
                let task = tokio::spawn(tend(peers.clone(), *id, link.clone()));
                Tended { link, _task: AbortOnDrop(task.abort_handle()) }
            });
        }
    }

    pub(super) fn close(&self) {
        self.0.links.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl Link {
    fn put(&self, message: Vec<u8>) -> Put {
        let bytes = message.len();
        if bytes > pieces::MESSAGE_BYTES_MAX {
            self.too_large.store(bytes, Ordering::Relaxed);
            return Put::TooLarge;
        }
        if !self.queue.lock().unwrap_or_else(PoisonError::into_inner).put(message) {
            return Put::Dropped;
        }
        if bytes > pieces::PIECE_BYTES {
            self.too_large.store(0, Ordering::Relaxed);
        }
        self.wake.notify_one();
        Put::Queued
    }

    fn too_large(&self) -> Option<usize> {
        Some(self.too_large.load(Ordering::Relaxed)).filter(|bytes| *bytes > 0)
    }

    pub(super) fn client(&self) -> Option<Client> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_client(&self, client: Option<Client>) {
        *self.client.lock().unwrap_or_else(PoisonError::into_inner) = client;
    }

    fn next(&self) -> Option<What> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).next()
    }

    fn clear(&self) {
        *self.queue.lock().unwrap_or_else(PoisonError::into_inner) = Queue::default();
    }
}

/// Connects again and again, until it is aborted.
async fn tend(peers: Peers, to: u64, link: Arc<Link>) {
    let mut pause = PAUSE_FIRST;
    for attempt in 0.. {
        let begun = tokio::time::Instant::now();
        let status = carry(&peers, to, &link, attempt).await;
        link.set_client(None);
        link.clear();
        peers.0.outbox.lost(to);
        if status.code() == Code::FailedPrecondition {
            peers.tell_removed(status.message());
        }
        {
            let mut problem = link.problem.lock().unwrap_or_else(PoisonError::into_inner);
            if *problem != status.message() {
                tracing::warn!(scheduler = to, problem = status.message(), "another scheduler is not reached");
                *problem = status.message().to_owned();
            }
        }
        pause = if begun.elapsed() > PAUSE_MAX { PAUSE_FIRST } else { (pause * 2).min(PAUSE_MAX) };
        tokio::select! {
            () = tokio::time::sleep(jitter(pause)) => {}
            () = link.heard.notified() => {
                // Never at once: two that let each other in and then fail would do nothing else.
                pause = PAUSE_FIRST;
                tokio::time::sleep(jitter(pause)).await;
            }
        }
    }
}

/// Between half of `pause` and all of it: many that lost the same one do not come back at the same moment.
fn jitter(pause: Duration) -> Duration {
    let random = u32::try_from(ulid::Ulid::generate().0 & 0xffff).unwrap_or_default();
    pause / 2 + pause / 2 * random / 0xffff
}

/// One connection, from its beginning to its end; gives why it ended.
async fn carry(peers: &Peers, to: u64, link: &Link, attempt: usize) -> Status {
    let mut client = match connect(peers, to, attempt).await {
        Ok(client) => client,
        Err(status) => return status,
    };
    let (frames, receiver) = mpsc::channel(FRAMES_MAX);
    let greeting = pb::PeerFrame { what: Some(What::Greeting(peers.greeting(to))) };
    if frames.send(greeting).await.is_err() {
        return Status::unavailable("the connection ended at once");
    }
    let mut asking = client.clone();
    let ended = asking.carry(ReceiverStream::new(receiver));
    tokio::pin!(ended);
    // Who is refused is told so at once: before anything is thought to have arrived.
    tokio::select! {
        biased;
        ended = &mut ended => return end_of(ended.err(), to),
        () = greeted(&mut client, peers, to) => {}
    }
    link.clear();
    link.set_client(Some(client));
    link.problem.lock().unwrap_or_else(PoisonError::into_inner).clear();
    tracing::info!(scheduler = to, "another scheduler is reached");
    let pump = async {
        loop {
            match link.next() {
                Some(what) => {
                    if frames.send(pb::PeerFrame { what: Some(what) }).await.is_err() {
                        return;
                    }
                }
                None => link.wake.notified().await,
            }
        }
    };
    tokio::select! {
        ended = &mut ended => end_of(ended.err(), to),
        () = pump => match ended.await {
            Ok(_) => end_of(None, to),
            Err(status) => end_of(Some(status), to),
        },
    }
}

/// Waits until the other one answered anything at all.
async fn greeted(client: &mut Client, peers: &Peers, to: u64) {
    let ask = pb::PeerAsk { greeting: Some(peers.greeting(to)), what: None };
    if client.ask(ask).await.is_err() {
        // What is wrong is told by the end of the stream.
        tokio::time::sleep(CONNECT).await;
    }
}

fn end_of(status: Option<Status>, to: u64) -> Status {
    match status {
        Some(status) if matches!(status.code(), Code::FailedPrecondition | Code::PermissionDenied) => status,
        Some(status) => Status::unavailable(format!("scheduler {to}: {}", root_cause(&status))),
        None => Status::unavailable(format!("scheduler {to} ended the connection")),
    }
}

/// By one of the addresses that are known, the next one with each attempt.
async fn connect(peers: &Peers, to: u64, attempt: usize) -> Result<Client, Status> {
    let Some((_, identity)) = &peers.0.own else {
        return Err(Status::unavailable("this scheduler has no --peer-listen"));
    };
    let addresses = peers.addresses(to);
    let Some(address) = addresses.get(attempt % addresses.len().max(1)) else {
        return Err(Status::unavailable(format!("the address of scheduler {to} is not known yet")));
    };
    let wrong = |what: String| Status::unavailable(format!("scheduler {to} at {address}: {what}"));
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(&identity.authority))
        .identity(Identity::from_pem(peers.leaf(), &identity.key))
        .domain_name(authority::name(to));
    let endpoint = endpoint(address).and_then(|endpoint| endpoint.tls_config(tls));
    let endpoint = endpoint.map_err(|error| wrong(root_cause(&error)))?;
    match tokio::time::timeout(CONNECT, endpoint.connect()).await {
        Ok(Ok(channel)) => Ok(client(channel)),
        Ok(Err(error)) => Err(wrong(root_cause(&error))),
        Err(_) => Err(wrong("no answer in time".into())),
    }
}

pub(super) fn endpoint(address: &str) -> Result<Endpoint, tonic::transport::Error> {
    let endpoint = Endpoint::from_shared(format!("https://{address}"))?
        .connect_timeout(CONNECT)
        .tcp_nodelay(true)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(2 * WINDOW_BYTES)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    Ok(endpoint)
}

pub(super) fn client(channel: Channel) -> Client {
    PeerClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX).max_encoding_message_size(ANSWER_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(queue: &mut Queue) -> Vec<(&'static str, usize)> {
        std::iter::from_fn(|| queue.next())
            .map(|what| match what {
                What::Message(message) => ("message", message.len()),
                What::Piece(piece) => ("piece", piece.data.len()),
                What::Greeting(_) => ("greeting", 0),
            })
            .collect()
    }

    #[test]
    fn small_messages_overtake_the_pieces_of_large_ones() {
        let mut queue = Queue::default();
        assert!(queue.put(vec![0; pieces::PIECE_BYTES + 1]) && queue.put(vec![0; 10]));
        assert!(matches!(queue.next(), Some(What::Message(_))));
        assert!(matches!(queue.next(), Some(What::Piece(_))));
        assert!(queue.put(vec![0; 20]));
        assert_eq!(frames(&mut queue), [("message", 20), ("piece", 1)]);
        assert_eq!((queue.small_bytes, queue.large_bytes), (0, 0));
    }

    #[test]
    fn what_is_too_much_is_dropped() {
        let mut queue = Queue::default();
        assert!((0..QUEUE_MAX).all(|_| queue.put(vec![0; 10])));
        assert!(!queue.put(vec![0; 10]), "too many");
        let mut queue = Queue::default();
        let most = QUEUE_BYTES_MAX / pieces::PIECE_BYTES;
        assert!((0..most).all(|_| queue.put(vec![0; pieces::PIECE_BYTES])));
        assert!(!queue.put(vec![0; 1]), "too many bytes");
        // One snapshot may be of any size; a second one waits for its turn with the log.
        let mut queue = Queue::default();
        assert!(queue.put(vec![0; LARGE_BYTES_MAX + 1]));
        assert!(!queue.put(vec![0; pieces::PIECE_BYTES + 1]));
    }

    #[test]
    fn what_can_never_be_sent_is_remembered_until_it_can() {
        let link = Link::default();
        assert_eq!(link.put(vec![0; pieces::MESSAGE_BYTES_MAX + 1]), Put::TooLarge);
        assert_eq!(link.put(vec![0; 10]), Put::Queued, "a heartbeat says nothing about it");
        assert_eq!(link.too_large(), Some(pieces::MESSAGE_BYTES_MAX + 1));
        assert_eq!(link.put(vec![0; pieces::MESSAGE_BYTES_MAX]), Put::Queued);
        assert_eq!(link.too_large(), None);
    }

    #[test]
    fn pauses_vary_within_bounds() {
        for _ in 0..100 {
            let pause = jitter(PAUSE_MAX);
            assert!(pause >= PAUSE_MAX / 2 && pause <= PAUSE_MAX, "{pause:?}");
        }
    }
}
