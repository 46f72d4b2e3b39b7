//! The control API as the verbs use it: connect, deadline, retry with the same request id, elsewhere if need be, and one
//! line for whatever goes wrong.

use crate::context::Endpoint;
use crate::failure::Failure;
use crate::print::shape::Unanswered;
use crate::reach::{Api, CONNECT_TIMEOUT, Reach, transport_cause};
use proto::v1::{StatusRequest, WatchEvent, WatchRequest};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tonic::{Code, Response, Status, Streaming};

/// Time for a request and its retries, unless the verb says otherwise.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// For one try while there is another address to ask.
const TRY_MIN: Duration = Duration::from_secs(5);
/// For an address to say whether it can be asked what is asked only once.
const PROBE_TIMEOUT: Duration = Duration::from_secs(4);
/// How long a watch goes on trying when its server has gone.
const WATCH_PATIENCE: Duration = Duration::from_secs(30);
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(2);

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
    reach: Arc<Reach>,
}

impl Client {
    /// Fails at once when nothing answers at any of the addresses.
    pub(crate) async fn connect(endpoint: Endpoint) -> Result<Self, Failure> {
        Ok(Self { reach: Arc::new(Reach::connect(&endpoint).await?) })
    }

    /// The address that is asked.
    pub(crate) fn address(&self) -> &str {
        self.reach.address()
    }

    /// Addresses that did not answer.
    pub(crate) fn unanswered(&self) -> Vec<Unanswered> {
        self.reach.unanswered()
    }

    /// Calls `send` until it is answered with anything but UNAVAILABLE, or `limit` has passed; each time at the next
    /// address, if there are several. What is sent must be safe to send twice.
    pub(crate) async fn retry<A, F, Answer>(&self, limit: Duration, send: F) -> Result<A, Failure>
    where
        F: Fn(Api) -> Answer,
        Answer: Future<Output = Result<Response<A>, Status>>,
    {
        let end = Instant::now() + limit;
        let several = self.reach.count() > 1;
        // One that says nothing is not waited for to the end: each gets its turn.
        let most = if several { (limit / u32::try_from(self.reach.count()).unwrap_or(1)).max(TRY_MIN) } else { limit };
        let mut pause = RETRY_FIRST;
        let mut tries: usize = 0;
        let mut last = None;
        loop {
            let try_end = end.min(Instant::now() + most);
            let status = match tokio::time::timeout_at(try_end, send(self.reach.api())).await {
                Ok(Ok(answer)) => {
                    self.reach.answered();
                    return Ok(answer.into_inner());
                }
                Ok(Err(status)) if self.may_pass(&status) => Some(status),
                Ok(Err(status)) => return Err(self.failure(&status)),
                Err(_) => None,
            };
            tries += 1;
            // Only after all of them: who is asked first by now may have found a leader.
            let rest = if tries.is_multiple_of(self.reach.count()) { pause } else { Duration::ZERO };
            let is_over = Instant::now() + rest >= end;
            match status {
                Some(status) if is_over => return Err(self.failure(&status)),
                Some(status) => {
                    tracing::debug!(code = ?status.code(), message = status.message(), "trying again");
                    self.lost(&status);
                    last = Some(status);
                }
                None if is_over => return Err(last.map_or_else(|| self.silent(limit), |status| self.failure(&status))),
                None => self.reach.failed("no answer in time".to_owned()),
            }
            if !rest.is_zero() {
                tokio::time::sleep(rest).await;
                pause = (pause * 2).min(RETRY_MAX);
            }
        }
    }

    /// Whether it may be answered otherwise later, or elsewhere.
    fn may_pass(&self, status: &Status) -> bool {
        status.code() == Code::Unavailable || (self.reach.count() > 1 && transport_cause(status).is_some())
    }

    /// From now on another address is asked, if there is one.
    pub(crate) fn lost(&self, status: &Status) {
        self.reach.failed(transport_cause(status).unwrap_or_else(|| crate::print::clean(status.message())));
    }

