//! Real components in a real engine: what they answer, what they are denied, and what they can not break.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod among;
mod calls;
mod capabilities;
mod grants;
mod hostile;
mod later;
mod limits;
mod load;
mod reuse;

use super::{Actor, Config, Engine, Spec};
use crate::call::{Body, CallError, Serve};
use crate::capability::keystore::KeyStore;
use crate::capability::keyvalue::KeyValue;
use crate::capability::{Imports, LogSink};
use crate::origin::Origin;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use proto::app::Digest;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

pub(super) struct World {
    pub(super) engine: Engine,
    pub(super) dir: tempfile::TempDir,
    pub(super) lines: Arc<Lines>,
}

impl World {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::new(config(&dir)).unwrap();
        Self { engine, dir, lines: Arc::default() }
    }
    pub(super) fn spec(&self) -> Spec {
        Spec {
            app: "shop".parse().unwrap(),
            actor: "cart".parse().unwrap(),
            revision: 1,
            replicas: 10,
            config: BTreeMap::from([("color".to_owned(), "green".to_owned())]),
            grants: Default::default(),
            limits: Default::default(),
            imports: Arc::new(Links::default()),
            logs: self.lines.clone(),
            holding: None,
            source: Arc::new(|| Err(std::io::ErrorKind::NotFound.into())),
        }
    }
    pub(super) async fn actor(&self, bytes: Vec<u8>, spec: Spec) -> Arc<Actor> {
        let (digest, stack_bytes) = (Digest::of(&bytes), spec.limits.stack_bytes);
        let module = self.engine.load_sized(&digest, stack_bytes, 0, || Ok(bytes), |_| ()).await.unwrap();
        self.engine.prepare(&module, spec).unwrap()
    }
}

pub(super) fn config(dir: &tempfile::TempDir) -> Config {
    Config {
        cache_dir: dir.path().join("cache"),
        memory_bytes: 1 << 30,
        instances_max: 64,
        policy: Arc::default(),
        bus: bus_at(&[]),
        compiler: None,
    }
}

/// The bus, as far as actors must not reach it. Nobody tells of another any more.
pub(super) fn bus_at(addresses: &[std::net::SocketAddr]) -> crate::engine::BusAddresses {
    tokio::sync::watch::channel(Arc::from(addresses)).1
}

/// Answers every request, on a thread of its own.
pub(super) fn server() -> std::net::SocketAddr {
    use std::io::{Read as _, Write as _};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n");
        }
    });
    addr
}

/// A component that is committed in this repository.
pub(super) fn committed(path: &str) -> Vec<u8> {
    std::fs::read(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(path)).unwrap()
}
pub(super) fn hello() -> Vec<u8> {
    committed("manifests/hello/hello.wasm")
}
pub(super) fn hostile() -> Vec<u8> {
    committed("tests/guests/hostile/hostile.wasm")
}

pub(super) fn get(path: &str) -> http::Request<Body> {
    post(path, "")
}
pub(super) fn post(path: &str, body: &'static str) -> http::Request<Body> {
    let body = Full::new(Bytes::from(body)).map_err(|never| match never {}).boxed_unsync();
    http::Request::builder().uri(path).header("host", "shop.example").body(body).unwrap()
}
pub(super) async fn text(response: Result<http::Response<Body>, CallError>) -> String {
    let bytes = response.unwrap().into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// What guests printed: (stream, text).
#[derive(Default)]
pub(super) struct Lines(pub(super) Mutex<Vec<(String, String)>>);

impl LogSink for Lines {
    fn line(&self, _: u64, _: &str, stream: &str, text: &str) {
        self.0.lock().unwrap().push((stream.to_owned(), text.to_owned()));
    }
}

/// Links to other actors; nothing else is linked.
#[derive(Default)]
pub(super) struct Links(pub(super) BTreeMap<String, Arc<dyn Serve>>);

fn unlinked(interface: &str) -> CallError {
    CallError::Denied(format!("no link for {interface}"))
}

impl Imports for Links {
    fn keyvalue(&self, interface: &str, _: &str, _: &Origin) -> Result<Arc<dyn KeyValue>, CallError> {
        Err(unlinked(interface))
    }
    fn keystore(&self, _: &str, _: &Origin) -> Result<Arc<dyn KeyStore>, CallError> {
        Err(unlinked("lattice:keystore/store"))
    }
    fn dynamic(&self, interface: &str, _: &str) -> Result<Arc<dyn Serve>, CallError> {
        self.0.get(interface).cloned().ok_or_else(|| unlinked(interface))
    }
}

/// A component from WIT alone: it has the world's imports and exports, and traps when it is called.
pub(crate) fn from_wit(wit: &str) -> Vec<u8> {
    let mut resolve = wit_parser::Resolve::new();
    let package = resolve.push_str("test.wit", wit).unwrap();
    let world = resolve.select_world(&[package], None).unwrap();
    let mangling = wit_parser::ManglingAndAbi::Standard32;
    let mut module = wit_component::dummy_module(&resolve, world, mangling);
    wit_component::embed_component_metadata(&mut module, &resolve, world, wit_component::StringEncoding::UTF8).unwrap();
    wit_component::ComponentEncoder::default().module(&module).unwrap().encode().unwrap()
}
