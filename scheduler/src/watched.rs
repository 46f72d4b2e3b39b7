//! What a watch tells: how things are, then whatever differs from what was told. Pure. Must never leave a change out,
//! nor let a watch go on where it can not know what it missed.

use crate::state::Touched;
use crate::status::View;
use proto::v1 as pb;
use proto::v1::watch_event::What;
use std::collections::{BTreeMap, BTreeSet};

/// A host without what moves all the time, its age and its load: a watch tells what changed besides.
fn still(host: pb::HostStatus) -> pb::HostStatus {
    pb::HostStatus {
        seen_ms: 0,
        cpu_millis: 0,
        resident_bytes: 0,
        requests_per_s: 0.0,
        in_flight: 0,
        queued: 0,
        ..host
    }
}

/// An app without what moves while hosts bring it up.
fn settled(app: pb::AppStatus) -> pb::AppStatus {
    pb::AppStatus { starting: Vec::new(), starting_more: 0, ..app }
}

/// What one watcher was told.
#[derive(Default)]
pub struct Watched {
    request: pb::WatchRequest,
    apps: BTreeMap<String, pb::AppStatus>,
    hosts: BTreeMap<String, pb::HostStatus>,
    /// What vanished before the watch resumed.
    gone: Vec<What>,
    /// Everything up to this log index was told.
    told: u64,
    synced: bool,
}

impl Watched {
    pub fn new(request: pb::WatchRequest) -> Self {
        Self { told: request.after, request, ..Self::default() }
    }

    /// For a watch that goes on: what went meanwhile is told to be gone, and what is there is told as it is now, since what
    /// hosts report moves no log index. The view must be no older than anything that was told before, by anybody: a round
    /// that was cut in the middle may have told of what came after `after`. `touched` and `compacted` must be at least as
    /// new as the view.
    pub fn resume(
        &mut self,
        view: &View<'_>,
        touched: Option<BTreeSet<Touched>>,
        compacted: u64,
    ) -> Result<(), String> {
        let after = self.request.after;
        if after == 0 {
            return Ok(());
        }
        let applied = view.state.applied;
        if after > applied {
            return Err(format!(
                "index {after} is not there yet (the newest is {applied}); list again and watch from the list's index"
            ));
        }
        let Some(touched) = touched else {
            return Err(format!(
                "index {after} was compacted (the oldest known is {compacted}); list again and watch from the list's index"
            ));
        };
        let pb::WatchRequest { app: only, hosts, .. } = &self.request;
        // That they are there is known, what they are like is not.
        self.apps = view.apps(only).into_iter().map(|app| (app.name, pb::AppStatus::default())).collect();
        if *hosts {
            self.hosts = view.hosts().into_iter().map(|host| (host.id, pb::HostStatus::default())).collect();
        }
        for one in touched {
            match one {
                Touched::AppGone(name) if !self.apps.contains_key(name.as_str()) => {
                    if only.is_empty() || *only == name.as_str() {
                        self.gone.push(What::AppDeleted(name.to_string()));
                    }
                }
                Touched::HostGone(id) if *hosts && !self.hosts.contains_key(id.as_str()) => {
                    self.gone.push(What::HostForgotten(id.to_string()));
                }
                Touched::App(_) | Touched::Host(_) | Touched::AppGone(_) | Touched::HostGone(_) => {}
            }
        }
        Ok(())
    }

    /// What differs from what was told. Only the last event has the newest index: who goes on behind an event in the
    /// middle must be told the rest.
    pub fn round(&mut self, view: &View<'_>) -> Vec<pb::WatchEvent> {
        let mut apps = view.apps(&self.request.app);
        if !self.request.progress {
            apps = apps.into_iter().map(settled).collect();
        }
        let hosts = if self.request.hosts { view.hosts() } else { Vec::new() };
        let mut events = std::mem::take(&mut self.gone);
        let now: BTreeMap<String, pb::AppStatus> = apps.into_iter().map(|a| (a.name.clone(), a)).collect();
        for name in self.apps.keys().filter(|n| !now.contains_key(*n)) {
            events.push(What::AppDeleted(name.clone()));
        }
        let before = &self.apps;
        events.extend(now.values().filter(|a| before.get(&a.name) != Some(a)).cloned().map(What::App));
        self.apps = now;
        let now: BTreeMap<String, pb::HostStatus> = hosts.into_iter().map(|h| (h.id.clone(), still(h))).collect();
        if self.request.hosts {
            for id in self.hosts.keys().filter(|n| !now.contains_key(*n)) {
                events.push(What::HostForgotten(id.clone()));
            }
            let before = &self.hosts;
            let differs = |h: &&pb::HostStatus| before.get(&h.id).cloned().map(still).as_ref() != Some(*h);
            events.extend(now.values().filter(differs).cloned().map(What::Host));
            self.hosts = now;
        }
        if !std::mem::replace(&mut self.synced, true) {
            events.push(What::Synced(true));
        }
        let index = std::mem::replace(&mut self.told, view.state.applied);
        let mut events: Vec<pb::WatchEvent> =
            events.into_iter().map(|what| pb::WatchEvent { index, what: Some(what) }).collect();
        if let Some(last) = events.last_mut() {
            last.index = self.told;
        }
        events
    }
}
