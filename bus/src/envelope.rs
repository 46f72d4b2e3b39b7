//! What a message of a call says in its headers, and nothing else. Pure: bytes in, meaning out. Never trusts a
//! number or a name that arrived.
//!
//! A request has `Bus-Deadline` (milliseconds left). An answer has nothing of ours, or `Bus-Refused` and
//! `Bus-Message`. A body above the message limit is announced by `Bus-Size`, granted piece by piece by `Bus-Grant`
//! and sent in messages with `Bus-Offset`; see `transfer`. One of unknown size ends with `Bus-End`; see `stream`.

use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::{HeaderMap, HeaderName, HeaderValue};

use crate::{Error, Reason, Refusal};

/// Names and values that travel with a call. Names are letters, digits, `-`, `_` and `.`, values have no line break;
/// spaces around a value are lost. Those that begin with `Bus-` are ours.
pub type Headers = BTreeMap<String, String>;

/// All names and values of one message together.
pub const HEADERS_BYTES_MAX: usize = 16 * 1024;
/// What a message's headers may take beyond `HEADERS_BYTES_MAX`: ours, and line ends.
pub(crate) const HEADER_SLACK_BYTES: usize = HEADERS_BYTES_MAX + 4 * 1024;
const HEADERS_LEN_MAX: usize = 64;
const REFUSAL_BYTES_MAX: usize = 2 * 1024;
/// A longer deadline is cut to this.
pub(crate) const DEADLINE_MAX: Duration = Duration::from_secs(3_600);
/// For callers that are not ours and say none.
const DEADLINE_DEFAULT: Duration = Duration::from_secs(30);

const OURS: &str = "bus-";
const DEADLINE: HeaderName = HeaderName::from_static("Bus-Deadline");
const SIZE: HeaderName = HeaderName::from_static("Bus-Size");
const GRANT: HeaderName = HeaderName::from_static("Bus-Grant");
const OFFSET: HeaderName = HeaderName::from_static("Bus-Offset");
const END: HeaderName = HeaderName::from_static("Bus-End");
const REFUSED: HeaderName = HeaderName::from_static("Bus-Refused");
const MESSAGE: HeaderName = HeaderName::from_static("Bus-Message");

/// What a message means in a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Part {
    /// The body is in the payload.
    Whole,
    /// The body has this many bytes and follows; grants go to the reply address.
    Announced {
        size: usize,
    },
    /// The receiver takes the body up to this offset, at the reply address.
    Grant {
        until: usize,
    },
    /// A piece of the body.
    Piece {
        offset: usize,
    },
    /// A stream ended, after this many bytes.
    End {
        size: usize,
    },
    Refused(Refusal),
}

/// What arrived as a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Opening {
    pub(crate) headers: Headers,
    pub(crate) left: Duration,
    /// `None` when the body is in the payload.
    pub(crate) size: Option<usize>,
}

/// Checks and converts. An empty map needs no header block at all.
pub(crate) fn to_wire(headers: &Headers) -> Result<HeaderMap, Error> {
    let mut map = HeaderMap::new();
    let mut bytes = 0;
    for (name, value) in headers {
        let wrong = |problem| Error::Header { name: name.chars().take(80).collect(), problem };
        if name.is_empty() || !name.bytes().all(is_name_byte) {
            return Err(wrong("a name is letters, digits, `-`, `_` and `.`"));
        }
        if name.get(..OURS.len()).is_some_and(|start| start.eq_ignore_ascii_case(OURS)) {
            return Err(wrong("names that begin with `Bus-` are the bus's own: choose another"));
        }
        if value.contains(['\r', '\n', '\0']) {
            return Err(wrong("a value has no line breaks: encode it"));
        }
        bytes += name.len() + value.len() + ": \r\n".len();
        if bytes > HEADERS_BYTES_MAX || map.len() >= HEADERS_LEN_MAX {
            return Err(wrong("too many or too long headers: put it in the payload"));
        }
        let parsed: HeaderName = name.parse().map_err(|_| wrong("not a header name"))?;
        map.insert(parsed, value.as_str());
    }
    Ok(map)
}

pub(crate) fn set_deadline(map: &mut HeaderMap, left: Duration) {
    let ms = u64::try_from(left.min(DEADLINE_MAX).as_millis()).unwrap_or(u64::MAX);
    map.insert(DEADLINE, HeaderValue::from(ms.max(1)));
}

pub(crate) fn set_size(map: &mut HeaderMap, size: usize) {
    map.insert(SIZE, HeaderValue::from(size));
}

