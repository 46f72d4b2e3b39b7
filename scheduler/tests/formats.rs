//! What an earlier build left on its disk, kept under `formats/`: a log, a log behind a snapshot, and a backup, one of each
//! version of commands, with the state that they gave. Whatever this build makes of them must be that state, byte for byte.
//!
//! A test that fails here says that this build would not go on where an older one ended. Put the reading right; the
//! files stay as they are. For a new version of commands, add its number to `VERSIONS` and let them be written, which
//! leaves alone what is there already:
//!
//!   LATTICE_WRITE_FORMATS=1 cargo test -p scheduler --test formats

#![allow(clippy::unwrap_used, reason = "test helpers")]

use std::fs;
use std::path::{Path, PathBuf};

use proto::app::{Digest, HostId, Kind, LatticeName, Name};
use proto::v1 as pb;
use proto::v1::command::What;
use scheduler::raft::{self, Alone, offline};
use scheduler::{Replica, backup, state};

const VERSIONS: [u32; 4] = [1, 2, 3, 4];
const HOSTS: [&str; 2] = ["01JZZZZZZZZZZZZZZZZZZZZZZY", "01JZZZZZZZZZZZZZZZZZZZZZZZ"];
const NOW: u64 = 1_800_000_000_000;
const HASH: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
/// Little enough that the log is cut off behind a snapshot in the middle of what is written.
const SNAPSHOT_AT_BYTES: u64 = 3_000;

#[tokio::test]
async fn what_earlier_builds_wrote_is_read_as_they_meant_it() {
    for version in VERSIONS {
        let kept = folder(version);
        if std::env::var_os("LATTICE_WRITE_FORMATS").is_some() && !kept.exists() {
            write(version, &kept).await;
        }
        let meant = fs::read(kept.join("state")).unwrap();
        check_meaning(version, &meant);
        for log in ["log", "snapshot"] {
            let dir = tempfile::tempdir().unwrap();
            unpack(&fs::read(kept.join(log)).unwrap(), &dir.path().join("raft"));
            read_log(version, log == "snapshot", &dir.path().join("raft"), &meant).await;
        }
        read_backup(version, &kept.join("backup"), &meant);
    }
    let newest = VERSIONS.iter().max();
    assert_eq!(newest, Some(&state::VERSION), "there are commands of a version that no file is kept of");
}

/// That it is not an empty state which everybody agrees on.
fn check_meaning(version: u32, meant: &[u8]) {
    let state = state::State::from_bytes(meant).unwrap();
    assert_eq!(state::invariant::check(&state), Vec::<String>::new());
    assert_eq!(state.vocabulary, version);
    let apps: Vec<&str> = state.apps.keys().map(|name| name.as_str()).collect();
    let first = if version > 2 { &["alone", "counter"][..] } else { &["counter"] };
    let last = if version > 3 { &["deep", "hello"][..] } else { &["hello"] };
    assert_eq!(apps, [first, last].concat(), "version {version}");
    if version > 3 {
        let app = state.apps[&name("deep")].spec();
        let stacks = app.components.values().filter_map(|c| match &c.kind {
            Kind::Actor(actor) => Some(actor.limits.stack_bytes),
            Kind::Provider(_) => None,
        });
        assert_eq!(stacks.collect::<Vec<u64>>(), [2 << 20]);
    }
    let hello = &state.apps[&name("hello")];
    assert_eq!((hello.current, hello.revisions.len()), (4, 4), "two applied, scaled, rolled back");
    assert_eq!((state.hosts.len(), state.placements.len(), state.homes.len()), (2, 3, 1));
    assert!(state.hosts[&host(1)].lost && state.hosts[&host(0)].cordoned);
    assert_eq!(state.members.keys().copied().collect::<Vec<u64>>(), [1, 2]);
    assert_eq!((state.access.len(), state.next_member), (usize::from(version > 1), 4));
    assert!(state.answered_all(["apply-hello", "scale"].into_iter()).is_some());
    assert_eq!(state.answered_all(["refused"].into_iter()).is_some(), version > 2);
}

