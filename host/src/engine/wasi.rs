//! What an actor's grants come to: its WASI context, and which outgoing HTTP passes. Nothing is allowed that the
//! grants do not name; interfaces are linked all the same, since components built on a standard library import them
//! even when they use none.

use super::output::{Log, Stream};
use super::state::{Env, Hooks};
use http::HeaderName;
use http::uri::{Authority, Scheme};
use proto::app::Grants;
use std::sync::Arc;
use wasmtime_wasi::{FsPerms, WasiCtx};
use wasmtime_wasi_http::{ForbiddenHeaderFilter, RequestOptions, WasiBody, WasiHttpHooks};

/// Bytes that a guest may write to a body at once. Two such pieces wait for a slow reader, for each open response.
const BODY_CHUNK_BYTES_MAX: usize = 128 * 1024;

/// A fresh context for one instance.
pub(super) fn context(grants: &Grants, log: &Arc<Log>) -> wasmtime::Result<WasiCtx> {
    let mut wasi = WasiCtx::builder();
    wasi.stdout(Stream::new(log, "stdout")).stderr(Stream::new(log, "stderr"));
    for (name, value) in &grants.env {
        wasi.env(name, value);
    }
    for folder in &grants.folders {
        let perms = if folder.write { FsPerms::ReadWrite } else { FsPerms::ReadOnly };
        wasi.preopened_dir(&folder.host, &folder.guest, perms)?;
    }
    // The default check denies every address; these also deny making a socket.
    wasi.allow_tcp(grants.sockets).allow_udp(grants.sockets).allow_ip_name_lookup(grants.sockets);
    if grants.sockets {
        wasi.inherit_network();
    }
    Ok(wasi.build())
}

/// One entry of `grants.http`: "*" for every host, or a host name, perhaps with "*." before it, perhaps with a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HttpGrant {
    /// Empty: every host.
    host: String,
    /// Any name that ends in ".host".
    below: bool,
    port: Option<u16>,
}

impl HttpGrant {
    pub(super) fn parse(text: &str) -> Option<Self> {
        if text == "*" {
            return Some(Self { host: String::new(), below: false, port: None });
        }
        let (below, text) = match text.strip_prefix("*.") {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let authority = text.parse::<Authority>().ok()?;
        let host = plain(authority.host());
        let well = !host.is_empty() && !host.contains('*') && !text.contains('@');
        // "host:" and "host:99999" are no ports: `Authority` gives none for them.
        let port = authority.port_u16();
        let has_port = authority.as_str().len() > authority.host().len();
        (well && (port.is_some() || !has_port)).then_some(Self { host, below, port })
    }

    fn allows(&self, host: &str, port: u16) -> bool {
        let named = if self.host.is_empty() {
            true
        } else if self.below {
            host.strip_suffix(&self.host).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
        } else {
            host == self.host
        };
        named && self.port.is_none_or(|p| p == port)
    }
}

/// Lower case, without the dot of a fully qualified name.
fn plain(host: &str) -> String {
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}

/// Whether a request to `authority` passes.
pub(super) fn allows(grants: &[HttpGrant], scheme: Option<&Scheme>, authority: &Authority) -> bool {
    let port = authority.port_u16().unwrap_or(if scheme == Some(&Scheme::HTTPS) { 443 } else { 80 });
    let host = plain(authority.host());
    grants.iter().any(|g| g.allows(&host, port))
}

/// The headers that guests neither see nor set: those that belong to a connection.
pub(super) fn forbidden_headers() -> ForbiddenHeaderFilter {
    Arc::new(is_forbidden)
}

fn is_forbidden(name: &HeaderName) -> bool {
    wasmtime_wasi_http::DEFAULT_FORBIDDEN_HEADERS.contains(name)
}

type Io = Box<dyn Future<Output = Result<(), wasmtime_wasi_http::Error>> + Send>;
type Sent = Result<(http::Response<WasiBody>, Io), wasmtime_wasi_http::Error>;

impl WasiHttpHooks for Hooks {
    fn is_forbidden_header(&mut self, name: &HeaderName) -> bool {
        is_forbidden(name)
    }
    fn forbidden_header_filter(&mut self) -> ForbiddenHeaderFilter {
        self.env.forbidden.clone()
    }
    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        BODY_CHUNK_BYTES_MAX
    }
    /// Makes its own connection, so it passes by every other check: here is the only door.
    fn send_request(
        &mut self,
        request: http::Request<WasiBody>,
        options: Option<RequestOptions>,
        _: Box<dyn Future<Output = Result<(), wasmtime_wasi_http::Error>> + Send>,
    ) -> Box<dyn Future<Output = Sent> + Send> {
        if let Some(refused) = refusal(&self.env, request.uri()) {
            self.log.line("warn", &refused);
            return Box::new(async { Err(wasmtime_wasi_http::Error::HttpRequestDenied) });
        }
        Box::new(async move {
            use http_body_util::BodyExt as _;
            let (response, io) = wasmtime_wasi_http::default_send_request(request, options).await?;
            Ok((response.map(|body| body.boxed_unsync()), Box::new(io) as Io))
        })
    }
}

fn refusal(env: &Env, uri: &http::Uri) -> Option<String> {
    let (who, what) = (&env.label, uri.authority().map_or("", Authority::as_str));
    let allowed = uri.authority().is_some_and(|a| allows(&env.http_grants, uri.scheme(), a));
    (!allowed).then(|| format!("outgoing HTTP of actor {who} to {what:?} is denied: name it in grants.http"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outgoing_http_passes_by_name_and_port() {
        let grants = ["api.example.org", "*.example.net", "127.0.0.1:8080", "[::1]:9000"];
        let grants: Vec<_> = grants.into_iter().map(|g| HttpGrant::parse(g).unwrap()).collect();
        let check = |url: &str, expect: bool| {
            let uri: http::Uri = url.parse().unwrap();
            assert_eq!(allows(&grants, uri.scheme(), uri.authority().unwrap()), expect, "{url}");
        };
        check("https://api.example.org/x", true);
        check("http://API.example.org.:81/x", true);
        check("https://xapi.example.org/", false);
        check("https://example.org/", false);
        check("https://a.example.net/", true);
        check("https://a.b.example.net/", true);
        check("https://example.net/", false);
        check("https://evilexample.net/", false);
        check("http://127.0.0.1:8080/", true);
        check("http://127.0.0.1/", false);
        check("http://api.example.org@evil.example/", false);
        check("http://[::1]:9000/", true);
    }

    #[test]
    fn a_grant_that_names_no_host_is_refused() {
        for text in ["", "**", "*.", "a b", "http://x", "a@b", "x:", "x:99999", "a.*.b"] {
            assert_eq!(HttpGrant::parse(text), None, "{text:?}");
        }
    }
}
