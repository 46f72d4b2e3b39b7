//! The access log: one line of JSON for each request that was answered, to a file or to stdout. Off unless it is asked for.
//! It never makes a request wait: what the writer can not keep up with is dropped, and a line says how many.

use super::connection::Client;
use crate::origin::Origin;
use http::header::{HOST, HeaderMap, HeaderName, USER_AGENT};
use http::{Request, StatusCode, Version};
use serde::Serialize;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Lines that wait for the writer.
const WAITING_MAX: usize = 8_192;
/// Bytes of the file before it becomes `FILE.1`, in place of the one before.
const FILE_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Characters of a path, a host or a user agent in a line.
const TEXT_MAX: usize = 512;

/// Where it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    Stdout,
    File(PathBuf),
}

#[derive(Debug, thiserror::Error)]
#[error("access log {}: {source}; name a file that this user can write", path.display())]
pub struct Error {
    path: PathBuf,
    source: io::Error,
}

/// The log; dropping it writes what waits.
pub struct Access {
    lines: Option<SyncSender<String>>,
    dropped: Arc<AtomicU64>,
    writer: Option<JoinHandle<()>>,
}

impl Access {
    pub fn open(target: &Target) -> Result<Self, Error> {
        Self::open_with(target, FILE_BYTES_MAX)
    }

    fn open_with(target: &Target, bytes_max: u64) -> Result<Self, Error> {
        let sink = match target {
            Target::Stdout => Sink::Stdout(io::stdout()),
            Target::File(path) => {
                Sink::File(Rolling::open(path, bytes_max).map_err(|source| Error { path: path.clone(), source })?)
            }
        };
        let (lines, waiting) = sync_channel(WAITING_MAX);
        let dropped = Arc::<AtomicU64>::default();
        let counted = dropped.clone();
        let writer = std::thread::Builder::new()
            .name("access-log".into())
            .spawn(move || write(sink, &waiting, &counted))
            .map_err(|source| Error { path: PathBuf::from("-"), source })?;
        Ok(Self { lines: Some(lines), dropped, writer: Some(writer) })
    }

    fn put(&self, line: String) {
        if let Some(Err(TrySendError::Full(_))) = self.lines.as_ref().map(|lines| lines.try_send(line)) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Access {
    fn drop(&mut self) {
        drop(self.lines.take());
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

fn write(mut sink: Sink, waiting: &Receiver<String>, dropped: &AtomicU64) {
    let mut failed = false;
    while let Ok(line) = waiting.recv() {
        let mut written = sink.line(&line);
        while let Ok(line) = waiting.try_recv() {
            written = written.and_then(|()| sink.line(&line));
        }
        let lost = dropped.swap(0, Ordering::Relaxed);
        if lost > 0 {
            written = written.and_then(|()| sink.line(&format!("{{\"dropped\":{lost}}}\n")));
        }
        match written.and_then(|()| sink.flush()) {
            Ok(()) => failed = false,
            // Once: a full disk fails with each line.
            Err(error) if !failed => {
                failed = true;
                tracing::warn!(%error, "access log not written; free the disk");
            }
            Err(_) => {}
        }
    }
}

enum Sink {
    Stdout(io::Stdout),
    File(Rolling),
}

impl Sink {
    fn line(&mut self, line: &str) -> io::Result<()> {
        match self {
            Self::Stdout(out) => out.write_all(line.as_bytes()),
            Self::File(file) => file.line(line),
        }
    }
    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Stdout(out) => out.flush(),
            Self::File(file) => file.file.flush(),
        }
    }
}

/// A file and the one before it.
struct Rolling {
    path: PathBuf,
    file: BufWriter<File>,
    bytes: u64,
    bytes_max: u64,
}

impl Rolling {
    fn open(path: &Path, bytes_max: u64) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let bytes = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file: BufWriter::new(file), bytes, bytes_max })
    }

    fn line(&mut self, line: &str) -> io::Result<()> {
        if self.bytes >= self.bytes_max {
            self.file.flush()?;
            let mut before = self.path.clone().into_os_string();
            before.push(".1");
            fs::rename(&self.path, before)?;
            *self = Self::open(&self.path, self.bytes_max)?;
        }
        self.bytes += line.len() as u64;
        self.file.write_all(line.as_bytes())
    }
}

/// A line. Its names are a promise: fields are added, never renamed.
#[derive(Serialize)]
struct Line<'a> {
    /// When the request's head was there; RFC 3339, UTC.
    time: String,
    request_id: &'a str,
    trace_id: Option<String>,
    client: IpAddr,
    method: &'a str,
    scheme: &'static str,
    host: &'a str,
    path: &'a str,
    protocol: &'static str,
    user_agent: &'a str,
    /// What serves the route; absent when there is none.
    app: Option<&'a str>,
    actor: Option<&'a str>,
    status: u16,
    /// Of the answer's body, as far as it went.
    bytes: u64,
    /// Until the head of the answer, and until its body had ended.
    head_ms: f64,
    total_ms: f64,
    /// The body went out whole; the WebSocket was closed by one of its ends.
    complete: bool,
    /// Of a WebSocket, whose line is written at its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    websocket: Option<&'a Sockets>,
}

