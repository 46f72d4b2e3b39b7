//! Where answers arrive: one wildcard subscription per connection and a table of what waits. A call costs one
//! message each way. Never holds more than `CALLS_MAX` waiters; one that is dropped leaves the table.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_nats::Message;
use tokio::sync::{mpsc, oneshot};

use crate::{Error, Reason};

/// Calls and transfers of one connection that may wait at a time.
pub const CALLS_MAX: usize = 16_384;
/// Messages of one transfer not yet taken up; the window of grants keeps below it.
const STREAM_LEN_MAX: usize = 64;

#[derive(Debug)]
pub(crate) struct Inbox {
    /// Unguessable, ends without a dot.
    prefix: String,
    next: AtomicU64,
    waiters: Mutex<HashMap<u64, Waiter>>,
}

#[derive(Debug)]
enum Waiter {
    /// Gets one message.
    Once(oneshot::Sender<Message>),
    /// Gets each message until the ticket is dropped.
    Stream(mpsc::Sender<Message>),
}

/// A place in the table. Dropping it gives the place back.
#[derive(Debug)]
pub(crate) struct Ticket {
    inbox: Arc<Inbox>,
    id: u64,
}

impl Inbox {
    pub(crate) fn new(prefix: String) -> Arc<Self> {
        Arc::new(Self { prefix, next: AtomicU64::new(1), waiters: Mutex::default() })
    }

    pub(crate) fn wildcard(&self) -> String {
        format!("{}.*", self.prefix)
    }

    pub(crate) fn once(self: &Arc<Self>) -> Result<(Ticket, oneshot::Receiver<Message>), Error> {
        let (sender, receiver) = oneshot::channel();
        Ok((self.enter(Waiter::Once(sender))?, receiver))
    }

    pub(crate) fn stream(self: &Arc<Self>) -> Result<(Ticket, mpsc::Receiver<Message>), Error> {
        self.stream_of(STREAM_LEN_MAX)
    }

    /// With room for so many messages that are not taken up yet.
    pub(crate) fn stream_of(self: &Arc<Self>, len_max: usize) -> Result<(Ticket, mpsc::Receiver<Message>), Error> {
        let (sender, receiver) = mpsc::channel(len_max);
        Ok((self.enter(Waiter::Stream(sender))?, receiver))
    }

    /// Hands a message to what waits for it.
    pub(crate) fn deliver(&self, message: Message) -> Result<(), Reason> {
        let id = self.id_of(&message.subject).ok_or(Reason::Malformed)?;
        let mut waiters = self.lock();
        match waiters.remove(&id) {
            None => Err(Reason::Stale),
            Some(Waiter::Once(sender)) => sender.send(message).map_err(|_| Reason::Stale),
            Some(Waiter::Stream(sender)) => {
                let sent = sender.try_send(message).map_err(|e| match e {
                    mpsc::error::TrySendError::Full(_) => Reason::Overflow,
                    mpsc::error::TrySendError::Closed(_) => Reason::Stale,
                });
                waiters.insert(id, Waiter::Stream(sender));
                sent
            }
        }
    }

    /// Ends every wait.
    pub(crate) fn clear(&self) {
        self.lock().clear();
    }

    fn enter(self: &Arc<Self>, waiter: Waiter) -> Result<Ticket, Error> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let mut waiters = self.lock();
        if waiters.len() >= CALLS_MAX {
            return Err(Error::Busy { calls: CALLS_MAX });
        }
        waiters.insert(id, waiter);
        Ok(Ticket { inbox: Arc::clone(self), id })
    }

    fn id_of(&self, subject: &str) -> Option<u64> {
        let digits = subject.strip_prefix(&self.prefix)?.strip_prefix('.')?;
        if digits.starts_with('+') { None } else { digits.parse().ok() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Waiter>> {
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ticket {
    /// The address that reaches the waiter.
    pub(crate) fn address(&self) -> String {
        format!("{}.{}", self.inbox.prefix, self.id)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.inbox.lock().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(subject: &str) -> Message {
        Message {
            subject: subject.into(),
            reply: None,
            payload: bytes::Bytes::new(),
            headers: None,
            status: None,
            description: None,
            length: 0,
        }
    }

    #[test]
    fn one_answer_reaches_its_call_and_a_second_is_stale() {
        let inbox = Inbox::new("_INBOX.x".into());
        let (ticket, mut answer) = inbox.once().unwrap();
        let address = ticket.address();
        assert_eq!(inbox.deliver(message(&address)), Ok(()));
        assert_eq!(answer.try_recv().unwrap().subject.as_str(), address);
        assert_eq!(inbox.deliver(message(&address)), Err(Reason::Stale));
    }

    #[test]
    fn a_dropped_call_leaves_the_table() {
        let inbox = Inbox::new("_INBOX.x".into());
        let (ticket, _answer) = inbox.once().unwrap();
        let address = ticket.address();
        drop(ticket);
        assert!(inbox.lock().is_empty());
        assert_eq!(inbox.deliver(message(&address)), Err(Reason::Stale));
    }

    #[test]
    fn garbage_addresses_are_malformed() {
        let inbox = Inbox::new("_INBOX.x".into());
        for subject in ["", "_INBOX.x", "_INBOX.x.", "_INBOX.x.a", "_INBOX.x.+1", "_INBOX.x.-1", "_INBOX.y.1"] {
            assert_eq!(inbox.deliver(message(subject)), Err(Reason::Malformed), "{subject}");
        }
        let huge = "_INBOX.x.99999999999999999999999";
        assert_eq!(inbox.deliver(message(huge)), Err(Reason::Malformed));
    }

    #[test]
    fn both_bounds_hold() {
        let inbox = Inbox::new("_INBOX.x".into());
        let (ticket, mut pieces) = inbox.stream().unwrap();
        for _ in 0..STREAM_LEN_MAX {
            assert_eq!(inbox.deliver(message(&ticket.address())), Ok(()));
        }
        assert_eq!(inbox.deliver(message(&ticket.address())), Err(Reason::Overflow));
        pieces.try_recv().unwrap();
        assert_eq!(inbox.deliver(message(&ticket.address())), Ok(()));

        let rest: Vec<_> = (1..CALLS_MAX).map(|_| inbox.once().unwrap()).collect();
        assert_eq!(inbox.once().err(), Some(Error::Busy { calls: CALLS_MAX }));
        drop(rest);
        assert!(inbox.once().is_ok());
    }
}
