//! Bytes -> what a component imports and exports. Refuses whatever the engine would refuse, by name, before anything
//! is uploaded or placed. Reads types only: it never runs, compiles or links.

use crate::app::ARTIFACT_BYTES_MAX;
use std::fmt;
use wasmparser::component_types::{ComponentAnyTypeId, ComponentEntityType};
use wasmparser::names::{ComponentName, ComponentNameKind};
use wasmparser::types::TypesRef;
use wasmparser::{Parser, Payload, Validator, WasmFeatures};

/// What a valid component needs and offers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inspection {
    /// Interfaces with functions or resources that must be linked.
    pub imports: Vec<Interface>,
    /// Imported interfaces that hold nothing but types: no link is needed for them.
    pub type_imports: Vec<Interface>,
    /// Imports outside of any interface (bare functions and the like), by name. Nothing can link them.
    pub other_imports: Vec<String>,
    pub exports: Vec<Interface>,
    /// Exports outside of any interface, by name.
    pub other_exports: Vec<String>,
}

/// The name of a WIT interface: `wasi:http/incoming-handler@0.2.0`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Interface {
    pub namespace: String,
    pub package: String,
    pub interface: String,
    pub version: Option<String>,
}

impl Interface {
    /// Without version, as `App` and links name it: `wasi:http/incoming-handler`.
    pub fn unversioned(&self) -> String {
        format!("{}:{}/{}", self.namespace, self.package, self.interface)
    }
}

impl fmt::Display for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}/{}", self.namespace, self.package, self.interface)?;
        match &self.version {
            Some(version) => write!(f, "@{version}"),
            None => Ok(()),
        }
    }
}

/// Why bytes are not a component that can run. Trying again with the same bytes does not help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    #[error("empty: build the component again")]
    Empty,
    #[error("{len} bytes; a component has at most {ARTIFACT_BYTES_MAX}: strip its debug sections")]
    TooLarge { len: u64 },
    #[error("not Wasm: it looks like {looks_like}; give a WebAssembly component, as built for wasm32-wasip2")]
    NotWasm { looks_like: &'static str },
    #[error(
        "a core module, not a component; make one with `wasm-tools component new`{}, or build for wasm32-wasip2",
        if *.preview1 { " and the WASI preview 1 adapter, as `lattice apply` does of one that exports _start" } else { "" }
    )]
    CoreModule { preview1: bool },
    #[error("a component of binary version {version:#06x}, which is not the standard one; build it with current tools")]
    UnknownVersion { version: u16 },
    #[error("truncated at byte {len}: {what}; build or copy it again")]
    Truncated { len: usize, what: String },
    #[error("not a valid component: {message} (at byte {offset:#x}); build it again with current tools")]
    Invalid { message: String, offset: usize },
}

/// What of a core module tells whether a component can be made of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CoreModule {
    /// It imports functions of WASI preview 1.
    pub preview1: bool,
    /// It exports `_start`.
    pub program: bool,
    /// It carries the component's world that it was bound against.
    pub world: bool,
}

/// A valid core module; `None` for what is something else.
pub fn core_module(bytes: &[u8]) -> Result<Option<CoreModule>, Invalid> {
    match refuse_what_is_no_component(bytes) {
        Err(Invalid::CoreModule { .. }) => {}
        Err(refused @ Invalid::TooLarge { .. }) => return Err(refused),
        _ => return Ok(None),
    }
    if let Some(what) = cut_short(bytes) {
        return Err(Invalid::Truncated { len: bytes.len(), what });
    }
    let invalid = |e: wasmparser::Error| Invalid::Invalid { message: e.message().to_owned(), offset: e.offset() };
    Validator::new_with_features(features()).validate_all(bytes).map_err(invalid)?;
    let mut found = CoreModule { preview1: imports_preview1(bytes), program: false, world: false };
    for payload in Parser::new(0).parse_all(bytes) {
        match payload.map_err(invalid)? {
            Payload::ExportSection(section) => {
                for export in section {
                    let export = export.map_err(invalid)?;
                    found.program |= export.name == "_start" && export.kind == wasmparser::ExternalKind::Func;
                }
            }
            Payload::CustomSection(section) => found.world |= section.name().starts_with("component-type"),
            _ => {}
        }
    }
    Ok(Some(found))
}

