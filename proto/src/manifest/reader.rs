//! Tree -> values. Notes each problem and goes on, so that one run shows them all.

use super::yaml::{Entry, Node, Value};
use super::{PROBLEMS_MAX, Place, Problem};
use std::collections::BTreeMap;

/// Characters of a foreign name that a message repeats.
const SHOWN_MAX: usize = 80;

/// Collects the problems of one file.
pub(crate) struct Reader {
    file: String,
    problems: Vec<Problem>,
    beyond: usize,
}

/// A node and how one gets to it.
#[derive(Debug, Clone)]
pub(crate) struct Cursor<'n> {
    pub(crate) node: &'n Node,
    /// "spec.components[0].type"
    pub(crate) path: String,
}

/// A map whose keys are all known; each is taken once.
pub(crate) struct Fields<'n> {
    pub(crate) place: Place,
    entries: BTreeMap<&'n str, Cursor<'n>>,
}

/// `key: value` of a map of text to text.
pub(crate) struct Pair {
    pub(crate) key: String,
    pub(crate) value: String,
    pub(crate) place: Place,
}

impl Reader {
    pub(crate) fn new(file: &str) -> Self {
        Self { file: file.to_owned(), problems: Vec::new(), beyond: 0 }
    }

    pub(crate) fn file(&self) -> &str {
        &self.file
    }

    pub(crate) fn is_clean(&self) -> bool {
        self.problems.is_empty()
    }

    pub(crate) fn report(&mut self, place: &Place, message: impl Into<String>, help: impl Into<String>) {
        if self.problems.len() >= PROBLEMS_MAX {
            self.beyond += 1;
            return;
        }
        self.problems.push(Problem {
            file: self.file.clone(),
            line: place.line,
            column: place.column,
            path: place.path.clone(),
            message: message.into(),
            help: help.into(),
        });
    }

    pub(crate) fn whole_file(&mut self, message: impl Into<String>, help: impl Into<String>) {
        self.report(&Place::default(), message, help);
    }

    /// All problems, by line.
    pub(crate) fn finish(mut self) -> Vec<Problem> {
        // Stable: two at one place stay in the order they were found.
        self.problems.sort_by_key(|p| (p.line, p.column));
        if self.beyond > 0 {
            let beyond = self.beyond;
            self.whole_file_last(format!("{beyond} more problems are not shown"));
        }
        self.problems
    }

    fn whole_file_last(&mut self, message: String) {
        self.problems.push(Problem {
            file: self.file.clone(),
            line: 0,
            column: 0,
            path: String::new(),
            message,
            help: "correct these first".into(),
        });
    }

