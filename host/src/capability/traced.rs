//! Calls of a provider in this process, with a span for each. Made only while spans are recorded: otherwise a call goes
//! straight to its provider.

use super::keystore::{self, KeyStore};
use super::keyvalue::{self, KeyValue};
use crate::origin::Origin;
use crate::spans::{self, Kind};
use bytes::Bytes;
use std::fmt::Display;
use std::sync::Arc;

/// A provider as one link sees it, called because of `origin`.
pub struct Traced<T: ?Sized> {
    inner: Arc<T>,
    origin: Origin,
    /// "shop/store".
    whom: String,
}

impl<T: ?Sized> Traced<T> {
    pub fn new(inner: Arc<T>, origin: Origin, whom: String) -> Self {
        Self { inner, origin, whom }
    }

    async fn call<V, E: Display>(&self, function: &str, answer: impl Future<Output = Result<V, E>>) -> Result<V, E> {
        let name = || format!("{function} of {}", self.whom);
        let mut span = spans::begin(Kind::Client, || self.origin.clone(), name);
        let answer = answer.await;
        if let Err(error) = &answer {
            span.failed(&error.to_string());
        }
        answer
    }
}

#[async_trait::async_trait]
impl KeyValue for Traced<dyn KeyValue> {
    async fn open(&self, bucket: &str) -> Result<(), keyvalue::Error> {
        self.inner.open(bucket).await
    }
    async fn get(&self, bucket: &str, key: &str) -> Result<Option<Bytes>, keyvalue::Error> {
        self.call("wasi:keyvalue/store.get", self.inner.get(bucket, key)).await
    }
    async fn set(&self, bucket: &str, key: &str, value: Bytes) -> Result<(), keyvalue::Error> {
        self.call("wasi:keyvalue/store.set", self.inner.set(bucket, key, value)).await
    }
    async fn delete(&self, bucket: &str, key: &str) -> Result<(), keyvalue::Error> {
        self.call("wasi:keyvalue/store.delete", self.inner.delete(bucket, key)).await
    }
    async fn exists(&self, bucket: &str, key: &str) -> Result<bool, keyvalue::Error> {
        self.call("wasi:keyvalue/store.exists", self.inner.exists(bucket, key)).await
    }
    async fn list_keys(
        &self,
        bucket: &str,
        cursor: Option<String>,
    ) -> Result<(Vec<String>, Option<String>), keyvalue::Error> {
        self.call("wasi:keyvalue/store.list-keys", self.inner.list_keys(bucket, cursor)).await
    }
    async fn increment(&self, bucket: &str, key: &str, delta: i64) -> Result<i64, keyvalue::Error> {
        self.call("wasi:keyvalue/atomics.increment", self.inner.increment(bucket, key, delta)).await
    }
    async fn compare_and_swap(
        &self,
        bucket: &str,
        key: &str,
        old: Option<Bytes>,
        new: Bytes,
    ) -> Result<Result<(), Option<Bytes>>, keyvalue::Error> {
        self.call("wasi:keyvalue/atomics.compare-and-swap", self.inner.compare_and_swap(bucket, key, old, new)).await
    }
    async fn get_many(&self, bucket: &str, keys: Vec<String>) -> Result<Vec<Option<(String, Bytes)>>, keyvalue::Error> {
        self.call("wasi:keyvalue/batch.get-many", self.inner.get_many(bucket, keys)).await
    }
    async fn set_many(&self, bucket: &str, pairs: Vec<(String, Bytes)>) -> Result<(), keyvalue::Error> {
        self.call("wasi:keyvalue/batch.set-many", self.inner.set_many(bucket, pairs)).await
    }
    async fn delete_many(&self, bucket: &str, keys: Vec<String>) -> Result<(), keyvalue::Error> {
        self.call("wasi:keyvalue/batch.delete-many", self.inner.delete_many(bucket, keys)).await
    }
}

#[async_trait::async_trait]
impl KeyStore for Traced<dyn KeyStore> {
    async fn set(&self, key: &str, value: Bytes, ttl: Option<u32>) -> Result<(), keystore::Error> {
        self.call("lattice:keystore/store.set", self.inner.set(key, value, ttl)).await
    }
    async fn get(&self, key: &str) -> Result<Option<Bytes>, keystore::Error> {
        self.call("lattice:keystore/store.get", self.inner.get(key)).await
    }
    async fn delete(&self, key: &str) -> Result<(), keystore::Error> {
        self.call("lattice:keystore/store.delete", self.inner.delete(key)).await
    }
}
