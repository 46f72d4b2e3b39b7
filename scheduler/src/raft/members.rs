//! Who takes part in the log, and how that may change. Pure. Must never let a change through that the consensus machine
//! would panic on.

use proto::v1::{RaftChange, RaftChangeOne};
use raft::eraftpb::{ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState};
use raft::{Changer, ProgressTracker};

/// Members one change may name.
const CHANGES_MAX: usize = 16;

/// Those who take part. Each list is in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    pub voters: Vec<u64>,
    /// Voters of the configuration that is being left: while there are any, both sets must agree.
    pub outgoing: Vec<u64>,
    /// Those who get the log and do not vote, or will not once the change is through.
    pub learners: Vec<u64>,
}

/// One step of a change. All steps of a change take effect together, through a joint configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Learner(u64),
    Voter(u64),
    Remove(u64),
}

impl Members {
    pub fn contains(&self, id: u64) -> bool {
        [&self.voters, &self.outgoing, &self.learners].iter().any(|list| list.contains(&id))
    }

    pub fn is_voter(&self, id: u64) -> bool {
        self.voters.contains(&id)
    }

    /// Whether a change is half done.
    pub fn is_joint(&self) -> bool {
        !self.outgoing.is_empty()
    }

    pub(super) fn of(conf: &ConfState) -> Self {
        let sorted = |ids: &mut dyn Iterator<Item = u64>| {
            let mut ids: Vec<u64> = ids.collect();
            ids.sort_unstable();
            ids.dedup();
            ids
        };
        Self {
            voters: sorted(&mut conf.voters.iter().copied()),
            outgoing: sorted(&mut conf.voters_outgoing.iter().copied()),
            learners: sorted(&mut conf.learners.iter().chain(&conf.learners_next).copied()),
        }
    }
}

/// The change as the library wants it. A learner alone is added at once; all else goes through a joint configuration.
pub(super) fn change(changes: &[Change]) -> ConfChangeV2 {
    let mut out = ConfChangeV2::default();
    if !matches!(changes, [] | [Change::Learner(_)]) {
        out.set_transition(ConfChangeTransition::Implicit);
    }
    let single = |change: &Change| {
        let (kind, id) = match *change {
            Change::Voter(id) => (ConfChangeType::AddNode, id),
            Change::Remove(id) => (ConfChangeType::RemoveNode, id),
            Change::Learner(id) => (ConfChangeType::AddLearnerNode, id),
        };
        one(kind, id)
    };
    out.set_changes(changes.iter().map(single).collect::<Vec<_>>().into());
    out
}

/// Reads the data of an entry. The library's own decoder never sees bytes of another member.
pub(super) fn decode(data: &[u8]) -> Result<ConfChangeV2, &'static str> {
    let change: RaftChange = prost::Message::decode(data).map_err(|_| "a change of members that does not decode")?;
    let mut out = ConfChangeV2::default();
    match change.transition {
        0 => {}
        1 => out.set_transition(ConfChangeTransition::Implicit),
        _ => return Err("a change of members of an unknown kind"),
    }
    if change.changes.len() > CHANGES_MAX || !change.context.is_empty() {
        return Err("a change of too many members, or one with a context");
    }
    if change.transition == 0 && change.changes.len() > 1 {
        return Err("a change of several members that is not joint");
    }
    let single = |change: &RaftChangeOne| {
        let kind = match change.what {
            0 => ConfChangeType::AddNode,
            1 => ConfChangeType::RemoveNode,
            2 => ConfChangeType::AddLearnerNode,
            _ => return Err("a change of members of an unknown kind"),
        };
        if change.member == 0 { Err("a change of member 0") } else { Ok(one(kind, change.member)) }
    };
    let singles: Result<Vec<_>, _> = change.changes.iter().map(single).collect();
    out.set_changes(singles?.into());
    Ok(out)
}

/// Whether the machine would take this change.
pub(super) fn rehearse(tracker: &ProgressTracker, change: &ConfChangeV2) -> Result<(), String> {
    let mut changer = Changer::new(tracker);
    let done = if change.leave_joint() {
        changer.leave_joint()
    } else if let Some(leave_by_itself) = change.enter_joint() {
        changer.enter_joint(leave_by_itself, &change.changes)
    } else {
        changer.simple(&change.changes)
    };
    done.map(drop).map_err(|error| error.to_string())
}

fn one(kind: ConfChangeType, id: u64) -> ConfChangeSingle {
    let mut single = ConfChangeSingle::default();
    single.set_change_type(kind);
    single.node_id = id;
    single
}

#[cfg(test)]
mod tests {
    use super::*;
    use protobuf::Message as _;

    #[test]
    fn our_reading_of_a_change_is_that_of_the_library() {
        for changes in [
            vec![],
            vec![Change::Learner(4)],
            vec![Change::Voter(4)],
            vec![Change::Voter(4), Change::Voter(5), Change::Remove(2)],
        ] {
            let ours = change(&changes);
            let bytes = ours.write_to_bytes().unwrap();
            assert_eq!(decode(&bytes), Ok(ours), "{changes:?}");
        }
    }

    #[test]
    fn what_the_machine_can_not_take_is_refused() {
        use prost::Message as _;
        let one = |what, member| RaftChangeOne { what, member };
        let change = |transition, changes| RaftChange { transition, changes, context: Vec::new() }.encode_to_vec();
        assert!(decode(b"\xff\xff").is_err());
        assert!(decode(&change(2, vec![one(0, 1)])).is_err());
        assert!(decode(&change(1, vec![one(3, 1)])).is_err());
        assert!(decode(&change(1, vec![one(0, 0)])).is_err());
        assert!(decode(&change(0, vec![one(0, 1), one(0, 2)])).is_err());
        assert!(decode(&change(1, vec![one(0, 1); 17])).is_err());
        assert!(decode(&change(0, Vec::new())).is_ok());
    }
}
