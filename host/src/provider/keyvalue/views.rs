//! The store as one link sees it: its bucket, its permission, the bounds of keys and values.

use super::commit::{Outcome, Write};
use super::record::{self, Namespace};
use super::table::Fault;
use super::{BATCH_BYTES_MAX, BUCKET_BYTES_MAX, KeyvalueStore};
use crate::call::LinkContext;
use crate::capability::keystore::{self, KeyStore};
use crate::capability::keyvalue::{self, KEY_BYTES_MAX, KEYS_MAX, KeyValue, VALUE_BYTES_MAX};
use bytes::Bytes;
use proto::app::Name;

const BUCKET_DEFAULT: &str = "default";

pub(super) struct View {
    store: KeyvalueStore,
    owner: Vec<u8>,
    /// What stands for the guest's default bucket.
    bucket: String,
    read_only: bool,
    /// For messages: `link "default" of actor "cart"`.
    link: String,
}

/// A key or a value is over its bound.
struct Bound(String);

impl View {
    pub(super) fn new(
        store: KeyvalueStore,
        namespace: Namespace,
        app: &Name,
        component: &Name,
        link: LinkContext,
    ) -> Self {
        Self {
            store,
            owner: record::owner(namespace, app.as_str(), component.as_str()),
            bucket: link.config.get("bucket").cloned().unwrap_or_else(|| BUCKET_DEFAULT.into()),
            read_only: link.config.get("read_only").is_some_and(|v| v == "true"),
            link: format!("link {:?} of actor {:?}", link.name, link.consumer),
        }
    }

    fn bucket<'a>(&'a self, guest: &'a str) -> Result<&'a str, String> {
        let name = if guest.is_empty() || guest == BUCKET_DEFAULT { self.bucket.as_str() } else { guest };
        if name.len() > BUCKET_BYTES_MAX {
            return Err(format!(
                "{}: a bucket's name of {} bytes: at most {BUCKET_BYTES_MAX} are taken",
                self.link,
                name.len()
            ));
        }
        Ok(name)
    }

    fn check_key(&self, key: &str) -> Result<(), Bound> {
        match key.len() {
            1..=KEY_BYTES_MAX => Ok(()),
            n => Err(Bound(format!("{}: a key of {n} bytes: 1 to {KEY_BYTES_MAX} are taken", self.link))),
        }
    }

    fn check_value(&self, key: &str, value: &Bytes) -> Result<(), Bound> {
        if value.len() > VALUE_BYTES_MAX {
            let n = value.len();
            return Err(Bound(format!("{}: key {key:?}: a value of {n} bytes: at most {VALUE_BYTES_MAX}", self.link)));
        }
        Ok(())
    }

    fn denied(&self) -> Option<String> {
        self.read_only.then(|| {
            format!("{} is read-only: take read_only out of the link's target config to let it write", self.link)
        })
    }

    /// The whole key of what the guest calls `key`.
    fn key(&self, bucket: &str, key: &str) -> Result<Vec<u8>, keyvalue::Error> {
        let bucket = self.bucket(bucket).map_err(keyvalue::Error::NoSuchStore)?;
        self.check_key(key)?;
        Ok(record::key(&self.owner, bucket, key))
    }

    fn may_write(&self) -> Result<(), keyvalue::Error> {
        self.denied().map_or(Ok(()), |why| Err(keyvalue::Error::AccessDenied(why)))
    }

    fn check_count(&self, count: usize) -> Result<(), keyvalue::Error> {
        if count > KEYS_MAX {
            let text = format!("{}: a batch of {count} keys: at most {KEYS_MAX}; send several", self.link);
            return Err(keyvalue::Error::Other(text));
        }
        Ok(())
    }

    fn check_batch_bytes(&self, bytes: usize) -> Result<(), keyvalue::Error> {
        if bytes > BATCH_BYTES_MAX {
            let text = format!("{}: a batch of more than {BATCH_BYTES_MAX} bytes of values; send several", self.link);
            return Err(keyvalue::Error::Other(text));
        }
        Ok(())
    }

    async fn write(&self, write: Write) -> Result<Outcome, Fault> {
        self.store.inner.write(write).await
    }

    fn get_now(&self, key: &[u8]) -> Result<Option<Bytes>, Fault> {
        self.store.inner.read(|table, now_ms| table.get(key, now_ms))
    }
}

impl From<Bound> for keyvalue::Error {
    fn from(Bound(text): Bound) -> Self {
        Self::Other(text)
    }
}

impl From<Fault> for keyvalue::Error {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Refused(text) | Fault::Broken(text) => Self::Other(text),
        }
    }
}

#[async_trait::async_trait]
impl KeyValue for View {
    async fn open(&self, bucket: &str) -> Result<(), keyvalue::Error> {
        self.bucket(bucket).map(drop).map_err(keyvalue::Error::NoSuchStore)
    }

    async fn get(&self, bucket: &str, key: &str) -> Result<Option<Bytes>, keyvalue::Error> {
        Ok(self.get_now(&self.key(bucket, key)?)?)
    }

    async fn set(&self, bucket: &str, key: &str, value: Bytes) -> Result<(), keyvalue::Error> {
        self.may_write()?;
        self.check_value(key, &value)?;
        let key = self.key(bucket, key)?;
        self.write(Write::Set { key, value, expires_ms: 0 }).await?;
        Ok(())
    }

