//! The server sides: `up`, `scheduler`, `host`. Each file turns arguments into one checked configuration and prints
//! what runs; `start` is the only place that knows the crates behind them. `listen` is the rule of who may listen
//! where.

#[cfg(feature = "host")]
pub(crate) mod access;
pub(crate) mod admin;
#[cfg(feature = "host")]
pub(crate) mod host;
#[cfg(feature = "host")]
pub(crate) mod labels;
pub(crate) mod listen;
#[cfg(all(feature = "host", feature = "scheduler"))]
pub(crate) mod pin;
#[cfg(feature = "host")]
pub(crate) mod policy;
#[cfg(feature = "scheduler")]
pub(crate) mod scheduler;
pub(crate) mod start;
#[cfg(all(feature = "host", feature = "scheduler"))]
pub(crate) mod up;

use crate::failure::Failure;
use crate::print;
use crate::print::table::Tint;
use clap::Args;
use proto::app::LatticeName;
use start::Running;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long the parts have to end cleanly before the process ends without them.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// How to reach the bus. For `up` the URL is optional, so it is not among these.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Bus")]
pub(crate) struct NatsArgs {
    /// NATS credentials file (JWT and seed)
    #[arg(long, value_name = "FILE")]
    nats_creds: Option<PathBuf>,
    /// NATS token; better in the environment than in the list of processes
    #[arg(long, value_name = "TOKEN", env = "LATTICE_NATS_TOKEN", hide_env_values = true)]
    nats_token: Option<String>,
    /// PEM certificate of the CA that signed the NATS server's certificate; demands TLS
    #[arg(long, value_name = "FILE")]
    nats_ca: Option<PathBuf>,
    /// PEM certificate by which the NATS server knows this process
    #[arg(long, value_name = "FILE", requires = "nats_key")]
    nats_cert: Option<PathBuf>,
    /// Its private key
    #[arg(long, value_name = "FILE", requires = "nats_cert")]
    nats_key: Option<PathBuf>,
}

impl NatsArgs {
    fn config(&self, urls: Vec<String>, name: String, lattice: LatticeName) -> bus::Config {
        bus::Config {
            urls,
            credentials: self.nats_creds.clone(),
            token: self.nats_token.clone(),
            tls_ca: self.nats_ca.clone(),
            tls_cert: self.nats_cert.clone(),
            tls_key: self.nats_key.clone(),
            name,
            lattice,
        }
    }

    #[cfg(all(feature = "host", feature = "scheduler"))]
    fn is_given(&self) -> bool {
        let files = [&self.nats_creds, &self.nats_ca, &self.nats_cert, &self.nats_key];
        self.nats_token.is_some() || files.iter().any(|file| file.is_some())
    }
}

/// What is kept for later.
#[derive(Debug, Clone, Args)]
pub(crate) struct KeepArgs {
    /// How long components that no app names are kept on disk, what was compiled of them, and what actors that have gone
    /// printed; a rollback wants them
    #[arg(long, value_name = "TIME", env = "LATTICE_KEEP_UNUSED", hide_env = true, default_value = "1h", value_parser = crate::duration::parse)]
    pub(crate) keep_unused: Duration,
}

/// TLS for what listens.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "TLS")]
pub(crate) struct TlsArgs {
    /// PEM certificate chain for what listens; needed beyond loopback. An ingress may have several: each with its key, the
    /// first is for clients that ask for none of their names. It takes up changed files by itself
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Vec<PathBuf>,
    /// Its private key, PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Vec<PathBuf>,
}

/// Certificates and their keys, all seen to be readable PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tls {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
    /// Further ones, for the ingress.
    pub(crate) more: Vec<(PathBuf, PathBuf)>,
}

#[cfg(feature = "host")]
impl Tls {
    /// All of them, the first first.
    pub(crate) fn pairs(&self) -> Vec<(PathBuf, PathBuf)> {
        let first = (self.cert.clone(), self.key.clone());
        std::iter::once(first).chain(self.more.iter().cloned()).collect()
    }
}

impl TlsArgs {
    fn check(&self) -> Result<Option<Tls>, Failure> {
        if self.tls_cert.len() != self.tls_key.len() {
            let (certs, keys) = (self.tls_cert.len(), self.tls_key.len());
            return Err(Failure::Usage(format!("{certs} --tls-cert and {keys} --tls-key: give one key for each")));
        }
        let flagged = |flag: &'static str, paths: &'_ [PathBuf]| paths.iter().map(move |p| (flag, p.clone())).collect();
        let all: [Vec<(&str, PathBuf)>; 2] =
            [flagged("--tls-cert", &self.tls_cert), flagged("--tls-key", &self.tls_key)];
        for (flag, path) in all.iter().flatten() {
            let text = std::fs::read_to_string(path).map_err(|e| {
                Failure::Refused(format!("{flag} {}: {e}; name a PEM file this user can read", path.display()))
            })?;
            if !text.contains("-----BEGIN ") {
                return Err(Failure::Refused(format!("{flag} {}: not PEM; convert it with openssl", path.display())));
            }
        }
        let mut pairs = self.tls_cert.iter().cloned().zip(self.tls_key.iter().cloned());
        Ok(pairs.next().map(|(cert, key)| Tls { cert, key, more: pairs.collect() }))
    }
}

