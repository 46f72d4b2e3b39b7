//! wasi:keyvalue: store, atomics, batch.

use crate::call::CallError;
use bytes::Bytes;

/// Bytes of a key.
pub const KEY_BYTES_MAX: usize = 1024;
/// Bytes of a value.
pub const VALUE_BYTES_MAX: usize = 1024 * 1024;
/// Bytes of a bucket's name.
pub const BUCKET_BYTES_MAX: usize = 256;
/// Keys in one answer of `list_keys`, and in one batch.
pub const KEYS_MAX: usize = 1000;

/// wasi:keyvalue's own error cases; the text names the thing and the next step.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    NoSuchStore(String),
    #[error("{0}")]
    AccessDenied(String),
    #[error("{0}")]
    Other(String),
}

impl From<CallError> for Error {
    fn from(e: CallError) -> Self {
        match e {
            CallError::Denied(m) => Self::AccessDenied(m),
            other => Self::Other(other.to_string()),
        }
    }
}

/// One provider as one link sees it. `bucket` is what the guest gave to `open`.
#[async_trait::async_trait]
pub trait KeyValue: Send + Sync {
    async fn open(&self, bucket: &str) -> Result<(), Error>;
    async fn get(&self, bucket: &str, key: &str) -> Result<Option<Bytes>, Error>;
    async fn set(&self, bucket: &str, key: &str, value: Bytes) -> Result<(), Error>;
    async fn delete(&self, bucket: &str, key: &str) -> Result<(), Error>;
    async fn exists(&self, bucket: &str, key: &str) -> Result<bool, Error>;
    /// At most `KEYS_MAX` keys after `cursor`, in order, and the cursor of the next page.
    async fn list_keys(&self, bucket: &str, cursor: Option<String>) -> Result<(Vec<String>, Option<String>), Error>;
    /// Adds to the decimal number stored there (absent: 0) and gives the sum.
    async fn increment(&self, bucket: &str, key: &str, delta: i64) -> Result<i64, Error>;
    /// Sets `new` if the value is still `old`; else gives the value that is there.
    async fn compare_and_swap(
        &self,
        bucket: &str,
        key: &str,
        old: Option<Bytes>,
        new: Bytes,
    ) -> Result<Result<(), Option<Bytes>>, Error>;
    async fn get_many(&self, bucket: &str, keys: Vec<String>) -> Result<Vec<Option<(String, Bytes)>>, Error>;
    async fn set_many(&self, bucket: &str, pairs: Vec<(String, Bytes)>) -> Result<(), Error>;
    async fn delete_many(&self, bucket: &str, keys: Vec<String>) -> Result<(), Error>;
}
