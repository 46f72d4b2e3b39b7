//! `top`: what hosts and actors do now, by the last heartbeats; again and again, or once for scripts.

use crate::args::Connect;
use crate::client::{Client, ask};
use crate::failure::Failure;
use crate::print::rows::bytes;
use crate::print::shape::{Actor, Host};
use crate::print::table::{Cell, Table, Tint};
use crate::print::time::{now_ms, rfc3339};
use crate::{context, duration, print};
use clap::{Args, ValueEnum};
use proto::v1::ListRequest;
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::time::Duration;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lattice top                              hosts and actors, the busiest first
  lattice top hello                        one app
  lattice top --once -o json | jq '[.actors[] | select(.p99_us > 100000)]'

Rates and times are those of each host's last heartbeat, two seconds. CPU is in
percent of one core. An actor on several hosts is one row: rates are added, P50
and P99 are those of the host where they are worst. Times are from being asked,
waiting included, to the answer or its head.
JSON is one object: time, hosts, actors (one for each host it runs on), with the
fields of `lattice get hosts` and `lattice get actors`; without --once a line
each time.")]
pub(crate) struct TopArgs {
    /// Only actors of this app
    #[arg(value_name = "APP", value_parser = crate::args::app)]
    app: Option<String>,
    /// Print it once and end
    #[arg(long)]
    once: bool,
    /// How often to look
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = duration::parse)]
    every: Duration,
    /// Rows of each table
    #[arg(short = 'n', long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..))]
    rows: u16,
    /// What it looks like
    #[arg(short, long, value_name = "FORM", value_enum, default_value_t = TopFormat::Table)]
    output: TopFormat,
    #[command(flatten)]
    pub(crate) connect: Connect,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum TopFormat {
    Table,
    Json,
}

/// What it was at one time.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Moment {
    /// RFC 3339, UTC.
    time: String,
    hosts: Vec<Host>,
    actors: Vec<Actor>,
}

/// Faster than this nothing changes.
const EVERY_MIN: Duration = Duration::from_millis(200);
/// To the upper left corner, and nothing below.
const CLEAR: &str = "\x1b[H\x1b[2J";

pub(crate) async fn top(args: &TopArgs, connect: &Connect) -> Result<(), Failure> {
    let client = Client::connect(context::endpoint(connect)?).await?;
    let redraws = !args.once && args.output == TopFormat::Table && std::io::stdout().is_terminal();
    loop {
        let moment = look(args, &client).await?;
        match args.output {
            TopFormat::Json if args.once => print::json(&moment)?,
            TopFormat::Json => print::json_line(&moment)?,
            TopFormat::Table => {
                let (clear, end) = match (redraws, args.once) {
                    (true, _) => (CLEAR, ""),
                    (false, true) => ("", ""),
                    (false, false) => ("", "\n"),
                };
                let text = text(&moment, usize::from(args.rows), print::color());
                print::raw(format!("{clear}{text}{end}").as_bytes())?;
            }
        }
        if args.once {
            return Ok(());
        }
        tokio::time::sleep(args.every.max(EVERY_MIN)).await;
    }
}

async fn look(args: &TopArgs, client: &Client) -> Result<Moment, Failure> {
    // From whichever scheduler is asked: all of them hear the heartbeats, also while nobody leads.
    let of_app = ListRequest { app: args.app.clone().unwrap_or_default(), stale: true };
    let of_all = ListRequest { app: String::new(), stale: true };
    let mut hosts: Vec<Host> = ask!(client, list_hosts, of_all)?.items.into_iter().map(Host::from).collect();
    let mut actors: Vec<Actor> = ask!(client, list_actors, of_app)?.items.into_iter().map(Actor::from).collect();
    if let Some(app) = &args.app
        && actors.is_empty()
    {
        return Err(Failure::Refused(format!("no app called {app:?}: `lattice get apps` lists what there is")));
    }
    hosts.sort_by(|a, b| b.requests_per_s.total_cmp(&a.requests_per_s).then_with(|| a.name.cmp(&b.name)));
    actors.sort_by(|a, b| {
        let same = || (&a.app, &a.actor, &a.host_name).cmp(&(&b.app, &b.actor, &b.host_name));
        b.requests_per_s.total_cmp(&a.requests_per_s).then_with(same)
    });
    Ok(Moment { time: rfc3339(now_ms()), hosts, actors })
}

