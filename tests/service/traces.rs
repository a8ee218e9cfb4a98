//! Traces: what a collector is sent, over plain and over encrypted connections, and what it is not worth waiting for.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Instant,
};

use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    trace::v1::{ResourceSpans, Span},
};
use tonic::transport::{Identity, Server, ServerTlsConfig, server::TcpIncoming};
use tonic::{Request, Response, Status};

use crate::support::With as _;
use crate::support::{Authority, Launch, Output, World, free_address, get, s};

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
        let service = TraceServiceServer::new(collector.clone());
        tokio::spawn(server.add_service(service).serve_with_incoming(incoming));
        (collector, address)
    }

    fn spans(&self) -> Vec<Span> {
        let resources = self.0.lock().expect("no panic").clone();
        resources.into_iter().flat_map(|resource| resource.scope_spans).flat_map(|scope| scope.spans).collect()
    }
}

/// A request's span is there when the service has ended: the last step sends what has not been sent.
async fn traces_a_request(collector: &Collector, launch: Launch) {
    // a handshake takes a debug build its time
    let service = launch.set("lifecycle.telemetry_timeout", "5s").ready().await;
    let request = get("/openapi.json").with("traceparent", &format!("00-{TRACE}-00f067aa0ba902b7-01"));
    assert_eq!(service.send(request).await.status, 200);
    assert_eq!(service.stop().await.code, Some(0));
    let of_the_trace =
        |span: &Span| span.trace_id.iter().map(|byte| format!("{byte:02x}")).collect::<String>() == TRACE;
    let spans: Vec<Span> = collector.spans().into_iter().filter(of_the_trace).collect();
    assert_eq!(spans.len(), 1, "{spans:?}");
    assert_eq!(spans[0].name, "GET /openapi.json");
    let attribute = |key: &str| spans[0].attributes.iter().find(|attribute| attribute.key == key);
    for key in ["http.request.method", "http.route", "http.response.status_code", "url.path", "request_id"] {
        assert!(attribute(key).is_some(), "no {key}: {spans:?}");
    }
    let resources = collector.0.lock().expect("no panic").clone();
    let resource = format!("{:?}", resources[0].resource);
    assert!(resource.contains("service.name") && resource.contains(env!("CARGO_PKG_NAME")), "{resource}");
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
async fn a_protocol_that_it_does_not_speak_is_refused_with_the_one_it_does() {
    for variable in ["OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"] {
        let launch = Launch::new().set("database.url", "postgres://localhost/none").env(variable, "http/protobuf");
        let finished = launch.env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318").run().await;
        assert_eq!(finished.code, Some(2), "{finished:?}");
        for part in [variable, "http/protobuf", "grpc"] {
            assert!(finished.stderr.contains(part), "no {part} in {}", finished.stderr);
        }
    }
}

#[tokio::test]
async fn a_collector_that_is_gone_does_not_hold_the_stop_up() {
    let world = World::new().await;
    let launch = world.service().env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{}", free_address()));
    let service = launch.ready().await;
    service.get("/openapi.json").await;
    let asked = Instant::now();
    let exit = service.stop().await;
    assert!(exit.code == Some(0) || exit.code == Some(3), "{exit:?}");
    assert!(exit.at - asked < s(4), "{:?}", exit.at - asked);
}
