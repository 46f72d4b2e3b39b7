//! The control API as the verbs use it: connect, deadline, retry with the same request id, and one line for whatever
//! goes wrong.

use crate::context::{Endpoint, Trust};
use crate::failure::Failure;
use proto::v1::control_client::ControlClient;
use proto::v1::{WatchEvent, WatchRequest};
use std::path::Path;
use std::time::Duration;
use tokio::time::Instant;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{self, Certificate, Channel, ClientTlsConfig};
use tonic::{Code, Request, Response, Status, Streaming};

/// Time for a request and its retries, unless the verb says otherwise.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a watch goes on trying when its server has gone.
const WATCH_PATIENCE: Duration = Duration::from_secs(30);
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(2);
/// One answer: a list of ten thousand hosts fits.
const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;

pub(crate) type Api = ControlClient<InterceptedService<Channel, Bearer>>;

/// Sends a unary request, again when the server says UNAVAILABLE, within a time limit.
macro_rules! ask {
    ($client:expr, $limit:expr, $method:ident, $request:expr) => {{
        let request = $request;
        $client
            .retry($limit, |mut api| {
                let request = request.clone();
                async move { api.$method(request).await }
            })
            .await
    }};
    ($client:expr, $method:ident, $request:expr) => {
        $crate::client::ask!($client, $crate::client::REQUEST_TIMEOUT, $method, $request)
    };
}
pub(crate) use ask;

/// A fresh id for a mutating request: however often it is sent, it is applied once.
pub(crate) fn request_id() -> String {
    ulid::Ulid::generate().to_string()
}

#[derive(Debug, Clone)]
pub(crate) struct Client {
    api: Api,
    pub(crate) endpoint: Endpoint,
}

/// Adds the context's token to each request.
#[derive(Debug, Clone)]
pub(crate) struct Bearer(Option<MetadataValue<Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", token.clone());
        }
        Ok(request)
    }
}

impl Client {
    /// Fails at once when nothing answers there: a person who mistyped an address should not wait.
    pub(crate) async fn connect(endpoint: Endpoint) -> Result<Self, Failure> {
        let refuse = |why: String| Failure::Refused(format!("API address {}: {why}", endpoint.address));
        let mut target = Channel::from_shared(endpoint.uri())
            .map_err(|e| refuse(e.to_string()))?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(Duration::from_secs(20))
            .keep_alive_timeout(Duration::from_secs(10));
        target = match &endpoint.trust {
            Trust::Plain => target,
            Trust::Ca(ca) => trust_ca(target, ca)?,
            Trust::Authority(fingerprint) => crate::authority::trust(target, *fingerprint)?,
            #[cfg(all(feature = "host", feature = "scheduler"))]
            Trust::Pinned(certificate) => crate::run::pin::trust(target, certificate)?,
        };
        let token = match &endpoint.token {
            Some(token) => Some(
                format!("Bearer {token}")
                    .parse()
                    .map_err(|_| refuse("its token has characters no header can carry".into()))?,
            ),
            None => None,
        };
        let channel = tokio::time::timeout(CONNECT_TIMEOUT, target.connect()).await;
        let channel = match channel {
            Ok(Ok(channel)) => channel,
            Ok(Err(e)) => return Err(unreachable(&endpoint, &root_cause(&e))),
            Err(_) => return Err(unreachable(&endpoint, "no answer in time")),
        };
        let api = ControlClient::with_interceptor(channel, Bearer(token))
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        Ok(Self { api, endpoint })
    }

    /// Calls `send` until it is answered with anything but UNAVAILABLE, or `limit` has passed.
    pub(crate) async fn retry<A, F, Answer>(&self, limit: Duration, send: F) -> Result<A, Failure>
    where
        F: Fn(Api) -> Answer,
        Answer: Future<Output = Result<Response<A>, Status>>,
    {
        let end = Instant::now() + limit;
        let mut pause = RETRY_FIRST;
        let mut last = None;
        loop {
            match tokio::time::timeout_at(end, send(self.api.clone())).await {
                Ok(Ok(answer)) => return Ok(answer.into_inner()),
                Ok(Err(status)) if status.code() == Code::Unavailable && Instant::now() + pause < end => {
                    tracing::debug!(code = ?status.code(), message = status.message(), "trying again");
                    last = Some(status);
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(RETRY_MAX);
                }
                Ok(Err(status)) => return Err(self.failure(&status)),
                Err(_) => return Err(last.map_or_else(|| self.silent(limit), |status| self.failure(&status))),
            }
        }
    }

