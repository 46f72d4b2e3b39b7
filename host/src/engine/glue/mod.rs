//! The interfaces that this host serves to guests itself, beside WASI: typed glue from each WIT interface to the trait
//! of its capability. Linked only for what a component imports. A capability is found at each call, so that its
//! provider may move while the actor runs.

mod config;
mod keystore;
mod keyvalue;
mod keyvalue_draft2;
mod logging;
mod tied;

pub(super) use keystore::{Call as KeystoreCall, function as keystore_function};
pub(super) use keyvalue_draft2::Cas;
pub(super) use tied::tied;

use super::state::State;
use wasmtime::Result;
use wasmtime::component::{HasSelf, Linker};

/// The getter that every `add_to_linker` takes: the store's data serves itself.
fn state(state: &mut State) -> &mut State {
    state
}

type Own = HasSelf<State>;
type Add = fn(&mut Linker<State>) -> Result<()>;

/// Interfaces by the full name that components import them by.
pub(super) const INTERFACES: &[(&str, Add)] = &[
    ("lattice:keystore/store@0.1.0", |l| keystore::store::add_to_linker::<State, Own>(l, state)),
    ("wasi:config/runtime@0.2.0-draft", |l| config::runtime::add_to_linker::<State, Own>(l, state)),
    ("wasi:config/store@0.2.0-rc.1", |l| config::store::add_to_linker::<State, Own>(l, state)),
    ("wasi:keyvalue/atomics@0.2.0-draft", |l| keyvalue::atomics::add_to_linker::<State, Own>(l, state)),
    ("wasi:keyvalue/atomics@0.2.0-draft2", |l| keyvalue_draft2::atomics::add_to_linker::<State, Own>(l, state)),
    ("wasi:keyvalue/batch@0.2.0-draft", |l| keyvalue::batch::add_to_linker::<State, Own>(l, state)),
    ("wasi:keyvalue/batch@0.2.0-draft2", |l| keyvalue_draft2::batch::add_to_linker::<State, Own>(l, state)),
    ("wasi:keyvalue/store@0.2.0-draft", |l| keyvalue::store::add_to_linker::<State, Own>(l, state)),
    ("wasi:keyvalue/store@0.2.0-draft2", |l| keyvalue_draft2::store::add_to_linker::<State, Own>(l, state)),
    ("wasi:logging/logging", |l| logging::plain::add_to_linker::<State, Own>(l, state)),
    ("wasi:logging/logging@0.1.0-draft", |l| logging::draft::add_to_linker::<State, Own>(l, state)),
];
