//! The public server and the admin one, on an accept loop of our own: the stock one loses requests at the stop (it closes
//! idle connections under a request that has already arrived, and resets the backlog) and can be held up for ever.
//!
//! The way of a request, from the socket to its handler and back:
//!
//! 1. A [`port`]'s [`listener`] accepts a connection. If `max_connections` are open, the one that has been idle the longest is
//!    closed.
//! 2. [`connection`] reads until it knows the protocol, and hands over to [`http1`] or [`http2`], which is hyper with limits.
//! 3. On HTTP/1 the [`wire`] gives hyper the bytes of one request at a time, so that the stop can tell a connection on
//!    which nothing is under way from one whose next request has already arrived. [`state`] is what is known of a connection,
//!    and [`framing`] where a request ends.
//! 4. [`request`] is the path of every request: it reads the body, admits, times, catches, gives errors their form, and
//!    in between calls the router. [`access`] is what is said of a request. The handler takes its parameters from [`extract`] and returns its type or a [`problem`].
//! 5. [`body`] holds what the request holds (its place in the register of what is under way, its access line) until the
//!    kernel has the last byte of the answer. [`streams`] are answers that do not end by themselves.
//!
//! [`socket`] asks the kernel, and ends a connection in order.
//!
//! At the stop each connection is told in three stages: leave (answers carry `Connection: close`, HTTP/2 gets GOAWAY),
//! close (it ends when nothing is under way), abort. [`limits`] has every limit that is not a setting, and checks that
//! all of them together fit the container.

mod access;
mod body;
mod connection;
pub mod docs;
mod extract;
mod framing;
mod http1;
mod http2;
mod limits;
mod listener;
mod port;
mod problem;
mod request;
mod socket;
mod state;
mod streams;
mod wire;

pub use connection::Connection;
pub use extract::{Json, Path, Query};
pub use port::{BindError, Port, Server};
pub use problem::{FieldError, Problem};
pub use request::Deadline;
pub use streams::{sse, websocket};
