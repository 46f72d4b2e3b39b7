//! Which actor answers a host name and a path. Pure. The host decides first: its exact name, then wildcards from the
//! longest, then routes for any host; among these the longest path prefix, by whole segments. Paths are compared as
//! they were sent: routing grants nothing, so it decodes nothing.

use crate::metrics::{Book, Traffic};
use proto::app::Name;
use proto::v1;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Where a request goes.
#[derive(Debug, Clone)]
pub struct Route {
    pub app: Name,
    pub actor: Name,
    /// How long one request may take there.
    pub deadline: Duration,
    /// Bytes of one request's body there.
    pub request_bytes_max: u64,
    /// What went there.
    pub traffic: Arc<Traffic>,
}

/// Of an actor whose limit a scheduler of an older build did not tell.
const DEADLINE_DEFAULT: Duration = Duration::from_secs(60);

/// The lattice's route table, made for looking up.
#[derive(Debug, Default)]
pub struct Routes {
    exact: BTreeMap<String, Paths>,
    /// By what follows the "*.".
    wildcard: BTreeMap<String, Paths>,
    any: Paths,
}

/// The routes of one host name.
#[derive(Debug, Default)]
struct Paths {
    /// Without the last "/"; "" is every path.
    prefixes: BTreeMap<String, Arc<Route>>,
    /// Bytes of the longest prefix: nothing longer is tried.
    longest: usize,
}

impl Routes {
    /// Also how many routes were refused because they name no app or actor, or their path does not begin with "/".
    /// Of two for the same host and path the one of the lesser app and actor stays, on every host the same.
    pub fn from_wire(routes: &[v1::Route], book: &Book) -> (Self, usize) {
        let mut table = Self::default();
        let mut refused = 0;
        for route in routes {
            let (Ok(app), Ok(actor), true) = (route.app.parse(), route.actor.parse(), route.path.starts_with('/'))
            else {
                refused += 1;
                continue;
            };
            let told = (route.deadline_ms > 0).then(|| Duration::from_millis(route.deadline_ms));
            let (deadline, traffic) = (told.unwrap_or(DEADLINE_DEFAULT), book.of(&app, &actor));
            let request_bytes_max = route.request_bytes_max.unwrap_or(u64::MAX);
            table.insert(&route.host, &route.path, Route { app, actor, deadline, request_bytes_max, traffic });
        }
        (table, refused)
    }

    fn insert(&mut self, host: &str, path: &str, route: Route) {
        let host = host.to_ascii_lowercase();
        let paths = match host.strip_prefix("*.") {
            _ if host.is_empty() => &mut self.any,
            Some(suffix) => self.wildcard.entry(suffix.to_owned()).or_default(),
            None => self.exact.entry(host).or_default(),
        };
        let prefix = path.trim_end_matches('/');
        paths.longest = paths.longest.max(prefix.len());
        match paths.prefixes.get_mut(prefix) {
            Some(there) if (&there.app, &there.actor) <= (&route.app, &route.actor) => {}
            Some(there) => *there = Arc::new(route),
            None => drop(paths.prefixes.insert(prefix.to_owned(), Arc::new(route))),
        }
    }

    /// `host` as in a Host header, with or without a port; `path` without the query.
    pub fn find(&self, host: &str, path: &str) -> Option<&Arc<Route>> {
        // The target of OPTIONS may be "*": it is nobody's.
        if !path.is_empty() && !path.starts_with('/') {
            return None;
        }
        if self.exact.is_empty() && self.wildcard.is_empty() {
            return self.any.find(path);
        }
        let host = plain_host(host);
        let exact = self.exact.get(&*host).and_then(|paths| paths.find(path));
        exact.or_else(|| self.find_wildcard(&host, path)).or_else(|| self.any.find(path))
    }

    fn find_wildcard(&self, host: &str, path: &str) -> Option<&Arc<Route>> {
        if self.wildcard.is_empty() {
            return None;
        }
        let mut rest = host;
        while let Some((label, suffix)) = rest.split_once('.') {
            if !label.is_empty()
                && let Some(found) = self.wildcard.get(suffix).and_then(|paths| paths.find(path))
            {
                return Some(found);
            }
            rest = suffix;
        }
        None
    }
}

impl Paths {
    fn find(&self, path: &str) -> Option<&Arc<Route>> {
        let mut prefix = path.trim_end_matches('/');
        if prefix.len() > self.longest {
            // A prefix ends where a segment ends: at the last "/" not behind the longest one.
            let end = path.as_bytes()[..=self.longest].iter().rposition(|b| *b == b'/').unwrap_or(0);
            prefix = path.get(..end)?;
        }
        loop {
            if let Some(route) = self.prefixes.get(prefix) {
                return Some(route);
            }
            prefix = prefix.rsplit_once('/')?.0;
        }
    }
}

