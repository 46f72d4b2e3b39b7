//! wasi:keyvalue@0.2.0-draft2, the draft that followed: cursors are text, counters are signed, and a value can be
//! compared and swapped. What both drafts do alike is in `keyvalue`.

use super::super::state::State;
use super::keyvalue::{Bucket, answer, check_key, check_keys, check_value};
use crate::capability::keyvalue::Error;
use bytes::Bytes;
use std::sync::Arc;
use wasmtime::Result;
use wasmtime::component::Resource;

mod generated {
    wasmtime::component::bindgen!({
        path: "../proto/wit/deps/keyvalue-draft2",
        world: "wasi:keyvalue/imports",
        imports: { default: async | trappable },
        with: {
            "wasi:keyvalue/store.bucket": super::super::keyvalue::Bucket,
            "wasi:keyvalue/atomics.cas": super::Cas,
        },
    });
}

pub(super) use generated::wasi::keyvalue::{atomics, batch, store};

/// A value that a guest read in order to replace it.
#[allow(unreachable_pub, reason = "the generated bindings export it from their own module")]
pub struct Cas {
    bucket: Arc<str>,
    key: String,
    current: Option<Bytes>,
}

impl Cas {
    /// Memory that it takes.
    pub(in super::super) fn bytes(&self) -> usize {
        self.key.len() + self.current.as_ref().map_or(0, Bytes::len)
    }
}

impl From<Error> for store::Error {
    fn from(e: Error) -> Self {
        match e {
            Error::NoSuchStore(_) => Self::NoSuchStore,
            Error::AccessDenied(_) => Self::AccessDenied,
            Error::Other(m) => Self::Other(m),
        }
    }
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
        cursor: Option<String>,
    ) -> Result<Result<store::KeyResponse, store::Error>> {
        let bucket = self.bucket(&bucket)?;
        answer!(self, "wasi:keyvalue/store", |keyvalue| {
            let (keys, cursor) = keyvalue.list_keys(&bucket, cursor).await?;
            Ok(store::KeyResponse { keys, cursor })
        })
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
        delta: i64,
    ) -> Result<Result<i64, store::Error>> {
        let bucket = self.bucket(&bucket)?;
        answer!(self, "wasi:keyvalue/atomics", |keyvalue| {
            check_key(&key)?;
            keyvalue.increment(&bucket, &key, delta).await
        })
    }
    async fn swap(&mut self, cas: Resource<Cas>, value: Vec<u8>) -> Result<Result<(), atomics::CasError>> {
        let Cas { bucket, key, current } = self.table.delete(cas)?;
        let swapped: Result<Result<Result<(), Option<Bytes>>, store::Error>> =
            answer!(self, "wasi:keyvalue/atomics", |keyvalue| {
                check_value(&value)?;
                keyvalue.compare_and_swap(&bucket, &key, current, value.into()).await
            });
        Ok(match swapped? {
            Ok(Ok(())) => Ok(()),
            Ok(Err(current)) => {
                let cas = Cas { bucket, key, current };
                self.leaves(cas.bytes());
                Err(atomics::CasError::CasFailed(self.table.push(cas)?))
            }
            Err(e) => Err(atomics::CasError::StoreError(e)),
        })
    }
}

impl atomics::HostCas for State {
    async fn new(&mut self, bucket: Resource<Bucket>, key: String) -> Result<Result<Resource<Cas>, store::Error>> {
        let bucket = self.bucket(&bucket)?;
        let found: Result<Result<Option<Bytes>, store::Error>> = answer!(self, "wasi:keyvalue/atomics", |keyvalue| {
            check_key(&key)?;
            keyvalue.get(&bucket, &key).await
        });
        Ok(match found? {
            Ok(current) => {
                let cas = Cas { bucket, key, current };
                self.leaves(cas.bytes());
                Ok(self.table.push(cas)?)
            }
            Err(e) => Err(e),
        })
    }
    async fn current(&mut self, cas: Resource<Cas>) -> Result<Result<Option<Vec<u8>>, store::Error>> {
        Ok(Ok(self.table.get(&cas)?.current.clone().map(Vec::from)))
    }
    async fn drop(&mut self, cas: Resource<Cas>) -> Result<()> {
        self.table.delete(cas)?;
        Ok(())
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
