//! A key store as an actor: exports lattice:keystore/store and keeps its values in wasi:keyvalue, each behind the
//! moment it expires. Must keep nothing of its own: every call may meet a fresh instance.
//!
//! An expired value is hidden, not deleted: between reading it and deleting it another instance may have set the key
//! anew. It goes when its key is set or deleted.

use std::time::{SystemTime, UNIX_EPOCH};

mod bindings {
    wit_bindgen::generate!({
        path: ["../../../proto/wit/deps/keyvalue", "../../../proto/wit/keystore.wit"],
        inline: "
            package lattice:vault;
            world vault {
                import wasi:keyvalue/store@0.2.0-draft;
                export lattice:keystore/store@0.1.0;
            }
        ",
        world: "lattice:vault/vault",
        generate_all,
    });
}
use bindings::exports::lattice::keystore::store::{Error, Guest};
use bindings::wasi::keyvalue::store as keyvalue;

/// A bucket of its own, so that keys keep their full length.
const BUCKET: &str = "vault";
const KEY_BYTES_MAX: usize = 1024;
/// What wasi:keyvalue takes, less the expiry in front.
const VALUE_BYTES_MAX: usize = 1024 * 1024 - EXPIRY_BYTES;
/// Milliseconds since 1970, big endian; `NEVER` without a time to live.
const EXPIRY_BYTES: usize = 8;
const NEVER: u64 = u64::MAX;

struct Vault;

impl Guest for Vault {
    fn set(key: String, value: Vec<u8>, ttl: Option<u32>) -> Result<(), Error> {
        check_key(&key)?;
        check_value(&value)?;
        let bucket = open()?;
        let expiry_ms = match ttl {
            Some(0) => return bucket.delete(&key).map_err(failed),
            Some(seconds) => now_ms() + u64::from(seconds) * 1000,
            None => NEVER,
        };
        let mut stored = Vec::with_capacity(EXPIRY_BYTES + value.len());
        stored.extend_from_slice(&expiry_ms.to_be_bytes());
        stored.extend_from_slice(&value);
        bucket.set(&key, &stored).map_err(failed)
    }

    fn get(key: String) -> Result<Option<Vec<u8>>, Error> {
        check_key(&key)?;
        let Some(mut stored) = open()?.get(&key).map_err(failed)? else {
            return Ok(None);
        };
        let Some(expiry) = stored.first_chunk::<EXPIRY_BYTES>() else {
            return Err(Error::Unavailable(format!(
                "key {key:?} of bucket {BUCKET:?} was not written by a vault: give the vault a bucket of its own"
            )));
        };
        let expiry_ms = u64::from_be_bytes(*expiry);
        if expiry_ms != NEVER && now_ms() >= expiry_ms {
            return Ok(None);
        }
        Ok(Some(stored.split_off(EXPIRY_BYTES)))
    }

    fn delete(key: String) -> Result<(), Error> {
        check_key(&key)?;
        open()?.delete(&key).map_err(failed)
    }
}

fn check_key(key: &str) -> Result<(), Error> {
    if (1..=KEY_BYTES_MAX).contains(&key.len()) {
        return Ok(());
    }
    Err(Error::TooLarge(format!(
        "a key of {} bytes: use 1 to {KEY_BYTES_MAX}",
        key.len()
    )))
}

fn check_value(value: &[u8]) -> Result<(), Error> {
    if value.len() <= VALUE_BYTES_MAX {
        return Ok(());
    }
    Err(Error::TooLarge(format!(
        "a value of {} bytes: use at most {VALUE_BYTES_MAX}",
        value.len()
    )))
}

fn open() -> Result<keyvalue::Bucket, Error> {
    keyvalue::open(BUCKET).map_err(failed)
}

fn failed(error: keyvalue::Error) -> Error {
    match error {
        keyvalue::Error::NoSuchStore => Error::Unavailable(format!("no bucket {BUCKET:?} behind the vault's link")),
        keyvalue::Error::AccessDenied => Error::Denied("the vault's own link to wasi:keyvalue refused it".into()),
        keyvalue::Error::Other(text) => Error::Unavailable(text),
    }
}

/// A clock before 1970 is 0: nothing expires too early.
fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(NEVER)
}

bindings::export!(Vault with_types_in bindings);
