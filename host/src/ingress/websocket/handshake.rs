//! What the heads of a WebSocket's handshake say: the client's, what of it goes along with each request to the actor,
//! and the actor's. Pure.

use super::events::MEDIA_TYPE;
use crate::rpc::strip_hop_by_hop;
use http::header::{
    ACCEPT, ACCEPT_ENCODING, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HeaderMap, HeaderName,
    HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, TRANSFER_ENCODING, UPGRADE,
};
use http::{Method, Request, Response, StatusCode, Version, response};
use std::time::Duration;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

/// Says which connection an event is of.
pub(super) const CONNECTION_ID: HeaderName = HeaderName::from_static("connection-id");
const KEEP_ALIVE_INTERVAL: HeaderName = HeaderName::from_static("keep-alive-interval");
const CONTENT_BYTES_ACCEPTED: HeaderName = HeaderName::from_static("content-bytes-accepted");
const META: &str = "meta-";
const SET_META: &str = "set-meta-";

/// Values that an actor keeps with one connection, and their bytes, names included.
const META_MAX: usize = 32;
const META_BYTES_MAX: usize = 8 * 1024;
const KEEP_ALIVE_MAX: Duration = Duration::from_secs(3_600);

/// Why a request is no handshake, and the status that says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Wrong {
    #[error("a WebSocket begins with GET")]
    Method,
    #[error("a WebSocket begins with a request of HTTP/1.1")]
    Http,
    #[error("a WebSocket's handshake has no body")]
    Body,
    #[error("a WebSocket's handshake says Connection: Upgrade")]
    Connection,
    #[error("only version 13 of WebSocket is served: send Sec-WebSocket-Version: 13")]
    Version,
    #[error("a WebSocket's handshake has one Sec-WebSocket-Key: 16 bytes in base64")]
    Key,
}

impl Wrong {
    pub(super) fn status(self) -> StatusCode {
        match self {
            Self::Version => StatusCode::UPGRADE_REQUIRED,
            _ => StatusCode::BAD_REQUEST,
        }
    }
}

/// What a client asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Offer {
    accept: HeaderValue,
    protocols: Vec<String>,
}

/// Whether the client can go on only with a connection of its own (RFC 6455, 4.1). Other upgrades may be ignored.
pub(in crate::ingress) fn is_wanted<B>(request: &Request<B>) -> bool {
    has_token(request.headers(), &UPGRADE, "websocket")
}

/// Whether this is a body of events, as only an ingress may send it to an actor.
pub(in crate::ingress) fn has_events(headers: &HeaderMap) -> bool {
    headers.get_all(CONTENT_TYPE).iter().any(|value| {
        let media_type = value.as_bytes().split(|b| matches!(b, b';' | b',')).next().unwrap_or_default();
        media_type.trim_ascii().eq_ignore_ascii_case(MEDIA_TYPE.as_bytes())
    })
}

/// RFC 6455, 4.2.1.
pub(super) fn check<B>(request: &Request<B>) -> Result<Offer, Wrong> {
    let headers = request.headers();
    if *request.method() != Method::GET {
        return Err(Wrong::Method);
    }
    if request.version() != Version::HTTP_11 {
        return Err(Wrong::Http);
    }
    if headers.get(CONTENT_LENGTH).is_some_and(|length| length != "0") || headers.contains_key(TRANSFER_ENCODING) {
        return Err(Wrong::Body);
    }
    if !has_token(headers, &CONNECTION, "upgrade") {
        return Err(Wrong::Connection);
    }
    if only(headers, &SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(Wrong::Version);
    }
    let key = only(headers, &SEC_WEBSOCKET_KEY).filter(|key| is_key(key.as_bytes())).ok_or(Wrong::Key)?;
    let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes())).map_err(|_| Wrong::Key)?;
    Ok(Offer { accept, protocols: tokens(headers, &SEC_WEBSOCKET_PROTOCOL).map(str::to_owned).collect() })
}

/// What of the client's headers goes along with every request to the actor. What only the ingress may say is never the
/// client's: whose events they are, and what the actor keeps with the connection.
pub(super) fn carried(mut headers: HeaderMap, connection_id: HeaderValue) -> HeaderMap {
    strip_hop_by_hop(&mut headers);
    for name in [
        ACCEPT_ENCODING,
        CONTENT_ENCODING,
        CONTENT_LENGTH,
        EXPECT,
        SEC_WEBSOCKET_EXTENSIONS,
        SEC_WEBSOCKET_KEY,
        SEC_WEBSOCKET_VERSION,
        KEEP_ALIVE_INTERVAL,
        CONTENT_BYTES_ACCEPTED,
    ] {
        headers.remove(name);
    }
    let forged: Vec<HeaderName> = headers.keys().filter(|name| is_meta(name)).cloned().collect();
    for name in forged {
        headers.remove(name);
    }
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
    headers.insert(ACCEPT, HeaderValue::from_static(MEDIA_TYPE));
    headers.insert(CONNECTION_ID, connection_id);
    headers
}

