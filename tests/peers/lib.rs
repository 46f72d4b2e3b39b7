//! The least that an HTTP server can cost which answers with a text of its own, and with what a component answers: hyper
//! and the library that runs components, with nothing around them. Each listens on a free port of loopback, says on its
//! standard output "listens ADDRESS", and ends with its standard input.
//!
//! Nothing here is for use: a component's answer is read when its handler has returned, so one whose body is larger than
//! what the library buffers never returns.

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, oneshot};
use wasmtime::component::{Component, Linker, ResourceTable};
use wasmtime::{Config, Engine, Store};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::p2::bindings::http::types::Scheme;
use wasmtime_wasi_http::p2::bindings::{Proxy, ProxyPre};
use wasmtime_wasi_http::p2::body::HyperOutgoingBody;
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

/// Answers every request with the same line.
pub fn serve_text() -> Result<()> {
    serve(|stream| async {
        let answer = |_: Request<Incoming>| async {
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"Hello from lattice!\n"))))
        };
        Ok(http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer)).await?)
    })
}

/// Answers with the `wasi:http/incoming-handler` of a component, in one instance for each connection: none is ever made
/// for a request, nothing bounds it, nothing is denied.
pub fn serve_component(file: &Path) -> Result<()> {
    let mut config = Config::new();
    // Calls are about three times cheaper without the tables of WASI 0.3, as in a host.
    config.wasm_component_model_async(false).concurrency_support(false);
    let engine = Engine::new(&config)?;
    let component = Component::from_file(&engine, file)?;
    let mut linker = Linker::new(&engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker)?;
    let proxy = ProxyPre::new(linker.instantiate_pre(&component)?)?;
    serve(move |stream| connection(Store::new(&engine, Guest::default()), proxy.clone(), stream))
}

async fn connection(mut store: Store<Guest>, proxy: ProxyPre<Guest>, stream: TcpStream) -> Result<()> {
    let proxy = proxy.instantiate_async(&mut store).await?;
    // Never waited for: a connection has one request at a time.
    let instance = Arc::new(Mutex::new((store, proxy)));
    let answer = |request| {
        let instance = instance.clone();
        async move {
            let (store, proxy) = &mut *instance.lock().await;
            ask(store, proxy, request).await
        }
    };
    Ok(http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer)).await?)
}

async fn ask(
    store: &mut Store<Guest>,
    proxy: &Proxy,
    request: Request<Incoming>,
) -> wasmtime::Result<Response<HyperOutgoingBody>> {
    let (tx, mut rx) = oneshot::channel();
    let request = store.data_mut().http().new_incoming_request(Scheme::Http, request)?;
    let out = store.data_mut().http().new_response_outparam(tx)?;
    proxy.wasi_http_incoming_handler().call_handle(store, request, out).await?;
    Ok(rx.try_recv()??)
}

/// The data of a store.
#[derive(Default)]
struct Guest {
    wasi: WasiCtx,
    http: WasiHttpCtx,
    table: ResourceTable,
}

impl WasiView for Guest {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl WasiHttpView for Guest {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView { ctx: &mut self.http, table: &mut self.table, hooks: Default::default() }
    }
}

/// Serves each connection on a task of its own.
fn serve<F>(connection: impl Fn(TcpStream) -> F) -> Result<()>
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
    let runtime = tokio::runtime::Runtime::new().context("can not start a runtime")?;
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("no free port on loopback")?;
        println!("listens {}", listener.local_addr().context("no address")?);
        loop {
            let (stream, _) = listener.accept().await.context("can not accept")?;
            let _ = stream.set_nodelay(true);
            let serving = connection(stream);
            tokio::spawn(async move {
                if let Err(error) = serving.await {
                    eprintln!("{error:#}");
                }
            });
        }
    })
}
