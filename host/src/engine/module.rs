//! A loaded component and what its type says: what it imports, who serves that, and what it exports.

use super::engines::Built;
use super::state::State;
use super::{Error, config, dynamic, glue};
use proto::app::Digest;
use std::collections::BTreeMap;
use std::sync::Arc;
use wasmtime::Engine;
use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Component, ComponentExportIndex, Linker, Type};

/// A component, compiled or mapped, shared by all actors made of it.
pub struct Module {
    pub(super) digest: Digest,
    pub(super) component: Component,
    /// What it runs on.
    pub(super) built: Arc<Built>,
    pub(super) exports: Exports,
}

/// Exported interfaces without version, and their functions by name. Functions outside an interface are under "".
pub(super) type Exports = BTreeMap<String, BTreeMap<String, Export>>;

/// A function that a component exports.
pub(super) struct Export {
    pub(super) index: ComponentExportIndex,
    pub(super) params: Vec<Type>,
    pub(super) results: Vec<Type>,
    /// Types that a link can not carry: only a typed binding may call it.
    pub(super) typed_only: bool,
}

/// WASI 0.2 that is always there, granted or not.
const WASI: &[&str] = &[
    "wasi:cli/environment",
    "wasi:cli/exit",
    "wasi:cli/stderr",
    "wasi:cli/stdin",
    "wasi:cli/stdout",
    "wasi:cli/terminal-input",
    "wasi:cli/terminal-output",
    "wasi:cli/terminal-stderr",
    "wasi:cli/terminal-stdin",
    "wasi:cli/terminal-stdout",
    "wasi:clocks/monotonic-clock",
    "wasi:clocks/wall-clock",
    "wasi:filesystem/preopens",
    "wasi:filesystem/types",
    "wasi:http/outgoing-handler",
    "wasi:http/types",
    "wasi:io/error",
    "wasi:io/poll",
    "wasi:io/streams",
    "wasi:random/insecure",
    "wasi:random/insecure-seed",
    "wasi:random/random",
    "wasi:sockets/instance-network",
    "wasi:sockets/ip-name-lookup",
    "wasi:sockets/network",
    "wasi:sockets/tcp",
    "wasi:sockets/tcp-create-socket",
    "wasi:sockets/udp",
    "wasi:sockets/udp-create-socket",
];

/// Of WASI 0.3.
const LATER: &[&str] = &[
    "wasi:cli/environment",
    "wasi:cli/exit",
    "wasi:cli/stderr",
    "wasi:cli/stdin",
    "wasi:cli/stdout",
    "wasi:cli/terminal-input",
    "wasi:cli/terminal-output",
    "wasi:cli/terminal-stderr",
    "wasi:cli/terminal-stdin",
    "wasi:cli/terminal-stdout",
    "wasi:cli/types",
    "wasi:clocks/monotonic-clock",
    "wasi:clocks/system-clock",
    "wasi:clocks/types",
    "wasi:filesystem/preopens",
    "wasi:filesystem/types",
    "wasi:http/client",
    "wasi:http/types",
    "wasi:random/insecure",
    "wasi:random/insecure-seed",
    "wasi:random/random",
    "wasi:sockets/ip-name-lookup",
    "wasi:sockets/types",
];

/// Imports that one error names.
const UNSERVED_MAX: usize = 50;

/// Packages whose interfaces are either served by this host in a version it knows, or not at all.
const OWN_PACKAGES: &[&str] = &[
    "wasi:cli/",
    "wasi:clocks/",
    "wasi:config/",
    "wasi:filesystem/",
    "wasi:http/",
    "wasi:io/",
    "wasi:keyvalue/",
    "wasi:logging/",
    "wasi:random/",
    "wasi:sockets/",
    "lattice:keystore/",
];

/// Interfaces that this host serves to components, with the versions it knows.
pub(super) fn interfaces() -> Vec<String> {
    let wasi = WASI.iter().map(|name| format!("{name}@0.2"));
    let later = LATER.iter().map(|name| format!("{name}@0.3"));
    let mut all: Vec<String> =
        wasi.chain(later).chain(glue::INTERFACES.iter().map(|(name, _)| (*name).to_owned())).collect();
    all.sort();
    all
}

/// "wasi:http/types@0.2.3" -> "wasi:http/types".
pub(super) fn without_version(name: &str) -> &str {
    name.split_once('@').map_or(name, |(base, _)| base)
}

impl Module {
    pub(super) fn new(digest: Digest, component: Component, built: Arc<Built>) -> Self {
        let exports = exports(component.engine(), &component);
        Self { digest, component, built, exports }
    }

    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Whether its calls pass values whose types only the component tells: over a link, or of a function that it exports.
    pub(super) fn passes_values(&self) -> bool {
        let is_known = |name: &str| OWN_PACKAGES.iter().any(|package| name.starts_with(package));
        let (ty, engine) = (self.component.component_type(), self.component.engine());
        let linked = ty.imports(engine).any(|(name, _)| matches!(served_here(name), Served::Link));
        linked || self.exports.keys().any(|name| !is_known(name))
    }

