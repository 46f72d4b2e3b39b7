//! Times for people: RFC 3339 in UTC, and ages. Pure: now is given.

pub(crate) use proto::time::rfc3339;

/// `12s`, `5m`, `3h`, `40d`: one unit is enough for a column.
pub(crate) fn age(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Milliseconds since 1970 by this machine's clock.
pub(crate) fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::age;

    #[test]
    fn ages_take_one_unit() {
        for (ms, want) in [
            (0, "0s"),
            (119_999, "119s"),
            (120_000, "2m"),
            (7_200_000, "2h"),
            (172_800_000, "2d"),
            (864_000_000, "10d"),
        ] {
            assert_eq!(age(ms), want);
        }
    }
}
