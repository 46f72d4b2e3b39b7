//! Whether what clients saw of one app could have happened to one copy of it, one request after the other, each at some
//! moment between being sent and being answered (Herlihy and Wing 1990; the search is that of Wing and Gong 1993 with
//! Lowe's memory of where it has been, 2017). Must never look at the log: only at what clients were told.

use std::collections::{BTreeSet, HashSet};

/// The app as a client can know it. Versions are log indices: each is given once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Register {
    Absent,
    /// A version that nobody was told yet: 0.
    Here {
        version: u64,
        deleting: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Write {
    Apply,
    /// Scale or rollback.
    Change,
    Delete,
}

/// What was asked for, and what was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Saw {
    Read(Register),
    /// It took effect and made this version.
    Wrote {
        write: Write,
        if_version: u64,
        version: u64,
    },
    /// Nothing to do: the app is at this version.
    Unchanged {
        version: u64,
    },
    /// Refused, as the app was at another version.
    Moved {
        if_version: u64,
    },
    /// Refused, as there was no such app.
    Missing,
    /// Refused, as it was being deleted.
    Deleting,
    /// No answer: it may have taken effect, now or later, or never.
    Unknown {
        write: Write,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Op {
    pub(crate) begun: u64,
    /// `u64::MAX`: never.
    pub(crate) ended: u64,
    pub(crate) saw: Saw,
}

/// The register, and the newest version that it had: versions only rise, also across an absence.
type State = (Register, u64);

/// Where a search has been at most.
const BEEN_MAX: usize = 200_000;

const BEGIN: State = (Register::Absent, 0);

/// What the register may be after `saw`, if it can have been seen on it.
fn step((now, newest): State, saw: &Saw) -> Vec<State> {
    let unbound = matches!(now, Register::Here { version: 0, .. });
    let is_new = match saw {
        Saw::Wrote { version, .. } => *version == 0 || *version > newest,
        Saw::Unchanged { version } | Saw::Read(Register::Here { version, .. }) if unbound => {
            *version == 0 || *version > newest
        }
        _ => true,
    };
    if !is_new {
        return Vec::new();
    }
    let mut after = step_on(now, saw);
    // An app that is being deleted is gone at some moment, when the last host let go of it.
    if matches!(now, Register::Here { deleting: true, .. }) {
        after.extend(step_on(Register::Absent, saw));
    }
    let newest_of = |register| match register {
        Register::Here { version, .. } => newest.max(version),
        Register::Absent => newest,
    };
    after.into_iter().map(|register| (register, newest_of(register))).collect()
}

fn step_on(now: Register, saw: &Saw) -> Vec<Register> {
    use Register::{Absent, Here};
    let same = |a: u64, b: u64| a == b || a == 0 || b == 0;
    let one = |possible: bool, after: Register| if possible { vec![after] } else { Vec::new() };
    match (saw, now) {
        (Saw::Read(Absent), now) => one(now == Absent, now),
        (Saw::Read(Here { version, deleting }), Here { version: known, deleting: is }) => {
            one(same(*version, known) && *deleting == is, Here { version: *version, deleting: is })
        }
        (Saw::Read(_), Absent) => Vec::new(),
        (Saw::Wrote { write, if_version, version }, Absent) => {
            one(*write == Write::Apply && *if_version == 0, Here { version: *version, deleting: false })
        }
        (Saw::Wrote { write, if_version, version }, Here { version: known, deleting }) => {
            let expected = *if_version == 0 || same(*if_version, known);
            let possible = expected && !(*write == Write::Apply && deleting);
            one(possible, Here { version: *version, deleting: deleting || *write == Write::Delete })
        }
        (Saw::Unchanged { version }, Here { version: known, deleting }) => {
            one(same(*version, known), Here { version: *version, deleting })
        }
        (Saw::Unchanged { .. }, Absent) => Vec::new(),
        (Saw::Moved { if_version }, Here { version, .. }) => one(version == 0 || *if_version != version, now),
        (Saw::Moved { .. }, Absent) => vec![Absent],
        (Saw::Missing, now) => one(now == Absent, now),
        (Saw::Deleting, now) => one(matches!(now, Here { deleting: true, .. }), now),
        (Saw::Unknown { write: Write::Apply }, Absent) => vec![Absent, Here { version: 0, deleting: false }],
        (Saw::Unknown { .. }, Absent) => vec![Absent],
        (Saw::Unknown { write }, Here { deleting, .. }) => {
            vec![now, Here { version: 0, deleting: deleting || *write == Write::Delete }]
        }
    }
}

/// What came of looking for an order.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Found,
    /// None explains what was seen of these.
    None(Vec<Op>),
    /// Too many requests at once that were not answered: it would take too long.
    Undecided,
}

/// Whether there is an order that explains all that was seen.
pub(crate) fn check(ops: Vec<Op>) -> Order {
    match ends(ops, true) {
        Ok(Some(_)) => Order::Found,
        Ok(None) => Order::Undecided,
        Err(part) => Order::None(part),
    }
}

/// What the register may be in the end, or, of `one`, some of it; none when that was not found out in time. When no order
/// explains what was seen: the operations among which none was found.
fn ends(mut ops: Vec<Op>, one: bool) -> Result<Option<BTreeSet<State>>, Vec<Op>> {
    ops.sort_by_key(|op| (op.begun, op.ended));
    let mut possible = BTreeSet::from([BEGIN]);
    let mut from = 0;
    while from < ops.len() {
        // Nothing that begins after a quiet moment can have come before it.
        let mut until = from + 1;
        let mut quiet = ops[from].ended;
        while until < ops.len() && ops[until].begun < quiet {
            quiet = quiet.max(ops[until].ended);
            until += 1;
        }
        let part = &ops[from..until];
        let one = one && until == ops.len();
        let mut search = Search { ops: part, one, been: HashSet::new(), ends: BTreeSet::new() };
        for state in &possible {
            search.go(&mut vec![0; part.len().div_ceil(64)], *state, 0);
        }
        if search.been.len() >= BEEN_MAX && (!one || search.ends.is_empty()) {
            return Ok(None);
        }
        possible = search.ends;
        if possible.is_empty() {
            return Err(part.to_vec());
        }
        from = until;
    }
    Ok(Some(possible))
}

struct Search<'a> {
    ops: &'a [Op],
    /// One end is enough.
    one: bool,
    been: HashSet<(Vec<u64>, State)>,
    ends: BTreeSet<State>,
}

