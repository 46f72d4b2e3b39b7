//! `delete`, `scale`, `rollback`, `cordon`, `uncordon`, `drain`: one request each, sent under an id of its own so that
//! a retry is applied once.

use crate::args::{self, Connect};
use crate::client::{Client, ask, request_id};
use crate::failure::Failure;
use crate::{context, duration, follow, local, print};
use clap::{Args, ValueEnum};
use proto::app::REPLICAS_MAX;
use proto::v1::{DeleteRequest, RollbackRequest, ScaleRequest, SetCordonRequest};
use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lattice delete app hello                 remove it, and wait until nothing of it runs
  lattice delete app a b --detach          remove both, and come back at once
  lattice delete -f app.yaml               remove the apps that a manifest names

Exit codes: 0 gone, 1 refused, 2 wrong use, 3 deleted but not gone in time,
130 interrupted.")]
pub(crate) struct DeleteArgs {
    /// What to remove
    #[arg(value_enum, required_unless_present = "filename", requires = "names")]
    kind: Option<DeleteKind>,
    /// Its name
    #[arg(value_name = "NAME", value_parser = args::app)]
    names: Vec<String>,
    /// Manifest whose apps to remove; - is stdin
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["kind", "names"])]
    filename: Vec<PathBuf>,
    /// Come back as soon as it is accepted
    #[arg(long)]
    detach: bool,
    /// How long to wait until it is gone: 500ms, 30s, 2m, 1h
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration::parse)]
    timeout: Duration,
    /// Delete only if the app is still at this version, as `get apps -o wide` shows it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    if_version: Option<u64>,
    #[command(flatten)]
    pub(crate) connect: Connect,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum DeleteKind {
    #[value(alias = "apps")]
    App,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lattice scale hello/web 5
  lattice scale hello/web 0                stop it, and keep the app
  lattice get actors --app hello -w        see it happen

A replica is a slot, not a process: it costs next to nothing until a request
comes. The next `lattice apply` of a manifest sets the manifest's number again.")]
pub(crate) struct ScaleArgs {
    /// Actor to scale
    #[arg(value_name = "APP/ACTOR", value_parser = args::app_and_actor)]
    actor: (String, String),
    /// Replicas it shall have
    #[arg(value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(..=i64::from(REPLICAS_MAX)))]
    replicas: u32,
    /// Scale only if the app is still at this version, as `get apps -o wide` shows it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    if_version: Option<u64>,
    #[command(flatten)]
    pub(crate) connect: Connect,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lattice rollback hello                   to the revision before the current one
  lattice rollback hello --to 3
  lattice get revisions --app hello        what there is to go back to

Going back makes a new revision with the old contents: the history only grows.")]
pub(crate) struct RollbackArgs {
    /// App to take back
    #[arg(value_parser = args::app)]
    app: String,
    /// Revision to go back to
    #[arg(long, value_name = "REVISION", value_parser = clap::value_parser!(u64).range(1..))]
    to: Option<u64>,
    /// Roll back only if the app is still at this version, as `get apps -o wide` shows it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    if_version: Option<u64>,
    #[command(flatten)]
    pub(crate) connect: Connect,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lattice cordon paris-1                   nothing new goes there; what runs there stays
  lattice drain paris-1                    what runs there moves away too
  lattice uncordon paris-1                 back to normal, after either of them
  lattice get hosts -w                     see it happen")]
pub(crate) struct HostArgs {
    /// Name or id of the host
    #[arg(value_parser = args::host)]
    host: String,
    #[command(flatten)]
    pub(crate) connect: Connect,
}

/// What becomes of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cordon {
    On,
    Off,
    Drain,
}

pub(crate) async fn delete(args: &DeleteArgs, connect: &Connect) -> Result<(), Failure> {
    let mut apps = if args.filename.is_empty() { args.names.clone() } else { local::app_names(&args.filename)? };
    apps.sort();
    apps.dedup();
    if args.if_version.is_some() && apps.len() > 1 {
        return Err(Failure::Usage("--if-version is about one app: name one".into()));
    }
    let client = Client::connect(context::endpoint(connect)?).await?;
    let mut accepted = Vec::new();
    let mut refused = None;
    for app in apps {
        let if_version = args.if_version.unwrap_or_default();
        let request = DeleteRequest { app: app.clone(), request_id: request_id(), if_version };
        match ask!(client, delete, request) {
            Ok(_) => {
                print::out(format!("app/{app} deleted"))?;
                accepted.push(app);
            }
            // The others are deleted all the same; the last failure is said by main.
            Err(failure) => {
                if let Some(earlier) = refused.replace(failure) {
                    print::note(earlier.line().unwrap_or_default());
                }
            }
        }
    }
    if !args.detach {
        follow::until_gone(&client, &accepted, args.timeout).await?;
    }
    refused.map_or(Ok(()), Err)
}

pub(crate) async fn scale(args: &ScaleArgs, connect: &Connect) -> Result<(), Failure> {
    let client = Client::connect(context::endpoint(connect)?).await?;
    let (app, actor) = args.actor.clone();
    let request = ScaleRequest {
        app,
        actor,
        replicas: args.replicas,
        request_id: request_id(),
        if_version: args.if_version.unwrap_or_default(),
    };
    let answer = ask!(client, scale, request)?;
    let (app, actor) = &args.actor;
    print::out(match answer.change.as_str() {
        "unchanged" => format!("actor/{app}/{actor} unchanged"),
        _ => format!("actor/{app}/{actor} scaled to {} (revision {})", args.replicas, answer.revision),
    })
}

pub(crate) async fn rollback(args: &RollbackArgs, connect: &Connect) -> Result<(), Failure> {
    let client = Client::connect(context::endpoint(connect)?).await?;
    let request = RollbackRequest {
        app: args.app.clone(),
        to: args.to.unwrap_or_default(),
        request_id: request_id(),
        if_version: args.if_version.unwrap_or_default(),
    };
    let answer = ask!(client, rollback, request)?;
    let target = args.to.map(|to| format!(" to {to}")).unwrap_or_default();
    print::out(match answer.change.as_str() {
        "unchanged" => format!("app/{} unchanged", args.app),
        _ => format!("app/{} rolled back{target} (revision {})", args.app, answer.revision),
    })
}

pub(crate) async fn cordon(args: &HostArgs, connect: &Connect, how: Cordon) -> Result<(), Failure> {
    let client = Client::connect(context::endpoint(connect)?).await?;
    let request = SetCordonRequest {
        host: args.host.clone(),
        cordoned: how != Cordon::Off,
        draining: how == Cordon::Drain,
        request_id: request_id(),
    };
    let answer = ask!(client, set_cordon, request)?;
    let done = match (answer.change.as_str(), how) {
        ("unchanged", _) => "unchanged",
        (_, Cordon::On) => "cordoned",
        (_, Cordon::Off) => "uncordoned",
        (_, Cordon::Drain) => "draining",
    };
    print::out(format!("host/{} {done}", args.host))
}
