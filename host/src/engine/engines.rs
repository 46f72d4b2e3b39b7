//! The wasmtime engines of this process. The usual one runs components of WASI 0.2. Beside it, each made when the first
//! component comes that needs it: one for those of WASI 0.3, since calls of WASI 0.2 would pay for what these need; and
//! for each larger call stack one of either kind, since wasmtime has one bound for all that an engine runs.
//!
//! Code that was compiled for one of a kind is code for all of that kind. They share one clock.

use super::cache::Cache;
use super::clock::Clock;
use super::config::{self, Kind, Size, Stack};
use super::state::State;
use super::{Error, kept};
use proto::app::Digest;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use wasmtime::component::{Component, HasData, Linker, ResourceTable};
use wasmtime_wasi_http::p3;
use wasmtime_wasi_io::bindings::wasi::io as wasi_io;

/// An engine, and what comes with it.
pub(super) struct Built {
    pub(super) engine: wasmtime::Engine,
    /// WASI, linked once; each actor adds what it imports to a copy. For components of WASI 0.3 both, 0.3 and 0.2.
    pub(super) wasi: Linker<State>,
    pub(super) cache: Arc<Cache>,
    pub(super) kind: Kind,
    pub(super) stack: Stack,
}

pub(super) struct Engines {
    pub(super) usual: Arc<Built>,
    /// At most one of each kind and stack.
    others: Mutex<Vec<Arc<Built>>>,
    size: Size,
    clock: Arc<Clock>,
}

impl Engines {
    /// And what they can carry together, which may be less than `size` where the machine refuses to reserve so much.
    pub(super) fn start(size: Size, cache_dir: &Path, clock: &Arc<Clock>) -> Result<(Self, Size), Error> {
        let (engine, size) = start(size, Kind::Plain, Stack::USUAL)?;
        let cache = open(cache_dir, &engine)?;
        let usual = Arc::new(Built::new(engine, cache, Kind::Plain, Stack::USUAL)?);
        clock.tick(&usual.engine);
        Ok((Self { usual, others: Mutex::default(), size, clock: clock.clone() }, size))
    }

    /// The engine of this kind with this call stack.
    pub(super) fn get(&self, kind: Kind, stack: Stack) -> Result<Arc<Built>, Error> {
        if (kind, stack) == (self.usual.kind, self.usual.stack) {
            return Ok(self.usual.clone());
        }
        let mut others = self.others();
        if let Some(built) = others.iter().find(|built| (built.kind, built.stack) == (kind, stack)) {
            return Ok(built.clone());
        }
        let (engine, _) = start(self.size.with(stack), kind, stack)?;
        let of_kind = [&self.usual].into_iter().chain(&*others).find(|built| built.kind == kind);
        let cache = match of_kind {
            Some(built) => built.cache.clone(),
            None => Arc::new(self.usual.cache.of_other(&engine)),
        };
        let built = Arc::new(Built::new(engine, cache, kind, stack)?);
        self.clock.tick(&built.engine);
        tracing::info!(?kind, stack_bytes = stack.bytes(), "another engine, for components that need it");
        others.push(built.clone());
        Ok(built)
    }

    /// A component compiled before, of whichever kind.
    pub(super) fn cached(&self, digest: &Digest, stack: Stack) -> Option<(Component, Arc<Built>)> {
        let load = |kind| {
            let built = self.get(kind, stack).ok()?;
            Some((built.cache.load(&built.engine, digest)?, built))
        };
        let plain = if self.usual.cache.has(digest) { load(Kind::Plain) } else { None };
        plain.or_else(|| if self.has_later(digest) { load(Kind::Later) } else { None })
    }

    fn has_later(&self, digest: &Digest) -> bool {
        let made = self.others().iter().find(|built| built.kind == Kind::Later).map(|built| built.cache.clone());
        // What it would be called is known once such an engine was made; else the whole folder is gone through.
        made.map_or_else(|| self.usual.cache.has_other(digest), |cache| cache.has(digest))
    }

    fn others(&self) -> MutexGuard<'_, Vec<Arc<Built>>> {
        self.others.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Built {
    fn new(engine: wasmtime::Engine, cache: Arc<Cache>, kind: Kind, stack: Stack) -> Result<Self, Error> {
        let wasi = link_wasi(&engine, kind).map_err(|e| Error::Start(format!("{e:#}")))?;
        Ok(Self { engine, wasi, cache, kind, stack })
    }
}

fn open(dir: &Path, engine: &wasmtime::Engine) -> Result<Arc<Cache>, Error> {
    let opened = Cache::open(dir, engine).map(Arc::new);
    opened.map_err(|source| Error::Cache { dir: dir.display().to_string(), source })
}

/// Reserves address space for as many instances as may be, fewer if the machine refuses, none if it can not at all.
fn start(mut size: Size, kind: Kind, stack: Stack) -> Result<(wasmtime::Engine, Size), Error> {
    loop {
        match wasmtime::Engine::new(&config::wasmtime_config(Some(size), kind, stack)) {
            Ok(engine) => return Ok((engine, size)),
            Err(error) if size.instances > 16 => {
                tracing::info!(instances = size.instances, %error, "pool refused; trying half");
                size.instances /= 2;
            }
            Err(error) => {
                tracing::warn!(%error, "no pool on this machine: instances start more slowly");
                let engine = wasmtime::Engine::new(&config::wasmtime_config(None, kind, stack));
                return engine.map(|e| (e, size)).map_err(|e| Error::Start(format!("{e:#}")));
            }
        }
    }
}

fn link_wasi(engine: &wasmtime::Engine, kind: Kind) -> wasmtime::Result<Linker<State>> {
    let mut linker = Linker::new(engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker)?;
    // Streams live in the table: whoever only answers needs no context of WASI.
    linker.allow_shadowing(true);
    wasi_io::error::add_to_linker::<State, Handles>(&mut linker, |state| &mut state.table)?;
    wasi_io::poll::add_to_linker::<State, Handles>(&mut linker, |state| &mut state.table)?;
    wasi_io::streams::add_to_linker::<State, Handles>(&mut linker, |state| &mut state.table)?;
    linker.allow_shadowing(false);
    kept::bound(&mut linker)?;
    if kind == Kind::Later {
        wasmtime_wasi::p3::add_to_linker(&mut linker)?;
        p3::add_to_linker(&mut linker)?;
        kept::bound_later(&mut linker)?;
    }
    Ok(linker)
}

/// What `wasi:io` works on.
struct Handles;

impl HasData for Handles {
    type Data<'a> = &'a mut ResourceTable;
}