/// The answer that turns the connection into a WebSocket, with the headers that the actor gave.
pub(super) fn accepted<B>(actor: response::Parts, offer: Offer, body: B) -> Result<Response<B>, String> {
    let mut headers = actor.headers;
    strip_hop_by_hop(&mut headers);
    if let Some(chosen) = headers.get(SEC_WEBSOCKET_PROTOCOL) {
        let offered = chosen.to_str().is_ok_and(|chosen| offer.protocols.iter().any(|name| name == chosen));
        if !offered || headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().nth(1).is_some() {
            return Err(format!("chose the subprotocol {chosen:?}, which the client did not offer"));
        }
    }
    let ours: Vec<HeaderName> = headers.keys().filter(|name| is_meta(name)).cloned().collect();
    for name in ours.iter().chain(&[
        CONTENT_TYPE,
        CONTENT_LENGTH,
        CONTENT_ENCODING,
        KEEP_ALIVE_INTERVAL,
        CONTENT_BYTES_ACCEPTED,
        // Nothing that would change the frames: the ingress makes them.
        SEC_WEBSOCKET_EXTENSIONS,
        SEC_WEBSOCKET_VERSION,
    ]) {
        headers.remove(name);
    }
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, offer.accept);
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = headers;
    Ok(response)
}

/// How often the actor wants to be asked while nothing comes; `None` when it did not say, zero for never.
pub(super) fn keep_alive(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(KEEP_ALIVE_INTERVAL)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(KEEP_ALIVE_MAX))
}

/// What an actor keeps with one connection: told with `Set-Meta-Name`, sent as `Meta-Name` with each request from then on.
#[derive(Debug, Default)]
pub(super) struct Meta(HeaderMap);

impl Meta {
    /// Takes what an answer sets; an empty value removes it.
    pub(super) fn take(&mut self, headers: &HeaderMap) -> Result<(), String> {
        for (name, value) in headers {
            let Some(rest) = name.as_str().strip_prefix(SET_META).filter(|rest| !rest.is_empty()) else { continue };
            let Ok(name) = HeaderName::try_from(format!("{META}{rest}")) else { continue };
            if value.is_empty() {
                self.0.remove(&name);
            } else {
                self.0.insert(name, value.clone());
            }
        }
        let bytes: usize = self.0.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        if self.0.len() > META_MAX || bytes > META_BYTES_MAX {
            return Err(format!("set more than {META_MAX} values or {META_BYTES_MAX} bytes with Set-Meta headers"));
        }
        Ok(())
    }

    pub(super) fn put(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.0 {
            headers.insert(name, value.clone());
        }
    }
}

fn is_meta(name: &HeaderName) -> bool {
    name.as_str().starts_with(META) || name.as_str().starts_with(SET_META)
}

fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|token| !token.is_empty())
}

fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    tokens(headers, name).any(|there| there.eq_ignore_ascii_case(token))
}

/// The only header of this name.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut all = headers.get_all(name).iter();
    all.next().filter(|_| all.next().is_none())
}

