//! Schedulers among themselves: how they find, trust and hear each other, and how one is taken in.
//!
//! Reading order: this file (a scheduler's door to the others), `roster` (who may speak, who shall vote; pure), `token`
//! and `authority` (trust), `identity` (on disk), `join`, `carry` (messages out), `serve` (messages in), `pieces` (large
//! messages; pure), `ask` (what only the leader can do), `hold` (components), `announce`
//! (addresses on the bus), `account` (how all is), `keep` (the loop). Absent here: what the log holds or decides.

mod account;
mod announce;
mod ask;
mod authority;
mod carry;
mod hold;
mod identity;
mod join;
mod keep;
mod pieces;
pub mod roster;
mod serve;
mod token;

#[cfg(test)]
mod tests;

use crate::raft;
use crate::replica::Replica;
use proto::v1 as pb;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;

pub(crate) use announce::announce;
pub use authority::Authority;
pub(crate) use carry::Outbox;
pub(crate) use hold::Fetch;
pub(crate) use identity::write_private;
pub(crate) use keep::keep;
pub(crate) use serve::serve;
pub use token::{Invalid as InvalidToken, Token};
pub(crate) use token::{hash, hex};

/// How long a scheduler's certificate is good, unless told otherwise.
pub const LEAF_LIFE: Duration = Duration::from_secs(7 * 24 * 3600);
/// For a connection to another scheduler to come about.
const CONNECT: Duration = Duration::from_secs(3);

/// How this scheduler deals with others.
#[derive(Debug, Clone)]
pub struct Config {
    pub listen: SocketAddr,
    /// host:port where the others reach it; the address that it listens on when none is given.
    pub advertise: Option<String>,
    /// To be taken in by those who are there already. Ignored when it was.
    pub join: Option<Join>,
    /// A voter that is not reached for so long is removed, while another one stands by for its place; one that only learns,
    /// in any case. 0: never.
    pub replace_after: Duration,
    /// How long its certificate is good; it signs a new one when a third of that is over.
    pub leaf_life: Duration,
}

#[derive(Debug, Clone)]
pub struct Join {
    /// host:port of the peer listener of any scheduler of the lattice.
    pub addr: String,
    pub token: Token,
    /// To learn and not to vote until it is promoted.
    pub standby: bool,
    /// The newest version of commands that it can apply.
    pub vocabulary: u32,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("--peer-listen {listen}: {source}; end what listens there, or choose another address")]
    Listen { listen: SocketAddr, source: std::io::Error },
    #[error(
        "--peer-listen {0} is no address that others can use; say with --peer-advertise HOST:PORT where they reach it"
    )]
    Advertise(SocketAddr),
    #[error(
        "{}: {detail}; if it can not be read, put no older copy of the data folder in its place: remove this scheduler with \
         `lattice schedulers remove ID`, then start it with an empty --data, --join and a new token; one that was alone \
         goes on from a backup, with `lattice restore`",
        path.display()
    )]
    Identity { path: PathBuf, detail: String },
    #[error("this scheduler is one of several, its data folder {} says; give --peer-listen, as before", .0.display())]
    NeedsListener(PathBuf),
    #[error("data folder {} holds a scheduler already, which can not join another lattice; give an empty --data", .0.display())]
    NotEmpty(PathBuf),
    #[error("joining at {addr}: {detail}")]
    Join { addr: String, detail: String },
    #[error("certificates: {0}")]
    Certificate(String),
}

impl Error {
    fn certificate(error: rcgen::Error) -> Self {
        Self::Certificate(format!("{error}; this is a fault in lattice, please report it"))
    }
}

/// What is known before the log is opened: who this scheduler is, and how its log begins if it has none.
pub(crate) struct Door {
    pub(crate) id: u64,
    /// None: the leader of those who are there sends everything.
    pub(crate) voters: Vec<u64>,
    pub(crate) log_id: String,
    pub(crate) may_begin: bool,
    open: Option<Open>,
}

/// What a scheduler with a peer listener has besides.
struct Open {
    listener: TcpListener,
    peer: String,
    kept: identity::Kept,
    replace_after: Duration,
    leaf_life: Duration,
}

