//! The host's ends on the bus: assignments go to the loop, questions are answered here.

use super::jobs::{self, JOBS_MAX, Jobs};
use super::start::Parts;
use super::{Command, Identity};
use bus::{Reason, Refusal, Reply, Request, Serving};
use prost::Message;
use proto::v1 as pb;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Questions answered at once.
const ASK_MAX: usize = 64;
/// Bytes of one answer's log lines.
const LINES_MAX: usize = 1_000;

/// Kept by the loop: the host is reached while these live.
pub(super) struct Ends {
    _assign: Serving,
    _ask: Serving,
    _job: Serving,
}

pub(super) async fn serve(
    parts: &Parts,
    identity: &Identity,
    commands: mpsc::Sender<Command>,
) -> Result<Ends, bus::Error> {
    let subjects = parts.bus.subjects().clone();
    let bus = parts.bus.clone();
    let assign = move |request: Request| {
        let (bus, commands) = (bus.clone(), commands.clone());
        async move { assign(&bus, &commands, request).await }
    };
    let assign = parts.bus.serve(subjects.assign(&identity.host), None, 4, assign).await?;
    let (asked, who) = (parts.clone(), identity.clone());
    let ask = move |request: Request| {
        let (parts, identity) = (asked.clone(), who.clone());
        async move { ask(&parts, &identity, request).await }
    };
    let ask = parts.bus.serve(subjects.ask(&identity.host), None, ASK_MAX, ask).await?;
    let (asked, lattice, jobs) = (parts.clone(), identity.lattice.to_string(), Arc::<Jobs>::default());
    let job = move |request: Request| {
        let (parts, lattice, jobs) = (asked.clone(), lattice.clone(), jobs.clone());
        async move { jobs::answer(&parts, &jobs, &lattice, request).await }
    };
    // Each program is asked about by one caller at a time; one more, to be told that there is no room.
    let job = parts.bus.serve(subjects.job(&identity.host), None, 2 * JOBS_MAX, job).await?;
    Ok(Ends { _assign: assign, _ask: ask, _job: job })
}

fn refuse(code: &str, message: impl Into<String>) -> Refusal {
    Refusal { code: code.to_owned(), message: message.into() }
}

fn reply<M: Message>(message: &M) -> Reply {
    Reply { payload: bus::encode(message), ..Reply::default() }
}

async fn assign(bus: &bus::Bus, commands: &mpsc::Sender<Command>, request: Request) -> Result<Reply, Refusal> {
    let Some(assignment) = bus.decode::<pb::Assignment>(&request.payload) else {
        return Err(refuse("invalid", "not an assignment"));
    };
    let (answer, answered) = oneshot::channel();
    let ended = |_| refuse("unavailable", "the host is ending");
    commands.send(Command::Assign(Box::new(assignment), answer)).await.map_err(|_| ended(()))?;
    let assigned = answered.await.map_err(|_| ended(()))?;
    Ok(reply(&assigned))
}

async fn ask(parts: &Parts, identity: &Identity, request: Request) -> Result<Reply, Refusal> {
    let Some(ask) = parts.bus.decode::<pb::Ask>(&request.payload) else {
        return Err(refuse("invalid", "not a question"));
    };
    if ask.lattice != identity.lattice.as_str() {
        parts.bus.drops().count(Reason::Foreign);
        return Err(refuse("invalid", format!("this host belongs to lattice {}", identity.lattice)));
    }
    let result = match ask.what {
        Some(pb::ask::What::Hello(_)) => Ok(pb::answer::What::Hello(identity.hello(parts))),
        Some(pb::ask::What::Inventory(_)) => Ok(pb::answer::What::Beat(parts.pulse.latest())),
        Some(pb::ask::What::Logs(logs)) => logs_of(parts, &logs).map(pb::answer::What::Logs),
        Some(pb::ask::What::Call(call)) => {
            let left = request.deadline.saturating_duration_since(std::time::Instant::now());
            call_of(parts, &call, left).await.map(pb::answer::What::Wave)
        }
        Some(pb::ask::What::Lease(lease)) => {
            parts.pulse.grant(&lease).map(|()| pb::answer::What::Hello(identity.hello(parts)))
        }
        None => Err("a question of a kind this host does not know; update it".to_owned()),
    };
    Ok(reply(&match result {
        Ok(what) => pb::Answer { error: String::new(), what: Some(what) },
        Err(error) => pb::Answer { error, what: None },
    }))
}

fn logs_of(parts: &Parts, ask: &pb::AskLogs) -> Result<pb::LogLines, String> {
    let app = ask.app.parse().map_err(|e| format!("app: {e}"))?;
    let count = usize::try_from(ask.lines).unwrap_or(usize::MAX).min(LINES_MAX);
    let lines = match ask.actor.as_str() {
        "" => parts.logs.tail_app(&app, count),
        actor => parts.logs.tail(&app, &actor.parse().map_err(|e| format!("actor: {e}"))?, count),
    };
    Ok(pb::LogLines { lines })
}

async fn call_of(parts: &Parts, call: &pb::AskCall, left: Duration) -> Result<String, String> {
    let Some(actor) = parts.running.actor_named(&call.app, &call.actor) else {
        return Err(format!(
            "{}/{} does not run here now, or is a provider, which only links reach; see `lattice get actors`",
            call.app, call.actor
        ));
    };
    let called = actor.call_wave(&call.interface, &call.function, &call.args);
    match tokio::time::timeout(left, called).await {
        Ok(result) => result.map_err(|e| e.to_string()),
        Err(_) => Err(format!("{}/{} gave no answer within {left:?}", call.app, call.actor)),
    }
}
