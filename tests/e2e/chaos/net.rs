//! A network of this test's own: a bridge in a namespace, and a namespace with one address for each process. Links are
//! taken down and packets dropped in there, and nowhere else. Needs root; all of it goes with the value.

use std::net::Ipv4Addr;
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;
use std::process::Command;

use crate::harness::{root, shell};

/// Where the bridge, and the bus on it, is.
pub(super) const HUB: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

pub(super) struct Net {
    /// What all its namespaces begin with.
    prefix: String,
    names: Vec<String>,
    nft: PathBuf,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Way {
    In,
    Out,
}

impl Net {
    /// Or why there can be none here.
    pub(super) fn make() -> Result<Self, String> {
        let nft = ["target/tools/bin/nft", "/usr/sbin/nft"].map(|path| root().join(path));
        let nft = nft.into_iter().find(|path| path.is_file()).ok_or("nft is missing (package nftables)")?;
        let mut net = Self { prefix: format!("lattice-{}-", std::process::id()), names: Vec::new(), nft };
        net.namespace("bus")?;
        net.ip("bus", "link add br0 type bridge")?;
        net.ip("bus", &format!("addr add {HUB}/24 dev br0"))?;
        net.ip("bus", "link set br0 up")?;
        // Whether packets can be dropped here is known before anything is started.
        net.nft("bus", "list tables")?;
        Ok(net)
    }

    fn namespace(&mut self, name: &str) -> Result<(), String> {
        let full = format!("{}{name}", self.prefix);
        shell(Command::new("ip").args(["netns", "add", &full]))?;
        self.names.push(full);
        self.ip(name, "link set lo up")
    }

    /// A machine on the bridge; `last` is the end of its address.
    pub(super) fn add(&mut self, name: &str, last: u8) -> Result<Ipv4Addr, String> {
        let at = Ipv4Addr::new(10, 77, 0, last);
        self.namespace(name)?;
        let full = format!("{}{name}", self.prefix);
        self.ip("bus", &format!("link add {name} type veth peer name eth0 netns {full}"))?;
        self.ip("bus", &format!("link set {name} master br0 up"))?;
        self.ip(name, &format!("addr add {at}/24 dev eth0"))?;
        self.ip(name, "link set eth0 up")?;
        Ok(at)
    }

    fn ip(&self, name: &str, args: &str) -> Result<(), String> {
        let full = format!("{}{name}", self.prefix);
        shell(Command::new("ip").args(["-n", &full]).args(args.split(' ')))
    }

    fn nft(&self, name: &str, script: &str) -> Result<(), String> {
        shell(self.command(name, &self.nft).arg(script))
    }

    /// `program`, to be run in the namespace; its process id is that of the command.
    pub(super) fn command(&self, name: &str, program: impl Into<PathBuf>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path(name).display())).arg("--").arg(program.into());
        command
    }

    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/run/netns/{}{name}", self.prefix))
    }

    /// Runs `work` on a thread whose sockets are in the namespace.
    pub(super) fn inside<T: Send>(&self, name: &str, work: impl FnOnce() -> T + Send) -> T {
        let enter = self.enter(name);
        let work = move || {
            enter();
            work()
        };
        std::thread::scope(|scope| scope.spawn(work).join().unwrap_or_else(|why| std::panic::resume_unwind(why)))
    }

    /// What a thread calls to have its sockets there from then on.
    pub(super) fn enter(&self, name: &str) -> impl FnOnce() + Send + use<> {
        let file = std::fs::File::open(self.path(name)).unwrap();
        move || {
            #[allow(unsafe_code, reason = "no safe call of it is at hand; it changes the calling thread only")]
            let failed = unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) };
            assert_eq!(failed, 0, "{}", std::io::Error::last_os_error());
        }
    }

    pub(super) fn set_link(&self, name: &str, is_up: bool) {
        self.ip(name, if is_up { "link set eth0 up" } else { "link set eth0 down" }).unwrap();
    }

    /// Drops one way what goes between `name` and these addresses.
    pub(super) fn drop_packets(&self, name: &str, way: Way, others: &[Ipv4Addr]) {
        let others: Vec<String> = others.iter().map(ToString::to_string).collect();
        let (hook, field) = match way {
            Way::In => ("input", "saddr"),
            Way::Out => ("output", "daddr"),
        };
        let script = format!(
            "add table inet chaos; add chain inet chaos drops {{ type filter hook {hook} priority 0; }}; \
             add rule inet chaos drops ip {field} {{ {} }} drop",
            others.join(", ")
        );
        self.nft(name, &script).unwrap();
    }

    pub(super) fn heal(&self, name: &str) {
        self.nft(name, "delete table inet chaos").unwrap();
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = shell(Command::new("ip").args(["netns", "del", name]));
        }
    }
}
