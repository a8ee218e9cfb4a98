//! Traces: what a collector is sent, over plain and over encrypted connections, and what it is not worth waiting for.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Instant,
};

use axum::{Router, body::Bytes, extract::State, routing::post};
use hyper::{HeaderMap, Method};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{KeyValue, any_value::Value},
    trace::v1::{ResourceSpans, Span, span::SpanKind, status::StatusCode},
};
use prost::Message;
use tonic::codec::CompressionEncoding;
use tonic::transport::{Identity, Server, ServerTlsConfig, server::TcpIncoming};
use tonic::{Request, Response, Status};

use crate::support::With as _;
use crate::support::{Authority, Launch, Output, World, free_address, get, request, s};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

/// An OpenTelemetry collector.
#[derive(Clone, Debug, Default)]
struct Collector(Arc<Mutex<Vec<ResourceSpans>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.lock().expect("no panic").extend(request.into_inner().resource_spans);
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// Listens on a free port, with a certificate if there is one.
    async fn start(identity: Option<Identity>) -> (Self, SocketAddr) {
        let collector = Self::default();
        let incoming = TcpIncoming::bind(([127, 0, 0, 1], 0).into()).expect("the loopback has free ports");
        let address = incoming.local_addr().expect("it is bound");
        let mut server = Server::builder();
        if let Some(identity) = identity {
            server = server.tls_config(ServerTlsConfig::new().identity(identity)).expect("a certificate and its key");
        }
        let service = TraceServiceServer::new(collector.clone()).accept_compressed(CompressionEncoding::Gzip);
        tokio::spawn(server.add_service(service).serve_with_incoming(incoming));
        (collector, address)
    }

    /// The same for OTLP over HTTP.
    async fn start_http() -> (Self, SocketAddr) {
        let collector = Self::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("the loopback has free ports");
        let address = listener.local_addr().expect("it is bound");
        let export = async |State(collector): State<Self>, headers: HeaderMap, body: Bytes| {
            assert_eq!(headers["content-type"], "application/x-protobuf");
            assert_eq!(headers["x-token"], "secret", "of OTEL_EXPORTER_OTLP_HEADERS");
            let request = ExportTraceServiceRequest::decode(body).expect("the message is valid");
            collector.0.lock().expect("no panic").extend(request.resource_spans);
        };
        let router = Router::new().route("/v1/traces", post(export)).with_state(collector.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        (collector, address)
    }

    fn take(&self) -> Vec<ResourceSpans> {
        std::mem::take(&mut self.0.lock().expect("no panic"))
    }
}

fn spans(resources: &[ResourceSpans]) -> Vec<Span> {
    let scopes = resources.iter().flat_map(|resource| &resource.scope_spans);
    scopes.flat_map(|scope| scope.spans.clone()).collect()
}

/// Attributes by key, as text.
fn attributes(attributes: &[KeyValue]) -> BTreeMap<&str, String> {
    let text = |attribute: &KeyValue| match attribute.value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    };
    let by_key: BTreeMap<_, _> = attributes.iter().map(|attribute| (&*attribute.key, text(attribute))).collect();
    assert_eq!(by_key.len(), attributes.len(), "a key stands twice: {attributes:?}");
    by_key
}

/// Asks for the contract as part of `TRACE` and stops. A request's span is there when the service has ended: the last
/// step sends what has not been sent.
async fn asks(launch: Launch) {
    // a handshake takes a debug build its time
    let service = launch.set("lifecycle.telemetry", "5s").ready().await;
    let request = get("/openapi.json").with("traceparent", &format!("00-{TRACE}-00f067aa0ba902b7-01"));
    assert_eq!(service.send(request).await.status, 200);
    assert_eq!(service.stop().await.code, Some(0));
}

/// One span of `TRACE`, and nothing else.
async fn traces_a_request(collector: &Collector, launch: Launch) {
    asks(launch).await;
    let resources = collector.take();
    let spans = spans(&resources);
    assert_eq!(spans.len(), 1, "{spans:?}");
    assert_eq!(spans[0].name, "GET /openapi.json");
    assert_eq!(spans[0].trace_id.iter().map(|byte| format!("{byte:02x}")).collect::<String>(), TRACE);
    let resource = resources[0].resource.as_ref().expect("it says who sends it");
    assert_eq!(attributes(&resource.attributes)["service.name"], env!("CARGO_PKG_NAME"));
}

