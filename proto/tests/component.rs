//! Components against what is said of them, and apps against their components.
#![allow(clippy::unwrap_used, reason = "tests")]

use proto::app::Name;
use proto::check;
use proto::component::{self, Inspection, Invalid};
use proto::manifest::{self, Parsed};
use std::collections::BTreeMap;
use wit_component::{ComponentEncoder, StringEncoding, dummy_module, embed_component_metadata};
use wit_parser::{ManglingAndAbi, Resolve};

/// A component of the world `w` in this WIT; it does nothing.
fn component(wit: &str) -> Vec<u8> {
    let mut resolve = Resolve::default();
    let package = resolve.push_str("test.wit", wit).unwrap();
    let world = resolve.select_world(&[package], Some("w")).unwrap();
    let mut module = dummy_module(&resolve, world, ManglingAndAbi::Standard32);
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).unwrap();
    ComponentEncoder::default().validate(true).module(&module).unwrap().encode().unwrap()
}

/// A component that imports and exports these interfaces, each with one function.
fn with(imports: &[&str], exports: &[&str]) -> Vec<u8> {
    let mut packages: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
    for name in imports.iter().chain(exports) {
        let (path, version) = name.split_once('@').unwrap_or((name, ""));
        let (package, interface) = path.split_once('/').unwrap();
        let known = packages.entry((package, version)).or_default();
        if !known.contains(&interface) {
            known.push(interface);
        }
    }
    let mut wit = String::from("package test:test;\nworld w {\n");
    imports.iter().for_each(|name| wit.push_str(&format!("  import {name};\n")));
    exports.iter().for_each(|name| wit.push_str(&format!("  export {name};\n")));
    wit.push_str("}\n");
    for ((package, version), interfaces) in packages {
        let version = if version.is_empty() { String::new() } else { format!("@{version}") };
        wit.push_str(&format!("package {package}{version} {{\n"));
        interfaces.iter().for_each(|i| wit.push_str(&format!("  interface {i} {{ f: func(); }}\n")));
        wit.push_str("}\n");
    }
    component(&wit)
}

fn names(interfaces: &[component::Interface]) -> Vec<String> {
    interfaces.iter().map(ToString::to_string).collect()
}

#[test]
fn imports_and_exports() {
    let bytes = component(
        "package test:test;
        world w {
            import acme:shop/cart@1.2.3;
            import wasi:logging/logging;
            import log: func(text: string);
            export wasi:http/incoming-handler@0.2.0;
            export run: func();
        }
        package acme:shop@1.2.3 {
            interface types { record item { id: u32 } }
            interface cart { use types.{item}; resource basket { add: func(i: item); } }
        }
        package wasi:logging { interface logging { log: func(); } }
        package wasi:http@0.2.0 { interface incoming-handler { handle: func(); } }",
    );
    let found = component::inspect(&bytes).unwrap();
    assert_eq!(names(&found.imports), ["acme:shop/cart@1.2.3", "wasi:logging/logging"]);
    assert_eq!(names(&found.type_imports), ["acme:shop/types@1.2.3"]);
    assert_eq!(found.other_imports, ["log"]);
    assert_eq!(names(&found.exports), ["wasi:http/incoming-handler@0.2.0"]);
    assert_eq!(found.other_exports, ["run"]);
    assert_eq!(found.exports[0].unversioned(), "wasi:http/incoming-handler");
}

#[test]
fn what_is_no_component() {
    let said = |bytes: &[u8]| component::inspect(bytes).unwrap_err().to_string();
    let not = |what: &str| {
        format!("not Wasm: it looks like {what}; give a WebAssembly component, as built for wasm32-wasip2")
    };
    assert_eq!(said(b""), "empty: build the component again");
    assert_eq!(said(b"\x7fELF\x02\x01\x01\0"), not("a native program (ELF)"));
    assert_eq!(said(b"\x1f\x8b\x08\0"), not("a gzip archive"));
    assert_eq!(said(b"<!DOCTYPE html><html>404"), not("an HTML page"));
    assert_eq!(said(b"apiVersion: core.oam.dev/v1beta1\n"), not("text"));
    assert_eq!(said(b"(component)"), not("Wasm in its text form"));
    assert_eq!(said(b"\x01\x02\x03"), not("binary data of an unknown kind"));
    assert_eq!(said(b"\0as"), not("binary data of an unknown kind"));
    assert_eq!(said(b"\0asm\x0d"), "truncated at byte 5: the header is not whole; build or copy it again");
    assert_eq!(
        said(b"\0asm\x0c\0\x01\0"),
        "a component of binary version 0x000c, which is not the standard one; build it with current tools"
    );
    assert_eq!(
        said(&wat::parse_str("(module)").unwrap()),
        "a core module, not a component; make one with `wasm-tools component new`, or build for wasm32-wasip2"
    );
    assert_eq!(
        said(&wat::parse_str("(module (import \"wasi_snapshot_preview1\" \"proc_exit\" (func (param i32))))").unwrap()),
        "a core module, not a component; make one with `wasm-tools component new` and the WASI preview 1 adapter, \
         as `lattice apply` does of one that exports _start, or build for wasm32-wasip2"
    );
}

