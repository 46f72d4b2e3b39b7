//! `schedulers`: who they are, and who joins, votes, leads, leaves. Any of them may be asked.

use crate::args::{Connect, Format, TextFormat};
use crate::client::{Client, ask, request_id};
use crate::failure::Failure;
use crate::print::rows::Row;
use crate::print::shape::{List, Scheduler};
use crate::print::table::{Cell, Table};
use crate::print::time::now_ms;
use crate::{context, duration, print};
use clap::{Args, Subcommand};
use proto::time::rfc3339;
use proto::v1;
use serde::Serialize;
use std::time::Duration;

/// Agreement among schedulers, an election in between included.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lattice schedulers list                  who they are, who leads, who is behind
  lattice schedulers add --peer-listen 10.0.0.6:7401
                                           prints a join token, and what to type on the new machine
  lattice schedulers token                 the token alone, for scripts
  lattice schedulers remove 2              it died: remove it, then join a new one
  lattice schedulers transfer-leader       let another one lead, before an upgrade, say

Who joins learns first and votes once it has caught up and the number of voters
stays odd: 1, 3, 5 or 7.")]
pub(crate) struct SchedulersArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// List the schedulers: role, state, log index
    List(ListArgs),
    /// Print a join token, and the command that starts the new scheduler on its machine
    Add(AddArgs),
    /// Print a join token alone
    Token(TokenArgs),
    /// Let a scheduler vote, whether or not the number of voters is then odd
    Promote(IdArgs),
    /// Remove a scheduler for good: its id is never used again
    Remove(IdArgs),
    /// Let another scheduler lead
    TransferLeader(TransferArgs),
}

#[derive(Debug, Args)]
struct ListArgs {
    /// What it looks like
    #[arg(short, long, value_name = "FORM", value_enum, default_value_t = Format::Table)]
    output: Format,
    #[command(flatten)]
    connect: Connect,
}

#[derive(Debug, Args)]
struct AddArgs {
    /// Where the new scheduler listens for the others, as they reach it
    #[arg(long, value_name = "IP:PORT", default_value = "NEW-IP:7401", value_parser = one_word)]
    peer_listen: String,
    /// Let it learn only, until it is promoted
    #[arg(long)]
    standby: bool,
    /// How long the token is good: 10m, 1h, at most 168h (a week)
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = duration::parse_week)]
    life: Duration,
    /// What it looks like
    #[arg(short, long, value_name = "FORM", value_enum, default_value_t = TextFormat::Text)]
    output: TextFormat,
    #[command(flatten)]
    connect: Connect,
}

/// What to do with a token.
#[derive(Debug, PartialEq, Serialize)]
struct Added {
    token: String,
    /// RFC 3339, UTC.
    expires: String,
    /// What to type on the new machine.
    command: String,
}

#[derive(Debug, Args)]
struct TokenArgs {
    /// How long it is good: 10m, 1h, at most 168h (a week)
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = duration::parse_week)]
    life: Duration,
    #[command(flatten)]
    connect: Connect,
}

#[derive(Debug, Args)]
struct IdArgs {
    /// Id of the scheduler
    #[arg(value_parser = id)]
    id: u64,
    #[command(flatten)]
    connect: Connect,
}

#[derive(Debug, Args)]
struct TransferArgs {
    /// Id of the one that shall lead [default: whichever has most of the log]
    #[arg(long, value_name = "ID", value_parser = id)]
    to: Option<u64>,
    #[command(flatten)]
    connect: Connect,
}

impl SchedulersArgs {
    pub(crate) fn connect(&self) -> &Connect {
        match &self.what {
            What::List(args) => &args.connect,
            What::Add(args) => &args.connect,
            What::Token(args) => &args.connect,
            What::Promote(args) | What::Remove(args) => &args.connect,
            What::TransferLeader(args) => &args.connect,
        }
    }
}

/// `2` or `scheduler/2`, as `list -o name` prints it.
fn id(text: &str) -> Result<u64, String> {
    let number = text.strip_prefix("scheduler/").unwrap_or(text);
    number
        .parse()
        .ok()
        .filter(|id| *id > 0)
        .ok_or_else(|| "write a scheduler's id, a number from 1; `lattice schedulers list` shows them".to_owned())
}

pub(crate) async fn schedulers(args: &SchedulersArgs, connect: &Connect) -> Result<(), Failure> {
    let client = Client::connect(context::endpoint(connect)?).await?;
    match &args.what {
        What::List(args) => list(args, &client).await,
        What::Add(args) => add(args, &client).await,
        What::Token(args) => token(args, &client).await,
        What::Promote(args) => {
            let request = v1::PromoteSchedulerRequest { id: args.id, request_id: request_id() };
            let answer = ask!(client, CHANGE_TIMEOUT, promote_scheduler, request)?;
            print::out(format!("scheduler/{} {}", args.id, answer.change))
        }
        What::Remove(args) => {
            let request = v1::RemoveSchedulerRequest { id: args.id, request_id: request_id() };
            let answer = ask!(client, CHANGE_TIMEOUT, remove_scheduler, request)?;
            print::out(format!("scheduler/{} {}", args.id, answer.change))
        }
        What::TransferLeader(args) => {
            let request = v1::TransferLeaderRequest { to: args.to.unwrap_or_default() };
            let answer = ask!(client, CHANGE_TIMEOUT, transfer_leader, request)?;
            print::out(format!("scheduler/{} leads", answer.leader))
        }
    }
}

async fn new_token(life: Duration, client: &Client) -> Result<v1::JoinToken, Failure> {
    let life_ms = u64::try_from(life.as_millis()).unwrap_or(u64::MAX);
    if life_ms == 0 {
        return Err(Failure::Usage("--life 0 is no time at all: give 10m or 1h, say".into()));
    }
    ask!(client, create_join_token, v1::CreateJoinTokenRequest { life_ms })
}

