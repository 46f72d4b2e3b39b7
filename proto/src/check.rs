//! An app against the components it names: is everything that they import granted or linked, and does whoever is
//! asked for an interface export it. Pure, and the last word before an app is accepted: what passes here must link on
//! any host.

use crate::app::{Actor, App, Component, Kind, Link, Name, Scaler};
use crate::component::{Inspection, Interface};
use crate::manifest::{Positions, Problem};
use crate::needs::{Grant, Served, minor_of};
use std::collections::{BTreeMap, BTreeSet};

/// Problems named one by one for each actor; the rest are counted.
const NAMED_MAX: usize = 20;

const INCOMING: &str = "wasi:http/incoming-handler";
/// Through which WASI 0.3 takes requests, many at once in one instance.
const HANDLER: &str = "wasi:http/handler";

/// Fills in `Actor::exports` from `inspections` (by component) and reports all that would not link, by line. An actor
/// without inspection keeps the exports it has, and its imports are not looked at.
pub fn check(app: &mut App, inspections: &BTreeMap<Name, Inspection>, positions: &Positions) -> Vec<Problem> {
    fill_exports(app, inspections);
    let mut problems = Vec::new();
    for (index, link) in app.links.iter().enumerate() {
        problems.extend(provider_lacks(app, inspections, link, index, positions));
    }
    for (name, component) in &app.components {
        problems.extend(
            too_many_stores(name, component).map(|(m, h)| positions.problem(positions.component(name.as_str()), m, h)),
        );
        let Kind::Actor(actor) = &component.kind else { continue };
        let Some(inspection) = inspections.get(name) else {
            continue;
        };
        problems.extend(ingress_unserved(name, actor, inspection, positions));
        let one_at_a_time = one_at_a_time(name, actor, inspection);
        problems.extend(one_at_a_time.map(|(m, h)| positions.problem(positions.component(name.as_str()), m, h)));
        let place = positions.image(name.as_str());
        let imports = Imports::sort(app, name, inspection);
        problems.extend(imports.wrong_version(name).map(|(m, h)| positions.problem(place, m, h)));
        problems.extend(imports.unserved(name, app).map(|(m, h)| positions.problem(place, m, h)));
        problems.extend(outside_interfaces(name, inspection).map(|(m, h)| positions.problem(place, m, h)));
    }
    problems.sort_by(|a, b| (a.line, a.column, &a.path, &a.message).cmp(&(b.line, b.column, &b.path, &b.message)));
    problems
}

/// A store has its data on the disk of one host: a second replica would hold other data under the same name.
fn too_many_stores(name: &Name, component: &Component) -> Option<(String, String)> {
    let Kind::Provider(provider) = &component.kind else { return None };
    let Scaler::Spread { replicas: 0 | 1, .. } = component.scaler else {
        let message = format!(
            "{name:?} keeps its data on one host, so {} has at most 1 replica",
            provider.image,
            name = name.as_str()
        );
        return Some((message, "use a spreadscaler with instances: 1; requirements choose the host".to_owned()));
    };
    None
}

/// Only WASI 0.3 has functions that several requests can be in at once.
fn one_at_a_time(name: &Name, actor: &Actor, inspection: &Inspection) -> Option<(String, String)> {
    let concurrency = actor.limits.concurrency;
    let is_concurrent = inspection.exports.iter().any(|export| export.unversioned() == HANDLER);
    if concurrency <= 1 || is_concurrent {
        return None;
    }
    let message = format!(
        "actor {:?} has limits.concurrency of {concurrency}, and an instance of a WASI 0.2 component serves one request \
         at a time",
        name.as_str()
    );
    Some((message, format!("leave concurrency out, or build it as a component that exports {HANDLER}@0.3.0")))
}

/// What is allowed but probably not meant: links for interfaces that their consumer does not import, and imports whose
/// use will be refused for want of a grant. Toolchains that bind everything import them without using them.
pub fn warnings(app: &App, inspections: &BTreeMap<Name, Inspection>, positions: &Positions) -> Vec<Problem> {
    let mut warnings = Vec::new();
    for (index, link) in app.links.iter().enumerate() {
        let Some(inspection) = inspections.get(&link.consumer) else {
            continue;
        };
        let imported: BTreeSet<String> =
            inspection.imports.iter().chain(&inspection.type_imports).map(Interface::unversioned).collect();
        let unused: Vec<String> = link.interface_names().filter(|name| !imported.contains(name)).collect();
        if !unused.is_empty() {
            warnings.push(positions.problem(
                positions.link(index),
                format!("actor {:?} does not import {}", link.consumer.as_str(), listed(&unused)),
                "the link can go",
            ));
        }
    }
    for (name, component) in &app.components {
        let (Kind::Actor(actor), Some(inspection)) = (&component.kind, inspections.get(name)) else { continue };
        for import in &inspection.imports {
            if let Some(grant) = Grant::of(import).filter(|grant| !grant.is_given(&actor.grants)) {
                let message = format!("actor {:?} imports {import}, and nothing grants its use", name.as_str());
                let help = format!("if it uses it, add a grants trait with `{}`", grant.example);
                warnings.push(positions.problem(positions.image(name.as_str()), message, help));
            }
        }
    }
    warnings
}

