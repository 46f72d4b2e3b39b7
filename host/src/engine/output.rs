//! What a guest prints, cut into lines and given to the actor's log. It never blocks the guest and never grows: long
//! lines are cut, and past a bound the rest of an instance's output is dropped, with one line that says so.

use super::state::Env;
use bytes::Bytes;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

/// Bytes of one line; a longer one goes on in the next.
const LINE_BYTES_MAX: usize = 8 * 1024;
/// Lines of one invocation.
const LINES_MAX: u32 = 1_000;
/// Bytes that a guest may write at once.
const WRITE_BYTES_MAX: usize = 64 * 1024;

/// Where one instance's lines go: counted, and cut off past a bound.
pub(super) struct Log {
    env: Arc<Env>,
    instance: u64,
    lines: AtomicU32,
}

impl Log {
    pub(super) fn new(env: Arc<Env>, instance: u64) -> Arc<Self> {
        Arc::new(Self { env, instance, lines: AtomicU32::new(0) })
    }

    /// One line from the guest; cut if it is too long.
    pub(super) fn line(&self, stream: &str, text: &str) {
        match self.lines.fetch_add(1, Ordering::Relaxed) {
            n if n < LINES_MAX => self.env.logs.line(self.instance, stream, cut(text)),
            n if n == LINES_MAX => {
                let text = format!("more than {LINES_MAX} lines from one invocation: the rest is dropped");
                self.env.logs.line(self.instance, "warn", &text);
            }
            // Far from wrapping around: a guest that writes for ever stays above the bound.
            n => self.lines.store(n.min(LINES_MAX + 2), Ordering::Relaxed),
        }
    }

    /// One line from the host about this instance; not counted.
    pub(super) fn note(&self, stream: &str, text: &str) {
        self.env.logs.line(self.instance, stream, cut(text));
    }
}

fn cut(text: &str) -> &str {
    if text.len() <= LINE_BYTES_MAX { text } else { &text[..text.floor_char_boundary(LINE_BYTES_MAX)] }
}

/// stdout or stderr of one instance. All handles to it share one line.
#[derive(Clone)]
pub(super) struct Stream {
    line: Arc<Line>,
}

struct Line {
    log: Arc<Log>,
    name: &'static str,
    /// What was written since the last newline.
    pending: Mutex<Vec<u8>>,
}

impl Stream {
    pub(super) fn new(log: &Arc<Log>, name: &'static str) -> Self {
        Self { line: Arc::new(Line { log: log.clone(), name, pending: Mutex::new(Vec::new()) }) }
    }
}

impl Line {
    fn write(&self, bytes: &[u8]) {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        for piece in bytes.split_inclusive(|b| *b == b'\n') {
            let (piece, ends) = match piece {
                [text @ .., b'\n'] => (text, true),
                text => (text, false),
            };
            pending.extend_from_slice(piece);
            while pending.len() > LINE_BYTES_MAX {
                let rest = pending.split_off(LINE_BYTES_MAX);
                let line = std::mem::replace(&mut *pending, rest);
                self.emit(&line);
            }
            if ends {
                self.emit(&pending);
                pending.clear();
            }
        }
    }

    fn emit(&self, line: &[u8]) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        self.log.line(self.name, &String::from_utf8_lossy(line));
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let pending = std::mem::take(self.pending.get_mut().unwrap_or_else(PoisonError::into_inner));
        if !pending.is_empty() {
            self.emit(&pending);
        }
    }
}

impl IsTerminal for Stream {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Stream {
    fn async_stream(&self) -> Box<dyn tokio::io::AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }
    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

#[async_trait::async_trait]
impl Pollable for Stream {
    async fn ready(&mut self) {}
}

impl OutputStream for Stream {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.line.write(&bytes);
        Ok(())
    }
    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }
    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(WRITE_BYTES_MAX)
    }
}

impl tokio::io::AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        self.line.write(buf);
        Poll::Ready(Ok(buf.len()))
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
