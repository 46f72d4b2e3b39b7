//! A host: runs the actors that the scheduler assigned to it, and keeps running them when it can not be reached.
//!
//! Reading order: `agent` (the loop), `assignment` (what has to happen, pure), `artifact` (bytes by content), `engine`
//! (wasmtime), `capability` (what guests may import), `provider` (who implements it here), `link` (which provider is
//! meant), `rpc` (calls over the bus), `ingress` (HTTP from outside), `logs`, `origin` (what caused a call), `metrics`,
//! `spans`.
//! Absent here: anything of the scheduler; a host decides nothing about other hosts.

pub mod agent;
pub mod artifact;
pub mod assignment;
pub mod call;
pub mod capability;
pub mod engine;
pub mod ingress;
pub mod link;
pub mod logs;
pub mod metrics;
pub mod origin;
pub mod provider;
pub mod rpc;
pub mod spans;
pub mod value;
