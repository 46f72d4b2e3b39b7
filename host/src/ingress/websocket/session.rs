//! One open WebSocket: takes what the client says, asks the actor, tells the client what it answers, until one of them
//! ends it, breaks a bound, or this ingress ends. Then both sides are told.

use super::ended::{Ended, Farewell, close_of};
use super::events::{self, Event, FRAMING_BYTES_MAX, Kind};
use super::handshake::{self, Meta};
use super::post::{self, Answer, Carried};
use super::{Opened, message_max};
use crate::ingress::access::{Entry, Sockets};
use crate::ingress::answer::Front;
use crate::ingress::shares::Place;
use crate::ingress::{Meter, Route, Routes};
use crate::metrics::Traffic;
use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use proto::app::Name;
use std::collections::VecDeque;
use std::future::pending;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::sync::watch;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep_until, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error as WsError, Message, Utf8Bytes};
use tokio_util::sync::CancellationToken;

/// Events of one client that wait while the actor is asked; beyond, the client's next bytes wait in the kernel.
const WAITING_MAX: usize = 1_024;
/// Events in one request: what the actor answers to all of them must fit into one answer.
const BATCH_MAX: usize = 64;
/// Held for each connection, so small.
const BUFFER_BYTES: usize = 4 * 1024;
/// Until the client has answered a close.
const CLOSE_WAIT: Duration = Duration::from_secs(2);
/// Silent for so many pings, a client is gone.
const PINGS: u32 = 3;
/// What our own pings carry, so that their answers are not taken for answers to the actor's.
const OUR_PING: &[u8] = b"lattice";

type Socket = WebSocketStream<Heard>;
type Posting = Pin<Box<dyn Future<Output = Result<Answer, Ended>> + Send>>;

/// Serves a connection that the actor agreed to, to its end.
pub(in crate::ingress) async fn serve(opened: Opened, front: Arc<Front>, stop: CancellationToken) {
    let Opened { upgrade, route, carried, meta, keep_alive, first, message_max, place, entry } = opened;
    let tally = Tally::begin(front.meter.clone(), route.traffic.clone(), entry);
    let routes = front.routes.clone();
    let waiting = Waiting { events: VecDeque::new(), bytes: 0, bytes_max: message_max };
    let mut session = Session {
        front,
        route,
        routes,
        carried,
        meta,
        keep_alive,
        waiting,
        posting: None,
        pings: 0,
        tally,
        _place: place,
    };
    let Ok(upgraded) = upgrade.await else {
        return session.finish(None, Ended::Gone).await;
    };
    let heard = Arc::<AtomicBool>::default();
    let io = Heard { io: TokioIo::new(upgraded), heard: heard.clone() };
    let config = WebSocketConfig::default()
        .read_buffer_size(BUFFER_BYTES)
        .write_buffer_size(BUFFER_BYTES)
        // One message at a time, and answers to pings beside it.
        .max_write_buffer_size(2 * (BUFFER_BYTES + session.front.limits.message_bytes_max))
        .max_message_size(Some(message_max))
        .max_frame_size(Some(message_max));
    let mut socket = WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await;
    let ended = match session.say(&mut socket, first).await {
        Ok(()) => session.talk(&mut socket, &heard, &stop).await,
        Err(ended) => ended,
    };
    session.finish(Some(socket), ended).await;
}

struct Session {
    front: Arc<Front>,
    route: Arc<Route>,
    routes: watch::Receiver<Arc<Routes>>,
    carried: Carried,
    meta: Meta,
    /// How often the actor is asked while nothing comes.
    keep_alive: Option<Duration>,
    waiting: Waiting,
    /// The request under way.
    posting: Option<Posting>,
    /// Pings of the actor that are not answered yet.
    pings: u32,
    tally: Tally,
    _place: Place<Name>,
}

/// What a session waits for.
enum Happened {
    Said(Option<Result<Message, WsError>>),
    Answered(Result<Answer, Ended>),
    KeepAlive,
    Tick,
    Routes(bool),
    Stop,
}

