//! Who may speak here, and what the leader does about its members: decided from the state and the log's members alone.
//! Pure. Must never let somebody back in who was removed or lost its log, nor remove the voters that a quorum needs.

use super::pieces::MESSAGE_BYTES_MAX;
use crate::raft::{self, Change, Members};
use crate::state::{Member, State, Wants, lost_log, removed};
use proto::fault::{Fault, built_in};
use proto::v1 as pb;
use std::collections::{BTreeMap, BTreeSet};

/// Voters of one lattice: with more, each write waits for more disks and hardly more losses are borne.
pub const VOTERS_MAX: usize = 7;
/// How long a replacement must have been there and up to date.
pub(super) const STABLE_MS: u64 = 5_000;
/// Entries by which a member may trail and still count as having caught up.
pub const BEHIND_MAX: u64 = 100;

/// Why a greeting is not answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stranger {
    /// It shall end.
    Removed(String),
    Refused(String),
}

/// Who finds itself out goes on for so long, unless one who votes tells it so before. It may have led the change that took
/// it out, and be the only one that knows that the change is through: until the others have heard, they need its vote to
/// elect one of them.
const LINGER_MS: u64 = 30_000;

/// How long a scheduler has found itself out.
#[derive(Debug, Default)]
pub struct Linger {
    since_ms: Option<u64>,
}

impl Linger {
    /// Whether that is long enough. `is_out` at `now_ms`, of any clock that never goes back.
    pub fn is_over(&mut self, is_out: bool, now_ms: u64) -> bool {
        self.since_ms = if is_out { self.since_ms.or(Some(now_ms)) } else { None };
        self.since_ms.is_some_and(|since| now_ms >= since + LINGER_MS)
    }
}

/// Whether scheduler `id` is out for good: not wanted any more, and no part of the log's quorum either. Until then its
/// vote may be needed for its own removal.
pub fn is_out(id: u64, state: &State, members: &Members) -> bool {
    state.was_removed(id) && !members.contains(id) && !built_in(Fault::RemovedComesBack)
}

/// Whether `me` may tell scheduler `id` that it is out, so that it ends at once. One that only learns may not: those who
/// vote may not have heard of the change yet, and need the vote of who ends to elect one of them.
pub fn tells_out(me: u64, id: u64, state: &State, members: &Members) -> bool {
    is_out(id, state, members) && members.is_voter(me)
}

/// Whether a member that greets so may speak to member `me`.
pub fn admit(
    state: &State,
    members: &Members,
    me: u64,
    lattice: &str,
    greeting: &pb::PeerGreeting,
) -> Result<(), Stranger> {
    let refuse = |text: String| Err(Stranger::Refused(text));
    let pb::PeerGreeting { from, to, .. } = *greeting;
    if greeting.lattice != lattice {
        return refuse(format!(
            "scheduler {from} is of lattice {:?}, this one of {lattice:?}; give it --lattice {lattice}",
            greeting.lattice
        ));
    }
    if to != me {
        return refuse(format!(
            "scheduler {to} is looked for at an address where scheduler {me} is; start scheduler {to} with its --peer-advertise"
        ));
    }
    if from == me || from == 0 {
        return refuse(format!("two schedulers say that they are {from}; end the one whose data folder is a copy"));
    }
    if is_out(from, state, members) {
        let who = if tells_out(me, from, state, members) { Stranger::Removed } else { Stranger::Refused };
        return Err(who(removed(from)));
    }
    match state.members.get(&from) {
        Some(member) if member.log_id != greeting.log_id => refuse(lost_log(from)),
        // It may have joined later than what is known here; its certificate says that it is one of us.
        _ => Ok(()),
    }
}

/// What the leader knows.
pub struct Known<'a> {
    pub me: u64,
    pub wanted: &'a BTreeMap<u64, Member>,
    pub members: &'a Members,
    /// Reached, and not far behind.
    pub ready: &'a BTreeSet<u64>,
}

