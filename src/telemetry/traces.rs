//! What a request belongs to: its id and its trace. Both follow the request's future, stand in each of its log lines and
//! are passed on to others. Spans are made only if something exports them.

use std::net::SocketAddr;
use std::sync::{LazyLock, OnceLock};

use http::uri::Authority;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Version, header};
use opentelemetry::propagation::{TextMapCompositePropagator, TextMapPropagator};
use opentelemetry::trace::{FutureExt, SpanKind, Status, TraceContextExt, Tracer, TracerProvider};
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::{HeaderExtractor, HeaderInjector};
use opentelemetry_sdk::propagation::{BaggagePropagator, TraceContextPropagator};
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};

use super::{TelemetryError, otlp};

/// What makes spans, if something exports them.
static TRACER: OnceLock<SdkTracer> = OnceLock::new();

/// The formats in which others tell their trace, and are told ours: W3C's.
static PROPAGATOR: LazyLock<TextMapCompositePropagator> = LazyLock::new(|| {
    let (trace, baggage) = (TraceContextPropagator::new(), BaggagePropagator::new());
    TextMapCompositePropagator::new(vec![Box::new(trace), Box::new(baggage)])
});

tokio::task_local! {
    static REQUEST_ID: HeaderValue;
}

/// Where spans go to. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Traces(Option<SdkTracerProvider>);

impl Traces {
    pub(super) fn from_env() -> Result<Self, TelemetryError> {
        Ok(Self(otlp::provider()?))
    }

    /// Makes spans from now on, if something exports them.
    pub(super) fn install(&self) -> Option<SdkTracer> {
        let tracer = self.0.as_ref()?.tracer(env!("CARGO_PKG_NAME"));
        Some(TRACER.get_or_init(|| tracer).clone())
    }

    /// Sends what has not been sent. Runs on a thread of its own: the SDK blocks, and would wait for ever for an
    /// exporter that needs the very thread it blocks.
    pub async fn close(self) {
        let Some(provider) = self.0 else { return };
        let (done, closed) = tokio::sync::oneshot::channel();
        let close = move || {
            let _ = done.send(provider.shutdown());
        };
        if std::thread::Builder::new().name("traces".to_owned()).spawn(close).is_err() {
            return;
        }
        if let Ok(Err(error)) = closed.await {
            tracing::warn!(%error, "the last traces were not delivered");
        }
    }
}

/// The id of a request and its part of a trace. Dropping it ends its span.
#[derive(Debug)]
pub struct RequestTrace {
    request_id: HeaderValue,
    context: Context,
}

impl RequestTrace {
    /// Continues the trace that the headers name, with a span if spans are exported.
    pub fn begin<B>(request: &Request<B>, peer: SocketAddr, request_id: HeaderValue) -> Self {
        let headers = request.headers();
        let traced = headers.contains_key("traceparent") || headers.contains_key("baggage");
        let caller = if traced {
            PROPAGATOR.extract_with_context(&Context::new(), &HeaderExtractor(headers))
        } else {
            Context::new()
        };
        let Some(tracer) = TRACER.get() else { return Self { request_id, context: caller } };
        let context = start(tracer, &caller, request);
        // the sampler may have decided that nobody is sent it
        if context.span().is_recording() {
            context.span().set_attributes(attributes(request, peer, &request_id));
        }
        Self { request_id, context }
    }

    /// Runs the request's future as part of it.
    pub fn run<F: Future>(&self, request: F) -> impl Future<Output = F::Output> + use<F> {
        REQUEST_ID.scope(self.request_id.clone(), request).with_context(self.context.clone())
    }

    /// Runs `f` as part of it: what `f` logs has the request's id.
    pub fn in_scope<T>(&self, f: impl FnOnce() -> T) -> T {
        let _current = self.context.clone().attach();
        REQUEST_ID.sync_scope(self.request_id.clone(), f)
    }

    /// The request is answered with `status`. `route` is the pattern that its path matched, if it matched one.
    pub fn answered(&self, method: &Method, route: &str, status: StatusCode) {
        let span = self.context.span();
        if !span.is_recording() {
            return;
        }
        self.routed(method, route);
        span.set_attribute(KeyValue::new("http.response.status_code", i64::from(status.as_u16())));
        if status.is_server_error() {
            self.failed(status.as_str().to_owned());
        }
    }

