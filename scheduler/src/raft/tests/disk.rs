//! One member on a real sled store: replay, group commit, truncation, damage.

#![allow(clippy::unwrap_used, reason = "test helpers")]

use std::fs;
use std::path::Path;

use super::Words;
use crate::raft::{Alone, Config, Error, Handle, Role, StateMachine, start};

fn config(dir: &Path) -> Config {
    Config { tick_ms: 10, ..Config::alone(1, dir) }
}

fn open(dir: &Path) -> (Handle, Words) {
    let words = Words::default();
    (start(config(dir), words.clone(), Alone).unwrap(), words)
}

fn word(number: usize) -> Vec<u8> {
    format!("word {number}").into_bytes()
}

#[tokio::test]
async fn what_was_answered_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (handle, words) = open(dir.path());
    let mut last = 0;
    for number in 0..20 {
        let applied = handle.propose(word(number)).await.unwrap();
        assert_eq!(applied.outcome, [b"did ", word(number).as_slice()].concat());
        assert!(applied.index > last);
        last = applied.index;
    }
    let before = words.all();
    assert_eq!(before.len(), 20);
    handle.shutdown().await;
    assert!(matches!(handle.propose(word(0)).await, Err(Error::Stopped)));

    let (handle, words) = open(dir.path());
    assert!(handle.read_index().await.unwrap() >= last);
    assert_eq!(words.all(), before);
    let again = handle.propose(word(20)).await.unwrap();
    assert!(again.index > last);
    handle.shutdown().await;
}

