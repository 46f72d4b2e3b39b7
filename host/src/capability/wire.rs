//! The two ends of wasi:keyvalue and lattice:keystore between processes: calls of the traits as encoded values, and
//! back. Knows no bus and no provider; what carries the bytes is a `Serve`.
//!
//! lattice:keystore/store has exactly the WIT's values, so that an actor that exports it can be at the far end.
//! wasi:keyvalue has a resource, which has no bytes: calls carry the bucket's name in its place, and each case of its
//! error carries its text.

use super::keystore::{self, KeyStore};
use super::keyvalue::{self, BUCKET_BYTES_MAX, KEYS_MAX, KeyValue};
use crate::call::{CallError, LinkContext, Serve};
use crate::value::{Reader, Writer};
use bytes::Bytes;
use std::sync::Arc;

const STORE: &str = "wasi:keyvalue/store";
const ATOMICS: &str = "wasi:keyvalue/atomics";
const BATCH: &str = "wasi:keyvalue/batch";
const KEYSTORE: &str = "lattice:keystore/store";

/// Room for lengths and cases around a value.
const SLACK_BYTES: usize = 64;

/// wasi:keyvalue at the far end of `serve`, for one link.
pub struct KeyValueOver {
    serve: Arc<dyn Serve>,
    link: LinkContext,
}

/// lattice:keystore at the far end of `serve`, for one link.
pub struct KeyStoreOver {
    serve: Arc<dyn Serve>,
    link: LinkContext,
}

impl KeyValueOver {
    pub fn new(serve: Arc<dyn Serve>, link: LinkContext) -> Self {
        Self { serve, link }
    }

    async fn call<T>(
        &self,
        interface: &str,
        function: &str,
        params: Writer,
        ok: impl FnOnce(&mut Reader) -> Result<T, CallError>,
    ) -> Result<T, keyvalue::Error> {
        let answer = self.serve.serve(&self.link, interface, function, params.finish()).await?;
        let mut reader = Reader::new(answer);
        let result = reader.result(ok, take_keyvalue_error)?;
        reader.finish()?;
        result
    }
}

impl KeyStoreOver {
    pub fn new(serve: Arc<dyn Serve>, link: LinkContext) -> Self {
        Self { serve, link }
    }

    async fn call<T>(
        &self,
        function: &str,
        params: Writer,
        ok: impl FnOnce(&mut Reader) -> Result<T, CallError>,
    ) -> Result<T, keystore::Error> {
        let answer = self.serve.serve(&self.link, KEYSTORE, function, params.finish()).await?;
        let mut reader = Reader::new(answer);
        let result = reader.result(ok, take_keystore_error)?;
        reader.finish()?;
        result
    }
}

/// Answers one encoded call of wasi:keyvalue from `provider`. An error of the provider is part of the answer.
pub async fn answer_keyvalue(
    provider: &dyn KeyValue,
    interface: &str,
    function: &str,
    params: Bytes,
) -> Result<Bytes, CallError> {
    let mut r = Reader::new(params);
    let mut w = Writer::new();
    let bucket = r.string()?;
    match (interface, function) {
        (STORE, "open") => {
            r.finish()?;
            put_keyvalue(&mut w, provider.open(&bucket).await, |_, ()| ());
        }
        (STORE, "get") => {
            let key = last_string(r)?;
            put_keyvalue(&mut w, provider.get(&bucket, &key).await, put_option_bytes);
        }
        (STORE, "set") => {
            let (key, value) = (r.string()?, r.bytes()?);
            r.finish()?;
            put_keyvalue(&mut w, provider.set(&bucket, &key, value).await, |_, ()| ());
        }
        (STORE, "delete") => {
            let key = last_string(r)?;
            put_keyvalue(&mut w, provider.delete(&bucket, &key).await, |_, ()| ());
        }
        (STORE, "exists") => {
            let key = last_string(r)?;
            put_keyvalue(&mut w, provider.exists(&bucket, &key).await, |w, found| {
                w.put_bool(found);
            });
        }
        (STORE, "list-keys") => {
            let cursor = r.option(Reader::string)?;
            r.finish()?;
            put_keyvalue(&mut w, provider.list_keys(&bucket, cursor).await, |w, (keys, next)| {
                put_strings(w, &keys);
                w.put_option(next, |w, next| {
                    w.put_str(&next);
                });
            });
        }
        (ATOMICS, _) => answer_atomics(provider, &bucket, function, r, &mut w).await?,
        (BATCH, _) => answer_batch(provider, &bucket, function, r, &mut w).await?,
        _ => return Err(unknown(interface, function)),
    }
    Ok(w.finish())
}

async fn answer_atomics(
    provider: &dyn KeyValue,
    bucket: &str,
    function: &str,
    mut r: Reader,
    w: &mut Writer,
) -> Result<(), CallError> {
    match function {
        "increment" => {
            let (key, delta) = (r.string()?, r.i64()?);
            r.finish()?;
            put_keyvalue(w, provider.increment(bucket, &key, delta).await, |w, sum| {
                w.put_i64(sum);
            });
        }
        "compare-and-swap" => {
            let (key, old, new) = (r.string()?, r.option(Reader::bytes)?, r.bytes()?);
            r.finish()?;
            put_keyvalue(w, provider.compare_and_swap(bucket, &key, old, new).await, |w, swapped| {
                w.put_result(swapped, |_, ()| (), put_option_bytes);
            });
        }
        _ => return Err(unknown(ATOMICS, function)),
    }
    Ok(())
}

