//! The validated nouns: what an app is, once its manifest has been checked. No IO; nothing here can be built from
//! text without passing its `FromStr`.
//!
//! `App` is stored in the Raft log and sent to hosts as JSON: fields are added with `#[serde(default)]`, never
//! renamed or given another meaning.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// Replicas that one component may ask for.
pub const REPLICAS_MAX: u32 = 1_000_000;
/// Components in one app.
pub const COMPONENTS_MAX: usize = 1_000;
/// Bytes of one manifest.
pub const MANIFEST_BYTES_MAX: usize = 1024 * 1024;
/// Bytes of one artifact.
pub const ARTIFACT_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// Why a piece of text is not the noun it should be. The message says what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(pub String);

macro_rules! noun {
    ($(#[$doc:meta])* $name:ident, $check:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl FromStr for $name {
            type Err = Invalid;
            fn from_str(s: &str) -> Result<Self, Invalid> {
                $check(s).map(|()| Self(s.to_owned()))
            }
        }
        impl TryFrom<String> for $name {
            type Error = Invalid;
            fn try_from(s: String) -> Result<Self, Invalid> {
                $check(&s).map(|()| Self(s))
            }
        }
        impl From<$name> for String {
            fn from(n: $name) -> String {
                n.0
            }
        }
        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

noun!(
    /// Name of an app or a component: lower-case letters, digits and inner hyphens, at most 63 (an RFC 1123 label).
    Name, check_name
);
noun!(
    /// Name of a lattice: the same form as `Name`.
    LatticeName, check_name
);
noun!(
    /// A host's identity: a ULID, made at its first start and kept in its data directory.
    HostId, check_host_id
);
noun!(
    /// `sha256:<64 lower-case hex digits>` of an artifact's bytes.
    Digest, check_digest
);

fn check_name(s: &str) -> Result<(), Invalid> {
    let ok = !s.is_empty()
        && s.len() <= 63
        && s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !s.starts_with('-')
        && !s.ends_with('-');
    if ok {
        Ok(())
    } else {
        Err(Invalid(format!(
            "{:?} is not a name: use lower-case letters, digits and inner hyphens, at most 63",
            s.chars().take(80).collect::<String>()
        )))
    }
}

fn check_host_id(s: &str) -> Result<(), Invalid> {
    let ok = s.len() == 26 && ulid::Ulid::from_string(s).is_ok() && s.bytes().all(|b| !b.is_ascii_lowercase());
    if ok { Ok(()) } else { Err(Invalid("not a host id: a ULID of 26 upper-case characters".into())) }
}

fn check_digest(s: &str) -> Result<(), Invalid> {
    let ok = s
        .strip_prefix("sha256:")
        .is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)));
    if ok { Ok(()) } else { Err(Invalid("not a digest: \"sha256:\" and 64 lower-case hex digits".into())) }
}

impl Digest {
    pub fn of(bytes: &[u8]) -> Self {
        use sha2::Digest as _;
        Self::of_sum(&sha2::Sha256::digest(bytes).into())
    }
    /// That of bytes whose SHA-256 is known.
    pub fn of_sum(sum: &[u8; 32]) -> Self {
        let mut text = String::with_capacity(71);
        text.push_str("sha256:");
        for byte in sum {
            use fmt::Write as _;
            let _ = write!(text, "{byte:02x}");
        }
        Self(text)
    }
    /// The 64 hex digits.
    pub fn hex(&self) -> &str {
        &self.0[7..]
    }
}

/// One revision of an app: what the manifest asks for, every default written out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct App {
    pub name: Name,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Actors and providers share one namespace. Boxed, since a node of the map has room for eleven, most apps have one or
    /// two components, and a host may run thousands of apps.
    pub components: BTreeMap<Name, Box<Component>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub links: Vec<Link>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Component {
    pub kind: Kind,
    pub scaler: Scaler,
    /// At most one replica runs at any time, whatever fails: it runs nowhere rather than twice.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub strict: bool,
    /// Pairs for `wasi:config`, from every `config` entry merged in order.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub config: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(clippy::large_enum_variant, reason = "most components are actors")]
pub enum Kind {
    Actor(Actor),
    Provider(Provider),
}

/// A Wasm component that the scheduler places.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Actor {
    /// As the manifest wrote it, for people.
    pub image: String,
    /// What is fetched, verified and run. `None` only between parsing a manifest and resolving its images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// Interfaces this component exports, without version ("wasi:http/incoming-handler"): filled in from its bytes
    /// at apply, so that links can be resolved without them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exports: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ingress: Vec<IngressRoute>,
    #[serde(default)]
    pub grants: Grants,
    #[serde(default)]
    pub limits: Limits,
}

