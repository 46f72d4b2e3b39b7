//! Artifacts: the bytes of components, by content. `store` keeps them on this host's disk, `fetch` brings them
//! over the bus.

pub mod fetch;
pub mod store;

pub use store::{Error, Store};
