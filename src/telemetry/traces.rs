//! Traces by OTLP over gRPC, where `OTEL_EXPORTER_OTLP_ENDPOINT` asks for them; the rest of `OTEL_*` is the SDK's. The
//! context of a trace is taken from, and passed on to, others either way.

use http::HeaderMap;
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::TracerProvider;
use opentelemetry_http::{HeaderExtractor, HeaderInjector};
use opentelemetry_otlp::WithTonicConfig;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider};
use tonic::transport::ClientTlsConfig;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::TelemetryError;

/// Where spans come from and go to. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Traces(SdkTracerProvider);

impl Traces {
    pub(super) fn from_env() -> Result<Self, TelemetryError> {
        let Some((_, endpoint)) = exporter_variable("ENDPOINT") else {
            // nobody reads ours, and whoever called may be traced all the same
            let passing_on = Sampler::ParentBased(Box::new(Sampler::AlwaysOff));
            return Ok(Self(SdkTracerProvider::builder().with_sampler(passing_on).build()));
        };
        if let Some((variable, given)) = exporter_variable("PROTOCOL").filter(|(_, given)| given != "grpc") {
            return Err(TelemetryError::Protocol { variable, given });
        }
        let mut exporter = opentelemetry_otlp::SpanExporter::builder().with_tonic();
        if endpoint.starts_with("https:") {
            exporter = exporter.with_tls_config(ClientTlsConfig::new().with_native_roots());
        }
        let exporter = exporter.build()?;
        let mut resource = Resource::builder();
        if std::env::var_os("OTEL_SERVICE_NAME").is_none() {
            resource = resource.with_service_name(env!("CARGO_PKG_NAME"));
        }
        let version = opentelemetry::KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
        let resource = resource.with_attribute(version).build();
        Ok(Self(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build()))
    }

    pub(super) fn tracer(&self) -> SdkTracer {
        self.0.tracer(env!("CARGO_PKG_NAME"))
    }

    /// Sends what has not been sent. Runs on a thread of its own: the SDK blocks, and would wait for ever for an
    /// exporter that needs the very thread it blocks.
    pub async fn close(self) {
        let (done, closed) = tokio::sync::oneshot::channel();
        let close = move || {
            let _ = done.send(self.0.shutdown());
        };
        if std::thread::Builder::new().name("traces".to_owned()).spawn(close).is_err() {
            return;
        }
        if let Ok(Err(error)) = closed.await {
            tracing::warn!(%error, "the last traces were not delivered");
        }
    }
}

/// A variable of the exporter's that is set, with its name: that for traces alone comes before that for everything.
fn exporter_variable(name: &str) -> Option<(String, String)> {
    ["OTEL_EXPORTER_OTLP_TRACES_", "OTEL_EXPORTER_OTLP_"].into_iter().find_map(|prefix| {
        let variable = format!("{prefix}{name}");
        let value = std::env::var(&variable).ok().filter(|value| !value.is_empty())?;
        Some((variable, value))
    })
}

/// Makes `span` part of the trace that the headers name, if they do.
pub fn continue_from(span: &tracing::Span, headers: &HeaderMap) {
    // no parent can only be set on a span that is filtered out
    let _ = span.set_parent(TraceContextPropagator::new().extract(&HeaderExtractor(headers)));
}

/// Names the current trace in headers that go to another service.
pub fn pass_on(headers: &mut HeaderMap) {
    let context = tracing::Span::current().context();
    TraceContextPropagator::new().inject_context(&context, &mut HeaderInjector(headers));
}