/// The next change of the log's members towards those that are wanted; empty: they are as they should be, or have to
/// wait for somebody to catch up.
pub fn next_change(known: &Known<'_>) -> Vec<Change> {
    let Known { me, wanted, members, ready } = known;
    if members.is_joint() || wanted.is_empty() {
        return Vec::new();
    }
    if let Some((id, _)) = wanted.iter().find(|(id, _)| !members.contains(**id)) {
        return vec![Change::Learner(*id)];
    }
    let mut stay = members.voters.iter().filter(|id| wanted.contains_key(id) || **id == *me).count();
    let mut changes = Vec::new();
    let able = |wants: Wants| {
        let can = |id: &&u64| ready.contains(id) && wanted.get(id).is_some_and(|member| member.wants == wants);
        members.learners.iter().filter(can).copied().collect::<Vec<u64>>()
    };
    for id in able(Wants::Vote) {
        if stay < VOTERS_MAX {
            stay += 1;
            changes.push(Change::Voter(id));
        }
    }
    let mut waiting = able(Wants::Auto);
    waiting.truncate(VOTERS_MAX.saturating_sub(stay));
    // One that leads and was removed goes as soon as another leads.
    let goes = usize::from(members.is_voter(*me) && !wanted.contains_key(me));
    if (stay - goes + waiting.len()).is_multiple_of(2) {
        waiting.pop();
    }
    changes.extend(waiting.into_iter().map(Change::Voter));
    let all = members.voters.iter().chain(&members.learners);
    changes.extend(all.filter(|id| !wanted.contains_key(id) && *id != me).map(|id| Change::Remove(*id)));
    // Several may have been told to go one by one, each while enough were there: nobody votes less while too few are.
    let promoted = changes.iter().filter_map(|change| if let Change::Voter(id) = change { Some(id) } else { None });
    let after: Vec<&u64> =
        members.voters.iter().filter(|id| wanted.contains_key(id) || *id == me).chain(promoted).collect();
    let there = after.iter().filter(|id| ready.contains(id)).count();
    if 2 * there <= after.len() {
        changes.retain(|change| !matches!(change, Change::Remove(id) if members.is_voter(*id)));
    }
    changes
}

/// Of those that are reached, who is not far behind.
pub fn ready(status: &raft::Status, mut reached: BTreeSet<u64>) -> BTreeSet<u64> {
    let behind = |id: &u64| {
        let at = status.progress.iter().find(|(other, _)| other == id).map_or(0, |(_, index)| *index);
        at == 0 || at + BEHIND_MAX < status.committed
    };
    reached.retain(|id| !behind(id));
    reached
}

/// What a leader does about its members now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Due {
    /// They are as they should be, or have to wait for somebody to catch up.
    Nothing,
    /// One without steps ends a joint change that was left half done.
    Change(Vec<Change>),
    /// It was removed: this one shall lead.
    HandOver(u64),
}

/// The leader's next step towards the members that are `wanted`, when it reaches those in `reached`.
pub fn due(status: &raft::Status, wanted: &BTreeMap<u64, Member>, reached: BTreeSet<u64>) -> Due {
    let raft::Status { id: me, members, .. } = status;
    if members.is_joint() {
        // It is left by itself, unless a leader ended in the middle of it.
        return Due::Change(Vec::new());
    }
    let ready = ready(status, reached);
    let can_lead = |id: &u64| *id != *me && wanted.contains_key(id);
    // Where all that vote were removed, one that learns has to be made a voter first.
    let waits_for_heir = abdicates(*me, wanted) && members.voters.iter().any(can_lead);
    if waits_for_heir && let Some(heir) = heir(*me, wanted, members, &ready, &status.progress).filter(can_lead) {
        return Due::HandOver(heir);
    }
    let mut changes = next_change(&Known { me: *me, wanted, members, ready: &ready });
    if waits_for_heir {
        // Until one of them is fit it takes others in, and nobody out.
        changes.retain(|change| !matches!(change, Change::Remove(_)));
    }
    if changes.is_empty() { Due::Nothing } else { Due::Change(changes) }
}