/// What the host itself implements.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Provider {
    /// As the manifest wrote it: "builtin:keyvalue", or the wasmCloud image that names it.
    pub image: String,
    pub builtin: Builtin,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Builtin {
    /// Durable store: wasi:keyvalue (store, atomics, batch) and lattice:keystore/store.
    Keyvalue,
}

impl Builtin {
    /// Interfaces it serves, without version.
    pub fn interfaces(self) -> &'static [&'static str] {
        match self {
            Self::Keyvalue => {
                &["wasi:keyvalue/store", "wasi:keyvalue/atomics", "wasi:keyvalue/batch", "lattice:keystore/store"]
            }
        }
    }
}

/// A route of the ingress trait.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct IngressRoute {
    /// "" is every host name; "*.example.org" is one or more labels before it. Lower case, without port.
    #[serde(default)]
    pub host: String,
    /// Prefix by whole segments; starts with "/".
    pub path: String,
}

/// How many replicas, and where.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scaler {
    /// `replicas` in all, split over the spreads by weight (wadm's spreadscaler).
    Spread { replicas: u32, spread: Vec<Spread> },
    /// `replicas` on each host that meets a spread's requirements (wadm's daemonscaler).
    Daemon { replicas: u32, spread: Vec<Spread> },
}

impl Scaler {
    /// The replicas, if there may be one at most.
    pub fn replicas_at_most_one(&self) -> Option<u32> {
        match self {
            Self::Spread { replicas, .. } if *replicas <= 1 => Some(*replicas),
            _ => None,
        }
    }
}

impl Default for Scaler {
    fn default() -> Self {
        Self::Spread { replicas: 1, spread: Vec::new() }
    }
}

/// One share of a scaler. An empty list of spreads is one share without requirements.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spread {
    #[serde(default)]
    pub name: String,
    /// Labels or facts that a host must have, with this value. Facts are named as in `FACT_LABELS`.
    #[serde(default)]
    pub requirements: BTreeMap<String, String>,
    /// wadm's default is 100.
    pub weight: u32,
}

/// Shares of one scaler.
pub const SPREADS_MAX: usize = 64;

pub const SPREAD_WEIGHT_DEFAULT: u32 = 100;

/// Facts that requirements may name as if they were labels, beside wasmCloud's `hostcore.arch`, `hostcore.os`,
/// `hostcore.osfamily`.
pub const FACT_LABELS: &[&str] = &["arch", "os"];

/// What the actor may reach besides its links. Everything is denied by default.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Grants {
    /// Environment variables it sees: exactly these.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Arguments it sees, the program's name first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// Where its outgoing HTTP may go, as `address::Pattern::http` reads it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub http: Vec<String>,
    /// Folders of the host it sees: guest path -> (host path, writable).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub folders: Vec<Folder>,
    /// Raw TCP and UDP sockets and name look-ups, to and from any address.
    #[serde(default)]
    pub sockets: bool,
    /// Where its TCP connections may go, as `address::Pattern::socket` reads it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tcp: Vec<String>,
    /// With whom it may exchange datagrams, the same way.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub udp: Vec<String>,
    /// Name look-ups.
    #[serde(default, skip_serializing_if = "is_false")]
    pub lookups: bool,
    /// The time of day.
    #[serde(default, skip_serializing_if = "is_false")]
    pub wall_clock: bool,
    /// Clocks as exact as the host's own, instead of whole milliseconds.
    #[serde(default, skip_serializing_if = "is_false")]
    pub fine_clock: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub random: Option<Random>,
    /// What each instance reads from its standard input.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdin: Option<String>,
    /// To end itself by `wasi:cli/exit`.
    #[serde(default, skip_serializing_if = "is_false")]
    pub exit: bool,
}

/// Where random numbers come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Random {
    /// The operating system.
    System,
    /// This seed: each instance gets the same numbers.
    Seed(u64),
}

