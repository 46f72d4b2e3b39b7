//! What the host itself implements: the providers behind the capability traits. Knows nothing of guests or the bus.

pub mod keyvalue;
pub mod serve;
