//! The loop that keeps this scheduler among the others: a way to each of them, its own address known to all, and, when
//! it leads, the log's members changed towards those that are wanted. Decides nothing: `roster` does.

use super::Peers;
use super::roster::{self, Due};
use crate::raft::{self, Members};
use crate::state;
use proto::v1 as pb;
use proto::v1::command::What as Command;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use tokio::sync::watch;

const TICK: Duration = Duration::from_millis(200);
/// For a change of members to be agreed on; it goes on in the log whatever is waited here.
const CHANGE: Duration = Duration::from_secs(3);

/// Runs until `stop` fires.
pub(crate) async fn keep(peers: Peers, mut stop: watch::Receiver<bool>) {
    if peers.0.own.is_none() {
        return;
    }
    let introducing = tokio::spawn(introduce(peers.clone()));
    let work = async {
        let mut tick = tokio::time::interval(TICK);
        let mut watched = Watched::default();
        let (mut linger, begun) = (roster::Linger::default(), Instant::now());
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let status = peers.0.raft.status().borrow().clone();
            peers.0.outbox.keep(&peers, &others(&peers, &status));
            if linger.is_over(peers.is_out(&status), ms(begun.elapsed())) {
                peers.tell_removed(&state::removed(status.id));
            }
            if status.governs {
                tend(&peers, &status).await;
                replace(&peers, &status, &mut watched).await;
            } else {
                watched = Watched::default();
            }
        }
    };
    tokio::select! {
        _ = stop.wait_for(|s| *s) => {}
        () = work => {}
    }
    introducing.abort();
    peers.0.outbox.close();
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Everyone that this scheduler has something to say to.
fn others(peers: &Peers, status: &raft::Status) -> Vec<u64> {
    let Members { voters, outgoing, learners } = &status.members;
    let mut ids: Vec<u64> = voters.iter().chain(outgoing).chain(learners).copied().collect();
    ids.extend(peers.0.replica.read().members.keys());
    // Taken in, and not told anything yet.
    if let Some((_, identity)) = peers.0.own.as_ref().filter(|_| ids.is_empty()) {
        ids.extend(identity.peers.keys());
    }
    // It leads and is not known here: it learned of this one first.
    ids.extend(status.leader);
    ids.retain(|id| *id != status.id);
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// One step of the leader towards the members that are wanted.
async fn tend(peers: &Peers, status: &raft::Status) {
    let due = roster::due(status, &peers.0.replica.read().members, peers.reached(status));
    let changes = match due {
        Due::Nothing => return,
        Due::HandOver(heir) => return peers.hand_over(heir).await,
        Due::Change(changes) => changes,
    };
    let what = format!("{changes:?}");
    match tokio::time::timeout(CHANGE, peers.0.raft.change(changes)).await {
        Ok(Ok(_)) | Err(_) => {}
        Ok(Err(error)) if error.is_retryable() => tracing::debug!(%error, what, "schedulers not changed yet"),
        Ok(Err(error)) => tracing::warn!(%error, what, "schedulers not changed"),
    }
}

/// Since when each member is as it is; begun anew by each leader.
#[derive(Default)]
struct Watched(BTreeMap<u64, Seen>);

#[derive(Default)]
struct Seen {
    /// Not reached since then. Behind is not gone: it may be fetching a large state.
    silent: Option<Instant>,
    /// Reached, and not far behind, since then.
    stable: Option<Instant>,
}

impl Watched {
    fn look(
        &mut self,
        members: &Members,
        reached: &BTreeSet<u64>,
        ready: &BTreeSet<u64>,
    ) -> BTreeMap<u64, roster::Since> {
        self.0.retain(|id, _| members.contains(*id));
        let now = Instant::now();
        for id in members.voters.iter().chain(&members.learners) {
            let seen = self.0.entry(*id).or_default();
            seen.silent = if reached.contains(id) { None } else { seen.silent.or(Some(now)) };
            seen.stable = if ready.contains(id) { seen.stable.or(Some(now)) } else { None };
        }
        let for_ms = |since: Option<Instant>| since.map_or(0, |since| ms(now - since));
        let since = |seen: &Seen| roster::Since { silent_ms: for_ms(seen.silent), stable_ms: for_ms(seen.stable) };
        self.0.iter().map(|(id, seen)| (*id, since(seen))).collect()
    }
}

/// Removes a member that is gone for good, by all that can be seen, when that costs nothing.
async fn replace(peers: &Peers, status: &raft::Status, watched: &mut Watched) {
    let Some((_, identity)) = &peers.0.own else { return };
    debug_assert_eq!(identity.id, status.id);
    let reached = peers.reached(status);
    let ready = roster::ready(status, reached.clone());
    let since = watched.look(&status.members, &reached, &ready);
    let id = {
        let state = peers.0.replica.read();
        let known = roster::Known { me: status.id, wanted: &state.members, members: &status.members, ready: &ready };
        roster::replaceable(&known, &since, peers.0.replace_after_ms)
    };
    let Some(id) = id else { return };
    let remove = pb::RemoveMember { id };
    match tokio::time::timeout(CHANGE, peers.write_one(String::new(), Command::RemoveMember(remove))).await {
        Ok(Ok(_)) => {
            let minutes = peers.0.replace_after_ms / 60_000;
            let voted = status.members.is_voter(id);
            tracing::warn!(scheduler = id, minutes, voted, "not reached for long, and removed");
        }
        Ok(Err(error)) => {
            tracing::warn!(scheduler = id, error = error.message(), "not reached for long, and not removed")
        }
        Err(_) => {}
    }
}

/// Tells the log where this scheduler is, whenever that differs from what the log says.
async fn introduce(peers: Peers) {
    let Some(peer) = peers.peer().map(str::to_owned) else { return };
    let mut applied = peers.0.replica.applied();
    let mut said = String::new();
    loop {
        let (id, api) = (peers.id(), peers.0.api.clone());
        let known = {
            let state = peers.0.replica.read();
            let vocabulary = peers.0.replica.knows();
            let same = |m: &state::Member| m.peer == peer && m.api == api && m.vocabulary == vocabulary;
            state.members.get(&id).is_some_and(same)
        };
        if !known {
            let log_id = peers.0.raft.log_id().to_owned();
            let vocabulary = peers.0.replica.knows();
            let set = pb::SetMember { id, peer: peer.clone(), api, log_id, vocabulary };
            if let Err(error) = peers.write_one(String::new(), Command::SetMember(set)).await
                && said != error.message()
            {
                said = error.message().to_owned();
                tracing::warn!(problem = said, "the others do not know where this scheduler is");
            }
        }
        // Again when the log moved, or after a while.
        let _ = tokio::time::timeout(Duration::from_secs(2), applied.changed()).await;
        tokio::time::sleep(TICK).await;
    }
}
