//! The traits of one component that are about itself: scalers, ingress, grants, limits.

use super::reader::{Cursor, Fields, Reader, shown};
use super::{Place, ROUTES_MAX};
use crate::app::{
    Folder, Grants, IngressRoute, Limits, REPLICAS_MAX, SPREAD_WEIGHT_DEFAULT, SPREADS_MAX, Scaler, Spread,
};
use std::collections::{BTreeMap, BTreeSet};

const MEMORY_BYTES: std::ops::RangeInclusive<u64> = 64 * 1024..=4 * 1024 * 1024 * 1024;
const DEADLINE_MS_MAX: u64 = 24 * 60 * 60 * 1_000;
const QUEUE_LEN_MAX: u32 = 1_000_000;
/// Bytes of a route's path and of a host name (RFC 1035).
const PATH_BYTES_MAX: usize = 1_024;
const HOST_BYTES_MAX: usize = 253;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ScalerKind {
    Spread,
    Daemon,
}

/// `spreadscaler` and `daemonscaler`.
pub(super) fn scaler(kind: ScalerKind, at: &Cursor<'_>, reader: &mut Reader) -> Option<Scaler> {
    let mut fields = reader.fields(at, &["instances", "replicas", "spread"])?;
    let (instances, replicas) = (fields.optional("instances"), fields.optional("replicas"));
    let count = match (&instances, &replicas) {
        (Some(_), Some(second)) => {
            reader.report(&second.place(), "instances and replicas say the same thing", "keep one of them");
            None
        }
        (Some(one), None) | (None, Some(one)) => reader.whole(one, u64::from(REPLICAS_MAX)),
        (None, None) => {
            reader.report(&fields.place, "missing field \"instances\"", "write `instances: 1`");
            None
        }
    };
    let spread_at = fields.optional("spread");
    let items = spread_at.as_ref().map(|at| reader.list(at, "spreads")).unwrap_or_default();
    if let (true, Some(at)) = (items.len() > SPREADS_MAX, &spread_at) {
        let message = format!("{} spreads; a scaler has at most {SPREADS_MAX}", items.len());
        reader.report(&at.place(), &message, "merge those with the same requirements");
        return None;
    }
    let spread: Vec<Option<Spread>> = items.iter().map(|item| one_spread(item, reader)).collect();
    let spread: Option<Vec<Spread>> = spread.into_iter().collect();
    let (replicas, spread) = (u32::try_from(count?).ok()?, spread?);
    let nobody = !spread.is_empty() && spread.iter().all(|s| s.weight == 0);
    if let (true, ScalerKind::Spread, Some(at)) = (nobody && replicas > 0, kind, &spread_at) {
        reader.report(&at.place(), "every weight is 0, so no replica could be placed", "give one a weight above 0");
    }
    Some(match kind {
        ScalerKind::Spread => Scaler::Spread { replicas, spread },
        ScalerKind::Daemon => Scaler::Daemon { replicas, spread },
    })
}

fn one_spread(at: &Cursor<'_>, reader: &mut Reader) -> Option<Spread> {
    let mut fields = reader.fields(at, &["name", "requirements", "weight"])?;
    let name = fields.optional("name").map_or(Some(String::new()), |at| reader.text(&at));
    let requirements = fields.optional("requirements").map(|at| reader.map(&at)).unwrap_or_default();
    let weight = match fields.optional("weight") {
        Some(at) => reader.whole(&at, u64::from(u32::MAX)).and_then(|w| u32::try_from(w).ok()),
        None => Some(SPREAD_WEIGHT_DEFAULT),
    };
    Some(Spread { name: name?, requirements, weight: weight? })
}

/// The `ingress` trait: `routes`, or `host` and `path` of the only one.
pub(super) fn ingress(at: &Cursor<'_>, reader: &mut Reader) -> Vec<(IngressRoute, Place)> {
    let Some(mut fields) = reader.fields(at, &["routes", "host", "path"]) else {
        return Vec::new();
    };
    let Some(routes) = fields.optional("routes") else {
        let place = fields.place.clone();
        return route(&mut fields, reader).map(|route| (route, place)).into_iter().collect();
    };
    for name in ["host", "path"] {
        if let Some(at) = fields.optional(name) {
            reader.report(&at.place(), format!("{name} beside routes"), "move it into one of the routes");
        }
    }
    let items = reader.list(&routes, "routes");
    if items.is_empty() {
        reader.report(&routes.place(), "has no routes", "write `routes: [{path: /}]`");
    }
    let mut found = Vec::new();
    for item in items.iter().take(ROUTES_MAX + 1) {
        if let Some(mut fields) = reader.fields(item, &["host", "path"])
            && let Some(route) = route(&mut fields, reader)
        {
            found.push((route, item.place()));
        }
    }
    found
}

