//! Brings one component up: fetch its bytes, load, link, offer it on the bus. May take long; runs beside the loop.

use super::pulse::Pulse;
use super::running::{Door, Doors, Instance, Running, What};
use super::steps::Steps;
use super::telemetry::Telemetry;
use crate::artifact::{self, Share, fetch};
use crate::assignment::{Key, Wanted};
use crate::call::HttpServe;
use crate::engine::{Compiling, Engine, Source, Spec};
use crate::link::{Table, permit};
use crate::logs::Logs;
use crate::provider::keyvalue::KeyvalueStore;
use crate::provider::serve::KeyValueServer;
use crate::rpc::{HTTP_INTERFACE, Permit, Slot, serve_component, serve_http};
use bus::Bus;
use proto::app::{Actor, App, Component, Kind};
use proto::v1::StartStep;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::{OnceCell, Semaphore};

/// What every component of a host shares.
#[derive(Clone)]
pub(super) struct Parts {
    pub(super) bus: Bus,
    pub(super) engine: Engine,
    pub(super) artifacts: Arc<artifact::Store>,
    pub(super) share: Share,
    pub(super) running: Arc<Running>,
    pub(super) logs: Logs,
    pub(super) keyvalue: Arc<OnceCell<KeyvalueStore>>,
    pub(super) keyvalue_dir: PathBuf,
    pub(super) pulse: Arc<Pulse>,
    pub(super) telemetry: Arc<Telemetry>,
    pub(super) doors: Arc<Doors>,
    pub(super) steps: Arc<Steps>,
    /// The right to fetch: few at once.
    pub(super) fetches: Arc<Semaphore>,
}

/// Components that are fetched at once.
pub(super) const FETCHES_MAX: usize = 4;

impl Parts {
    /// The component, ready to be called. The error is for people: what failed, and the next step.
    pub(super) async fn start(&self, key: &Key, wanted: &Wanted) -> Result<Instance, String> {
        let component = wanted.app.components.get(&key.1).ok_or("the app has no such component")?;
        match &component.kind {
            Kind::Actor(actor) => self.actor(key, wanted, component, actor).await,
            Kind::Provider(_) => self.provider(key, wanted).await,
        }
    }

    async fn actor(
        &self,
        key: &Key,
        wanted: &Wanted,
        component: &Component,
        actor: &Actor,
    ) -> Result<Instance, String> {
        let digest = actor.digest.clone().ok_or("its image was not resolved; apply the app again")?;
        let noted = self.steps.begin(key, wanted.revision);
        if !self.artifacts.has(&digest) {
            noted.at(StartStep::FetchQueued);
            let _few = self.fetches.acquire().await;
            noted.at(StartStep::Fetching);
            let told = |bytes, total| noted.fetched(bytes, total);
            fetch::fetch(&self.bus, &self.artifacts, &digest, told).await.map_err(|e| e.to_string())?;
            noted.at(StartStep::Linking);
        }
        self.share.offer(&digest).await;
        let file = self.artifacts.file(&digest).ok().flatten();
        let len = file.and_then(|file| file.metadata().ok()).map_or(0, |meta| meta.len());
        let (store, wants) = (self.artifacts.clone(), digest.clone());
        let source: Source = Arc::new(move || match store.read(&wants) {
            Ok(Some(bytes)) => Ok(bytes),
            Ok(None) => Err(std::io::Error::new(std::io::ErrorKind::NotFound, "the artifact was removed")),
            Err(e) => Err(std::io::Error::other(e)),
        });
        let bytes = source.clone();
        let told = |compiling| {
            noted.at(match compiling {
                Compiling::Queued => StartStep::CompileQueued,
                Compiling::Begun => StartStep::Compiling,
            });
        };
        let stack_bytes = actor.limits.stack_bytes;
        let loading = self.engine.load_sized(&digest, stack_bytes, len, move || bytes(), told);
        let module = loading.await.map_err(|e| e.to_string())?;
        noted.at(StartStep::Linking);
        let imports = Table::new(wanted.app.clone(), key.1.clone(), self.running.clone(), self.bus.clone());
        let spec = Spec {
            app: key.0.clone(),
            actor: key.1.clone(),
            revision: wanted.revision,
            replicas: wanted.replicas,
            config: component.config.clone(),
            grants: actor.grants.clone(),
            limits: actor.limits.clone(),
            imports: Arc::new(imports),
            logs: self.logs.sink(&key.0, &key.1),
            holding: wanted.strict.then(|| self.pulse.holding.clone()),
            source,
        };
        let running = self.engine.prepare(&module, spec).map_err(|e| e.to_string())?;
        let bus_error = |e: bus::Error| e.to_string();
        let mut servings = Vec::new();
        let exports = running.exports();
        let (http, others): (Vec<String>, Vec<String>) = exports.into_iter().partition(|e| is_http(e));
        let door = match http.is_empty() {
            true => None,
            false => Some(self.door(key, running.clone()).await.map_err(bus_error)?),
        };
        // Only what some link of the app leads here for is offered to other hosts.
        let linked: Vec<String> = others.into_iter().filter(|e| is_linked(&wanted.app, key, e)).collect();
        let permit = permit_of(&wanted.app);
        let more = serve_component(&self.bus, &key.0, &key.1, &linked, running.clone(), permit).await;
        servings.extend(more.map_err(bus_error)?);
        Ok(Instance {
            revision: wanted.revision,
            replicas: wanted.replicas,
            strict: wanted.strict,
            what: What::Actor(running),
            servings,
            door,
        })
    }