    /// As `retry`, but once: for what must not happen twice.
    pub(crate) async fn once<A, Answer>(&self, limit: Duration, send: impl FnOnce(Api) -> Answer) -> Result<A, Failure>
    where
        Answer: Future<Output = Result<Response<A>, Status>>,
    {
        match tokio::time::timeout(limit, send(self.api.clone())).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(self.failure(&status)),
            Err(_) => Err(self.silent(limit)),
        }
    }

    /// One line for a status.
    pub(crate) fn failure(&self, status: &Status) -> Failure {
        if let Some(cause) = transport_cause(status) {
            return Failure::Refused(format!(
                "lost the lattice at {} ({cause}); see that it runs, then type the command again",
                self.endpoint.address
            ));
        }
        Failure::Refused(explain(status.code(), status.message(), &self.endpoint.address))
    }

    fn silent(&self, limit: Duration) -> Failure {
        Failure::Refused(format!(
            "the lattice at {} gave no answer within {}; see `lattice status`, then type the command again",
            self.endpoint.address,
            crate::duration::text(limit)
        ))
    }

    pub(crate) fn watch(&self, app: &str, hosts: bool) -> Watcher {
        let request = WatchRequest { after: 0, app: app.to_owned(), hosts };
        Watcher { client: self.clone(), request, stream: None, failing_since: None, pause: RETRY_FIRST }
    }
}

fn trust_ca(target: transport::Endpoint, ca: &Path) -> Result<transport::Endpoint, Failure> {
    let refuse = |why: String| Failure::Refused(format!("CA certificate {}: {why}", ca.display()));
    let pem = std::fs::read(ca).map_err(|e| refuse(format!("{e}; name a readable PEM file")))?;
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem));
    target.tls_config(tls).map_err(|e| refuse(format!("{}; it must be PEM", root_cause(&e))))
}

/// What a watch saw.
#[derive(Debug)]
pub(crate) enum Seen {
    /// The whole list follows; what was known before no longer counts.
    Anew,
    Event(Box<WatchEvent>),
}

/// Apps and hosts as they change, across the loss of its connection. A stream that broke is begun anew with the whole
/// list: what hosts report moves no log index, so that going on behind an index could leave out what they reported
/// meanwhile.
#[derive(Debug)]
pub(crate) struct Watcher {
    client: Client,
    request: WatchRequest,
    stream: Option<Streaming<WatchEvent>>,
    failing_since: Option<Instant>,
    pause: Duration,
}

impl Watcher {
    /// Safe to drop while it waits.
    pub(crate) async fn next(&mut self) -> Result<Seen, Failure> {
        loop {
            let status = match &mut self.stream {
                Some(stream) => match stream.message().await {
                    Ok(Some(event)) => {
                        self.failing_since = None;
                        self.pause = RETRY_FIRST;
                        return Ok(Seen::Event(Box::new(event)));
                    }
                    Ok(None) => Status::unavailable("the watch ended"),
                    Err(status) => status,
                },
                None => {
                    let mut api = self.client.api.clone();
                    match tokio::time::timeout(CONNECT_TIMEOUT, api.watch(self.request.clone())).await {
                        Ok(Ok(stream)) => {
                            self.stream = Some(stream.into_inner());
                            return Ok(Seen::Anew);
                        }
                        Ok(Err(status)) => status,
                        Err(_) => Status::unavailable("no answer in time"),
                    }
                }
            };
            self.stream = None;
            let passes =
                transport_cause(&status).is_some() || matches!(status.code(), Code::Unavailable | Code::OutOfRange);
            let since = *self.failing_since.get_or_insert_with(Instant::now);
            if !passes || since.elapsed() > WATCH_PATIENCE {
                return Err(self.client.failure(&status));
            }
            tokio::time::sleep(self.pause).await;
            self.pause = (self.pause * 2).min(RETRY_MAX);
        }
    }
}

