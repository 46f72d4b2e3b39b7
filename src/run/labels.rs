//! `--label key=value` and `--name`: what an operator says about a host. Pure.

use proto::app::FACT_LABELS;
use std::collections::BTreeMap;

/// Bytes of a label's key, of its value, and of a host's name.
const TEXT_BYTES_MAX: usize = 253;
const LABELS_MAX: usize = 64;
/// Labels that wadm has for facts.
const RESERVED_PREFIX: &str = "hostcore.";

pub(crate) type Label = (String, String);

/// One `key=value`.
pub(crate) fn parse(text: &str) -> Result<Label, String> {
    let Some((key, value)) = text.split_once('=') else {
        return Err("write key=value, as site=paris".into());
    };
    let key_ok = key.starts_with(|c: char| c.is_ascii_alphanumeric())
        && key.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-/".contains(&b));
    if !key_ok || key.len() > TEXT_BYTES_MAX {
        return Err(format!("a key has letters, digits and . _ - / only, at most {TEXT_BYTES_MAX}"));
    }
    if FACT_LABELS.contains(&key) || key.starts_with(RESERVED_PREFIX) {
        return Err(format!("{key:?} is a fact that the host finds out itself: choose another key"));
    }
    if value.is_empty() || value.len() > TEXT_BYTES_MAX || value.chars().any(char::is_control) || value.trim() != value
    {
        return Err(format!("a value has 1 to {TEXT_BYTES_MAX} bytes, no control characters, no blanks around it"));
    }
    Ok((key.to_owned(), value.to_owned()))
}

/// All labels of one host; a key given twice is a slip of the hand.
pub(crate) fn collect(labels: &[Label]) -> Result<BTreeMap<String, String>, String> {
    let mut all = BTreeMap::new();
    for (key, value) in labels {
        if let Some(other) = all.insert(key.clone(), value.clone()) {
            return Err(format!("--label {key} is given twice, as {other:?} and {value:?}: leave one out"));
        }
    }
    if all.len() > LABELS_MAX {
        return Err(format!("{} labels; a host has at most {LABELS_MAX}", all.len()));
    }
    Ok(all)
}

/// A host's name, for people and for `lattice drain`.
pub(crate) fn host_name(text: &str) -> Result<String, String> {
    let ok = text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.len() <= TEXT_BYTES_MAX
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    if ok {
        Ok(text.to_owned())
    } else {
        Err(format!("a host's name has letters, digits and . _ - only, at most {TEXT_BYTES_MAX}"))
    }
}

/// The machine's own name, or "host" when it has none that would do.
pub(crate) fn machine_name() -> String {
    ["/proc/sys/kernel/hostname", "/etc/hostname"]
        .iter()
        .filter_map(|path| std::fs::read_to_string(path).ok())
        .chain(std::env::var("HOSTNAME").ok())
        .find_map(|name| host_name(name.trim()).ok())
        .unwrap_or_else(|| "host".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_key_and_value() {
        assert_eq!(parse("site=paris"), Ok(("site".into(), "paris".into())));
        assert_eq!(parse("example.org/tier=a=b"), Ok(("example.org/tier".into(), "a=b".into())));
        for text in ["", "site", "=x", "si te=x", "site=", "site= x", "site=a\nb", "arch=x86_64", "hostcore.os=linux"] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert!(parse("arch=x86_64").unwrap_err().contains("finds out itself"));
    }

    #[test]
    fn a_key_given_twice_is_refused() {
        let label = |value: &str| ("site".to_owned(), value.to_owned());
        assert_eq!(collect(&[label("paris")]).unwrap().len(), 1);
        assert!(collect(&[label("paris"), label("lyon")]).unwrap_err().contains("--label site is given twice"));
    }

    #[test]
    fn a_machine_always_has_a_name_that_will_do() {
        assert!(host_name(&machine_name()).is_ok());
        assert!(host_name("-x").is_err() && host_name("").is_err() && host_name("a b").is_err());
    }
}
