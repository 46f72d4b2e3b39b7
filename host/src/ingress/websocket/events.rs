//! Events of WebSocket-over-HTTP as bytes, both ways. Pure. One event is its name, a space, the bytes of its content in
//! hexadecimal, a line's end, the content and another line's end; without content the name alone is enough:
//!
//! ```text
//! OPEN\r\n
//! TEXT 5\r\n
//! hello\r\n
//! ```
//!
//! Never trusts a size before the bytes are there; never takes more events than it was told to.

use bytes::{BufMut as _, Bytes, BytesMut};

/// The media type of a body that holds events.
pub(in crate::ingress) const MEDIA_TYPE: &str = "application/websocket-events";

/// Bytes that an event may take besides its content.
pub(super) const FRAMING_BYTES_MAX: usize = 32;

/// Digits of a size: 4 GiB less one byte, more than any body here has.
const SIZE_DIGITS_MAX: usize = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Open,
    Text,
    Binary,
    Ping,
    Pong,
    /// Its content is a code of two bytes, the higher one first, and what there is of a reason; or nothing.
    Close,
    /// The connection is gone without a close.
    Disconnect,
}

impl Kind {
    const ALL: [Self; 7] =
        [Self::Open, Self::Text, Self::Binary, Self::Ping, Self::Pong, Self::Close, Self::Disconnect];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Open => "OPEN",
            Self::Text => "TEXT",
            Self::Binary => "BINARY",
            Self::Ping => "PING",
            Self::Pong => "PONG",
            Self::Close => "CLOSE",
            Self::Disconnect => "DISCONNECT",
        }
    }

    fn named(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name().as_bytes() == name)
    }

    fn has_content(self) -> bool {
        matches!(self, Self::Text | Self::Binary | Self::Close)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) kind: Kind,
    pub(super) content: Bytes,
}

impl Event {
    /// One without content.
    pub(super) fn bare(kind: Kind) -> Self {
        Self { kind, content: Bytes::new() }
    }

    /// At most so many bytes when it is encoded.
    pub(super) fn bytes_max(&self) -> usize {
        self.content.len() + FRAMING_BYTES_MAX
    }
}

/// Why a body is no list of events. `at` is the byte where the event begins.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    #[error("the event at byte {at} has no name that is known: OPEN, TEXT, BINARY, PING, PONG, CLOSE or DISCONNECT")]
    Name { at: usize },
    #[error("the event at byte {at} has no size: NAME, a space, the bytes of its content in hexadecimal, CR LF")]
    Size { at: usize },
    #[error("the event at byte {at} is cut off: {missing} bytes are missing")]
    Cut { at: usize, missing: usize },
    #[error("the content of the event at byte {at} does not end with CR LF where its size says")]
    End { at: usize },
    #[error("more than {max} events in one answer")]
    TooMany { max: usize },
}

pub(super) fn encode<'a>(events: impl IntoIterator<Item = &'a Event>) -> Bytes {
    let mut body = BytesMut::new();
    for Event { kind, content } in events {
        body.reserve(content.len() + FRAMING_BYTES_MAX);
        body.put_slice(kind.name().as_bytes());
        if !content.is_empty() || matches!(kind, Kind::Text | Kind::Binary) {
            body.put_slice(format!(" {:x}\r\n", content.len()).as_bytes());
            body.put_slice(content);
        }
        body.put_slice(b"\r\n");
    }
    body.freeze()
}

/// All events of a body, or why it is none. Content where there should be none is dropped, as the protocol wants it.
pub(super) fn decode(body: &Bytes, events_max: usize) -> Result<Vec<Event>, Malformed> {
    let mut events = Vec::new();
    let mut at = 0;
    while at < body.len() {
        if events.len() == events_max {
            return Err(Malformed::TooMany { max: events_max });
        }
        let (event, end) = decode_one(body, at)?;
        events.push(event);
        at = end;
    }
    Ok(events)
}

/// The event that begins at `at`, and where it ends.
fn decode_one(body: &Bytes, at: usize) -> Result<(Event, usize), Malformed> {
    // Nothing longer can be the first line of an event.
    let line_max = body.len().min(at + FRAMING_BYTES_MAX);
    let line = &body[at..line_max];
    let Some(line_end) = line.windows(2).position(|two| two == b"\r\n") else {
        let name = line.split(|b| *b == b' ').next().unwrap_or_default();
        let began = Kind::ALL.iter().any(|kind| kind.name().as_bytes().starts_with(name));
        return Err(match began && line_max == body.len() {
            true => Malformed::Cut { at, missing: 2 },
            false => Malformed::Name { at },
        });
    };
    let (name, size) = match line[..line_end].iter().position(|b| *b == b' ') {
        Some(space) => (&line[..space], Some(&line[space + 1..line_end])),
        None => (&line[..line_end], None),
    };
    let kind = Kind::named(name).ok_or(Malformed::Name { at })?;
    let begin = at + line_end + 2;
    let Some(size) = size else {
        return Ok((Event::bare(kind), begin));
    };
    let size = hexadecimal(size).ok_or(Malformed::Size { at })?;
    let there = body.len() - begin;
    if there < size + 2 {
        return Err(Malformed::Cut { at, missing: size + 2 - there });
    }
    let end = begin + size;
    if body[end..end + 2] != *b"\r\n" {
        return Err(Malformed::End { at });
    }
    let content = if kind.has_content() { body.slice(begin..end) } else { Bytes::new() };
    Ok((Event { kind, content }, end + 2))
}

