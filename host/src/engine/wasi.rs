//! What an actor's grants come to in one instance: its WASI context. Nothing is there that the grants do not name,
//! save a clock of whole milliseconds that begins with the instance, without which nothing could wait.

use super::batch::{Batch, Tee};
use super::granted::{Granted, Protocol};
use super::guard::{self, RANDOM_BYTES_MAX};
use super::output::{Log, Stream};
use super::state::Env;
use bytes::Bytes;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use wasmtime_wasi::p2::pipe::MemoryInputPipe;
use wasmtime_wasi::sockets::SocketAddrUse;
use wasmtime_wasi::{FsPerms, HostMonotonicClock, HostWallClock, WasiCtx};

/// Of clocks that are not granted to be finer.
const COARSE: Duration = Duration::from_millis(1);

/// A fresh context for one instance, which began at `begun`; a program has besides what its caller gave it.
pub(super) fn context(
    env: &Arc<Env>,
    log: &Arc<Log>,
    begun: Instant,
    batch: Option<&Batch>,
) -> wasmtime::Result<WasiCtx> {
    let Granted { grants, folders, hash_seed, .. } = &env.granted;
    let mut wasi = WasiCtx::builder();
    match batch {
        Some(batch) => wasi.stdout(Tee::stdout(log, batch)).stderr(Tee::stderr(log, batch)).args(&batch.args),
        None => wasi.stdout(Stream::new(log, "stdout")).stderr(Stream::new(log, "stderr")).args(&grants.args),
    };
    wasi.insecure_random_seed(*hash_seed).max_random_size(RANDOM_BYTES_MAX);
    for (name, value) in &grants.env {
        wasi.env(name, value);
    }
    let given = batch.and_then(|batch| batch.stdin.clone());
    if let Some(stdin) = given.or_else(|| grants.stdin.clone().map(Bytes::from)) {
        wasi.stdin(MemoryInputPipe::new(stdin));
    }
    for folder in folders {
        let perms = if folder.granted.write { FsPerms::ReadWrite } else { FsPerms::ReadOnly };
        wasi.preopened_dir(folder.path(), &folder.granted.guest, perms)?;
    }
    if !grants.fine_clock {
        wasi.monotonic_clock(Coarse(begun)).wall_clock(CoarseWall);
    }
    // The default check denies every address; these also deny making a socket.
    let (tcp, udp) = (env.granted.has(Protocol::Tcp), env.granted.has(Protocol::Udp));
    wasi.allow_tcp(tcp).allow_udp(udp).allow_ip_name_lookup(grants.sockets || grants.lookups);
    if tcp || udp {
        let (env, log) = (env.clone(), log.clone());
        wasi.socket_addr_check(move |addr, use_| {
            let passes = passes(&env, &log, addr, use_);
            Box::pin(async move { passes })
        });
    }
    Ok(wasi.build())
}

/// Whether a socket may do this with this address. Those granted by address go out only: they listen nowhere.
fn passes(env: &Env, log: &Log, addr: SocketAddr, use_: SocketAddrUse) -> bool {
    let granted = &env.granted;
    if granted.grants.sockets {
        return true;
    }
    let protocol = match use_ {
        SocketAddrUse::TcpBind | SocketAddrUse::TcpListen | SocketAddrUse::TcpAccept | SocketAddrUse::TcpConnect => {
            Protocol::Tcp
        }
        _ => Protocol::Udp,
    };
    let refusal = match use_ {
        // What every socket does before it goes out.
        SocketAddrUse::TcpBind | SocketAddrUse::UdpBind if addr.ip().is_unspecified() && addr.port() == 0 => None,
        SocketAddrUse::TcpBind | SocketAddrUse::UdpBind | SocketAddrUse::TcpListen | SocketAddrUse::TcpAccept => {
            Some("only `sockets: true` lets it listen".to_owned())
        }
        _ => granted.may_use(protocol, addr).err().map(|barred| barred.to_string()),
    };
    let Some(why) = refusal else { return true };
    let (interface, grant) = guard::socket_names(protocol);
    log.line("warn", &format!("{interface} of actor {} with {addr} is denied: {why} ({grant})", env.label));
    false
}

/// Begins with the instance, so that it tells nothing of the machine.
struct Coarse(Instant);

impl HostMonotonicClock for Coarse {
    fn resolution(&self) -> u64 {
        u64::try_from(COARSE.as_nanos()).unwrap_or(u64::MAX)
    }
    fn now(&self) -> u64 {
        let nanos = u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX);
        // Not from zero: Go's runtime takes a clock that says so for a broken one.
        nanos - nanos % self.resolution() + self.resolution()
    }
}

/// As coarse, or it would be a finer clock for whoever has both.
struct CoarseWall;

impl HostWallClock for CoarseWall {
    fn resolution(&self) -> Duration {
        COARSE
    }
    fn now(&self) -> Duration {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Duration::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }
}
