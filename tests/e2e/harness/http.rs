//! The smallest HTTP/1.1 client that can hurt: one request a connection, everything under a deadline.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

#[derive(Debug, Clone)]
pub(crate) struct Response {
    pub(crate) status: u16,
    head: String,
    pub(crate) body: Vec<u8>,
    /// From the first byte sent to the last received.
    pub(crate) took: Duration,
}

impl Response {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The first header of this name.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }
}

pub(crate) struct Request<'a> {
    pub(crate) at: SocketAddr,
    pub(crate) method: &'a str,
    /// The Host header; "" is the address itself.
    pub(crate) host: &'a str,
    pub(crate) target: &'a str,
    pub(crate) body: &'a [u8],
    /// Whole lines of further headers, each with its end.
    pub(crate) more: &'a str,
    pub(crate) deadline: Duration,
}

impl<'a> Request<'a> {
    pub(crate) fn get(at: SocketAddr, target: &'a str) -> Self {
        Self { at, method: "GET", host: "", target, body: b"", more: "", deadline: Duration::from_secs(15) }
    }

    /// Sends it and takes the whole answer. The body is sent while the answer arrives.
    pub(crate) fn send(&self) -> io::Result<Response> {
        let begun = Instant::now();
        let stream = TcpStream::connect_timeout(&self.at, self.deadline)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(self.deadline))?;
        stream.set_write_timeout(Some(self.deadline))?;
        let host = if self.host.is_empty() { self.at.to_string() } else { self.host.to_owned() };
        let head = format!(
            "{} {} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {}\r\n{}Connection: close\r\n\r\n",
            self.method,
            self.target,
            self.body.len(),
            self.more
        );
        let mut writer = stream.try_clone()?;
        let bytes = std::thread::scope(|scope| {
            scope.spawn(move || {
                // A server may answer and close before it has taken all of it.
                let _ = writer.write_all(head.as_bytes()).and_then(|()| writer.write_all(self.body));
            });
            read_all(&stream, begun + self.deadline)
        })?;
        let mut response = parse(&bytes)?;
        response.took = begun.elapsed();
        Ok(response)
    }
}

/// GET with the address as host; panics when there is no answer at all.
pub(crate) fn get(at: SocketAddr, target: &str) -> Response {
    Request::get(at, target).send().unwrap_or_else(|e| panic!("GET {target} at {at}: {e}"))
}

/// GET for the app that has this host name.
pub(crate) fn get_host(at: SocketAddr, host: &str, target: &str) -> Response {
    let request = Request { host, ..Request::get(at, target) };
    request.send().unwrap_or_else(|e| panic!("GET {host}{target} at {at}: {e}"))
}

/// Whether the app with this host name answers 200, and soon: a request may have gone to a host that is no more.
pub(crate) fn answers(at: SocketAddr, host: &str) -> Option<Response> {
    let request = Request { host, deadline: Duration::from_secs(1), ..Request::get(at, "/") };
    request.send().ok().filter(|response| response.status == 200)
}

fn read_all(mut stream: &TcpStream, end: Instant) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut piece = [0; 65_536];
    loop {
        match stream.read(&mut piece) {
            Ok(0) => return Ok(bytes),
            Ok(n) => bytes.extend_from_slice(&piece[..n]),
            // The end of an answer may be a reset when the request was not wanted whole.
            Err(e) if e.kind() == ErrorKind::ConnectionReset && !bytes.is_empty() => return Ok(bytes),
            Err(e) => return Err(e),
        }
        if Instant::now() > end {
            return Err(ErrorKind::TimedOut.into());
        }
    }
}

fn parse(bytes: &[u8]) -> io::Result<Response> {
    let wrong = |why: &str| io::Error::new(ErrorKind::InvalidData, why.to_owned());
    let at = find(bytes, b"\r\n\r\n").ok_or_else(|| wrong("no whole head"))?;
    let head = String::from_utf8_lossy(&bytes[..at]).into_owned();
    let body = &bytes[at + 4..];
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or_else(|| wrong("no status"))?;
    let mut response = Response { status, head, body: Vec::new(), took: Duration::ZERO };
    response.body = if response.header("transfer-encoding").is_some_and(|v| v.contains("chunked")) {
        unchunk(body).ok_or_else(|| wrong("the body broke off"))?
    } else {
        let length = response.header("content-length").and_then(|v| v.parse::<usize>().ok());
        if length.is_some_and(|n| n != body.len()) {
            return Err(wrong("the body is not as long as announced"));
        }
        body.to_vec()
    };
    Ok(response)
}

/// `None` when it does not end as it should.
fn unchunk(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = find(rest, b"\r\n")?;
        let size = std::str::from_utf8(&rest[..line]).ok()?;
        let size = usize::from_str_radix(size.split(';').next()?.trim(), 16).ok()?;
        rest = &rest[line + 2..];
        if size == 0 {
            return Some(body);
        }
        body.extend_from_slice(rest.get(..size)?);
        rest = rest.get(size + 2..)?;
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|w| w == what)
}