    async fn delete(&self, bucket: &str, key: &str) -> Result<(), keyvalue::Error> {
        self.may_write()?;
        let key = self.key(bucket, key)?;
        self.write(Write::Delete([key].into())).await?;
        Ok(())
    }

    async fn exists(&self, bucket: &str, key: &str) -> Result<bool, keyvalue::Error> {
        Ok(self.get_now(&self.key(bucket, key)?)?.is_some())
    }

    async fn list_keys(
        &self,
        bucket: &str,
        cursor: Option<String>,
    ) -> Result<(Vec<String>, Option<String>), keyvalue::Error> {
        let prefix = record::bucket(&self.owner, self.bucket(bucket).map_err(keyvalue::Error::NoSuchStore)?);
        let store = self.store.clone();
        let list = move || store.inner.read(|table, now_ms| table.list(&prefix, cursor.as_deref(), KEYS_MAX, now_ms));
        let listed = tokio::task::spawn_blocking(list).await;
        let (keys, more) = listed.map_err(|e| keyvalue::Error::Other(format!("listing keys failed: {e}")))??;
        let next = if more { keys.last().cloned() } else { None };
        Ok((keys, next))
    }

    async fn increment(&self, bucket: &str, key: &str, delta: i64) -> Result<i64, keyvalue::Error> {
        self.may_write()?;
        let whole = self.key(bucket, key)?;
        match self.write(Write::Increment { key: whole, name: key.to_owned(), delta }).await? {
            Outcome::Sum(sum) => Ok(sum),
            other => Err(keyvalue::Error::Other(format!("increment of {key:?} gave {other:?}"))),
        }
    }

    async fn compare_and_swap(
        &self,
        bucket: &str,
        key: &str,
        old: Option<Bytes>,
        new: Bytes,
    ) -> Result<Result<(), Option<Bytes>>, keyvalue::Error> {
        self.may_write()?;
        self.check_value(key, &new)?;
        let key = self.key(bucket, key)?;
        Ok(match self.write(Write::Swap { key, old, new }).await? {
            Outcome::Differs(current) => Err(current),
            _ => Ok(()),
        })
    }

    async fn get_many(&self, bucket: &str, keys: Vec<String>) -> Result<Vec<Option<(String, Bytes)>>, keyvalue::Error> {
        self.check_count(keys.len())?;
        let mut found = Vec::with_capacity(keys.len());
        let mut bytes = 0;
        for key in keys {
            let value = self.get_now(&self.key(bucket, &key)?)?;
            bytes += value.as_ref().map_or(0, Bytes::len);
            self.check_batch_bytes(bytes)?;
            found.push(value.map(|value| (key, value)));
        }
        Ok(found)
    }

    async fn set_many(&self, bucket: &str, pairs: Vec<(String, Bytes)>) -> Result<(), keyvalue::Error> {
        self.may_write()?;
        self.check_count(pairs.len())?;
        self.check_batch_bytes(pairs.iter().map(|(_, v)| v.len()).sum())?;
        let mut whole = std::collections::BTreeMap::new();
        for (key, value) in pairs {
            self.check_value(&key, &value)?;
            whole.insert(self.key(bucket, &key)?, value);
        }
        self.write(Write::SetMany(whole)).await?;
        Ok(())
    }

    async fn delete_many(&self, bucket: &str, keys: Vec<String>) -> Result<(), keyvalue::Error> {
        self.may_write()?;
        self.check_count(keys.len())?;
        let keys = keys.iter().map(|key| self.key(bucket, key)).collect::<Result<_, _>>()?;
        self.write(Write::Delete(keys)).await?;
        Ok(())
    }
}

impl From<Bound> for keystore::Error {
    fn from(Bound(text): Bound) -> Self {
        Self::TooLarge(text)
    }
}

impl From<Fault> for keystore::Error {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Refused(text) | Fault::Broken(text) => Self::Unavailable(text),
        }
    }
}

impl View {
    /// The key store has one bucket per link.
    fn keystore_key(&self, key: &str) -> Result<Vec<u8>, keystore::Error> {
        self.check_key(key)?;
        Ok(record::key(&self.owner, self.bucket("").map_err(keystore::Error::TooLarge)?, key))
    }
}

#[async_trait::async_trait]
impl KeyStore for View {
    async fn set(&self, key: &str, value: Bytes, ttl: Option<u32>) -> Result<(), keystore::Error> {
        if ttl == Some(0) {
            self.check_value(key, &value)?;
            return KeyStore::delete(self, key).await;
        }
        if let Some(why) = self.denied() {
            return Err(keystore::Error::Denied(why));
        }
        self.check_value(key, &value)?;
        let expires_ms = ttl.map_or(0, |seconds| (self.store.inner.clock)() + u64::from(seconds) * 1000);
        let key = self.keystore_key(key)?;
        self.write(Write::Set { key, value, expires_ms }).await?;
        Ok(())
    }

    async fn get(&self, key: &str) -> Result<Option<Bytes>, keystore::Error> {
        Ok(self.get_now(&self.keystore_key(key)?)?)
    }

    async fn delete(&self, key: &str) -> Result<(), keystore::Error> {
        if let Some(why) = self.denied() {
            return Err(keystore::Error::Denied(why));
        }
        let key = self.keystore_key(key)?;
        self.write(Write::Delete([key].into())).await?;
        Ok(())
    }
}