impl Session {
    async fn talk(&mut self, socket: &mut Socket, heard: &AtomicBool, stop: &CancellationToken) -> Ended {
        let mut ticks = ticks(self.front.limits.idle / PINGS);
        let (mut silent, mut stopping, mut routes_change) = (0, false, true);
        let mut asked_last = Instant::now();
        loop {
            if stopping && self.posting.is_none() {
                return Ended::Stopping;
            }
            if self.posting.is_none() && !self.waiting.events.is_empty() {
                self.posting = Some(self.post());
            }
            let may_say = self.waiting.has_room() && !stopping;
            let ask_at = self.keep_alive.filter(|_| self.posting.is_none()).map(|every| asked_last + every);
            let happened = tokio::select! {
                () = stop.cancelled(), if !stopping => Happened::Stop,
                said = socket.next(), if may_say => Happened::Said(said),
                answer = answer(&mut self.posting) => Happened::Answered(answer),
                () = sleep_until(ask_at.unwrap_or_else(Instant::now)), if ask_at.is_some() => Happened::KeepAlive,
                _ = ticks.tick() => Happened::Tick,
                changed = self.routes.changed(), if routes_change => Happened::Routes(changed.is_ok()),
            };
            let went = match happened {
                Happened::Stop => {
                    stopping = true;
                    Ok(())
                }
                Happened::Said(said) => self.hear(said),
                Happened::Answered(answer) => {
                    self.posting = None;
                    asked_last = Instant::now();
                    self.answered(socket, answer).await
                }
                Happened::KeepAlive => {
                    self.posting = Some(self.post());
                    Ok(())
                }
                Happened::Tick => {
                    let quiet = !heard.swap(false, Ordering::Relaxed) && may_say;
                    silent = if quiet { silent + 1 } else { 0 };
                    self.ping(socket, silent).await
                }
                Happened::Routes(still) => {
                    routes_change = still;
                    self.find_again()
                }
            };
            if let Err(ended) = went {
                return ended;
            }
        }
    }

    /// What the client said, or its end.
    fn hear(&mut self, said: Option<Result<Message, WsError>>) -> Result<(), Ended> {
        let (kind, content) = match said.ok_or(Ended::Gone)?.map_err(Ended::of)? {
            Message::Text(text) => (Kind::Text, Bytes::from(text)),
            Message::Binary(bytes) => (Kind::Binary, bytes),
            Message::Close(frame) => return Err(Ended::Client(frame)),
            Message::Pong(content) if content.is_empty() && self.pings > 0 => {
                self.pings -= 1;
                self.waiting.push(Event::bare(Kind::Pong));
                return Ok(());
            }
            // Pings are answered by the library.
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => return Ok(()),
        };
        self.tally.received(content.len());
        self.waiting.push(Event { kind, content });
        Ok(())
    }

    /// Sends what waits, or nothing, to the actor.
    fn post(&mut self) -> Posting {
        // The actor's bound may be another since its last revision.
        self.waiting.bytes_max = message_max(&self.front, &self.route);
        let batch = self.waiting.take();
        let request = self.carried.request(&self.meta, events::encode(&batch));
        let bytes_max = self.front.limits.answer_bytes_max;
        Box::pin(post::post(self.front.clone(), self.route.clone(), request, bytes_max))
    }

    async fn answered(&mut self, socket: &mut Socket, answer: Result<Answer, Ended>) -> Result<(), Ended> {
        let Answer { headers, events } = answer?;
        self.meta.take(&headers).map_err(|why| self.failed(&why))?;
        match handshake::keep_alive(&headers) {
            Some(Duration::ZERO) => self.keep_alive = None,
            Some(every) => self.keep_alive = Some(every),
            None => {}
        }
        self.say(socket, events).await
    }

