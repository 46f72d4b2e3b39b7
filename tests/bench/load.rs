//! Load over HTTP/1.1: the same for every server, and as cheap as it can be, since it shares the cpus with them. Each
//! connection has one request under way; the next goes out when the answer has come whole, or at a pace that all servers
//! are given: one that is asked more often wakes up less for each request, which is no merit of its own.

use crate::figures::{number, percentile};
use crate::machine;
use anyhow::{Context as _, Result, bail};
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::interval_at;

/// Bytes of one answer, head and body.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
const ANSWER_WAIT: Duration = Duration::from_secs(30);

/// What is asked, and of whom.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    addr: SocketAddr,
    request: Arc<str>,
}

impl Target {
    pub(crate) fn new(addr: SocketAddr, host: &str, path: &str) -> Self {
        Self { addr, request: format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n").into() }
    }
}

/// One round against one server.
pub(crate) struct Sample {
    pub(crate) per_second: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    /// Of each of the processes, per request.
    pub(crate) cpu_us: Vec<f64>,
    /// Of this process: what the load itself costs.
    pub(crate) own_us: f64,
}

/// How much is asked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) connections: u32,
    /// Requests of all of them together; as many as are answered if there is no pace.
    pub(crate) per_second: Option<u32>,
}

impl Load {
    /// As many as are answered.
    pub(crate) const fn all(connections: u32) -> Self {
        Self { connections, per_second: None }
    }

    /// Between two requests on a connection.
    fn every(self) -> Option<Duration> {
        self.per_second.map(|n| Duration::from_secs(1) * self.connections / n.max(1))
    }
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.per_second {
            None => write!(f, "{}", self.connections),
            Some(n) => write!(f, "{} at {}/s", self.connections, number(n.into())),
        }
    }
}

/// Asks for `time` after a start that is not counted, and tells what that cost each of `pids`. Any answer but a 200 is
/// an error.
pub(crate) async fn run(target: &Target, load: Load, time: Duration, pids: &[u32]) -> Result<Sample> {
    let gauge = Arc::new(Gauge::default());
    let mut busy = tokio::task::JoinSet::new();
    for number in 0..load.connections {
        let connection = Connection::open(target.clone()).await?;
        let pace = load.every().map(|every| (every * number / load.connections, every));
        busy.spawn(keep_busy(connection, pace, gauge.clone()));
    }
    let pids: Vec<u32> = pids.iter().copied().chain([std::process::id()]).collect();
    let measuring = measure(&gauge, time, &pids);
    let (seconds, requests, mut cpu) = tokio::select! {
        measured = measuring => measured?,
        Some(ended) = busy.join_next() => {
            ended.context("a connection's task")??;
            bail!("a connection ended before it was told to");
        }
    };
    gauge.stop.store(true, Ordering::Relaxed);
    let mut times = Vec::new();
    let give_up = tokio::time::Instant::now() + ANSWER_WAIT;
    while let Some(ended) = tokio::time::timeout_at(give_up, busy.join_next()).await.context("no last answer")? {
        times.extend(ended.context("a connection's task")??);
    }
    times.sort_unstable();
    if requests == 0 {
        bail!("no answer in {time:?}");
    }
    let us = |cpu: Duration| cpu.as_secs_f64() * 1e6 / requests as f64;
    let own_us = us(cpu.pop().unwrap_or_default());
    Ok(Sample {
        per_second: requests as f64 / seconds,
        p50_us: percentile(&times, 0.5),
        p99_us: percentile(&times, 0.99),
        cpu_us: cpu.into_iter().map(us).collect(),
        own_us,
    })
}

/// What the connections of one round share.
#[derive(Default)]
struct Gauge {
    answers: AtomicU64,
    measuring: AtomicBool,
    stop: AtomicBool,
}

async fn measure(gauge: &Gauge, time: Duration, pids: &[u32]) -> Result<(f64, u64, Vec<Duration>)> {
    let used = || pids.iter().map(|pid| machine::cpu(*pid)).collect::<Result<Vec<_>>>();
    tokio::time::sleep(time / 5).await;
    let (before, cpu_before, began) = (gauge.answers.load(Ordering::Relaxed), used()?, Instant::now());
    gauge.measuring.store(true, Ordering::Relaxed);
    tokio::time::sleep(time).await;
    gauge.measuring.store(false, Ordering::Relaxed);
    let seconds = began.elapsed().as_secs_f64();
    let (requests, cpu_after) = (gauge.answers.load(Ordering::Relaxed) - before, used()?);
    Ok((seconds, requests, cpu_after.iter().zip(&cpu_before).map(|(after, before)| *after - *before).collect()))
}

