//! The exporter of spans, as OpenTelemetry's `OTEL_*` variables ask for it. What is not read here is read by the SDK.

use opentelemetry::KeyValue;
use opentelemetry_otlp::WithTonicConfig;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::resource::{EnvResourceDetector, TelemetryResourceDetector};
use opentelemetry_sdk::trace::SdkTracerProvider;
use tonic::transport::ClientTlsConfig;

use super::TelemetryError;

/// Nothing, if no exporter is asked for.
pub(super) fn provider() -> Result<Option<SdkTracerProvider>, TelemetryError> {
    let is = |name, value| variable(name).is_some_and(|given| given.trim().eq_ignore_ascii_case(value));
    let Some((_, endpoint)) = exporter_variable("ENDPOINT") else { return Ok(None) };
    if is("OTEL_SDK_DISABLED", "true") || is("OTEL_TRACES_EXPORTER", "none") {
        return Ok(None);
    }
    if let Some((variable, given)) = exporter_variable("PROTOCOL").filter(|(_, given)| given != "grpc") {
        return Err(TelemetryError::Protocol { variable, given });
    }
    let mut exporter = opentelemetry_otlp::SpanExporter::builder().with_tonic();
    if endpoint.starts_with("https:") {
        exporter = exporter.with_tls_config(ClientTlsConfig::new().with_native_roots());
    }
    let exporter = exporter.build()?;
    Ok(Some(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource()).build()))
}

/// Who sends the spans: what the environment says comes before what the binary knows.
fn resource() -> Resource {
    let own = [
        KeyValue::new("service.name", env!("CARGO_PKG_NAME")),
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
    ];
    let resource = Resource::builder_empty()
        .with_attributes(own)
        .with_detector(Box::new(TelemetryResourceDetector))
        .with_detector(Box::new(EnvResourceDetector::new()));
    match variable("OTEL_SERVICE_NAME") {
        Some(name) => resource.with_service_name(name).build(),
        None => resource.build(),
    }
}

/// A variable of the exporter's that is set, with its name: that for traces alone comes before that for everything.
fn exporter_variable(name: &str) -> Option<(String, String)> {
    ["OTEL_EXPORTER_OTLP_TRACES_", "OTEL_EXPORTER_OTLP_"].into_iter().find_map(|prefix| {
        let name = format!("{prefix}{name}");
        let value = variable(&name)?;
        Some((name, value))
    })
}

/// A variable that is set. An empty one is as if it were not.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