    /// The entries of a map. Reports what is not in `known`, with the nearest that is.
    pub(crate) fn fields<'n>(&mut self, at: &Cursor<'n>, known: &[&str]) -> Option<Fields<'n>> {
        let entries = self.entries(at, &format!("a map with {}", any_of(known)))?;
        let mut fields = Fields { place: at.place(), entries: BTreeMap::new() };
        for entry in entries {
            let cursor = at.key(entry);
            if known.contains(&entry.key.as_str()) {
                fields.entries.insert(&entry.key, cursor);
                continue;
            }
            let help = match entry.key.as_str() {
                "<<" => "YAML merge keys are not supported: write the fields out".to_owned(),
                key => nearest(key, known),
            };
            self.report(&entry.spot.place(&cursor.path), format!("unknown field {}", shown(&entry.key)), help);
        }
        Some(fields)
    }

    fn entries<'n>(&mut self, at: &Cursor<'n>, expected: &str) -> Option<&'n [Entry]> {
        match &at.node.value {
            Value::Map(entries) => Some(entries),
            _ => {
                self.expected(at, expected);
                None
            }
        }
    }

    /// For files where a field left empty must not be taken for one that is not there.
    pub(crate) fn refuse_empty(&mut self, fields: &Fields<'_>) {
        for cursor in fields.entries.values() {
            if matches!(cursor.node.value, Value::Null) {
                self.report(&cursor.place(), "has no value", "give it one, as [] or false, or remove it");
            }
        }
    }

    /// A field that must be there and have a value.
    pub(crate) fn required<'n>(&mut self, fields: &mut Fields<'n>, name: &str, example: &str) -> Option<Cursor<'n>> {
        let help = format!("write `{name}: {example}`");
        match fields.entries.remove(name) {
            Some(Cursor { node: Node { value: Value::Null, spot, .. }, path }) => {
                self.report(&spot.place(&path), "has no value", help);
                None
            }
            None => {
                self.report(&fields.place, format!("missing field {name:?}"), help);
                None
            }
            some => some,
        }
    }

    /// Text as written; numbers and booleans without quotes too.
    pub(crate) fn text(&mut self, at: &Cursor<'_>) -> Option<String> {
        match &at.node.value {
            Value::Scalar { text, .. } => Some(text.clone()),
            _ => {
                self.expected(at, "text");
                None
            }
        }
    }

    pub(crate) fn flag(&mut self, at: &Cursor<'_>) -> Option<bool> {
        match &at.node.value {
            Value::Scalar { text, plain: true } if text == "true" => Some(true),
            Value::Scalar { text, plain: true } if text == "false" => Some(false),
            _ => {
                self.expected(at, "true or false");
                None
            }
        }
    }

    /// A whole number without quotes, 0 to `max`.
    pub(crate) fn whole(&mut self, at: &Cursor<'_>, max: u64) -> Option<u64> {
        let expected = format!("a whole number from 0 to {max}");
        let Value::Scalar { text, plain } = &at.node.value else {
            self.expected(at, &expected);
            return None;
        };
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let number = text.parse::<u64>().ok().filter(|n| digits && *n <= max);
        let help = match number {
            Some(number) if *plain => return Some(number),
            Some(_) => "write it without quotes".to_owned(),
            None if digits => format!("at most {max} is allowed"),
            None => format!("give {expected}"),
        };
        let found = if *plain { text.chars().take(SHOWN_MAX).collect() } else { shown(text) };
        self.report(&at.place(), format!("expected {expected}, found {found}"), help);
        None
    }

    /// The items of a list; none when it is empty.
    pub(crate) fn list<'n>(&mut self, at: &Cursor<'n>, of: &str) -> Vec<Cursor<'n>> {
        match &at.node.value {
            Value::Null => Vec::new(),
            Value::List(items) => items
                .iter()
                .enumerate()
                .map(|(index, node)| Cursor { node, path: format!("{}[{index}]", at.path) })
                .collect(),
            _ => {
                self.expected(at, &format!("a list of {of}"));
                Vec::new()
            }
        }
    }

    /// A map of text to text, in the order of the text.
    pub(crate) fn pairs(&mut self, at: &Cursor<'_>) -> Vec<Pair> {
        if matches!(at.node.value, Value::Null) {
            return Vec::new();
        }
        let Some(entries) = self.entries(at, "a map of text to text") else {
            return Vec::new();
        };
        let mut pairs = Vec::new();
        for entry in entries {
            let cursor = at.key(entry);
            let place = entry.spot.place(&cursor.path);
            match &entry.node.value {
                Value::Scalar { text, .. } => pairs.push(Pair { key: entry.key.clone(), value: text.clone(), place }),
                // wadm's parser read it as empty text, and published manifests have it.
                Value::Null => pairs.push(Pair { key: entry.key.clone(), value: String::new(), place }),
                _ => self.expected(&cursor, "text"),
            }
        }
        pairs
    }

    pub(crate) fn map(&mut self, at: &Cursor<'_>) -> BTreeMap<String, String> {
        self.pairs(at).into_iter().map(|pair| (pair.key, pair.value)).collect()
    }

    fn expected(&mut self, at: &Cursor<'_>, expected: &str) {
        let found = match &at.node.value {
            Value::Null => "nothing".to_owned(),
            Value::Scalar { text, plain: true } => format!("`{}`", text.chars().take(SHOWN_MAX).collect::<String>()),
            Value::Scalar { text, .. } => shown(text),
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "a map".to_owned(),
        };
        self.report(&at.place(), format!("expected {expected}, found {found}"), "");
    }
}

impl<'n> Cursor<'n> {
    pub(crate) fn place(&self) -> Place {
        self.node.spot.place(&self.path)
    }
    fn key(&self, entry: &'n Entry) -> Cursor<'n> {
        let mut path = self.path.clone();
        extend(&mut path, &entry.key);
        Cursor { node: &entry.node, path }
    }
    pub(crate) fn is_map(&self) -> bool {
        matches!(self.node.value, Value::Map(_))
    }
}

impl<'n> Fields<'n> {
    /// A field that may be missing; one without value counts as missing.
    pub(crate) fn optional(&mut self, name: &str) -> Option<Cursor<'n>> {
        self.entries.remove(name).filter(|cursor| !matches!(cursor.node.value, Value::Null))
    }
}

/// Adds a key to a path.
pub(crate) fn extend(path: &mut String, key: &str) {
    let simple = !key.is_empty()
        && key.len() <= SHOWN_MAX
        && key.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
    if !simple {
        path.push_str(&format!("[{}]", shown(key)));
        return;
    }
    if !path.is_empty() {
        path.push('.');
    }
    path.push_str(key);
}

/// In quotes, cut where it is long.
pub(crate) fn shown(text: &str) -> String {
    if text.chars().count() > SHOWN_MAX {
        format!("{:?}…", text.chars().take(SHOWN_MAX).collect::<String>())
    } else {
        format!("{text:?}")
    }
}

/// `did you mean "type"?`, or all that are known when none is near.
pub(crate) fn nearest(word: &str, known: &[&str]) -> String {
    match near(word, known) {
        Some(best) => format!("did you mean {best:?}?"),
        None => format!("known are {}", all_of(known)),
    }
}

/// The one of `known` that `word` was probably meant to be.
pub(crate) fn near<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    if word.len() > SHOWN_MAX {
        return None;
    }
    let lower = word.to_lowercase();
    let far_max = (lower.chars().count() / 3).clamp(1, 3);
    known
        .iter()
        .map(|k| (strsim::damerau_levenshtein(&lower, &k.to_lowercase()), *k))
        .filter(|(far, _)| *far <= far_max)
        .min_by_key(|(far, _)| *far)
        .map(|(_, k)| k)
}

fn all_of(words: &[&str]) -> String {
    words.iter().map(|w| format!("{w:?}")).collect::<Vec<_>>().join(", ")
}

fn any_of(words: &[&str]) -> String {
    words.join(", ")
}
