//! The `link` trait of one component, and the `config` lists that components and links have.

use super::Place;
use super::reader::{Cursor, Reader, near, shown};
use super::yaml::{Node, Value};
use crate::app::LINK_NAME_DEFAULT;
use std::collections::BTreeMap;

/// A link as written; whether its ends exist shows when all components are known.
#[derive(Debug, Clone)]
pub(super) struct LinkDraft {
    pub(super) place: Place,
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) package: String,
    pub(super) interfaces: Vec<(String, Place)>,
    pub(super) target: String,
    pub(super) target_place: Place,
    /// Pairs for the consumer's side, and for the provider's side.
    pub(super) source_config: BTreeMap<String, String>,
    pub(super) target_config: BTreeMap<String, String>,
}

/// `config` entries of this manifest that have properties, by name: others may repeat the name only.
pub(super) type Named<'n> = BTreeMap<&'n str, Cursor<'n>>;

/// Finds the named `config` entries below `node`.
pub(super) fn named<'n>(node: &'n Node, path: &str, found: &mut Named<'n>) {
    match &node.value {
        Value::Null | Value::Scalar { .. } => {}
        Value::List(items) => items.iter().for_each(|item| named(item, path, found)),
        Value::Map(entries) => {
            for entry in entries {
                if let ("config" | "source_config" | "target_config", Value::List(items)) =
                    (entry.key.as_str(), &entry.node.value)
                {
                    items.iter().for_each(|item| named_one(item, path, found));
                }
                named(&entry.node, path, found);
            }
        }
    }
}

fn named_one<'n>(item: &'n Node, path: &str, found: &mut Named<'n>) {
    let Value::Map(entries) = &item.value else { return };
    let of = |key: &str| entries.iter().find(|e| e.key == key).map(|e| &*e.node);
    let Some(Node { value: Value::Scalar { text, .. }, .. }) = of("name") else {
        return;
    };
    let Some(node @ Node { value: Value::Map(_), .. }) = of("properties") else {
        return;
    };
    found.entry(text).or_insert(Cursor { node, path: path.to_owned() });
}

/// The pairs of a `config` list, its entries merged in order.
pub(super) fn config(at: &Cursor<'_>, named: &Named<'_>, reader: &mut Reader) -> BTreeMap<String, String> {
    let mut merged = BTreeMap::new();
    for item in reader.list(at, "config entries") {
        let Some(mut fields) = reader.fields(&item, &["name", "properties"]) else {
            continue;
        };
        let name = reader.required(&mut fields, "name", "settings");
        let name = name.and_then(|at| reader.text(&at));
        if let Some(properties) = fields.optional("properties") {
            merged.extend(reader.map(&properties));
            continue;
        }
        let Some(name) = name else { continue };
        match named.get(name.as_str()) {
            // Read where it stands, so its problems are reported there and not again here.
            Some(elsewhere) => merged.extend(Reader::new("").map(elsewhere)),
            None => reader.report(
                &item.place(),
                format!("config {} has no properties, and nothing in this manifest gives them", shown(&name)),
                "write its `properties` here: config kept elsewhere is not supported",
            ),
        }
    }
    merged
}

/// Secrets are understood but not served; saying nothing would start the app without them.
pub(super) fn refuse_secrets(at: &Cursor<'_>, reader: &mut Reader) {
    if matches!(&at.node.value, Value::List(items) if items.is_empty()) {
        return;
    }
    reader.report(
        &at.place(),
        "secrets are not supported yet",
        "remove them, and give the values as `config`, or as `env` of the `grants` trait",
    );
}

