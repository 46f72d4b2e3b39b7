//! What a shell can do to the world around it: send, be woken later, count what happened, tell what is wrong. The
//! network and the only clock live here.

use crate::dice::Dice;
use proto::app::HostId;
use proto::v1 as pb;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

pub(crate) const LATTICE: &str = "sim";
/// Events told when a seed fails.
const TRACE_LEN: usize = 60;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Node {
    Host(usize),
    Member(usize),
    Client,
    /// What happens to all: faults, and their end.
    World,
}

#[derive(Debug, Clone)]
pub(crate) enum Packet {
    Hello(pb::Hello),
    Beat(pb::Beat),
    Assign { call: u64, member: usize, assignment: pb::Assignment },
    Assigned { call: u64, assigned: pb::Assigned },
    AskHello { call: u64, member: usize },
    AskInventory { call: u64, member: usize },
    AnswerHello { call: u64, hello: pb::Hello },
    AnswerInventory { call: u64, beat: pb::Beat },
    Raft { from: usize, bytes: Vec<u8> },
    Request { intent: usize, command: pb::Command },
    Response { intent: usize, outcome: Option<pb::Outcome> },
}

#[derive(Debug, Clone)]
pub(crate) enum Timer {
    Beat,
    Started {
        key: host::assignment::Key,
        wanted: host::assignment::Wanted,
        ok: bool,
    },
    /// Only when a mutation stores late.
    Stored(pb::Assignment),
    Restart,
    Control,
    RaftTick,
    Flush,
    Deadline {
        call: u64,
    },
    Retry {
        intent: usize,
        attempt: u32,
    },
    NextRequest,
    NextFault,
    Undo(Undo),
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Undo {
    Bus,
    Host(usize),
    Member(usize),
}

#[derive(Debug, Clone)]
pub(crate) enum What {
    Packet(Box<Packet>),
    Timer(Timer),
}

pub(crate) struct Event {
    pub(crate) at: u64,
    seq: u64,
    pub(crate) node: Node,
    /// Start of the process it is for; 0: whichever lives.
    pub(crate) boot: u64,
    pub(crate) what: What,
}

impl PartialEq for Event {
    fn eq(&self, other: &Self) -> bool {
        self.seq == other.seq
    }
}
impl Eq for Event {}
impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Event {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.seq).cmp(&(other.at, other.seq))
    }
}

/// A fault built into a shell on purpose: the simulation must find it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mutation {
    /// A host takes assignments that are older than its own.
    HostTakesOlder,
    /// A host confirms before it has stored.
    ConfirmBeforeStore,
    /// The leader sends a host what it sent first, under the newest generation.
    OldContent,
    /// A client that retries does so under another request id.
    NewIdOnRetry,
    /// A scheduler that crashes loses the entry it wrote last.
    LosesLastEntry,
    /// A snapshot leaves out what was answered.
    SnapshotForgetsAnswers,
    /// A host does not stop what it shall not run any more.
    KeepsStrays,
    /// A leader sends each host its assignment once, whether it arrives or not.
    SendsOnce,
    /// A host takes what is older when a newer term says it.
    HostTrustsTerm,
    /// The boot ids of a host sort backwards, as those of a clock that was set back.
    BootsGoBack,
    /// A member of three forgets its vote and its last entries in a crash.
    ForgetsVote,
}

/// What this seed is like.
#[derive(Debug, Clone)]
pub(crate) struct Params {
    pub(crate) seed: u64,
    pub(crate) hosts: usize,
    pub(crate) members: usize,
    pub(crate) apps: usize,
    pub(crate) loss: u64,
    pub(crate) doubled: u64,
    pub(crate) delay_ms: u64,
    pub(crate) faults_ms: u64,
    pub(crate) fault_every_ms: u64,
    pub(crate) request_every_ms: u64,
    pub(crate) snapshot_entries: u64,
    pub(crate) forget_ms: u64,
    pub(crate) start_ms: u64,
    pub(crate) start_fails: u64,
    pub(crate) bad_revisions: u64,
    pub(crate) store_crashes: u64,
    pub(crate) dispatch_crashes: u64,
}

impl Params {
    pub(crate) fn draw(seed: u64, members: Option<usize>) -> Self {
        let mut dice = Dice::new(seed);
        let d = &mut dice;
        let drawn = if d.percent(35) { 3 } else { 1 };
        Self {
            seed,
            hosts: 3 + d.index(6),
            members: members.unwrap_or(drawn),
            apps: 1 + d.index(4),
            loss: *d.pick(&[0, 0, 2, 10, 30]),
            doubled: *d.pick(&[0, 0, 10, 50]),
            delay_ms: *d.pick(&[5, 50, 500, 3_000]),
            faults_ms: d.between(40, 150) * 1_000,
            fault_every_ms: *d.pick(&[1_000, 4_000, 12_000]),
            request_every_ms: *d.pick(&[300, 1_500, 6_000]),
            snapshot_entries: *d.pick(&[5, 30, 200]),
            forget_ms: *d.pick(&[20_000, 24 * 3600 * 1000]),
            start_ms: *d.pick(&[50, 1_000, 8_000]),
            start_fails: *d.pick(&[0, 5, 30]),
            bad_revisions: *d.pick(&[0, 5, 25]),
            store_crashes: *d.pick(&[0, 2, 8]),
            dispatch_crashes: *d.pick(&[0, 3, 10]),
        }
    }
}

/// Who reaches whom, and how badly.
pub(crate) struct Net {
    pub(crate) loss: u64,
    pub(crate) doubled: u64,
    pub(crate) delay_ms: u64,
    pub(crate) bus_up: bool,
    /// From a host to the bus.
    pub(crate) cut_out: Vec<bool>,
    /// From the bus to a host.
    pub(crate) cut_in: Vec<bool>,
    /// A member reaches clients alone.
    pub(crate) isolated: Vec<bool>,
}

