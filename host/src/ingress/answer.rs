//! One request: which actor, its answer, or the status that says why there is none. Adds nothing to what the actor
//! answers and takes away only what concerns the connection.

use super::access::{Access, Entry};
use super::connection::Client;
use super::sent::{Activity, Sent, patient};
use super::shares::Shares;
use super::websocket::{self, Opened};
use super::{Behind, Dispatch, Limits, Meter, Route, Routes};
use crate::call::{Body, CallError};
use crate::origin::{Origin, REQUEST_ID, TRACESTATE};
use crate::rpc::strip_hop_by_hop;
use crate::spans::{self, Kind, Span};
use http::header::{CONTENT_TYPE, HOST, HeaderValue, RETRY_AFTER};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body as _, Incoming};
use proto::app::Name;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use tokio::sync::watch;

/// What every connection shares.
pub(super) struct Front {
    pub(super) routes: watch::Receiver<Arc<Routes>>,
    pub(super) dispatch: Arc<dyn Dispatch>,
    access: Option<Arc<Access>>,
    pub(super) meter: Arc<Meter>,
    pub(super) limits: Limits,
    /// Places for WebSockets, by app.
    pub(super) sockets: Arc<Shares<Name>>,
}

/// The connection that a request came by.
#[derive(Clone, Copy)]
pub(super) enum By<'a> {
    /// With room for the WebSocket that it may become.
    Http1(&'a Mutex<Option<Opened>>),
    Http2(&'a Arc<Activity>),
}

impl Front {
    pub(super) fn new(behind: Behind) -> Self {
        let Behind { routes, dispatch, access, meter, limits } = behind;
        let sockets = Shares::new(limits.sockets_max, limits.share_min);
        Self { routes, dispatch, access, meter, limits, sockets }
    }

    pub(super) async fn answer(&self, mut request: Request<Incoming>, client: Client, by: By<'_>) -> Response<Body> {
        let begun = Instant::now();
        let mut span = begin_span(&mut request, client);
        let origin = Origin::admit(request.headers_mut());
        let mut entry = self.access.as_ref().map(|access| Box::new(Entry::begin(access, client, &origin, &request)));
        let mut opened = None;
        let mut response = match self.find(&request) {
            Ok(route) => {
                if let Some(entry) = &mut entry {
                    entry.routed(route.app.as_str(), route.actor.as_str());
                }
                if span.is_on() {
                    span.set("lattice.app", route.app.to_string());
                    span.set("lattice.actor", route.actor.to_string());
                }
                let response = match by {
                    By::Http1(_) if websocket::is_wanted(&request) => {
                        let agreed = Box::pin(websocket::open(self, &route, request)).await;
                        agreed.map_or_else(|refused| refused, |(response, agreed)| (opened = Some(agreed), response).1)
                    }
                    _ => self.ask(&route, request).await,
                };
                route.traffic.answered(response.status(), begun.elapsed());
                response
            }
            Err(refused) => refused,
        };
        if span.is_on() {
            end_span(&mut span, &origin, response.status());
        }
        if let Some(id) = origin.request_id {
            response.headers_mut().insert(REQUEST_ID, id);
        }
        if let Some(entry) = &mut entry {
            entry.answered(response.status());
        }
        let activity = match by {
            By::Http1(slot) if opened.is_some() => {
                let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
                *slot = opened.map(|opened| opened.with(entry));
                return response;
            }
            By::Http1(_) => None,
            By::Http2(activity) => Some(activity),
        };
        match entry.is_some() || activity.is_some() {
            true => response.map(|body| Sent::new(body, entry, activity).boxed_unsync()),
            false => response,
        }
    }

    /// The actor that is asked, or why there is none.
    #[allow(clippy::result_large_err, reason = "it goes to the client at once")]
    fn find(&self, request: &Request<Incoming>) -> Result<Arc<Route>, Response<Body>> {
        let refuse = |status, why: &str| {
            self.meter.refused.add(1);
            Err(plain(status, why))
        };
        let host = match host(request) {
            Ok(host) => host,
            Err(why) => return refuse(StatusCode::BAD_REQUEST, why),
        };
        if *request.method() == Method::CONNECT {
            return refuse(StatusCode::NOT_IMPLEMENTED, "CONNECT is not served: send the request itself");
        }
        // Not held across an await: the table may be replaced at any time.
        let found = self.routes.borrow().find(host, request.uri().path()).cloned();
        let Some(route) = found else {
            self.meter.unrouted.add(1);
            let asked: String = host.chars().chain(request.uri().path().chars()).take(200).collect();
            let text = format!("no app has a route for {asked}; `lattice get apps` lists what is served");
            return Err(plain(StatusCode::NOT_FOUND, &text));
        };
        if websocket::has_events(request.headers()) {
            // An actor shall know whose events these are.
            let text = "application/websocket-events is what this ingress sends to actors: connect by WebSocket";
            return refuse(StatusCode::FORBIDDEN, text);
        }
        Ok(route)
    }

    async fn ask(&self, route: &Route, mut request: Request<Incoming>) -> Response<Body> {
        strip_hop_by_hop(request.headers_mut());
        // Most requests have no body, and nothing is to be remembered of it.
        let stalled = (!request.body().is_end_stream()).then(Arc::<AtomicBool>::default);
        let request = request.map(|body| patient(body, self.limits.body_wait, stalled.clone()));
        match self.dispatch.http(route, request).await {
            Ok(response) if response.status().is_informational() => {
                let text = format!("actor {}/{} answered with status {}", route.app, route.actor, response.status());
                plain(StatusCode::BAD_GATEWAY, &text)
            }
            Ok(mut response) => {
                strip_hop_by_hop(response.headers_mut());
                response
            }
            // Whatever became of the actor over it, it is not to blame.
            Err(_) if stalled.as_ref().is_some_and(|stalled| stalled.load(Ordering::Relaxed)) => {
                let wait = self.limits.body_wait.as_secs_f64();
                let text = format!("nothing came of the request's body for {wait} s, and it is not complete");
                plain(StatusCode::REQUEST_TIMEOUT, &text)
            }
            Err(error) => refuse(&error),
        }
    }
}

/// The request's span, if somebody records; its headers then name it as what causes all else. It ends with the head of the
/// answer. Names of attributes are those of OpenTelemetry's conventions for HTTP servers.
fn begin_span(request: &mut Request<Incoming>, client: Client) -> Span {
    let sent = || Origin::sent(request.headers());
    let mut span = spans::begin(Kind::Server, sent, || request.method().to_string());
    if !span.is_on() {
        return span;
    }
    if Origin::sent(request.headers()).is_none() {
        // A state without its parent is another trace's.
        request.headers_mut().remove(TRACESTATE);
    }
    span.set("http.request.method", request.method().to_string());
    span.set("url.path", request.uri().path().chars().take(512).collect::<String>());
    span.set("url.scheme", if client.tls { "https" } else { "http" });
    span.set("client.address", client.addr.ip().to_canonical().to_string());
    spans::put(&span, request.headers_mut());
    span
}

fn end_span(span: &mut Span, origin: &Origin, status: StatusCode) {
    span.set("lattice.request_id", origin.request_id().to_owned());
    span.set("http.response.status_code", i64::from(status.as_u16()));
    if status.is_server_error() {
        span.failed(status.as_str());
    }
}

/// The host that is asked for: the target's authority, or the one Host header. There must be one, for the actor, too.
fn host<B>(request: &Request<B>) -> Result<&str, &'static str> {
    host_of(request.uri(), request.headers())
}

