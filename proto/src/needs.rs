//! What a component wants from whoever runs it: which of its imports are always served, which ask for a grant, which
//! for a link, and the traits to write. Pure; `check` holds an app against the same tables.

use crate::app::{Builtin, Grants};
use crate::component::{Inspection, Interface};
use std::collections::{BTreeMap, BTreeSet};

/// What one import asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Need {
    pub import: Interface,
    pub by: By,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum By {
    /// Served by every host; reaches nothing.
    Always,
    /// Served by every host; each use is refused without this grant.
    Grant(&'static Grant),
    /// A link to who exports it; the built-in provider, where there is one.
    Link(Option<&'static str>),
    /// Hosts serve it, but only in these versions.
    WrongVersion(&'static str),
}

/// A grant, and the interface whose use it allows.
#[derive(Debug)]
pub struct Grant {
    /// Without version.
    pub interface: &'static str,
    /// "grants.clocks.wall", for messages.
    pub name: &'static str,
    /// As it is written in the properties of a grants trait.
    pub example: &'static str,
    /// Whether a standard library imports it even when nothing uses it.
    pub baseline: bool,
    given: fn(&Grants) -> bool,
}

/// Of WASI. What is not here needs no grant.
pub const GRANTS: &[Grant] = &[
    Grant {
        interface: "wasi:cli/environment",
        name: "grants.env",
        example: "env: {NAME: value}",
        baseline: true,
        given: |g| !g.env.is_empty() || !g.args.is_empty(),
    },
    Grant { interface: "wasi:cli/exit", name: "grants.exit", example: "exit: true", baseline: true, given: |g| g.exit },
    Grant {
        interface: "wasi:cli/stdin",
        name: "grants.stdin",
        example: "stdin: text",
        baseline: true,
        given: |g| g.stdin.is_some(),
    },
    Grant {
        interface: "wasi:clocks/wall-clock",
        name: "grants.clocks.wall",
        example: "clocks: {wall: true}",
        baseline: false,
        given: |g| g.wall_clock,
    },
    Grant {
        interface: "wasi:clocks/system-clock",
        name: "grants.clocks.wall",
        example: "clocks: {wall: true}",
        baseline: false,
        given: |g| g.wall_clock,
    },
    Grant {
        interface: "wasi:filesystem/preopens",
        name: "grants.folders",
        example: "folders: [{host: /srv/data, guest: /data}]",
        baseline: false,
        given: |g| !g.folders.is_empty(),
    },
    Grant {
        interface: "wasi:http/client",
        name: "grants.http",
        example: "http: [api.example.org]",
        baseline: false,
        given: |g| !g.http.is_empty(),
    },
    Grant {
        interface: "wasi:http/outgoing-handler",
        name: "grants.http",
        example: "http: [api.example.org]",
        baseline: false,
        given: |g| !g.http.is_empty(),
    },
    Grant {
        interface: "wasi:random/insecure",
        name: "grants.random",
        example: "random: true",
        baseline: false,
        given: |g| g.random.is_some(),
    },
    Grant {
        interface: "wasi:random/random",
        name: "grants.random",
        example: "random: true",
        baseline: false,
        given: |g| g.random.is_some(),
    },
    Grant {
        interface: "wasi:sockets/ip-name-lookup",
        name: "grants.sockets.lookups",
        example: "sockets: {lookups: true}",
        baseline: false,
        given: |g| g.sockets || g.lookups,
    },
    Grant {
        interface: "wasi:sockets/tcp-create-socket",
        name: "grants.sockets.tcp",
        example: "sockets: {tcp: [\"10.0.0.5:5432\"]}",
        baseline: false,
        given: |g| g.sockets || !g.tcp.is_empty(),
    },
    Grant {
        interface: "wasi:sockets/types",
        name: "grants.sockets",
        example: "sockets: {tcp: [\"10.0.0.5:5432\"]}",
        baseline: false,
        given: |g| g.sockets || !g.tcp.is_empty() || !g.udp.is_empty(),
    },
    Grant {
        interface: "wasi:sockets/udp-create-socket",
        name: "grants.sockets.udp",
        example: "sockets: {udp: [\"10.0.0.5:53\"]}",
        baseline: false,
        given: |g| g.sockets || !g.udp.is_empty(),
    },
];

impl PartialEq for Grant {
    fn eq(&self, other: &Self) -> bool {
        self.interface == other.interface
    }
}
impl Eq for Grant {}

impl Grant {
    /// The grant without which an import is of no use; none for what a standard library imports anyway.
    pub(crate) fn of(import: &Interface) -> Option<&'static Self> {
        Self::named(&import.unversioned()).filter(|grant| !grant.baseline)
    }

    /// The grant for the use of an interface, by its name without version.
    pub fn named(interface: &str) -> Option<&'static Self> {
        GRANTS.iter().find(|grant| grant.interface == interface)
    }

    pub fn is_given(&self, grants: &Grants) -> bool {
        (self.given)(grants)
    }
}

/// What each import asks for, by name.
pub fn needs(inspection: &Inspection) -> Vec<Need> {
    let mut needs: Vec<Need> = inspection
        .imports
        .iter()
        .map(|import| {
            let name = import.unversioned();
            let by = match (Served::of(import), Grant::named(&name)) {
                (Served::Always, Some(grant)) => By::Grant(grant),
                (Served::Always, None) => By::Always,
                (Served::ByLink, _) => {
                    let builtin = Builtin::Keyvalue.interfaces().contains(&name.as_str());
                    By::Link(builtin.then_some("builtin:keyvalue"))
                }
                (Served::WrongVersion(versions), _) => By::WrongVersion(versions),
            };
            Need { import: import.clone(), by }
        })
        .collect();
    needs.sort_by(|a, b| a.import.cmp(&b.import));
    needs
}

/// The traits that serve these needs, as YAML to paste under a component's `traits:`; what a standard library imports
/// anyway is left out. Empty when nothing is needed.
pub fn traits(inspection: &Inspection, needs: &[Need]) -> String {
    let mut text = String::new();
    let grants: BTreeSet<&str> = needs
        .iter()
        .filter_map(|need| match need.by {
            By::Grant(grant) if !grant.baseline && !grant.example.starts_with("sockets:") => Some(grant.example),
            _ => None,
        })
        .collect();
    let sockets: Vec<&str> = needs
        .iter()
        .filter_map(|need| match need.by {
            By::Grant(grant) => grant.example.strip_prefix("sockets: {")?.strip_suffix('}'),
            _ => None,
        })
        .collect();
    if !grants.is_empty() || !sockets.is_empty() {
        text.push_str("- type: grants\n  properties:\n");
        for example in grants {
            text.push_str(&format!("    {example}\n"));
        }
        if !sockets.is_empty() {
            text.push_str(&format!("    sockets: {{{}}}\n", sockets.join(", ")));
        }
    }
    let mut links: BTreeMap<(&str, &str, Option<&str>), Vec<&str>> = BTreeMap::new();
    for need in needs {
        if let By::Link(builtin) = need.by {
            let Interface { namespace, package, interface, .. } = &need.import;
            links.entry((namespace, package, builtin)).or_default().push(interface);
        }
    }
    for ((namespace, package, builtin), interfaces) in links {
        let who = match builtin {
            Some(image) => format!("a capability with `image: {image}`"),
            None => "an actor that exports it".to_owned(),
        };
        text.push_str(&format!(
            "- type: link\n  properties:\n    target: NAME          # {who}\n    namespace: {namespace}\n    \
             package: {package}\n    interfaces: [{}]\n",
            interfaces.join(", ")
        ));
    }
    let is_handler = |e: &Interface| match e.unversioned().as_str() {
        "wasi:http/incoming-handler" => minor_of(e) == Some((0, 2)),
        "wasi:http/handler" => minor_of(e) == Some((0, 3)),
        _ => false,
    };
    if inspection.exports.iter().any(is_handler) {
        text.push_str("- type: ingress\n  properties: {path: /}\n");
    }
    text
}

/// How an import comes to be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Served {
    /// By every host, without asking; what it reaches is what the grants allow.
    Always,
    ByLink,
    /// By the hosts, but only in these versions.
    WrongVersion(&'static str),
}

/// Interfaces of WASI 0.2 that every host links: package, interfaces.
const WASI: &[(&str, &[&str])] = &[
    ("io", &["error", "poll", "streams"]),
    ("clocks", &["monotonic-clock", "wall-clock"]),
    ("random", &["random", "insecure", "insecure-seed"]),
    (
        "cli",
        &[
            "environment",
            "exit",
            "stdin",
            "stdout",
            "stderr",
            "terminal-input",
            "terminal-output",
            "terminal-stdin",
            "terminal-stdout",
            "terminal-stderr",
        ],
    ),
    ("filesystem", &["types", "preopens"]),
    (
        "sockets",
        &["network", "instance-network", "ip-name-lookup", "tcp", "tcp-create-socket", "udp", "udp-create-socket"],
    ),
    ("http", &["types", "outgoing-handler"]),
];

/// The same of WASI 0.3.
const LATER: &[(&str, &[&str])] = &[
    ("clocks", &["types", "monotonic-clock", "system-clock"]),
    ("random", &["random", "insecure", "insecure-seed"]),
    (
        "cli",
        &[
            "types",
            "environment",
            "exit",
            "stdin",
            "stdout",
            "stderr",
            "terminal-input",
            "terminal-output",
            "terminal-stdin",
            "terminal-stdout",
            "terminal-stderr",
        ],
    ),
    ("filesystem", &["types", "preopens"]),
    ("sockets", &["types", "ip-name-lookup"]),
    ("http", &["types", "client"]),
];

/// What hosts serve in exact versions only: interface, whether without a link, versions ("" is none), the same for
/// people.
const DRAFTS: &[(&str, bool, &[&str], &str)] = &[
    ("wasi:config/runtime", true, &["0.2.0-draft"], "0.2.0-draft"),
    ("wasi:config/store", true, &["0.2.0-rc.1"], "0.2.0-rc.1"),
    ("wasi:logging/logging", true, &["", "0.1.0-draft"], "0.1.0-draft or without version"),
    ("wasi:keyvalue/store", false, &["0.2.0-draft", "0.2.0-draft2"], "0.2.0-draft or 0.2.0-draft2"),
    ("wasi:keyvalue/atomics", false, &["0.2.0-draft", "0.2.0-draft2"], "0.2.0-draft or 0.2.0-draft2"),
    ("wasi:keyvalue/batch", false, &["0.2.0-draft", "0.2.0-draft2"], "0.2.0-draft or 0.2.0-draft2"),
    ("lattice:keystore/store", false, &["0.1.0"], "0.1.0"),
];

impl Served {
    pub(crate) fn of(import: &Interface) -> Self {
        if import.namespace == "wasi"
            && let Some((_, interfaces)) = WASI.iter().find(|(package, _)| *package == import.package)
        {
            return match minor_of(import) {
                Some((0, 2)) if interfaces.contains(&import.interface.as_str()) => Self::Always,
                Some((0, 3)) if is_later(import) => Self::Always,
                Some((0, 2 | 3)) => Self::ByLink,
                _ if LATER.iter().any(|(package, _)| *package == import.package) => Self::WrongVersion("0.2 and 0.3"),
                _ => Self::WrongVersion("0.2"),
            };
        }
        let name = import.unversioned();
        let Some((_, always, versions, shown)) = DRAFTS.iter().find(|(interface, ..)| *interface == name) else {
            return Self::ByLink;
        };
        match versions.contains(&import.version.as_deref().unwrap_or("")) {
            true if *always => Self::Always,
            true => Self::ByLink,
            false => Self::WrongVersion(shown),
        }
    }
}

fn is_later(import: &Interface) -> bool {
    let package = LATER.iter().find(|(package, _)| *package == import.package);
    package.is_some_and(|(_, interfaces)| interfaces.contains(&import.interface.as_str()))
}

/// Major and minor of a released version; `None` for a pre-release, which is compatible with nothing but itself.
pub(crate) fn minor_of(interface: &Interface) -> Option<(u64, u64)> {
    let version = interface.version.as_deref()?;
    if version.contains('-') {
        return None;
    }
    let mut parts = version.split('+').next().unwrap_or(version).split('.');
    let (major, minor) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    Some((major, minor))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(text: &str) -> Interface {
        let (name, version) = text.split_once('@').map_or((text, None), |(n, v)| (n, Some(v.to_owned())));
        let (namespace, rest) = name.split_once(':').unwrap();
        let (package, interface) = rest.split_once('/').unwrap();
        Interface { namespace: namespace.into(), package: package.into(), interface: interface.into(), version }
    }

    #[test]
    fn each_import_says_what_it_wants() {
        let imports = [
            "wasi:io/streams@0.2.3",
            "wasi:cli/exit@0.2.0",
            "wasi:clocks/wall-clock@0.2.0",
            "wasi:sockets/tcp-create-socket@0.2.0",
            "wasi:sockets/ip-name-lookup@0.2.0",
            "wasi:keyvalue/store@0.2.0-draft",
            "acme:tax/rates@1.0.0",
            "wasi:http/types@0.3.0-rc-2026-03-15",
        ];
        let inspection = Inspection {
            imports: imports.iter().map(|i| interface(i)).collect(),
            exports: vec![interface("wasi:http/incoming-handler@0.2.0")],
            ..Inspection::default()
        };
        let needs = needs(&inspection);
        let by = |name: &str| &needs.iter().find(|n| n.import.unversioned() == name).unwrap().by;
        assert_eq!(by("wasi:io/streams"), &By::Always);
        assert!(matches!(by("wasi:cli/exit"), By::Grant(g) if g.baseline && g.name == "grants.exit"));
        assert!(matches!(by("wasi:clocks/wall-clock"), By::Grant(g) if g.name == "grants.clocks.wall"));
        assert_eq!(by("wasi:keyvalue/store"), &By::Link(Some("builtin:keyvalue")));
        assert_eq!(by("acme:tax/rates"), &By::Link(None));
        assert_eq!(by("wasi:http/types"), &By::WrongVersion("0.2 and 0.3"));
        assert_eq!(
            traits(&inspection, &needs),
            "- type: grants\n  properties:\n    clocks: {wall: true}\n    sockets: {lookups: true, tcp: [\"10.0.0.5:5432\"]}\n\
             - type: link\n  properties:\n    target: NAME          # an actor that exports it\n    namespace: acme\n    package: tax\n    interfaces: [rates]\n\
             - type: link\n  properties:\n    target: NAME          # a capability with `image: builtin:keyvalue`\n    namespace: wasi\n    package: keyvalue\n    interfaces: [store]\n\
             - type: ingress\n  properties: {path: /}\n"
        );
    }

    #[test]
    fn every_grant_that_is_shown_is_one_that_manifests_have() {
        for grant in GRANTS {
            let text = format!(
                "apiVersion: core.oam.dev/v1beta1\nkind: Application\nmetadata: {{name: a}}\nspec:\n  components:\n    - name: web\n      \
                 type: component\n      properties: {{image: ./a.wasm}}\n      traits:\n        - type: grants\n          \
                 properties: {{{}}}\n",
                grant.example
            );
            let parsed = crate::manifest::parse(&text, "a.yaml").unwrap_or_else(|p| panic!("{}: {p:?}", grant.name));
            let actor = parsed[0].app.actor("web").unwrap();
            assert!(grant.is_given(&actor.grants), "{}", grant.name);
            assert!(!grant.is_given(&Grants::default()), "{}", grant.name);
        }
    }
}
