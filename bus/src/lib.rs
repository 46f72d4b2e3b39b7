//! The NATS client as this project uses it, and the embedded broker.
//!
//! Reading order: `envelope` (what travels in headers; pure), `client` (connect, publish, subscribe), `wire` (what
//! keeps the connection), `inbox` (where answers arrive), `call` and `serve` (the two ends of a call), `transfer`
//! (bodies above the message limit), `stream` (bodies of unknown size), `replay` (what was taken already; pure), `drops`
//! (what was refused, counted); then `broker` behind the feature of that name.
//!
//! What is absent: knowledge of any message type beyond "it is protobuf", and JetStream. Nothing that arrives can
//! panic or grow without a bound: it is dropped and counted.

mod call;
mod client;
mod config;
mod drops;
mod envelope;
mod error;
mod inbox;
mod replay;
mod serve;
mod stream;
mod subscription;
mod transfer;
mod wire;

#[cfg(feature = "broker")]
pub mod broker;

pub use client::Bus;
pub use config::{Config, without_secret};
pub use drops::{Drops, Reason};
pub use envelope::{HEADERS_BYTES_MAX, Headers};
pub use error::Error;
pub use inbox::CALLS_MAX;
pub use serve::{Refusal, Reply, Request, Rest, Serving, Share};
pub use stream::{Offer, Pull, STREAMS_MAX};
pub use subscription::{Message, Subscription};
pub use transfer::CALL_BYTES_MAX;
pub use wire::Connection;

/// A protobuf message as a payload.
pub fn encode<M: prost::Message>(message: &M) -> bytes::Bytes {
    message.encode_to_vec().into()
}