/// Validates `bytes` as the engine would and lists their imports and exports.
pub fn inspect(bytes: &[u8]) -> Result<Inspection, Invalid> {
    refuse_what_is_no_component(bytes)?;
    if let Some(what) = cut_short(bytes) {
        return Err(Invalid::Truncated { len: bytes.len(), what });
    }
    let types = Validator::new_with_features(features())
        .validate_all(bytes)
        .map_err(|e| Invalid::Invalid { message: e.message().to_owned(), offset: e.offset() })?;
    read(bytes, types.as_ref()).map_err(|e| Invalid::Invalid { message: e.message().to_owned(), offset: e.offset() })
}

/// What the first bytes say that this is, in words.
pub fn looks_like(bytes: &[u8]) -> &'static str {
    const MAGIC: &[(&[u8], &str)] = &[
        (b"\0asm", "Wasm"),
        (b"\x7fELF", "a native program (ELF)"),
        (b"\x1f\x8b", "a gzip archive"),
        (b"PK\x03\x04", "a zip archive"),
        (b"\x28\xb5\x2f\xfd", "a zstd archive"),
        (b"BZh", "a bzip2 archive"),
        (b"\xfd7zXZ", "an xz archive"),
        (b"MZ", "a native program (Windows)"),
        (b"\xcf\xfa\xed\xfe", "a native program (macOS)"),
        (b"!<arch>", "a static library"),
        (b"\xff\xfe", "text in UTF-16"),
        (b"\xfe\xff", "text in UTF-16"),
        (b"%PDF", "a PDF"),
        (b"\x89PNG", "a picture"),
    ];
    if bytes.is_empty() {
        return "an empty file";
    }
    if let Some((_, what)) = MAGIC.iter().find(|(magic, _)| bytes.starts_with(magic)) {
        return what;
    }
    if bytes.get(257..262) == Some(b"ustar") {
        return "a tar archive";
    }
    let head = &bytes[..bytes.len().min(1024)];
    let is_text = std::str::from_utf8(head).map_or_else(|e| e.error_len().is_none(), |_| true)
        && !head.iter().any(|b| *b < 9 || (14..32).contains(b) && *b != 27);
    if !is_text {
        return "binary data of an unknown kind";
    }
    let text = String::from_utf8_lossy(head);
    let text = text.trim_start_matches('\u{feff}').trim_start();
    let lower = text.get(..15).unwrap_or(text).to_ascii_lowercase();
    if lower.starts_with("<!doctype html") || lower.starts_with("<html") {
        "an HTML page"
    } else if text.starts_with("(module") || text.starts_with("(component") {
        "Wasm in its text form"
    } else if text.starts_with("version https://git-lfs") {
        "a Git LFS pointer, not the file itself"
    } else {
        "text"
    }
}

/// What the engine of the hosts (wasmtime 48 as it is built here) has on: Wasm 3.0 without threads and the parts that
/// need a garbage collector, and the component model with async. What is turned on there must be added here.
fn features() -> WasmFeatures {
    plain_features() | WasmFeatures::CM_ASYNC
}

/// Without what only the engine for WASI 0.3 has.
fn plain_features() -> WasmFeatures {
    let absent = WasmFeatures::GC_TYPES | WasmFeatures::EXCEPTIONS | WasmFeatures::THREADS;
    WasmFeatures::WASM3.difference(absent) | WasmFeatures::COMPONENT_MODEL
}

/// Whether a component wants the engine for WASI 0.3: it names one of its interfaces, or waits as only that one can.
pub fn is_later(bytes: &[u8]) -> bool {
    names_later(bytes) || Validator::new_with_features(plain_features()).validate_all(bytes).is_err()
}

fn names_later(bytes: &[u8]) -> bool {
    let is_later = |name: &str| name.starts_with("wasi:") && name.contains("@0.3.");
    Parser::new(0).parse_all(bytes).map_while(Result::ok).any(|payload| match payload {
        Payload::ComponentImportSection(section) => {
            section.into_iter().map_while(Result::ok).any(|import| is_later(import.name.name))
        }
        Payload::ComponentExportSection(section) => {
            section.into_iter().map_while(Result::ok).any(|export| is_later(export.name.name))
        }
        _ => false,
    })
}

