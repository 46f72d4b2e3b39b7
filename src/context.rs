//! Which control API a command talks to: flags, then environment, then the context file, then the default.
//! `resolve` is pure; only `load` reads the file.

use crate::args::Connect;
use crate::failure::Failure;
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use tonic::transport::Uri;

pub(crate) const API_DEFAULT: &str = "127.0.0.1:7400";
const PORT_DEFAULT: u16 = 7400;
/// More schedulers than a lattice has.
const ADDRESSES_MAX: usize = 16;
/// Bytes of a context file.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// A control API and what it takes to trust and be trusted by it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// `host:port` each, in the order in which they are tried. Never empty.
    pub(crate) addresses: Vec<String>,
    pub(crate) trust: Trust,
    pub(crate) token: Option<String>,
}

/// Whether the API is encrypted, and by what it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Trust {
    Plain,
    /// A certificate that this CA signed, for the name or address in the URL.
    Ca(PathBuf),
    /// Any certificate that the authority with this SHA-256 signed for an API.
    Authority([u8; 32]),
    /// This very certificate, whatever names it has: how `up` knows itself.
    #[cfg(all(feature = "host", feature = "scheduler"))]
    Pinned(PathBuf),
}

impl Endpoint {
    pub(crate) fn uri(&self, address: &str) -> String {
        format!("{}://{address}", if self.trust == Trust::Plain { "http" } else { "https" })
    }

    /// With a token of its own, if there is one, in place of the context's.
    fn with_token(self, token: Option<String>) -> Result<Self, String> {
        let token = token.or_else(|| self.token.clone());
        let far = self.addresses.iter().find(|address| !is_loopback(address));
        if let Some(address) = far.filter(|_| token.is_some() && self.trust == Trust::Plain) {
            return Err(format!("the token for {address} would travel in the clear: use https:// and a CA"));
        }
        Ok(Self { token, ..self })
    }
}

/// The context file.
///
/// ```yaml
/// current: plant
/// contexts:
///   plant: { api: "https://lattice.example.org:7400", ca: /etc/lattice/ca.pem }
///   fleet: { api: [10.0.0.5, 10.0.0.6, 10.0.0.7], ca: /etc/lattice/ca.pem }
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct File {
    #[serde(default)]
    current: Option<String>,
    #[serde(default)]
    contexts: BTreeMap<String, Context>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Context {
    api: Addresses,
    #[serde(default)]
    ca: Option<PathBuf>,
    #[serde(default)]
    fingerprint: Option<String>,
    #[serde(default)]
    token: Option<String>,
}

/// One or several addresses as they were typed: with commas, in the file also as a list.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Addresses(Vec<String>);

impl Addresses {
    fn of(text: &str) -> Self {
        Self(text.split(',').map(|one| one.trim().to_owned()).collect())
    }
}

impl<'de> Deserialize<'de> for Addresses {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Typed;
        impl<'de> Visitor<'de> for Typed {
            type Value = Addresses;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an API address, or several with commas or as a list")
            }
            fn visit_str<E>(self, text: &str) -> Result<Addresses, E> {
                Ok(Addresses::of(text))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Addresses, A::Error> {
                let mut all = Vec::new();
                while let Some(text) = list.next_element::<String>()? {
                    all.push(text.trim().to_owned());
                }
                Ok(Addresses(all))
            }
        }
        deserializer.deserialize_any(Typed)
    }
}

/// The endpoint for these flags, in this process's environment.
pub(crate) fn endpoint(flags: &Connect) -> Result<Endpoint, Failure> {
    let env = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    // An address given outright needs no file, and must work beside a broken one.
    let given = flags.api.is_some() || (flags.context.is_none() && env("LATTICE_API").is_some());
    let (path, file) = if given { (PathBuf::new(), File::default()) } else { load(env("LATTICE_CONFIG"))? };
    let endpoint = resolve(flags, env("LATTICE_API"), &path, &file).map_err(Failure::Usage)?;
    let token = match &flags.token_file {
        Some(path) => Some(token_of(path)?),
        None => env("LATTICE_TOKEN"),
    };
    endpoint.with_token(token).map_err(Failure::Usage)
}

