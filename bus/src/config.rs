//! What a connection needs to know. Checked once, before the first attempt, so that a wrong file is an error at
//! start and not a connection that never comes up.

use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fmt, fs};

use async_nats::{ConnectOptions, ServerAddr};
use proto::app::LatticeName;

use crate::Error;

#[derive(Clone)]
pub struct Config {
    /// `nats://host:port`, `tls://host:port` or `host:port`; any one that answers is used.
    pub urls: Vec<String>,
    /// A NATS credentials file (JWT and seed).
    pub credentials: Option<PathBuf>,
    pub token: Option<String>,
    /// PEM files. Giving any of them demands TLS.
    pub tls_ca: Option<PathBuf>,
    pub tls_cert: Option<PathBuf>,
    pub tls_key: Option<PathBuf>,
    /// What the server calls this connection in its own logs.
    pub name: String,
    pub lattice: LatticeName,
}

/// Without the token.
impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("credentials", &self.credentials)
            .field("token", &self.token.as_ref().map(|_| "(hidden)"))
            .field("tls_ca", &self.tls_ca)
            .field("tls_cert", &self.tls_cert)
            .field("name", &self.name)
            .field("lattice", &self.lattice)
            .finish_non_exhaustive()
    }
}

/// A dead connection is noticed after at most three of these.
const PING_INTERVAL: Duration = Duration::from_secs(3);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Messages handed to the connection and not yet written.
const SENDER_LEN_MAX: usize = 512;
/// Messages of one subscription that its reader has not taken yet.
pub(crate) const SUBSCRIPTION_LEN_MAX: usize = 8_192;
const BACKOFF_MIN: Duration = Duration::from_millis(50);
pub(crate) const BACKOFF_MAX: Duration = Duration::from_secs(2);

impl Config {
    /// The servers to try.
    pub(crate) fn servers(&self) -> Result<Vec<ServerAddr>, Error> {
        if self.urls.is_empty() {
            return Err(Error::Config("no NATS server is named: give one as nats://host:4222".into()));
        }
        self.urls.iter().map(|url| server(url)).collect()
    }

    /// Everything but the callbacks.
    pub(crate) fn options(&self) -> Result<ConnectOptions, Error> {
        let mut options = ConnectOptions::new()
            .name(&self.name)
            .retry_on_initial_connect()
            .max_reconnects(None)
            .connection_timeout(CONNECT_TIMEOUT)
            .ping_interval(PING_INTERVAL)
            .client_capacity(SENDER_LEN_MAX)
            .subscription_capacity(SUBSCRIPTION_LEN_MAX);
        if let Some(path) = &self.credentials {
            let text = read(path, "credentials file")?;
            options = options.credentials(&text).map_err(|e| {
                Error::Config(format!(
                    "credentials file {}: {e}: make a new one with `nsc generate creds`",
                    path.display()
                ))
            })?;
        }
        if let Some(token) = &self.token {
            options = options.token(token.clone());
        }
        if let Some(path) = &self.tls_ca {
            read_pem(path, "TLS CA file")?;
            options = options.add_root_certificates(path.clone()).require_tls(true);
        }
        match (&self.tls_cert, &self.tls_key) {
            (Some(cert), Some(key)) => {
                read_pem(cert, "TLS certificate file")?;
                read_pem(key, "TLS key file")?;
                options = options.add_client_certificate(cert.clone(), key.clone()).require_tls(true);
            }
            (None, None) => {}
            (Some(path), None) => {
                return Err(Error::Config(format!("TLS certificate {} has no key: name its key too", path.display())));
            }
            (None, Some(path)) => {
                return Err(Error::Config(format!(
                    "TLS key {} has no certificate: name its certificate too",
                    path.display()
                )));
            }
        }
        Ok(options)
    }
}

/// The URL of a server without what stands before an `@`, which may be a password: to be shown.
pub fn without_secret(url: &str) -> String {
    let is_scheme = |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric());
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) if is_scheme(scheme) => format!("{scheme}://{host}"),
        (_, Some((_, host))) => host.to_owned(),
        (_, None) => url.to_owned(),
    }
}

fn server(url: &str) -> Result<ServerAddr, Error> {
    let shown = without_secret(url);
    let wrong = |problem: &str| Error::Config(format!("NATS server {shown:?}: {problem}: write nats://host:4222"));
    let server: ServerAddr = url.parse().map_err(|_| wrong("not a URL"))?;
    match server.scheme() {
        "nats" | "tls" if server.host().is_empty() => Err(wrong("it names no host")),
        "nats" | "tls" => Ok(server),
        _ => Err(wrong("only nats:// and tls:// are spoken")),
    }
}

