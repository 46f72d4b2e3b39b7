//! `lattice host`: a host as a process of its own. It needs nothing but the bus.

use super::access::AccessArgs;
use super::admin::AdminArgs;
use super::policy::PolicyArgs;
use super::start::{self, HostConfig};
use super::{KeepArgs, NatsArgs, TlsArgs, banner, begin, data_dir, labels, listen};
use crate::failure::Failure;
use crate::print;
use clap::Args;
use proto::app::LatticeName;
use std::net::SocketAddr;
use std::path::PathBuf;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lattice host --nats nats://10.0.0.5:4222 --label site=paris --label tier=edge
  lattice host --nats nats://127.0.0.1:4222 --ingress 127.0.0.1:8000
  lattice host --nats tls://a:4222,tls://b:4222 --nats-creds l.creds
  lattice host --nats nats://127.0.0.1:4222 --policy /etc/lattice/policy.yaml

It opens no port but its ingress, if it has one. When the bus can not be reached
it starts what it was last assigned, and joins later.")]
pub(crate) struct HostArgs {
    /// Name of the lattice
    #[arg(long, value_name = "NAME", default_value = "default", value_parser = super::lattice_name)]
    lattice: LatticeName,
    /// Folder for all it keeps [default: lattice/host in the user's data folder]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// What people call it [default: the machine's name]
    #[arg(long, value_name = "NAME", value_parser = labels::host_name)]
    name: Option<String>,
    /// Label for placement; may be given several times
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = labels::parse)]
    labels: Vec<labels::Label>,
    /// Where to take HTTP requests for actors, here or on other hosts [default: nowhere]
    #[arg(long, value_name = "IP:PORT", value_parser = listen::parse)]
    ingress: Option<SocketAddr>,
    #[command(flatten)]
    access: AccessArgs,
    #[command(flatten)]
    admin: AdminArgs,
    #[command(flatten)]
    policy: PolicyArgs,
    #[command(flatten)]
    keep: KeepArgs,
    /// Program that is started in place of this one to compile a component, with the same arguments, input and output
    /// and an empty environment: one that starts this one behind walls of your own, or in an emulator
    #[arg(long, value_name = "FILE", env = "LATTICE_COMPILER", hide_env = true)]
    compiler: Option<PathBuf>,
    /// NATS server of the lattice; several with commas
    #[arg(long, value_name = "URL", value_delimiter = ',', required = true, help_heading = "Bus")]
    nats: Vec<String>,
    #[command(flatten)]
    nats_more: NatsArgs,
    #[command(flatten)]
    tls: TlsArgs,
    /// Folder with the ingress's certificates: it holds tls.crt and tls.key, as a Kubernetes secret is mounted, or
    /// folders that do. Each is shown to clients that ask for its names; what comes, changes or goes there is taken up
    #[arg(long, value_name = "DIR", help_heading = "TLS")]
    tls_secret: Vec<PathBuf>,
}

pub(crate) async fn run(args: &HostArgs) -> Result<(), Failure> {
    let tls = args.tls.check()?;
    let has_tls = tls.is_some() || !args.tls_secret.is_empty();
    match args.ingress {
        Some(ingress) => listen::check("--ingress", ingress, has_tls).map_err(Failure::Usage)?,
        None if tls.is_some() && args.admin.admin.is_none() => {
            let text = "--tls-cert is for the ingress or --admin: add --ingress IP:PORT, or leave it out";
            return Err(Failure::Usage(text.into()));
        }
        None if !args.tls_secret.is_empty() => {
            let text = "--tls-secret is for the ingress: add --ingress IP:PORT, or leave it out";
            return Err(Failure::Usage(text.into()));
        }
        None => {}
    }
    if let Some(admin) = args.admin.admin {
        listen::check("--admin", admin, tls.is_some()).map_err(Failure::Usage)?;
    }
    if args.ingress.is_none() && args.access.access_log.is_some() {
        return Err(Failure::Usage("--access-log is for the ingress: add --ingress IP:PORT, or leave it out".into()));
    }
    let name = args.name.clone().unwrap_or_else(labels::machine_name);
    let labels = labels::collect(&args.labels).map_err(Failure::Usage)?;
    let data = data_dir(args.data.as_deref(), "host")?;
    let scheme = |has_tls| if has_tls { "https" } else { "http" };
    let (ingress_scheme, admin_scheme) = (scheme(has_tls), scheme(tls.is_some()));
    let bus = args.nats_more.config(args.nats.clone(), format!("lattice host {name}"), args.lattice.clone());
    let config = HostConfig {
        bus,
        data: data.clone(),
        name: name.clone(),
        labels: labels.clone(),
        ingress: args.ingress,
        tls,
        tls_secrets: args.tls_secret.clone(),
        keep_unused: args.keep.keep_unused,
        access_log: args.access.target(),
        admin: args.admin.admin,
        policy: args.policy.load()?,
        compiler: args.compiler.clone(),
    };
    let Some(serving) = begin(Box::pin(start::host(config))).await? else { return Ok(()) };
    let running = &serving.running;
    let mut fields = vec![("id", running.host.clone().unwrap_or_default()), ("bus", running.bus.clone())];
    if let Some(ingress) = running.ingress {
        fields.push(("ingress", format!("{ingress_scheme}://{ingress}")));
    }
    fields.extend(running.admin.map(|at| ("admin", format!("{admin_scheme}://{at}"))));
    if !labels.is_empty() {
        let labels: Vec<String> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        fields.push(("labels", labels.join(",")));
    }
    fields.push(("data", data.display().to_string()));
    banner(&format!("host {name} of lattice {:?} is up", args.lattice.as_str()), &fields)?;
    print::out("Ctrl-C ends it: the scheduler then moves what it ran at once")?;
    serving.serve().await
}