/// Whether a leader has to hand over: it was removed, and whoever leads never takes itself out.
fn abdicates(me: u64, wanted: &BTreeMap<u64, Member>) -> bool {
    !wanted.is_empty() && !wanted.contains_key(&me) && !built_in(Fault::RemovedLeads)
}

/// How long each member has been as it is, as the leader sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Since {
    /// Milliseconds without a connection; 0: there is one.
    pub(super) silent_ms: u64,
    /// Milliseconds for which it was reached and had caught up, without a break.
    pub(super) stable_ms: u64,
}

/// The member that is given up: one that was not reached for `after_ms`, the longest gone first. A voter only while a member
/// that waits to vote was there and up to date for `STABLE_MS`, to take its place, and while most of the voters that would be
/// left are there. One that only learns costs no quorum, but a place, and what its version can not apply nobody may ask
/// for. The last other one stays: with it would go the only second copy there may be.
pub(super) fn replaceable(known: &Known<'_>, since: &BTreeMap<u64, Since>, after_ms: u64) -> Option<u64> {
    let Known { me, wanted, members, ready } = known;
    // Who was removed already makes its place free first.
    let leaving = |id: &u64| !wanted.contains_key(id);
    if after_ms == 0 || members.is_joint() || members.voters.iter().chain(&members.learners).any(leaving) {
        return None;
    }
    let of = |id: &u64| since.get(id).copied().unwrap_or(Since { silent_ms: 0, stable_ms: 0 });
    let gone = |ids: &[u64]| {
        let gone = ids.iter().copied().filter(|id| id != me && of(id).silent_ms >= after_ms);
        gone.max_by_key(|id| of(id).silent_ms)
    };
    let waits = |id: &u64| {
        let stands_by = wanted.get(id).is_some_and(|member| member.wants == Wants::Auto);
        stands_by && ready.contains(id) && of(id).stable_ms >= STABLE_MS
    };
    let replaced = gone(&members.voters).filter(|_| members.learners.iter().any(waits));
    let replaced = replaced.filter(|id| check_removal(*id, wanted, members, ready).is_ok());
    replaced.or_else(|| gone(&members.learners).filter(|_| wanted.len() > 2))
}

/// Whether scheduler `id` can be removed without the others losing their quorum. `reached` includes the leader.
pub fn check_removal(
    id: u64,
    wanted: &BTreeMap<u64, Member>,
    members: &Members,
    reached: &BTreeSet<u64>,
) -> Result<(), String> {
    if wanted.contains_key(&id) && wanted.len() == 1 {
        return Err(format!("scheduler {id} is the last one, and a lattice needs one; add another before"));
    }
    if !members.is_voter(id) {
        return Ok(());
    }
    let left: Vec<u64> = members.voters.iter().copied().filter(|other| *other != id).collect();
    if left.is_empty() {
        let heir = members.learners.first().map_or_else(
            || "add another before".to_owned(),
            |heir| format!("make another one vote before: `lattice schedulers promote {heir}`"),
        );
        return Err(format!("scheduler {id} is the only one that votes; {heir}"));
    }
    let silent: Vec<String> = left.iter().filter(|id| !reached.contains(id)).map(u64::to_string).collect();
    let needed = left.len() / 2 + 1;
    if left.len() - silent.len() < needed && !built_in(Fault::QuorumRemoved) {
        let silent = silent.join(", ");
        return Err(format!(
            "without scheduler {id}, {needed} of {} voters would have to agree, and not reached: {silent}; start or remove \
             those first",
            left.len()
        ));
    }
    Ok(())
}

