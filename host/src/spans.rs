//! Spans for OpenTelemetry: one for each request at the ingress, each invocation of an actor, each call of a provider or
//! over the bus, and each request that leaves, joined by the trace context that goes along with all of them. Off unless
//! the process was given a collector; then a span that is not begun costs one look at a flag.

use crate::call::CallError;
use crate::origin::{Origin, TRACEPARENT};
use http::HeaderMap;

/// What kind of work a span is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It answers a request from elsewhere.
    Server,
    /// It waits for one elsewhere.
    Client,
    /// Neither.
    Within,
}

#[cfg(feature = "otel")]
pub use on::{Span, are_on, begin, shutdown, start};

#[cfg(not(feature = "otel"))]
pub use off::{Span, are_on, begin, shutdown};

/// What was caused by `span`, or by what caused it when nobody records.
pub fn caused_by(span: &Span, origin: &Origin) -> Origin {
    match span.traceparent() {
        Some(traceparent) => Origin { traceparent: Some(traceparent), ..origin.clone() },
        None => origin.clone(),
    }
}

/// Says in the headers that `span` is what causes all else; nothing when nobody records.
pub fn put(span: &Span, headers: &mut HeaderMap) {
    if let Some(traceparent) = span.traceparent() {
        headers.insert(TRACEPARENT, traceparent);
    }
}

/// As a call's error is told.
pub fn ended<T>(span: &mut Span, outcome: &Result<T, CallError>) {
    if let Err(error) = outcome {
        span.set("error.type", error.code());
        span.failed(&error.to_string());
    }
}

#[cfg(feature = "otel")]
mod on {
    use super::Kind;
    use crate::origin::{Origin, Trace};
    use http::HeaderValue;
    use opentelemetry::trace::{
        Span as _, SpanContext, SpanId, SpanKind, Status, TraceContextExt as _, TraceFlags, TraceId, TraceState,
        Tracer as _, TracerProvider as _,
    };
    use opentelemetry::{Context, KeyValue};
    use opentelemetry_sdk::Resource;
    use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider, Span as SdkSpan};
    use std::sync::OnceLock;

    /// One for the process, as the standard's own libraries have it: what is recorded does not depend on who asks.
    static TRACER: OnceLock<(SdkTracer, SdkTracerProvider)> = OnceLock::new();

    /// Records from now on, and sends what it recorded to the collector that the standard's variables name
    /// (`OTEL_EXPORTER_OTLP_ENDPOINT` and the like). Within a tokio runtime, once.
    pub fn start(service: &str, attributes: &[(&'static str, String)]) -> Result<(), String> {
        let exporter = opentelemetry_otlp::SpanExporter::builder().with_tonic().build().map_err(|e| e.to_string())?;
        // OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES are read by the library, and come first.
        let named = std::env::var_os("OTEL_SERVICE_NAME").is_some();
        let mut resource = Resource::builder()
            .with_attributes(attributes.iter().map(|(key, value)| KeyValue::new(*key, value.clone())));
        if !named {
            resource = resource.with_service_name(service.to_owned());
        }
        let provider =
            SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource.build()).build();
        let _ = TRACER.set((provider.tracer("lattice"), provider));
        Ok(())
    }

    /// Sends what was not sent yet; waits for it no longer than the library's own bound.
    pub fn shutdown() {
        if let Some((_, provider)) = TRACER.get() {
            let _ = provider.shutdown();
        }
    }

    /// Whether anything is recorded.
    pub fn are_on() -> bool {
        TRACER.get().is_some()
    }

    /// A span; ends when it is dropped.
    #[derive(Debug, Default)]
    pub struct Span(Option<Box<SdkSpan>>);

    /// Begins a span. What caused it, and its name, are asked only when somebody records.
    pub fn begin(kind: Kind, origin: impl FnOnce() -> Origin, name: impl FnOnce() -> String) -> Span {
        let Some((tracer, _)) = TRACER.get() else { return Span(None) };
        let parent = origin().trace().map(remote).unwrap_or_default();
        let kind = match kind {
            Kind::Server => SpanKind::Server,
            Kind::Client => SpanKind::Client,
            Kind::Within => SpanKind::Internal,
        };
        let span = tracer.span_builder(name()).with_kind(kind).start_with_context(tracer, &parent);
        Span(Some(Box::new(span)))
    }

    fn remote(trace: Trace) -> Context {
        let flags = if trace.sampled { TraceFlags::SAMPLED } else { TraceFlags::default() };
        let (id, span) = (TraceId::from_bytes(trace.id), SpanId::from_bytes(trace.span));
        Context::new().with_remote_span_context(SpanContext::new(id, span, flags, true, TraceState::default()))
    }

    impl Span {
        pub fn is_on(&self) -> bool {
            self.0.is_some()
        }

        pub fn set(&mut self, key: &'static str, value: impl Into<opentelemetry::Value>) {
            if let Some(span) = &mut self.0 {
                span.set_attribute(KeyValue::new(key, value));
            }
        }

        pub fn failed(&mut self, why: &str) {
            if let Some(span) = &mut self.0 {
                span.set_status(Status::error(why.to_owned()));
            }
        }

        pub(super) fn traceparent(&self) -> Option<HeaderValue> {
            let context = self.0.as_ref()?.span_context();
            let trace = Trace {
                id: context.trace_id().to_bytes(),
                span: context.span_id().to_bytes(),
                sampled: context.is_sampled(),
            };
            Some(trace.value())
        }
    }
}

#[cfg(not(feature = "otel"))]
mod off {
    use super::Kind;
    use crate::origin::Origin;
    use http::HeaderValue;

    /// Nothing: this build records no spans.
    #[derive(Debug, Default)]
    pub struct Span;

    pub fn are_on() -> bool {
        false
    }

    pub fn begin(_: Kind, _: impl FnOnce() -> Origin, _: impl FnOnce() -> String) -> Span {
        Span
    }

    pub fn shutdown() {}

    impl Span {
        pub fn is_on(&self) -> bool {
            false
        }
        pub fn set<V>(&mut self, _: &'static str, _: V) {}
        pub fn failed(&mut self, _: &str) {}
        pub(super) fn traceparent(&self) -> Option<HeaderValue> {
            None
        }
    }
}
