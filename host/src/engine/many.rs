//! Many requests at once in one instance, for actors of WASI 0.3 that ask for it (`limits.concurrency`): while one
//! waits for something outside, the others go on. An instance takes so many at once and so many in all (`limits.reuse`), and
//! none any more once one of them ran past its deadline: what can not be ended by itself ends with its instance, when
//! the others are done. A trap ends all that are in it.

use super::body::{Answer, Outgoing};
use super::gate::Permit;
use super::http::Head;
use super::invocation::{Run, Shared};
use super::lane::Ended;
use super::output::Log;
use super::state::State;
use super::{failed, later};
use crate::call::{Body, CallError};
use crate::origin::Origin;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::{Frame, SizeHint};
use proto::app::Limits;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Sleep, timeout_at};
use wasmtime_wasi_http::Error;
use wasmtime_wasi_http::p3::bindings::ServicePre;

/// How long an instance waits for another request.
const IDLE_MAX: Duration = Duration::from_secs(10);
/// How often one that waits is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The instances of one actor that take more requests.
#[derive(Default)]
pub(super) struct Many {
    open: Mutex<Vec<Arc<Open>>>,
}

/// One instance, as those see it who have a request for it.
struct Open {
    /// Never more wait in it than may be in the instance.
    requests: mpsc::UnboundedSender<Taken>,
    seats: Mutex<Seats>,
    /// Why it broke, and that it is gone.
    broken: Arc<OnceLock<CallError>>,
    ended: watch::Receiver<bool>,
    log: Arc<Log>,
}

struct Seats {
    taken: u32,
    served: u32,
    /// When all that are in it must be done; when it was last empty.
    until: Instant,
    empty_since: Instant,
}

/// The place of one request in an instance: given back when its answer is out.
struct Seat {
    open: Arc<Open>,
    _permit: Permit,
}

struct Taken {
    request: Request<Body>,
    deadline: Instant,
    tx: oneshot::Sender<Head>,
}

impl Many {
    /// Answers one request, in an instance that has room for it or in another.
    pub(super) async fn http(
        self: &Arc<Self>,
        shared: &Arc<Shared>,
        service: &ServicePre<State>,
        request: Request<Body>,
        asked: Option<Duration>,
    ) -> Result<Response<Body>, CallError> {
        // In an instance that many are in, none ends by itself: what is strict has until the end of the lease there is.
        let deadline = shared.deadline(asked);
        let deadline = shared.env.holding.as_ref().map_or(deadline, |holding| holding.end().min(deadline));
        let permit = shared.permit(deadline).await?;
        let open = match self.take(&shared.env.limits, deadline) {
            Some(open) => open,
            None => self.another(shared, service, deadline).await?,
        };
        let seat = Seat { open: open.clone(), _permit: permit };
        let (tx, rx) = oneshot::channel();
        // One that has just broken takes it, and drops it: `rx` says so.
        let _ = open.requests.send(Taken { request, deadline, tx });
        match timeout_at(deadline.into(), rx).await {
            Ok(Ok(Ok(response))) => {
                let answer = Answer::limit(&shared.env, open.log.clone());
                let body = |inner| Outgoing::new(inner, open.broken.clone(), answer);
                let late = Box::pin(tokio::time::sleep_until(deadline.into()));
                let (many, shared) = (self.clone(), shared.clone());
                Ok(response.map(|inner| Held { inner: body(inner), late, many, shared, seat }.boxed_unsync()))
            }
            Ok(Ok(Err(code))) => Err(failed::answered(&shared.env.label, &code)),
            Ok(Err(_)) => {
                let mut ended = open.ended.clone();
                let _ = timeout_at(deadline.into(), ended.wait_for(|ended| *ended)).await;
                let silent = || CallError::Trapped(format!("actor {} ended without a response", shared.env.label));
                Err(open.broken.get().cloned().unwrap_or_else(silent))
            }
            Err(_) => {
                self.close(&open);
                Err(shared.late(&open.log))
            }
        }
    }

    /// No instance takes a request any more; those under way are answered.
    pub(super) fn close_all(&self) {
        self.open().clear();
    }

    fn open(&self) -> MutexGuard<'_, Vec<Arc<Open>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self, open: &Arc<Open>) {
        self.open().retain(|one| !Arc::ptr_eq(one, open));
    }

    /// The first instance that has room: the others may run empty and go.
    fn take(&self, limits: &Limits, deadline: Instant) -> Option<Arc<Open>> {
        let mut all = self.open();
        let at = all.iter().position(|open| {
            let mut seats = open.seats();
            let has_room = seats.taken < limits.concurrency;
            if has_room {
                seats.sit(deadline);
            }
            has_room
        })?;
        let open = all[at].clone();
        if open.seats().served >= served_max(limits) {
            all.remove(at);
        }
        Some(open)
    }

    async fn another(
        self: &Arc<Self>,
        shared: &Arc<Shared>,
        service: &ServicePre<State>,
        deadline: Instant,
    ) -> Result<Arc<Open>, CallError> {
        let run = shared.instance(deadline).await?;
        let (requests, taken) = mpsc::unbounded_channel();
        let (end, ended) = watch::channel(false);
        let now = Instant::now();
        let mut seats = Seats { taken: 0, served: 0, until: now, empty_since: now };
        seats.sit(deadline);
        let log = run.store.data().log().clone();
        let broken = Arc::<OnceLock<CallError>>::default();
        let open = Arc::new(Open { requests, seats: Mutex::new(seats), broken, ended, log });
        if served_max(&shared.env.limits) > 1 {
            self.open().push(open.clone());
        }
        let spent = run.store.data().spent.clone();
        let broken = open.broken.clone();
        let work = Box::pin(drive(shared.clone(), service.clone(), run, taken, broken));
        let driven = shared.laned_by(spent, work);
        let watched =
            watch_over(Arc::downgrade(self), Arc::downgrade(&open), shared.clone(), driven, open.broken.clone());
        tokio::spawn(async move {
            watched.await;
            let _ = end.send(true);
        });
        Ok(open)
    }
}

