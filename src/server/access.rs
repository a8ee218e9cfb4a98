//! What is said of a request: its id, its trace, its place in the register of what is under way, its access line and its
//! metrics.

use std::fmt::{self, Display, Formatter};
use std::time::Instant;

use axum::extract::MatchedPath;
use axum::response::Response;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, Version};
use hyper::body::Incoming;

use super::connection::Connection;
use super::port::Shared;
use super::request::{Call, EVENT_STREAM, Route};
use crate::lifecycle::{Guard, Kind};
use crate::telemetry::metrics::RequestDuration;
use crate::telemetry::traces::RequestTrace;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What a client that went away before its answer is logged with; nginx's convention.
const CLIENT_CLOSED_REQUEST: u16 = 499;

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
    pub(super) trace: RequestTrace,
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
    pub(super) fn begin(server: &Shared, call: &Call, request: &Request<Incoming>) -> Self {
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
    pub(super) fn answered(&mut self, mut response: Response) -> Response {
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

fn is_event_stream(response: &Response) -> bool {
    response.headers().get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(EVENT_STREAM))
}