impl Search<'_> {
    fn go(&mut self, done: &mut Vec<u64>, state: State, count: usize) {
        if count == self.ops.len() {
            self.ends.insert(state);
            return;
        }
        let enough = self.one && !self.ends.is_empty();
        if enough || self.been.len() >= BEEN_MAX || !self.been.insert((done.clone(), state)) {
            return;
        }
        let ops = self.ops;
        let is_done = |n: usize| done[n / 64] >> (n % 64) & 1 == 1;
        let open: Vec<usize> = (0..ops.len()).filter(|n| !is_done(*n)).collect();
        // A version that was passed by can not be written any more.
        let passed =
            |n: &usize| matches!(ops[*n].saw, Saw::Wrote { version, .. } if version != 0 && version <= state.1);
        if open.iter().any(passed) {
            return;
        }
        // What begins after another has ended can not come before it.
        let first_end = open.iter().map(|n| ops[*n].ended).min().expect("some are open");
        let mut next: Vec<usize> = open.into_iter().filter(|n| ops[*n].begun < first_end).collect();
        // What changes nothing loses nothing by coming first.
        let idle =
            |n: &usize| !matches!(ops[*n].saw, Saw::Unknown { .. }) && step(state, &ops[*n].saw).contains(&state);
        if let Some(first) = next.iter().copied().find(idle) {
            next = vec![first];
        }
        for n in next {
            for after in step(state, &ops[n].saw) {
                done[n / 64] |= 1 << (n % 64);
                self.go(done, after, count + 1);
                done[n / 64] &= !(1 << (n % 64));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dice::Dice;

    /// Whether there is an order, looked for both ways.
    fn is_fine(ops: Vec<Op>) -> bool {
        let all = ends(ops.clone(), false).is_ok();
        assert_eq!(check(ops) == Order::Found, all);
        all
    }

    /// Every order there is, each looked at as a whole.
    fn brute_force(ops: &[Op]) -> bool {
        fn orders(left: &mut Vec<usize>, order: &mut Vec<usize>, see: &mut dyn FnMut(&[usize]) -> bool) -> bool {
            if left.is_empty() {
                return see(order);
            }
            for at in 0..left.len() {
                let n = left.remove(at);
                order.push(n);
                if orders(left, order, see) {
                    return true;
                }
                order.pop();
                left.insert(at, n);
            }
            false
        }
        let mut explains = |order: &[usize]| {
            let before = |a: usize, b: usize| ops[a].ended <= ops[b].begun;
            let kept = (0..order.len()).all(|i| (i + 1..order.len()).all(|j| !before(order[j], order[i])));
            let mut states = BTreeSet::from([BEGIN]);
            for n in order {
                states = states.into_iter().flat_map(|s| step(s, &ops[*n].saw)).collect();
            }
            kept && !states.is_empty()
        };
        orders(&mut (0..ops.len()).collect(), &mut Vec::new(), &mut explains)
    }

    /// What one true register would tell, each operation at a moment within its time.
    fn truthful(dice: &mut Dice, count: usize, wide: u64) -> Vec<Op> {
        let mut state = BEGIN;
        let mut ops = Vec::new();
        for n in 0..count as u64 {
            let at = 10 + n * 4;
            let (begun, ended) = (at - 1 - dice.below(wide).min(at - 1), at + 1 + dice.below(wide));
            let version = 100 + n;
            let register = state.0;
            let known = match register {
                Register::Here { version, .. } => version,
                Register::Absent => 0,
            };
            let if_version = *dice.pick(&[0, 0, known, 7]);
            let write = *dice.pick(&[Write::Apply, Write::Change, Write::Delete]);
            let wrote = Saw::Wrote { write, if_version, version };
            let wants = match (dice.below(8), register) {
                (0..3, _) => Saw::Read(register),
                (3, _) => Saw::Unknown { write },
                (_, Register::Absent) if write != Write::Apply => Saw::Missing,
                (_, Register::Here { deleting: true, .. }) if write == Write::Apply => Saw::Deleting,
                (_, Register::Here { .. }) if if_version == 7 => Saw::Moved { if_version },
                (_, Register::Absent) if if_version != 0 => Saw::Moved { if_version },
                _ => wrote,
            };
            let after = step(state, &wants);
            state = after[dice.index(after.len())];
            let ended = if matches!(wants, Saw::Unknown { .. }) { u64::MAX } else { ended };
            ops.push(Op { begun, ended, saw: wants });
        }
        ops
    }

    #[test]
    fn what_a_true_register_tells_is_explained() {
        let mut dice = Dice::new(1);
        for _ in 0..2_000 {
            let count = 1 + dice.index(40);
            let ops = truthful(&mut dice, count, 12);
            assert!(is_fine(ops.clone()), "{ops:#?}");
        }
    }

    #[test]
    fn the_search_and_brute_force_agree() {
        let mut dice = Dice::new(2);
        let (mut yes, mut no) = (0, 0);
        for _ in 0..6_000 {
            let count = 2 + dice.index(5);
            let wide = *dice.pick(&[1, 4, 12]);
            let mut ops = truthful(&mut dice, count, wide);
            for _ in 0..dice.below(4) {
                let (a, b) = (dice.index(count), dice.index(count));
                let (one, other) = (ops[a].saw.clone(), ops[b].saw.clone());
                (ops[a].saw, ops[b].saw) = (other, one);
            }
            let (ours, theirs) = (is_fine(ops.clone()), brute_force(&ops));
            assert_eq!(ours, theirs, "{ops:#?}");
            if ours { yes += 1 } else { no += 1 }
        }
        assert!(yes > 500 && no > 500, "{yes} explained, {no} not: too few of one to show anything");
    }

    #[test]
    fn a_stale_read_and_a_lost_write_are_seen() {
        let wrote = |begun, ended, version| {
            let saw = Saw::Wrote { write: Write::Apply, if_version: 0, version };
            Op { begun, ended, saw }
        };
        let read =
            |begun, ended, version| Op { begun, ended, saw: Saw::Read(Register::Here { version, deleting: false }) };
        let first = [wrote(0, 2, 5), wrote(3, 6, 9)];
        assert!(is_fine([&first[..], &[read(4, 5, 5), read(4, 8, 9)]].concat()));
        assert!(!is_fine([&first[..], &[read(7, 8, 5)]].concat()), "older than an acknowledged write");
        assert!(!is_fine([&first[..], &[read(4, 5, 9), read(5, 7, 5)]].concat()), "back in time");
        let none = Op { begun: 7, ended: 8, saw: Saw::Read(Register::Absent) };
        assert!(!is_fine([&first[..], &[none]].concat()), "acknowledged and gone");
    }
}
