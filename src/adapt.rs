//! Core modules made components, so that schedulers and hosts see components only: those of WASI preview 1 with the
//! adapters of wasmtime, and those that carry the component's world that they were bound against. Pure: the same bytes
//! give the same component, and so the same digest, each time.

use proto::component::{self, CoreModule, Invalid};
use wasi_preview1_component_adapter_provider::{
    WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME as PREVIEW1, WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER,
    WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER,
};
use wasm_encoder::reencode::{Reencode as _, RoundtripReencoder};
use wasm_encoder::{ImportSection, Module, RawSection};
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

/// The interface through which the adapters end a program.
const EXIT: &str = "wasi:cli/exit@0.2.12";
/// As it is in WASI. The adapters know `exit` only, which has no code.
const EXIT_WIT: &str = "
package wasi:cli@0.2.12;
interface exit {
    exit: func(status: result);
    exit-with-code: func(status-code: u8);
}
world ends-with-a-code {
    import exit;
}";

/// What a component was made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum From {
    /// A program of WASI preview 1.
    Program,
    /// A module that carries its world, and speaks WASI preview 1 besides.
    Preview1,
    /// A module that carries its world.
    World,
}

impl From {
    /// For people, behind "adapted from".
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Program => "a program of WASI preview 1: it became a wasi:cli/command",
            Self::Preview1 => "a core module of WASI preview 1 with a world of its own",
            Self::World => "a core module with a world of its own",
        }
    }
}

/// The component that a core module becomes; `None` for what is no core module.
pub(crate) fn adapt(bytes: &[u8]) -> Result<Option<(Vec<u8>, From)>, String> {
    let Some(module) = component::core_module(bytes).map_err(|e| e.to_string())? else { return Ok(None) };
    let from = match module {
        CoreModule { preview1: true, program: false, world: true } => From::Preview1,
        CoreModule { preview1: false, program: false, world: true } => From::World,
        CoreModule { program: true, .. } => From::Program,
        CoreModule { preview1, program: false, world: false } => {
            return Err(Invalid::CoreModule { preview1 }.to_string());
        }
    };
    let made = encode(bytes, from).map_err(|e| format!("a core module that makes no component: {e:#}"))?;
    Ok(Some((made, from)))
}

fn encode(bytes: &[u8], from: From) -> anyhow::Result<Vec<u8>> {
    let module = exits_with_code(bytes)?;
    let mut encoder = ComponentEncoder::default().validate(true).module(&module)?;
    match from {
        From::Program => encoder = encoder.adapter(PREVIEW1, WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER)?,
        From::Preview1 => encoder = encoder.adapter(PREVIEW1, WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER)?,
        From::World => {}
    }
    encoder.encode()
}

