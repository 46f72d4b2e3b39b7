//! What a table shows of each shape, and what one item is called. Pure.

use super::shape::{Access, Actor, App, Host, Link, Revision, Scheduler};
use super::table::{Cell, Tint};
use super::time::age;

/// An item of a list that `get` shows.
pub(crate) trait Row: serde::Serialize + Clone + PartialEq {
    /// What people call several of them.
    const PLURAL: &'static str;
    /// What to do when there is none.
    const NONE: &'static str;
    const HEAD: &'static [&'static str];
    /// More columns for `-o wide`.
    const WIDE: &'static [&'static str];

    /// What tells it from every other item of the list; also the order of a table.
    fn key(&self) -> String;
    /// As `-o name` prints it and other verbs take it: `app/hello`.
    fn name(&self) -> String;
    /// Whether someone who typed this name means this item.
    fn is_called(&self, name: &str) -> bool;
    /// Cells for HEAD, then for WIDE. `now_ms` is for ages.
    fn cells(&self, now_ms: u64) -> Vec<Cell>;
}

impl Row for App {
    const PLURAL: &'static str = "apps";
    const NONE: &'static str = "make one with `lattice apply FILE`";
    const HEAD: &'static [&'static str] = &["NAME", "REVISION", "STATE", "RUNNING", "MESSAGE"];
    const WIDE: &'static [&'static str] = &["VERSION", "URLS"];

    fn key(&self) -> String {
        self.name.clone()
    }
    fn name(&self) -> String {
        format!("app/{}", self.name)
    }
    fn is_called(&self, name: &str) -> bool {
        name == self.name || name == self.name()
    }
    fn cells(&self, _: u64) -> Vec<Cell> {
        vec![
            Cell::tinted(&self.name, Tint::Bold),
            Cell::new(self.revision.to_string()),
            Cell::state(&self.state),
            Cell::new(format!("{}/{}", self.running, self.desired)),
            Cell::new(&self.message),
            Cell::new(self.version.to_string()),
            Cell::new(self.urls.join(" ")),
        ]
    }
}

impl Row for Actor {
    const PLURAL: &'static str = "actors";
    const NONE: &'static str = "an app brings them: `lattice apply FILE`";
    const HEAD: &'static [&'static str] = &["APP", "ACTOR", "REVISION", "HOST", "RUNNING", "STATE", "MESSAGE"];
    const WIDE: &'static [&'static str] = &["KIND", "REQUESTS", "ERRORS", "HOST-ID"];

    fn key(&self) -> String {
        key(&[&self.app, &self.actor, &self.host, &format!("{:020}", self.revision)])
    }
    fn name(&self) -> String {
        format!("actor/{}/{}", self.app, self.actor)
    }
    fn is_called(&self, name: &str) -> bool {
        name == self.app || name == format!("{}/{}", self.app, self.actor) || name == self.name()
    }
    fn cells(&self, _: u64) -> Vec<Cell> {
        vec![
            Cell::tinted(&self.app, Tint::Bold),
            Cell::tinted(&self.actor, Tint::Bold),
            Cell::new(self.revision.to_string()),
            Cell::new(if self.host_name.is_empty() { dash(&self.host) } else { &self.host_name }),
            Cell::new(format!("{}/{}", self.running, self.replicas)),
            Cell::state(&self.state),
            Cell::new(&self.message),
            Cell::new(&self.kind),
            Cell::new(self.requests.to_string()),
            Cell::new(self.errors.to_string()),
            Cell::new(dash(&self.host)),
        ]
    }
}

impl Row for Host {
    const PLURAL: &'static str = "hosts";
    const NONE: &'static str = "start one with `lattice host --nats URL`";
    const HEAD: &'static [&'static str] = &["NAME", "STATE", "RUNNING", "ARCH", "LABELS", "SEEN", "ID"];
    const WIDE: &'static [&'static str] = &["OS", "CPUS", "MEMORY", "ENGINE", "VERSION", "INGRESS", "DROPPED"];

    fn key(&self) -> String {
        key(&[&self.name, &self.id])
    }
    fn name(&self) -> String {
        format!("host/{}", self.id)
    }
    fn is_called(&self, name: &str) -> bool {
        name == self.id || name == self.name || name == self.name()
    }
    fn cells(&self, _: u64) -> Vec<Cell> {
        let labels: Vec<String> = self.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        vec![
            Cell::tinted(&self.name, Tint::Bold),
            Cell::state(&self.state),
            Cell::new(self.running.to_string()),
            Cell::new(dash(&self.facts.arch)),
            Cell::new(dash(&labels.join(","))),
            Cell::new(age(self.seen_ms)),
            Cell::tinted(&self.id, Tint::Dim),
            Cell::new(dash(&self.facts.os)),
            Cell::new(self.facts.cpus.to_string()),
            Cell::new(bytes(self.facts.memory_bytes)),
            Cell::new(dash(&self.facts.engine)),
            Cell::new(dash(&self.facts.version)),
            Cell::new(dash(&self.ingress)),
            Cell::new(self.dropped.to_string()),
        ]
    }
}

impl Row for Link {
    const PLURAL: &'static str = "links";
    const NONE: &'static str = "a `link` trait in a manifest makes one";
    const HEAD: &'static [&'static str] = &["APP", "CONSUMER", "INTERFACE", "PROVIDER", "STATE", "PATH"];
    const WIDE: &'static [&'static str] = &["NAME"];

    fn key(&self) -> String {
        key(&[&self.app, &self.consumer, &self.interface, &self.name])
    }
    fn name(&self) -> String {
        format!("link/{}/{}/{}/{}", self.app, self.consumer, self.interface, self.name)
    }
    fn is_called(&self, name: &str) -> bool {
        name == self.app || name == format!("{}/{}", self.app, self.consumer) || name == self.name()
    }
    fn cells(&self, _: u64) -> Vec<Cell> {
        vec![
            Cell::tinted(&self.app, Tint::Bold),
            Cell::tinted(&self.consumer, Tint::Bold),
            Cell::new(&self.interface),
            Cell::new(&self.provider),
            Cell::state(&self.state),
            Cell::new(dash(&self.path)),
            Cell::new(&self.name),
        ]
    }
}