#[tokio::test]
async fn a_request_is_a_server_span_of_the_conventions() {
    let world = World::new().await;
    let (collector, address) = Collector::start(None).await;
    let launch = world.service().env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{address}"));
    let service = launch.set("lifecycle.telemetry", "5s").ready().await;
    let (port, agent) = (service.http().await.port().to_string(), "a".repeat(2000));
    let known = get("/openapi.json?secret=1").with("x-request-id", "mine-7").with("user-agent", &agent);
    service.send(known.with("host", &format!("api.example:{port}"))).await;
    service.send(request(Method::from_bytes(b"BREW").expect("a token"), "/nowhere").with("host", "pot")).await;
    assert_eq!(service.stop().await.code, Some(0));
    let mut spans = spans(&collector.take());
    assert_eq!(spans.len(), 2, "{spans:?}");
    spans.sort_by_key(|span| span.start_time_unix_nano);

    let mut is = attributes(&spans[0].attributes);
    assert_eq!(spans[0].name, "GET /openapi.json");
    assert_eq!(spans[0].kind(), SpanKind::Server);
    assert!(spans[0].parent_span_id.is_empty() && spans[0].end_time_unix_nano > spans[0].start_time_unix_nano);
    assert_eq!(spans[0].status.clone().unwrap_or_default().code(), StatusCode::Unset);
    assert_ne!(is.remove("network.peer.port").expect("the peer's port"), "0");
    assert_eq!(is.remove("user_agent.original").expect("the agent"), agent[..1024]);
    let expected = [
        ("http.request.method", "GET"),
        ("http.route", "/openapi.json"),
        ("http.response.status_code", "200"),
        ("url.path", "/openapi.json"),
        ("url.scheme", "http"),
        ("network.protocol.version", "1.1"),
        ("client.address", "127.0.0.1"),
        ("network.peer.address", "127.0.0.1"),
        ("server.address", "api.example"),
        ("server.port", &port),
        ("request_id", "mine-7"),
    ];
    assert_eq!(is, expected.map(|(key, value)| (key, value.to_owned())).into());

    let is = attributes(&spans[1].attributes);
    assert_eq!(spans[1].name, "HTTP", "never after a path that nobody routes");
    assert_eq!(is["http.request.method"], "_OTHER");
    assert_eq!(is["http.request.method_original"], "BREW");
    assert_eq!(is["http.response.status_code"], "404");
    assert_eq!(is["server.address"], "pot");
    assert!(!is.contains_key("http.route") && !is.contains_key("server.port"), "{is:?}");
}

#[tokio::test]
async fn http_protobuf_is_spoken() {
    let world = World::new().await;
    let (collector, address) = Collector::start_http().await;
    let launch = world.service().env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{address}"));
    let launch = launch.env("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf");
    traces_a_request(&collector, launch.env("OTEL_EXPORTER_OTLP_HEADERS", "x-token=secret")).await;
}

