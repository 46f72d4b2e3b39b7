//! Parts -> App: all that shows only when every component is known. Names, links and their ends, circles, routes, and
//! the two wasmCloud providers that are no providers here (HTTP server, HTTP client).

use super::document::{Metadata, Part, Role};
use super::image::Capability;
use super::link::{LinkDraft, nearest_component};
use super::reader::{Reader, near, shown};
use super::traits::{checked, route_host, route_path};
use super::{ComponentPlaces, LINKS_MAX, Parsed, Place, Positions, ROUTES_MAX};
use crate::app::{Actor, App, Builtin, Component, IngressRoute, Kind, Link, Name, Provider};
use std::collections::{BTreeMap, BTreeSet};

/// Settings of wasmCloud's HTTP server that change what its clients get or who may reach it. To ignore one of them
/// would be a surprise; the others (addresses, ports, timeouts) are the ingress's own affair.
const SERVER_SETTINGS_REFUSED: &[&str] =
    &["tls_", "cors_", "readonly_mode", "cache_control", "config_b64", "config_json"];

/// Circles that are reported; one wrong link can close many.
const CIRCLES_MAX: usize = 10;

/// Joins what the document declares. What is wrong with it is reported, and left out of the app.
pub(super) fn app(metadata: Metadata, mut parts: Vec<Part>, reader: &mut Reader) -> Option<Parsed> {
    refuse_equal_names(&mut parts, reader);
    let known = Known::of(&parts);
    let mut drafts = Vec::new();
    for part in &mut parts {
        check_server_settings(part, reader);
        for link in std::mem::take(&mut part.links) {
            drafts.extend(resolve(part, link, &known, reader));
        }
    }
    if drafts.len() > LINKS_MAX {
        let message = format!("{} links; an app has at most {LINKS_MAX}", drafts.len());
        reader.report(&metadata.place, message, "split it into several apps");
        return None;
    }
    let links = absorb(drafts, &mut parts, reader);
    refuse_equal_links(&links, reader);
    refuse_circles(&links, reader);
    refuse_equal_routes(&metadata.place, &parts, reader);
    build(metadata, parts, links, reader)
}

/// The components of a document by what is written in `name`.
struct Known {
    roles: BTreeMap<String, Seen>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    Actor,
    Capability(Capability),
    Unknown,
}

impl Known {
    fn of(parts: &[Part]) -> Self {
        let mut roles = BTreeMap::new();
        for part in parts {
            let seen = match part.role {
                Role::Actor { .. } => Seen::Actor,
                Role::Capability { capability, .. } => Seen::Capability(capability),
                Role::Unknown => Seen::Unknown,
            };
            roles.entry(part.written.clone()).or_insert(seen);
        }
        Self { roles }
    }
}

fn refuse_equal_names(parts: &mut [Part], reader: &mut Reader) {
    let mut first: BTreeMap<Name, usize> = BTreeMap::new();
    for part in parts {
        let Some(name) = &part.name else { continue };
        if let Some(line) = first.get(name) {
            let message = format!("a second component named {:?}; the first is at line {line}", name.as_str());
            reader.report(&part.place, message, "give one of them another name");
            part.name = None;
        } else {
            first.insert(name.clone(), part.place.line);
        }
    }
}

