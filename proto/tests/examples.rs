//! The examples under manifests/: what they declare fits the components beside them.
#![allow(clippy::unwrap_used, reason = "tests")]

use proto::app::Name;
use proto::component::{self, Inspection};
use proto::manifest::{self, ImageRef};
use proto::{check, component::Interface};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn manifests() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests");
    let folders = std::fs::read_dir(root).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir());
    let files = folders.flat_map(|folder| std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()));
    files.filter(|p| p.extension().is_some_and(|e| e == "yaml")).collect()
}

#[test]
fn every_example_is_accepted() {
    let files = manifests();
    assert!(files.len() >= 3, "{files:?}");
    for file in files {
        let name = file.display().to_string();
        let parsed = manifest::parse_bytes(&std::fs::read(&file).unwrap(), &name).unwrap_or_else(|p| panic!("{p:?}"));
        for mut one in parsed {
            let mut inspections: BTreeMap<Name, Inspection> = BTreeMap::new();
            for (component, image) in manifest::images(&one.app) {
                let ImageRef::Local(path) = image else { panic!("{name}: {component} is not beside it") };
                let bytes = std::fs::read(file.with_file_name(path)).unwrap();
                // What the command line makes a component of.
                if component::core_module(&bytes).unwrap_or_else(|e| panic!("{name}: {e}")).is_some() {
                    continue;
                }
                let found = component::inspect(&bytes).unwrap_or_else(|e| panic!("{name}: {component}: {e}"));
                inspections.insert(component.clone(), found);
            }
            let problems = check::check(&mut one.app, &inspections, &one.positions);
            assert!(problems.is_empty(), "{problems:#?}");
            let warnings = check::warnings(&one.app, &inspections, &one.positions);
            assert!(warnings.is_empty(), "{warnings:#?}");
            // Without its links, an actor that needs them is refused.
            let needy = one.app.links.iter().any(|_| true);
            one.app.links.clear();
            let problems = check::check(&mut one.app, &inspections, &one.positions);
            assert_eq!(needy, !problems.is_empty(), "{name}: {problems:#?}");
        }
    }
}

#[test]
fn hello_imports_and_exports_what_it_should() {
    let bytes = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/hello/hello.wasm")).unwrap();
    let found = component::inspect(&bytes).unwrap();
    let exports: Vec<String> = found.exports.iter().map(Interface::unversioned).collect();
    assert_eq!(exports, ["wasi:http/incoming-handler"]);
    assert!(found.imports.iter().all(|i| i.namespace == "wasi"), "{:?}", found.imports);
}
