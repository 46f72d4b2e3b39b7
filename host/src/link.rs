//! How an actor's imports reach their providers: (actor, interface, link name) -> a provider here, or the bus. Which
//! link is meant is decided once, purely, from the app; whether its provider runs here is asked at each call, so that
//! it may come and go. Nothing is reachable without a link.

use crate::call::{CallError, LinkContext, Serve};
use crate::capability::Imports;
use crate::capability::keystore::KeyStore;
use crate::capability::keyvalue::KeyValue;
use crate::capability::traced::Traced;
use crate::capability::wire::{KeyStoreOver, KeyValueOver};
use crate::origin::Origin;
use crate::provider::keyvalue::KeyvalueStore;
use crate::provider::serve::KeyValueServer;
use crate::rpc::{Caller, RemoteServe};
use crate::spans;
use bus::Bus;
use bytes::Bytes;
use proto::app::{App, Builtin, Kind, Link, Name};
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// What runs on this host now. Asked at each call: must answer in well under a microsecond.
pub trait Local: Send + Sync {
    fn provider(&self, app: &Name, component: &Name) -> Option<LocalProvider>;
    fn actor(&self, app: &Name, component: &Name) -> Option<Arc<dyn Serve>>;
}

/// A built-in provider that was placed here.
#[derive(Clone)]
pub enum LocalProvider {
    /// The host's one store, open for as long as the process lives.
    Keyvalue(KeyvalueStore),
}

/// What a link leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offer {
    Builtin(Builtin),
    Actor,
}

/// The link of `consumer` named `name` for `interface`, and what kind of component serves it.
pub fn resolve<'a>(app: &'a App, consumer: &str, interface: &str, name: &str) -> Result<(&'a Link, Offer), CallError> {
    let interface = unversioned(interface);
    let who = || format!("link {name:?} of actor {consumer:?}");
    let serving = |link: &&Link| link.consumer.as_str() == consumer && link.interface_names().any(|i| i == interface);
    let Some(link) = app.links.iter().filter(serving).find(|link| link.name == name) else {
        let others: Vec<String> = app.links.iter().filter(serving).map(|link| format!("{:?}", link.name)).collect();
        return Err(CallError::Denied(if others.is_empty() {
            format!("{}: no link for {interface}; add a link trait", who())
        } else {
            format!("{}: its links for {interface} are {}; use one, or add a link trait", who(), others.join(", "))
        }));
    };
    let provider = link.provider.as_str();
    match app.components.get(provider).map(|component| &component.kind) {
        Some(Kind::Provider(p)) if p.builtin.interfaces().contains(&interface) => Ok((link, Offer::Builtin(p.builtin))),
        Some(Kind::Actor(a)) if a.exports.iter().any(|e| unversioned(e) == interface) => Ok((link, Offer::Actor)),
        Some(_) => Err(CallError::Invalid(format!(
            "{}: {provider:?} does not serve {interface}; link to a component that exports it",
            who()
        ))),
        None => Err(CallError::Invalid(format!(
            "{}: app {:?} has no component {provider:?}; add it, or correct the link's target",
            who(),
            app.name.as_str()
        ))),
    }
}

/// The target config of the caller's link, if `app` has that link: what a serving host answers `rpc::Permit` with.
pub fn permit(app: &App, caller: &Caller) -> Option<BTreeMap<String, String>> {
    if app.name != caller.app || app.name != caller.provider_app {
        return None;
    }
    let (link, _) = resolve(app, caller.consumer.as_str(), &caller.interface, &caller.link).ok()?;
    (link.provider == caller.provider).then(|| link.config.clone())
}

fn unversioned(interface: &str) -> &str {
    interface.split('@').next().unwrap_or(interface)
}

/// The imports of one actor of one app revision.
pub struct Table {
    app: Arc<App>,
    consumer: Name,
    bindings: Vec<Arc<Binding>>,
}

impl Table {
    pub fn new(app: Arc<App>, consumer: Name, local: Arc<dyn Local>, bus: Bus) -> Self {
        let deadline = app.actor(consumer.as_str()).map(|actor| Duration::from_millis(actor.limits.deadline_ms));
        let mut bindings = Vec::new();
        for link in app.links.iter().filter(|link| link.consumer == consumer) {
            for interface in link.interface_names() {
                let Ok((_, offer)) = resolve(&app, consumer.as_str(), &interface, &link.name) else { continue };
                bindings.push(Arc::new(Binding {
                    interface,
                    offer,
                    app: app.name.clone(),
                    provider: link.provider.clone(),
                    context: LinkContext {
                        app: app.name.to_string(),
                        consumer: consumer.to_string(),
                        name: link.name.clone(),
                        config: link.config.clone(),
                        deadline,
                        origin: Origin::default(),
                    },
                    local: local.clone(),
                    remote: Arc::new(RemoteServe::new(bus.clone(), app.name.clone(), link.provider.clone())),
                    made: Made::default(),
                }));
            }
        }
        Self { app, consumer, bindings }
    }

    fn binding(&self, interface: &str, name: &str) -> Result<&Arc<Binding>, CallError> {
        let interface = unversioned(interface);
        match self.bindings.iter().find(|b| b.interface == interface && b.context.name == name) {
            Some(binding) => Ok(binding),
            None => Err(match resolve(&self.app, self.consumer.as_str(), interface, name) {
                Err(why) => why,
                Ok(_) => CallError::Denied(format!("link {name:?} of actor {:?} is not bound", self.consumer.as_str())),
            }),
        }
    }
}