/// The same module, ending itself through `exit-with-code` where it did through `proc_exit`: both take one number, and
/// the adapters, which know but success and failure, would make 1 of every code.
fn exits_with_code(bytes: &[u8]) -> anyhow::Result<Vec<u8>> {
    let (interface, function) = (EXIT, "exit-with-code");
    let mut module = Module::new();
    let mut found = false;
    for payload in wasmparser::Parser::new(0).parse_all(bytes) {
        let payload = payload?;
        if let wasmparser::Payload::ImportSection(section) = &payload {
            let mut imports = ImportSection::new();
            for import in section.clone().into_imports() {
                let import = import?;
                let exits = import.module == PREVIEW1 && import.name == "proc_exit";
                found |= exits;
                let (from, name) = if exits { (interface, function) } else { (import.module, import.name) };
                imports.import(from, name, RoundtripReencoder.entity_type(import.ty)?);
            }
            module.section(&imports);
        } else if let Some((id, range)) = payload.as_section() {
            module.section(&RawSection { id, data: &bytes[range] });
        }
    }
    if !found {
        return Ok(bytes.to_vec());
    }
    let mut module = module.finish();
    let mut resolve = Resolve::default();
    let package = resolve.push_str("exit.wit", EXIT_WIT)?;
    let world = resolve.select_world(&[package], None)?;
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8)?;
    Ok(module)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROGRAM: &str = r#"(module
        (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
        (import "wasi_snapshot_preview1" "fd_write" (func (param i32 i32 i32 i32) (result i32)))
        (memory (export "memory") 1)
        (func (export "_start") (call $exit (i32.const 42))))"#;

    fn names(interfaces: &[component::Interface]) -> Vec<String> {
        interfaces.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_program_becomes_a_command_of_the_same_digest_each_time() {
        let module = wat::parse_str(PROGRAM).unwrap();
        let (made, from) = adapt(&module).unwrap().unwrap();
        assert_eq!(from, From::Program);
        let found = component::inspect(&made).unwrap();
        assert_eq!(names(&found.exports), ["wasi:cli/run@0.2.12"]);
        assert!(names(&found.imports).contains(&EXIT.to_owned()), "{found:?}");
        assert!(found.other_imports.is_empty() && found.other_exports.is_empty(), "{found:?}");
        let code = made.windows(14).any(|bytes| bytes == b"exit-with-code");
        assert!(code, "the code of proc_exit is lost");
        assert_eq!(adapt(&module).unwrap().unwrap().0, made);
        assert_eq!(adapt(&made).unwrap(), None, "a component is left as it is");
    }

    #[test]
    fn a_program_that_asks_for_nothing_becomes_one_too() {
        let module = wat::parse_str(r#"(module (memory (export "memory") 1) (func (export "_start")))"#).unwrap();
        let (made, _) = adapt(&module).unwrap().unwrap();
        assert_eq!(names(&component::inspect(&made).unwrap().exports), ["wasi:cli/run@0.2.12"]);
    }

    #[test]
    fn a_module_with_a_world_becomes_a_component_of_it() {
        let mut resolve = Resolve::default();
        let package = resolve
            .push_str(
                "a.wit",
                "package acme:sum@0.1.0; interface add { one: func(n: u32) -> u32; } world w { export add; }",
            )
            .unwrap();
        let world = resolve.select_world(&[package], None).unwrap();
        for (text, from) in [
            ("", From::World),
            (r#"(import "wasi_snapshot_preview1" "sched_yield" (func (result i32)))"#, From::Preview1),
        ] {
            let text = format!(
                r#"(module {text} (memory (export "memory") 1)
                   (func (export "acme:sum/add@0.1.0#one") (param i32) (result i32) (local.get 0)))"#
            );
            let mut module = wat::parse_str(text).unwrap();
            embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).unwrap();
            let (made, found) = adapt(&module).unwrap().unwrap();
            assert_eq!(found, from);
            assert_eq!(names(&component::inspect(&made).unwrap().exports), ["acme:sum/add@0.1.0"]);
        }
    }

    #[test]
    fn what_can_not_be_adapted_says_why() {
        let said = |text: &str| adapt(&wat::parse_str(text).unwrap()).unwrap_err();
        assert!(said("(module)").starts_with("a core module, not a component; make one with"));
        let unknown = r#"(module (import "env" "f" (func)) (memory (export "memory") 1) (func (export "_start")))"#;
        assert!(said(unknown).contains("makes no component") && said(unknown).contains("env"), "{}", said(unknown));
        let old = r#"(module (import "wasi_unstable" "sched_yield" (func (result i32))) (func (export "_start")))"#;
        assert!(said(old).contains("makes no component"), "{}", said(old));
        // What is neither is for `inspect` to name.
        assert_eq!(adapt(b"hello").unwrap(), None);
        assert_eq!(adapt(b"").unwrap(), None);
    }

    /// Any byte changed: an answer, never a panic.
    #[test]
    fn damaged_modules() {
        let module = wat::parse_str(PROGRAM).unwrap();
        for at in 8..module.len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut damaged = module.clone();
                damaged[at] ^= flip;
                let _ = adapt(&damaged);
            }
        }
    }
}
