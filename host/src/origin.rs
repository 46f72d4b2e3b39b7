//! What an invocation is caused by: the id of a request and its W3C trace context. An ingress takes them from the client
//! when they are sane and makes them when they are not; from there they go along, into the guest's headers, its log lines,
//! and the calls it makes over links, here and over the bus.
//!
//! Neither is trusted for anything: they only help to find what belongs together.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use std::cell::RefCell;

pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Bytes of a request id.
pub const REQUEST_ID_BYTES_MAX: usize = 128;
/// Bytes of a `traceparent` of version 00.
const TRACEPARENT_BYTES: usize = 55;
/// Where in it the trace's id stands.
const TRACE_ID: std::ops::Range<usize> = 3..35;
/// The values as headers have them. Copying them costs no allocation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Origin {
    pub request_id: Option<HeaderValue>,
    pub traceparent: Option<HeaderValue>,
}

impl Origin {
    /// Of a request from outside: what its client said if that is sane, else made. The headers then say the same.
    pub fn admit(headers: &mut HeaderMap) -> Self {
        let given = only(headers, &REQUEST_ID).filter(|id| is_request_id(id.as_bytes())).cloned();
        let traced = Self::sent(headers).traceparent;
        if let (Some(request_id), Some(traceparent)) = (&given, &traced) {
            return Self { request_id: Some(request_id.clone()), traceparent: Some(traceparent.clone()) };
        }
        // Room for both at once.
        headers.reserve(2);
        let (id, traceparent) = match traced {
            Some(traceparent) => (Bytes::copy_from_slice(&traceparent.as_bytes()[TRACE_ID]), traceparent),
            None => {
                // A state without its parent is another trace's (W3C Trace Context, 3.3.1.1).
                headers.remove(TRACESTATE);
                let made = Trace::fresh().bytes();
                let traceparent = value(made.clone());
                headers.insert(TRACEPARENT, traceparent.clone());
                (made.slice(TRACE_ID), traceparent)
            }
        };
        // The id of the trace is the id of the request: the same bytes.
        let request_id = given.unwrap_or_else(|| {
            let made = value(id);
            headers.insert(REQUEST_ID, made.clone());
            made
        });
        Self { request_id: Some(request_id), traceparent: Some(traceparent) }
    }

    /// The trace context that a client sent, if it is sane.
    pub fn sent(headers: &HeaderMap) -> Self {
        let traced = only(headers, &TRACEPARENT).filter(|t| Trace::parse(t.as_bytes()).is_some()).cloned();
        Self { request_id: None, traceparent: traced }
    }

    /// Of a request that an ingress admitted, or that comes from another host.
    pub fn of(headers: &HeaderMap) -> Self {
        Self { request_id: headers.get(REQUEST_ID).cloned(), traceparent: headers.get(TRACEPARENT).cloned() }
    }

    /// From texts that crossed the bus; what is not sane is left out.
    pub fn from_texts(request_id: Option<&String>, traceparent: Option<&String>) -> Self {
        let value = |text: &String| HeaderValue::from_str(text).ok();
        Self {
            request_id: request_id.filter(|id| is_request_id(id.as_bytes())).and_then(value),
            traceparent: traceparent.filter(|t| Trace::parse(t.as_bytes()).is_some()).and_then(value),
        }
    }

    pub fn is_none(&self) -> bool {
        self.request_id.is_none() && self.traceparent.is_none()
    }

    /// The request's id as text, "" when there is none.
    pub fn request_id(&self) -> &str {
        self.request_id.as_ref().and_then(|id| id.to_str().ok()).unwrap_or_default()
    }

    pub fn trace(&self) -> Option<Trace> {
        Trace::parse(self.traceparent.as_ref()?.as_bytes())
    }
}

/// The only header of this name.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let first = headers.get(name)?;
    (headers.get_all(name).iter().nth(1).is_none()).then_some(first)
}

/// Printable, without what could break a log line or a quoted string.
fn is_request_id(id: &[u8]) -> bool {
    let sane = |b: &u8| b.is_ascii_alphanumeric() || b"-_.~:/+=@,".contains(b);
    !id.is_empty() && id.len() <= REQUEST_ID_BYTES_MAX && id.iter().all(sane)
}

fn value(text: Bytes) -> HeaderValue {
    HeaderValue::from_maybe_shared(text).expect("digits and dashes are a header's value")
}

/// A `traceparent` (W3C Trace Context, 3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trace {
    pub id: [u8; 16],
    /// The span that caused this.
    pub span: [u8; 8],
    /// The caller asked that it be recorded.
    pub sampled: bool,
}

impl Trace {
    /// A new trace, which nobody records.
    pub fn fresh() -> Self {
        Self { id: random(), span: random(), sampled: false }
    }

    pub fn parse(text: &[u8]) -> Option<Self> {
        let version = hex::<1>(text.get(..2)?)?[0];
        let sound = match version {
            0xff => false,
            0 => text.len() == TRACEPARENT_BYTES,
            _ => text.len() == TRACEPARENT_BYTES || text.get(TRACEPARENT_BYTES) == Some(&b'-'),
        };
        if !sound || [text.get(2), text.get(35), text.get(52)] != [Some(&b'-'); 3] {
            return None;
        }
        let (id, span) = (hex::<16>(text.get(3..35)?)?, hex::<8>(text.get(36..52)?)?);
        let flags = hex::<1>(text.get(53..55)?)?[0];
        (id != [0; 16] && span != [0; 8]).then_some(Self { id, span, sampled: flags & 1 == 1 })
    }

    /// As a header has it.
    pub fn value(&self) -> HeaderValue {
        value(self.bytes())
    }

