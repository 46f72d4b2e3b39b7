//! One client: reads what it sends, carries it out, and queues what others get. Two tasks, this one and the writer.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use serde::Deserialize;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::outbox::{Outbox, Pushed};
use super::protocol::{self, CONTROL_LINE_BYTES_MAX, Fault, Op, Publish, Step};
use super::receivers::{Finding, Found, Own};
use super::subjects;
use super::{Hub, Limits};

/// What others need of a client.
pub(super) struct Client {
    pub(super) id: u64,
    outbox: Outbox,
    subscriptions: Mutex<HashMap<Box<[u8]>, Arc<Subscription>>>,
    takes_headers: AtomicBool,
    is_authorized: AtomicBool,
    began_ms: u64,
    seen_ms: AtomicU64,
    pings: AtomicU32,
    stop: CancellationToken,
}

pub(super) struct Subscription {
    pub(super) client: Arc<Client>,
    pub(super) sid: Box<[u8]>,
    pub(super) pattern: Box<[u8]>,
    pub(super) group: Option<Box<[u8]>>,
    delivered: AtomicU64,
    /// 0 is no limit.
    delivered_max: AtomicU64,
}

impl Client {
    pub(super) fn new(id: u64, write: OwnedWriteHalf, limits: &Limits, now_ms: u64, stop: CancellationToken) -> Self {
        Self {
            id,
            outbox: Outbox::new(write, limits.pending_bytes_max),
            subscriptions: Mutex::default(),
            takes_headers: AtomicBool::new(false),
            is_authorized: AtomicBool::new(false),
            began_ms: now_ms,
            seen_ms: AtomicU64::new(now_ms),
            pings: AtomicU32::new(0),
            stop,
        }
    }

    /// Ends it, after what is queued and `farewell` have been written.
    pub(super) fn close(&self, farewell: Option<&str>) {
        self.outbox.close(farewell);
        self.stop.cancel();
    }

    pub(super) fn forget(&self, sid: &[u8]) {
        self.subscriptions().remove(sid);
    }

    /// `auth_ms` is set when a token is wanted.
    pub(super) fn look_after(&self, now_ms: u64, ping_ms: u64, auth_ms: Option<u64>) {
        let is_late = auth_ms.is_some_and(|auth_ms| now_ms.saturating_sub(self.began_ms) > auth_ms);
        if is_late && !self.is_authorized.load(Ordering::Relaxed) {
            return self.close(Some("Authentication Timeout"));
        }
        let pings = self.pings.load(Ordering::Relaxed);
        let silent_ms = now_ms.saturating_sub(self.seen_ms.load(Ordering::Relaxed));
        if silent_ms < ping_ms.saturating_mul(u64::from(pings) + 1) {
            return;
        }
        if pings >= PINGS_MAX {
            return self.close(Some("Stale Connection"));
        }
        self.pings.store(pings + 1, Ordering::Relaxed);
        if self.push(8, |out| out.extend_from_slice(b"PING\r\n")) != Sent::No {
            self.outbox.flush();
        }
    }

    fn push(&self, bytes: usize, write: impl FnOnce(&mut Vec<u8>)) -> Sent {
        match self.outbox.push(bytes, write) {
            Pushed::Queued { must_flush: false, is_crowded: false } => Sent::Yes,
            Pushed::Queued { must_flush, is_crowded } => Sent::AndMust { flush: must_flush, wait: is_crowded },
            Pushed::Closed => Sent::No,
            Pushed::CutOff => {
                debug!(id = self.id, "broker cuts off a slow client");
                self.close(Some("Slow Consumer"));
                Sent::No
            }
        }
    }

