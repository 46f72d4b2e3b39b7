//! Watches: apps and hosts as they change, in the order of the log, resumable behind an index. A watcher that reads
//! slowly gets the newest of each thing, never a queue that grows.

use crate::control::Shared;
use crate::state::Touched;
use proto::v1 as pb;
use proto::v1::watch_event::What;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

pub(crate) type WatchStream = ReceiverStream<Result<pb::WatchEvent, Status>>;

/// Events that wait for a reader; the round waits with them.
const QUEUE_MAX: usize = 64;
/// Rest after a round, by what it cost: a watcher of a large lattice takes a twentieth of a cpu at most.
const REST_MIN: Duration = Duration::from_millis(2);
const REST_MAX: Duration = Duration::from_millis(500);
const REST_SHARE: u32 = 20;

pub(super) fn watch(shared: Shared, request: pb::WatchRequest) -> Result<WatchStream, Status> {
    let (sender, receiver) = mpsc::channel(QUEUE_MAX);
    let mut watcher = Watcher { shared, request, sent: Sent::default(), sender };
    watcher.resume()?;
    tokio::spawn(watcher.run());
    Ok(ReceiverStream::new(receiver))
}

#[derive(Default)]
struct Sent {
    apps: BTreeMap<String, pb::AppStatus>,
    hosts: BTreeMap<String, pb::HostStatus>,
    /// What vanished before the watch resumed.
    gone: Vec<What>,
}

/// A host without what moves all the time, its age and its load: a watch tells what changed besides.
fn still(host: pb::HostStatus) -> pb::HostStatus {
    pb::HostStatus {
        seen_ms: 0,
        cpu_millis: 0,
        resident_bytes: 0,
        requests_per_s: 0.0,
        in_flight: 0,
        queued: 0,
        ..host
    }
}

struct Watcher {
    shared: Shared,
    request: pb::WatchRequest,
    sent: Sent,
    sender: mpsc::Sender<Result<pb::WatchEvent, Status>>,
}

impl Watcher {
    /// For a watch that goes on: what was not touched since is as the client knows it.
    fn resume(&mut self) -> Result<(), Status> {
        let after = self.request.after;
        if after == 0 {
            return Ok(());
        }
        let applied = self.shared.replica.read().applied;
        if after > applied {
            return Err(Status::out_of_range(format!(
                "index {after} is not there yet (the newest is {applied}); list again and watch from the list's index"
            )));
        }
        let Some(touched) = self.shared.replica.touched_after(after) else {
            let compacted = self.shared.replica.compacted();
            return Err(Status::out_of_range(format!(
                "index {after} was compacted (the oldest known is {compacted}); list again and watch from the list's index"
            )));
        };
        let (apps, hosts) = self.shared.view(|v| (v.apps(&self.request.app), v.hosts()));
        self.sent.apps = apps.into_iter().map(|a| (a.name.clone(), a)).collect();
        self.sent.hosts = hosts.into_iter().map(|h| (h.id.clone(), h)).collect();
        for one in touched {
            match one {
                Touched::App(name) => drop(self.sent.apps.remove(name.as_str())),
                Touched::Host(id) => drop(self.sent.hosts.remove(id.as_str())),
                Touched::AppGone(name) if !self.sent.apps.contains_key(name.as_str()) => {
                    self.sent.gone.push(What::AppDeleted(name.to_string()));
                }
                Touched::HostGone(id) if !self.sent.hosts.contains_key(id.as_str()) => {
                    self.sent.gone.push(What::HostForgotten(id.to_string()));
                }
                Touched::AppGone(_) | Touched::HostGone(_) => {}
            }
        }
        Ok(())
    }

    async fn run(mut self) {
        let mut applied = self.shared.replica.applied();
        let mut seen = self.shared.seen();
        // Some things change by time alone: a host becomes suspect.
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        let mut synced = false;
        loop {
            let begun = tokio::time::Instant::now();
            let (index, mut events) = self.round();
            let rest = (begun.elapsed() * REST_SHARE).clamp(REST_MIN, REST_MAX);
            if !synced {
                events.push(What::Synced(true));
                synced = true;
            }
            for what in events {
                if self.sender.send(Ok(pb::WatchEvent { index, what: Some(what) })).await.is_err() {
                    return;
                }
            }
            tokio::select! {
                Ok(()) = applied.changed() => {}
                Ok(()) = seen.changed() => {}
                _ = tick.tick() => {}
                () = self.sender.closed() => return,
            }
            tokio::time::sleep_until(begun + rest).await;
        }
    }

    /// What differs from what was sent.
    fn round(&mut self) -> (u64, Vec<What>) {
        let (index, apps, hosts) = self.shared.view(|v| {
            (v.state.applied, v.apps(&self.request.app), if self.request.hosts { v.hosts() } else { Vec::new() })
        });
        let mut events = std::mem::take(&mut self.sent.gone);
        let now: BTreeMap<String, pb::AppStatus> = apps.into_iter().map(|a| (a.name.clone(), a)).collect();
        for name in self.sent.apps.keys().filter(|n| !now.contains_key(*n)) {
            events.push(What::AppDeleted(name.clone()));
        }
        let before = &self.sent.apps;
        events.extend(now.values().filter(|a| before.get(&a.name) != Some(a)).cloned().map(What::App));
        self.sent.apps = now;
        let now: BTreeMap<String, pb::HostStatus> = hosts.into_iter().map(|h| (h.id.clone(), still(h))).collect();
        if self.request.hosts {
            for id in self.sent.hosts.keys().filter(|n| !now.contains_key(*n)) {
                events.push(What::HostForgotten(id.clone()));
            }
            let before = &self.sent.hosts;
            let differs = |h: &&pb::HostStatus| before.get(&h.id).cloned().map(still).as_ref() != Some(*h);
            events.extend(now.values().filter(differs).cloned().map(What::Host));
            self.sent.hosts = now;
        }
        (index, events)
    }
}
