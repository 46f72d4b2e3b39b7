//! An HTTP request to an actor: its `wasi:http/incoming-handler`, in a fresh instance or one kept from a request before. The head of the response goes
//! out as soon as the guest gives it; the guest then runs on for the body, within the same deadline.
//!
//! What belongs to a connection (hop-by-hop headers, upgrades, listening) is the ingress's business.

use super::actor::{Actor, HANDLER};
use super::body::{self, Answer, Asked};
use super::invocation::{Entering, Run, Shared, Until};
use super::lane::{Ended, Laned, Work};
use super::state::{HEADER_BYTES_MAX, State};
use super::{failed, later};
use crate::call::{Body, CallError, HttpServe};
use crate::origin::Origin;
use crate::spans;
use http::header::CONTENT_LENGTH;
use http::uri::Scheme;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use wasmtime_wasi::I32Exit;
use wasmtime_wasi_http::WasiHttpView as _;
use wasmtime_wasi_http::p2::bindings::http::types;
use wasmtime_wasi_http::p2::bindings::{Proxy, ProxyPre};
use wasmtime_wasi_http::p2::body::HyperOutgoingBody;

/// Headers of one request.
const HEADERS_MAX: usize = 256;

pub(super) type Head = Result<Response<HyperOutgoingBody>, types::ErrorCode>;
type Guest = Laned<()>;

#[async_trait::async_trait]
impl HttpServe for Actor {
    async fn http(&self, request: Request<Body>, deadline: Option<Duration>) -> Result<Response<Body>, CallError> {
        Self::http(self, request, deadline).await
    }
}

impl Actor {
    /// Answers one request. An error means that no response began; a body that breaks off later ends with an error.
    pub async fn http(
        &self,
        mut request: Request<Body>,
        deadline: Option<Duration>,
    ) -> Result<Response<Body>, CallError> {
        let begun = Instant::now();
        let mut span = self.shared.span(|| Origin::of(request.headers()), "http");
        spans::put(&span, request.headers_mut());
        let ended = Box::pin(self.try_http(request, deadline)).await;
        spans::ended(&mut span, &ended);
        self.shared.ended(begun, ended)
    }

    async fn try_http(&self, request: Request<Body>, asked: Option<Duration>) -> Result<Response<Body>, CallError> {
        let label = &self.shared.env.label;
        check_head(&request)?;
        let linked = self.linked().await?;
        let (request, asked_body) = Asked::limit(request, label, &self.shared.env.limits)?;
        let limits = &self.shared.env.limits;
        if let (Some(service), true) = (&linked.service, limits.concurrency > 1 || limits.reuse > 1) {
            let answered = Box::pin(self.many.http(&self.shared, service, request, asked)).await;
            return answered.map_err(|error| asked_body.or(error));
        }
        let origin = Origin::of(request.headers());
        let (tx, rx) = oneshot::channel();
        let (shared, broken) = (self.shared.clone(), Arc::new(OnceLock::new()));
        let told = broken.clone();
        let (until, work): (Until, Work<()>) = match (&linked.service, &linked.proxy) {
            (Some(service), _) => {
                let mut run = self.shared.enter(asked, Entering::First).await?;
                run.store.data_mut().caused_by(origin);
                (Until::of(&run), Box::pin(later::guest(shared, service.clone(), run, request, tx, told)))
            }
            (None, Some(proxy)) => {
                let (mut run, warm) = self.shared.enter_http(asked).await?;
                run.store.data_mut().caused_by(origin);
                let handler = warm.map_or_else(|| Handler::Fresh(proxy.clone()), Handler::Warm);
                (Until::of(&run), Box::pin(guest(shared, handler, run, request, tx, told)))
            }
            (None, None) => {
                return Err(CallError::Invalid(format!("actor {label} does not export {HANDLER}")));
            }
        };
        let mut guest = Running { guest: Some(self.shared.laned(&until, work)), ended: None };
        let head = match self.shared.until(until.deadline, guest.head(rx)).await {
            Ok(head) => head,
            Err(_) => return Err(self.shared.late(&until.log)),
        };
        let response = match head {
            Some(Ok(response)) => response,
            Some(Err(code)) => {
                return Err(asked_body.or(failed::answered(label, &code)));
            }
            None => {
                let ended = match guest.ended.take() {
                    Some(ended) => ended.told().await.err(),
                    None => None,
                };
                let error = ended.unwrap_or_else(|| no_response(label));
                return Err(asked_body.or(error));
            }
        };
        let answer = Answer::limit(&self.shared.env, until.log.clone());
        let has_ended = guest.guest.is_none();
        guest.run_on(self.shared.clone(), until, broken.clone());
        // A length that the guest told is its own affair: whether it kept to it is seen at the end.
        let at_once = has_ended && !response.headers().contains_key(CONTENT_LENGTH);
        Ok(response.map(|inner| {
            let body = body::Outgoing::new(inner, broken, answer);
            if at_once { body.at_once() } else { body.boxed_unsync() }
        }))
    }
}