async fn answer_batch(
    provider: &dyn KeyValue,
    bucket: &str,
    function: &str,
    mut r: Reader,
    w: &mut Writer,
) -> Result<(), CallError> {
    match function {
        "get-many" => {
            let keys = take_strings(&mut r)?;
            r.finish()?;
            put_keyvalue(w, provider.get_many(bucket, keys).await, |w, found| {
                w.put_list(&found, |w, pair| {
                    w.put_option(pair.as_ref(), |w, (key, value)| {
                        w.put_str(key).put_bytes(value);
                    });
                });
            });
        }
        "set-many" => {
            let pairs = take_list(&mut r, |r| Ok((r.string()?, r.bytes()?)))?;
            r.finish()?;
            put_keyvalue(w, provider.set_many(bucket, pairs).await, |_, ()| ());
        }
        "delete-many" => {
            let keys = take_strings(&mut r)?;
            r.finish()?;
            put_keyvalue(w, provider.delete_many(bucket, keys).await, |_, ()| ());
        }
        _ => return Err(unknown(BATCH, function)),
    }
    Ok(())
}

/// Answers one encoded call of lattice:keystore/store from `provider`.
pub async fn answer_keystore(provider: &dyn KeyStore, function: &str, params: Bytes) -> Result<Bytes, CallError> {
    let mut r = Reader::new(params);
    let mut w = Writer::new();
    let key = r.string()?;
    match function {
        "set" => {
            let (value, ttl) = (r.bytes()?, r.option(Reader::u32)?);
            r.finish()?;
            put_keystore(&mut w, provider.set(&key, value, ttl).await, |_, ()| ());
        }
        "get" => {
            r.finish()?;
            put_keystore(&mut w, provider.get(&key).await, put_option_bytes);
        }
        "delete" => {
            r.finish()?;
            put_keystore(&mut w, provider.delete(&key).await, |_, ()| ());
        }
        _ => return Err(unknown(KEYSTORE, function)),
    }
    Ok(w.finish())
}

fn unknown(interface: &str, function: &str) -> CallError {
    CallError::Invalid(format!("{interface} has no function {function:?}: see that both hosts run the same version"))
}

#[async_trait::async_trait]
impl KeyValue for KeyValueOver {
    async fn open(&self, bucket: &str) -> Result<(), keyvalue::Error> {
        // A name that can be a bucket's is one: what is wrong with it otherwise its first use tells, and saves a trip.
        if bucket.len() <= BUCKET_BYTES_MAX {
            return Ok(());
        }
        self.call(STORE, "open", params(bucket), |_| Ok(())).await
    }

    async fn get(&self, bucket: &str, key: &str) -> Result<Option<Bytes>, keyvalue::Error> {
        self.call(STORE, "get", params_of_key(bucket, key), |r| r.option(Reader::bytes)).await
    }

    async fn set(&self, bucket: &str, key: &str, value: Bytes) -> Result<(), keyvalue::Error> {
        let mut w = Writer::with_capacity(bucket.len() + key.len() + value.len() + SLACK_BYTES);
        w.put_str(bucket).put_str(key).put_bytes(&value);
        self.call(STORE, "set", w, |_| Ok(())).await
    }

    async fn delete(&self, bucket: &str, key: &str) -> Result<(), keyvalue::Error> {
        self.call(STORE, "delete", params_of_key(bucket, key), |_| Ok(())).await
    }

    async fn exists(&self, bucket: &str, key: &str) -> Result<bool, keyvalue::Error> {
        self.call(STORE, "exists", params_of_key(bucket, key), Reader::bool).await
    }

    async fn list_keys(
        &self,
        bucket: &str,
        cursor: Option<String>,
    ) -> Result<(Vec<String>, Option<String>), keyvalue::Error> {
        let mut w = params(bucket);
        w.put_option(cursor, |w, cursor| {
            w.put_str(&cursor);
        });
        self.call(STORE, "list-keys", w, |r| Ok((take_strings(r)?, r.option(Reader::string)?))).await
    }

    async fn increment(&self, bucket: &str, key: &str, delta: i64) -> Result<i64, keyvalue::Error> {
        let mut w = params_of_key(bucket, key);
        w.put_i64(delta);
        self.call(ATOMICS, "increment", w, Reader::i64).await
    }

    async fn compare_and_swap(
        &self,
        bucket: &str,
        key: &str,
        old: Option<Bytes>,
        new: Bytes,
    ) -> Result<Result<(), Option<Bytes>>, keyvalue::Error> {
        let mut w = params_of_key(bucket, key);
        put_option_bytes(&mut w, old);
        w.put_bytes(&new);
        let take = |r: &mut Reader| r.result(|_| Ok(()), |r| r.option(Reader::bytes));
        self.call(ATOMICS, "compare-and-swap", w, take).await
    }

