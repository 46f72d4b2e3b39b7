//! The seam between the command line and the crates that do the work: a checked configuration in, running parts out.
//! Nothing here prints or reads arguments.

use crate::failure::Failure;
use crate::run::Tls;
use crate::run::admin::{self, Answer, Health, Told};
#[cfg(feature = "host")]
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Bytes of Raft log before a snapshot replaces it.
#[cfg(feature = "scheduler")]
pub(crate) const LOG_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// A whole lattice in one process.
#[cfg(all(feature = "host", feature = "scheduler"))]
#[derive(Debug, Clone)]
pub(crate) struct UpConfig {
    pub(crate) lattice: proto::app::LatticeName,
    pub(crate) data: PathBuf,
    pub(crate) bus: UpBus,
    pub(crate) api: SocketAddr,
    pub(crate) ingress: SocketAddr,
    pub(crate) access_log: Option<host::ingress::AccessTarget>,
    pub(crate) admin: Option<SocketAddr>,
    /// For the API and the ingress; `None` only when both are on loopback.
    pub(crate) tls: Option<Tls>,
    /// TLS of the API by the lattice's own authority; the ingress is on loopback then.
    pub(crate) own_tls: bool,
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) policy: proto::policy::Policy,
    pub(crate) keep_unused: Duration,
}

/// The bus of `up`.
#[cfg(all(feature = "host", feature = "scheduler"))]
#[derive(Debug, Clone)]
pub(crate) enum UpBus {
    /// The broker in this process, listening here (on loopback).
    Embedded(SocketAddr),
    Nats(bus::Config),
}

#[cfg(feature = "scheduler")]
#[derive(Debug, Clone)]
pub(crate) struct SchedulerConfig {
    pub(crate) bus: bus::Config,
    pub(crate) data: PathBuf,
    pub(crate) api: SocketAddr,
    /// `None` only when the API is on loopback.
    pub(crate) tls: Option<Tls>,
    /// TLS of the API by the lattice's own authority.
    pub(crate) own_tls: bool,
    /// Whether the API wants a token on loopback too.
    pub(crate) wants_token: bool,
    /// The newest version of log commands that it applies.
    pub(crate) vocabulary: u32,
    pub(crate) keep_unused: Duration,
    /// Bytes of log before the state is stored and the log dropped.
    pub(crate) log_bytes_max: u64,
    /// Its id among the schedulers if it is the first one.
    pub(crate) id: u64,
    pub(crate) peer: Option<scheduler::peer::Config>,
    pub(crate) admin: Option<SocketAddr>,
}

#[cfg(feature = "host")]
#[derive(Debug, Clone)]
pub(crate) struct HostConfig {
    pub(crate) bus: bus::Config,
    pub(crate) data: PathBuf,
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) ingress: Option<SocketAddr>,
    pub(crate) access_log: Option<host::ingress::AccessTarget>,
    pub(crate) admin: Option<SocketAddr>,
    /// `None` only when there is no ingress beyond loopback.
    pub(crate) tls: Option<Tls>,
    /// Folders with certificates, for the ingress.
    pub(crate) tls_secrets: Vec<PathBuf>,
    pub(crate) keep_unused: Duration,
    pub(crate) policy: proto::policy::Policy,
    /// What is started to compile, if it is not this program.
    pub(crate) compiler: Option<PathBuf>,
}

/// Parts that run, and where they are: addresses as bound, so that a port 0 has become a real one.
#[derive(Debug, Default)]
pub(crate) struct Running {
    #[cfg(feature = "scheduler")]
    pub(crate) api: Option<SocketAddr>,
    /// Id of the scheduler, and where other schedulers reach it.
    #[cfg(feature = "scheduler")]
    pub(crate) scheduler: Option<(u64, Option<String>)>,
    /// By what clients know the certificate of its API.
    #[cfg(feature = "scheduler")]
    pub(crate) fingerprint: Option<String>,
    /// URL of the bus, without secrets.
    pub(crate) bus: String,
    #[cfg(feature = "host")]
    pub(crate) ingress: Option<SocketAddr>,
    /// The host's id.
    #[cfg(feature = "host")]
    pub(crate) host: Option<String>,
    /// Where health and metrics are told.
    pub(crate) admin: Option<SocketAddr>,
    /// Each ends when `stop` is cancelled; one that ends before it ends the process.
    pub(crate) parts: JoinSet<anyhow::Result<()>>,
    pub(crate) stop: CancellationToken,
}