    /// Tells the client what the actor said. Returns when the client's side has taken all of it.
    async fn say(&mut self, socket: &mut Socket, events: Vec<Event>) -> Result<(), Ended> {
        // Nothing of before is left in the buffer, whose size is bounded.
        socket.flush().await.map_err(Ended::of)?;
        for Event { kind, content } in events {
            let (bytes, max) = (content.len(), self.front.limits.message_bytes_max);
            if bytes > max {
                return Err(self.failed(&format!("answered with a message of {bytes} bytes: it may have {max}")));
            }
            let message = match kind {
                Kind::Text => Message::Text(
                    Utf8Bytes::try_from(content)
                        .map_err(|_| self.failed("answered with a TEXT event that is not UTF-8"))?,
                ),
                Kind::Binary => Message::Binary(content),
                Kind::Ping => {
                    self.pings = self.pings.saturating_add(1);
                    Message::Ping(Bytes::new())
                }
                Kind::Pong => Message::Pong(Bytes::new()),
                Kind::Close => return Err(close_of(&content).map_or_else(|why| self.failed(&why), Ended::Actor)),
                Kind::Disconnect => return Err(Ended::Dropped),
                Kind::Open => continue,
            };
            socket.feed(message).await.map_err(Ended::of)?;
            if matches!(kind, Kind::Text | Kind::Binary) {
                self.tally.sent(bytes);
            }
        }
        socket.flush().await.map_err(Ended::of)
    }

    async fn ping(&mut self, socket: &mut Socket, silent: u32) -> Result<(), Ended> {
        match silent {
            0 => Ok(()),
            PINGS.. => Err(Ended::Silent(self.front.limits.idle)),
            _ => socket.send(Message::Ping(Bytes::from_static(OUR_PING))).await.map_err(Ended::of),
        }
    }

    /// The same actor may have other limits now; another one knows nothing of this connection.
    fn find_again(&mut self) -> Result<(), Ended> {
        let host = self.carried.host().to_owned();
        let found = self.routes.borrow_and_update().find(&host, self.carried.uri.path()).cloned();
        let same = |found: &Arc<Route>| (&found.app, &found.actor) == (&self.route.app, &self.route.actor);
        self.route = found.filter(same).ok_or(Ended::NoRoute)?;
        Ok(())
    }

    fn failed(&self, why: &str) -> Ended {
        Ended::Failed(format!("actor {}/{} {why}", self.route.app, self.route.actor))
    }

    /// Tells both sides of the end: first the client, who waits for it.
    async fn finish(mut self, socket: Option<Socket>, ended: Ended) {
        tracing::debug!(app = %self.route.app, actor = %self.route.actor, %ended, "websocket ended");
        self.tally.ended = Some(ended.why());
        if let Some(socket) = socket {
            let _ = timeout(CLOSE_WAIT, farewell(socket, ended.farewell())).await;
        }
        if let Some(posting) = self.posting.take()
            && let Ok(answer) = posting.await
        {
            let _ = self.meta.take(&answer.headers);
        }
        if !ended.keeps_waiting() {
            self.waiting.events.clear();
        }
        let Some(last) = ended.event() else { return };
        self.waiting.push(last.clone());
        while !self.waiting.events.is_empty() {
            if self.post().await.is_err() && !self.waiting.events.is_empty() {
                // The end is told in any case.
                self.waiting.events.clear();
                self.waiting.push(last.clone());
            }
        }
    }
}

/// Never ready while there is no request.
async fn answer(posting: &mut Option<Posting>) -> Result<Answer, Ended> {
    match posting {
        Some(posting) => posting.await,
        None => pending().await,
    }
}

