//! Bodies whose size nobody knows yet: sent as they come, and as they are taken. Who has the body offers it at an address
//! of its own; who wants it pulls: grants go to that address, pieces come back. Either end learns within a minute or so that
//! the other is gone. Nothing is sent twice: a piece that is lost, or a connection, ends the stream with an error.
//!
//! Grants count bytes, and a small piece counts `PIECE_COST`: so what is on its way is bounded in messages too.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::client::traits::Publisher;
use async_nats::message::OutboundMessage;
use async_nats::{Client, HeaderMap, Message, StatusCode, Subject};
use bytes::Bytes;
use futures::{FutureExt, Stream, StreamExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::sleep_until;

use crate::client::Bus;
use crate::envelope::{self, Part};
use crate::inbox::Ticket;
use crate::{Connection, Error, Reason, Refusal};

/// Streams that leave one connection at a time, and as many that come.
pub const STREAMS_MAX: usize = 1_024;
/// What is granted to one sender and not taken yet.
const WINDOW: usize = 32 * 1024;
/// The same where much flows, of so many at a time.
const WINDOW_WIDE: usize = 256 * 1024;
const WIDE_MAX: usize = 64;
/// So much has to have come first.
const WIDE_FROM: usize = 4 * WINDOW;
/// What a piece counts at least.
const PIECE_COST: usize = 1_024;
/// Messages of one stream that are not taken up yet.
const LEN_MAX: usize = WINDOW_WIDE / PIECE_COST + 8;
/// How often who pulls says that it is there still, while it waits.
const PULSE: Duration = Duration::from_secs(10);
/// After so long without a word it is gone. A reader may stand still for a minute.
const SILENCE_MAX: Duration = Duration::from_secs(75);
/// For the first word.
const FIRST_MAX: Duration = Duration::from_secs(10);

/// How many there may be.
#[derive(Debug)]
pub(crate) struct Places {
    offered: Arc<Semaphore>,
    pulled: Arc<Semaphore>,
    wide: Arc<Semaphore>,
}

impl Default for Places {
    fn default() -> Self {
        let of = |max| Arc::new(Semaphore::new(max));
        Self { offered: of(STREAMS_MAX), pulled: of(STREAMS_MAX), wide: of(WIDE_MAX) }
    }
}

fn place(of: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, Error> {
    Arc::clone(of).try_acquire_owned().map_err(|_| Error::Streams { max: STREAMS_MAX })
}

fn cost(piece: usize) -> usize {
    piece.max(PIECE_COST)
}

/// Returns when the connection is not the same any more: what was on its way may be lost.
async fn lost(connection: &mut watch::Receiver<Connection>, count: u64) {
    let _ = connection.wait_for(|now| !now.up || now.count != count).await;
}

/// A body to be pulled.
#[derive(Debug)]
pub struct Offer {
    bus: Bus,
    ticket: Ticket,
    grants: mpsc::Receiver<Message>,
    taker: Taker,
    is_patient: bool,
    is_over: bool,
    _place: OwnedSemaphorePermit,
}

/// What who pulls has said.
#[derive(Debug, Default)]
struct Taker {
    /// Where pieces go; not known before its first word.
    to: Option<String>,
    granted: usize,
    spent: usize,
    offset: usize,
}

impl Bus {
    /// A place for a body that another end of the bus pulls, once it is told the address.
    pub fn offer(&self) -> Result<Offer, Error> {
        let place = place(&self.link.streams.offered)?;
        let (ticket, grants) = self.link.inbox.stream_of(LEN_MAX)?;
        let (bus, taker) = (self.clone(), Taker::default());
        Ok(Offer { bus, ticket, grants, taker, is_patient: false, is_over: false, _place: place })
    }

    /// Pulls what is offered at `address`, until `end`.
    pub async fn pull(&self, address: &str, end: Instant) -> Result<Pull, Error> {
        envelope::check_subject(address)?;
        let place = place(&self.link.streams.pulled)?;
        let (ticket, pieces) = self.link.inbox.stream_of(LEN_MAX)?;
        let connection = self.connection();
        let count = connection.borrow().count;
        let mut pull = Pull {
            bus: self.clone(),
            peer: address.to_owned(),
            ticket,
            pieces,
            connection,
            count,
            granted: 0,
            taken: 0,
            offset: 0,
            window: WINDOW,
            wide: None,
            pulse: Instant::now(),
            begun: Instant::now(),
            end,
            is_over: false,
            is_told: false,
            _place: place,
        };
        pull.grant().await?;
        Ok(pull)
    }
}

impl Offer {
    /// For who shall pull it.
    pub fn address(&self) -> String {
        self.ticket.address()
    }

    /// Waits for the first word until its time is over, not for ten seconds: who shall pull it may have to wait for a turn.
    pub fn patient(mut self) -> Self {
        self.is_patient = true;
        self
    }

    /// Sends `body`, which is asked for more only when more may be sent. An error of the body goes to who pulls. Returns when
    /// all is sent; an error says that it was not taken.
    pub async fn send<S>(mut self, body: S, end: Instant) -> Result<(), Error>
    where
        S: Stream<Item = Result<Bytes, Refusal>> + Send,
    {
        let result = self.run(body, end).await;
        self.is_over = true;
        let Err(error) = &result else { return result };
        // Who said that it wants no more needs not be told.
        if let (Some(to), false) = (self.taker.to.take(), matches!(error, Error::Refused { .. })) {
            let refusal = Refusal { code: "unavailable".into(), message: format!("the stream broke off: {error}") };
            let _ = self.bus.link.send(to, None, envelope::refusal(&refusal), Bytes::new()).await;
        }
        result
    }

    async fn run<S>(&mut self, body: S, end: Instant) -> Result<(), Error>
    where
        S: Stream<Item = Result<Bytes, Refusal>> + Send,
    {
        let mut body = pin!(body);
        let mut connection = self.bus.connection();
        let count = connection.borrow().count;
        let begun = Instant::now();
        let (mut left, mut heard) = (Bytes::new(), begun);
        let address = self.ticket.address();
        let taker = &mut self.taker;
        loop {
            let link = &self.bus.link;
            let credit = taker.granted - taker.spent;
            if let (Some(to), false, true) = (&taker.to, left.is_empty(), credit >= PIECE_COST) {
                let piece = left.split_to(left.len().min(credit).min(link.message_bytes_max()));
                let header = envelope::piece(taker.offset);
                taker.offset += piece.len();
                taker.spent += cost(piece.len());
                link.send(to.clone(), None, header, piece).await?;
                continue;
            }
            let patience = match taker.to {
                Some(_) => SILENCE_MAX,
                None if self.is_patient => end.saturating_duration_since(begun),
                None => FIRST_MAX,
            };
            let until = end.min(heard + patience);
            tokio::select! {
                biased;
                message = self.grants.recv() => {
                    let message = message.ok_or(Error::Closed)?;
                    if taker.hears(&message)? {
                        heard = Instant::now();
                    } else {
                        link.drops.count(Reason::Malformed);
                    }
                }
                () = lost(&mut connection, count) => return Err(Error::Disconnected),
                () = sleep_until(until.into()) => {
                    return Err(Error::Deadline { subject: address, after: patience.min(end.saturating_duration_since(begun)) });
                }
                next = body.next(), if left.is_empty() && credit >= PIECE_COST => {
                    let Some(to) = taker.to.clone() else { continue };
                    match next {
                        Some(Ok(bytes)) => left = bytes,
                        Some(Err(refusal)) => {
                            return link.send(to, None, envelope::refusal(&refusal), Bytes::new()).await;
                        }
                        None => return link.send(to, None, envelope::end(taker.offset), Bytes::new()).await,
                    }
                }
            }
        }
    }
}

impl Drop for Offer {
    fn drop(&mut self) {
        if let (Some(to), false) = (self.taker.to.take(), self.is_over) {
            part_from(&self.bus, to, "who sent it has stopped");
        }
    }
}

impl Taker {
    /// Whether this message makes sense. An error: nothing more is wanted.
    fn hears(&mut self, message: &Message) -> Result<bool, Error> {
        match envelope::part(message.headers.as_ref()) {
            Ok(Part::Grant { until }) => {
                let to = message.reply.as_deref().filter(|to| envelope::check_subject(to).is_ok());
                let fits = until <= self.spent + 2 * WINDOW_WIDE;
                let Some(to) = to.filter(|to| fits && self.to.as_deref().is_none_or(|before| before == *to)) else {
                    return Ok(false);
                };
                self.to.get_or_insert_with(|| to.to_owned());
                self.granted = self.granted.max(until);
                Ok(true)
            }
            Ok(Part::Refused(Refusal { code, message })) => Err(Error::Refused { code, message }),
            _ => Ok(false),
        }
    }
}

/// A body that comes. Dropping it tells the sender that no more is wanted.
#[derive(Debug)]
pub struct Pull {
    bus: Bus,
    peer: String,
    ticket: Ticket,
    pieces: mpsc::Receiver<Message>,
    connection: watch::Receiver<Connection>,
    count: u64,
    /// What may come, and what came of it, as pieces count.
    granted: usize,
    taken: usize,
    /// Bytes.
    offset: usize,
    window: usize,
    wide: Option<OwnedSemaphorePermit>,
    /// When the sender hears next that somebody waits.
    pulse: Instant,
    begun: Instant,
    end: Instant,
    is_over: bool,
    /// The sender ended it.
    is_told: bool,
    _place: OwnedSemaphorePermit,
}

impl Pull {
    /// The next piece, never an empty one; `None` at the end, and after an error.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        if self.is_over {
            return Ok(None);
        }
        let next = self.take().await;
        self.is_over = !matches!(next, Ok(Some(_)));
        next
    }

    async fn take(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            // Looked at here too: who always finds a piece, however seldom it looks, comes to no timer.
            let now = Instant::now();
            if now >= self.end {
                let after = self.end.saturating_duration_since(self.begun);
                return Err(Error::Deadline { subject: self.peer.clone(), after });
            }
            if self.granted - self.taken <= self.window / 2 || now >= self.pulse {
                self.grant().await?;
            }
            tokio::select! {
                biased;
                message = self.pieces.recv() => return self.read(&message.ok_or(Error::Closed)?),
                () = lost(&mut self.connection, self.count) => return Err(Error::Disconnected),
                () = sleep_until(self.end.min(self.pulse).into()) => {}
            }
        }
    }

    fn read(&mut self, message: &Message) -> Result<Option<Bytes>, Error> {
        if message.status == Some(StatusCode::NO_RESPONDERS) {
            self.is_told = true;
            return Err(Error::NoResponders { subject: self.peer.clone() });
        }
        let piece = &message.payload;
        match envelope::part(message.headers.as_ref()) {
            Ok(Part::Piece { offset })
                if offset == self.offset && !piece.is_empty() && self.taken + cost(piece.len()) <= self.granted =>
            {
                self.offset += piece.len();
                self.taken += cost(piece.len());
                Ok(Some(piece.clone()))
            }
            Ok(Part::End { size }) if size == self.offset => {
                self.is_told = true;
                Ok(None)
            }
            Ok(Part::Refused(Refusal { code, message })) => {
                self.is_told = true;
                Err(Error::Refused { code, message })
            }
            _ => {
                self.bus.link.drops.count(Reason::Malformed);
                Err(Error::Garbled { subject: self.peer.clone() })
            }
        }
    }

    /// Grants a whole window from here on, and says so.
    async fn grant(&mut self) -> Result<(), Error> {
        if self.wide.is_none() && self.taken >= WIDE_FROM {
            self.wide = Arc::clone(&self.bus.link.streams.wide).try_acquire_owned().ok();
            self.window = if self.wide.is_some() { WINDOW_WIDE } else { WINDOW };
        }
        self.granted = self.granted.max(self.taken + self.window);
        self.pulse = Instant::now() + PULSE;
        let grant = envelope::grant(self.granted);
        self.bus.link.send(self.peer.clone(), Some(self.ticket.address()), grant, Bytes::new()).await
    }
}

