//! What members say to each other, in our own protobuf form, and the check of every message before the consensus
//! machine sees it: that machine panics on impossible input, and the library's own decoder recurses on untrusted bytes.
//! Pure. Must never let a message through that could move a term or an index beyond what a log can hold.

use prost::Message as _;
use proto::v1::{self, RaftMessageKind as Kind};
use raft::eraftpb::{ConfState, Entry, EntryType, HardState, Message, MessageType, Snapshot, SnapshotMetadata};

use super::members::{self, Members};

/// No log reaches this term or index; arithmetic on anything below can not overflow.
const NUMBER_MAX: u64 = 1 << 56;
const CONTEXT_BYTES_MAX: usize = 64;
/// Of an entry that changes the members.
const KIND_CHANGE: u32 = 2;

/// Why a message was dropped.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("not a raft message")]
    Garbage,
    #[error("meant for member {0}; check which member the sender's address belongs to")]
    Misaddressed(u64),
    #[error("from {0}, which is no member; it was removed, or this member is behind and will learn of it")]
    Stranger(u64),
    #[error("impossible: {0}; the sender is faulty or lost its log: let it rejoin under a new id")]
    Impossible(&'static str),
    #[error("not now: entries are not durable yet")]
    Busy,
}

/// What the check knows of the machine.
pub(super) struct Facts<'a> {
    pub(super) id: u64,
    pub(super) term: u64,
    pub(super) leads: bool,
    pub(super) last: u64,
    /// All entries are durable.
    pub(super) settled: bool,
    pub(super) conf: &'a ConfState,
}

pub(super) fn encode(message: Message) -> Result<Vec<u8>, raft::Error> {
    let kind = kind_of(message.get_msg_type())
        .ok_or_else(|| raft::Error::ConfigInvalid(format!("{:?} is never sent", message.get_msg_type())))?;
    let mut message = message;
    let snapshot = message.snapshot.take().map(|mut snapshot| v1::RaftSnapshot {
        meta: Some(meta_out(snapshot.get_metadata())),
        data: snapshot.take_data().into(),
    });
    Ok(v1::RaftMessage {
        kind: kind.into(),
        to: message.to,
        from: message.from,
        term: message.term,
        log_term: message.log_term,
        index: message.index,
        entries: message.entries.iter().map(entry_out).collect(),
        commit: message.commit,
        commit_term: message.commit_term,
        snapshot,
        reject: message.reject,
        reject_hint: message.reject_hint,
        context: message.context.to_vec(),
    }
    .encode_to_vec())
}

/// Decodes a message and refuses it unless a correct member could have sent it to this one.
pub(super) fn decode(bytes: &[u8], facts: &Facts<'_>) -> Result<Message, Refused> {
    let message = v1::RaftMessage::decode(bytes).map_err(|_| Refused::Garbage)?;
    let kind = Kind::try_from(message.kind).map_err(|_| Refused::Garbage)?;
    let kind = type_of(kind).ok_or(Refused::Garbage)?;
    if message.to != facts.id {
        return Err(Refused::Misaddressed(message.to));
    }
    // A member that is behind may not know the one that leads now. Who may speak at all is the transport's business.
    let answers = matches!(
        kind,
        MessageType::MsgAppendResponse
            | MessageType::MsgRequestVoteResponse
            | MessageType::MsgRequestPreVoteResponse
            | MessageType::MsgHeartbeatResponse
    );
    if message.from == facts.id || message.from == 0 || (answers && !is_member(facts.conf, message.from)) {
        return Err(Refused::Stranger(message.from));
    }
    check(kind, &message, facts)?;

    let mut out = Message::default();
    out.set_msg_type(kind);
    out.to = message.to;
    out.from = message.from;
    out.term = message.term;
    out.log_term = message.log_term;
    out.index = message.index;
    out.commit = message.commit;
    out.commit_term = message.commit_term;
    out.reject = message.reject;
    out.reject_hint = message.reject_hint;
    out.context = message.context.into();
    out.set_entries(message.entries.into_iter().map(entry_in).collect::<Vec<_>>().into());
    if let Some(v1::RaftSnapshot { meta: Some(meta), data }) = message.snapshot {
        out.set_snapshot(snapshot_in(&meta, data));
    }
    Ok(out)
}

