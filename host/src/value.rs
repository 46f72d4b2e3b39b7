//! The binary encoding of component-model values that calls carry between an actor and its provider. It is directed
//! by type: both sides know the function's signature, so nothing on the wire names a type. Pure.
//!
//! | type | bytes |
//! |---|---|
//! | bool, u8, s8 | 1 |
//! | u16 … u64, s16 … s64 | little-endian, fixed |
//! | f32, f64 | their bits, little-endian |
//! | char | u32, a Unicode scalar value |
//! | string, list, map | u32 length, then the bytes or items (a map item is its key, then its value) |
//! | record, tuple, fixed-length list | the fields in order |
//! | variant, enum, option, result | u32 case (none 0, some 1; ok 0, err 1), then the payload |
//! | flags | u32 words, the first flag is bit 0 |
//!
//! It never panics on bytes from elsewhere, and never allocates more than a fixed multiple of what arrived.

mod dynamic;

pub use dynamic::{decode_vals, encode_vals};

use crate::call::CallError;
use bytes::{Buf, Bytes};

/// Bytes of one encoded list of values.
pub const ENCODED_BYTES_MAX: usize = 16 * 1024 * 1024;

fn invalid(what: impl Into<String>) -> CallError {
    CallError::Invalid(what.into())
}

/// Appends typed values. What it wrote is taken with `finish`.
#[derive(Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    pub fn new() -> Self {
        Self::default()
    }
    pub fn with_capacity(bytes: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes) }
    }
    /// The encoded bytes.
    pub fn finish(self) -> Bytes {
        Bytes::from(self.bytes)
    }
    pub fn len(&self) -> usize {
        self.bytes.len()
    }
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
    pub fn put_bool(&mut self, v: bool) -> &mut Self {
        self.put_u8(u8::from(v))
    }
    pub fn put_u8(&mut self, v: u8) -> &mut Self {
        self.bytes.push(v);
        self
    }
    pub fn put_u16(&mut self, v: u16) -> &mut Self {
        self.put_raw(&v.to_le_bytes())
    }
    pub fn put_u32(&mut self, v: u32) -> &mut Self {
        self.put_raw(&v.to_le_bytes())
    }
    pub fn put_u64(&mut self, v: u64) -> &mut Self {
        self.put_raw(&v.to_le_bytes())
    }
    pub fn put_i64(&mut self, v: i64) -> &mut Self {
        self.put_raw(&v.to_le_bytes())
    }
    /// The u32 length in front of strings and lists. Nothing we send comes near 4 GiB: what does is cut by the bus's
    /// bounds long before, so saturating only keeps a wrong length from looking right.
    pub fn put_len(&mut self, len: usize) -> &mut Self {
        self.put_u32(u32::try_from(len).unwrap_or(u32::MAX))
    }
    pub fn put_str(&mut self, v: &str) -> &mut Self {
        self.put_len(v.len()).put_raw(v.as_bytes())
    }
    /// A `list<u8>`.
    pub fn put_bytes(&mut self, v: &[u8]) -> &mut Self {
        self.put_len(v.len()).put_raw(v)
    }
    /// The case of a variant or an enum; its payload follows.
    pub fn put_case(&mut self, case: u32) -> &mut Self {
        self.put_u32(case)
    }
    pub fn put_option<T>(&mut self, v: Option<T>, put: impl FnOnce(&mut Self, T)) -> &mut Self {
        match v {
            None => self.put_case(0),
            Some(v) => {
                self.put_case(1);
                put(self, v);
                self
            }
        }
    }
    pub fn put_result<T, E>(
        &mut self,
        v: Result<T, E>,
        ok: impl FnOnce(&mut Self, T),
        err: impl FnOnce(&mut Self, E),
    ) -> &mut Self {
        match v {
            Ok(v) => {
                self.put_case(0);
                ok(self, v);
            }
            Err(e) => {
                self.put_case(1);
                err(self, e);
            }
        }
        self
    }
    pub fn put_list<T>(&mut self, items: &[T], mut put: impl FnMut(&mut Self, &T)) -> &mut Self {
        self.put_len(items.len());
        for item in items {
            put(self, item);
        }
        self
    }
    /// Bytes as they are, without a length.
    pub fn put_raw(&mut self, v: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(v);
        self
    }
}

/// Takes typed values from the front of what arrived. Every error is `CallError::Invalid`.
#[derive(Debug)]
pub struct Reader {
    bytes: Bytes,
}

