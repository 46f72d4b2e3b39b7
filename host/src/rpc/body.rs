//! Bodies on their way to another host: in the message while they are small and there at once, else as a stream. So an
//! answer that comes bit by bit arrives bit by bit, and its sender writes no faster than it is read.

use super::refusal;
use crate::call::{Body, CallError};
use bus::{Bus, Offer, Pull, Refusal};
use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt, stream};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Body as _, Frame};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use wasmtime_wasi_http::Error;

/// In one message, with its head.
const WHOLE_BYTES_MAX: usize = 128 * 1024;
/// A body that is not complete after so long goes as a stream.
const WHOLE_WAIT: Duration = Duration::from_millis(10);

/// How a body travels.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Carried {
    Whole(Bytes),
    /// It is offered at this address of the bus.
    Offered(String),
}

impl Carried {
    /// Bytes that it adds to a message.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Whole(bytes) => bytes.len(),
            Self::Offered(address) => address.len(),
        }
    }
}

/// A body of which it is known how it travels.
pub(super) enum Gathered {
    Whole(Bytes),
    /// All of it, with what was read already.
    More(Body),
}

pub(super) async fn gather(mut body: Body) -> Result<Gathered, Error> {
    if body.size_hint().lower() > WHOLE_BYTES_MAX as u64 {
        return Ok(Gathered::More(body));
    }
    let end = tokio::time::Instant::now() + WHOLE_WAIT;
    let mut had = BytesMut::new();
    while had.len() <= WHOLE_BYTES_MAX {
        match tokio::time::timeout_at(end, body.frame()).await {
            Ok(Some(frame)) => had.extend_from_slice(&frame?.into_data().unwrap_or_default()),
            Ok(None) => return Ok(Gathered::Whole(had.freeze())),
            Err(_) => break,
        }
    }
    let first = stream::iter((!had.is_empty()).then(|| Ok(Frame::data(had.freeze()))));
    let rest = body.into_data_stream().map(|piece| piece.map(Frame::data));
    Ok(Gathered::More(StreamBody::new(first.chain(rest)).boxed_unsync()))
}

/// What is sent of it. `what` names it in the error of one that breaks off.
pub(super) fn pieces(body: Body, what: String) -> impl Stream<Item = Result<Bytes, Refusal>> + Send {
    let broken = move |e: Error| refusal(CallError::Trapped(format!("{what} broke off: {e}")));
    body.into_data_stream().map(move |piece| piece.map_err(&broken))
}

/// The end of an offer that is sent beside something else; ends with it, unless that came to its end.
pub(super) struct Upload(Option<tokio::task::AbortHandle>);

impl Upload {
    pub(super) fn start(offer: Offer, body: Body, what: String, end: Instant) -> Self {
        let sent = tokio::spawn(async move {
            if let Err(error) = offer.patient().send(pieces(body, what), end).await {
                tracing::debug!(%error, "a request's body was not taken to its end");
            }
        });
        Self(Some(sent.abort_handle()))
    }

    /// Who answered before it has read everything may read on.
    fn goes_on(mut self) {
        self.0 = None;
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Some(sent) = &self.0 {
            sent.abort();
        }
    }
}

/// What came of a body.
enum Came {
    Piece(Bytes),
    Broken(bus::Error),
    End,
}

/// The body that was carried so, until `end`. `upload` is what the same caller sends meanwhile.
pub(super) async fn arrived(
    bus: &Bus,
    carried: Carried,
    end: Instant,
    upload: Option<Upload>,
) -> Result<Body, bus::Error> {
    let address = match carried {
        Carried::Whole(bytes) => {
            if let Some(upload) = upload {
                upload.goes_on();
            }
            return Ok(full(bytes));
        }
        Carried::Offered(address) => address,
    };
    let pull = bus.pull(&address, end).await?;
    let (came, mut coming) = mpsc::channel(1);
    // By itself, so that a body that nobody looks at any more ends in time too.
    tokio::spawn(async move {
        tokio::select! {
            () = take(pull, &came, upload) => {}
            () = came.closed() => {}
            () = tokio::time::sleep_until(end.into()) => {}
        }
    });
    let after = end.saturating_duration_since(Instant::now());
    let late = move || bus::Error::Deadline { subject: address.clone(), after };
    let frames = stream::poll_fn(move |cx| coming.poll_recv(cx).map(Some)).scan(false, move |is_over, came| {
        let next = match came {
            _ if *is_over => None,
            Some(Came::Piece(piece)) => Some(Ok(Frame::data(piece))),
            Some(Came::End) => None,
            Some(Came::Broken(error)) => Some(Err(error)),
            None => Some(Err(late())),
        };
        *is_over = !matches!(next, Some(Ok(_)));
        std::future::ready(next.map(|next| next.map_err(|e| Error::InternalError(Some(e.to_string())))))
    });
    Ok(StreamBody::new(frames).boxed_unsync())
}

async fn take(mut pull: Pull, came: &mpsc::Sender<Came>, upload: Option<Upload>) {
    loop {
        let next = match pull.next().await {
            Ok(Some(piece)) => Came::Piece(piece),
            Ok(None) => {
                if let Some(upload) = upload {
                    upload.goes_on();
                }
                let _ = came.send(Came::End).await;
                return;
            }
            Err(error) => Came::Broken(error),
        };
        let is_piece = matches!(next, Came::Piece(_));
        if came.send(next).await.is_err() || !is_piece {
            return;
        }
    }
}

pub(super) fn full(body: Bytes) -> Body {
    Full::new(body).map_err(|never| match never {}).boxed_unsync()
}
