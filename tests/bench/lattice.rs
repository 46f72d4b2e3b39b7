//! Lattices under measurement: real processes, their command line, and manifests made for them.

use crate::process::{self, Process};
use anyhow::{Context as _, Result};
use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What is measured, unless another build of it is named.
const BINARY: &str = env!("CARGO_BIN_EXE_lattice");
pub(crate) const OTHER: &str = "LATTICE_BENCH_PROGRAM";

/// A `lattice up`.
pub(crate) struct Up {
    pub(crate) process: Process,
    pub(crate) api: String,
    pub(crate) bus: String,
    pub(crate) ingress: SocketAddr,
}

impl Up {
    /// With its data in `dir`, on free ports, and further arguments.
    pub(crate) fn start(dir: &Path, more: &[&str]) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("can not make {}", dir.display()))?;
        let mut command = lattice();
        command.arg("up").arg("--data").arg(dir.join("data")).args(more);
        command.args(["--api", "127.0.0.1:0", "--ingress", "127.0.0.1:0"]);
        if !more.contains(&"--nats") {
            command.args(["--bus", "127.0.0.1:0"]);
        }
        let mut process = Process::start(&mut command, dir.join("up.log"))?;
        process.said("next:").context("lattice up")?;
        let (api, bus) = (process.said("api ")?, process.said("bus ")?);
        let ingress = process.said("ingress ")?;
        let ingress = ingress.trim_start_matches("http://").trim_end_matches('/');
        let ingress = ingress.parse().with_context(|| format!("lattice up says its ingress is {ingress:?}"))?;
        Ok(Self { process, api, bus, ingress })
    }

    /// Runs a verb of the command line against it.
    pub(crate) fn run(&self, args: &[&str]) -> Result<String> {
        process::output(&mut self.command(args))
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = lattice();
        command.args(args).args(["--api", &self.api]);
        command
    }

    pub(crate) fn apply(&self, manifest: &Path) -> Result<()> {
        let path = manifest.to_str().context("the target folder has a name that is not text")?;
        self.run(&["apply", path]).map(drop)
    }
}

/// A `lattice host` on the bus at `url`.
pub(crate) fn host(dir: &Path, url: &str, more: &[&str]) -> Result<Process> {
    fs::create_dir_all(dir).with_context(|| format!("can not make {}", dir.display()))?;
    let mut command = lattice();
    command.arg("host").arg("--data").arg(dir.join("data")).args(["--nats", url]).args(more);
    let mut process = Process::start(&mut command, dir.join("host.log"))?;
    process.said("data ").context("lattice host")?;
    Ok(process)
}

/// A `lattice scheduler` on the bus at `url`, with a listener for others.
pub(crate) struct Scheduler {
    pub(crate) process: Process,
    pub(crate) id: u64,
    pub(crate) api: String,
    pub(crate) peer: String,
    pub(crate) dir: PathBuf,
    url: String,
    more: Vec<String>,
}

impl Scheduler {
    /// With its data in `dir`; `join` is the address of another one and a token of it.
    pub(crate) fn start(dir: &Path, url: &str, join: Option<(&str, &str)>) -> Result<Self> {
        Self::start_with(dir, url, join, &[])
    }

    /// The same with further arguments.
    pub(crate) fn start_with(dir: &Path, url: &str, join: Option<(&str, &str)>, more: &[String]) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("can not make {}", dir.display()))?;
        let mut command = lattice();
        command.arg("scheduler").arg("--data").arg(dir.join("data")).args(["--nats", url]);
        command.args(["--api", "127.0.0.1:0", "--peer-listen", "127.0.0.1:0"]);
        if let Some((at, token)) = join {
            command.args(["--join", at, "--token", token]);
        }
        let mut process = Process::start(command.args(more), dir.join("scheduler.log"))?;
        process.said("next:").context("lattice scheduler")?;
        let (api, peer) = (process.said("api ")?, process.said("peer ")?);
        let id = process.said("scheduler ")?.parse().context("lattice scheduler says no id")?;
        Ok(Self { process, id, api, peer, dir: dir.to_owned(), url: url.to_owned(), more: more.to_vec() })
    }

    /// After its process was killed.
    pub(crate) fn again(&self) -> Result<Self> {
        Self::start_with(&self.dir, &self.url, None, &self.more)
    }

    pub(crate) fn run(&self, args: &[&str]) -> Result<String> {
        process::output(lattice().args(args).args(["--api", &self.api]))
    }
}

/// Without what the user's environment says of other lattices.
fn lattice() -> Command {
    let mut command = Command::new(std::env::var_os(OTHER).unwrap_or_else(|| BINARY.into()));
    for name in ["LATTICE_API", "LATTICE_CONFIG", "LATTICE_LOG", "LATTICE_NATS_TOKEN"] {
        command.env_remove(name);
    }
    command
}

/// An app of one actor behind the ingress.
pub(crate) struct App<'a> {
    /// Also the first label of the host name it answers at.
    pub(crate) name: &'a str,
    pub(crate) image: &'a Path,
    /// `key=value` that its host must have.
    pub(crate) at: Option<(&'a str, &'a str)>,
    /// The same of the host of a key-value provider, if it has one.
    pub(crate) store_at: Option<(&'a str, &'a str)>,
}

/// So many that concurrency is no limit.
const REPLICAS: u32 = 1_000;

impl App<'_> {
    /// What its requests have in their Host header.
    pub(crate) fn host_name(&self) -> String {
        format!("{}.localhost", self.name)
    }

    /// Writes its manifest into `dir`.
    pub(crate) fn write(&self, dir: &Path) -> Result<PathBuf> {
        self.write_with(dir, "")
    }

    /// The same with further traits, a line for each.
    pub(crate) fn write_with(&self, dir: &Path, traits: &str) -> Result<PathBuf> {
        let path = dir.join(format!("{}.yaml", self.name));
        fs::write(&path, self.manifest(traits)).with_context(|| format!("can not write {}", path.display()))?;
        Ok(path)
    }

    pub(crate) fn manifest(&self, traits: &str) -> String {
        let mut text = format!(
            "apiVersion: core.oam.dev/v1beta1\nkind: Application\nmetadata: {{ name: {} }}\nspec:\n  components:\n    \
             - name: web\n      type: component\n      properties: {{ image: {:?} }}\n      traits:\n        \
             - {{ type: ingress, properties: {{ host: {}, path: / }} }}\n{}{traits}",
            self.name,
            self.image.display().to_string(),
            self.host_name(),
            scaler(REPLICAS, self.at)
        );
        if self.store_at.is_some() {
            let _ = write!(
                text,
                "        - {{ type: link, properties: {{ target: {{ name: store }}, namespace: wasi, package: keyvalue, \
                 interfaces: [store, atomics] }} }}\n    - name: store\n      type: capability\n      \
                 properties: {{ image: builtin:keyvalue }}\n      traits:\n{}",
                scaler(1, self.store_at)
            );
        }
        text
    }
}

fn scaler(instances: u32, at: Option<(&str, &str)>) -> String {
    let spread = at.map(|(key, value)| format!(", spread: [{{ name: here, requirements: {{ {key}: {value} }} }}]"));
    let spread = spread.unwrap_or_default();
    format!("        - {{ type: spreadscaler, properties: {{ instances: {instances}{spread} }} }}\n")
}
