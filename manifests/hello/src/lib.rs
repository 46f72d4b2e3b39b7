//! The smallest HTTP actor: the same text to every request. Must do nothing else: the bench measures a host with it.

use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam};

struct Hello;

impl Guest for Hello {
    fn handle(_: IncomingRequest, out: ResponseOutparam) {
        let response = OutgoingResponse::new(Fields::new());
        let body = response.body().expect("a new response gives its body once");
        ResponseOutparam::set(out, Ok(response));
        // A caller that has gone away is no reason to trap.
        if let Ok(stream) = body.write() {
            let _ = stream.blocking_write_and_flush(b"Hello from lattice!\n");
        }
        let _ = OutgoingBody::finish(body, None);
    }
}

wasip2::http::proxy::export!(Hello);
