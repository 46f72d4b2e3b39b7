//! Logs, events and calls: what is asked of hosts.

use super::Service;
use bus::Headers;
use proto::app::{HostId, Name};
use proto::v1 as pb;
use std::pin::Pin;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::Status;

pub(crate) type LogsStream = ReceiverStream<Result<pb::LogLines, Status>>;
pub(crate) type EventsStream = Pin<Box<dyn Stream<Item = Result<pb::Event, Status>> + Send>>;

const LINES_DEFAULT: u32 = 100;
const LINES_MAX: u32 = 1_000;
/// Time for a host to answer.
const ASK_DEADLINE: Duration = Duration::from_secs(5);
/// Time for a call of an actor, its own deadline included.
const CALL_DEADLINE: Duration = Duration::from_secs(60);
/// Bytes of a call's arguments.
const ARGS_BYTES_MAX: usize = 1024 * 1024;

impl Service {
    async fn ask(&self, host: &HostId, what: pb::ask::What, deadline: Duration) -> Result<pb::answer::What, Status> {
        let ask = pb::Ask { lattice: self.shared.lattice.clone(), what: Some(what) };
        let subject = self.shared.bus.subjects().ask(host);
        let reply = self.shared.bus.call(subject, Headers::new(), bus::encode(&ask), deadline).await;
        let reply = reply.map_err(|e| Status::unavailable(format!("host {host}: {e}")))?;
        let answer: pb::Answer = prost::Message::decode(&reply.payload[..])
            .map_err(|e| Status::internal(format!("host {host} answered with something else: {e}")))?;
        match answer.what {
            Some(what) if answer.error.is_empty() => Ok(what),
            _ => Err(Status::failed_precondition(answer.error)),
        }
    }

    /// The actors of `app` that a request means: one, or all; as of what was acknowledged by anybody.
    pub(super) async fn fresh_actors(&self, app: &str, actor: &str) -> Result<(Name, Vec<Name>), Status> {
        self.fresh(false).await?;
        self.actors(app, actor)
    }

    fn actors(&self, app: &str, actor: &str) -> Result<(Name, Vec<Name>), Status> {
        let name = Self::name(app, "app")?;
        let state = self.shared.replica.read();
        let Some(at) = state.apps.get(&name) else {
            return Err(Status::not_found(format!("there is no app {app:?}; `lattice get apps` shows what there is")));
        };
        let all: Vec<Name> = at.spec().components.keys().cloned().collect();
        if actor.is_empty() {
            return Ok((name, all));
        }
        match all.iter().find(|c| c.as_str() == actor) {
            Some(found) => Ok((name, vec![found.clone()])),
            None => {
                let known: Vec<&str> = all.iter().map(Name::as_str).collect();
                Err(Status::not_found(format!("app {app:?} has no actor {actor:?}; it has {}", known.join(", "))))
            }
        }
    }

    pub(super) async fn logs_of(&self, request: pb::LogsRequest) -> Result<LogsStream, Status> {
        let fresh = self.fresh(false).await;
        // While nobody leads, what an app that is known here prints is wanted most.
        let (app, actors) =
            self.actors(&request.app, &request.actor).map_err(|unknown| fresh.err().unwrap_or(unknown))?;
        let lines = if request.lines == 0 { LINES_DEFAULT } else { request.lines.min(LINES_MAX) };
        // Subscribed before the hosts are asked: nothing falls between.
        let mut live = match request.follow {
            true => {
                let subject = self.shared.bus.subjects().every_log(&app);
                Some(self.shared.bus.subscribe(subject).await.map_err(|e| Status::unavailable(e.to_string()))?)
            }
            false => None,
        };
        let mut hosts: Vec<HostId> = self.shared.view(|v| {
            let placed = actors.iter().flat_map(|actor| v.state.placed(&app, actor).map(|(h, _)| h.clone()));
            placed.filter(|h| v.state.hosts.get(h).is_some_and(|h| !h.lost)).collect()
        });
        hosts.sort();
        hosts.dedup();
        let mut all = Vec::new();
        for host in hosts.iter().take(100) {
            let ask = pb::AskLogs { app: request.app.clone(), actor: request.actor.clone(), lines };
            // A host that does not answer hides nobody else's lines.
            if let Ok(pb::answer::What::Logs(found)) = self.ask(host, pb::ask::What::Logs(ask), ASK_DEADLINE).await {
                all.extend(found.lines);
            }
        }
        all.sort_by_key(|l| l.time_ms);
        let tail = all.split_off(all.len().saturating_sub(lines as usize));
        let (sender, receiver) = mpsc::channel(64);
        let bus = self.shared.bus.clone();
        tokio::spawn(async move {
            let last_ms = tail.last().map_or(0, |l| l.time_ms);
            let known: std::collections::BTreeSet<(String, u64, String)> = tail.iter().map(line_key).collect();
            if !tail.is_empty() && sender.send(Ok(pb::LogLines { lines: tail })).await.is_err() {
                return;
            }
            while let Some(live) = &mut live {
                let message = tokio::select! {
                    message = live.next() => message,
                    () = sender.closed() => return,
                };
                let Some(message) = message else { return };
                let Some(mut found) = bus.decode::<pb::LogLines>(&message.payload) else { continue };
                found.lines.retain(|l| {
                    let wanted = actors.iter().any(|a| a.as_str() == l.actor);
                    wanted && !(l.time_ms <= last_ms && known.contains(&line_key(l)))
                });
                if !found.lines.is_empty() && sender.send(Ok(found)).await.is_err() {
                    return;
                }
            }
        });
        Ok(ReceiverStream::new(receiver))
    }

    pub(super) fn events_of(&self, request: pb::EventsRequest) -> EventsStream {
        let live = self.shared.events.follow();
        let latest = tokio_stream::iter(self.shared.events.latest(&request.app)).map(Ok);
        if !request.watch {
            return Box::pin(latest);
        }
        let app = request.app;
        let live = tokio_stream::wrappers::BroadcastStream::new(live).filter_map(move |event| match event {
            Ok(event) => crate::events::concerns(&event, &app).then_some(Ok(event)),
            Err(_) => Some(Err(Status::data_loss("this watch fell behind and was cut; start it again"))),
        });
        Box::pin(latest.chain(live))
    }

    pub(super) async fn call_actor(&self, request: pb::CallRequest) -> Result<pb::CallResponse, Status> {
        let (app, actors) = self.fresh_actors(&request.app, &request.actor).await?;
        let [actor] = actors.as_slice() else {
            return Err(Status::invalid_argument("name one actor: APP/ACTOR"));
        };
        if request.args.len() > ARGS_BYTES_MAX {
            return Err(Status::invalid_argument("the arguments have more than 1 MiB"));
        }
        let hosts = self.shared.view(|v| v.hosts_running(&app, actor));
        let Some(host) = hosts.first() else {
            let message = format!("{app}/{actor} runs nowhere now; `lattice describe app {app}` says why");
            return Err(Status::unavailable(message));
        };
        let ask = pb::AskCall {
            app: request.app,
            actor: request.actor,
            interface: request.interface,
            function: request.function,
            args: request.args,
        };
        match self.ask(host, pb::ask::What::Call(ask), CALL_DEADLINE).await? {
            pb::answer::What::Wave(wave) => Ok(pb::CallResponse { wave }),
            _ => Err(Status::internal(format!("host {host} answered with something else"))),
        }
    }
}

fn line_key(line: &pb::LogLine) -> (String, u64, String) {
    (line.host.clone(), line.instance, line.text.clone())
}
