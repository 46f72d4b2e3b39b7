//! Power cuts: what was answered before one is there after it, whatever of the unsynced rest survives.

#![allow(clippy::unwrap_used, reason = "test helpers")]

use std::sync::mpsc;

use super::{Dice, Entries, Memory, Words};
use crate::raft::drive;
use crate::raft::{Alone, Config, Error, Handle};

fn open(disk: &Memory, words: &Words) -> (Handle, mpsc::Receiver<String>) {
    let config = Config { tick_ms: 5, log_bytes_max: 3000, ..Config::alone(1, "memory") };
    let (tell, told) = mpsc::channel();
    let on_fatal = Box::new(move |error: &Error| tell.send(error.to_string()).unwrap());
    (drive::start(config, disk.clone(), words.clone(), Box::new(Alone), on_fatal).unwrap(), told)
}

/// Four lives that end by a power cut each; what was answered in any of them, and is not there in a fifth.
async fn lost(seed: u64, disk: Memory) -> Entries {
    let mut dice = Dice(seed * 0x9e37_79b9);
    let mut answered: Entries = Vec::new();
    for life in 0..4_u8 {
        let words = Words::default();
        let (handle, fatal) = open(&disk, &words);
        disk.fail_at_sync(1 + dice.roll(25));
        let proposers = (0..8_u8).map(|proposer| {
            let handle = handle.clone();
            async move {
                let mut done = Vec::new();
                for number in 0..60_u8 {
                    let data = vec![life, proposer, number];
                    match handle.propose(data.clone()).await {
                        Ok(applied) => done.push((applied.index, data)),
                        Err(_) => break,
                    }
                }
                done
            }
        });
        for done in futures::future::join_all(proposers).await {
            answered.extend(done);
        }
        handle.shutdown().await;
        assert!(fatal.try_recv().unwrap().contains("no power"), "seed {seed}: the failed sync ends the member");
        let unsynced = disk.unsynced() as u64;
        disk.cut(usize::try_from(dice.roll(unsynced + 1)).unwrap());
    }
    assert!(answered.len() > 20, "seed {seed}: {} answers show little", answered.len());
    let words = Words::default();
    let (handle, _fatal) = open(&disk, &words);
    handle.read_index().await.unwrap();
    let all = words.all();
    handle.shutdown().await;
    answered.retain(|entry| !all.contains(entry));
    answered
}

#[tokio::test]
async fn nothing_answered_is_lost() {
    for seed in 1..=40 {
        assert_eq!(lost(seed, Memory::default()).await, [], "seed {seed}: answered and gone");
    }
}

/// Shows that the check above can fail.
#[tokio::test]
async fn a_disk_that_lies_loses_what_was_answered() {
    let mut gone = 0;
    for seed in 1..=5 {
        gone += lost(seed, Memory::lying()).await.len();
    }
    assert!(gone > 0);
}

#[tokio::test]
async fn a_panic_of_the_state_machine_ends_the_member() {
    struct Bomb;
    impl crate::raft::StateMachine for Bomb {
        fn apply(&mut self, _: u64, _: &[u8]) -> Vec<u8> {
            panic!("expected by the test")
        }
        fn snapshot(&self) -> Vec<u8> {
            Vec::new()
        }
        fn restore(&mut self, _: u64, _: &[u8]) -> Result<(), String> {
            Ok(())
        }
    }
    let (tell, told) = mpsc::channel();
    let on_fatal = Box::new(move |error: &Error| tell.send(error.to_string()).unwrap());
    let config = Config::alone(1, "memory");
    let handle = drive::start(config, Memory::default(), Bomb, Box::new(Alone), on_fatal).unwrap();
    assert!(matches!(handle.propose(vec![1]).await, Err(Error::Stopped)));
    handle.shutdown().await;
    assert!(told.recv().unwrap().contains("panicked"));
}