fn fill_exports(app: &mut App, inspections: &BTreeMap<Name, Inspection>) {
    for (name, component) in &mut app.components {
        if let (Kind::Actor(actor), Some(inspection)) = (&mut component.kind, inspections.get(name)) {
            let exports: BTreeSet<String> = inspection.exports.iter().map(Interface::unversioned).collect();
            actor.exports = exports.into_iter().collect();
        }
    }
}

/// What of a link its provider does not serve, or serves in a version that the consumer can not use.
fn provider_lacks(
    app: &App,
    inspections: &BTreeMap<Name, Inspection>,
    link: &Link,
    index: usize,
    positions: &Positions,
) -> Option<Problem> {
    let provider = app.components.get(&link.provider)?;
    let lacking: Vec<String> = match &provider.kind {
        Kind::Provider(p) => link.interface_names().filter(|i| !p.builtin.interfaces().contains(&i.as_str())).collect(),
        // Nothing is known of an actor that was never inspected.
        Kind::Actor(a) if a.exports.is_empty() && !inspections.contains_key(&link.provider) => return None,
        Kind::Actor(a) => link.interface_names().filter(|i| !a.exports.contains(i)).collect(),
    };
    let (consumer, name) = (link.consumer.as_str(), link.provider.as_str());
    if !lacking.is_empty() {
        let serves = match &provider.kind {
            Kind::Provider(p) => listed(p.builtin.interfaces()),
            Kind::Actor(a) if a.exports.is_empty() => "nothing".to_owned(),
            Kind::Actor(a) => listed(&a.exports),
        };
        return Some(positions.problem(
            positions.link(index),
            format!("link of actor {consumer:?} asks {name:?} for {}, which it does not export", listed(&lacking)),
            format!("{name:?} exports {serves}"),
        ));
    }
    let (wanted, offered) = (inspections.get(&link.consumer)?, inspections.get(&link.provider)?);
    for interface in link.interface_names() {
        let want = wanted.imports.iter().find(|i| i.unversioned() == interface);
        let offer = offered.exports.iter().filter(|i| i.unversioned() == interface);
        let Some(want) = want else { continue };
        let offers: Vec<String> = offer.map(ToString::to_string).collect();
        if !offered.exports.iter().any(|o| o.unversioned() == interface && fits(want, o)) {
            return Some(positions.problem(
                positions.link(index),
                format!("actor {consumer:?} imports {want}, but {name:?} exports {}", listed(&offers)),
                "build both against the same version of the interface",
            ));
        }
    }
    None
}

fn ingress_unserved(name: &Name, actor: &Actor, inspection: &Inspection, positions: &Positions) -> Option<Problem> {
    if actor.ingress.is_empty() {
        return None;
    }
    let places = positions.components.get(name);
    let place = places.and_then(|p| p.ingress.first()).unwrap_or_else(|| positions.component(name.as_str()));
    let name = name.as_str();
    if inspection.exports.iter().any(|e| e.unversioned() == HANDLER && minor_of(e) == Some((0, 3))) {
        return None;
    }
    match inspection.exports.iter().find(|e| e.unversioned() == INCOMING) {
        Some(handler) if minor_of(handler) == Some((0, 2)) => None,
        Some(handler) => Some(positions.problem(
            place,
            format!("actor {name:?} has an ingress, but exports {handler}, which the ingress does not call"),
            "build it against wasi:http 0.2 or 0.3",
        )),
        None => {
            let newer = inspection.exports.iter().find(|e| e.namespace == "wasi" && e.package == "http");
            let but = newer.map_or_else(
                || format!("does not export {INCOMING}"),
                |e| format!("exports {e} instead of {INCOMING}"),
            );
            Some(positions.problem(
                place,
                format!("actor {name:?} has an ingress, but {but}"),
                "export it (wasi:http 0.2), or wasi:http/handler (0.3), or remove the ingress trait or the link of the HTTP server",
            ))
        }
    }
}

/// The imports of one actor that would not link, by reason.
#[derive(Default)]
struct Imports<'i> {
    unserved: Vec<&'i Interface>,
    wrong_version: Vec<(&'i Interface, &'static str)>,
}

