//! Programs that run for somebody elsewhere: begun by a scheduler, their output held until it is asked for, piece by
//! piece. One that nobody asks for is stopped; so many at a time, so much output each, and no more.

use super::start::Parts;
use crate::call::CallError;
use crate::engine::{Job, Printed};
use bus::{Reason, Refusal, Reply, Request};
use proto::v1 as pb;
use proto::v1::job_ask::What;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};

/// Programs that run, or whose end was not heard yet.
pub(super) const JOBS_MAX: usize = 64;
/// Pieces of at most 64 KiB that a program may be ahead of its caller.
const PIECES_MAX: usize = 8;
/// Bytes of one answer, beyond which no further piece is put into it.
const ANSWER_BYTES_MAX: usize = 512 * 1024;
/// How long an answer waits for something to say.
const WAIT: Duration = Duration::from_secs(2);
/// How long a program runs, and its end is kept, when nobody asks.
const SILENCE_MAX: Duration = Duration::from_secs(15);

/// Those of this host.
#[derive(Default)]
pub(super) struct Jobs {
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    all: BTreeMap<u64, Arc<Running>>,
    begun: u64,
}

struct Running {
    output: tokio::sync::Mutex<Output>,
    /// When somebody last asked; `None` once it shall stop.
    asked: watch::Sender<Option<Instant>>,
}

struct Output {
    pieces: mpsc::Receiver<Printed>,
    ended: watch::Receiver<Option<pb::JobEnded>>,
    /// The last answer, which may have to be given again, and its number.
    last: (u64, pb::JobAnswer),
}

/// Answers one question of a scheduler.
pub(super) async fn answer(parts: &Parts, jobs: &Arc<Jobs>, lattice: &str, request: Request) -> Result<Reply, Refusal> {
    let refuse = |code: &str, message: String| Refusal { code: code.to_owned(), message };
    let Some(ask) = parts.bus.decode::<pb::JobAsk>(&request.payload) else {
        return Err(refuse("invalid", "not a question about a program".to_owned()));
    };
    if ask.lattice != lattice {
        parts.bus.drops().count(Reason::Foreign);
        return Err(refuse("invalid", format!("this host belongs to lattice {lattice}")));
    }
    let answer = match ask.what {
        Some(What::Begin(begin)) => begin_job(parts, jobs, begin).map_err(|e| refuse(e.code(), e.to_string()))?,
        Some(What::Next(next)) => {
            let Some(job) = jobs.get(next.job) else {
                let gone = "this host has no such program: it was stopped because nobody asked for its output";
                return Err(refuse("invalid", gone.to_owned()));
            };
            job.next(next.job, next.answer).await.map_err(|why| refuse("invalid", why))?
        }
        Some(What::Stop(stop)) => {
            jobs.stop(stop.job);
            pb::JobAnswer::default()
        }
        None => {
            return Err(refuse("invalid", "a question of a kind this host does not know; update it".to_owned()));
        }
    };
    Ok(Reply { payload: bus::encode(&answer), ..Reply::default() })
}

fn begin_job(parts: &Parts, jobs: &Arc<Jobs>, begin: pb::JobBegin) -> Result<pb::JobAnswer, CallError> {
    let (app, name) = (begin.app, begin.actor);
    let Some(actor) = parts.running.actor_named(&app, &name) else {
        return Err(CallError::Unavailable(format!(
            "{app}/{name} does not run here now, or is a provider, which only links reach; see `lattice get actors`"
        )));
    };
    let (out, pieces) = mpsc::channel(PIECES_MAX);
    let (end, ended) = watch::channel(None);
    let output = Output { pieces, ended, last: (0, pb::JobAnswer::default()) };
    let running =
        Arc::new(Running { output: tokio::sync::Mutex::new(output), asked: watch::Sender::new(Some(Instant::now())) });
    let id = jobs.put(running.clone()).ok_or_else(|| {
        CallError::Overloaded(format!("this host runs {JOBS_MAX} programs, which is the bound; try again later"))
    })?;
    let job = Job {
        args: begin.args,
        stdin: begin.stdin.map(Into::into),
        deadline: (begin.deadline_ms > 0).then(|| Duration::from_millis(begin.deadline_ms)),
    };
    let jobs = jobs.clone();
    tokio::spawn(async move {
        let result = tokio::select! {
            result = actor.run(job, out) => Some(result),
            () = running.abandoned() => None,
        };
        if let Some(result) = result {
            let _ = end.send(Some(match result {
                Ok(code) => pb::JobEnded { code: u32::from(code), error: String::new() },
                Err(e) => pb::JobEnded { code: 0, error: e.to_string() },
            }));
            // Its end is told as often as it is asked for.
            running.abandoned().await;
        }
        jobs.remove(id);
    });
    Ok(pb::JobAnswer { job: id, ..pb::JobAnswer::default() })
}