    /// The one that is there, which still leads to the revision before, else one that leads to `first`.
    async fn door(&self, key: &Key, first: Arc<dyn HttpServe>) -> Result<Arc<Door>, bus::Error> {
        if let Some(door) = self.doors.get(key) {
            return Ok(door);
        }
        let slot = Slot::new(first);
        let serving = serve_http(&self.bus, &key.0, &key.1, slot.clone()).await?;
        let door = Arc::new(Door { slot, serving });
        self.doors.keep(key, &door);
        Ok(door)
    }

    async fn provider(&self, key: &Key, wanted: &Wanted) -> Result<Instance, String> {
        let dir = self.keyvalue_dir.clone();
        let open = || async move {
            // Opening reads the disk: not on a thread that serves.
            let opened = tokio::task::spawn_blocking(move || KeyvalueStore::open(&dir)).await;
            opened.map_err(|e| e.to_string())?.map_err(|e| e.to_string())
        };
        let store = self.keyvalue.get_or_try_init(open).await?.clone();
        let server = Arc::new(KeyValueServer::new(store.clone(), key.0.clone(), key.1.clone()));
        let interfaces: Vec<String> = KeyValueServer::interfaces().iter().map(|i| (*i).to_owned()).collect();
        let permit = permit_of(&wanted.app);
        let servings = serve_component(&self.bus, &key.0, &key.1, &interfaces, server, permit).await;
        Ok(Instance {
            revision: wanted.revision,
            replicas: wanted.replicas,
            strict: wanted.strict,
            what: What::Provider(store),
            servings: servings.map_err(|e| e.to_string())?,
            door: None,
        })
    }
}

/// Of WASI 0.2 or 0.3: requests on the bus are the same for both.
fn is_http(interface: &str) -> bool {
    matches!(interface.split('@').next(), Some(HTTP_INTERFACE | "wasi:http/handler"))
}

fn is_linked(app: &App, key: &Key, interface: &str) -> bool {
    let interface = interface.split('@').next().unwrap_or(interface);
    app.links.iter().any(|l| l.provider == key.1 && l.interface_names().any(|i| i == interface))
}

fn permit_of(app: &Arc<App>) -> Permit {
    let app = app.clone();
    Arc::new(move |caller| permit(&app, caller))
}
