//! Addresses on the bus. All live under `lattice.v1.<lattice>.`; tokens are validated nouns, so that no name can
//! smuggle a dot or a wildcard into a subject.

use crate::app::{Digest, HostId, LatticeName, Name};

/// Builds subjects of one lattice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subjects {
    prefix: String,
}

impl Subjects {
    pub fn new(lattice: &LatticeName) -> Self {
        Self { prefix: format!("lattice.v1.{lattice}") }
    }

    pub fn hello(&self, host: &HostId) -> String {
        format!("{}.host.{host}.hello", self.prefix)
    }
    pub fn beat(&self, host: &HostId) -> String {
        format!("{}.host.{host}.beat", self.prefix)
    }
    pub fn assign(&self, host: &HostId) -> String {
        format!("{}.host.{host}.assign", self.prefix)
    }
    pub fn ask(&self, host: &HostId) -> String {
        format!("{}.host.{host}.ask", self.prefix)
    }
    /// Programs that a scheduler begins on this host and takes the output of.
    pub fn job(&self, host: &HostId) -> String {
        format!("{}.host.{host}.job", self.prefix)
    }
    /// Where a scheduler says at which address the others reach it.
    pub fn scheduler(&self, id: u64) -> String {
        format!("{}.scheduler.{id}.at", self.prefix)
    }
    pub fn every_scheduler(&self) -> String {
        format!("{}.scheduler.*.at", self.prefix)
    }
    /// What schedulers subscribe to: hello of every host.
    pub fn every_hello(&self) -> String {
        format!("{}.host.*.hello", self.prefix)
    }
    pub fn every_beat(&self) -> String {
        format!("{}.host.*.beat", self.prefix)
    }
    /// `kind` has dots: "host.lost" becomes `evt.host.lost`.
    pub fn event(&self, kind: &str) -> String {
        format!("{}.evt.{kind}", self.prefix)
    }
    pub fn every_event(&self) -> String {
        format!("{}.evt.>", self.prefix)
    }
    pub fn log(&self, app: &Name, actor: &Name) -> String {
        format!("{}.log.{app}.{actor}", self.prefix)
    }
    pub fn every_log(&self, app: &Name) -> String {
        format!("{}.log.{app}.*", self.prefix)
    }
    pub fn blob(&self, digest: &Digest) -> String {
        format!("{}.blob.{}", self.prefix, digest.hex())
    }
    /// Calls to what `component` of `app` provides. `interface` is `wasi:keyvalue/store`; in the subject its
    /// `:` and `/` become `_`, its version is left out.
    pub fn rpc(&self, app: &Name, component: &Name, interface: &str) -> String {
        let interface = interface.split('@').next().unwrap_or(interface);
        let token: String =
            interface.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect();
        format!("{}.rpc.{app}.{component}.{token}", self.prefix)
    }

    /// The host a `host.<id>.<what>` subject names.
    pub fn host_of(&self, subject: &str) -> Option<HostId> {
        let rest = subject.strip_prefix(&self.prefix)?.strip_prefix(".host.")?;
        rest.split('.').next()?.parse().ok()
    }
}
