//! What an actor's grants come to on this host: parsed, held against the host's policy, folders opened. Made once,
//! when the actor is prepared; an actor that may not have all of its grants is not prepared at all.

use super::Error;
use proto::address::{self, Pattern, Scheme};
use proto::app::{Folder, Grants, Limits};
use proto::policy::Policy;
use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::sync::{Arc, OnceLock};
use tokio::sync::watch;

/// Where the bus of the lattice is; no actor reaches it unless its grants name address and port.
pub type BusAddresses = watch::Receiver<Arc<[SocketAddr]>>;

pub(super) struct Granted {
    pub(super) grants: Grants,
    http: Vec<Pattern>,
    tcp: Vec<Pattern>,
    udp: Vec<Pattern>,
    pub(super) folders: Vec<Opened>,
    /// What `wasi:random/insecure-seed` gives to each instance: hash maps want it, and it is no source of chance.
    pub(super) hash_seed: u128,
    bus: BusAddresses,
}

/// A folder that stays the one it was when the actor was prepared, whatever its path comes to mean.
pub(super) struct Opened {
    dir: File,
    pub(super) granted: Folder,
}

/// TCP or UDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Tcp,
    Udp,
}

impl Granted {
    /// `label` is "shop/cart", for messages.
    pub(super) fn new(
        label: &str,
        grants: Grants,
        (limits, replicas): (&Limits, u32),
        policy: &Policy,
        bus: BusAddresses,
    ) -> Result<Self, Error> {
        let refuse = |reasons: Vec<String>| Error::Policy { actor: label.to_owned(), reasons: reasons.join("; ") };
        let broken = |reason: String| Error::Grant { actor: label.to_owned(), reason };
        let mut reasons = policy.refusals(&grants, limits);
        reasons.extend(policy.replicas_refusal(replicas));
        if !reasons.is_empty() {
            return Err(refuse(reasons));
        }
        let read = |texts: &[String], name: &str, read: fn(&str) -> Result<Pattern, proto::app::Invalid>| {
            let all = texts.iter().map(|t| read(t).map_err(|e| broken(format!("{t:?} in {name} is no address: {e}"))));
            all.collect::<Result<Vec<_>, _>>()
        };
        let http = read(&grants.http, "grants.http", Pattern::http)?;
        let tcp = read(&grants.tcp, "grants.sockets.tcp", Pattern::socket)?;
        let udp = read(&grants.udp, "grants.sockets.udp", Pattern::socket)?;
        let mut folders = Vec::new();
        for folder in &grants.folders {
            let opened = Opened::new(folder).map_err(broken)?;
            // Where links lead is what the policy is about.
            let reason = opened.real_path().and_then(|path| policy.folder_refusal(folder, &path));
            if let Some(reason) = reason {
                return Err(refuse(vec![reason]));
            }
            folders.push(opened);
        }
        Ok(Self { http, tcp, udp, folders, hash_seed: hash_seed(label), bus, grants })
    }

    /// Whether an HTTP request may be made, by what it says.
    pub(super) fn may_ask(&self, scheme: Scheme, host: &str, port: u16) -> bool {
        address::may_ask(&self.http, scheme, host, port)
    }

    /// Whether its connection may go to this address.
    pub(super) fn may_connect(&self, scheme: Scheme, addr: SocketAddr) -> Result<(), address::Barred> {
        address::may_connect(&self.http, Some(scheme), addr, &self.bus_near(addr))
    }

    pub(super) fn has(&self, protocol: Protocol) -> bool {
        self.grants.sockets || !self.patterns(protocol).is_empty()
    }

    /// Whether a raw socket may exchange bytes with this address.
    pub(super) fn may_use(&self, protocol: Protocol, addr: SocketAddr) -> Result<(), address::Barred> {
        if self.grants.sockets {
            return Ok(());
        }
        address::may_use(self.patterns(protocol), addr, &self.bus_near(addr))
    }

