//! What a shell can do to the world around it: send, be woken later, count what happened, tell what is wrong. The
//! network and the only clock live here.

use crate::clients::Told;
use crate::dice::Dice;
use crate::params::{Params, SEATS_MAX};
use prost::Message as _;
use proto::app::{HostId, Name};
use proto::v1 as pb;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};

pub(crate) const LATTICE: &str = "sim";
/// Events told when a seed fails.
const TRACE_LEN: usize = 80;

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
    Assign {
        call: u64,
        member: usize,
        assignment: pb::Assignment,
    },
    Assigned {
        call: u64,
        assigned: pb::Assigned,
    },
    AskHello {
        call: u64,
        member: usize,
    },
    AskInventory {
        call: u64,
        member: usize,
    },
    Lease(pb::AskLease),
    AnswerHello {
        call: u64,
        hello: pb::Hello,
    },
    AnswerInventory {
        call: u64,
        beat: pb::Beat,
    },
    Raft {
        from: usize,
        greeting: Option<Box<pb::PeerGreeting>>,
        bytes: Vec<u8>,
    },
    /// Who greeted was removed.
    Out,
    /// `via`: the scheduler that was asked first and passed it on.
    Ask {
        intent: usize,
        via: Option<usize>,
        what: Ask,
    },
    Answer {
        intent: usize,
        told: Told,
    },
}

#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant, reason = "most are writes")]
pub(crate) enum Ask {
    Write(pb::Command),
    Read(Name),
    Remove(u64),
    Transfer,
}

/// Small, as most of what is in the queue: it is moved about in it often.
#[derive(Debug, Clone)]
pub(crate) enum Timer {
    Beat,
    Started {
        key: Box<crate::assignment::Key>,
        wanted: Box<crate::assignment::Wanted>,
        ok: bool,
    },
    /// A lease may have ended.
    LeaseEnd,
    /// Something strict that was stopped is gone.
    Gone(Box<crate::assignment::Key>),
    /// Only when a fault stores late.
    Stored(Box<pb::Assignment>),
    Restart,
    /// Of a scheduler: its process ends.
    Crash,
    Control,
    RaftTick,
    Tend,
    Deadline {
        call: u64,
    },
    Retry {
        intent: usize,
        attempt: u32,
    },
    NextRequest,
    NextFault,
    NextChange,
    Count,
    /// A leader that was waylaid falls.
    Strike(usize),
    Watch(usize),
    Undo(Undo),
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Undo {
    Bus,
    Host(usize),
    Thin(usize),
    /// Of a host that was to be called lost.
    Ambush(usize),
    Member(usize),
    Pair(usize, usize),
    /// Of a scheduler that was not told what others have stored.
    Untold,
    Split,
    FullDisk(usize),
    SlowDisk(usize),
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
    /// Nothing large comes through to a host, as where packets may not have the size that somebody believes in.
    pub(crate) thin: Vec<bool>,
    /// A scheduler reaches clients alone.
    pub(crate) isolated: [bool; SEATS_MAX],
    /// One scheduler does not reach another.
    pub(crate) pairs: BTreeSet<(usize, usize)>,
    /// This scheduler is not told what others have stored.
    pub(crate) untold: Option<usize>,
    pub(crate) split: Option<Split>,
}

/// The bus fell in two, and hosts and schedulers reach those on their own side alone: who is on the smaller one.
pub(crate) struct Split {
    pub(crate) hosts: BTreeSet<usize>,
    pub(crate) members: BTreeSet<usize>,
}

impl Split {
    /// Whether it is on the smaller side; clients are on both.
    fn side(&self, node: Node) -> Option<bool> {
        match node {
            Node::Host(n) => Some(self.hosts.contains(&n)),
            Node::Member(n) => Some(self.members.contains(&n)),
            Node::Client | Node::World => None,
        }
    }
}

impl Net {
    /// Schedulers reach one another, and few messages are lost or late: what they hand over arrives.
    pub(crate) fn is_calm(&self) -> bool {
        let parted = self.split.is_some() || !self.pairs.is_empty() || self.isolated.contains(&true);
        let parted = parted || self.untold.is_some();
        self.loss <= 2 && self.delay_ms <= 500 && !parted
    }

    fn keeps_untold(&self, to: Node, packet: &Packet) -> bool {
        let (Node::Member(to), Packet::Raft { bytes, .. }) = (to, packet) else { return false };
        self.untold == Some(to)
            && pb::RaftMessage::decode(&**bytes).is_ok_and(|m| m.kind() == pb::RaftMessageKind::AppendResponse)
    }