/// Listens, finds or makes this scheduler's identity, and joins if it is told to.
pub(crate) async fn open(config: Option<&Config>, id: u64, lattice: &str, data: &Path) -> Result<Door, Error> {
    let dir = data.join("peer");
    let kept = identity::Kept::load(&dir)?;
    let Some(config) = config else {
        if kept.is_some() {
            return Err(Error::NeedsListener(data.to_path_buf()));
        }
        let log_id = ulid::Ulid::generate().to_string();
        return Ok(Door { id, voters: vec![id], log_id, may_begin: true, open: None });
    };
    let listen = |source| Error::Listen { listen: config.listen, source };
    let listener = TcpListener::bind(config.listen).await.map_err(listen)?;
    let bound = listener.local_addr().map_err(listen)?;
    let peer = match &config.advertise {
        Some(peer) => peer.clone(),
        None if bound.ip().is_unspecified() => return Err(Error::Advertise(bound)),
        None => bound.to_string(),
    };
    let has_log = data.join("raft").exists();
    let member = kept.as_ref().is_some_and(|kept| kept.identity.id > 0);
    let kept = match (kept, &config.join) {
        (Some(kept), _) if member => kept,
        (_, Some(_)) if has_log => return Err(Error::NotEmpty(data.to_path_buf())),
        (Some(kept), Some(join)) => join::join(join, lattice, &peer, kept).await?,
        (None, Some(join)) => join::join(join, lattice, &peer, identity::Kept::ask(&dir)?).await?,
        (_, None) => identity::Kept::found(&dir, id, Authority::load(&data.join("api"))?)?,
    };
    let identity = &kept.identity;
    let founder = identity.peers.is_empty();
    Ok(Door {
        id: identity.id,
        voters: if founder { vec![identity.id] } else { Vec::new() },
        log_id: identity.log_id.clone(),
        may_begin: !identity.begun,
        open: Some(Open { listener, peer, kept, replace_after: config.replace_after, leaf_life: config.leaf_life }),
    })
}

impl Door {
    /// The lattice's authority: that of the schedulers among themselves, or one of its own while it is alone.
    pub(crate) fn authority(&self, data: &Path) -> Result<Authority, Error> {
        match &self.open {
            Some(Open { kept, .. }) => {
                Ok(Authority { certificate: kept.identity.authority.clone(), key: kept.identity.authority_key.clone() })
            }
            None => Authority::open(&data.join("api")),
        }
    }

    /// The log is there: without it, this scheduler must never begin a new one.
    pub(crate) fn begun(&mut self) -> Result<(), Error> {
        match &mut self.open {
            Some(open) if !open.kept.identity.begun => {
                open.kept.identity.begun = true;
                open.kept.save()
            }
            _ => Ok(()),
        }
    }
}

/// What the rest of the scheduler holds of the others: asks the leader, wherever it is. Cheap to clone.
#[derive(Clone)]
pub struct Peers(Arc<Inner>);

struct Inner {
    lattice: String,
    raft: raft::Handle,
    replica: Replica,
    outbox: Outbox,
    /// Where this scheduler's API answers.
    api: String,
    /// Where it is reached and what it is known by, if it has a peer listener.
    own: Option<(String, pb::PeerIdentity)>,
    /// Addresses that others told when they greeted: newer than those in the log.
    heard: Mutex<BTreeMap<u64, String>>,
    /// Addresses that schedulers told on the bus: hints.
    announced: Mutex<BTreeMap<u64, String>>,
    /// Turns true when this scheduler finds that it was removed.
    removed: watch::Sender<bool>,
    replace_after_ms: u64,
    leaf_life: Duration,
    /// Its certificate as it is now, PEM.
    leaf: Mutex<String>,
    tell: OnceLock<account::Tell>,
}

/// The listener of a scheduler that has one.
pub(crate) type Listener = Option<TcpListener>;

