//! Text -> one tree with positions for each YAML document. Bounds what the text may ask for: nesting, what aliases
//! repeat, the length of a string, the number of documents. Never panics, never recurses.

use super::reader::Reader;
use super::{DOCUMENTS_MAX, Place};
use serde_saphyr::granit_parser::{Event, Parser, ScalarStyle, ScanError, Span, Tag, options};
use std::collections::BTreeMap;
use std::rc::Rc;

/// Levels of nesting, aliases followed.
const DEPTH_MAX: usize = 64;
/// Nodes and bytes of one document, aliases written out.
const WEIGHT_MAX: usize = 4 * 1024 * 1024;
/// Bytes of one string.
const STRING_BYTES_MAX: usize = 64 * 1024;

/// Line and column, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Spot {
    pub(crate) line: usize,
    pub(crate) column: usize,
}

impl Spot {
    pub(crate) fn place(self, path: &str) -> Place {
        Place { line: self.line, column: self.column, path: path.to_owned() }
    }
}

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) spot: Spot,
    pub(crate) value: Value,
    depth: usize,
    weight: usize,
}

#[derive(Debug)]
pub(crate) enum Value {
    Null,
    /// `plain` is false for what stands in quotes or in a block: it is text, whatever it looks like.
    Scalar {
        text: String,
        plain: bool,
    },
    List(Vec<Rc<Node>>),
    /// Keys are distinct and in the order of the text.
    Map(Vec<Entry>),
}

#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) spot: Spot,
    pub(crate) node: Rc<Node>,
}

/// The documents of `text` that are not empty. What is wrong with the text itself goes to `reader`; a broken document
/// is left out, those behind it are still read.
pub(crate) fn documents(text: &str, reader: &mut Reader) -> Vec<Rc<Node>> {
    if refuse_hidden_characters(text, reader) {
        return Vec::new();
    }
    let options = options! { emit_comments: false, flow_nesting_limit: DEPTH_MAX, block_nesting_limit: DEPTH_MAX };
    let mut parser = Parser::new_from_str_with_options(text, options);
    let mut documents = Vec::new();
    let mut builder = Builder::default();
    // Each turn takes one event or skips one broken document; both go forward in the text.
    loop {
        let outcome = match parser.next_event() {
            None => break,
            Some(Ok((Event::StreamEnd, _))) => break,
            Some(Ok((event, span))) => builder.take(event, span, reader),
            Some(Err(error)) => {
                syntax_error(&error, reader);
                Err(Broken)
            }
        };
        if outcome.is_err() {
            builder = Builder::default();
            if !parser.proceed_next_document().unwrap_or(false) {
                break;
            }
        }
        let Some(root) = builder.done.take() else { continue };
        builder = Builder::default();
        if matches!(root.value, Value::Null) {
            continue;
        }
        if documents.len() == DOCUMENTS_MAX {
            let place = root.spot.place("");
            reader.report(&place, format!("more than {DOCUMENTS_MAX} apps in one file"), "split it into several files");
            break;
        }
        documents.push(root);
    }
    documents
}

/// The document can not be read further; why is already reported.
struct Broken;

/// One document in the making.
#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    /// By the parser's number; only complete nodes, so that an alias inside of its own anchor finds nothing.
    anchors: BTreeMap<usize, Rc<Node>>,
    done: Option<Rc<Node>>,
}

struct Open {
    spot: Spot,
    anchor: usize,
    depth: usize,
    weight: usize,
    kind: OpenKind,
}

enum OpenKind {
    List(Vec<Rc<Node>>),
    /// `key` is the one whose value comes next; `None` inside when that entry is to be left out.
    Map {
        entries: Vec<Entry>,
        lines: BTreeMap<String, usize>,
        key: Option<Option<(String, Spot)>>,
    },
}