    /// Finds an address where what must not be sent twice can be sent: one that answers, and has a quorum behind it.
    async fn settle(&self) {
        let mut second = None;
        for _ in 0..self.reach.count() {
            let mut api = self.reach.api();
            match tokio::time::timeout(PROBE_TIMEOUT, api.status(StatusRequest {})).await {
                Ok(Ok(status)) if status.get_ref().fresh => return self.reach.answered(),
                Ok(Ok(_)) => {
                    second = second.or(Some(self.reach.at()));
                    self.reach.failed("it knows no leader".to_owned());
                }
                Ok(Err(status)) if self.may_pass(&status) => self.lost(&status),
                // Whatever is wrong with the request, it will say so.
                Ok(Err(_)) => return self.reach.answered(),
                Err(_) => self.reach.failed("no answer in time".to_owned()),
            }
        }
        if let Some(second) = second {
            self.reach.go_to(second);
        }
    }

    /// As `retry`, but once: for what must not happen twice. Where to, is looked for before.
    pub(crate) async fn once<A, Answer>(&self, limit: Duration, send: impl FnOnce(Api) -> Answer) -> Result<A, Failure>
    where
        Answer: Future<Output = Result<Response<A>, Status>>,
    {
        if self.reach.count() > 1 {
            self.settle().await;
        }
        match tokio::time::timeout(limit, send(self.reach.api())).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(self.failure(&status)),
            Err(_) => Err(self.silent(limit)),
        }
    }

    /// One line for a status.
    pub(crate) fn failure(&self, status: &Status) -> Failure {
        let address = self.address();
        let others = self.unanswered().into_iter().filter(|one| one.api != address);
        let others: Vec<String> = others.map(|one| format!("{} ({})", one.api, one.why)).collect();
        if let Some(cause) = transport_cause(status) {
            let all: Vec<String> = std::iter::once(format!("{address} ({cause})")).chain(others).collect();
            return Failure::Refused(format!(
                "lost the lattice at {}; see that it runs, then type the command again",
                all.join(", ")
            ));
        }
        let text = explain(status.code(), status.message(), address);
        // What one of them refuses, the others would: only where none could be asked does it matter who was tried.
        if status.code() != Code::Unavailable || others.is_empty() {
            return Failure::Refused(text);
        }
        Failure::Refused(format!("{text}; said by {address}, tried as well: {}", others.join(", ")))
    }

    fn silent(&self, limit: Duration) -> Failure {
        let address = self.address();
        let others = self.unanswered().into_iter().filter(|one| one.api != address);
        let all: Vec<String> =
            std::iter::once(address.to_owned()).chain(others.map(|one| format!("{} ({})", one.api, one.why))).collect();
        Failure::Refused(format!(
            "the lattice at {} gave no answer within {}; see `lattice status`, then type the command again",
            all.join(", "),
            crate::duration::text(limit)
        ))
    }

    pub(crate) fn watch(&self, app: &str, hosts: bool) -> Watcher {
        let request = WatchRequest { after: 0, app: app.to_owned(), hosts, progress: false };
        Watcher { client: self.clone(), request, stream: None, failing_since: None, failures: 0, pause: RETRY_FIRST }
    }
}

/// What a watch saw.
#[derive(Debug)]
pub(crate) enum Seen {
    /// The whole list follows; what was known before no longer counts.
    Anew,
    /// It goes on behind the last event: the whole list follows, and what went meanwhile is told to be gone.
    Again,
    Event(Box<WatchEvent>),
}

/// Apps and hosts as they change, across the loss of its connection: it goes on behind the last event, at another address
/// if there is one, and begins anew only where that event is too old to go on behind.
#[derive(Debug)]
pub(crate) struct Watcher {
    client: Client,
    request: WatchRequest,
    stream: Option<Streaming<WatchEvent>>,
    failing_since: Option<Instant>,
    /// Since it failed, so many times.
    failures: usize,
    pause: Duration,
}

impl Watcher {
    /// Tells as well how far hosts are with what they bring up.
    pub(crate) fn with_progress(mut self) -> Self {
        self.request.progress = true;
        self
    }

