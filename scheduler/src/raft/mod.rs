//! The replicated log: proposals go in, committed entries drive a `StateMachine` in the same order on every member.
//! Must never: acknowledge a proposal before it is durable on a quorum, serve a stale read as linearizable, or let a
//! type of the consensus library out of this folder.
//!
//! Reading order: this file (the seam), `handle` (what the rest of the scheduler holds), `drive` (the one loop),
//! `node` (the machine without IO), `members` (who takes part), `timeout`, `log` (its memory), `wire` (what members say
//! to each other), `storage` (records on disk), `disk` (sled, and the one place that makes bytes durable), `offline` (a
//! log that nobody runs), `stepped` (a member without a thread).

mod disk;
mod drive;
mod error;
mod handle;
mod log;
mod members;
pub mod node;
pub mod offline;
mod stepped;
mod storage;
mod timeout;
mod wire;

#[cfg(test)]
mod tests;

use std::path::PathBuf;

pub use disk::{Change as DiskChange, Disk, Visit};
pub use error::Error;
pub use handle::{Applied, Handle, Status};
pub use members::{Change, Members};
pub use node::Role;
pub use stepped::Stepped;

/// What the log drives. `apply` must be deterministic: same entries, same state, same answers, on every member.
pub trait StateMachine: Send + 'static {
    /// Applies one committed entry; what it returns reaches the proposer if that waits on this member.
    fn apply(&mut self, index: u64, data: &[u8]) -> Vec<u8>;
    /// The entry at `index` says nothing to the state: a leader began with it, or it changed the members.
    fn pass(&mut self, _index: u64) {}
    /// The whole state, byte-stable: the same state gives the same bytes.
    fn snapshot(&self) -> Vec<u8>;
    /// Replaces the whole state by that of a snapshot taken after the entry `index`. Must accept what `snapshot` of
    /// a fresh state machine gave.
    fn restore(&mut self, index: u64, snapshot: &[u8]) -> Result<(), String>;
    /// Why this build can not apply an entry the way that newer ones do. Asked before each `apply`: who can not must end,
    /// and keeps its log.
    fn can_apply(&self, _data: &[u8]) -> Result<(), String> {
        Ok(())
    }
    /// Why `restore` would refuse a snapshot. Asked before it replaces anything on disk.
    fn can_restore(&self, _snapshot: &[u8]) -> Result<(), String> {
        Ok(())
    }
}

/// Carries opaque messages to other members. May lose, double, delay and reorder them, and must not block: a full
/// queue drops. The receiving side hands the bytes to `Handle::step`; what is known to be lost is told to
/// `Handle::unreachable`.
pub trait Transport: Send + 'static {
    fn send(&mut self, to: u64, message: Vec<u8>);
}

/// The transport of a member that is alone.
pub struct Alone;

impl Transport for Alone {
    fn send(&mut self, _to: u64, _message: Vec<u8>) {}
}

/// How one member runs.
#[derive(Clone, Debug)]
pub struct Config {
    /// Of this member, never 0 and never given to another one: a member that lost its disk comes back under a new id.
    pub id: u64,
    /// Members of a brand-new cluster, this one included; none: it is taken in by one that exists, whose leader sends
    /// everything. Ignored when `dir` holds a log already.
    pub voters: Vec<u64>,
    /// Name of the log if one is made now: of this one and of no other, ever.
    pub log_id: String,
    /// Whether a log may be made when `dir` has none. A member that once had one must not begin anew under its id.
    pub may_begin: bool,
    /// Where the log lives; made if missing.
    pub dir: PathBuf,
    pub tick_ms: u64,
    /// Silence of a leader after which another is sought: from n + 1 ticks to half as many more, each voter at a time of
    /// its own.
    pub election_ticks: usize,
    pub heartbeat_ticks: usize,
    /// Where the turns of the election timeouts begin: the same at all members.
    pub seed: u64,
    /// Bytes of log beyond which the state is stored as a snapshot and the log before it dropped.
    pub log_bytes_max: u64,
    /// Proposals that may wait for their commit at a time; the same bound holds for reads.
    pub proposals_max: usize,
    pub entry_bytes_max: usize,
}

/// Of a member with the usual timers: a leader is heard five times a second, and missed after 1 to 1.5 s.
pub const TICK_MS: u64 = 50;

impl Config {
    /// A cluster of one, with the usual bounds.
    pub fn alone(id: u64, dir: impl Into<PathBuf>) -> Self {
        Self {
            id,
            voters: vec![id],
            log_id: String::new(),
            may_begin: true,
            dir: dir.into(),
            tick_ms: TICK_MS,
            election_ticks: 20,
            heartbeat_ticks: 4,
            seed: 0,
            log_bytes_max: 64 << 20,
            proposals_max: 1024,
            entry_bytes_max: 1 << 20,
        }
    }

    fn validate(&self) -> Result<(), Error> {
        let wrong = |what: String| Err(Error::Config(what));
        if self.id == 0 {
            return wrong("id is 0; member ids begin at 1".into());
        }
        if !self.voters.is_empty() && !self.voters.contains(&self.id) {
            return wrong(format!("member {} is not among voters {:?}; add it", self.id, self.voters));
        }
        let mut voters = self.voters.clone();
        voters.sort_unstable();
        voters.dedup();
        if voters.len() != self.voters.len() || voters.contains(&0) {
            return wrong(format!("voters {:?} must be distinct and not 0", self.voters));
        }
        if self.tick_ms == 0 || self.heartbeat_ticks == 0 || self.election_ticks <= self.heartbeat_ticks {
            return wrong(
                "tick_ms and heartbeat_ticks must be 1 or more, and election_ticks above heartbeat_ticks".into(),
            );
        }
        if self.proposals_max == 0 || self.log_bytes_max == 0 {
            return wrong("proposals_max and log_bytes_max must be 1 or more".into());
        }
        if self.entry_bytes_max == 0 || self.entry_bytes_max > node::ENTRY_BYTES_LIMIT {
            return wrong(format!("entry_bytes_max must be 1 to {}", node::ENTRY_BYTES_LIMIT));
        }
        Ok(())
    }
}

/// Opens (or makes) the log in `config.dir`, restores `state` from its snapshot and starts the member on a thread of
/// its own, which replays the rest. Blocks on the disk while it opens.
pub fn start<S: StateMachine>(config: Config, state: S, transport: impl Transport) -> Result<Handle, Error> {
    config.validate()?;
    let disk = disk::Sled::open(&config.dir)?;
    drive::start(config, disk, state, Box::new(transport), Box::new(drive::abort))
}