#[tokio::test]
async fn a_member_alone_leads_at_once_and_reads() {
    let dir = tempfile::tempdir().unwrap();
    let (handle, words) = open(dir.path());
    handle.propose(word(1)).await.unwrap();
    let status = handle.status().borrow().clone();
    assert_eq!((status.role, status.leader, status.id), (Role::Leader, Some(1), 1));
    let reads = (0..100).map(|_| handle.read_index());
    for read in futures::future::join_all(reads).await {
        assert!(read.unwrap() >= words.all()[0].0);
    }
    handle.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn proposals_that_wait_together_share_a_flush() {
    const PROPOSERS: usize = 64;
    const EACH: usize = 20;
    let dir = tempfile::tempdir().unwrap();
    let (handle, words) = open(dir.path());
    handle.propose(word(0)).await.unwrap();
    let before = handle.status().borrow().syncs;
    let proposers = (0..PROPOSERS).map(|proposer| {
        let handle = handle.clone();
        tokio::spawn(async move {
            for number in 0..EACH {
                handle.propose(word(proposer * EACH + number)).await.unwrap();
            }
        })
    });
    for proposer in proposers.collect::<Vec<_>>() {
        proposer.await.unwrap();
    }
    handle.shutdown().await;
    let syncs = usize::try_from(handle.status().borrow().syncs - before).unwrap();
    assert_eq!(words.all().len(), 1 + PROPOSERS * EACH);
    assert!(syncs >= EACH, "a proposer waits for its flush before the next");
    assert!(syncs * 4 < PROPOSERS * EACH, "{syncs} flushes for {} entries", PROPOSERS * EACH);
}

#[tokio::test]
async fn a_truncated_log_gives_the_same_state_as_a_whole_one() {
    let (whole_dir, cut_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let cut_config = Config { log_bytes_max: 4096, ..config(cut_dir.path()) };
    let (whole, whole_words) = open(whole_dir.path());
    let cut_words = Words::default();
    let cut = start(cut_config.clone(), cut_words.clone(), Alone).unwrap();
    for number in 0..300 {
        let (one, other) = futures::future::join(whole.propose(word(number)), cut.propose(word(number))).await;
        assert_eq!(one.unwrap().index, other.unwrap().index);
    }
    whole.shutdown().await;
    cut.shutdown().await;
    assert_eq!(whole.status().borrow().snapshot, 1);
    assert!(cut.status().borrow().snapshot > 200);
    assert!(cut.status().borrow().log_bytes <= 4096 + 100);
    let expected = whole_words.snapshot();
    assert_eq!(cut_words.snapshot(), expected);

    let (whole, whole_words) = open(whole_dir.path());
    let cut_words = Words::default();
    let cut = start(cut_config, cut_words.clone(), Alone).unwrap();
    whole.read_index().await.unwrap();
    cut.read_index().await.unwrap();
    assert_eq!(whole_words.snapshot(), expected);
    assert_eq!(cut_words.snapshot(), expected);
    cut.propose(word(300)).await.unwrap();
    cut.shutdown().await;
    whole.shutdown().await;
}

/// A state as small as it gets: what is left to grow is the log.
struct Last(u64);

impl StateMachine for Last {
    fn apply(&mut self, index: u64, _: &[u8]) -> Vec<u8> {
        self.0 = index;
        Vec::new()
    }
    fn snapshot(&self) -> Vec<u8> {
        self.0.to_be_bytes().to_vec()
    }
    fn restore(&mut self, _: u64, snapshot: &[u8]) -> Result<(), String> {
        self.0 = u64::from_be_bytes(snapshot.try_into().map_err(|_| "eight bytes")?);
        Ok(())
    }
}

fn bytes_of(dir: &Path) -> u64 {
    let bytes = |entry: fs::DirEntry| match entry.metadata().unwrap() {
        about if about.is_dir() => bytes_of(&entry.path()),
        about => about.len(),
    };
    fs::read_dir(dir).unwrap().map(|entry| bytes(entry.unwrap())).sum()
}

#[tokio::test]
async fn large_writes_without_end_leave_a_log_of_bounded_size() {
    const MAX: u64 = 512 << 10;
    const ENTRY: usize = 64 << 10;
    const AT_ONCE: usize = 4;
    let dir = tempfile::tempdir().unwrap();
    let config = Config { log_bytes_max: MAX, ..config(dir.path()) };
    let handle = start(config.clone(), Last(0), Alone).unwrap();
    let (mut most, mut on_disk) = (0, 0);
    // Fifty times the bound.
    for round in 0..100_u8 {
        let all = (0..AT_ONCE).map(|_| handle.propose(vec![round; ENTRY]));
        for done in futures::future::join_all(all).await {
            done.unwrap();
        }
        most = most.max(handle.status().borrow().log_bytes);
        if round % 10 == 9 {
            on_disk = on_disk.max(bytes_of(dir.path()));
        }
    }
    assert!(most <= MAX + (2 * AT_ONCE * ENTRY) as u64, "{most} bytes of log, bound {MAX}");
    assert!(on_disk < 16 * MAX, "{on_disk} bytes on disk for a log of {MAX}");
    let last = handle.status().borrow().applied;
    handle.shutdown().await;
    let begun = std::time::Instant::now();
    let handle = start(config, Last(0), Alone).unwrap();
    assert!(handle.read_index().await.unwrap() > last);
    eprintln!("at most {most} bytes of log, {on_disk} on disk; opened again in {:?}", begun.elapsed());
    handle.shutdown().await;
}

/// sled never syncs the files that it makes for large pages.
#[tokio::test]
async fn large_entries_and_snapshots_stay_in_the_synced_file() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { log_bytes_max: 1 << 20, ..config(dir.path()) };
    let words = Words::default();
    let handle = start(config.clone(), words.clone(), Alone).unwrap();
    for number in 0..24_usize {
        let size = [1, 100, 4087, 4088, 4089, 70_000, 1 << 20][number % 7];
        handle.propose(vec![u8::try_from(number).unwrap(); size]).await.unwrap();
    }
    let before = words.all();
    handle.shutdown().await;
    assert!(handle.status().borrow().snapshot > 1);
    assert_eq!(fs::read_dir(dir.path().join("raft/blobs")).unwrap().count(), 0);
    // What this is about: a value as large as some of these entries, given to sled in one piece.
    let other = tempfile::tempdir().unwrap();
    let db = sled::open(other.path()).unwrap();
    db.insert(b"key", vec![7; 1 << 20]).unwrap();
    db.flush().unwrap();
    assert_eq!(fs::read_dir(other.path().join("blobs")).unwrap().count(), 1);

    let words = Words::default();
    let handle = start(config, words.clone(), Alone).unwrap();
    handle.read_index().await.unwrap();
    assert_eq!(words.all(), before);
    handle.shutdown().await;
}

#[tokio::test]
async fn a_directory_in_use_or_of_another_member_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (handle, _) = open(dir.path());
    let refused = start(config(dir.path()), Words::default(), Alone).err().unwrap();
    assert!(matches!(refused, Error::InUse { .. }), "{refused}");
    assert!(refused.to_string().contains("in use by another lattice process; end it or give another --data"));
    handle.shutdown().await;

    let other = Config { id: 2, voters: vec![2], ..config(dir.path()) };
    let refused = start(other, Words::default(), Alone).err().unwrap();
    assert!(matches!(refused, Error::Foreign { owner: 1, id: 2, .. }), "{refused}");
    let (handle, _) = open(dir.path());
    handle.shutdown().await;
}

