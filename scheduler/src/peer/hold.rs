//! Components on most schedulers before an app that names them is acknowledged: one that is lost right after takes no
//! bytes with it that nobody else has.

use super::Peers;
use futures::future::BoxFuture;
use proto::app::Digest;
use proto::v1 as pb;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tonic::Status;

/// Makes sure that this scheduler has a component; gives why it could not.
pub(crate) type Fetch = Arc<dyn Fn(Digest) -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// For another scheduler to fetch what one manifest names.
const FETCH: Duration = Duration::from_secs(30);
/// Of one request.
const DIGESTS_MAX: usize = 1_000;
/// Who holds it may not be heard of on the whole bus at once.
const TRIES: u32 = 3;
const AGAIN: Duration = Duration::from_millis(200);

impl Peers {
    /// Resolves when most voters have these components, which this scheduler has.
    pub(crate) async fn spread(&self, digests: &BTreeSet<Digest>) -> Result<(), Status> {
        let status = self.0.raft.status().borrow().clone();
        let voters = &status.members.voters;
        let needed = voters.len() / 2 + 1;
        let mut held = usize::from(voters.contains(&status.id));
        if digests.is_empty() || held >= needed {
            return Ok(());
        }
        let mut asked = JoinSet::new();
        for id in voters.iter().copied().filter(|id| *id != status.id) {
            let Some(mut client) = self.0.outbox.link(id).and_then(|link| link.client()) else { continue };
            let digests = digests.iter().map(Digest::to_string).collect();
            let hold = pb::PeerHold { greeting: Some(self.greeting(id)), digests };
            asked.spawn(async move { tokio::time::timeout(FETCH, client.hold(hold)).await });
        }
        let mut why = String::from("the others are not reached");
        while let Some(answer) = asked.join_next().await {
            match answer {
                Ok(Ok(Ok(_))) => held += 1,
                Ok(Ok(Err(status))) => why = status.message().to_owned(),
                _ => why = "no answer in time".to_owned(),
            }
            if held >= needed {
                return Ok(());
            }
        }
        Err(Status::unavailable(format!(
            "the components are on {held} of {} schedulers, {needed} must have them: {why}; see `lattice schedulers list`",
            voters.len()
        )))
    }
}

/// What is done when another scheduler asks for it.
pub(super) async fn hold(fetch: &Fetch, digests: Vec<String>) -> Result<(), Status> {
    if digests.len() > DIGESTS_MAX {
        return Err(Status::invalid_argument(format!("more than {DIGESTS_MAX} components at once")));
    }
    for text in digests {
        let digest: Digest = text.parse().map_err(|e| Status::invalid_argument(format!("{text:?}: {e}")))?;
        let mut tried = fetch(digest.clone()).await;
        for _ in 1..TRIES {
            if tried.is_err() {
                tokio::time::sleep(AGAIN).await;
                tried = fetch(digest.clone()).await;
            }
        }
        tried.map_err(Status::unavailable)?;
    }
    Ok(())
}
