//! Runs components: compiled once per digest, linked once per actor, a fresh instance per invocation.
//!
//! Reading order: `config` (how wasmtime is set up; `cgroup`: in how much memory), `engines` (each made once), `cache`
//! (compiled code on disk), `compile` (who makes it), `queue` (in which order), `module` (what a component imports and
//! exports), `mapped` (an actor's code), `actor` (an actor revision and its invocations), `http`, `dynamic` and `batch` (the
//! kinds of calls), `later` and `many` (WASI 0.3), `env` and `state` (what an actor and an instance carry), `kept` (what the
//! host keeps for it), `limiter` and `slots` (its memory, and its right to be), `idle` (instances between requests),
//! `granted`, `guard`, `wasi` and `outgoing` (what grants come to), `clock` (when a guest gives way), `lane` (which threads),
//! `glue` (capabilities), `gate` (the queue).
//!
//! A trap, an endless loop or a memory bomb ends one invocation, with a named error. Nothing in here may panic on what
//! a guest does, and nothing that a guest can grow is without a bound.

mod actor;
mod among;
mod apart;
mod batch;
mod body;
mod cache;
mod cgroup;
mod clock;
mod compile;
mod config;
mod dynamic;
mod engines;
mod env;
mod failed;
mod gate;
mod glue;
mod granted;
mod guard;
mod http;
mod idle;
mod invocation;
mod kept;
mod lane;
mod later;
mod limiter;
mod many;
mod mapped;
mod module;
mod outgoing;
mod output;
mod queue;
mod slots;
mod state;
#[cfg(test)]
mod tests;
mod wasi;

pub use actor::{Actor, Spec, Stats};
pub use batch::{COMMAND, Job, Printed};
pub use compile::{ARGUMENT as COMPILE_ARGUMENT, Compiler, child as compile_child};
pub use config::{Config, machine_memory_bytes};
pub use granted::BusAddresses;
pub use mapped::Source;
pub use module::Module;
#[cfg(test)]
pub(crate) use tests::from_wit;

use crate::metrics::Count;
use actor::HANDLER;
use clock::Clock;
use config::{Kind, Size, Stack};
use engines::{Built, Engines};
use idle::Idle;
use lane::Lanes;
use limiter::Budget;
use proto::app::{ARTIFACT_BYTES_MAX, Digest, STACK_BYTES};
use proto::component::is_later;
use proto::policy::Policy;
use queue::{Queue, Refusals};
use slots::Slots;
use std::collections::HashMap;
use std::io;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Instant;
use tokio::sync::Semaphore;
use wasmtime::component::Component;

/// The version in the lock file, which a test compares; the crate does not tell it.
const WASMTIME_VERSION: &str = "48.0.8";

/// Components that are taken from the cache at once: all of a large one is read.
const MAPS_MAX: usize = 4;

/// Why a component can not be run here.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("wasmtime can not start on this machine: {0}")]
    Start(String),
    #[error("the cache of compiled code in {dir}: {source}; make it a folder that this user can write")]
    Cache { dir: String, source: io::Error },
    #[error("artifact {digest} can not be read: {source}; it will be fetched again")]
    Read { digest: Digest, source: io::Error },
    #[error("artifact {digest} is damaged: its bytes have the digest {found}; it will be fetched again")]
    Damaged { digest: Digest, found: Digest },
    #[error("artifact {digest} has {bytes} bytes; at most {ARTIFACT_BYTES_MAX} are allowed")]
    TooLarge { digest: Digest, bytes: u64 },
    #[error("artifact {digest} is not a component: {reason}")]
    NotComponent { digest: Digest, reason: String },
    #[error("artifact {digest} can not be compiled: {reason}")]
    Compile { digest: Digest, reason: String },
    #[error("artifact {digest} can not be compiled now: {reason}; it is tried again")]
    NoCompiler { digest: Digest, reason: String },
    #[error("actor {actor} imports what nothing here can serve: {unserved}")]
    Imports { actor: String, unserved: String },
    #[error("actor {actor} is granted what this host can not give: {reason}")]
    Grant { actor: String, reason: String },
    #[error(
        "the policy of this host does not let actor {actor} start: {reasons}; or choose other hosts by requirements"
    )]
    Policy { actor: String, reasons: String },
    #[error("actor {actor} can not be linked: {reason}")]
    Link { actor: String, reason: String },
}

/// The engine of this process; clones are the same engine.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

struct Inner {
    engines: Engines,
    compiler: Option<Compiler>,
    size: Size,
    /// What is loaded, and the right to load it, by digest.
    modules: Mutex<HashMap<Digest, Arc<Loading>>>,
    mapped: mapped::Table,
    /// Compiling takes seconds of CPU, mapping what was compiled a moment of the disk's: each in its turn.
    compiles: Arc<Queue>,
    maps: Semaphore,
    refusals: Refusals,
    /// Instances that may be alive.
    slots: Arc<Slots>,
    budget: Arc<Budget>,
    lanes: Lanes,
    idle: Arc<Idle>,
    policy: Arc<Policy>,
    bus: BusAddresses,
    clock: Arc<Clock>,
    /// Numbers prepared actors.
    actors: AtomicU64,
    /// Numbers instances, for their logs.
    instances: Arc<AtomicU64>,
    /// Components made ready: compiled, and taken from the cache.
    loads: [Count; 2],
}

