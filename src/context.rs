//! Which control API a command talks to: flags, then environment, then the context file, then the default.
//! `resolve` is pure; only `load` reads the file.

use crate::args::Connect;
use crate::failure::Failure;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tonic::transport::Uri;

pub(crate) const API_DEFAULT: &str = "127.0.0.1:7400";
const PORT_DEFAULT: u16 = 7400;
/// Bytes of a context file.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// A control API and what it takes to trust and be trusted by it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// `host:port`, for people.
    pub(crate) address: String,
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
    pub(crate) fn uri(&self) -> String {
        format!("{}://{}", if self.trust == Trust::Plain { "http" } else { "https" }, self.address)
    }

    /// With a token of its own, if there is one, in place of the context's.
    fn with_token(self, token: Option<String>) -> Result<Self, String> {
        let token = token.or_else(|| self.token.clone());
        if token.is_some() && self.trust == Trust::Plain && !is_loopback(&self.address) {
            let address = &self.address;
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
    api: String,
    #[serde(default)]
    ca: Option<PathBuf>,
    #[serde(default)]
    fingerprint: Option<String>,
    #[serde(default)]
    token: Option<String>,
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
        format!("{first}; it holds `current: NAME` and `contexts: {{NAME: {{api: ADDR, ca: FILE, fingerprint: HEX, token: TEXT}}}}`")
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
    let (address, says_tls) = split_address(&chosen.api)?;
    let named = chosen.fingerprint.as_deref().map(crate::args::fingerprint).transpose();
    let named = named.map_err(|why| format!("fingerprint of {address}: {why}"))?;
    let given = match (&flags.ca, flags.fingerprint) {
        (Some(ca), _) => Some(Trust::Ca(ca.clone())),
        (None, Some(fingerprint)) => Some(Trust::Authority(fingerprint)),
        (None, None) => named.map(Trust::Authority).or(chosen.ca.map(Trust::Ca)),
    };
    let trust = match (says_tls, given) {
        (Some(false), Some(_)) => {
            return Err(format!("a CA was given, but the address {} says http: write https://{address}", chosen.api));
        }
        (Some(true), None) => {
            return Err(format!(
                "https://{address} needs --ca FILE, the PEM certificate of the CA that signed its own, or --fingerprint"
            ));
        }
        (_, Some(trust)) => trust,
        (_, None) => Trust::Plain,
    };
    Endpoint { address, trust, token: chosen.token }.with_token(None)
}

fn plain_context(api: &str) -> Context {
    Context { api: api.to_owned(), ca: None, fingerprint: None, token: None }
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
        resolve(flags, env.map(Into::into), Path::new("/c.yaml"), file).map(|e| e.uri())
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
        assert_eq!((endpoint.uri().as_str(), endpoint.trust), ("https://h:1", Trust::Authority([11; 32])));
        assert!(named("0b").unwrap_err().contains("64 hex digits"));
        let given = Connect { fingerprint: Some([7; 32]), ..flags(Some("https://h:1"), None, None) };
        let endpoint = resolve(&given, None, Path::new("/"), &file()).unwrap();
        assert_eq!(endpoint.trust, Trust::Authority([7; 32]));
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