#[test]
fn damaged_components() {
    let bytes = with(&["wasi:keyvalue/store@0.2.0-draft"], &["wasi:http/incoming-handler@0.2.0"]);
    assert!(component::inspect(&bytes).is_ok());
    let said = component::inspect(&bytes[..bytes.len() - 1]).unwrap_err();
    assert!(matches!(said, Invalid::Truncated { .. }), "{said}");
    let mut seen = BTreeMap::new();
    for len in 0..bytes.len() {
        let kind = match component::inspect(&bytes[..len]) {
            Ok(_) => "valid",
            Err(Invalid::Truncated { .. }) => "truncated",
            Err(Invalid::Invalid { .. }) => "invalid",
            Err(_) => "no component",
        };
        *seen.entry(kind).or_insert(0) += 1;
    }
    assert!(seen["truncated"] > bytes.len() * 9 / 10, "{seen:?}");
    // Any byte changed: an answer, never a panic.
    for at in 0..bytes.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut damaged = bytes.clone();
            damaged[at] ^= flip;
            let _ = component::inspect(&damaged);
        }
    }
    let invalid = wat::parse_str("(component (core module (func (result i32))))").unwrap();
    let said = component::inspect(&invalid).unwrap_err().to_string();
    assert!(said.starts_with("not a valid component: type mismatch"), "{said}");
    assert!(component::inspect(&wat::parse_str("(component)").unwrap()).is_ok());
}

#[test]
fn features_that_the_engine_has_not() {
    let threads = wat::parse_str("(component (core module (memory 1 1 shared)))").unwrap();
    assert!(component::inspect(&threads).unwrap_err().to_string().contains("threads"));
    let gc = wat::parse_str("(component (core module (type (struct))))").unwrap();
    assert!(component::inspect(&gc).is_err());
    let simd = wat::parse_str("(component (core module (func (drop (v128.const i64x2 0 0)))))").unwrap();
    assert_eq!(component::inspect(&simd), Ok(Inspection::default()));
}

#[test]
fn what_wants_the_engine_of_wasi_0_3() {
    let hello = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/hello/hello.wasm")).unwrap();
    assert!(!component::is_later(&hello));
    assert!(component::is_later(&with(&["wasi:clocks/monotonic-clock@0.3.0"], &[])));
    assert!(component::is_later(&with(&[], &["wasi:http/handler@0.3.0"])));
    assert!(!component::is_later(&with(&["acme:x/y@0.3.0"], &[])));
    // It names nothing of WASI, but waits.
    let waits = wat::parse_str("(component (import \"f\" (func async (param \"n\" u32))))").unwrap();
    assert!(component::inspect(&waits).is_ok() && component::is_later(&waits));
}

const KV: &str = "    - {name: kv, type: capability, properties: {image: builtin:keyvalue}}\n";

fn parse(components: &str) -> Parsed {
    let text = format!(
        "apiVersion: core.oam.dev/v1beta1\nkind: Application\nmetadata: {{name: shop}}\nspec:\n  components:\n{components}"
    );
    manifest::parse(&text, "app.yaml").unwrap().remove(0)
}

fn actor(name: &str, traits: &str) -> String {
    format!(
        "    - name: {name}\n      type: component\n      properties: {{image: ./{name}.wasm}}\n      traits: [{traits}]\n"
    )
}

fn link(target: &str, package: &str, interface: &str) -> String {
    let (namespace, package) = package.split_once(':').unwrap();
    format!(
        "{{type: link, properties: {{target: {target}, namespace: {namespace}, package: {package}, interfaces: [{interface}]}}}}"
    )
}

const INGRESS: &str = "{type: ingress, properties: {path: /}}";

/// Problems of an app whose components import and export this.
fn said(manifest: &str, components: &[(&str, &[&str], &[&str])]) -> Vec<String> {
    let mut parsed = parse(manifest);
    let inspections = inspections(components);
    let problems = check::check(&mut parsed.app, &inspections, &parsed.positions);
    problems.iter().map(ToString::to_string).collect()
}

fn inspections(components: &[(&str, &[&str], &[&str])]) -> BTreeMap<Name, Inspection> {
    components
        .iter()
        .map(|(name, imports, exports)| (name.parse().unwrap(), component::inspect(&with(imports, exports)).unwrap()))
        .collect()
}

