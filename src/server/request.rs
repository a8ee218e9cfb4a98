//! The one path of a request: its body is read, it is admitted or turned away, it is timed, a panic in it is caught, its
//! errors are given their form; and it is logged, counted and measured when its answer is written.

use std::convert::Infallible;
use std::fmt::{self, Display, Formatter};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{FromRequestParts, MatchedPath};
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use http::header::{ACCEPT, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HOST, UPGRADE, X_CONTENT_TYPE_OPTIONS};
use http::request::Parts;
use http::uri::Authority;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, Version};
use http_body::Body as _;
use hyper::body::Incoming;
use tokio::sync::SemaphorePermit;
use tokio::time::timeout_at;
use tower::Service;

use super::Problem;
use super::body::{self, Answer, ReadError};
use super::connection::{Begun, Connection, count_timeout};
use super::limits::Room;
use super::listener::Shared;
use super::problem::form;
use crate::lifecycle::{Guard, Kind};
use crate::telemetry::metrics::RequestDuration;
use crate::telemetry::traces::RequestTrace;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What a client that went away before its answer is logged with; nginx's convention.
const CLIENT_CLOSED_REQUEST: u16 = 499;

/// What the path of a request tells its handler.
#[derive(Debug, Clone)]
pub(super) struct Call {
    connection: Connection,
    deadline: Deadline,
    route: Route,
}

/// The route that a request took, once the router has found it.
type Route = Arc<OnceLock<MatchedPath>>;

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

impl<S: Sync> FromRequestParts<S> for Deadline {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        parts.extensions.get::<Call>().map(|call| call.deadline).ok_or_else(Problem::internal)
    }
}

impl<S: Sync> FromRequestParts<S> for Connection {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        parts.extensions.get::<Call>().map(|call| call.connection.clone()).ok_or_else(Problem::internal)
    }
}

/// Answers a request.
pub(super) async fn answer(
    router: Router,
    request: Request<Incoming>,
    begun: Begun,
) -> Result<Response<Answer>, Infallible> {
    let connection = begun.0.clone();
    let server = Arc::clone(connection.server());
    let deadline = Deadline::after(server.limits.request_timeout);
    let call = Call { connection: connection.clone(), deadline, route: Route::default() };
    let version = request.version();
    let (mut response, exchange) = if server.is_public() {
        let mut exchange = Exchange::begin(&server, &call, &request);
        let response = exchange.trace.run(handle(&server, router, request, call, &begun)).await;
        let response = exchange.answered(response);
        (response, Some(exchange))
    } else {
        (handle(&server, router, request, call, &begun).await, None)
    };
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        connection.upgraded();
    } else if version <= Version::HTTP_11 && connection.may_leave() && !connection.next_waits() {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        if version == Version::HTTP_10 {
            // else hyper would add a keep-alive to it
            *response.version_mut() = version;
        }
    }
    Ok(response.map(|body| Answer::new(body, exchange, begun)))
}

/// Admits a request, and gives it to its handler for as long as it may take.
async fn handle(server: &Shared, router: Router, request: Request<Incoming>, call: Call, begun: &Begun) -> Response {
    let mut room = server.buffers.room();
    let until = call.deadline.0.into();
    let request = match timeout_at(until, read(server, request, &mut room, begun)).await {
        Ok(Ok(request)) => request,
        Ok(Err(refusal)) => return refusal.into_response(),
        Err(_elapsed) => {
            count_timeout("body");
            let problem = Problem::new(StatusCode::REQUEST_TIMEOUT, "the body took too long to arrive");
            return ([(CONNECTION, "close")], problem).into_response();
        }
    };
    let _place = match admit(server, &request) {
        Ok(place) => place,
        Err(refusal) => return refusal.into_response(),
    };
    match timeout_at(until, run(router, request, call)).await {
        Ok(response) if server.is_public() => form(response),
        Ok(response) => response,
        Err(_elapsed) => {
            count_timeout("request");
            let detail = "the answer took too long; it is safe to try again with the same Idempotency-Key";
            Problem::new(StatusCode::GATEWAY_TIMEOUT, detail).into_response()
        }
    }
}