async fn read_log(version: u32, behind_snapshot: bool, dir: &Path, meant: &[u8]) {
    let what = format!("version {version}, behind a snapshot: {behind_snapshot}");
    let mut replica = Replica::default();
    let left = offline::read(dir, &mut replica).unwrap().unwrap();
    assert_eq!(left.id, 1, "{what}");
    assert!(replica.read().to_bytes() == meant, "{what}: another state: {:#?}", *replica.read());
    // It also goes on from there.
    let replica = Replica::default();
    let handle = raft::start(raft::Config::alone(1, dir), replica.clone(), Alone).unwrap();
    assert_eq!(handle.status().borrow().snapshot > 1, behind_snapshot, "{what}");
    handle.read_index().await.unwrap();
    let mut expected = state::State::from_bytes(meant).unwrap();
    // A new leader began.
    expected.applied = replica.read().applied;
    assert!(*replica.read() == expected, "{what}: another state after a start");
    let delete = pb::Command { request_id: String::new(), what: Some(delete("counter")) };
    let entry = state::entry(&replica.read(), 1, state::VERSION, NOW, vec![delete]).unwrap();
    handle.propose(prost::Message::encode_to_vec(&entry)).await.unwrap();
    assert!(replica.read().apps[&name("counter")].deleting, "{what}");
    handle.shutdown().await;
}

fn read_backup(version: u32, file: &Path, meant: &[u8]) {
    let head = backup::check(file).unwrap();
    assert_eq!((head.vocabulary, head.bare), (version, true));
    let dir = tempfile::tempdir().unwrap();
    backup::restore(file, &dir.path().join("new"), &plant(), NOW).unwrap();
    let mut replica = Replica::default();
    let left = offline::read(&dir.path().join("new/raft"), &mut replica).unwrap().unwrap();
    let mut expected = state::State::from_bytes(meant).unwrap();
    expected.begin_anew(left.index);
    assert!(*replica.read() == expected, "version {version}: another state was restored: {:#?}", *replica.read());
}

fn folder(version: u32) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/formats/{version}"))
}