fn ticks(every: Duration) -> Interval {
    let mut ticks = interval(every.max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.reset();
    ticks
}

async fn farewell(mut socket: Socket, farewell: Farewell) {
    let mut agreed = farewell == Farewell::Answered;
    match farewell {
        Farewell::Nothing => return,
        Farewell::Close(frame) => {
            let _ = socket.close(frame).await;
        }
        Farewell::Answered => {
            let _ = socket.flush().await;
        }
    }
    while let Some(Ok(message)) = socket.next().await {
        agreed |= message.is_close();
    }
    let io = socket.get_mut();
    let _ = io.shutdown().await;
    // Bytes that still come, and that nobody reads, would reset the connection before the client has read why it ends.
    let mut rest = [0; 1_024];
    while !agreed && io.read(&mut rest).await.is_ok_and(|read| read > 0) {}
}

/// What a client said while its actor was asked.
struct Waiting {
    events: VecDeque<Event>,
    bytes: usize,
    bytes_max: usize,
}

impl Waiting {
    fn has_room(&self) -> bool {
        self.events.len() < WAITING_MAX && self.bytes < self.bytes_max
    }

    fn push(&mut self, event: Event) {
        self.bytes += event.bytes_max();
        self.events.push_back(event);
    }

    /// The next that fit into one request, at least one.
    fn take(&mut self) -> Vec<Event> {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while let Some(event) = self.events.front() {
            bytes += event.bytes_max();
            let full = batch.len() == BATCH_MAX || bytes > self.bytes_max + FRAMING_BYTES_MAX;
            if full && !batch.is_empty() {
                break;
            }
            batch.extend(self.events.pop_front());
        }
        self.bytes = self.events.iter().map(Event::bytes_max).sum();
        batch
    }
}

/// What is counted of one connection; told when it is dropped, however that comes.
struct Tally {
    meter: Arc<Meter>,
    traffic: Arc<Traffic>,
    entry: Option<Box<Entry>>,
    sockets: Sockets,
    /// An index of `WHYS`; none when the connection was cut.
    ended: Option<usize>,
}

impl Tally {
    fn begin(meter: Arc<Meter>, traffic: Arc<Traffic>, entry: Option<Box<Entry>>) -> Self {
        traffic.sockets.opened.add(1);
        Self { meter, traffic, entry, sockets: Sockets::default(), ended: None }
    }

    fn received(&mut self, bytes: usize) {
        self.sockets.messages_in += 1;
        self.sockets.bytes_in += bytes as u64;
        self.traffic.sockets.received.add(1);
    }

    fn sent(&mut self, bytes: usize) {
        self.sockets.messages_out += 1;
        self.traffic.sockets.sent.add(1);
        if let Some(entry) = &mut self.entry {
            entry.bytes += bytes as u64;
        }
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        let why = self.ended.unwrap_or(super::WHYS.len() - 1);
        self.traffic.sockets.ended.add(1);
        self.meter.sockets_ended[why].add(1);
        if let Some(entry) = &mut self.entry {
            self.sockets.ended = super::WHYS[why];
            entry.sockets = Some(self.sockets.clone());
            entry.complete = matches!(self.sockets.ended, "client" | "actor");
        }
    }
}

/// The client's connection, which remembers that something came.
struct Heard {
    io: TokioIo<Upgraded>,
    heard: Arc<AtomicBool>,
}

impl AsyncRead for Heard {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.heard.store(true, Ordering::Relaxed);
        }
        polled
    }
}

impl AsyncWrite for Heard {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_is_bounded_and_goes_in_order_in_pieces_that_fit() {
        let mut waiting = Waiting { events: VecDeque::new(), bytes: 0, bytes_max: 100 };
        let text = |n: u8, len: usize| Event { kind: Kind::Text, content: vec![n; len].into() };
        assert!(waiting.take().is_empty());
        for (n, len) in [(1, 20), (2, 40), (3, 90), (4, 0)] {
            waiting.push(text(n, len));
        }
        assert!(!waiting.has_room());
        assert_eq!(waiting.take(), [text(1, 20), text(2, 40)]);
        assert!(!waiting.has_room(), "{} bytes", waiting.bytes);
        assert_eq!(waiting.take(), [text(3, 90)]);
        assert!(waiting.has_room());
        assert_eq!((waiting.take(), waiting.bytes), (vec![text(4, 0)], 0));
        // One that is larger than the bound has become goes alone.
        waiting.push(text(5, 1_000));
        assert_eq!(waiting.take(), [text(5, 1_000)]);
        waiting.bytes_max = 1 << 30;
        for _ in 0..WAITING_MAX {
            assert!(waiting.has_room());
            waiting.push(text(6, 0));
        }
        assert!(!waiting.has_room());
        assert_eq!((waiting.take().len(), waiting.events.len()), (BATCH_MAX, WAITING_MAX - BATCH_MAX));
    }
}
