//! Which build can apply which commands. Pure. An entry has the least version that has all of its commands, and none is
//! proposed that some scheduler of the lattice can not apply: replicas of different builds stay the same byte for byte.
//! Must never be given a wildcard: a new command has to say since when it is there.

use super::State;
use prost::Message;
use proto::app::{App, Component, Kind, STACK_BYTES};
use proto::v1 as pb;
use proto::v1::command::What;

/// The newest vocabulary that this build can apply.
pub const VERSION: u32 = 4;

/// The vocabulary in which a command appeared.
fn since(what: &What) -> u32 {
    match what {
        What::ApplyApp(apply) => since_app(&apply.spec),
        What::DeleteApp(_)
        | What::ScaleActor(_)
        | What::RollbackApp(_)
        | What::SetCordon(_)
        | What::RegisterHost(_)
        | What::MarkLost(_)
        | What::MarkReturned(_)
        | What::CommitPlan(_)
        | What::ForgetHost(_)
        | What::SetMember(_)
        | What::AddMember(_)
        | What::PromoteMember(_)
        | What::RemoveMember(_)
        | What::IssueToken(_) => 1,
        What::SetAccess(_) | What::RemoveAccess(_) => 2,
        What::Refuse(_) => 3,
    }
}

/// The vocabulary that has all of this app: an older build would not do as it says, or not keep what it says.
fn since_app(spec: &[u8]) -> u32 {
    // Most apps have none of it, and need not be read.
    let names = |field: &[u8]| spec.windows(field.len()).any(|bytes| bytes == field);
    if !names(b"\"strict\"") && !names(b"\"stack_bytes\"") {
        return 1;
    }
    let deep = |c: &Component| matches!(&c.kind, Kind::Actor(actor) if actor.limits.stack_bytes != STACK_BYTES);
    match App::from_json(spec) {
        Ok(app) if app.components.values().any(|c| deep(c)) => 4,
        Ok(app) if app.components.values().any(|c| c.strict) => 3,
        _ => 1,
    }
}

/// The entry that proposes these commands; else which scheduler can not apply them, and the next step. `me` proposes, and
/// can apply what `knows` has.
pub fn entry(
    state: &State,
    me: u64,
    knows: u32,
    time_ms: u64,
    commands: Vec<pb::Command>,
) -> Result<pb::Entry, String> {
    let mut version = 1;
    for command in &commands {
        let Some(what) = &command.what else {
            return Err(format!(
                "scheduler {me} leads and is of an older version, which does not know this command; upgrade it, or let \
                 another one lead: `lattice schedulers transfer-leader`"
            ));
        };
        version = version.max(since(what));
    }
    let behind = state.members.iter().filter(|(id, _)| **id != me).map(|(id, m)| (*id, m.vocabulary, m.peer.as_str()));
    let mut all = behind.chain([(me, knows, "which leads")]);
    match all.find(|(_, knows, _)| *knows < version) {
        None => Ok(pb::Entry { version, time_ms, commands }),
        Some((id, knows, at)) => Err(format!(
            "scheduler {id} ({at}) is of an older version: it can apply commands up to version {knows}, this one is of \
             version {version}; upgrade it, or remove it if it is gone (`lattice schedulers remove {id}`), then ask again"
        )),
    }
}