fn read(path: &Path, what: &str) -> Result<String, Error> {
    fs::read_to_string(path)
        .map_err(|e| Error::Config(format!("{what} {}: {e}: name a file this user can read", path.display())))
}

fn read_pem(path: &Path, what: &str) -> Result<(), Error> {
    if read(path, what)?.contains("-----BEGIN ") {
        Ok(())
    } else {
        Err(Error::Config(format!("{what} {}: not PEM: convert it with openssl", path.display())))
    }
}

/// Doubles from `BACKOFF_MIN` to `BACKOFF_MAX`; `dice` takes off up to half, so that a fleet does not come back in
/// step.
pub(crate) fn backoff(attempts: usize, dice: u64) -> Duration {
    let doublings = u32::try_from(attempts.saturating_sub(1)).unwrap_or(u32::MAX).min(16);
    let whole = BACKOFF_MIN.saturating_mul(1 << doublings).min(BACKOFF_MAX);
    whole - whole.mul_f64((dice % 1_000) as f64 / 2_000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config {
            urls: vec!["nats://127.0.0.1:4222".into()],
            credentials: None,
            token: None,
            tls_ca: None,
            tls_cert: None,
            tls_key: None,
            name: "test".into(),
            lattice: "main".parse().expect("a name"),
        }
    }

    #[test]
    fn urls_are_checked_before_the_first_attempt() {
        for good in ["nats://a:1", "tls://a:1", "a:1", "a", "nats://token@a:1", "nats://[::1]:4222"] {
            assert!(server(good).is_ok(), "{good}");
        }
        for bad in ["", "http://a:1", "ws://a:1", "nats://", "nats://a:99999", "nats://a b"] {
            let error = server(bad).expect_err(bad).to_string();
            assert!(error.contains("write nats://host:4222"), "{bad}: {error}");
        }
        let error = server("http://user:hunter2@a:1").expect_err("scheme").to_string();
        assert!(!error.contains("hunter2"), "{error}");
        assert!(Config { urls: vec![], ..config() }.servers().is_err());
    }

    #[test]
    fn what_is_shown_of_a_url_has_no_secret() {
        for (url, shown) in [
            ("nats://a:1", "nats://a:1"),
            ("a:1", "a:1"),
            ("nats://user:pw@a:1", "nats://a:1"),
            ("tls://token@[::1]:4222", "tls://[::1]:4222"),
            ("user:pw@a:1", "a:1"),
            ("nats://user:p@ss@a", "nats://a"),
            ("user:p@ss://x@a", "a"),
            ("user:pw://x@a", "a"),
            ("user:pw@", ""),
        ] {
            assert_eq!(without_secret(url), shown, "{url}");
        }
    }

    #[test]
    fn files_are_read_before_the_first_attempt() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bad");
        let missing = dir.path().join("missing");
        fs::write(&path, "nothing of the kind").unwrap();
        let cases = [
            Config { credentials: Some(missing.clone()), ..config() },
            Config { credentials: Some(path.clone()), ..config() },
            Config { tls_ca: Some(missing.clone()), ..config() },
            Config { tls_ca: Some(path.clone()), ..config() },
            Config { tls_cert: Some(path.clone()), ..config() },
            Config { tls_key: Some(path.clone()), ..config() },
        ];
        for case in cases {
            let error = case.options().expect_err("a bad file").to_string();
            assert!(error.contains(dir.path().to_str().unwrap()), "{error}");
        }
    }

    #[test]
    fn debug_hides_the_token() {
        let text = format!("{:?}", Config { token: Some("hunter2".into()), ..config() });
        assert!(!text.contains("hunter2"), "{text}");
    }

    #[test]
    fn backoff_grows_to_its_bound_and_is_jittered() {
        assert_eq!(backoff(1, 0), BACKOFF_MIN);
        assert_eq!(backoff(3, 0), BACKOFF_MIN * 4);
        assert_eq!(backoff(usize::MAX, 0), BACKOFF_MAX);
        for dice in 0..1_000 {
            assert!((BACKOFF_MAX / 2..=BACKOFF_MAX).contains(&backoff(100, dice)));
        }
    }
}
