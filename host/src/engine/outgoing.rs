//! Outgoing HTTP: the only door through which `wasi:http` leaves a guest. A request passes by what it asks for, then by
//! the address that its name stands for, and that very address is connected to: a name is looked up once, so one that
//! changes between the look and the leap gains nothing. HTTP/1.1, with the certificate authorities of the web and of this
//! machine. The trace that the invocation belongs to goes along.

use super::output::Log;
use super::state::{Env, Hooks};
use crate::origin::{Origin, TRACEPARENT};
use crate::spans::{self, Kind, Span};
use bytes::Bytes;
use http::HeaderName;
use http::uri::Authority;
use http_body_util::BodyExt as _;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use proto::address::Scheme;
use rustls::RootCertStore;
use rustls::pki_types::ServerName;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{OnceCell, OwnedSemaphorePermit};
use tokio::time::{Instant, Sleep, timeout};
use wasmtime_wasi_http::{Error, ForbiddenHeaderFilter, RequestOptions, WasiBody, WasiHttpHooks};

/// Bytes that a guest may write to a body at once. Two such pieces wait for a slow reader, for each open response.
pub(super) const BODY_CHUNK_BYTES_MAX: usize = 128 * 1024;
/// Read of an answer before it is taken: its whole head is within.
const READ_BYTES_MAX: usize = 128 * 1024;
/// For a name and a connection, if the guest gives no time of its own.
const CONNECT_WAIT: Duration = Duration::from_secs(10);
/// For the head of the answer, and between pieces of its body; the invocation's own deadline is usually sooner.
const ANSWER_WAIT: Duration = Duration::from_secs(600);
/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 16;

type Io = Box<dyn Future<Output = Result<(), Error>> + Send>;
type Sent = Result<(http::Response<WasiBody>, Io), Error>;

/// The headers that guests neither see nor set: those that belong to a connection.
pub(super) fn forbidden_headers() -> ForbiddenHeaderFilter {
    Arc::new(is_forbidden)
}

fn is_forbidden(name: &HeaderName) -> bool {
    wasmtime_wasi_http::DEFAULT_FORBIDDEN_HEADERS.contains(name)
}

impl WasiHttpHooks for Hooks {
    fn is_forbidden_header(&mut self, name: &HeaderName) -> bool {
        is_forbidden(name)
    }
    fn forbidden_header_filter(&mut self) -> ForbiddenHeaderFilter {
        self.env.forbidden.clone()
    }
    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        BODY_CHUNK_BYTES_MAX
    }
    fn p3_outgoing_body_chunk_size(&mut self) -> usize {
        BODY_CHUNK_BYTES_MAX
    }
    fn send_request(
        &mut self,
        mut request: http::Request<WasiBody>,
        options: Option<RequestOptions>,
        _: Box<dyn Future<Output = Result<(), Error>> + Send>,
    ) -> Box<dyn Future<Output = Sent> + Send> {
        match Door::open(&self.env, &self.log, request.uri(), options.unwrap_or_default()) {
            Ok(door) => {
                let mut span = traced(&mut request, &self.origin);
                Box::new(async move {
                    let sent = door.send(request).await;
                    match &sent {
                        Ok((response, _)) => {
                            span.set("http.response.status_code", i64::from(response.status().as_u16()))
                        }
                        Err(error) => span.failed(&error.to_string()),
                    }
                    sent
                })
            }
            Err(refused) => Box::new(async { Err(refused) }),
        }
    }
}

/// The span of a request, whose headers say what trace it belongs to: that which the guest names, or its own.
fn traced(request: &mut http::Request<WasiBody>, origin: &Origin) -> Span {
    let told = Origin::sent(request.headers());
    let (told, is_told) = if told.traceparent.is_some() { (&told, true) } else { (origin, false) };
    let host = || request.uri().host().unwrap_or_default().to_owned();
    let mut span = spans::begin(Kind::Client, || told.clone(), || format!("{} {}", request.method(), host()));
    if span.is_on() {
        span.set("http.request.method", request.method().to_string());
        span.set("server.address", host());
    }
    if let (false, Some(traceparent)) = (is_told, &told.traceparent) {
        request.headers_mut().insert(TRACEPARENT, traceparent.clone());
    }
    spans::put(&span, request.headers_mut());
    span
}

/// One request that passed by what it asks for.
struct Door {
    env: Arc<Env>,
    log: Arc<Log>,
    scheme: Scheme,
    /// Without brackets.
    host: String,
    port: u16,
    options: RequestOptions,
    permit: OwnedSemaphorePermit,
}