#[tokio::test]
async fn a_damaged_record_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (handle, _) = open(dir.path());
    for number in 0..5 {
        handle.propose(word(number)).await.unwrap();
    }
    handle.shutdown().await;
    for (prefix, expected) in [(&b"l"[..], "log entry 4"), (b"m/hard", "term and vote"), (b"m/start", "log begins")] {
        let db = sled::open(dir.path().join("raft")).unwrap();
        let (key, value) = db.scan_prefix(prefix).map(Result::unwrap).nth(if prefix == b"l" { 2 } else { 0 }).unwrap();
        let mut worse = value.to_vec();
        *worse.last_mut().unwrap() ^= 1;
        db.insert(&key, worse).unwrap();
        drop(db);
        let error = start(config(dir.path()), Words::default(), Alone).err().unwrap();
        assert!(matches!(error, Error::Damaged { .. }) && !error.is_retryable());
        let text = error.to_string();
        assert!(text.contains(expected) && text.contains("raft/db") && text.contains("checksum"), "{text}");
        let db = sled::open(dir.path().join("raft")).unwrap();
        db.insert(key, value).unwrap();
    }
    // An entry that is gone from the middle.
    let db = sled::open(dir.path().join("raft")).unwrap();
    let (key, _) = db.scan_prefix(b"l").map(Result::unwrap).nth(2).unwrap();
    db.remove(key).unwrap();
    drop(db);
    let text = start(config(dir.path()), Words::default(), Alone).err().unwrap().to_string();
    assert!(text.contains("log entry 4: is missing"), "{text}");
}

#[tokio::test]
async fn a_torn_or_trampled_store_never_panics() {
    let dir = tempfile::tempdir().unwrap();
    let (handle, _) = open(dir.path());
    for number in 0..50 {
        handle.propose(vec![7; 1000 + number]).await.unwrap();
    }
    handle.shutdown().await;
    let whole = fs::read(dir.path().join("raft/db")).unwrap();
    for cut in [1, 3, 10, 100] {
        let torn = tempfile::tempdir().unwrap();
        fs::create_dir_all(torn.path().join("raft/blobs")).unwrap();
        fs::copy(dir.path().join("raft/conf"), torn.path().join("raft/conf")).unwrap();
        let mut bytes = whole[..whole.len() - whole.len() / 100 * (cut % 100)].to_vec();
        if cut == 100 {
            bytes[20_000..40_000].fill(0x5a);
        }
        fs::write(torn.path().join("raft/db"), bytes).unwrap();
        match start(config(torn.path()), Words::default(), Alone) {
            Ok(handle) => handle.shutdown().await,
            Err(error) => assert!(!error.is_retryable(), "{error}"),
        }
    }
}

#[tokio::test]
async fn bounds_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { proposals_max: 2, entry_bytes_max: 10, ..config(dir.path()) };
    let handle = start(config.clone(), Words::default(), Alone).unwrap();
    assert!(matches!(handle.propose(Vec::new()).await, Err(Error::EntryBytes { len: 0, max: 10 })));
    assert!(matches!(handle.propose(vec![0; 11]).await, Err(Error::EntryBytes { len: 11, max: 10 })));
    let all = futures::future::join_all((0..3).map(|_| handle.propose(vec![1]))).await;
    assert!(all[..2].iter().all(Result::is_ok));
    let error = all[2].as_ref().unwrap_err();
    assert!(matches!(error, Error::Overloaded { limit: 2, .. }) && error.is_retryable());
    handle.shutdown().await;
    for wrong in [Config { id: 0, ..config.clone() }, Config { voters: vec![2], ..config.clone() }] {
        assert!(matches!(start(wrong, Words::default(), Alone), Err(Error::Config(_))));
    }
}
