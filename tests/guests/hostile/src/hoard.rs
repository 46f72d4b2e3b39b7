//! Makes the host keep things for it, as many as it can.

use std::mem::forget;
use wasip2::http::types::{Fields, OutgoingRequest, OutgoingResponse};

/// Of one header, and of one piece of a body.
const HEADER_BYTES: usize = 60_000;
const PIECE_BYTES: usize = 131_072;
/// More than any text of a request needs.
const TARGET_BYTES: usize = 1 << 20;
/// More than a host takes at once.
const CALL_BYTES: usize = 24 << 20;

/// Goes on until it is ended, unless the host says no in words. Nothing is ever given back.
pub fn hoard(of: &str) -> String {
    let bytes = vec![b'x'; if of == "bytes" { CALL_BYTES } else { PIECE_BYTES }];
    loop {
        match of {
            "headers" => {
                let fields = Fields::new();
                let _ = fields.append("x-large", &bytes[..HEADER_BYTES]);
                forget(fields);
            }
            "bodies" => body(&bytes),
            "targets" => {
                let request = OutgoingRequest::new(Fields::new());
                if request.set_authority(Some(&"x".repeat(TARGET_BYTES))).is_err() {
                    return "denied: an authority of 1 MiB\n".into();
                }
                forget(request);
            }
            "bytes" => {
                let _ = Fields::new().append("x-large", &bytes);
            }
            _ => forget(Fields::new()),
        }
    }
}

/// A response whose body nobody takes.
fn body(bytes: &[u8]) {
    let response = OutgoingResponse::new(Fields::new());
    if let Ok(body) = response.body() {
        if let Ok(stream) = body.write() {
            while matches!(stream.check_write(), Ok(PIECE_BYTES64..)) && stream.write(bytes).is_ok() {}
            forget(stream);
        }
        forget(body);
    }
    forget(response);
}

const PIECE_BYTES64: u64 = PIECE_BYTES as u64;
