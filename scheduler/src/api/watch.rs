//! Watches: apps and hosts as they change, in the order of the log, resumable behind an index. A watcher that reads
//! slowly gets the newest of each thing, never a queue that grows.

use crate::control::Shared;
use crate::watched::Watched;
use proto::v1 as pb;
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
    let after = request.after;
    let mut watcher = Watcher { shared, after, watched: Watched::new(request), sender };
    watcher.resume()?;
    tokio::spawn(watcher.run());
    Ok(ReceiverStream::new(receiver))
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

    async fn run(mut self) {
        let mut applied = self.shared.replica.applied();
        let mut seen = self.shared.seen();
        // Some things change by time alone: a host becomes suspect.
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        loop {
            let begun = tokio::time::Instant::now();
            let events = {
                let watched = &mut self.watched;
                self.shared.view(|view| watched.round(view))
            };
            let rest = (begun.elapsed() * REST_SHARE).clamp(REST_MIN, REST_MAX);
            for event in events {
                if self.sender.send(Ok(event)).await.is_err() {
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
}
