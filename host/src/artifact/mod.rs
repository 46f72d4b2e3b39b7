//! Artifacts: the bytes of components, by content. `store` keeps them on this host's disk, `fetch` brings them
//! over the bus, `share` gives them to others, `unused` says which may go.

pub mod fetch;
pub mod share;
pub mod store;
pub mod unused;

pub use share::Share;
pub use store::{Error, Store};
pub use unused::Unused;
