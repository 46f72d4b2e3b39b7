//! The traits of one component that say how many of it there are and who reaches it: scalers, ingress.

use super::reader::{Cursor, Fields, Reader, shown};
use super::{Place, ROUTES_MAX};
use crate::address::is_name;
use crate::app::{IngressRoute, REPLICAS_MAX, SPREAD_WEIGHT_DEFAULT, SPREADS_MAX, Scaler, Spread};

/// Bytes of a route's path.
const PATH_BYTES_MAX: usize = 1_024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ScalerKind {
    Spread,
    Daemon,
}

/// `spreadscaler` and `daemonscaler`, and whether it is strict.
pub(super) fn scaler(kind: ScalerKind, at: &Cursor<'_>, reader: &mut Reader) -> Option<(Scaler, bool)> {
    let mut fields = reader.fields(at, &["instances", "replicas", "spread", "strict"])?;
    let strict_at = fields.optional("strict");
    let strict = strict_at.as_ref().map_or(Some(false), |at| reader.flag(at));
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
    let (replicas, spread, strict) = (u32::try_from(count?).ok()?, spread?, strict?);
    if let (true, Some(at)) = (strict && (replicas > 1 || kind == ScalerKind::Daemon), &strict_at) {
        let message = "strict says that at most one replica runs at any time, and more are asked for";
        reader.report(&at.place(), message, "write `instances: 1` in a spreadscaler, or leave strict out");
    }
    let nobody = !spread.is_empty() && spread.iter().all(|s| s.weight == 0);
    if let (true, ScalerKind::Spread, Some(at)) = (nobody && replicas > 0, kind, &spread_at) {
        reader.report(&at.place(), "every weight is 0, so no replica could be placed", "give one a weight above 0");
    }
    let scaler = match kind {
        ScalerKind::Spread => Scaler::Spread { replicas, spread },
        ScalerKind::Daemon => Scaler::Daemon { replicas, spread },
    };
    Some((scaler, strict))
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
pub(super) type Refusal = (String, &'static str);

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
        return address.parse::<std::net::Ipv6Addr>().is_ok();
    }
    is_name(host)
}