/// A link whose two ends are known.
struct Draft {
    consumer: Name,
    provider: Name,
    kind: DraftKind,
    link: LinkDraft,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DraftKind {
    /// An actor uses an actor or a provider.
    Use,
    /// The HTTP server calls an actor.
    Ingress,
    /// An actor uses the HTTP client.
    Outgoing,
}

fn resolve(part: &Part, link: LinkDraft, known: &Known, reader: &mut Reader) -> Option<Draft> {
    let from = part.written.as_str();
    let Some(target) = known.roles.get(&link.target).copied() else {
        let names: Vec<&str> = known.roles.keys().map(String::as_str).filter(|k| !k.is_empty() && *k != from).collect();
        let help = nearest_component(&link.target, &names);
        reader.report(&link.target_place, format!("there is no component {}", shown(&link.target)), help);
        return None;
    };
    if link.target == from {
        let message = format!("{from:?} links to itself");
        reader.report(&link.target_place, message, "link to the component that serves the interface");
        return None;
    }
    let kind = match (&part.role, target) {
        (Role::Unknown, _) | (_, Seen::Unknown) => return None,
        (Role::Actor { .. }, Seen::Actor) => DraftKind::Use,
        (Role::Actor { .. }, Seen::Capability(Capability::Builtin(builtin))) => {
            serves(&link, builtin, reader)?;
            DraftKind::Use
        }
        (Role::Actor { .. }, Seen::Capability(Capability::HttpClient)) => {
            only(&link, "outgoing-handler", "the HTTP client", reader)?;
            DraftKind::Outgoing
        }
        (Role::Actor { .. }, Seen::Capability(Capability::HttpServer)) => {
            let help = "the link goes from the HTTP server to the actor; put it there, or use the `ingress` trait";
            reader.report(&link.target_place, "the HTTP server serves nothing to actors", help);
            return None;
        }
        (Role::Capability { capability: Capability::HttpServer, .. }, Seen::Actor) => {
            only(&link, "incoming-handler", "the HTTP server", reader)?;
            DraftKind::Ingress
        }
        (Role::Capability { .. }, _) => {
            let message = format!("capability {from:?} does not call {:?}", link.target);
            reader.report(&link.place, message, "links go from the actor that uses an interface to what serves it");
            return None;
        }
    };
    let (consumer, provider) = (part.name.clone()?, link.target.parse().ok()?);
    Some(Draft { consumer, provider, kind, link })
}

/// Whether a built-in provider serves all that a link asks it for.
fn serves(link: &LinkDraft, builtin: Builtin, reader: &mut Reader) -> Option<()> {
    let mut all = Some(());
    for (interface, place) in &link.interfaces {
        let name = format!("{}:{}/{interface}", link.namespace, link.package);
        if builtin.interfaces().contains(&name.as_str()) {
            continue;
        }
        let help = match near(&name, builtin.interfaces()) {
            Some(best) => format!("did you mean {best:?}?"),
            None => format!("it serves {}", builtin.interfaces().join(", ")),
        };
        reader.report(place, format!("{:?} does not serve {name:?}", link.target), help);
        all = None;
    }
    all
}

fn only(link: &LinkDraft, interface: &str, who: &str, reader: &mut Reader) -> Option<()> {
    let fits =
        link.namespace == "wasi" && link.package == "http" && link.interfaces.iter().all(|(name, _)| name == interface);
    if fits {
        return Some(());
    }
    let names: Vec<&str> = link.interfaces.iter().map(|(name, _)| name.as_str()).collect();
    let message = format!("{who} has no {}:{} [{}]", link.namespace, link.package, names.join(", "));
    reader.report(&link.place, message, format!("its links are for wasi:http [{interface}]"));
    None
}

fn check_server_settings(part: &Part, reader: &mut Reader) {
    if !matches!(part.role, Role::Capability { capability: Capability::HttpServer, .. }) {
        return;
    }
    refuse_server_settings(&part.config, &part.config_place, reader);
}

fn refuse_server_settings(config: &BTreeMap<String, String>, place: &Place, reader: &mut Reader) {
    for (key, value) in config {
        let lower = key.to_ascii_lowercase();
        let refused = SERVER_SETTINGS_REFUSED.iter().any(|name| lower.starts_with(name));
        if refused || (lower == "header" && !value.eq_ignore_ascii_case("host")) {
            let message = format!("setting {} of the HTTP server is not supported", shown(key));
            reader.report(place, message, "remove it: the ingress of the hosts stands in for that server");
        }
    }
}

/// Turns links of the HTTP server into routes and those to the HTTP client into grants; the others stay.
fn absorb(drafts: Vec<Draft>, parts: &mut [Part], reader: &mut Reader) -> Vec<Draft> {
    let index: BTreeMap<Name, usize> =
        parts.iter().enumerate().filter_map(|(i, part)| Some((part.name.clone()?, i))).collect();
    let mut links = Vec::new();
    for draft in drafts {
        match draft.kind {
            DraftKind::Use => links.push(draft),
            DraftKind::Ingress => {
                refuse_server_settings(&draft.link.source_config, &draft.link.place, reader);
                let routes = server_routes(&draft.link, reader);
                if let Some(part) = index.get(&draft.provider).and_then(|i| parts.get_mut(*i)) {
                    part.routes.extend(routes);
                }
            }
            DraftKind::Outgoing => {
                if let Some(part) = index.get(&draft.consumer).and_then(|i| parts.get_mut(*i)) {
                    // A link to it allowed every host.
                    part.grants.http.push("*".to_owned());
                    part.grants.http.dedup();
                }
            }
        }
    }
    links
}

/// The routes of one link of the HTTP server: its `host`, and its `path` or `paths`. Without them, everything.
fn server_routes(link: &LinkDraft, reader: &mut Reader) -> Vec<(IngressRoute, Place)> {
    let setting = |name: &str| {
        let found = link.source_config.iter().chain(&link.target_config).find(|(k, _)| k.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    };
    let host = setting("host").unwrap_or_default();
    let Some(host) = checked(&link.place, route_host(host), reader) else {
        return Vec::new();
    };
    let paths = setting("paths").or_else(|| setting("path")).unwrap_or("/");
    paths
        .split(',')
        .filter_map(|path| checked(&link.place, route_path(path.trim()), reader))
        .map(|path| (IngressRoute { host: host.clone(), path }, link.place.clone()))
        .collect()
}

fn refuse_equal_links(links: &[Draft], reader: &mut Reader) {
    let mut first: BTreeMap<(&Name, String, &str), &Draft> = BTreeMap::new();
    for draft in links {
        for (interface, place) in &draft.link.interfaces {
            let full = format!("{}:{}/{interface}", draft.link.namespace, draft.link.package);
            let key = (&draft.consumer, full.clone(), draft.link.name.as_str());
            let Some(other) = first.get(&key) else {
                first.insert(key, draft);
                continue;
            };
            let message = format!(
                "a second link of {:?} named {:?} for {full}; the first is at line {} and goes to {:?}",
                draft.consumer.as_str(),
                draft.link.name,
                other.link.place.line,
                other.provider.as_str()
            );
            let help = match other.provider == draft.provider {
                true => "remove one of them",
                false => "give one of them another `name`",
            };
            reader.report(place, message, help);
        }
    }
}

/// Depth-first over the links; each link that leads back to a component still on the way closes a circle.
fn refuse_circles(links: &[Draft], reader: &mut Reader) {
    let mut of: BTreeMap<&Name, Vec<&Draft>> = BTreeMap::new();
    for draft in links {
        of.entry(&draft.consumer).or_default().push(draft);
    }
    let mut left: BTreeSet<&Name> = BTreeSet::new();
    let mut circles = 0;
    for start in of.keys().copied() {
        // The way from `start`, each with the number of its next link.
        let mut way: Vec<(&Name, usize)> = if left.contains(start) { Vec::new() } else { vec![(start, 0)] };
        while let Some((name, next)) = way.last_mut() {
            let Some(draft) = of.get(*name).and_then(|links| links.get(*next)) else {
                left.insert(*name);
                way.pop();
                continue;
            };
            *next += 1;
            if let Some(from) = way.iter().position(|(name, _)| **name == draft.provider) {
                let circle: Vec<&str> =
                    way[from..].iter().map(|(name, _)| name.as_str()).chain([draft.provider.as_str()]).collect();
                circles += 1;
                if circles <= CIRCLES_MAX {
                    let message = format!("links in a circle: {}", circle.join(" -> "));
                    let help = "a call could never end: remove one of these links";
                    reader.report(&draft.link.target_place, message, help);
                }
            } else if !left.contains(&draft.provider) {
                way.push((&draft.provider, 0));
            }
        }
    }
}

fn refuse_equal_routes(app: &Place, parts: &[Part], reader: &mut Reader) {
    let count: usize = parts.iter().map(|part| part.routes.len()).sum();
    if count > ROUTES_MAX {
        let message = format!("{count} ingress routes; an app has at most {ROUTES_MAX}");
        reader.report(app, message, "split it into several apps");
        return;
    }
    let mut first: BTreeMap<&IngressRoute, (&str, usize)> = BTreeMap::new();
    for part in parts {
        for (route, place) in &part.routes {
            if let Some((owner, line)) = first.get(route) {
                let host = if route.host.is_empty() { "every host" } else { &route.host };
                let message = format!(
                    "a second ingress route for {host} at {:?}; the first, of {owner:?}, is at line {line}",
                    route.path
                );
                let help = "give one of them another `path` or `host`: the ingress does not tell them apart by address";
                reader.report(place, message, help);
            } else {
                first.insert(route, (&part.written, place.line));
            }
        }
    }
}

fn build(metadata: Metadata, parts: Vec<Part>, links: Vec<Draft>, reader: &Reader) -> Option<Parsed> {
    let mut positions = Positions { file: reader.file().to_owned(), app: metadata.place, ..Positions::default() };
    let mut components = BTreeMap::new();
    for part in parts {
        let Some(name) = part.name else { continue };
        let (routes, ingress): (Vec<IngressRoute>, Vec<Place>) = part.routes.into_iter().unzip();
        let kind = match part.role {
            Role::Actor { image } => Kind::Actor(Actor {
                image,
                digest: None,
                exports: Vec::new(),
                ingress: routes,
                grants: part.grants,
                limits: part.limits,
            }),
            Role::Capability { image, capability: Capability::Builtin(builtin) } => {
                Kind::Provider(Provider { image, builtin })
            }
            Role::Capability { .. } | Role::Unknown => continue,
        };
        let places = ComponentPlaces { component: part.place, image: part.image_place, ingress };
        positions.components.insert(name.clone(), places);
        let component = Component { kind, scaler: part.scaler, strict: part.strict, config: part.config };
        components.insert(name, Box::new(component));
    }
    let mut all = Vec::new();
    for Draft { consumer, provider, link, .. } in links {
        let mut config = link.source_config;
        config.extend(link.target_config);
        positions.links.push(link.place);
        all.push(Link {
            consumer,
            name: link.name,
            namespace: link.namespace,
            package: link.package,
            interfaces: link.interfaces.into_iter().map(|(name, _)| name).collect(),
            provider,
            config,
        });
    }
    let app =
        App { name: metadata.name, labels: metadata.labels, annotations: metadata.annotations, components, links: all };
    Some(Parsed { app, positions })
}