/// Reads what there is of a request beside its head.
async fn read(
    server: &Shared,
    request: Request<Incoming>,
    room: &mut Room,
    begun: &Begun,
) -> Result<Request<Body>, Problem> {
    let (parts, body) = request.into_parts();
    if !has_one_host(&parts) {
        let detail = "send one Host header, with the name and port that the request is for";
        return Err(Problem::new(StatusCode::BAD_REQUEST, detail));
    }
    if parts.version == Version::HTTP_2 {
        // on HTTP/1 the wire counts
        let head: usize = parts.headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        room.grow(head).map_err(|error| shed("max_buffered", &ReadError::from(error).to_string()))?;
    }
    if body.is_end_stream() {
        return Ok(Request::from_parts(parts, Body::empty()));
    }
    let body = {
        let _reading = begun.reading();
        body::read(body, server.limits.body_limit, room).await
    };
    match body {
        Ok(body) => Ok(Request::from_parts(parts, Body::from(body))),
        Err(error @ ReadError::TooLarge) => Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, error.to_string())),
        Err(error @ ReadError::NoRoom) => Err(shed("max_buffered", &error.to_string())),
        Err(error @ ReadError::Broken) => Err(Problem::new(StatusCode::BAD_REQUEST, error.to_string())),
    }
}

/// RFC 9112, section 3.2: HTTP/1.1 has one Host, HTTP/1.0 may have one, and what it says is a host.
fn has_one_host(parts: &Parts) -> bool {
    let mut hosts = parts.headers.get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) => parts.version != Version::HTTP_11,
        (Some(host), None) => host.is_empty() || is_host(host),
        (Some(_), Some(_)) => false,
    }
}

/// A name or an address, and perhaps a port; an authority may have a user as well.
fn is_host(host: &HeaderValue) -> bool {
    Authority::try_from(host.as_bytes()).is_ok_and(|authority| {
        let port = authority.as_str().strip_prefix(authority.host());
        port.is_some_and(|port| matches!(port, "" | ":") || authority.port_u16().is_some())
    })
}

/// Turns a request away at once if `max_in_flight` are being handled, because a queue would only make all of them late,
/// or if memory is short. A stream has a place of its own as long as its connection has: a browser whose EventSource is
/// answered 503 never asks again.
fn admit<'a>(server: &'a Shared, request: &Request<Body>) -> Result<SemaphorePermit<'a>, Problem> {
    if server.is_public() && server.lifecycle.liveness().is_short_of_memory() {
        return Err(shed("memory", "this instance is short of memory; try again in a moment"));
    }
    let places = if *request.method() == Method::GET && asks_for_stream(request.headers()) {
        &server.streams
    } else {
        &server.places
    };
    places.try_acquire().map_err(|_| shed("max_in_flight", "too many requests are under way; try again in a moment"))
}

fn shed(reason: &'static str, detail: &str) -> Problem {
    metrics::counter!("http_server_shed_total", "reason" => reason).increment(1);
    Problem::unavailable(detail)
}

fn asks_for_stream(headers: &HeaderMap) -> bool {
    let is = |name, wanted: &[u8]| headers.get(name).is_some_and(|value: &HeaderValue| value.as_bytes() == wanted);
    is(ACCEPT, EVENT_STREAM) || is(UPGRADE, b"websocket")
}

const EVENT_STREAM: &[u8] = b"text/event-stream";

fn is_event_stream(response: &Response) -> bool {
    response.headers().get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(EVENT_STREAM))
}

/// Runs the handler. A panic in it is a 500, and nothing to the others.
async fn run(mut router: Router, mut request: Request<Body>, call: Call) -> Response {
    request.extensions_mut().insert(call);
    let answered = AssertUnwindSafe(async { router.call(request).await.unwrap_or_else(|never| match never {}) });
    // the panic has been logged by the time it is caught
    answered.catch_unwind().await.unwrap_or_else(|_panic| Problem::internal().into_response())
}

