//! HTTP requests to an actor on another host. Trailers stay behind.

use super::body::{Carried, Gathered, Upload, arrived, gather, pieces};
use super::head::{self, BODY_BYTES_MAX};
use super::{CONCURRENT_MAX, Slot, call_error, refusal, strip_hop_by_hop};
use crate::call::{Body, CallError, HttpServe};
use crate::origin::Origin;
use crate::spans::{self, Kind};
use bus::{Bus, Headers, Reason, Refusal, Reply, Request, Serving};
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use proto::app::Name;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What an actor exports to answer HTTP, and the last part of its subject.
pub const HTTP_INTERFACE: &str = "wasi:http/incoming-handler";

/// How long a request waits for an actor that no host offers at the moment, or for a bus that is away.
const MOVE_WAIT: Duration = Duration::from_secs(1);
/// Silence after which a request that may be repeated is.
const REPEAT_AFTER: Duration = Duration::from_secs(2);
/// Of a caller that takes an answer as a stream.
const STREAMS: &str = "Lattice-Streams";
/// Longer than the other end takes to say that the time is over.
const STREAM_SLACK: Duration = Duration::from_secs(1);
const MOVE_POLL: Duration = Duration::from_millis(50);

/// The actor `actor` of `app` on whichever host runs it.
pub struct RemoteHttp {
    bus: Bus,
    app: Name,
    actor: Name,
}

impl RemoteHttp {
    pub fn new(bus: Bus, app: Name, actor: Name) -> Self {
        Self { bus, app, actor }
    }
}

impl RemoteHttp {
    /// The client library forgets a subscription before the last messages for it have come, so a request can be lost
    /// when an actor moves. What may be repeated (RFC 9110, 9.2.2) is sent once more when no answer came for a while.
    async fn call_surely(
        &self,
        subject: String,
        message: Bytes,
        end: Instant,
        repeatable: bool,
    ) -> Result<Reply, bus::Error> {
        let first = self.call_when_placed(subject.clone(), message.clone(), end);
        if !repeatable {
            return first.await;
        }
        tokio::pin!(first);
        if let Ok(reply) = tokio::time::timeout(REPEAT_AFTER, &mut first).await {
            return reply;
        }
        let second = self.call_when_placed(subject, message, end);
        tokio::select! {
            reply = first => reply,
            reply = second => reply,
        }
    }

    /// A request that reached nobody was not carried out: while an actor moves from one host to another, it waits for
    /// the other instead of failing.
    async fn call_when_placed(&self, subject: String, message: Bytes, end: Instant) -> Result<Reply, bus::Error> {
        let give_up = Instant::now() + MOVE_WAIT;
        loop {
            if !self.bus.connection().borrow().up {
                if Instant::now() >= give_up.min(end) {
                    return Err(bus::Error::Disconnected);
                }
                tokio::time::sleep(MOVE_POLL).await;
                continue;
            }
            let left = end.saturating_duration_since(Instant::now());
            let headers = Headers::from([(STREAMS.to_owned(), "1".to_owned())]);
            let reply = self.bus.call(subject.clone(), headers, message.clone(), left).await;
            match reply {
                Err(bus::Error::NoResponders { .. }) if Instant::now() < give_up.min(end) => {
                    tokio::time::sleep(MOVE_POLL).await;
                }
                reply => return reply,
            }
        }
    }
}