/// Each variable with what becomes of a request whose caller samples its trace.
#[tokio::test]
async fn variables_of_opentelemetry_are_followed() {
    let world = World::new().await;
    let (collector, address) = Collector::start(None).await;
    let cases: [(&[(&str, &str)], usize); 11] = [
        (&[("OTEL_SDK_DISABLED", "true")], 0),
        (&[("OTEL_SDK_DISABLED", "false")], 1),
        (&[("OTEL_TRACES_EXPORTER", "none")], 0),
        (&[("OTEL_TRACES_SAMPLER", "always_off")], 0),
        (&[("OTEL_TRACES_SAMPLER", "always_on")], 1),
        (&[("OTEL_TRACES_SAMPLER", "traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "0")], 0),
        (&[("OTEL_TRACES_SAMPLER", "traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "1")], 1),
        (&[("OTEL_TRACES_SAMPLER", "parentbased_always_off")], 1),
        (&[("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "0")], 1),
        (&[("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")], 1),
        (&[("OTEL_BSP_MAX_QUEUE_SIZE", "10"), ("OTEL_BSP_SCHEDULE_DELAY", "10")], 1),
    ];
    for (variables, expected) in cases {
        let launch = world.service().env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{address}"));
        asks(variables.iter().fold(launch, |launch, (name, value)| launch.env(name, value))).await;
        assert_eq!(spans(&collector.take()).len(), expected, "{variables:?}");
    }
}

#[tokio::test]
async fn the_environment_names_the_service() {
    let world = World::new().await;
    let (collector, address) = Collector::start(None).await;
    let given = ("OTEL_RESOURCE_ATTRIBUTES", "service.name=theirs,deployment.environment.name=test");
    for (more, name) in [(None, "theirs"), (Some("mine"), "mine")] {
        let launch = world.service().env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{address}"));
        let launch = launch.env(given.0, given.1);
        asks(more.into_iter().fold(launch, |launch, name| launch.env("OTEL_SERVICE_NAME", name))).await;
        let resources = collector.take();
        let resource = attributes(&resources[0].resource.as_ref().expect("it says who sends it").attributes);
        assert_eq!(resource["service.name"], name);
        assert_eq!(resource["deployment.environment.name"], "test");
        assert_eq!(resource["service.version"], env!("CARGO_PKG_VERSION"));
        assert_eq!(resource["telemetry.sdk.language"], "rust");
    }
}

#[tokio::test]
async fn a_collector_is_sent_every_request_to_the_last() {
    let world = World::new().await;
    let (collector, address) = Collector::start(None).await;
    let launch = world.service().env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{address}"));
    traces_a_request(&collector, launch).await;
}

#[tokio::test]
async fn a_collector_behind_a_certificate_of_a_private_authority_too() {
    let Some(authority) = Authority::new() else { return };
    let world = World::new().await;
    let (collector, address) = Collector::start(Some(authority.identity())).await;
    let endpoint = format!("https://localhost:{}", address.port());
    let launch = world.service().env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint);
    traces_a_request(&collector, launch.env("SSL_CERT_FILE", authority.root().display())).await;
}

#[tokio::test]
async fn the_logs_filter_is_the_logs_alone() {
    let world = World::new().await;
    let (collector, address) = Collector::start(None).await;
    let launch = world.service().env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{address}"));
    // what it says of its ports is at level info
    traces_a_request(&collector, launch.env("RUST_LOG", "warn").stdout(Output::Unread)).await;
}

#[tokio::test]
async fn an_unknown_protocol_is_refused_with_those_it_speaks() {
    for variable in ["OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"] {
        let launch = Launch::new().set("database.url", "postgres://localhost/none").env(variable, "http/json");
        let finished = launch.env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318").run().await;
        assert_eq!(finished.code, Some(2), "{finished:?}");
        for part in [variable, "http/json", "grpc", "http/protobuf"] {
            assert!(finished.stderr.contains(part), "no {part} in {}", finished.stderr);
        }
    }
}

#[tokio::test]
async fn a_dead_or_frozen_collector_holds_nothing_up() {
    let world = World::new().await;
    let frozen = std::net::TcpListener::bind("127.0.0.1:0").expect("the loopback has free ports");
    for address in [free_address(), frozen.local_addr().expect("it is bound")] {
        for protocol in ["grpc", "http/protobuf"] {
            let launch = world.service().env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{address}"));
            let launch = launch.env("OTEL_BSP_SCHEDULE_DELAY", "10").env("OTEL_BSP_MAX_QUEUE_SIZE", "4");
            let service = launch.env("OTEL_EXPORTER_OTLP_PROTOCOL", protocol).ready().await;
            for _ in 0..20 {
                assert_eq!(service.get("/openapi.json").await.status, 200);
            }
            let asked = Instant::now();
            let exit = service.stop().await;
            assert!(exit.code == Some(0) || exit.code == Some(3), "{exit:?}");
            assert!(exit.at - asked < s(4), "{:?}", exit.at - asked);
        }
    }
}
