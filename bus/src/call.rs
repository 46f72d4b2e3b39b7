//! The caller's end: one request, one answer, one deadline for all of it. Never waits longer than the deadline,
//! whatever the other end or the connection does.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::{HeaderMap, Message, StatusCode};
use bytes::Bytes;
use tokio::time::timeout_at;

use crate::client::{Bus, Link};
use crate::envelope::{self, DEADLINE_MAX, Headers, Part};
use crate::transfer::{self, CALL_BYTES_MAX, Outgoing};
use crate::{Error, Reason, Reply};

impl Bus {
    /// Asks whoever serves `subject`. While the connection is down it waits for it, within the deadline. After
    /// `Error::Deadline` the call may have been carried out or not.
    pub async fn call(
        &self,
        subject: String,
        headers: Headers,
        payload: Bytes,
        deadline: Duration,
    ) -> Result<Reply, Error> {
        envelope::check_subject(&subject)?;
        let headers = envelope::to_wire(&headers)?;
        if payload.len() > CALL_BYTES_MAX {
            return Err(Error::TooLarge { subject, bytes: payload.len(), max: CALL_BYTES_MAX });
        }
        let deadline = deadline.min(DEADLINE_MAX);
        let call = Call { link: &self.link, subject: &subject, end: Instant::now() + deadline };
        match timeout_at(call.end.into(), call.run(headers, payload)).await {
            Ok(result) => result,
            Err(_) if !self.link.is_up() => Err(Error::Disconnected),
            Err(_) => Err(Error::Deadline { subject, after: deadline }),
        }
    }
}

struct Call<'a> {
    link: &'a Link,
    subject: &'a str,
    end: Instant,
}

impl Call<'_> {
    async fn run(&self, mut headers: HeaderMap, payload: Bytes) -> Result<Reply, Error> {
        self.link.up().await?;
        envelope::set_deadline(&mut headers, self.end.saturating_duration_since(Instant::now()));
        let answer = if payload.len() <= self.link.message_bytes_max() {
            let (ticket, answer) = self.link.inbox.once()?;
            self.link.send(self.subject.to_owned(), Some(ticket.address()), headers, payload).await?;
            answer.await.map_err(|_| Error::Closed)?
        } else {
            // Rare paths are boxed, here and below, so that a small call is a small future.
            Box::pin(self.send_large(headers, payload)).await?
        };
        self.finish(answer).await
    }

    /// Announces the body, sends it as it is granted, returns the first message that is no grant.
    async fn send_large(&self, mut headers: HeaderMap, payload: Bytes) -> Result<Message, Error> {
        let (ticket, mut messages) = self.link.inbox.stream()?;
        envelope::set_size(&mut headers, payload.len());
        self.link.send(self.subject.to_owned(), Some(ticket.address()), headers, Bytes::new()).await?;
        let mut outgoing = Outgoing::new(payload);
        loop {
            let message = messages.recv().await.ok_or(Error::Closed)?;
            match envelope::part(message.headers.as_ref()) {
                Ok(Part::Grant { until }) => outgoing.granted(self.link, until, &message).await?,
                _ => return Ok(message),
            }
        }
    }

    async fn finish(&self, message: Message) -> Result<Reply, Error> {
        let subject = || self.subject.to_owned();
        if message.status == Some(StatusCode::NO_RESPONDERS) {
            return Err(Error::NoResponders { subject: subject() });
        }
        let malformed = |reason| {
            self.link.drops.count(reason);
            Error::Garbled { subject: subject() }
        };
        let part = envelope::part(message.headers.as_ref()).map_err(malformed)?;
        let headers = envelope::from_wire(message.headers.as_ref()).map_err(malformed)?;
        match part {
            Part::Whole => Ok(Reply { headers, payload: message.payload }),
            Part::Refused(refusal) => Err(Error::Refused { code: refusal.code, message: refusal.message }),
            Part::Announced { size } if size > CALL_BYTES_MAX => {
                self.link.drops.count(Reason::Oversized);
                Err(Error::TooLarge { subject: subject(), bytes: size, max: CALL_BYTES_MAX })
            }
            Part::Announced { size } => {
                let peer = message.reply.as_deref().filter(|peer| envelope::check_subject(peer).is_ok());
                let peer = peer.ok_or_else(|| malformed(Reason::Malformed))?;
                let room = Arc::clone(&self.link.budget.replies).acquire_many_owned(transfer::chunks(size)).await;
                let _room = room.map_err(|_| Error::Closed)?;
                let payload = Box::pin(transfer::receive(self.link, size, peer)).await?;
                Ok(Reply { headers, payload })
            }
            Part::Grant { .. } | Part::Piece { .. } | Part::End { .. } => Err(malformed(Reason::Malformed)),
        }
    }
}
