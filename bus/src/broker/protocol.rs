//! The client protocol of core NATS, as bytes to operations. Pure: no socket, no state; the same bytes in any split
//! give the same operations. Never looks beyond one operation and never allocates.
//!
//! Follows the public description of the protocol, and nats-server where that is silent.

/// The longest line, without its end.
pub(super) const CONTROL_LINE_BYTES_MAX: usize = 4_096;

/// What a client may send. Slices point into what was parsed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op<'a> {
    /// JSON.
    Connect(&'a [u8]),
    Ping,
    Pong,
    /// Nothing to do: `+OK`, `INFO`.
    Ignored,
    Subscribe {
        subject: &'a [u8],
        queue: Option<&'a [u8]>,
        sid: &'a [u8],
    },
    Unsubscribe {
        sid: &'a [u8],
        /// Messages since the subscription began, after which it ends.
        max: Option<u64>,
    },
    Publish(Publish<'a>),
    /// `-ERR`: the other end is no client, or gives up.
    Failed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Publish<'a> {
    pub(super) subject: &'a [u8],
    pub(super) reply: Option<&'a [u8]>,
    /// The whole header block; empty when there is none.
    pub(super) headers: &'a [u8],
    pub(super) payload: &'a [u8],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step<'a> {
    /// Not whole yet: so many bytes at least, counted from the start.
    Need(usize),
    Op {
        op: Op<'a>,
        used: usize,
    },
}

/// What ends a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    UnknownOperation,
    ControlLine,
    Payload,
    Arguments,
}

impl Fault {
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::UnknownOperation => "Unknown Protocol Operation",
            Self::ControlLine => "maximum control line exceeded",
            Self::Payload => "Maximum Payload Violation",
            Self::Arguments => "Parser Error",
        }
    }
}

/// Reads one operation from the start of `bytes`.
pub(super) fn parse(bytes: &[u8], payload_max: usize) -> Result<Step<'_>, Fault> {
    let window = &bytes[..bytes.len().min(CONTROL_LINE_BYTES_MAX + 2)];
    let Some(end) = window.iter().position(|b| *b == b'\n') else {
        let verb: &[u8] = window.split(|b| is_space(*b) || *b == b'\r').next().unwrap_or_default();
        if !VERBS.iter().any(|known| begins(known, verb)) {
            return Err(Fault::UnknownOperation);
        }
        if window.len() > CONTROL_LINE_BYTES_MAX {
            return Err(Fault::ControlLine);
        }
        return Ok(Step::Need(bytes.len() + 1));
    };
    let line = bytes[..end].strip_suffix(b"\r").unwrap_or(&bytes[..end]);
    if line.len() > CONTROL_LINE_BYTES_MAX {
        return Err(Fault::ControlLine);
    }
    let used = end + 1;
    let verb_len = line.iter().position(|b| is_space(*b)).unwrap_or(line.len());
    let (verb, rest) = line.split_at(verb_len);
    let op = match verb.to_ascii_uppercase_array() {
        Some(V_PUB) => return parse_publish(bytes, used, Arguments::of(rest), false, payload_max),
        Some(V_HPUB) => return parse_publish(bytes, used, Arguments::of(rest), true, payload_max),
        Some(V_SUB) => parse_subscribe(&Arguments::of(rest))?,
        Some(V_UNSUB) => parse_unsubscribe(&Arguments::of(rest))?,
        Some(V_PING) => Op::Ping,
        Some(V_PONG) => Op::Pong,
        Some(V_CONNECT) => Op::Connect(rest),
        Some(V_INFO | V_OK) => Op::Ignored,
        Some(V_ERR) => Op::Failed,
        _ => return Err(Fault::UnknownOperation),
    };
    Ok(Step::Op { op, used })
}

/// Whether every client can read this block. A client library that can not read one ends its connection, so one bad
/// sender could keep a whole lattice reconnecting.
pub(super) fn are_headers_sound(block: &[u8]) -> bool {
    let Some(lines) = block.strip_prefix(b"NATS/1.0").and_then(|rest| rest.strip_suffix(b"\r\n")) else { return false };
    let Ok(text) = std::str::from_utf8(lines) else { return false };
    let Some(text) = text.strip_suffix("\r\n") else { return false };
    let mut lines = text.split("\r\n");
    let status = lines.next().unwrap_or_default().trim();
    let code = status.split(' ').next().unwrap_or_default();
    let is_code = code.len() == 3 && code.bytes().all(|b| b.is_ascii_digit()) && !code.starts_with('0');
    if !(code.is_empty() || is_code) || text.matches('\n').count() != text.matches("\r\n").count() {
        return false;
    }
    let mut first = true;
    lines.all(|line| {
        let is_folded = !std::mem::take(&mut first) && line.starts_with([' ', '\t']);
        let name = line.split_once(':').map(|(name, _)| name);
        is_folded || name.is_some_and(|name| !name.is_empty() && name.bytes().all(|b| (b'!'..=b'~').contains(&b)))
    })
}

