//! Errors as RFC 9457 `application/problem+json`: what went wrong and what to do, and nothing of the inside.
//!
//! A handler returns [`Problem`] for what is the caller's to mend, with the status that says so. What a dependency did
//! turns into one by `?`: `postgres::Error` and `grpc::Error` each know what they look like from outside.

use std::time::Duration;

use axum::response::{IntoResponse, Response};
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, StatusCode};
use problem_details::{JsonProblemDetails, ProblemDetails, ProblemType};
use serde::Serialize;

/// An answer that is an error.
#[derive(Debug, Clone)]
pub struct Problem {
    status: StatusCode,
    detail: String,
    errors: Vec<FieldError>,
    retry_after: Option<Duration>,
}

/// What is wrong with one field of a request.
#[derive(Debug, Clone, Serialize)]
pub struct FieldError {
    /// Its path in the body, such as `items[2].sku`.
    pub field: String,
    /// What is wrong, and what is allowed.
    pub detail: String,
}

#[derive(Serialize)]
struct Errors {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<FieldError>,
}

impl Problem {
    /// `detail` is for the caller: what is wrong, and what to do.
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into(), errors: Vec::new(), retry_after: None }
    }

    /// 422, naming the field.
    pub fn field(field: impl Into<String>, detail: impl Into<String>) -> Self {
        let error = FieldError { field: field.into(), detail: detail.into() };
        let mut problem = Self::new(StatusCode::UNPROCESSABLE_ENTITY, format!("{}: {}", error.field, error.detail));
        problem.errors.push(error);
        problem
    }

    /// 503, to be tried again a second later.
    pub fn unavailable(detail: impl Into<String>) -> Self {
        let mut problem = Self::new(StatusCode::SERVICE_UNAVAILABLE, detail);
        problem.retry_after = Some(Duration::from_secs(1));
        problem
    }

    /// 500. What happened is the log's to say.
    pub fn internal() -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "something went wrong on our side; the request id finds it in our log",
        )
    }

    /// The status it is answered with.
    pub fn status(&self) -> StatusCode {
        self.status
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let details = ProblemDetails::from_status_code(self.status)
            .with_type(ProblemType::default())
            .with_detail(self.detail)
            .with_extensions(Errors { errors: self.errors });
        let mut response = JsonProblemDetails::from(details).into_response();
        if let Some(after) = self.retry_after {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(after.as_secs().max(1)));
        }
        response
    }
}

/// Gives an error that the framework answered by itself (no route, wrong method, too large) the form of all others.
pub(super) fn form(response: Response) -> Response {
    let status = response.status();
    let is_error = status.is_client_error() || status.is_server_error();
    let is_problem = response.headers().get(CONTENT_TYPE).is_some_and(|value| value == "application/problem+json");
    if !is_error || is_problem {
        return response;
    }
    let detail = match status {
        StatusCode::NOT_FOUND => "there is nothing at this path; GET /openapi.json lists what there is",
        StatusCode::METHOD_NOT_ALLOWED => "this path does not take that method; the Allow header lists those it does",
        StatusCode::PAYLOAD_TOO_LARGE => "the body is larger than this service takes",
        _ => status.canonical_reason().unwrap_or("error"),
    };
    let mut problem = Problem::new(status, detail).into_response();
    for (name, value) in response.headers() {
        // what describes the body it had is not kept; what tells the caller what to do is, such as Allow
        if !matches!(*name, CONTENT_TYPE | CONTENT_LENGTH | CONTENT_ENCODING) {
            problem.headers_mut().append(name, value.clone());
        }
    }
    problem
}
