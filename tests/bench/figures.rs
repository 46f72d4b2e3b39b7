//! Numbers of several rounds, and tables of them. Pure, but for the printing.

/// One figure as each round measured it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Series(Vec<f64>);

impl Series {
    pub(crate) fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// 0 when nothing was measured.
    pub(crate) fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        match sorted.len() {
            0 => 0.0,
            n if n % 2 == 1 => sorted[n / 2],
            n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
        }
    }

    pub(crate) fn min(&self) -> f64 {
        self.0.iter().copied().reduce(f64::min).unwrap_or_default()
    }

    pub(crate) fn max(&self) -> f64 {
        self.0.iter().copied().reduce(f64::max).unwrap_or_default()
    }

    /// This over `other`, round by round, so that what disturbs a whole round cancels out.
    pub(crate) fn over(&self, other: &Self) -> Self {
        let rounds = self.0.iter().zip(&other.0).filter(|(_, other)| **other > 0.0);
        Self(rounds.map(|(own, other)| own / other).collect())
    }

    /// "median", with three digits that say something.
    pub(crate) fn show(&self) -> String {
        number(self.median())
    }

    /// "min-max"
    pub(crate) fn spread(&self) -> String {
        format!("{}-{}", number(self.min()), number(self.max()))
    }

    /// "1.25x"
    pub(crate) fn ratio_to(&self, other: &Self) -> String {
        ratio(self.over(other).median())
    }
}

impl FromIterator<f64> for Series {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        Self(values.into_iter().collect())
    }
}

/// The value that `share` of 1 of the sorted values lie below.
pub(crate) fn percentile(sorted: &[u32], share: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    // Indices are far below 2^52.
    #[allow(clippy::cast_possible_truncation, reason = "a share of a length is a length")]
    let at = (last as f64 * share) as usize;
    f64::from(sorted[at.min(last)])
}

pub(crate) fn ratio(value: f64) -> String {
    if value == 0.0 { "-".into() } else { format!("{}x", number(value)) }
}

/// Three significant digits below 1,000, whole numbers with commas above.
pub(crate) fn number(value: f64) -> String {
    let size = value.abs();
    if size >= 99.95 {
        return thousands(value);
    }
    let digits = match size {
        s if s >= 9.995 => 1,
        s if s >= 0.0995 || s == 0.0 => 2,
        s if s >= 0.00995 => 3,
        _ => 4,
    };
    format!("{value:.digits$}")
}

fn thousands(value: f64) -> String {
    let whole = format!("{value:.0}");
    let (sign, digits) = whole.strip_prefix('-').map_or(("", whole.as_str()), |digits| ("-", digits));
    let mut text = String::from(sign);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Rows under a title; the first column to the left, the others to the right.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new<const N: usize>(heads: [&str; N]) -> Self {
        Self { rows: vec![heads.map(str::to_owned).to_vec()] }
    }

    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.to_vec());
    }

    pub(crate) fn print(&self) {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or_default();
        let width = |column: usize| self.rows.iter().filter_map(|row| row.get(column)).map(String::len).max();
        let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or_default()).collect();
        for row in &self.rows {
            let cells = row.iter().zip(&widths).enumerate();
            let line: Vec<String> = cells
                .map(
                    |(column, (cell, width))| {
                        if column == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
                    },
                )
                .collect();
            println!("  {}", line.join("   ").trim_end());
        }
    }
}
