//! `get`: lists, once or as they change. One generic path for all kinds; `print::rows` says what a kind looks like.

use crate::args::{self, Connect, Format};
use crate::client::{Client, Seen, Watcher, ask};
use crate::failure::Failure;
use crate::print::rows::Row;
use crate::print::shape::{Actor, App, Host, Link, List, Revision};
use crate::print::table::{Cell, Table, Tint};
use crate::print::time::now_ms;
use crate::{context, print};
use clap::{Args, ValueEnum};
use proto::v1::ListRequest;
use proto::v1::watch_event::What;
use std::collections::BTreeMap;
use std::time::Duration;

/// Changes that come this close together are shown as one.
const SETTLE: Duration = Duration::from_millis(100);

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lattice get apps                         what was asked for, and whether it runs
  lattice get actors --app hello           what of it runs where
  lattice get hosts -o wide -w             hosts with their facts; a line for each change
  lattice get hosts -o name                as `lattice drain` takes them
  lattice get apps -o json | jq -r '.items[] | select(.state != \"running\").name'

JSON and YAML are {\"items\": [...]}; with -w each change prints the whole list
again, as one line or document. An item has:
  apps       name, revision, state, desired, running, version, message, urls
  actors     app, actor, revision, host, replicas, running, host_name, state,
             message, kind, requests, errors, in_flight, queued,
             requests_per_s, errors_per_s, p50_us, p99_us
  hosts      id, name, state, labels, facts, running, ingress, seen_ms, dropped,
             generation, cpu_millis, resident_bytes, requests_per_s, in_flight,
             queued
  links      app, consumer, interface, name, provider, state, path
  revisions  app, revision, current, created, cause")]
pub(crate) struct GetArgs {
    /// What to list
    #[arg(value_enum)]
    kind: Kind,
    /// Only those of this name: an app (with all of its actors, links, revisions), APP/ACTOR, a host's name or id
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Only what belongs to this app
    #[arg(long, value_name = "APP", value_parser = args::app)]
    app: Option<String>,
    /// What it looks like
    #[arg(short, long, value_name = "FORM", value_enum, default_value_t = Format::Table)]
    output: Format,
    /// Go on, and show what changes
    #[arg(short, long)]
    watch: bool,
    /// Answer from one scheduler's memory: works without a leader, may be old
    #[arg(long)]
    stale: bool,
    #[command(flatten)]
    pub(crate) connect: Connect,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    #[value(alias = "app")]
    Apps,
    #[value(alias = "actor")]
    Actors,
    #[value(alias = "host")]
    Hosts,
    #[value(alias = "link")]
    Links,
    #[value(alias = "revision")]
    Revisions,
}

pub(crate) async fn get(args: &GetArgs, connect: &Connect) -> Result<(), Failure> {
    if args.app.is_some() && args.kind == Kind::Hosts {
        return Err(Failure::Usage("hosts belong to no app: leave out --app".into()));
    }
    let client = Client::connect(context::endpoint(connect)?).await?;
    match args.kind {
        Kind::Apps => list::<App>(args, &client).await,
        Kind::Actors => list::<Actor>(args, &client).await,
        Kind::Hosts => list::<Host>(args, &client).await,
        Kind::Links => list::<Link>(args, &client).await,
        Kind::Revisions => list::<Revision>(args, &client).await,
    }
}

/// A kind that the server lists.
trait Listed: Row {
    async fn fetch(client: &Client, request: ListRequest) -> Result<Vec<Self>, Failure>;
    /// The item a watch event carries, when it carries this kind whole.
    fn carried(what: &What) -> Option<Change<Self>> {
        let _ = what;
        None
    }
    /// Whether watch events carry this kind, so that nothing has to be fetched again.
    const CARRIED: bool = false;
}

enum Change<R> {
    Is(R),
    /// Name or id of what is gone.
    Gone(String),
}

impl Listed for App {
    async fn fetch(client: &Client, request: ListRequest) -> Result<Vec<Self>, Failure> {
        Ok(ask!(client, list_apps, request)?.items.into_iter().map(Self::from).collect())
    }
    fn carried(what: &What) -> Option<Change<Self>> {
        match what {
            What::App(status) => Some(Change::Is(status.clone().into())),
            What::AppDeleted(name) => Some(Change::Gone(name.clone())),
            _ => None,
        }
    }
    const CARRIED: bool = true;
}

impl Listed for Host {
    async fn fetch(client: &Client, request: ListRequest) -> Result<Vec<Self>, Failure> {
        Ok(ask!(client, list_hosts, request)?.items.into_iter().map(Self::from).collect())
    }
    fn carried(what: &What) -> Option<Change<Self>> {
        match what {
            What::Host(status) => Some(Change::Is(status.clone().into())),
            What::HostForgotten(id) => Some(Change::Gone(id.clone())),
            _ => None,
        }
    }
    const CARRIED: bool = true;
}

impl Listed for Actor {
    async fn fetch(client: &Client, request: ListRequest) -> Result<Vec<Self>, Failure> {
        Ok(ask!(client, list_actors, request)?.items.into_iter().map(Self::from).collect())
    }
}

impl Listed for Link {
    async fn fetch(client: &Client, request: ListRequest) -> Result<Vec<Self>, Failure> {
        Ok(ask!(client, list_links, request)?.items.into_iter().map(Self::from).collect())
    }
}

impl Listed for Revision {
    async fn fetch(client: &Client, request: ListRequest) -> Result<Vec<Self>, Failure> {
        Ok(ask!(client, list_revisions, request)?.items.into_iter().map(Self::from).collect())
    }
}

async fn list<R: Listed>(args: &GetArgs, client: &Client) -> Result<(), Failure> {
    let request = ListRequest { app: args.app.clone().unwrap_or_default(), stale: args.stale };
    if args.watch {
        return watch::<R>(args, client, request).await;
    }
    let items = R::fetch(client, request).await?;
    let lost = unmatched(&items, &args.names);
    let items = sorted(items.into_iter().filter(|item| is_wanted(item, &args.names)));
    let mut view = View::new(args.output);
    if items.is_empty() && lost.is_none() {
        view.none::<R>(args)?;
    } else if !items.is_empty() {
        view.show(&items)?;
    }
    lost.map_or(Ok(()), |name| Err(not_found::<R>(name)))
}

async fn watch<R: Listed>(args: &GetArgs, client: &Client, request: ListRequest) -> Result<(), Failure> {
    let mut watcher = client.watch(&request.app, R::PLURAL == Host::PLURAL);
    let mut view = View::new(args.output);
    let mut known: BTreeMap<String, R> = BTreeMap::new();
    loop {
        let news = drain(&mut watcher, |seen| match seen {
            Seen::Anew => known.clear(),
            Seen::Again => {}
            Seen::Event(event) => match event.what.as_ref().and_then(R::carried) {
                Some(Change::Is(item)) if is_wanted(&item, &args.names) => {
                    known.insert(item.key(), item);
                }
                Some(Change::Gone(name)) => known.retain(|_, item| !item.is_called(&name)),
                _ => {}
            },
        });
        news.await?;
        if !R::CARRIED {
            let items = R::fetch(client, request.clone()).await?;
            known = items.into_iter().filter(|i| is_wanted(i, &args.names)).map(|i| (i.key(), i)).collect();
        }
        let items: Vec<R> = known.values().cloned().collect();
        if items.is_empty() && view.is_new() {
            view.none::<R>(args)?;
        } else {
            view.update(&items)?;
        }
    }
}

/// Waits for one event, then takes those that come right behind it; after a new beginning, all until the list is
/// complete.
async fn drain(watcher: &mut Watcher, mut each: impl FnMut(Seen)) -> Result<(), Failure> {
    let mut listing = false;
    let mut take = |seen: Seen, listing: &mut bool| {
        match &seen {
            Seen::Anew | Seen::Again => *listing = true,
            Seen::Event(event) if matches!(event.what, Some(What::Synced(_))) => *listing = false,
            Seen::Event(_) => {}
        }
        each(seen);
    };
    take(watcher.next().await?, &mut listing);
    let settled = tokio::time::sleep(SETTLE);
    tokio::pin!(settled);
    loop {
        tokio::select! {
            biased;
            seen = watcher.next() => take(seen?, &mut listing),
            () = &mut settled, if !listing => return Ok(()),
        }
        if settled.is_elapsed() && !listing {
            return Ok(());
        }
    }
}

fn sorted<R: Row>(items: impl Iterator<Item = R>) -> Vec<R> {
    let mut items: Vec<R> = items.collect();
    items.sort_by_cached_key(Row::key);
    items
}

fn is_wanted<R: Row>(item: &R, names: &[String]) -> bool {
    names.is_empty() || names.iter().any(|name| item.is_called(name))
}

/// The first name that was typed and that nothing has.
fn unmatched<'a, R: Row>(items: &[R], names: &'a [String]) -> Option<&'a str> {
    names.iter().map(String::as_str).find(|name| !items.iter().any(|item| item.is_called(name)))
}