#[test]
fn everything_served() {
    let kv = link("kv", "wasi:keyvalue", "store, atomics");
    let tax = link("tax", "acme:tax", "rates");
    let grants = "{type: grants, properties: {http: [api.example.org], clocks: {wall: true}, random: true, \
                  folders: [{host: /srv, guest: /srv}]}}";
    let manifest =
        |grants: &str| format!("{}{}{KV}", actor("cart", &format!("{INGRESS}, {kv}, {tax}{grants}")), actor("tax", ""));
    let mut parsed = parse(&manifest(&format!(", {grants}")));
    let all = inspections(&[
        (
            "cart",
            &[
                "wasi:io/streams@0.2.3",
                "wasi:clocks/wall-clock@0.2.0",
                "wasi:random/random@0.2.6",
                "wasi:cli/environment@0.2.0",
                "wasi:filesystem/preopens@0.2.0",
                "wasi:sockets/tcp@0.2.0",
                "wasi:http/outgoing-handler@0.2.1",
                "wasi:config/runtime@0.2.0-draft",
                "wasi:config/store@0.2.0-rc.1",
                "wasi:logging/logging",
                "wasi:keyvalue/store@0.2.0-draft",
                "wasi:keyvalue/atomics@0.2.0-draft2",
                "acme:tax/rates@1.2.0",
            ],
            &["wasi:http/incoming-handler@0.2.0"],
        ),
        ("tax", &["wasi:logging/logging@0.1.0-draft"], &["acme:tax/rates@1.4.1", "acme:tax/admin@1.4.1"]),
    ]);
    assert_eq!(check::check(&mut parsed.app, &all, &parsed.positions), []);
    assert_eq!(parsed.app.actor("tax").unwrap().exports, ["acme:tax/admin", "acme:tax/rates"]);
    assert_eq!(parsed.app.actor("cart").unwrap().exports, ["wasi:http/incoming-handler"]);
    assert_eq!(check::warnings(&parsed.app, &all, &parsed.positions), []);
    // Without the grants it is accepted all the same, and told what will be refused.
    let mut parsed = parse(&manifest(""));
    assert_eq!(check::check(&mut parsed.app, &all, &parsed.positions), []);
    let warnings: Vec<String> = check::warnings(&parsed.app, &all, &parsed.positions)
        .iter()
        .map(|w| format!("{}; {}", w.message, w.help))
        .collect();
    assert_eq!(
        warnings,
        [
            "actor \"cart\" imports wasi:clocks/wall-clock@0.2.0, and nothing grants its use; \
             if it uses it, add a grants trait with `clocks: {wall: true}`",
            "actor \"cart\" imports wasi:random/random@0.2.6, and nothing grants its use; \
             if it uses it, add a grants trait with `random: true`",
            "actor \"cart\" imports wasi:filesystem/preopens@0.2.0, and nothing grants its use; \
             if it uses it, add a grants trait with `folders: [{host: /srv/data, guest: /data}]`",
            "actor \"cart\" imports wasi:http/outgoing-handler@0.2.1, and nothing grants its use; \
             if it uses it, add a grants trait with `http: [api.example.org]`",
        ]
    );
}

#[test]
fn all_that_is_missing_in_one_message() {
    assert_eq!(
        said(
            &format!("{}{}{}", actor("cart", ""), actor("tax", ""), actor("web", "")),
            &[
                (
                    "cart",
                    &[
                        "wasi:keyvalue/store@0.2.0-draft",
                        "acme:x/y",
                        "acme:tax/rates",
                        "wasi:blobstore/container@0.2.0-draft"
                    ],
                    &[]
                ),
                ("tax", &[], &["acme:tax/rates"]),
                ("web", &["wasi:http/incoming-handler@0.2.0"], &[]),
            ]
        ),
        [
            "app.yaml:8:27: spec.components[0].properties.image: actor \"cart\" imports wasi:keyvalue/store@0.2.0-draft, \
             acme:x/y, acme:tax/rates and wasi:blobstore/container@0.2.0-draft, which nothing grants or links; add a link \
             trait for acme:tax/rates to \"tax\", for wasi:keyvalue/store to a capability with image \"builtin:keyvalue\", \
             for acme:x/y and wasi:blobstore/container to an actor that exports it",
            "app.yaml:16:27: spec.components[2].properties.image: actor \"web\" imports wasi:http/incoming-handler@0.2.0, \
             which nothing grants or links; add a link trait for wasi:http/incoming-handler to an actor that exports it",
        ]
    );
}