/// One that takes several at once takes at least so many.
fn served_max(limits: &Limits) -> u32 {
    limits.reuse.max(limits.concurrency)
}

impl Open {
    fn seats(&self) -> MutexGuard<'_, Seats> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seats {
    fn sit(&mut self, deadline: Instant) {
        self.taken += 1;
        self.served += 1;
        self.until = self.until.max(deadline);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut seats = self.open.seats();
        seats.taken -= 1;
        seats.empty_since = Instant::now();
    }
}

/// Takes requests until nobody can send more, then ends when what they began is done. Why it broke is noted before the
/// store is dropped, since that ends the bodies.
async fn drive(
    shared: Arc<Shared>,
    service: ServicePre<State>,
    mut run: Run,
    mut requests: mpsc::UnboundedReceiver<Taken>,
    broken: Arc<OnceLock<CallError>>,
) -> Result<(), CallError> {
    let call = async {
        let service = service.instantiate_async(&mut run.store).await?;
        let ended = run.store.run_concurrent(async |accessor| {
            let mut under_way = FuturesUnordered::new();
            loop {
                tokio::select! {
                    biased;
                    Some(done) = under_way.next(), if !under_way.is_empty() => {
                        let done: wasmtime::Result<()> = done;
                        done?;
                    }
                    next = requests.recv() => match next {
                        Some(Taken { request, deadline, tx }) => {
                            let origin = Origin::of(request.headers());
                            let nothing_left = |cx: &mut Context<'_>| accessor.poll_no_interesting_tasks(cx).is_ready();
                            let is_alone = under_way.is_empty()
                                && std::future::poll_fn(|cx| Poll::Ready(nothing_left(cx))).await;
                            accessor.with(|mut access| {
                                access.data_mut().joined(deadline);
                                access.data_mut().caused_among(&origin, is_alone);
                            });
                            under_way.push(later::one(&service, accessor, request, origin, tx));
                        }
                        None => break,
                    },
                }
            }
            while let Some(done) = under_way.next().await {
                done?;
            }
            std::future::poll_fn(|cx| accessor.poll_no_interesting_tasks(cx)).await;
            wasmtime::error::Ok(())
        });
        ended.await?
    };
    let ended = call.await.map_err(|e| shared.failed(&run.store, &e));
    if let Err(error) = &ended {
        let _ = broken.set(error.clone());
    }
    ended
}

/// Drives an instance; ends it when all that is in it is late, and lets it go when it has waited long enough.
async fn watch_over(
    many: Weak<Many>,
    open: Weak<Open>,
    shared: Arc<Shared>,
    driven: impl Future<Output = Ended<()>>,
    broken: Arc<OnceLock<CallError>>,
) {
    let mut driven = std::pin::pin!(driven);
    let mut until = Instant::now();
    loop {
        let look = match open.upgrade() {
            Some(open) => {
                let seats = open.seats();
                until = seats.until;
                let (is_empty, since) = (seats.taken == 0, seats.empty_since);
                drop(seats);
                match is_empty {
                    false => until,
                    true => {
                        if since.elapsed() > IDLE_MAX
                            && let Some(many) = many.upgrade()
                        {
                            many.close(&open);
                        }
                        Instant::now() + LOOK_EVERY
                    }
                }
            }
            // Nobody waits for it any more but what it began itself.
            None => until,
        };
        match timeout_at(look.into(), &mut driven).await {
            Ok(ended) => {
                if let (Some(many), Some(open)) = (many.upgrade(), open.upgrade()) {
                    many.close(&open);
                }
                // It has said itself why it broke.
                let _ = ended.told().await;
                return;
            }
            Err(_) => {
                let now = Instant::now();
                let is_late = match open.upgrade() {
                    Some(open) => {
                        let seats = open.seats();
                        seats.taken > 0 && seats.until <= now
                    }
                    None => until <= now,
                };
                if is_late {
                    if let (Some(many), Some(open)) = (many.upgrade(), open.upgrade()) {
                        many.close(&open);
                    }
                    let _ = broken.set(shared.late_quietly());
                    return;
                }
            }
        }
    }
}

/// An answer's body: it keeps its seat until it is out, and breaks off at the deadline of its request.
struct Held {
    inner: Outgoing,
    late: Pin<Box<Sleep>>,
    many: Arc<Many>,
    shared: Arc<Shared>,
    seat: Seat,
}

impl hyper::body::Body for Held {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.inner).poll_frame(cx) {
            return Poll::Ready(frame);
        }
        std::task::ready!(self.late.as_mut().poll(cx));
        self.many.close(&self.seat.open);
        Poll::Ready(Some(Err(Error::InternalError(Some(self.shared.late(&self.seat.open.log).to_string())))))
    }
    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }
    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
