//! A manifest's problems: with the source line and a caret on a terminal, one plain line each elsewhere.

use miette::{GraphicalReportHandler, GraphicalTheme, LabeledSpan, MietteDiagnostic, NamedSource, Report, SourceSpan};
use proto::manifest::Problem;
use std::collections::BTreeMap;

/// Problems printed at most; the rest is counted. A file that is wrong everywhere is not read to the end.
const SHOWN_MAX: usize = 200;

/// Prints them all on stderr, in the order of files and lines. `sources` has the text of each file that was read.
pub(crate) fn print(problems: &[Problem], sources: &BTreeMap<String, String>) {
    let pretty = super::watched();
    let color = pretty && super::wants_color();
    for problem in problems.iter().take(SHOWN_MAX) {
        match sources.get(&problem.file) {
            Some(source) if pretty && problem.line > 0 => super::note(render(problem, source, color).trim_end()),
            _ => super::note(plain(problem)),
        }
    }
    if problems.len() > SHOWN_MAX {
        super::note(format!("… and {} more", problems.len() - SHOWN_MAX));
    }
}

/// `file:line:col: path: message; help`.
fn plain(problem: &Problem) -> String {
    super::clean(&problem.to_string())
}

fn render(problem: &Problem, source: &str, color: bool) -> String {
    let message = match problem.path.as_str() {
        "" => super::clean(&problem.message),
        path => format!("{}: {}", super::clean(path), super::clean(&problem.message)),
    };
    let mut diagnostic =
        MietteDiagnostic::new(message).with_label(LabeledSpan::new_with_span(None, span(problem, source)));
    if !problem.help.is_empty() {
        diagnostic = diagnostic.with_help(super::clean(&problem.help));
    }
    // A manifest from elsewhere is as little trusted with the terminal as a server is.
    let shown: String = source.lines().map(|line| super::clean(line) + "\n").collect();
    let report = Report::new(diagnostic).with_source_code(NamedSource::new(&problem.file, shown));
    let theme = if color { GraphicalTheme::unicode() } else { GraphicalTheme::unicode_nocolor() };
    let mut out = String::new();
    let handler = GraphicalReportHandler::new_themed(theme).with_context_lines(1).with_links(false);
    match handler.render_report(&mut out, report.as_ref()) {
        Ok(()) => out,
        Err(_) => plain(problem),
    }
}

/// The word that begins at the problem's line and column, in the text that `render` shows: there each line is cut of
/// its trailing blanks and each character stands for one.
fn span(problem: &Problem, source: &str) -> SourceSpan {
    let mut at = 0;
    for (number, line) in source.lines().enumerate() {
        let line = super::clean(line);
        if number + 1 == problem.line {
            let start: usize = line.chars().take(problem.column.saturating_sub(1)).map(char::len_utf8).sum();
            let word = line[start..].find([' ', ',', '}', ']']).unwrap_or(line.len() - start);
            return (at + start, word.max(usize::from(start < line.len()))).into();
        }
        at += line.len() + 1;
    }
    (at, 0).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem() -> Problem {
        Problem {
            file: "app.yaml".into(),
            line: 3,
            column: 7,
            path: "spec.type".into(),
            message: "unknown type \"compnent\"".into(),
            help: "did you mean \"component\"?".into(),
        }
    }

    #[test]
    fn a_pipe_gets_one_line() {
        assert_eq!(
            plain(&problem()),
            "app.yaml:3:7: spec.type: unknown type \"compnent\"; did you mean \"component\"?"
        );
    }

    #[test]
    fn a_terminal_gets_the_line_and_a_caret() {
        let source = "kind: x\nspec:\n type: compnent # é\n";
        let text = render(&problem(), source, false);
        for part in ["spec.type: unknown type", "type: compnent # é", "app.yaml:3:7", "did you mean", "──"] {
            assert!(text.contains(part), "{part} not in:\n{text}");
        }
    }

    #[test]
    fn a_place_past_the_end_is_no_harm() {
        for (line, column) in [(1, 999), (99, 1), (2, 0), (3, 17)] {
            render(&Problem { line, column, ..problem() }, "a\nb\n ty\x1bpe: 東京 x", false);
        }
    }
}