impl Peers {
    pub(crate) fn new(
        lattice: String,
        raft: raft::Handle,
        replica: Replica,
        outbox: Outbox,
        api: SocketAddr,
        api_tls: bool,
        door: Door,
    ) -> Result<(Self, Listener), Error> {
        let (own, listener, replace_after, leaf_life) = match door.open {
            Some(open) => {
                (Some((open.peer, open.kept.identity)), Some(open.listener), open.replace_after, open.leaf_life)
            }
            None => (None, None, Duration::ZERO, LEAF_LIFE),
        };
        let replace_after_ms = u64::try_from(replace_after.as_millis()).unwrap_or(u64::MAX);
        let host = own.as_ref().and_then(|(peer, _)| peer.rsplit_once(':')).map(|(host, _)| host);
        let api = match host {
            Some(host) if api.ip().is_unspecified() => format!("{host}:{}", api.port()),
            _ => api.to_string(),
        };
        let api = if api_tls { format!("https://{api}") } else { api };
        let (heard, announced, removed) = (Mutex::default(), Mutex::default(), watch::Sender::new(false));
        let inner = Inner {
            lattice,
            raft,
            replica,
            outbox,
            api,
            own,
            heard,
            announced,
            removed,
            replace_after_ms,
            leaf_life,
            leaf: Mutex::default(),
            tell: OnceLock::new(),
        };
        let peers = Self(Arc::new(inner));
        peers.renew_leaf()?;
        Ok((peers, listener))
    }

    /// Signs this scheduler's certificate anew: with its own key, by the authority that it holds. That it still is a
    /// member, the log says to whoever it shows the certificate.
    fn renew_leaf(&self) -> Result<(), Error> {
        let Some((_, identity)) = &self.0.own else { return Ok(()) };
        let public_key = authority::public_key(&identity.key)?;
        let until = authority::Until::after(self.0.leaf_life);
        let leaf = authority::sign(&identity.authority_key, identity.id, &public_key, until)?;
        *self.0.leaf.lock().unwrap_or_else(PoisonError::into_inner) = leaf;
        Ok(())
    }

    fn leaf(&self) -> String {
        self.0.leaf.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// This scheduler's id.
    pub(crate) fn id(&self) -> u64 {
        self.0.raft.status().borrow().id
    }

    /// Where this scheduler is reached by others.
    pub(crate) fn peer(&self) -> Option<&str> {
        self.0.own.as_ref().map(|(peer, _)| peer.as_str())
    }

    /// Turns true when this scheduler was removed from the lattice.
    pub(crate) fn removed(&self) -> watch::Receiver<bool> {
        self.0.removed.subscribe()
    }

    fn tell_removed(&self, why: &str) {
        if !self.0.removed.send_replace(true) {
            tracing::error!("{why}");
        }
    }

    /// Whether this scheduler is.
    fn is_out(&self, status: &raft::Status) -> bool {
        roster::is_out(status.id, &self.0.replica.read(), &status.members)
    }

    /// Whether it may tell scheduler `id` that it is.
    fn tells_out(&self, id: u64) -> bool {
        let status = self.0.raft.status();
        let status = status.borrow();
        roster::tells_out(status.id, id, &self.0.replica.read(), &status.members)
    }

    fn leads(&self) -> bool {
        self.0.raft.status().borrow().role == raft::Role::Leader
    }

    /// Where a member may be reached, to be tried in turn: what it said last, what is said on the bus, what the log says,
    /// what was said when this one joined. Who answers has to show the member's certificate, so a wrong one does no harm.
    fn addresses(&self, id: u64) -> Vec<String> {
        let told =
            |of: &Mutex<BTreeMap<u64, String>>| of.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned();
        let log = self.0.replica.read().members.get(&id).map(|member| member.peer.clone());
        let joined = self.0.own.as_ref().and_then(|(_, identity)| identity.peers.get(&id).cloned());
        let mut all: Vec<String> = Vec::new();
        for address in [told(&self.0.heard), told(&self.0.announced), log, joined].into_iter().flatten() {
            if !all.contains(&address) {
                all.push(address);
            }
        }
        all
    }

    fn greeting(&self, to: u64) -> pb::PeerGreeting {
        pb::PeerGreeting {
            lattice: self.0.lattice.clone(),
            from: self.id(),
            to,
            log_id: self.0.raft.log_id().to_owned(),
            peer: self.peer().unwrap_or_default().to_owned(),
        }
    }
}

/// The innermost cause: what the outer layers say is of no help to a person.
fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