fn not_found<R: Row>(name: &str) -> Failure {
    Failure::Refused(format!("no {} called {name:?}: `lattice get {}` lists what there is", singular::<R>(), R::PLURAL))
}

fn singular<R: Row>() -> &'static str {
    R::PLURAL.strip_suffix('s').unwrap_or(R::PLURAL)
}

/// How a list is printed, and what of it was printed before.
struct View {
    format: Format,
    table: Option<Table>,
    /// Key -> cells, as last shown.
    shown: BTreeMap<String, Vec<Cell>>,
    last: Option<String>,
}

impl View {
    fn new(format: Format) -> Self {
        Self { format, table: None, shown: BTreeMap::new(), last: None }
    }

    fn is_new(&self) -> bool {
        self.table.is_none() && self.last.is_none()
    }

    /// The empty list. Scripts get it on stdout; people are told on stderr what to do about it.
    fn none<R: Row>(&mut self, args: &GetArgs) -> Result<(), Failure> {
        match self.format {
            Format::Json if args.watch => self.update::<R>(&[]),
            Format::Json => print::json(&List::<R> { items: Vec::new() }),
            Format::Yaml => print::yaml(&List::<R> { items: Vec::new() }, false),
            Format::Name => Ok(()),
            Format::Table | Format::Wide => {
                let of = args.app.as_ref().map(|app| format!(" of app {app:?}")).unwrap_or_default();
                print::note(format!("no {}{of}; {}", R::PLURAL, R::NONE));
                self.last = Some(String::new());
                Ok(())
            }
        }
    }

