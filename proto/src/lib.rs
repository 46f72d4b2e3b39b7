//! Everything two processes must agree on: wire messages, validated nouns, subjects, the manifest. No IO.
//!
//! Reading order: `app` (the nouns), `manifest` (YAML -> App), `component` (bytes -> what
//! they import and export), `check` (one against the other), `needs` (what a component wants granted), `address` (what
//! a granted address means), `policy` (what a host takes away), `subject` (addresses on the bus), `starting` (how far a host
//! is, in words), `backup` (the file of a backup), `v1` (wire types, generated from lattice/v1/*.proto).

pub mod address;
pub mod app;
pub mod backup;
pub mod check;
pub mod component;
pub mod fault;
pub mod manifest;
pub mod needs;
pub mod policy;
pub mod starting;
pub mod subject;
pub mod time;

/// Wire types generated from `lattice/v1/*.proto`.
#[allow(clippy::all, clippy::allow_attributes_without_reason, unreachable_pub, missing_docs, reason = "generated code")]
pub mod v1 {
    tonic::include_proto!("lattice.v1");
    /// The encoded `FileDescriptorSet`, for gRPC server reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/lattice.bin"));
}
