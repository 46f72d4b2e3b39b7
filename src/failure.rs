//! How a command ends when it does not end well: one line on stderr and an exit code. Never a backtrace.

/// Why a command stopped. The text is what follows `error: ` on stderr.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Failure {
    /// Refused or failed.
    #[error("{0}")]
    Refused(String),
    /// Wrong use of the command line, found after it was parsed.
    #[error("{0}")]
    Usage(String),
    /// Accepted, but not so in the time given.
    #[error("{0}")]
    NotInTime(String),
    /// Ctrl-C while following.
    #[error("{0}")]
    Interrupted(String),
    /// A program ended with this exit code, which becomes the command's own.
    #[error("exit code {0}")]
    Exited(u8),
    /// Whoever read the output has gone: nothing is left to say.
    #[error("the output was closed")]
    Closed,
}

impl Failure {
    /// The exit code; scripts rely on these.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::Closed => 0,
            Self::Exited(code) => *code,
            Self::Refused(_) => 1,
            Self::Usage(_) => 2,
            Self::NotInTime(_) => 3,
            Self::Interrupted(_) => 130,
        }
    }

    /// What goes to stderr, if anything does.
    pub(crate) fn line(&self) -> Option<String> {
        match self {
            Self::Closed | Self::Exited(_) => None,
            Self::Interrupted(text) => Some(text.clone()),
            Self::Refused(text) | Self::Usage(text) | Self::NotInTime(text) => Some(format!("error: {text}")),
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(e: std::io::Error) -> Self {
        match e.kind() {
            std::io::ErrorKind::BrokenPipe => Self::Closed,
            _ => Self::Refused(format!("can not write the output: {e}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Failure;

    #[test]
    fn exit_codes_are_those_that_scripts_rely_on() {
        assert_eq!(Failure::Refused("x".into()).code(), 1);
        assert_eq!(Failure::Usage("x".into()).code(), 2);
        assert_eq!(Failure::NotInTime("x".into()).code(), 3);
        assert_eq!(Failure::Interrupted("x".into()).code(), 130);
        assert_eq!(Failure::Closed.code(), 0);
    }

    #[test]
    fn a_reader_that_has_gone_ends_quietly() {
        let failure = Failure::from(std::io::Error::from(std::io::ErrorKind::BrokenPipe));
        assert_eq!(failure, Failure::Closed);
        assert_eq!(failure.line(), None);
    }

    #[test]
    fn errors_begin_with_error() {
        assert_eq!(Failure::NotInTime("late".into()).line().as_deref(), Some("error: late"));
    }
}