fn route(fields: &mut Fields<'_>, reader: &mut Reader) -> Option<IngressRoute> {
    let host = match fields.optional("host") {
        Some(at) => reader.text(&at).and_then(|text| checked(&at.place(), route_host(&text), reader)),
        None => Some(String::new()),
    };
    let path = match fields.optional("path") {
        Some(at) => reader.text(&at).and_then(|text| checked(&at.place(), route_path(&text), reader)),
        None => Some("/".to_owned()),
    };
    Some(IngressRoute { host: host?, path: path? })
}

/// What is wrong and what would be right.
type Refusal = (String, &'static str);

pub(super) fn checked<T>(place: &Place, result: Result<T, Refusal>, reader: &mut Reader) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err((message, help)) => {
            reader.report(place, message, help);
            None
        }
    }
}

/// A host name, "*.example.org", or "" and "*" for every host; in lower case.
pub(super) fn route_host(text: &str) -> Result<String, Refusal> {
    let host = text.to_ascii_lowercase();
    if host.is_empty() || host == "*" {
        return Ok(String::new());
    }
    if host.contains(':') && !host.starts_with('[') {
        return Err((format!("{} is not a host name", shown(text)), "write it without scheme and port"));
    }
    if is_host(host.strip_prefix("*.").unwrap_or(&host)) {
        return Ok(host);
    }
    Err((format!("{} is not a host name", shown(text)), "write it as shop.example.org or *.example.org"))
}

/// A path that starts with "/"; without "/" at its end, so that one route has one form.
pub(super) fn route_path(text: &str) -> Result<String, Refusal> {
    let bad = |what| Err((format!("{} is not a path", shown(text)), what));
    if !text.starts_with('/') {
        return bad("start it with /");
    }
    if text.len() > PATH_BYTES_MAX {
        return bad("use at most 1,024 bytes");
    }
    if text.contains(['?', '#']) || text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return bad("write it without query, fragment and spaces");
    }
    if text.contains('*') {
        return bad("a path is a prefix by whole segments: write it without *");
    }
    let trimmed = text.strip_suffix('/').unwrap_or(text);
    if trimmed.split('/').skip(1).any(|segment| matches!(segment, "" | "." | "..")) {
        return bad("write it without empty segments, . and ..");
    }
    Ok(if trimmed.is_empty() { "/".to_owned() } else { trimmed.to_owned() })
}

/// A DNS name, an IPv4 address, or an IPv6 address in brackets.
fn is_host(host: &str) -> bool {
    if let Some(address) = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        let groups_ok = address.split(':').all(|g| g.len() <= 4 && g.bytes().all(|b| b.is_ascii_hexdigit()));
        let colons = address.matches(':').count();
        return groups_ok && if address.contains("::") { (2..=7).contains(&colons) } else { colons == 7 };
    }
    let label_ok = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    host.len() <= HOST_BYTES_MAX && host.split('.').all(label_ok)
}

/// The `grants` trait.
pub(super) fn grants(at: &Cursor<'_>, reader: &mut Reader) -> Option<Grants> {
    let mut fields = reader.fields(at, &["env", "http", "folders", "sockets"])?;
    let mut env = BTreeMap::new();
    for pair in fields.optional("env").map(|at| reader.pairs(&at)).unwrap_or_default() {
        if pair.key.is_empty() || pair.key.contains(['=', '\0']) {
            reader.report(&pair.place, format!("{} is no variable's name", shown(&pair.key)), "write it without =");
        }
        env.insert(pair.key, pair.value);
    }
    let mut http = Vec::new();
    for item in fields.optional("http").map(|at| reader.list(&at, "host names")).unwrap_or_default() {
        let Some(text) = reader.text(&item) else { continue };
        http.extend(checked(&item.place(), http_host(&text), reader));
    }
    let mut folders: Vec<Folder> = Vec::new();
    let mut guests = BTreeSet::new();
    for item in fields.optional("folders").map(|at| reader.list(&at, "folders")).unwrap_or_default() {
        let Some(folder) = folder(&item, reader) else { continue };
        if !guests.insert(folder.guest.clone()) {
            let message = format!("two folders stand at {} of the guest", shown(&folder.guest));
            reader.report(&item.place(), message, "give each its own guest path");
        }
        folders.push(folder);
    }
    let sockets = fields.optional("sockets").map_or(Some(false), |at| reader.flag(&at));
    Some(Grants { env, http, folders, sockets: sockets? })
}

