//! The two bodies of a request as the ingress sees them: what a client sends, which must go on, and what it is sent, which
//! it must take. Also what one HTTP/2 connection does, so that one that does nothing can be told from one that is served.

use super::access::Entry;
use crate::call::Body;
use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Frame, Incoming, SizeHint};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::{Sleep, sleep};
use wasmtime_wasi_http::Error;

/// A request's body whose next piece must come within `wait`; else `stalled` says that it did not.
pub(super) fn patient(inner: Incoming, wait: Duration, stalled: Option<Arc<AtomicBool>>) -> Body {
    Patient { inner, wait, late: None, stalled }.boxed_unsync()
}

struct Patient {
    inner: Incoming,
    wait: Duration,
    /// While the client sends nothing.
    late: Option<Pin<Box<Sleep>>>,
    stalled: Option<Arc<AtomicBool>>,
}

impl hyper::body::Body for Patient {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.inner).poll_frame(cx) {
            this.late = None;
            return Poll::Ready(frame.map(|frame| frame.map_err(Error::from)));
        }
        let late = this.late.get_or_insert_with(|| Box::pin(sleep(this.wait)));
        ready!(late.as_mut().poll(cx));
        if let Some(stalled) = &this.stalled {
            stalled.store(true, Ordering::Relaxed);
        }
        Poll::Ready(Some(Err(Error::ConnectionReadTimeout)))
    }
    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }
    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// A response's body on its way out, where somebody wants to know what becomes of it.
pub(super) struct Sent {
    inner: Body,
    entry: Option<Box<Entry>>,
    open: Option<Open>,
}

impl Sent {
    pub(super) fn new(inner: Body, entry: Option<Box<Entry>>, activity: Option<&Arc<Activity>>) -> Self {
        Self { inner, entry, open: activity.map(Open::begin) }
    }
}

impl hyper::body::Body for Sent {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(cx);
        if let Some(open) = &mut self.open {
            open.polled(polled.is_ready());
        }
        let frame = ready!(polled);
        if let Some(entry) = &mut self.entry {
            match &frame {
                Some(Ok(frame)) => entry.bytes += frame.data_ref().map_or(0, |data| data.len() as u64),
                Some(Err(_)) => {}
                None => entry.complete = true,
            }
        }
        Poll::Ready(frame)
    }
    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }
    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        // A body that is known to have ended is not asked again.
        if let Some(entry) = &mut self.entry {
            entry.complete |= self.inner.is_end_stream();
        }
    }
}

/// What is under way on one HTTP/2 connection.
#[derive(Default)]
pub(super) struct Activity {
    begun: AtomicU64,
    ended: AtomicU64,
    /// Bodies on their way out; those of them whose next piece the actor has not given yet.
    open: AtomicU64,
    waiting: AtomicU64,
    /// Pieces that were taken.
    moved: AtomicU64,
}

/// What a connection is that did nothing for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Quiet {
    /// Nothing is under way.
    Idle,
    /// Its client takes nothing of what there is for it.
    Stalled,
}

impl Activity {
    /// Returns when the client did nothing for `wait`. An actor that lets its client wait is no silence of the client.
    pub(super) async fn quiet(&self, wait: Duration) -> Quiet {
        let done = || (self.begun.load(Ordering::Relaxed), self.moved.load(Ordering::Relaxed));
        loop {
            let before = done();
            sleep(wait).await;
            let now = done();
            let open = self.open.load(Ordering::Relaxed);
            if now != before {
                continue;
            }
            if open > self.waiting.load(Ordering::Relaxed) {
                return Quiet::Stalled;
            }
            if open == 0 && now.0 == self.ended.load(Ordering::Relaxed) {
                return Quiet::Idle;
            }
        }
    }
}

/// A request until the head of its answer is there.
pub(super) struct UnderWay(Arc<Activity>);

impl UnderWay {
    pub(super) fn begin(activity: &Arc<Activity>) -> Self {
        activity.begun.fetch_add(1, Ordering::Relaxed);
        Self(activity.clone())
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::Relaxed);
    }
}

/// A body on its way out.
struct Open {
    activity: Arc<Activity>,
    waiting: bool,
}

impl Open {
    fn begin(activity: &Arc<Activity>) -> Self {
        activity.open.fetch_add(1, Ordering::Relaxed);
        Self { activity: activity.clone(), waiting: false }
    }

    fn polled(&mut self, is_ready: bool) {
        if is_ready {
            self.activity.moved.fetch_add(1, Ordering::Relaxed);
        }
        self.wait(!is_ready);
    }

    fn wait(&mut self, waiting: bool) {
        match (self.waiting, waiting) {
            (false, true) => self.activity.waiting.fetch_add(1, Ordering::Relaxed),
            (true, false) => self.activity.waiting.fetch_sub(1, Ordering::Relaxed),
            _ => 0,
        };
        self.waiting = waiting;
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.wait(false);
        self.activity.open.fetch_sub(1, Ordering::Relaxed);
    }
}
