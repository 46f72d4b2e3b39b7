//! Members that come, are made voters, leave and are replaced, while the network loses messages and machines lose
//! power: there is one history, and in the end all who belong to it have it. The same seed gives the same run.

#![allow(clippy::unwrap_used, reason = "test helpers")]

use std::collections::BTreeSet;

use super::sim::World;
use super::{genesis, settings};
use crate::raft::node::{Node, NotTaken};
use crate::raft::{Change, Members};

/// How often each thing happened, over all seeds.
#[derive(Default, Debug)]
struct Seen {
    joined: u64,
    voters: u64,
    removed: u64,
    replaced: u64,
    handed_over: u64,
    joint: u64,
    half_done: u64,
}

fn run(seed: u64, seen: &mut Seen) -> World {
    let mut world = World::new(seed, 3);
    let mut belonged = BTreeSet::new();
    for time in 0..2400 {
        let loss = if time % 400 < 250 { 8 } else { 0 };
        world.step(time, loss, true);
        shift(&mut world, seen);
        let members = world.leader().map(|leader| leader.members());
        if let Some(members) = members {
            seen.joint += u64::from(members.is_joint());
            // What a leader has applied is committed: who is no longer there was removed.
            for id in world.voters.clone() {
                if members.contains(id) {
                    belonged.insert(id);
                } else if belonged.remove(&id) {
                    world.leave(id);
                    seen.removed += 1;
                }
            }
        }
        let id = world.voters[usize::try_from(world.dice.roll(world.voters.len() as u64)).unwrap()];
        match world.dice.roll(80) {
            0 => world.crash(id),
            1..6 => world.restart(id),
            _ => {}
        }
    }
    world.heal(2400);
    let members = world.leader().unwrap().members();
    assert!(!members.is_joint(), "seed {seed}: a change was not ended: {members:?}");
    world
}

/// Now and then the leader changes who takes part.
fn shift(world: &mut World, seen: &mut Seen) {
    if world.dice.roll(25) > 0 {
        return;
    }
    let what = world.dice.roll(5);
    let pick = world.dice.roll(8);
    let Some(leader) = world.leader() else { return };
    let (me, members) = (leader.id(), leader.members());
    if members.is_joint() {
        seen.half_done += u64::from(leader.propose_change(&[]).is_ok());
        return;
    }
    let others: Vec<u64> = members.voters.iter().copied().filter(|id| *id != me).collect();
    let any = |ids: &[u64]| ids.get(usize::try_from(pick).unwrap() % ids.len().max(1)).copied();
    let done = match (what, any(&others), any(&members.learners)) {
        (0, ..) if members.learners.is_empty() => {
            let id = world.join();
            seen.joined += 1;
            world.leader().unwrap().propose_change(&[Change::Learner(id)])
        }
        (1, _, Some(learner)) if members.voters.len() < 5 => {
            seen.voters += 1;
            leader.propose_change(&[Change::Voter(learner)])
        }
        (2, Some(other), _) if members.voters.len() > 3 => leader.propose_change(&[Change::Remove(other)]),
        (3, Some(other), Some(learner)) => {
            seen.replaced += 1;
            leader.propose_change(&[Change::Remove(other), Change::Voter(learner)])
        }
        (4, Some(other), _) => {
            seen.handed_over += u64::from(leader.transfer(other).is_ok());
            return;
        }
        _ => return,
    };
    assert!(!matches!(done, Err(NotTaken::Impossible(_) | NotTaken::NotVoter(_))), "{done:?}");
}

#[test]
fn members_come_and_go_and_agree() {
    let mut seen = Seen::default();
    for seed in 1..=24 {
        let world = run(seed, &mut seen);
        assert!(world.committed.len() > 400, "seed {seed}: {} entries", world.committed.len());
    }
    eprintln!("{seen:?}");
    let Seen { joined, voters, removed, replaced, handed_over, joint, .. } = seen;
    for (what, count) in [
        ("joined", joined),
        ("made voters", voters),
        ("removed", removed),
        ("replaced", replaced),
        ("handed over", handed_over),
        ("joint", joint),
    ] {
        assert!(count > 10, "{count} {what}: too few to show anything");
    }
}

fn leader_of(voters: &[u64]) -> Node {
    let mut node = Node::new(settings(1, 1, 1), genesis(voters)).unwrap();
    node.campaign().unwrap();
    work(&mut node);
    node
}

fn work(node: &mut Node) {
    while let Some(work) = node.ready().unwrap() {
        let after = |node: &mut Node, entries: Vec<crate::raft::node::Committed>| {
            for entry in entries {
                if entry.change {
                    node.apply_change(&entry).unwrap();
                }
                node.applied(entry.index);
            }
        };
        after(node, work.committed);
        let more = node.advance(work.receipt).unwrap();
        after(node, more.committed);
    }
}

#[test]
fn what_would_leave_nobody_is_refused() {
    let mut node = leader_of(&[1]);
    assert!(matches!(node.propose_change(&[Change::Remove(1)]), Err(NotTaken::Impossible(_))));
    assert_eq!(node.transfer(1), Err(NotTaken::NotVoter(1)));
    assert_eq!(node.transfer(2), Err(NotTaken::NotVoter(2)));
    assert_eq!(node.propose_change(&[]), Err(NotTaken::Changing), "nothing to leave");
}

#[test]
fn one_change_at_a_time_and_a_joint_one_ends_by_itself() {
    let mut node = leader_of(&[1]);
    node.propose_change(&[Change::Learner(2)]).unwrap();
    assert_eq!(node.propose_change(&[Change::Learner(3)]), Err(NotTaken::Changing));
    work(&mut node);
    assert_eq!(node.members(), Members { voters: vec![1], outgoing: vec![], learners: vec![2] });
    // Its own vote no longer makes a quorum: the change is half done until the other one has it.
    node.propose_change(&[Change::Voter(2)]).unwrap();
    work(&mut node);
    assert_eq!(node.members(), Members { voters: vec![1, 2], outgoing: vec![1], learners: vec![] });
    assert!(!node.is_alone());
    assert_eq!(node.propose_change(&[Change::Learner(3)]), Err(NotTaken::Changing));
}