    /// The whole list, once.
    fn show<R: Row>(&mut self, items: &[R]) -> Result<(), Failure> {
        match self.format {
            Format::Json => print::json(&List { items: items.to_vec() }),
            Format::Yaml => print::yaml(&List { items: items.to_vec() }, false),
            Format::Name => names(items, &mut self.shown),
            Format::Table | Format::Wide => self.update(items),
        }
    }

    /// What has changed since the last time.
    fn update<R: Row>(&mut self, items: &[R]) -> Result<(), Failure> {
        match self.format {
            Format::Table | Format::Wide => self.rows(items),
            Format::Name => names(items, &mut self.shown),
            Format::Json | Format::Yaml => {
                let list = List { items: items.to_vec() };
                let text = serde_json::to_string(&list).unwrap_or_default();
                if self.last.as_ref() == Some(&text) {
                    return Ok(());
                }
                self.last = Some(text);
                if self.format == Format::Json { print::json_line(&list) } else { print::yaml(&list, true) }
            }
        }
    }

    fn rows<R: Row>(&mut self, items: &[R]) -> Result<(), Failure> {
        let now = now_ms();
        let columns = R::HEAD.len() + if self.format == Format::Wide { R::WIDE.len() } else { 0 };
        let mut news = Vec::new();
        let mut gone = std::mem::take(&mut self.shown);
        for item in items {
            let cells: Vec<Cell> = item.cells(now).into_iter().take(columns).collect();
            if gone.remove(&item.key()).as_ref() != Some(&cells) {
                news.push(cells.clone());
            }
            self.shown.insert(item.key(), cells);
        }
        for (_, mut cells) in gone {
            // The last words of a row: its name and that it is gone, in the column that has its state.
            let state = R::HEAD.iter().position(|name| *name == "STATE").unwrap_or(1);
            cells.truncate(state);
            cells.resize(state, Cell::default());
            cells.push(Cell::tinted("gone", Tint::Dim));
            news.push(cells);
        }
        if news.is_empty() {
            return Ok(());
        }
        let text = match &mut self.table {
            Some(table) => table.more(&news),
            None => {
                let head: Vec<&'static str> = R::HEAD.iter().chain(R::WIDE).copied().take(columns).collect();
                self.table.insert(Table::new(&head, print::color())).render(&news)
            }
        };
        print::raw(text.as_bytes())
    }
}

/// Each name once: an actor on three hosts is one name.
fn names<R: Row>(items: &[R], shown: &mut BTreeMap<String, Vec<Cell>>) -> Result<(), Failure> {
    for item in items {
        if shown.insert(item.name(), Vec::new()).is_none() {
            print::out(print::clean(&item.name()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn app(name: &str) -> App {
        App::from(proto::v1::AppStatus { name: name.into(), ..Default::default() })
    }

    #[test]
    fn names_choose_and_a_name_that_nothing_has_is_found_out() {
        let items = [app("a"), app("b")];
        let names = ["app/b".to_owned(), "c".to_owned()];
        assert_eq!(items.iter().filter(|item| is_wanted(*item, &names)).count(), 1);
        assert_eq!(unmatched(&items, &names), Some("c"));
        assert_eq!(not_found::<App>("c").to_string(), "no app called \"c\": `lattice get apps` lists what there is");
    }

    #[test]
    fn lists_are_ordered_by_key() {
        let names: Vec<String> = sorted([app("b"), app("a")].into_iter()).into_iter().map(|a| a.name).collect();
        assert_eq!(names, ["a", "b"]);
    }
}
