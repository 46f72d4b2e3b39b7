//! Counts visits per path, in whatever store the manifest links. `GET /cats` adds one to `cats` and answers the sum;
//! `GET /cats?peek` only reads it. Must keep nothing of its own: every request may meet a fresh instance.

use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam};

mod bindings {
    wit_bindgen::generate!({
        path: "../../proto/wit/deps/keyvalue",
        inline: "
            package lattice:counter;
            world counter {
                import wasi:keyvalue/store@0.2.0-draft;
                import wasi:keyvalue/atomics@0.2.0-draft;
            }
        ",
        world: "lattice:counter/counter",
        generate_all,
    });
}
use bindings::wasi::keyvalue::{atomics, store};

/// The empty name is the bucket that the link gives.
const BUCKET: &str = "";

struct Counter;

impl Guest for Counter {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let target = request.path_with_query().unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let key = match path.trim_start_matches('/') {
            "" => "visits",
            key => key,
        };
        let answer = if query == "peek" { peek(key) } else { count(key) };
        match answer {
            Ok(text) => respond(out, 200, &text),
            Err(e) => respond(out, 502, &format!("counter {key:?}: {}\n", explain(e))),
        }
    }
}

fn count(key: &str) -> Result<String, store::Error> {
    let bucket = store::open(BUCKET)?;
    let sum = atomics::increment(&bucket, key, 1)?;
    Ok(format!("{sum}\n"))
}

fn peek(key: &str) -> Result<String, store::Error> {
    let stored = store::open(BUCKET)?.get(key)?;
    let mut text = stored.map_or_else(|| "0".into(), |bytes| String::from_utf8_lossy(&bytes).into_owned());
    text.push('\n');
    Ok(text)
}

fn explain(error: store::Error) -> String {
    match error {
        store::Error::NoSuchStore => {
            "no bucket behind the link: check the bucket that the manifest's link names".into()
        }
        store::Error::AccessDenied => "access denied: add a link for wasi:keyvalue to the manifest".into(),
        store::Error::Other(text) => text,
    }
}

fn respond(out: ResponseOutparam, status: u16, text: &str) {
    let response = OutgoingResponse::new(Fields::new());
    response
        .set_status_code(status)
        .expect("the statuses used here are valid");
    let body = response.body().expect("a new response gives its body once");
    ResponseOutparam::set(out, Ok(response));
    // A caller that has gone away is no reason to trap. One write takes at most 4,096 bytes.
    if let Ok(stream) = body.write() {
        let _ = text
            .as_bytes()
            .chunks(4096)
            .try_for_each(|part| stream.blocking_write_and_flush(part));
    }
    let _ = OutgoingBody::finish(body, None);
}

wasip2::http::proxy::export!(Counter);
