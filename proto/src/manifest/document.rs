//! One document -> one app: metadata, components, traits. What needs all components at once is in `assemble`.

use super::assemble;
use super::image::{BUILTINS, Capability, ImageRef, capability};
use super::link::{self, LinkDraft, Named};
use super::reader::{Cursor, Fields, Reader, near, nearest, shown};
use super::traits::{self, ScalerKind};
use super::yaml::{Node, Value};
use super::{Parsed, Place};
use super::{grants, limits};
use crate::app::{COMPONENTS_MAX, Grants, IngressRoute, Limits, Name, Scaler};
use std::collections::BTreeMap;

const API_VERSION: &str = "core.oam.dev/v1beta1";
const KIND: &str = "Application";
const FIELDS: &[&str] = &["apiVersion", "kind", "metadata", "spec"];
const TRAITS: &[&str] = &["spreadscaler", "daemonscaler", "link", "ingress", "grants", "limits"];
/// In the language, but no release serves them yet.
const TRAITS_LATER: &[&str] = &["placement", "rollout", "disconnect", "disruption", "autoscaler", "schedule", "health"];

/// One entry of `spec.components` that could be read.
pub(super) struct Part {
    /// As written, so that links to a component with a bad name are not reported too.
    pub(super) written: String,
    /// `None` when it is not a name or not the first of that name: already reported.
    pub(super) name: Option<Name>,
    pub(super) place: Place,
    pub(super) image_place: Place,
    pub(super) role: Role,
    pub(super) scaler: Scaler,
    pub(super) strict: bool,
    pub(super) config: BTreeMap<String, String>,
    pub(super) config_place: Place,
    pub(super) links: Vec<LinkDraft>,
    pub(super) routes: Vec<(IngressRoute, Place)>,
    pub(super) grants: Grants,
    pub(super) limits: Limits,
}

pub(super) enum Role {
    Actor {
        image: String,
    },
    Capability {
        image: String,
        capability: Capability,
    },
    /// What it should be could not be read; links to it are not looked at.
    Unknown,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Type {
    Actor,
    Capability,
}

/// The app of one document. `None` when so much is wrong that there is none; the problems are with `reader`.
pub(super) fn app(root: &Node, reader: &mut Reader) -> Option<Parsed> {
    let at = Cursor { node: root, path: String::new() };
    let is_one = matches!(&root.value, Value::Map(entries) if entries.iter().any(|e| FIELDS.contains(&e.key.as_str())));
    if !is_one {
        reader.report(
            &at.place(),
            "not a manifest: it has none of apiVersion, kind, metadata and spec",
            "start it with `apiVersion: core.oam.dev/v1beta1` and `kind: Application`",
        );
        return None;
    }
    if is_of_another_kind(root, reader) {
        return None;
    }
    let mut fields = reader.fields(&at, FIELDS)?;
    constant(&mut fields, "apiVersion", API_VERSION, reader);
    constant(&mut fields, "kind", KIND, reader);
    let metadata = reader.required(&mut fields, "metadata", "{name: hello}");
    let metadata = metadata.and_then(|at| read_metadata(&at, reader));
    let mut named = Named::new();
    link::named(root, "", &mut named);
    let spec = reader.required(&mut fields, "spec", "{components: […]}");
    let parts = spec.and_then(|at| read_spec(&at, &named, reader));
    assemble::app(metadata?, parts?, reader)
}

/// A manifest for something else (a Kubernetes object, a compose file): one message, not one for each of its fields.
fn is_of_another_kind(root: &Node, reader: &mut Reader) -> bool {
    let Value::Map(entries) = &root.value else { return false };
    let Some(kind) = entries.iter().find(|e| e.key == "kind") else {
        return false;
    };
    let Value::Scalar { text, .. } = &kind.node.value else {
        return false;
    };
    if text == KIND || near(text, &[KIND]).is_some() {
        return false;
    }
    let help = format!("expected `kind: {KIND}` of `apiVersion: {API_VERSION}`");
    reader.report(&kind.node.spot.place("kind"), format!("kind {} is not an app", shown(text)), help);
    true
}

fn constant(fields: &mut Fields<'_>, name: &str, value: &str, reader: &mut Reader) {
    let Some(at) = reader.required(fields, name, value) else {
        return;
    };
    let Some(text) = reader.text(&at) else { return };
    if text != value {
        reader.report(&at.place(), format!("unknown {name} {}", shown(&text)), format!("expected {value:?}"));
    }
}

pub(super) struct Metadata {
    pub(super) place: Place,
    pub(super) name: Name,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) annotations: BTreeMap<String, String>,
}