#[async_trait::async_trait]
impl HttpServe for RemoteHttp {
    async fn http(
        &self,
        request: http::Request<Body>,
        deadline: Option<Duration>,
    ) -> Result<http::Response<Body>, CallError> {
        let left = deadline.unwrap_or(super::DEADLINE_DEFAULT);
        let end = Instant::now() + left;
        let whom = format!("{}/{}", self.app, self.actor);
        let (mut parts, body) = request.into_parts();
        strip_hop_by_hop(&mut parts.headers);
        let mut span = spans::begin(Kind::Client, || Origin::of(&parts.headers), || format!("HTTP of {whom}"));
        spans::put(&span, &mut parts.headers);
        let what = format!("the request's body for {whom}");
        let gathered = gather(body).await.map_err(|e| CallError::Trapped(format!("{what} broke off: {e}")))?;
        let (carried, upload) = match gathered {
            Gathered::Whole(bytes) => (Carried::Whole(bytes), None),
            Gathered::More(body) => {
                let offer = self.bus.offer().map_err(|e| call_error(e, "ingress", "HTTP", &whom))?;
                (Carried::Offered(offer.address()), Some(Upload::start(offer, body, what, end)))
            }
        };
        let message = head::encode_request(&parts, &carried)?;
        let subject = self.bus.subjects().rpc(&self.app, &self.actor, HTTP_INTERFACE);
        let repeatable = upload.is_none() && matches!(parts.method, http::Method::GET | http::Method::HEAD);
        let reply = self.call_surely(subject, message, end, repeatable).await;
        let reply = reply.map_err(|e| call_error(e, "ingress", "HTTP", &whom));
        spans::ended(&mut span, &reply);
        let reply = reply?;
        let (parts, carried) = head::decode_response(reply.payload)?.into_parts();
        let body = arrived(&self.bus, carried, end + STREAM_SLACK, upload).await;
        let body = body.map_err(|e| call_error(e, "ingress", "HTTP", &whom))?;
        Ok(http::Response::from_parts(parts, body))
    }
}

/// Answers HTTP requests for the actor `actor` of `app` from the bus, sharing them with the other hosts that run it,
/// for as long as the result is kept.
pub async fn serve_http(
    bus: &Bus,
    app: &Name,
    actor: &Name,
    serve: Arc<Slot<Arc<dyn HttpServe>>>,
) -> Result<Serving, bus::Error> {
    let subject = bus.subjects().rpc(app, actor, HTTP_INTERFACE);
    let whom: Arc<str> = format!("{app}/{actor}").into();
    let counted = bus.clone();
    let answer = move |request| {
        let (serve, whom, bus) = (serve.clone(), whom.clone(), counted.clone());
        async move { answer(&bus, &*serve.get(), &whom, request).await }
    };
    bus.serve(subject, Some("rpc".to_owned()), CONCURRENT_MAX, answer).await
}

async fn answer(bus: &Bus, serve: &dyn HttpServe, whom: &str, request: Request) -> Result<Reply, Refusal> {
    let Request { headers, payload, deadline, rest, .. } = request;
    let message = head::decode_request(payload).map_err(|e| {
        bus.drops().count(Reason::Malformed);
        refusal(e)
    })?;
    let (parts, carried) = message.into_parts();
    let body = arrived(bus, carried, deadline, None).await;
    let body = body.map_err(|e| refusal(call_error(e, "ingress", "the request's body", whom)))?;
    let left = deadline.saturating_duration_since(Instant::now());
    let response = serve.http(http::Request::from_parts(parts, body), Some(left)).await.map_err(refusal)?;
    let (mut parts, body) = response.into_parts();
    strip_hop_by_hop(&mut parts.headers);
    let what = format!("the response of {whom}");
    let gathered = gather(body).await.map_err(|e| refusal(CallError::Trapped(format!("{what} broke off: {e}"))))?;
    let carried = match gathered {
        Gathered::Whole(bytes) => Carried::Whole(bytes),
        Gathered::More(body) if headers.contains_key(STREAMS) => {
            let offer = bus.offer().map_err(|e| refusal(CallError::Overloaded(e.to_string())))?;
            let address = offer.address();
            rest.spawn(async move {
                if let Err(error) = offer.send(pieces(body, what), deadline).await {
                    tracing::debug!(%error, "an answer was not taken to its end");
                }
            });
            Carried::Offered(address)
        }
        // A caller of a version that knows no streams.
        Gathered::More(body) => Carried::Whole(whole(body, &what).await.map_err(refusal)?),
    };
    let payload = head::encode_response(&parts, &carried).map_err(refusal)?;
    Ok(Reply { headers: Headers::new(), payload })
}

/// The whole body, if it is within its bound. `what` names it.
async fn whole(body: Body, what: &str) -> Result<Bytes, CallError> {
    match Limited::new(body, BODY_BYTES_MAX).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(e) if e.is::<LengthLimitError>() => Err(CallError::TooLarge(format!(
            "{what} is more than {BODY_BYTES_MAX} bytes, which is what crosses the bus to a host that knows no \
             streams; update the host of the ingress"
        ))),
        // The engine's error says what went wrong in the guest; a request's, that the client went away.
        Err(e) => Err(CallError::Trapped(format!("{what} broke off: {e}"))),
    }
}
