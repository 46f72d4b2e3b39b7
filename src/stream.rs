//! `logs` and `events`: lines as they come.

use crate::args::{self, Connect};
use crate::client::Client;
use crate::failure::Failure;
use crate::print::shape::{Event, List, LogLine};
use crate::print::table::{Cell, Table, Tint};
use crate::{context, print};
use clap::{Args, ValueEnum};
use proto::v1::{self, EventsRequest, LogsRequest};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::Duration;
use tonic::{Code, Status};

/// How long `logs -f` goes on trying when its server has gone.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(500);
/// Lines that one answer may hold.
const LINES_MAX: u32 = 10_000;
const SHOWN_MAX: usize = 4_096;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lattice logs hello                       the last 100 lines of every actor of the app
  lattice logs hello/web -f                one actor; go on with what comes
  lattice logs hello -o json | jq -r 'select(.stream == \"stderr\").text'
  lattice logs hello --request 4bf92f3577b34da6a3ce929d0e0e4736

What an actor prints (stdout, stderr, wasi:logging) is kept by the host it runs
on, a bounded number of lines. -o raw is the text alone; JSON is one object a
line: time, app, actor, host, instance, stream, text, request_id (as the ingress
took it from x-request-id, or made it; empty for calls that no request caused).")]
pub(crate) struct LogsArgs {
    /// App, or one of its actors
    #[arg(value_name = "APP[/ACTOR]", value_parser = app_maybe_actor)]
    of: (String, String),
    /// Go on, and show what comes
    #[arg(short, long)]
    follow: bool,
    /// Only what was printed for the request of this id
    #[arg(long, value_name = "ID")]
    request: Option<String>,
    /// Lines to begin with, the latest
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=i64::from(LINES_MAX)))]
    lines: u32,
    /// What it looks like
    #[arg(short, long, value_name = "FORM", value_enum, default_value_t = LogFormat::Text)]
    output: LogFormat,
    #[command(flatten)]
    pub(crate) connect: Connect,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    Text,
    Raw,
    Json,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lattice events                           the latest, oldest first
  lattice events -w --app hello            go on, only what concerns the app
  lattice events -o json

