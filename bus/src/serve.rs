//! The answering end: so many handlers at a time, as many requests waiting, the rest refused at once. A handler ends
//! at the caller's deadline, and one that panics hurts its own request only.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::Message;
use bytes::Bytes;
use futures::FutureExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{timeout, timeout_at};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use crate::client::Bus;
use crate::envelope::{self, Headers, Opening};
use crate::transfer::{self, CALL_BYTES_MAX};
use crate::wire::Feed;
use crate::{Error, Reason, subscription};

/// What a handler gets.
#[derive(Debug, Clone)]
pub struct Request {
    pub subject: String,
    pub headers: Headers,
    pub payload: Bytes,
    /// When the caller stops waiting. The handler is dropped then.
    pub deadline: Instant,
    /// What goes on after the answer.
    pub rest: Rest,
}

/// Runs what an answer began, such as a stream, beyond its handler: draining waits for it.
#[derive(Debug, Clone)]
pub struct Rest(TaskTracker);

impl Rest {
    /// `rest` bounds itself in time.
    pub fn spawn(&self, rest: impl Future<Output = ()> + Send + 'static) {
        self.0.spawn(rest);
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reply {
    pub headers: Headers,
    pub payload: Bytes,
}

/// A named no. The caller gets `Error::Refused`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// A word for programs.
    pub code: String,
    /// A sentence for people: the thing and the next step. One line of at most 2 KiB.
    pub message: String,
}

/// How much of the process the calls of one subject may take. A number by itself is how many run at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    concurrent_max: usize,
    in_place: bool,
}

impl Share {
    /// For handlers that compute for microseconds at most before they wait or are done: they get a task only when they
    /// have to wait. One that computes for long delays the other calls of its subject.
    pub fn in_place(concurrent_max: usize) -> Self {
        Self { concurrent_max, in_place: true }
    }
}

impl From<usize> for Share {
    fn from(concurrent_max: usize) -> Self {
        Self { concurrent_max, in_place: false }
    }
}

/// The bus's own codes.
pub(crate) const OVERLOADED: &str = "overloaded";
const PANICKED: &str = "panicked";
const TOO_LARGE: &str = "too-large";
const BAD_REPLY: &str = "bad-reply";
const BAD_REQUEST: &str = "bad-request";

const UNSUBSCRIBE_WAIT: Duration = Duration::from_secs(2);

/// Dropping it unsubscribes; handlers that run then run to their end.
#[derive(Debug)]
pub struct Serving {
    handlers: TaskTracker,
    stop: DropGuard,
}

impl Serving {
    /// Unsubscribes and waits for the handlers, each of which ends by its deadline.
    pub async fn drain(self) {
        drop(self.stop);
        self.handlers.wait().await;
    }
}

impl Bus {
    /// Answers calls on `subject`, which may have wildcards. Members of one `queue` share the calls. When this
    /// returns and the connection is up, the server knows of it.
    pub async fn serve<H, F>(
        &self,
        subject: String,
        queue: Option<String>,
        share: impl Into<Share>,
        handler: H,
    ) -> Result<Serving, Error>
    where
        H: Fn(Request) -> F + Send + Sync + 'static,
        F: Future<Output = Result<Reply, Refusal>> + Send + 'static,
    {
        let Share { concurrent_max, in_place } = share.into();
        subscription::check(&subject)?;
        if let Some(queue) = &queue {
            envelope::check_subject(queue)?;
        }
        let feed = self.link.wire.listen(subject, queue).await?;
        self.settle().await;
        let concurrent_max = concurrent_max.clamp(1, Semaphore::MAX_PERMITS);
        let handlers = TaskTracker::new();
        let stop = CancellationToken::new();
        let lane = Lane {
            bus: self.clone(),
            handler,
            in_place,
            running: Arc::new(Semaphore::new(concurrent_max)),
            waiting: Arc::new(Semaphore::new(concurrent_max)),
            handlers: handlers.clone(),
        };
        handlers.spawn(Arc::new(lane).run(feed, stop.clone()));
        handlers.close();
        Ok(Serving { handlers, stop: stop.drop_guard() })
    }
}

struct Lane<H> {
    bus: Bus,
    handler: H,
    in_place: bool,
    running: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    handlers: TaskTracker,
}

