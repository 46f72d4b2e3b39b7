//! What goes to stdout and stderr, and how it looks: `table`, `shape` (JSON and YAML), `rows` (what a table shows
//! of a shape), `live` (lines that are redrawn), `problems` (a manifest's errors), `time`. Answers go to stdout, all else to stderr.

pub(crate) mod live;
pub(crate) mod problems;
pub(crate) mod rows;
pub(crate) mod shape;
pub(crate) mod table;
pub(crate) mod time;

use crate::failure::Failure;
use serde::Serialize;
use std::fmt::Display;
use std::io::{IsTerminal, Write};

/// One line on stdout, at once.
pub(crate) fn out(text: impl Display) -> Result<(), Failure> {
    raw(format!("{text}\n").as_bytes())
}

/// Bytes on stdout, at once.
pub(crate) fn raw(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(bytes)?;
    Ok(stdout.flush()?)
}

/// One line on stderr. Nobody may be listening: that is no reason to stop.
pub(crate) fn note(text: impl Display) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

pub(crate) fn json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Failure::Refused(format!("can not write JSON: {e}")))?;
    out(text)
}

/// JSON on one line, for streams.
pub(crate) fn json_line(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(value).map_err(|e| Failure::Refused(format!("can not write JSON: {e}")))?;
    out(text)
}

/// One YAML document; `---` first when it is one of a stream.
pub(crate) fn yaml(value: &impl Serialize, of_stream: bool) -> Result<(), Failure> {
    let text = serde_saphyr::to_string(value).map_err(|e| Failure::Refused(format!("can not write YAML: {e}")))?;
    out(format!("{}{}", if of_stream { "---\n" } else { "" }, text.trim_end()))
}

/// Whether stdout shows colours.
pub(crate) fn color() -> bool {
    std::io::stdout().is_terminal() && wants_color()
}

/// Whether a person watches stderr, where progress is drawn.
pub(crate) fn watched() -> bool {
    std::io::stderr().is_terminal()
}

pub(crate) fn wants_color() -> bool {
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    !set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// One line that moves no cursor and rings no bell, whatever a server or an actor sent.
pub(crate) fn clean(text: &str) -> String {
    text.trim_end()
        .chars()
        .map(|c| match c {
            '\n' | '\r' | '\t' => ' ',
            c if c.is_control() || is_bidi(c) => char::REPLACEMENT_CHARACTER,
            c => c,
        })
        .collect()
}

/// Characters that turn the direction of text, and so what a reader believes to see.
fn is_bidi(c: char) -> bool {
    matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}
