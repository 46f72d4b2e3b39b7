//! Why a connection ended: what the client is told, what the actor is told, and the word that counts it. Pure.

use super::events::{Event, Kind};
use crate::call::CallError;
use bytes::Bytes;
use std::time::Duration;
use tokio_tungstenite::tungstenite::Error as WsError;
use tokio_tungstenite::tungstenite::error::{CapacityError, ProtocolError};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

/// Bytes of a reason, after the code (RFC 6455, 5.5).
const REASON_BYTES_MAX: usize = 123;

/// The words that `Ended::why` gives.
pub(in crate::ingress) const WHYS: [&str; 14] = [
    "client",
    "gone",
    "actor",
    "dropped",
    "stopping",
    "no-route",
    "silent",
    "stalled",
    "too-large",
    "bad-text",
    "bad-frame",
    "failed",
    "overloaded",
    "cut",
];

#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    #[error("the client closed")]
    Client(Option<CloseFrame>),
    #[error("the client went away without a close")]
    Gone,
    #[error("the actor closed")]
    Actor(Option<CloseFrame>),
    #[error("the actor dropped the connection")]
    Dropped,
    #[error("this ingress ends: connect again")]
    Stopping,
    #[error("the route of this connection is gone")]
    NoRoute,
    #[error("no sign of life for {} s: answer pings", .0.as_secs())]
    Silent(Duration),
    #[error("the client takes nothing of what it is sent")]
    Stalled,
    #[error("a message of more than {max} bytes: send less at a time")]
    TooLarge { max: usize },
    #[error("a text message that is not UTF-8")]
    BadText,
    #[error("{0}")]
    BadFrame(String),
    #[error("{0}")]
    Failed(String),
    #[error("{0}")]
    Overloaded(String),
}

/// What the client is told at the end.
#[derive(Debug, PartialEq)]
pub(super) enum Farewell {
    /// A close frame, then its answer is awaited.
    Close(Option<CloseFrame>),
    /// The client's own close is answered already.
    Answered,
    /// Nothing: nobody would read it, or nobody shall.
    Nothing,
}

impl Ended {
    pub(super) fn why(&self) -> usize {
        match self {
            Self::Client(_) => 0,
            Self::Gone => 1,
            Self::Actor(_) => 2,
            Self::Dropped => 3,
            Self::Stopping => 4,
            Self::NoRoute => 5,
            Self::Silent(_) => 6,
            Self::Stalled => 7,
            Self::TooLarge { .. } => 8,
            Self::BadText => 9,
            Self::BadFrame(_) => 10,
            Self::Failed(_) => 11,
            Self::Overloaded(_) => 12,
        }
    }

    /// What a failed read or write means.
    pub(super) fn of(error: WsError) -> Self {
        match error {
            WsError::Capacity(CapacityError::MessageTooLong { max_size, .. }) => Self::TooLarge { max: max_size },
            WsError::Utf8(_) => Self::BadText,
            WsError::Protocol(ProtocolError::ResetWithoutClosingHandshake) => Self::Gone,
            WsError::Protocol(error) => Self::BadFrame(error.to_string()),
            WsError::Io(error) if error.kind() == std::io::ErrorKind::TimedOut => Self::Stalled,
            _ => Self::Gone,
        }
    }

    /// What a request means that the actor did not answer.
    pub(super) fn of_call(error: CallError) -> Self {
        match error {
            CallError::Overloaded(text) | CallError::Unavailable(text) => Self::Overloaded(text),
            error => Self::Failed(error.to_string()),
        }
    }

    pub(super) fn farewell(&self) -> Farewell {
        let code = match self {
            Self::Client(_) => return Farewell::Answered,
            Self::Actor(frame) => return Farewell::Close(frame.clone()),
            Self::Gone | Self::Dropped | Self::Stalled => return Farewell::Nothing,
            Self::Stopping | Self::NoRoute => CloseCode::Away,
            Self::Silent(_) => CloseCode::Policy,
            Self::TooLarge { .. } => CloseCode::Size,
            Self::BadText => CloseCode::Invalid,
            Self::BadFrame(_) => CloseCode::Protocol,
            Self::Failed(_) => CloseCode::Error,
            Self::Overloaded(_) => CloseCode::Again,
        };
        Farewell::Close(Some(CloseFrame { code, reason: shortened(&self.to_string()).into() }))
    }