    /// Safe to drop while it waits.
    pub(crate) async fn next(&mut self) -> Result<Seen, Failure> {
        loop {
            let status = match &mut self.stream {
                Some(stream) => match stream.message().await {
                    Ok(Some(event)) => {
                        (self.failing_since, self.failures, self.pause) = (None, 0, RETRY_FIRST);
                        self.request.after = event.index;
                        return Ok(Seen::Event(Box::new(event)));
                    }
                    Ok(None) => Status::unavailable("the watch ended"),
                    Err(status) => status,
                },
                None => {
                    let mut api = self.client.reach.api();
                    match tokio::time::timeout(CONNECT_TIMEOUT, api.watch(self.request.clone())).await {
                        Ok(Ok(stream)) => {
                            self.client.reach.answered();
                            self.stream = Some(stream.into_inner());
                            return Ok(if self.request.after == 0 { Seen::Anew } else { Seen::Again });
                        }
                        Ok(Err(status)) => status,
                        Err(_) => Status::unavailable("no answer in time"),
                    }
                }
            };
            self.stream = None;
            if status.code() == Code::OutOfRange {
                self.request.after = 0;
            }
            let passes =
                transport_cause(&status).is_some() || matches!(status.code(), Code::Unavailable | Code::OutOfRange);
            let since = *self.failing_since.get_or_insert_with(Instant::now);
            if !passes || since.elapsed() > WATCH_PATIENCE {
                return Err(self.client.failure(&status));
            }
            self.client.lost(&status);
            self.failures += 1;
            if self.failures.is_multiple_of(self.client.reach.count()) {
                tokio::time::sleep(self.pause).await;
                self.pause = (self.pause * 2).min(RETRY_MAX);
            }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::Trust;
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
        Client { reach: Arc::new(Reach::lazy(&["127.0.0.1:1"])) }
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
        let endpoint = |addresses| Endpoint { addresses, trust: Trust::Plain, token: None };
        let failure = Client::connect(endpoint(vec![address.clone()])).await.expect_err("nobody listens");
        assert_eq!(
            failure,
            Failure::Refused(format!(
                "no lattice answers at {address} (connection refused); start one with `lattice up`, or name one with --api or LATTICE_API"
            ))
        );
        let other = "127.0.0.1:1".to_owned();
        let failure = Client::connect(endpoint(vec![address.clone(), other])).await.expect_err("nobody listens");
        let text = failure.to_string();
        assert!(text.contains(&format!("{address} (connection refused), 127.0.0.1:1 (connection refused)")), "{text}");
    }

    #[tokio::test]
    async fn the_next_address_is_asked_where_one_can_not_answer() {
        let client = Client { reach: Arc::new(Reach::lazy(&["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"])) };
        // Nobody answers at the first, the second knows no leader, the third does it.
        let tries = AtomicU32::new(0);
        let answer = client.retry(Duration::from_secs(20), |mut api| {
            let n = tries.fetch_add(1, Ordering::Relaxed);
            async move {
                match n {
                    0 => api.status(StatusRequest {}).await.map(|_| Response::new(0)),
                    1 => Err(Status::unavailable("no leader")),
                    n => Ok(Response::new(n)),
                }
            }
        });
        assert_eq!(answer.await, Ok(2));
        assert_eq!(client.address(), "127.0.0.1:3");
        let tried: Vec<String> = client.unanswered().into_iter().map(|one| one.api).collect();
        assert_eq!(tried, ["127.0.0.1:1", "127.0.0.1:2"]);
        // It stays there.
        assert_eq!(client.retry(Duration::from_secs(1), |_| std::future::ready(Ok(Response::new(7)))).await, Ok(7));
        assert_eq!(client.address(), "127.0.0.1:3");
    }

    #[tokio::test]
    async fn a_failure_names_all_that_were_tried() {
        let client = Client { reach: Arc::new(Reach::lazy(&["127.0.0.1:1", "127.0.0.1:2"])) };
        let failure =
            client.retry(Duration::from_millis(300), |mut api| async move { api.status(StatusRequest {}).await });
        let text = failure.await.expect_err("nobody is there").to_string();
        assert!(text.contains("127.0.0.1:1 (connection refused)"), "{text}");
        assert!(text.contains("127.0.0.1:2 (connection refused)"), "{text}");
        let refuse = || std::future::ready(Err::<Response<()>, _>(Status::unavailable("no leader")));
        let text = client.retry(Duration::from_millis(50), |_| refuse()).await.expect_err("no leader").to_string();
        assert!(text.starts_with("no leader; said by 127.0.0.1:"), "{text}");
        // One that was answered is not tried elsewhere.
        let gone = || std::future::ready(Err::<Response<()>, _>(Status::not_found("no app")));
        assert_eq!(client.retry(Duration::from_secs(9), |_| gone()).await, Err(Failure::Refused("no app".into())));
    }
}