    fn subscriptions(&self) -> MutexGuard<'_, HashMap<Box<[u8]>, Arc<Subscription>>> {
        self.subscriptions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sent {
    Yes,
    AndMust { flush: bool, wait: bool },
    No,
}

const PINGS_MAX: u32 = 2;
const READ_BYTES_MIN: usize = 4 * 1024;
const READ_BYTES_MAX: usize = 128 * 1024;
/// Reads in a row before other tasks get their turn.
const READS_IN_A_ROW_MAX: u32 = 16;
/// How long a client that sends faster than another reads is held up, per read.
const CROWDED_WAIT: Duration = Duration::from_millis(5);
/// After the end, for what the client still sends, so that it gets to read why.
const LINGER_WAIT: Duration = Duration::from_millis(500);
const LINGER_BYTES_MAX: usize = 8 * 1024 * 1024;
const FAREWELL_WAIT: Duration = Duration::from_secs(2);
/// Group members tried for one message while clients are ending.
const GROUP_TRIES_MAX: usize = 4;
const PROTOCOL_LEVEL: &str = "2.10.0";

/// Serves a client until it ends.
pub(super) async fn run(hub: Arc<Hub>, client: Arc<Client>, read: OwnedReadHalf) {
    let writer = {
        let client = Arc::clone(&client);
        let stall_max = hub.limits.write_stall_max;
        tokio::spawn(async move {
            client.outbox.write(stall_max).await;
            client.stop.cancel();
        })
    };
    let mut session = Session::new(Arc::clone(&hub), Arc::clone(&client));
    session.greet();
    let mut bytes = BytesMut::new();
    session.read(&read, &mut bytes).await;

    hub.clients().remove(&client.id);
    let subscriptions: Vec<_> = client.subscriptions().drain().map(|(_, subscription)| subscription).collect();
    for subscription in &subscriptions {
        hub.remove(subscription);
    }
    client.close(None);
    let mut writer = writer;
    if timeout(FAREWELL_WAIT, &mut writer).await.is_err() {
        writer.abort();
    }
    linger(&read, bytes).await;
    debug!(id = client.id, "broker client ended");
}

/// Reads and forgets: closing a socket with unread bytes would take back what was written last.
async fn linger(read: &OwnedReadHalf, mut bytes: BytesMut) {
    let rest = async {
        let mut total = 0;
        while total < LINGER_BYTES_MAX && read.readable().await.is_ok() {
            bytes.clear();
            bytes.reserve(READ_BYTES_MIN);
            match read.try_read_buf(&mut bytes) {
                Ok(0) => return,
                Ok(n) => total += n,
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    };
    let _ = timeout(LINGER_WAIT, rest).await;
}

struct Session {
    hub: Arc<Hub>,
    client: Arc<Client>,
    options: Connect,
    takes_no_responders: bool,
    dice: u64,
    /// Clients whose outbox waits for our `flush`.
    unflushed: Vec<Arc<Client>>,
    /// A client that can not keep up with us.
    crowded: Option<Arc<Client>>,
    found: Found,
}

/// What a client says of itself.
#[derive(Debug, Deserialize)]
#[serde(default)]
struct Connect {
    verbose: bool,
    echo: bool,
    headers: bool,
    no_responders: bool,
    auth_token: Option<String>,
}

impl Default for Connect {
    fn default() -> Self {
        Self { verbose: true, echo: true, headers: false, no_responders: false, auth_token: None }
    }
}

/// Why a session ends.
type End = &'static str;

impl Session {
    fn new(hub: Arc<Hub>, client: Arc<Client>) -> Self {
        let dice = client.id.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        Self {
            hub,
            client,
            options: Connect::default(),
            takes_no_responders: false,
            dice,
            unflushed: Vec::new(),
            crowded: None,
            found: Found::default(),
        }
    }

    fn greet(&mut self) {
        let info = serde_json::json!({
            "server_id": format!("LATTICE{}", self.hub.addr.port()),
            "server_name": "lattice",
            "version": PROTOCOL_LEVEL,
            "proto": 1,
            "host": self.hub.addr.ip().to_string(),
            "port": self.hub.addr.port(),
            "headers": true,
            "auth_required": self.hub.token.is_some(),
            "max_payload": self.hub.limits.payload_bytes_max,
            "client_id": self.client.id,
        });
        self.say(&format!("INFO {info}\r\n"));
        self.flush();
    }

    async fn read(&mut self, read: &OwnedReadHalf, bytes: &mut BytesMut) {
        let stop = self.client.stop.clone();
        let mut want = READ_BYTES_MIN;
        let mut need = 0;
        let mut reads = 0;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                ready = read.readable() => if ready.is_err() { return },
            }
            bytes.reserve(want.max(usize::saturating_sub(need, bytes.len())));
            match read.try_read_buf(bytes) {
                Ok(0) => return,
                Ok(n) if n >= want => want = (want * 2).min(READ_BYTES_MAX),
                Ok(_) => {}
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => continue,
                Err(_) => return,
            }
            self.client.seen_ms.store(self.hub.now_ms(), Ordering::Relaxed);
            self.client.pings.store(0, Ordering::Relaxed);
            let result = self.carry_out(bytes);
            self.flush();
            match result {
                Ok(more) => need = more,
                Err(end) => return self.client.close((!end.is_empty()).then_some(end)),
            }
            if bytes.is_empty() && bytes.capacity() > 2 * READ_BYTES_MAX {
                *bytes = BytesMut::new();
            }
            if let Some(crowded) = self.crowded.take() {
                crowded.outbox.give_time(CROWDED_WAIT).await;
            }
            reads += 1;
            if reads % READS_IN_A_ROW_MAX == 0 {
                tokio::task::yield_now().await;
            }
        }
    }

    /// Carries out each whole operation. Returns how many bytes the next one needs.
    fn carry_out(&mut self, bytes: &mut BytesMut) -> Result<usize, End> {
        let mut at = 0;
        let payload_max = self.hub.limits.payload_bytes_max;
        let need = loop {
            if at == bytes.len() {
                break CONTROL_LINE_BYTES_MAX;
            }
            match protocol::parse(&bytes[at..], payload_max).map_err(Fault::text)? {
                Step::Need(need) => break need,
                Step::Op { op, used } => {
                    self.carry_out_one(op)?;
                    at += used;
                }
            }
        };
        bytes.advance(at);
        Ok(need)
    }

    fn carry_out_one(&mut self, op: Op<'_>) -> Result<(), End> {
        let is_open = self.hub.token.is_none() || self.client.is_authorized.load(Ordering::Relaxed);
        match op {
            Op::Connect(json) => return self.connect(json),
            Op::Ping => self.say("PONG\r\n"),
            Op::Pong | Op::Ignored => {}
            Op::Failed => return Err(""),
            _ if !is_open => return Err("Authorization Violation"),
            Op::Subscribe { subject, queue, sid } => return self.subscribe(subject, queue, sid),
            Op::Unsubscribe { sid, max } => {
                self.unsubscribe(sid, max);
                self.confirm();
            }
            Op::Publish(publish) => return self.publish(publish),
        }
        Ok(())
    }

    fn connect(&mut self, json: &[u8]) -> Result<(), End> {
        let options: Connect = serde_json::from_slice(json).map_err(|_| "Parser Error")?;
        if let Some(token) = &self.hub.token {
            let given = options.auth_token.as_deref().unwrap_or_default();
            if !is_same(token.as_bytes(), given.as_bytes()) {
                return Err("Authorization Violation");
            }
        }
        if options.no_responders && !options.headers {
            return Err("no responders requires headers support");
        }
        self.client.is_authorized.store(true, Ordering::Relaxed);
        self.client.takes_headers.store(options.headers, Ordering::Relaxed);
        self.takes_no_responders = options.no_responders;
        self.options = options;
        self.confirm();
        Ok(())
    }

    fn subscribe(&mut self, pattern: &[u8], group: Option<&[u8]>, sid: &[u8]) -> Result<(), End> {
        if !subjects::is_pattern(pattern) {
            self.say("-ERR 'Invalid Subject'\r\n");
            return Ok(());
        }
        let subscription = {
            let mut subscriptions = self.client.subscriptions();
            if subscriptions.contains_key(sid) {
                drop(subscriptions);
                self.confirm();
                return Ok(());
            }
            if subscriptions.len() >= self.hub.limits.subscriptions_len_max {
                return Err("maximum subscriptions exceeded");
            }
            let subscription = Arc::new(Subscription {
                client: Arc::clone(&self.client),
                sid: sid.into(),
                pattern: pattern.into(),
                group: group.map(Into::into),
                delivered: AtomicU64::new(0),
                delivered_max: AtomicU64::new(0),
            });
            subscriptions.insert(sid.into(), Arc::clone(&subscription));
            subscription
        };
        let mut tree = self.hub.tree.write().unwrap_or_else(PoisonError::into_inner);
        if tree.len() >= self.hub.limits.subscriptions_len_max_all {
            return Err("maximum subscriptions exceeded");
        }
        tree.insert(pattern, group, subscription);
        drop(tree);
        self.confirm();
        Ok(())
    }

    fn unsubscribe(&mut self, sid: &[u8], max: Option<u64>) {
        let Some(subscription) = self.client.subscriptions().get(sid).cloned() else { return };
        let max = max.filter(|max| *max > subscription.delivered.load(Ordering::Relaxed));
        match max {
            Some(max) => subscription.delivered_max.store(max, Ordering::Relaxed),
            None => self.hub.remove(&subscription),
        }
    }

    fn publish(&mut self, publish: Publish<'_>) -> Result<(), End> {
        if !subjects::is_literal(publish.subject) || publish.reply.is_some_and(|reply| !subjects::is_pattern(reply)) {
            self.say("-ERR 'Invalid Publish Subject'\r\n");
            return Ok(());
        }
        if !publish.headers.is_empty() {
            if !self.options.headers {
                return Err("message headers not supported");
            }
            if !protocol::are_headers_sound(publish.headers) {
                self.say("-ERR 'Malformed Headers'\r\n");
                return Ok(());
            }
        }
        self.confirm();
        let mut delivered = 0;
        for round in 0..GROUP_TRIES_MAX {
            self.find(publish.subject);
            if round > 0 {
                // Only a group whose chosen member was ending gets a second choice.
                self.found.plain.clear();
            }
            let mut failed = false;
            while let Some(subscription) = self.found.plain.pop() {
                delivered += usize::from(self.deliver(&subscription, publish));
            }
            while let Some(group) = self.found.groups.pop() {
                let is_delivered = self.deliver(&group.chosen, publish);
                delivered += usize::from(is_delivered);
                failed |= !is_delivered;
            }
            if !failed || delivered > 0 {
                break;
            }
        }
        if let (0, true, Some(reply)) = (delivered, self.takes_no_responders, publish.reply) {
            self.say_nobody(publish.subject, reply);
        }
        Ok(())
    }

    /// Fills `found` for a subject.
    fn find(&mut self, subject: &[u8]) {
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        let skip = if self.options.echo { None } else { Some(self.client.id) };
        let mut finding = Finding::new(&mut self.found, self.dice, skip);
        let tree = self.hub.tree.read().unwrap_or_else(PoisonError::into_inner);
        tree.visit(subject, &mut finding);
    }

    /// Queues a message for one subscription.
    fn deliver(&mut self, subscription: &Arc<Subscription>, publish: Publish<'_>) -> bool {
        let delivered = subscription.delivered.fetch_add(1, Ordering::Relaxed) + 1;
        let max = subscription.delivered_max.load(Ordering::Relaxed);
        if max > 0 && delivered >= max {
            self.hub.remove(subscription);
            if delivered > max {
                return false;
            }
        }
        let client = &subscription.client;
        let headers: &[u8] = if client.takes_headers.load(Ordering::Relaxed) { publish.headers } else { b"" };
        let line = publish.subject.len() + subscription.sid.len() + publish.reply.map_or(0, <[u8]>::len) + 40;
        let sent = client.push(line + headers.len() + publish.payload.len(), |out| {
            write_message(out, &subscription.sid, headers, publish);
        });
        match sent {
            Sent::Yes => true,
            Sent::No => false,
            Sent::AndMust { flush, wait } => {
                if flush {
                    self.unflushed.push(Arc::clone(client));
                }
                if wait && client.id != self.client.id {
                    self.crowded = Some(Arc::clone(client));
                }
                true
            }
        }
    }

    /// Tells our own client that nobody listens to what it asked.
    fn say_nobody(&mut self, subject: &[u8], reply: &[u8]) {
        if !subjects::is_literal(reply) {
            return;
        }
        let mut own = Own::of(self.client.id);
        self.hub.tree.read().unwrap_or_else(PoisonError::into_inner).visit(reply, &mut own);
        let Some(subscription) = own.found else { return };
        let mut headers = Vec::with_capacity(subject.len() + 40);
        headers.extend_from_slice(b"NATS/1.0 503\r\nNats-Subject: ");
        headers.extend_from_slice(subject);
        headers.extend_from_slice(b"\r\n\r\n");
        let status = Publish { subject: reply, reply: None, headers: &headers, payload: b"" };
        self.deliver(&subscription, status);
    }

    /// `+OK`, to clients that want it.
    fn confirm(&mut self) {
        if self.options.verbose {
            self.say("+OK\r\n");
        }
    }

    fn say(&mut self, line: &str) {
        let client = Arc::clone(&self.client);
        if let Sent::AndMust { flush: true, .. } = client.push(line.len(), |out| out.extend_from_slice(line.as_bytes()))
        {
            self.unflushed.push(client);
        }
    }

    fn flush(&mut self) {
        for client in self.unflushed.drain(..) {
            client.outbox.flush();
        }
    }
}

fn write_message(out: &mut Vec<u8>, sid: &[u8], headers: &[u8], publish: Publish<'_>) {
    out.extend_from_slice(if headers.is_empty() { b"MSG " } else { b"HMSG " });
    out.extend_from_slice(publish.subject);
    out.push(b' ');
    out.extend_from_slice(sid);
    out.push(b' ');
    if let Some(reply) = publish.reply {
        out.extend_from_slice(reply);
        out.push(b' ');
    }
    if !headers.is_empty() {
        write_number(out, headers.len());
        out.push(b' ');
    }
    write_number(out, headers.len() + publish.payload.len());
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(headers);
    out.extend_from_slice(publish.payload);
    out.extend_from_slice(b"\r\n");
}

fn write_number(out: &mut Vec<u8>, mut n: usize) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + u8::try_from(n % 10).expect("a digit");
        n /= 10;
        if n == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// Takes as long for a near miss as for a far one.
fn is_same(a: &[u8], b: &[u8]) -> bool {
    let differences = a.iter().zip(b.iter()).fold(0, |sum, (a, b)| sum | (a ^ b));
    a.len() == b.len() && differences == 0
}