pub(super) fn host_of<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> Result<&'a str, &'static str> {
    let mut hosts = headers.get_all(HOST).iter();
    let (header, second) = (hosts.next(), hosts.next());
    if second.is_some() {
        return Err("more than one Host header");
    }
    if let Some(authority) = uri.authority() {
        return Ok(authority.host());
    }
    match header {
        Some(value) => value.to_str().map_err(|_| "the Host header is not a host name"),
        None => Err("no Host header: send one"),
    }
}

pub(super) fn refuse(error: &CallError) -> Response<Body> {
    let status = match error {
        CallError::Unavailable(_) | CallError::Overloaded(_) => StatusCode::SERVICE_UNAVAILABLE,
        CallError::Deadline(_) => StatusCode::GATEWAY_TIMEOUT,
        CallError::Trapped(_) => StatusCode::INTERNAL_SERVER_ERROR,
        CallError::Denied(_) => StatusCode::FORBIDDEN,
        CallError::Invalid(_) => StatusCode::BAD_GATEWAY,
        CallError::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
    };
    let mut response = plain(status, &error.to_string());
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

/// A status with its reason in one line.
pub(super) fn plain(status: StatusCode, text: &str) -> Response<Body> {
    let mut line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    line.push('\n');
    let mut response = Response::new(Full::from(line).map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Version;

    #[test]
    fn errors_are_statuses() {
        let text = || "why".to_owned();
        for (error, status, retry) in [
            (CallError::Unavailable(text()), 503, true),
            (CallError::Overloaded(text()), 503, true),
            (CallError::Deadline(text()), 504, false),
            (CallError::Trapped(text()), 500, false),
            (CallError::Denied(text()), 403, false),
            (CallError::Invalid(text()), 502, false),
            (CallError::TooLarge(text()), 413, false),
        ] {
            let response = refuse(&error);
            assert_eq!((response.status().as_u16(), response.headers().contains_key(RETRY_AFTER)), (status, retry));
        }
    }

    #[test]
    fn the_host_is_the_targets_or_the_headers() {
        let request = |uri: &str, hosts: &[&str], version| {
            let mut request = Request::builder().uri(uri).version(version);
            for host in hosts {
                request = request.header(HOST, *host);
            }
            request.body(()).unwrap()
        };
        for (uri, hosts, version, expected) in [
            ("/", &["a:80"][..], Version::HTTP_11, Ok("a:80")),
            ("http://b:1/x", &["a"], Version::HTTP_11, Ok("b")),
            ("https://b/x", &[], Version::HTTP_2, Ok("b")),
            ("/", &[], Version::HTTP_10, Err("no Host header: send one")),
            ("/", &[], Version::HTTP_11, Err("no Host header: send one")),
            ("/", &["a", "b"], Version::HTTP_11, Err("more than one Host header")),
            ("http://b/", &["a", "b"], Version::HTTP_11, Err("more than one Host header")),
        ] {
            assert_eq!(host(&request(uri, hosts, version)), expected, "{uri} {hosts:?}");
        }
    }
}
