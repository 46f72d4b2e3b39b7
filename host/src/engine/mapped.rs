//! An actor's code while it is mapped. What nobody calls is unmapped, the longest unused first, once more than a bound
//! are mapped; the next request maps it again from the cache of compiled code.
//!
//! Unmapping must never end an invocation: those under way hold on to what they run.

use super::config::Stack;
use super::state::{Env, State};
use super::{Engine, Error, HANDLER, among, clock, guard, later};
use crate::engine::module::Module;
use proto::app::Digest;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use wasmtime::component::InstancePre;
use wasmtime_wasi_http::p2::bindings::ProxyPre;
use wasmtime_wasi_http::p3::bindings::ServicePre;

/// Gives a component's bytes, for when its compiled code was lost.
pub type Source = Arc<dyn Fn() -> io::Result<Vec<u8>> + Send + Sync>;

/// Code, linked for one actor.
pub(super) struct Linked {
    pub(super) pre: InstancePre<State>,
    /// If it takes HTTP.
    pub(super) proxy: Option<ProxyPre<State>>,
    /// The same in WASI 0.3.
    pub(super) service: Option<ServicePre<State>>,
    pub(super) module: Arc<Module>,
}

impl Linked {
    fn new(env: &Env, module: &Arc<Module>) -> Result<Arc<Self>, Error> {
        let mut linker = module.built.wasi.clone();
        module.link(&mut linker, &env.label)?;
        let is_later = module.is_later();
        let refused = |e: wasmtime::Error| Error::Link { actor: env.label.clone(), reason: format!("{e:#}") };
        if is_later && (env.limits.concurrency > 1 || env.limits.reuse > 1) {
            among::shadow(&mut linker).map_err(refused)?;
        }
        guard::shadow(&mut linker, &env.granted, is_later).map_err(refused)?;
        let pre = linker.instantiate_pre(&module.component).map_err(refused)?;
        let proxy = match module.exports.contains_key(HANDLER) {
            true => Some(ProxyPre::new(pre.clone()).map_err(refused)?),
            false => None,
        };
        let service = match module.exports.contains_key(later::HANDLER) {
            true => Some(ServicePre::new(pre.clone()).map_err(refused)?),
            false => None,
        };
        Ok(Arc::new(Self { pre, proxy, service, module: module.clone() }))
    }
}

/// One actor's code: mapped, or not.
pub(super) struct Mapped {
    digest: Digest,
    stack: Stack,
    source: Source,
    linked: RwLock<Option<Arc<Linked>>>,
    /// The tick at which it was last wanted.
    used: AtomicU64,
}

impl Mapped {
    pub(super) fn new(engine: &Engine, env: &Env, module: &Arc<Module>, source: Source) -> Result<Arc<Self>, Error> {
        let linked = Linked::new(env, module)?;
        let mapped = Self {
            digest: module.digest.clone(),
            stack: module.built.stack,
            source,
            linked: RwLock::new(Some(linked)),
            used: AtomicU64::new(clock::ticks()),
        };
        let mapped = Arc::new(mapped);
        engine.inner.mapped.add(&mapped);
        Ok(mapped)
    }

    /// The code, mapped again if need be.
    pub(super) async fn get(self: &Arc<Self>, engine: &Engine, env: &Env) -> Result<Arc<Linked>, Error> {
        self.used.store(clock::ticks(), Ordering::Relaxed);
        if let Some(linked) = self.now() {
            return Ok(linked);
        }
        let source = self.source.clone();
        let loading = engine.load_sized(&self.digest, self.stack.bytes(), 0, move || source(), |_| ());
        let module = loading.await?;
        let linked = {
            let mut linked = self.linked.write().unwrap_or_else(PoisonError::into_inner);
            // Of those that came for it at once, the first links it.
            match &*linked {
                Some(linked) => return Ok(linked.clone()),
                None => linked.insert(Linked::new(env, &module)?).clone(),
            }
        };
        engine.inner.mapped.add(self);
        Ok(linked)
    }

    pub(super) fn now(&self) -> Option<Arc<Linked>> {
        self.linked.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn unmap(&self) {
        let linked = self.linked.write().unwrap_or_else(PoisonError::into_inner).take();
        // Not under the lock: giving memory back takes its time.
        drop(linked);
    }
}

/// What is mapped.
pub(super) struct Table {
    all: Mutex<Vec<Weak<Mapped>>>,
    len_max: usize,
}

impl Table {
    pub(super) fn new(len_max: u32) -> Self {
        Self { all: Mutex::default(), len_max: usize::try_from(len_max).unwrap_or(usize::MAX) }
    }

    /// Adds one, and unmaps the one that was unused longest if they are too many now.
    fn add(&self, mapped: &Arc<Mapped>) {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= self.len_max {
            all.retain(|one| one.strong_count() > 0);
        }
        let longest = |one: &Weak<Mapped>| one.upgrade().map_or(0, |one| one.used.load(Ordering::Relaxed));
        let mut gone = Vec::new();
        while all.len() >= self.len_max.max(1)
            && let Some((at, _)) = all.iter().enumerate().min_by_key(|(_, one)| longest(one))
        {
            gone.push(all.swap_remove(at));
        }
        all.push(Arc::downgrade(mapped));
        drop(all);
        gone.iter().filter_map(Weak::upgrade).for_each(|one| one.unmap());
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().filter_map(Weak::upgrade).filter(|one| one.now().is_some()).count()
    }
}