fn read_metadata(at: &Cursor<'_>, reader: &mut Reader) -> Option<Metadata> {
    let mut fields = reader.fields(at, &["name", "annotations", "labels"])?;
    let name = reader.required(&mut fields, "name", "hello");
    let place = name.as_ref().map_or_else(|| at.place(), Cursor::place);
    let name = name.and_then(|at| read_name(&at, reader).1);
    let annotations = fields.optional("annotations").map(|at| reader.map(&at)).unwrap_or_default();
    let labels = fields.optional("labels").map(|at| reader.map(&at)).unwrap_or_default();
    Some(Metadata { place, name: name?, labels, annotations })
}

/// A name as written, and as a name when it is one.
fn read_name(at: &Cursor<'_>, reader: &mut Reader) -> (String, Option<Name>) {
    let Some(text) = reader.text(at) else {
        return (String::new(), None);
    };
    match text.parse::<Name>() {
        Ok(name) => (text, Some(name)),
        Err(e) => {
            let fixed: String =
                text.to_lowercase().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
            let help = match fixed.trim_matches('-').parse::<Name>() {
                Ok(name) => format!("{:?} would do", name.as_str()),
                Err(_) => String::new(),
            };
            reader.report(&at.place(), e.to_string(), help);
            (text, None)
        }
    }
}

fn read_spec(at: &Cursor<'_>, named: &Named<'_>, reader: &mut Reader) -> Option<Vec<Part>> {
    let mut fields = reader.fields(at, &["components", "policies"])?;
    if let Some(policies) = fields.optional("policies") {
        read_policies(&policies, reader);
    }
    let at = reader.required(&mut fields, "components", "[…]")?;
    let items = reader.list(&at, "components");
    if matches!(&at.node.value, Value::List(items) if items.is_empty()) {
        reader.report(&at.place(), "an app without components", "add one");
    }
    if items.len() > COMPONENTS_MAX {
        let message = format!("{} components; an app has at most {COMPONENTS_MAX}", items.len());
        reader.report(&at.place(), message, "split it into several apps");
        return None;
    }
    Some(items.iter().filter_map(|item| read_component(item, named, reader)).collect())
}

/// Policies configure what is not supported yet (secrets); their form is checked, and they have no effect.
fn read_policies(at: &Cursor<'_>, reader: &mut Reader) {
    for item in reader.list(at, "policies") {
        let Some(mut fields) = reader.fields(&item, &["name", "type", "properties"]) else {
            continue;
        };
        for name in ["name", "type"] {
            let text = reader.required(&mut fields, name, "…");
            text.and_then(|at| reader.text(&at));
        }
        fields.optional("properties").map(|at| reader.pairs(&at));
    }
}

fn read_component(at: &Cursor<'_>, named: &Named<'_>, reader: &mut Reader) -> Option<Part> {
    let mut fields = reader.fields(at, &["name", "type", "properties", "traits"])?;
    let name = reader.required(&mut fields, "name", "hello");
    let place = name.as_ref().map_or_else(|| at.place(), Cursor::place);
    let (written, name) = name.map(|at| read_name(&at, reader)).unwrap_or_default();
    let kind = reader.required(&mut fields, "type", "component").and_then(|at| read_type(&at, reader));
    let mut part = Part {
        written,
        name,
        image_place: place.clone(),
        config_place: place.clone(),
        place,
        role: Role::Unknown,
        scaler: Scaler::default(),
        strict: false,
        config: BTreeMap::new(),
        links: Vec::new(),
        routes: Vec::new(),
        grants: Grants::default(),
        limits: Limits::default(),
    };
    if let Some(at) = reader.required(&mut fields, "properties", "{image: ./hello.wasm}") {
        read_properties(&at, kind, named, &mut part, reader);
    }
    if let Some(at) = fields.optional("traits") {
        read_traits(&at, kind, named, &mut part, reader);
    }
    Some(part)
}

fn read_type(at: &Cursor<'_>, reader: &mut Reader) -> Option<Type> {
    let text = reader.text(at)?;
    match text.as_str() {
        // wadm's first releases wrote "actor".
        "component" | "actor" => Some(Type::Actor),
        "capability" => Some(Type::Capability),
        _ => {
            let known = ["component", "capability", "actor"];
            reader.report(&at.place(), format!("unknown type {}", shown(&text)), nearest(&text, &known));
            None
        }
    }
}

fn read_properties(at: &Cursor<'_>, kind: Option<Type>, named: &Named<'_>, part: &mut Part, reader: &mut Reader) {
    let Some(mut fields) = reader.fields(at, &["image", "config", "secrets", "id", "application"]) else {
        return;
    };
    // An id named a component for wasmCloud's hosts; here its name does.
    fields.optional("id").and_then(|at| reader.text(&at));
    if let Some(at) = fields.optional("config") {
        part.config_place = at.place();
        part.config = link::config(&at, named, reader);
    }
    if let Some(at) = fields.optional("secrets") {
        link::refuse_secrets(&at, reader);
    }
    if let Some(at) = fields.optional("application") {
        let help = "give the `image` here, so that this app has a component of its own";
        reader.report(&at.place(), "components shared with another app are not supported yet", help);
        fields.optional("image");
        return;
    }
    let example = if kind == Some(Type::Capability) { BUILTINS[0] } else { "./hello.wasm" };
    let Some(at) = reader.required(&mut fields, "image", example) else {
        return;
    };
    part.image_place = at.place();
    let Some(image) = reader.text(&at) else { return };
    match kind {
        Some(Type::Actor) => part.role = actor_role(&at, image, reader),
        Some(Type::Capability) => part.role = capability_role(&at, image, reader),
        None => {}
    }
}

