//! What runs on this host now. Read on every call, written by the agent's loop alone.

use crate::assignment::{Have, Key};
use crate::call::{HttpServe, Serve};
use crate::engine::Actor;
use crate::ingress::Here;
use crate::link::{Local, LocalProvider};
use crate::provider::keyvalue::KeyvalueStore;
use crate::rpc::Slot;
use proto::app::Name;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::Duration;

/// How often it is seen whether somebody who looked an actor up has not entered it yet.
const LOOKED_UP_POLL: Duration = Duration::from_millis(10);

/// A component that is up.
pub(super) struct Instance {
    pub(super) revision: u64,
    pub(super) replicas: u32,
    /// It must be gone before the host says so.
    pub(super) strict: bool,
    pub(super) what: What,
    /// Its subscriptions on the bus: it is called from other hosts while these live.
    pub(super) servings: Vec<bus::Serving>,
    /// Where HTTP comes in from other hosts, for all of its revisions.
    pub(super) door: Option<Arc<Door>>,
}

impl Instance {
    /// First no more calls from the bus, then the requests under way are finished, then it is gone.
    pub(super) async fn let_go(self, drain: Duration) {
        let Self { what, servings, door, .. } = self;
        for serving in servings {
            let _ = tokio::time::timeout(drain, serving.drain()).await;
        }
        // Unless another revision goes on with it.
        if let Some(door) = door.and_then(Arc::into_inner) {
            let _ = tokio::time::timeout(drain, door.serving.drain()).await;
        }
        if let What::Actor(actor) = what {
            // Who looked it up holds it until it is answered, so whoever may still want in gets in.
            let held = async {
                while Arc::strong_count(&actor) > 1 {
                    tokio::time::sleep(LOOKED_UP_POLL).await;
                }
            };
            let _ = tokio::time::timeout(drain, held).await;
            actor.drain(drain).await;
        }
    }
}

/// The subscription for an actor's HTTP, and which revision answers. Each revision that is up holds it.
pub(super) struct Door {
    pub(super) slot: Arc<Slot<Arc<dyn HttpServe>>>,
    pub(super) serving: bus::Serving,
}

/// The doors of all actors that are up.
#[derive(Default)]
pub(super) struct Doors(Mutex<BTreeMap<Key, Weak<Door>>>);

impl Doors {
    pub(super) fn get(&self, key: &Key) -> Option<Arc<Door>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(key)?.upgrade()
    }

    pub(super) fn keep(&self, key: &Key, door: &Arc<Door>) {
        let mut doors = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        doors.retain(|_, door| door.strong_count() > 0);
        doors.insert(key.clone(), Arc::downgrade(door));
    }
}

#[derive(Clone)]
pub(super) enum What {
    Actor(Arc<Actor>),
    Provider(KeyvalueStore),
}

#[derive(Clone)]
struct Entry {
    what: What,
    have: Have,
}

/// By app, then component: looked up without making a key.
#[derive(Default)]
pub(super) struct Running {
    all: RwLock<BTreeMap<Name, BTreeMap<Name, Entry>>>,
}

impl Running {
    pub(super) fn put(&self, key: &Key, instance: &Instance) {
        let have = Have { revision: instance.revision, replicas: instance.replicas, strict: instance.strict };
        let entry = Entry { what: instance.what.clone(), have };
        let mut all = self.all.write().unwrap_or_else(PoisonError::into_inner);
        all.entry(key.0.clone()).or_default().insert(key.1.clone(), entry);
    }

    pub(super) fn remove(&self, key: &Key) {
        let mut all = self.all.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(components) = all.get_mut(&key.0) {
            components.remove(&key.1);
            if components.is_empty() {
                all.remove(&key.0);
            }
        }
    }

    fn get(&self, app: &str, component: &str) -> Option<What> {
        let all = self.all.read().unwrap_or_else(PoisonError::into_inner);
        Some(all.get(app)?.get(component)?.what.clone())
    }

    pub(super) fn actor_named(&self, app: &str, component: &str) -> Option<Arc<Actor>> {
        match self.get(app, component)? {
            What::Actor(actor) => Some(actor),
            What::Provider(_) => None,
        }
    }

    /// Shows each of them, in the order of their keys. Whoever looks must be quick: nothing can be changed meanwhile.
    pub(super) fn each(&self, mut look: impl FnMut(&Name, &Name, Have, &What)) {
        let all = self.all.read().unwrap_or_else(PoisonError::into_inner);
        for (app, components) in all.iter() {
            components.iter().for_each(|(component, entry)| look(app, component, entry.have, &entry.what));
        }
    }
}

impl Local for Running {
    fn provider(&self, app: &Name, component: &Name) -> Option<LocalProvider> {
        match self.get(app.as_str(), component.as_str())? {
            What::Provider(store) => Some(LocalProvider::Keyvalue(store)),
            What::Actor(_) => None,
        }
    }

    fn actor(&self, app: &Name, component: &Name) -> Option<Arc<dyn Serve>> {
        Some(self.actor_named(app.as_str(), component.as_str())?)
    }
}

impl Here for Running {
    fn http(&self, app: &Name, actor: &Name) -> Option<Arc<dyn HttpServe>> {
        Some(self.actor_named(app.as_str(), actor.as_str())?)
    }
}
