//! One request of a connection to its actor: events there, events back. Bounded in time by the actor's deadline, in size
//! by what the ingress keeps of an answer.

use super::ended::Ended;
use super::events::{self, Event};
use super::full;
use super::handshake::{Meta, has_events};
use crate::call::{Body, CallError};
use crate::ingress::Route;
use crate::ingress::answer::{Front, host_of, plain, refuse};
use crate::origin::Origin;
use crate::rpc::strip_hop_by_hop;
use crate::spans::{self, Kind as SpanKind};
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::timeout;

/// Events in one answer.
const ANSWER_EVENTS_MAX: usize = 4_096;
/// What an answer may take beyond the actor's own deadline, so that it is the actor's host that tells of it.
const SLACK: Duration = Duration::from_secs(5);

/// What every request of one connection has: those of its handshake.
pub(super) struct Carried {
    pub(super) uri: Uri,
    pub(super) headers: HeaderMap,
}

impl Carried {
    /// The host that the client asked for.
    pub(super) fn host(&self) -> &str {
        host_of(&self.uri, &self.headers).unwrap_or_default()
    }

    pub(super) fn request(&self, meta: &Meta, body: Bytes) -> Request<Body> {
        let length = HeaderValue::from(body.len());
        let mut request = Request::new(full(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers.clone();
        meta.put(request.headers_mut());
        request.headers_mut().insert(CONTENT_LENGTH, length);
        request
    }
}

/// What the actor answers, head first; an error is the answer that a client of HTTP gets.
pub(super) async fn ask(
    front: &Front,
    route: &Route,
    request: Request<Body>,
) -> Result<Response<Body>, Response<Body>> {
    match within(route, front.dispatch.http(route, request)).await {
        Ok(response) if response.status().is_informational() => {
            let text = format!("actor {}/{} answered with status {}", route.app, route.actor, response.status());
            Err(plain(StatusCode::BAD_GATEWAY, &text))
        }
        Ok(mut response) => {
            strip_hop_by_hop(response.headers_mut());
            Ok(response)
        }
        Err(error) => Err(refuse(&error)),
    }
}

async fn within<T>(route: &Route, asked: impl Future<Output = Result<T, CallError>>) -> Result<T, CallError> {
    let late = |_| CallError::Deadline(format!("actor {}/{} gave no answer in its time", route.app, route.actor));
    timeout(route.deadline + SLACK, asked).await.map_err(late)?
}

/// The whole body of an answer with events, or what the actor did wrong.
pub(super) async fn whole(body: Body, bytes_max: usize, route: &Route) -> Result<Bytes, String> {
    let read = timeout(route.deadline + SLACK, Limited::new(body, bytes_max).collect());
    match read.await {
        Err(_) => Err("did not end its answer in its time".to_owned()),
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(e)) if e.is::<LengthLimitError>() => {
            Err(format!("answered with more than {bytes_max} bytes of events, which is the most at a time"))
        }
        Ok(Err(e)) => Err(format!("broke off its answer: {e}")),
    }
}

pub(super) fn decode(body: &Bytes) -> Result<Vec<Event>, String> {
    events::decode(body, ANSWER_EVENTS_MAX).map_err(|why| format!("answered with events that can not be read: {why}"))
}

/// What an actor said, and the headers it came with.
pub(super) struct Answer {
    pub(super) headers: HeaderMap,
    pub(super) events: Vec<Event>,
}

/// Sends events of an open connection. An error ends it.
pub(super) async fn post(
    front: Arc<Front>,
    route: Arc<Route>,
    mut request: Request<Body>,
    bytes_max: usize,
) -> Result<Answer, Ended> {
    let begun = Instant::now();
    let mut span = spans::begin(SpanKind::Server, || Origin::of(request.headers()), || "POST".to_owned());
    if span.is_on() {
        span.set("http.request.method", "POST");
        span.set("lattice.app", route.app.to_string());
        span.set("lattice.actor", route.actor.to_string());
        spans::put(&span, request.headers_mut());
    }
    let asked = within(&route, front.dispatch.http(&route, request)).await;
    spans::ended(&mut span, &asked);
    let status = asked.as_ref().map_or_else(|error| refuse(error).status(), Response::status);
    route.traffic.answered(status, begun.elapsed());
    drop(span);
    let response = asked.map_err(Ended::of_call)?;
    let failed = |why: String| Ended::Failed(format!("actor {} {why}", whom(&route)));
    if !status.is_success() {
        return Err(failed(format!("answered with status {}", status.as_u16())));
    }
    let (head, body) = response.into_parts();
    let body = whole(body, bytes_max, &route).await.map_err(failed)?;
    if !body.is_empty() && !has_events(&head.headers) {
        return Err(failed(format!("answered with something else than {}", events::MEDIA_TYPE)));
    }
    Ok(Answer { headers: head.headers, events: decode(&body).map_err(failed)? })
}

fn whom(route: &Route) -> String {
    format!("{}/{}", route.app, route.actor)
}
