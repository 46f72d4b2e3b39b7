//! WebSocket, for actors that know nothing but HTTP: WebSocket-over-HTTP, as Pushpin published it. The ingress speaks
//! WebSocket with the client; what the client says becomes events in the body of a POST to the actor, and the events in
//! the body of its answer become what the client is told. One POST at a time for each connection; what comes meanwhile
//! goes with the next. Never holds more for one client than a message and an answer of bounded size.
//!
//! Reading order: `events` (bytes of events; pure), `handshake` (heads; pure), `post` (one request to the actor),
//! `ended` (why a connection ends, and what each side is told), `session` (one connection).

mod ended;
pub(super) mod events;
mod handshake;
mod post;
mod session;

pub(super) use ended::WHYS;
pub(super) use handshake::{has_events, is_wanted};
pub(super) use session::serve;

use super::Route;
use super::access::Entry;
use super::answer::{Front, plain};
use super::shares::{Full as NoPlace, Place};
use crate::call::Body;
use bytes::Bytes;
use events::{Event, Kind};
use handshake::Meta;
use http::header::{HeaderValue, RETRY_AFTER, SEC_WEBSOCKET_VERSION};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use post::Carried;
use proto::app::Name;
use std::sync::Arc;
use std::time::Duration;

/// A handshake that the actor agreed to, until the connection is handed over.
pub(super) struct Opened {
    upgrade: OnUpgrade,
    route: Arc<Route>,
    carried: Carried,
    meta: Meta,
    keep_alive: Option<Duration>,
    /// What the actor said at once.
    first: Vec<Event>,
    /// Bytes of a message.
    message_max: usize,
    place: Place<Name>,
    /// The line of the access log; written when the connection has ended.
    entry: Option<Box<Entry>>,
}

impl Opened {
    pub(super) fn with(self, entry: Option<Box<Entry>>) -> Self {
        Self { entry, ..self }
    }
}

/// Asks the actor whether it wants this connection. An error is the answer that the client gets instead.
pub(super) async fn open(
    front: &Front,
    route: &Arc<Route>,
    mut request: Request<Incoming>,
) -> Result<(Response<Body>, Opened), Response<Body>> {
    let refuse = |status, why: &str| {
        front.meter.refused.add(1);
        plain(status, why)
    };
    let offer = handshake::check(&request).map_err(|wrong| {
        let mut response = refuse(wrong.status(), &wrong.to_string());
        response.headers_mut().insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        response
    })?;
    let place = front.sockets.take(route.app.clone()).map_err(|full| {
        let max = front.limits.sockets_max;
        let text = match full {
            NoPlace::All => format!("{max} WebSockets are open at this ingress, which is the most it has"),
            NoPlace::Share(has) => format!(
                "app {} has {has} of the {max} WebSockets that this ingress can have, as many as are left for all others",
                route.app
            ),
        };
        let mut response = refuse(StatusCode::SERVICE_UNAVAILABLE, &text);
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
        response
    })?;
    let upgrade = hyper::upgrade::on(&mut request);
    let (parts, _) = request.into_parts();
    let carried = Carried { uri: parts.uri, headers: handshake::carried(parts.headers, connection_id()) };
    let message_max = message_max(front, route);
    let body = events::encode(&[Event::bare(Kind::Open)]);
    let asked = carried.request(&Meta::default(), body);
    let response = post::ask(front, route, asked).await?;
    if !response.status().is_success() || !has_events(response.headers()) {
        return Err(response);
    }
    let bad = |why: &str| plain(StatusCode::BAD_GATEWAY, &format!("actor {}/{} {why}", route.app, route.actor));
    let (head, body) = response.into_parts();
    let body = post::whole(body, front.limits.answer_bytes_max, route).await.map_err(|why| bad(&why))?;
    let mut said = post::decode(&body).map_err(|why| bad(&why))?;
    if said.first().is_none_or(|first| first.kind != Kind::Open) {
        return Err(Response::from_parts(head, full(body)));
    }
    said.remove(0);
    let mut meta = Meta::default();
    meta.take(&head.headers).map_err(|why| bad(&why))?;
    let keep_alive = handshake::keep_alive(&head.headers).filter(|every| !every.is_zero());
    let response = handshake::accepted(head, offer, full(Bytes::new())).map_err(|why| bad(&why))?;
    let opened = Opened {
        upgrade,
        route: route.clone(),
        carried,
        meta,
        keep_alive,
        first: said,
        message_max,
        place,
        entry: None,
    };
    Ok((response, opened))
}

/// Bytes of one message, and of all that one POST or one answer carries.
fn message_max(front: &Front, route: &Route) -> usize {
    let actor = usize::try_from(route.request_bytes_max).unwrap_or(usize::MAX);
    front.limits.message_bytes_max.min(actor.saturating_sub(events::FRAMING_BYTES_MAX))
}

/// Nobody else's, and not to be guessed.
fn connection_id() -> HeaderValue {
    let mut bytes = [0; 16];
    if getrandom::fill(&mut bytes).is_err() {
        bytes = crate::origin::random();
    }
    let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    HeaderValue::try_from(text).expect("digits are a header's value")
}

fn full(body: Bytes) -> Body {
    Full::new(body).map_err(|never| match never {}).boxed_unsync()
}

#[cfg(test)]
mod tests;