fn hexadecimal(digits: &[u8]) -> Option<usize> {
    // Not `from_str_radix` alone: that takes a sign.
    if digits.is_empty() || digits.len() > SIZE_DIGITS_MAX || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    usize::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "helpers of tests")]
    use super::*;

    fn event(kind: Kind, content: &'static str) -> Event {
        Event { kind, content: content.into() }
    }

    fn read(body: &[u8]) -> Result<Vec<Event>, Malformed> {
        decode(&Bytes::copy_from_slice(body), 8)
    }

    #[test]
    fn events_are_written_as_the_protocol_says() {
        let events = [
            event(Kind::Open, ""),
            event(Kind::Text, "hello world"),
            event(Kind::Text, ""),
            event(Kind::Binary, "a\r\nb"),
            event(Kind::Close, "\x03\x68"),
            event(Kind::Close, ""),
            event(Kind::Disconnect, ""),
        ];
        let body = encode(&events);
        let expected = b"OPEN\r\nTEXT b\r\nhello world\r\nTEXT 0\r\n\r\nBINARY 4\r\na\r\nb\r\nCLOSE 2\r\n\x03\x68\r\n\
                         CLOSE\r\nDISCONNECT\r\n";
        assert_eq!(body, expected.as_slice());
        assert_eq!(read(&body), Ok(events.to_vec()));
        assert!(events.iter().all(|e| encode([e]).len() <= e.bytes_max()));
        let large = Event { kind: Kind::Disconnect, content: vec![0; 1 << 20].into() };
        assert!(encode([&large]).len() <= large.bytes_max());
    }

    #[test]
    fn what_may_be_written_otherwise_is_read() {
        for (body, expected) in [
            ("", vec![]),
            ("OPEN 0\r\n\r\n", vec![event(Kind::Open, "")]),
            ("PING 3\r\nabc\r\nPONG\r\n", vec![event(Kind::Ping, ""), event(Kind::Pong, "")]),
            ("TEXT\r\n", vec![event(Kind::Text, "")]),
            ("TEXT 0000000B\r\nhello world\r\n", vec![event(Kind::Text, "hello world")]),
            ("TEXT b\r\nhello world\r\n", vec![event(Kind::Text, "hello world")]),
        ] {
            assert_eq!(read(body.as_bytes()), Ok(expected), "{body:?}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let many = "PING\r\n".repeat(9);
        for (body, expected) in [
            ("Hello from lattice!\n", Malformed::Name { at: 0 }),
            ("open\r\n", Malformed::Name { at: 0 }),
            ("\r\n", Malformed::Name { at: 0 }),
            ("OPENED\r\n", Malformed::Name { at: 0 }),
            ("OPEN\n", Malformed::Name { at: 0 }),
            ("OPEN\r\nTEXT 1\r\na\r\n TEXT 1\r\nb\r\n", Malformed::Name { at: 17 }),
            ("TEXT 123456789\r\n", Malformed::Size { at: 0 }),
            ("TEXT \r\n\r\n", Malformed::Size { at: 0 }),
            ("TEXT +1\r\na\r\n", Malformed::Size { at: 0 }),
            ("TEXT -1\r\na\r\n", Malformed::Size { at: 0 }),
            ("TEXT 1 \r\na\r\n", Malformed::Size { at: 0 }),
            ("TEXT 0x1\r\na\r\n", Malformed::Size { at: 0 }),
            ("TEXT 1;a=b\r\na\r\n", Malformed::Size { at: 0 }),
            ("OPE", Malformed::Cut { at: 0, missing: 2 }),
            ("OPEN", Malformed::Cut { at: 0, missing: 2 }),
            ("TEXT 5\r", Malformed::Cut { at: 0, missing: 2 }),
            ("TEXT 5\r\nhel", Malformed::Cut { at: 0, missing: 4 }),
            ("TEXT 5\r\nhello", Malformed::Cut { at: 0, missing: 2 }),
            ("TEXT 5\r\nhello\r", Malformed::Cut { at: 0, missing: 1 }),
            ("TEXT ffffffff\r\n", Malformed::Cut { at: 0, missing: 0xffff_ffff + 2 }),
            ("TEXT 4\r\nhello\r\n", Malformed::End { at: 0 }),
            ("TEXT 5\r\nhello\n\n", Malformed::End { at: 0 }),
            (many.as_str(), Malformed::TooMany { max: 8 }),
        ] {
            assert_eq!(read(body.as_bytes()), Err(expected), "{body:?}");
        }
    }

    /// Every cut of a good body is told, and every changed byte of it is either told or changes what is read.
    #[test]
    fn no_damage_goes_unseen_or_panics() {
        let events = [event(Kind::Text, "hello"), event(Kind::Binary, "\r\nTEXT 1\r\n"), event(Kind::Pong, "")];
        let body = encode(&events);
        for end in 0..body.len() {
            let read = read(&body[..end]);
            let whole = [0, 15, 37].contains(&end);
            assert_eq!(read.is_ok(), whole, "cut at {end}: {read:?}");
        }
        for at in 0..body.len() {
            for byte in 0..=255 {
                let mut damaged = body.to_vec();
                damaged[at] = byte;
                let same = read(&damaged) == Ok(events.to_vec());
                // A size may have its letters in either case.
                assert!(!same || body[at].eq_ignore_ascii_case(&byte), "{at}: {byte}");
            }
        }
    }
}