    /// The addresses of the bus, with this one if it may be: a server on one of this machine's addresses may listen on
    /// all of them.
    fn bus_near(&self, addr: SocketAddr) -> Arc<[SocketAddr]> {
        let bus = self.bus.borrow().clone();
        // Most addresses have another port: nothing is asked of the system then.
        let is_here = bus.iter().any(|bus| bus.port() == addr.port() && is_own(bus.ip())) && is_own(addr.ip());
        if is_here { bus.iter().copied().chain([addr]).collect() } else { bus }
    }

    fn patterns(&self, protocol: Protocol) -> &[Pattern] {
        match protocol {
            Protocol::Tcp => &self.tcp,
            Protocol::Udp => &self.udp,
        }
    }
}

impl Opened {
    fn new(folder: &Folder) -> Result<Self, String> {
        let broken = |e: std::io::Error| format!("folder {}: {e}", folder.host);
        let dir = File::open(&folder.host).map_err(broken)?;
        match dir.metadata().map_err(broken)?.is_dir() {
            true => Ok(Self { dir, granted: folder.clone() }),
            false => Err(format!("{} is not a folder", folder.host)),
        }
    }

    /// A path that leads to this very folder.
    pub(super) fn path(&self) -> String {
        match cfg!(target_os = "linux") {
            true => format!("/proc/self/fd/{}", self.dir.as_raw_fd()),
            false => self.granted.host.clone(),
        }
    }

    /// Its path without links, where the system tells.
    fn real_path(&self) -> Option<String> {
        let path = match cfg!(target_os = "linux") {
            true => std::fs::read_link(self.path()),
            false => std::fs::canonicalize(&self.granted.host),
        };
        // A path that is no text is within no folder that a policy names.
        path.ok().map(|path| path.to_string_lossy().into_owned())
    }
}

/// Whether this machine has the address.
fn is_own(ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    // Nobody can bind to an address of another machine.
    ip.is_loopback() || ip.is_unspecified() || UdpSocket::bind((ip, 0)).is_ok()
}

/// One value per actor and process, which nobody outside can guess.
fn hash_seed(label: &str) -> u128 {
    static SECRET: OnceLock<[u8; 32]> = OnceLock::new();
    let secret = SECRET.get_or_init(|| {
        let mut secret = [0; 32];
        if let Err(error) = getrandom::fill(&mut secret) {
            tracing::warn!(%error, "no randomness for hash seeds: guests' hash maps are predictable");
        }
        secret
    });
    let sum = Sha256::new().chain_update(secret).chain_update(label).finalize();
    sum.iter().take(16).fold(0, |seed, byte| seed << 8 | u128::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::tests::bus_at;
    use address::Barred;

    #[test]
    fn a_bus_on_this_machine_is_barred_on_all_its_addresses() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let granted = |bus: &str, http: &[&str]| {
            let http: Vec<String> = http.iter().map(|text| (*text).to_owned()).collect();
            let grants = Grants { tcp: http.clone(), http, ..Grants::default() };
            let limits = Limits::default();
            Granted::new("shop/cart", grants, (&limits, 1), &Policy::default(), bus_at(&[at(bus)])).unwrap()
        };
        let own = granted("127.0.0.1:4222", &["127.0.0.0/8", "[::1]"]);
        for addr in ["127.0.0.1:4222", "127.0.0.2:4222", "[::1]:4222", "[::ffff:127.0.0.3]:4222"] {
            assert_eq!(own.may_connect(Scheme::Http, at(addr)), Err(Barred::Bus), "{addr}");
            assert_eq!(own.may_use(Protocol::Tcp, at(addr)), Err(Barred::Bus), "{addr}");
        }
        assert_eq!(own.may_connect(Scheme::Http, at("127.0.0.2:4223")), Ok(()));
        // By the very address and port it is granted.
        let exactly = granted("127.0.0.1:4222", &["127.0.0.2:4222"]);
        assert_eq!(exactly.may_connect(Scheme::Http, at("127.0.0.2:4222")), Ok(()));
        // One that is elsewhere is no reason.
        let away = granted("192.0.2.1:4222", &["127.0.0.0/8"]);
        assert_eq!(away.may_connect(Scheme::Http, at("127.0.0.2:4222")), Ok(()));
        assert!(is_own("127.9.9.9".parse().unwrap()) && !is_own("192.0.2.1".parse().unwrap()));
    }
}