fn plant() -> LatticeName {
    "plant".parse().unwrap()
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn host(number: usize) -> HostId {
    HOSTS[number].parse().unwrap()
}

/// Writes the files of a version, as a scheduler of that version does.
async fn write(version: u32, kept: &Path) {
    fs::create_dir_all(kept).unwrap();
    for (name, log_bytes_max) in [("log", 1 << 20), ("snapshot", SNAPSHOT_AT_BYTES)] {
        let dir = tempfile::tempdir().unwrap();
        let raft_dir = dir.path().join("raft");
        let replica = Replica::of(version);
        let config = raft::Config { log_bytes_max, log_id: "kept".into(), ..raft::Config::alone(1, &raft_dir) };
        let handle = raft::start(config, replica.clone(), Alone).unwrap();
        for (id, what) in commands(version) {
            let what = match what {
                What::CommitPlan(plan) => {
                    What::CommitPlan(pb::CommitPlan { based_on: replica.read().plan_base, ..plan })
                }
                what => what,
            };
            let command = pb::Command { request_id: id.to_owned(), what: Some(what) };
            let entry = state::entry(&replica.read(), 1, version, NOW, vec![command]).unwrap();
            let applied = handle.propose(prost::Message::encode_to_vec(&entry)).await.unwrap();
            let outcomes: pb::Outcomes = prost::Message::decode(applied.outcome.as_slice()).unwrap();
            let expected = if id == "refused" { "too much" } else { "" };
            assert_eq!(outcomes.items[0].error, expected, "{id}");
        }
        handle.shutdown().await;
        fs::write(kept.join(name), pack(&raft_dir)).unwrap();
        let state = replica.read().to_bytes();
        fs::write(kept.join("state"), state).unwrap();
        let mut bytes = Vec::new();
        let mut sink = |piece: &[u8]| {
            bytes.extend_from_slice(piece);
            Ok(())
        };
        backup::of_folder(dir.path(), &plant(), true, NOW, &mut sink).unwrap();
        fs::write(kept.join("backup"), bytes).unwrap();
    }
}

fn delete(app: &str) -> What {
    What::DeleteApp(pb::DeleteApp { app: app.into(), if_version: 0 })
}

/// Of every kind that the version has, those that are refused beside.
fn commands(version: u32) -> Vec<(&'static str, What)> {
    let member = |id: u64| pb::SetMember {
        id,
        peer: format!("10.0.0.{id}:7401"),
        api: format!("10.0.0.{id}:7400"),
        log_id: format!("log-{id}"),
        vocabulary: version,
    };
    let add = |id: u64| {
        let pb::SetMember { peer, api, log_id, vocabulary, .. } = member(id);
        pb::AddMember { token_hash: HASH.into(), peer, api, log_id, standby: id == 2, vocabulary }
    };
    let host = |n: usize| {
        let labels = [("tier".to_owned(), "edge".to_owned())].into();
        let (host, name) = (HOSTS[n].to_owned(), format!("edge-{n}"));
        let hello = pb::Hello { host, name, lattice: "plant".into(), labels, ..pb::Hello::default() };
        What::RegisterHost(pb::RegisterHost { hello: Some(hello) })
    };
    let plan = |changes: &[(usize, &str, &str, u64, u32)]| {
        let change = |&(n, app, component, revision, replicas): &(usize, &str, &str, u64, u32)| {
            let (host, app, component) = (HOSTS[n].to_owned(), app.to_owned(), component.to_owned());
            pb::Change { host, app, component, revision, replicas }
        };
        What::CommitPlan(pb::CommitPlan { based_on: 0, changes: changes.iter().map(change).collect() })
    };
    let apply = |spec: Vec<u8>| What::ApplyApp(pb::ApplyApp { spec, if_version: 0 });
    let marked = |n: usize| HOSTS[n].to_owned();
    let mut all = vec![
        ("", What::SetMember(member(1))),
        ("token", What::IssueToken(pb::IssueToken { hash: HASH.into(), expires_ms: NOW + 3_600_000 })),
        ("", What::AddMember(add(2))),
        ("", What::AddMember(add(3))),
        ("", What::PromoteMember(pb::PromoteMember { id: 2 })),
        ("remove", What::RemoveMember(pb::RemoveMember { id: 3 })),
        ("", host(0)),
        ("", host(1)),
        ("apply-hello", apply(spec("hello", "hello", b"first"))),
        ("apply-counter", apply(spec("counter", "counter", b"counts"))),
        ("", plan(&[(0, "hello", "hello", 1, 2), (1, "counter", "counter", 1, 1), (1, "counter", "store", 1, 1)])),
        ("apply-again", apply(spec("hello", "hello", b"second"))),
        (
            "scale",
            What::ScaleActor(pb::ScaleActor { app: "hello".into(), actor: "hello".into(), replicas: 7, if_version: 0 }),
        ),
        ("rollback", What::RollbackApp(pb::RollbackApp { app: "hello".into(), to: 1, if_version: 0 })),
        ("cordon", What::SetCordon(pb::SetCordon { host: marked(0), cordoned: true, draining: false })),
        ("", What::MarkLost(pb::MarkLost { host: marked(1) })),
        ("", What::MarkReturned(pb::MarkReturned { host: marked(1) })),
        ("", What::MarkLost(pb::MarkLost { host: marked(1) })),
        ("apply-gone", apply(spec("hello", "gone", b"gone"))),
        ("delete", delete("gone")),
    ];
    if version > 1 {
        let hash = "ff".repeat(32);
        let set = |name: &str, role| What::SetAccess(pb::SetAccess { name: name.into(), hash: hash.clone(), role });
        all.push(("access", set("wallboard", 1)));
        let hash = "ee".repeat(32);
        all.push(("", What::SetAccess(pb::SetAccess { name: "ops".into(), hash, role: 2 })));
        all.push(("", What::RemoveAccess(pb::RemoveAccess { name: "ops".into() })));
    }
    if version > 2 {
        all.push(("refused", What::Refuse(pb::Refuse { code: "precondition".into(), error: "too much".into() })));
        all.push(("apply-alone", apply(spec("counter", "alone", b"alone"))));
    }
    if version > 3 {
        all.push(("apply-deep", apply(spec("counter", "deep", b"deep"))));
    }
    all
}

/// An example's manifest as it is stored, its app under another name and path. The actor of "alone" is strict, that of
/// "deep" has a larger call stack.
fn spec(example: &str, name: &str, component: &[u8]) -> Vec<u8> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../manifests/{example}/app.yaml"));
    let text = fs::read_to_string(&file).unwrap();
    let text = text.replace("path: /\n", &format!("path: /{name}\n"));
    let parsed = proto::manifest::parse(&text, "app.yaml").unwrap_or_else(|problems| panic!("{problems:?}"));
    let mut app = parsed.into_iter().next().unwrap().app;
    app.name = name.parse().unwrap();
    for part in app.components.values_mut() {
        if let Kind::Actor(actor) = &mut part.kind {
            actor.digest = Some(Digest::of(component));
            part.strict = name == "alone";
            if name == "deep" {
                actor.limits.stack_bytes = 2 << 20;
            }
        }
    }
    app.to_json()
}

