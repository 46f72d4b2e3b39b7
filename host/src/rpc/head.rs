//! An HTTP message as bytes: method and target or status, headers, body. Pure. Checks all it reads; never carries a
//! header that belongs to one connection.

use super::body::Carried;
use crate::call::CallError;
use crate::value::{Reader, Writer};
use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};

/// Bytes of a request's or a response's body that cross the bus in one piece.
pub const BODY_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Bytes of all headers of one message.
const HEADERS_BYTES_MAX: usize = 64 * 1024;
const HEADERS_LEN_MAX: usize = 256;

/// Removes the headers that concern one connection only (RFC 9110, 7.6.1), in a request or a response.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(header::CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(header::CONNECTION)
            .iter()
            .filter_map(|v| v.to_str().ok())
            .flat_map(|v| v.split(','))
            .filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok())
            // What says how long or whose the message is can not be made to vanish by naming it.
            .filter(|name| *name != header::HOST && *name != header::CONTENT_LENGTH)
            .collect();
        for name in named {
            headers.remove(name);
        }
        headers.remove(header::CONNECTION);
    }
    headers.remove(header::TRANSFER_ENCODING);
    headers.remove(header::UPGRADE);
    headers.remove(HeaderName::from_static("keep-alive"));
    headers.remove(HeaderName::from_static("proxy-connection"));
    if headers.get(header::TE).is_some_and(|v| v != "trailers") {
        headers.remove(header::TE);
    }
}

pub(super) fn encode_request(parts: &http::request::Parts, body: &Carried) -> Result<Bytes, CallError> {
    let uri = parts.uri.to_string();
    let mut w = Writer::with_capacity(body.len() + uri.len() + 1024);
    w.put_str(parts.method.as_str()).put_str(&uri);
    put_headers(&mut w, &parts.headers)?;
    put_body(&mut w, body);
    Ok(w.finish())
}

pub(super) fn decode_request(bytes: Bytes) -> Result<http::Request<Carried>, CallError> {
    let mut r = Reader::new(bytes);
    let (method, uri) = (r.string()?, r.string()?);
    let headers = take_headers(&mut r)?;
    let body = take_body(r)?;
    let mut request = http::Request::new(body);
    *request.method_mut() = method.parse().map_err(|_| invalid("the method"))?;
    *request.uri_mut() = uri.parse().map_err(|_| invalid("the target"))?;
    *request.headers_mut() = headers;
    Ok(request)
}

pub(super) fn encode_response(parts: &http::response::Parts, body: &Carried) -> Result<Bytes, CallError> {
    let mut w = Writer::with_capacity(body.len() + 1024);
    w.put_u16(parts.status.as_u16());
    put_headers(&mut w, &parts.headers)?;
    put_body(&mut w, body);
    Ok(w.finish())
}

pub(super) fn decode_response(bytes: Bytes) -> Result<http::Response<Carried>, CallError> {
    let mut r = Reader::new(bytes);
    let status = r.u16()?;
    let headers = take_headers(&mut r)?;
    let body = take_body(r)?;
    let mut response = http::Response::new(body);
    *response.status_mut() = http::StatusCode::from_u16(status).map_err(|_| invalid("the status"))?;
    *response.headers_mut() = headers;
    Ok(response)
}

fn put_headers(w: &mut Writer, headers: &HeaderMap) -> Result<(), CallError> {
    let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    if bytes > HEADERS_BYTES_MAX || headers.len() > HEADERS_LEN_MAX {
        return Err(CallError::TooLarge(format!(
            "{} headers of {bytes} bytes: at most {HEADERS_LEN_MAX} of {HEADERS_BYTES_MAX} bytes cross the bus",
            headers.len()
        )));
    }
    w.put_len(headers.len());
    for (name, value) in headers {
        w.put_str(name.as_str()).put_bytes(value.as_bytes());
    }
    Ok(())
}

fn take_headers(r: &mut Reader) -> Result<HeaderMap, CallError> {
    let len = r.len(8)?;
    if len > HEADERS_LEN_MAX {
        return Err(invalid("the number of headers"));
    }
    let mut headers = HeaderMap::with_capacity(len);
    let mut bytes = 0;
    for _ in 0..len {
        let (name, value) = (r.bytes()?, r.bytes()?);
        bytes += name.len() + value.len();
        if bytes > HEADERS_BYTES_MAX {
            return Err(invalid("the size of the headers"));
        }
        let name = HeaderName::from_bytes(&name).map_err(|_| invalid("a header's name"))?;
        let value = HeaderValue::from_maybe_shared(value).map_err(|_| invalid("a header's value"))?;
        headers.append(name, value);
    }
    Ok(headers)
}

