//! What can go wrong with the replicated log, each with the next step. `is_retryable` says whether asking again helps.

use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("this scheduler does not lead; {}", next_leader(*leader))]
    NotLeader { leader: Option<u64> },
    #[error(
        "the proposal at log index {index} was replaced by one of a newer leader and has no effect; propose it again"
    )]
    Superseded { index: u64 },
    #[error(
        "leadership moved while the proposal at log index {index} was under way, so whether it took effect is not known; \
         ask again with the same request id"
    )]
    Uncertain { index: u64 },
    #[error("no quorum confirmed the read in time; check that most schedulers run and reach each other, and ask again")]
    Unconfirmed,
    #[error(
        "this scheduler is behind: it has applied log index {applied} of {index}; ask another one, or again when `lattice \
         schedulers list` says that it is ready"
    )]
    Behind { applied: u64, index: u64 },
    #[error("{limit} {what} are waiting already, which is the bound; ask again a little later")]
    Overloaded { what: &'static str, limit: usize },
    #[error("an entry has 1 to {max} bytes, this one has {len}; split it")]
    EntryBytes { len: usize, max: usize },
    #[error("another change of the schedulers is not through yet; ask again in a moment")]
    Changing,
    #[error("these schedulers can not be changed so: {detail}; `lattice schedulers list` shows what there is")]
    Impossible { detail: String },
    #[error("scheduler {id} can not take over: it is not another voter; `lattice schedulers list` shows their roles")]
    NotVoter { id: u64 },
    #[error(
        "data directory {dir} has lost the log of member {id}, which may have voted: remove that member with \
         `lattice schedulers remove {id}`, then start this scheduler with an empty --data, --join and a new token"
    )]
    LostLog { dir: PathBuf, id: u64 },
    #[error("the replicated log has stopped; start the scheduler again (its log says why it ended)")]
    Stopped,
    #[error("raft configuration: {0}")]
    Config(String),
    #[error("data directory {dir} is in use by another lattice process; end it or give another --data")]
    InUse { dir: PathBuf },
    #[error(
        "data directory {dir} belongs to member {owner}, not to {id}; give another --data or start as member {owner}"
    )]
    Foreign { dir: PathBuf, owner: u64, id: u64 },
    #[error(
        "data directory {dir} has format {found}, this build reads {known}; start it with the lattice version that wrote it"
    )]
    Format { dir: PathBuf, found: u32, known: u32 },
    #[error(
        "{file} is damaged: {record}: {detail}; an older copy of it would have forgotten votes, so put none back: remove this \
         member with `lattice schedulers remove ID`, then start it with an empty --data, --join and a new token; one that \
         was alone goes on from a backup, with `lattice restore`"
    )]
    Damaged { file: PathBuf, record: String, detail: String },
    #[error(
        "state machine refuses the snapshot at log index {index}: {detail}; start with the lattice version that wrote it"
    )]
    Restore { index: u64, detail: String },
    #[error(
        "log entry {index} can not be applied here: {detail}; start this scheduler with a newer version of lattice: its log \
         is kept, and goes on from there"
    )]
    Newer { index: u64, detail: String },
    #[error("{0}")]
    Outdated(String),
    #[error("{doing} {path}: {source}; check the disk's space, health and permissions, then start again")]
    Io { doing: &'static str, path: PathBuf, source: std::io::Error },
    #[error("raft: {0}; this is a fault in lattice, please report it with the log")]
    Machine(String),
}

impl Error {
    /// Whether the same call may succeed later, here or at the leader.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            Self::NotLeader { .. }
                | Self::Superseded { .. }
                | Self::Uncertain { .. }
                | Self::Unconfirmed
                | Self::Behind { .. }
                | Self::Overloaded { .. }
                | Self::Changing
        )
    }
}

fn next_leader(leader: Option<u64>) -> String {
    match leader {
        Some(id) => format!("member {id} does: ask there"),
        None => "no leader is known yet: ask again in a moment".to_owned(),
    }
}
