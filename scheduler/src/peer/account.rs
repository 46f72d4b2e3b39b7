//! How the lattice is, as one scheduler sees it, and how the others get to know that of the leader. Waits for nobody
//! longer than it is told to: it is asked most when something is wrong.

use super::Peers;
use proto::v1 as pb;
use proto::v1::peer_answer::What as Answer;
use proto::v1::peer_ask::What as Ask;
use std::time::Duration;

/// The part of an account that the schedulers among themselves do not know.
pub(crate) type Tell = Box<dyn Fn() -> pb::StatusResponse + Send + Sync>;

impl Peers {
    /// From now on it can give an account. Only the first one counts.
    pub(crate) fn tells(&self, tell: Tell) {
        let _ = self.0.tell.set(tell);
    }

    /// How all is as seen from here, by a leader or while nobody leads.
    pub(crate) fn own_account(&self) -> pb::StatusResponse {
        let status = self.0.raft.status().borrow().clone();
        let list = self.view(Some(""));
        let row = |id: u64| list.items.iter().find(|item| item.id == id).cloned().unwrap_or_default();
        let leader = status.leader.map(row).unwrap_or_default();
        let unreached = list.items.iter().filter(|item| item.state == "unreachable");
        let unreached = unreached.map(|item| pb::Unreached {
            id: item.id,
            peer: item.peer.clone(),
            from: status.id,
            why: item.message.clone(),
        });
        let told = self.0.tell.get().map(|tell| tell()).unwrap_or_default();
        pb::StatusResponse {
            id: status.id,
            term: status.term,
            index: status.applied,
            leader: status.governs,
            leader_id: leader.id,
            leader_peer: leader.peer,
            leader_api: leader.api,
            seen_by: status.id,
            seen_by_bus: told.bus.clone(),
            schedulers: u32::try_from(list.items.len()).unwrap_or(u32::MAX),
            unreached: unreached.collect(),
            ..told
        }
    }

    /// The same as the leader sees it, or why no leader gave it in time.
    pub(crate) async fn leaders_account(&self, within: Duration) -> Result<pb::StatusResponse, String> {
        match tokio::time::timeout(within, self.ask(Ask::Status(pb::StatusRequest {}))).await {
            Ok(Ok(Answer::Status(told))) => Ok(told),
            Ok(Ok(_)) => Err("the leader answered with something else".to_owned()),
            Ok(Err(status)) => Err(status.message().to_owned()),
            Err(_) => Err(match self.0.raft.status().borrow().leader {
                Some(leader) => format!("scheduler {leader} was the leader, and gives no answer"),
                None => super::ask::NOBODY.to_owned(),
            }),
        }
    }
}