/// How a scheduler is, and what to do about it. `lost`: why it is not reached. `too_large`: bytes of the state that it needs,
/// if those are more than can be sent.
pub(super) fn state(
    id: u64,
    wanted: &BTreeMap<u64, Member>,
    members: &Members,
    lost: Option<String>,
    behind: bool,
    too_large: Option<usize>,
) -> (&'static str, String) {
    let Some(member) = wanted.get(&id) else {
        // A scheduler alone, without a peer listener, tells nobody who it is.
        let alone = wanted.is_empty() && members.is_voter(id);
        return if alone { ("ready", String::new()) } else { ("leaving", "it was removed".into()) };
    };
    if let Some(why) = lost {
        return ("unreachable", format!("{why}; start it again, or remove it: `lattice schedulers remove {id}`"));
    }
    if !members.contains(id) {
        return ("joining", String::new());
    }
    if behind {
        let message = match too_large {
            None => "it catches up".to_owned(),
            Some(bytes) => format!(
                "it needs all of the state, which has {bytes} bytes, and {MESSAGE_BYTES_MAX} are the most that can be sent: \
                 delete apps that nobody needs; a minute later it is sent again"
            ),
        };
        return ("behind", message);
    }
    if members.is_voter(id) {
        return ("ready", String::new());
    }
    match member.wants {
        Wants::Standby => ("standby", format!("it does not vote until told to: `lattice schedulers promote {id}`")),
        Wants::Auto if members.voters.len() % 2 == 1 => {
            ("standby", "it votes once there is another: an even number of voters bears no more losses".into())
        }
        Wants::Auto | Wants::Vote => ("joining", "it becomes a voter".into()),
    }
}

