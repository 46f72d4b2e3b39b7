//! How far a host is with a component that it brings up, in words. Pure: whoever shows it says the same.

use crate::v1::{StartStep, Starting};

/// Components that one heartbeat, or the status of one app, tells this of.
pub const STARTING_MAX: usize = 64;

/// What is done, as of `later_ms` after it was told: `fetching 3.1 of 12.4 MB`, `compiling for 4 s`.
pub fn text(starting: &Starting, later_ms: u64) -> String {
    match starting.step() {
        StartStep::FetchQueued => "waits to be fetched".to_owned(),
        StartStep::Fetching => format!("fetching{}", amount(starting.bytes, starting.bytes_total)),
        StartStep::CompileQueued => "waits to be compiled".to_owned(),
        StartStep::Compiling => format!("compiling{}", time(starting.for_ms.saturating_add(later_ms))),
        StartStep::Linking | StartStep::Unspecified => "starting".to_owned(),
    }
}

fn amount(bytes: u64, total: u64) -> String {
    let tenths = |n: u64| format!("{}.{}", n / 1_000_000, n / 100_000 % 10);
    match total {
        0 => String::new(),
        1..1_000_000 => format!(" {} of {} kB", bytes / 1_000, total / 1_000),
        _ => format!(" {} of {} MB", tenths(bytes), tenths(total)),
    }
}

fn time(ms: u64) -> String {
    match ms / 1_000 {
        0 => String::new(),
        seconds @ 1..120 => format!(" for {seconds} s"),
        seconds => format!(" for {} min", seconds / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_step_has_its_words() {
        let at = |step: StartStep, for_ms, bytes, bytes_total| Starting {
            step: step.into(),
            for_ms,
            bytes,
            bytes_total,
            ..Starting::default()
        };
        for (starting, later_ms, want) in [
            (at(StartStep::FetchQueued, 9_000, 0, 0), 0, "waits to be fetched"),
            (at(StartStep::Fetching, 9_000, 0, 0), 0, "fetching"),
            (at(StartStep::Fetching, 9_000, 3_149_999, 12_400_000), 0, "fetching 3.1 of 12.4 MB"),
            (at(StartStep::Fetching, 9_000, 31_000, 812_400), 0, "fetching 31 of 812 kB"),
            (at(StartStep::CompileQueued, 9_000, 0, 0), 0, "waits to be compiled"),
            (at(StartStep::Compiling, 999, 0, 0), 0, "compiling"),
            (at(StartStep::Compiling, 999, 0, 0), 3_001, "compiling for 4 s"),
            (at(StartStep::Compiling, 119_999, 0, 0), 0, "compiling for 119 s"),
            (at(StartStep::Compiling, 179_999, 0, 0), 0, "compiling for 2 min"),
            (at(StartStep::Linking, 9_000, 0, 0), 0, "starting"),
        ] {
            assert_eq!(text(&starting, later_ms), want);
        }
        // As a host of a later version may say.
        assert_eq!(text(&Starting { step: 77, ..Starting::default() }, 0), "starting");
        let most = at(StartStep::Compiling, u64::MAX, u64::MAX, u64::MAX);
        assert!(text(&most, u64::MAX).starts_with("compiling for "));
    }
}
