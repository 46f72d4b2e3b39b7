//! Members on memory disks and a lossy network, all from one seed: they elect, replicate, crash, come back, catch up by
//! entries or by snapshot, and agree. The same seed gives the same trace.

#![allow(clippy::unwrap_used, reason = "test helpers")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;

use super::{Dice, Memory, Words, settings};
use crate::raft::StateMachine as _;
use crate::raft::node::{Node, Outgoing};
use crate::raft::storage::{Begin, Store};
use crate::raft::{Change, Role};

const LOG_BYTES_MAX: u64 = 3000;

struct Member {
    node: Node,
    store: Store<Memory>,
    words: Words,
    applied: u64,
    taken_over: u64,
}

impl Member {
    fn open(disk: &Memory, id: u64, voters: &[u64], seed: u64) -> Self {
        let mut words = Words::default();
        let begin = Begin { voters, log_id: "log", may_begin: true, at: (1, 1) };
        let (store, opened) = Store::open(disk.clone(), Path::new("memory"), id, &begin, || words.snapshot()).unwrap();
        let applied = opened.start.snapshot.index;
        words.restore(applied, &opened.state).unwrap();
        let node = Node::new(settings(id, seed, opened.boots), opened.start).unwrap();
        Self { node, store, words, applied, taken_over: 0 }
    }

    /// As the loop of `drive` does it.
    fn work(&mut self, out: &mut Vec<Outgoing>, acknowledged: &mut BTreeMap<u64, (u64, Vec<u8>)>) {
        while let Some(work) = self.node.ready().unwrap() {
            out.extend(work.messages);
            self.apply(work.committed, acknowledged);
            self.store.write(work.snapshot.as_ref(), &work.entries, work.hard, work.must_sync).unwrap();
            if let Some(installed) = work.snapshot {
                self.words.restore(installed.meta.index, &installed.data).unwrap();
                self.applied = installed.meta.index;
                self.taken_over += 1;
            }
            out.extend(work.messages_after);
            let after = self.node.advance(work.receipt).unwrap();
            out.extend(after.messages);
            self.apply(after.committed, acknowledged);
            self.node.applied(self.applied);
        }
        if self.node.snapshot_wanted() {
            if self.node.snapshot_is_strange() {
                self.store_snapshot();
            }
            let (meta, state) = self.store.load_snapshot().unwrap();
            self.node.offer_snapshot(&meta, state);
        }
        if self.node.log_bytes() > LOG_BYTES_MAX && self.applied > self.node.snapshot_index() {
            self.store_snapshot();
        }
        self.store.sweep(10).unwrap();
    }

    fn store_snapshot(&mut self) {
        let meta = self.node.snapshot_meta(self.applied).unwrap();
        let start = self.node.truncation(&meta, LOG_BYTES_MAX / 8);
        self.store.store_snapshot(&meta, &self.words.snapshot(), start).unwrap();
        self.node.truncate(&meta, start);
    }

    fn apply(&mut self, entries: Vec<crate::raft::node::Committed>, acknowledged: &mut BTreeMap<u64, (u64, Vec<u8>)>) {
        for entry in entries {
            assert_eq!(entry.index, self.applied + 1);
            self.applied = entry.index;
            if entry.change {
                self.store.commit(entry.index).unwrap();
                self.node.apply_change(&entry).unwrap();
            } else if !entry.data.is_empty() {
                self.words.apply(entry.index, &entry.data);
            }
            // A change of members is none of the state machine's words.
            let data = if entry.change { Vec::new() } else { entry.data.to_vec() };
            let known = acknowledged.entry(entry.index).or_insert_with(|| (entry.term, data.clone()));
            assert_eq!((known.0, &known.1), (entry.term, &data), "two histories at {}", entry.index);
        }
    }
}

pub(super) struct World {
    pub(super) dice: Dice,
    seed: u64,
    /// Everyone there ever was.
    pub(super) voters: Vec<u64>,
    disks: BTreeMap<u64, Memory>,
    gone: BTreeSet<u64>,
    /// None: down.
    members: BTreeMap<u64, Option<Member>>,
    wire: VecDeque<(u64, Outgoing)>,
    /// A message is under way for less than so many ticks.
    late: u64,
    /// Log index -> what was committed there, by anyone's word.
    pub(super) committed: BTreeMap<u64, (u64, Vec<u8>)>,
    leaders: BTreeMap<u64, u64>,
    trace: u64,
    pub(super) taken_over: u64,
    crashes: u64,
}

impl World {
    pub(super) fn new(seed: u64, count: u64) -> Self {
        let voters: Vec<u64> = (1..=count).collect();
        let disks: BTreeMap<u64, Memory> = voters.iter().map(|id| (*id, Memory::default())).collect();
        let members = voters.iter().map(|id| (*id, Some(Member::open(&disks[id], *id, &voters, seed)))).collect();
        Self {
            dice: Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            seed,
            voters,
            disks,
            gone: BTreeSet::new(),
            members,
            wire: VecDeque::new(),
            late: 3,
            committed: BTreeMap::new(),
            leaders: BTreeMap::new(),
            trace: 0xcbf2_9ce4_8422_2325,
            taken_over: 0,
            crashes: 0,
        }
    }

