//! One connection to the bus. It is there at once and comes up when a server does; what can not be sent now is an
//! error now, never a queue that is sent late.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::client::PublishErrorKind;
use async_nats::client::traits::Publisher;
use async_nats::message::OutboundMessage;
use async_nats::{HeaderMap, Subject};
use bytes::Bytes;
use proto::subject::Subjects;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::DropGuard;
use tokio_util::task::TaskTracker;
use tracing::debug;

use crate::inbox::Inbox;
use crate::replay::Taken;
use crate::stream::Places;
use crate::transfer::Budget;
use crate::wire::{Connection, Feed, Wire};
use crate::{Config, Drops, Error, Reason, Subscription, envelope, stream, subscription};

/// A handle; clones share the connection, which ends with the last of them, or at `close`.
#[derive(Clone)]
pub struct Bus {
    pub(crate) link: Arc<Link>,
}

/// What the handles share.
pub(crate) struct Link {
    pub(crate) wire: Arc<Wire>,
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) drops: Arc<Drops>,
    pub(crate) budget: Budget,
    pub(crate) streams: Places,
    /// Of the requests that came.
    taken: Mutex<Taken>,
    subjects: Subjects,
    connection: watch::Receiver<Connection>,
    pump: TaskTracker,
    _stop_at_drop: DropGuard,
}

/// How long a message waits for its place in a connection that stands still.
const SEND_WAIT: Duration = Duration::from_secs(5);
const SETTLE_WAIT: Duration = Duration::from_secs(2);
const CLOSE_WAIT: Duration = Duration::from_secs(2);

impl Bus {
    /// Returns at once, even when no server can be reached: `connection` tells when one was. An error is always a
    /// mistake in the configuration.
    pub async fn connect(config: &Config) -> Result<Self, Error> {
        let drops = Arc::new(Drops::default());
        let wire = Wire::start(config, Arc::clone(&drops)).await?;
        let inbox = Inbox::new(wire.client().new_inbox());
        let feed = wire.listen(inbox.wildcard(), None).await?;
        let pump = TaskTracker::new();
        pump.spawn(run_inbox(Arc::clone(&wire), feed, Arc::clone(&inbox), Arc::clone(&drops)));
        pump.close();
        let link = Link {
            inbox,
            drops,
            budget: Budget::default(),
            streams: Places::default(),
            taken: Mutex::default(),
            subjects: Subjects::new(&config.lattice),
            connection: wire.connection(),
            pump,
            _stop_at_drop: wire.stop.clone().drop_guard(),
            wire,
        };
        Ok(Self { link: Arc::new(link) })
    }

    pub fn subjects(&self) -> &Subjects {
        &self.link.subjects
    }

    pub fn connection(&self) -> watch::Receiver<Connection> {
        self.link.connection.clone()
    }

    /// Why the last attempt to connect failed, or what the server last complained about. `None` once it is up.
    pub fn problem(&self) -> Option<String> {
        self.link.wire.problem()
    }

    /// Why nothing can be sent now, and the next step; `None` while the connection is up.
    pub fn down(&self) -> Option<String> {
        if self.link.connection.borrow().up {
            return None;
        }
        let why = self.problem().unwrap_or_else(|| "no server answers".to_owned());
        Some(format!("{why}; check --nats and that the server runs"))
    }

    /// The servers that are named, without their secrets.
    pub fn urls(&self) -> Vec<String> {
        self.link.wire.urls().iter().map(|url| crate::without_secret(url)).collect()
    }

    /// Host and port of every server that is named or was heard of.
    pub fn servers(&self) -> Vec<(String, u16)> {
        self.link.wire.servers()
    }

    /// The largest payload that travels in one message.
    pub fn message_bytes_max(&self) -> usize {
        self.link.message_bytes_max()
    }

    pub fn drops(&self) -> &Drops {
        &self.link.drops
    }

    /// At most once, to whoever listens now. While the connection is down this is an error: nothing is kept.
    pub async fn publish(&self, subject: String, payload: Bytes) -> Result<(), Error> {
        envelope::check_subject(&subject)?;
        let max = self.message_bytes_max();
        if payload.len() > max {
            return Err(Error::TooLarge { subject, bytes: payload.len(), max });
        }
        if !self.link.is_up() {
            return Err(self.link.wire.down());
        }
        self.link.send(subject, None, HeaderMap::new(), payload).await
    }

