//! Backups: the replicated state and the components it names as one checked file, of a scheduler that runs or of what
//! one left on its disk; and from such a file a new cluster of one. Must never restore over anything, nor make a scheduler
//! of a file that is not whole.
//!
//! A restored log goes on at a term and an index that follow the clock: above all that hosts have confirmed since the
//! backup was made, and above those of an earlier restore of the same file. So hosts take what it sends, and take nothing
//! any more of a scheduler of the old cluster, should one still run.

use crate::gather;
use crate::raft::{self, offline};
use crate::replica::Replica;
use crate::state::{Corrupt, State, VERSION, invariant};
use proto::app::{Digest, LatticeName};
use proto::backup::{Part, Piece, Problem, Reader, head};
use proto::v1 as pb;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// Bytes read and handed on at once.
pub const PIECE_BYTES: usize = 512 * 1024;
/// The folder in which a restore is prepared, within the data folder.
const RESTORING: &str = "restoring";
/// The restored scheduler's id; it has an authority of its own, so no other one has ever had it.
const ID: u64 = 1;
/// Log entries of a second that a cluster can not reach: the log index of a restore is its time in these.
const ENTRIES_PER_SECOND_BITS: u32 = 20;
/// By how much the clock of this machine may be behind that of the machine where the backup was made.
const CLOCK_BEHIND_MS: u64 = 3_600_000;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{doing} {}: {source}; check the disk's space and permissions, then try again", path.display())]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    #[error("backup {} can not be opened: {source}; name a file that is there and that this user can read", path.display())]
    Unopened { path: PathBuf, source: io::Error },
    #[error("backup {} {problem}", path.display())]
    File { path: PathBuf, problem: Problem },
    #[error("backup {} is of lattice {found:?}, not {wanted:?}; give --lattice {found} if it is meant", path.display())]
    OtherLattice { path: PathBuf, found: String, wanted: String },
    #[error(
        "backup {} was made by a newer lattice ({made_by}): its state has version {found}, this build knows up to {VERSION}; \
         restore it with that one or a newer one",
        path.display()
    )]
    NewerState { path: PathBuf, found: u32, made_by: String },
    #[error("backup {} holds a state that can not be: {detail}; take an older backup, and report this", path.display())]
    Unsound { path: PathBuf, detail: String },
    #[error(
        "backup {} was made at a time that is still to come by this machine's clock; set the clock: what hosts are sent is \
         ordered by it",
        path.display()
    )]
    Clock { path: PathBuf },
    #[error("data folder {} is not empty; give --data a new folder: nothing is restored over anything", .0.display())]
    NotEmpty(PathBuf),
    #[error(
        "data folder {} holds a restore that was cut short; remove the folder, and restore again",
        .0.display()
    )]
    HalfRestored(PathBuf),
    #[error("data folder {} holds no scheduler's log; name the --data of a scheduler", .0.display())]
    NoLog(PathBuf),
    #[error(
        "component {digest} is not in {}; start the scheduler so that it fetches it, or leave the components out with --bare",
        dir.display()
    )]
    Lacks { digest: Digest, dir: PathBuf },
    #[error("the state does not decode: {0}")]
    Corrupt(#[from] Corrupt),
    #[error(transparent)]
    Raft(#[from] raft::Error),
}

/// What is known of a backup besides its state.
pub(crate) struct About {
    pub(crate) lattice: LatticeName,
    pub(crate) made_ms: u64,
    pub(crate) term: u64,
    pub(crate) uncertain: u64,
    /// The components are left out.
    pub(crate) bare: bool,
}

/// A backup that can be written.
pub(crate) struct Made {
    pub(crate) backup: pb::Backup,
    state: Vec<u8>,
    components: Vec<PathBuf>,
}

impl Made {
    /// Of this state, with the components that are held in `artifacts`.
    pub(crate) fn of(state: &State, about: About, artifacts: &Path) -> Result<Self, Error> {
        let bytes = state.to_bytes();
        let named = if about.bare { BTreeSet::new() } else { gather::named(state) };
        let (mut components, mut parts) = (Vec::new(), Vec::new());
        for digest in named {
            let path = artifacts.join(digest.hex());
            let size = match fs::metadata(&path) {
                Ok(meta) => meta.len(),
                Err(_) => return Err(Error::Lacks { digest, dir: artifacts.to_path_buf() }),
            };
            parts.push(pb::BackupPart { digest: digest.to_string(), size });
            components.push(path);
        }
        let backup = pb::Backup {
            lattice: about.lattice.to_string(),
            made_ms: about.made_ms,
            made_by: env!("CARGO_PKG_VERSION").to_owned(),
            index: state.applied,
            term: about.term,
            vocabulary: state.vocabulary,
            uncertain: about.uncertain,
            apps: state.apps.len() as u64,
            hosts: state.hosts.len() as u64,
            bare: about.bare,
            state: Some(pb::BackupPart { digest: Digest::of(&bytes).to_string(), size: bytes.len() as u64 }),
            components: parts,
        };
        Ok(Self { backup, state: bytes, components })
    }

    /// Hands all of its bytes to `sink`, in pieces of a bounded size. Blocks on the disk.
    pub(crate) fn write(&self, sink: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> Result<(), Error> {
        let to = |source| Error::Io { doing: "cannot hand on", path: "the backup".into(), source };
        for piece in head(&self.backup).chunks(PIECE_BYTES).chain(self.state.chunks(PIECE_BYTES)) {
            sink(piece).map_err(to)?;
        }
        for path in &self.components {
            let file = File::open(path).map_err(io_at("cannot open", path))?;
            each_piece(file, path, |piece| sink(piece).map_err(to))?;
        }
        Ok(())
    }
}

/// A backup of what a scheduler that does not run has left in its data folder, which is not changed.
pub fn of_folder(
    data: &Path,
    lattice: &LatticeName,
    bare: bool,
    now_ms: u64,
    sink: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> Result<pb::Backup, Error> {
    let mut replica = Replica::default();
    let left = offline::read(&data.join("raft"), &mut replica)?.ok_or_else(|| Error::NoLog(data.to_path_buf()))?;
    let about = About { lattice: lattice.clone(), made_ms: now_ms, term: left.term, uncertain: left.uncertain, bare };
    let made = Made::of(&replica.read(), about, &data.join("artifacts"))?;
    made.write(sink)?;
    Ok(made.backup)
}

/// Reads a whole backup; gives what it is of if nothing is wrong with it.
pub fn check(file: &Path) -> Result<pb::Backup, Error> {
    read(file, None, |_, _| Ok(())).map(|(backup, _)| backup)
}

/// Makes of a backup, in an empty data folder, a scheduler that is alone. Durable on return, and nothing before that.
pub fn restore(file: &Path, data: &Path, lattice: &LatticeName, now_ms: u64) -> Result<pb::Backup, Error> {
    expect_empty(data)?;
    let new = data.join(RESTORING);
    let artifacts = new.join("artifacts");
    let done = (|| {
        fs::create_dir_all(&artifacts).map_err(io_at("cannot make folder", &artifacts))?;
        let mut open: Option<File> = None;
        let (backup, mut state) = read(file, Some(lattice), |digest, piece| {
            let path = artifacts.join(digest.hex());
            let out = match &mut open {
                Some(out) => out,
                None => open.insert(File::create(&path).map_err(io_at("cannot make", &path))?),
            };
            out.write_all(piece.data).map_err(io_at("cannot write", &path))?;
            if piece.whole {
                out.sync_all().map_err(io_at("cannot sync", &path))?;
                open = None;
            }
            Ok(())
        })?;
        if backup.made_ms > now_ms + CLOCK_BEHIND_MS {
            return Err(Error::Clock { path: file.to_path_buf() });
        }
        let (term, index) = beginning(&backup, now_ms);
        state.begin_anew(index);
        let log_id = ulid::Ulid::generate().to_string();
        offline::make(&new.join("raft"), ID, &log_id, (term, index), state.to_bytes())?;
        sync_dir(&artifacts)?;
        sync_dir(&new)?;
        // The log last: with it, the folder is a scheduler's.
        for name in ["artifacts", "raft"] {
            let to = data.join(name);
            fs::rename(new.join(name), &to).map_err(io_at("cannot move into place", &to))?;
            sync_dir(data)?;
        }
        Ok(backup)
    })();
    // Of a restore that failed nothing is left.
    let removed = fs::remove_dir_all(&new).and_then(|()| File::open(data)?.sync_all());
    let backup = done?;
    removed.map_err(io_at("cannot remove", &new))?;
    Ok(backup)
}

/// Refuses a data folder in which a restore was begun and not ended.
pub(crate) fn expect_whole(data: &Path) -> Result<(), Error> {
    if data.join(RESTORING).exists() { Err(Error::HalfRestored(data.to_path_buf())) } else { Ok(()) }
}

/// The (term, index) at which the log of a restore begins.
fn beginning(backup: &pb::Backup, now_ms: u64) -> (u64, u64) {
    let seconds = now_ms / 1000;
    ((backup.term + 1).max(seconds), (backup.index + 1).max(seconds << ENTRIES_PER_SECOND_BITS))
}

fn expect_empty(data: &Path) -> Result<(), Error> {
    expect_whole(data)?;
    match fs::read_dir(data) {
        Ok(entries) => {
            // A file system of its own has this.
            let mut others = entries.flatten().filter(|entry| entry.file_name() != "lost+found");
            if others.next().is_some() { Err(Error::NotEmpty(data.to_path_buf())) } else { Ok(()) }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(Error::Io { doing: "cannot read", path: data.to_path_buf(), source }),
    }
}

/// Reads a backup, of this lattice if one is named; `sink` is handed the components.
fn read(
    file: &Path,
    lattice: Option<&LatticeName>,
    mut sink: impl FnMut(&Digest, &Piece<'_>) -> Result<(), Error>,
) -> Result<(pb::Backup, State), Error> {
    let path = || file.to_path_buf();
    let (mut reader, mut state) = (Reader::default(), Vec::new());
    let mut head_seen = false;
    let opened = File::open(file).map_err(|source| Error::Unopened { path: path(), source })?;
    each_piece(opened, file, |bytes| {
        let taken = reader.take::<Failed>(bytes, |piece| match piece.of {
            Part::State => {
                state.extend_from_slice(piece.data);
                Ok(())
            }
            Part::Component { digest, .. } => sink(digest, &piece).map_err(Failed::Sink),
        });
        taken.map_err(|failed| match failed {
            Failed::Problem(problem) => Error::File { path: path(), problem },
            Failed::Sink(error) => error,
        })?;
        if let (false, Some(backup)) = (head_seen, reader.backup()) {
            head_seen = true;
            expect_readable(file, backup, lattice)?;
        }
        Ok(())
    })?;
    let backup = reader.end().map_err(|problem| Error::File { path: path(), problem })?;
    let unsound = |detail: String| Error::Unsound { path: path(), detail };
    let state = State::from_bytes(&state).map_err(|error| unsound(error.to_string()))?;
    if let Some(found) = invariant::check(&state).into_iter().next() {
        return Err(unsound(found));
    }
    if state.applied != backup.index {
        return Err(unsound(format!("it is of log index {}, its head says {}", state.applied, backup.index)));
    }
    let held: BTreeSet<&str> = backup.components.iter().map(|part| part.digest.as_str()).collect();
    if let Some(lacks) = gather::named(&state).into_iter().find(|d| !backup.bare && !held.contains(d.as_str())) {
        return Err(unsound(format!("it names component {lacks}, which the file lacks")));
    }
    Ok((backup, state))
}

fn expect_readable(file: &Path, backup: &pb::Backup, lattice: Option<&LatticeName>) -> Result<(), Error> {
    if let Some(wanted) = lattice.filter(|wanted| wanted.as_str() != backup.lattice) {
        let (found, wanted) = (backup.lattice.clone(), wanted.to_string());
        return Err(Error::OtherLattice { path: file.to_path_buf(), found, wanted });
    }
    if backup.vocabulary > VERSION {
        let (found, made_by) = (backup.vocabulary, backup.made_by.clone());
        return Err(Error::NewerState { path: file.to_path_buf(), found, made_by });
    }
    Ok(())
}

/// Of a reader whose sink can fail too.
enum Failed {
    Problem(Problem),
    Sink(Error),
}

impl From<Problem> for Failed {
    fn from(problem: Problem) -> Self {
        Self::Problem(problem)
    }
}

fn each_piece(mut file: File, path: &Path, mut take: impl FnMut(&[u8]) -> Result<(), Error>) -> Result<(), Error> {
    let mut buffer = vec![0; PIECE_BYTES];
    loop {
        match file.read(&mut buffer).map_err(io_at("cannot read", path))? {
            0 => return Ok(()),
            n => take(&buffer[..n])?,
        }
    }
}

fn sync_dir(dir: &Path) -> Result<(), Error> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(io_at("cannot sync", dir))
}

fn io_at(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_path_buf();
    move |source| Error::Io { doing, path, source }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "test helpers")]

    use super::*;
    use crate::raft::StateMachine as _;
    use prost::Message as _;
    use proto::v1::command::What;

    const NOW: u64 = 1_800_000_000_000;
    const HOST: &str = "01JZZZZZZZZZZZZZZZZZZZZZZZ";

    fn plant() -> LatticeName {
        "plant".parse().unwrap()
    }

    /// A state with one app, one component and one host.
    fn state() -> (State, Vec<u8>) {
        let component = b"bytes of a component".to_vec();
        let spec = serde_json::json!({
            "name": "hello",
            "components": {"hello": {
                "kind": {"actor": {"image": "./hello.wasm", "digest": Digest::of(&component).as_str()}},
                "scaler": {"spread": {"replicas": 2, "spread": []}},
            }},
        });
        let mut state = State::default();
        let mut apply = |index, what| {
            let command = pb::Command { request_id: format!("r{index}"), what: Some(what) };
            let entry = pb::Entry { version: 1, time_ms: NOW, commands: vec![command] };
            let outcomes = state.apply(index, &entry, &mut BTreeSet::new());
            assert_eq!(outcomes[0].error, "");
        };
        let spec = spec.to_string().into_bytes();
        apply(2, What::ApplyApp(pb::ApplyApp { spec, if_version: 0 }));
        let hello = pb::Hello { host: HOST.into(), lattice: "plant".into(), name: "edge".into(), ..Default::default() };
        apply(3, What::RegisterHost(pb::RegisterHost { hello: Some(hello) }));
        let (peer, api, log_id) = ("m:1".into(), "m:2".into(), "old".into());
        let set = pb::SetMember { id: 1, peer, api, log_id, vocabulary: 1 };
        apply(4, What::SetMember(set));
        (state, component)
    }

    fn about(bare: bool) -> About {
        About { lattice: plant(), made_ms: NOW, term: 7, uncertain: 0, bare }
    }

    fn written(made: &Made) -> Vec<u8> {
        let mut bytes = Vec::new();
        made.write(&mut |piece| {
            bytes.extend_from_slice(piece);
            Ok(())
        })
        .unwrap();
        bytes
    }

    fn backup(dir: &Path, bare: bool) -> (PathBuf, State) {
        let (state, component) = state();
        let artifacts = dir.join("artifacts");
        fs::create_dir_all(&artifacts).unwrap();
        if !bare {
            let error = Made::of(&state, about(false), &artifacts).err().unwrap().to_string();
            assert!(error.contains("--bare"), "{error}");
        }
        fs::write(artifacts.join(Digest::of(&component).hex()), component).unwrap();
        let file = dir.join("b.lattice");
        fs::write(&file, written(&Made::of(&state, about(bare), &artifacts).unwrap())).unwrap();
        (file, state)
    }

    fn found(data: &Path) -> (offline::Left, State) {
        let mut replica = Replica::default();
        let left = offline::read(&data.join("raft"), &mut replica).unwrap().unwrap();
        let state = replica.read().clone();
        (left, state)
    }

    #[test]
    fn what_is_restored_is_what_was_and_above_all_that_hosts_have_confirmed() {
        let dir = tempfile::tempdir().unwrap();
        let (file, before) = backup(dir.path(), false);
        let data = dir.path().join("new");
        let restored = restore(&file, &data, &plant(), NOW).unwrap();
        assert_eq!((restored.apps, restored.hosts, restored.components.len()), (1, 1, 1));
        assert_eq!(check(&file).unwrap(), restored);
        let (left, state) = found(&data);
        assert_eq!((left.id, left.term, left.index), (1, NOW / 1000, (NOW / 1000) << 20));
        assert!(left.index < 1 << 53, "a number that every JSON reader can hold");
        assert_eq!((&state.apps, &state.placements), (&before.apps, &before.placements));
        assert!(state.hosts.values().all(|host| host.generation == left.index));
        assert!(state.members.is_empty() && state.answered("r2").is_some());
        assert_eq!(invariant::check(&state), Vec::<String>::new());
        let digest = gather::named(&state).into_iter().next().unwrap();
        assert_eq!(Digest::of(&fs::read(data.join("artifacts").join(digest.hex())).unwrap()), digest);
        assert!(!data.join(RESTORING).exists());

        // Once more, later: above whatever the first restore went on to do.
        let again = dir.path().join("again");
        restore(&file, &again, &plant(), NOW + 1_000).unwrap();
        let later = found(&again).0;
        assert!(later.term > left.term && later.index >= left.index + (1 << 20));
        // A clock that went wrong is no reason to go back.
        assert_eq!(beginning(&restored, 0), (8, 5));
    }

    #[test]
    fn a_restore_is_refused_with_its_reason_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (file, _) = backup(dir.path(), false);
        let data = dir.path().join("new");
        let refused = |file: &Path, lattice: &str, now| {
            let error = restore(file, &data, &lattice.parse().unwrap(), now).unwrap_err().to_string();
            assert!(fs::read_dir(&data).map_or(0, |entries| entries.count()) == 0, "{error}");
            error
        };
        assert!(refused(&file, "home", NOW).contains("--lattice plant"));
        assert!(refused(&file, "plant", NOW - 2 * CLOCK_BEHIND_MS).contains("set the clock"));
        assert!(refused(&dir.path().join("none"), "plant", NOW).contains("none can not be opened"));
        let bytes = fs::read(&file).unwrap();
        for (worse, says) in [
            (bytes[..bytes.len() - 3].to_vec(), "cut short in its component"),
            ([&bytes[..bytes.len() - 1], b"!"].concat(), "other bytes"),
            (b"PK\x03\x04 something else".to_vec(), "not a backup"),
        ] {
            let file = dir.path().join("worse");
            fs::write(&file, worse).unwrap();
            let error = refused(&file, "plant", NOW);
            assert!(error.contains(says), "{error}");
            assert!(check(&file).is_err());
        }
        restore(&file, &data, &plant(), NOW).unwrap();
        assert!(matches!(restore(&file, &data, &plant(), NOW).unwrap_err(), Error::NotEmpty(_)));
        let half = dir.path().join("half");
        fs::create_dir_all(half.join(RESTORING)).unwrap();
        assert!(matches!(restore(&file, &half, &plant(), NOW).unwrap_err(), Error::HalfRestored(_)));
        assert!(expect_whole(&half).is_err() && expect_whole(&data).is_ok());
    }

    #[test]
    fn a_newer_state_or_one_that_can_not_be_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (state, _) = state();
        let write = |change: &dyn Fn(&mut Made)| {
            let mut made = Made::of(&state, about(true), dir.path()).unwrap();
            change(&mut made);
            let file = dir.path().join("file");
            fs::write(&file, written(&made)).unwrap();
            check(&file)
        };
        assert!(write(&|_| {}).is_ok());
        let error = write(&|made| made.backup.vocabulary = VERSION + 1).unwrap_err().to_string();
        assert!(error.contains("newer lattice") && error.contains("restore it with that one"), "{error}");
        assert!(write(&|made| made.backup.index += 1).unwrap_err().to_string().contains("its head says"));
        let error = write(&|made| made.backup.bare = false).unwrap_err().to_string();
        assert!(error.contains("which the file lacks"), "{error}");
        let error = write(&|made| {
            made.state = b"\xff\xff".to_vec();
            made.backup.state = Some(pb::BackupPart { digest: Digest::of(&made.state).to_string(), size: 2 });
        });
        assert!(matches!(error.unwrap_err(), Error::Unsound { .. }));
    }

    #[tokio::test]
    async fn a_folder_that_was_left_is_backed_up_with_its_last_entry() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let none = of_folder(&data, &plant(), true, NOW, &mut |_| Ok(()));
        assert!(matches!(none, Err(Error::NoLog(_))), "{none:?}");
        assert!(!data.exists(), "looking made nothing");
        let replica = Replica::default();
        let log = raft::start(raft::Config::alone(1, data.join("raft")), replica.clone(), raft::Alone).unwrap();
        let spec = br#"{"name":"hello","components":{}}"#.to_vec();
        let what = What::ApplyApp(pb::ApplyApp { spec, if_version: 0 });
        let command = pb::Command { request_id: "r".into(), what: Some(what) };
        let entry = pb::Entry { version: 1, time_ms: NOW, commands: vec![command] };
        log.propose(entry.encode_to_vec()).await.unwrap();
        log.shutdown().await;
        let mut bytes = Vec::new();
        let made = of_folder(&data, &plant(), false, NOW, &mut |piece| {
            bytes.extend_from_slice(piece);
            Ok(())
        });
        assert_eq!(made.unwrap().apps, 1);
        let file = dir.path().join("file");
        fs::write(&file, bytes).unwrap();
        let (new, expected) = (dir.path().join("new"), replica.snapshot());
        restore(&file, &new, &plant(), NOW).unwrap();
        let mut state = State::from_bytes(&expected).unwrap();
        state.begin_anew((NOW / 1000) << 20);
        assert_eq!(found(&new).1, state);
    }
}
