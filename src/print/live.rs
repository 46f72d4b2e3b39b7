//! Lines on stderr that are drawn anew in place while somebody waits. Only for a terminal.

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::time::Duration;

/// Lines below the first; of more it is said how many there are.
const LINES_MAX: usize = 10;
const TICK: Duration = Duration::from_millis(100);

/// A line with the time that has passed, and further lines below. Gone when it is dropped.
pub(crate) struct Live {
    all: MultiProgress,
    first: ProgressBar,
    more: Vec<ProgressBar>,
}

impl Live {
    /// `None` when nobody watches stderr.
    pub(crate) fn start() -> Option<Self> {
        if !super::watched() {
            return None;
        }
        let all = MultiProgress::new();
        let first = all.add(styled(ProgressBar::new_spinner(), "{spinner} {wide_msg} {elapsed:>}"));
        first.enable_steady_tick(TICK);
        Some(Self { all, first, more: Vec::new() })
    }

    pub(crate) fn show(&mut self, first: String, more: Vec<String>) {
        self.first.set_message(first);
        let more = cut(more);
        while self.more.len() > more.len()
            && let Some(bar) = self.more.pop()
        {
            bar.finish_and_clear();
            self.all.remove(&bar);
        }
        while self.more.len() < more.len() {
            self.more.push(self.all.add(styled(ProgressBar::new_spinner(), "  {wide_msg}")));
        }
        for (bar, line) in self.more.iter().zip(more) {
            bar.set_message(line);
            bar.tick();
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        for bar in self.more.iter().chain([&self.first]) {
            bar.finish_and_clear();
        }
    }
}

fn styled(bar: ProgressBar, template: &str) -> ProgressBar {
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// At most so many lines, the last of which says what is left out.
fn cut(mut lines: Vec<String>) -> Vec<String> {
    if lines.len() > LINES_MAX {
        let left = lines.len() + 1 - LINES_MAX;
        lines.truncate(LINES_MAX - 1);
        lines.push(format!("and {left} more"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_room_is_counted() {
        let lines = |n: usize| (0..n).map(|n| n.to_string()).collect::<Vec<_>>();
        assert_eq!(cut(lines(LINES_MAX)), lines(LINES_MAX));
        let many = cut(lines(LINES_MAX + 5));
        assert_eq!((many.len(), many[LINES_MAX - 1].as_str()), (LINES_MAX, "and 6 more"));
    }
}
