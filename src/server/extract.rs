//! axum's extractors, with rejections as [`Problem`]s: 400 for what cannot be read, 422 with the field named for what
//! can be read and does not fit, 413 and 415.

use std::error::Error;

use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde::Serialize;

use super::Problem;

/// What a fault of the whole is named after.
const BODY: &str = "body";

/// A JSON body.
#[derive(Debug, Clone, Copy, FromRequest)]
#[from_request(via(axum::Json), rejection(Problem))]
pub struct Json<T>(pub T);

/// The parameters in the path.
#[derive(Debug, Clone, Copy, FromRequestParts)]
#[from_request(via(axum::extract::Path), rejection(Problem))]
pub struct Path<T>(pub T);

/// The parameters after the `?`.
#[derive(Debug, Clone, Copy, FromRequestParts)]
#[from_request(via(axum::extract::Query), rejection(Problem))]
pub struct Query<T>(pub T);

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        axum::Json(self.0).into_response()
    }
}

impl From<JsonRejection> for Problem {
    fn from(rejection: JsonRejection) -> Self {
        match &rejection {
            JsonRejection::JsonDataError(error) => match path_error(error) {
                Some(error) => does_not_fit(&error.path().to_string(), &error.inner().to_string()),
                None => Self::field(BODY, "does not fit"),
            },
            JsonRejection::JsonSyntaxError(_) => Self::new(StatusCode::BAD_REQUEST, "the body is not valid JSON"),
            JsonRejection::MissingJsonContentType(_) => {
                Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "send the body as Content-Type: application/json")
            }
            other if other.status() == StatusCode::PAYLOAD_TOO_LARGE => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, "the body is larger than this service takes")
            }
            other => Self::new(other.status(), "the body could not be read"),
        }
    }
}

/// Which field it was, from under axum's own error.
fn path_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a serde_path_to_error::Error<serde_json::Error>> {
    let mut sources = std::iter::successors(Some(error), |&error| error.source());
    sources.find_map(|error| error.downcast_ref())
}

/// Names the field and what is wrong with it, and not the types that we read it into.
fn does_not_fit(path: &str, message: &str) -> Problem {
    // serde_json ends with a line and column, which a caller who sent an object does not have
    let message = message.split(" at line ").next().unwrap_or(message);
    match message.strip_prefix("missing field `").and_then(|rest| rest.strip_suffix('`')) {
        Some(field) if path == "." => Problem::field(field, "is missing"),
        Some(field) => Problem::field(format!("{path}.{field}"), "is missing"),
        None if path == "." => Problem::field(BODY, "a JSON object is wanted"),
        None => Problem::field(path, message),
    }
}

impl From<PathRejection> for Problem {
    fn from(rejection: PathRejection) -> Self {
        Self::new(rejection.status(), rejection.body_text())
    }
}

impl From<QueryRejection> for Problem {
    fn from(rejection: QueryRejection) -> Self {
        Self::new(rejection.status(), rejection.body_text())
    }
}