/// One actor on all of its hosts.
#[derive(Debug, Default)]
struct Row {
    hosts: usize,
    running: u64,
    replicas: u64,
    requests_per_s: f64,
    errors_per_s: f64,
    in_flight: u64,
    queued: u64,
    p50_us: u64,
    p99_us: u64,
}

fn text(moment: &Moment, rows_max: usize, color: bool) -> String {
    let rows = rows(&moment.actors);
    let total = |of: fn(&Row) -> f64| rate(rows.iter().map(|(_, row)| of(row)).sum());
    let mut out = format!(
        "{}   {} requests/s, {} errors/s, {} in flight, {} queued\n\n",
        moment.time,
        total(|r| r.requests_per_s),
        total(|r| r.errors_per_s),
        rows.iter().map(|(_, r)| r.in_flight).sum::<u64>(),
        rows.iter().map(|(_, r)| r.queued).sum::<u64>(),
    );
    let head = ["HOST", "STATE", "CPU", "MEMORY", "REPLICAS", "REQ/S", "IN-FLIGHT", "QUEUED"];
    let hosts: Vec<Vec<Cell>> = moment.hosts.iter().take(rows_max).map(host_cells).collect();
    out += &Table::new(&head, color).render(&hosts);
    out += &more(moment.hosts.len(), rows_max);
    if rows.is_empty() {
        return out;
    }
    let head = ["APP", "ACTOR", "HOSTS", "RUNNING", "REQ/S", "ERR/S", "IN-FLIGHT", "QUEUED", "P50", "P99"];
    let cells: Vec<Vec<Cell>> = rows.iter().take(rows_max).map(|((app, actor), row)| cells(app, actor, row)).collect();
    out.push('\n');
    out += &Table::new(&head, color).render(&cells);
    out += &more(rows.len(), rows_max);
    out
}

fn more(len: usize, rows_max: usize) -> String {
    if len > rows_max { format!("… and {} more: -n N shows them\n", len - rows_max) } else { String::new() }
}

fn rows(actors: &[Actor]) -> Vec<((&str, &str), Row)> {
    let mut rows: BTreeMap<(&str, &str), Row> = BTreeMap::new();
    for actor in actors.iter().filter(|actor| actor.kind == "actor") {
        let row = rows.entry((&actor.app, &actor.actor)).or_default();
        row.hosts += usize::from(!actor.host.is_empty());
        row.running += u64::from(actor.running);
        row.replicas += u64::from(actor.replicas);
        row.requests_per_s += actor.requests_per_s;
        row.errors_per_s += actor.errors_per_s;
        row.in_flight += u64::from(actor.in_flight);
        row.queued += u64::from(actor.queued);
        row.p50_us = row.p50_us.max(actor.p50_us);
        row.p99_us = row.p99_us.max(actor.p99_us);
    }
    let mut rows: Vec<_> = rows.into_iter().collect();
    rows.sort_by(|a, b| b.1.requests_per_s.total_cmp(&a.1.requests_per_s).then(b.1.in_flight.cmp(&a.1.in_flight)));
    rows
}

fn host_cells(host: &Host) -> Vec<Cell> {
    vec![
        Cell::tinted(&host.name, Tint::Bold),
        Cell::state(&host.state),
        Cell::new(format!("{}%", host.cpu_millis / 10)),
        Cell::new(bytes(host.resident_bytes)),
        Cell::new(host.running.to_string()),
        Cell::new(rate(host.requests_per_s)),
        Cell::new(host.in_flight.to_string()),
        Cell::new(host.queued.to_string()),
    ]
}

