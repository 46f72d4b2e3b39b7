//! The log on stderr: how much of it, and in which form.

use crate::args::{LogArgs, LogForm};
use crate::failure::Failure;
use tracing_subscriber::EnvFilter;

/// What of our own crates is logged when nobody asks for more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// A command that answers and ends: only what is wrong.
    Client,
    #[cfg_attr(
        not(any(feature = "host", feature = "scheduler")),
        allow(dead_code, reason = "a build without server parts never makes one")
    )]
    Server,
}

pub(crate) fn init(args: &LogArgs, role: Role) -> Result<(), Failure> {
    let named = std::env::var("LATTICE_LOG").ok().filter(|text| !text.is_empty());
    let text = match named {
        Some(text) if args.verbose == 0 => text,
        _ => directives(args.verbose, role),
    };
    let filter = EnvFilter::try_new(&text).map_err(|e| {
        Failure::Usage(format!("LATTICE_LOG={text}: {e}; write a level or targets, as info or warn,host=debug"))
    })?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match args.form {
        LogForm::Json => builder.json().init(),
        LogForm::Text => builder.compact().with_ansi(crate::print::watched() && crate::print::wants_color()).init(),
    }
    Ok(())
}

/// Our own crates at one level, all others lower: their details help only those who look for them.
fn directives(verbose: u8, role: Role) -> String {
    let (own, others) = match (verbose, role) {
        (0, Role::Client) => ("warn", "error"),
        (0, Role::Server) => ("info", "warn"),
        (1, Role::Client) => ("info", "warn"),
        (1, Role::Server) => ("debug", "warn"),
        (2, _) => ("debug", "info"),
        _ => ("trace", "debug"),
    };
    let crates = ["lattice", "scheduler", "host", "bus", "proto"];
    let own: Vec<String> = crates.iter().map(|name| format!("{name}={own}")).collect();
    format!("{others},{}", own.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_is_a_filter() {
        for verbose in 0..5 {
            for role in [Role::Client, Role::Server] {
                let text = directives(verbose, role);
                assert!(EnvFilter::try_new(&text).is_ok(), "{text}");
            }
        }
        assert!(directives(0, Role::Server).contains("host=info"));
        assert!(directives(0, Role::Client).contains("host=warn"));
    }
}
