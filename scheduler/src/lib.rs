//! The scheduler: what is desired, decided and kept.
//!
//! Reading order: `state` (what the log decides, pure), `plan` (what to change, pure), `lease` (who may run what is strict,
//! pure), `status` (what people see, pure), `leader` (what a leader does about all that, pure), `control` (its loop), `raft`
//! (the log), `peer` (schedulers among themselves), `api` (gRPC), `backup` (all of it as one file), `telemetry` (health,
//! metrics). Absent here: anything of the host, HTTP routes, Wasm.

pub mod api;
mod artifact;
pub mod backup;
mod control;
mod events;
mod gather;
pub mod leader;
pub mod lease;
pub mod peer;
pub mod plan;
pub mod raft;
mod replica;
mod run;
pub mod state;
pub mod status;
mod telemetry;
mod tls;
pub mod watched;

pub use replica::Replica;
pub use run::{Config, Error, Scheduler};
pub use telemetry::Health;