impl Reader {
    pub fn new(bytes: Bytes) -> Self {
        Self { bytes }
    }
    pub fn remaining(&self) -> usize {
        self.bytes.len()
    }
    /// That nothing is left over.
    pub fn finish(self) -> Result<(), CallError> {
        match self.bytes.len() {
            0 => Ok(()),
            n => Err(invalid(format!("{n} bytes are left after the last value: the two sides differ in their types"))),
        }
    }
    fn need(&self, n: usize) -> Result<(), CallError> {
        if self.bytes.len() < n {
            return Err(invalid(format!("a value of {n} bytes was expected, {} are left", self.bytes.len())));
        }
        Ok(())
    }
    pub fn bool(&mut self) -> Result<bool, CallError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            n => Err(invalid(format!("{n} is not a bool: 0 or 1 was expected"))),
        }
    }
    pub fn u8(&mut self) -> Result<u8, CallError> {
        self.need(1)?;
        Ok(self.bytes.get_u8())
    }
    pub fn u16(&mut self) -> Result<u16, CallError> {
        self.need(2)?;
        Ok(self.bytes.get_u16_le())
    }
    pub fn u32(&mut self) -> Result<u32, CallError> {
        self.need(4)?;
        Ok(self.bytes.get_u32_le())
    }
    pub fn u64(&mut self) -> Result<u64, CallError> {
        self.need(8)?;
        Ok(self.bytes.get_u64_le())
    }
    pub fn i64(&mut self) -> Result<i64, CallError> {
        self.need(8)?;
        Ok(self.bytes.get_i64_le())
    }
    /// A length that can be true: each of the items still to come takes at least `item_bytes_min` bytes.
    pub fn len(&mut self, item_bytes_min: usize) -> Result<usize, CallError> {
        let len = usize::try_from(self.u32()?).map_err(|_| invalid("a length that this machine can not address"))?;
        if len.saturating_mul(item_bytes_min.max(1)) > self.bytes.len() {
            return Err(invalid(format!("a length of {len} is more than the {} bytes left", self.bytes.len())));
        }
        Ok(len)
    }
    pub fn string(&mut self) -> Result<String, CallError> {
        let bytes = self.bytes()?;
        match std::str::from_utf8(&bytes) {
            Ok(s) => Ok(s.to_owned()),
            Err(e) => Err(invalid(format!("a string is not UTF-8 at byte {}", e.valid_up_to()))),
        }
    }
    /// A `list<u8>`, without copying.
    pub fn bytes(&mut self) -> Result<Bytes, CallError> {
        let len = self.len(1)?;
        Ok(self.bytes.split_to(len))
    }
    /// The case of a variant or an enum that has `cases` of them.
    pub fn case(&mut self, cases: u32) -> Result<u32, CallError> {
        let case = self.u32()?;
        if case >= cases {
            return Err(invalid(format!("case {case} of a type that has {cases} cases")));
        }
        Ok(case)
    }
    pub fn option<T>(&mut self, get: impl FnOnce(&mut Self) -> Result<T, CallError>) -> Result<Option<T>, CallError> {
        Ok(match self.case(2)? {
            0 => None,
            _ => Some(get(self)?),
        })
    }
    pub fn result<T, E>(
        &mut self,
        ok: impl FnOnce(&mut Self) -> Result<T, CallError>,
        err: impl FnOnce(&mut Self) -> Result<E, CallError>,
    ) -> Result<Result<T, E>, CallError> {
        Ok(match self.case(2)? {
            0 => Ok(ok(self)?),
            _ => Err(err(self)?),
        })
    }
    pub fn list<T>(&mut self, mut get: impl FnMut(&mut Self) -> Result<T, CallError>) -> Result<Vec<T>, CallError> {
        let len = self.len(1)?;
        // Grown as items arrive: a false length costs nothing.
        let mut items = Vec::with_capacity(len.min(1024));
        for _ in 0..len {
            items.push(get(self)?);
        }
        Ok(items)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut w = Writer::new();
        w.put_str("k").put_bytes(&[1, 2, 3]).put_option(Some(7u32), |w, v| {
            w.put_u32(v);
        });
        w.put_result(
            Err::<(), _>("no"),
            |_, ()| (),
            |w, e| {
                w.put_str(e);
            },
        );
        w.put_list(&[1i64, -1], |w, v| {
            w.put_i64(*v);
        });
        let mut r = Reader::new(w.finish());
        assert_eq!(r.string().unwrap(), "k");
        assert_eq!(r.bytes().unwrap().as_ref(), &[1, 2, 3]);
        assert_eq!(r.option(Reader::u32).unwrap(), Some(7));
        assert_eq!(r.result(|_| Ok(()), Reader::string).unwrap(), Err("no".to_owned()));
        assert_eq!(r.list(Reader::i64).unwrap(), vec![1, -1]);
        r.finish().unwrap();
    }

    #[test]
    fn false_lengths_and_cases_are_refused() {
        let with = |bytes: &[u8]| Reader::new(Bytes::copy_from_slice(bytes));
        assert!(with(&[255, 255, 255, 255, 1]).bytes().is_err());
        assert!(with(&[2, 0, 0, 0]).option(Reader::u8).is_err());
        assert!(with(&[1, 0, 0, 0, 0xff]).string().is_err());
        assert!(with(&[2]).bool().is_err());
        assert!(with(&[1, 2]).u32().is_err());
        assert!(with(&[1]).finish().is_err());
    }
}