fn parse_publish<'a>(
    bytes: &'a [u8],
    used: usize,
    arguments: Arguments<'a>,
    with_headers: bool,
    payload_max: usize,
) -> Result<Step<'a>, Fault> {
    let (names, sizes) = match (arguments.all(), with_headers) {
        (all @ ([_, _] | [_, _, _]), false) => all.split_at(all.len() - 1),
        (all @ ([_, _, _] | [_, _, _, _]), true) => all.split_at(all.len() - 2),
        _ => return Err(Fault::Arguments),
    };
    let total = size(sizes[sizes.len() - 1])?;
    let header_len = if with_headers { size(sizes[0])? } else { 0 };
    if header_len > total {
        return Err(Fault::Arguments);
    }
    if total > payload_max {
        return Err(Fault::Payload);
    }
    let whole = used + total + 2;
    if bytes.len() < whole {
        return Ok(Step::Need(whole));
    }
    if &bytes[used + total..whole] != b"\r\n" {
        return Err(Fault::UnknownOperation);
    }
    let (headers, payload) = bytes[used..used + total].split_at(header_len);
    let publish = Publish { subject: names[0], reply: names.get(1).copied(), headers, payload };
    Ok(Step::Op { op: Op::Publish(publish), used: whole })
}

fn parse_subscribe<'a>(arguments: &Arguments<'a>) -> Result<Op<'a>, Fault> {
    match *arguments.all() {
        [subject, sid] => Ok(Op::Subscribe { subject, queue: None, sid }),
        [subject, queue, sid] => Ok(Op::Subscribe { subject, queue: Some(queue), sid }),
        _ => Err(Fault::Arguments),
    }
}

fn parse_unsubscribe<'a>(arguments: &Arguments<'a>) -> Result<Op<'a>, Fault> {
    match *arguments.all() {
        [sid] => Ok(Op::Unsubscribe { sid, max: None }),
        [sid, max] => {
            let max = u64::try_from(size(max)?).map_err(|_| Fault::Arguments)?;
            Ok(Op::Unsubscribe { sid, max: Some(max).filter(|max| *max > 0) })
        }
        _ => Err(Fault::Arguments),
    }
}

/// Words between spaces and tabs. One more than any operation has is kept, so that too many is seen.
struct Arguments<'a> {
    words: [&'a [u8]; 5],
    len: usize,
}

impl<'a> Arguments<'a> {
    fn of(line: &'a [u8]) -> Self {
        let mut this = Self { words: [&[]; 5], len: 0 };
        for word in line.split(|b| is_space(*b)).filter(|word| !word.is_empty()) {
            if this.len == this.words.len() {
                break;
            }
            this.words[this.len] = word;
            this.len += 1;
        }
        this
    }

    fn all(&self) -> &[&'a [u8]] {
        &self.words[..self.len]
    }
}

const VERB_LEN_MAX: usize = 7;
const VERBS: [&[u8]; 10] = [b"PUB", b"HPUB", b"SUB", b"UNSUB", b"PING", b"PONG", b"CONNECT", b"INFO", b"+OK", b"-ERR"];
const V_PUB: [u8; VERB_LEN_MAX] = *b"PUB\0\0\0\0";
const V_HPUB: [u8; VERB_LEN_MAX] = *b"HPUB\0\0\0";
const V_SUB: [u8; VERB_LEN_MAX] = *b"SUB\0\0\0\0";
const V_UNSUB: [u8; VERB_LEN_MAX] = *b"UNSUB\0\0";
const V_PING: [u8; VERB_LEN_MAX] = *b"PING\0\0\0";
const V_PONG: [u8; VERB_LEN_MAX] = *b"PONG\0\0\0";
const V_CONNECT: [u8; VERB_LEN_MAX] = *b"CONNECT";
const V_INFO: [u8; VERB_LEN_MAX] = *b"INFO\0\0\0";
const V_OK: [u8; VERB_LEN_MAX] = *b"+OK\0\0\0\0";
const V_ERR: [u8; VERB_LEN_MAX] = *b"-ERR\0\0\0";