impl Running {
    /// Ends the process with an error when `part` ends before it was told to.
    #[cfg(any(feature = "host", feature = "scheduler"))]
    fn guard(&mut self, name: &'static str, ended: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.parts.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => Ok(()),
                () = ended => anyhow::bail!("{name} ended by itself; see the log above"),
            }
        });
    }

    /// Answers on `at` what is to be told, until the process ends.
    #[cfg(any(feature = "host", feature = "scheduler"))]
    async fn tell(&mut self, at: SocketAddr, tls: Option<&Tls>, told: Told) -> anyhow::Result<()> {
        let (at, serving) = admin::start(at, tls, told, self.stop.clone()).await?;
        self.admin = Some(at);
        self.parts.spawn(async move {
            serving.await;
            Ok(())
        });
        Ok(())
    }

    /// Waits until a part has ended by itself, and says why. Safe to drop while it waits.
    pub(crate) async fn ended(&mut self) -> Failure {
        let why = match self.parts.join_next().await {
            Some(Ok(Ok(()))) | None => "a part ended by itself; see the log above".to_owned(),
            Some(Ok(Err(error))) => super::causes(&error),
            Some(Err(error)) => format!("a part of lattice broke: {error}; see the log above, and report it"),
        };
        Failure::Refused(crate::print::clean(&why))
    }
}

#[cfg(all(feature = "host", feature = "scheduler"))]
pub(crate) async fn up(config: UpConfig) -> anyhow::Result<Running> {
    let (broker, bus_config) = match config.bus {
        UpBus::Nats(nats) => (None, nats),
        UpBus::Embedded(listen) => {
            let broker = bus::broker::Broker::start(bus::broker::Config { listen, token: None })?;
            let nats = bus::Config {
                urls: vec![format!("nats://{}", broker.addr())],
                credentials: None,
                token: None,
                tls_ca: None,
                tls_cert: None,
                tls_key: None,
                name: format!("lattice up {}", config.name),
                lattice: config.lattice.clone(),
            };
            (Some(broker), nats)
        }
    };
    let scheduler = start_scheduler(SchedulerConfig {
        bus: bus_config.clone(),
        data: config.data.join("scheduler"),
        api: config.api,
        tls: config.tls.clone(),
        own_tls: config.own_tls,
        wants_token: false,
        vocabulary: scheduler::state::VERSION,
        keep_unused: config.keep_unused,
        log_bytes_max: LOG_BYTES_MAX,
        id: 1,
        peer: None,
        admin: None,
    })
    .await?;
    let host = start_host(HostConfig {
        bus: bus_config.clone(),
        data: config.data.join("host"),
        name: config.name,
        labels: config.labels,
        ingress: Some(config.ingress),
        access_log: config.access_log,
        admin: None,
        tls: config.tls.clone(),
        tls_secrets: Vec::new(),
        keep_unused: config.keep_unused,
        policy: config.policy,
        compiler: None,
    })
    .await?;
    let mut running = Running {
        api: Some(scheduler.0.api()),
        fingerprint: scheduler.0.fingerprint().map(str::to_owned),
        bus: shown(&bus_config.urls),
        ingress: host.0.ingress(),
        host: Some(host.0.id().to_string()),
        ..Running::default()
    };
    if let Some(at) = config.admin {
        let mut told = Told::new();
        told.add("scheduler", Box::new(scheduler.0.health()), scheduler.0.metrics());
        told.add("host", Box::new(host.0.health()), host.0.metrics());
        running.tell(at, config.tls.as_ref(), told).await?;
    }
    let stop = running.stop.clone();
    running.guard("the scheduler", scheduler.0.ended());
    running.guard("the host", host.0.ended());
    running.parts.spawn(async move {
        stop.cancelled().await;
        // The host is no less part of the lattice for the night: it does not leave.
        host.0.shutdown(false).await;
        // Blocks until the spans are sent, or can not be.
        let _ = tokio::task::spawn_blocking(host::spans::shutdown).await;
        scheduler.0.shutdown().await;
        host.1.close().await;
        scheduler.1.close().await;
        if let Some(broker) = broker {
            broker.shutdown().await;
        }
        Ok(())
    });
    Ok(running)
}

#[cfg(feature = "scheduler")]
pub(crate) async fn scheduler(config: SchedulerConfig) -> anyhow::Result<Running> {
    let urls = shown(&config.bus.urls);
    let (admin, tls) = (config.admin, config.tls.clone());
    let (scheduler, bus) = start_scheduler(config).await?;
    let mut running = Running {
        api: Some(scheduler.api()),
        scheduler: Some((scheduler.id(), scheduler.peer())),
        fingerprint: scheduler.fingerprint().map(str::to_owned),
        bus: urls,
        ..Running::default()
    };
    if let Some(at) = admin {
        let mut told = Told::new();
        told.add("scheduler", Box::new(scheduler.health()), scheduler.metrics());
        running.tell(at, tls.as_ref(), told).await?;
    }
    let stop = running.stop.clone();
    running.guard("the scheduler", scheduler.ended());
    running.parts.spawn(async move {
        stop.cancelled().await;
        scheduler.shutdown().await;
        bus.close().await;
        Ok(())
    });
    Ok(running)
}