impl Jobs {
    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its number, if there is room.
    fn put(&self, job: Arc<Running>) -> Option<u64> {
        let mut held = self.held();
        if held.all.len() >= JOBS_MAX {
            return None;
        }
        held.begun += 1;
        let id = held.begun;
        held.all.insert(id, job);
        Some(id)
    }

    fn get(&self, id: u64) -> Option<Arc<Running>> {
        self.held().all.get(&id).cloned()
    }

    fn stop(&self, id: u64) {
        if let Some(job) = self.get(id) {
            job.asked.send_replace(None);
        }
    }

    fn remove(&self, id: u64) {
        self.held().all.remove(&id);
    }
}

impl Running {
    /// Returns when it was told to stop, or nobody asked for a while.
    async fn abandoned(&self) {
        let mut asked = self.asked.subscribe();
        loop {
            let Some(last) = *asked.borrow_and_update() else { return };
            let Some(left) = SILENCE_MAX.checked_sub(last.elapsed()) else { return };
            let _ = tokio::time::timeout(left, asked.changed()).await;
        }
    }

    /// The answer of that number: the last one again, or the next, as soon as there is something to say.
    async fn next(&self, job: u64, number: u64) -> Result<pb::JobAnswer, String> {
        // What was told to stop stays so. Nobody need wake up: `abandoned` looks when the time of the last one is over.
        let ask = || {
            self.asked.send_if_modified(|at| {
                *at = at.map(|_| Instant::now());
                false
            })
        };
        let mut output = self.output.lock().await;
        ask();
        let (last, answer) = &output.last;
        match number {
            n if n == *last && n > 0 => return Ok(answer.clone()),
            n if n == *last + 1 => {}
            n => return Err(format!("answer {n} of program {job} was asked for, and {last} was the last")),
        }
        let mut answer = pb::JobAnswer { job, ..pb::JobAnswer::default() };
        let mut bytes = 0;
        let first = tokio::time::timeout(WAIT, output.pieces.recv()).await;
        let mut piece = first.ok().map(|piece| piece.ok_or(mpsc::error::TryRecvError::Disconnected));
        while let Some(Ok(printed)) = piece {
            let printed = wire(printed, &mut bytes);
            answer.printed.push(printed);
            piece = (bytes < ANSWER_BYTES_MAX).then(|| output.pieces.try_recv());
        }
        if piece == Some(Err(mpsc::error::TryRecvError::Disconnected)) {
            // The instance is gone, so its end is told in no time; not at all if it was stopped.
            let ended = tokio::time::timeout(WAIT, output.ended.wait_for(Option::is_some)).await;
            answer.ended = match ended {
                Ok(Ok(ended)) => ended.clone(),
                Ok(Err(_)) => Some(pb::JobEnded { code: 0, error: "it was stopped".to_owned() }),
                Err(_) => None,
            };
        }
        output.last = (number, answer.clone());
        ask();
        Ok(answer)
    }
}

fn wire(printed: Printed, bytes: &mut usize) -> pb::Printed {
    use pb::printed::Stream;
    let stream = match printed {
        Printed::Stdout(piece) => {
            *bytes += piece.len();
            Stream::Stdout(piece.into())
        }
        Printed::Stderr(piece) => {
            *bytes += piece.len();
            Stream::Stderr(piece.into())
        }
    };
    pb::Printed { stream: Some(stream) }
}