impl Row for Revision {
    const PLURAL: &'static str = "revisions";
    const NONE: &'static str = "each `lattice apply` that changes an app makes one";
    const HEAD: &'static [&'static str] = &["APP", "REVISION", "CURRENT", "CAUSE", "CREATED"];
    const WIDE: &'static [&'static str] = &[];

    fn key(&self) -> String {
        key(&[&self.app, &format!("{:020}", self.revision)])
    }
    fn name(&self) -> String {
        format!("revision/{}/{}", self.app, self.revision)
    }
    fn is_called(&self, name: &str) -> bool {
        name == self.app || name == format!("{}/{}", self.app, self.revision) || name == self.name()
    }
    fn cells(&self, _: u64) -> Vec<Cell> {
        vec![
            Cell::tinted(&self.app, Tint::Bold),
            Cell::new(self.revision.to_string()),
            if self.current { Cell::tinted("yes", Tint::Good) } else { Cell::new("") },
            Cell::new(&self.cause),
            Cell::new(&self.created),
        ]
    }
}

impl Row for Access {
    const PLURAL: &'static str = "tokens";
    const NONE: &'static str = "make one with `lattice access add NAME`";
    const HEAD: &'static [&'static str] = &["NAME", "ROLE", "AGE"];
    const WIDE: &'static [&'static str] = &[];

    fn key(&self) -> String {
        self.name.clone()
    }
    fn name(&self) -> String {
        format!("access/{}", self.name)
    }
    fn is_called(&self, name: &str) -> bool {
        name == self.name || name == self.name()
    }
    fn cells(&self, now_ms: u64) -> Vec<Cell> {
        vec![
            Cell::tinted(&self.name, Tint::Bold),
            Cell::new(&self.role),
            Cell::new(age(now_ms.saturating_sub(self.created_ms))),
        ]
    }
}

impl Row for Scheduler {
    const PLURAL: &'static str = "schedulers";
    const NONE: &'static str = "start one with `lattice scheduler --nats URL`";
    const HEAD: &'static [&'static str] = &["ID", "ADDRESS", "API", "ROLE", "STATE", "INDEX", "MESSAGE"];
    const WIDE: &'static [&'static str] = &[];

    fn key(&self) -> String {
        format!("{:020}", self.id)
    }
    fn name(&self) -> String {
        format!("scheduler/{}", self.id)
    }
    fn is_called(&self, name: &str) -> bool {
        name == self.id.to_string() || name == self.name()
    }
    fn cells(&self, _: u64) -> Vec<Cell> {
        vec![
            Cell::tinted(self.id.to_string(), Tint::Bold),
            Cell::new(dash(&self.address)),
            Cell::new(dash(&self.api)),
            Cell::new(&self.role),
            Cell::state(&self.state),
            Cell::new(self.index.to_string()),
            Cell::new(&self.message),
        ]
    }
}

/// Sorts by its parts one after the other: `a` and all it has before `a-b`.
fn key(parts: &[&str]) -> String {
    parts.join("\0")
}

/// Something to see where a cell would be empty.
fn dash(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}

/// `512 MiB`, `7.6 GiB`.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    let mut tenths = u128::from(count) * 10;
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    match tenths % 10 {
        0 => format!("{} {}", tenths / 10, UNITS[unit]),
        tenth => format!("{}.{tenth} {}", tenths / 10, UNITS[unit]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::print::table::Table;
    use proto::v1;

    fn check<R: Row>(row: &R) {
        assert_eq!(row.cells(0).len(), R::HEAD.len() + R::WIDE.len(), "{}", R::PLURAL);
        assert!(row.is_called(&row.name()), "{}", R::PLURAL);
    }

    #[test]
    fn every_kind_has_a_cell_for_each_column_and_answers_to_its_name() {
        check(&App::from(v1::AppStatus { name: "hello".into(), ..Default::default() }));
        check(&Actor::from(v1::ActorStatus { app: "hello".into(), actor: "web".into(), ..Default::default() }));
        check(&Host::from(v1::HostStatus { id: "01J".into(), name: "paris".into(), ..Default::default() }));
        check(&Link::from(v1::LinkStatus { app: "hello".into(), consumer: "web".into(), ..Default::default() }));
        check(&Scheduler::from(v1::SchedulerStatus { id: 2, ..Default::default() }));
        check(&Revision::from(v1::RevisionStatus { app: "hello".into(), revision: 3, ..Default::default() }));
    }

    #[test]
    fn an_app_as_a_table() {
        let app = App::from(v1::AppStatus {
            name: "hello".into(),
            revision: 1,
            state: "degraded".into(),
            desired: 2,
            running: 1,
            message: "actor \"web\": no host has label site=paris".into(),
            ..Default::default()
        });
        let text = Table::new(App::HEAD, false).render(&[app.cells(0)]);
        assert_eq!(
            text,
            "NAME    REVISION   STATE      RUNNING   MESSAGE\n\
             hello   1          degraded   1/2       actor \"web\": no host has label site=paris\n"
        );
    }

    #[test]
    fn sizes_take_one_unit() {
        for (count, want) in
            [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (64 << 20, "64 MiB"), (8_160_000_000, "7.5 GiB")]
        {
            assert_eq!(bytes(count), want);
        }
    }
}
