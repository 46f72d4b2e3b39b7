//! Watches: apps and hosts as they change, in the order of the log, resumable behind an index. A watcher that reads
//! slowly gets the newest of each thing, never a queue that grows; one that does not read at all is cut, and told so. So is
//! one that watches where nothing is heard any more.

use crate::control::Shared;
use crate::watched::Watched;
use futures::FutureExt as _;
use proto::v1 as pb;
use std::pin::Pin;
use std::time::Duration;
use tokio::sync::mpsc::error::SendTimeoutError;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::Status;

pub(crate) type WatchStream = Pin<Box<dyn Stream<Item = Result<pb::WatchEvent, Status>> + Send>>;

/// Events that wait for a reader; the round waits with them.
const QUEUE_MAX: usize = 64;
/// Rest after a round, by what it cost: a watcher of a large lattice takes a twentieth of a cpu at most.
const REST_MIN: Duration = Duration::from_millis(2);
const REST_MAX: Duration = Duration::from_millis(500);
const REST_SHARE: u32 = 20;
/// Who takes nothing for so long, though something waits, is cut.
const PATIENCE: Duration = Duration::from_secs(10);
/// Without a leader for so long, this scheduler is cut off, or all of them are in trouble: what it does not hear of,
/// its watchers would take for peace.
const LEADERLESS_MAX: Duration = Duration::from_secs(5);

/// The state here must be as new as what any watcher was told before: who calls this waited for that.
pub(super) fn watch(shared: Shared, request: pb::WatchRequest) -> Result<WatchStream, Status> {
    let (sender, receiver) = mpsc::channel(QUEUE_MAX);
    let (cut, why) = oneshot::channel();
    let after = request.after;
    let mut watcher = Watcher { shared, after, watched: Watched::new(request), sender };
    watcher.resume()?;
    tokio::spawn(async move {
        if let Err(status) = watcher.run().await {
            let _ = cut.send(status);
        }
    });
    // What was queued comes first, then the reason for which there is no more.
    let end = why.into_stream().filter_map(|why| why.ok().map(Err));
    Ok(Box::pin(ReceiverStream::new(receiver).chain(end)))
}

struct Watcher {
    shared: Shared,
    after: u64,
    watched: Watched,
    sender: mpsc::Sender<Result<pb::WatchEvent, Status>>,
}

impl Watcher {
    fn resume(&mut self) -> Result<(), Status> {
        let (shared, watched, after) = (&self.shared, &mut self.watched, self.after);
        let resumed = shared.view(|view| {
            // Read while the state can not move.
            let replica = &shared.replica;
            watched.resume(view, replica.touched_after(after), replica.compacted())
        });
        resumed.map_err(Status::out_of_range)
    }

    /// Until the watcher goes, or is cut.
    async fn run(mut self) -> Result<(), Status> {
        let mut applied = self.shared.replica.applied();
        let mut seen = self.shared.seen();
        // Some things change by time alone: a host becomes suspect.
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        let raft = self.shared.raft.status();
        let mut led = Instant::now();
        loop {
            let begun = Instant::now();
            if raft.borrow().leader.is_some() {
                led = begun;
            } else if begun - led >= LEADERLESS_MAX {
                return Err(self.leaderless());
            }
            let events = {
                let watched = &mut self.watched;
                self.shared.view(|view| watched.round(view))
            };
            let rest = (begun.elapsed() * REST_SHARE).clamp(REST_MIN, REST_MAX);
            for event in events {
                let index = event.index;
                match self.sender.send_timeout(Ok(event), PATIENCE).await {
                    Ok(()) => self.after = index,
                    Err(SendTimeoutError::Closed(_)) => return Ok(()),
                    Err(SendTimeoutError::Timeout(_)) => {
                        let seconds = PATIENCE.as_secs();
                        return Err(Status::unavailable(format!(
                            "this watch was not read for {seconds} s and was cut; go on behind the index of the last event"
                        )));
                    }
                }
            }
            tokio::select! {
                Ok(()) = applied.changed() => {}
                Ok(()) = seen.changed() => {}
                _ = tick.tick() => {}
                () = self.sender.closed() => return Ok(()),
            }
            tokio::time::sleep_until(begun + rest).await;
        }
    }

    fn leaderless(&self) -> Status {
        let (id, seconds, after) = (self.shared.raft.status().borrow().id, LEADERLESS_MAX.as_secs(), self.after);
        Status::unavailable(format!(
            "scheduler {id} has known no leader for {seconds} s, and this watch was cut; go on behind index {after} at another \
             one, or here when it knows one again: see `lattice schedulers list`"
        ))
    }
}
