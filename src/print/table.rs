//! A borderless table: columns as wide as their widest cell, the last one as long as it is. Pure.

use unicode_width::UnicodeWidthStr;

/// Blanks between two columns.
const GAP: usize = 3;

/// How a cell looks on a terminal that shows colours.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Tint {
    #[default]
    Plain,
    Good,
    Warn,
    Bad,
    Dim,
    Bold,
}

impl Tint {
    /// By the states that apps, actors, hosts and links have.
    pub(crate) fn of_state(state: &str) -> Self {
        match state {
            "running" | "ready" | "bound" => Self::Good,
            "failed" | "lost" | "unreachable" => Self::Bad,
            "" => Self::Plain,
            _ => Self::Warn,
        }
    }

    pub(crate) fn paint(self, text: &str) -> String {
        let code = match self {
            Self::Plain => return text.to_owned(),
            Self::Good => "32",
            Self::Warn => "33",
            Self::Bad => "31",
            Self::Dim => "2",
            Self::Bold => "1",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Cell {
    text: String,
    tint: Tint,
}

impl Cell {
    /// Text from a server can hold anything: control characters never reach the terminal.
    pub(crate) fn new(text: impl AsRef<str>) -> Self {
        Self { text: super::clean(text.as_ref()), tint: Tint::Plain }
    }
    pub(crate) fn tinted(text: impl AsRef<str>, tint: Tint) -> Self {
        Self { tint, ..Self::new(text) }
    }
    pub(crate) fn state(text: &str) -> Self {
        Self::tinted(text, Tint::of_state(text))
    }
}

/// Remembers its widths, so that rows printed later (by a watch) stand below the earlier ones.
#[derive(Debug, Clone)]
pub(crate) struct Table {
    head: Vec<&'static str>,
    widths: Vec<usize>,
    color: bool,
}

impl Table {
    pub(crate) fn new(head: &[&'static str], color: bool) -> Self {
        Self { head: head.to_vec(), widths: head.iter().map(|name| name.width()).collect(), color }
    }

    /// The head and these rows, each line with its newline.
    pub(crate) fn render(&mut self, rows: &[Vec<Cell>]) -> String {
        self.fit(rows);
        let head: Vec<Cell> = self.head.iter().map(Cell::new).collect();
        self.line(&head) + &self.lines(rows)
    }

    /// More rows for a table whose head was printed before.
    pub(crate) fn more(&mut self, rows: &[Vec<Cell>]) -> String {
        self.fit(rows);
        self.lines(rows)
    }

    fn fit(&mut self, rows: &[Vec<Cell>]) {
        for row in rows {
            for (width, cell) in self.widths.iter_mut().zip(row) {
                *width = (*width).max(cell.text.width());
            }
        }
    }

    fn lines(&self, rows: &[Vec<Cell>]) -> String {
        rows.iter().map(|row| self.line(row)).collect()
    }

    fn line(&self, row: &[Cell]) -> String {
        let mut out = String::new();
        // Blanks are written before the next cell that has text: no line ends in blanks.
        let mut blanks = 0;
        for (cell, width) in row.iter().zip(&self.widths) {
            if !cell.text.is_empty() {
                out.extend(std::iter::repeat_n(' ', blanks));
                blanks = 0;
                out.push_str(&if self.color { cell.tint.paint(&cell.text) } else { cell.text.clone() });
            }
            blanks += width.saturating_sub(cell.text.width()) + GAP;
        }
        out.push('\n');
        out
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "test helpers")]
    use super::{Cell, Table, Tint};

    fn row(cells: &[&str]) -> Vec<Cell> {
        cells.iter().map(Cell::new).collect()
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&["NAME", "STATE", "MESSAGE"], false);
        let text = table.render(&[row(&["hello", "running", ""]), row(&["a", "failed", "no host"])]);
        assert_eq!(
            text,
            "NAME    STATE     MESSAGE\n\
             hello   running\n\
             a       failed    no host\n"
        );
    }

    #[test]
    fn wide_characters_count_twice_and_empty_cells_keep_their_place() {
        let mut table = Table::new(&["A", "B", "C"], false);
        let text = table.render(&[row(&["東京", "x", "1"]), row(&["b", "", "2"])]);
        assert_eq!(text, "A      B   C\n東京   x   1\nb          2\n");
    }

    #[test]
    fn later_rows_stand_below_the_earlier_ones() {
        let mut table = Table::new(&["NAME", "N"], false);
        table.render(&[row(&["a-long-name", "1"])]);
        assert_eq!(table.more(&[row(&["b", "2"])]), "b             2\n");
    }

    #[test]
    fn colour_does_not_move_columns() {
        let cells = vec![vec![Cell::tinted("ready", Tint::Good), Cell::new("1")]];
        let plain = Table::new(&["STATE", "N"], false).render(&cells);
        let color = Table::new(&["STATE", "N"], true).render(&cells);
        assert_eq!(color.replace("\x1b[32m", "").replace("\x1b[0m", ""), plain);
        assert!(color.contains("\x1b[32mready\x1b[0m"));
    }

    #[test]
    fn control_characters_never_reach_the_terminal() {
        let text = Table::new(&["M"], false).render(&[row(&["a\x1b[2Jb\nc"])]);
        assert_eq!(text, "M\na\u{fffd}[2Jb c\n");
    }
}
