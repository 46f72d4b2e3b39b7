//! What a call to an actor or a provider is, whether it stays in this process or crosses the bus.

use bytes::Bytes;

/// Why a call gave no result. `code` is what crosses the bus; the text names the thing and the next step.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// Nobody serves it now; trying again may help.
    #[error("{0}")]
    Unavailable(String),
    /// The callee's queue is full; try again after a while.
    #[error("{0}")]
    Overloaded(String),
    /// It ran past its deadline and was stopped.
    #[error("{0}")]
    Deadline(String),
    /// The guest trapped, or broke a limit.
    #[error("{0}")]
    Trapped(String),
    /// The link or the grants do not allow it.
    #[error("{0}")]
    Denied(String),
    /// No such interface or function, or arguments that do not fit.
    #[error("{0}")]
    Invalid(String),
    /// A message or a body is over its bound.
    #[error("{0}")]
    TooLarge(String),
}

impl CallError {
    /// All codes there are.
    pub const CODES: [&'static str; 7] =
        ["unavailable", "overloaded", "deadline", "trapped", "denied", "invalid", "too-large"];

    pub fn code(&self) -> &'static str {
        match self {
            Self::Unavailable(_) => "unavailable",
            Self::Overloaded(_) => "overloaded",
            Self::Deadline(_) => "deadline",
            Self::Trapped(_) => "trapped",
            Self::Denied(_) => "denied",
            Self::Invalid(_) => "invalid",
            Self::TooLarge(_) => "too-large",
        }
    }
    /// The error that `code` named at the other end. What is not known is `Unavailable`.
    pub fn from_code(code: &str, message: String) -> Self {
        match code {
            "overloaded" => Self::Overloaded(message),
            "deadline" => Self::Deadline(message),
            "trapped" => Self::Trapped(message),
            "denied" => Self::Denied(message),
            "invalid" => Self::Invalid(message),
            "too-large" => Self::TooLarge(message),
            _ => Self::Unavailable(message),
        }
    }
}

/// Something that answers calls of functions of one interface, values in the encoding of `value`.
/// An actor's exports, a built-in provider, or the far end of the bus.
#[async_trait::async_trait]
pub trait Serve: Send + Sync {
    /// `params` is the concatenation of the encoded parameters; the result likewise.
    /// `link` says on whose behalf: it carries what the link configured for this consumer.
    async fn serve(
        &self,
        link: &LinkContext,
        interface: &str,
        function: &str,
        params: Bytes,
    ) -> Result<Bytes, CallError>;

    /// Whether it computes for microseconds at most before it waits or is done: then a call needs no task of its own.
    fn is_quick(&self) -> bool {
        false
    }
}

/// On whose behalf a provider is called. Travels in headers when the call crosses the bus.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LinkContext {
    pub app: String,
    pub consumer: String,
    /// The link's name, usually "default".
    pub name: String,
    /// The link's target config (for keyvalue: `bucket`).
    pub config: std::collections::BTreeMap<String, String>,
    /// Time left for the call.
    pub deadline: Option<std::time::Duration>,
    /// What caused it.
    pub origin: crate::origin::Origin,
}

/// The body of an HTTP request or response, as the engine gives and takes it.
pub type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, wasmtime_wasi_http::Error>;

/// Something that answers HTTP requests: an actor here, or the far end of the bus.
#[async_trait::async_trait]
pub trait HttpServe: Send + Sync {
    /// `deadline` is the time left; without it the actor's own limit holds.
    async fn http(
        &self,
        request: http::Request<Body>,
        deadline: Option<std::time::Duration>,
    ) -> Result<http::Response<Body>, CallError>;
}