    /// One tick of everybody, with faults of `loss` percent.
    pub(super) fn step(&mut self, time: u64, loss: u64, proposing: bool) {
        for id in self.voters.clone() {
            if let Some(member) = self.members.get_mut(&id).unwrap() {
                member.node.tick();
            }
            self.settle(id, time);
        }
        if proposing {
            for id in self.voters.clone() {
                let Some(member) = self.members.get_mut(&id).unwrap() else { continue };
                for number in 0..self.dice.roll(4) {
                    let _ = member.node.propose(format!("{id} at {time} says {number}").into_bytes());
                }
                self.settle(id, time);
            }
        }
        let mut late = VecDeque::new();
        while let Some((due, message)) = self.wire.pop_front() {
            if due > time {
                late.push_back((due, message));
                continue;
            }
            if self.dice.roll(100) < loss {
                continue;
            }
            self.note(time, &message);
            let to = message.to;
            if let Some(member) = self.members.get_mut(&to).unwrap() {
                let _ = member.node.step(&message.bytes);
            }
            if loss > 0 && self.dice.roll(50) == 0 {
                late.push_back((time + 1 + self.dice.roll(20), message));
            }
            self.settle(to, time);
        }
        self.wire = late;
        self.note_leaders();
    }

    fn settle(&mut self, id: u64, time: u64) {
        let Some(member) = self.members.get_mut(&id).unwrap() else { return };
        let mut out = Vec::new();
        let before = member.taken_over;
        member.work(&mut out, &mut self.committed);
        self.taken_over += member.taken_over - before;
        for message in out {
            let due = time + self.dice.roll(self.late);
            self.wire.push_back((due, message));
        }
    }

    /// A member that knows nobody yet, on a disk of its own.
    pub(super) fn join(&mut self) -> u64 {
        let id = self.voters.iter().max().unwrap() + 1;
        self.voters.push(id);
        self.disks.insert(id, Memory::default());
        self.members.insert(id, Some(Member::open(&self.disks[&id], id, &[], self.seed)));
        id
    }

    /// A member that was removed: its process ends and never comes back.
    pub(super) fn leave(&mut self, id: u64) {
        self.crash(id);
        self.gone.insert(id);
    }

    /// The machine of whoever leads.
    pub(super) fn leader(&mut self) -> Option<&mut Node> {
        let leads = |member: &&mut Member| member.node.role() == Role::Leader;
        self.members.values_mut().flatten().filter(leads).map(|member| &mut member.node).max_by_key(|node| node.term())
    }

    pub(super) fn crash(&mut self, id: u64) {
        if let Some(member) = self.members.get_mut(&id).unwrap().take() {
            drop(member);
            let unsynced = self.disks[&id].unsynced() as u64;
            let keep = self.dice.roll(unsynced + 1);
            self.disks[&id].cut(usize::try_from(keep).unwrap());
            self.crashes += 1;
        }
    }

    pub(super) fn restart(&mut self, id: u64) {
        let slot = self.members.get_mut(&id).unwrap();
        if slot.is_none() && !self.gone.contains(&id) {
            *slot = Some(Member::open(&self.disks[&id], id, &self.voters, self.seed));
        }
    }

