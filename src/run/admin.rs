//! For what watches a process: `/healthz`, `/readyz` and `/metrics` on an address of its own, so that none of them takes a
//! path from an actor. Reads only; never says anything that `lattice get` would not.

use super::Tls;
use anyhow::Context as _;
use clap::Args;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _, text};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// Clients at a time; more wait.
const CLIENTS_MAX: usize = 32;
/// For a request's head, and the longest that a client may keep its connection.
const HEAD_WAIT: Duration = Duration::from_secs(5);
const CLIENT_MAX: Duration = Duration::from_secs(120);
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Watching")]
pub(crate) struct AdminArgs {
    /// Where to answer /healthz, /readyz and /metrics (Prometheus) [default: nowhere]
    #[arg(long, value_name = "IP:PORT", value_parser = super::listen::parse)]
    pub(crate) admin: Option<SocketAddr>,
}

/// Why something is not well.
pub(crate) type Answer = Result<(), String>;

/// How a part of a process is asked whether it is well.
pub(crate) trait Health: Send + Sync {
    /// Its loop runs: else only another start helps.
    fn live(&self) -> Answer;
    /// It can be asked for what it is there for.
    fn ready(&self) -> Answer;
    /// What is not as it should be, though it can be asked.
    fn lacks(&self) -> Option<String>;
}

struct Part {
    name: &'static str,
    health: Box<dyn Health>,
}

/// What is told.
pub(crate) struct Told {
    parts: Vec<Part>,
    registry: Registry,
}

impl Told {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Process));
        Self { parts: Vec::new(), registry }
    }

    pub(crate) fn add(&mut self, name: &'static str, health: Box<dyn Health>, metrics: Box<dyn Collector>) {
        self.parts.push(Part { name, health });
        self.registry.register_collector(metrics);
    }

    fn all(&self, ask: impl Fn(&dyn Health) -> Answer) -> Answer {
        let wrong = self.parts.iter().filter_map(|part| Some(format!("{}: {}", part.name, ask(&*part.health).err()?)));
        let wrong: Vec<String> = wrong.collect();
        if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
    }

    /// `ready`, and a line for each part that lacks something all the same.
    fn ready_text(&self) -> String {
        let lacks = self.parts.iter().filter_map(|part| Some(format!("\n{}: {}", part.name, part.health.lacks()?)));
        std::iter::once("ready".to_owned()).chain(lacks).collect()
    }

    fn answer<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "GET or HEAD");
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        match request.uri().path() {
            "/healthz" => well(self.all(|part| part.live()), "ok"),
            "/readyz" => well(self.all(|part| part.ready()), &self.ready_text()),
            "/metrics" => {
                let mut page = String::new();
                if text::encode(&mut page, &self.registry).is_err() {
                    return plain(StatusCode::INTERNAL_SERVER_ERROR, "the page can not be written");
                }
                let mut response = plain(StatusCode::OK, "");
                *response.body_mut() = page.into();
                response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(OPENMETRICS));
                response
            }
            _ => plain(StatusCode::NOT_FOUND, "there are /healthz, /readyz and /metrics"),
        }
    }
}

fn well(answer: Answer, yes: &str) -> Response<Full<Bytes>> {
    match answer {
        Ok(()) => plain(StatusCode::OK, yes),
        Err(why) => plain(StatusCode::SERVICE_UNAVAILABLE, &why),
    }
}

fn plain(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(format!("{text}\n")));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Listens; the second is served until `stop`.
pub(crate) async fn start(
    at: SocketAddr,
    tls: Option<&Tls>,
    told: Told,
    stop: CancellationToken,
) -> anyhow::Result<(SocketAddr, impl Future<Output = ()> + Send + use<>)> {
    let tls = tls.map(acceptor).transpose()?;
    let listener = TcpListener::bind(at).await.with_context(|| format!("--admin {at}: choose another address"))?;
    let at = listener.local_addr()?;
    let told = Arc::new(told);
    let serving = async move {
        let room = Arc::new(Semaphore::new(CLIENTS_MAX));
        loop {
            let next = async {
                let place = room.clone().acquire_owned().await.expect("never closed");
                (place, listener.accept().await)
            };
            let (place, accepted) = tokio::select! {
                () = stop.cancelled() => return,
                next = next => next,
            };
            let Ok((stream, _)) = accepted else {
                // No file is left for it: others end.
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            };
            let (tls, told, stop) = (tls.clone(), told.clone(), stop.clone());
            tokio::spawn(async move {
                let served = async {
                    match tls {
                        None => speak(stream, told).await,
                        Some(tls) => {
                            if let Ok(Ok(stream)) = tokio::time::timeout(HEAD_WAIT, tls.accept(stream)).await {
                                speak(stream, told).await;
                            }
                        }
                    }
                };
                tokio::select! {
                    () = stop.cancelled() => {}
                    _ = tokio::time::timeout(CLIENT_MAX, served) => {}
                }
                drop(place);
            });
        }
    };
    Ok((at, serving))
}