    fn bytes(&self) -> Bytes {
        let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
        put_hex(&mut text[3..35], &self.id);
        put_hex(&mut text[36..52], &self.span);
        text[54] = b'0' + u8::from(self.sampled);
        Bytes::copy_from_slice(&text)
    }

    /// The trace's id as people write it.
    pub fn id_text(&self) -> String {
        let mut text = [0; 32];
        put_hex(&mut text, &self.id);
        String::from_utf8_lossy(&text).into_owned()
    }
}

/// Lower case only, as the recommendation wants it.
fn hex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let digit = |b: u8| match b {
        b'0'..=b'9' => Some(b - b'0'),
        b'a'..=b'f' => Some(b - b'a' + 10),
        _ => None,
    };
    if text.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

fn put_hex(text: &mut [u8], bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (pair, byte) in text.chunks_exact_mut(2).zip(bytes) {
        pair.copy_from_slice(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
    }
}

thread_local! {
    static CHANCE: RefCell<Option<Chance>> = const { RefCell::new(None) };
}

/// Bytes that are not all zero, from this thread's own generator: no lock, no call of the system.
pub fn random<const N: usize>() -> [u8; N] {
    CHANCE.with_borrow_mut(|chance| {
        let chance = chance.get_or_insert_with(Chance::seeded);
        loop {
            let mut bytes = [0; N];
            for piece in bytes.chunks_mut(8) {
                piece.copy_from_slice(&chance.next().to_le_bytes()[..piece.len()]);
            }
            if bytes.iter().any(|b| *b != 0) {
                return bytes;
            }
        }
    })
}

/// xoshiro256++ (Blackman and Vigna, 2019). Its numbers are no secrets.
struct Chance([u64; 4]);

impl Chance {
    fn seeded() -> Self {
        let mut seed = [0; 32];
        // Without randomness of the system ids may repeat, which confuses people and breaks nothing.
        if getrandom::fill(&mut seed).is_err() {
            seed[..8].copy_from_slice(&1u64.to_le_bytes());
        }
        let mut state = [0; 4];
        for (word, bytes) in state.iter_mut().zip(seed.chunks_exact(8)) {
            *word = u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
        }
        Self(state)
    }

    fn next(&mut self) -> u64 {
        let s = &mut self.0;
        let result = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIVEN: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_traceparent_is_read_as_the_recommendation_says() {
        let read = Trace::parse(GIVEN.as_bytes()).unwrap();
        assert!(read.sampled && read.value() == GIVEN && read.id_text() == GIVEN[3..35]);
        let later = "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-02-what-ever";
        assert!(Trace::parse(later.as_bytes()).is_some_and(|t| !t.sampled && t.span == read.span));
        for wrong in [
            "",
            "00",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01.more",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-600f067aa0ba902b7-01",
            "00_4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0g",
        ] {
            assert_eq!(Trace::parse(wrong.as_bytes()), None, "{wrong}");
        }
    }

    fn admitted(given: &[(&'static str, &str)]) -> (Origin, HeaderMap) {
        let mut headers = HeaderMap::new();
        for (name, value) in given {
            headers.append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        let origin = Origin::admit(&mut headers);
        assert_eq!(origin, Origin::of(&headers), "the headers say what is known");
        assert!(origin.trace().is_some() && !origin.request_id().is_empty());
        (origin, headers)
    }

    #[test]
    fn what_a_client_says_is_taken_when_it_is_sane() {
        let (origin, headers) = admitted(&[("x-request-id", "a-1"), ("traceparent", GIVEN), ("tracestate", "v=1")]);
        assert_eq!((origin.request_id(), origin.trace()), ("a-1", Trace::parse(GIVEN.as_bytes())));
        assert_eq!(headers[TRACESTATE], "v=1");
        // One of the two is enough to know the other.
        let (origin, _) = admitted(&[("traceparent", GIVEN)]);
        assert_eq!(origin.request_id(), &GIVEN[3..35]);
        let (origin, headers) = admitted(&[("x-request-id", "a-1"), ("tracestate", "v=1")]);
        assert!(origin.request_id() == "a-1" && !headers.contains_key(TRACESTATE));

        let (first, second) = (admitted(&[]).0, admitted(&[]).0);
        assert_ne!(first, second);
        assert_eq!(first.request_id(), first.trace().unwrap().id_text());
        let long = "a".repeat(REQUEST_ID_BYTES_MAX + 1);
        for wrong in ["", "a b", "a\"b", "é", &long] {
            let (origin, headers) = admitted(&[("x-request-id", wrong)]);
            assert!(origin.request_id() != wrong && headers.get_all(REQUEST_ID).iter().count() == 1, "{wrong}");
        }
        let (origin, headers) = admitted(&[("x-request-id", "a"), ("x-request-id", "b"), ("traceparent", "00-x")]);
        assert!(origin.request_id().len() == 32 && headers.get_all(REQUEST_ID).iter().count() == 1);
    }

    #[test]
    fn what_crossed_the_bus_is_checked_again() {
        let text = |s: &str| s.to_owned();
        let origin = Origin::from_texts(Some(&text("a-1")), Some(&text(GIVEN)));
        assert_eq!((origin.request_id(), origin.traceparent.clone().unwrap().to_str().unwrap()), ("a-1", GIVEN));
        assert!(Origin::from_texts(Some(&text("a\nb")), Some(&text("x"))).is_none());
        assert!(Origin::from_texts(None, None).is_none());
    }

    #[test]
    fn numbers_do_not_repeat() {
        let mut all: Vec<[u8; 16]> = (0..1_000).map(|_| random()).collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 1_000);
    }
}