/// The address of a stream comes behind an empty body: a host that knows none refuses the message.
fn put_body(w: &mut Writer, body: &Carried) {
    match body {
        Carried::Whole(bytes) => w.put_bytes(bytes),
        Carried::Offered(address) => w.put_bytes(b"").put_str(address),
    };
}

fn take_body(mut r: Reader) -> Result<Carried, CallError> {
    let body = r.bytes()?;
    if body.is_empty() && r.remaining() > 0 {
        let address = r.string()?;
        r.finish()?;
        return Ok(Carried::Offered(address));
    }
    r.finish()?;
    if body.len() > BODY_BYTES_MAX {
        return Err(CallError::TooLarge(format!(
            "a body of {} bytes: at most {BODY_BYTES_MAX} cross the bus; send less at a time",
            body.len()
        )));
    }
    Ok(Carried::Whole(body))
}

fn invalid(what: &str) -> CallError {
    CallError::Invalid(format!(
        "{what} of an HTTP message from the bus is wrong: see that both hosts run the same version"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(*name, HeaderValue::from_static(value));
        }
        map
    }

    #[test]
    fn hop_by_hop_headers_go() {
        let mut map = headers(&[
            ("connection", "close, X-Secret"),
            ("connection", "host, content-length"),
            ("x-secret", "1"),
            ("keep-alive", "timeout=5"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("te", "gzip"),
            ("host", "a"),
            ("content-length", "3"),
            ("x-kept", "1"),
            ("x-kept", "2"),
        ]);
        strip_hop_by_hop(&mut map);
        assert_eq!(map, headers(&[("host", "a"), ("content-length", "3"), ("x-kept", "1"), ("x-kept", "2")]));
        let mut map = headers(&[("te", "trailers")]);
        strip_hop_by_hop(&mut map);
        assert_eq!(map, headers(&[("te", "trailers")]));
    }

    #[test]
    fn messages_come_back() {
        let mut request = http::Request::new(());
        *request.method_mut() = "PATCH".parse().unwrap();
        *request.uri_mut() = "/a/b?c=%20d".parse().unwrap();
        *request.headers_mut() = headers(&[("host", "shop.example"), ("x", "1"), ("x", "2")]);
        let (parts, ()) = request.into_parts();
        let whole = |bytes: &'static [u8]| Carried::Whole(Bytes::from_static(bytes));
        let back = decode_request(encode_request(&parts, &whole(b"body")).unwrap()).unwrap();
        assert_eq!((back.method(), back.uri(), back.headers()), (&parts.method, &parts.uri, &parts.headers));
        assert_eq!(*back.body(), whole(b"body"));
        let offered = Carried::Offered("_INBOX.a.1".into());
        assert_eq!(*decode_request(encode_request(&parts, &offered).unwrap()).unwrap().body(), offered);

        let (mut parts, ()) = http::Response::new(()).into_parts();
        parts.status = http::StatusCode::IM_A_TEAPOT;
        parts.headers.insert("x", HeaderValue::from_bytes(&[0xe9]).unwrap());
        let back = decode_response(encode_response(&parts, &whole(b"")).unwrap()).unwrap();
        assert_eq!((back.status(), back.headers()), (parts.status, &parts.headers));
    }

    #[test]
    fn garbage_is_refused() {
        for bytes in [&b""[..], b"GET / HTTP/1.1\r\n\r\n", &[0xff; 64], &[0; 3]] {
            assert!(decode_request(Bytes::copy_from_slice(bytes)).is_err());
            assert!(decode_response(Bytes::copy_from_slice(bytes)).is_err());
        }
        let message = |header: &[u8]| {
            let mut w = Writer::new();
            w.put_str("GET").put_str("/").put_len(1).put_bytes(header).put_bytes(b"v").put_bytes(b"");
            decode_request(w.finish())
        };
        assert!(message(b"x").is_ok());
        assert!(message(b"x y").is_err());
        assert!(message(b"x\r\ny").is_err());
    }
}
