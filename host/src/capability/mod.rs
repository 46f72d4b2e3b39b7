//! Capabilities: one trait each, the WIT glue that lets a guest call it, and its two bus ends. Traits do not know
//! whether they are served in this process (`provider`) or across the bus (`rpc`).

pub mod keystore;
pub mod keyvalue;
pub mod traced;
pub mod wire;

use crate::call::{CallError, Serve};
use crate::origin::Origin;
use std::sync::Arc;

/// How an actor's imports reach their providers, as its links say. Implemented by `link::Table`; resolved at each
/// call, so that a provider may move while the actor runs.
pub trait Imports: Send + Sync {
    /// `interface` is "wasi:keyvalue/store"; `name` the link's name ("default").
    /// `origin` goes along where the call leaves this process or reaches another actor.
    fn keyvalue(&self, interface: &str, name: &str, origin: &Origin) -> Result<Arc<dyn keyvalue::KeyValue>, CallError>;
    fn keystore(&self, name: &str, origin: &Origin) -> Result<Arc<dyn keystore::KeyStore>, CallError>;
    /// Any other interface: called dynamically, with values of the guest's own types.
    fn dynamic(&self, interface: &str, name: &str) -> Result<Arc<dyn Serve>, CallError>;
}

/// Where the output of guests goes. Called often: must not block; bounded by dropping the oldest.
pub trait LogSink: Send + Sync {
    /// `request_id` is that of the request that the guest works for, "" if there is none.
    fn line(&self, instance: u64, request_id: &str, stream: &str, text: &str);
}
