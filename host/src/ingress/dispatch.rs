//! Where the request of a route is answered: by the actor if it runs on this host, else over the bus.

use super::Route;
use crate::call::{Body, CallError, HttpServe};
use crate::rpc::RemoteHttp;
use bus::Bus;
use http::{Request, Response};
use proto::app::Name;
use std::sync::Arc;
use std::time::Duration;

/// What the way over the bus may take beyond the actor's own limit, so that it is the actor's host that tells of it.
const BUS_SLACK: Duration = Duration::from_secs(1);

/// Answers for an actor. Its errors become statuses.
#[async_trait::async_trait]
pub trait Dispatch: Send + Sync {
    async fn http(&self, route: &Route, request: Request<Body>) -> Result<Response<Body>, CallError>;
}

/// The actors that run on this host now.
pub trait Here: Send + Sync {
    fn http(&self, app: &Name, actor: &Name) -> Option<Arc<dyn HttpServe>>;
}

/// An actor that runs here answers itself, even when that means that it is overloaded: work is moved by the
/// scheduler, not by queueing it elsewhere.
pub struct Nearest {
    here: Arc<dyn Here>,
    bus: Bus,
}

impl Nearest {
    pub fn new(here: Arc<dyn Here>, bus: Bus) -> Self {
        Self { here, bus }
    }
}

#[async_trait::async_trait]
impl Dispatch for Nearest {
    async fn http(&self, route: &Route, request: Request<Body>) -> Result<Response<Body>, CallError> {
        let Route { app, actor, deadline, .. } = route;
        match self.here.http(app, actor) {
            Some(actor) => actor.http(request, None).await,
            None => {
                let remote = RemoteHttp::new(self.bus.clone(), app.clone(), actor.clone());
                remote.http(request, Some(*deadline + BUS_SLACK)).await
            }
        }
    }
}
