//! `status`: who leads, and what is not reached. As the leader sees it where one answers in time, as this scheduler knows
//! it alone where none does.

use super::Service;
use crate::control::Shared;
use proto::v1 as pb;
use std::time::Duration;

/// For the leader, and for a quorum: an election fits, and nobody waits long for what is broken.
const WITHIN: Duration = Duration::from_secs(3);

impl Service {
    pub(super) async fn status_now(&self) -> pb::StatusResponse {
        let confirmed = async {
            match tokio::time::timeout(WITHIN, self.shared.raft.read_index()).await {
                Ok(Ok(_)) => Ok(()),
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err("most of the schedulers give no answer".to_owned()),
            }
        };
        let (confirmed, leaders) = tokio::join!(confirmed, self.peers.leaders_account(WITHIN));
        let mut status = self.peers.own_account();
        // Who leads may have changed while it was waited for.
        match leaders {
            Ok(leaders) => {
                let mut unreached = leaders.unreached;
                unreached.extend(status.unreached.into_iter().filter(|one| one.from != leaders.seen_by));
                status = pb::StatusResponse {
                    leader_id: leaders.id,
                    leader_peer: leaders.leader_peer,
                    leader_api: leaders.leader_api,
                    seen_by: leaders.seen_by,
                    seen_by_bus: leaders.seen_by_bus,
                    hosts: leaders.hosts,
                    schedulers: leaders.schedulers,
                    silent: leaders.silent,
                    brake: leaders.brake,
                    unreached,
                    ..status
                };
            }
            Err(why) => status.alone = why,
        }
        match confirmed {
            Ok(()) => status.fresh = true,
            Err(why) if status.alone.is_empty() => status.alone = why,
            Err(_) => {}
        }
        if status.fresh {
            status.alone.clear();
        }
        status
    }
}

/// What a scheduler knows without the others.
pub(crate) fn told(shared: &Shared) -> pb::StatusResponse {
    let (down, bus_problem) = (shared.bus.down(), shared.bus.problem().unwrap_or_default());
    let bus_up = down.is_none();
    let bus = match down {
        Some(why) => format!("not connected: {why}"),
        None if bus_problem.is_empty() => "connected".to_owned(),
        None => format!("connected, and the server complained: {bus_problem}"),
    };
    let (hosts, silent, brake) = shared.view(|view| (view.state.hosts.len(), view.silent(), view.brake()));
    pb::StatusResponse {
        lattice: shared.lattice.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        hosts: u32::try_from(hosts).unwrap_or(u32::MAX),
        dropped: shared.bus.drops().total(),
        bus,
        bus_up,
        bus_problem,
        bus_urls: shared.bus.urls(),
        silent,
        brake,
        ..pb::StatusResponse::default()
    }
}