    /// The client went away before there was an answer.
    pub fn cancelled(&self, method: &Method, route: &str) {
        self.routed(method, route);
        self.failed("cancelled".to_owned());
    }

    /// Names the span after the route, which nobody knows before the router has found it.
    fn routed(&self, method: &Method, route: &str) {
        let span = self.context.span();
        if span.is_recording() && !route.is_empty() {
            span.update_name(format!("{} {route}", name(method)));
            span.set_attribute(KeyValue::new("http.route", route.to_owned()));
        }
    }

    fn failed(&self, error_type: String) {
        let span = self.context.span();
        span.set_attribute(KeyValue::new("error.type", error_type));
        span.set_status(Status::error(""));
    }
}

impl Drop for RequestTrace {
    fn drop(&mut self) {
        // what the request left behind may hold its context for longer
        if self.context.has_active_span() {
            self.context.span().end();
        }
    }
}

/// A server span, named by OpenTelemetry's semantic conventions.
fn start<B>(tracer: &SdkTracer, caller: &Context, request: &Request<B>) -> Context {
    caller.with_span(
        tracer.span_builder(name(request.method())).with_kind(SpanKind::Server).start_with_context(tracer, caller),
    )
}

/// What stands for a method in a span's name.
fn name(method: &Method) -> &'static str {
    Some(self::method(method)).filter(|method| *method != OTHER).unwrap_or("HTTP")
}

/// What the semantic conventions say of a request, without its query, which may hold anything.
fn attributes<B>(request: &Request<B>, peer: SocketAddr, request_id: &HeaderValue) -> Vec<KeyValue> {
    let (uri, headers) = (request.uri(), request.headers());
    let text = |value: &HeaderValue| value.to_str().ok().map(|value| cut(value).to_owned());
    let address = peer.ip().to_canonical().to_string();
    let method = method(request.method());
    let mut attributes = vec![
        KeyValue::new("http.request.method", method),
        KeyValue::new("url.path", cut(uri.path()).to_owned()),
        KeyValue::new("url.scheme", "http"),
        KeyValue::new("network.protocol.version", version(request.version())),
        KeyValue::new("client.address", address.clone()),
        KeyValue::new("network.peer.address", address),
        KeyValue::new("network.peer.port", i64::from(peer.port())),
        KeyValue::new("request_id", text(request_id).unwrap_or_default()),
    ];
    if method == OTHER {
        attributes.push(KeyValue::new("http.request.method_original", cut(request.method().as_str()).to_owned()));
    }
    if let Some(agent) = headers.get(header::USER_AGENT).and_then(text) {
        attributes.push(KeyValue::new("user_agent.original", agent));
    }
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()?.parse::<Authority>().ok());
    if let Some(host) = host.as_ref().or(uri.authority()) {
        attributes.push(KeyValue::new("server.address", cut(host.host()).to_owned()));
        if let Some(port) = host.port_u16() {
            attributes.push(KeyValue::new("server.port", i64::from(port)));
        }
    }
    attributes
}

/// Names the current trace in headers that go to another service.
pub fn pass_on(headers: &mut HeaderMap) {
    Context::map_current(|context| PROPAGATOR.inject_context(context, &mut HeaderInjector(headers)));
}

/// The current trace's id, if there is one.
pub fn trace_id() -> Option<String> {
    Context::map_current(|context| {
        let id = context.span().span_context().trace_id();
        (id != opentelemetry::TraceId::INVALID).then(|| id.to_string())
    })
}

/// Calls `f` with the current request's id, if there is a request.
pub(super) fn with_request_id(f: impl FnOnce(&str)) {
    let _ = REQUEST_ID.try_with(|id| id.to_str().map(f));
}

/// Any method that HTTP does not define.
const OTHER: &str = "_OTHER";

/// A method's name, as spans and metrics have it: a made-up one must not become a series of its own.
pub(super) fn method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        Method::CONNECT => "CONNECT",
        Method::TRACE => "TRACE",
        _ => OTHER,
    }
}

fn version(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        _ => "1.1",
    }
}

/// What a caller sends is kept to this many bytes.
fn cut(value: &str) -> &str {
    &value[..value.floor_char_boundary(1024)]
}