/// The voter that leadership goes to: one that is ready and stays, and has most of the log. One that was removed would hand
/// over in turn, to who hands over to it.
pub fn heir(
    me: u64,
    wanted: &BTreeMap<u64, Member>,
    members: &Members,
    ready: &BTreeSet<u64>,
    progress: &[(u64, u64)],
) -> Option<u64> {
    let has = |id: u64| progress.iter().find(|(other, _)| *other == id).map_or(0, |(_, index)| *index);
    let voters = members.voters.iter().copied().filter(|id| *id != me && ready.contains(id));
    voters.max_by_key(|id| (wanted.contains_key(id), has(*id), std::cmp::Reverse(*id)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(ids: &[(u64, Wants)]) -> BTreeMap<u64, Member> {
        let member = |id: u64, wants| Member {
            peer: format!("m:{id}"),
            api: String::new(),
            log_id: format!("log-{id}"),
            wants,
            vocabulary: 1,
        };
        ids.iter().map(|(id, wants)| (*id, member(*id, *wants))).collect()
    }

    fn auto(ids: &[u64]) -> BTreeMap<u64, Member> {
        wanted(&ids.iter().map(|id| (*id, Wants::Auto)).collect::<Vec<_>>())
    }

    fn members(voters: &[u64], learners: &[u64]) -> Members {
        Members { voters: voters.to_vec(), outgoing: Vec::new(), learners: learners.to_vec() }
    }

    fn next(wanted: &BTreeMap<u64, Member>, members: &Members, ready: &[u64]) -> Vec<Change> {
        let ready = ready.iter().copied().collect();
        next_change(&Known { me: 1, wanted, members, ready: &ready })
    }

    #[test]
    fn who_joins_learns_first_and_two_become_voters_together() {
        let all = auto(&[1, 2, 3]);
        assert_eq!(next(&all, &members(&[1], &[]), &[1]), [Change::Learner(2)]);
        assert_eq!(next(&all, &members(&[1], &[2]), &[1, 2]), [Change::Learner(3)]);
        assert_eq!(next(&all, &members(&[1], &[2, 3]), &[1, 2]), [], "two voters bear no loss");
        assert_eq!(next(&all, &members(&[1], &[2, 3]), &[1, 2, 3]), [Change::Voter(2), Change::Voter(3)]);
        assert_eq!(next(&all, &members(&[1, 2, 3], &[]), &[1, 2, 3]), []);
    }

    #[test]
    fn a_removed_one_is_replaced_in_one_change() {
        let left = auto(&[1, 2, 4]);
        let now = members(&[1, 2, 3], &[4]);
        assert_eq!(next(&left, &now, &[1, 2, 4]), [Change::Voter(4), Change::Remove(3)]);
        assert_eq!(next(&left, &now, &[1, 2]), [Change::Remove(3)], "who does not catch up is not waited for");
        assert_eq!(next(&left, &members(&[1, 2], &[4]), &[1, 2, 4]), [Change::Voter(4)]);
    }

    #[test]
    fn who_is_gone_for_long_is_replaced_by_one_that_stands_by() {
        let all = auto(&[1, 2, 3, 4]);
        let now = members(&[1, 2, 3], &[4]);
        let gone = |silent_ms| Since { silent_ms, stable_ms: 0 };
        let there = Since { silent_ms: 0, stable_ms: STABLE_MS };
        let after = 60_000;
        let look = |members: &Members, ready: &[u64], since: &[(u64, Since)]| {
            let (ready, since) = (ready.iter().copied().collect(), since.iter().copied().collect());
            replaceable(&Known { me: 1, wanted: &all, members, ready: &ready }, &since, after)
        };
        assert_eq!(look(&now, &[1, 2, 4], &[(3, gone(after)), (4, there)]), Some(3));
        assert_eq!(look(&now, &[1, 2, 4], &[(3, gone(after - 1)), (4, there)]), None, "not long enough");
        assert_eq!(look(&now, &[1, 2], &[(3, gone(after)), (4, there)]), None, "nobody is ready");
        let young = Since { silent_ms: 0, stable_ms: STABLE_MS - 1 };
        assert_eq!(look(&now, &[1, 2, 4], &[(3, gone(after)), (4, young)]), None, "not stable yet");
        // With one more gone there would be no quorum, so nobody is removed.
        let two_gone = [(2, gone(after)), (3, gone(after + 1)), (4, there)];
        assert_eq!(look(&now, &[1, 4], &two_gone), None);
        let five = members(&[1, 2, 3, 5, 6], &[4]);
        let all_six = auto(&[1, 2, 3, 4, 5, 6]);
        let since = two_gone.into();
        let ready = [1, 4, 5, 6].into();
        let known = Known { me: 1, wanted: &all_six, members: &five, ready: &ready };
        assert_eq!(replaceable(&known, &since, after), Some(3), "the longest gone first");
        assert_eq!(replaceable(&known, &since, 0), None, "told never to");
        let joint = Members { outgoing: vec![1, 2, 3], ..now.clone() };
        assert_eq!(look(&joint, &[1, 2, 4], &[(3, gone(after)), (4, there)]), None);
        // One that shall only learn takes nobody's place.
        let standby = wanted(&[(1, Wants::Vote), (2, Wants::Auto), (3, Wants::Auto), (4, Wants::Standby)]);
        let (ready, since) = ([1, 2, 4].into(), [(3, gone(after)), (4, there)].into());
        let known = Known { me: 1, wanted: &standby, members: &now, ready: &ready };
        assert_eq!(replaceable(&known, &since, after), None);
    }

    #[test]
    fn who_only_learns_and_is_gone_for_long_gives_its_place_up() {
        let all =
            wanted(&[(1, Wants::Vote), (2, Wants::Auto), (3, Wants::Auto), (4, Wants::Auto), (5, Wants::Standby)]);
        let now = members(&[1, 2, 3], &[4, 5]);
        let gone = |silent_ms| Since { silent_ms, stable_ms: 0 };
        let there = Since { silent_ms: 0, stable_ms: STABLE_MS };
        let after = 60_000;
        let look = |wanted: &BTreeMap<u64, Member>, members: &Members, ready: &[u64], since: &[(u64, Since)], after| {
            let (ready, since) = (ready.iter().copied().collect(), since.iter().copied().collect());
            replaceable(&Known { me: 1, wanted, members, ready: &ready }, &since, after)
        };
        assert_eq!(look(&all, &now, &[1, 2, 3, 4], &[(4, there), (5, gone(after))], after), Some(5), "a standby");
        assert_eq!(look(&all, &now, &[1, 2, 3, 5], &[(4, gone(after)), (5, there)], after), Some(4), "one that waits");
        let both = [(4, gone(after)), (5, gone(after + 1))];
        assert_eq!(look(&all, &now, &[1, 2, 3], &both, after), Some(5), "the longest gone first");
        assert_eq!(look(&all, &now, &[1, 2, 3], &both, 0), None, "told never to");
        assert_eq!(look(&all, &now, &[1, 2, 3], &[(4, gone(after - 1)), (5, there)], after), None, "not long enough");
        // It is reached, and behind: it may be fetching a large state.
        assert_eq!(look(&all, &now, &[1, 2, 3], &[(4, gone(0)), (5, there)], after), None);
        let voter_too = [(3, gone(after)), (4, there), (5, gone(after + 1))];
        assert_eq!(look(&all, &now, &[1, 2, 4], &voter_too, after), Some(3), "a voter costs more");
        let nobody_waits = [(3, gone(after)), (4, gone(after)), (5, there)];
        assert_eq!(look(&all, &now, &[1, 2, 5], &nobody_waits, after), Some(4), "the voter stays");
        // The removal before is under way still.
        let mut fewer = all.clone();
        fewer.remove(&5);
        assert_eq!(look(&fewer, &now, &[1, 2, 3], &both, after), None);
        let two = auto(&[1, 2]);
        assert_eq!(look(&two, &members(&[1], &[2]), &[1], &[(2, gone(after))], after), None, "the only other one");
    }

    #[test]
    fn the_number_of_voters_stays_odd_unless_told_otherwise() {
        let four = auto(&[1, 2, 3, 4]);
        assert_eq!(next(&four, &members(&[1, 2, 3], &[4]), &[1, 2, 3, 4]), []);
        let told = wanted(&[(1, Wants::Vote), (2, Wants::Vote)]);
        assert_eq!(next(&told, &members(&[1], &[2]), &[1, 2]), [Change::Voter(2)]);
        let standby = wanted(&[(1, Wants::Vote), (2, Wants::Auto), (3, Wants::Standby)]);
        assert_eq!(next(&standby, &members(&[1], &[2, 3]), &[1, 2, 3]), []);
        let nine = auto(&[1, 2, 3, 4, 5, 6, 7, 8, 9]);
        assert_eq!(next(&nine, &members(&[1, 2, 3, 4, 5, 6, 7], &[8, 9]), &[8, 9]), []);
    }

    #[test]
    fn a_change_under_way_is_waited_for_and_the_leader_never_removes_itself() {
        let joint = Members { outgoing: vec![1], ..members(&[1, 2], &[]) };
        assert_eq!(next(&auto(&[1, 2, 3]), &joint, &[1, 2]), []);
        assert_eq!(next(&auto(&[2, 3]), &members(&[1, 2, 3], &[]), &[1, 2, 3]), []);
        assert_eq!(next(&auto(&[]), &members(&[1], &[]), &[1]), []);
    }

    #[test]
    fn what_would_lose_the_quorum_is_not_removed() {
        let three = auto(&[1, 2, 3]);
        let reached = |ids: &[u64]| ids.iter().copied().collect::<BTreeSet<u64>>();
        let check = |id, voters: &[u64], learners: &[u64], up: &[u64]| {
            check_removal(id, &three, &members(voters, learners), &reached(up))
        };
        assert_eq!(check(3, &[1, 2, 3], &[], &[1, 2]), Ok(()), "the dead one");
        let error = check(2, &[1, 2, 3], &[], &[1, 2]).unwrap_err();
        assert!(error.contains("not reached: 3") && error.contains("first"), "{error}");
        let error = check(1, &[1], &[2, 3], &[1, 2, 3]).unwrap_err();
        assert!(error.contains("lattice schedulers promote 2"), "{error}");
        assert_eq!(check(2, &[1], &[2, 3], &[1]), Ok(()), "a learner");
        let error = check_removal(1, &auto(&[1]), &members(&[1], &[]), &reached(&[1])).unwrap_err();
        assert!(error.contains("the last one"), "{error}");
    }

    #[test]
    fn each_state_says_the_next_step() {
        let all = wanted(&[(1, Wants::Vote), (2, Wants::Auto), (3, Wants::Standby), (4, Wants::Vote)]);
        let now = members(&[1, 9], &[2, 3]);
        let at = |id, lost: Option<&str>, behind| state(id, &all, &now, lost.map(str::to_owned), behind, None);
        assert_eq!(at(1, None, false).0, "ready");
        assert_eq!(at(1, None, true), ("behind", "it catches up".to_owned()));
        let (state_name, message) = state(1, &all, &now, None, true, Some(1_073_741_900));
        assert!(
            state_name == "behind" && message.contains("1073741900 bytes") && message.contains("delete"),
            "{message}"
        );
        assert_eq!(state(1, &all, &now, None, false, Some(1_073_741_900)).0, "ready", "it was");
        let (state_name, message) = at(1, Some("refused"), true);
        assert!(state_name == "unreachable" && message.contains("lattice schedulers remove 1"), "{message}");
        assert_eq!(at(2, None, false).0, "joining");
        assert_eq!(state(2, &all, &members(&[1], &[2]), None, false, None).0, "standby");
        assert!(at(3, None, false).1.contains("promote 3"));
        assert_eq!((at(4, None, false).0, at(9, None, false).0), ("joining", "leaving"));
        assert_eq!(state(1, &auto(&[]), &members(&[1], &[]), None, false, None).0, "ready");
    }

    #[test]
    fn the_heir_is_reached_and_stays_and_has_most() {
        let ready = [1, 2, 3, 4].into();
        let progress = [(1, 50), (2, 40), (3, 50), (4, 60)];
        let heir = |wanted: &[u64], members: &Members, ready: &BTreeSet<u64>| {
            super::heir(1, &auto(wanted), members, ready, &progress)
        };
        assert_eq!(heir(&[1, 2, 3, 4], &members(&[1, 2, 3], &[4]), &ready), Some(3));
        assert_eq!(heir(&[1, 2, 3], &members(&[1, 2, 3], &[]), &[1, 2].into()), Some(2));
        assert_eq!(heir(&[1, 2], &members(&[1], &[2]), &ready), None);
        assert_eq!(heir(&[1, 2], &members(&[1, 2, 3], &[]), &ready), Some(2));
        // Better than none, while this one is about to end.
        assert_eq!(heir(&[1, 2], &members(&[1, 2, 3], &[]), &[1, 3].into()), Some(3));
    }

    #[test]
    fn a_leader_that_was_removed_hands_over_to_one_that_was_not() {
        let status = |members: Members| raft::Status {
            id: 1,
            leader: Some(1),
            term: 1,
            role: raft::Role::Leader,
            governs: true,
            applied: 50,
            committed: 50,
            log_bytes: 0,
            snapshot: 0,
            syncs: 0,
            refused: 0,
            members,
            progress: vec![(1, 50), (2, 50), (3, 50), (4, 50)],
        };
        let at = |wanted: &[u64], members: Members, reached: &[u64]| {
            due(&status(members), &auto(wanted), reached.iter().copied().collect())
        };
        let three = || members(&[1, 2, 3], &[]);
        assert_eq!(at(&[3], three(), &[1, 2, 3]), Due::HandOver(3));
        assert_eq!(at(&[3], three(), &[1, 2]), Due::Nothing);
        // Meanwhile others are taken in.
        assert_eq!(at(&[3, 5], three(), &[1, 2]), Due::Change(vec![Change::Learner(5)]));
        // The quorum would be 1 and 3, who is not there.
        assert_eq!(at(&[1, 3], three(), &[1, 2]), Due::Nothing);
        assert_eq!(at(&[1], members(&[1, 2], &[3]), &[1]), Due::Change(vec![Change::Remove(2), Change::Remove(3)]));
        assert_eq!(at(&[1, 2, 3], three(), &[1, 2, 3]), Due::Nothing);
        assert_eq!(at(&[1, 3], three(), &[1, 2, 3]), Due::Change(vec![Change::Remove(2)]));
        // Nobody who stays votes yet.
        let learns = members(&[1, 2], &[4]);
        assert_eq!(at(&[4], learns.clone(), &[1, 2, 4]), Due::Change(vec![Change::Voter(4), Change::Remove(2)]));
        assert_eq!(at(&[4], members(&[1, 4], &[]), &[1, 4]), Due::HandOver(4));
        assert_eq!(at(&[3], Members { outgoing: vec![1, 3], ..three() }, &[1, 2, 3]), Due::Change(Vec::new()));
    }

    #[test]
    fn strangers_are_told_why() {
        let mut state = State::default();
        (state.members, state.next_member) = (auto(&[1, 2]), 4);
        let greeting = |from, to, log_id: &str| pb::PeerGreeting {
            lattice: "plant".into(),
            from,
            to,
            log_id: log_id.into(),
            peer: String::new(),
        };
        let at = |state: &State, greeting: &pb::PeerGreeting| admit(state, &members(&[1], &[]), 1, "plant", greeting);
        assert_eq!(at(&state, &greeting(2, 1, "log-2")), Ok(()));
        assert_eq!(at(&state, &greeting(9, 1, "log-9")), Ok(()), "it joined later than what is known here");
        let refused = |stranger| match stranger {
            Err(Stranger::Refused(text)) => text,
            other => panic!("{other:?}"),
        };
        assert!(refused(at(&state, &greeting(2, 1, "log-7"))).contains("lattice schedulers remove 2"));
        assert!(refused(at(&state, &greeting(2, 3, "log-2"))).contains("--peer-advertise"));
        assert!(refused(at(&state, &greeting(1, 1, "log-1"))).contains("copy"));
        let other = pb::PeerGreeting { lattice: "home".into(), ..greeting(2, 1, "log-2") };
        assert!(refused(at(&state, &other)).contains("--lattice plant"));
        assert!(
            matches!(at(&state, &greeting(3, 1, "log-3")), Err(Stranger::Removed(text)) if text.contains("--join"))
        );
        state.members.remove(&2);
        assert!(matches!(at(&state, &greeting(2, 1, "log-2")), Err(Stranger::Removed(_))));
        // One that only learns does not make it end: those who vote may not have heard of the change.
        let learns = admit(&state, &members(&[3], &[1]), 1, "plant", &greeting(2, 1, "log-2"));
        assert_eq!(refused(learns), removed(2));
        assert!(tells_out(1, 2, &state, &members(&[1], &[])) && !tells_out(1, 2, &state, &members(&[3], &[1])));
        let mut linger = Linger::default();
        assert!(
            !linger.is_over(true, 5) && !linger.is_over(true, 4 + LINGER_MS) && linger.is_over(true, 5 + LINGER_MS)
        );
        assert!(!linger.is_over(false, 6 + LINGER_MS) && !linger.is_over(true, 7 + LINGER_MS));
        // One of two voters: it has to agree to its own removal.
        let two = Members { outgoing: vec![1, 2], ..members(&[1], &[]) };
        assert_eq!(admit(&state, &two, 1, "plant", &greeting(2, 1, "log-2")), Ok(()));
    }
}
