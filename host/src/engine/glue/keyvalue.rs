//! wasi:keyvalue@0.2.0-draft, the version that components built for wasmCloud v1 import. Its cursors and counters are
//! unsigned numbers: a cursor stands for the key where the page ended, kept with the instance.

use super::super::state::State;
use crate::capability::keyvalue::{Error, KEY_BYTES_MAX, KEYS_MAX, KeyValue, VALUE_BYTES_MAX};
use std::sync::Arc;
use wasmtime::Result;
use wasmtime::component::Resource;

mod generated {
    wasmtime::component::bindgen!({
        path: "../proto/wit/deps/keyvalue",
        world: "wasi:keyvalue/imports",
        imports: { default: async | trappable },
        with: { "wasi:keyvalue/store.bucket": super::Bucket },
    });
}

pub(super) use generated::wasi::keyvalue::{atomics, batch, store};

const LINK: &str = proto::app::LINK_NAME_DEFAULT;
/// Keys, and where the next page begins.
type Page = (Vec<String>, Option<String>);
/// Pages that one instance may ask for.
const CURSORS_MAX: usize = 10_000;

/// A bucket that a guest opened.
#[allow(unreachable_pub, reason = "the generated bindings export it from their own module")]
pub struct Bucket {
    pub(super) name: Arc<str>,
}

impl From<Error> for store::Error {
    fn from(e: Error) -> Self {
        match e {
            // These two carry no text here; what they would say is in the host's log.
            Error::NoSuchStore(_) => Self::NoSuchStore,
            Error::AccessDenied(_) => Self::AccessDenied,
            Error::Other(m) => Self::Other(m),
        }
    }
}

/// Runs a call and turns its error into the guest's; what the guest's error can not say goes to its log.
macro_rules! answer {
    ($state:ident, $interface:literal, |$keyvalue:ident| $call:expr) => {{
        let linked = $state.keyvalue($interface);
        // Without the state: it can not be shared while a call is awaited.
        let call = async {
            let $keyvalue = linked?;
            $call
        };
        let answer: Result<_, Error> = call.await;
        Ok(answer.map_err(|e| {
            $state.note(&e);
            e.into()
        }))
    }};
}
pub(super) use answer;

impl State {
    pub(super) fn note(&self, e: &Error) {
        if let Error::NoSuchStore(text) | Error::AccessDenied(text) = e {
            self.log().line("warn", text);
        }
    }
    pub(super) fn keyvalue(&self, interface: &str) -> Result<Arc<dyn KeyValue>, Error> {
        Ok(self.env().imports.keyvalue(interface, LINK, self.origin())?)
    }
    pub(super) fn bucket(&self, bucket: &Resource<Bucket>) -> Result<Arc<str>> {
        Ok(self.table.get(bucket)?.name.clone())
    }
    fn cursor(&self, cursor: Option<u64>) -> Result<Option<String>, Error> {
        let Some(cursor) = cursor else { return Ok(None) };
        let key = usize::try_from(cursor).ok().and_then(|at| self.cursors.get(at));
        let unknown = || Error::Other(format!("cursor {cursor} is of no page that this instance got: begin again"));
        Ok(Some(key.ok_or_else(unknown)?.clone()))
    }
    fn keep_cursor(&mut self, next: Option<String>) -> Result<Option<u64>, Error> {
        let Some(next) = next else { return Ok(None) };
        if self.cursors.len() >= CURSORS_MAX {
            return Err(Error::Other(format!("more than {CURSORS_MAX} pages of keys in one invocation")));
        }
        self.leaves(next.len());
        self.cursors.push(next);
        Ok(u64::try_from(self.cursors.len() - 1).ok())
    }
}

pub(super) fn check_key(key: &str) -> Result<(), Error> {
    if key.is_empty() || key.len() > KEY_BYTES_MAX {
        return Err(Error::Other(format!("a key of {} bytes: 1 to {KEY_BYTES_MAX} are allowed", key.len())));
    }
    Ok(())
}
pub(super) fn check_value(value: &[u8]) -> Result<(), Error> {
    if value.len() > VALUE_BYTES_MAX {
        return Err(Error::Other(format!("a value of {} bytes: at most {VALUE_BYTES_MAX} are allowed", value.len())));
    }
    Ok(())
}
pub(super) fn check_keys<'a>(len: usize, mut keys: impl Iterator<Item = &'a String>) -> Result<(), Error> {
    if len > KEYS_MAX {
        return Err(Error::Other(format!("{len} keys in one batch: at most {KEYS_MAX} are allowed")));
    }
    keys.try_for_each(|key| check_key(key))
}
fn not_signed(what: &str) -> Error {
    Error::Other(format!("{what} does not fit: counters go from 0 to {}", i64::MAX))
}

