//! The schedulers as the log knows them: ids that are given once, addresses, join tokens. Pure. Must never give an id
//! again: a member that lost its log may have voted under it.

use super::State;
use super::apply::{Done, Result, refuse};
use proto::fault::{Fault, built_in};
use proto::v1 as pb;

/// Schedulers of one lattice: seven voters, and two that stand by.
pub const MEMBERS_MAX: usize = 9;
/// Join tokens that are good at a time.
pub const TOKENS_MAX: usize = 100;
/// The longest life of a join token.
pub const TOKEN_LIFE_MS_MAX: u64 = 7 * 24 * 3_600_000;
/// Bytes of an address, of the name of a log.
const TEXT_BYTES_MAX: usize = 260;
/// A SHA-256 in hex.
const HASH_BYTES: usize = 64;

/// One scheduler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// host:port where the others reach it.
    pub peer: String,
    /// Where its API answers.
    pub api: String,
    /// The log it joined with. Who comes under its id with another one has lost that.
    pub log_id: String,
    pub wants: Wants,
    /// The newest version of commands that it can apply.
    pub vocabulary: u32,
}

/// Whether a scheduler shall vote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wants {
    /// When that makes the number of voters odd: an even one bears no more losses than one voter less.
    Auto,
    Vote,
    Standby,
}

impl Member {
    pub(super) fn record(&self, id: u64) -> pb::MemberRecord {
        let wants = match self.wants {
            Wants::Auto => 0,
            Wants::Vote => 1,
            Wants::Standby => 2,
        };
        let Self { peer, api, log_id, vocabulary, .. } = self.clone();
        pb::MemberRecord { id, peer, api, log_id, wants, vocabulary }
    }

    pub(super) fn from_record(record: pb::MemberRecord) -> std::result::Result<(u64, Self), String> {
        let pb::MemberRecord { id, peer, api, log_id, wants, vocabulary } = record;
        let wants = match wants {
            0 => Wants::Auto,
            1 => Wants::Vote,
            2 => Wants::Standby,
            other => return Err(format!("scheduler {id} wants {other}, which this build does not know")),
        };
        Ok((id, Self { peer, api, log_id, wants, vocabulary: vocabulary.max(1) }))
    }
}

impl State {
    /// Whether `id` belonged to a scheduler that was removed, as far as is known here. One that joined later than what
    /// is known here is not taken for such.
    pub fn was_removed(&self, id: u64) -> bool {
        id < self.next_member && !self.members.contains_key(&id)
    }

    /// The scheduler that joined with this log.
    pub fn member_with(&self, log_id: &str) -> Option<u64> {
        self.members.iter().find(|(_, member)| member.log_id == log_id).map(|(id, _)| *id)
    }

