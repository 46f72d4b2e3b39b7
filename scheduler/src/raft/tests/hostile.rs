//! Messages that no correct member sends: dropped with a reason, whatever state the machine is in. None may end it.

#![allow(clippy::unwrap_used, reason = "test helpers")]

use prost::Message as _;
use proto::v1::{RaftConfState, RaftEntry, RaftMessage, RaftMessageKind as Kind, RaftSnapshot, RaftSnapshotMeta};

use super::{Dice, genesis, settings};
use crate::raft::Role;
use crate::raft::node::{Node, Refused};

fn follower() -> Node {
    Node::new(settings(1, 1, 1), genesis(&[1, 2, 3])).unwrap()
}

fn leader() -> Node {
    let mut node = follower();
    node.campaign().unwrap();
    drain(&mut node);
    node.step(&message(Kind::PreVoteResponse, 2).encode_to_vec()).unwrap();
    drain(&mut node);
    node.step(&message(Kind::VoteResponse, 2).encode_to_vec()).unwrap();
    drain(&mut node);
    assert_eq!(node.role(), Role::Leader);
    node
}

fn drain(node: &mut Node) {
    let mut applied = None;
    while let Some(work) = node.ready().unwrap() {
        if let Some(installed) = &work.snapshot {
            applied = Some(installed.meta.index);
        }
        applied = work.committed.last().map(|entry| entry.index).or(applied);
        let after = node.advance(work.receipt).unwrap();
        applied = after.committed.last().map(|entry| entry.index).or(applied);
        if let Some(index) = applied {
            node.applied(index);
        }
    }
}

fn message(kind: Kind, from: u64) -> RaftMessage {
    RaftMessage { kind: kind.into(), to: 1, from, term: 2, ..RaftMessage::default() }
}

fn entry(term: u64, index: u64) -> RaftEntry {
    RaftEntry { term, index, data: b"x".to_vec(), ..RaftEntry::default() }
}

fn snapshot(index: u64, term: u64, voters: &[u64]) -> Option<RaftSnapshot> {
    let conf = RaftConfState { voters: voters.to_vec(), ..RaftConfState::default() };
    Some(RaftSnapshot { meta: Some(RaftSnapshotMeta { index, term, conf: Some(conf) }), data: Vec::new() })
}

/// A snapshot with these voters, learners, and voters that shall learn.
fn with(voters: &[u64], learners: &[u64], next: &[u64]) -> Option<RaftSnapshot> {
    let mut snapshot = snapshot(9, 2, voters)?;
    let conf = snapshot.meta.as_mut()?.conf.as_mut()?;
    (conf.learners, conf.learners_next) = (learners.to_vec(), next.to_vec());
    Some(snapshot)
}

