//! The functions of WASI that have no way to say no: without their grant, calling one ends the invocation with an error
//! that names it. Those that can say no say so to the guest, and to the actor's log. Imports are linked either way,
//! since toolchains import what nothing uses.

use super::granted::{Granted, Protocol};
use super::later;
use super::state::State;
use proto::app::Random;
use proto::needs::Grant;
use sha2::{Digest as _, Sha256};
use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, Resource, Val};
use wasmtime_wasi::p2::Network;
use wasmtime_wasi::p2::bindings::sockets::ip_name_lookup::ResolveAddressStream;
use wasmtime_wasi::p2::bindings::sockets::network::ErrorCode;

/// The version under which the library links WASI; a test sees that this is so.
pub(super) const VERSION: &str = "0.2.12";
/// Bytes of random numbers given at once.
pub(super) const RANDOM_BYTES_MAX: u64 = 1 << 20;

/// What is called without its grant.
#[derive(Debug, thiserror::Error)]
#[error("called {function} without a grant ({name}): add `{example}` to its grants trait")]
pub(super) struct Denied {
    function: String,
    name: &'static str,
    example: &'static str,
}

/// Functions that give a value and no error, by interface.
const TRAPPING: &[(&str, &[&str])] = &[
    ("wasi:clocks/wall-clock", &["now", "resolution"]),
    ("wasi:random/insecure", &["get-insecure-random-bytes", "get-insecure-random-u64"]),
    ("wasi:random/random", &["get-random-bytes", "get-random-u64"]),
];

/// The same of WASI 0.3.
const TRAPPING_LATER: &[(&str, &[&str])] = &[
    ("wasi:clocks/system-clock", &["now", "get-resolution"]),
    ("wasi:random/insecure", &["get-insecure-random-bytes", "get-insecure-random-u64"]),
    ("wasi:random/random", &["get-random-bytes", "get-random-u64"]),
];

const EXIT: &str = "wasi:cli/exit";
const LOOKUP: (&str, &str) = ("wasi:sockets/ip-name-lookup", "resolve-addresses");
/// Those that give an error of `wasi:sockets`, beside the look-up of names.
const REFUSING: &[(&str, &str)] =
    &[("wasi:sockets/tcp-create-socket", "create-tcp-socket"), ("wasi:sockets/udp-create-socket", "create-udp-socket")];

/// Puts guards in place of what is not granted, and the seeded numbers in place of the system's.
pub(super) fn shadow(linker: &mut Linker<State>, granted: &Granted, is_later: bool) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    trapping(linker, granted, TRAPPING, VERSION)?;
    exits(linker, VERSION)?;
    let is_seeded = matches!(granted.grants.random, Some(Random::Seed(_)));
    if is_seeded {
        seeded(linker, VERSION)?;
    }
    // What can say no does so by the context, which the two versions share.
    if is_later {
        trapping(linker, granted, TRAPPING_LATER, later::VERSION)?;
        exits(linker, later::VERSION)?;
        if is_seeded {
            seeded(linker, later::VERSION)?;
        }
    }
    for (interface, function) in REFUSING {
        let Some(grant) = Grant::named(interface).filter(|grant| !grant.is_given(&granted.grants)) else { continue };
        linker.instance(&format!("{interface}@{VERSION}"))?.func_new(function, move |store, _, _, results| {
            refuse(store.data(), (interface, function), grant);
            results[0] = Val::Result(Err(Some(Box::new(Val::Enum("access-denied".to_owned())))));
            Ok(())
        })?;
    }
    // Its parameter is a handle, which only a typed function gives back by itself.
    type Found = Result<Resource<ResolveAddressStream>, ErrorCode>;
    if let Some(grant) = Grant::named(LOOKUP.0).filter(|grant| !grant.is_given(&granted.grants)) {
        let mut to = linker.instance(&format!("{}@{VERSION}", LOOKUP.0))?;
        to.func_wrap(LOOKUP.1, move |store: StoreContextMut<'_, State>, _: (Resource<Network>, String)| {
            refuse(store.data(), LOOKUP, grant);
            Ok((Found::Err(ErrorCode::AccessDenied),))
        })?;
    }
    linker.allow_shadowing(false);
    Ok(())
}

fn trapping(
    linker: &mut Linker<State>,
    granted: &Granted,
    all: &[(&str, &[&str])],
    version: &str,
) -> wasmtime::Result<()> {
    for (interface, functions) in all {
        let Some(grant) = Grant::named(interface).filter(|grant| !grant.is_given(&granted.grants)) else { continue };
        let mut to = linker.instance(&format!("{interface}@{version}"))?;
        for function in *functions {
            let function_name = format!("{interface}.{function}");
            to.func_new(function, move |_, _, _, _| {
                let function = function_name.clone();
                Err(Denied { function, name: grant.name, example: grant.example }.into())
            })?;
        }
    }
    Ok(())
}