/// At a pace it begins so much later and asks so often. Gives the microseconds of each answer.
async fn keep_busy(
    mut connection: Connection,
    pace: Option<(Duration, Duration)>,
    gauge: Arc<Gauge>,
) -> Result<Vec<u32>> {
    let mut times = Vec::new();
    let mut pace = pace.map(|(first, every)| interval_at(tokio::time::Instant::now() + first, every));
    while !gauge.stop.load(Ordering::Relaxed) {
        if let Some(pace) = &mut pace {
            pace.tick().await;
        }
        let began = Instant::now();
        let status = connection.get().await?;
        if status != 200 {
            bail!("{} answered {status}: {}", connection.target.addr, connection.text());
        }
        gauge.answers.fetch_add(1, Ordering::Relaxed);
        if gauge.measuring.load(Ordering::Relaxed) {
            times.push(u32::try_from(began.elapsed().as_micros()).unwrap_or(u32::MAX));
        }
    }
    Ok(times)
}

/// A connection that is kept.
pub(crate) struct Connection {
    target: Target,
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    pub(crate) async fn open(target: Target) -> Result<Self> {
        let stream = TcpStream::connect(target.addr).await.with_context(|| format!("can not reach {}", target.addr))?;
        stream.set_nodelay(true).context("a socket without TCP_NODELAY")?;
        Ok(Self { target, stream, buffer: Vec::with_capacity(4096) })
    }

    /// Asks once and gives the status of the whole answer.
    pub(crate) async fn get(&mut self) -> Result<u16> {
        let addr = self.target.addr;
        self.stream.write_all(self.target.request.as_bytes()).await.with_context(|| format!("asking {addr}"))?;
        self.buffer.clear();
        loop {
            let read = self.stream.read_buf(&mut self.buffer).await.with_context(|| format!("an answer of {addr}"))?;
            if read == 0 || self.buffer.len() > ANSWER_BYTES_MAX {
                bail!("{addr} ended or overran its answer after {} bytes", self.buffer.len());
            }
            if let Some((status, len)) = answer(&self.buffer)? {
                if len != self.buffer.len() {
                    bail!("{addr} sent more than one answer");
                }
                return Ok(status);
            }
        }
    }

    /// The last answer.
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.buffer).into_owned()
    }
}

/// Status and bytes of the answer at the start of `bytes`, once it is whole.
fn answer(bytes: &[u8]) -> Result<Option<(u16, usize)>> {
    let Some(head_len) = find(bytes, b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(&bytes[..head_len]).context("an answer whose head is not text")?;
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok());
    let status = status.with_context(|| format!("an answer that is not HTTP/1.1: {head:?}"))?;
    let body = &bytes[head_len + 4..];
    let mut len = None;
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        if name.eq_ignore_ascii_case("content-length") {
            len = Some(value.trim().parse::<usize>().with_context(|| format!("content-length {value:?}"))?);
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            return Ok(chunked(body)?.map(|len| (status, head_len + 4 + len)));
        }
    }
    let len = len.with_context(|| format!("an answer without a length: {head:?}"))?;
    Ok((body.len() >= len).then_some((status, head_len + 4 + len)))
}

/// Bytes of the chunked body (RFC 9112, 7.1) at the start of `bytes`, once it is whole. Trailers are not expected.
fn chunked(bytes: &[u8]) -> Result<Option<usize>> {
    let mut at = 0;
    loop {
        let Some(line) = find(&bytes[at..], b"\r\n") else { return Ok(None) };
        let text = std::str::from_utf8(&bytes[at..at + line]).context("a chunk whose size is not text")?;
        let size = usize::from_str_radix(text, 16).with_context(|| format!("a chunk of size {text:?}"))?;
        at += line + 2 + size.min(ANSWER_BYTES_MAX) + 2;
        if at > bytes.len() {
            return Ok(None);
        }
        if size == 0 {
            return Ok(Some(at));
        }
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}