/// One rule per way in which the machine would panic or be led astray.
fn check(kind: MessageType, m: &v1::RaftMessage, facts: &Facts<'_>) -> Result<(), Refused> {
    let refuse = |what| Err(Refused::Impossible(what));
    let numbers = [m.term, m.log_term, m.index, m.commit, m.commit_term, m.reject_hint];
    if numbers.iter().any(|number| *number > NUMBER_MAX) {
        return refuse("a number beyond any log");
    }
    let is_read = kind == MessageType::MsgReadIndex;
    if is_read != (m.term == 0) {
        return refuse("a term where none belongs, or none where one does");
    }
    let carries_entries =
        matches!(kind, MessageType::MsgAppend | MessageType::MsgReadIndex | MessageType::MsgReadIndexResp);
    if !carries_entries && !m.entries.is_empty() {
        return refuse("entries where none belong");
    }
    if m.snapshot.is_some() != (kind == MessageType::MsgSnapshot) {
        return refuse("a snapshot where none belongs, or none where one does");
    }
    let carries_context = matches!(kind, MessageType::MsgHeartbeat | MessageType::MsgHeartbeatResponse);
    let forced = kind == MessageType::MsgRequestVote && m.context == raft::CAMPAIGN_TRANSFER;
    if m.context.len() > CONTEXT_BYTES_MAX || (!carries_context && !forced && !m.context.is_empty()) {
        return refuse("a context where none belongs, or one too long");
    }
    match kind {
        MessageType::MsgAppend => check_append(m),
        MessageType::MsgHeartbeat if m.term >= facts.term && m.commit > facts.last => {
            refuse("a commit index beyond the log here")
        }
        MessageType::MsgSnapshot => check_snapshot(m, facts),
        MessageType::MsgAppendResponse if facts.leads && m.term == facts.term && !m.reject && m.index > facts.last => {
            refuse("an acknowledgement beyond the log here")
        }
        MessageType::MsgReadIndex if !facts.leads => refuse("a read asked of a member that does not lead"),
        MessageType::MsgReadIndex | MessageType::MsgReadIndexResp => match m.entries.as_slice() {
            [one] if one.data.len() <= CONTEXT_BYTES_MAX && one.kind == 0 => Ok(()),
            _ => refuse("a read without its context"),
        },
        // A vote can make a leader at once, and a leader's log must be durable.
        MessageType::MsgRequestVoteResponse | MessageType::MsgRequestPreVoteResponse if !facts.settled => {
            Err(Refused::Busy)
        }
        _ => Ok(()),
    }
}

fn check_append(m: &v1::RaftMessage) -> Result<(), Refused> {
    if m.index == 0 || m.log_term == 0 || m.log_term > m.term {
        return Err(Refused::Impossible("entries after a position that no log has"));
    }
    let (mut index, mut term) = (m.index, m.log_term);
    for entry in &m.entries {
        index += 1;
        if entry.index != index || entry.term < term || entry.term > m.term {
            return Err(Refused::Impossible("entries out of order"));
        }
        check_kind(entry).map_err(Refused::Impossible)?;
        term = entry.term;
    }
    Ok(())
}

/// Writes and changes of members that can be carried out; nothing else is in a log.
pub(super) fn check_kind(entry: &v1::RaftEntry) -> Result<(), &'static str> {
    match entry.kind {
        0 => Ok(()),
        KIND_CHANGE => members::decode(&entry.data).map(drop),
        _ => Err("an entry of a kind that this version does not write"),
    }
}

fn check_snapshot(m: &v1::RaftMessage, facts: &Facts<'_>) -> Result<(), Refused> {
    let refuse = |what| Err(Refused::Impossible(what));
    let meta = m.snapshot.as_ref().and_then(|snapshot| snapshot.meta.as_ref());
    let Some((meta, conf)) = meta.and_then(|meta| Some((meta, meta.conf.as_ref()?))) else {
        return refuse("a snapshot without its position or its members");
    };
    if meta.index == 0 || meta.index > NUMBER_MAX || meta.term == 0 || meta.term > m.term {
        return refuse("a snapshot at a position that no log has");
    }
    check_conf(conf).map_err(Refused::Impossible)?;
    if ![&conf.voters, &conf.learners, &conf.voters_outgoing].iter().any(|ids| ids.contains(&facts.id)) {
        return refuse("a snapshot of a cluster that this member is not in");
    }
    Ok(())
}

/// Members that the machine accepts: some voters, nobody both voter and learner, and a change under way that it could
/// have made itself.
pub(super) fn check_conf(conf: &v1::RaftConfState) -> Result<(), &'static str> {
    if conf.voters.is_empty() {
        return Err("no voters");
    }
    for ids in [&conf.voters, &conf.learners, &conf.voters_outgoing, &conf.learners_next] {
        let mut ids = ids.clone();
        let count = ids.len();
        ids.sort_unstable();
        ids.dedup();
        if ids.len() != count || ids.first() == Some(&0) {
            return Err("a member twice, or one with id 0");
        }
    }
    let votes = |id: &u64| conf.voters.contains(id) || conf.voters_outgoing.contains(id);
    if conf.learners.iter().any(votes) {
        return Err("a member that both votes and learns");
    }
    if conf.learners_next.iter().any(|id| !conf.voters_outgoing.contains(id) || conf.voters.contains(id)) {
        return Err("a member that shall learn and did not vote");
    }
    if conf.auto_leave && conf.voters_outgoing.is_empty() {
        return Err("the end of a change that was not begun");
    }
    Ok(())
}