impl<H, F> Lane<H>
where
    H: Fn(Request) -> F + Send + Sync + 'static,
    F: Future<Output = Result<Reply, Refusal>> + Send + 'static,
{
    async fn run(self: Arc<Self>, mut feed: Feed, stop: CancellationToken) {
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                message = feed.next() => match message {
                    Some(message) => self.accept(message).await,
                    None => return,
                },
            }
        }
        // What the server had sent before it saw the end is still answered. Boxed: thousands of these wait for their first
        // call, in as much memory as the largest of their states takes.
        let rest = Box::pin(async {
            feed.drain().await;
            while let Some(message) = feed.next().await {
                self.accept(message).await;
            }
        });
        if timeout(UNSUBSCRIBE_WAIT, rest).await.is_err() {
            debug!("bus is down: unsubscribed without its word");
        }
    }

    /// Starts a handler, queues it or refuses it; waits for neither.
    async fn accept(self: &Arc<Self>, message: Message) {
        let drops = &self.bus.link.drops;
        let reply_to = message.reply.as_deref().filter(|to| envelope::check_subject(to).is_ok());
        let Some(reply_to) = reply_to.map(str::to_owned) else {
            return drops.count(Reason::Malformed);
        };
        let opening = match envelope::opening(message.headers.as_ref()) {
            Ok(opening) => opening,
            Err(reason) => return drops.count(reason),
        };
        if !self.bus.link.is_new(&reply_to) {
            return drops.count(Reason::Replayed);
        }
        if opening.size.is_some_and(|size| size > CALL_BYTES_MAX) {
            drops.count(Reason::Oversized);
            let text = format!("the request is above the limit of {CALL_BYTES_MAX} bytes: send less at a time");
            return Box::pin(self.refuse(reply_to, TOO_LARGE, text)).await;
        }
        let job = Job { deadline: Instant::now() + opening.left, opening, message, reply_to };
        if let Ok(slot) = Arc::clone(&self.running).try_acquire_owned() {
            let lane = Arc::clone(self);
            let mut answer = Box::pin(async move { lane.answer(job, slot).await });
            // Polled once here, the rest elsewhere: most need no rest.
            if !self.in_place || futures::poll!(answer.as_mut()).is_pending() {
                self.handlers.spawn(answer);
            }
        } else if let Ok(place) = Arc::clone(&self.waiting).try_acquire_owned() {
            let lane = Arc::clone(self);
            self.handlers.spawn(async move {
                let slot = timeout_at(job.deadline.into(), Arc::clone(&lane.running).acquire_owned()).await;
                drop(place);
                if let Ok(Ok(slot)) = slot {
                    lane.answer(job, slot).await;
                }
            });
        } else {
            drops.count(Reason::Overflow);
            let text = format!("{} is at its bound of calls: retry a little later", job.message.subject);
            Box::pin(self.refuse(job.reply_to, OVERLOADED, text)).await;
        }
    }

    async fn answer(&self, job: Job, slot: OwnedSemaphorePermit) {
        let deadline = job.deadline;
        if timeout_at(deadline.into(), self.work(job)).await.is_err() {
            debug!("a handler was ended at its caller's deadline");
        }
        drop(slot);
    }

    async fn work(&self, job: Job) {
        let Job { deadline, opening, message, reply_to } = job;
        let link = &self.bus.link;
        let subject = message.subject.to_string();
        let mut room = None;
        let payload = match opening.size {
            None => message.payload,
            Some(0) => Bytes::new(),
            Some(size) => {
                room = Arc::clone(&link.budget.requests).try_acquire_many_owned(transfer::chunks(size)).ok();
                if room.is_none() {
                    link.drops.count(Reason::Overflow);
                    let text = format!("{subject} holds as many large requests as it may: retry a little later");
                    return self.refuse(reply_to, OVERLOADED, text).await;
                }
                match Box::pin(transfer::receive(link, size, &reply_to)).await {
                    Ok(payload) => payload,
                    Err(error) => return self.refuse(reply_to, BAD_REQUEST, error.to_string()).await,
                }
            }
        };
        let rest = Rest(self.handlers.clone());
        let request = Request { subject: subject.clone(), headers: opening.headers, payload, deadline, rest };
        // Calling the handler is inside, so that a panic before its first await is caught too.
        let handled = AssertUnwindSafe(async { (self.handler)(request).await }).catch_unwind().await;
        drop(room);
        match handled {
            Ok(Ok(reply)) => self.reply(&subject, reply_to, reply).await,
            Ok(Err(refusal)) => self.refuse(reply_to, &refusal.code, refusal.message).await,
            Err(_) => {
                warn!(subject, "a handler panicked");
                let text = format!("what serves {subject} failed: look at its log");
                self.refuse(reply_to, PANICKED, text).await;
            }
        }
    }

    async fn reply(&self, subject: &str, reply_to: String, reply: Reply) {
        let link = &self.bus.link;
        let headers = match envelope::to_wire(&reply.headers) {
            Ok(headers) => headers,
            Err(error) => return self.refuse(reply_to, BAD_REPLY, format!("answer of {subject}: {error}")).await,
        };
        let sent = if reply.payload.len() <= link.message_bytes_max() {
            link.send(reply_to, None, headers, reply.payload).await
        } else if reply.payload.len() <= CALL_BYTES_MAX {
            Box::pin(transfer::send_reply(link, reply_to, headers, reply.payload)).await
        } else {
            let text = format!("the answer is above the limit of {CALL_BYTES_MAX} bytes: ask for less at a time");
            return self.refuse(reply_to, TOO_LARGE, text).await;
        };
        if let Err(error) = sent {
            debug!(subject, %error, "answer not delivered");
        }
    }

    async fn refuse(&self, reply_to: String, code: &str, message: String) {
        let refusal = Refusal { code: code.to_owned(), message };
        // Boxed, so that the many futures that may end in a refusal stay small.
        let sent = Box::pin(self.bus.link.send(reply_to, None, envelope::refusal(&refusal), Bytes::new())).await;
        if let Err(error) = sent {
            debug!(code, %error, "refusal not delivered");
        }
    }
}

/// A request on its way to a handler.
struct Job {
    deadline: Instant,
    opening: Opening,
    message: Message,
    reply_to: String,
}
