//! What happened, for people and programs: CloudEvents 1.0 on the bus, the latest in memory.

use bus::Bus;
use proto::time::rfc3339;
use proto::v1 as pb;
use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::broadcast;

/// Events remembered.
const EVENTS_MAX: usize = 1_000;
/// Bytes of one event from the bus; a longer one is dropped.
const EVENT_BYTES_MAX: usize = 64 * 1024;

#[derive(Clone)]
pub struct Events {
    shared: Arc<Shared>,
    source: String,
}

struct Shared {
    ring: Mutex<Ring>,
    live: broadcast::Sender<pb::Event>,
}

#[derive(Default)]
struct Ring {
    events: VecDeque<pb::Event>,
    ids: BTreeSet<String>,
}

impl Events {
    /// `source` names this scheduler in the documents it makes.
    pub fn new(source: String) -> Self {
        let (live, _) = broadcast::channel(256);
        Self { shared: Arc::new(Shared { ring: Mutex::default(), live }), source }
    }

    /// The latest, oldest first; with `app`, only what concerns it.
    pub fn latest(&self, app: &str) -> Vec<pb::Event> {
        let ring = self.shared.ring.lock().unwrap_or_else(PoisonError::into_inner);
        ring.events.iter().filter(|e| concerns(e, app)).cloned().collect()
    }

    pub fn follow(&self) -> broadcast::Receiver<pb::Event> {
        self.shared.live.subscribe()
    }

    /// Makes an event known here and on the bus. `kind` as "host.lost", `subject` as "host/edge-1".
    pub async fn emit(&self, bus: &Bus, kind: &str, subject: String, message: String) {
        let id = ulid::Ulid::generate().to_string();
        let time_ms = unix_ms();
        let document = serde_json::json!({
            "specversion": "1.0",
            "id": id,
            "source": self.source,
            "type": format!("lattice.{kind}"),
            "subject": subject,
            "time": rfc3339(time_ms),
            "datacontenttype": "application/json",
            "data": { "message": message },
        });
        let json = document.to_string();
        tracing::info!(kind, subject, "{message}");
        self.keep(pb::Event { id, time_ms, kind: kind.to_owned(), subject, message, json: json.clone() });
        let subject = bus.subjects().event(kind);
        if let Err(error) = bus.publish(subject, json.into()).await {
            tracing::debug!(%error, "event not published");
        }
    }

    /// Takes an event that another published. Gives whether it was one.
    pub fn take(&self, payload: &[u8]) -> bool {
        let event = (payload.len() <= EVENT_BYTES_MAX).then(|| parse(payload)).flatten();
        let known = event.is_some();
        if let Some(event) = event {
            self.keep(event);
        }
        known
    }

    fn keep(&self, event: pb::Event) {
        let mut ring = self.shared.ring.lock().unwrap_or_else(PoisonError::into_inner);
        if !ring.ids.insert(event.id.clone()) {
            return;
        }
        ring.events.push_back(event.clone());
        while ring.events.len() > EVENTS_MAX {
            if let Some(oldest) = ring.events.pop_front() {
                ring.ids.remove(&oldest.id);
            }
        }
        drop(ring);
        // Nobody may be listening.
        let _ = self.shared.live.send(event);
    }
}

/// Whether an event is about `app`; every event is when `app` is empty.
pub(crate) fn concerns(event: &pb::Event, app: &str) -> bool {
    app.is_empty() || event.subject.strip_prefix("app/").is_some_and(|s| s == app || s.split('/').next() == Some(app))
}

fn parse(payload: &[u8]) -> Option<pb::Event> {
    let document: serde_json::Value = serde_json::from_slice(payload).ok()?;
    let text = |key: &str| document.get(key).and_then(|v| v.as_str()).map(str::to_owned);
    if text("specversion")? != "1.0" {
        return None;
    }
    let kind = text("type")?;
    Some(pb::Event {
        id: text("id").filter(|id| !id.is_empty() && id.len() <= 64)?,
        time_ms: unix_ms(),
        kind: kind.strip_prefix("lattice.").unwrap_or(&kind).to_owned(),
        subject: text("subject").unwrap_or_default(),
        message: document.pointer("/data/message").and_then(|v| v.as_str()).unwrap_or_default().to_owned(),
        json: document.to_string(),
    })
}

pub(crate) fn unix_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn garbage_is_no_event() {
        for bad in [&b""[..], b"{", b"[]", b"{\"specversion\":\"1.0\"}", b"\xff\xfe"] {
            assert!(parse(bad).is_none());
        }
    }
}