impl Builder {
    fn take(&mut self, event: Event<'_>, span: Span, reader: &mut Reader) -> Result<(), Broken> {
        let spot = spot(&span);
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let plain = style == ScalarStyle::Plain && !self.tag(tag.as_deref(), spot, reader);
                self.refuse_string(&text, spot, reader);
                let value = match &*text {
                    "" | "~" | "null" | "Null" | "NULL" if plain => Value::Null,
                    text => Value::Scalar { text: text.to_owned(), plain },
                };
                let node = Rc::new(Node { spot, value, depth: 1, weight: 1 + text.len() });
                if anchor > 0 {
                    self.anchors.insert(anchor, Rc::clone(&node));
                }
                self.put(node, spot, reader)
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.tag(tag.as_deref(), spot, reader);
                self.open(spot, anchor, OpenKind::List(Vec::new()), reader)
            }
            Event::MappingStart(_, anchor, tag) => {
                self.tag(tag.as_deref(), spot, reader);
                let kind = OpenKind::Map { entries: Vec::new(), lines: BTreeMap::new(), key: None };
                self.open(spot, anchor, kind, reader)
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(reader),
            Event::Alias(id) => match self.anchors.get(&id).map(Rc::clone) {
                Some(node) => self.put(node, spot, reader),
                None => {
                    reader.report(&spot.place(&self.path()), "an alias inside of what it stands for", "write it out");
                    Err(Broken)
                }
            },
            _ => Ok(()),
        }
    }

    fn open(&mut self, spot: Spot, anchor: usize, kind: OpenKind, reader: &mut Reader) -> Result<(), Broken> {
        if let Some(Open { kind: OpenKind::Map { key: None, .. }, .. }) = self.open.last() {
            reader.report(&spot.place(&self.path()), "a list or a map as key", "keys are plain text");
            return Err(Broken);
        }
        self.open.push(Open { spot, anchor, depth: 0, weight: 1, kind });
        Ok(())
    }

    fn close(&mut self, reader: &mut Reader) -> Result<(), Broken> {
        let Some(open) = self.open.pop() else { return Ok(()) };
        let value = match open.kind {
            OpenKind::List(items) => Value::List(items),
            OpenKind::Map { entries, .. } => Value::Map(entries),
        };
        let node = Rc::new(Node { spot: open.spot, value, depth: open.depth + 1, weight: open.weight });
        if open.anchor > 0 {
            self.anchors.insert(open.anchor, Rc::clone(&node));
        }
        self.put(node, open.spot, reader)
    }

    /// Adds a complete node, met at `spot`, to what is open: as item, key, value or root.
    fn put(&mut self, node: Rc<Node>, spot: Spot, reader: &mut Reader) -> Result<(), Broken> {
        let level = self.open.len();
        let Some(open) = self.open.last_mut() else {
            self.done = Some(node);
            return Ok(());
        };
        open.depth = open.depth.max(node.depth);
        open.weight = open.weight.saturating_add(node.weight);
        let over = if open.weight > WEIGHT_MAX {
            Some(("aliases repeat too much here".to_owned(), "write less, or several files"))
        } else if open.depth + level > DEPTH_MAX {
            Some((format!("nested deeper than {DEPTH_MAX} levels"), "write it flatter"))
        } else {
            None
        };
        if let Some((message, help)) = over {
            reader.report(&spot.place(&self.path()), message, help);
            return Err(Broken);
        }
        match &mut open.kind {
            OpenKind::List(items) => items.push(node),
            OpenKind::Map { entries, key: key @ Some(_), .. } => {
                if let Some(Some((key, spot))) = key.take() {
                    entries.push(Entry { key, spot, node });
                }
            }
            OpenKind::Map { lines, key, .. } => match read_key(&node, spot, lines) {
                Ok(read) => *key = Some(Some((read, spot))),
                Err(refused) => {
                    *key = Some(None);
                    self.refuse_key(refused, spot, reader);
                }
            },
        }
        Ok(())
    }

    /// Reports a key whose entry is left out.
    fn refuse_key(&self, refused: KeyRefused, spot: Spot, reader: &mut Reader) {
        let mut path = self.path();
        match refused {
            KeyRefused::Missing => reader.report(&spot.place(&path), "a value without a key", "write `name: value`"),
            KeyRefused::NoText => {
                reader.report(&spot.place(&path), "a list or a map as key", "keys are plain text");
            }
            KeyRefused::Second { key, first } => {
                let help = match path.is_empty() && (key == "apiVersion" || key == "kind") {
                    true => "put a line `---` between two apps",
                    false => "remove one of them",
                };
                super::reader::extend(&mut path, &key);
                let message = format!("duplicate key {}; the first is at line {first}", super::reader::shown(&key));
                reader.report(&spot.place(&path), message, help);
            }
        }
    }

    /// Whether a tag says that a plain scalar is text. Reports the tags that mean nothing here.
    fn tag(&self, tag: Option<&Tag>, spot: Spot, reader: &mut Reader) -> bool {
        let Some(tag) = tag else { return false };
        match tag.core_suffix() {
            Some("str") => true,
            Some("int" | "float" | "bool" | "null" | "map" | "seq") => false,
            _ => {
                let message = format!("unknown tag {:?}", tag.original().chars().take(80).collect::<String>());
                reader.report(&spot.place(&self.path()), message, "remove it: a manifest uses no tags");
                false
            }
        }
    }

    fn refuse_string(&self, text: &str, spot: Spot, reader: &mut Reader) {
        if text.len() > STRING_BYTES_MAX {
            let message = format!("a string of {} bytes; at most {STRING_BYTES_MAX} are allowed", text.len());
            reader.report(&spot.place(&self.path()), message, "keep large values in files or in a store");
        }
        if let Some(c) = text.chars().find(|c| is_hidden(*c)) {
            let message = format!("the string has {}", named(c));
            reader.report(&spot.place(&self.path()), message, "remove it: it can not be seen");
        }
    }

    /// "spec.components[3].name", of the node that comes next.
    fn path(&self) -> String {
        let mut path = String::new();
        for open in &self.open {
            match &open.kind {
                OpenKind::List(items) => path.push_str(&format!("[{}]", items.len())),
                OpenKind::Map { key: Some(Some((key, _))), .. } => super::reader::extend(&mut path, key),
                OpenKind::Map { .. } => {}
            }
        }
        path
    }
}