fn is_false(flag: &bool) -> bool {
    !flag
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Folder {
    pub host: String,
    pub guest: String,
    #[serde(default)]
    pub write: bool,
}

/// Bounds of one actor on one host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Linear memory of one instance, all its memories together.
    pub memory_bytes: u64,
    /// Elements of one instance's tables, all of them together.
    pub table_elements_max: u32,
    /// Core instances that one instance of the component is made of.
    pub instances_max: u32,
    /// Call stack of one call in the guest, all its frames. Written only where it is asked for: builds that do not know
    /// it keep what they read byte for byte.
    #[serde(skip_serializing_if = "is_usual_stack")]
    pub stack_bytes: u64,
    /// Wall time of one invocation.
    pub deadline_ms: u64,
    /// Processor time of one invocation.
    pub cpu_ms: u64,
    /// Invocations waiting for a replica before the next is refused.
    pub queue_len_max: u32,
    /// Bytes of one request's body, and of one response's.
    pub request_bytes_max: u64,
    pub response_bytes_max: u64,
    /// Bytes that all its instances on a host may print in a second.
    pub log_bytes_per_s: u64,
    /// Outgoing HTTP requests of all its instances on a host at once.
    pub outgoing_len_max: u32,
    /// Requests that one instance serves, one after another, before it is dropped; 1 is a fresh one for each.
    pub reuse: u32,
    /// Requests that one instance serves at once.
    pub concurrency: u32,
}

/// What an actor has whose manifest asks for nothing else.
pub const STACK_BYTES: u64 = 512 * 1024;

fn is_usual_stack(bytes: &u64) -> bool {
    *bytes == STACK_BYTES
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory_bytes: 64 * 1024 * 1024,
            table_elements_max: 100_000,
            instances_max: 64,
            stack_bytes: STACK_BYTES,
            deadline_ms: 30_000,
            cpu_ms: 10_000,
            queue_len_max: 1_000,
            request_bytes_max: 64 * 1024 * 1024,
            response_bytes_max: 1024 * 1024 * 1024,
            log_bytes_per_s: 64 * 1024,
            outgoing_len_max: 64,
            reuse: 1,
            concurrency: 1,
        }
    }
}

/// Permission and binding in one: `consumer` may call `interfaces` of `package`, served by `provider`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    pub consumer: Name,
    /// "default" unless the manifest names it.
    pub name: String,
    pub namespace: String,
    pub package: String,
    /// "store", "atomics"; never empty.
    pub interfaces: Vec<String>,
    pub provider: Name,
    /// Pairs for the provider about this consumer (for keyvalue: `bucket`).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub config: BTreeMap<String, String>,
}

pub const LINK_NAME_DEFAULT: &str = "default";

impl Link {
    /// "wasi:keyvalue/store", one per interface.
    pub fn interface_names(&self) -> impl Iterator<Item = String> + '_ {
        self.interfaces.iter().map(|i| format!("{}:{}/{i}", self.namespace, self.package))
    }
}

impl App {
    pub fn actor(&self, name: &str) -> Option<&Actor> {
        match &self.components.get(name)?.kind {
            Kind::Actor(a) => Some(a),
            Kind::Provider(_) => None,
        }
    }

    /// Its actors, by name.
    pub fn actors(&self) -> impl Iterator<Item = (&Name, &Actor)> {
        self.components.iter().filter_map(|(name, component)| match &component.kind {
            Kind::Actor(actor) => Some((name, actor)),
            Kind::Provider(_) => None,
        })
    }

    /// The components that it names, as far as they were found.
    pub fn digests(&self) -> impl Iterator<Item = &Digest> {
        self.actors().filter_map(|(_, actor)| actor.digest.as_ref())
    }

    /// Its routes, each with the actor that serves it.
    pub fn routes(&self) -> impl Iterator<Item = (&Name, &Actor, &IngressRoute)> {
        self.actors().flat_map(|(name, actor)| actor.ingress.iter().map(move |route| (name, actor, route)))
    }

    /// The form that the log and the hosts get.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("an App has string keys only")
    }

    pub fn from_json(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(bytes)
    }
}

impl Component {
    /// Replicas asked for; `None` for a daemonscaler, whose number depends on the hosts.
    pub fn replicas(&self) -> Option<u32> {
        match &self.scaler {
            Scaler::Spread { replicas, .. } => Some(*replicas),
            Scaler::Daemon { .. } => None,
        }
    }
}