/// What went over a WebSocket.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Sockets {
    pub(super) messages_in: u64,
    pub(super) bytes_in: u64,
    pub(super) messages_out: u64,
    /// Why it ended.
    pub(super) ended: &'static str,
}

/// What is remembered of a request until its answer has gone out; writes its line when it is dropped.
pub(super) struct Entry {
    access: Arc<Access>,
    begun: Instant,
    time_ms: u64,
    origin: Origin,
    client: Client,
    method: http::Method,
    host: String,
    path: String,
    protocol: Version,
    user_agent: String,
    route: Option<(String, String)>,
    head: Option<(StatusCode, Duration)>,
    pub(super) bytes: u64,
    pub(super) complete: bool,
    pub(super) sockets: Option<Sockets>,
}

impl Entry {
    pub(super) fn begin<B>(access: &Arc<Access>, client: Client, origin: &Origin, request: &Request<B>) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let authority = request.uri().authority().map(|a| a.as_str());
        Self {
            access: access.clone(),
            begun: Instant::now(),
            time_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
            origin: origin.clone(),
            client,
            method: request.method().clone(),
            host: authority.map_or_else(|| text(request.headers(), &HOST), cut),
            path: cut(request.uri().path()),
            protocol: request.version(),
            user_agent: text(request.headers(), &USER_AGENT),
            route: None,
            head: None,
            bytes: 0,
            complete: false,
            sockets: None,
        }
    }

    pub(super) fn routed(&mut self, app: &str, actor: &str) {
        self.route = Some((app.to_owned(), actor.to_owned()));
    }

    pub(super) fn answered(&mut self, status: StatusCode) {
        self.head = Some((status, self.begun.elapsed()));
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let total = self.begun.elapsed();
        // A client that went away before there was an answer: as nginx writes it.
        let (status, head) = self.head.map_or((499, total), |(status, head)| (status.as_u16(), head));
        let line = Line {
            time: proto::time::rfc3339(self.time_ms),
            request_id: self.origin.request_id(),
            trace_id: self.origin.trace().map(|trace| trace.id_text()),
            client: self.client.addr.ip().to_canonical(),
            method: self.method.as_str(),
            scheme: if self.client.tls { "https" } else { "http" },
            host: &self.host,
            path: &self.path,
            protocol: protocol(self.protocol),
            user_agent: &self.user_agent,
            app: self.route.as_ref().map(|r| r.0.as_str()),
            actor: self.route.as_ref().map(|r| r.1.as_str()),
            status,
            bytes: self.bytes,
            head_ms: millis(head),
            total_ms: millis(total),
            complete: self.complete,
            websocket: self.sockets.as_ref(),
        };
        if let Ok(mut text) = serde_json::to_string(&line) {
            text.push('\n');
            self.access.put(text);
        }
    }
}

fn millis(time: Duration) -> f64 {
    // To the microsecond.
    (time.as_secs_f64() * 1e6).round() / 1e3
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_2 => "HTTP/2.0",
        Version::HTTP_10 => "HTTP/1.0",
        _ => "HTTP/1.1",
    }
}

fn text(headers: &HeaderMap, name: &HeaderName) -> String {
    headers.get(name).map(|v| cut(&String::from_utf8_lossy(v.as_bytes()))).unwrap_or_default()
}

fn cut(text: &str) -> String {
    text.chars().take(TEXT_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_rolls_and_what_waits_is_written_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("access.log");
        let access = Access::open_with(&Target::File(path.clone()), 100).unwrap();
        for n in 0..30 {
            access.put(format!("line {n:02}\n"));
        }
        drop(access);
        let (now, before) =
            (fs::read_to_string(&path).unwrap(), fs::read_to_string(dir.path().join("access.log.1")).unwrap());
        assert!(now.ends_with("line 29\n"), "{now}");
        assert_eq!(format!("{before}{now}").lines().count() * 8, before.len() + now.len());
        assert!(before.len() < 120 && now.len() < 120, "{} {}", before.len(), now.len());
        // It goes on where it was.
        Access::open(&Target::File(path.clone())).unwrap().put("more\n".into());
        assert!(fs::read_to_string(&path).unwrap().ends_with("line 29\nmore\n"));
        let wrong = Access::open(&Target::File(dir.path().join("no/such")));
        assert!(wrong.err().unwrap().to_string().contains("no/such"));
    }

    #[test]
    fn a_writer_that_is_stuck_holds_nobody_up() {
        let (lines, waiting) = sync_channel(WAITING_MAX);
        let access = Access { lines: Some(lines), dropped: Arc::default(), writer: None };
        for _ in 0..WAITING_MAX + 7 {
            access.put("line\n".into());
        }
        let dropped = access.dropped.clone();
        drop(access);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("access.log");
        write(Sink::File(Rolling::open(&path, FILE_BYTES_MAX).unwrap()), &waiting, &dropped);
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), WAITING_MAX + 1);
        assert!(text.ends_with("line\n{\"dropped\":7}\n"));
    }
}
