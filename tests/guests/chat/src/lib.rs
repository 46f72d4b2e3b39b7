//! An actor that serves WebSocket: its ingress sends it what clients say as events in a POST, and tells them what it
//! answers. It echoes, with its name from the environment and the number of the message, which it keeps with the
//! connection; some words have other ends. Must need nothing but wasi:http.

use std::io::{Read as _, Write as _};
use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{Fields, IncomingRequest, Method, OutgoingBody, OutgoingResponse, ResponseOutparam};

const MEDIA_TYPE: &str = "application/websocket-events";

struct Chat;

impl Guest for Chat {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let headers = request.headers();
        let header = |name: &str| headers.get(name).into_iter().next().and_then(|v| String::from_utf8(v).ok());
        if !matches!(request.method(), Method::Post) || header("content-type").as_deref() != Some(MEDIA_TYPE) {
            return respond(out, 200, &[("content-type", "text/plain".into())], b"connect by WebSocket\n");
        }
        let target = request.path_with_query().unwrap_or_default();
        if target.contains("refuse") {
            return respond(out, 403, &[("content-type", "text/plain".into())], b"members only\n");
        }
        let mut body = Vec::new();
        if let Ok(incoming) = request.consume()
            && let Ok(mut stream) = incoming.stream()
        {
            let _ = stream.read_to_end(&mut body);
        }
        let count = header("meta-count").and_then(|v| v.parse().ok()).unwrap_or(0);
        let mut turn = Turn { count, headers: vec![("content-type", MEDIA_TYPE.into())], said: Vec::new() };
        if let (true, Some(offered)) = (body.starts_with(b"OPEN"), header("sec-websocket-protocol")) {
            let first = offered.split(',').next().unwrap_or_default().trim();
            turn.headers.push(("sec-websocket-protocol", first.into()));
        }
        if target.contains("ticking") {
            turn.headers.push(("keep-alive-interval", "1".into()));
        }
        if body.is_empty() {
            turn.say("TEXT", b"tick");
        }
        let id = header("connection-id").unwrap_or_default();
        for (name, content) in events(&body) {
            turn.heard(&id, name, content);
        }
        turn.headers.push(("set-meta-count", turn.count.to_string()));
        respond(out, 200, &turn.headers, &turn.said);
    }
}

/// One request of a connection.
struct Turn {
    /// Messages of this connection until now.
    count: u32,
    headers: Vec<(&'static str, String)>,
    said: Vec<u8>,
}

impl Turn {
    fn say(&mut self, name: &str, content: &[u8]) {
        let _ = write!(self.said, "{name} {:x}\r\n", content.len());
        self.said.extend_from_slice(content);
        self.said.extend_from_slice(b"\r\n");
    }

    fn heard(&mut self, id: &str, name: &str, content: &[u8]) {
        self.count += u32::from(matches!(name, "TEXT" | "BINARY"));
        match (name, content) {
            ("OPEN", _) => self.said.extend_from_slice(b"OPEN\r\n"),
            ("TEXT", b"trap") => panic!("asked to panic"),
            ("TEXT", b"close") => self.say("CLOSE", b"\x0f\xa0bye"),
            ("TEXT", b"spin") => loop {
                std::hint::black_box(0);
            },
            ("TEXT", text) => {
                let name = std::env::var("NAME").unwrap_or_default();
                let text = format!("{name} {}: {}", self.count, String::from_utf8_lossy(text));
                self.say("TEXT", text.as_bytes());
            }
            ("BINARY", bytes) => self.say("BINARY", bytes),
            // CLOSE or DISCONNECT: the end, in `lattice logs`.
            (end, content) => println!("{end} of {id} with {} bytes", content.len()),
        }
    }
}

/// The events of a body; it comes from the ingress, so what is cut off is only left out.
fn events(mut body: &[u8]) -> Vec<(&str, &[u8])> {
    let mut events = Vec::new();
    while let Some(end) = body.windows(2).position(|two| two == b"\r\n") {
        let line = std::str::from_utf8(&body[..end]).unwrap_or_default();
        body = &body[end + 2..];
        let (name, size) = line.split_once(' ').unwrap_or((line, ""));
        let size = usize::from_str_radix(size, 16).unwrap_or(0);
        let content = body.get(..size).unwrap_or_default();
        if line.contains(' ') {
            body = body.get(size + 2..).unwrap_or_default();
        }
        events.push((name, content));
    }
    events
}

fn respond(out: ResponseOutparam, status: u16, headers: &[(&str, String)], said: &[u8]) {
    let fields = Fields::new();
    for (name, value) in headers {
        let _ = fields.append(name, value.as_bytes());
    }
    let response = OutgoingResponse::new(fields);
    let _ = response.set_status_code(status);
    let body = response.body().expect("a new response gives its body once");
    ResponseOutparam::set(out, Ok(response));
    if let Ok(mut stream) = body.write() {
        let _ = stream.write_all(said);
        let _ = stream.flush();
    }
    let _ = OutgoingBody::finish(body, None);
}

wasip2::http::proxy::export!(Chat);
