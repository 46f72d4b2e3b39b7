//! lattice:keystore/store: set with a time to live, get, delete.

use crate::call::CallError;
use bytes::Bytes;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Denied(String),
    #[error("{0}")]
    TooLarge(String),
    #[error("{0}")]
    Unavailable(String),
}

impl From<CallError> for Error {
    fn from(e: CallError) -> Self {
        match e {
            CallError::Denied(m) => Self::Denied(m),
            CallError::TooLarge(m) => Self::TooLarge(m),
            other => Self::Unavailable(other.to_string()),
        }
    }
}

/// One provider as one link sees it.
#[async_trait::async_trait]
pub trait KeyStore: Send + Sync {
    /// `ttl` in seconds; 0 removes the key at once.
    async fn set(&self, key: &str, value: Bytes, ttl: Option<u32>) -> Result<(), Error>;
    async fn get(&self, key: &str) -> Result<Option<Bytes>, Error>;
    async fn delete(&self, key: &str) -> Result<(), Error>;
}
