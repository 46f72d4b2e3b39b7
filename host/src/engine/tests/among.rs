//! Several requests in one instance at once: what each prints and calls bears its own id and trace.

use super::capabilities::Memory;
use super::*;
use crate::origin::{REQUEST_ID, TRACEPARENT};
use proto::app::{Grants, Limits};
use std::io::{Read as _, Write as _};
use std::time::Duration;

/// (request id, text) of lines; request ids of calls over a link.
#[derive(Default)]
struct Told {
    lines: Mutex<Vec<(String, String)>>,
    calls: Mutex<Vec<String>>,
    memory: Arc<Memory>,
}

impl LogSink for Told {
    fn line(&self, _: u64, request_id: &str, _: &str, text: &str) {
        self.lines.lock().unwrap().push((request_id.to_owned(), text.to_owned()));
    }
}

impl Imports for Told {
    fn keyvalue(&self, _: &str, _: &str, origin: &Origin) -> Result<Arc<dyn KeyValue>, CallError> {
        self.calls.lock().unwrap().push(origin.request_id().to_owned());
        Ok(self.memory.clone())
    }
    fn keystore(&self, _: &str, _: &Origin) -> Result<Arc<dyn KeyStore>, CallError> {
        Err(unlinked("lattice:keystore/store"))
    }
    fn dynamic(&self, interface: &str, _: &str) -> Result<Arc<dyn Serve>, CallError> {
        Err(unlinked(interface))
    }
}

/// A server that takes down the trace of each request.
fn traces() -> (std::net::SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (at, seen) = (listener.local_addr().unwrap(), Arc::<Mutex<Vec<String>>>::default());
    let taken = seen.clone();
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let mut head = Vec::new();
            while !head.windows(4).any(|w| w == b"\r\n\r\n") {
                let mut bytes = [0; 1024];
                match stream.read(&mut bytes) {
                    Ok(0) | Err(_) => break,
                    Ok(len) => head.extend_from_slice(&bytes[..len]),
                }
            }
            let head = String::from_utf8(head).unwrap().to_lowercase();
            let trace = head.lines().find_map(|line| line.strip_prefix("traceparent: ")).unwrap_or_default();
            taken.lock().unwrap().push(trace.to_owned());
            let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n");
        }
    });
    (at, seen)
}

fn traceparent(ms: u64) -> String {
    format!("00-4bf92f3577b34da6a3ce929d0e0e{ms:04}-00f067aa0ba902b7-00")
}

async fn asked(limits: Limits, rounds: &[&[u64]]) {
    let world = World::new();
    let (at, traces) = traces();
    let told = Arc::new(Told::default());
    let grants = Grants { http: vec![format!("http://{at}")], ..Grants::default() };
    let spec = Spec { limits, grants, imports: told.clone(), logs: told.clone(), replicas: 8, ..world.spec() };
    let actor = world.actor(committed("tests/guests/among/among.wasm"), spec).await;
    let mut all = Vec::new();
    for round in rounds {
        let actor = &actor;
        let requests = round.iter().map(|ms| async move {
            let mut request = get(&format!("/{ms}?{at}"));
            request.headers_mut().insert(REQUEST_ID, format!("r-{ms}").parse().unwrap());
            request.headers_mut().insert(TRACEPARENT, traceparent(*ms).parse().unwrap());
            text(actor.http(request, None).await).await
        });
        for answer in futures::future::join_all(requests).await {
            assert_eq!(answer, "Ok(None) status 204\n");
        }
        all.extend_from_slice(round);
    }
    assert!(actor.drain(Duration::from_secs(20)).await);
    // An answer is out before its task has printed the last.
    let end = std::time::Instant::now() + Duration::from_secs(20);
    while told.lines.lock().unwrap().len() < 3 * all.len() && std::time::Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let sorted = |mut all: Vec<String>| {
        all.sort();
        all
    };
    let wanted = all.iter().flat_map(|ms| {
        [format!("logged {ms}"), format!("printed {ms}"), "sent".to_owned()].map(|text| format!("r-{ms}: {text}"))
    });
    let lines = told.lines.lock().unwrap().iter().map(|(id, text)| format!("{id}: {text}")).collect();
    assert_eq!(sorted(lines), sorted(wanted.collect()));
    // It opens, then gets.
    let wanted = all.iter().flat_map(|ms| [format!("r-{ms}"), format!("r-{ms}")]);
    assert_eq!(sorted(told.calls.lock().unwrap().clone()), sorted(wanted.collect()));
    assert_eq!(sorted(traces.lock().unwrap().clone()), sorted(all.iter().map(|ms| traceparent(*ms)).collect()));
}

#[tokio::test]
async fn requests_in_one_instance_are_told_apart() {
    let limits = Limits { reuse: 20, concurrency: 8, ..Limits::default() };
    asked(limits, &[&[0], &[300, 100, 200], &[1], &[401, 202, 3]]).await;
}

#[tokio::test]
async fn one_after_the_other_and_one_alone_are_told_as_well() {
    asked(Limits { reuse: 20, ..Limits::default() }, &[&[0], &[1], &[2]]).await;
    asked(Limits::default(), &[&[0], &[101, 52]]).await;
}
