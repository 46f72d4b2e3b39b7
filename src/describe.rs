//! `describe` and `status`: all about one thing, in sections for people, or whole as JSON and YAML.

use crate::args::{self, Connect, TextFormat};
use crate::client::{Client, ask};
use crate::failure::Failure;
use crate::print::rows::{Row, bytes};
use crate::print::shape::{Actor, AppDetail, Event, Host, HostDetail, Link, Revision, Status};
use crate::print::table::{Cell, Table, Tint};
use crate::print::time::age;
use crate::{context, print, top};
use clap::{Args, ValueEnum};
use proto::v1::{DescribeAppRequest, ListRequest, StatusRequest};
use serde::Serialize;

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
  lattice status
  lattice status -o json | jq -e .leader")]
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
    let status = Status {
        lattice: answer.lattice,
        api: client.endpoint.address.clone(),
        version: answer.version,
        client_version: env!("CARGO_PKG_VERSION").into(),
        leader: answer.leader,
        term: answer.term,
        index: answer.index,
        hosts: answer.hosts,
        bus: answer.bus,
        dropped: answer.dropped,
    };
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
    page.field("Term", Cell::new(status.term.to_string()));
    page.field("Log index", Cell::new(status.index.to_string()));
    page.field("Hosts", Cell::new(status.hosts.to_string()));
    page.field("Bus", Cell::new(&status.bus));
    page.field("Dropped", Cell::new(format!("{} bus messages since boot", status.dropped)));
    page.text()
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
}
