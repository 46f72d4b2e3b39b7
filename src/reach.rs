//! Which of the API's addresses is asked: the one that answered last, and the others in turn where it does not. Decides
//! nothing about what may be asked twice.

use crate::context::{Endpoint, Trust};
use crate::failure::Failure;
use crate::print::shape::Unanswered;
use proto::v1::control_client::ControlClient;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{self, Certificate, Channel, ClientTlsConfig};
use tonic::{Code, Request, Status};

pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The same while there is another address to try.
const CONNECT_OF_SEVERAL: Duration = Duration::from_secs(2);
/// One answer: a list of ten thousand hosts fits.
const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;

pub(crate) type Api = ControlClient<InterceptedService<Channel, Bearer>>;

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

/// All addresses, and which of them is asked now.
#[derive(Debug)]
pub(crate) struct Reach {
    all: Vec<One>,
    at: AtomicUsize,
}

#[derive(Debug)]
struct One {
    address: String,
    api: Api,
    /// Why it did not answer the last time.
    problem: Mutex<Option<String>>,
}

impl Reach {
    /// Asks for a connection at each in turn until there is one. Fails at once when nobody answers: a person who
    /// mistyped an address should not wait.
    pub(crate) async fn connect(endpoint: &Endpoint) -> Result<Self, Failure> {
        let patience = if endpoint.addresses.len() > 1 { CONNECT_OF_SEVERAL } else { CONNECT_TIMEOUT };
        let mut found = None;
        let mut all = Vec::new();
        for (n, address) in endpoint.addresses.iter().enumerate() {
            let target = target(endpoint, address, patience)?;
            let mut problem = None;
            let mut channel = None;
            if found.is_none() {
                match tokio::time::timeout(patience, target.connect()).await {
                    Ok(Ok(connected)) => {
                        found = Some(n);
                        channel = Some(connected);
                    }
                    Ok(Err(e)) => problem = Some(root_cause(&e)),
                    Err(_) => problem = Some("no answer in time".to_owned()),
                }
            }
            let api = api(channel.unwrap_or_else(|| target.connect_lazy()), endpoint, address)?;
            all.push(One { address: address.clone(), api, problem: Mutex::new(problem) });
        }
        let reach = Self { all, at: AtomicUsize::new(found.unwrap_or_default()) };
        match found {
            Some(_) => Ok(reach),
            None => Err(Failure::Refused(format!(
                "no lattice answers at {}; start one with `lattice up`, or name one with --api or LATTICE_API",
                reach.tried()
            ))),
        }
    }

    /// Without having asked for a connection.
    #[cfg(test)]
    pub(crate) fn lazy(addresses: &[&str]) -> Self {
        let endpoint = Endpoint {
            addresses: addresses.iter().map(|address| (*address).to_owned()).collect(),
            trust: Trust::Plain,
            token: None,
        };
        let one = |address: &String| {
            let target = target(&endpoint, address, CONNECT_TIMEOUT).expect("an address");
            let api = api(target.connect_lazy(), &endpoint, address).expect("no token");
            One { address: address.clone(), api, problem: Mutex::default() }
        };
        Self { all: endpoint.addresses.iter().map(one).collect(), at: AtomicUsize::default() }
    }

    pub(crate) fn count(&self) -> usize {
        self.all.len()
    }

    /// Number of the one that is asked now.
    pub(crate) fn at(&self) -> usize {
        self.at.load(Ordering::Relaxed)
    }

    pub(crate) fn go_to(&self, n: usize) {
        self.at.store(n % self.all.len(), Ordering::Relaxed);
    }

    pub(crate) fn api(&self) -> Api {
        self.all[self.at()].api.clone()
    }

    pub(crate) fn address(&self) -> &str {
        &self.all[self.at()].address
    }

    /// The one that is asked now is there.
    pub(crate) fn answered(&self) {
        *self.all[self.at()].problem.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// It does not answer, or can not do what it is asked: the next one is asked from now on.
    pub(crate) fn failed(&self, why: String) {
        let at = self.at();
        tracing::debug!(api = self.all[at].address, why, "asking elsewhere");
        *self.all[at].problem.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
        self.go_to(at + 1);
    }

    /// Those that did not answer the last time that they were asked, and why.
    pub(crate) fn unanswered(&self) -> Vec<Unanswered> {
        let why = |one: &One| one.problem.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.all.iter().filter_map(|one| Some(Unanswered { api: one.address.clone(), why: why(one)? })).collect()
    }

    /// `a:1 (connection refused), b:1 (no answer in time)`.
    pub(crate) fn tried(&self) -> String {
        let all = self.unanswered();
        all.iter().map(|one| format!("{} ({})", one.api, one.why)).collect::<Vec<_>>().join(", ")
    }
}

fn api(channel: Channel, endpoint: &Endpoint, address: &str) -> Result<Api, Failure> {
    let token: Option<MetadataValue<Ascii>> = match &endpoint.token {
        Some(token) => {
            let value = format!("Bearer {token}").parse::<MetadataValue<Ascii>>();
            Some(value.map_err(|_| refuse(address, "its token has characters no header can carry"))?)
        }
        None => None,
    };
    let api = ControlClient::with_interceptor(channel, Bearer(token));
    Ok(api.max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX))
}

fn target(endpoint: &Endpoint, address: &str, patience: Duration) -> Result<transport::Endpoint, Failure> {
    // Where there is another one to ask, one that has stopped without a word is left sooner.
    let (every, wait) = if endpoint.addresses.len() > 1 { (5, 5) } else { (20, 10) };
    let target = Channel::from_shared(endpoint.uri(address))
        .map_err(|e| refuse(address, &e.to_string()))?
        .connect_timeout(patience)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_secs(every))
        .keep_alive_timeout(Duration::from_secs(wait));
    match &endpoint.trust {
        Trust::Plain => Ok(target),
        Trust::Ca(ca) => trust_ca(target, ca),
        Trust::Authority(fingerprint) => crate::authority::trust(target, *fingerprint),
        #[cfg(all(feature = "host", feature = "scheduler"))]
        Trust::Pinned(certificate) => crate::run::pin::trust(target, certificate),
    }
}

fn refuse(address: &str, why: &str) -> Failure {
    Failure::Refused(format!("API address {address}: {why}"))
}

fn trust_ca(target: transport::Endpoint, ca: &Path) -> Result<transport::Endpoint, Failure> {
    let refuse = |why: String| Failure::Refused(format!("CA certificate {}: {why}", ca.display()));
    let pem = std::fs::read(ca).map_err(|e| refuse(format!("{e}; name a readable PEM file")))?;
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem));
    target.tls_config(tls).map_err(|e| refuse(format!("{}; it must be PEM", root_cause(&e))))
}

/// Why the connection broke, when it is the connection that broke and not the server that answered.
pub(crate) fn transport_cause(status: &Status) -> Option<String> {
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
