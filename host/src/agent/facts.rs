//! What a host finds out about itself.

use crate::engine::{Engine, machine_memory_bytes};
use proto::app::Builtin;
use proto::v1 as pb;

pub(super) fn find_out() -> pb::Facts {
    let mut interfaces = Engine::interfaces();
    interfaces.extend(Builtin::Keyvalue.interfaces().iter().map(|i| (*i).to_owned()));
    interfaces.sort();
    interfaces.dedup();
    pb::Facts {
        arch: std::env::consts::ARCH.to_owned(),
        os: std::env::consts::OS.to_owned(),
        cpus: std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX)),
        memory_bytes: machine_memory_bytes().unwrap_or(0),
        engine: Engine::version(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        interfaces,
        leases: true,
    }
}
