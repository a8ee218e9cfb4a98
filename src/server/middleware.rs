//! What every request passes, outermost first: it is given an id, a span, an access line and a place in the metrics;
//! it is admitted or turned away; it is timed; a panic in it is caught; its errors are given their form; its body is
//! limited.

use std::any::Any;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, DefaultBodyLimit, MatchedPath, Request, State};
use axum::middleware::{Next, from_fn_with_state, map_response};
use axum::response::{IntoResponse, Response};
use http::header::{CACHE_CONTROL, CONNECTION, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version};
use tokio::sync::Semaphore;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::limit::RequestBodyLimitLayer;

use super::Problem;
use super::body::Guarded;
use super::problem::form;
use crate::config;
use crate::lifecycle::{Guard, InFlight, Kind, Lifecycle};
use crate::telemetry::metrics::RequestDuration;
use crate::telemetry::traces::RequestTrace;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What a client that went away before its answer is logged with; nginx's convention.
const CLIENT_CLOSED_REQUEST: u16 = 499;

/// See the module.
#[derive(Debug, Clone)]
pub struct Middleware {
    lifecycle: Lifecycle,
    admission: Arc<Semaphore>,
    request_timeout: Duration,
    body_limit: usize,
}

/// When this request must be answered. Calls to others are given what is left of it.
#[derive(Debug, Clone, Copy)]
pub struct Deadline(Instant);

impl Deadline {
    /// That far from now.
    pub fn after(timeout: Duration) -> Self {
        Self(Instant::now() + timeout)
    }

    /// What is left.
    pub fn remaining(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }
}

impl Middleware {
    /// With the limits that the settings give.
    pub fn new(http: &config::Http, lifecycle: &Lifecycle) -> Self {
        Self {
            lifecycle: lifecycle.clone(),
            admission: Arc::new(Semaphore::new(http.max_in_flight)),
            request_timeout: http.request_timeout,
            body_limit: usize::try_from(http.body_limit.as_u64()).unwrap_or(usize::MAX),
        }
    }

    /// Puts it around every route, and around what has no route.
    pub fn around(&self, router: Router) -> Router {
        router
            .layer((DefaultBodyLimit::disable(), RequestBodyLimitLayer::new(self.body_limit)))
            .layer(map_response(form))
            .layer(CatchPanicLayer::custom(panicked))
            .layer(from_fn_with_state(self.clone(), time))
            .layer(from_fn_with_state(self.clone(), admit))
            .layer(from_fn_with_state(self.clone(), observe))
    }
}

/// A request from its head to the last byte of its answer; writes the access line when it is dropped.
struct Exchange {
    method: Method,
    route: Option<MatchedPath>,
    path: String,
    version: Version,
    peer: SocketAddr,
    request_id: HeaderValue,
    began: Instant,
    status: Option<StatusCode>,
    guard: Guard,
    trace: RequestTrace,
}

impl Exchange {
    fn new(request: &Request, in_flight: &InFlight) -> Self {
        let peer = request.extensions().get().map_or_else(|| SocketAddr::from(([0; 4], 0)), |ConnectInfo(peer)| *peer);
        let route = request.extensions().get::<MatchedPath>().cloned();
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let request_id = request_id(request.headers());
        let shown = route.as_ref().map_or(path.as_str(), MatchedPath::as_str);
        let guard = in_flight.enter(Kind::Http, format!("{method} {shown} from {peer}"));
        let named = route.as_ref().map(MatchedPath::as_str);
        let trace = RequestTrace::begin(request, named, peer, request_id.clone());
        let (version, began) = (request.version(), Instant::now());
        Self { method, route, path, version, peer, request_id, began, status: None, guard, trace }
    }

    /// The head of the answer is there.
    fn answered(&mut self, response: &Response) {
        self.status = Some(response.status());
        self.trace.status(response.status());
        if is_event_stream(response) {
            self.guard.turn_into(Kind::Sse);
        }
        RequestDuration::record(&self.method, self.route(), response.status().as_u16(), self.began.elapsed());
    }

