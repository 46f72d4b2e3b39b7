//! Reads of three members that are stepped by hand: what they cost, and that they wait for the state, though not for ever.

#![allow(clippy::unwrap_used, reason = "test helpers")]

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use prost::Message as _;
use proto::v1::{RaftMessage, RaftMessageKind as Kind};

use super::{Memory, Words};
use crate::raft::{Config, Error, Handle, Role, Stepped, Transport};

type Sent = Vec<(u64, Vec<u8>)>;

#[derive(Clone, Default)]
struct Outbox(Arc<Mutex<Sent>>);

impl Transport for Outbox {
    fn send(&mut self, to: u64, message: Vec<u8>) {
        self.0.lock().unwrap().push((to, message));
    }
}

struct Member {
    stepped: Stepped<Words, Memory>,
    handle: Handle,
    outbox: Outbox,
    words: Words,
}

type Asked = Pin<Box<dyn Future<Output = Result<u64, Error>>>>;

struct Three {
    members: BTreeMap<u64, Member>,
    /// Messages of this kind to this member are lost.
    lost: Option<(Kind, u64)>,
    /// Asked of a leader, and rounds that a leader began: heartbeats with a context, to each of the others.
    asked: usize,
    begun: usize,
}

impl Three {
    fn new() -> Self {
        let member = |id: u64| {
            let config = Config { voters: vec![1, 2, 3], ..Config::alone(id, "memory") };
            let (words, outbox) = (Words::default(), Outbox::default());
            let (stepped, handle) = Stepped::open(config, Memory::default(), words.clone(), outbox.clone()).unwrap();
            (id, Member { stepped, handle, outbox, words })
        };
        let mut three = Self { members: (1..=3).map(member).collect(), lost: None, asked: 0, begun: 0 };
        while three.leader().is_none() {
            three.pass(1);
        }
        three.pass(20);
        three
    }

    fn leader(&self) -> Option<u64> {
        let leads = |member: &&Member| member.handle.status().borrow().role == Role::Leader;
        self.members.values().find(leads).map(|member| member.handle.status().borrow().id)
    }

    /// So many ticks, after each of which everything arrives.
    fn pass(&mut self, ticks: u64) {
        for tick in 0..=ticks {
            let mut moved = true;
            let mut due = u64::from(tick > 0);
            while moved {
                moved = false;
                for member in self.members.values_mut() {
                    assert!(member.stepped.round(due).unwrap().is_continue());
                }
                due = 0;
                let sent: Vec<_> =
                    self.members.values().flat_map(|m| std::mem::take(&mut *m.outbox.0.lock().unwrap())).collect();
                for (to, bytes) in sent {
                    moved = true;
                    let message = RaftMessage::decode(&bytes[..]).unwrap();
                    self.asked += usize::from(message.kind() == Kind::Read);
                    self.begun += usize::from(message.kind() == Kind::Heartbeat && !message.context.is_empty());
                    if self.lost != Some((message.kind(), to)) {
                        self.members[&to].handle.step(bytes).unwrap();
                    }
                }
            }
        }
    }

    fn read(&self, id: u64, count: usize) -> Vec<Asked> {
        let handle = &self.members[&id].handle;
        let ask = |_| {
            let handle = handle.clone();
            let mut asked: Asked = Box::pin(async move { handle.read_index().await });
            assert!(look(&mut asked).is_none());
            asked
        };
        (0..count).map(ask).collect()
    }
}

fn look(asked: &mut Asked) -> Option<Result<u64, Error>> {
    match asked.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(answer) => Some(answer),
        Poll::Pending => None,
    }
}

#[test]
fn reads_that_arrive_together_cost_one_round_of_the_quorum() {
    const READS: usize = 1_000;
    let mut three = Three::new();
    let leader = three.leader().unwrap();
    let follower = leader % 3 + 1;
    // (asked where, messages to the leader that it costs)
    for (id, messages) in [(leader, 0), (follower, 1)] {
        (three.asked, three.begun) = (0, 0);
        let mut reads = three.read(id, READS);
        three.pass(0);
        assert!(reads.iter_mut().all(|read| look(read).expect("answered").is_ok()));
        assert_eq!((three.asked, three.begun), (messages, 2), "{READS} reads at {id}, the leader is {leader}");
        // One that comes when the round is over begins another.
        let mut read = three.read(id, 1).remove(0);
        three.pass(0);
        assert!(look(&mut read).unwrap().is_ok());
        assert_eq!((three.asked, three.begun), (2 * messages, 4));
    }
}

#[test]
fn a_read_waits_until_the_state_is_as_new_as_it_has_to_be_and_not_for_ever() {
    let mut three = Three::new();
    let leader = three.leader().unwrap();
    let follower = leader % 3 + 1;
    three.lost = Some((Kind::Append, follower));
    let handle = three.members[&leader].handle.clone();
    let mut written: Asked = Box::pin(async move { Ok(handle.propose(b"new".to_vec()).await?.index) });
    assert!(look(&mut written).is_none());
    three.pass(3);
    let index = look(&mut written).expect("two of three have it").unwrap();

    // Confirmed by the leader at once; what was written is not here yet.
    let mut read = three.read(follower, 1).remove(0);
    three.pass(10);
    assert!(look(&mut read).is_none() && three.members[&follower].words.all().is_empty());
    // Four election timeouts.
    three.pass(80);
    let error = look(&mut read).expect("given up").unwrap_err();
    assert!(matches!(error, Error::Behind { index: needed, applied } if needed >= index && applied < index), "{error}");
    assert!(error.is_retryable() && error.to_string().contains("ask another one"), "{error}");

    let mut read = three.read(follower, 1).remove(0);
    three.pass(3);
    assert!(look(&mut read).is_none());
    three.lost = None;
    three.pass(10);
    assert!(look(&mut read).expect("it caught up").unwrap() >= index);
    assert_eq!(three.members[&follower].words.all(), [(index, b"new".to_vec())]);
}
