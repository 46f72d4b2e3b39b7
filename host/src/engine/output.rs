//! What a guest prints, cut into lines and given to the actor's log. It never blocks the guest and never grows: long
//! lines are cut, and past a bound the rest of an instance's output is dropped, with one line that says so. So is what all
//! instances of an actor print in a second beyond its limit.

use super::state::Env;
use bytes::Bytes;
use http::HeaderValue;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

/// Bytes of one line; a longer one goes on in the next.
const LINE_BYTES_MAX: usize = 8 * 1024;
/// Lines of one invocation.
const LINES_MAX: u32 = 1_000;
/// Bytes that a guest may write at once.
const WRITE_BYTES_MAX: usize = 64 * 1024;

/// What all instances of an actor may print in a second; what was not used in one may be in the next, but no more.
pub(super) struct Rate {
    bytes_per_s: u64,
    state: Mutex<Allowance>,
}

struct Allowance {
    left: u64,
    since: Instant,
    told: Option<Instant>,
}

/// What becomes of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Print,
    /// Dropped, and nobody was told in this second.
    Tell,
    Drop,
}

impl Rate {
    pub(super) fn new(bytes_per_s: u64, now: Instant) -> Self {
        let state = Allowance { left: bytes_per_s, since: now, told: None };
        Self { bytes_per_s, state: Mutex::new(state) }
    }

    fn take(&self, bytes: usize, now: Instant) -> Verdict {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let nanos = now.saturating_duration_since(state.since).as_nanos();
        let more = u128::from(self.bytes_per_s) * nanos / Duration::from_secs(1).as_nanos();
        if more > 0 {
            state.left = state.left.saturating_add(u64::try_from(more).unwrap_or(u64::MAX)).min(self.bytes_per_s);
            state.since = now;
        }
        // An empty line is no free line.
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX).saturating_add(1);
        if bytes <= state.left {
            state.left -= bytes;
            return Verdict::Print;
        }
        let again = state.told.is_some_and(|told| now.saturating_duration_since(told) < Duration::from_secs(1));
        if again {
            return Verdict::Drop;
        }
        state.told = Some(now);
        Verdict::Tell
    }
}

/// Where one instance's lines go: those of an invocation are counted, and cut off past a bound.
pub(super) struct Log {
    env: Arc<Env>,
    instance: u64,
    /// The id of the request that it works for.
    request: Mutex<Option<HeaderValue>>,
    lines: AtomicU32,
}

impl Log {
    pub(super) fn new(env: Arc<Env>, instance: u64) -> Arc<Self> {
        Arc::new(Self { env, instance, request: Mutex::new(None), lines: AtomicU32::new(0) })
    }

    pub(super) fn works_for(&self, request: Option<HeaderValue>) {
        *self.request.lock().unwrap_or_else(PoisonError::into_inner) = request;
    }

    fn emit(&self, stream: &str, text: &str) {
        let request = self.request.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let id = request.as_ref().and_then(|id| id.to_str().ok()).unwrap_or_default();
        self.env.logs.line(self.instance, id, stream, text);
    }

    /// Another invocation in the same instance: each may print as much.
    pub(super) fn again(&self) {
        self.lines.store(0, Ordering::Relaxed);
    }

    /// Another invocation has begun.
    pub(super) fn begin(&self) {
        self.lines.store(0, Ordering::Relaxed);
    }

    /// One line from the guest; cut if it is too long.
    pub(super) fn line(&self, stream: &str, text: &str) {
        match self.lines.fetch_add(1, Ordering::Relaxed) {
            n if n < LINES_MAX => self.within_rate(stream, cut(text)),
            n if n == LINES_MAX => {
                let text = format!("more than {LINES_MAX} lines from one invocation: the rest is dropped");
                self.emit("warn", &text);
            }
            // Far from wrapping around: a guest that writes for ever stays above the bound.
            n => self.lines.store(n.min(LINES_MAX + 2), Ordering::Relaxed),
        }
    }

    fn within_rate(&self, stream: &str, text: &str) {
        match self.env.log_rate.take(text.len(), Instant::now()) {
            Verdict::Print => self.emit(stream, text),
            Verdict::Tell => {
                let max = self.env.limits.log_bytes_per_s;
                let text = format!("lines are dropped: more than {max} bytes a second; raise limits.log or print less");
                self.emit("warn", &text);
            }
            Verdict::Drop => {}
        }
    }

    /// One line from the host about this instance; not counted.
    pub(super) fn note(&self, stream: &str, text: &str) {
        self.emit(stream, cut(text));
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

    pub(super) fn write(&self, bytes: &[u8]) {
        self.line.write(bytes);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_has_its_bytes_and_one_line_says_when_they_are_used_up() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let rate = Rate::new(100, start);
        assert_eq!(rate.take(49, at(0)), Verdict::Print);
        assert_eq!(rate.take(49, at(0)), Verdict::Print);
        assert_eq!(rate.take(0, at(1)), Verdict::Tell);
        assert_eq!(rate.take(0, at(5)), Verdict::Drop);
        assert_eq!(rate.take(9, at(110)), Verdict::Print);
        assert_eq!(rate.take(500, at(990)), Verdict::Drop);
        assert_eq!(rate.take(500, at(1_500)), Verdict::Tell);
        // However long nobody printed, a second is a second.
        assert_eq!(rate.take(99, at(60_000)), Verdict::Print);
        assert_eq!(rate.take(0, at(60_000)), Verdict::Tell);
        assert_eq!(Rate::new(0, start).take(0, at(9_000)), Verdict::Tell);
    }
}