#[test]
fn links_that_do_not_fit() {
    let kv = link("kv", "wasi:keyvalue", "store");
    assert_eq!(
        said(
            &format!(
                "{}{}{KV}",
                actor(
                    "cart",
                    &format!("{}, {}, {kv}", link("tax", "acme:tax", "rates"), link("tax", "acme:tax", "raets"))
                ),
                actor("tax", "")
            ),
            &[
                ("cart", &["acme:tax/rates@2.0.0", "wasi:keyvalue/store@0.2.0-draft3"], &[]),
                ("tax", &[], &["acme:tax/rates@1.0.0"]),
            ]
        ),
        [
            "app.yaml:8:27: spec.components[0].properties.image: actor \"cart\" imports wasi:keyvalue/store@0.2.0-draft3, in \
             a version that no host serves; hosts serve wasi:keyvalue 0.2.0-draft or 0.2.0-draft2; build it against that",
            "app.yaml:9:41: spec.components[0].traits[0].properties: actor \"cart\" imports acme:tax/rates@2.0.0, but \"tax\" \
             exports acme:tax/rates@1.0.0; build both against the same version of the interface",
            "app.yaml:9:134: spec.components[0].traits[1].properties: link of actor \"cart\" asks \"tax\" for acme:tax/raets, \
             which it does not export; \"tax\" exports acme:tax/rates",
        ]
    );
}

#[test]
fn ingress_and_versions() {
    assert_eq!(
        said(
            &format!("{}{}", actor("old", INGRESS), actor("new", "{type: ingress, properties: {path: /new}}")),
            &[
                ("old", &["wasi:io/streams@0.2.0-rc-2023-11-10", "wasi:config/store@0.2.0-draft"], &[]),
                ("new", &["wasi:http/types@0.3.0-rc-2026-03-15"], &["wasi:http/handler@0.3.0-rc-2026-03-15"]),
            ]
        ),
        [
            "app.yaml:8:27: spec.components[0].properties.image: actor \"old\" imports wasi:io/streams@0.2.0-rc-2023-11-10 and \
             wasi:config/store@0.2.0-draft, in a version that no host serves; hosts serve wasi:config 0.2.0-rc.1 and \
             wasi:io 0.2; build it against that",
            "app.yaml:9:44: spec.components[0].traits[0].properties: actor \"old\" has an ingress, but does not export \
             wasi:http/incoming-handler; export it (wasi:http 0.2), or wasi:http/handler (0.3), or remove the ingress trait or \
             the link of the HTTP server",
            "app.yaml:12:27: spec.components[1].properties.image: actor \"new\" imports wasi:http/types@0.3.0-rc-2026-03-15, \
             in a version that no host serves; hosts serve wasi:http 0.2 and 0.3; build it against that",
            "app.yaml:13:44: spec.components[1].traits[0].properties: actor \"new\" has an ingress, but exports \
             wasi:http/handler@0.3.0-rc-2026-03-15 instead of wasi:http/incoming-handler; export it (wasi:http 0.2), or \
             wasi:http/handler (0.3), or remove the ingress trait or the link of the HTTP server",
        ]
    );
}

#[test]
fn only_newer_components_serve_several_requests_at_once() {
    let manifest = actor("cart", "{type: limits, properties: {reuse: 100, concurrency: 8}}");
    assert_eq!(
        said(&manifest, &[("cart", &[], &["wasi:http/incoming-handler@0.2.0"])]),
        ["app.yaml:6:13: spec.components[0].name: actor \"cart\" has limits.concurrency of 8, and an instance of a \
             WASI 0.2 component serves one request at a time; leave concurrency out, or build it as a component that exports \
             wasi:http/handler@0.3.0"]
    );
    assert_eq!(said(&manifest, &[("cart", &[], &["wasi:http/handler@0.3.0"])]), [""; 0]);
    let alone = actor("cart", "{type: limits, properties: {reuse: 100}}");
    assert_eq!(said(&alone, &[("cart", &[], &["wasi:http/incoming-handler@0.2.0"])]), [""; 0]);
}

#[test]
fn links_that_nobody_uses_are_only_a_warning() {
    let mut parsed = parse(&format!("{}{KV}", actor("cart", &link("kv", "wasi:keyvalue", "store, batch"))));
    let all = inspections(&[("cart", &["wasi:keyvalue/store@0.2.0-draft"], &[])]);
    assert_eq!(check::check(&mut parsed.app, &all, &parsed.positions), []);
    let warnings = check::warnings(&parsed.app, &all, &parsed.positions);
    assert_eq!(
        warnings.iter().map(ToString::to_string).collect::<Vec<_>>(),
        [
            "app.yaml:9:41: spec.components[0].traits[0].properties: actor \"cart\" does not import wasi:keyvalue/batch; \
          the link can go"
        ]
    );
    // Nothing is said of an actor whose component is not at hand.
    assert_eq!(check::check(&mut parsed.app, &BTreeMap::new(), &parsed.positions), []);
}