/// "api.example.org", "*.example.org", "127.0.0.1:8080", "*"; in lower case.
fn http_host(text: &str) -> Result<String, Refusal> {
    let lower = text.to_ascii_lowercase();
    if lower == "*" {
        return Ok(lower);
    }
    if lower.contains("://") || lower.contains('/') {
        let message = format!("{} is not a host name", shown(text));
        return Err((message, "write the host only, without scheme and path: api.example.org or 127.0.0.1:8080"));
    }
    let (host, port) = match lower.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (lower.as_str(), None),
    };
    let port_ok = port.is_none_or(|port| port.parse::<u16>().is_ok_and(|p| p > 0));
    if port_ok && is_host(host.strip_prefix("*.").unwrap_or(host)) {
        return Ok(lower);
    }
    Err((format!("{} is not a host name", shown(text)), "write api.example.org, *.example.org or 127.0.0.1:8080"))
}

fn folder(at: &Cursor<'_>, reader: &mut Reader) -> Option<Folder> {
    let mut fields = reader.fields(at, &["host", "guest", "write"])?;
    let mut path = |name, example, reader: &mut Reader| {
        let at = reader.required(&mut fields, name, example)?;
        let text = reader.text(&at)?;
        let clean = text.starts_with('/') && !text.split('/').any(|part| part == "..") && !text.contains('\0');
        if clean {
            return Some(text);
        }
        reader.report(&at.place(), format!("{} is not a full path", shown(&text)), "start it with / and use no ..");
        None
    };
    let host = path("host", "/srv/data", reader);
    let guest = path("guest", "/data", reader);
    let write = fields.optional("write").map_or(Some(false), |at| reader.flag(&at));
    Some(Folder { host: host?, guest: guest?, write: write? })
}

/// The `limits` trait.
pub(super) fn limits(at: &Cursor<'_>, reader: &mut Reader) -> Option<Limits> {
    let mut fields = reader.fields(at, &["memory", "deadline", "queue"])?;
    let default = Limits::default();
    let memory_bytes = match fields.optional("memory") {
        Some(at) => reader.text(&at).and_then(|text| checked(&at.place(), memory(&text), reader)),
        None => Some(default.memory_bytes),
    };
    let deadline_ms = match fields.optional("deadline") {
        Some(at) => reader.text(&at).and_then(|text| checked(&at.place(), deadline(&text), reader)),
        None => Some(default.deadline_ms),
    };
    let queue_len_max = match fields.optional("queue") {
        Some(at) => reader.whole(&at, u64::from(QUEUE_LEN_MAX)).and_then(|n| u32::try_from(n).ok()),
        None => Some(default.queue_len_max),
    };
    Some(Limits { memory_bytes: memory_bytes?, deadline_ms: deadline_ms?, queue_len_max: queue_len_max? })
}

fn memory(text: &str) -> Result<u64, Refusal> {
    const UNITS: &[(&str, u64)] = &[
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("Ki", 1 << 10),
        ("Mi", 1 << 20),
        ("Gi", 1 << 30),
        ("KB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("B", 1),
        ("", 1),
    ];
    match amount(text, UNITS) {
        Some(bytes) if MEMORY_BYTES.contains(&bytes) => Ok(bytes),
        Some(_) => Err((format!("{} of memory is out of range", shown(text)), "give 64KiB to 4GiB")),
        None => Err((format!("{} is not an amount of memory", shown(text)), "write it as 64MiB")),
    }
}

fn deadline(text: &str) -> Result<u64, Refusal> {
    const UNITS: &[(&str, u64)] = &[("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)];
    match amount(text, UNITS) {
        Some(ms) if (1..=DEADLINE_MS_MAX).contains(&ms) => Ok(ms),
        Some(_) => Err((format!("a deadline of {} is out of range", shown(text)), "give 1ms to 24h")),
        None => Err((format!("{} is not a time", shown(text)), "write it with its unit, as 30s or 500ms")),
    }
}

/// A whole number and one of the units behind it.
fn amount(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit.trim_start_matches(' '))?;
    // Too large for 64 bits is out of range, not another form.
    (digits > 0).then(|| number.parse::<u64>().unwrap_or(u64::MAX).saturating_mul(*factor))
}