#[test]
fn each_impossible_message_is_refused() {
    let append = || RaftMessage { index: 1, log_term: 1, ..message(Kind::Append, 2) };
    let cases: Vec<(&str, RaftMessage)> = vec![
        ("unknown kind", RaftMessage { kind: 99, ..append() }),
        ("no kind", RaftMessage { kind: 0, ..append() }),
        ("to another", RaftMessage { to: 2, ..append() }),
        ("from itself", RaftMessage { from: 1, ..append() }),
        ("answer of a stranger", RaftMessage { from: 9, index: 1, ..message(Kind::AppendResponse, 2) }),
        ("from nobody", RaftMessage { from: 0, ..append() }),
        ("no term", RaftMessage { term: 0, ..append() }),
        ("absurd term", RaftMessage { term: u64::MAX, ..append() }),
        ("position without term", RaftMessage { log_term: 0, index: 50, ..append() }),
        ("gap", RaftMessage { entries: vec![entry(1, 3)], ..append() }),
        ("term of the future", RaftMessage { entries: vec![entry(3, 2)], ..append() }),
        ("falling terms", RaftMessage { entries: vec![entry(2, 2), entry(1, 3)], ..append() }),
        ("old kind of change", RaftMessage { entries: vec![RaftEntry { kind: 1, ..entry(2, 2) }], ..append() }),
        ("no change of members", RaftMessage { entries: vec![RaftEntry { kind: 2, ..entry(2, 2) }], ..append() }),
        ("voter that learns", RaftMessage { snapshot: with(&[1, 2], &[2], &[]), ..message(Kind::Snapshot, 2) }),
        ("learner of nothing", RaftMessage { snapshot: with(&[1, 2], &[], &[3]), ..message(Kind::Snapshot, 2) }),
        ("absurd index", RaftMessage { index: u64::MAX, ..append() }),
        ("commit of what is not here", RaftMessage { commit: 2, ..message(Kind::Heartbeat, 2) }),
        ("heartbeat with entries", RaftMessage { entries: vec![entry(1, 1)], ..message(Kind::Heartbeat, 2) }),
        ("long context", RaftMessage { context: vec![0; 65], ..message(Kind::Heartbeat, 2) }),
        ("odd vote", RaftMessage { context: b"CampaignOften".to_vec(), ..message(Kind::Vote, 2) }),
        ("forced heartbeat", RaftMessage { context: b"CampaignTransfer".to_vec(), ..message(Kind::PreVote, 2) }),
        ("no snapshot", message(Kind::Snapshot, 2)),
        ("snapshot of others", RaftMessage { snapshot: snapshot(9, 2, &[2, 3]), ..message(Kind::Snapshot, 2) }),
        ("snapshot of nobody", RaftMessage { snapshot: snapshot(9, 2, &[]), ..message(Kind::Snapshot, 2) }),
        ("member twice", RaftMessage { snapshot: snapshot(9, 2, &[1, 2, 2]), ..message(Kind::Snapshot, 2) }),
        ("snapshot at no term", RaftMessage { snapshot: snapshot(9, 0, &[1, 2]), ..message(Kind::Snapshot, 2) }),
        ("snapshot at no index", RaftMessage { snapshot: snapshot(0, 1, &[1, 2]), ..message(Kind::Snapshot, 2) }),
        ("read of a follower", RaftMessage { term: 0, entries: vec![entry(0, 0)], ..message(Kind::Read, 2) }),
        ("empty read response", message(Kind::ReadResponse, 2)),
    ];
    for (name, case) in cases {
        let mut node = follower();
        assert!(node.step(&case.encode_to_vec()).is_err(), "{name}");
        assert!(node.ready().unwrap().is_none(), "{name} left a trace");
    }
    assert_eq!(follower().step(b"\xff\xff\xff"), Err(Refused::Garbage));
    let ahead = RaftMessage { index: 99, ..message(Kind::AppendResponse, 2) };
    assert!(leader().step(&ahead.encode_to_vec()).is_err());
}

#[test]
fn no_message_ends_a_member() {
    let mut dice = Dice(42);
    let mut refused = 0;
    for round in 0..400 {
        let mut node = if round % 2 == 0 { follower() } else { leader() };
        for _ in 0..60 {
            let message = random(&mut dice, &node);
            refused += u32::from(node.step(&message.encode_to_vec()).is_err());
            match dice.roll(4) {
                0 => node.tick(),
                1 => {
                    let _ = node.propose(vec![1]);
                }
                _ => {}
            }
            if dice.roll(3) > 0 {
                drain(&mut node);
            }
        }
    }
    assert!(refused > 1000 && refused < 24_000, "{refused} refused: one side goes untested");
}

/// Plausible more often than not, so that it gets past the first checks.
fn random(dice: &mut Dice, node: &Node) -> RaftMessage {
    let near = |dice: &mut Dice, number: u64| (number + dice.roll(5)).saturating_sub(2);
    let number = |dice: &mut Dice, number: u64| match dice.roll(12) {
        0 => dice.roll(u64::MAX),
        1 => 0,
        _ => near(dice, number),
    };
    let kind = i32::try_from(1 + dice.roll(12)).unwrap();
    let reads = kind == i32::from(Kind::Read);
    let term = if reads { 0 } else { node.term() + dice.roll(3) };
    let index = number(dice, node.last_index());
    let log_term = number(dice, node.term()).min(term);
    let entries = match Kind::try_from(kind).unwrap() {
        Kind::Append => (0..dice.roll(4)).map(|n| entry(log_term.max(1), index.wrapping_add(n + 1))).collect(),
        Kind::Read | Kind::ReadResponse => vec![entry(0, 0)],
        _ => Vec::new(),
    };
    let is_snapshot = kind == i32::from(Kind::Snapshot);
    RaftMessage {
        kind,
        to: 1,
        from: 2 + dice.roll(3),
        term,
        log_term,
        index,
        entries,
        commit: number(dice, node.committed()),
        commit_term: number(dice, node.term()),
        snapshot: if is_snapshot { snapshot(number(dice, node.last_index()), log_term, &[1, 2, 3]) } else { None },
        reject: dice.roll(2) == 0,
        reject_hint: number(dice, node.last_index()),
        context: Vec::new(),
    }
}