    async fn get_many(&self, bucket: &str, keys: Vec<String>) -> Result<Vec<Option<(String, Bytes)>>, keyvalue::Error> {
        let mut w = params(bucket);
        put_strings(&mut w, &keys);
        let take = |r: &mut Reader| take_list(r, |r| r.option(|r| Ok((r.string()?, r.bytes()?))));
        self.call(BATCH, "get-many", w, take).await
    }

    async fn set_many(&self, bucket: &str, pairs: Vec<(String, Bytes)>) -> Result<(), keyvalue::Error> {
        let mut w = params(bucket);
        w.put_list(&pairs, |w, (key, value)| {
            w.put_str(key).put_bytes(value);
        });
        self.call(BATCH, "set-many", w, |_| Ok(())).await
    }

    async fn delete_many(&self, bucket: &str, keys: Vec<String>) -> Result<(), keyvalue::Error> {
        let mut w = params(bucket);
        put_strings(&mut w, &keys);
        self.call(BATCH, "delete-many", w, |_| Ok(())).await
    }
}

#[async_trait::async_trait]
impl KeyStore for KeyStoreOver {
    async fn set(&self, key: &str, value: Bytes, ttl: Option<u32>) -> Result<(), keystore::Error> {
        let mut w = Writer::with_capacity(key.len() + value.len() + SLACK_BYTES);
        w.put_str(key).put_bytes(&value).put_option(ttl, |w, ttl| {
            w.put_u32(ttl);
        });
        self.call("set", w, |_| Ok(())).await
    }

    async fn get(&self, key: &str) -> Result<Option<Bytes>, keystore::Error> {
        self.call("get", params(key), |r| r.option(Reader::bytes)).await
    }

    async fn delete(&self, key: &str) -> Result<(), keystore::Error> {
        self.call("delete", params(key), |_| Ok(())).await
    }
}

fn params(first: &str) -> Writer {
    let mut w = Writer::with_capacity(first.len() + SLACK_BYTES);
    w.put_str(first);
    w
}

fn params_of_key(bucket: &str, key: &str) -> Writer {
    let mut w = Writer::with_capacity(bucket.len() + key.len() + SLACK_BYTES);
    w.put_str(bucket).put_str(key);
    w
}

fn put_option_bytes(w: &mut Writer, value: Option<Bytes>) {
    w.put_option(value, |w, value| {
        w.put_bytes(&value);
    });
}

fn put_strings(w: &mut Writer, strings: &[String]) {
    w.put_list(strings, |w, s| {
        w.put_str(s);
    });
}

fn take_strings(r: &mut Reader) -> Result<Vec<String>, CallError> {
    take_list(r, Reader::string)
}

/// At most `KEYS_MAX` items: counted before any is read.
fn take_list<T>(
    r: &mut Reader,
    mut take: impl FnMut(&mut Reader) -> Result<T, CallError>,
) -> Result<Vec<T>, CallError> {
    let len = r.len(4)?;
    if len > KEYS_MAX {
        return Err(CallError::TooLarge(format!("{len} keys in one call: at most {KEYS_MAX}; send several")));
    }
    (0..len).map(|_| take(r)).collect()
}

fn last_string(mut r: Reader) -> Result<String, CallError> {
    let s = r.string()?;
    r.finish()?;
    Ok(s)
}

fn put_keyvalue<T>(w: &mut Writer, result: Result<T, keyvalue::Error>, ok: impl FnOnce(&mut Writer, T)) {
    w.put_result(result, ok, |w, error| {
        let (case, text) = match error {
            keyvalue::Error::NoSuchStore(text) => (0, text),
            keyvalue::Error::AccessDenied(text) => (1, text),
            keyvalue::Error::Other(text) => (2, text),
        };
        w.put_case(case).put_str(&text);
    });
}

fn take_keyvalue_error(r: &mut Reader) -> Result<keyvalue::Error, CallError> {
    let (case, text) = (r.case(3)?, r.string()?);
    Ok(match case {
        0 => keyvalue::Error::NoSuchStore(text),
        1 => keyvalue::Error::AccessDenied(text),
        _ => keyvalue::Error::Other(text),
    })
}

fn put_keystore<T>(w: &mut Writer, result: Result<T, keystore::Error>, ok: impl FnOnce(&mut Writer, T)) {
    w.put_result(result, ok, |w, error| {
        let (case, text) = match error {
            keystore::Error::Denied(text) => (0, text),
            keystore::Error::TooLarge(text) => (1, text),
            keystore::Error::Unavailable(text) => (2, text),
        };
        w.put_case(case).put_str(&text);
    });
}

fn take_keystore_error(r: &mut Reader) -> Result<keystore::Error, CallError> {
    let (case, text) = (r.case(3)?, r.string()?);
    Ok(match case {
        0 => keystore::Error::Denied(text),
        1 => keystore::Error::TooLarge(text),
        _ => keystore::Error::Unavailable(text),
    })
}
