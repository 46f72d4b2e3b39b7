//! Those who run the schedulers: they take newcomers in with a token, remove and replace, hand leadership over, one
//! after the other, each time waiting for the answer.

use crate::clients::{Clients, Told, Wish};
use crate::ctx::{Ctx, Node, Timer};
use crate::history::History;
use crate::params::SEATS_MAX;
use crate::seat::Seat;
use proto::v1 as pb;
use proto::v1::command::What;
use scheduler::state::VERSION;

const EVERY_MS: u64 = 700;
const TOKEN_LIFE_MS: u64 = 6 * 24 * 3_600_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doing {
    Introduce,
    Token,
    Join(usize),
    Remove(u64),
    Transfer,
}

#[derive(Default)]
pub(crate) struct Operators {
    waiting: Option<(usize, Doing)>,
    introduced: bool,
    token: bool,
    /// Newcomers that are still to be taken in.
    joiners: usize,
}

impl Operators {
    pub(crate) fn new(ctx: &mut Ctx) -> Self {
        let joiners = ctx.params.joiners;
        if ctx.params.joins() || ctx.params.founders > 1 {
            ctx.wake(Node::World, 0, 1_500, Timer::NextChange);
        }
        Self { joiners, ..Self::default() }
    }

    /// Whether nothing is to be done any more.
    pub(crate) fn idle(&self, history: &History, seats: &[Seat]) -> bool {
        let taken_in = self.joiners == 0 || seats.len() >= SEATS_MAX;
        self.waiting.is_none() && taken_in && broken(history, seats).is_none()
    }

    /// Whether a scheduler is being removed.
    pub(crate) fn removing(&self) -> bool {
        matches!(self.waiting, Some((_, Doing::Remove(_))))
    }

    pub(crate) fn step(&mut self, ctx: &mut Ctx, clients: &mut Clients, history: &mut History, seats: &mut Vec<Seat>) {
        ctx.wake(Node::World, 0, EVERY_MS, Timer::NextChange);
        if let Some((intent, doing)) = self.waiting {
            let Some(told) = clients.told(intent).cloned() else { return };
            self.waiting = None;
            self.told(ctx, history, seats, doing, &told);
            return;
        }
        let Some(doing) = self.next(ctx, history, seats) else { return };
        let wish = match doing {
            Doing::Introduce => {
                let (peer, api, log_id) = ("s0:1".to_owned(), "s0:2".to_owned(), "log-0".to_owned());
                Wish::Write(What::SetMember(pb::SetMember { id: 1, peer, api, log_id, vocabulary: VERSION }))
            }
            Doing::Token => {
                let expires_ms = 1_700_000_000_000 + ctx.now + TOKEN_LIFE_MS;
                Wish::Write(What::IssueToken(pb::IssueToken { hash: hash(), expires_ms }))
            }
            Doing::Join(seat) => Wish::Write(What::AddMember(pb::AddMember {
                token_hash: hash(),
                peer: format!("s{seat}:1"),
                api: format!("s{seat}:2"),
                log_id: format!("log-{seat}"),
                standby: false,
                vocabulary: VERSION,
            })),
            Doing::Remove(id) => Wish::Remove(id),
            Doing::Transfer => Wish::Transfer,
        };
        ctx.note(|| format!("operators: {doing:?}"));
        self.waiting = Some((clients.begin(ctx, wish), doing));
    }

    fn next(&self, ctx: &mut Ctx, history: &History, seats: &[Seat]) -> Option<Doing> {
        let room = seats.len() < SEATS_MAX;
        let members = &history.state.members;
        if ctx.params.joins() {
            if !self.introduced {
                return Some(Doing::Introduce);
            }
            if !self.token {
                return Some(Doing::Token);
            }
            if let Some(id) = broken(history, seats) {
                return Some(Doing::Remove(id));
            }
            if self.joiners > 0 && room {
                return Some(Doing::Join(seats.len()));
            }
        }
        if !ctx.faults {
            return None;
        }
        match ctx.dice.below(100) {
            0..8 if ctx.params.changes && members.len() >= 3 && room => {
                let ids: Vec<u64> = members.keys().copied().collect();
                Some(Doing::Remove(*ctx.dice.pick(&ids)))
            }
            8..14 => Some(Doing::Transfer),
            _ => None,
        }
    }

    fn told(&mut self, ctx: &mut Ctx, history: &mut History, seats: &mut Vec<Seat>, doing: Doing, told: &Told) {
        let done = match told {
            Told::Outcome(outcome) => outcome.error.is_empty(),
            Told::Done => true,
            _ => false,
        };
        ctx.note(|| format!("operators: {doing:?}: {told:?}"));
        if !done {
            return;
        }
        match doing {
            Doing::Introduce => self.introduced = true,
            Doing::Token => self.token = true,
            Doing::Join(number) => {
                self.joiners -= 1;
                let Some(id) = history.state.member_with(&format!("log-{number}")) else { return };
                (ctx.ids[number], ctx.seats) = (id, number + 1);
                seats.push(Seat::new(number, id, Vec::new()));
                seats[number].start(ctx, history);
                ctx.up[number] = seats[number].up();
            }
            Doing::Remove(_) => self.joiners += usize::from(seats.len() < SEATS_MAX),
            Doing::Transfer => {}
        }
    }
}

/// A scheduler that lost its log, and is not removed yet.
fn broken(history: &History, seats: &[Seat]) -> Option<u64> {
    seats.iter().find(|s| s.lost_log && history.state.members.contains_key(&s.id)).map(|s| s.id)
}

fn hash() -> String {
    "ab".repeat(32)
}
