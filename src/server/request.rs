//! The one path of a request: its body is read, it is admitted or turned away, it is timed, a panic in it is caught, its
//! errors are given their form; and it is logged, counted and measured when its answer is written.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{FromRequestParts, MatchedPath};
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use http::header::{ACCEPT, CONNECTION, HOST, UPGRADE};
use http::request::Parts;
use http::uri::Authority;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Version};
use http_body::Body as _;
use hyper::body::Incoming;
use tokio::sync::SemaphorePermit;
use tokio::time::timeout_at;
use tower::Service;

use super::Problem;
use super::access::Exchange;
use super::body::{self, Answer, Begun, ReadError};
use super::connection::{Connection, count_timeout};
use super::limits::Room;
use super::port::Shared;
use super::problem::form;

/// What the path of a request tells its handler.
#[derive(Debug, Clone)]
pub(super) struct Call {
    pub(super) connection: Connection,
    deadline: Deadline,
    pub(super) route: Route,
}

/// The route that a request took, once the router has found it.
pub(super) type Route = Arc<OnceLock<MatchedPath>>;

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

pub(super) const EVENT_STREAM: &[u8] = b"text/event-stream";

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
