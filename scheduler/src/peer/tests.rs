//! Schedulers in one process, with their real listeners, certificates and logs: who is let in, and who is not.

#![allow(clippy::unwrap_used, reason = "test helpers")]

use super::*;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::watch as signal;

/// A member without API, bus and plans.
struct Member {
    peers: Peers,
    replica: Replica,
    stop: signal::Sender<bool>,
}

async fn start(dir: &Path, join: Option<Join>) -> Result<Member, String> {
    start_at(dir, join, (Ipv4Addr::LOCALHOST, 0).into(), None, 200_000).await
}

async fn start_at(
    dir: &Path,
    join: Option<Join>,
    listen: SocketAddr,
    advertise: Option<String>,
    log_bytes_max: u64,
) -> Result<Member, String> {
    let config = Config { listen, advertise, join, replace_after: Duration::ZERO, leaf_life: LEAF_LIFE };
    let mut door = open(Some(&config), 1, "plant", dir).await.map_err(|e| e.to_string())?;
    let log = raft::Config {
        voters: door.voters.clone(),
        log_id: door.log_id.clone(),
        may_begin: door.may_begin,
        tick_ms: 20,
        log_bytes_max,
        ..raft::Config::alone(door.id, dir.join("raft"))
    };
    let (replica, outbox) = (Replica::default(), Outbox::default());
    let raft = raft::start(log, replica.clone(), outbox.clone()).map_err(|e| e.to_string())?;
    door.begun().unwrap();
    outbox.connect(raft.clone());
    let api = (Ipv4Addr::LOCALHOST, 7400).into();
    let (peers, inbox) = Peers::new("plant".into(), raft, replica.clone(), outbox, api, false, door).unwrap();
    let (stop, stopped) = signal::channel(false);
    let kept = dir.join("components");
    let fetch: Fetch = std::sync::Arc::new(move |digest| {
        let held = std::fs::write(&kept, digest.as_str()).map_err(|e| e.to_string());
        Box::pin(std::future::ready(held))
    });
    tokio::spawn(serve(peers.clone(), inbox, fetch, stopped.clone()));
    tokio::spawn(keep(peers.clone(), stopped));
    Ok(Member { peers, replica, stop })
}

impl Member {
    async fn token(&self) -> Token {
        self.peers.token(0).await.unwrap().token.parse().unwrap()
    }

    fn join(&self, token: Token) -> Option<Join> {
        Some(Join { addr: self.peers.peer().unwrap().to_owned(), token, standby: false, vocabulary: 2 })
    }

    async fn end(self) {
        self.stop.send_replace(true);
        self.peers.0.raft.shutdown().await;
    }

    async fn until(&self, what: &str, state: impl Fn(&raft::Status) -> bool) {
        let mut status = self.peers.0.raft.status();
        let found = tokio::time::timeout(Duration::from_secs(30), status.wait_for(|status| state(status))).await;
        found.unwrap_or_else(|_| panic!("not so: {what}")).unwrap();
    }

    async fn until_known(&self, members: usize) {
        let mut applied = self.replica.applied();
        let known = applied.wait_for(|_| self.replica.read().members.len() == members);
        tokio::time::timeout(Duration::from_secs(30), known).await.expect("members are known").unwrap();
    }
}

async fn three(dirs: &[tempfile::TempDir]) -> Vec<Member> {
    let first = start(dirs[0].path(), None).await.unwrap();
    first.until_known(1).await;
    let token = first.token().await;
    let second = start(dirs[1].path(), first.join(token.clone())).await.unwrap();
    // By the one that does not lead: it asks the leader.
    let third = start(dirs[2].path(), second.join(token)).await.unwrap();
    let all = vec![first, second, third];
    for member in &all {
        member.until("three voters", |s| s.members.voters == [1, 2, 3] && !s.members.is_joint()).await;
        member.until("a leader", |s| s.leader.is_some()).await;
    }
    all
}

fn dirs(count: usize) -> Vec<tempfile::TempDir> {
    (0..count).map(|_| tempfile::tempdir().unwrap()).collect()
}

