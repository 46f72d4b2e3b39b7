//! Join tokens: what a new scheduler has to show, and by what it knows that it reached the right lattice. Pure.

use sha2::{Digest, Sha256};
use std::fmt;
use std::str::FromStr;

/// Begins every token, and says how the rest is to be read.
const KIND: &str = "lj1";
const FINGERPRINT_BYTES: usize = 32;
pub(crate) const SECRET_BYTES: usize = 16;

/// `lj1-<fingerprint of the authority>-<secret>`, both in hex.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// SHA-256 of the authority's certificate.
    pub(crate) fingerprint: [u8; FINGERPRINT_BYTES],
    pub(crate) secret: [u8; SECRET_BYTES],
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}; copy the whole line that `lattice schedulers token` printed")]
pub struct Invalid(String);

impl FromStr for Token {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let wrong = |what: &str| Invalid(format!("not a join token: {what}"));
        let parts: Vec<&str> = text.trim().split('-').collect();
        let [kind, fingerprint, secret] = parts.as_slice() else {
            return Err(wrong("it has three parts with - between them"));
        };
        if *kind != KIND {
            return Err(wrong(&format!("it begins with {KIND}-")));
        }
        let fingerprint = from_hex(fingerprint).ok_or_else(|| wrong("its second part is 64 hex digits"))?;
        let secret = from_hex(secret).ok_or_else(|| wrong("its third part is 32 hex digits"))?;
        Ok(Self { fingerprint, secret })
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{KIND}-{}-{}", hex(&self.fingerprint), hex(&self.secret))
    }
}

/// A secret does not belong into a log.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{KIND}-{}-…", hex(&self.fingerprint))
    }
}

/// What the log keeps of a secret.
pub(crate) fn hash(secret: &[u8]) -> String {
    hex(&Sha256::digest(secret))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != 2 * N || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let mut out = [0; N];
    for (byte, digits) in out.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_as_it_was_printed() {
        let token = Token { fingerprint: [0xab; 32], secret: [0x01; 16] };
        let text = token.to_string();
        assert_eq!(text.len(), 3 + 1 + 64 + 1 + 32);
        assert_eq!(format!(" {text}\n").parse(), Ok(token.clone()));
        assert!(!format!("{token:?}").contains("0101"), "{token:?}");
    }

    #[test]
    fn what_is_no_token_is_told_what_one_is() {
        let good = Token { fingerprint: [0xab; 32], secret: [0x01; 16] }.to_string();
        for (text, says) in [
            (String::new(), "three parts"),
            ("token".into(), "three parts"),
            (good.replace("lj1", "lj2"), "begins with lj1-"),
            (good[..good.len() - 1].to_owned(), "32 hex digits"),
            (good.replace("abab", "abxy"), "64 hex digits"),
            (format!("{good}-00"), "three parts"),
        ] {
            let error = text.parse::<Token>().unwrap_err().to_string();
            assert!(error.contains(says) && error.contains("lattice schedulers token"), "{text}: {error}");
        }
    }
}