impl<'i> Imports<'i> {
    fn sort(app: &App, actor: &Name, inspection: &'i Inspection) -> Self {
        let linked: BTreeMap<String, &Name> = app
            .links
            .iter()
            .filter(|l| l.consumer == *actor)
            .flat_map(|l| l.interface_names().map(|i| (i, &l.provider)))
            .collect();
        let mut imports = Self::default();
        for import in &inspection.imports {
            let by_actor =
                linked.get(&import.unversioned()).is_some_and(|provider| app.actor(provider.as_str()).is_some());
            // Versions between two actors were compared along their link.
            if by_actor {
                continue;
            }
            let link = linked.contains_key(&import.unversioned());
            match Served::of(import) {
                Served::Always => {}
                Served::WrongVersion(versions) => imports.wrong_version.push((import, versions)),
                Served::ByLink if link => {}
                Served::ByLink => imports.unserved.push(import),
            }
        }
        imports
    }

    /// ONE message for the actor, all that is missing in it.
    fn unserved(&self, actor: &Name, app: &App) -> Option<(String, String)> {
        let names: Vec<String> = self.unserved.iter().map(ToString::to_string).collect();
        if names.is_empty() {
            return None;
        }
        let message = format!("actor {:?} imports {}, which nothing grants or links", actor.as_str(), listed(&names));
        let mut targets: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for import in &self.unserved {
            targets.entry(who_serves(app, actor, &import.unversioned())).or_default().insert(import.unversioned());
        }
        let steps: Vec<String> = targets
            .iter()
            .map(|(target, interfaces)| {
                format!("for {} to {target}", listed(&interfaces.iter().cloned().collect::<Vec<_>>()))
            })
            .collect();
        Some((message, format!("add a link trait {}", steps.join(", "))))
    }

    fn wrong_version(&self, actor: &Name) -> Option<(String, String)> {
        let names: Vec<String> = self.wrong_version.iter().map(|(i, _)| i.to_string()).collect();
        if names.is_empty() {
            return None;
        }
        let served: BTreeSet<String> = self
            .wrong_version
            .iter()
            .map(|(i, versions)| format!("{}:{} {versions}", i.namespace, i.package))
            .collect();
        Some((
            format!("actor {:?} imports {}, in a version that no host serves", actor.as_str(), listed(&names)),
            format!("hosts serve {}; build it against that", listed(&served.into_iter().collect::<Vec<_>>())),
        ))
    }
}

fn outside_interfaces(actor: &Name, inspection: &Inspection) -> Option<(String, String)> {
    if inspection.other_imports.is_empty() {
        return None;
    }
    let names: Vec<String> = inspection.other_imports.iter().map(|n| format!("{n:?}")).collect();
    Some((
        format!(
            "actor {:?} imports {} outside of any interface, which nothing can link",
            actor.as_str(),
            listed(&names)
        ),
        "put them into a WIT interface and link that".into(),
    ))
}

/// Who could serve `interface`: components of the app first, by name, then what could be added to it.
fn who_serves(app: &App, consumer: &Name, interface: &str) -> String {
    let serving = app.components.iter().find(|(name, component)| {
        *name != consumer
            && match &component.kind {
                Kind::Provider(p) => p.builtin.interfaces().contains(&interface),
                Kind::Actor(a) => a.exports.iter().any(|e| e == interface),
            }
    });
    if let Some((name, _)) = serving {
        return format!("{:?}", name.as_str());
    }
    if crate::app::Builtin::Keyvalue.interfaces().contains(&interface) {
        return "a capability with image \"builtin:keyvalue\"".into();
    }
    "an actor that exports it".into()
}

/// Whether an import can be served by this export: the same version, or one that is compatible by semver.
fn fits(want: &Interface, offer: &Interface) -> bool {
    match (minor_of(want), minor_of(offer)) {
        (Some((0, a)), Some((0, b))) => a == b && (a > 0 || want.version == offer.version),
        (Some((a, _)), Some((b, _))) => a == b,
        _ => want.version == offer.version,
    }
}

/// "a", "a and b", "a, b and c".
fn listed<S: AsRef<str>>(items: &[S]) -> String {
    let names: Vec<&str> = items.iter().take(NAMED_MAX).map(AsRef::as_ref).collect();
    let beyond = items.len() - names.len();
    match names.split_last() {
        None => String::new(),
        Some((last, [])) => (*last).to_owned(),
        Some(_) if beyond > 0 => format!("{} and {beyond} more", names.join(", ")),
        Some((last, rest)) => format!("{} and {last}", rest.join(", ")),
    }
}