/// One for each call stack.
type Loading = tokio::sync::Mutex<[Weak<Module>; Stack::SIZES]>;

/// How far a component is that is not in the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compiling {
    /// It waits for its turn, or for the same component to be compiled for another actor.
    Queued,
    Begun,
}

impl Engine {
    pub fn new(config: Config) -> Result<Self, Error> {
        let size = Size::of(&config);
        let clock = Arc::<Clock>::default();
        let (engines, size) = Engines::start(size, &config.cache_dir, &clock)?;
        let idle = Arc::new(Idle::new(usize::try_from(size.instances / 2).unwrap_or(usize::MAX)));
        clock.start(Arc::downgrade(&idle)).map_err(|e| Error::Start(e.to_string()))?;
        let lanes = Lanes::start().map_err(|e| Error::Start(e.to_string()))?;
        let Size { instances, memory_bytes, mapped } = size;
        tracing::info!(instances, memory_bytes, mapped, "what this machine can carry at once");
        Ok(Self {
            inner: Arc::new(Inner {
                engines,
                compiler: config.compiler,
                size,
                modules: Mutex::default(),
                mapped: mapped::Table::new(size.mapped),
                compiles: Queue::new(),
                maps: Semaphore::new(MAPS_MAX),
                refusals: Refusals::default(),
                slots: Slots::new(size.instances),
                budget: Budget::new(size.memory_bytes),
                lanes,
                idle,
                policy: config.policy,
                bus: config.bus,
                clock,
                actors: AtomicU64::new(0),
                instances: Arc::default(),
                loads: Default::default(),
            }),
        })
    }

    /// "wasmtime 48.0.8".
    pub fn version() -> String {
        format!("wasmtime {WASMTIME_VERSION}")
    }

    /// Interfaces that any component can import here without a link to another actor, with the versions served. Those
    /// of keyvalue and keystore want a link to a provider.
    pub fn interfaces() -> Vec<String> {
        module::interfaces()
    }

    /// Instances that may be alive at once on this machine.
    pub fn instances_max(&self) -> u32 {
        self.inner.size.instances
    }

    /// Linear memory that all live instances have, and may have, in bytes.
    pub fn memory_bytes(&self) -> (u64, u64) {
        (self.inner.budget.used(), self.inner.size.memory_bytes)
    }

    /// Instances that run now.
    pub fn running(&self) -> u32 {
        self.inner.clock.running()
    }

    /// How often a component was compiled, and how often it was taken from the cache of compiled code.
    pub fn loads(&self) -> (u64, u64) {
        (self.inner.loads[0].get(), self.inner.loads[1].get())
    }

    /// The component of `digest`: the one already loaded, else mapped from the cache, else compiled from what `bytes`
    /// gives. Never compiles the same component twice at once; compiles off the threads that serve.
    pub async fn load(
        &self,
        digest: &Digest,
        bytes: impl FnOnce() -> io::Result<Vec<u8>> + Send + 'static,
    ) -> Result<Arc<Module>, Error> {
        self.load_sized(digest, STACK_BYTES, 0, bytes, |_| ()).await
    }

    /// The same, to run with this call stack, of a component that has `len` bytes: when many are to be compiled, the
    /// shortest go first. What is in the cache never waits for them. `told` learns how far it is.
    pub async fn load_sized(
        &self,
        digest: &Digest,
        stack_bytes: u64,
        len: u64,
        bytes: impl FnOnce() -> io::Result<Vec<u8>> + Send + 'static,
        told: impl Fn(Compiling) + Send,
    ) -> Result<Arc<Module>, Error> {
        let stack = Stack::of(stack_bytes);
        let loading = self.loading(digest);
        let mut loading = match loading.clone().try_lock_owned() {
            Ok(loading) => loading,
            // Somebody else has it compiled.
            Err(_) => {
                told(Compiling::Queued);
                loading.lock_owned().await
            }
        };
        if let Some(module) = loading[stack.at()].upgrade() {
            return Ok(module);
        }
        let cached = {
            let _few = self.inner.maps.acquire().await;
            let (inner, digest) = (self.inner.clone(), digest.clone());
            blocking(move || {
                let cached = inner.engines.cached(&digest, stack);
                Ok(cached.map(|(component, built)| Arc::new(Module::new(digest, component, built))))
            })
            .await?
        };
        if let Some(module) = cached {
            self.inner.loads[1].add(1);
            loading[stack.at()] = Arc::downgrade(&module);
            return Ok(module);
        }
        if let Some(refused) = self.inner.refusals.of(digest, Instant::now()) {
            return Err(refused);
        }
        told(Compiling::Queued);
        let turn = self.inner.compiles.turn(len).await;
        told(Compiling::Begun);
        let (inner, digest) = (self.inner.clone(), digest.clone());
        // The right to load goes along: it is held even if the caller gives up.
        blocking(move || {
            let _turn = turn;
            inner.loads[0].add(1);
            let (component, built) = compile(&inner, &digest, stack, bytes)?;
            let module = Arc::new(Module::new(digest, component, built));
            loading[stack.at()] = Arc::downgrade(&module);
            Ok(module)
        })
        .await
    }

