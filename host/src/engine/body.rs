//! The two bodies of an HTTP invocation, each within its limit: what is sent to the guest, and what the guest writes. One
//! that grows past it ends with an error that names the limit; nothing is kept here but the piece at hand.

use super::failed::bytes_text;
use super::output::Log;
use super::state::Env;
use crate::call::{Body, CallError};
use bytes::Bytes;
use http::Request;
use http::header::CONTENT_LENGTH;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body as _, Frame, SizeHint};
use proto::app::Limits;
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};
use wasmtime_wasi_http::Error;
use wasmtime_wasi_http::p2::body::HyperOutgoingBody;

/// What became of a request's body.
pub(super) struct Asked {
    /// Nothing when there was none.
    over: Option<Arc<OnceLock<CallError>>>,
}

impl Asked {
    /// The request, cut off where its body is too large; refused at once when it says so itself.
    pub(super) fn limit(
        request: Request<Body>,
        label: &str,
        limits: &Limits,
    ) -> Result<(Request<Body>, Self), CallError> {
        let max = limits.request_bytes_max;
        let said = request.headers().get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
        let is_more = said.is_some_and(|bytes| bytes > max) || request.body().size_hint().lower() > max;
        if request.body().is_end_stream() && !is_more {
            return Ok((request, Self { over: None }));
        }
        let error = CallError::TooLarge(format!(
            "the body of a request to actor {label} has more than {}; raise limits.request",
            bytes_text(max)
        ));
        if is_more {
            return Err(error);
        }
        let over = Arc::<OnceLock<CallError>>::default();
        let told = over.clone();
        let request = request.map(|inner| Limited { inner, left: max, max, over, error: Some(error) }.boxed_unsync());
        Ok((request, Self { over: Some(told) }))
    }

    /// Why the invocation failed: its body, if that was too large.
    pub(super) fn or(&self, error: CallError) -> CallError {
        self.over.as_ref().and_then(|over| over.get().cloned()).unwrap_or(error)
    }
}

struct Limited {
    inner: Body,
    left: u64,
    max: u64,
    over: Arc<OnceLock<CallError>>,
    error: Option<CallError>,
}

impl hyper::body::Body for Limited {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let Some(frame) = std::task::ready!(Pin::new(&mut self.inner).poll_frame(cx)) else { return Poll::Ready(None) };
        let bytes = frame.as_ref().ok().and_then(Frame::data_ref).map_or(0, Bytes::len);
        match self.left.checked_sub(u64::try_from(bytes).unwrap_or(u64::MAX)) {
            Some(left) => {
                self.left = left;
                Poll::Ready(Some(frame))
            }
            None => {
                self.left = 0;
                if let Some(error) = self.error.take() {
                    let _ = self.over.set(error);
                }
                Poll::Ready(Some(Err(Error::HttpRequestBodySize(Some(self.max)))))
            }
        }
    }
    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }
    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// How much a guest may still answer, and what is said when it is more.
pub(super) struct Answer {
    left: u64,
    env: Arc<Env>,
    log: Arc<Log>,
}

impl Answer {
    pub(super) fn limit(env: &Arc<Env>, log: Arc<Log>) -> Self {
        Self { left: env.limits.response_bytes_max, env: env.clone(), log }
    }

    fn take(&mut self, bytes: usize) -> Result<(), Error> {
        match self.left.checked_sub(u64::try_from(bytes).unwrap_or(u64::MAX)) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => {
                let max = bytes_text(self.env.limits.response_bytes_max);
                let text = format!("the answer of actor {} has more than {max}; raise limits.response", self.env.label);
                self.log.note("error", &text);
                Err(Error::InternalError(Some(text)))
            }
        }
    }
}

/// A response's body as the guest writes it. If the guest breaks off, so does the body: a client must not take half
/// of it for the whole.
pub(super) struct Outgoing {
    inner: HyperOutgoingBody,
    broken: Option<Arc<OnceLock<CallError>>>,
    answer: Answer,
}

impl Outgoing {
    pub(super) fn new(inner: HyperOutgoingBody, broken: Arc<OnceLock<CallError>>, answer: Answer) -> Self {
        Self { inner, broken: Some(broken), answer }
    }

    /// The body of a guest that has ended. One that is there in one piece is given as such: its length is known, so it
    /// goes out with its head, and not in chunks.
    pub(super) fn at_once(mut self) -> Body {
        let mut look = || Pin::new(&mut self).poll_frame(&mut Context::from_waker(Waker::noop()));
        let piece = match look() {
            Poll::Ready(None) => Ok(Bytes::new()),
            Poll::Ready(Some(Ok(frame))) => frame.into_data().map_err(Ok),
            Poll::Ready(Some(Err(error))) => Err(Err(error)),
            Poll::Pending => return self.boxed_unsync(),
        };
        let (first, second) = match piece {
            Ok(bytes) => match look() {
                Poll::Ready(None) => return Full::new(bytes).map_err(|never| match never {}).boxed_unsync(),
                Poll::Ready(Some(second)) => (Ok(Frame::data(bytes)), Some(second)),
                Poll::Pending => (Ok(Frame::data(bytes)), None),
            },
            Err(other) => (other, None),
        };
        let seen = [Some(first), second].into_iter().flatten().collect();
        Begun { seen, rest: self }.boxed_unsync()
    }
}

/// A body of which some was looked at.
struct Begun {
    seen: VecDeque<Result<Frame<Bytes>, Error>>,
    rest: Outgoing,
}

impl hyper::body::Body for Begun {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match self.seen.pop_front() {
            Some(frame) => Poll::Ready(Some(frame)),
            None => Pin::new(&mut self.rest).poll_frame(cx),
        }
    }
}

impl hyper::body::Body for Outgoing {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match std::task::ready!(Pin::new(&mut self.inner).poll_frame(cx)) {
            Some(Ok(frame)) => {
                let bytes = frame.data_ref().map_or(0, Bytes::len);
                Poll::Ready(Some(self.answer.take(bytes).map(|()| frame)))
            }
            Some(Err(e)) => Poll::Ready(Some(Err(e))),
            None => {
                let broken = self.broken.take();
                let error = broken.and_then(|b| b.get().map(|e| Error::InternalError(Some(e.to_string()))));
                Poll::Ready(error.map(Err))
            }
        }
    }
    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }
    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
