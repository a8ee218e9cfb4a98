//! The exporter of spans, as OpenTelemetry's `OTEL_*` variables ask for it. What is not read here is read by the SDK.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use opentelemetry::KeyValue;
use opentelemetry_http::hyper::HyperClient;
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{SpanExporter, WithHttpConfig, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::resource::{EnvResourceDetector, TelemetryResourceDetector};
use opentelemetry_sdk::trace::SdkTracerProvider;
use tokio::runtime::Handle;
use tonic::transport::ClientTlsConfig;

use super::TelemetryError;

/// For a batch to be sent, unless `OTEL_EXPORTER_OTLP_TIMEOUT` says otherwise in milliseconds.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Nothing, if no exporter is asked for. The exporter lives on the runtime that this is called on.
pub(super) fn provider() -> Result<Option<SdkTracerProvider>, TelemetryError> {
    let is = |name, value| variable(name).is_some_and(|given| given.trim().eq_ignore_ascii_case(value));
    let endpoint = exporter_variable("ENDPOINT").map(|(_, endpoint)| endpoint);
    let asked_for = endpoint.is_some() || is("OTEL_TRACES_EXPORTER", "otlp");
    if !asked_for || is("OTEL_SDK_DISABLED", "true") || is("OTEL_TRACES_EXPORTER", "none") {
        return Ok(None);
    }
    let exporter = match exporter_variable("PROTOCOL") {
        Some((_, protocol)) if protocol == "http/protobuf" => {
            SpanExporter::builder().with_http().with_http_client(OnRuntime::new()?).build()?
        }
        Some((variable, given)) if given != "grpc" => return Err(TelemetryError::Protocol { variable, given }),
        _ => {
            let exporter = SpanExporter::builder().with_tonic();
            let is_encrypted = endpoint.is_some_and(|endpoint| endpoint.starts_with("https:"));
            let roots = is_encrypted.then(|| ClientTlsConfig::new().with_native_roots());
            match roots {
                Some(roots) => exporter.with_tls_config(roots).build()?,
                None => exporter.build()?,
            }
        }
    };
    Ok(Some(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource()).build()))
}

/// A client for the SDK's thread, which is not on a runtime.
#[derive(Debug)]
struct OnRuntime {
    client: HyperClient<HttpsConnector<HttpConnector>>,
    runtime: Handle,
}

impl OnRuntime {
    fn new() -> Result<Self, TelemetryError> {
        let connector = HttpsConnectorBuilder::new().with_native_roots()?.https_or_http().enable_http1().build();
        let given = exporter_variable("TIMEOUT").and_then(|(_, given)| given.parse().ok());
        let timeout = given.map_or(TIMEOUT, Duration::from_millis);
        Ok(Self { client: HyperClient::new(connector, timeout, None), runtime: Handle::current() })
    }
}

#[tonic::async_trait]
impl HttpClient for OnRuntime {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let client = self.client.clone();
        self.runtime.spawn(async move { client.send_bytes(request).await }).await?
    }
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
