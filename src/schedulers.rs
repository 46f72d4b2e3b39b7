//! `schedulers`: who they are, and who joins, votes, leads, leaves. Any of them may be asked.

use crate::args::{Connect, Format};
use crate::client::{Client, ask, request_id};
use crate::failure::Failure;
use crate::print::rows::Row;
use crate::print::shape::{List, Scheduler};
use crate::print::table::{Cell, Table};
use crate::print::time::now_ms;
use crate::{context, duration, print};
use clap::{Args, Subcommand};
use proto::v1;
use std::time::Duration;

/// Agreement among schedulers, an election in between included.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lattice schedulers list                  who they are, who leads, who is behind
  lattice schedulers token                 prints what a new one needs, good for an hour
  lattice scheduler --nats URL --peer-listen 10.0.0.6:7401 \\
      --join 10.0.0.5:7401 --token TOKEN   on the new machine
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
    /// Print a join token
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
struct TokenArgs {
    /// How long it is good: 10m, 1h, at most 24h
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = duration::parse)]
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

async fn token(args: &TokenArgs, client: &Client) -> Result<(), Failure> {
    let life_ms = u64::try_from(args.life.as_millis()).unwrap_or(u64::MAX);
    if life_ms == 0 {
        return Err(Failure::Usage("--life 0 is no time at all: give 10m or 1h, say".into()));
    }
    let token = ask!(client, create_join_token, v1::CreateJoinTokenRequest { life_ms })?;
    print::out(print::clean(&token.token))?;
    print::note(format!(
        "good for {}; whoever has it can join and then decides with the others: keep it secret",
        duration::text(args.life)
    ));
    Ok(())
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
}
