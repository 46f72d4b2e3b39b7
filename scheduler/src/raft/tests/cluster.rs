//! Three members, each with its loop, over a network that can be cut: what callers are told when leadership moves.

#![allow(clippy::unwrap_used, reason = "test helpers")]

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::{Memory, Words};
use crate::raft::{Config, Error, Handle, Role, StateMachine as _, Transport, drive};

#[derive(Default)]
struct Switch {
    handles: BTreeMap<u64, Handle>,
    cut_off: BTreeSet<u64>,
}

#[derive(Clone, Default)]
struct Network(Arc<Mutex<Switch>>);

struct Port {
    from: u64,
    network: Network,
}

impl Transport for Port {
    fn send(&mut self, to: u64, message: Vec<u8>) {
        let (to_handle, from_handle) = {
            let switch = self.network.0.lock().unwrap();
            let cut = switch.cut_off.contains(&to) || switch.cut_off.contains(&self.from);
            let to_handle = if cut { None } else { switch.handles.get(&to).cloned() };
            (to_handle, switch.handles.get(&self.from).cloned())
        };
        let delivered = to_handle.is_some_and(|handle| handle.step(message).is_ok());
        if let Some(handle) = from_handle.filter(|_| !delivered) {
            handle.unreachable(to);
        }
    }
}

struct Cluster {
    network: Network,
    disks: BTreeMap<u64, Memory>,
    words: BTreeMap<u64, Words>,
}

impl Cluster {
    fn new() -> Self {
        let disks = (1..=3).map(|id| (id, Memory::default())).collect();
        let mut cluster = Self { network: Network::default(), disks, words: BTreeMap::new() };
        for id in 1..=3 {
            cluster.start(id);
        }
        cluster
    }

    fn start(&mut self, id: u64) {
        let config = Config { voters: vec![1, 2, 3], tick_ms: 5, log_bytes_max: 4000, ..Config::alone(id, "memory") };
        let words = Words::default();
        let port = Box::new(Port { from: id, network: self.network.clone() });
        let on_fatal = Box::new(|error: &Error| panic!("{error}"));
        let handle = drive::start(config, self.disks[&id].clone(), words.clone(), port, on_fatal).unwrap();
        self.network.0.lock().unwrap().handles.insert(id, handle);
        self.words.insert(id, words);
    }

    async fn stop(&self, id: u64) {
        let handle = self.network.0.lock().unwrap().handles.remove(&id).unwrap();
        handle.shutdown().await;
    }

    fn handle(&self, id: u64) -> Handle {
        self.network.0.lock().unwrap().handles[&id].clone()
    }

    /// The leader among members that are up and not `except`, once all of those agree on it.
    async fn leader(&self, except: &[u64]) -> u64 {
        let handles: Vec<Handle> = {
            let switch = self.network.0.lock().unwrap();
            switch.handles.iter().filter(|(id, _)| !except.contains(id)).map(|(_, handle)| handle.clone()).collect()
        };
        soon(async {
            loop {
                let seen: Vec<_> = handles.iter().map(|handle| handle.status().borrow().clone()).collect();
                let leader = seen.iter().find(|status| status.role == Role::Leader);
                if let Some(leader) = leader
                    && seen.iter().all(|status| status.leader == Some(leader.id) && status.term == leader.term)
                {
                    return leader.id;
                }
                let mut changes: Vec<_> = handles.iter().map(Handle::status).collect();
                let waits = changes.iter_mut().map(|status| Box::pin(status.changed()));
                let _ = tokio::time::timeout(Duration::from_millis(20), futures::future::select_all(waits)).await;
            }
        })
        .await
    }

    /// Waits until `id` applied what `index` names.
    async fn applied(&self, id: u64, index: u64) {
        let mut status = self.handle(id).status();
        soon(status.wait_for(|status| status.applied >= index)).await.unwrap();
    }
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), what).await.expect("did not happen in 20 s")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_moves_and_nothing_is_lost() {
    let mut cluster = Cluster::new();
    let first = cluster.leader(&[]).await;
    let written = soon(cluster.handle(first).propose(b"one".to_vec())).await.unwrap();
    let follower = (1..=3).find(|id| *id != first).unwrap();

    let refused = cluster.handle(follower).propose(b"no".to_vec()).await.unwrap_err();
    assert!(matches!(refused, Error::NotLeader { leader } if leader == Some(first)), "{refused}");
    assert!(soon(cluster.handle(follower).read_index()).await.unwrap() >= written.index);
    assert_eq!(cluster.words[&follower].all(), [(written.index, b"one".to_vec())]);

    cluster.stop(first).await;
    let second = cluster.leader(&[]).await;
    assert_ne!(first, second);
    // Enough for the log to be truncated beyond what the first one has.
    let mut last = 0;
    for number in 0..200_u32 {
        last = soon(cluster.handle(second).propose(number.to_be_bytes().repeat(20))).await.unwrap().index;
    }
    assert!(cluster.handle(second).status().borrow().snapshot > written.index + 1);
    cluster.start(first);
    cluster.applied(first, last).await;
    assert!(cluster.handle(first).status().borrow().snapshot > written.index + 1, "caught up by snapshot");
    assert_eq!(cluster.words[&first].snapshot(), cluster.words[&second].snapshot());
    for id in 1..=3 {
        cluster.stop(id).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_cut_off_promises_nothing() {
    let cluster = Cluster::new();
    let old = cluster.leader(&[]).await;
    soon(cluster.handle(old).propose(b"before".to_vec())).await.unwrap();
    cluster.network.0.lock().unwrap().cut_off.insert(old);
    let handle = cluster.handle(old);
    let (proposal, read) = soon(futures::future::join(handle.propose(b"alone".to_vec()), handle.read_index())).await;
    let (proposal, read) = (proposal.unwrap_err(), read.unwrap_err());
    assert!(matches!(proposal, Error::Uncertain { .. }) && proposal.is_retryable(), "{proposal}");
    assert!(matches!(read, Error::NotLeader { leader: None } | Error::Unconfirmed), "{read}");

    let new = cluster.leader(&[old]).await;
    let written = soon(cluster.handle(new).propose(b"after".to_vec())).await.unwrap();
    cluster.network.0.lock().unwrap().cut_off.clear();
    cluster.applied(old, written.index).await;
    let words: Vec<Vec<u8>> = cluster.words[&old].all().into_iter().map(|(_, word)| word).collect();
    assert_eq!(words, [b"before".to_vec(), b"after".to_vec()]);
    for id in 1..=3 {
        cluster.stop(id).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replaced_proposal_is_said_to_be() {
    let cluster = Cluster::new();
    let old = cluster.leader(&[]).await;
    cluster.network.0.lock().unwrap().cut_off.insert(old);
    let handle = cluster.handle(old);
    let proposal = tokio::spawn(async move { handle.propose(b"replaced".to_vec()).await });
    let new = cluster.leader(&[old]).await;
    soon(cluster.handle(new).propose(b"instead".to_vec())).await.unwrap();
    cluster.network.0.lock().unwrap().cut_off.clear();
    // Healed at once it is replaced; when it took longer, it was given up.
    let error = soon(proposal).await.unwrap().unwrap_err();
    assert!(matches!(error, Error::Superseded { .. } | Error::Uncertain { .. }), "{error}");
    soon(cluster.handle(old).read_index()).await.unwrap();
    assert!(cluster.words[&old].all().iter().all(|(_, word)| word != b"replaced"));
    for id in 1..=3 {
        cluster.stop(id).await;
    }
}