impl Door {
    fn open(env: &Arc<Env>, log: &Arc<Log>, uri: &http::Uri, options: RequestOptions) -> Result<Self, Error> {
        let authority = uri.authority().map_or("", Authority::as_str);
        let refuse = |why: &str| {
            let who = &env.label;
            log.line("warn", &format!("wasi:http/outgoing-handler of actor {who} to {authority:?} is denied: {why}"));
        };
        let scheme = if uri.scheme() == Some(&http::uri::Scheme::HTTP) { Scheme::Http } else { Scheme::Https };
        let port = uri.port_u16().unwrap_or(if scheme == Scheme::Https { 443 } else { 80 });
        let host = uri.host().unwrap_or_default();
        // What stands before an @ is no host, whatever it looks like.
        if host.is_empty() || authority.contains('@') || !env.granted.may_ask(scheme, host, port) {
            refuse("name it in grants.http");
            return Err(Error::HttpRequestDenied);
        }
        let Ok(permit) = env.outgoing.clone().try_acquire_owned() else {
            let max = env.limits.outgoing_len_max;
            refuse(&format!("{max} requests are under way already; raise limits.outgoing"));
            return Err(Error::ConnectionLimitReached);
        };
        let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host).to_owned();
        Ok(Self { env: env.clone(), log: log.clone(), scheme, host, port, options, permit })
    }

    async fn send(self, request: http::Request<WasiBody>) -> Sent {
        let wait = self.options.connect_timeout.unwrap_or(CONNECT_WAIT);
        let stream = timeout(wait, self.connect()).await.map_err(|_| Error::ConnectionTimeout)??;
        match self.scheme {
            Scheme::Http => self.speak(request, stream).await,
            Scheme::Https => {
                let name = ServerName::try_from(self.host.clone()).map_err(|_| Error::HttpRequestUriInvalid)?;
                let shaken = timeout(wait, tls().await.connect(name, stream)).await;
                let stream = shaken.map_err(|_| Error::ConnectionTimeout)?.map_err(Error::Tls)?;
                self.speak(request, stream).await
            }
        }
    }

    /// A connection to an address that is granted, and to no other.
    async fn connect(&self) -> Result<TcpStream, Error> {
        let found = tokio::net::lookup_host((self.host.as_str(), self.port)).await;
        let mut failed = Error::DnsError { rcode: Some("NXDOMAIN".to_owned()), info_code: None };
        for addr in found.map_err(|_| Error::DestinationNotFound)?.take(ADDRESSES_MAX) {
            failed = match self.barred(addr) {
                Some(barred) => barred,
                None => match TcpStream::connect(addr).await {
                    // What the kernel says it is connected to, not what was meant.
                    Ok(stream) => match stream.peer_addr().ok().and_then(|peer| self.barred(peer)) {
                        Some(barred) => barred,
                        None => return Ok(stream),
                    },
                    Err(e) => Error::Connect(e),
                },
            };
        }
        Err(failed)
    }

    fn barred(&self, addr: SocketAddr) -> Option<Error> {
        let why = self.env.granted.may_connect(self.scheme, addr).err()?;
        let (who, host) = (&self.env.label, &self.host);
        let text =
            format!("wasi:http/outgoing-handler of actor {who} to {host:?} at {addr} is denied: {why}, in grants.http");
        self.log.line("warn", &text);
        Some(Error::DestinationIpProhibited)
    }

    async fn speak<S>(self, mut request: http::Request<WasiBody>, stream: S) -> Sent
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let path = request.uri().path_and_query().map_or("/", |p| p.as_str());
        *request.uri_mut() = path.parse().map_err(|_| Error::HttpRequestUriInvalid)?;
        let (mut sender, connection) =
            http1::Builder::new().max_buf_size(READ_BYTES_MAX).handshake(TokioIo::new(stream)).await?;
        let mut connection = Box::pin(connection);
        let wait = self.options.first_byte_timeout.unwrap_or(ANSWER_WAIT);
        let mut ended = None;
        let response = {
            let mut answer = pin!(timeout(wait, sender.send_request(request)));
            let early = tokio::select! {
                biased;
                response = &mut answer => Some(response),
                done = &mut connection => {
                    ended = Some(done);
                    None
                }
            };
            // A connection that has ended may have left the answer behind.
            match early {
                Some(response) => response,
                None => answer.await,
            }
        };
        let response = response.map_err(|_| Error::HttpResponseTimeout)??;
        let between = self.options.between_bytes_timeout.unwrap_or(ANSWER_WAIT);
        let body = |inner| Answer { inner, between, late: Box::pin(tokio::time::sleep(between)), _permit: self.permit };
        let io: Io = match ended {
            Some(done) => Box::new(async move { Ok(done?) }),
            None => Box::new(async move { Ok(connection.await?) }),
        };
        Ok((response.map(|inner| body(inner).boxed_unsync()), io))
    }
}

/// Made once: the list of authorities is long, and part of it is read from files.
async fn tls() -> tokio_rustls::TlsConnector {
    static TLS: OnceCell<Arc<rustls::ClientConfig>> = OnceCell::const_new();
    let config = TLS.get_or_init(async || {
        let roots = tokio::task::spawn_blocking(authorities).await;
        let roots = roots.unwrap_or_else(|_| RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.into() });
        Arc::new(rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth())
    });
    config.await.clone().into()
}

/// The web's, and those that this machine trusts besides, as a company's machines trust its own.
fn authorities() -> RootCertStore {
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.into() };
    let of_machine = rustls_native_certs::load_native_certs();
    for error in &of_machine.errors {
        const LEFT: &str =
            "certificate authorities of this machine can not be read; actors trust those of the web alone";
        tracing::warn!(%error, "{LEFT}");
    }
    roots.add_parsable_certificates(of_machine.certs);
    roots
}

/// An answer's body; counts as a request under way until it is dropped.
struct Answer {
    inner: Incoming,
    between: Duration,
    late: Pin<Box<Sleep>>,
    _permit: OwnedSemaphorePermit,
}

impl hyper::body::Body for Answer {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match Pin::new(&mut self.inner).poll_frame(cx) {
            Poll::Ready(frame) => {
                let next = Instant::now() + self.between;
                self.late.as_mut().reset(next);
                Poll::Ready(frame.map(|f| f.map_err(Error::from)))
            }
            Poll::Pending => {
                std::task::ready!(self.late.as_mut().poll(cx));
                Poll::Ready(Some(Err(Error::ConnectionReadTimeout)))
            }
        }
    }
    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }
    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
