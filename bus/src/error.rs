//! What can go wrong on the bus, in words that name the thing and the next step.

use std::time::Duration;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("nobody answers on {subject}: start what serves it, or retry once it has connected")]
    NoResponders { subject: String },
    /// The call may have been carried out or not.
    #[error("no answer on {subject} within {after:?}: look at the load of what serves it, or allow more time")]
    Deadline { subject: String, after: Duration },
    #[error("not connected to the bus: see that a NATS server runs at the configured address; it is tried again")]
    Disconnected,
    #[error("{bytes} bytes for {subject} are more than the limit of {max}: send less at a time")]
    TooLarge { subject: String, bytes: usize, max: usize },
    /// The other end answered, and said no.
    #[error("{message} ({code})")]
    Refused { code: String, message: String },
    #[error("{calls} calls wait for an answer, which is the bound: retry when some have ended")]
    Busy { calls: usize },
    #[error("{max} streams cross the bus from or to here, which is the bound: retry when some have ended")]
    Streams { max: usize },
    #[error("the answer on {subject} makes no sense: see that both ends run the same version")]
    Garbled { subject: String },
    #[error("{subject:?} is not a subject: use tokens of visible characters joined by dots, with no wildcard to send")]
    Subject { subject: String },
    #[error("header {name:?}: {problem}")]
    Header { name: String, problem: &'static str },
    /// The message is whole: it names the file or option, and what to do.
    #[error("{0}")]
    Config(String),
    #[error("this connection to the bus was closed: connect again")]
    Closed,
}

impl Error {
    /// Whether the same call may succeed a little later without anyone changing anything. It does not say that the
    /// call was not carried out: after `Deadline` that is unknown.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::NoResponders { .. }
            | Self::Deadline { .. }
            | Self::Disconnected
            | Self::Busy { .. }
            | Self::Streams { .. } => true,
            Self::Refused { code, .. } => code == crate::serve::OVERLOADED,
            Self::TooLarge { .. }
            | Self::Garbled { .. }
            | Self::Subject { .. }
            | Self::Header { .. }
            | Self::Config(_)
            | Self::Closed => false,
        }
    }
}
