//! What an `image` says: where a component's bytes are, or which built-in provider is meant.

use crate::app::{App, Builtin, Digest, Invalid, Name};
use std::fmt;
use std::str::FromStr;

/// Bytes of one image reference.
const IMAGE_BYTES_MAX: usize = 1_024;

/// Provider images that `capability` components may name.
pub(super) const BUILTINS: &[&str] = &["builtin:keyvalue"];

/// Where a component's bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageRef {
    /// A file: "./hello.wasm", "hello.wasm", "file:///srv/hello.wasm". Relative to the manifest's folder.
    Local(String),
    /// Already uploaded: "sha256:…".
    Digest(Digest),
    /// "ghcr.io/a/b:1", with or without "oci://" before it; held without.
    Registry(String),
    /// Not bytes at all but a provider that the host has.
    Builtin(Builtin),
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local(text) | Self::Registry(text) => f.write_str(text),
            Self::Digest(digest) => digest.fmt(f),
            Self::Builtin(Builtin::Keyvalue) => f.write_str("builtin:keyvalue"),
        }
    }
}

impl FromStr for ImageRef {
    type Err = Invalid;

    fn from_str(s: &str) -> Result<Self, Invalid> {
        if s.is_empty() || s.len() > IMAGE_BYTES_MAX {
            return Err(Invalid(format!("an image has 1 to {IMAGE_BYTES_MAX} bytes")));
        }
        if s.starts_with("sha256:") {
            return s.parse().map(Self::Digest);
        }
        if let Some(name) = s.strip_prefix("builtin:") {
            return match name {
                "keyvalue" => Ok(Self::Builtin(Builtin::Keyvalue)),
                _ => Err(Invalid(format!("no built-in provider is named {name:?}; there is {}", BUILTINS.join(", ")))),
            };
        }
        if let Some(path) = s.strip_prefix("file://") {
            return local(path);
        }
        if let Some(reference) = s.strip_prefix("oci://") {
            return registry(reference);
        }
        if let Some((scheme, _)) = s.split_once("://") {
            return Err(Invalid(format!(
                "images are not fetched from {scheme}://: use a file (./hello.wasm) or a registry (ghcr.io/a/b:1)"
            )));
        }
        let is_path = s.starts_with(['.', '/', '~']) || s.ends_with(".wasm");
        if is_path { local(s) } else { registry(s) }
    }
}

/// The images of an app that name bytes, by component: what has to be found, uploaded or fetched before it can run.
/// Images of actors whose digest is already known are among them.
pub fn images(app: &App) -> Vec<(&Name, ImageRef)> {
    app.actors().filter_map(|(name, actor)| Some((name, actor.image.parse().ok()?))).collect()
}

fn local(path: &str) -> Result<ImageRef, Invalid> {
    if path.is_empty() || path.ends_with('/') {
        return Err(Invalid("the image names no file: write ./hello.wasm".into()));
    }
    if path.starts_with('~') {
        return Err(Invalid("`~` is not expanded here: write the path from the manifest's folder, or in full".into()));
    }
    if path.contains(['\0', '\n', '\r', '{', '}']) {
        return Err(Invalid("is not a path: it holds characters like a template's or a line's end".into()));
    }
    Ok(ImageRef::Local(path.to_owned()))
}

/// `[host[:port]/]name[/name…][:tag][@sha256:…]`, as in the OCI distribution specification.
fn registry(reference: &str) -> Result<ImageRef, Invalid> {
    let (named, digest) = match reference.split_once('@') {
        Some((named, digest)) => (named, Some(digest)),
        None => (reference, None),
    };
    if let Some(digest) = digest {
        digest.parse::<Digest>()?;
    }
    let (path, tag) = match named.rfind(':') {
        Some(at) if !named[at..].contains('/') => (&named[..at], Some(&named[at + 1..])),
        _ => (named, None),
    };
    let tag_ok = tag.is_none_or(|tag| {
        (1..=128).contains(&tag.len())
            && !tag.starts_with(['.', '-'])
            && tag.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
    });
    if !tag_ok {
        return Err(Invalid("the tag after `:` has letters, digits, `.`, `_` and `-` only, at most 128".into()));
    }
    let (host, rest) = match path.split_once('/') {
        Some((host, rest)) if host.contains(['.', ':']) || host == "localhost" => (Some(host), rest),
        _ => (None, path),
    };
    let host_ok = host.is_none_or(|host| {
        let (name, port) = host.split_once(':').unwrap_or((host, "0"));
        !name.is_empty()
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b".-".contains(&b))
            && port.parse::<u16>().is_ok()
    });
    let segment_ok = |s: &str| {
        let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        edge(s.bytes().next())
            && edge(s.bytes().next_back())
            && s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b))
    };
    if host_ok && rest.split('/').all(segment_ok) {
        return Ok(ImageRef::Registry(reference.to_owned()));
    }
    Err(Invalid(
        "is neither a path (./hello.wasm), a digest (sha256:…) nor a registry reference (ghcr.io/a/b:1)".into(),
    ))
}

/// What the image of a `capability` stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Capability {
    Builtin(Builtin),
    /// wasmCloud's HTTP server: the ingress of every host does its work.
    HttpServer,
    /// wasmCloud's HTTP client: the grants of each actor do its work.
    HttpClient,
}

/// What wasmCloud's provider images and our own names stand for. `None` for all else.
pub(super) fn capability(image: &str) -> Option<Capability> {
    let name = match image.strip_prefix("wasmcloud+builtin://") {
        Some(name) => name,
        None => match image.parse().ok()? {
            ImageRef::Builtin(builtin) => return Some(Capability::Builtin(builtin)),
            ImageRef::Registry(reference) => return published(&reference),
            ImageRef::Local(_) | ImageRef::Digest(_) => return None,
        },
    };
    by_name(name)
}

/// Only what wasmCloud publishes, or a mirror that keeps its name: another's "http-server" is another thing.
fn published(reference: &str) -> Option<Capability> {
    let named = reference.split('@').next().unwrap_or(reference);
    let (folder, last) = named.rsplit_once('/').unwrap_or(("", named));
    let name = last.split(':').next().unwrap_or(last);
    let known = folder.is_empty() || folder.split(['/', '.']).any(|part| part == "wasmcloud");
    if known { by_name(name) } else { None }
}

fn by_name(name: &str) -> Option<Capability> {
    match name {
        "keyvalue-redis" | "keyvalue-nats" => Some(Capability::Builtin(Builtin::Keyvalue)),
        "http-server" | "httpserver" => Some(Capability::HttpServer),
        "http-client" | "httpclient" => Some(Capability::HttpClient),
        _ => None,
    }
}