enum KeyRefused {
    Missing,
    NoText,
    Second { key: String, first: usize },
}

/// The key for the entry whose value comes next. `lines` are those of the keys so far.
fn read_key(node: &Node, spot: Spot, lines: &mut BTreeMap<String, usize>) -> Result<String, KeyRefused> {
    let key = match &node.value {
        Value::Scalar { text, .. } => text.clone(),
        Value::Null => return Err(KeyRefused::Missing),
        Value::List(_) | Value::Map(_) => return Err(KeyRefused::NoText),
    };
    if let Some(first) = lines.get(&key) {
        return Err(KeyRefused::Second { key, first: *first });
    }
    lines.insert(key.clone(), spot.line);
    Ok(key)
}

fn spot(span: &Span) -> Spot {
    Spot { line: span.start.line().max(1), column: span.start.col() + 1 }
}

fn syntax_error(error: &ScanError, reader: &mut Reader) {
    let marker = error.marker();
    let place = Place { line: marker.line().max(1), column: marker.col() + 1, path: String::new() };
    reader.report(&place, format!("not valid YAML: {}", error.info()), "check the indentation and the quotes here");
}

/// Characters that no editor shows. They are refused in comments too, where they could make a reviewer see another
/// text than the one that is read. Reports the first of each line; true when there was any.
fn refuse_hidden_characters(text: &str, reader: &mut Reader) -> bool {
    let mut found = false;
    for (index, line) in text.strip_prefix('\u{feff}').unwrap_or(text).split('\n').enumerate() {
        let line = line.strip_suffix('\r').unwrap_or(line);
        let Some((column, c)) = line.chars().enumerate().find(|(_, c)| is_hidden(*c)) else {
            continue;
        };
        let place = Place { line: index + 1, column: column + 1, path: String::new() };
        reader.report(&place, format!("the text has {}", named(c)), "remove it: it can not be seen");
        found = true;
    }
    found
}

fn is_hidden(c: char) -> bool {
    (c.is_control() && !matches!(c, '\t' | '\n' | '\r')) || is_bidi(c)
}

/// Unicode TR 36 and CVE-2021-42574: these change the order in which the characters around them are shown.
fn is_bidi(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn named(c: char) -> String {
    let kind = match c {
        '\0' => "a NUL character",
        c if is_bidi(c) => "a character that changes the direction of text",
        _ => "a control character",
    };
    format!("{kind} (U+{:04X})", u32::from(c))
}
