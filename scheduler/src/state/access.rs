//! Who may use the API where it demands a token: names, roles, hashes of tokens. Pure. Must never keep a token itself.

use super::State;
use super::apply::{Done, Result, refuse};
use proto::app::Name;
use proto::v1 as pb;

/// Tokens of one lattice.
pub const ACCESS_MAX: usize = 1_000;
/// A SHA-256 in hex.
const HASH_BYTES: usize = 64;

/// What one token is good for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    pub hash: String,
    pub role: Role,
    pub made_ms: u64,
}

/// What somebody may do. Each may do what those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    Viewer,
    Admin,
}

impl Role {
    pub fn name(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Admin => "admin",
        }
    }

    pub fn named(name: &str) -> Option<Self> {
        [Self::Viewer, Self::Admin].into_iter().find(|role| role.name() == name)
    }

    pub fn number(self) -> u32 {
        match self {
            Self::Viewer => 1,
            Self::Admin => 2,
        }
    }

    fn of_number(number: u32) -> Option<Self> {
        [Self::Viewer, Self::Admin].into_iter().find(|role| role.number() == number)
    }
}

impl Access {
    pub(super) fn record(&self, name: &Name) -> pb::AccessRecord {
        let Self { hash, role, made_ms } = self.clone();
        pb::AccessRecord { name: name.to_string(), hash, role: role.number(), made_ms }
    }

    pub(super) fn from_record(record: pb::AccessRecord) -> std::result::Result<(Name, Self), String> {
        let pb::AccessRecord { name, hash, role, made_ms } = record;
        let role = Role::of_number(role).ok_or_else(|| format!("access {name:?} has role {role}, which is none"))?;
        let name = name.parse().map_err(|error| format!("access: {error}"))?;
        Ok((name, Self { hash, role, made_ms }))
    }
}

impl State {
    /// Whose token has this hash, and what it is good for.
    pub fn access_of(&self, hash: &str) -> Option<(&Name, Role)> {
        self.access.iter().find(|(_, access)| access.hash == hash).map(|(name, access)| (name, access.role))
    }

    pub(super) fn set_access(&mut self, now_ms: u64, c: &pb::SetAccess) -> Result<Done> {
        let name: Name = match c.name.parse() {
            Ok(name) => name,
            Err(error) => return refuse("invalid", format!("the name of a token: {error}")),
        };
        let Some(role) = Role::of_number(c.role) else {
            return refuse("invalid", format!("a token has the role viewer or admin, not number {}", c.role));
        };
        if c.hash.len() != HASH_BYTES || !c.hash.bytes().all(|b| b.is_ascii_hexdigit()) {
            return refuse("invalid", "the hash of a token is a SHA-256 in hex");
        }
        if self.access.contains_key(&name) {
            return refuse(
                "conflict",
                format!("there is a token {name} already; remove it first: `lattice access remove {name}`"),
            );
        }
        if self.access.len() >= ACCESS_MAX {
            return refuse("invalid", format!("the lattice has {ACCESS_MAX} tokens, its bound; remove one first"));
        }
        self.access.insert(name, Access { hash: c.hash.to_ascii_lowercase(), role, made_ms: now_ms });
        Ok(Done { change: "created", ..Done::default() })
    }

    pub(super) fn remove_access(&mut self, c: &pb::RemoveAccess) -> Result<Done> {
        match self.access.remove(c.name.as_str()) {
            Some(_) => Ok(Done { change: "removed", ..Done::default() }),
            None => refuse(
                "not_found",
                format!("there is no token {:?}; `lattice access list` shows what there is", c.name),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::v1::command::What;

    fn does(state: &mut State, what: What) -> pb::Outcome {
        let command = pb::Command { request_id: String::new(), what: Some(what) };
        let entry = pb::Entry { version: 2, time_ms: 5, commands: vec![command] };
        let outcome = state.apply(state.applied + 1, &entry, &mut Default::default()).remove(0);
        assert_eq!(State::from_bytes(&state.to_bytes()).as_ref(), Ok(&*state), "a snapshot keeps it");
        outcome
    }

    #[test]
    fn a_token_is_known_by_its_hash_until_it_is_removed() {
        let mut state = State::default();
        let hash = "ab".repeat(32);
        let set = |name: &str, hash: &str, role| {
            What::SetAccess(pb::SetAccess { name: name.into(), hash: hash.into(), role })
        };
        assert_eq!(does(&mut state, set("ci", &hash, 1)).change, "created");
        assert_eq!(state.access_of(&hash).map(|(name, role)| (name.as_str(), role)), Some(("ci", Role::Viewer)));
        assert!(Role::Viewer < Role::Admin && state.access_of("").is_none());
        for (wrong, says) in [
            (set("ci", &hash, 2), "lattice access remove ci"),
            (set("CI", &hash, 2), "not a name"),
            (set("other", &hash, 3), "viewer or admin"),
            (set("other", "ab", 2), "SHA-256"),
            (What::RemoveAccess(pb::RemoveAccess { name: "none".into() }), "lattice access list"),
        ] {
            let outcome = does(&mut state, wrong);
            assert!(outcome.error.contains(says), "{}", outcome.error);
        }
        assert_eq!(does(&mut state, What::RemoveAccess(pb::RemoveAccess { name: "ci".into() })).change, "removed");
        assert!(state.access_of(&hash).is_none());
    }
}
