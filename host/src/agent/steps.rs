//! How far this host is with what it brings up: noted by who does it, told with heartbeats. In memory only; decides nothing.

use crate::assignment::Key;
use proto::starting::STARTING_MAX;
use proto::v1::{StartStep, Starting};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::sync::Notify;

/// Of every component that is being brought up.
#[derive(Default)]
pub(super) struct Steps {
    all: Mutex<BTreeMap<Key, At>>,
    /// One of them has begun another step.
    pub(super) moved: Notify,
}

struct At {
    revision: u64,
    step: StartStep,
    since: Instant,
    bytes: u64,
    bytes_total: u64,
}

/// Where who brings a component up says how far it is; forgotten when this is dropped.
pub(super) struct Noted {
    steps: Arc<Steps>,
    key: Key,
}

impl Steps {
    /// Of a component that is not being brought up already.
    pub(super) fn begin(self: &Arc<Self>, key: &Key, revision: u64) -> Noted {
        let at = At { revision, step: StartStep::Linking, since: Instant::now(), bytes: 0, bytes_total: 0 };
        self.lock().insert(key.clone(), at);
        Noted { steps: self.clone(), key: key.clone() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// For a heartbeat: bounded, those that wait for others last.
    pub(super) fn told(&self) -> Vec<Starting> {
        let all = self.lock();
        let waits = |at: &At| matches!(at.step, StartStep::FetchQueued | StartStep::CompileQueued);
        let (waiting, busy): (Vec<_>, Vec<_>) = all.iter().partition(|(_, at)| waits(at));
        let told = busy.into_iter().chain(waiting).take(STARTING_MAX).map(|((app, component), at)| Starting {
            app: app.to_string(),
            component: component.to_string(),
            revision: at.revision,
            step: at.step.into(),
            for_ms: u64::try_from(at.since.elapsed().as_millis()).unwrap_or(u64::MAX),
            bytes: at.bytes,
            bytes_total: at.bytes_total,
        });
        told.collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, At>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Noted {
    /// It does this from now on.
    pub(super) fn at(&self, step: StartStep) {
        if let Some(at) = self.steps.lock().get_mut(&self.key).filter(|at| at.step != step) {
            (at.step, at.since) = (step, Instant::now());
            self.steps.moved.notify_one();
        }
    }

    /// So much of it is here. The next heartbeat tells.
    pub(super) fn fetched(&self, bytes: u64, bytes_total: u64) {
        if let Some(at) = self.steps.lock().get_mut(&self.key) {
            (at.bytes, at.bytes_total) = (bytes, bytes_total);
        }
    }
}

impl Drop for Noted {
    fn drop(&mut self) {
        self.steps.lock().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;

    #[test]
    fn steps_are_told_until_it_is_over() {
        let steps = Arc::<Steps>::default();
        let key = |name: &str| -> Key { ("shop".parse().unwrap(), name.parse().unwrap()) };
        let told = || steps.told().into_iter().map(|one| (one.component.clone(), one.step())).collect::<Vec<_>>();
        let cart = steps.begin(&key("cart"), 2);
        let web = steps.begin(&key("web"), 2);
        assert!(steps.moved.notified().now_or_never().is_none(), "that it begins is told by the inventory");
        cart.at(StartStep::CompileQueued);
        assert!(steps.moved.notified().now_or_never().is_some());
        cart.at(StartStep::CompileQueued);
        assert!(steps.moved.notified().now_or_never().is_none(), "nothing new");
        web.at(StartStep::Fetching);
        web.fetched(3, 9);
        assert_eq!(told(), [("web".into(), StartStep::Fetching), ("cart".into(), StartStep::CompileQueued)]);
        let first = steps.told().remove(0);
        assert_eq!((first.app.as_str(), first.revision, first.bytes, first.bytes_total), ("shop", 2, 3, 9));
        drop(web);
        assert_eq!(told().len(), 1);
        let many: Vec<Noted> = (0..STARTING_MAX).map(|n| steps.begin(&key(&format!("a{n}")), 1)).collect();
        assert_eq!(told().len(), STARTING_MAX);
        assert!(told().iter().all(|(name, _)| name != "cart"), "it waits, the others do not");
        drop((many, cart));
        assert!(steps.is_empty());
    }
}