/// Zeros in a row that are not worth keeping; files of sled are mostly made of them.
const ZEROS: usize = 64;

/// A folder as one file: of each of its files name, length, and the stretches that are not zero.
fn pack(dir: &Path) -> Vec<u8> {
    let mut packed = Vec::new();
    let mut put = |bytes: &[u8]| {
        packed.extend_from_slice(&u32::try_from(bytes.len()).unwrap().to_le_bytes());
        packed.extend_from_slice(bytes);
    };
    let mut files = Vec::new();
    list(dir, &mut files);
    files.sort();
    for path in files {
        let bytes = fs::read(&path).unwrap();
        put(path.strip_prefix(dir).unwrap().to_str().unwrap().as_bytes());
        put(&u64::try_from(bytes.len()).unwrap().to_le_bytes());
        let mut at = 0;
        while let Some(skip) = bytes[at..].iter().position(|byte| *byte != 0) {
            let begin = at + skip;
            let zeros = bytes[begin..].windows(ZEROS).position(|bytes| bytes.iter().all(|byte| *byte == 0));
            at = zeros.map_or(bytes.len(), |zeros| begin + zeros);
            put(&u64::try_from(begin).unwrap().to_le_bytes());
            put(&bytes[begin..at]);
        }
        put(&[]);
    }
    packed
}

fn list(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { list(&path, files) } else { files.push(path) }
    }
}

fn unpack(packed: &[u8], dir: &Path) {
    let mut rest = packed;
    let mut take = || {
        let (len, behind) = rest.split_at_checked(4)?;
        let (bytes, behind) = behind.split_at(u32::from_le_bytes(len.try_into().unwrap()) as usize);
        rest = behind;
        Some(bytes)
    };
    let number = |bytes: &[u8]| usize::try_from(u64::from_le_bytes(bytes.try_into().unwrap())).unwrap();
    while let Some(name) = take() {
        let path = dir.join(std::str::from_utf8(name).unwrap());
        let mut bytes = vec![0; number(take().unwrap())];
        while let Some(begin) = take().filter(|begin| !begin.is_empty()) {
            let begin = number(begin);
            let stretch = take().unwrap();
            bytes[begin..begin + stretch.len()].copy_from_slice(stretch);
        }
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}