fn token_of(path: &Path) -> Result<String, Failure> {
    let text = std::fs::read_to_string(path);
    let text =
        text.map_err(|e| Failure::Refused(format!("--token-file {}: {e}; name a readable file", path.display())))?;
    match text.trim() {
        "" => Err(Failure::Refused(format!("--token-file {}: it is empty", path.display()))),
        token => Ok(token.to_owned()),
    }
}

/// Reads the context file: the one `LATTICE_CONFIG` names must exist, the usual one need not.
fn load(named: Option<String>) -> Result<(PathBuf, File), Failure> {
    let required = named.is_some();
    let path = match named {
        Some(path) => PathBuf::from(path),
        None => match directories::ProjectDirs::from("", "", "lattice") {
            Some(dirs) => dirs.config_dir().join("context.yaml"),
            None => return Ok((PathBuf::new(), File::default())),
        },
    };
    let refuse = |why: String| Failure::Refused(format!("context file {}: {why}", path.display()));
    let size = match std::fs::metadata(&path) {
        Ok(meta) => meta.len(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && !required => return Ok((path, File::default())),
        Err(e) => return Err(refuse(format!("{e}; LATTICE_CONFIG must name a readable file"))),
    };
    if size > FILE_BYTES_MAX {
        return Err(refuse(format!("{size} bytes; at most {FILE_BYTES_MAX}")));
    }
    let text = std::fs::read_to_string(&path).map_err(|e| refuse(e.to_string()))?;
    let file = parse(&text).map_err(refuse)?;
    Ok((path, file))
}

fn parse(text: &str) -> Result<File, String> {
    if text.trim().is_empty() {
        return Ok(File::default());
    }
    serde_saphyr::from_str(text).map_err(|e| {
        let first = e.to_string();
        let first = first.lines().next().unwrap_or_default();
        format!("{first}; it holds `current: NAME` and `contexts: {{NAME: {{api: ADDR or [ADDR, …], ca: FILE, fingerprint: HEX, token: TEXT}}}}`")
    })
}

/// Flags win over the environment, which wins over the file's current context.
fn resolve(flags: &Connect, env: Option<String>, path: &Path, file: &File) -> Result<Endpoint, String> {
    let context = |name: &str| {
        file.contexts.get(name).ok_or_else(|| {
            let known: Vec<&str> = file.contexts.keys().map(String::as_str).collect();
            let known = if known.is_empty() { "has no contexts".into() } else { format!("has {}", known.join(", ")) };
            format!("no context {name:?}: {} {known}", path.display())
        })
    };
    let chosen = match (&flags.api, &flags.context, env) {
        (Some(api), _, _) => plain_context(api),
        (None, Some(name), _) => context(name)?.clone(),
        (None, None, Some(api)) => plain_context(&api),
        (None, None, None) => match &file.current {
            Some(name) => context(name)?.clone(),
            None => plain_context(API_DEFAULT),
        },
    };
    let (addresses, says_tls) = split_addresses(&chosen.api)?;
    let address = addresses.join(",");
    let named = chosen.fingerprint.as_deref().map(crate::args::fingerprint).transpose();
    let named = named.map_err(|why| format!("fingerprint of {address}: {why}"))?;
    let given = match (&flags.ca, flags.fingerprint) {
        (Some(ca), _) => Some(Trust::Ca(ca.clone())),
        (None, Some(fingerprint)) => Some(Trust::Authority(fingerprint)),
        (None, None) => named.map(Trust::Authority).or(chosen.ca.map(Trust::Ca)),
    };
    let trust = match (says_tls, given) {
        (Some(false), Some(_)) => {
            return Err(format!("a CA was given, but the address {address} says http: write https://{address}"));
        }
        (Some(true), None) => {
            return Err(format!(
                "https://{address} needs --ca FILE, the PEM certificate of the CA that signed its own, or --fingerprint"
            ));
        }
        (_, Some(trust)) => trust,
        (_, None) => Trust::Plain,
    };
    Endpoint { addresses, trust, token: chosen.token }.with_token(None)
}

fn plain_context(api: &str) -> Context {
    Context { api: Addresses::of(api), ca: None, fingerprint: None, token: None }
}

/// Each as `host:port`, none twice, and whether they say https.
fn split_addresses(all: &Addresses) -> Result<(Vec<String>, Option<bool>), String> {
    let mut addresses: Vec<String> = Vec::new();
    let mut says_tls = None;
    for text in &all.0 {
        let (address, says) = split_address(text)?;
        if let (Some(before), Some(says)) = (says_tls, says)
            && before != says
        {
            return Err(format!("{}: some say http and some https; one lattice has one or the other", all.0.join(",")));
        }
        says_tls = says_tls.or(says);
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    match addresses.len() {
        0 => Err("no API address: write HOST:PORT, or several with commas".into()),
        1..=ADDRESSES_MAX => Ok((addresses, says_tls)),
        many => Err(format!("{many} API addresses: name at most {ADDRESSES_MAX}")),
    }
}

/// `host:port` and whether it says https; `None` when it does not say.
fn split_address(text: &str) -> Result<(String, Option<bool>), String> {
    let wrong = || format!("{text:?} is not an API address: write HOST:PORT or https://HOST:PORT");
    let (scheme, rest) = match text.split_once("://") {
        Some(("http", rest)) => (Some(false), rest),
        Some(("https", rest)) => (Some(true), rest),
        Some(_) => return Err(wrong()),
        None => (None, text),
    };
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let uri: Uri = format!("http://{rest}").parse().map_err(|_| wrong())?;
    let port = match uri.authority().map(|authority| authority.as_str().strip_prefix(uri.host().unwrap_or_default())) {
        Some(Some("")) => PORT_DEFAULT,
        Some(Some(rest)) => rest.strip_prefix(':').and_then(|port| port.parse().ok()).ok_or_else(wrong)?,
        _ => return Err(wrong()),
    };
    match uri.host() {
        Some(host) if !host.is_empty() && uri.path() == "/" && uri.query().is_none() => {
            Ok((format!("{host}:{port}"), scheme))
        }
        _ => Err(wrong()),
    }
}

fn is_loopback(address: &str) -> bool {
    match address.parse::<std::net::SocketAddr>() {
        Ok(address) => address.ip().is_loopback(),
        Err(_) => address.starts_with("localhost:"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "test helpers")]
    use super::*;

    fn flags(api: Option<&str>, context: Option<&str>, ca: Option<&str>) -> Connect {
        Connect {
            api: api.map(Into::into),
            context: context.map(Into::into),
            ca: ca.map(Into::into),
            ..Connect::default()
        }
    }
    fn file() -> File {
        parse(concat!(
            "current: plant\n",
            "contexts:\n",
            "  plant: {api: \"https://plant.example.org\", ca: /ca.pem, token: secret}\n",
            "  home: {api: \"127.0.0.1:9000\"}\n",
            "  bare: {api: \"10.0.0.1:7400\", token: secret}\n",
        ))
        .unwrap()
    }
    fn at(flags: &Connect, env: Option<&str>, file: &File) -> Result<String, String> {
        resolve(flags, env.map(Into::into), Path::new("/c.yaml"), file).map(|e| e.uri(&e.addresses.join(",")))
    }

    #[test]
    fn flags_win_over_environment_over_file_over_default() {
        let none = flags(None, None, None);
        let api = flags(Some("10.1.1.1:1"), None, None);
        assert_eq!(at(&api, Some("10.2.2.2:2"), &file()).unwrap(), "http://10.1.1.1:1");
        assert_eq!(at(&none, Some("10.2.2.2:2"), &file()).unwrap(), "http://10.2.2.2:2");
        assert_eq!(at(&flags(None, Some("home"), None), Some("x:2"), &file()).unwrap(), "http://127.0.0.1:9000");
        assert_eq!(at(&none, None, &file()).unwrap(), "https://plant.example.org:7400");
        assert_eq!(at(&none, None, &File::default()).unwrap(), "http://127.0.0.1:7400");
    }

    #[test]
    fn a_ca_means_https_and_https_needs_a_ca() {
        assert_eq!(at(&flags(Some("h:1"), None, Some("/ca")), None, &file()).unwrap(), "https://h:1");
        let error = at(&flags(Some("https://h:1"), None, None), None, &file()).unwrap_err();
        assert!(error.contains("--ca FILE"), "{error}");
        let error = at(&flags(Some("http://h:1"), None, Some("/ca")), None, &file()).unwrap_err();
        assert!(error.contains("https://h:1"), "{error}");
    }

    #[test]
    fn a_token_never_leaves_in_the_clear_nor_for_an_address_given_by_hand() {
        let error = at(&flags(None, Some("bare"), None), None, &file()).unwrap_err();
        assert!(error.contains("in the clear"), "{error}");
        let endpoint = resolve(&flags(Some("10.0.0.1:1"), None, None), None, Path::new("/"), &file()).unwrap();
        assert_eq!(endpoint.token, None);
        let error = endpoint.with_token(Some("t".into())).unwrap_err();
        assert!(error.contains("in the clear"), "{error}");
        let local = resolve(&flags(Some("127.0.0.1:1"), None, None), None, Path::new("/"), &file()).unwrap();
        assert_eq!(local.with_token(Some("t".into())).unwrap().token.as_deref(), Some("t"));
    }

    #[test]
    fn a_fingerprint_means_https_too() {
        let named = |digits: &str| {
            let text = format!("current: own\ncontexts: {{own: {{api: \"h:1\", fingerprint: \"{digits}\"}}}}");
            resolve(&flags(None, None, None), None, Path::new("/"), &parse(&text).unwrap())
        };
        let endpoint = named(&"0b".repeat(32)).unwrap();
        assert_eq!(endpoint.uri(&endpoint.addresses[0]), "https://h:1");
        assert_eq!(endpoint.trust, Trust::Authority([11; 32]));
        assert!(named("0b").unwrap_err().contains("64 hex digits"));
        let given = Connect { fingerprint: Some([7; 32]), ..flags(Some("https://h:1"), None, None) };
        let endpoint = resolve(&given, None, Path::new("/"), &file()).unwrap();
        assert_eq!(endpoint.trust, Trust::Authority([7; 32]));
    }

    #[test]
    fn several_addresses_come_with_commas_or_as_a_list() {
        let several = |text: &str| at(&flags(Some(text), None, None), None, &file());
        assert_eq!(several("a:1, b,a:1").unwrap(), "http://a:1,b:7400");
        assert_eq!(at(&flags(None, None, None), Some("a:1,b:2"), &file()).unwrap(), "http://a:1,b:2");
        assert!(several("a:1,,b:2").unwrap_err().contains("HOST:PORT"));
        assert!(several("http://a:1,https://b:2").unwrap_err().contains("some say http"));
        let many: Vec<String> = (0..17).map(|n| format!("h{n}")).collect();
        assert!(several(&many.join(",")).unwrap_err().contains("at most 16"));
        for api in ["[a, \"b:2\"]", "\"a, b:2\"", "[\"https://a\", \"b:2\"]"] {
            let file = parse(&format!("current: c\ncontexts: {{c: {{api: {api}, ca: /ca}}}}")).unwrap();
            assert_eq!(at(&flags(None, None, None), None, &file).unwrap(), "https://a:7400,b:2", "{api}");
        }
        let file = parse("current: c\ncontexts: {c: {api: []}}").unwrap();
        assert!(at(&flags(None, None, None), None, &file).unwrap_err().contains("no API address"));
        let file = parse("current: c\ncontexts: {c: {api: [\"127.0.0.1:1\", \"10.0.0.1:1\"], token: t}}").unwrap();
        assert!(at(&flags(None, None, None), None, &file).unwrap_err().contains("for 10.0.0.1:1 would travel"));
    }

    #[test]
    fn an_unknown_context_names_those_there_are() {
        let error = at(&flags(None, Some("lab"), None), None, &file()).unwrap_err();
        assert_eq!(error, "no context \"lab\": /c.yaml has bare, home, plant");
    }

    #[test]
    fn addresses_are_host_and_port_only() {
        assert_eq!(split_address("[::1]:7000").unwrap(), ("[::1]:7000".into(), None));
        assert_eq!(split_address("lab").unwrap(), ("lab:7400".into(), None));
        assert_eq!(split_address("https://lab:1/").unwrap(), ("lab:1".into(), Some(true)));
        for wrong in ["", "ftp://x:1", "x:1/path", "user@x:1", "x:", "x:99999", "a b:1", "http://"] {
            assert!(split_address(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_context_file_with_a_slip_is_named() {
        let error = parse("curent: x\n").unwrap_err();
        assert!(error.contains("curent") && error.contains("current: NAME"), "{error}");
    }
}
