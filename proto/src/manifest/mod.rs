//! YAML -> App. Reports every problem of a file at once, each with its line, its path and what would be right.
//!
//! The language is the OAM `core.oam.dev/v1beta1` `Application` that wadm defined, and the traits that lattice adds.
//! Reading order: `yaml` (text -> tree with positions), `reader` (tree -> values, collecting problems), `document`
//! (one app), `traits`, `grants`, `limits`, `link`, `image`, and `assemble` (what only shows when all components are known).
//!
//! No input may make this panic, recurse without bound or hold more than a small multiple of the text.

mod assemble;
mod document;
pub(crate) mod grants;
mod image;
pub(crate) mod limits;
mod link;
pub(crate) mod reader;
mod traits;
pub(crate) mod yaml;

use crate::app::{App, MANIFEST_BYTES_MAX, Name};
use crate::component;
use reader::Reader;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

pub use image::{ImageRef, images};

/// Apps in one file.
pub const DOCUMENTS_MAX: usize = 100;
/// Links of one app.
pub const LINKS_MAX: usize = 1_000;
/// Ingress routes of one app.
pub const ROUTES_MAX: usize = 1_000;
/// Problems reported of one file; what is beyond is counted.
pub const PROBLEMS_MAX: usize = 1_000;

/// One document of a manifest.
#[derive(Debug, Clone, PartialEq)]
pub struct Parsed {
    pub app: App,
    pub positions: Positions,
}

/// Where in the file the parts of an app stand, for problems that show only later (an image that is not there, an
/// import that nothing serves).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Positions {
    pub file: String,
    pub app: Place,
    pub components: BTreeMap<Name, ComponentPlaces>,
    /// Beside `App::links`, one each.
    pub links: Vec<Place>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ComponentPlaces {
    pub component: Place,
    pub image: Place,
    /// Beside `Actor::ingress`, one each.
    pub ingress: Vec<Place>,
}

/// A place in a manifest. `line` and `column` count from 1; 0 stands for the whole file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place {
    pub line: usize,
    pub column: usize,
    /// "spec.components[0].type"
    pub path: String,
}

impl Positions {
    /// The place of a component; that of the app when it is not known.
    pub fn component(&self, name: &str) -> &Place {
        self.components.get(name).map_or(&self.app, |c| &c.component)
    }
    /// The place of a component's image; that of the app when it is not known.
    pub fn image(&self, name: &str) -> &Place {
        self.components.get(name).map_or(&self.app, |c| &c.image)
    }
    /// The place of the link at this index in `App::links`.
    pub fn link(&self, index: usize) -> &Place {
        self.links.get(index).unwrap_or(&self.app)
    }
    /// A problem at a place of this file.
    pub fn problem(&self, place: &Place, message: impl Into<String>, help: impl Into<String>) -> Problem {
        Problem {
            file: self.file.clone(),
            line: place.line,
            column: place.column,
            path: place.path.clone(),
            message: message.into(),
            help: help.into(),
        }
    }
}

/// What is wrong, where, and what would be right.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
pub struct Problem {
    pub file: String,
    /// From 1; 0 is the whole file.
    pub line: usize,
    pub column: usize,
    /// "spec.components[0].traits[1].properties.instances"; empty when it is about the text itself.
    pub path: String,
    pub message: String,
    /// The next step; may be empty.
    pub help: String,
}

impl fmt::Display for Problem {
    /// `app.yaml:12:7: spec.components[0].type: unknown type "compnent"; did you mean "component"?`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        f.write_str(": ")?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)?;
        if !self.help.is_empty() {
            write!(f, "; {}", self.help)?;
        }
        Ok(())
    }
}

/// As `parse`, for bytes that may not be text at all.
pub fn parse_bytes(bytes: &[u8], file: &str) -> Result<Vec<Parsed>, Vec<Problem>> {
    let mut reader = Reader::new(file);
    refuse_size(bytes.len(), &mut reader)?;
    match std::str::from_utf8(bytes) {
        Ok(text) => parse(text, file),
        Err(e) => {
            let what = component::looks_like(bytes);
            let help = match what {
                "Wasm" => "give the manifest here and name the component in it, as `image: ./hello.wasm`",
                _ => "give a manifest in YAML, saved as UTF-8",
            };
            reader.whole_file(format!("not UTF-8 text (byte {}); it looks like {what}", e.valid_up_to()), help);
            Err(reader.finish())
        }
    }
}

/// The apps that `text` declares, one for each YAML document, or everything that is wrong with it, by line.
/// `file` is only for the messages.
pub fn parse(text: &str, file: &str) -> Result<Vec<Parsed>, Vec<Problem>> {
    let mut reader = Reader::new(file);
    refuse_size(text.len(), &mut reader)?;
    let documents = yaml::documents(text, &mut reader);
    if documents.is_empty() && reader.is_clean() {
        reader.whole_file(
            "declares no app: it is empty, or all of it is comments",
            "start it with `apiVersion: core.oam.dev/v1beta1` and `kind: Application`",
        );
    }
    let mut parsed: Vec<Parsed> = Vec::new();
    let mut names: BTreeMap<Name, usize> = BTreeMap::new();
    for document in &documents {
        let Some(one) = document::app(document, &mut reader) else {
            continue;
        };
        let place = &one.positions.app;
        if let Some(first) = names.get(&one.app.name) {
            reader.report(
                place,
                format!("the file has two apps named {:?}; the first is at line {first}", one.app.name.as_str()),
                "give one of them another name",
            );
        } else {
            names.insert(one.app.name.clone(), place.line);
        }
        parsed.push(one);
    }
    if reader.is_clean() { Ok(parsed) } else { Err(reader.finish()) }
}

fn refuse_size(len: usize, reader: &mut Reader) -> Result<(), Vec<Problem>> {
    if len <= MANIFEST_BYTES_MAX {
        return Ok(());
    }
    reader.whole_file(
        format!("is {len} bytes; a manifest has at most {MANIFEST_BYTES_MAX}"),
        "split it into several files, one app each",
    );
    Err(std::mem::replace(reader, Reader::new("")).finish())
}
