//! Addresses on the bus: schedulers that all came back at new ones find each other by it. Only hints: who answers at an
//! address has to show the certificate of the scheduler that is looked for.

use super::Peers;
use bus::Bus;
use proto::v1 as pb;
use std::sync::PoisonError;
use std::time::Duration;
use tokio::sync::watch;

/// How often an address is told: more often while somebody is not reached.
const SELDOM: Duration = Duration::from_secs(30);
const OFTEN: Duration = Duration::from_secs(2);
/// Bytes of an address.
const ADDRESS_BYTES_MAX: usize = 260;

/// Tells this scheduler's address and hears those of the others, until `stop` fires.
pub(crate) async fn announce(peers: Peers, bus: Bus, mut stop: watch::Receiver<bool>) {
    let Some(peer) = peers.peer().map(str::to_owned) else { return };
    let work = async {
        let mut told = loop {
            match bus.subscribe(bus.subjects().every_scheduler()).await {
                Ok(told) => break told,
                Err(error) => tracing::debug!(%error, "addresses of schedulers are not heard on the bus yet"),
            }
            tokio::time::sleep(OFTEN).await;
        };
        loop {
            let at = pb::SchedulerAt { lattice: peers.0.lattice.clone(), id: peers.id(), peer: peer.clone() };
            if let Err(error) = bus.publish(bus.subjects().scheduler(at.id), bus::encode(&at)).await {
                tracing::debug!(%error, "own address not told");
            }
            let again = tokio::time::sleep(if all_reached(&peers) { SELDOM } else { OFTEN });
            tokio::pin!(again);
            loop {
                tokio::select! {
                    () = &mut again => break,
                    message = told.next() => match message {
                        Some(message) => hear(&peers, &bus, &message),
                        None => return,
                    },
                }
                // Somebody was lost meanwhile.
                if !all_reached(&peers) {
                    let soon = tokio::time::Instant::now() + OFTEN;
                    if again.deadline() > soon {
                        again.as_mut().reset(soon);
                    }
                }
            }
        }
    };
    tokio::select! {
        _ = stop.wait_for(|s| *s) => {}
        () = work => {}
    }
}

fn all_reached(peers: &Peers) -> bool {
    let ids: Vec<u64> = peers.0.replica.read().members.keys().copied().collect();
    ids.into_iter().all(|id| id == peers.id() || peers.0.outbox.problem(id).is_none())
}

fn hear(peers: &Peers, bus: &Bus, message: &bus::Message) {
    let Some(at) = bus.decode::<pb::SchedulerAt>(&message.payload) else { return };
    if at.id == peers.id() || at.lattice != peers.0.lattice {
        return;
    }
    let sound = !at.peer.is_empty()
        && at.peer.len() <= ADDRESS_BYTES_MAX
        && !at.peer.chars().any(|c| c.is_control() || c.is_whitespace());
    // Only members are remembered, and those are few.
    let is_member = peers.0.replica.read().members.contains_key(&at.id);
    if !sound || !is_member {
        bus.drops().count(bus::Reason::Foreign);
        return;
    }
    let mut announced = peers.0.announced.lock().unwrap_or_else(PoisonError::into_inner);
    announced.retain(|id, _| !peers.0.replica.read().was_removed(*id));
    announced.insert(at.id, at.peer);
}
