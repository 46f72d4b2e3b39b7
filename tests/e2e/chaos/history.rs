//! What clients of one register did and were told, and whether it can have been so. The register is how many replicas an
//! app shall have; each write gives it a value of its own and a revision, so the order that the log gave the writes is
//! known, and only has to agree with real time. Pure.

use std::collections::BTreeMap;
use std::time::Instant;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    /// A value of its own; the revision that it became, if that was said.
    Wrote {
        value: u32,
        revision: Option<u64>,
    },
    Read {
        value: u32,
        revision: u64,
    },
}

/// One operation of one client; clients have one at a time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Op {
    pub(super) client: usize,
    pub(super) begin: Instant,
    pub(super) end: Instant,
    pub(super) what: What,
}

impl Op {
    fn revision(&self) -> Option<u64> {
        match self.what {
            What::Wrote { revision, .. } => revision,
            What::Read { revision, .. } => Some(revision),
        }
    }

    pub(super) fn is_acknowledged_write(&self) -> bool {
        matches!(self.what, What::Wrote { revision: Some(_), .. })
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) acknowledged: u64,
    pub(super) uncertain: u64,
    pub(super) reads: u64,
}

/// Whether one order of all operations explains what the clients saw; `first` and `last` are the register's revisions
/// before and after everything.
pub(super) fn check(ops: &[Op], first: u64, last: u64) -> Result<Counts, String> {
    let counts = one_value_a_revision(ops)?;
    agrees_with_time(ops)?;
    let added = last.saturating_sub(first);
    let most = counts.acknowledged + counts.uncertain;
    if added < counts.acknowledged {
        return Err(format!("{} writes were acknowledged and {added} are there", counts.acknowledged));
    }
    if added > most {
        return Err(format!("{added} writes are there and {most} were asked for: one was applied twice"));
    }
    Ok(counts)
}

/// A revision has one value, a value one revision, and nobody reads what nobody wrote.
fn one_value_a_revision(ops: &[Op]) -> Result<Counts, String> {
    let mut counts = Counts::default();
    let mut values: BTreeMap<u64, u32> = BTreeMap::new();
    let mut revisions: BTreeMap<u32, u64> = BTreeMap::new();
    let mut written: BTreeMap<u32, Instant> = BTreeMap::new();
    for op in ops {
        match op.what {
            What::Wrote { value, revision } => {
                counts.acknowledged += u64::from(revision.is_some());
                counts.uncertain += u64::from(revision.is_none());
                if written.insert(value, op.begin).is_some() {
                    return Err(format!("the test wrote {value} twice"));
                }
            }
            What::Read { .. } => counts.reads += 1,
        }
        let Some(revision) = op.revision() else { continue };
        let (What::Wrote { value, .. } | What::Read { value, .. }) = op.what;
        let known = *values.entry(revision).or_insert(value);
        let at = *revisions.entry(value).or_insert(revision);
        if known != value || at != revision {
            return Err(format!("revision {revision} is {known} and {value}; {value} is at {at} too: {op:?}"));
        }
    }
    for op in ops {
        let What::Read { value, .. } = op.what else { continue };
        // What was there before the first write was written by nobody.
        if let Some(begin) = written.get(&value)
            && *begin > op.end
        {
            return Err(format!("{value} was read before it was written: {op:?}"));
        }
    }
    Ok(counts)
}

/// What began after something else had ended sees at least that.
fn agrees_with_time(ops: &[Op]) -> Result<(), String> {
    let mut begun: Vec<&Op> = ops.iter().filter(|op| op.revision().is_some()).collect();
    let mut ended = begun.clone();
    begun.sort_by_key(|op| op.begin);
    ended.sort_by_key(|op| op.end);
    let mut ended = ended.into_iter().peekable();
    let mut newest: Option<&Op> = None;
    for op in begun {
        while let Some(before) = ended.next_if(|before| before.end < op.begin) {
            if newest.is_none_or(|newest| newest.revision() < before.revision()) {
                newest = Some(before);
            }
        }
        let Some(before) = newest else { continue };
        let is_behind = match op.what {
            What::Wrote { .. } => op.revision() <= before.revision(),
            What::Read { .. } => op.revision() < before.revision(),
        };
        if is_behind {
            return Err(format!("{op:?} does not know of {before:?}, which had ended before it began"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn ops(list: &[(u64, u64, What)]) -> Vec<Op> {
        let zero = Instant::now();
        let at = |ms| zero + Duration::from_millis(ms);
        list.iter().map(|(begin, end, what)| Op { client: 0, begin: at(*begin), end: at(*end), what: *what }).collect()
    }

    fn wrote(value: u32, revision: u64) -> What {
        What::Wrote { value, revision: Some(revision) }
    }

    fn read(value: u32, revision: u64) -> What {
        What::Read { value, revision }
    }

    #[test]
    fn histories_that_can_be_are_let_through() {
        // Two writes at once, in either order; a write without an answer that took effect later.
        let lost = What::Wrote { value: 9, revision: None };
        let list = ops(&[
            (0, 10, wrote(7, 3)),
            (0, 10, wrote(8, 2)),
            (5, 6, read(8, 2)),
            (11, 12, read(7, 3)),
            (0, 20, lost),
            (30, 31, read(9, 4)),
        ]);
        assert_eq!(check(&list, 1, 4), Ok(Counts { acknowledged: 2, uncertain: 1, reads: 3 }));
        assert!(check(&ops(&[(0, 1, lost)]), 1, 1).is_ok(), "or never did");
    }

    #[test]
    fn histories_that_can_not_be_are_found() {
        for (why, list, last) in [
            ("a stale read", vec![(0, 1, wrote(7, 2)), (2, 3, wrote(8, 3)), (4, 5, read(7, 2))], 3),
            ("a lost write", vec![(0, 1, wrote(7, 2)), (2, 3, wrote(8, 2))], 2),
            ("two leaders", vec![(0, 9, wrote(7, 2)), (0, 9, wrote(8, 2))], 3),
            ("an acknowledged one that is nowhere", vec![(0, 1, wrote(7, 2))], 1),
            ("one that is there twice", vec![(0, 1, wrote(7, 2))], 3),
            ("one that is read at two revisions", vec![(0, 1, wrote(7, 2)), (0, 9, read(7, 3))], 3),
            ("reads that go back", vec![(0, 9, wrote(7, 2)), (1, 2, read(7, 2)), (3, 4, read(1, 1))], 2),
            ("a read of what is still to come", vec![(5, 6, wrote(7, 2)), (1, 2, read(7, 2))], 2),
        ] {
            assert!(check(&ops(&list), 1, last).is_err(), "{why}");
        }
    }
}