impl Drop for Pull {
    fn drop(&mut self) {
        if !self.is_told {
            part_from(&self.bus, std::mem::take(&mut self.peer), "no more of it is wanted");
        }
    }
}

/// Tells the other end that this one is gone, in a while.
fn part_from(bus: &Bus, peer: String, why: &str) {
    let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
    let bus = bus.clone();
    let refusal = cancelled(why);
    runtime.spawn(async move {
        let _ = bus.link.send(peer, None, refusal, Bytes::new()).await;
    });
}

fn cancelled(why: &str) -> HeaderMap {
    envelope::refusal(&Refusal { code: "cancelled".into(), message: why.into() })
}

/// Where to say that what `message` asks for is not there any more, if it asks for a stream.
pub(crate) fn asked_by(message: &Message) -> Option<Subject> {
    let reply = message.reply.as_ref()?;
    matches!(envelope::part(message.headers.as_ref()), Ok(Part::Grant { .. })).then(|| reply.clone())
}

/// Says so if that can be done at once: it will be asked again.
pub(crate) fn tell_gone(client: &Client, to: Subject) {
    let headers = Some(cancelled("who sent it has stopped"));
    let message = OutboundMessage { subject: to, reply: None, payload: Bytes::new(), headers };
    let _ = client.publish_message(message).now_or_never();
}
