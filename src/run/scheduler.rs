//! `lattice scheduler`: a scheduler as a process of its own.

use super::admin::AdminArgs;
use super::start::{self, SchedulerConfig};
use super::{KeepArgs, NatsArgs, TlsArgs, banner, begin, data_dir, listen, next};
use crate::context::API_DEFAULT;
use crate::failure::Failure;
use clap::Args;
use proto::app::LatticeName;
use scheduler::peer::{self, Token};
use std::net::SocketAddr;
use std::path::PathBuf;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lattice scheduler --nats nats://127.0.0.1:4222
  lattice scheduler --nats tls://a:4222,tls://b:4222 --nats-creds l.creds
  lattice scheduler --nats nats://10.0.0.5:4222 --api 0.0.0.0:7400 \\
      --tls-cert api.pem --tls-key api.key
  lattice scheduler --nats nats://10.0.0.5:4222 --api 0.0.0.0:7400 --own-tls
  lattice scheduler --nats URL --peer-listen 10.0.0.5:7401     others may join
  lattice scheduler --nats URL --peer-listen 10.0.0.6:7401 \\
      --join 10.0.0.5:7401 --token TOKEN

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
    /// Its id if it is the first scheduler of the lattice; who joins is given one [default: 1]
    #[arg(long, value_name = "N", conflicts_with = "join", value_parser = clap::value_parser!(u64).range(1..))]
    id: Option<u64>,
    /// Where other schedulers reach it, over TLS of the lattice's own [default: nowhere, it stays alone]
    #[arg(long, value_name = "IP:PORT", value_parser = listen::parse, help_heading = "Several schedulers")]
    peer_listen: Option<SocketAddr>,
    /// The same address as the others see it, when that is another one
    #[arg(long, value_name = "HOST:PORT", value_parser = peer, requires = "peer_listen", help_heading = "Several schedulers")]
    peer_advertise: Option<String>,
    /// Peer address of any scheduler of the lattice to join; means nothing once it has joined
    #[arg(long, value_name = "HOST:PORT", value_parser = peer, requires_all = ["peer_listen", "token"], help_heading = "Several schedulers")]
    join: Option<String>,
    /// What `lattice schedulers token` printed; better in the environment than in the list of processes
    #[arg(
        long,
        value_name = "TOKEN",
        env = "LATTICE_JOIN_TOKEN",
        hide_env_values = true,
        help_heading = "Several schedulers"
    )]
    token: Option<Token>,
    /// Join to learn only: it votes when it is promoted
    #[arg(long, requires = "join", help_heading = "Several schedulers")]
    standby: bool,
    /// Remove one that was not reached for so long, when another stands by that can take its place, or when it did not
    /// vote; 0s: never
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = crate::duration::parse, help_heading = "Several schedulers")]
    replace_after: std::time::Duration,
    /// TLS for the API by the lattice's own authority, which clients know by the fingerprint that is printed
    #[arg(long, conflicts_with_all = ["tls_cert", "tls_key"], help_heading = "TLS")]
    own_tls: bool,
    /// Demand a token of who uses the API, on loopback too; beyond loopback it always is demanded
    #[arg(long)]
    require_token: bool,
    /// How long its certificate among schedulers is good: for tests of its renewal
    #[arg(long, value_name = "TIME", hide = true, value_parser = crate::duration::parse)]
    leaf_life: Option<std::time::Duration>,
    /// Apply commands up to this version only, as an older build: for tests of mixed versions
    #[arg(long, value_name = "N", hide = true, value_parser = clap::value_parser!(u32).range(1..))]
    vocabulary: Option<u32>,
    /// Bytes of log before the state is stored and the log dropped: for measurements
    #[arg(long, value_name = "N", hide = true, value_parser = clap::value_parser!(u64).range(1..))]
    log_bytes_max: Option<u64>,
    #[command(flatten)]
    admin: AdminArgs,
    #[command(flatten)]
    keep: KeepArgs,
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
    listen::check("--api", args.api, tls.is_some() || args.own_tls).map_err(Failure::Usage)?;
    let has_tls = tls.is_some();
    if tls.as_ref().is_some_and(|tls| !tls.more.is_empty()) {
        return Err(Failure::Usage("an API has one certificate: give --tls-cert once".into()));
    }
    if let Some(admin) = args.admin.admin {
        listen::check("--admin", admin, has_tls).map_err(Failure::Usage)?;
    }
    let data = data_dir(args.data.as_deref(), "scheduler")?;
    let bus = args.nats_more.config(args.nats.clone(), "lattice scheduler".into(), args.lattice.clone());
    let vocabulary = args.vocabulary.unwrap_or(scheduler::state::VERSION);
    let join = match (&args.join, &args.token) {
        (Some(addr), Some(token)) => {
            Some(peer::Join { addr: addr.clone(), token: token.clone(), standby: args.standby, vocabulary })
        }
        _ => None,
    };
    let advertise = args.peer_advertise.clone();
    let leaf_life = args.leaf_life.unwrap_or(peer::LEAF_LIFE);
    let peer = args.peer_listen.map(|listen| peer::Config {
        listen,
        advertise,
        join,
        replace_after: args.replace_after,
        leaf_life,
    });
    let wants_token = args.require_token;
    let (id, api) = (args.id.unwrap_or(1), args.api);
    let demands_token = wants_token || !args.api.ip().to_canonical().is_loopback();
    let config = SchedulerConfig {
        bus,
        data: data.clone(),
        api,
        tls,
        own_tls: args.own_tls,
        wants_token,
        vocabulary,
        keep_unused: args.keep.keep_unused,
        log_bytes_max: args.log_bytes_max.unwrap_or(start::LOG_BYTES_MAX),
        id,
        peer,
        admin: args.admin.admin,
    };
    let Some(serving) = begin(Box::pin(start::scheduler(config))).await? else { return Ok(()) };
    let running = &serving.running;
    let api = running.api.map(|api| api.to_string()).unwrap_or_default();
    let (id, peer) = running.scheduler.clone().unwrap_or_default();
    let mut fields = vec![("api", api.clone()), ("bus", running.bus.clone())];
    fields.extend(peer.map(|peer| ("peer", peer)));
    let scheme = if has_tls { "https" } else { "http" };
    fields.extend(running.admin.map(|at| ("admin", format!("{scheme}://{at}"))));
    fields.push(("data", data.display().to_string()));
    let fingerprint = running.fingerprint.clone();
    fields.extend(fingerprint.clone().map(|fingerprint| ("fingerprint", fingerprint)));
    let token = data.join(scheduler::api::OWN_TOKEN);
    if demands_token {
        fields.push(("token", token.display().to_string()));
    }
    banner(&format!("scheduler {id} of lattice {:?} is up", args.lattice.as_str()), &fields)?;
    let mut reach = match &fingerprint {
        Some(fingerprint) => format!("--api https://{api} --fingerprint {fingerprint}"),
        None if has_tls => format!("--api https://{api} --ca FILE"),
        None => format!("--api {api}"),
    };
    if demands_token {
        reach.push_str(&format!(" --token-file {}", token.display()));
    }
    next(&format!("lattice get hosts {reach}"), "(Ctrl-C ends the scheduler)")?;
    serving.serve().await
}

/// `HOST:PORT` of a peer listener.
fn peer(text: &str) -> Result<String, String> {
    let wrong = || "write HOST:PORT, as 10.0.0.5:7401".to_owned();
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let sound = |c: char| c.is_ascii_alphanumeric() || ".-_:[]".contains(c);
    let port: u16 = port.parse().map_err(|_| wrong())?;
    if host.is_empty() || port == 0 || !host.chars().all(sound) || host.contains(':') != host.starts_with('[') {
        return Err(wrong());
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::peer;

    #[test]
    fn peers_are_host_and_port() {
        for good in ["10.0.0.5:7401", "a.example.org:1", "[::1]:7401"] {
            assert_eq!(peer(good).as_deref(), Ok(good));
        }
        for wrong in ["", "host", ":7401", "host:", "host:0", "host:x", "https://h:1", "a b:1", "::1:7401", "h:70000"] {
            assert!(peer(wrong).unwrap_err().contains("10.0.0.5:7401"), "{wrong}");
        }
    }
}