/// Both ways to end. A program needs no grant for its last word.
fn exits(linker: &mut Linker<State>, version: &str) -> wasmtime::Result<()> {
    fn leave(store: StoreContextMut<'_, State>, function: &str, code: u8) -> wasmtime::Result<()> {
        match Grant::named(EXIT) {
            Some(grant) if !store.data().is_batch && !grant.is_given(&store.data().env().granted.grants) => {
                let function = format!("{EXIT}.{function}");
                Err(Denied { function, name: grant.name, example: grant.example }.into())
            }
            _ => Err(wasmtime_wasi::I32Exit(i32::from(code)).into()),
        }
    }
    let mut to = linker.instance(&format!("{EXIT}@{version}"))?;
    to.func_wrap("exit", |store, (ended,): (Result<(), ()>,)| leave(store, "exit", u8::from(ended.is_err())))?;
    to.func_wrap("exit-with-code", |store, (code,): (u8,)| leave(store, "exit-with-code", code))
}

fn refuse(state: &State, (interface, function): (&str, &str), grant: &Grant) {
    let (who, Grant { name, example, .. }) = (&state.env().label, grant);
    let text = format!("{interface}.{function} of actor {who} is denied ({name}): add `{example}` to its grants");
    state.log().line("warn", &text);
}

fn seeded(linker: &mut Linker<State>, version: &str) -> wasmtime::Result<()> {
    for (interface, bytes, number) in [
        ("wasi:random/random", "get-random-bytes", "get-random-u64"),
        ("wasi:random/insecure", "get-insecure-random-bytes", "get-insecure-random-u64"),
    ] {
        let mut to = linker.instance(&format!("{interface}@{version}"))?;
        to.func_wrap(bytes, |mut store: StoreContextMut<'_, State>, (len,): (u64,)| {
            if len > RANDOM_BYTES_MAX {
                return Err(wasmtime::Error::msg(format!("{len} random bytes at once; at most {RANDOM_BYTES_MAX}")));
            }
            Ok((store.data_mut().seeded().take(usize::try_from(len)?),))
        })?;
        to.func_wrap(number, |mut store: StoreContextMut<'_, State>, (): ()| {
            let bytes = store.data_mut().seeded().take(8);
            Ok((bytes.iter().fold(0_u64, |number, byte| number << 8 | u64::from(*byte)),))
        })?;
    }
    Ok(())
}

/// Numbers from a seed: SHA-256 of the seed and a counter, the same on every machine and in every version.
pub(super) struct Seeded {
    seed: u64,
    blocks: u64,
    left: Vec<u8>,
}

impl Seeded {
    pub(super) fn new(seed: u64) -> Self {
        Self { seed, blocks: 0, left: Vec::new() }
    }

    fn take(&mut self, len: usize) -> Vec<u8> {
        while self.left.len() < len {
            let block = Sha256::new().chain_update(self.seed.to_be_bytes()).chain_update(self.blocks.to_be_bytes());
            self.left.extend(block.finalize());
            self.blocks += 1;
        }
        let rest = self.left.split_off(len);
        std::mem::replace(&mut self.left, rest)
    }
}

/// The interface of a raw socket, and its grant, for messages.
pub(super) fn socket_names(protocol: Protocol) -> (&'static str, &'static str) {
    match protocol {
        Protocol::Tcp => ("wasi:sockets/tcp", "grants.sockets.tcp"),
        Protocol::Udp => ("wasi:sockets/udp", "grants.sockets.udp"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_numbers_however_they_are_taken() {
        let all = Seeded::new(42).take(100);
        let mut pieces = Seeded::new(42);
        let taken: Vec<u8> = [1, 31, 33, 0, 35].into_iter().flat_map(|len| pieces.take(len)).collect();
        assert_eq!(taken, all);
        assert_ne!(Seeded::new(43).take(100), all);
        // They are what they were in every version before.
        assert_eq!(all[..4], Sha256::digest([0, 0, 0, 0, 0, 0, 0, 42, 0, 0, 0, 0, 0, 0, 0, 0])[..4]);
    }

    #[test]
    fn every_function_that_is_guarded_has_a_grant() {
        for interface in TRAPPING
            .iter()
            .chain(TRAPPING_LATER)
            .map(|(i, _)| i)
            .chain(REFUSING.iter().map(|(i, _)| i))
            .chain([&LOOKUP.0, &EXIT])
        {
            assert!(Grant::named(interface).is_some(), "{interface}");
        }
    }
}