pub(super) fn link(at: &Cursor<'_>, named: &Named<'_>, reader: &mut Reader) -> Option<LinkDraft> {
    let known = ["target", "namespace", "package", "interfaces", "name", "source", "source_config", "target_config"];
    let mut fields = reader.fields(at, &known)?;
    let target = reader.required(&mut fields, "target", "kv");
    let target = target.and_then(|at| end(&at, "target", named, reader));
    let namespace = reader.required(&mut fields, "namespace", "wasi").and_then(|at| word(&at, reader));
    let package = reader.required(&mut fields, "package", "keyvalue").and_then(|at| word(&at, reader));
    let interfaces = reader.required(&mut fields, "interfaces", "[store]");
    let interfaces = interfaces.and_then(|at| interface_list(&at, reader));
    let name = match fields.optional("name") {
        Some(at) => reader.text(&at).and_then(|name| link_name(&at, name, reader)),
        None => Some(LINK_NAME_DEFAULT.to_owned()),
    };
    let mut old =
        |key, reader: &mut Reader| fields.optional(key).map(|at| config(&at, named, reader)).unwrap_or_default();
    let mut source_config = old("source_config", reader);
    let mut target_config = old("target_config", reader);
    if let Some(source) = fields.optional("source") {
        source_config.extend(end(&source, "source", named, reader).map(|end| end.config).unwrap_or_default());
    }
    let target = target?;
    target_config.extend(target.config);
    Some(LinkDraft {
        place: at.place(),
        name: name?,
        namespace: namespace?,
        package: package?,
        interfaces: interfaces?,
        target: target.name,
        target_place: target.place,
        source_config,
        target_config,
    })
}

/// One end of a link: `target`, which has a name, or `source`, which is the component that has the trait.
struct End {
    name: String,
    place: Place,
    config: BTreeMap<String, String>,
}

fn end(at: &Cursor<'_>, which: &str, named: &Named<'_>, reader: &mut Reader) -> Option<End> {
    let is_target = which == "target";
    if is_target && !at.is_map() {
        let name = reader.text(at)?;
        return Some(End { name, place: at.place(), config: BTreeMap::new() });
    }
    // Published manifests repeat the component's own name in `source`.
    let mut fields = reader.fields(at, &["name", "config", "secrets"])?;
    let name = if is_target { reader.required(&mut fields, "name", "kv") } else { None };
    let place = name.as_ref().map_or_else(|| at.place(), Cursor::place);
    let name = name.and_then(|at| reader.text(&at));
    let config = fields.optional("config").map(|at| config(&at, named, reader)).unwrap_or_default();
    if let Some(secrets) = fields.optional("secrets") {
        refuse_secrets(&secrets, reader);
    }
    match name {
        None if is_target => None,
        name => Some(End { name: name.unwrap_or_default(), place, config }),
    }
}

fn interface_list(at: &Cursor<'_>, reader: &mut Reader) -> Option<Vec<(String, Place)>> {
    let items = reader.list(at, "interfaces");
    if matches!(&at.node.value, Value::List(items) if items.is_empty()) {
        reader.report(&at.place(), "a link without interfaces allows nothing", "name them: `interfaces: [store]`");
    }
    let mut found: Vec<(String, Place)> = Vec::new();
    for item in &items {
        let Some(name) = word(item, reader) else { continue };
        if found.iter().any(|(other, _)| *other == name) {
            reader.report(&item.place(), format!("interface {name:?} twice in one link"), "remove one of them");
            continue;
        }
        found.push((name, item.place()));
    }
    (!found.is_empty()).then_some(found)
}

/// A name of WIT: words of letters and digits, with hyphens between them.
fn word(at: &Cursor<'_>, reader: &mut Reader) -> Option<String> {
    let text = reader.text(at)?;
    let ok = text.len() <= 128
        && text.split('-').all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric()))
        && text.starts_with(|c: char| c.is_ascii_alphabetic());
    if ok {
        return Some(text);
    }
    let help = match text.contains([':', '/', '@']) {
        true => "write `namespace: wasi`, `package: keyvalue`, `interfaces: [store]`, each alone and without version",
        false => "use letters, digits and inner hyphens, as in WIT",
    };
    reader.report(&at.place(), format!("{} is no name of WIT", shown(&text)), help);
    None
}

fn link_name(at: &Cursor<'_>, name: String, reader: &mut Reader) -> Option<String> {
    let ok = (1..=128).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    if ok {
        return Some(name);
    }
    let message = format!("{} is no link name", shown(&name));
    reader.report(&at.place(), message, "use letters, digits, `-`, `_` and `.`, at most 128");
    None
}

/// `there is no component "kvv"; did you mean "kv"?`
pub(super) fn nearest_component(name: &str, known: &[&str]) -> String {
    match near(name, known) {
        Some(best) => format!("did you mean {best:?}?"),
        None if known.is_empty() => "declare it in spec.components".into(),
        None => {
            let some: Vec<String> = known.iter().take(10).map(|k| format!("{k:?}")).collect();
            let more = known.len().saturating_sub(some.len());
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            format!("declare it in spec.components, where there is {}{more}", some.join(", "))
        }
    }
}