/// The folder for a role's data: the one given, or its own under the user's data folder.
pub(crate) fn data_dir(given: Option<&Path>, role: &str) -> Result<PathBuf, Failure> {
    match given {
        Some(path) => std::path::absolute(path).map_err(|e| Failure::Usage(format!("--data {}: {e}", path.display()))),
        None => directories::ProjectDirs::from("", "", "lattice")
            .map(|dirs| dirs.data_dir().join(role))
            .ok_or_else(|| Failure::Usage("this user has no home folder: name a folder with --data DIR".into())),
    }
}

pub(crate) fn lattice_name(text: &str) -> Result<LatticeName, String> {
    text.parse().map_err(|e: proto::app::Invalid| e.to_string())
}

/// Parts that run, and the signals that end them.
struct Serving {
    running: Running,
    signals: Signals,
}

/// Starts the parts; `None` when the process was told to end before they were up.
async fn begin(start: impl Future<Output = anyhow::Result<Running>>) -> Result<Option<Serving>, Failure> {
    let mut signals = Signals::new()?;
    tokio::select! {
        running = start => match running {
            Ok(running) => Ok(Some(Serving { running, signals })),
            Err(error) => Err(Failure::Refused(causes(&error))),
        },
        _ = signals.next() => Ok(None),
    }
}

impl Serving {
    /// Serves until told to end, or until a part fails; then stops them all.
    async fn serve(mut self) -> Result<(), Failure> {
        let ended = self.told().await;
        self.stop().await?;
        ended
    }

    /// Waits until the process is told to end, which is well, or a part has ended by itself, which is not.
    async fn told(&mut self) -> Result<(), Failure> {
        tokio::select! {
            signal = self.signals.next() => {
                tracing::info!(signal, "stopping");
                Ok(())
            }
            ended = self.running.ended() => Err(ended),
        }
    }

    /// Lets the parts end. A second signal ends the process without them.
    async fn stop(&mut self) -> Result<(), Failure> {
        let Running { stop, parts, .. } = &mut self.running;
        stop.cancel();
        let stopping = async { while parts.join_next().await.is_some() {} };
        tokio::select! {
            done = tokio::time::timeout(STOP_TIMEOUT, stopping) => {
                if done.is_err() {
                    tracing::warn!("some parts did not stop in time; what they acknowledged is on disk");
                }
                Ok(())
            }
            _ = self.signals.next() => {
                Err(Failure::Interrupted("ended before all parts had stopped; what they acknowledged is on disk".into()))
            }
        }
    }
}

/// Ctrl-C and SIGTERM.
struct Signals {
    int: tokio::signal::unix::Signal,
    term: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> Result<Self, Failure> {
        use tokio::signal::unix::{SignalKind, signal};
        let refuse = |e: std::io::Error| Failure::Refused(format!("can not listen to signals: {e}"));
        Ok(Self {
            int: signal(SignalKind::interrupt()).map_err(refuse)?,
            term: signal(SignalKind::terminate()).map_err(refuse)?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.int.recv() => "SIGINT",
            _ = self.term.recv() => "SIGTERM",
        }
    }
}

/// An error and its causes on one line; a cause that has been named in the error's own words is not said again.
fn causes(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(|cause| print::clean(&cause.to_string())) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

/// Names and values in two columns, below a title.
fn banner(title: &str, fields: &[(&str, String)]) -> Result<(), Failure> {
    let color = print::color();
    let paint = |tint: Tint, text: &str| if color { tint.paint(text) } else { text.to_owned() };
    let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
    let mut text = format!("{}\n\n", paint(Tint::Bold, title));
    for (name, value) in fields {
        let name = paint(Tint::Dim, &format!("{name:<width$}"));
        text.push_str(&format!("  {name}   {value}\n"));
    }
    print::out(text)
}

/// The next thing to type.
#[cfg(feature = "scheduler")]
fn next(command: &str, why: &str) -> Result<(), Failure> {
    let color = print::color();
    let command = if color { Tint::Bold.paint(command) } else { command.to_owned() };
    print::out(format!("next: {command}   {why}"))
}

#[cfg(test)]
mod tests {
    use super::causes;

    #[test]
    fn a_cause_is_said_once() {
        let io = std::io::Error::other("in use");
        assert_eq!(
            causes(&anyhow::Error::new(io).context("--api x: in use; choose another")),
            "--api x: in use; choose another"
        );
        let io = std::io::Error::other("disk full");
        assert_eq!(causes(&anyhow::Error::new(io).context("log of member 1")), "log of member 1: disk full");
    }
}
