//! Ways to answer: in words, with many bytes, with the request's own body, or with half of a body and a trap.

use std::io::Write as _;
use wasip2::http::types::{Fields, IncomingBody, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam};

/// Bytes moved at a time by `echo` and `fill`.
const CHUNK_BYTES: usize = 65_536;

pub fn text(out: ResponseOutparam, status: u16, text: &str) {
    let body = start(out, status);
    if let Ok(mut stream) = body.write() {
        let _ = stream.write_all(text.as_bytes());
        let _ = stream.blocking_flush();
    }
    let _ = OutgoingBody::finish(body, None);
}

/// `bytes` times the letter x, never more than one chunk of them in memory.
pub fn fill(out: ResponseOutparam, bytes: u64) {
    let body = start(out, 200);
    let chunk = vec![b'x'; CHUNK_BYTES];
    if let Ok(mut stream) = body.write() {
        let mut left = bytes;
        while left > 0 {
            let part = usize::try_from(left).unwrap_or(usize::MAX).min(CHUNK_BYTES);
            if stream.write_all(&chunk[..part]).is_err() {
                break;
            }
            left -= part as u64;
        }
        let _ = stream.blocking_flush();
    }
    let _ = OutgoingBody::finish(body, None);
}

/// Sends the request's body back while it still arrives.
pub fn echo(request: &IncomingRequest, out: ResponseOutparam) {
    let Ok(incoming) = request.consume() else {
        return text(out, 500, "the request has no body to take\n");
    };
    let body = start(out, 200);
    if let (Ok(from), Ok(to)) = (incoming.stream(), body.write()) {
        while to.blocking_splice(&from, CHUNK_BYTES as u64).is_ok() {}
        let _ = to.blocking_flush();
    }
    IncomingBody::finish(incoming);
    let _ = OutgoingBody::finish(body, None);
}

/// Status 200, some bytes, then a trap in the middle of the body.
pub fn cut(out: ResponseOutparam) {
    let body = start(out, 200);
    if let Ok(mut stream) = body.write() {
        let _ = stream.write_all(b"the first half\n");
        let _ = stream.blocking_flush();
    }
    core::arch::wasm32::unreachable()
}

fn start(out: ResponseOutparam, status: u16) -> OutgoingBody {
    let response = OutgoingResponse::new(Fields::new());
    response
        .set_status_code(status)
        .expect("the statuses used here are valid");
    let body = response.body().expect("a new response gives its body once");
    ResponseOutparam::set(out, Ok(response));
    body
}