    /// Removes the compiled code of a component that nothing names any more. What runs of it goes on.
    pub fn forget(&self, digest: &Digest) {
        if let Err(error) = self.inner.engines.usual.cache.forget(digest) {
            tracing::warn!(%digest, %error, "compiled code not removed");
        }
    }

    /// Links an actor once for all its invocations. The error names every import that nothing serves.
    pub fn prepare(&self, module: &Arc<Module>, spec: Spec) -> Result<Arc<Actor>, Error> {
        Actor::new(self, module, spec).map(Arc::new)
    }

    fn loading(&self, digest: &Digest) -> Arc<Loading> {
        let mut modules = self.inner.modules.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(loading) = modules.get(digest) {
            return loading.clone();
        }
        // What nobody runs or loads any more is forgotten here, so that the table is as long as what is in use.
        let is_used = |all: &[Weak<Module>]| all.iter().any(|module| module.strong_count() > 0);
        modules.retain(|_, l| Arc::strong_count(l) > 1 || l.try_lock().map_or(true, |all| is_used(&*all)));
        modules.entry(digest.clone()).or_default().clone()
    }
}

fn compile(
    inner: &Inner,
    digest: &Digest,
    stack: Stack,
    bytes: impl FnOnce() -> io::Result<Vec<u8>>,
) -> Result<(Component, Arc<Built>), Error> {
    let bytes = bytes().map_err(|source| Error::Read { digest: digest.clone(), source })?;
    let len = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    if len > ARTIFACT_BYTES_MAX {
        return Err(Error::TooLarge { digest: digest.clone(), bytes: len });
    }
    let found = Digest::of(&bytes);
    if found != *digest {
        return Err(Error::Damaged { digest: digest.clone(), found });
    }
    let built = inner.engines.get(if is_later(&bytes) { Kind::Later } else { Kind::Plain }, stack)?;
    let began = Instant::now();
    let compiled = match &inner.compiler {
        Some(compiler) => compile_apart(compiler, &built, digest, &bytes),
        None => compile_here(&built, digest, &bytes),
    };
    let component = compiled.inspect_err(|error| inner.refusals.note(error, Instant::now()))?;
    let ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    tracing::info!(%digest, bytes = len, ms, apart = inner.compiler.is_some(), "compiled");
    Ok((component, built))
}

/// By a child process, through the cache. What it gives runs even if it can not be kept; where there is no child, the
/// component does not: a stranger's bytes are never compiled in the process that serves.
fn compile_apart(compiler: &Compiler, built: &Built, digest: &Digest, bytes: &[u8]) -> Result<Component, Error> {
    let Built { engine, cache, .. } = built;
    let code = compiler.compile(digest, bytes, cache.setup())?;
    let kept = cache.store(digest, &code);
    if let Err(error) = &kept {
        tracing::warn!(%digest, %error, "compiled code can not be kept; the next start compiles again");
    }
    let mapped = kept.ok().and_then(|()| cache.load(engine, digest));
    match mapped {
        Some(component) => Ok(component),
        None => cache::of_child(engine, &code).map_err(|e| Error::NoCompiler {
            digest: digest.clone(),
            reason: format!("its code can not be loaded: {e:#}"),
        }),
    }
}

/// Where no compiler is set up: by this process.
fn compile_here(built: &Built, digest: &Digest, bytes: &[u8]) -> Result<Component, Error> {
    let Built { engine, cache, .. } = built;
    let component = Component::from_binary(engine, bytes)
        .map_err(|e| Error::NotComponent { digest: digest.clone(), reason: not_component(bytes, &format!("{e:#}")) })?;
    let kept = component.serialize().map_err(io::Error::other).and_then(|code| cache.store(digest, &code));
    if let Err(error) = kept {
        tracing::warn!(%digest, %error, "compiled code can not be kept; the next start compiles again");
    }
    Ok(component)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| Err(Error::Start(format!("loading ended: {e}"))))
}

/// What the bytes are instead, if that can be told.
fn not_component(bytes: &[u8], error: &str) -> String {
    match bytes {
        [b'\0', b'a', b's', b'm', 1, 0, 0, 0, ..] => {
            "it is a core module; make a component of it with `wasm-tools component new`".to_owned()
        }
        [b'\0', b'a', b's', b'm', ..] => error.to_owned(),
        [0x7f, b'E', b'L', b'F', ..] => {
            "it is compiled code, which a host takes from its own cache alone; give the component itself".to_owned()
        }
        _ => "it is no WebAssembly at all".to_owned(),
    }
}