fn no_response(label: &str) -> CallError {
    CallError::Trapped(format!("actor {label} ended without a response"))
}

fn check_head(request: &Request<Body>) -> Result<(), CallError> {
    let headers = request.headers();
    let uri = request.uri();
    let bytes = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum::<usize>()
        + uri.path_and_query().map_or(0, |p| p.as_str().len());
    if headers.len() > HEADERS_MAX || bytes > HEADER_BYTES_MAX {
        return Err(CallError::TooLarge(format!(
            "{} headers with {bytes} bytes: at most {HEADERS_MAX} with {HEADER_BYTES_MAX} are allowed",
            headers.len()
        )));
    }
    let host = headers.get(http::header::HOST).is_some_and(|host| host.to_str().is_ok());
    if uri.authority().is_none() && !host {
        return Err(CallError::Invalid("the request names no host: send a Host header".to_owned()));
    }
    Ok(())
}

/// Who is asked.
enum Handler {
    Fresh(ProxyPre<State>),
    Warm(Proxy),
}

/// The whole invocation. Why it broke off is noted before the store is dropped, since that ends the body.
async fn guest(
    shared: Arc<Shared>,
    handler: Handler,
    mut run: Run,
    request: Request<Body>,
    tx: oneshot::Sender<Head>,
    broken: Arc<OnceLock<CallError>>,
) -> Result<(), CallError> {
    let store = &mut run.store;
    let call = async {
        let scheme = match request.uri().scheme() {
            Some(scheme) if *scheme == Scheme::HTTPS => types::Scheme::Https,
            _ => types::Scheme::Http,
        };
        let request = store.data_mut().http().new_incoming_request(scheme, request)?;
        let out = store.data_mut().http().new_response_outparam(tx)?;
        let proxy = match handler {
            Handler::Fresh(proxy) => proxy.instantiate_async(&mut *store).await?,
            Handler::Warm(proxy) => proxy,
        };
        proxy.wasi_http_incoming_handler().call_handle(&mut *store, request, out).await?;
        Ok::<_, wasmtime::Error>(proxy)
    };
    let ended = match call.await {
        Ok(proxy) => {
            shared.keep(run, proxy);
            return Ok(());
        }
        // It may end itself when it has nothing more to say.
        Err(e) if shared.env.granted.grants.exit && matches!(e.downcast_ref(), Some(I32Exit(0))) => Ok(()),
        Err(e) => Err(shared.failed(&run.store, &e)),
    };
    if let Err(e) = &ended {
        let _ = broken.set(e.clone());
    }
    ended
}

/// A guest and what came of it. It runs on its caller's task until the head is there: most are done by then.
struct Running {
    guest: Option<Guest>,
    ended: Option<Ended<()>>,
}

impl Running {
    /// The head of the response; `None` when the guest ended without one.
    async fn head(&mut self, mut rx: oneshot::Receiver<Head>) -> Option<Head> {
        // Once the guest gave up its right to answer, what it ends with says why.
        let mut given_up = false;
        std::future::poll_fn(|cx| {
            if self.poll(cx).is_ready() {
                // Not `poll`: that may put off even a head that is there, to let other tasks run.
                return Poll::Ready(rx.try_recv().ok());
            }
            if given_up {
                return Poll::Pending;
            }
            match std::task::ready!(Pin::new(&mut rx).poll(cx)) {
                Ok(head) => Poll::Ready(Some(head)),
                Err(_) => {
                    given_up = true;
                    Poll::Pending
                }
            }
        })
        .await
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(guest) = &mut self.guest else { return Poll::Ready(()) };
        let Poll::Ready(ended) = Pin::new(guest).poll(cx) else { return Poll::Pending };
        self.guest = None;
        self.ended = Some(ended);
        Poll::Ready(())
    }

    /// Lets a guest that has more to do go on by itself, until its deadline.
    fn run_on(mut self, shared: Arc<Shared>, until: Until, broken: Arc<OnceLock<CallError>>) {
        if let Some(ended) = self.ended {
            let _ = shared.count(ended.result);
        }
        let Some(mut guest) = self.guest.take() else { return };
        tokio::spawn(async move {
            let ended = match shared.until(until.deadline, &mut guest).await {
                Ok(ended) => ended.told().await,
                Err(_) => {
                    let late = shared.late(&until.log);
                    let _ = broken.set(late.clone());
                    Err(late)
                }
            };
            drop(guest);
            let _ = shared.count(ended);
        });
    }
}