    /// Whether the token whose secret has this hash is good.
    pub fn check_token(&self, hash: &str, now_ms: u64) -> std::result::Result<(), &'static str> {
        match self.tokens.get(hash) {
            Some(expires_ms) if *expires_ms > now_ms => Ok(()),
            Some(_) => Err("the join token has expired; make one with `lattice schedulers token`"),
            None => Err("the join token is not one of this lattice, or it ended long ago; \
                         make one with `lattice schedulers token`"),
        }
    }

    pub(super) fn set_member(&mut self, c: &pb::SetMember) -> Result<Done> {
        expect_texts(&c.peer, &c.api, &c.log_id)?;
        if c.id == 0 {
            return refuse("invalid", "a scheduler has no id 0; ids begin at 1");
        }
        if self.was_removed(c.id) {
            return refuse("conflict", removed(c.id));
        }
        self.expect_free(&c.peer, c.id)?;
        let Some(member) = self.members.get_mut(&c.id) else {
            // Those who join come by a token; this is the one that was there first.
            if !self.members.is_empty() {
                return refuse(
                    "not_found",
                    format!("there is no scheduler {}; start it with --join ADDR --token TOKEN", c.id),
                );
            }
            let member = Member {
                peer: c.peer.clone(),
                api: c.api.clone(),
                log_id: c.log_id.clone(),
                wants: Wants::Vote,
                vocabulary: c.vocabulary.max(1),
            };
            self.members.insert(c.id, member);
            self.next_member = self.next_member.max(c.id + 1);
            return Ok(Done { change: "created", ..Done::default() });
        };
        if member.log_id != c.log_id {
            return refuse("conflict", lost_log(c.id));
        }
        let vocabulary = c.vocabulary.max(1);
        let same = member.peer == c.peer && member.api == c.api && member.vocabulary == vocabulary;
        member.vocabulary = vocabulary;
        member.peer.clone_from(&c.peer);
        member.api.clone_from(&c.api);
        Ok(Done { change: if same { "unchanged" } else { "configured" }, ..Done::default() })
    }

    pub(super) fn add_member(&mut self, now_ms: u64, c: &pb::AddMember) -> Result<Done> {
        expect_texts(&c.peer, &c.api, &c.log_id)?;
        if let Err(why) = self.check_token(&c.token_hash, now_ms) {
            return refuse("denied", why);
        }
        if self.member_with(&c.log_id).is_some() {
            return Ok(Done { change: "unchanged", ..Done::default() });
        }
        if self.members.is_empty() {
            return refuse("stale", "the scheduler that was asked is not known itself yet; try again in a moment");
        }
        if self.members.len() >= MEMBERS_MAX {
            return refuse(
                "invalid",
                format!(
                    "the lattice has {MEMBERS_MAX} schedulers, its bound; remove one first: `lattice schedulers remove ID`"
                ),
            );
        }
        let mut id = self.next_member;
        if built_in(Fault::IdGivenTwice) {
            id = (1..id).find(|id| !self.members.contains_key(id)).unwrap_or(id);
        }
        self.expect_free(&c.peer, id)?;
        let wants = if c.standby { Wants::Standby } else { Wants::Auto };
        let member = Member {
            peer: c.peer.clone(),
            api: c.api.clone(),
            log_id: c.log_id.clone(),
            wants,
            vocabulary: c.vocabulary.max(1),
        };
        self.members.insert(id, member);
        self.next_member = self.next_member.max(id + 1);
        Ok(Done { change: "created", ..Done::default() })
    }

    pub(super) fn promote_member(&mut self, id: u64) -> Result<Done> {
        self.expect_member(id)?;
        let member = self.members.get_mut(&id).expect("expected just now");
        let same = member.wants == Wants::Vote;
        member.wants = Wants::Vote;
        Ok(Done { change: if same { "unchanged" } else { "promoted" }, ..Done::default() })
    }

    pub(super) fn remove_member(&mut self, id: u64) -> Result<Done> {
        self.expect_member(id)?;
        if self.members.len() == 1 {
            return refuse(
                "invalid",
                format!("scheduler {id} is the last one, and a lattice needs one; add another before"),
            );
        }
        self.members.remove(&id);
        Ok(Done { change: "removed", ..Done::default() })
    }

    pub(super) fn issue_token(&mut self, now_ms: u64, c: &pb::IssueToken) -> Result<Done> {
        if c.hash.len() != HASH_BYTES || !c.hash.bytes().all(|b| b.is_ascii_hexdigit()) {
            return refuse("invalid", "the hash of a join token is a SHA-256 in hex");
        }
        if c.expires_ms <= now_ms || c.expires_ms > now_ms.saturating_add(TOKEN_LIFE_MS_MAX) {
            return refuse("invalid", "a join token lives at least a moment and at most a week; give --life 1h, say");
        }
        self.tokens.retain(|_, expires_ms| *expires_ms > now_ms);
        if self.tokens.len() >= TOKENS_MAX {
            return refuse("invalid", format!("{TOKENS_MAX} join tokens are good at a time; wait until one expires"));
        }
        self.tokens.insert(c.hash.clone(), c.expires_ms);
        Ok(Done { change: "created", ..Done::default() })
    }

    fn expect_member(&self, id: u64) -> Result<()> {
        if self.members.contains_key(&id) {
            return Ok(());
        }
        if self.was_removed(id) && id != 0 {
            return refuse(
                "not_found",
                format!("scheduler {id} was removed; `lattice schedulers list` shows the others"),
            );
        }
        refuse("not_found", format!("there is no scheduler {id}; `lattice schedulers list` shows what there is"))
    }

    /// Two schedulers at one address would take turns at being reached.
    fn expect_free(&self, peer: &str, id: u64) -> Result<()> {
        match self.members.iter().find(|(other, member)| **other != id && member.peer == peer) {
            Some((other, _)) => refuse(
                "conflict",
                format!(
                    "peer address {peer} is that of scheduler {other}; remove it with `lattice schedulers remove {other}`, \
                     or give another --peer-listen"
                ),
            ),
            None => Ok(()),
        }
    }
}

