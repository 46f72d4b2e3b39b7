//! Both ends of a call over the bus: what an actor's host asks, and what the provider's host answers. One request,
//! one reply. The serving end trusts nothing of a caller but its name, and takes what the link configured from the
//! app it knows, never from the wire.
//!
//! Reading order: `call` (values), `http` (requests to an actor), `head` (the HTTP message as bytes; pure), `body` (what
//! travels with it, what behind it).

mod body;
mod call;
mod head;
mod http;

pub use call::{RemoteServe, serve_component};
pub use head::{BODY_BYTES_MAX, strip_hop_by_hop};
pub use http::{HTTP_INTERFACE, RemoteHttp, serve_http};

use crate::call::CallError;
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

/// Time for a call whose caller named none.
pub const DEADLINE_DEFAULT: Duration = Duration::from_secs(30);
/// Calls that one interface of one component answers at a time on one host; as many more wait, the rest is refused.
pub const CONCURRENT_MAX: usize = 1024;

/// Who calls, over which link. The names are well formed; whether there is such a link is for `Permit` to say.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Caller {
    /// The consumer's app.
    pub app: proto::app::Name,
    pub consumer: proto::app::Name,
    /// What is called: a component of the serving host.
    pub provider_app: proto::app::Name,
    pub provider: proto::app::Name,
    /// Without version.
    pub interface: String,
    /// The link's name.
    pub link: String,
}

/// The target config of the caller's link, if the app that the serving host knows has such a link. `link::permit`
/// answers it for one app.
pub type Permit = Arc<dyn Fn(&Caller) -> Option<BTreeMap<String, String>> + Send + Sync>;

/// What answers now. It is replaced while requests come in: the subscription stays, since the client library drops what
/// is on its way to one that ends.
pub struct Slot<T>(RwLock<T>);

impl<T: Clone> Slot<T> {
    pub fn new(first: T) -> Arc<Self> {
        Arc::new(Self(RwLock::new(first)))
    }

    pub fn set(&self, next: T) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = next;
    }

    fn get(&self) -> T {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What the bus's error means for a call. `who` is the caller's side of the link, `what` is asked, `whom` serves it.
fn call_error(error: bus::Error, who: &str, what: &str, whom: &str) -> CallError {
    match error {
        bus::Error::NoResponders { .. } => {
            CallError::Unavailable(format!("{who}: no host offers {what} of {whom}; check `lattice get actors`"))
        }
        bus::Error::Deadline { after, .. } => CallError::Deadline(format!(
            "{who}: {what} of {whom} gave no answer within {after:?}, and may have been carried out; \
             look at its load, or raise the actor's deadline"
        )),
        bus::Error::Disconnected | bus::Error::Closed => CallError::Unavailable(format!(
            "{who}: {whom} is on another host and the bus is not connected; try again when it is"
        )),
        bus::Error::TooLarge { bytes, max, .. } => CallError::TooLarge(format!(
            "{who}: a call of {bytes} bytes to {what} of {whom} is over the bus's limit of {max}; send less at a time"
        )),
        bus::Error::Busy { calls } => CallError::Overloaded(format!(
            "{who}: {calls} calls of this host wait for answers, which is the bound; try again a little later"
        )),
        bus::Error::Refused { code, message } => match code.as_str() {
            "panicked" => CallError::Trapped(message),
            "bad-request" => CallError::Invalid(message),
            code => CallError::from_code(code, message),
        },
        other => CallError::Unavailable(format!("{who}: {what} of {whom}: {other}")),
    }
}

/// The error as it crosses the bus.
fn refusal(error: CallError) -> bus::Refusal {
    bus::Refusal { code: error.code().to_owned(), message: error.to_string() }
}

#[cfg(test)]
mod tests;
