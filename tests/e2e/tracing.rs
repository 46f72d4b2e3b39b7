//! Spans of one request, as a collector gets them from the processes that had to do with it.

use crate::harness::http::{self, Request};
use crate::harness::{Broker, Lattice, SOON, file, manifests, scenarios, until};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Response, Status};

scenarios!(
    the_spans_of_a_request_are_one_tree_over_two_hosts,
    actors_that_call_each_other_are_in_one_trace,
    what_leaves_bears_the_trace,
);

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// Keeps what it is sent: the span, and the name of the host that sent it.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<(String, Span)>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for of_process in request.into_inner().resource_spans {
            let attributes = of_process.resource.unwrap_or_default().attributes;
            let name = attributes.iter().find(|a| a.key == "host.name").and_then(|a| a.value.clone()?.value);
            let Some(Value::StringValue(host)) = name else { return Err(Status::invalid_argument("no host.name")) };
            let spans = of_process.scope_spans.into_iter().flat_map(|scope| scope.spans);
            self.0.lock().unwrap().extend(spans.map(|span| (host.clone(), span)));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// On a thread of its own, for as long as the tests run.
    fn start() -> (Self, SocketAddr) {
        let collector = Self::default();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let (at, service) = (listener.local_addr().unwrap(), collector.clone());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let incoming = TcpListenerStream::new(tokio::net::TcpListener::from_std(listener).unwrap());
                let server = tonic::transport::Server::builder().add_service(TraceServiceServer::new(service));
                server.serve_with_incoming(incoming).await.unwrap();
            });
        });
        (collector, at)
    }

    /// The spans of the trace, each caused by the one before it: by the host that sent it and its name.
    fn chain(&self, trace: &str, of: &[(&str, &str)]) -> Vec<Span> {
        until(&format!("the chain {of:?}"), SOON, || {
            let spans = self.of(&hex(trace));
            let mut parent = hex(PARENT);
            let next = |(host, name): &(&str, &str)| {
                let found = spans.iter().find(|(h, s)| h == host && s.parent_span_id == parent && s.name == *name)?;
                parent.clone_from(&found.1.span_id);
                Some(found.1.clone())
            };
            of.iter().map(next).collect()
        })
    }

    fn of(&self, trace: &[u8]) -> Vec<(String, Span)> {
        self.0.lock().unwrap().iter().filter(|(_, span)| span.trace_id == trace).cloned().collect()
    }
}

fn recorded(at: SocketAddr) -> Vec<(&'static str, String)> {
    vec![("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{at}")), ("OTEL_BSP_SCHEDULE_DELAY", "100".to_owned())]
}

fn actors_that_call_each_other_are_in_one_trace(broker: Broker) {
    let (collector, at) = Collector::start();
    let mut lattice = Lattice::start_in(broker, &["tier=cloud"], recorded(at));
    let ask = |lattice: &Lattice, trace: &str| {
        let (ingress, host) = (lattice.ingress("a"), "keystore-actor.localhost");
        until("it serves", SOON, || {
            let request = Request { method: "PUT", host, body: b"Ada", ..Request::get(ingress, "/name") };
            (request.send().ok()?.status == 204).then_some(())
        });
        let more = format!("traceparent: 00-{trace}-{PARENT}-01\r\n");
        let request = Request { host, more: &more, ..Request::get(ingress, "/name") };
        assert_eq!(request.send().unwrap().text(), "Ada");
    };
    let (client, vault) = ("keystore-actor/client http", "keystore-actor/vault get");
    let asked = "wasi:keyvalue/store.get of keystore-actor/store";
    lattice.apply(&manifests::keystore_actor());
    ask(&lattice, TRACE);
    // On one host nothing is sent, and all is told.
    collector.chain(TRACE, &[("a", "GET"), ("a", client), ("a", vault), ("a", asked)]);

    lattice.add_host("b", &["tier=edge"], false);
    lattice.until_hosts(&[("b", "ready")]);
    lattice.apply(&manifests::keystore_actor_apart(&lattice));
    lattice.until_spread("keystore-actor", "vault", &[("b", 1)], SOON);
    let other = TRACE.replace('4', "5");
    ask(&lattice, &other);
    let called = "lattice:keystore/store.get of keystore-actor/vault";
    let over = [("a", "GET"), ("a", client), ("a", called), ("b", called), ("b", vault), ("b", asked), ("a", asked)];
    collector.chain(&other, &over);
}

/// A server that says what trace each request is of.
fn told() -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (at, seen) = (listener.local_addr().unwrap(), Arc::<Mutex<Vec<String>>>::default());
    let taken = seen.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let head = BufReader::new(stream.try_clone().unwrap()).lines().map(Result::unwrap_or_default);
            let head: Vec<String> = head.take_while(|line| !line.is_empty()).collect();
            let traces =
                head.iter().filter_map(|line| Some(line.to_lowercase().strip_prefix("traceparent: ")?.to_owned()));
            taken.lock().unwrap().extend(traces);
            let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n");
        }
    });
    (at, seen)
}