/// What a scheduler is told that was removed.
pub(crate) fn removed(id: u64) -> String {
    format!(
        "scheduler {id} was removed from the lattice; to take part again it joins anew: empty --data, --join, a new token"
    )
}

/// What a scheduler is told whose log is not the one it joined with.
pub(crate) fn lost_log(id: u64) -> String {
    format!(
        "scheduler {id} comes with another log than it joined with: it lost its own and may have voted; remove it with \
         `lattice schedulers remove {id}`, then start it with an empty --data, --join and a new token"
    )
}

fn expect_texts(peer: &str, api: &str, log_id: &str) -> Result<()> {
    let sound = |text: &str| text.len() <= TEXT_BYTES_MAX && !text.chars().any(|c| c.is_control() || c.is_whitespace());
    if ![peer, api, log_id].iter().all(|text| sound(text)) || peer.is_empty() || log_id.is_empty() {
        return refuse("invalid", "a scheduler says where it is reached, as HOST:PORT, and which log it has");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::invariant;
    use proto::v1::command::What;
    use std::collections::BTreeSet;

    const NOW: u64 = 1_000_000;
    const HASH: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

    fn does(state: &mut State, time_ms: u64, what: What) -> pb::Outcome {
        let command = pb::Command { request_id: String::new(), what: Some(what) };
        let entry = pb::Entry { version: super::super::VERSION, time_ms, commands: vec![command] };
        let outcome = state.apply(state.applied + 1, &entry, &mut BTreeSet::new()).remove(0);
        assert_eq!(invariant::check(state), Vec::<String>::new());
        assert_eq!(State::from_bytes(&state.to_bytes()).as_ref(), Ok(&*state), "a snapshot keeps it");
        outcome
    }

    fn set(id: u64, peer: &str, log_id: &str) -> What {
        let (peer, api, log_id) = (peer.into(), "127.0.0.1:7400".into(), log_id.into());
        What::SetMember(pb::SetMember { id, peer, api, log_id, vocabulary: 2 })
    }

    fn add(hash: &str, peer: &str, log_id: &str) -> What {
        What::AddMember(pb::AddMember {
            token_hash: hash.into(),
            peer: peer.into(),
            api: String::new(),
            log_id: log_id.into(),
            standby: false,
            vocabulary: 2,
        })
    }

    fn id_of(state: &State, log_id: &str) -> Option<u64> {
        state.member_with(log_id)
    }

    /// One scheduler, and a token that is good for a second.
    fn first() -> State {
        let mut state = State::default();
        assert_eq!(does(&mut state, NOW, set(1, "a:1", "log-1")).change, "created");
        let token = pb::IssueToken { hash: HASH.into(), expires_ms: NOW + 1_000 };
        assert_eq!(does(&mut state, NOW, What::IssueToken(token)).error, "");
        state
    }

    #[test]
    fn ids_are_given_once() {
        let mut state = first();
        let joined = does(&mut state, NOW, add(HASH, "b:1", "log-2"));
        assert_eq!((id_of(&state, "log-2"), joined.change.as_str()), (Some(2), "created"));
        // Its answer was lost: it asks again.
        assert_eq!(does(&mut state, NOW, add(HASH, "b:1", "log-2")).change, "unchanged");
        assert_eq!((id_of(&state, "log-2"), state.next_member), (Some(2), 3));
        assert_eq!(does(&mut state, NOW, What::RemoveMember(pb::RemoveMember { id: 2 })).error, "");
        assert!(state.was_removed(2) && !state.was_removed(1) && !state.was_removed(3));
        does(&mut state, NOW, add(HASH, "b:1", "log-3"));
        assert_eq!((id_of(&state, "log-2"), id_of(&state, "log-3")), (None, Some(3)));
        let back = does(&mut state, NOW, set(2, "b:2", "log-2"));
        assert!(back.error.contains("scheduler 2 was removed") && back.error.contains("--join"), "{}", back.error);
    }

    #[test]
    fn a_token_is_checked() {
        let mut state = first();
        let wrong = does(&mut state, NOW, add("ff", "b:1", "log-2"));
        assert!(wrong.code == "denied" && wrong.error.contains("lattice schedulers token"), "{wrong:?}");
        let late = does(&mut state, NOW + 1_000, add(HASH, "b:1", "log-2"));
        assert!(late.code == "denied" && late.error.contains("has expired"), "{late:?}");
        assert_eq!(state.members.len(), 1);
        for expires_ms in [NOW, NOW + TOKEN_LIFE_MS_MAX + 1] {
            let token = pb::IssueToken { hash: HASH.into(), expires_ms };
            assert!(does(&mut state, NOW, What::IssueToken(token)).error.contains("at most a week"));
        }
    }

    #[test]
    fn tokens_are_bounded_and_expired_ones_make_room() {
        let mut state = first();
        let issue = |n: usize, expires_ms| What::IssueToken(pb::IssueToken { hash: format!("{n:064x}"), expires_ms });
        for n in 1..TOKENS_MAX {
            assert_eq!(does(&mut state, NOW, issue(n, NOW + 5)).error, "");
        }
        assert!(does(&mut state, NOW, issue(999, NOW + 5)).error.contains("wait until one expires"));
        assert_eq!(does(&mut state, NOW + 5, issue(999, NOW + 50)).error, "");
    }

    #[test]
    fn what_is_not_there_or_the_last_one_is_not_removed() {
        let mut state = first();
        for id in [0, 7] {
            let refused = does(&mut state, NOW, What::RemoveMember(pb::RemoveMember { id }));
            assert!(refused.code == "not_found" && refused.error.contains("schedulers list"), "{refused:?}");
            let refused = does(&mut state, NOW, What::PromoteMember(pb::PromoteMember { id }));
            assert_eq!(refused.code, "not_found");
        }
        let last = does(&mut state, NOW, What::RemoveMember(pb::RemoveMember { id: 1 }));
        assert!(last.error.contains("scheduler 1 is the last one") && last.error.contains("add another"), "{last:?}");
    }

    #[test]
    fn another_log_or_a_taken_address_is_refused() {
        let mut state = first();
        does(&mut state, NOW, add(HASH, "b:1", "log-2"));
        let lost = does(&mut state, NOW, set(2, "b:1", "log-9"));
        assert!(lost.error.contains("lattice schedulers remove 2"), "{}", lost.error);
        let taken = does(&mut state, NOW, set(2, "a:1", "log-2"));
        assert!(taken.error.contains("is that of scheduler 1"), "{}", taken.error);
        let stranger = does(&mut state, NOW, set(5, "c:1", "log-5"));
        assert!(stranger.error.contains("--join"), "{}", stranger.error);
        assert_eq!(does(&mut state, NOW, set(2, "b:9", "log-2")).change, "configured");
        assert_eq!(state.members[&2].peer, "b:9");
        for peer in ["", "a b", "a\n"] {
            assert_eq!(does(&mut state, NOW, set(2, peer, "log-2")).code, "invalid");
        }
    }

    #[test]
    fn there_is_room_for_so_many() {
        let mut state = first();
        for n in 2..=MEMBERS_MAX {
            assert_eq!(does(&mut state, NOW, add(HASH, &format!("m:{n}"), &format!("log-{n}"))).error, "");
        }
        let refused = does(&mut state, NOW, add(HASH, "m:99", "log-99"));
        assert!(refused.error.contains("its bound; remove one first"), "{refused:?}");
        assert_eq!(does(&mut state, NOW, What::PromoteMember(pb::PromoteMember { id: 3 })).change, "promoted");
        assert_eq!(state.members[&3].wants, Wants::Vote);
    }
}
