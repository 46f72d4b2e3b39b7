//! Spans of one request, as a collector gets them from the processes that had to do with it.

use crate::harness::http::{self, Request};
use crate::harness::{Broker, Lattice, SOON, manifests, scenarios, until};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Response, Status};

scenarios!(the_spans_of_a_request_are_one_tree_over_two_hosts);

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

    fn of(&self, trace: &[u8]) -> Vec<(String, Span)> {
        self.0.lock().unwrap().iter().filter(|(_, span)| span.trace_id == trace).cloned().collect()
    }
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

fn the_spans_of_a_request_are_one_tree_over_two_hosts(broker: Broker) {
    let (collector, at) = Collector::start();
    let env =
        vec![("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{at}")), ("OTEL_BSP_SCHEDULE_DELAY", "100".to_owned())];
    let mut lattice = Lattice::start_in(broker, &["tier=cloud"], env);
    lattice.add_host("b", &["tier=edge"], false);
    lattice.until_hosts(&[("b", "ready")]);
    lattice.apply(&manifests::counter_apart());
    lattice.until_spread("counter-apart", "counter", &[("a", 1)], SOON);
    lattice.until_spread("counter-apart", "store", &[("b", 1)], SOON);
    let ingress = lattice.ingress("a");
    until("it serves", SOON, || http::answers(ingress, "counter-apart.localhost"));

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const PARENT: &str = "00f067aa0ba902b7";
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