JSON is {\"items\": [...]}, with -w one item a line: id, time, kind, subject, message.")]
pub(crate) struct EventsArgs {
    /// Go on, and show what comes
    #[arg(short, long)]
    watch: bool,
    /// Only what concerns this app
    #[arg(long, value_name = "APP", value_parser = args::app)]
    app: Option<String>,
    /// What it looks like
    #[arg(short, long, value_name = "FORM", value_enum, default_value_t = EventFormat::Table)]
    output: EventFormat,
    #[command(flatten)]
    pub(crate) connect: Connect,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum EventFormat {
    Table,
    Json,
    Yaml,
}

/// `APP` or `APP/ACTOR`, also as `get -o name` prints them. No actor is "".
fn app_maybe_actor(text: &str) -> Result<(String, String), String> {
    let is_app = !text.contains('/') || text.strip_prefix("app/").is_some_and(|rest| !rest.contains('/'));
    if is_app { Ok((args::app(text)?, String::new())) } else { args::app_and_actor(text) }
}

pub(crate) async fn logs(args: &LogsArgs, connect: &Connect) -> Result<(), Failure> {
    let client = Client::connect(context::endpoint(connect)?).await?;
    let (app, actor) = args.of.clone();
    let request = LogsRequest { app, actor, follow: args.follow, lines: args.lines };
    let color = print::color();
    let (mut last, mut printed) = (Last::default(), false);
    let mut failing_since: Option<tokio::time::Instant> = None;
    loop {
        // After a break the server begins again with its latest lines: those that came before are known.
        let mut known = last.clone();
        let broken = match client
            .retry(PATIENCE, |mut api| {
                let request = request.clone();
                async move { api.logs(request).await }
            })
            .await
        {
            Ok(mut stream) => loop {
                match stream.message().await {
                    Ok(Some(batch)) => {
                        failing_since = None;
                        for line in batch.lines {
                            if known.take(&line) {
                                continue;
                            }
                            last.add(&line);
                            if args.request.as_ref().is_some_and(|id| *id != line.request_id) {
                                continue;
                            }
                            printed = true;
                            print_line(line.into(), args.output, color)?;
                        }
                    }
                    Ok(None) if args.follow => {
                        let ended = Status::unavailable("the log stream ended");
                        let failure = client.failure(&ended);
                        client.lost(&ended);
                        break failure;
                    }
                    Ok(None) => {
                        if !printed {
                            print::note("nothing has been printed yet");
                        }
                        return Ok(());
                    }
                    Err(status) if args.follow && may_pass(status.code()) => {
                        let failure = client.failure(&status);
                        client.lost(&status);
                        break failure;
                    }
                    Err(status) => return Err(client.failure(&status)),
                }
            },
            Err(failure) if failing_since.is_none() => return Err(failure),
            Err(failure) => failure,
        };
        let since = *failing_since.get_or_insert_with(tokio::time::Instant::now);
        if since.elapsed() > PATIENCE {
            return Err(broken);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// The latest lines that came: as many as one answer may hold. Hosts have clocks of their own, and a millisecond has
/// many lines, so a line is known by all that it says; what is said twice comes twice.
#[derive(Debug, Default, Clone)]
struct Last {
    counts: HashMap<u64, u32>,
    order: VecDeque<u64>,
}

impl Last {
    fn of(line: &v1::LogLine) -> u64 {
        let mut hasher = DefaultHasher::new();
        (line.time_ms, line.instance, &line.actor, &line.host, &line.stream, &line.text, &line.request_id)
            .hash(&mut hasher);
        hasher.finish()
    }

    fn add(&mut self, line: &v1::LogLine) {
        let line = Self::of(line);
        *self.counts.entry(line).or_default() += 1;
        self.order.push_back(line);
        if self.order.len() > LINES_MAX as usize
            && let Some(first) = self.order.pop_front()
        {
            self.forget(first);
        }
    }

    /// Whether it is one of them, which it then is no more.
    fn take(&mut self, line: &v1::LogLine) -> bool {
        self.forget(Self::of(line))
    }

    fn forget(&mut self, line: u64) -> bool {
        let Some(count) = self.counts.get_mut(&line) else { return false };
        *count -= 1;
        if *count == 0 {
            self.counts.remove(&line);
        }
        true
    }
}

fn may_pass(code: Code) -> bool {
    matches!(code, Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled)
}

fn print_line(line: LogLine, form: LogFormat, color: bool) -> Result<(), Failure> {
    match form {
        LogFormat::Json => print::json_line(&line),
        LogFormat::Raw => print::out(print::clean(&line.text)),
        LogFormat::Text => print::out(log_text(&line, color)),
    }
}

fn log_text(line: &LogLine, color: bool) -> String {
    let tint = match line.stream.as_str() {
        "stderr" | "error" | "critical" => Tint::Bad,
        "warn" => Tint::Warn,
        _ => Tint::Plain,
    };
    let paint = |tint: Tint, text: &str| if color { tint.paint(text) } else { text.to_owned() };
    let mut head = format!("{} {}@{}#{} {}", line.time, line.actor, line.host, line.instance, line.stream);
    if !line.request_id.is_empty() {
        head.push_str(&format!(" {}", line.request_id));
    }
    format!("{} {}", paint(Tint::Dim, &print::clean(&head)), paint(tint, &print::clean(&line.text)))
}

pub(crate) async fn events(args: &EventsArgs, connect: &Connect) -> Result<(), Failure> {
    let client = Client::connect(context::endpoint(connect)?).await?;
    let request = EventsRequest { watch: args.watch, app: args.app.clone().unwrap_or_default() };
    let open = |limit| {
        client.retry(limit, |mut api| {
            let request = request.clone();
            async move { api.events(request).await }
        })
    };
    let mut stream = open(crate::client::REQUEST_TIMEOUT).await?;
    let mut table = EventTable::default();
    let mut all = Vec::new();
    let mut shown = Shown::default();
    loop {
        let broken = match stream.message().await {
            Ok(Some(event)) if args.watch && !shown.is_new(&event.id) => continue,
            Ok(Some(event)) => Ok(Event::from(event)),
            Ok(None) if args.watch => Err(Status::unavailable("the server ended the watch")),
            Ok(None) => break,
            Err(status) if args.watch && may_pass(status.code()) => Err(status),
            Err(status) => return Err(client.failure(&status)),
        };
        let event = match broken {
            Ok(event) => event,
            Err(status) => {
                // Whoever is asked now tells its latest once more: what was shown of them is left out.
                client.lost(&status);
                tokio::time::sleep(PAUSE).await;
                stream = open(PATIENCE).await?;
                continue;
            }
        };
        match (args.output, args.watch) {
            (EventFormat::Json, true) => print::json_line(&event)?,
            (EventFormat::Yaml, true) => print::yaml(&event, true)?,
            (EventFormat::Table, true) => table.print(&[event])?,
            (_, false) => all.push(event),
        }
    }
    match args.output {
        EventFormat::Json => print::json(&List { items: all }),
        EventFormat::Yaml => print::yaml(&List { items: all }, false),
        EventFormat::Table if all.is_empty() => {
            print::note("no events; they come with the first `lattice apply FILE`");
            Ok(())
        }
        EventFormat::Table => table.print(&all),
    }
}

/// Ids of the latest events that were shown: more than a scheduler remembers.
#[derive(Default)]
struct Shown {
    ids: BTreeSet<String>,
    order: VecDeque<String>,
}

impl Shown {
    fn is_new(&mut self, id: &str) -> bool {
        if !self.ids.insert(id.to_owned()) {
            return false;
        }
        self.order.push_back(id.to_owned());
        if self.order.len() > SHOWN_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
        true
    }
}

#[derive(Default)]
struct EventTable {
    table: Option<Table>,
}

impl EventTable {
    fn print(&mut self, events: &[Event]) -> Result<(), Failure> {
        let rows: Vec<Vec<Cell>> = events
            .iter()
            .map(|event| {
                vec![
                    Cell::tinted(&event.time, Tint::Dim),
                    Cell::new(&event.kind),
                    Cell::tinted(&event.subject, Tint::Bold),
                    Cell::new(&event.message),
                ]
            })
            .collect();
        let text = match &mut self.table {
            Some(table) => table.more(&rows),
            None => {
                let head = ["TIME", "KIND", "SUBJECT", "MESSAGE"];
                self.table.insert(Table::new(&head, print::color())).render(&rows)
            }
        };
        print::raw(text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_are_of_an_app_or_of_one_actor() {
        assert_eq!(app_maybe_actor("hello"), Ok(("hello".into(), String::new())));
        assert_eq!(app_maybe_actor("app/hello"), Ok(("hello".into(), String::new())));
        assert_eq!(app_maybe_actor("hello/web"), Ok(("hello".into(), "web".into())));
        assert_eq!(app_maybe_actor("actor/hello/web"), Ok(("hello".into(), "web".into())));
        assert!(app_maybe_actor("a/b/c/d").is_err());
        assert!(app_maybe_actor("").is_err());
    }

    #[test]
    fn an_event_is_shown_once() {
        let mut shown = Shown::default();
        assert!(shown.is_new("a") && shown.is_new("b") && !shown.is_new("a"));
        for n in 0..SHOWN_MAX {
            assert!(shown.is_new(&n.to_string()));
        }
        assert!(shown.is_new("a"), "only the latest are remembered");
        assert_eq!(shown.ids.len(), SHOWN_MAX);
    }

    #[test]
    fn after_a_break_each_line_comes_once() {
        let line = |time_ms, text: &str| v1::LogLine { time_ms, text: text.into(), ..v1::LogLine::default() };
        let mut last = Last::default();
        for shown in [line(5, "a"), line(5, "b"), line(5, "b"), line(4, "late")] {
            last.add(&shown);
        }
        // The server tells them again, and what came in the same millisecond, or was said once more.
        let mut known = last.clone();
        let told =
            [line(5, "a"), line(5, "b"), line(5, "b"), line(5, "b"), line(4, "late"), line(5, "c"), line(3, "x")];
        let new: Vec<_> = told.iter().filter(|line| !known.take(line)).map(|line| line.text.as_str()).collect();
        assert_eq!(new, ["b", "c", "x"]);
        for n in 0..u64::from(LINES_MAX) {
            last.add(&line(6 + n, "more"));
        }
        assert!(!last.take(&line(5, "a")) && last.take(&line(6, "more")) && last.counts.len() < LINES_MAX as usize);
    }

    #[test]
    fn a_line_can_not_drive_the_terminal() {
        let line = LogLine {
            time: "T".into(),
            app: "a".into(),
            actor: "web".into(),
            host: "h".into(),
            instance: 7,
            stream: "stdout".into(),
            text: "\x1b]0;x\x07hi".into(),
            request_id: String::new(),
        };
        assert_eq!(log_text(&line, false), "T web@h#7 stdout \u{fffd}]0;x\u{fffd}hi");
        let line = LogLine { request_id: "r-1".into(), text: "hi".into(), ..line };
        assert_eq!(log_text(&line, false), "T web@h#7 stdout r-1 hi");
    }
}