fn is_member(conf: &ConfState, id: u64) -> bool {
    Members::of(conf).contains(id)
}

const KINDS: [(MessageType, Kind); 12] = [
    (MessageType::MsgAppend, Kind::Append),
    (MessageType::MsgAppendResponse, Kind::AppendResponse),
    (MessageType::MsgRequestVote, Kind::Vote),
    (MessageType::MsgRequestVoteResponse, Kind::VoteResponse),
    (MessageType::MsgRequestPreVote, Kind::PreVote),
    (MessageType::MsgRequestPreVoteResponse, Kind::PreVoteResponse),
    (MessageType::MsgSnapshot, Kind::Snapshot),
    (MessageType::MsgHeartbeat, Kind::Heartbeat),
    (MessageType::MsgHeartbeatResponse, Kind::HeartbeatResponse),
    (MessageType::MsgReadIndex, Kind::Read),
    (MessageType::MsgReadIndexResp, Kind::ReadResponse),
    (MessageType::MsgTimeoutNow, Kind::TimeoutNow),
];

fn kind_of(kind: MessageType) -> Option<Kind> {
    KINDS.iter().find(|(theirs, _)| *theirs == kind).map(|(_, ours)| *ours)
}

fn type_of(kind: Kind) -> Option<MessageType> {
    KINDS.iter().find(|(_, ours)| *ours == kind).map(|(theirs, _)| *theirs)
}

pub(super) fn entry_out(entry: &Entry) -> v1::RaftEntry {
    let kind = match entry.get_entry_type() {
        EntryType::EntryNormal => 0,
        EntryType::EntryConfChange => 1,
        EntryType::EntryConfChangeV2 => KIND_CHANGE,
    };
    let (data, context) = (entry.data.to_vec(), entry.context.to_vec());
    v1::RaftEntry { term: entry.term, index: entry.index, kind, data, context }
}

/// Kinds that are not known are refused before, on the wire and at open.
pub(super) fn entry_in(entry: v1::RaftEntry) -> Entry {
    let (data, context) = (entry.data.into(), entry.context.into());
    let mut out = Entry { term: entry.term, index: entry.index, data, context, ..Entry::default() };
    if entry.kind == KIND_CHANGE {
        out.set_entry_type(EntryType::EntryConfChangeV2);
    }
    out
}

pub(super) fn hard_out(hard: &HardState) -> v1::RaftHardState {
    v1::RaftHardState { term: hard.term, vote: hard.vote, commit: hard.commit }
}

pub(super) fn hard_in(hard: &v1::RaftHardState) -> HardState {
    HardState { term: hard.term, vote: hard.vote, commit: hard.commit, ..HardState::default() }
}

pub(super) fn conf_in(conf: &v1::RaftConfState) -> ConfState {
    let mut out = ConfState::default();
    out.voters.clone_from(&conf.voters);
    out.learners.clone_from(&conf.learners);
    out.voters_outgoing.clone_from(&conf.voters_outgoing);
    out.learners_next.clone_from(&conf.learners_next);
    out.auto_leave = conf.auto_leave;
    out
}

pub(super) fn conf_out(conf: &ConfState) -> v1::RaftConfState {
    v1::RaftConfState {
        voters: conf.voters.clone(),
        learners: conf.learners.clone(),
        voters_outgoing: conf.voters_outgoing.clone(),
        learners_next: conf.learners_next.clone(),
        auto_leave: conf.auto_leave,
    }
}

pub(super) fn meta_out(meta: &SnapshotMetadata) -> v1::RaftSnapshotMeta {
    v1::RaftSnapshotMeta { index: meta.index, term: meta.term, conf: Some(conf_out(meta.get_conf_state())) }
}

pub(super) fn snapshot_in(meta: &v1::RaftSnapshotMeta, data: Vec<u8>) -> Snapshot {
    let mut out = Snapshot { data: data.into(), ..Snapshot::default() };
    let theirs = out.mut_metadata();
    theirs.index = meta.index;
    theirs.term = meta.term;
    if let Some(conf) = &meta.conf {
        theirs.set_conf_state(conf_in(conf));
    }
    out
}