/// 16 bytes in base64.
fn is_key(key: &[u8]) -> bool {
    let Some(digits) = key.strip_suffix(b"==") else { return false };
    digits.len() == 22 && digits.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/'))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "helpers of tests")]
    use super::*;

    /// The handshake of RFC 6455, 1.3, with some of its headers changed or, when they are "-", left out.
    fn handshake(changes: &[(&'static str, &str)]) -> Request<()> {
        let mut request = Request::builder().uri("/chat").body(()).unwrap();
        let given = [
            ("host", "server.example.com"),
            ("upgrade", "websocket"),
            ("connection", "Upgrade"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("origin", "http://example.com"),
            ("sec-websocket-protocol", "chat, superchat"),
            ("sec-websocket-version", "13"),
        ];
        for (name, value) in given.iter().chain(changes) {
            request.headers_mut().remove(*name);
            if *value != "-" {
                request.headers_mut().insert(*name, value.parse().unwrap());
            }
        }
        request
    }

    #[test]
    fn the_handshake_of_the_standard_is_taken() {
        let offer = check(&handshake(&[])).unwrap();
        assert_eq!(offer.accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(offer.protocols, ["chat", "superchat"]);
        let firefox = handshake(&[("connection", "keep-alive, Upgrade"), ("upgrade", "WebSocket")]);
        assert!(is_wanted(&firefox) && check(&firefox).is_ok());
        for other in ["h2c", "-", "websocket2"] {
            assert!(!is_wanted(&handshake(&[("upgrade", other)])), "{other}");
        }
    }

    #[test]
    fn what_is_no_handshake_is_refused_with_its_reason() {
        for (changes, expected) in [
            (("connection", "close"), Wrong::Connection),
            (("connection", "-"), Wrong::Connection),
            (("sec-websocket-version", "8"), Wrong::Version),
            (("sec-websocket-version", "13, 8"), Wrong::Version),
            (("sec-websocket-version", "-"), Wrong::Version),
            (("sec-websocket-key", "-"), Wrong::Key),
            (("sec-websocket-key", ""), Wrong::Key),
            (("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ="), Wrong::Key),
            (("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==="), Wrong::Key),
            (("sec-websocket-key", "dGhlIHNhbXBsZSBub25j!Q=="), Wrong::Key),
            (("content-length", "1"), Wrong::Body),
            (("transfer-encoding", "chunked"), Wrong::Body),
        ] {
            assert_eq!(check(&handshake(&[changes])), Err(expected), "{changes:?}");
        }
        let mut twice = handshake(&[]);
        twice.headers_mut().append(SEC_WEBSOCKET_KEY, "dGhlIHNhbXBsZSBub25jZQ==".parse().unwrap());
        assert_eq!(check(&twice), Err(Wrong::Key));
        let mut post = handshake(&[]);
        *post.method_mut() = Method::POST;
        assert_eq!(check(&post), Err(Wrong::Method));
        let mut old = handshake(&[]);
        *old.version_mut() = Version::HTTP_10;
        assert_eq!(check(&old), Err(Wrong::Http));
        assert_eq!(
            (Wrong::Version.status(), Wrong::Key.status()),
            (StatusCode::UPGRADE_REQUIRED, StatusCode::BAD_REQUEST)
        );
    }

    #[test]
    fn a_client_can_not_say_what_only_the_ingress_says() {
        let request = handshake(&[
            ("meta-user", "admin"),
            ("set-meta-user", "admin"),
            ("connection-id", "another's"),
            ("content-type", "text/plain"),
            ("accept-encoding", "gzip"),
            ("cookie", "a=b"),
        ]);
        let (parts, ()) = request.into_parts();
        let headers = carried(parts.headers, HeaderValue::from_static("mine"));
        let mut names: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        let expected =
            ["accept", "connection-id", "content-type", "cookie", "host", "origin", "sec-websocket-protocol"];
        assert_eq!(names, expected);
        assert_eq!(
            (&headers[CONNECTION_ID], &headers[CONTENT_TYPE]),
            (&"mine".parse().unwrap(), &MEDIA_TYPE.parse().unwrap())
        );
        for (given, expected) in [
            ("application/websocket-events", true),
            ("Application/WebSocket-Events ; charset=utf-8", true),
            ("application/websocket-events-2", false),
            ("text/plain", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, given.parse().unwrap());
            assert_eq!(has_events(&headers), expected, "{given}");
        }
    }

    #[test]
    fn the_actors_headers_go_to_the_client_but_for_those_of_the_protocol() {
        let actor = |protocol: &'static str| {
            let response = Response::builder()
                .header(CONTENT_TYPE, MEDIA_TYPE)
                .header(CONTENT_LENGTH, "6")
                .header("set-meta-user", "ada")
                .header("keep-alive-interval", "5")
                .header("sec-websocket-extensions", "grip")
                .header("set-cookie", "a=b")
                .header(SEC_WEBSOCKET_PROTOCOL, protocol);
            response.body(()).unwrap().into_parts().0
        };
        let offer = || check(&handshake(&[])).unwrap();
        let response = accepted(actor("superchat"), offer(), ()).unwrap();
        let mut names: Vec<&str> = response.headers().keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["connection", "sec-websocket-accept", "sec-websocket-protocol", "set-cookie", "upgrade"]);
        assert_eq!(response.status(), 101);
        let error = accepted(actor("other"), offer(), ()).unwrap_err();
        assert!(error.contains("\"other\", which the client did not offer"), "{error}");
        assert_eq!(keep_alive(&actor("chat").headers), Some(Duration::from_secs(5)));
    }

    #[test]
    fn an_actor_keeps_a_bounded_number_of_values_with_a_connection() {
        let mut meta = Meta::default();
        let set = |pairs: &[(&str, &str)]| {
            let pairs =
                pairs.iter().map(|(n, v)| (n.parse::<HeaderName>().unwrap(), v.parse::<HeaderValue>().unwrap()));
            pairs.collect::<HeaderMap>()
        };
        meta.take(&set(&[("set-meta-user", "ada"), ("Set-Meta-Room", "1"), ("set-meta-", "x"), ("other", "y")]))
            .unwrap();
        meta.take(&set(&[("set-meta-room", ""), ("set-meta-user", "bob")])).unwrap();
        let mut headers = HeaderMap::new();
        meta.put(&mut headers);
        assert_eq!(headers, set(&[("meta-user", "bob")]));
        let large = "x".repeat(META_BYTES_MAX);
        assert!(meta.take(&set(&[("set-meta-large", &large)])).unwrap_err().contains("8192 bytes"));
        let many: Vec<String> = (0..=META_MAX).map(|n| format!("set-meta-{n}")).collect();
        let many: Vec<(&str, &str)> = many.iter().map(|name| (name.as_str(), "x")).collect();
        assert!(Meta::default().take(&set(&many)).unwrap_err().contains("32 values"));
        for (given, expected) in [("7", Some(7)), ("0", Some(0)), ("-1", None), ("1.5", None), ("99999", Some(3_600))] {
            let got = keep_alive(&set(&[("keep-alive-interval", given)]));
            assert_eq!(got, expected.map(Duration::from_secs), "{given}");
        }
    }
}