    /// When this returns and the connection is up, the server knows of it; else it will at the next connection.
    pub async fn subscribe(&self, subject: String) -> Result<Subscription, Error> {
        subscription::check(&subject)?;
        let feed = self.link.wire.listen(subject, None).await?;
        self.settle().await;
        Ok(Subscription::start(feed, Arc::clone(&self.link.drops), self.link.wire.stop.child_token()))
    }

    /// Reads a protobuf message. What does not decode is counted.
    pub fn decode<M: prost::Message + Default>(&self, payload: &[u8]) -> Option<M> {
        match M::decode(payload) {
            Ok(message) => Some(message),
            Err(error) => {
                debug!(%error, bytes = payload.len(), "message does not decode");
                self.link.drops.count(Reason::Malformed);
                None
            }
        }
    }

    /// Sends what is queued, lets subscriptions run dry, ends the connection. Takes a few seconds at most.
    pub async fn close(&self) {
        let wire = &self.link.wire;
        let is_up = wire.is_up();
        wire.closing.cancel();
        if is_up {
            let client = wire.client();
            let _ = timeout(CLOSE_WAIT, client.flush()).await;
            let _ = timeout(CLOSE_WAIT, client.drain()).await;
            let _ = timeout(CLOSE_WAIT, self.link.pump.wait()).await;
        }
        wire.stop.cancel();
    }

    /// Waits until the server has seen everything sent before: one message to ourselves and back.
    pub(crate) async fn settle(&self) {
        if !self.link.is_up() {
            return;
        }
        let Ok((ticket, answer)) = self.link.inbox.once() else { return };
        if self.link.send(ticket.address(), None, HeaderMap::new(), Bytes::new()).await.is_ok() {
            let _ = timeout(SETTLE_WAIT, answer).await;
        }
    }
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bus").field("connection", &*self.link.connection.borrow()).finish_non_exhaustive()
    }
}

impl Link {
    pub(crate) fn is_up(&self) -> bool {
        self.wire.is_up()
    }

    /// Whether a request to be answered at `inbox` is not one that came before.
    pub(crate) fn is_new(&self, inbox: &str) -> bool {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).take(inbox)
    }

    /// Returns when the connection is up, or at once with `Closed` when it never will be again.
    pub(crate) async fn up(&self) -> Result<(), Error> {
        if self.is_up() {
            return Ok(());
        }
        let mut connection = self.connection.clone();
        tokio::select! {
            biased;
            () = self.wire.closing.cancelled() => Err(Error::Closed),
            result = connection.wait_for(|connection| connection.up) => result.map(|_| ()).map_err(|_| Error::Closed),
        }
    }

    pub(crate) fn message_bytes_max(&self) -> usize {
        self.wire.client().max_payload().saturating_sub(envelope::HEADER_SLACK_BYTES).max(1_024)
    }

    /// One message, with no more checks than the client library makes.
    pub(crate) async fn send(
        &self,
        subject: String,
        reply: Option<String>,
        headers: HeaderMap,
        payload: Bytes,
    ) -> Result<(), Error> {
        let bytes = payload.len();
        let subject = Subject::from(subject);
        let message = OutboundMessage {
            subject: subject.clone(),
            reply: reply.map(Subject::from),
            payload,
            headers: (!headers.is_empty()).then_some(headers),
        };
        let client = self.wire.client();
        match timeout(SEND_WAIT, client.publish_message(message)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(match error.kind() {
                PublishErrorKind::MaxPayloadExceeded => {
                    Error::TooLarge { subject: subject.to_string(), bytes, max: self.message_bytes_max() }
                }
                PublishErrorKind::InvalidSubject => Error::Subject { subject: subject.to_string() },
                PublishErrorKind::Send => self.wire.down(),
            }),
            Err(_) => Err(Error::Disconnected),
        }
    }
}

/// Hands answers to what waits for them, until the connection ends. What waits then is told.
async fn run_inbox(wire: Arc<Wire>, mut feed: Feed, inbox: Arc<Inbox>, drops: Arc<Drops>) {
    loop {
        let message = tokio::select! {
            biased;
            () = wire.stop.cancelled() => break,
            message = feed.next_or_revive() => message,
        };
        let Some(message) = message else { break };
        let asked_by = stream::asked_by(&message);
        if let Err(reason) = inbox.deliver(message) {
            drops.count(reason);
            if let (Reason::Stale, Some(to)) = (reason, asked_by) {
                stream::tell_gone(&wire.client(), to);
            }
        }
    }
    inbox.clear();
}