fn refuse_what_is_no_component(bytes: &[u8]) -> Result<(), Invalid> {
    let len = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    if bytes.is_empty() {
        return Err(Invalid::Empty);
    }
    if len > ARTIFACT_BYTES_MAX {
        return Err(Invalid::TooLarge { len });
    }
    if !bytes.starts_with(b"\0asm") {
        return Err(Invalid::NotWasm { looks_like: looks_like(bytes) });
    }
    let Some(head) = bytes.get(4..8) else {
        return Err(Invalid::Truncated { len: bytes.len(), what: "the header is not whole".into() });
    };
    // Component Model, binary format: a 16-bit version, then a 16-bit layer; layer 0 is a core module.
    let (version, layer) = (u16::from_le_bytes([head[0], head[1]]), u16::from_le_bytes([head[2], head[3]]));
    match (version, layer) {
        (_, 0) => Err(Invalid::CoreModule { preview1: imports_preview1(bytes) }),
        (0x0d, 1) => Ok(()),
        (version, _) => Err(Invalid::UnknownVersion { version }),
    }
}

fn imports_preview1(module: &[u8]) -> bool {
    Parser::new(0)
        .parse_all(module)
        .map_while(Result::ok)
        .find_map(|payload| match payload {
            Payload::ImportSection(section) => {
                Some(section.into_imports().map_while(Result::ok).any(|import| {
                    import.module.starts_with("wasi_snapshot_preview1") || import.module == "wasi_unstable"
                }))
            }
            _ => None,
        })
        .unwrap_or(false)
}

/// What is missing when the last section says that it is longer than the bytes are. A cut between two sections can
/// not be seen this way; it is refused only where it leaves the component invalid.
fn cut_short(bytes: &[u8]) -> Option<String> {
    let mut at = 8;
    while at < bytes.len() {
        let start = at;
        at += 1;
        let mut size = 0_u64;
        let mut shift = 0;
        loop {
            let Some(byte) = bytes.get(at) else {
                return Some(format!("the section at byte {start} ends in its size"));
            };
            at += 1;
            size |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
            if shift > 28 {
                // Not a size at all: the validator says so better.
                return None;
            }
        }
        let left = bytes.len() - at;
        match usize::try_from(size) {
            Ok(size) if size <= left => at += size,
            _ => {
                return Some(format!("the section at byte {start} has {size} bytes, of which {left} are there"));
            }
        }
    }
    None
}

fn read(bytes: &[u8], types: TypesRef<'_>) -> Result<Inspection, wasmparser::Error> {
    let mut found = Inspection::default();
    let mut nested = 0_u32;
    for payload in Parser::new(0).parse_all(bytes) {
        match payload? {
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => nested += 1,
            Payload::End(_) if nested > 0 => nested -= 1,
            Payload::ComponentImportSection(section) if nested == 0 => {
                for import in section {
                    let name = import?.name.name;
                    let item = types.component_item_for_import(name).map(|item| item.ty);
                    note_import(name, item, types, &mut found)?;
                }
            }
            Payload::ComponentExportSection(section) if nested == 0 => {
                for export in section {
                    let name = export?.name.name;
                    let item = types.component_item_for_export(name).map(|item| item.ty);
                    match (interface(name)?, item) {
                        (Some(interface), Some(ComponentEntityType::Instance(_))) => found.exports.push(interface),
                        (_, Some(ComponentEntityType::Type { .. })) => {}
                        _ => found.other_exports.push(name.to_owned()),
                    }
                }
            }
            _ => {}
        }
    }
    Ok(found)
}

fn note_import(
    name: &str,
    item: Option<ComponentEntityType>,
    types: TypesRef<'_>,
    found: &mut Inspection,
) -> Result<(), wasmparser::Error> {
    match (interface(name)?, item) {
        (Some(interface), Some(ComponentEntityType::Instance(id))) => {
            if types[id].exports.values().any(|item| must_be_linked(&item.ty)) {
                found.imports.push(interface);
            } else {
                found.type_imports.push(interface);
            }
        }
        (_, Some(item)) if !must_be_linked(&item) => {}
        _ => found.other_imports.push(name.to_owned()),
    }
    Ok(())
}

/// Types are carried by the component itself; all else, resources too, comes from who serves the import.
fn must_be_linked(item: &ComponentEntityType) -> bool {
    match item {
        ComponentEntityType::Type { created, .. } => matches!(created, ComponentAnyTypeId::Resource(_)),
        _ => true,
    }
}

fn interface(name: &str) -> Result<Option<Interface>, wasmparser::Error> {
    let parsed = ComponentName::new_with_features(name, 0, features())?;
    let ComponentNameKind::Interface(interface) = parsed.kind() else {
        return Ok(None);
    };
    Ok(Some(Interface {
        namespace: interface.namespace().to_string(),
        package: interface.package().to_string(),
        interface: interface.interface().to_string(),
        version: name.split_once('@').map(|(_, version)| version.to_owned()),
    }))
}