/// A verb in upper case, filled up with zeros.
trait Verb {
    fn to_ascii_uppercase_array(&self) -> Option<[u8; VERB_LEN_MAX]>;
}

impl Verb for [u8] {
    fn to_ascii_uppercase_array(&self) -> Option<[u8; VERB_LEN_MAX]> {
        let mut verb = [0; VERB_LEN_MAX];
        verb.get_mut(..self.len())?.copy_from_slice(self);
        verb.make_ascii_uppercase();
        Some(verb)
    }
}

fn begins(known: &[u8], start: &[u8]) -> bool {
    known.get(..start.len()).is_some_and(|known| known.eq_ignore_ascii_case(start))
}

fn is_space(b: u8) -> bool {
    b == b' ' || b == b'\t'
}

fn size(digits: &[u8]) -> Result<usize, Fault> {
    if digits.is_empty() || digits.len() > 9 {
        return Err(Fault::Arguments);
    }
    let add = |sum: usize, b: &u8| b.is_ascii_digit().then(|| sum * 10 + usize::from(b - b'0'));
    digits.iter().try_fold(0, add).ok_or(Fault::Arguments)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAYLOAD_MAX: usize = 64;

    fn publish<'a>(subject: &'a str, reply: Option<&'a str>, headers: &'a str, payload: &'a str) -> Op<'a> {
        Op::Publish(Publish {
            subject: subject.as_bytes(),
            reply: reply.map(str::as_bytes),
            headers: headers.as_bytes(),
            payload: payload.as_bytes(),
        })
    }

    fn whole() -> Vec<(&'static str, Op<'static>)> {
        let subscribe = |subject: &'static str, queue: Option<&'static str>, sid: &'static str| Op::Subscribe {
            subject: subject.as_bytes(),
            queue: queue.map(str::as_bytes),
            sid: sid.as_bytes(),
        };
        vec![
            ("PING\r\n", Op::Ping),
            ("ping\n", Op::Ping),
            ("PONG\r\n", Op::Pong),
            ("+OK\r\n", Op::Ignored),
            ("INFO {}\r\n", Op::Ignored),
            ("-ERR 'x'\r\n", Op::Failed),
            ("CONNECT {\"a\": 1}\r\n", Op::Connect(b" {\"a\": 1}")),
            ("SUB a.* 1\r\n", subscribe("a.*", None, "1")),
            ("SUB\ta  q \tabc \r\n", subscribe("a", Some("q"), "abc")),
            ("UNSUB 1\r\n", Op::Unsubscribe { sid: b"1", max: None }),
            ("UNSUB 1 5\r\n", Op::Unsubscribe { sid: b"1", max: Some(5) }),
            ("UNSUB 1 0\r\n", Op::Unsubscribe { sid: b"1", max: None }),
            ("PUB a 0\r\n\r\n", publish("a", None, "", "")),
            ("pub a 2\n\r\n\r\n", publish("a", None, "", "\r\n")),
            ("PUB a r 3\r\nxyz\r\n", publish("a", Some("r"), "", "xyz")),
            ("HPUB a 12 13\r\nNATS/1.0\r\n\r\nx\r\n", publish("a", None, "NATS/1.0\r\n\r\n", "x")),
            ("HPUB a r 12 12\r\nNATS/1.0\r\n\r\n\r\n", publish("a", Some("r"), "NATS/1.0\r\n\r\n", "")),
        ]
    }

    #[test]
    fn whole_operations() {
        for (text, expected) in whole() {
            let got = parse(text.as_bytes(), PAYLOAD_MAX);
            assert_eq!(got, Ok(Step::Op { op: expected, used: text.len() }), "{text:?}");
        }
    }

    #[test]
    fn split_at_each_byte_and_followed_by_more() {
        for (text, expected) in whole() {
            for cut in 0..text.len() {
                match parse(&text.as_bytes()[..cut], PAYLOAD_MAX) {
                    Ok(Step::Need(need)) => assert!(need > cut && need <= text.len(), "{text:?} at {cut}: {need}"),
                    other => panic!("{text:?} at {cut}: {other:?}"),
                }
            }
            let followed = format!("{text}PING\r\n");
            let got = parse(followed.as_bytes(), PAYLOAD_MAX);
            assert_eq!(got, Ok(Step::Op { op: expected, used: text.len() }), "{text:?}");
        }
    }

    #[test]
    fn faults() {
        let long = format!("PUB {} 1\r\n", "a".repeat(CONTROL_LINE_BYTES_MAX));
        let endless = format!("SUB {}", "a".repeat(CONTROL_LINE_BYTES_MAX));
        let cases = [
            ("HELLO\r\n", Fault::UnknownOperation),
            ("GET / HTTP/1.1", Fault::UnknownOperation),
            ("\r\n", Fault::UnknownOperation),
            ("\0", Fault::UnknownOperation),
            ("PINGPONG\r\n", Fault::UnknownOperation),
            ("CONNECTED {}\r\n", Fault::UnknownOperation),
            ("MSG a 1 1\r\n", Fault::UnknownOperation),
            ("PUB\r\n", Fault::Arguments),
            ("PUB a\r\n", Fault::Arguments),
            ("PUB a b c 1\r\n", Fault::Arguments),
            ("PUB a -1\r\n", Fault::Arguments),
            ("PUB a +1\r\n", Fault::Arguments),
            ("PUB a x\r\n", Fault::Arguments),
            ("PUB a 9999999999999999999999\r\n", Fault::Arguments),
            ("PUB a 65\r\n", Fault::Payload),
            ("PUB a 1\r\nxyz", Fault::UnknownOperation),
            ("HPUB a 1\r\n", Fault::Arguments),
            ("HPUB a 13 12\r\n", Fault::Arguments),
            ("HPUB a 1 65\r\n", Fault::Payload),
            ("HPUB a b c 1 1\r\n", Fault::Arguments),
            ("SUB\r\n", Fault::Arguments),
            ("SUB a\r\n", Fault::Arguments),
            ("SUB a b c d\r\n", Fault::Arguments),
            ("UNSUB\r\n", Fault::Arguments),
            ("UNSUB 1 x\r\n", Fault::Arguments),
            ("UNSUB 1 2 3\r\n", Fault::Arguments),
            (long.as_str(), Fault::ControlLine),
            (endless.as_str(), Fault::ControlLine),
        ];
        for (text, expected) in cases {
            let shown: String = text.chars().take(40).collect();
            assert_eq!(parse(text.as_bytes(), PAYLOAD_MAX), Err(expected), "{shown:?}");
        }
    }

    #[test]
    fn random_bytes_end_in_a_fault_or_a_wait() {
        let mut state: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut dice = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            usize::try_from(state % 65_536).expect("small")
        };
        let alphabet: &[u8] = b"PUBHSNINGOCET +-OK\r\n\t .*>0123456789{}\0\xff";
        let known = whole();
        for _ in 0..20_000 {
            let mut bytes = Vec::new();
            for _ in 0..dice() % 4 {
                bytes.extend_from_slice(known[dice() % known.len()].0.as_bytes());
            }
            for _ in 0..dice() % 60 {
                bytes.push(alphabet[dice() % alphabet.len()]);
            }
            if !bytes.is_empty() {
                let at = dice() % bytes.len();
                bytes[at] = alphabet[dice() % alphabet.len()];
            }
            let mut at = 0;
            while let Ok(Step::Op { used, .. }) = parse(&bytes[at..], PAYLOAD_MAX) {
                assert!(used > 0 && at + used <= bytes.len());
                at += used;
            }
        }
    }

    #[test]
    fn header_blocks() {
        let sound = [
            "NATS/1.0\r\n\r\n",
            "NATS/1.0 503\r\n\r\n",
            "NATS/1.0 100 Idle Heartbeat\r\n\r\n",
            "NATS/1.0\r\na: b\r\n\r\n",
            "NATS/1.0\r\na:b\r\nc:\r\n d\r\n\r\n",
            "NATS/1.0\r\na: ä\r\n\r\n",
        ];
        for block in sound {
            assert!(are_headers_sound(block.as_bytes()), "{block:?}");
        }
        let unsound: [&[u8]; 14] = [
            b"",
            b"\r\n\r\n",
            b"GARBAGE!\r\n\r\n",
            b"NATS/1.0",
            b"NATS/1.0\r\n",
            b"NATS/1.0 abc\r\n\r\n",
            b"NATS/1.0 50\r\n\r\n",
            b"NATS/1.0\r\nnope\r\n\r\n",
            b"NATS/1.0\r\n: x\r\n\r\n",
            b"NATS/1.0\r\na b: x\r\n\r\n",
            b"NATS/1.0\r\n folded\r\n\r\n",
            b"NATS/1.0\r\na: \xff\r\n\r\n",
            b"NATS/1.0\r\na: b\nc\r\n\r\n",
            b"NATS/1.0\r\na: b",
        ];
        for block in unsound {
            assert!(!are_headers_sound(block), "{:?}", String::from_utf8_lossy(block));
        }
    }
}