async fn speak(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, told: Arc<Told>) {
    let service = service_fn(|request: Request<Incoming>| {
        let told = told.clone();
        // Thousands of actors make a long page: not on a thread that serves.
        async move {
            let answer = tokio::task::spawn_blocking(move || told.answer(&request)).await;
            Ok::<_, Infallible>(answer.unwrap_or_else(|_| plain(StatusCode::INTERNAL_SERVER_ERROR, "it panicked")))
        }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_WAIT).max_buf_size(16 * 1024);
    if let Err(error) = builder.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(%error, "a client of --admin is gone");
    }
}

fn acceptor(tls: &Tls) -> anyhow::Result<TlsAcceptor> {
    let chain: Result<Vec<CertificateDer<'static>>, _> =
        CertificateDer::pem_file_iter(&tls.cert).and_then(Iterator::collect);
    let chain = chain.with_context(|| tls.cert.display().to_string())?;
    let key = PrivateKeyDer::from_pem_file(&tls.key).with_context(|| tls.key.display().to_string())?;
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .with_context(|| format!("{}: check that --tls-cert and --tls-key belong together", tls.cert.display()))?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// This process, by the names that all Prometheus clients use.
#[derive(Debug)]
struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder) -> std::fmt::Result {
        if let Some(seconds) = cpu_seconds() {
            let spent = ConstCounter::new(seconds);
            let help = "Processor time that the process has used";
            spent.encode(encoder.encode_descriptor("process_cpu_seconds", help, None, spent.metric_type())?)?;
        }
        if let Some(bytes) = resident_bytes() {
            let resident = ConstGauge::new(bytes);
            let help = "Resident memory of the process";
            let name = "process_resident_memory_bytes";
            resident.encode(encoder.encode_descriptor(name, help, None, resident.metric_type())?)?;
        }
        Ok(())
    }
}

/// User and system time of `/proc/self/stat`, in the ticks of all Linux ports: 100 a second.
fn cpu_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name of the process may hold anything but its last parenthesis.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<f64>().ok();
    Some((ticks()? + ticks()?) / 100.0)
}

fn resident_bytes() -> Option<i64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<i64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_that_is_not_well_is_named() {
        struct Fixed(Answer);
        impl Health for Fixed {
            fn live(&self) -> Answer {
                Ok(())
            }
            fn ready(&self) -> Answer {
                self.0.clone()
            }
            fn lacks(&self) -> Option<String> {
                Some("the bus is not connected".to_owned())
            }
        }
        let mut told = Told::new();
        told.add("scheduler", Box::new(Fixed(Ok(()))), Box::new(Process));
        let ask = |told: &Told, method: &str, path: &str| {
            told.answer(&Request::builder().method(method).uri(path).body(()).unwrap()).status().as_u16()
        };
        assert_eq!((ask(&told, "GET", "/healthz"), ask(&told, "HEAD", "/readyz?x")), (200, 200));
        assert_eq!(told.ready_text(), "ready\nscheduler: the bus is not connected");
        told.add("host", Box::new(Fixed(Err("it is ending".into()))), Box::new(Process));
        assert_eq!((ask(&told, "GET", "/healthz"), ask(&told, "GET", "/readyz")), (200, 503));
        assert_eq!(told.all(|part| part.ready()).unwrap_err(), "host: it is ending");
        assert_eq!((ask(&told, "POST", "/metrics"), ask(&told, "GET", "/")), (405, 404));
        let page = told.answer(&Request::get("/metrics").body(()).unwrap());
        assert_eq!(
            (page.status().as_u16(), &page.headers()[CONTENT_TYPE]),
            (200, &HeaderValue::from_static(OPENMETRICS))
        );
    }
}
