//! A program run to its end: `wasi:cli/run` in an instance of its own. It reads the arguments and the input that its
//! caller gives, and what it prints goes to the caller as well as to the log: to the caller byte for byte, and no
//! faster than the caller takes it. When the caller goes away it ends.

use super::actor::{Actor, lost};
use super::invocation::{Entering, Until};
use super::output::{Log, Stream};
use crate::call::CallError;
use bytes::Bytes;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::PollSender;
use wasmtime_wasi::I32Exit;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamError, StreamResult};

/// What a program exports, without version.
pub const COMMAND: &str = "wasi:cli/run";
/// Bytes that a program may write at once.
const WRITE_BYTES_MAX: usize = 64 * 1024;

/// What a caller gives to a program.
#[derive(Debug, Clone, Default)]
pub struct Job {
    /// Behind those that the manifest grants, or behind the actor's name.
    pub args: Vec<String>,
    /// Instead of the text that the manifest grants.
    pub stdin: Option<Bytes>,
    /// The actor's own deadline, if that is sooner.
    pub deadline: Option<Duration>,
}

/// A piece of what a program prints, at most 64 KiB.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Printed {
    Stdout(Bytes),
    Stderr(Bytes),
}

/// A job as its instance sees it.
pub(super) struct Batch {
    pub(super) args: Vec<String>,
    pub(super) stdin: Option<Bytes>,
    pub(super) out: mpsc::Sender<Printed>,
}

impl Actor {
    /// Runs a program; its exit code. `out` holds as many pieces as it has room for, then the program waits.
    pub async fn run(&self, job: Job, out: mpsc::Sender<Printed>) -> Result<u8, CallError> {
        let ended = Box::pin(self.try_run(job, out)).await;
        self.shared.count(ended)
    }

    async fn try_run(&self, job: Job, out: mpsc::Sender<Printed>) -> Result<u8, CallError> {
        let linked = self.linked().await?;
        let export = self.export(&linked, COMMAND, "run")?;
        let env = &self.shared.env;
        if let Some(why) = self.shared.policy().job_refusal(!job.args.is_empty(), job.stdin.is_some()) {
            return Err(CallError::Denied(format!("actor {}: {why}", env.label)));
        }
        let mut args = match env.granted.grants.args.as_slice() {
            [] => vec![env.actor.clone()],
            granted => granted.to_vec(),
        };
        args.extend(job.args);
        let batch = Batch { args, stdin: job.stdin, out: out.clone() };
        let mut run = self.shared.enter_with(job.deadline, Entering::First, Some(batch)).await?;
        let (shared, pre, index) = (self.shared.clone(), linked.pre.clone(), export.index);
        let until = Until::of(&run);
        let work = async move {
            let call = async {
                let instance = pre.instantiate_async(&mut run.store).await?;
                let func = instance.get_func(&mut run.store, index).ok_or_else(lost)?;
                let func = func.typed::<(), (Result<(), ()>,)>(&run.store)?;
                match shared.is_later {
                    true => run.store.run_concurrent(async move |by| func.call_concurrent(by, ()).await).await?,
                    false => func.call_async(&mut run.store, ()).await,
                }
            };
            match call.await {
                Ok((ended,)) => Ok(u8::from(ended.is_err())),
                Err(e) => match e.downcast_ref() {
                    // As a shell has it: the lowest byte.
                    Some(I32Exit(code)) => Ok(code.to_le_bytes()[0]),
                    None => Err(shared.failed(&run.store, &e)),
                },
            }
        };
        tokio::select! {
            biased;
            ended = self.shared.in_time(until, Box::pin(work)) => ended,
            () = out.closed() => Err(CallError::Unavailable(format!(
                "whoever ran actor {} went away: it was stopped", self.shared.env.label
            ))),
        }
    }
}

/// stdout or stderr of a program: its log and its caller.
#[derive(Clone)]
pub(super) struct Tee {
    log: Stream,
    out: mpsc::Sender<Printed>,
    piece: fn(Bytes) -> Printed,
}

impl Tee {
    pub(super) fn stdout(log: &std::sync::Arc<Log>, batch: &Batch) -> Self {
        Self { log: Stream::new(log, "stdout"), out: batch.out.clone(), piece: Printed::Stdout }
    }
    pub(super) fn stderr(log: &std::sync::Arc<Log>, batch: &Batch) -> Self {
        Self { log: Stream::new(log, "stderr"), out: batch.out.clone(), piece: Printed::Stderr }
    }
}

impl IsTerminal for Tee {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Tee {
    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(Writer { tee: self.clone(), permit: None })
    }
    fn async_stream(&self) -> Box<dyn tokio::io::AsyncWrite + Send + Sync> {
        Box::new(AsyncWriter { tee: self.clone(), sender: PollSender::new(self.out.clone()) })
    }
}

/// One handle to it. It says that there is room only when it holds the room.
struct Writer {
    tee: Tee,
    permit: Option<mpsc::OwnedPermit<Printed>>,
}

#[async_trait::async_trait]
impl Pollable for Writer {
    async fn ready(&mut self) {
        if self.permit.is_none() {
            // When the caller has gone, the next write says so.
            self.permit = self.tee.out.clone().reserve_owned().await.ok();
        }
    }
}

impl OutputStream for Writer {
    fn check_write(&mut self) -> StreamResult<usize> {
        if self.permit.is_none() {
            self.permit = match self.tee.out.clone().try_reserve_owned() {
                Ok(permit) => Some(permit),
                Err(mpsc::error::TrySendError::Full(_)) => return Ok(0),
                Err(mpsc::error::TrySendError::Closed(_)) => return Err(StreamError::Closed),
            };
        }
        Ok(WRITE_BYTES_MAX)
    }
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        if self.check_write()? < bytes.len() {
            return Err(StreamError::trap("it wrote more than it was told there is room for"));
        }
        self.tee.log.write(&bytes);
        if let Some(permit) = self.permit.take() {
            // A copy: the guest's own may be a small part of something large.
            permit.send((self.tee.piece)(Bytes::copy_from_slice(&bytes)));
        }
        Ok(())
    }
    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }
}

/// The same for WASI 0.3.
struct AsyncWriter {
    tee: Tee,
    sender: PollSender<Printed>,
}

impl tokio::io::AsyncWrite for AsyncWriter {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        let gone = || std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        let bytes = &bytes[..bytes.len().min(WRITE_BYTES_MAX)];
        if std::task::ready!(self.sender.poll_reserve(cx)).is_err() {
            return Poll::Ready(Err(gone()));
        }
        let piece = (self.tee.piece)(Bytes::copy_from_slice(bytes));
        if self.sender.send_item(piece).is_err() {
            return Poll::Ready(Err(gone()));
        }
        self.tee.log.write(bytes);
        Poll::Ready(Ok(bytes.len()))
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