fn scale(replicas: u32) -> proto::v1::command::What {
    proto::v1::command::What::ScaleActor(pb::ScaleActor { app: "a".into(), actor: "b".into(), replicas, if_version: 0 })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_schedulers_find_each_other_and_any_of_them_takes_a_write() {
    let dirs = dirs(3);
    let all = three(&dirs).await;
    let digest: proto::app::Digest = format!("sha256:{}", "ab".repeat(32)).parse().unwrap();
    for (member, id) in all.iter().zip(1..) {
        assert_eq!(member.peers.id(), id);
        member.peers.spread(&[digest.clone()].into()).await.unwrap();
        let others = dirs.iter().filter(|dir| dir.path() != dirs[usize::try_from(id).unwrap() - 1].path());
        let held = others.map(|dir| dir.path().join("components")).filter(|path| path.exists()).count();
        assert!(held > 0, "one other has it, so two of three do");
        for dir in &dirs {
            let _ = std::fs::remove_file(dir.path().join("components"));
        }
        // Refused by the state, so it went through the log.
        let refused = member.peers.write_one(String::new(), scale(1)).await.unwrap_err();
        assert!(refused.message().contains("there is no app"), "{refused}");
        let list = member.peers.list().await.unwrap();
        let roles: Vec<&str> = list.items.iter().map(|item| item.role.as_str()).collect();
        assert_eq!(roles.iter().filter(|role| **role == "leader").count(), 1, "{roles:?}");
        assert!(list.items.iter().all(|item| item.state == "ready" || item.state == "behind"), "{list:?}");
    }
    for member in all {
        member.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_was_away_too_long_for_the_log_is_sent_the_state_in_pieces() {
    let dirs = dirs(3);
    let mut all = three(&dirs).await;
    let third = all.pop().unwrap();
    third.end().await;
    // More than one frame takes: the state remembers each answer.
    let leader = &all[0];
    let before = leader.peers.0.raft.status().borrow().snapshot;
    for round in 0..60 {
        let command = |n: u32| pb::Command { request_id: format!("{round:0>40}/{n}"), what: Some(scale(n)) };
        leader.peers.write((0..150).map(command).collect()).await.unwrap();
    }
    let index = leader.peers.0.raft.status().borrow().applied;
    assert!(leader.peers.0.raft.status().borrow().snapshot > before);
    let bytes = leader.replica.read().to_bytes();
    assert!(bytes.len() > 2 * pieces::PIECE_BYTES, "{} bytes fit into one frame", bytes.len());
    let third = start(dirs[2].path(), None).await.unwrap();
    third.until("it has caught up", |status| status.applied >= index).await;
    assert!(third.peers.0.raft.status().borrow().snapshot > before, "by a snapshot");
    for member in all.into_iter().chain([third]) {
        member.end().await;
    }
}

/// The way to `to`, which breaks once, when so many bytes have gone there on one connection. Gives its address, and how
/// often it broke.
async fn fragile_way(to: SocketAddr, break_at: usize) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let (at, breaks) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let broken = breaks.clone();
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let breaks = broken.clone();
            tokio::spawn(async move {
                let Ok(far) = tokio::net::TcpStream::connect(to).await else { return };
                let ((mut near_in, mut near_out), (mut far_in, mut far_out)) = (near.into_split(), far.into_split());
                let there = async {
                    let (mut buffer, mut sum) = (vec![0; 16 << 10], 0);
                    loop {
                        let Ok(read @ 1..) = near_in.read(&mut buffer).await else { return };
                        sum += read;
                        if sum > break_at && breaks.load(Ordering::SeqCst) == 0 {
                            breaks.store(1, Ordering::SeqCst);
                            return;
                        }
                        if far_out.write_all(&buffer[..read]).await.is_err() {
                            return;
                        }
                    }
                };
                tokio::select! {
                    () = there => {}
                    _ = tokio::io::copy(&mut far_in, &mut near_out) => {}
                }
            });
        }
    });
    (at, breaks)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_larger_than_any_frame_arrives_though_the_way_breaks_in_the_middle_of_it() {
    const LOG_BYTES_MAX: u64 = 6 << 20;
    let dirs = dirs(2);
    let loopback: SocketAddr = (Ipv4Addr::LOCALHOST, 0).into();
    let first = start_at(dirs[0].path(), None, loopback, None, LOG_BYTES_MAX).await.unwrap();
    first.until_known(1).await;
    // Ids are remembered: these make a state of more than one frame takes.
    let id = "i".repeat(3_000);
    let mut number = 0;
    while first.replica.read().to_bytes().len() < carry::ANSWER_BYTES_MAX + (1 << 20) {
        let command = |n: u32| pb::Command { request_id: format!("{id}{n}"), what: Some(scale(n)) };
        first.peers.write((number..number + 300).map(command).collect()).await.unwrap();
        number += 300;
    }
    let bytes = first.replica.read().to_bytes().len();
    let index = first.peers.0.raft.status().borrow().applied;
    assert!(first.peers.0.raft.status().borrow().snapshot > 1);

    // A port that was free a moment ago.
    let listen = std::net::TcpListener::bind(loopback).unwrap().local_addr().unwrap();
    let (way, breaks) = fragile_way(listen, bytes / 2).await;
    let join = first.join(first.token().await);
    let second = start_at(dirs[1].path(), join, listen, Some(way.to_string()), LOG_BYTES_MAX).await.unwrap();
    second.until("it has caught up", |status| status.applied >= index).await;
    assert_eq!(breaks.load(Ordering::SeqCst), 1, "the way broke, and {bytes} bytes came all the same");
    assert!(second.peers.0.raft.status().borrow().snapshot > 1, "by a snapshot");
    assert!(second.replica.read().answered(&format!("{id}0")).is_some());
    for member in [first, second] {
        member.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_stands_and_so_does_what_was_carried_out() {
    let dirs = dirs(3);
    let all = three(&dirs).await;
    let cordon = || {
        proto::v1::command::What::IssueToken(pb::IssueToken {
            hash: "ab".repeat(32),
            expires_ms: crate::events::unix_ms() + 60_000,
        })
    };
    let id = |text: &str| vec![text.to_owned()];
    for member in &all {
        let me = member.peers.id();
        // Refused first: no copy of it is carried out any more, wherever it comes in.
        let refused =
            member.peers.refuse(id(&format!("a{me}")), "not_found", "it is not here; upload it").await.unwrap();
        assert_eq!((refused[0].code.as_str(), refused[0].error.as_str()), ("not_found", "it is not here; upload it"));
        // Carried out first: that is the answer, whatever was found to be wrong with a copy of it.
        let done = member.peers.write_one(format!("b{me}"), cordon()).await.unwrap();
        for other in &all {
            let error = other.peers.write_one(format!("a{me}"), cordon()).await.unwrap_err();
            assert!(error.code() == tonic::Code::NotFound && error.message().contains("upload it"), "{error}");
            let answer = other.peers.refuse(id(&format!("b{me}")), "invalid", "late").await.unwrap();
            assert_eq!(answer, std::slice::from_ref(&done));
        }
    }
    // A scheduler that was removed, and then could not be: the second answer is the first one.
    let remove = |id: &str| pb::RemoveSchedulerRequest { id: 3, request_id: id.to_owned() };
    let mut all = all;
    let third = all.pop().unwrap();
    third.end().await;
    let first = all[0].peers.remove(remove("gone")).await.unwrap();
    assert_eq!(first.change, "removed");
    let second = all.pop().unwrap();
    assert_eq!(second.peers.remove(remove("gone")).await.unwrap(), first);
    let again = second.peers.remove(remove("again")).await.unwrap_err();
    assert!(again.message().contains("scheduler 3 was removed"), "{again}");
    for member in all.into_iter().chain([second]) {
        member.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_no_right_to_join_is_told_why() {
    let dirs = dirs(4);
    let first = start(dirs[0].path(), None).await.unwrap();
    first.until_known(1).await;
    let good = first.token().await;
    let tried = async |token: Token| start(dirs[1].path(), first.join(token)).await.err().unwrap();

    let error = tried(Token { secret: [9; 16], ..good.clone() }).await;
    assert!(error.contains("not one of this lattice") && error.contains("lattice schedulers token"), "{error}");
    let error = tried(Token { fingerprint: [9; 32], ..good.clone() }).await;
    assert!(error.contains("of another lattice") && error.contains("lattice schedulers token"), "{error}");
    let short = first.peers.token(1).await.unwrap();
    let error = tried(short.token.parse().unwrap()).await;
    assert!(error.contains("has expired"), "{error}");
    assert_eq!(first.replica.read().members.len(), 1, "nobody came in");

    // A scheduler of another lattice, with a certificate of its own authority.
    let other = start(dirs[2].path(), None).await.unwrap();
    other.until_known(1).await;
    let theirs = other.token().await;
    let join =
        Some(Join { addr: first.peers.peer().unwrap().to_owned(), token: theirs, standby: false, vocabulary: 2 });
    let error = start(dirs[3].path(), join).await.err().unwrap();
    assert!(error.contains("of another lattice"), "{error}");
    for member in [first, other] {
        member.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_certificate_of_a_member_nothing_is_heard() {
    let dirs = dirs(2);
    let first = start(dirs[0].path(), None).await.unwrap();
    first.until_known(1).await;
    let second = start(dirs[1].path(), first.join(first.token().await)).await.unwrap();
    second.until("it knows the leader", |status| status.leader == Some(1)).await;
    let ask = |from| pb::PeerAsk {
        greeting: Some(pb::PeerGreeting {
            lattice: "plant".into(),
            from,
            to: 1,
            log_id: second.peers.0.raft.log_id().to_owned(),
            peer: String::new(),
        }),
        what: None,
    };
    let address = first.peers.peer().unwrap();
    let identity = second.peers.0.own.clone().unwrap().1;
    let tls = || {
        let ca = tonic::transport::Certificate::from_pem(&identity.authority);
        tonic::transport::ClientTlsConfig::new().ca_certificate(ca).domain_name(authority::ANY)
    };
    let channel = async |tls| carry::endpoint(address).unwrap().tls_config(tls).unwrap().connect().await.unwrap();
    let mut bare = carry::client(channel(tls()).await);
    let refused = bare.ask(ask(2)).await.unwrap_err();
    assert!(refused.message().contains("no certificate"), "{refused}");
    let certificate = tonic::transport::Identity::from_pem(&identity.certificate, &identity.key);
    let mut known = carry::client(channel(tls().identity(certificate)).await);
    assert!(known.ask(ask(2)).await.is_ok());
    let refused = known.ask(ask(1)).await.unwrap_err();
    assert!(refused.message().contains("not that of scheduler 1"), "{refused}");
    let strange = authority::make().unwrap();
    let key = authority::key().unwrap();
    let until = authority::Until::after(LEAF_LIFE);
    let forged = authority::sign(&strange.1, 2, &authority::public_key(&key).unwrap(), until).unwrap();
    let mut forger = carry::client(channel(tls().identity(tonic::transport::Identity::from_pem(forged, key))).await);
    assert!(forger.ask(ask(2)).await.is_err(), "a certificate of another authority");
    for member in [first, second] {
        member.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_lost_its_log_does_not_begin_anew() {
    let dirs = dirs(2);
    let first = start(dirs[0].path(), None).await.unwrap();
    first.until_known(1).await;
    let second = start(dirs[1].path(), first.join(first.token().await)).await.unwrap();
    second.until_known(2).await;
    second.end().await;
    std::fs::remove_dir_all(dirs[1].path().join("raft")).unwrap();
    let error = start(dirs[1].path(), None).await.err().unwrap();
    assert!(error.contains("lattice schedulers remove 2") && error.contains("--join"), "{error}");
    // Even if it is made to: the others know the log that it joined with.
    let mut kept = identity::Kept::load(&dirs[1].path().join("peer")).unwrap().unwrap();
    (kept.identity.begun, kept.identity.log_id) = (false, "another".into());
    kept.save().unwrap();
    let second = start(dirs[1].path(), None).await.unwrap();
    let refused = tokio::time::timeout(Duration::from_secs(20), async {
        loop {
            if let Some(problem) = second.peers.0.outbox.problem(1).filter(|problem| problem.contains("lost its own")) {
                return problem;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    assert!(refused.await.unwrap().contains("lattice schedulers remove 2"));
    assert_eq!(second.peers.0.raft.status().borrow().applied, 0, "it is told nothing");

    first.peers.remove(pb::RemoveSchedulerRequest { id: 2, request_id: String::new() }).await.unwrap();
    let mut removed = second.peers.removed();
    tokio::time::timeout(Duration::from_secs(20), removed.wait_for(|r| *r)).await.expect("it is told to end").unwrap();
    for member in [first, second] {
        member.end().await;
    }
}
