//! `lattice up`: broker, scheduler, host, ingress and API in one process, and the apps given with it.

use super::access::AccessArgs;
use super::admin::AdminArgs;
use super::policy::PolicyArgs;
use super::start::{self, UpBus, UpConfig};
use super::{KeepArgs, NatsArgs, TlsArgs, banner, begin, data_dir, labels, listen, next};
use crate::client::Client;
use crate::context::{API_DEFAULT, Endpoint, Trust};
use crate::failure::Failure;
use crate::local::{self, Local};
use crate::{apply, duration, follow, print};
use clap::Args;
use proto::app::LatticeName;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lattice up                               a lattice on this machine; Ctrl-C ends it
  lattice up app.yaml                      the same, with an app in it
  lattice up --data /tmp/l --api 127.0.0.1:0 --ingress 127.0.0.1:0
  lattice up --nats nats://10.0.0.5:4222 --label site=paris
  lattice up --api 0.0.0.0:7400 --own-tls  the API for other machines too

What was applied is kept in the data folder: started again on it, the lattice is
where it was. All of it listens on loopback unless told otherwise; beyond
loopback only with TLS. Port 0 picks a free one.")]
pub(crate) struct UpArgs {
    /// Manifest to apply once it is up; - is stdin
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Name of the lattice
    #[arg(long, value_name = "NAME", default_value = "default", value_parser = super::lattice_name)]
    lattice: LatticeName,
    /// Folder for everything it keeps [default: lattice/up in the user's data folder]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Where the control API listens
    #[arg(long, value_name = "IP:PORT", default_value = API_DEFAULT, value_parser = listen::parse)]
    api: SocketAddr,
    /// Where the embedded broker listens
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:4222", value_parser = listen::parse)]
    bus: SocketAddr,
    /// Where HTTP requests for actors are taken
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:8000", value_parser = listen::parse)]
    ingress: SocketAddr,
    /// What people call its host [default: the machine's name]
    #[arg(long, value_name = "NAME", value_parser = labels::host_name)]
    name: Option<String>,
    /// Label of its host, for placement; may be given several times
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = labels::parse)]
    labels: Vec<labels::Label>,
    #[command(flatten)]
    access: AccessArgs,
    #[command(flatten)]
    admin: AdminArgs,
    #[command(flatten)]
    policy: PolicyArgs,
    #[command(flatten)]
    keep: KeepArgs,
    /// How long to wait for the apps given: 500ms, 30s, 2m, 1h
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration::parse)]
    timeout: Duration,
    /// NATS server to use instead of the embedded broker; several with commas
    #[arg(long, value_name = "URL", value_delimiter = ',', conflicts_with = "bus", help_heading = "Bus")]
    nats: Vec<String>,
    #[command(flatten)]
    nats_more: NatsArgs,
    /// TLS for the API by the lattice's own authority, which clients know by the fingerprint that is printed
    #[arg(long, conflicts_with_all = ["tls_cert", "tls_key"], help_heading = "TLS")]
    own_tls: bool,
    #[command(flatten)]
    tls: TlsArgs,
}

pub(crate) async fn run(args: &UpArgs) -> Result<(), Failure> {
    // What is wrong with the files is known before anything is started.
    let local = local::load(&args.files).await?;
    let config = config(args)?;
    let (data, name, tls) = (config.data.clone(), config.name.clone(), config.tls.clone());
    let demands_token = !args.api.ip().to_canonical().is_loopback();
    let embedded = matches!(config.bus, UpBus::Embedded(_));
    let Some(mut serving) = begin(Box::pin(start::up(config))).await? else { return Ok(()) };
    let running = &serving.running;
    let api = running.api.unwrap_or(args.api);
    let scheme = if tls.is_some() { "https" } else { "http" };
    let ingress = running.ingress.map(|at| format!("{scheme}://{at}")).unwrap_or_default();
    let mut fields = vec![
        ("api", api.to_string()),
        ("bus", format!("{}{}", running.bus, if embedded { "   (embedded broker)" } else { "" })),
        ("ingress", ingress),
        ("host", format!("{name}   {}", running.host.as_deref().unwrap_or_default())),
        ("data", data.display().to_string()),
    ];
    fields.extend(running.admin.map(|at| ("admin", format!("{scheme}://{at}"))));
    let fingerprint = running.fingerprint.clone();
    fields.extend(fingerprint.clone().map(|fingerprint| ("fingerprint", fingerprint)));
    let token = data.join("scheduler").join(scheduler::api::OWN_TOKEN);
    if demands_token {
        fields.push(("token", token.display().to_string()));
    }
    banner(&format!("lattice {:?} is up", args.lattice.as_str()), &fields)?;
    let mut reach = match (&fingerprint, &tls) {
        (Some(fingerprint), _) => format!(" --api https://{api} --fingerprint {fingerprint}"),
        (None, Some(_)) => format!(" --api https://{api} --ca FILE"),
        (None, None) if api.to_string() == API_DEFAULT => String::new(),
        (None, None) => format!(" --api {api}"),
    };
    if demands_token {
        reach.push_str(&format!(" --token-file {}", token.display()));
    }
    let trust = match (&fingerprint, &tls) {
        (Some(fingerprint), _) => Trust::Authority(crate::args::fingerprint(fingerprint).map_err(Failure::Refused)?),
        (None, Some(tls)) => Trust::Pinned(tls.cert.clone()),
        (None, None) => Trust::Plain,
    };
    let mut url = None;
    if !local.files.is_empty() {
        let applied = tokio::select! {
            // Told to end while it follows: both see the signal, and here it means the whole lattice.
            biased;
            told = serving.told() => {
                serving.stop().await?;
                return told;
            }
            applied = apply_own(&local, own(api, trust, &data), args.timeout) => applied,
        };
        match applied {
            Ok(found) => url = found,
            Err(failure) => {
                serving.stop().await?;
                return Err(failure);
            }
        }
    }
    say_next(&reach, url.as_deref())?;
    serving.serve().await
}