    pub(crate) fn reaches(&self, from: Node, to: Node) -> bool {
        let open = |node, cut: &[bool]| match node {
            Node::Host(n) => self.bus_up && !cut[n],
            _ => true,
        };
        if let (Node::Member(a), Node::Member(b)) = (from, to)
            && self.pairs.contains(&(a, b))
        {
            return false;
        }
        if let Some(split) = &self.split
            && let (Some(a), Some(b)) = (split.side(from), split.side(to))
            && a != b
        {
            return false;
        }
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
    /// Seats of schedulers that are or were taken.
    pub(crate) seats: usize,
    /// Who sits there; 0: nobody.
    pub(crate) ids: [u64; SEATS_MAX],
    /// Whether the process there runs.
    pub(crate) up: [bool; SEATS_MAX],
    /// Until when a scheduler does nothing, or waits for its disk much of the time.
    pub(crate) stalled_until: [u64; SEATS_MAX],
    /// What the calendar of a scheduler says beside the truth, in ms.
    pub(crate) wall_off_ms: [i64; SEATS_MAX],
    /// Whether things may go wrong still.
    pub(crate) faults: bool,
    pub(crate) counts: BTreeMap<&'static str, u64>,
    pub(crate) failure: Option<String>,
    pub(crate) trace: Option<VecDeque<String>>,
    pub(crate) print: bool,
    /// Of everything that was delivered: equal for equal seeds.
    pub(crate) hash: u64,
    pub(crate) delivered: u64,
    host_rates: Vec<u64>,
    seat_rates: [u64; SEATS_MAX],
    queue: BinaryHeap<Reverse<Event>>,
    seq: u64,
}

impl Ctx {
    pub(crate) fn new(params: Params, trace: bool, print: bool) -> Self {
        let net = Net {
            loss: params.loss,
            doubled: params.doubled,
            delay_ms: params.delay_ms,
            bus_up: true,
            cut_out: vec![false; params.hosts],
            cut_in: vec![false; params.hosts],
            thin: vec![false; params.hosts],
            isolated: [false; SEATS_MAX],
            pairs: BTreeSet::new(),
            untold: None,
            split: None,
        };
        let mut dice = Dice::new(params.seed ^ 0x5bd1_e995);
        let skew = params.skew;
        let mut rate = || dice.between(1_000 - skew, 1_000 + skew);
        let host_rates = (0..params.hosts).map(|_| rate()).collect();
        let seat_rates = [(); SEATS_MAX].map(|()| rate());
        Self {
            now: 0,
            dice,
            seats: params.founders,
            ids: [0; SEATS_MAX],
            up: [false; SEATS_MAX],
            stalled_until: [0; SEATS_MAX],
            wall_off_ms: [0; SEATS_MAX],
            params,
            net,
            faults: true,
            counts: BTreeMap::new(),
            failure: None,
            trace: trace.then(VecDeque::new),
            print,
            hash: 0xcbf2_9ce4_8422_2325,
            delivered: 0,
            host_rates,
            seat_rates,
            queue: BinaryHeap::new(),
            seq: 0,
        }
    }

    /// Gives whether it is under way at all, which some transports know.
    pub(crate) fn send(&mut self, from: Node, to: Node, packet: Packet) -> bool {
        let mut sent = false;
        let copies = 1 + u64::from(self.dice.percent(self.net.doubled));
        let too_large = matches!((to, &packet), (Node::Host(n), Packet::Assign { .. }) if self.net.thin[n]);
        if too_large {
            self.count("large message lost");
        }
        let singled_out = too_large || self.net.keeps_untold(to, &packet);
        for _ in 0..copies {
            if singled_out || !self.net.reaches(from, to) || self.dice.percent(self.net.loss) {
                self.count("message lost");
                continue;
            }
            let slow = self.dice.percent(20);
            let delay = 1 + self.dice.below(if slow { self.net.delay_ms } else { self.net.delay_ms.min(30) });
            self.push(delay, to, 0, What::Packet(Box::new(packet.clone())));
            sent = true;
        }
        if copies > 1 {
            self.count("message doubled");
        }
        sent
    }

    /// After so many milliseconds of that node's own clock.
    pub(crate) fn wake(&mut self, node: Node, boot: u64, after_ms: u64, timer: Timer) {
        let rate = match node {
            Node::Host(n) => self.host_rates[n],
            Node::Member(n) => self.seat_rates[n],
            Node::Client | Node::World => 1_000,
        };
        self.push(after_ms * rate / 1_000, node, boot, What::Timer(timer));
    }

    /// What the clock of a scheduler says of a time that passed.
    pub(crate) fn by_clock_of(&self, seat: usize, ms: u64) -> u64 {
        ms * 1_000 / self.seat_rates[seat]
    }

    /// What the clock of a host says.
    pub(crate) fn host_ms(&self, host: usize) -> u64 {
        self.now * 1_000 / self.host_rates[host]
    }

    /// The calendar of a scheduler.
    pub(crate) fn wall_ms(&self, seat: usize) -> u64 {
        (1_700_000_000_000 + self.now).saturating_add_signed(self.wall_off_ms[seat])
    }

    pub(crate) fn seat_of(&self, id: u64) -> Option<usize> {
        self.ids.iter().position(|other| *other == id && id != 0)
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

    pub(crate) fn stalls(&mut self, seat: usize, ms: u64) {
        self.stalled_until[seat] = self.stalled_until[seat].max(self.now + ms);
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
