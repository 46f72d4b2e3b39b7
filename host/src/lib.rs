//! A host: runs the actors that the scheduler assigned to it, and keeps running them when it can not be reached.
//!
//! Reading order: `agent` (the loop), `assignment` (what has to happen, pure), `keeper` (what is on its way, and what begins
//! next, pure), `lease` (until when what is strict may run, pure) with `holding` (the same for everyone), `beats` (what is
//! told, pure), `artifact` (bytes by content), `engine` (wasmtime), `fair` (who may have how many, pure), `capability`
//! (what guests may import), `provider` (who implements it here), `link` (which provider is meant), `rpc` (calls over the
//! bus), `ingress` (HTTP from outside), `logs`, `origin` (what caused a call), `metrics`, `spans`, `heap` (what the allocator
//! keeps).
//! Absent here: anything of the scheduler; a host decides nothing about other hosts.

pub mod agent;
pub mod artifact;
pub mod assignment;
pub mod beats;
pub mod call;
pub mod capability;
pub mod engine;
mod fair;
mod heap;
pub mod holding;
pub mod ingress;
pub mod keeper;
pub mod lease;
pub mod link;
pub mod logs;
pub mod metrics;
#[cfg(test)]
mod on_bus;
pub mod origin;
pub mod provider;
pub mod rpc;
pub mod spans;
pub mod value;