fn keep_secret(life: Duration) {
    print::note(format!(
        "good for {}; whoever has it can join and then decides with the others: keep it secret",
        duration::text(life)
    ));
}

async fn token(args: &TokenArgs, client: &Client) -> Result<(), Failure> {
    let token = new_token(args.life, client).await?;
    print::out(print::clean(&token.token))?;
    keep_secret(args.life);
    Ok(())
}

async fn add(args: &AddArgs, client: &Client) -> Result<(), Failure> {
    let token = new_token(args.life, client).await?;
    let status = ask!(client, status, v1::StatusRequest {})?;
    let list = ask!(client, list_schedulers, v1::ListSchedulersRequest {})?;
    // By the leader, or by any that is reached: whoever is asked takes the newcomer in.
    let mut known: Vec<&v1::SchedulerStatus> = list.items.iter().filter(|item| !item.peer.is_empty()).collect();
    known.sort_by_key(|item| (item.role != "leader", item.state != "ready", item.id));
    let join = known.first().map_or("SCHEDULER:7401", |item| item.peer.as_str());
    let command = command(args, &status, join, &token.token);
    let added = Added { token: print::clean(&token.token), expires: rfc3339(token.expires_ms), command };
    match args.output {
        TextFormat::Json => return print::json(&added),
        TextFormat::Yaml => return print::yaml(&added, false),
        TextFormat::Text => {}
    }
    print::out(&added.token)?;
    keep_secret(args.life);
    print::note("on the new machine, with the --nats-… options that the others have:");
    print::out(format!("\n  {}", added.command))?;
    if [join].into_iter().chain(status.bus_urls.iter().map(String::as_str)).any(is_loopback) {
        print::note("127.0.0.1 is each machine by itself: write addresses that the new machine reaches");
    }
    Ok(())
}

/// All that starts a scheduler which joins.
fn command(args: &AddArgs, status: &v1::StatusResponse, join: &str, token: &str) -> String {
    let mut words = vec!["lattice scheduler".to_owned()];
    if status.lattice != "default" {
        words.push(format!("--lattice {}", status.lattice));
    }
    words.push(match status.bus_urls.as_slice() {
        [] => "--nats URL".to_owned(),
        urls => format!("--nats {}", urls.join(",")),
    });
    words.push(format!("--peer-listen {} --join {join} --token {token}", args.peer_listen));
    if args.standby {
        words.push("--standby".to_owned());
    }
    print::clean(&words.join(" "))
}

fn is_loopback(address: &str) -> bool {
    let host = address.split_once("://").map_or(address, |(_, rest)| rest);
    ["127.", "localhost:", "[::1]"].iter().any(|begin| host.starts_with(begin))
}

/// Goes into a command line as it is.
fn one_word(text: &str) -> Result<String, String> {
    let sound = |c: char| c.is_ascii_alphanumeric() || ".:-_[]".contains(c);
    if !text.is_empty() && text.chars().all(sound) {
        Ok(text.to_owned())
    } else {
        Err("write IP:PORT, as 10.0.0.6:7401".to_owned())
    }
}

async fn list(args: &ListArgs, client: &Client) -> Result<(), Failure> {
    let list = ask!(client, list_schedulers, v1::ListSchedulersRequest {})?;
    let items: Vec<Scheduler> = list.items.into_iter().map(Scheduler::from).collect();
    match args.output {
        Format::Json => print::json(&List { items }),
        Format::Yaml => print::yaml(&List { items }, false),
        Format::Name => items.iter().try_for_each(|item| print::out(item.name())),
        Format::Table | Format::Wide => {
            let rows: Vec<Vec<Cell>> = items.iter().map(|item| item.cells(now_ms())).collect();
            print::raw(Table::new(Scheduler::HEAD, print::color()).render(&rows).as_bytes())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_taken_as_list_prints_them() {
        assert_eq!((id("2"), id("scheduler/12")), (Ok(2), Ok(12)));
        for wrong in ["", "0", "-1", "two", "host/2", "1.5"] {
            assert!(id(wrong).unwrap_err().contains("lattice schedulers list"), "{wrong}");
        }
    }

    #[test]
    fn what_to_type_on_the_new_machine_is_whole() {
        let status = v1::StatusResponse {
            lattice: "default".into(),
            bus_urls: vec!["nats://10.0.0.5:4222".into(), "nats://10.0.0.6:4222".into()],
            ..Default::default()
        };
        let (connect, output) = (Connect::default(), TextFormat::Text);
        let life = Duration::from_secs(1);
        let args = AddArgs { peer_listen: "10.0.0.7:7401".into(), standby: false, life, output, connect };
        assert_eq!(
            command(&args, &status, "10.0.0.5:7401", "T"),
            "lattice scheduler --nats nats://10.0.0.5:4222,nats://10.0.0.6:4222 --peer-listen 10.0.0.7:7401 \
             --join 10.0.0.5:7401 --token T"
        );
        let args = AddArgs { standby: true, ..args };
        let status = v1::StatusResponse { lattice: "plant".into(), ..Default::default() };
        let text = command(&args, &status, "j:1", "T");
        assert!(text.starts_with("lattice scheduler --lattice plant --nats URL "), "{text}");
        assert!(text.ends_with(" --standby"), "{text}");
        assert!(is_loopback("nats://127.0.0.1:4222") && is_loopback("localhost:1") && !is_loopback("tls://10.0.0.1:1"));
        assert!(one_word("h:1").is_ok() && one_word("h; rm").is_err() && one_word("").is_err());
    }
}
