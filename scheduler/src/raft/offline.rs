//! A log that no member runs: read as it is left, or made around a state that has a history. Must never change what it
//! reads, nor be given a folder that is in use.

use std::path::Path;

use super::disk::{Disk, Sled};
use super::storage::{Begin, Store};
use super::{Error, StateMachine};

/// What a member that does not run has on its disk.
#[derive(Debug)]
pub struct Left {
    pub id: u64,
    /// The newest that it knew of.
    pub term: u64,
    /// Log index of the last entry, which `state` reflects.
    pub index: u64,
    /// Entries at the end that it does not know to be committed. Each may have been acknowledged by others, so all of
    /// them are applied: what was acknowledged is kept, what was not takes effect as a retry would have made it.
    pub uncertain: u64,
}

/// Brings `state` to what the log in `dir` gives, its last entry included. `None`: there is no log.
pub fn read(dir: &Path, state: &mut impl StateMachine) -> Result<Option<Left>, Error> {
    if !dir.join("raft").join("db").exists() {
        return Ok(None);
    }
    read_disk(Sled::open(dir)?, dir, state)
}

fn read_disk<D: Disk>(disk: D, dir: &Path, state: &mut impl StateMachine) -> Result<Option<Left>, Error> {
    let Some((id, opened)) = Store::look(disk, dir)? else { return Ok(None) };
    let start = opened.start;
    let mut index = start.snapshot.index;
    state.restore(index, &opened.state).map_err(|detail| Error::Restore { index, detail })?;
    let mut uncertain = 0;
    for entry in &start.entries {
        if entry.index <= start.snapshot.index {
            continue;
        }
        index = entry.index;
        uncertain += u64::from(index > start.hard.commit);
        // Changes of members mean nothing to the state, nor does the first entry of a leader.
        if entry.kind == 0 && !entry.data.is_empty() {
            state.can_apply(&entry.data).map_err(|detail| Error::Newer { index, detail })?;
            state.apply(index, &entry.data);
        } else {
            state.pass(index);
        }
    }
    Ok(Some(Left { id, term: start.hard.term, index, uncertain }))
}

/// Makes a log in `dir` whose only member is `id` and whose state, at this (term, index), is `state`. Durable on return.
pub fn make(dir: &Path, id: u64, log_id: &str, at: (u64, u64), state: Vec<u8>) -> Result<(), Error> {
    let disk = Sled::open(dir)?;
    let begin = Begin { voters: &[id], log_id, may_begin: true, at };
    let (_, opened) = Store::open(disk, dir, id, &begin, || state)?;
    if opened.fresh { Ok(()) } else { Err(Error::InUse { dir: dir.to_path_buf() }) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "test helpers")]

    use super::super::tests::Words;
    use super::super::{Alone, Config, start};
    use super::*;

    fn config(dir: &Path) -> Config {
        Config { tick_ms: 10, log_bytes_max: 2_000, ..Config::alone(1, dir) }
    }

    #[tokio::test]
    async fn what_is_left_is_read_to_its_last_entry_and_a_log_goes_on_from_it() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        assert!(read(dir.path(), &mut Words::default()).unwrap().is_none());
        let words = Words::default();
        let handle = start(config(dir.path()), words.clone(), Alone).unwrap();
        let mut last = 0;
        for number in 0..100u32 {
            last = handle.propose(number.to_be_bytes().to_vec()).await.unwrap().index;
        }
        assert!(handle.status().borrow().snapshot > 1, "a snapshot and a tail");
        let refused = read(dir.path(), &mut Words::default()).unwrap_err();
        assert!(matches!(refused, Error::InUse { .. }), "{refused}");
        handle.shutdown().await;

        for _ in 0..2 {
            let mut found = Words::default();
            let left = read(dir.path(), &mut found).unwrap().unwrap();
            assert_eq!((left.id, left.index), (1, last));
            assert_eq!(found.all(), words.all());
        }
        // A history may be of any length.
        let at = (1 << 31, 1 << 51);
        make(other.path(), 1, "other", at, words.snapshot()).unwrap();
        assert!(make(other.path(), 1, "other", at, words.snapshot()).is_err(), "once");
        for round in 0..2 {
            let found = Words::default();
            let handle = start(config(other.path()), found.clone(), Alone).unwrap();
            let applied = handle.propose(b"next".to_vec()).await.unwrap();
            assert!(applied.index > at.1 && handle.status().borrow().term >= at.0);
            assert_eq!(found.all()[..100], words.all());
            assert_eq!(found.all().len(), 101 + round);
            assert_eq!(handle.log_id(), "other");
            handle.shutdown().await;
        }
    }

    #[test]
    fn entries_not_known_to_be_committed_are_kept_and_counted() {
        use super::super::tests::Memory;
        use proto::v1::{RaftEntry, RaftHardState};
        let memory = Memory::default();
        let begin = Begin { voters: &[1, 2, 3], log_id: "l", may_begin: true, at: (1, 1) };
        let (mut store, _) = Store::open(memory.clone(), Path::new("memory"), 1, &begin, Vec::new).unwrap();
        let entry = |index: u64| RaftEntry { term: 2, index, data: vec![7], ..RaftEntry::default() };
        let hard = RaftHardState { term: 3, vote: 0, commit: 2 };
        store.write(None, &[entry(2), entry(3), entry(4)], Some(hard), true).unwrap();
        drop(store);
        let mut words = Words::default();
        let left = read_disk(memory, Path::new("memory"), &mut words).unwrap().unwrap();
        assert_eq!((left.term, left.index, left.uncertain), (3, 4, 2));
        assert_eq!(words.all().len(), 3);
    }
}
