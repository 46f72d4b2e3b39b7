//! Compares what this host was assigned with what it runs. Pure: decides, never does.

use proto::app::{App, Name};
use proto::fault::{Fault, built_in};
use proto::v1 as pb;
use std::collections::BTreeMap;
use std::sync::Arc;

/// App and component.
pub type Key = (Name, Name);

/// What one component shall be on this host.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    pub revision: u64,
    pub replicas: u32,
    /// It runs under a lease alone, and never beside another revision.
    pub strict: bool,
    pub app: Arc<App>,
}

/// What one component is on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Have {
    pub revision: u64,
    pub replicas: u32,
    /// As `Wanted::strict`. An app that was deleted and applied again may have the same component, not strict any more.
    pub strict: bool,
}

/// What has to happen to one component.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Bring it up; what runs of an older revision serves until it is ready.
    Start(Key, Wanted),
    /// The same revision, another number of slots.
    Scale(Key, u32),
    Stop(Key),
}

/// Whether an assignment that arrived is taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Accept,
    /// Exactly what is stored: confirm it again, change nothing.
    Same,
    Refuse(String),
}

/// Fences by (term, generation): what is older than the stored one is refused, by either number. A new term with the
/// same generation carries the same content; with an older one it comes from a leader that has not caught up yet.
pub fn accept(stored: Option<&pb::Assignment>, new: &pb::Assignment, lattice: &str, host: &str) -> Verdict {
    judge(stored, new, wanted(new).err(), lattice, host)
}

/// The same, of one that was decoded already; `problem` is what was wrong with it then.
pub fn judge(
    stored: Option<&pb::Assignment>,
    new: &pb::Assignment,
    problem: Option<String>,
    lattice: &str,
    host: &str,
) -> Verdict {
    if new.lattice != lattice || new.host != host {
        return Verdict::Refuse(format!("it is for host {:?} of lattice {:?}", new.host, new.lattice));
    }
    if let Some(problem) = problem {
        return Verdict::Refuse(problem);
    }
    let Some(stored) = stored else { return Verdict::Accept };
    let (have, got) = ((stored.term, stored.generation), (new.term, new.generation));
    let older = got.0 < have.0 || got.1 < have.1;
    if older && !built_in(Fault::OlderAssignmentTaken) {
        return Verdict::Refuse(format!(
            "term {}, generation {} is older than term {}, generation {} that this host has stored; if the schedulers \
             lost their data, remove `assignment` in the host's data folder and start it again",
            got.0, got.1, have.0, have.1
        ));
    }
    if got != have {
        return Verdict::Accept;
    }
    if stored == new {
        return Verdict::Same;
    }
    Verdict::Refuse(format!(
        "generation {} of term {} was stored with other content: a scheduler must not change what it has sent",
        new.generation, new.term
    ))
}

/// The components of an assignment, or what is wrong with it.
pub fn wanted(assignment: &pb::Assignment) -> Result<BTreeMap<Key, Wanted>, String> {
    wanted_after(None, assignment)
}

/// The same, where `before` is the assignment that this one follows with its components: apps that it holds as well are
/// those, and are not decoded again. Of thousands, most assignments change one.
pub fn wanted_after(
    before: Option<(&pb::Assignment, &BTreeMap<Key, Wanted>)>,
    assignment: &pb::Assignment,
) -> Result<BTreeMap<Key, Wanted>, String> {
    let known = before.map(|(stored, wanted)| known(stored, wanted)).unwrap_or_default();
    let mut all = BTreeMap::new();
    for slice in &assignment.apps {
        let app = match known.get(slice.app.as_str()) {
            Some((spec, app)) if *spec == slice.spec.as_slice() => (*app).clone(),
            _ => Arc::new(decode(slice)?),
        };
        for (component, replicas) in &slice.replicas {
            let Some((name, spec)) = app.components.get_key_value(component.as_str()) else {
                return Err(format!("app {:?} has no component {component:?}", slice.app));
            };
            let (revision, replicas, strict) = (slice.revision, *replicas, spec.strict);
            let wanted = Wanted { revision, replicas, strict, app: app.clone() };
            if all.insert((app.name.clone(), name.clone()), wanted).is_some() {
                return Err(format!("{}/{component} is assigned twice", slice.app));
            }
        }
    }
    Ok(all)
}

fn decode(slice: &pb::AppSlice) -> Result<App, String> {
    let app = App::from_json(&slice.spec).map_err(|e| format!("app {:?} does not decode: {e}", slice.app))?;
    match app.name.as_str() == slice.app {
        true => Ok(app),
        false => Err(format!("app {:?} carries the spec of {:?}", slice.app, app.name.as_str())),
    }
}

