//! Durations as people type them: `500ms`, `30s`, `2m`, `1h30m`. Pure.

use std::time::Duration;

/// Longest duration taken: a day. What is longer is a slip of the hand.
const DURATION_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// The same for what is meant to be good for days.
const WEEK: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Parses one or more numbers, each with its unit (ms, s, m, h).
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    parse_within(text, DURATION_MAX)
}

/// The same, up to a week.
pub(crate) fn parse_week(text: &str) -> Result<Duration, String> {
    parse_within(text, WEEK)
}

fn parse_within(text: &str, max: Duration) -> Result<Duration, String> {
    let wrong = |why: &str| format!("{why}: write a number and a unit (ms, s, m, h), such as 30s or 1m30s");
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(wrong("empty duration"));
    }
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, tail) = rest.split_at(digits);
        let letters = tail.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (unit, tail) = tail.split_at(letters);
        if number.is_empty() {
            return Err(wrong("a duration begins with a whole number"));
        }
        let number: u64 = number.parse().map_err(|_| wrong("the number is too large"))?;
        let part = match unit {
            "ms" => Some(Duration::from_millis(number)),
            "s" => Some(Duration::from_secs(number)),
            "m" => number.checked_mul(60).map(Duration::from_secs),
            "h" => number.checked_mul(3600).map(Duration::from_secs),
            "" => return Err(wrong("the unit is missing")),
            _ => return Err(wrong(&format!("unknown unit {unit:?}"))),
        };
        total = part.and_then(|part| total.checked_add(part)).unwrap_or(Duration::MAX);
        if total > max {
            return Err(format!("at most {}", self::text(max)));
        }
        rest = tail;
    }
    Ok(total)
}

/// The shortest way to write it that `parse` reads back, to the millisecond.
pub(crate) fn text(duration: Duration) -> String {
    let ms = duration.as_millis();
    if ms == 0 || !ms.is_multiple_of(1000) {
        return format!("{ms}ms");
    }
    let (hours, minutes, seconds) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60);
    if hours == 0 && (minutes <= 1 || seconds != 0) && ms <= 120_000 {
        return format!("{}s", ms / 1000);
    }
    let mut out = String::new();
    for (number, unit) in [(hours, "h"), (minutes, "m"), (seconds, "s")] {
        if number > 0 {
            out.push_str(&format!("{number}{unit}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::{parse, parse_week, text};
    use std::time::Duration;

    #[test]
    fn numbers_with_units_add_up() {
        for (typed, ms) in
            [("0s", 0), ("500ms", 500), ("30s", 30_000), ("2m", 120_000), ("1h30m", 5_400_000), ("1m1s1ms", 61_001)]
        {
            assert_eq!(parse(typed), Ok(Duration::from_millis(ms)), "{typed}");
        }
    }

    #[test]
    fn what_is_not_a_duration_is_told_what_would_be() {
        for typed in ["", "30", "s", "-1s", "1.5s", "3 s", "3d", "s3", "1s 2s", "99999999999999999999s"] {
            let error = parse(typed).expect_err(typed);
            assert!(error.contains("such as 30s"), "{typed}: {error}");
        }
        assert_eq!(parse("25h"), Err("at most 24h".into()));
        assert_eq!(parse_week("168h"), Ok(Duration::from_secs(604_800)));
        assert_eq!(parse_week("168h1s"), Err("at most 168h".into()));
        assert_eq!(parse("18446744073709551615h"), Err("at most 24h".into()));
    }

    #[test]
    fn text_reads_back() {
        for (ms, want) in [(0, "0ms"), (250, "250ms"), (60_000, "60s"), (90_000, "90s"), (5_400_000, "1h30m")] {
            let duration = Duration::from_millis(ms);
            assert_eq!(text(duration), want);
            assert_eq!(parse(want), Ok(duration));
        }
    }
}