    /// The last event for the actor; none when it ended the connection itself.
    pub(super) fn event(&self) -> Option<Event> {
        match self {
            Self::Client(None) => Some(Event::bare(Kind::Close)),
            Self::Client(Some(frame)) => {
                let mut content = u16::from(frame.code).to_be_bytes().to_vec();
                content.extend_from_slice(frame.reason.as_bytes());
                Some(Event { kind: Kind::Close, content: content.into() })
            }
            Self::Actor(_) | Self::Dropped => None,
            _ => Some(Event::bare(Kind::Disconnect)),
        }
    }

    /// Whether what the client said last still goes to the actor.
    pub(super) fn keeps_waiting(&self) -> bool {
        !matches!(self, Self::Actor(_) | Self::Dropped | Self::Failed(_) | Self::Overloaded(_) | Self::NoRoute)
    }
}

/// The close that an actor asks for.
pub(super) fn close_of(content: &Bytes) -> Result<Option<CloseFrame>, String> {
    let (code, reason) = match content.as_ref() {
        [] => return Ok(None),
        [high, low, reason @ ..] => (u16::from_be_bytes([*high, *low]), reason),
        [_] => return Err("answered with a CLOSE event of one byte: its content is a code of two, or nothing".into()),
    };
    let known = CloseCode::from(code);
    if !known.is_allowed() {
        return Err(format!("answered with the close code {code}, which is not one to be sent"));
    }
    let reason = std::str::from_utf8(reason).map_err(|_| "answered with a CLOSE event whose reason is not UTF-8")?;
    Ok(Some(CloseFrame { code: known, reason: shortened(reason).into() }))
}

/// As much of a text as a close frame has room for, in one line.
fn shortened(text: &str) -> String {
    let mut line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let end = (0..=REASON_BYTES_MAX.min(line.len())).rev().find(|at| line.is_char_boundary(*at)).unwrap_or(0);
    line.truncate(end);
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_end_has_its_code_its_reason_and_its_word() {
        let text = || "x\ny".to_owned();
        for (ended, code, event) in [
            (Ended::Stopping, 1001, Some(Kind::Disconnect)),
            (Ended::NoRoute, 1001, Some(Kind::Disconnect)),
            (Ended::Silent(Duration::from_secs(60)), 1008, Some(Kind::Disconnect)),
            (Ended::TooLarge { max: 7 }, 1009, Some(Kind::Disconnect)),
            (Ended::BadText, 1007, Some(Kind::Disconnect)),
            (Ended::BadFrame(text()), 1002, Some(Kind::Disconnect)),
            (Ended::Failed(text()), 1011, Some(Kind::Disconnect)),
            (Ended::Overloaded(text()), 1013, Some(Kind::Disconnect)),
        ] {
            let Farewell::Close(Some(frame)) = ended.farewell() else { panic!("{ended:?} says nothing") };
            assert_eq!((u16::from(frame.code), ended.event().map(|e| e.kind)), (code, event), "{ended:?}");
            assert!(!frame.reason.is_empty() && !frame.reason.contains('\n'), "{ended:?}");
            assert!(WHYS.get(ended.why()).is_some());
        }
        for (ended, farewell, event) in [
            (Ended::Client(None), Farewell::Answered, Some(Kind::Close)),
            (Ended::Gone, Farewell::Nothing, Some(Kind::Disconnect)),
            (Ended::Stalled, Farewell::Nothing, Some(Kind::Disconnect)),
            (Ended::Actor(None), Farewell::Close(None), None),
            (Ended::Dropped, Farewell::Nothing, None),
        ] {
            assert_eq!((ended.farewell(), ended.event().map(|e| e.kind)), (farewell, event), "{ended:?}");
        }
        let frame = CloseFrame { code: CloseCode::from(4001), reason: "bye".into() };
        assert_eq!(Ended::Client(Some(frame)).event().map(|e| e.content), Some(Bytes::from_static(b"\x0f\xa1bye")));
    }

    #[test]
    fn an_actors_close_is_checked() {
        let read = |content: &'static [u8]| close_of(&Bytes::from_static(content));
        assert_eq!(read(b""), Ok(None));
        let frame = CloseFrame { code: CloseCode::Normal, reason: "bye".into() };
        assert_eq!(read(b"\x03\xe8bye"), Ok(Some(frame)));
        for wrong in [b"\x03".as_slice(), b"\x00\x00", b"\x03\xed", b"\x03\xee", b"\xff\xff", b"\x03\xe8\xff"] {
            assert!(read(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_reason_fits_and_breaks_no_letter() {
        let long = "é".repeat(100);
        assert_eq!(shortened(&long), "é".repeat(61));
        assert_eq!(shortened("a\r\nb"), "a  b");
        assert_eq!(shortened(""), "");
    }
}