fn cells(app: &str, actor: &str, row: &Row) -> Vec<Cell> {
    let errors = if row.errors_per_s > 0.0 { Tint::Bad } else { Tint::Plain };
    vec![
        Cell::tinted(app, Tint::Bold),
        Cell::tinted(actor, Tint::Bold),
        Cell::new(row.hosts.to_string()),
        Cell::new(format!("{}/{}", row.running, row.replicas)),
        Cell::new(rate(row.requests_per_s)),
        Cell::tinted(rate(row.errors_per_s), errors),
        Cell::new(row.in_flight.to_string()),
        Cell::tinted(row.queued.to_string(), if row.queued > 0 { Tint::Warn } else { Tint::Plain }),
        Cell::new(time(row.p50_us)),
        Cell::new(time(row.p99_us)),
    ]
}

/// Two or three digits that mean something.
pub(crate) fn rate(per_s: f64) -> String {
    match per_s {
        n if n <= 0.0 => "0".to_owned(),
        n if n < 9.95 => format!("{n:.1}"),
        n => format!("{n:.0}"),
    }
}

pub(crate) fn time(us: u64) -> String {
    match us {
        0 => "-".to_owned(),
        1..1_000 => format!("{us} us"),
        1_000..10_000 => format!("{:.1} ms", us as f64 / 1e3),
        10_000..1_000_000 => format!("{} ms", us / 1_000),
        _ => format!("{:.1} s", us as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::v1::{ActorStatus, HostStatus};

    fn actor(actor: &str, host: &str, requests_per_s: f64, p99_us: u64) -> Actor {
        Actor::from(ActorStatus {
            app: "shop".into(),
            actor: actor.into(),
            host: host.into(),
            kind: "actor".into(),
            replicas: 2,
            running: 1,
            requests_per_s,
            in_flight: 1,
            p50_us: p99_us / 2,
            p99_us,
            ..ActorStatus::default()
        })
    }

    #[test]
    fn an_actor_on_two_hosts_is_one_row_and_the_busiest_come_first() {
        let store = Actor { kind: "provider".into(), ..actor("kv", "1", 0.0, 0) };
        let actors = vec![
            actor("cart", "1", 3.2, 900),
            actor("web", "1", 100.0, 12_345),
            actor("web", "2", 20.4, 2_000_000),
            store,
        ];
        let host = HostStatus {
            name: "paris-1".into(),
            state: "ready".into(),
            running: 4,
            cpu_millis: 823,
            resident_bytes: 41 * 1024 * 1024,
            requests_per_s: 120.4,
            in_flight: 2,
            ..HostStatus::default()
        };
        let moment = Moment { time: "T".into(), hosts: vec![host.into()], actors };
        assert_eq!(
            text(&moment, 20, false),
            "T   124 requests/s, 0 errors/s, 3 in flight, 0 queued\n\n\
             HOST      STATE   CPU   MEMORY   REPLICAS   REQ/S   IN-FLIGHT   QUEUED\n\
             paris-1   ready   82%   41 MiB   4          120     2           0\n\n\
             APP    ACTOR   HOSTS   RUNNING   REQ/S   ERR/S   IN-FLIGHT   QUEUED   P50      P99\n\
             shop   web     2       2/4       120     0       2           0        1.0 s    2.0 s\n\
             shop   cart    1       1/2       3.2     0       1           0        450 us   900 us\n"
        );
        let cut = text(&moment, 1, false);
        assert!(cut.ends_with("… and 1 more: -n N shows them\n"), "{cut}");
        let empty = Moment { time: "T".into(), hosts: Vec::new(), actors: Vec::new() };
        assert!(text(&empty, 5, false).starts_with("T   0 requests/s"));
    }

    #[test]
    fn times_and_rates_are_short() {
        for (us, want) in [(0, "-"), (999, "999 us"), (1_000, "1.0 ms"), (12_900, "12 ms"), (2_500_000, "2.5 s")] {
            assert_eq!(time(us), want);
        }
        for (n, want) in [(0.0, "0"), (0.04, "0.0"), (9.94, "9.9"), (9.96, "10"), (12_345.6, "12346")] {
            assert_eq!(rate(n), want);
        }
    }
}