fn what_leaves_bears_the_trace(broker: Broker) {
    let (collector, at) = Collector::start();
    let (asked, seen) = told();
    let lattice = Lattice::start_in(broker, &[], recorded(at));
    // One of WASI 0.2, one of 0.3.
    for (name, target, trace) in [
        ("hostile", format!("/out?url=http://{asked}/"), TRACE.to_owned()),
        ("later", format!("/ask?{asked}"), TRACE.replace('4', "5")),
    ] {
        let image = file(&format!("tests/guests/{name}/{name}.wasm"));
        let ingress = format!("{{type: ingress, properties: {{host: {name}.localhost, path: /}}}}");
        let grants = format!("{{type: grants, properties: {{http: ['http://{asked}']}}}}");
        lattice.apply(&manifests::actor(&lattice, name, &image, &[&ingress, &grants]));
        let host = format!("{name}.localhost");
        until("it serves", SOON, || http::answers(lattice.ingress("a"), &host));
        let more = format!("traceparent: 00-{trace}-{PARENT}-01\r\n");
        let answer =
            Request { host: &host, more: &more, ..Request::get(lattice.ingress("a"), &target) }.send().unwrap();
        assert!(answer.text().contains("status 204"), "{}", answer.text());
        let served = format!("{name}/a http");
        let chain = collector.chain(&trace, &[("a", "GET"), ("a", &served), ("a", "GET 127.0.0.1")]);
        let span: String = chain[2].span_id.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(seen.lock().unwrap().last(), Some(&format!("00-{trace}-{span}-01")));
    }
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

fn the_spans_of_a_request_are_one_tree_over_two_hosts(broker: Broker) {
    let (collector, at) = Collector::start();
    let mut lattice = Lattice::start_in(broker, &["tier=cloud"], recorded(at));
    lattice.add_host("b", &["tier=edge"], false);
    lattice.until_hosts(&[("b", "ready")]);
    lattice.apply(&manifests::counter_apart());
    lattice.until_spread("counter-apart", "counter", &[("a", 1)], SOON);
    lattice.until_spread("counter-apart", "store", &[("b", 1)], SOON);
    let ingress = lattice.ingress("a");
    until("it serves", SOON, || http::answers(ingress, "counter-apart.localhost"));

    let ask = |more: &str| {
        let request = Request { host: "counter-apart.localhost", more, ..Request::get(ingress, "/cats") };
        let answer = request.send().unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer
    };
    ask(&format!("X-Request-Id: order-7\r\ntraceparent: 00-{TRACE}-{PARENT}-01\r\n"));
    let child = |spans: &[(String, Span)], host: &str, parent: &[u8]| -> Option<Span> {
        spans.iter().find(|(h, span)| h == host && span.parent_span_id == parent).map(|(_, span)| span.clone())
    };
    // Each process sends its own when it has them: the whole chain is waited for.
    let (request, guest, call, served) = until("a chain over both hosts", SOON, || {
        let spans = collector.of(&hex(TRACE));
        let request = child(&spans, "a", &hex(PARENT))?;
        let guest = child(&spans, "a", &request.span_id)?;
        let call = child(&spans, "a", &guest.span_id)?;
        let served = child(&spans, "b", &call.span_id)?;
        Some((request, guest, call, served))
    });
    assert_eq!(request.name, "GET");
    let attribute = |key: &str| request.attributes.iter().find(|a| a.key == key).and_then(|a| a.value.clone()?.value);
    assert_eq!(attribute("http.response.status_code"), Some(Value::IntValue(200)));
    assert_eq!(attribute("lattice.request_id"), Some(Value::StringValue("order-7".into())));
    assert_eq!(attribute("lattice.actor"), Some(Value::StringValue("counter".into())));
    assert_eq!(guest.name, "counter-apart/counter http");
    assert!(call.name.starts_with("wasi:keyvalue/") && call.name.ends_with(" of counter-apart/store"), "{}", call.name);
    assert_eq!(served.name, call.name);
    assert!(served.start_time_unix_nano <= served.end_time_unix_nano && call.end_time_unix_nano > 0);

    // Without a parent it is a trace of its own, by whose id the request is known.
    let id = ask("").header("x-request-id").unwrap().to_owned();
    until("a trace of its own", SOON, || {
        let spans = collector.of(&hex(&id));
        spans
            .iter()
            .any(|(host, span)| host == "a" && span.parent_span_id.is_empty() && span.name == "GET")
            .then_some(())
    });
    // Who asks that nothing be recorded is heard.
    let quiet = TRACE.replace('4', "5");
    ask(&format!("traceparent: 00-{quiet}-{PARENT}-00\r\n"));
    let id = ask("").header("x-request-id").unwrap().to_owned();
    until("what came later", SOON, || (!collector.of(&hex(&id)).is_empty()).then_some(()));
    assert!(collector.of(&hex(&quiet)).is_empty());
}