fn actor_role(at: &Cursor<'_>, image: String, reader: &mut Reader) -> Role {
    match image.parse::<ImageRef>() {
        Ok(ImageRef::Builtin(_)) => {
            reader.report(&at.place(), format!("{image:?} is a provider"), "write `type: capability`");
            Role::Unknown
        }
        Ok(_) => Role::Actor { image },
        Err(e) => {
            reader.report(&at.place(), format!("image {}: {e}", shown(&image)), "");
            Role::Unknown
        }
    }
}

fn capability_role(at: &Cursor<'_>, image: String, reader: &mut Reader) -> Role {
    if let Some(capability) = capability(&image) {
        return Role::Capability { image, capability };
    }
    let help = match image.parse::<ImageRef>() {
        Ok(ImageRef::Local(path)) if path.ends_with(".wasm") => {
            "a provider made of Wasm is an actor: write `type: component`, and link to it".to_owned()
        }
        _ => format!(
            "there is {}, also under wasmCloud's names keyvalue-redis and keyvalue-nats, http-server and http-client",
            BUILTINS.join(", ")
        ),
    };
    reader.report(&at.place(), format!("no host has the provider {}", shown(&image)), help);
    Role::Unknown
}

fn read_traits(at: &Cursor<'_>, kind: Option<Type>, named: &Named<'_>, part: &mut Part, reader: &mut Reader) {
    // Line of the first trait of a type that a component has once.
    let mut first: BTreeMap<&'static str, usize> = BTreeMap::new();
    for item in reader.list(at, "traits") {
        let Some(mut fields) = reader.fields(&item, &["type", "properties"]) else {
            continue;
        };
        let Some(type_at) = reader.required(&mut fields, "type", "spreadscaler") else {
            continue;
        };
        let Some(name) = reader.text(&type_at) else { continue };
        let Some(known) = TRAITS.iter().find(|t| **t == name) else {
            unknown_trait(&type_at, &name, reader);
            continue;
        };
        once_and_fitting(&type_at, known, kind, &mut first, reader);
        let Some(at) = reader.required(&mut fields, "properties", "{…}") else {
            continue;
        };
        match *known {
            "spreadscaler" | "daemonscaler" => {
                let scaler = if *known == "spreadscaler" { ScalerKind::Spread } else { ScalerKind::Daemon };
                (part.scaler, part.strict) = traits::scaler(scaler, &at, reader).unwrap_or_default();
                if part.strict && kind == Some(Type::Capability) {
                    let help = "leave it out: a capability keeps its data on one host and runs there alone";
                    reader.report(&at.place(), "strict on a capability", help);
                }
            }
            "link" => part.links.extend(link::link(&at, named, reader)),
            "ingress" => part.routes.extend(traits::ingress(&at, reader)),
            "grants" => part.grants = grants::grants(&at, reader).unwrap_or_default(),
            _ => part.limits = limits::limits(&at, reader).unwrap_or_default(),
        }
    }
}

fn unknown_trait(at: &Cursor<'_>, name: &str, reader: &mut Reader) {
    if TRAITS_LATER.contains(&name) {
        reader.report(&at.place(), format!("trait {name:?} is not supported yet"), "remove it");
    } else {
        reader.report(&at.place(), format!("unknown trait {}", shown(name)), nearest(name, TRAITS));
    }
}

/// A component has each trait but `link` once, one scaler, and only traits that mean something for its type.
fn once_and_fitting(
    at: &Cursor<'_>,
    name: &'static str,
    kind: Option<Type>,
    first: &mut BTreeMap<&'static str, usize>,
    reader: &mut Reader,
) {
    let place = at.place();
    if kind == Some(Type::Capability) && matches!(name, "ingress" | "grants" | "limits") {
        reader.report(&place, format!("trait {name:?} on a capability"), "only a component of type `component` has it");
    }
    if name == "link" {
        return;
    }
    let slot = if name == "daemonscaler" { "spreadscaler" } else { name };
    if let Some(line) = first.get(slot) {
        let what = if slot == "spreadscaler" { "scaler" } else { name };
        let message = format!("a second {what}; the first is at line {line}");
        reader.report(&place, message, "keep one of them");
        return;
    }
    first.insert(slot, place.line);
}
