//! `lattice scheduler`: a scheduler as a process of its own.

use super::start::{self, SchedulerConfig};
use super::{NatsArgs, TlsArgs, banner, begin, data_dir, listen, next};
use crate::context::API_DEFAULT;
use crate::failure::Failure;
use clap::Args;
use proto::app::LatticeName;
use std::net::SocketAddr;
use std::path::PathBuf;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lattice scheduler --nats nats://127.0.0.1:4222
  lattice scheduler --nats tls://a:4222,tls://b:4222 --nats-creds l.creds
  lattice scheduler --nats nats://10.0.0.5:4222 --api 0.0.0.0:7400 \\
      --tls-cert api.pem --tls-key api.key

It keeps what was applied in its data folder, and goes on from there when it is
started again.")]
pub(crate) struct SchedulerArgs {
    /// Name of the lattice
    #[arg(long, value_name = "NAME", default_value = "default", value_parser = super::lattice_name)]
    lattice: LatticeName,
    /// Folder for log, state and components [default: lattice/scheduler in the user's data folder]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Where the control API listens
    #[arg(long, value_name = "IP:PORT", default_value = API_DEFAULT, value_parser = listen::parse)]
    api: SocketAddr,
    /// Its id among the schedulers of the lattice; never given to another
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    id: u64,
    /// NATS server of the lattice; several with commas
    #[arg(long, value_name = "URL", value_delimiter = ',', required = true, help_heading = "Bus")]
    nats: Vec<String>,
    #[command(flatten)]
    nats_more: NatsArgs,
    #[command(flatten)]
    tls: TlsArgs,
}

pub(crate) async fn run(args: &SchedulerArgs) -> Result<(), Failure> {
    let tls = args.tls.check()?;
    listen::check("--api", args.api, tls.is_some()).map_err(Failure::Usage)?;
    let has_tls = tls.is_some();
    let data = data_dir(args.data.as_deref(), "scheduler")?;
    let bus = args.nats_more.config(args.nats.clone(), format!("lattice scheduler {}", args.id), args.lattice.clone());
    let config = SchedulerConfig { bus, data: data.clone(), api: args.api, tls, id: args.id };
    let Some(serving) = begin(Box::pin(start::scheduler(config))).await? else { return Ok(()) };
    let running = &serving.running;
    let api = running.api.map(|api| api.to_string()).unwrap_or_default();
    banner(
        &format!("scheduler {} of lattice {:?} is up", args.id, args.lattice.as_str()),
        &[("api", api.clone()), ("bus", running.bus.clone()), ("data", data.display().to_string())],
    )?;
    let reach = if has_tls { format!("--api https://{api} --ca FILE") } else { format!("--api {api}") };
    next(&format!("lattice get hosts {reach}"), "(Ctrl-C ends the scheduler)")?;
    serving.serve().await
}
