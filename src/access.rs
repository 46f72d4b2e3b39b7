//! `access`: tokens of the API. A token is made here and shown once; the lattice keeps its hash.

use crate::args::{self, Connect, Format};
use crate::client::{Client, ask, request_id};
use crate::failure::Failure;
use crate::print::shape::{Access, List};
use crate::print::table::Table;
use crate::print::time::now_ms;
use crate::{context, print};
use clap::{Args, Subcommand, ValueEnum};
use proto::v1;
use sha2::{Digest, Sha256};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lattice access add ci                    prints a token that may look
  lattice access add ops --role admin      one that may do all
  lattice access list
  lattice access remove ci                 it is refused from then on

An API beyond loopback, or one started with --require-token, demands a token with
each request: from the context file (token: TEXT), LATTICE_TOKEN or --token-file.
The first one is in the data folder of each scheduler, api/admin-token.")]
pub(crate) struct AccessArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Make a token and print it
    Add(AddArgs),
    /// List the tokens: name, role, age
    List(ListArgs),
    /// Remove a token
    Remove(RemoveArgs),
}

#[derive(Debug, Args)]
struct AddArgs {
    /// What to call it
    #[arg(value_parser = args::name)]
    name: String,
    /// What it may do
    #[arg(long, value_enum, default_value_t = Role::Viewer)]
    role: Role,
    #[command(flatten)]
    connect: Connect,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Role {
    /// Look: get, describe, logs, events, status
    Viewer,
    /// All there is
    Admin,
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
struct RemoveArgs {
    /// Its name
    #[arg(value_parser = args::name)]
    name: String,
    #[command(flatten)]
    connect: Connect,
}

impl AccessArgs {
    pub(crate) fn connect(&self) -> &Connect {
        match &self.what {
            What::Add(args) => &args.connect,
            What::List(args) => &args.connect,
            What::Remove(args) => &args.connect,
        }
    }
}

pub(crate) async fn access(args: &AccessArgs, connect: &Connect) -> Result<(), Failure> {
    let client = Client::connect(context::endpoint(connect)?).await?;
    match &args.what {
        What::Add(args) => {
            let role = match args.role {
                Role::Viewer => "viewer",
                Role::Admin => "admin",
            };
            let token = token();
            let hash = hex(&Sha256::digest(token.as_bytes()));
            let (name, role) = (args.name.clone(), role.to_owned());
            let request = v1::AddAccessRequest { name, role, hash, request_id: request_id() };
            ask!(client, add_access, request)?;
            print::out(&token)?;
            print::note("it is not shown again; put it into a context (token: TEXT) or LATTICE_TOKEN");
            Ok(())
        }
        What::List(args) => list(args, &client).await,
        What::Remove(args) => {
            let request = v1::RemoveAccessRequest { name: args.name.clone(), request_id: request_id() };
            let answer = ask!(client, remove_access, request)?;
            print::out(format!("access/{} {}", args.name, answer.change))
        }
    }
}

/// 160 bits of chance from two ids of 80 each.
fn token() -> String {
    let random = [ulid::Ulid::generate(), ulid::Ulid::generate()].map(|id| id.random().to_be_bytes());
    format!("la1-{}", hex(&Sha256::digest(random.concat())[..20]))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn list(args: &ListArgs, client: &Client) -> Result<(), Failure> {
    use crate::print::rows::Row;
    let list = ask!(client, list_access, v1::ListAccessRequest {})?;
    let items: Vec<Access> = list.items.into_iter().map(Access::from).collect();
    match args.output {
        Format::Json => print::json(&List { items }),
        Format::Yaml => print::yaml(&List { items }, false),
        Format::Name => items.iter().try_for_each(|item| print::out(item.name())),
        Format::Table | Format::Wide if items.is_empty() => {
            print::note(format!("no tokens; {}", Access::NONE));
            Ok(())
        }
        Format::Table | Format::Wide => {
            let rows: Vec<_> = items.iter().map(|item| item.cells(now_ms())).collect();
            print::raw(Table::new(Access::HEAD, print::color()).render(&rows).as_bytes())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_long_and_never_the_same() {
        let (one, other) = (token(), token());
        assert!(one != other && one.starts_with("la1-") && one.len() == 4 + 40, "{one}");
    }
}