impl store::Host for State {
    async fn open(&mut self, identifier: String) -> Result<Result<Resource<Bucket>, store::Error>> {
        let opened: Result<Result<(), store::Error>> =
            answer!(self, "wasi:keyvalue/store", |keyvalue| keyvalue.open(&identifier).await);
        Ok(match opened? {
            Ok(()) => Ok(self.table.push(Bucket { name: identifier.into() })?),
            Err(e) => Err(e),
        })
    }
}

impl store::HostBucket for State {
    async fn get(&mut self, bucket: Resource<Bucket>, key: String) -> Result<Result<Option<Vec<u8>>, store::Error>> {
        let bucket = self.bucket(&bucket)?;
        answer!(self, "wasi:keyvalue/store", |keyvalue| {
            check_key(&key)?;
            Ok(keyvalue.get(&bucket, &key).await?.map(Vec::from))
        })
    }
    async fn set(&mut self, bucket: Resource<Bucket>, key: String, value: Vec<u8>) -> Result<Result<(), store::Error>> {
        let bucket = self.bucket(&bucket)?;
        answer!(self, "wasi:keyvalue/store", |keyvalue| {
            check_key(&key)?;
            check_value(&value)?;
            keyvalue.set(&bucket, &key, value.into()).await
        })
    }
    async fn delete(&mut self, bucket: Resource<Bucket>, key: String) -> Result<Result<(), store::Error>> {
        let bucket = self.bucket(&bucket)?;
        answer!(self, "wasi:keyvalue/store", |keyvalue| {
            check_key(&key)?;
            keyvalue.delete(&bucket, &key).await
        })
    }
    async fn exists(&mut self, bucket: Resource<Bucket>, key: String) -> Result<Result<bool, store::Error>> {
        let bucket = self.bucket(&bucket)?;
        answer!(self, "wasi:keyvalue/store", |keyvalue| {
            check_key(&key)?;
            keyvalue.exists(&bucket, &key).await
        })
    }
    async fn list_keys(
        &mut self,
        bucket: Resource<Bucket>,
        cursor: Option<u64>,
    ) -> Result<Result<store::KeyResponse, store::Error>> {
        let bucket = self.bucket(&bucket)?;
        let from = self.cursor(cursor);
        let page: Result<Result<Page, store::Error>> =
            answer!(self, "wasi:keyvalue/store", |keyvalue| keyvalue.list_keys(&bucket, from?).await);
        let (keys, next) = match page? {
            Ok(page) => page,
            Err(e) => return Ok(Err(e)),
        };
        let cursor = self.keep_cursor(next);
        Ok(cursor.map(|cursor| store::KeyResponse { keys, cursor }).map_err(Into::into))
    }
    async fn drop(&mut self, bucket: Resource<Bucket>) -> Result<()> {
        self.table.delete(bucket)?;
        Ok(())
    }
}

impl atomics::Host for State {
    async fn increment(
        &mut self,
        bucket: Resource<Bucket>,
        key: String,
        delta: u64,
    ) -> Result<Result<u64, store::Error>> {
        let bucket = self.bucket(&bucket)?;
        answer!(self, "wasi:keyvalue/atomics", |keyvalue| {
            check_key(&key)?;
            let delta = i64::try_from(delta).map_err(|_| not_signed("the delta"))?;
            let sum = keyvalue.increment(&bucket, &key, delta).await?;
            u64::try_from(sum).map_err(|_| not_signed("the sum"))
        })
    }
}

impl batch::Host for State {
    async fn get_many(
        &mut self,
        bucket: Resource<Bucket>,
        keys: Vec<String>,
    ) -> Result<Result<Vec<Option<(String, Vec<u8>)>>, store::Error>> {
        let bucket = self.bucket(&bucket)?;
        answer!(self, "wasi:keyvalue/batch", |keyvalue| {
            check_keys(keys.len(), keys.iter())?;
            let found = keyvalue.get_many(&bucket, keys).await?;
            Ok(found.into_iter().map(|pair| pair.map(|(k, v)| (k, v.into()))).collect())
        })
    }
    async fn set_many(
        &mut self,
        bucket: Resource<Bucket>,
        pairs: Vec<(String, Vec<u8>)>,
    ) -> Result<Result<(), store::Error>> {
        let bucket = self.bucket(&bucket)?;
        answer!(self, "wasi:keyvalue/batch", |keyvalue| {
            check_keys(pairs.len(), pairs.iter().map(|(k, _)| k))?;
            pairs.iter().try_for_each(|(_, v)| check_value(v))?;
            let pairs = pairs.into_iter().map(|(k, v)| (k, v.into())).collect();
            keyvalue.set_many(&bucket, pairs).await
        })
    }
    async fn delete_many(&mut self, bucket: Resource<Bucket>, keys: Vec<String>) -> Result<Result<(), store::Error>> {
        let bucket = self.bucket(&bucket)?;
        answer!(self, "wasi:keyvalue/batch", |keyvalue| {
            check_keys(keys.len(), keys.iter())?;
            keyvalue.delete_many(&bucket, keys).await
        })
    }
}
