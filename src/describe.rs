//! `describe` and `status`: all about one thing, in sections for people, or whole as JSON and YAML.

use crate::args::{self, Connect, TextFormat};
use crate::client::{Client, ask};
use crate::failure::Failure;
use crate::print::rows::{Row, bytes};
use crate::print::shape::{
    Actor, AppDetail, Event, Host, HostDetail, Link, Revision, SilentHost, Status, Unanswered, Unreached,
};
use crate::print::table::{Cell, Table, Tint};
use crate::print::time::age;
use crate::{context, print, top};
use clap::{Args, ValueEnum};
use proto::v1::{DescribeAppRequest, ListRequest, StatusRequest};
use serde::Serialize;
use std::collections::BTreeSet;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lattice describe app hello               its actors, links, revisions and latest events
  lattice describe host paris-1            its labels and facts, and what runs there
  lattice describe app hello -o json | jq .spec")]
pub(crate) struct DescribeArgs {
    /// What it is
    #[arg(value_enum)]
    kind: Kind,
    /// Name of the app, or name or id of the host
    name: String,
    /// What it looks like
    #[arg(short, long, value_name = "FORM", value_enum, default_value_t = TextFormat::Text)]
    output: TextFormat,
    #[command(flatten)]
    pub(crate) connect: Connect,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    #[value(alias = "apps")]
    App,
    #[value(alias = "hosts")]
    Host,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lattice status                           who leads, and what is not reached
  lattice status -o json | jq -e '.fresh and .bus_up and .unreached == [] and .silent == []'

It answers within seconds also while nobody leads: then with what the scheduler
that is asked knows alone, and says so.")]
pub(crate) struct StatusArgs {
    /// What it looks like
    #[arg(short, long, value_name = "FORM", value_enum, default_value_t = TextFormat::Text)]
    output: TextFormat,
    #[command(flatten)]
    pub(crate) connect: Connect,
}

pub(crate) async fn describe(args: &DescribeArgs, connect: &Connect) -> Result<(), Failure> {
    let client = Client::connect(context::endpoint(connect)?).await?;
    match args.kind {
        Kind::App => {
            let app = args::app(&args.name).map_err(Failure::Usage)?;
            let detail = AppDetail::from(ask!(client, describe_app, DescribeAppRequest { app })?);
            show(&detail, args.output, app_text)
        }
        Kind::Host => {
            let host = find_host(&client, &args::host(&args.name).map_err(Failure::Usage)?).await?;
            let actors = ask!(client, list_actors, ListRequest::default())?.items;
            let actors = actors.into_iter().filter(|actor| actor.host == host.id).map(Actor::from).collect();
            show(&HostDetail { host, actors }, args.output, host_text)
        }
    }
}

pub(crate) async fn status(args: &StatusArgs, connect: &Connect) -> Result<(), Failure> {
    let client = Client::connect(context::endpoint(connect)?).await?;
    let answer = ask!(client, status, StatusRequest {})?;
    let status = Status::new(client.address().to_owned(), client.unanswered(), answer);
    show(&status, args.output, status_text)
}

async fn find_host(client: &Client, name: &str) -> Result<Host, Failure> {
    let hosts: Vec<Host> =
        ask!(client, list_hosts, ListRequest::default())?.items.into_iter().map(Into::into).collect();
    let mut found = hosts.into_iter().filter(|host| host.is_called(name));
    match (found.next(), found.next()) {
        (Some(host), None) => Ok(host),
        (None, _) => Err(Failure::Refused(format!("no host called {name:?}: `lattice get hosts` lists what there is"))),
        (Some(_), Some(_)) => Err(Failure::Refused(format!(
            "several hosts are called {name:?}: give the id of one, as `lattice get hosts` shows it"
        ))),
    }
}

fn show<T: Serialize>(value: &T, form: TextFormat, text: impl FnOnce(&T) -> String) -> Result<(), Failure> {
    match form {
        TextFormat::Text => print::raw(text(value).as_bytes()),
        TextFormat::Json => print::json(value),
        TextFormat::Yaml => print::yaml(value, false),
    }
}

fn app_text(detail: &AppDetail) -> String {
    let app = &detail.app;
    let mut page = Page::default();
    page.field("App", Cell::tinted(&app.name, Tint::Bold));
    page.field("State", Cell::state(&app.state));
    page.field("Running", Cell::new(format!("{} of {} replicas", app.running, app.desired)));
    page.field("Revision", Cell::new(app.revision.to_string()));
    page.field("Version", Cell::new(app.version.to_string()));
    page.field_if("Message", &app.message);
    for url in &app.urls {
        page.field("Address", Cell::new(url));
    }
    page.table(
        "Actors",
        &detail.actors,
        &["ACTOR", "KIND", "REVISION", "HOST", "RUNNING", "STATE", "REQUESTS", "ERRORS", "REQ/S", "IN-FLIGHT", "P99"],
        actor_cells,
    );
    for actor in detail.actors.iter().filter(|actor| !actor.message.is_empty()) {
        page.line(&format!("  {}: {}", actor.actor, actor.message));
    }
    page.table(
        "Links",
        &detail.links,
        &["CONSUMER", "INTERFACE", "NAME", "PROVIDER", "STATE", "PATH"],
        |link: &Link| {
            let text = [&link.consumer, &link.interface, &link.name, &link.provider];
            let mut cells: Vec<Cell> = text.into_iter().map(Cell::new).collect();
            cells.extend([Cell::state(&link.state), Cell::new(&link.path)]);
            cells
        },
    );
    page.table("Revisions", &detail.revisions, &["REVISION", "CURRENT", "CAUSE", "CREATED"], |revision: &Revision| {
        vec![
            Cell::new(revision.revision.to_string()),
            Cell::new(if revision.current { "yes" } else { "" }),
            Cell::new(&revision.cause),
            Cell::new(&revision.created),
        ]
    });
    page.table("Events", &detail.events, &["TIME", "KIND", "MESSAGE"], |event: &Event| {
        vec![Cell::tinted(&event.time, Tint::Dim), Cell::new(&event.kind), Cell::new(&event.message)]
    });
    page.text()
}

fn actor_cells(actor: &Actor) -> Vec<Cell> {
    let host = if actor.host_name.is_empty() { &actor.host } else { &actor.host_name };
    vec![
        Cell::tinted(&actor.actor, Tint::Bold),
        Cell::new(&actor.kind),
        Cell::new(actor.revision.to_string()),
        Cell::new(if host.is_empty() { "-" } else { host }),
        Cell::new(format!("{}/{}", actor.running, actor.replicas)),
        Cell::state(&actor.state),
        Cell::new(actor.requests.to_string()),
        Cell::new(actor.errors.to_string()),
        Cell::new(top::rate(actor.requests_per_s)),
        Cell::new((actor.in_flight + actor.queued).to_string()),
        Cell::new(top::time(actor.p99_us)),
    ]
}

fn host_text(detail: &HostDetail) -> String {
    let (host, facts) = (&detail.host, &detail.host.facts);
    let mut page = Page::default();
    page.field("Host", Cell::tinted(&host.name, Tint::Bold));
    page.field("Id", Cell::new(&host.id));
    page.field("State", Cell::state(&host.state));
    page.field("Last seen", Cell::new(format!("{} ago", age(host.seen_ms))));
    page.field("Running", Cell::new(format!("{} replicas", host.running)));
    let load = format!(
        "{}% of a core, {}, {} requests/s, {} in flight, {} queued",
        host.cpu_millis / 10,
        bytes(host.resident_bytes),
        top::rate(host.requests_per_s),
        host.in_flight,
        host.queued
    );
    page.field("Load", Cell::new(load));
    page.field_if("Ingress", &host.ingress);
    for (key, value) in &host.labels {
        page.field("Label", Cell::new(format!("{key}={value}")));
    }
    page.field(
        "Machine",
        Cell::new(format!("{} {}, {} cpus, {}", facts.arch, facts.os, facts.cpus, bytes(facts.memory_bytes))),
    );
    page.field("Runs", Cell::new(format!("lattice {}, {}", facts.version, facts.engine)));
    page.field_if("Serves", &facts.interfaces.join(", "));
    page.field("Generation", Cell::new(host.generation.to_string()));
    page.field("Dropped", Cell::new(format!("{} messages since boot", host.dropped)));
    page.table(
        "Actors",
        &detail.actors,
        &["APP", "ACTOR", "KIND", "REVISION", "RUNNING", "STATE", "MESSAGE"],
        |actor: &Actor| {
            vec![
                Cell::tinted(&actor.app, Tint::Bold),
                Cell::tinted(&actor.actor, Tint::Bold),
                Cell::new(&actor.kind),
                Cell::new(actor.revision.to_string()),
                Cell::new(format!("{}/{}", actor.running, actor.replicas)),
                Cell::state(&actor.state),
                Cell::new(&actor.message),
            ]
        },
    );
    page.text()
}

fn status_text(status: &Status) -> String {
    let mut page = Page::default();
    page.field("Lattice", Cell::tinted(&status.lattice, Tint::Bold));
    page.field("API", Cell::new(&status.api));
    page.field("Version", Cell::new(&status.version));
    if status.version != status.client_version {
        page.field("Client", Cell::tinted(&status.client_version, Tint::Warn));
    }
    page.field("Role", Cell::new(if status.leader { "leader" } else { "follower" }));
    page.field("Leader", leader_cell(status));
    page.field("Term", Cell::new(status.term.to_string()));
    page.field("Log index", index_cell(status));
    page.field("Bus", if status.bus_up { Cell::new(&status.bus) } else { Cell::tinted(&status.bus, Tint::Bad) });
    if status.seen_by != status.id && status.seen_by_bus != "connected" {
        page.field("Leader bus", Cell::tinted(&status.seen_by_bus, Tint::Bad));
    }
    page.field("Dropped", Cell::new(format!("{} bus messages since boot", status.dropped)));
    let away: BTreeSet<u64> = status.unreached.iter().map(|one| one.id).collect();
    page.field("Schedulers", counted(status.schedulers, &[(away.len(), "not reached")]));
    let silent = |state: &str| status.silent.iter().filter(|host| host.state == state).count();
    page.field("Hosts", counted(status.hosts, &[(silent("lost"), "lost"), (silent("suspect"), "suspect")]));
    if status.brake {
        let text = "holds: most hosts fell silent at once, so the network or the bus is the likelier cause; nothing is \
                    moved until they are heard";
        page.field("Brake", Cell::tinted(text, Tint::Bad));
    }
    page.table(
        "Schedulers not reached",
        &status.unreached,
        &["SCHEDULER", "ADDRESS", "FROM", "WHY"],
        |one: &Unreached| {
            let text = [one.id.to_string(), one.address.clone(), format!("scheduler {}", one.from), one.why.clone()];
            text.into_iter().map(Cell::new).collect()
        },
    );
    let title = format!("Hosts not heard by scheduler {}", status.seen_by);
    page.table(&title, &status.silent, &["HOST", "STATE", "SILENT", "ID"], |host: &SilentHost| {
        let for_long = age(host.silent_ms);
        let silent = if host.heard { for_long } else { format!("{for_long}, never heard") };
        vec![Cell::tinted(&host.name, Tint::Bold), Cell::state(&host.state), Cell::new(silent), Cell::new(&host.id)]
    });
    page.table("API addresses that do not answer", &status.unanswered, &["API", "WHY"], |one: &Unanswered| {
        vec![Cell::new(&one.api), Cell::new(&one.why)]
    });
    page.text()
}

fn leader_cell(status: &Status) -> Cell {
    if status.id == 0 {
        return Cell::new("not told: the scheduler is of an older version");
    }
    if status.leader_id == 0 {
        return Cell::tinted("nobody leads, as far as it knows", Tint::Bad);
    }
    let mut text = format!("scheduler {}", status.leader_id);
    if !status.leader_address.is_empty() {
        text.push_str(&format!(" at {}", status.leader_address));
    }
    if !status.leader_api.is_empty() {
        text.push_str(&format!(", API {}", status.leader_api));
    }
    if status.seen_by != status.leader_id {
        text.push_str("; it gives no answer");
        return Cell::tinted(text, Tint::Bad);
    }
    Cell::new(text)
}

/// Whether anything that was acknowledged may be missing in what is said.
fn index_cell(status: &Status) -> Cell {
    match (status.fresh, status.alone.is_empty()) {
        (true, _) => Cell::new(format!("{}, confirmed by most schedulers", status.index)),
        (false, true) => Cell::new(status.index.to_string()),
        (false, false) => Cell::tinted(
            format!("{}, what scheduler {} knows alone: {}", status.index, status.id, status.alone),
            Tint::Bad,
        ),
    }
}

/// `5, 1 lost, 2 suspect`.
fn counted(all: u32, parts: &[(usize, &str)]) -> Cell {
    let mut text = all.to_string();
    let mut tint = Tint::Plain;
    for (count, what) in parts.iter().filter(|(count, _)| *count > 0) {
        text.push_str(&format!(", {count} {what}"));
        tint = Tint::Bad;
    }
    Cell::tinted(text, tint)
}

/// Fields, then titled tables.
#[derive(Default)]
struct Page {
    fields: Vec<Vec<Cell>>,
    tail: String,
}

impl Page {
    fn field(&mut self, name: &str, value: Cell) {
        self.fields.push(vec![Cell::new(format!("{name}:")), value]);
    }