    fn route(&self) -> &str {
        self.route.as_ref().map_or("", MatchedPath::as_str)
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if self.status.is_none() {
            self.trace.cancelled();
            RequestDuration::record(&self.method, self.route(), CLIENT_CLOSED_REQUEST, self.began.elapsed());
        }
        self.trace.in_scope(|| {
            tracing::info!(
                method = self.method.as_str(),
                route = self.route(),
                path = self.path,
                status = self.status.map_or(CLIENT_CLOSED_REQUEST, |status| status.as_u16()),
                duration = self.began.elapsed().as_secs_f64(),
                peer = %self.peer,
                version = ?self.version,
                "request"
            );
        });
    }
}

async fn observe(State(middleware): State<Middleware>, request: Request, next: Next) -> Response {
    let mut exchange = Exchange::new(&request, middleware.lifecycle.in_flight());
    let mut response = exchange.trace.run(next.run(request)).await;
    exchange.answered(&response);
    let headers = response.headers_mut();
    headers.insert(REQUEST_ID, exchange.request_id.clone());
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response.map(|body| Body::new(Guarded::new(body, exchange)))
}

/// Turns a request away at once where `max_in_flight` are under way, for a queue would only make all of them late, or
/// where memory is short. A stream gives its place back when it streams; the number of connections bounds those.
async fn admit(State(middleware): State<Middleware>, request: Request, next: Next) -> Response {
    if middleware.lifecycle.liveness().is_short_of_memory() {
        return shed("memory", "this instance is short of memory; try again in a moment");
    }
    let Ok(place) = middleware.admission.try_acquire_owned() else {
        return shed("max_in_flight", "too many requests are under way; try again in a moment");
    };
    let response = next.run(request).await;
    match is_event_stream(&response) || response.status() == StatusCode::SWITCHING_PROTOCOLS {
        true => response,
        false => response.map(|body| Body::new(Guarded::new(body, place))),
    }
}

fn shed(reason: &'static str, detail: &str) -> Response {
    metrics::counter!("http_server_shed_total", "reason" => reason).increment(1);
    Problem::unavailable(detail).into_response()
}

/// Bounds the time to the head of the answer: 408 where the request's own body was still on its way, 504 otherwise.
async fn time(State(middleware): State<Middleware>, mut request: Request, next: Next) -> Response {
    let timeout = middleware.request_timeout;
    request.extensions_mut().insert(Deadline::after(timeout));
    let is_read = Arc::new(AtomicBool::new(http_body::Body::is_end_stream(request.body())));
    let request = request.map(|body| Body::new(Guarded::new(body, SetOnDrop(Arc::clone(&is_read)))));
    // pinned here, it outlives the timeout: dropping it would look like a body that was read
    let mut answer = std::pin::pin!(next.run(request));
    match tokio::time::timeout(timeout, answer.as_mut()).await {
        Ok(response) => response,
        Err(_elapsed) if is_read.load(Ordering::Relaxed) => {
            metrics::counter!("http_server_timeouts_total", "bound" => "request").increment(1);
            Problem::new(
                StatusCode::GATEWAY_TIMEOUT,
                "the answer took too long; it is safe to try again with the same Idempotency-Key",
            )
            .into_response()
        }
        Err(_elapsed) => {
            metrics::counter!("http_server_timeouts_total", "bound" => "body").increment(1);
            let problem = Problem::new(StatusCode::REQUEST_TIMEOUT, "the body took too long to arrive");
            ([(CONNECTION, "close")], problem).into_response()
        }
    }
}

/// The body has been read to its end, or given up, by the time it is dropped.
struct SetOnDrop(Arc<AtomicBool>);

impl Drop for SetOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The panic has been logged by the time it is caught.
#[allow(clippy::needless_pass_by_value, reason = "the layer asks for this signature")]
fn panicked(_panic: Box<dyn Any + Send>) -> Response {
    Problem::internal().into_response()
}

fn is_event_stream(response: &Response) -> bool {
    response.headers().get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"text/event-stream"))
}

/// The caller's own id where it is fit to be logged, else a new one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let fit = |id: &&HeaderValue| (1..=128).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic);
    headers.get(REQUEST_ID).filter(fit).cloned().unwrap_or_else(|| {
        HeaderValue::from_str(&uuid::Uuid::now_v7().to_string()).expect("a UUID is a valid header value")
    })
}
