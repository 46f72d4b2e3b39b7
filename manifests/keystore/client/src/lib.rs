//! The key store over HTTP: `PUT /key?ttl=5`, `GET /key`, `DELETE /key`, where a key is the path as it stands. Knows the
//! interface only: whether the host's own provider or another actor serves it is for the manifest to say.

use std::io::{Read as _, Write as _};
use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{
    Fields, IncomingBody, IncomingRequest, Method, OutgoingBody, OutgoingResponse, ResponseOutparam,
};

mod bindings {
    wit_bindgen::generate!({ path: "../../../proto/wit", world: "lattice:keystore/imports" });
}
use bindings::lattice::keystore::store;

/// One more than the interface allows, so that the store gets to refuse what is too large.
const BODY_BYTES_MAX: u64 = 1024 * 1024 + 1;

struct Client;

struct Answer {
    status: u16,
    body: Vec<u8>,
}

impl Guest for Client {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let target = request.path_with_query().unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let key = path.trim_start_matches('/');
        let answer = match request.method() {
            Method::Put => put(key, query, &request),
            Method::Get => get(key),
            Method::Delete => store::delete(key).map_or_else(refused, |()| Answer::text(204, "")),
            _ => Answer::text(405, "use PUT /key?ttl=SECONDS, GET /key or DELETE /key\n"),
        };
        respond(out, &answer);
    }
}

fn put(key: &str, query: &str, request: &IncomingRequest) -> Answer {
    let ttl = match query.strip_prefix("ttl=") {
        Some(seconds) => match seconds.parse() {
            Ok(seconds) => Some(seconds),
            Err(_) => return Answer::text(400, &format!("ttl {seconds:?} is not a whole number of seconds\n")),
        },
        None if query.is_empty() => None,
        None => return Answer::text(400, &format!("unknown query {query:?}: only ttl=SECONDS\n")),
    };
    match read_body(request) {
        Ok(value) => store::set(key, &value, ttl).map_or_else(refused, |()| Answer::text(204, "")),
        Err(e) => Answer::text(400, &format!("the body could not be read: {e}\n")),
    }
}

fn get(key: &str) -> Answer {
    match store::get(key) {
        Ok(Some(value)) => Answer {
            status: 200,
            body: value,
        },
        Ok(None) => Answer::text(404, &format!("no value at {key:?}\n")),
        Err(e) => refused(e),
    }
}

fn refused(error: store::Error) -> Answer {
    let (status, text) = match error {
        store::Error::Denied(text) => (403, text),
        store::Error::TooLarge(text) => (413, text),
        store::Error::Unavailable(text) => (503, text),
    };
    Answer::text(status, &format!("{text}\n"))
}

fn read_body(request: &IncomingRequest) -> Result<Vec<u8>, String> {
    let body = request.consume().map_err(|()| "it was taken already".to_owned())?;
    let mut value = Vec::new();
    {
        let stream = body.stream().map_err(|()| "it has no stream".to_owned())?;
        stream
            .take(BODY_BYTES_MAX)
            .read_to_end(&mut value)
            .map_err(|e| e.to_string())?;
    }
    IncomingBody::finish(body);
    Ok(value)
}

impl Answer {
    fn text(status: u16, text: &str) -> Self {
        Self {
            status,
            body: text.as_bytes().to_vec(),
        }
    }
}

fn respond(out: ResponseOutparam, answer: &Answer) {
    let response = OutgoingResponse::new(Fields::new());
    response
        .set_status_code(answer.status)
        .expect("the statuses used here are valid");
    let body = response.body().expect("a new response gives its body once");
    ResponseOutparam::set(out, Ok(response));
    // A caller that has gone away is no reason to trap. A body of no bytes gets no stream, as a 204 wants.
    if !answer.body.is_empty()
        && let Ok(mut stream) = body.write()
    {
        let _ = stream.write_all(&answer.body);
        let _ = stream.blocking_flush();
    }
    let _ = OutgoingBody::finish(body, None);
}

wasip2::http::proxy::export!(Client);
