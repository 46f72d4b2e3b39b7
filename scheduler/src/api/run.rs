//! Programs: begun on a host that has the actor, then its output taken piece by piece and passed on as it comes. When
//! the caller goes, so does the program.

use super::Service;
use crate::control::Shared;
use bus::Headers;
use proto::app::{HostId, Name};
use proto::v1 as pb;
use proto::v1::job_ask::What;
use proto::v1::run_output;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

pub(crate) type RunStream = ReceiverStream<Result<pb::RunOutput, Status>>;

/// Time for a host to begin, and for one answer; a host waits 2 s for something to say.
const DEADLINE: Duration = Duration::from_secs(8);
/// How long a host that can not be reached is asked again.
const PATIENCE: Duration = Duration::from_secs(12);
const PAUSE: Duration = Duration::from_millis(200);
/// Pieces on their way to the caller.
const OUTPUT_LEN_MAX: usize = 16;
const ARGS_MAX: usize = 1_000;
const ARGS_BYTES_MAX: usize = 128 * 1024;
const STDIN_BYTES_MAX: usize = 2 * 1024 * 1024;

impl Service {
    pub(super) async fn run_program(&self, request: pb::RunRequest) -> Result<RunStream, Status> {
        let (app, actors) = self.fresh_actors(&request.app, &request.actor).await?;
        let [actor] = actors.as_slice() else {
            return Err(Status::invalid_argument("name one actor: APP/ACTOR"));
        };
        check(&request)?;
        let begin = pb::JobBegin {
            app: request.app,
            actor: request.actor,
            args: request.args,
            stdin: request.stdin,
            deadline_ms: request.deadline_ms,
        };
        let (host, job) = self.begin(&app, actor, begin).await?;
        let (sender, receiver) = mpsc::channel(OUTPUT_LEN_MAX);
        let shared = self.shared.clone();
        tokio::spawn(async move {
            let passed = tokio::select! {
                passed = pass_on(&shared, &host, job, &sender) => passed,
                () = sender.closed() => Ok(()),
            };
            if let Err(status) = passed {
                let _ = sender.send(Err(status)).await;
            }
            let stop = pb::JobStop { job };
            let _ = ask(&shared, &host, What::Stop(stop)).await;
        });
        Ok(ReceiverStream::new(receiver))
    }

    /// On any host that runs the actor, each as likely as the others; the next one when that has no room or is away.
    async fn begin(&self, app: &Name, actor: &Name, begin: pb::JobBegin) -> Result<(HostId, u64), Status> {
        let mut hosts = self.shared.view(|v| v.hosts_running(app, actor));
        let chance = usize::try_from(u128::from(ulid::Ulid::generate()) % 65_536).unwrap_or_default();
        let first = chance.checked_rem(hosts.len()).unwrap_or_default();
        hosts.rotate_left(first);
        let message = format!("{app}/{actor} runs nowhere now; `lattice describe app {app}` says why");
        let mut failed = Status::unavailable(message);
        for host in hosts {
            match ask(&self.shared, &host, What::Begin(begin.clone())).await {
                Ok(answer) => return Ok((host, answer.job)),
                // Nobody there took it: another may. In any other case it may have begun.
                Err(bus::Error::NoResponders { .. }) => {
                    failed = Status::unavailable(format!("host {host} is not on the bus; try again"));
                }
                Err(bus::Error::Refused { code, message }) if code == "overloaded" || code == "unavailable" => {
                    failed = Status::resource_exhausted(message);
                }
                Err(error) => return Err(status(&host, &error)),
            }
        }
        Err(failed)
    }
}

fn check(request: &pb::RunRequest) -> Result<(), Status> {
    let bytes: usize = request.args.iter().map(String::len).sum();
    if request.args.len() > ARGS_MAX || bytes > ARGS_BYTES_MAX {
        let text = format!("{} arguments with {bytes} bytes: at most {ARGS_MAX} with 128 KiB", request.args.len());
        return Err(Status::invalid_argument(text));
    }
    if request.args.iter().any(|arg| arg.contains('\0')) {
        return Err(Status::invalid_argument("an argument has a NUL character in it"));
    }
    if request.stdin.as_ref().is_some_and(|stdin| stdin.len() > STDIN_BYTES_MAX) {
        return Err(Status::invalid_argument(
            "the input has more than 2 MiB; put what is larger where the actor reads",
        ));
    }
    Ok(())
}

/// Passes on what a program prints, until it has ended.
async fn pass_on(
    shared: &Shared,
    host: &HostId,
    job: u64,
    sender: &mpsc::Sender<Result<pb::RunOutput, Status>>,
) -> Result<(), Status> {
    let mut answer = 1;
    let mut heard = Instant::now();
    loop {
        let next = pb::JobNext { job, answer };
        let told = match ask(shared, host, What::Next(next)).await {
            Ok(told) => told,
            // The same answer may be asked for again.
            Err(error) if may_pass(&error) && heard.elapsed() < PATIENCE => {
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            Err(error) => return Err(status(host, &error)),
        };
        heard = Instant::now();
        answer += 1;
        for printed in told.printed {
            let what = match printed.stream {
                Some(pb::printed::Stream::Stdout(bytes)) => run_output::What::Stdout(bytes),
                Some(pb::printed::Stream::Stderr(bytes)) => run_output::What::Stderr(bytes),
                None => continue,
            };
            if sender.send(Ok(pb::RunOutput { what: Some(what) })).await.is_err() {
                return Ok(());
            }
            heard = Instant::now();
        }
        if let Some(ended) = told.ended {
            if !ended.error.is_empty() {
                return Err(Status::failed_precondition(ended.error));
            }
            let what = Some(run_output::What::Exited(ended.code));
            let _ = sender.send(Ok(pb::RunOutput { what })).await;
            return Ok(());
        }
    }
}

async fn ask(shared: &Shared, host: &HostId, what: What) -> Result<pb::JobAnswer, bus::Error> {
    let ask = pb::JobAsk { lattice: shared.lattice.clone(), what: Some(what) };
    let subject = shared.bus.subjects().job(host);
    let reply = shared.bus.call(subject.clone(), Headers::new(), bus::encode(&ask), DEADLINE).await?;
    shared.bus.decode(&reply.payload).ok_or(bus::Error::Garbled { subject })
}

fn may_pass(error: &bus::Error) -> bool {
    matches!(error, bus::Error::Deadline { .. } | bus::Error::Disconnected | bus::Error::NoResponders { .. })
}

fn status(host: &HostId, error: &bus::Error) -> Status {
    match error {
        bus::Error::Refused { message, .. } => Status::failed_precondition(message.clone()),
        error => Status::failed_precondition(format!(
            "host {host}: {error}; the program may have run or not: see `lattice logs` before it is run again"
        )),
    }
}