/// Why a build that knows `knows` can not read these bytes of an entry or a snapshot.
pub fn expect_known(bytes: &[u8], knows: u32) -> Result<(), String> {
    // Bytes that do not decode are refused by who decodes them.
    match pb::Versioned::decode(bytes) {
        Ok(pb::Versioned { version }) if version > knows => {
            Err(format!("it is of version {version}, and this scheduler knows commands up to version {knows}"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{Member, Wants};

    fn member(vocabulary: u32) -> Member {
        Member { peer: "m:1".into(), api: String::new(), log_id: "l".into(), wants: Wants::Auto, vocabulary }
    }

    fn command(what: What) -> Vec<pb::Command> {
        vec![pb::Command { request_id: String::new(), what: Some(what) }]
    }

    #[test]
    fn an_entry_has_the_least_version_and_waits_for_the_oldest_member() {
        let mut state = State::default();
        let old = || command(What::ForgetHost(pb::ForgetHost::default()));
        let new = || command(What::RemoveAccess(pb::RemoveAccess::default()));
        assert_eq!(entry(&state, 1, VERSION, 5, old()).unwrap().version, 1);
        assert_eq!(entry(&state, 1, VERSION, 5, new()).unwrap().version, 2);
        state.members = [(1, member(2)), (2, member(2)), (3, member(1))].into();
        assert_eq!(entry(&state, 1, VERSION, 5, old()).unwrap().version, 1);
        let refused = entry(&state, 1, VERSION, 5, new()).unwrap_err();
        assert!(refused.contains("scheduler 3 (m:1)") && refused.contains("upgrade it"), "{refused}");
        let refused = entry(&state, 1, 1, 5, new()).unwrap_err();
        assert!(refused.contains("scheduler 3"), "{refused}");
        state.members.remove(&3);
        let refused = entry(&state, 1, 1, 5, new()).unwrap_err();
        assert!(refused.contains("scheduler 1 (which leads)"), "{refused}");
        assert!(entry(&state, 1, 2, 5, [old(), new()].concat()).is_ok());
        let unknown = vec![pb::Command::default()];
        assert!(entry(&state, 1, 2, 5, unknown).unwrap_err().contains("transfer-leader"));
    }

    #[test]
    fn an_app_is_of_the_version_that_has_all_of_it() {
        let of = |limits: &str| {
            let text = format!(
                "apiVersion: core.oam.dev/v1beta1\nkind: Application\nmetadata: {{name: shop}}\nspec:\n  components:\n  \
                 - name: cart\n    type: component\n    properties: {{image: ./cart.wasm}}\n    traits:\n    \
                 - {{type: limits, properties: {limits}}}\n"
            );
            proto::manifest::parse(&text, "app.yaml").unwrap().remove(0).app
        };
        let version = |app: &App| since(&What::ApplyApp(pb::ApplyApp { spec: app.to_json(), if_version: 0 }));
        let (usual, deep) = (of("{stack: 512KiB}"), of("{stack: 1MiB}"));
        let mut strict = usual.clone();
        strict.components.values_mut().for_each(|c| c.strict = true);
        assert_eq!([&usual, &strict, &deep].map(version), [1, 3, 4]);
        assert!(!String::from_utf8(usual.to_json()).unwrap().contains("stack"), "older builds keep it byte for byte");
        assert_eq!(App::from_json(&deep.to_json()).unwrap(), deep);
    }

    #[test]
    fn a_refusal_is_of_the_newest_version_and_stands_under_its_id() {
        let refuse = |code: &str, error: &str| What::Refuse(pb::Refuse { code: code.into(), error: error.into() });
        let entry = |id: &str, what| {
            let commands = vec![pb::Command { request_id: id.into(), what: Some(what) }];
            entry(&State::default(), 1, VERSION, 5, commands).unwrap()
        };
        let mut state = State::default();
        let mut index = 1;
        let mut apply = |entry: &pb::Entry| {
            index += 1;
            state.apply(index, entry, &mut Default::default()).remove(0)
        };
        assert_eq!(entry("a", refuse("conflict", "x")).version, 3);
        let delete = || What::DeleteApp(pb::DeleteApp { app: "none".into(), if_version: 0 });
        let done = |outcome: pb::Outcome| (outcome.code, outcome.error);
        let first = ("conflict".to_owned(), "first".to_owned());
        assert_eq!(done(apply(&entry("a", refuse("conflict", "first")))), first);
        assert_eq!(done(apply(&entry("a", delete()))), first);
        assert_eq!(apply(&entry("b", delete())).code, "not_found");
        assert_eq!(apply(&entry("b", refuse("conflict", "late"))).code, "not_found");
        assert_eq!(done(apply(&entry("c", refuse("odd", "x")))), ("invalid".to_owned(), "x".to_owned()));
        let long = apply(&entry("d", refuse("conflict", &"x".repeat(5_000))));
        assert!(long.error.contains("4096 bytes"), "{long:?}");
        assert!(state.answered_all(["a", "b"].into_iter()).is_some());
        assert!(
            state.answered_all(["a", "never"].into_iter()).is_none() && state.answered_all([""].into_iter()).is_none()
        );
    }

    #[test]
    fn what_is_newer_is_seen_before_it_is_applied() {
        let entry = pb::Entry { version: 9, time_ms: 7, commands: Vec::new() }.encode_to_vec();
        assert!(expect_known(&entry, 8).unwrap_err().contains("version 9"));
        assert_eq!(expect_known(&entry, 9), Ok(()));
        let mut state = State::default();
        assert_eq!(expect_known(&state.to_bytes(), 1), Ok(()));
        state.apply(2, &pb::Entry { version: 2, ..pb::Entry::default() }, &mut Default::default());
        assert!(expect_known(&state.to_bytes(), 1).is_err() && expect_known(&state.to_bytes(), 2).is_ok());
        assert_eq!(State::from_bytes(&state.to_bytes()), Ok(state));
    }
}