    /// Whether it is a component of WASI 0.3.
    pub(super) fn is_later(&self) -> bool {
        self.built.kind == config::Kind::Later
    }

    /// Slots that one of its instances takes: one, unless it has more memories or tables than are there for one, or a
    /// larger call stack.
    pub(super) fn weight(&self) -> u32 {
        let (memories, tables) =
            self.component.resources_required().map_or((1, 1), |needs| (needs.num_memories, needs.num_tables));
        let parts = memories.div_ceil(config::MEMORIES_PER_SLOT).max(tables.div_ceil(config::TABLES_PER_SLOT)).max(1);
        parts.saturating_mul(self.built.stack.slots())
    }

    /// Exported interfaces, without version.
    pub fn exports(&self) -> Vec<String> {
        self.exports.keys().filter(|name| !name.is_empty()).cloned().collect()
    }

    /// Links what the component imports besides WASI, and names everything that nothing can serve.
    pub(super) fn link(&self, linker: &mut Linker<State>, label: &str) -> Result<(), Error> {
        let engine = self.component.engine();
        let mut unserved = Vec::new();
        let ty = self.component.component_type();
        for (name, import) in ty.imports(engine) {
            let linked = match import.ty {
                ComponentItem::ComponentInstance(instance) => match served_here(name) {
                    Served::Wasi => Ok(()),
                    Served::Glue(add) => add(linker).map_err(|e| format!("{name}: {e:#}")),
                    Served::No(why) => Err(why),
                    Served::Link => dynamic::link(engine, linker, name, &instance),
                },
                ComponentItem::Type(_) => Ok(()),
                _ => Err(format!("{name}: it is not part of an interface; only interfaces can be linked")),
            };
            unserved.extend(linked.err());
        }
        if unserved.is_empty() {
            return Ok(());
        }
        let more = unserved.len().saturating_sub(UNSERVED_MAX);
        unserved.truncate(UNSERVED_MAX);
        if more > 0 {
            unserved.push(format!("and {more} more"));
        }
        Err(Error::Imports { actor: label.to_owned(), unserved: unserved.join("; ") })
    }
}

enum Served {
    Wasi,
    Glue(fn(&mut Linker<State>) -> wasmtime::Result<()>),
    No(String),
    /// Another actor or provider, by a link.
    Link,
}

fn served_here(name: &str) -> Served {
    if let Some((_, add)) = glue::INTERFACES.iter().find(|(known, _)| *known == name) {
        return Served::Glue(*add);
    }
    let base = without_version(name);
    let version = &name[base.len()..];
    if WASI.contains(&base) && version.starts_with("@0.2.") && !version.contains('-') {
        return Served::Wasi;
    }
    if LATER.contains(&base) && version.starts_with("@0.3.") && !version.contains('-') {
        return Served::Wasi;
    }
    if !OWN_PACKAGES.iter().any(|package| base.starts_with(package)) {
        return Served::Link;
    }
    let known: Vec<_> = interfaces().into_iter().filter(|known| without_version(known) == base).collect();
    Served::No(match known.is_empty() {
        true => format!("{name}: this host does not serve it"),
        false => format!("{name}: this host serves {}", known.join(" and ")),
    })
}

fn exports(engine: &Engine, component: &Component) -> Exports {
    let mut all = Exports::new();
    for (name, export) in component.component_type().exports(engine) {
        match export.ty {
            ComponentItem::ComponentFunc(func) => {
                if let Some(index) = component.get_export_index(None, name) {
                    all.entry(String::new()).or_default().insert(name.to_owned(), Export::new(index, &func));
                }
            }
            ComponentItem::ComponentInstance(instance) => {
                let Some(at) = component.get_export_index(None, name) else { continue };
                let functions = all.entry(without_version(name).to_owned()).or_default();
                for (function, item) in instance.exports(engine) {
                    if let ComponentItem::ComponentFunc(func) = item.ty
                        && let Some(index) = component.get_export_index(Some(&at), function)
                    {
                        functions.insert(function.to_owned(), Export::new(index, &func));
                    }
                }
            }
            _ => {}
        }
    }
    all
}

impl Export {
    fn new(index: ComponentExportIndex, func: &wasmtime::component::types::ComponentFunc) -> Self {
        let params: Vec<_> = func.params().map(|(_, ty)| ty).collect();
        let results: Vec<_> = func.results().collect();
        let typed_only = params.iter().chain(&results).any(|ty| !dynamic::is_plain(ty));
        Self { index, params, results, typed_only }
    }
}