impl Imports for Table {
    fn keyvalue(&self, interface: &str, name: &str, origin: &Origin) -> Result<Arc<dyn KeyValue>, CallError> {
        self.binding(interface, name)?.keyvalue(origin)
    }

    fn keystore(&self, name: &str, origin: &Origin) -> Result<Arc<dyn KeyStore>, CallError> {
        Ok(self.binding("lattice:keystore/store", name)?.keystore(origin))
    }

    fn dynamic(&self, interface: &str, name: &str) -> Result<Arc<dyn Serve>, CallError> {
        Ok(self.binding(interface, name)?.clone())
    }
}

/// One interface of one link.
struct Binding {
    interface: String,
    offer: Offer,
    app: Name,
    provider: Name,
    context: LinkContext,
    local: Arc<dyn Local>,
    remote: Arc<RemoteServe>,
    made: Made,
}

/// Where a call goes now.
enum Target {
    Provider(LocalProvider),
    Actor(Arc<dyn Serve>),
    Remote,
}

/// What was made for this link once and is handed out again: a local call costs no allocation.
#[derive(Default)]
struct Made {
    keyvalue_here: OnceLock<Arc<dyn KeyValue>>,
    keyvalue_there: OnceLock<Arc<dyn KeyValue>>,
    keystore_here: OnceLock<Arc<dyn KeyStore>>,
    keystore_there: OnceLock<Arc<dyn KeyStore>>,
}

impl Binding {
    fn target(&self) -> Target {
        let here = match self.offer {
            Offer::Builtin(_) => self.local.provider(&self.app, &self.provider).map(Target::Provider),
            Offer::Actor => self.local.actor(&self.app, &self.provider).map(Target::Actor),
        };
        here.unwrap_or(Target::Remote)
    }

    fn whom(&self) -> String {
        format!("{}/{}", self.app, self.provider)
    }

    /// The link as of a call that `origin` caused.
    fn caused_by(&self, origin: &Origin) -> LinkContext {
        LinkContext { origin: origin.clone(), ..self.context.clone() }
    }

    fn keyvalue(self: &Arc<Self>, origin: &Origin) -> Result<Arc<dyn KeyValue>, CallError> {
        if self.offer == Offer::Actor {
            return Err(CallError::Invalid(format!(
                "link {:?} of actor {:?}: {} has resources, which can not be called in actor {:?}; link to a \
                 builtin:keyvalue provider",
                self.context.name,
                self.context.consumer,
                self.interface,
                self.provider.as_str()
            )));
        }
        Ok(match self.target() {
            Target::Provider(LocalProvider::Keyvalue(store)) => {
                let make = || store.keyvalue(&self.app, &self.provider, self.context.clone());
                let here = self.made.keyvalue_here.get_or_init(make).clone();
                match spans::are_on() {
                    true => Arc::new(Traced::new(here, origin.clone(), self.whom())) as Arc<dyn KeyValue>,
                    false => here,
                }
            }
            Target::Actor(_) | Target::Remote if origin.is_none() => {
                let make = || Arc::new(KeyValueOver::new(self.remote.clone(), self.context.clone())) as _;
                self.made.keyvalue_there.get_or_init(make).clone()
            }
            Target::Actor(_) | Target::Remote => {
                Arc::new(KeyValueOver::new(self.remote.clone(), self.caused_by(origin)))
            }
        })
    }

    fn keystore(&self, origin: &Origin) -> Arc<dyn KeyStore> {
        match self.target() {
            Target::Provider(LocalProvider::Keyvalue(store)) => {
                let make = || store.keystore(&self.app, &self.provider, self.context.clone());
                let here = self.made.keystore_here.get_or_init(make).clone();
                match spans::are_on() {
                    true => Arc::new(Traced::new(here, origin.clone(), self.whom())) as Arc<dyn KeyStore>,
                    false => here,
                }
            }
            // Not kept: the actor's next revision is another one.
            Target::Actor(actor) => Arc::new(KeyStoreOver::new(actor, self.caused_by(origin))),
            Target::Remote if !origin.is_none() => {
                Arc::new(KeyStoreOver::new(self.remote.clone(), self.caused_by(origin)))
            }
            Target::Remote => {
                let make = || Arc::new(KeyStoreOver::new(self.remote.clone(), self.context.clone())) as _;
                self.made.keystore_there.get_or_init(make).clone()
            }
        }
    }
}

/// The link as a callee: it speaks in its own name, whatever the caller said, and keeps the caller's deadline.
#[async_trait::async_trait]
impl Serve for Binding {
    async fn serve(
        &self,
        link: &LinkContext,
        interface: &str,
        function: &str,
        params: Bytes,
    ) -> Result<Bytes, CallError> {
        let own = match link.deadline.is_some() || !link.origin.is_none() {
            true => &LinkContext {
                deadline: link.deadline.or(self.context.deadline),
                origin: link.origin.clone(),
                ..self.context.clone()
            },
            false => &self.context,
        };
        match self.target() {
            Target::Actor(actor) => actor.serve(own, interface, function, params).await,
            Target::Provider(LocalProvider::Keyvalue(store)) => {
                let server = KeyValueServer::new(store, self.app.clone(), self.provider.clone());
                server.serve(own, interface, function, params).await
            }
            Target::Remote => self.remote.serve(own, interface, function, params).await,
        }
    }
}

#[cfg(test)]
mod tests;
