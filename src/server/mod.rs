//! The public server, on an accept loop of its own: the stock one loses requests at the stop (idle connections are
//! closed under a request that has already arrived, the backlog is reset) and can be held up for ever.
//!
//! | file | is about |
//! |---|---|
//! | `listener` | listening, accepting, and the three stages of the stop |
//! | `connection` | one connection from its first byte to its last |
//! | `wire` | the TCP stream as hyper sees it, and what it tells of the requests on it |
//! | `middleware` | what every request passes: id, log, metrics, admission, timeout |
//! | `docs` | the OpenAPI contract, for people and machines |
//! | `extract` | request bodies and parameters, with rejections that say what to do |
//! | `problem` | errors as RFC 9457 `application/problem+json` |
//! | `body` | response bodies that hold something to their last byte |
//! | `streams` | Server-Sent Events and WebSockets that end well |

mod body;
mod connection;
pub mod docs;
mod extract;
mod listener;
mod middleware;
mod problem;
mod streams;
mod wire;

use std::net::SocketAddr;

pub use extract::{Json, Path, Query};
pub use listener::{BindError, Limits, Server};
pub use middleware::{Deadline, Middleware};
pub use problem::{FieldError, Problem};
pub use streams::{Drain, sse, websocket};

/// This end of the connection that a request came on, among the request's extensions.
#[derive(Debug, Clone, Copy)]
pub struct Local(pub SocketAddr);
