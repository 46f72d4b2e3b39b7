//! What the rest of the scheduler holds of the log: cheap to clone, asks the loop in `drive` and waits for answers.
//! Never blocks a thread, and never queues beyond its bounds: at a bound the answer is `Error::Overloaded`.

use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};

use super::Error;
use super::members::{Change, Members};
use super::node::Role;

/// Messages of other members that may wait; beyond, they are dropped as a network would.
const STEPS_MAX: usize = 1024;

/// An entry that is committed, durable and applied here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    pub index: u64,
    /// What `StateMachine::apply` returned.
    pub outcome: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    pub id: u64,
    pub leader: Option<u64>,
    pub term: u64,
    pub role: Role,
    /// Leads, and has applied all that earlier leaders committed.
    pub governs: bool,
    /// Log index of the last entry applied here.
    pub applied: u64,
    pub committed: u64,
    /// Bytes of log held since it was last truncated.
    pub log_bytes: u64,
    /// Log index of the stored snapshot.
    pub snapshot: u64,
    /// Durable flushes since the start.
    pub syncs: u64,
    /// Messages of other members that were refused since the start.
    pub refused: u64,
    /// Who takes part, as of what is applied here.
    pub members: Members,
    /// While this member leads: (id, log index up to which that member has everything).
    pub progress: Vec<(u64, u64)>,
}

/// A question to the loop.
pub(super) enum Event {
    Propose { data: Vec<u8>, answer: oneshot::Sender<Result<Applied, Error>>, permit: OwnedSemaphorePermit },
    Change { changes: Vec<Change>, answer: oneshot::Sender<Result<Applied, Error>>, permit: OwnedSemaphorePermit },
    Transfer { to: u64, answer: oneshot::Sender<Result<(), Error>> },
    Read { answer: oneshot::Sender<Result<u64, Error>>, permit: OwnedSemaphorePermit },
    Step { message: Vec<u8>, permit: OwnedSemaphorePermit },
    Unreachable { member: u64 },
    Shutdown,
}

#[derive(Clone)]
pub struct Handle {
    events: SyncSender<Event>,
    status: watch::Receiver<Status>,
    proposals: Arc<Semaphore>,
    reads: Arc<Semaphore>,
    steps: Arc<Semaphore>,
    log_id: Arc<str>,
    proposals_max: usize,
    entry_bytes_max: usize,
}

impl Handle {
    /// Proposes one entry; resolves when it is committed, durable and applied here. Dropping the future does not take
    /// the proposal back.
    pub async fn propose(&self, data: Vec<u8>) -> Result<Applied, Error> {
        let (len, max) = (data.len(), self.entry_bytes_max);
        if len == 0 || len > max {
            return Err(Error::EntryBytes { len, max });
        }
        let overloaded = Error::Overloaded { what: "proposals", limit: self.proposals_max };
        let Ok(permit) = self.proposals.clone().try_acquire_owned() else {
            return Err(overloaded);
        };
        let (answer, answered) = oneshot::channel();
        self.ask(Event::Propose { data, answer, permit }, overloaded)?;
        answered.await.unwrap_or(Err(Error::Stopped))
    }

    /// Changes the members at the leader; resolves when the change is committed and applied here. A joint change is left
    /// by itself a little later. No changes: ends a joint change that was not.
    pub async fn change(&self, changes: Vec<Change>) -> Result<Applied, Error> {
        let overloaded = Error::Overloaded { what: "proposals", limit: self.proposals_max };
        let Ok(permit) = self.proposals.clone().try_acquire_owned() else {
            return Err(overloaded);
        };
        let (answer, answered) = oneshot::channel();
        self.ask(Event::Change { changes, answer, permit }, overloaded)?;
        answered.await.unwrap_or(Err(Error::Stopped))
    }

    /// Begins to hand leadership over to another voter; `status` shows when that leads. It may fail: then this member
    /// leads on after an election timeout.
    pub async fn transfer(&self, to: u64) -> Result<(), Error> {
        let (answer, answered) = oneshot::channel();
        let overloaded = Error::Overloaded { what: "proposals", limit: self.proposals_max };
        self.ask(Event::Transfer { to, answer }, overloaded)?;
        answered.await.unwrap_or(Err(Error::Stopped))
    }

    /// The name of this very log, which no other log has.
    pub fn log_id(&self) -> &str {
        &self.log_id
    }

    /// A linearizable barrier: resolves with a log index that is applied here and covers every entry acknowledged by
    /// anyone before the call. Calls that arrive together share one round.
    pub async fn read_index(&self) -> Result<u64, Error> {
        let overloaded = Error::Overloaded { what: "reads", limit: self.proposals_max };
        let Ok(permit) = self.reads.clone().try_acquire_owned() else {
            return Err(overloaded);
        };
        let (answer, answered) = oneshot::channel();
        self.ask(Event::Read { answer, permit }, overloaded)?;
        answered.await.unwrap_or(Err(Error::Stopped))
    }

    /// Hands over a message of another member, as its transport was given it. Nothing it may say can harm: what is
    /// malformed, misaddressed or impossible is dropped and counted in `Status::refused`.
    pub fn step(&self, message: Vec<u8>) -> Result<(), Error> {
        let overloaded = Error::Overloaded { what: "messages of other members", limit: STEPS_MAX };
        let Ok(permit) = self.steps.clone().try_acquire_owned() else {
            return Err(overloaded);
        };
        self.ask(Event::Step { message, permit }, overloaded)
    }

    /// Tells that a message to `member` was not delivered, so that it is probed (or sent its snapshot) again.
    pub fn unreachable(&self, member: u64) {
        // When the queue is full the next lost message tells it again, and a lost snapshot times out.
        let _ = self.ask(Event::Unreachable { member }, Error::Stopped);
    }

    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// Ends the member and waits until its data directory is free. Who still waits is answered `Error::Stopped`.
    pub async fn shutdown(&self) {
        let mut status = self.status.clone();
        loop {
            match self.events.try_send(Event::Shutdown) {
                Ok(()) | Err(TrySendError::Disconnected(_)) => break,
                // The loop is behind: it publishes its status when it has caught up.
                Err(TrySendError::Full(_)) => {
                    if status.changed().await.is_err() {
                        return;
                    }
                }
            }
        }
        while status.changed().await.is_ok() {}
    }

    fn ask(&self, event: Event, full: Error) -> Result<(), Error> {
        self.events.try_send(event).map_err(|error| match error {
            TrySendError::Full(_) => full,
            TrySendError::Disconnected(_) => Error::Stopped,
        })
    }
}

/// The two ends: what others hold, and what the loop receives from.
pub(super) fn channel(
    status: watch::Receiver<Status>,
    log_id: String,
    proposals_max: usize,
    entry_bytes_max: usize,
) -> (Handle, std::sync::mpsc::Receiver<Event>) {
    // The permits bound what is queued; the rest is room for what has none.
    let (events, receiver) = std::sync::mpsc::sync_channel(2 * proposals_max + STEPS_MAX + 64);
    let handle = Handle {
        events,
        status,
        proposals: Arc::new(Semaphore::new(proposals_max)),
        reads: Arc::new(Semaphore::new(proposals_max)),
        steps: Arc::new(Semaphore::new(STEPS_MAX)),
        log_id: log_id.into(),
        proposals_max,
        entry_bytes_max,
    };
    (handle, receiver)
}