    fn field_if(&mut self, name: &str, value: &str) {
        if !value.is_empty() {
            self.field(name, Cell::new(value));
        }
    }

    fn table<R>(&mut self, title: &str, items: &[R], head: &[&'static str], cells: impl Fn(&R) -> Vec<Cell>) {
        if items.is_empty() {
            return;
        }
        let rows: Vec<Vec<Cell>> = items.iter().map(cells).collect();
        let table = Table::new(head, print::color()).render(&rows);
        self.tail.push_str(&format!("\n{title}:\n"));
        for line in table.lines() {
            self.tail.push_str(&format!("  {line}\n"));
        }
    }

    fn line(&mut self, text: &str) {
        self.tail.push_str(&print::clean(text));
        self.tail.push('\n');
    }

    fn text(self) -> String {
        Table::new(&["", ""], print::color()).more(&self.fields) + &self.tail
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::v1;

    #[test]
    fn an_app_in_sections() {
        let detail = AppDetail::from(v1::AppDetail {
            app: Some(v1::AppStatus {
                name: "hello".into(),
                revision: 2,
                state: "degraded".into(),
                desired: 2,
                running: 1,
                version: 9,
                message: "no host for one replica".into(),
                urls: vec!["http://127.0.0.1:8000/".into()],
                failed: false,
                ..Default::default()
            }),
            actors: vec![v1::ActorStatus {
                app: "hello".into(),
                actor: "web".into(),
                kind: "actor".into(),
                revision: 2,
                host_name: "paris".into(),
                replicas: 1,
                running: 1,
                state: "running".into(),
                ..Default::default()
            }],
            ..Default::default()
        });
        assert_eq!(
            app_text(&detail),
            "App:        hello\n\
             State:      degraded\n\
             Running:    1 of 2 replicas\n\
             Revision:   2\n\
             Version:    9\n\
             Message:    no host for one replica\n\
             Address:    http://127.0.0.1:8000/\n\
             \n\
             Actors:\n  \
               ACTOR   KIND    REVISION   HOST    RUNNING   STATE     REQUESTS   ERRORS   REQ/S   IN-FLIGHT   P99\n  \
               web     actor   2          paris   1/1       running   0          0        0       0           -\n"
        );
    }

    #[test]
    fn a_status_names_what_is_not_reached() {
        let all_well = v1::StatusResponse {
            lattice: "plant".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            term: 4,
            index: 120,
            leader: false,
            hosts: 5,
            bus: "connected".into(),
            bus_up: true,
            id: 2,
            fresh: true,
            leader_id: 1,
            leader_peer: "10.0.0.5:7401".into(),
            seen_by: 1,
            seen_by_bus: "connected".into(),
            schedulers: 3,
            ..Default::default()
        };
        let text = |answer: v1::StatusResponse| status_text(&Status::new("h:1".into(), Vec::new(), answer));
        let lines = text(all_well.clone());
        assert_eq!(
            lines,
            format!(
                "Lattice:      plant\n\
                 API:          h:1\n\
                 Version:      {}\n\
                 Role:         follower\n\
                 Leader:       scheduler 1 at 10.0.0.5:7401\n\
                 Term:         4\n\
                 Log index:    120, confirmed by most schedulers\n\
                 Bus:          connected\n\
                 Dropped:      0 bus messages since boot\n\
                 Schedulers:   3\n\
                 Hosts:        5\n",
                env!("CARGO_PKG_VERSION")
            )
        );
        let bad = v1::StatusResponse {
            fresh: false,
            alone: "no scheduler leads now".into(),
            leader_id: 0,
            seen_by: 2,
            bus: "not connected: connection refused".into(),
            bus_up: false,
            unreached: vec![v1::Unreached { id: 1, peer: "10.0.0.5:7401".into(), from: 2, why: "refused".into() }],
            silent: vec![v1::SilentHost {
                id: "01J".into(),
                name: "edge".into(),
                state: "lost".into(),
                silent_ms: 90_000,
                heard: true,
            }],
            brake: true,
            ..all_well
        };
        let lines = text(bad);
        for part in [
            "nobody leads",
            "120, what scheduler 2 knows alone: no scheduler leads now",
            "not connected: connection refused",
            "3, 1 not reached",
            "5, 1 lost",
            "holds: most hosts fell silent",
            "10.0.0.5:7401   scheduler 2   refused",
            "Hosts not heard by scheduler 2:",
            "edge   lost",
        ] {
            assert!(lines.contains(part), "{part}: {lines}");
        }
    }
}