/// Lower case, without port and without the dot of a full name.
fn plain_host(host: &str) -> Cow<'_, str> {
    let name = match host.rfind(']') {
        // An IPv6 address: a colon inside it is no port.
        Some(end) => &host[..=end],
        None => host.split(':').next().unwrap_or(host),
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.bytes().any(|b| b.is_ascii_uppercase()) { name.to_ascii_lowercase().into() } else { name.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routes(list: &[(&str, &str, &str)]) -> Routes {
        let wire: Vec<_> = list
            .iter()
            .map(|(host, path, actor)| v1::Route {
                host: (*host).into(),
                path: (*path).into(),
                app: "app".into(),
                actor: (*actor).into(),
                ..v1::Route::default()
            })
            .collect();
        let (routes, refused) = Routes::from_wire(&wire, &Book::default());
        assert_eq!(refused, 0);
        routes
    }

    fn check(routes: &Routes, cases: &[(&str, &str, Option<&str>)]) {
        for (host, path, expected) in cases {
            let got = routes.find(host, path).map(|route| route.actor.as_str());
            assert_eq!(got, *expected, "{host} {path}");
        }
    }

    #[test]
    fn the_longest_prefix_of_whole_segments_wins() {
        let routes =
            routes(&[("", "/", "root"), ("", "/api", "api"), ("", "/api/v2/", "v2"), ("", "/a/b/c/d", "deep")]);
        check(
            &routes,
            &[
                ("x", "/", Some("root")),
                ("x", "", Some("root")),
                ("x", "/apis", Some("root")),
                ("x", "/api", Some("api")),
                ("x", "/api/", Some("api")),
                ("x", "/api/v1", Some("api")),
                ("x", "/api/v2", Some("v2")),
                ("x", "/api/v2/", Some("v2")),
                ("x", "/api/v22", Some("api")),
                ("x", "/api/v2/users/7", Some("v2")),
                ("x", "/API", Some("root")),
                ("x", "/a/b/c/d", Some("deep")),
                ("x", "/a/b/c", Some("root")),
                ("x", "/a/b/c/dd", Some("root")),
                ("x", "//api", Some("root")),
                ("x", "*", None),
                ("x", "/é/ü/ö/ä/é", Some("root")),
                ("", "/api", Some("api")),
            ],
        );
        check(
            &self::routes(&[("", "/api", "api")]),
            &[("x", "/", None), ("x", "/apix", None), ("x", "/api/x", Some("api"))],
        );
        check(&self::routes(&[("", "/", "root")]), &[("x", "*", None), ("x", "/a/b", Some("root"))]);
        check(&Routes::default(), &[("x", "/", None)]);
    }

    #[test]
    fn exact_hosts_come_before_wildcards_before_any() {
        let routes = routes(&[
            ("shop.example.org", "/", "shop"),
            ("*.example.org", "/", "wild"),
            ("*.eu.example.org", "/eu", "wild-eu"),
            ("", "/any", "any"),
            ("other.org", "/only", "only"),
        ]);
        check(
            &routes,
            &[
                ("shop.example.org", "/x", Some("shop")),
                ("SHOP.Example.org:8000", "/x", Some("shop")),
                ("shop.example.org.", "/any", Some("shop")),
                ("a.example.org", "/any", Some("wild")),
                ("a.b.example.org", "/", Some("wild")),
                ("a.eu.example.org", "/eu/x", Some("wild-eu")),
                ("a.eu.example.org", "/", Some("wild")),
                ("example.org", "/any", Some("any")),
                (".example.org", "/", None),
                ("example.org", "/", None),
                ("other.org", "/only", Some("only")),
                ("other.org", "/any", Some("any")),
                ("[::1]:8000", "/any", Some("any")),
                ("", "/any", Some("any")),
            ],
        );
    }

    #[test]
    fn conflicts_and_wrong_routes() {
        let conflict = routes(&[("", "/", "b"), ("", "/", "a"), ("", "/", "c")]);
        check(&conflict, &[("x", "/", Some("a"))]);
        let wrong = [("App", "a", "/"), ("app", "", "/"), ("app", "a", "x"), ("app", "a", "")];
        let wire: Vec<_> = wrong
            .iter()
            .map(|(app, actor, path)| v1::Route {
                path: (*path).into(),
                app: (*app).into(),
                actor: (*actor).into(),
                ..v1::Route::default()
            })
            .collect();
        assert_eq!(Routes::from_wire(&wire, &Book::default()).1, 4);
    }

    #[test]
    fn a_path_of_slashes_costs_little() {
        let routes = routes(&[("", "/api", "api")]);
        let path = "/".repeat(60_000) + "x";
        check(&routes, &[("x", path.as_str(), None)]);
    }
}
