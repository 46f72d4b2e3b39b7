//! One connection: TLS if it is configured, then HTTP/1 or HTTP/2 by its first bytes. A client that is slow to say
//! what it wants, says too much, or does not take what it asked for, is cut off; one that is idle for long is let go.

use super::Limits;
use super::answer::{By, Front};
use super::sent::{Activity, Quiet, UnderWay};
use super::timer::HeadTimer;
use super::websocket;
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// Bytes of a request's line and headers.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Requests at a time on one HTTP/2 connection.
const STREAMS_MAX: u32 = 256;
const H2_PING_EVERY: Duration = Duration::from_secs(20);
const H2_PING_TIMEOUT: Duration = Duration::from_secs(10);
/// What every HTTP/2 connection begins with (RFC 9113, 3.4).
const H2_PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Who is at the other end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Client {
    pub(super) addr: SocketAddr,
    pub(super) tls: bool,
}

/// Serves one client until it goes, or until `stop`: then what is under way is finished.
pub(super) async fn serve(
    (stream, addr): (TcpStream, SocketAddr),
    tls: Option<TlsAcceptor>,
    front: Arc<Front>,
    limits: Limits,
    stop: CancellationToken,
) {
    // Answers are small and written whole: waiting to fill a packet only delays them.
    let _ = stream.set_nodelay(true);
    let client = Client { addr, tls: tls.is_some() };
    match tls {
        None => speak(stream, client, front, limits, stop).await,
        Some(acceptor) => {
            let shaken = timeout(limits.head_wait, acceptor.accept(stream));
            tokio::select! {
                () = stop.cancelled() => {}
                shaken = shaken => match shaken {
                    Ok(Ok(stream)) => speak(stream, client, front, limits, stop).await,
                    _ => front.meter.handshakes_failed.add(1),
                },
            }
        }
    }
}

async fn speak<S>(mut stream: S, client: Client, front: Arc<Front>, limits: Limits, stop: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let first = tokio::select! {
        () = stop.cancelled() => return,
        first = timeout(limits.head_wait, first_bytes(&mut stream)) => first,
    };
    let (first, len) = match first {
        Ok(Ok(first)) => first,
        Ok(Err(_)) => return,
        Err(_) => return front.meter.headless.add(1),
    };
    let is_http2 = first == *H2_PREFACE;
    let io = TokioIo::new(Rewound { first, at: 0, len, stream, write_wait: limits.take_wait, late: None });
    let ended = if is_http2 {
        speak_http2(io, client, front.clone(), limits, stop).await
    } else {
        speak_http1(io, client, front.clone(), limits, stop).await
    };
    if let Err(error) = ended {
        front.meter.headless.add(u64::from(error.is_timeout()));
        tracing::debug!(%error, "ingress connection ended");
    }
}

async fn speak_http1<S>(
    io: TokioIo<Rewound<S>>,
    client: Client,
    front: Arc<Front>,
    limits: Limits,
    stop: CancellationToken,
) -> hyper::Result<()>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (answering, opened) = (&*front, &Mutex::default());
    let service = service_fn(move |request: Request<Incoming>| async move {
        Ok::<_, Infallible>(answering.answer(request, client, By::Http1(opened)).await)
    });
    let mut builder = http1::Builder::new();
    builder.timer(HeadTimer::default()).header_read_timeout(limits.head_wait).max_buf_size(HEAD_BYTES_MAX);
    let mut connection = pin!(builder.serve_connection(io, service).with_upgrades());
    let ended = tokio::select! {
        ended = &mut connection => Some(ended),
        () = stop.cancelled() => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    let opened = opened.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(opened) = opened {
        Box::pin(websocket::serve(opened, front.clone(), stop)).await;
    }
    ended
}

async fn speak_http2<S>(
    io: TokioIo<Rewound<S>>,
    client: Client,
    front: Arc<Front>,
    limits: Limits,
    stop: CancellationToken,
) -> hyper::Result<()>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let activity = Arc::new(Activity::default());
    let (counted, answering) = (activity.clone(), front.clone());
    let service = service_fn(move |request: Request<Incoming>| {
        let (front, activity) = (answering.clone(), counted.clone());
        async move {
            let under_way = UnderWay::begin(&activity);
            let response = front.answer(request, client, By::Http2(&activity)).await;
            drop(under_way);
            Ok::<_, Infallible>(response)
        }
    });
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_header_list_size(u32::try_from(HEAD_BYTES_MAX).unwrap_or(u32::MAX))
        .max_concurrent_streams(STREAMS_MAX)
        .keep_alive_interval(H2_PING_EVERY)
        .keep_alive_timeout(H2_PING_TIMEOUT);
    let mut connection = pin!(builder.serve_connection(io, service));
    let quiet = tokio::select! {
        ended = &mut connection => return ended,
        () = stop.cancelled() => Quiet::Idle,
        quiet = activity.quiet(limits.idle) => quiet,
    };
    if quiet == Quiet::Stalled {
        front.meter.stalled.add(1);
        return Ok(());
    }
    connection.as_mut().graceful_shutdown();
    connection.await
}

/// As many bytes as it takes to know that this is HTTP/2 or is not.
async fn first_bytes(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<([u8; 24], usize)> {
    let mut first = [0; 24];
    let mut len = 0;
    while len < first.len() && first[..len] == H2_PREFACE[..len] {
        match stream.read(&mut first[len..]).await? {
            0 if len == 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            0 => break,
            n => len += n,
        }
    }
    Ok((first, len))
}

/// A stream whose first bytes were read already, to a client that has to take what is written in time.
struct Rewound<S> {
    first: [u8; 24],
    at: usize,
    len: usize,
    stream: S,
    write_wait: Duration,
    /// While the client takes nothing.
    late: Option<Pin<Box<Sleep>>>,
}

impl<S> Rewound<S> {
    /// What came of a write; one that waits for too long has failed.
    fn in_time<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.late = None;
            return written;
        }
        let late = self.late.get_or_insert_with(|| Box::pin(sleep(self.write_wait)));
        ready!(late.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing of what it asked for")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Rewound<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.at < this.len {
            let n = buf.remaining().min(this.len - this.at);
            buf.put_slice(&this.first[this.at..this.at + n]);
            this.at += n;
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut this.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Rewound<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(cx, buf);
        this.in_time(cx, written)
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_flush(cx);
        this.in_time(cx, written)
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_shutdown(cx);
        this.in_time(cx, written)
    }
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write_vectored(cx, bufs);
        this.in_time(cx, written)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
