//! One request: which actor, its answer, or the status that says why there is none. Adds nothing to what the actor
//! answers and takes away only what concerns the connection.

use super::{Dispatch, Routes};
use crate::call::{Body, CallError};
use crate::rpc::strip_hop_by_hop;
use http::header::{CONTENT_TYPE, HOST, HeaderValue, RETRY_AFTER};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use std::sync::Arc;
use tokio::sync::watch;

/// What every connection shares.
pub(super) struct Front {
    pub(super) routes: watch::Receiver<Arc<Routes>>,
    pub(super) dispatch: Arc<dyn Dispatch>,
}

impl Front {
    pub(super) async fn answer(&self, mut request: Request<Incoming>) -> Response<Body> {
        let host = match host(&request) {
            Ok(host) => host,
            Err(why) => return plain(StatusCode::BAD_REQUEST, why),
        };
        if *request.method() == Method::CONNECT {
            return plain(StatusCode::NOT_IMPLEMENTED, "CONNECT is not served: send the request itself");
        }
        // Not held across an await: the table may be replaced at any time.
        let found = self.routes.borrow().find(host, request.uri().path()).cloned();
        let Some(route) = found else {
            let asked: String = host.chars().chain(request.uri().path().chars()).take(200).collect();
            let text = format!("no app has a route for {asked}; `lattice get apps` lists what is served");
            return plain(StatusCode::NOT_FOUND, &text);
        };
        strip_hop_by_hop(request.headers_mut());
        let request = request.map(|body| body.map_err(wasmtime_wasi_http::Error::from).boxed_unsync());
        match self.dispatch.http(&route, request).await {
            Ok(response) if response.status().is_informational() => {
                let text = format!("actor {}/{} answered with status {}", route.app, route.actor, response.status());
                plain(StatusCode::BAD_GATEWAY, &text)
            }
            Ok(mut response) => {
                strip_hop_by_hop(response.headers_mut());
                response
            }
            Err(error) => refuse(&error),
        }
    }
}

/// The host that is asked for: the target's authority, or the one Host header. There must be one, for the actor, too.
fn host<B>(request: &Request<B>) -> Result<&str, &'static str> {
    let mut hosts = request.headers().get_all(HOST).iter();
    let (header, second) = (hosts.next(), hosts.next());
    if second.is_some() {
        return Err("more than one Host header");
    }
    if let Some(authority) = request.uri().authority() {
        return Ok(authority.host());
    }
    match header {
        Some(value) => value.to_str().map_err(|_| "the Host header is not a host name"),
        None => Err("no Host header: send one"),
    }
}

fn refuse(error: &CallError) -> Response<Body> {
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
fn plain(status: StatusCode, text: &str) -> Response<Body> {
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
