//! A subscription whose queue is bounded by count and by bytes. A reader that does not keep up loses the newest
//! messages, and they are counted; it never grows the process or stops other subscriptions.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::config::SUBSCRIPTION_LEN_MAX;
use crate::wire::Feed;
use crate::{Drops, Error, Reason};

const SUBSCRIPTION_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Room is counted in these.
const UNIT_BYTES: usize = 1_024;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub subject: String,
    pub payload: Bytes,
}

/// Dropping it unsubscribes.
#[derive(Debug)]
pub struct Subscription {
    queue: mpsc::Receiver<(Message, OwnedSemaphorePermit)>,
    _stop_at_drop: DropGuard,
}

impl Subscription {
    /// The next message, in the order the server sent them; `None` when the connection was closed.
    pub async fn next(&mut self) -> Option<Message> {
        self.queue.recv().await.map(|(message, _)| message)
    }

    pub(crate) fn start(feed: Feed, drops: Arc<Drops>, stop: CancellationToken) -> Self {
        let (sender, queue) = mpsc::channel(SUBSCRIPTION_LEN_MAX);
        tokio::spawn(fill(feed, sender, drops, stop.clone()));
        Self { queue, _stop_at_drop: stop.drop_guard() }
    }
}

/// A subject to listen on: wildcards are fine, empty tokens are not.
pub(crate) fn check(subject: &str) -> Result<(), Error> {
    let tokens: Vec<&str> = subject.split('.').collect();
    let fine = |(n, token): (usize, &&str)| {
        !token.is_empty()
            && !token.contains(|c: char| c.is_whitespace() || c.is_control())
            && (*token != ">" || n + 1 == tokens.len())
    };
    if subject.len() <= 1_024 && tokens.iter().enumerate().all(fine) {
        Ok(())
    } else {
        Err(Error::Subject { subject: subject.chars().take(120).collect() })
    }
}

async fn fill(
    mut feed: Feed,
    queue: mpsc::Sender<(Message, OwnedSemaphorePermit)>,
    drops: Arc<Drops>,
    stop: CancellationToken,
) {
    let room = Arc::new(Semaphore::new(SUBSCRIPTION_BYTES_MAX / UNIT_BYTES));
    loop {
        let message = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            message = feed.next() => message,
        };
        let Some(message) = message else { return };
        let units = u32::try_from(message.payload.len() / UNIT_BYTES + 1).unwrap_or(u32::MAX);
        let Ok(permit) = Arc::clone(&room).try_acquire_many_owned(units) else {
            drops.count(Reason::Overflow);
            continue;
        };
        let message = Message { subject: message.subject.to_string(), payload: message.payload };
        if let Err(mpsc::error::TrySendError::Full(_)) = queue.try_send((message, permit)) {
            drops.count(Reason::Overflow);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn subjects_to_listen_on() {
        for good in ["a", "a.*.c", "a.>", ">", "*"] {
            assert!(check(good).is_ok(), "{good}");
        }
        for bad in ["", "a.>.b", "a..b", ".a", "a.", "a b", "a\n"] {
            assert!(check(bad).is_err(), "{bad:?}");
        }
    }
}