fn config(args: &UpArgs) -> Result<UpConfig, Failure> {
    let tls = args.tls.check()?;
    listen::check("--api", args.api, tls.is_some() || args.own_tls).map_err(Failure::Usage)?;
    listen::check("--ingress", args.ingress, tls.is_some()).map_err(Failure::Usage)?;
    if let Some(admin) = args.admin.admin {
        listen::check("--admin", admin, tls.is_some()).map_err(Failure::Usage)?;
    }
    let name = args.name.clone().unwrap_or_else(labels::machine_name);
    let bus = if args.nats.is_empty() {
        listen::check_broker("--bus", args.bus).map_err(Failure::Usage)?;
        if args.nats_more.is_given() {
            return Err(Failure::Usage("--nats-… options are about a NATS server: name it with --nats URL".into()));
        }
        UpBus::Embedded(args.bus)
    } else {
        UpBus::Nats(args.nats_more.config(args.nats.clone(), format!("lattice up {name}"), args.lattice.clone()))
    };
    Ok(UpConfig {
        lattice: args.lattice.clone(),
        data: data_dir(args.data.as_deref(), "up")?,
        bus,
        api: args.api,
        ingress: args.ingress,
        access_log: args.access.target(),
        admin: args.admin.admin,
        tls,
        own_tls: args.own_tls,
        name,
        labels: labels::collect(&args.labels).map_err(Failure::Usage)?,
        policy: args.policy.load()?,
        keep_unused: args.keep.keep_unused,
    })
}

/// This process's own API, by the certificate it shows itself.
fn own(api: SocketAddr, trust: Trust, data: &Path) -> Endpoint {
    let ip = match api.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    // It is there when the API demands one.
    let token = std::fs::read_to_string(data.join("scheduler").join(scheduler::api::OWN_TOKEN)).ok();
    let token = token.map(|text| text.trim().to_owned());
    Endpoint { addresses: vec![SocketAddr::new(ip, api.port()).to_string()], trust, token }
}

/// Applies the files through the API, as `lattice apply` does. What is late or failed is told and no reason to end:
/// the next apply may mend it. Returns where the first app that runs answers.
async fn apply_own(local: &Local, endpoint: Endpoint, timeout: Duration) -> Result<Option<String>, Failure> {
    let client = Client::connect(endpoint).await?;
    let changes = apply::submit(&client, local).await?;
    let (progress, outcome) = follow::until_running(&client, &changes, timeout).await;
    apply::say_running(&changes, &progress)?;
    if let Err(failure) = outcome {
        print::note(format!("warning: {failure}"));
    }
    let runs = |app: &str| progress.last(app).filter(|status| status.state == "running").cloned();
    Ok(changes.iter().filter_map(|change| runs(&change.app)?.urls.first().cloned()).next())
}

/// `reach`: the flags by which another terminal reaches its API.
fn say_next(reach: &str, url: Option<&str>) -> Result<(), Failure> {
    match url {
        Some(url) => next(&format!("curl {}", print::clean(url)), "(Ctrl-C ends the lattice)"),
        None => next(&format!("lattice apply app.yaml{reach}"), "(in another terminal; Ctrl-C ends the lattice)"),
    }
}