#[cfg(feature = "host")]
pub(crate) async fn host(config: HostConfig) -> anyhow::Result<Running> {
    let urls = shown(&config.bus.urls);
    let (admin, tls) = (config.admin, config.tls.clone());
    let (agent, bus) = start_host(config).await?;
    let mut running =
        Running { bus: urls, ingress: agent.ingress(), host: Some(agent.id().to_string()), ..Running::default() };
    if let Some(at) = admin {
        let mut told = Told::new();
        told.add("host", Box::new(agent.health()), agent.metrics());
        running.tell(at, tls.as_ref(), told).await?;
    }
    let stop = running.stop.clone();
    running.guard("the host", agent.ended());
    running.parts.spawn(async move {
        stop.cancelled().await;
        agent.shutdown(true).await;
        // Blocks until the spans are sent, or can not be.
        let _ = tokio::task::spawn_blocking(host::spans::shutdown).await;
        bus.close().await;
        Ok(())
    });
    Ok(running)
}

#[cfg(feature = "scheduler")]
async fn start_scheduler(config: SchedulerConfig) -> anyhow::Result<(scheduler::Scheduler, bus::Bus)> {
    let bus = bus::Bus::connect(&config.bus).await?;
    let config = scheduler::Config {
        id: config.id,
        lattice: config.bus.lattice,
        data: config.data,
        api: scheduler::api::Config {
            listen: config.api,
            tls: config.tls.map(|t| (t.cert, t.key)),
            own_tls: config.own_tls,
            wants_token: config.wants_token,
        },
        peer: config.peer,
        timers: scheduler::plan::Config::default(),
        log_bytes_max: config.log_bytes_max,
        vocabulary: config.vocabulary,
        keep_unused: config.keep_unused,
    };
    Ok((scheduler::Scheduler::start(config, bus.clone()).await?, bus))
}

/// Sends spans to a collector, if the environment names one.
#[cfg(all(feature = "host", feature = "otel"))]
fn record(config: &HostConfig) -> anyhow::Result<()> {
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let endpoints = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
    let off = set("OTEL_SDK_DISABLED").is_some_and(|v| v.eq_ignore_ascii_case("true"))
        || set("OTEL_TRACES_EXPORTER").is_some_and(|v| v == "none");
    let Some((name, endpoint)) = endpoints.iter().find_map(|name| Some((*name, set(name)?))).filter(|_| !off) else {
        return Ok(());
    };
    let protocol = set("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL").or_else(|| set("OTEL_EXPORTER_OTLP_PROTOCOL"));
    if let Some(other) = protocol.filter(|p| p != "grpc") {
        anyhow::bail!(
            "OTEL_EXPORTER_OTLP_PROTOCOL={other}: spans are sent by grpc only; set grpc, and its port (4317)"
        );
    }
    if !endpoint.starts_with("http://") {
        anyhow::bail!("{name}={endpoint}: spans are sent in the clear; name a collector near by, http://HOST:4317");
    }
    let attributes = [
        ("host.name", config.name.clone()),
        ("service.version", env!("CARGO_PKG_VERSION").to_owned()),
        ("lattice.name", config.bus.lattice.to_string()),
    ];
    host::spans::start("lattice-host", &attributes).map_err(|e| anyhow::anyhow!("{name}={endpoint}: {e}"))
}

#[cfg(feature = "host")]
async fn start_host(config: HostConfig) -> anyhow::Result<(host::agent::Agent, bus::Bus)> {
    #[cfg(feature = "otel")]
    record(&config)?;
    let bus = bus::Bus::connect(&config.bus).await?;
    let pairs = config.tls.map(|tls| tls.pairs()).unwrap_or_default();
    let secrets = config.tls_secrets.into_iter().map(host::ingress::tls::Source::Secret);
    let tls = pairs.into_iter().map(host::ingress::tls::Source::Files).chain(secrets).collect();
    let access_log = config.access_log;
    let agent = host::agent::Agent::start(
        host::agent::Config {
            lattice: config.bus.lattice.clone(),
            data: config.data,
            name: config.name,
            labels: config.labels,
            ingress: config.ingress.map(|listen| host::agent::IngressConfig { listen, tls, access_log }),
            policy: config.policy,
            compiler: config.compiler.map(host::engine::Compiler::at).or_else(host::engine::Compiler::itself),
            keep_unused: config.keep_unused,
        },
        bus.clone(),
    )
    .await?;
    Ok((agent, bus))
}

#[cfg(feature = "scheduler")]
impl Health for scheduler::Health {
    fn live(&self) -> Answer {
        self.live()
    }
    fn ready(&self) -> Answer {
        self.ready()
    }
    fn lacks(&self) -> Option<String> {
        self.lacks()
    }
}

#[cfg(feature = "host")]
impl Health for host::agent::Health {
    fn live(&self) -> Answer {
        self.live()
    }
    fn ready(&self) -> Answer {
        self.ready()
    }
    fn lacks(&self) -> Option<String> {
        self.lacks()
    }
}

/// URLs of the bus, without their secrets.
fn shown(urls: &[String]) -> String {
    urls.iter().map(|url| bus::without_secret(url)).collect::<Vec<_>>().join(",")
}
