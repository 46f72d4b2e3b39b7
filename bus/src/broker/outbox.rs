//! What waits to be written to one client. Whoever queued something tries to write it at once; what the socket does
//! not take is left to the client's writer task. Only one of them writes at a time, and nobody holds the lock while
//! writing. Never queues more than `Limits::pending_bytes_max`: the client is cut off instead.

use std::io::ErrorKind;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::Notify;
use tokio::time::timeout;

pub(super) struct Outbox {
    state: Mutex<State>,
    /// There is something for the writer task, or the end has come.
    wake: Notify,
    /// The queue got short again.
    drained: Notify,
    pending_bytes_max: usize,
}

struct State {
    queued: Vec<u8>,
    /// Empty; keeps its allocation for the next swap.
    spare: Vec<u8>,
    /// Taken from the queue and not yet written whole, when the writer task is to go on with it.
    rest: Vec<u8>,
    rest_at: usize,
    /// Bytes taken from the queue and not known to be written.
    in_flight: usize,
    owner: Owner,
    /// Someone has promised to call `flush`.
    is_promised: bool,
    is_closed: bool,
    /// Dropping the last one shuts down our direction.
    socket: Option<Arc<OwnedWriteHalf>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    Nobody,
    Flush,
    Writer,
}

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pushed {
    /// `must_flush`: the caller has to call `flush` soon. `is_crowded`: it should give this client time.
    Queued { must_flush: bool, is_crowded: bool },
    /// The client is ending.
    Closed,
    /// Its queue was full: it is ending now.
    CutOff,
}

/// Above this a buffer is not kept for reuse.
const SPARE_BYTES_MAX: usize = 256 * 1024;
/// A client with more than this waiting slows its senders down.
const CROWDED_BYTES: usize = 8 * 1024 * 1024;

impl Outbox {
    pub(super) fn new(socket: OwnedWriteHalf, pending_bytes_max: usize) -> Self {
        let state = State {
            queued: Vec::new(),
            spare: Vec::new(),
            rest: Vec::new(),
            rest_at: 0,
            in_flight: 0,
            owner: Owner::Nobody,
            is_promised: false,
            is_closed: false,
            socket: Some(Arc::new(socket)),
        };
        Self { state: Mutex::new(state), wake: Notify::new(), drained: Notify::new(), pending_bytes_max }
    }

    /// Queues what `write` appends, about `bytes` of it.
    pub(super) fn push(&self, bytes: usize, write: impl FnOnce(&mut Vec<u8>)) -> Pushed {
        let mut state = self.lock();
        if state.is_closed {
            return Pushed::Closed;
        }
        let pending = state.queued.len() + state.in_flight + bytes;
        if pending > self.pending_bytes_max {
            state.queued.clear();
            return Pushed::CutOff;
        }
        write(&mut state.queued);
        let must_flush = state.owner == Owner::Nobody && !std::mem::replace(&mut state.is_promised, true);
        Pushed::Queued { must_flush, is_crowded: pending > CROWDED_BYTES }
    }

    /// Writes what the socket takes now.
    pub(super) fn flush(&self) {
        let (mut bytes, socket) = {
            let mut state = self.lock();
            state.is_promised = false;
            if state.owner != Owner::Nobody || state.queued.is_empty() {
                return;
            }
            let Some(socket) = state.socket.clone() else { return };
            state.owner = Owner::Flush;
            (state.take_queued(), socket)
        };
        let mut at = 0;
        while at < bytes.len() {
            match socket.try_write(&bytes[at..]) {
                Ok(n) if n > 0 => at += n,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                // Also when it failed: the writer task meets the same error and ends the client.
                _ => break,
            }
        }
        let mut state = self.lock();
        if at < bytes.len() {
            state.in_flight = bytes.len() - at;
            state.rest = bytes;
            state.rest_at = at;
        } else {
            bytes.clear();
            state.give_back(bytes);
            if state.queued.is_empty() && !state.is_closed {
                state.owner = Owner::Nobody;
                return;
            }
        }
        state.owner = Owner::Writer;
        self.wake.notify_one();
    }

    /// Takes no more messages. What is queued, and then `farewell`, is still written.
    pub(super) fn close(&self, farewell: Option<&str>) {
        let mut state = self.lock();
        if std::mem::replace(&mut state.is_closed, true) {
            return;
        }
        if let Some(text) = farewell {
            state.queued.extend_from_slice(b"-ERR '");
            state.queued.extend_from_slice(text.as_bytes());
            state.queued.extend_from_slice(b"'\r\n");
        }
        if state.owner == Owner::Nobody {
            state.owner = Owner::Writer;
        }
        self.wake.notify_one();
    }

    /// Waits until the queue got short, at most so long.
    pub(super) async fn give_time(&self, wait: Duration) {
        let drained = self.drained.notified();
        if self.pending() > CROWDED_BYTES {
            let _ = timeout(wait, drained).await;
        }
    }

    /// The writer task: ends when the client is closed and everything is written, when the socket fails, or when it
    /// takes nothing for `stall_max`.
    pub(super) async fn write(&self, stall_max: Duration) {
        loop {
            let Some((bytes, at, socket)) = self.next() else {
                if self.is_over() {
                    break;
                }
                self.wake.notified().await;
                continue;
            };
            let is_written = write_all(&socket, &bytes[at..], stall_max).await;
            let mut state = self.lock();
            state.in_flight = 0;
            state.give_back(bytes);
            if !is_written {
                state.is_closed = true;
                state.queued.clear();
                break;
            }
            drop(state);
            if self.pending() <= CROWDED_BYTES / 2 {
                self.drained.notify_waiters();
            }
        }
        let mut state = self.lock();
        state.socket = None;
        state.queued = Vec::new();
        state.spare = Vec::new();
        state.rest = Vec::new();
        self.drained.notify_waiters();
    }

    /// What the writer task is to write now. `None` gives up ownership.
    fn next(&self) -> Option<(Vec<u8>, usize, Arc<OwnedWriteHalf>)> {
        let mut state = self.lock();
        if state.owner != Owner::Writer {
            return None;
        }
        let socket = state.socket.clone()?;
        if state.rest_at < state.rest.len() {
            let at = std::mem::take(&mut state.rest_at);
            return Some((std::mem::take(&mut state.rest), at, socket));
        }
        if state.queued.is_empty() {
            state.owner = Owner::Nobody;
            return None;
        }
        Some((state.take_queued(), 0, socket))
    }

    fn is_over(&self) -> bool {
        let state = self.lock();
        state.is_closed && state.owner == Owner::Nobody
    }

    fn pending(&self) -> usize {
        let state = self.lock();
        state.queued.len() + state.in_flight
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn take_queued(&mut self) -> Vec<u8> {
        let spare = std::mem::take(&mut self.spare);
        let queued = std::mem::replace(&mut self.queued, spare);
        self.in_flight = queued.len();
        queued
    }

    fn give_back(&mut self, mut bytes: Vec<u8>) {
        self.in_flight = 0;
        if bytes.capacity() <= SPARE_BYTES_MAX {
            bytes.clear();
            self.spare = bytes;
        }
    }
}

async fn write_all(socket: &OwnedWriteHalf, bytes: &[u8], stall_max: Duration) -> bool {
    let mut at = 0;
    while at < bytes.len() {
        match socket.try_write(&bytes[at..]) {
            Ok(0) => return false,
            Ok(n) => at += n,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) if e.kind() == ErrorKind::WouldBlock => match timeout(stall_max, socket.writable()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return false,
            },
            Err(_) => return false,
        }
    }
    true
}