/// By name, what each app was decoded from, and what it is. Of an app with two revisions here one will do.
fn known<'a>(
    stored: &'a pb::Assignment,
    wanted: &'a BTreeMap<Key, Wanted>,
) -> BTreeMap<&'a str, (&'a [u8], &'a Arc<App>)> {
    let decoded: BTreeMap<(&str, u64), &Arc<App>> =
        wanted.iter().map(|(key, wanted)| ((key.0.as_str(), wanted.revision), &wanted.app)).collect();
    let slices = stored.apps.iter();
    slices
        .filter_map(|slice| {
            let app = decoded.get(&(slice.app.as_str(), slice.revision))?;
            Some((slice.app.as_str(), (slice.spec.as_slice(), *app)))
        })
        .collect()
}

/// Whether what runs goes on, although it or what is wanted runs alone.
fn may_stay(have: &Have, want: &Wanted) -> bool {
    (have.revision, have.strict) == (want.revision, want.strict) || built_in(Fault::StrictOverlaps)
}

/// What has to happen, in key order. `busy` says which revision of a component is being brought up already, or failed
/// and is not due again; `leased`, whether what is strict may run.
pub fn actions(
    wanted: &BTreeMap<Key, Wanted>,
    have: &BTreeMap<Key, Have>,
    busy: &BTreeMap<Key, u64>,
    leased: bool,
) -> Vec<Action> {
    let mut actions: Vec<Action> = have
        .keys()
        .filter(|k| !wanted.contains_key(*k) && !built_in(Fault::StraysKept))
        .cloned()
        .map(Action::Stop)
        .collect();
    for (key, want) in wanted {
        match have.get(key) {
            None if want.strict && !leased => {}
            Some(h) if (want.strict || h.strict) && !(leased && may_stay(h, want)) => {
                actions.push(Action::Stop(key.clone()));
            }
            Some(h) if h.revision == want.revision => {
                if h.replicas != want.replicas && !built_in(Fault::ScaleForgotten) {
                    actions.push(Action::Scale(key.clone(), want.replicas));
                }
            }
            _ if busy.get(key) == Some(&want.revision) => {}
            _ => actions.push(Action::Start(key.clone(), want.clone())),
        }
    }
    actions
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "helpers of tests")]
    use super::*;

    fn assignment(term: u64, generation: u64, revision: u64, replicas: &[(&str, u32)]) -> pb::Assignment {
        let actor = serde_json::json!({ "kind": { "actor": { "image": "a" } }, "scaler": { "spread": { "replicas": 1, "spread": [] } } });
        let spec = serde_json::json!({ "name": "shop", "components": { "cart": actor, "mail": actor } });
        pb::Assignment {
            lattice: "l".into(),
            host: "h".into(),
            term,
            generation,
            apps: vec![pb::AppSlice {
                app: "shop".into(),
                revision,
                spec: serde_json::to_vec(&spec).unwrap(),
                replicas: replicas.iter().map(|(n, r)| ((*n).to_owned(), *r)).collect(),
            }],
            ..Default::default()
        }
    }

    fn key(component: &str) -> Key {
        ("shop".parse().unwrap(), component.parse().unwrap())
    }

    #[test]
    fn older_assignments_are_refused() {
        let stored = assignment(2, 10, 1, &[("cart", 1)]);
        let verdict = |term, generation| {
            let new = assignment(term, generation, 1, &[("cart", 1)]);
            match accept(Some(&stored), &new, "l", "h") {
                Verdict::Accept => "accept",
                Verdict::Same => "same",
                Verdict::Refuse(_) => "refuse",
            }
        };
        assert_eq!(verdict(2, 10), "same");
        assert_eq!(verdict(2, 11), "accept");
        assert_eq!(verdict(3, 10), "accept");
        assert_eq!(verdict(2, 9), "refuse");
        assert_eq!(verdict(1, 99), "refuse");
        assert_eq!(verdict(3, 9), "refuse", "a new leader that has not applied all of its log");
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let check = |change: &dyn Fn(&mut pb::Assignment), says: &str| {
            let mut new = assignment(1, 1, 1, &[("cart", 1)]);
            change(&mut new);
            match accept(None, &new, "l", "h") {
                Verdict::Refuse(why) => assert!(why.contains(says), "{why}"),
                other => panic!("{says}: {other:?}"),
            }
        };
        check(&|a| a.host = "other".into(), "is for host");
        check(&|a| a.lattice = "other".into(), "of lattice");
        check(&|a| a.apps[0].spec.truncate(5), "does not decode");
        check(&|a| a.apps[0].app = "else".into(), "carries the spec of");
        check(&|a| a.apps.push(a.apps[0].clone()), "assigned twice");
        check(&|a| _ = a.apps[0].replicas.insert("nobody".into(), 1), "no component");
    }

    #[test]
    fn what_did_not_change_is_not_decoded_again() {
        let stored = assignment(1, 1, 1, &[("cart", 1)]);
        let before = wanted(&stored).unwrap();
        let after = |new: &pb::Assignment| wanted_after(Some((&stored, &before)), new);
        let app = |wanted: &BTreeMap<Key, Wanted>, component| wanted[&key(component)].app.clone();
        let more = assignment(1, 2, 2, &[("cart", 5), ("mail", 1)]);
        let now = after(&more).unwrap();
        assert_eq!(now, wanted(&more).unwrap());
        assert!(Arc::ptr_eq(&app(&now, "mail"), &app(&before, "cart")));
        // Another spec is decoded, and its problems are told.
        let mut other = more.clone();
        other.apps[0].spec.push(b' ');
        assert!(!Arc::ptr_eq(&app(&after(&other).unwrap(), "cart"), &app(&before, "cart")));
        other.apps[0].spec.truncate(5);
        assert!(after(&other).unwrap_err().contains("does not decode"));
        let mut renamed = more.clone();
        renamed.apps[0].app = "else".into();
        assert_eq!(after(&renamed), wanted(&renamed));
    }

    #[test]
    fn actions_are_the_difference() {
        let want = wanted(&assignment(1, 1, 2, &[("cart", 3), ("mail", 1)])).unwrap();
        let have = |list: &[(&str, u64, u32)]| -> BTreeMap<Key, Have> {
            list.iter()
                .map(|(c, revision, replicas)| {
                    (key(c), Have { revision: *revision, replicas: *replicas, strict: false })
                })
                .collect()
        };
        let names = |have: &BTreeMap<Key, Have>, busy: &[(&str, u64)]| -> Vec<String> {
            let busy = busy.iter().map(|(c, r)| (key(c), *r)).collect();
            let name = |a: Action| match a {
                Action::Start(k, w) => format!("start {} r{}", k.1, w.revision),
                Action::Scale(k, n) => format!("scale {} {n}", k.1),
                Action::Stop(k) => format!("stop {}", k.1),
            };
            actions(&want, have, &busy, true).into_iter().map(name).collect()
        };
        assert_eq!(names(&have(&[]), &[]), ["start cart r2", "start mail r2"]);
        assert_eq!(names(&have(&[]), &[("cart", 2)]), ["start mail r2"]);
        assert_eq!(names(&have(&[("cart", 1, 3), ("mail", 2, 1)]), &[("cart", 1)]), ["start cart r2"]);
        assert_eq!(names(&have(&[("cart", 2, 1), ("mail", 2, 1), ("old", 1, 1)]), &[]), ["stop old", "scale cart 3"]);
        assert_eq!(names(&have(&[("cart", 2, 3), ("mail", 2, 1)]), &[]), Vec::<String>::new());
    }

    #[test]
    fn what_is_strict_runs_under_a_lease_and_alone() {
        let base = wanted(&assignment(1, 1, 2, &[("cart", 1)])).unwrap();
        // What is there: in which revision, and whether it is strict.
        let of = |have: Option<(u64, bool)>, strict, leased| -> Vec<Action> {
            let mut want = base.clone();
            want.get_mut(&key("cart")).unwrap().strict = strict;
            let have = have.map(|(revision, strict)| (key("cart"), Have { revision, replicas: 1, strict }));
            actions(&want, &have.into_iter().collect(), &BTreeMap::new(), leased)
        };
        let mut start = base[&key("cart")].clone();
        assert_eq!(of(Some((1, false)), false, false), [Action::Start(key("cart"), start.clone())]);
        start.strict = true;
        assert_eq!(of(None, true, true), [Action::Start(key("cart"), start)]);
        assert_eq!(of(None, true, false), []);
        assert_eq!(of(Some((2, true)), true, true), []);
        let stop = [Action::Stop(key("cart"))];
        assert_eq!(of(Some((2, true)), true, false), stop);
        assert_eq!(of(Some((1, true)), true, true), stop, "the old one goes first");
        assert_eq!(of(Some((1, true)), true, false), stop);
        assert_eq!(
            of(Some((1, true)), false, true),
            stop,
            "it runs beside nothing, of another app of that name neither"
        );
        assert_eq!(of(Some((1, true)), false, false), stop);
    }
}
