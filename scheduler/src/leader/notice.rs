//! What people are told of what a leader did: what changed, once.

use super::{Effect, Leader, Now};
use crate::state::State;
use proto::app::HostId;
use proto::v1 as pb;
use std::collections::BTreeSet;

/// Something happened: `kind` as "host.lost", `subject` as "host/edge-1".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    pub kind: String,
    pub subject: String,
    pub message: String,
}

/// Something was not done, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    pub what: &'static str,
    /// The name of the host that it is about.
    pub host: Option<String>,
    pub error: String,
}

impl Notice {
    pub(super) fn of_host(kind: &str, name: &str, message: String) -> Effect {
        Effect::Tell(Notice { kind: format!("host.{kind}"), subject: format!("host/{name}"), message })
    }

    fn of_app(kind: &str, name: &str, message: String) -> Effect {
        Effect::Tell(Notice { kind: format!("app.{kind}"), subject: format!("app/{name}"), message })
    }
}

pub(super) fn name_of(state: &State, host: &HostId) -> String {
    state.hosts.get(host).map_or_else(|| host.to_string(), |h| h.hello.name.clone())
}

/// Of the hosts that were proposed to be lost, or to have returned, those that the log took so: outcomes are in the order of
/// the commands, which begin with these. And what else of the plan it refused: that one is stale happens.
pub(super) fn moved(state: &State, lost: &[HostId], returned: &[HostId], outcomes: &[pb::Outcome]) -> Vec<Effect> {
    let refused = outcomes.iter().filter(|o| !o.error.is_empty() && o.code != "stale");
    let warn = |o: &pb::Outcome| Warning { what: "the log refused a plan", host: None, error: o.error.clone() };
    let mut effects: Vec<Effect> = refused.map(|o| Effect::Warn(warn(o))).collect();
    let hosts = lost.iter().map(|host| ("lost", host)).chain(returned.iter().map(|host| ("returned", host)));
    for ((kind, host), _) in hosts.zip(outcomes).filter(|(_, outcome)| outcome.error.is_empty()) {
        let name = name_of(state, host);
        effects.push(Notice::of_host(kind, &name, format!("host {name} is {kind}")));
    }
    effects
}

/// What became of a host that was proposed.
pub(super) fn registered(name: String, is_new: bool, result: Result<Vec<pb::Outcome>, String>) -> Vec<Effect> {
    let refused = match result {
        Ok(outcomes) => outcomes.into_iter().map(|o| o.error).find(|error| !error.is_empty()),
        Err(error) => Some(error),
    };
    match refused {
        Some(error) => vec![Effect::Warn(Warning { what: "host not registered", host: Some(name), error })],
        None if is_new => vec![Notice::of_host("joined", &name, format!("host {name} joined"))],
        None => Vec::new(),
    }
}

impl Leader {
    pub(super) fn tell_brake(&mut self) -> Option<Effect> {
        if self.brake == self.braking {
            return None;
        }
        self.braking = self.brake;
        let message = if self.brake {
            "most hosts fell silent at once: the network or the bus is the likelier cause; nothing is moved until they are heard"
        } else {
            "hosts are heard again"
        };
        Some(Effect::Tell(Notice { kind: "lattice.brake".into(), subject: "lattice".into(), message: message.into() }))
    }

    /// Tells when an app's state changed.
    pub(super) fn announce(&mut self, now: &Now<'_>) -> Vec<Effect> {
        let mut effects = Vec::new();
        let mut names = BTreeSet::new();
        let apps = self.view(now.state, now.ms).apps("");
        for app in apps {
            names.insert(app.name.clone());
            let at = (app.revision, app.state.clone());
            if self.announced.get(&app.name) == Some(&at) {
                continue;
            }
            self.announced.insert(app.name.clone(), at);
            let mut message = format!("app {} is {} ({} of {})", app.name, app.state, app.running, app.desired);
            if !app.message.is_empty() {
                message = format!("{message}: {}", app.message);
            }
            effects.push(Notice::of_app(&app.state, &app.name, message));
        }
        let gone: Vec<String> = self.announced.keys().filter(|n| !names.contains(*n)).cloned().collect();
        for name in gone {
            self.announced.remove(&name);
            effects.push(Notice::of_app("deleted", &name, format!("app {name} is gone")));
        }
        effects
    }
}