pub(crate) fn grant(until: usize) -> HeaderMap {
    let mut map = HeaderMap::new();
    map.insert(GRANT, HeaderValue::from(until));
    map
}

pub(crate) fn piece(offset: usize) -> HeaderMap {
    let mut map = HeaderMap::new();
    map.insert(OFFSET, HeaderValue::from(offset));
    map
}

pub(crate) fn end(size: usize) -> HeaderMap {
    let mut map = HeaderMap::new();
    map.insert(END, HeaderValue::from(size));
    map
}

/// Whatever it holds, it becomes two lines that fit a message.
pub(crate) fn refusal(refusal: &Refusal) -> HeaderMap {
    let mut map = HeaderMap::new();
    map.insert(REFUSED, one_line(&refusal.code));
    map.insert(MESSAGE, one_line(&refusal.message));
    map
}

pub(crate) fn opening(map: Option<&HeaderMap>) -> Result<Opening, Reason> {
    let left = match number(map, DEADLINE)? {
        Some(ms) => Duration::from_millis(u64::try_from(ms).unwrap_or(u64::MAX)).min(DEADLINE_MAX),
        None => DEADLINE_DEFAULT,
    };
    Ok(Opening { headers: from_wire(map)?, left, size: number(map, SIZE)? })
}

pub(crate) fn part(map: Option<&HeaderMap>) -> Result<Part, Reason> {
    let Some(some) = map.filter(|map| !map.is_empty()) else { return Ok(Part::Whole) };
    if let Some(code) = some.get(REFUSED) {
        let message = some.get(MESSAGE).map_or("", |message| message.as_str());
        return Ok(Part::Refused(Refusal { code: one_line(code.as_str()), message: one_line(message) }));
    }
    if let Some(offset) = number(map, OFFSET)? {
        return Ok(Part::Piece { offset });
    }
    if let Some(until) = number(map, GRANT)? {
        return Ok(Part::Grant { until });
    }
    if let Some(size) = number(map, END)? {
        return Ok(Part::End { size });
    }
    Ok(match number(map, SIZE)? {
        Some(size) => Part::Announced { size },
        None => Part::Whole,
    })
}

/// All but ours; the last of several with one name.
pub(crate) fn from_wire(map: Option<&HeaderMap>) -> Result<Headers, Reason> {
    let mut headers = Headers::new();
    let mut bytes = 0;
    for (name, values) in map.into_iter().flat_map(HeaderMap::iter) {
        let name: &str = name.as_ref();
        let Some(value) = values.last().map(|value| value.as_str()) else { continue };
        if name.get(..OURS.len()).is_some_and(|start| start.eq_ignore_ascii_case(OURS)) {
            continue;
        }
        bytes += name.len() + value.len();
        if bytes > HEADERS_BYTES_MAX || headers.len() >= HEADERS_LEN_MAX {
            return Err(Reason::Oversized);
        }
        headers.insert(name.to_owned(), value.to_owned());
    }
    Ok(headers)
}

/// A subject that can be sent to.
pub(crate) fn check_subject(subject: &str) -> Result<(), Error> {
    let token =
        |t: &str| !t.is_empty() && t != "*" && t != ">" && !t.contains(|c: char| c.is_whitespace() || c.is_control());
    if subject.len() <= 1_024 && subject.split('.').all(token) {
        Ok(())
    } else {
        Err(Error::Subject { subject: subject.chars().take(120).collect() })
    }
}

fn number(map: Option<&HeaderMap>, name: HeaderName) -> Result<Option<usize>, Reason> {
    let Some(value) = map.and_then(|map| map.get(name)) else { return Ok(None) };
    let text = value.as_str();
    if text.is_empty() || text.len() > 20 || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(Reason::Malformed);
    }
    text.parse().map(Some).map_err(|_| Reason::Malformed)
}

fn is_name_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')
}

fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len().min(REFUSAL_BYTES_MAX));
    for c in text.chars() {
        if line.len() + c.len_utf8() > REFUSAL_BYTES_MAX {
            break;
        }
        line.push(if c.is_control() { ' ' } else { c });
    }
    line
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "helpers of tests")]
    use super::*;

    type Pairs<'a> = &'a [(&'a str, &'a str)];
    /// What is left, and the size.
    type Read = (Duration, Option<usize>);

    fn headers(pairs: Pairs<'_>) -> Headers {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn map(pairs: Pairs<'_>) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(*name, *value);
        }
        map
    }

    #[test]
    fn headers_survive_the_wire_and_ours_stay_out() {
        let sent = headers(&[("traceparent", "00-4bf9-00f0-01"), ("Lattice-Link", "cache"), ("empty", "")]);
        let mut wire = to_wire(&sent).unwrap();
        set_deadline(&mut wire, Duration::from_millis(1_500));
        let opening = opening(Some(&wire)).unwrap();
        assert_eq!(opening, Opening { headers: sent, left: Duration::from_millis(1_500), size: None });
    }

    #[test]
    fn headers_that_could_break_a_message_are_refused() {
        let long = "x".repeat(HEADERS_BYTES_MAX);
        let cases = [
            ("", "x"),
            ("a b", "x"),
            ("a:b", "x"),
            ("a\r\nb", "x"),
            ("ä", "x"),
            ("a", "x\r\ny"),
            ("a", "x\ny"),
            ("a", "x\0y"),
            ("Bus-Deadline", "1"),
            ("bus-x", "1"),
            ("a", long.as_str()),
        ];
        for (name, value) in cases {
            assert!(to_wire(&headers(&[(name, value)])).is_err(), "{name:?}");
        }
        let many: Headers = (0..=HEADERS_LEN_MAX).map(|n| (format!("h{n}"), String::new())).collect();
        assert!(to_wire(&many).is_err());
        assert_eq!(from_wire(Some(&map(&[("a", &long), ("b", "x")]))), Err(Reason::Oversized));
    }

    #[test]
    fn openings() {
        let ms = |ms| Duration::from_millis(ms);
        let cases: &[(Pairs<'_>, Option<Read>)] = &[
            (&[], Some((DEADLINE_DEFAULT, None))),
            (&[("Bus-Deadline", "250")], Some((ms(250), None))),
            (&[("Bus-Deadline", "18446744073709551615")], Some((DEADLINE_MAX, None))),
            (&[("Bus-Deadline", "18446744073709551616")], None),
            (&[("Bus-Deadline", "-1")], None),
            (&[("Bus-Deadline", "+1")], None),
            (&[("Bus-Deadline", "")], None),
            (&[("Bus-Deadline", "1"), ("Bus-Size", "5")], Some((ms(1), Some(5)))),
            (&[("Bus-Deadline", "1"), ("Bus-Size", "5 ")], None),
            (&[("Bus-Deadline", "1"), ("Bus-Size", "0x5")], None),
        ];
        for (pairs, expected) in cases {
            let got = opening(Some(&map(pairs))).ok().map(|opening| (opening.left, opening.size));
            assert_eq!(got, *expected, "{pairs:?}");
        }
        assert_eq!(opening(None).unwrap().left, DEADLINE_DEFAULT);
    }

    #[test]
    fn parts() {
        let cases: &[(Pairs<'_>, Result<Part, Reason>)] = &[
            (&[], Ok(Part::Whole)),
            (&[("a", "b")], Ok(Part::Whole)),
            (&[("Bus-Size", "7")], Ok(Part::Announced { size: 7 })),
            (&[("Bus-Grant", "7")], Ok(Part::Grant { until: 7 })),
            (&[("Bus-Offset", "7")], Ok(Part::Piece { offset: 7 })),
            (&[("Bus-End", "7")], Ok(Part::End { size: 7 })),
            (&[("Bus-Offset", "seven")], Err(Reason::Malformed)),
            (&[("Bus-Grant", "99999999999999999999999")], Err(Reason::Malformed)),
        ];
        for (pairs, expected) in cases {
            assert_eq!(part(Some(&map(pairs))), *expected, "{pairs:?}");
        }
    }

    #[test]
    fn a_refusal_is_cut_to_two_lines() {
        let sent = Refusal { code: "no\r\nNATS: 1".into(), message: "é".repeat(REFUSAL_BYTES_MAX) };
        let Ok(Part::Refused(got)) = part(Some(&refusal(&sent))) else { panic!("not a refusal") };
        assert_eq!(got.code, "no  NATS: 1");
        assert_eq!(got.message.len(), REFUSAL_BYTES_MAX);
    }

    #[test]
    fn subjects_to_send_to() {
        for good in ["a", "a.b", "lattice.v1.main.host.01J.ask", "a*b.c>"] {
            assert!(check_subject(good).is_ok(), "{good}");
        }
        let long = "a".repeat(2_000);
        for bad in ["", ".", "a.", ".a", "a..b", "a.*", "a.>", "a b", "a\r\nPUB b 0", "a\tb", &long] {
            assert!(check_subject(bad).is_err(), "{bad:?}");
        }
    }
}