/// Notes which route a request takes, for the log and the metrics. Goes around the router as a layer, because only the
/// router knows.
#[derive(Debug, Clone)]
pub(super) struct NoteRoute<Inner>(pub(super) Inner);

impl<Inner: Service<Request<Body>>> Service<Request<Body>> for NoteRoute<Inner> {
    type Response = Inner::Response;
    type Error = Inner::Error;
    type Future = Inner::Future;

    fn poll_ready(&mut self, cx: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Inner::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Inner::Future {
        let (route, call) = (request.extensions().get::<MatchedPath>(), request.extensions().get::<Call>());
        if let (Some(route), Some(call)) = (route, call) {
            let _ = call.route.set(route.clone());
        }
        self.0.call(request)
    }
}

/// A request from its head to the last byte of its answer; writes the access line when it is dropped.
#[derive(Debug)]
pub(super) struct Exchange {
    method: Method,
    uri: Uri,
    version: Version,
    connection: Connection,
    route: Route,
    request_id: HeaderValue,
    began: Instant,
    status: Option<StatusCode>,
    guard: Guard,
    trace: RequestTrace,
}

/// A request for people: `GET /v1/things/{id} from 10.0.0.7:4711`.
struct What {
    method: Method,
    uri: Uri,
    route: Route,
    connection: Connection,
}

impl Display for What {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let route = self.route.get().map_or(self.uri.path(), MatchedPath::as_str);
        write!(f, "{} {route} from {}", self.method, self.connection.peer())
    }
}

impl Exchange {
    fn begin(server: &Shared, call: &Call, request: &Request<Incoming>) -> Self {
        let (method, uri) = (request.method().clone(), request.uri().clone());
        let request_id = request_id(request.headers());
        let Call { connection, route, .. } = call.clone();
        let what =
            What { method: method.clone(), uri: uri.clone(), route: route.clone(), connection: connection.clone() };
        let guard = server.lifecycle.in_flight().enter(Kind::Http, what);
        let trace = RequestTrace::begin(request, connection.peer(), request_id.clone());
        let (version, began, status) = (request.version(), Instant::now(), None);
        Self { method, uri, version, connection, route, request_id, began, status, guard, trace }
    }

    /// The head of the answer is there.
    fn answered(&mut self, mut response: Response) -> Response {
        let status = response.status();
        self.status = Some(status);
        self.trace.answered(&self.method, self.route(), status);
        RequestDuration::record(&self.method, self.route(), status.as_u16(), self.began.elapsed());
        if is_event_stream(&response) {
            self.guard.turn_into(Kind::Sse);
        }
        let headers = response.headers_mut();
        headers.insert(REQUEST_ID, self.request_id.clone());
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
        response
    }

    fn route(&self) -> &str {
        self.route.get().map_or("", MatchedPath::as_str)
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if self.status.is_none() {
            self.trace.cancelled(&self.method, self.route());
            RequestDuration::record(&self.method, self.route(), CLIENT_CLOSED_REQUEST, self.began.elapsed());
        }
        self.trace.in_scope(|| {
            tracing::info!(
                method = self.method.as_str(),
                route = self.route(),
                path = self.uri.path(),
                status = self.status.map_or(CLIENT_CLOSED_REQUEST, |status| status.as_u16()),
                duration = self.began.elapsed().as_secs_f64(),
                peer = %self.connection.peer(),
                version = ?self.version,
                "request"
            );
        });
    }
}

/// The caller's own id if it is fit to be logged, else a new one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let fit = |id: &&HeaderValue| (1..=128).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic);
    headers.get(REQUEST_ID).filter(fit).cloned().unwrap_or_else(|| {
        HeaderValue::from_str(&uuid::Uuid::now_v7().to_string()).expect("a UUID is a valid header value")
    })
}
