//! `inspect`: what a component imports and exports, and which grants and links it would need. Reads its types only; asks no
//! lattice.

use crate::failure::Failure;
use crate::local;
use crate::print;
use crate::print::table::{Cell, Table, Tint};
use clap::{Args, ValueEnum};
use proto::component::Interface;
use proto::needs::{By, Need, needs, traits};
use serde::Serialize;
use std::path::PathBuf;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lattice inspect hello.wasm               what it imports and exports, and the traits to write
  lattice inspect hello.wasm -o json | jq -r .manifest
  lattice inspect ghcr.io/acme/hello:1     one in a registry

Reads the component only; needs no lattice. A core module of WASI preview 1 is
shown as the component that apply makes of it. An import that needs no grant and no link
is served by every host. Those that a standard library imports without using
them are told apart: they need a grant only when they are used.
Exit codes: 0 it is a component, 1 it is not, 2 wrong use.")]
pub(crate) struct InspectArgs {
    /// Component: a .wasm file, or a reference to one in a registry
    #[arg(value_name = "FILE|REF")]
    file: PathBuf,
    /// What it looks like
    #[arg(short, long, value_name = "FORM", value_enum, default_value_t = Form::Table)]
    output: Form,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Form {
    #[default]
    Table,
    Json,
    Yaml,
}

/// What JSON and YAML have.
#[derive(Debug, Serialize)]
struct Inspected {
    file: String,
    digest: String,
    bytes: usize,
    /// What it was made of, when the file is no component; digest and bytes are the component's.
    adapted: Option<&'static str>,
    imports: Vec<Import>,
    /// Imports outside of any interface: nothing can link them.
    other_imports: Vec<String>,
    exports: Vec<String>,
    other_exports: Vec<String>,
    /// The traits to paste below the component.
    manifest: String,
}

#[derive(Debug, Serialize)]
struct Import {
    interface: String,
    /// "always", "grant", "grant-if-used", "link" or "nobody".
    needs: &'static str,
    /// What to write, or why nobody serves it.
    how: String,
}

pub(crate) async fn inspect(args: &InspectArgs) -> Result<(), Failure> {
    let component = local::component(&args.file).await.map_err(|(why, help)| {
        let help = if help.is_empty() { String::new() } else { "; name the .wasm file of a component".to_owned() };
        Failure::Refused(format!("{}: {why}{help}", args.file.display()))
    })?;
    let found = &component.inspection;
    let needs = needs(found);
    let names = |interfaces: &[Interface]| interfaces.iter().map(ToString::to_string).collect();
    let inspected = Inspected {
        file: args.file.display().to_string(),
        digest: component.digest.to_string(),
        bytes: component.bytes.len(),
        adapted: component.adapted,
        imports: needs.iter().map(Import::of).collect(),
        other_imports: found.other_imports.clone(),
        exports: names(&found.exports),
        other_exports: found.other_exports.clone(),
        manifest: traits(found, &needs),
    };
    match args.output {
        Form::Table => print::raw(text(&inspected).as_bytes()),
        Form::Json => print::json(&inspected),
        Form::Yaml => print::yaml(&inspected, false),
    }
}

impl Import {
    fn of(need: &Need) -> Self {
        let (needs, how) = match need.by {
            By::Always => ("always", String::new()),
            By::Grant(grant) if grant.baseline => ("grant-if-used", grant.example.to_owned()),
            By::Grant(grant) => ("grant", grant.example.to_owned()),
            By::Link(Some(image)) => ("link", format!("to a capability with image {image}")),
            By::Link(None) => ("link", "to an actor that exports it".to_owned()),
            By::WrongVersion(versions) => ("nobody", format!("hosts serve {versions}; build it against that")),
        };
        Self { interface: need.import.to_string(), needs, how }
    }
}

fn text(inspected: &Inspected) -> String {
    let color = print::color();
    let bold = |text: &str| if color { Tint::Bold.paint(text) } else { text.to_owned() };
    let mut text =
        format!("{}   {} bytes\n{}\n", bold(&print::clean(&inspected.file)), inspected.bytes, inspected.digest);
    if let Some(from) = inspected.adapted {
        text.push_str(&format!("Adapted, as apply does, from {from}\n"));
    }
    text.push('\n');
    let mut rows: Vec<Vec<Cell>> = inspected
        .imports
        .iter()
        .map(|import| {
            let tint = match import.needs {
                "always" | "grant-if-used" => Tint::Dim,
                "nobody" => Tint::Bad,
                _ => Tint::Warn,
            };
            vec![Cell::new(&import.interface), Cell::tinted(import.needs, tint), Cell::new(&import.how)]
        })
        .collect();
    let outside = "it is outside of any interface, which nothing can link";
    let others = inspected.other_imports.iter();
    rows.extend(others.map(|name| vec![Cell::new(name), Cell::tinted("nobody", Tint::Bad), Cell::new(outside)]));
    match rows.is_empty() {
        true => text.push_str("It imports nothing.\n"),
        false => text.push_str(&Table::new(&["IMPORTS", "NEEDS", "HOW"], color).render(&rows)),
    }
    let exports: Vec<Vec<Cell>> =
        inspected.exports.iter().chain(&inspected.other_exports).map(|name| vec![Cell::new(name)]).collect();
    text.push('\n');
    match exports.is_empty() {
        true => text.push_str("It exports nothing.\n"),
        false => text.push_str(&Table::new(&["EXPORTS"], color).render(&exports)),
    }
    if inspected.exports.iter().any(|name| name.starts_with("wasi:cli/run@")) {
        text.push_str("\nIt is a program: once it is applied, lattice run APP/ACTOR\n");
    }
    if !inspected.manifest.is_empty() {
        text.push_str("\nTo write below the component, with values of your own:\n\n      traits:\n");
        for line in inspected.manifest.lines() {
            text.push_str(&format!("        {}\n", print::clean(line)));
        }
    }
    text
}