    fn note(&mut self, time: u64, message: &Outgoing) {
        for byte in time.to_be_bytes().iter().chain(&message.to.to_be_bytes()).chain(&message.bytes) {
            self.trace = (self.trace ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        }
    }

    fn note_leaders(&mut self) {
        for (id, member) in &self.members {
            let Some(member) = member else { continue };
            if member.node.role() == Role::Leader {
                let known = *self.leaders.entry(member.node.term()).or_insert(*id);
                assert_eq!(known, *id, "seed {}: two leaders in term {}", self.seed, member.node.term());
            }
        }
    }

    /// No more faults: all must end with the same state, which holds everything that was ever committed.
    pub(super) fn heal(&mut self, from: u64) {
        for id in self.voters.clone() {
            self.restart(id);
        }
        for time in from..from + 1500 {
            self.step(time, 0, false);
        }
        let leading = self.members.values().flatten().filter(|member| member.node.role() == Role::Leader).count();
        assert_eq!(leading, 1, "seed {}: one leader", self.seed);
        let expected: Vec<(u64, Vec<u8>)> = self
            .committed
            .iter()
            .filter(|(_, (_, data))| !data.is_empty())
            .map(|(index, (_, data))| (*index, data.clone()))
            .collect();
        // Who was to be taken in and was not knows nothing.
        let members = self.leader().unwrap().members();
        for member in self.members.values().flatten().filter(|member| members.contains(member.node.id())) {
            assert!(member.words.all() == expected, "seed {}: member {} differs", self.seed, member.node.id());
        }
    }
}

fn run(seed: u64) -> World {
    let mut world = World::new(seed, 3);
    for time in 0..1200 {
        let loss = if time % 400 < 250 { 10 } else { 0 };
        world.step(time, loss, true);
        let id = 1 + world.dice.roll(3);
        match world.dice.roll(60) {
            0 => world.crash(id),
            1..4 => world.restart(id),
            _ => {}
        }
    }
    world.heal(1200);
    world
}

#[test]
fn three_members_elect_one_leader_and_agree() {
    let mut world = World::new(7, 3);
    for time in 0..400 {
        world.step(time, 5, true);
    }
    world.heal(400);
    assert!(world.committed.len() > 100, "{} entries", world.committed.len());
}

#[test]
fn members_agree_through_crashes_and_snapshots() {
    let (mut taken_over, mut crashes) = (0, 0);
    for seed in 1..=12 {
        let world = run(seed);
        assert!(world.committed.len() > 200, "seed {seed}: {} entries", world.committed.len());
        taken_over += world.taken_over;
        crashes += world.crashes;
    }
    assert!(taken_over > 5 && crashes > 50, "{taken_over} snapshots, {crashes} crashes: too few to show anything");
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    assert_eq!(run(3).trace, run(3).trace);
    assert_ne!(run(3).trace, run(4).trace);
}

#[test]
fn one_election_is_enough_when_a_leader_dies() {
    for count in [2, 3, 5, 7] {
        for seed in 1..=40 {
            let mut world = World::new(seed, count);
            world.late = 1;
            let mut time = 0;
            let mut until = |world: &mut World, what: &dyn Fn(&mut World) -> bool| {
                let begun = time;
                while !what(world) {
                    world.step(time, 0, true);
                    time += 1;
                    assert!(time < begun + 20, "{count} members, seed {seed}: nobody leads");
                }
            };
            until(&mut world, &|world| world.leader().is_some());
            let (id, term) = world.leader().map(|node| (node.id(), node.term())).unwrap();
            // It dies at any time between two heartbeats.
            for _ in 0..=seed {
                until(&mut world, &|world| world.dice.roll(2) == 0);
            }
            world.crash(id);
            // One of two can not go on alone: it must not try to, either.
            if count == 2 {
                (0..100).for_each(|time| world.step(1_000 + time, 0, true));
                assert!(world.leader().is_none());
                continue;
            }
            until(&mut world, &|world| world.leader().is_some());
            let next = world.leader().unwrap();
            assert_eq!(next.term(), term + 1, "{count} members, seed {seed}: votes were split");
        }
    }
}

#[test]
fn who_only_learns_knows_no_leader_that_is_silent() {
    let mut world = World::new(5, 1);
    let id = world.join();
    let known = |world: &World| world.members[&id].as_ref().unwrap().node.leader();
    for time in 0..40 {
        if let Some(leader) = world.leader().filter(|node| !node.members().contains(id)) {
            let _ = leader.propose_change(&[Change::Learner(id)]);
        }
        world.step(time, 0, false);
    }
    assert_eq!(known(&world), Some(1));
    world.crash(1);
    (40..80).for_each(|time| world.step(time, 0, false));
    assert_eq!(known(&world), None);
    world.restart(1);
    (80..120).for_each(|time| world.step(time, 0, false));
    assert_eq!(known(&world), Some(1));
}

#[test]
fn a_follower_reads_what_the_leader_confirmed() {
    let mut world = World::new(11, 3);
    let mut time = 0;
    while !world.members.values().flatten().any(|member| member.node.role() == Role::Leader && member.applied > 1) {
        world.step(time, 0, false);
        time += 1;
        assert!(time < 500);
    }
    for _ in 0..20 {
        world.step(time, 0, true);
        time += 1;
    }
    let highest = *world.committed.keys().last().unwrap();
    let follower = world.members.values_mut().flatten().find(|member| member.node.role() == Role::Follower).unwrap();
    let round = follower.node.read_index().unwrap();
    let id = follower.node.id();
    for _ in 0..20 {
        let member = world.members.get_mut(&id).unwrap().as_mut().unwrap();
        if let Some(work) = member.node.ready().unwrap() {
            if let Some(read) = work.reads.first() {
                assert_eq!(read.round, round);
                assert!(read.index >= highest);
                return;
            }
            // Hand it back as `work` would, having looked at the reads.
            let mut out = work.messages;
            member.store.write(None, &work.entries, work.hard, work.must_sync).unwrap();
            out.extend(work.messages_after);
            member.apply(work.committed, &mut world.committed);
            let after = member.node.advance(work.receipt).unwrap();
            member.apply(after.committed, &mut world.committed);
            member.node.applied(member.applied);
            world.wire.extend(out.into_iter().chain(after.messages).map(|message| (time, message)));
        }
        // Everyone else lives on; the follower is looked at before it works.
        let held = world.members.insert(id, None).unwrap();
        let to_held: Vec<Outgoing> = world.wire.iter().map(|(_, m)| m.clone()).filter(|m| m.to == id).collect();
        world.wire.retain(|(_, message)| message.to != id);
        world.step(time, 0, false);
        time += 1;
        world.members.insert(id, held);
        let member = world.members.get_mut(&id).unwrap().as_mut().unwrap();
        for message in to_held {
            let _ = member.node.step(&message.bytes);
        }
    }
    panic!("the read was not confirmed");
}