/// The message of an error status, which names the thing and the next step; words of our own when it has none.
fn explain(code: Code, message: &str, address: &str) -> String {
    let message = crate::print::clean(message);
    match code {
        Code::Unimplemented => format!(
            "the lattice at {address} does not know this request: compare its version in `lattice status` with `lattice --version`"
        ),
        Code::Unauthenticated | Code::PermissionDenied if message.is_empty() => {
            format!("the lattice at {address} refused: put a token for it into its context")
        }
        Code::DeadlineExceeded if message.is_empty() => {
            format!("the lattice at {address} gave no answer in time; type the command again")
        }
        _ if message.is_empty() => format!("the lattice at {address} refused: {}", code.description()),
        _ => message,
    }
}

fn unreachable(endpoint: &Endpoint, why: &str) -> Failure {
    Failure::Refused(format!(
        "no lattice answers at {} ({why}); start one with `lattice up`, or name one with --api or LATTICE_API",
        endpoint.address
    ))
}

/// Why the connection broke, when it is the connection that broke and not the server that answered.
fn transport_cause(status: &Status) -> Option<String> {
    let source = std::error::Error::source(status)?;
    let broken = matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled);
    broken.then(|| root_cause(source))
}

/// The innermost error: the outer ones say no more than that there is an inner one.
fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    let text = crate::print::clean(&error.to_string());
    // "Connection refused (os error 111)": the number helps nobody.
    match text.split_once(" (os error") {
        Some((words, _)) => words.to_lowercase(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn a_status_is_its_message_on_one_line() {
        assert_eq!(
            explain(Code::NotFound, "app \"x\": not found;\nsee `lattice get apps`\n", "h:1"),
            "app \"x\": not found; see `lattice get apps`"
        );
    }

    #[test]
    fn a_status_without_words_gets_some() {
        for code in [Code::Unimplemented, Code::PermissionDenied, Code::DeadlineExceeded, Code::Internal] {
            let text = explain(code, "", "h:1");
            assert!(text.contains("the lattice at h:1"), "{text}");
        }
    }

    fn client() -> Client {
        let endpoint = Endpoint { address: "127.0.0.1:1".into(), trust: Trust::Plain, token: None };
        let channel = Channel::from_static("http://127.0.0.1:1").connect_lazy();
        Client { api: ControlClient::with_interceptor(channel, Bearer(None)), endpoint }
    }

    #[tokio::test]
    async fn unavailable_is_tried_again_and_all_else_is_not() {
        let tries = AtomicU32::new(0);
        let answers = [Status::unavailable("no leader"), Status::unavailable("no leader"), Status::not_found("no app")];
        let failure = client()
            .retry(Duration::from_secs(20), |_| {
                let n = usize::try_from(tries.fetch_add(1, Ordering::Relaxed)).unwrap_or(usize::MAX);
                let answer: Result<Response<()>, Status> = Err(answers[n].clone());
                std::future::ready(answer)
            })
            .await;
        assert_eq!(failure, Err(Failure::Refused("no app".into())));
        assert_eq!(tries.load(Ordering::Relaxed), 3);
    }

    #[tokio::test]
    async fn unavailable_to_the_end_is_said_as_the_server_said_it() {
        let failure = client()
            .retry(Duration::from_millis(250), |_| {
                std::future::ready(Err::<Response<()>, _>(Status::unavailable("no leader: try again in a moment")))
            })
            .await;
        assert_eq!(failure, Err(Failure::Refused("no leader: try again in a moment".into())));
    }

    #[tokio::test]
    async fn silence_names_the_address_and_the_time_given() {
        let never = std::future::pending::<Result<Response<()>, Status>>;
        let failure = client().retry(Duration::from_millis(50), |_| never()).await.expect_err("no answer");
        assert!(failure.to_string().contains("127.0.0.1:1 gave no answer within 50ms"), "{failure}");
    }

    #[tokio::test]
    async fn nobody_there_names_the_address_and_the_next_step() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        let endpoint = Endpoint { address: address.clone(), trust: Trust::Plain, token: None };
        let failure = Client::connect(endpoint).await.expect_err("nobody listens");
        assert_eq!(
            failure,
            Failure::Refused(format!(
                "no lattice answers at {address} (connection refused); start one with `lattice up`, or name one with --api or LATTICE_API"
            ))
        );
    }
}