impl Net {
    fn reaches(&self, from: Node, to: Node) -> bool {
        let open = |node, cut: &[bool]| match node {
            Node::Host(n) => self.bus_up && !cut[n],
            _ => true,
        };
        let isolated = |node| matches!(node, Node::Member(m) if self.isolated[m]);
        let client = from == Node::Client || to == Node::Client;
        open(from, &self.cut_out) && open(to, &self.cut_in) && (client || !isolated(from) && !isolated(to))
    }
}

pub(crate) struct Ctx {
    pub(crate) now: u64,
    pub(crate) dice: Dice,
    pub(crate) params: Params,
    pub(crate) net: Net,
    pub(crate) mutation: Option<Mutation>,
    /// Whether things may go wrong still.
    pub(crate) faults: bool,
    pub(crate) counts: BTreeMap<&'static str, u64>,
    pub(crate) failure: Option<String>,
    pub(crate) trace: Option<VecDeque<String>>,
    pub(crate) print: bool,
    /// Of everything that was delivered: equal for equal seeds.
    pub(crate) hash: u64,
    pub(crate) delivered: u64,
    queue: BinaryHeap<Reverse<Event>>,
    seq: u64,
}

impl Ctx {
    pub(crate) fn new(params: Params, mutation: Option<Mutation>, trace: bool, print: bool) -> Self {
        let net = Net {
            loss: params.loss,
            doubled: params.doubled,
            delay_ms: params.delay_ms,
            bus_up: true,
            cut_out: vec![false; params.hosts],
            cut_in: vec![false; params.hosts],
            isolated: vec![false; params.members],
        };
        Self {
            now: 0,
            dice: Dice::new(params.seed ^ 0x5bd1_e995),
            params,
            net,
            mutation,
            faults: true,
            counts: BTreeMap::new(),
            failure: None,
            trace: trace.then(VecDeque::new),
            print,
            hash: 0xcbf2_9ce4_8422_2325,
            delivered: 0,
            queue: BinaryHeap::new(),
            seq: 0,
        }
    }

    /// Gives whether it is under way at all, which some transports know.
    pub(crate) fn send(&mut self, from: Node, to: Node, packet: Packet) -> bool {
        let mut sent = false;
        let copies = 1 + u64::from(self.dice.percent(self.net.doubled));
        for _ in 0..copies {
            if !self.net.reaches(from, to) || self.dice.percent(self.net.loss) {
                self.count("message lost");
                continue;
            }
            let slow = self.dice.percent(20);
            let delay = 1 + self.dice.below(if slow { self.net.delay_ms } else { self.net.delay_ms.min(30) });
            self.push(delay, to, 0, What::Packet(Box::new(packet.clone())));
            sent = true;
        }
        sent
    }

    pub(crate) fn wake(&mut self, node: Node, boot: u64, after_ms: u64, timer: Timer) {
        self.push(after_ms, node, boot, What::Timer(timer));
    }

    /// The same event again, later: who it is for does nothing now.
    pub(crate) fn postpone(&mut self, event: Event, until: u64) {
        self.push(until - self.now, event.node, event.boot, event.what);
    }

    fn push(&mut self, after_ms: u64, node: Node, boot: u64, what: What) {
        self.seq += 1;
        self.queue.push(Reverse(Event { at: self.now + after_ms, seq: self.seq, node, boot, what }));
    }

    /// A number that rises with each event: what is sent later has a higher one.
    pub(crate) fn mark(&self) -> u64 {
        self.seq
    }

    /// What `member` told the other members since `mark` never left it.
    pub(crate) fn unsend(&mut self, member: usize, mark: u64) {
        let gone = |event: &Event| {
            event.seq > mark
                && matches!(&event.what, What::Packet(p) if matches!(**p, Packet::Raft { from, .. } if from == member))
        };
        self.queue.retain(|event| !gone(&event.0));
    }

    /// The next event that is due by `until`; the clock goes there.
    pub(crate) fn pop(&mut self, until: u64) -> Option<Event> {
        if self.queue.peek().is_none_or(|e| e.0.at > until) {
            self.now = until;
            return None;
        }
        let event = self.queue.pop()?.0;
        self.now = event.at;
        self.delivered += 1;
        for number in [event.at, event.seq] {
            self.hash = (self.hash ^ number).wrapping_mul(0x100_0000_01b3);
        }
        Some(event)
    }

    pub(crate) fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    pub(crate) fn note(&mut self, text: impl FnOnce() -> String) {
        let Some(trace) = &mut self.trace else { return };
        let line = format!("{:>7}.{:03} {}", self.now / 1_000, self.now % 1_000, text());
        if self.print {
            println!("{line}");
        }
        if trace.len() == TRACE_LEN {
            trace.pop_front();
        }
        trace.push_back(line);
    }

    /// The first thing that is wrong ends the run.
    pub(crate) fn fail(&mut self, what: impl Into<String>) {
        if self.failure.is_none() {
            let what = what.into();
            self.note(|| format!("WRONG: {what}"));
            self.failure = Some(what);
        }
    }
}

pub(crate) fn host_id(number: usize) -> HostId {
    let id = ulid::Ulid::from(number as u128 + 1).to_string();
    id.parse().expect("a ULID is a host id")
}

/// The number behind `host_id`.
pub(crate) fn host_number(id: &HostId) -> usize {
    let id = ulid::Ulid::from_string(id.as_str()).expect("host ids are ULIDs");
    usize::try_from(u128::from(id)).expect("ids were small") - 1
}
