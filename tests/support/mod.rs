//! The harness: the real binary, with a database and a catalog of its own, and clients that look at it from outside.
//!
//! ```ignore
//! let world = World::new().await;
//! let service = world.service().set("lifecycle.drain_delay", "1s").ready().await;
//! assert_eq!(service.get("/openapi.json").await.status, 200);
//! assert_eq!(service.stop().await.code, Some(0));
//! ```
//!
//! Every test has its own ports, database and processes, so all of them run at once. Nothing sleeps for a fixed time:
//! [`eventually`] looks again until a deadline. Whatever was started is killed when its handle is dropped, and where
//! the test failed, what it wrote is printed. The cluster comes from `DATABASE_URL`: `scripts/with-postgres cargo test`.

#![allow(dead_code, reason = "each test crate uses its own part")]
#![allow(unused_imports, reason = "likewise")]

mod authority;
mod catalog;
mod database;
mod http;
pub(crate) mod http2;
mod launch;
mod metrics;
pub(crate) mod os;
mod process;
mod proxy;
mod raw;
mod service;
mod streams;
mod world;

use std::{
    fmt::Debug,
    future::Future,
    time::{Duration, Instant},
};

pub(crate) use self::{
    authority::Authority,
    catalog::Catalog,
    database::Database,
    http::{Connection, Failure, Outgoing, Reply, With, get, post, request, send},
    launch::{Finished, Launch, free_address},
    process::{Exit, Output, Process},
    proxy::Proxy,
    raw::{End, Raw, narrow},
    service::{Entry, STEPS, Service, Step},
    streams::{Event, Sse, WebSocket},
    world::World,
};
pub(crate) use rustix::process::Signal;

/// A duration in milliseconds, which tests are full of.
pub(crate) const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// A duration in seconds.
pub(crate) const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Looks again and again until `look` finds something (`true`, `Some` or `Ok`) and returns that; panics, naming `what`
/// and what was last seen, if it has not done so `within` the time.
pub(crate) async fn eventually<T: Finding>(what: &str, within: Duration, mut look: impl AsyncFnMut() -> T) -> T::Found {
    let deadline = Instant::now() + within;
    let mut last = "nothing: the first look has not ended".to_owned();
    loop {
        match tokio::time::timeout_at(deadline.into(), look()).await {
            Ok(finding) => match finding.found() {
                Ok(found) => return found,
                Err(seen) => last = seen,
            },
            Err(_) => panic!("{what}: not within {within:?}; last seen: {last}"),
        }
        if Instant::now() >= deadline {
            panic!("{what}: not within {within:?}; last seen: {last}");
        }
        tokio::time::sleep(ms(5)).await;
    }
}

/// Looks again and again for the whole time and panics as soon as `look` finds that something is no longer so.
pub(crate) async fn always<T: Finding>(what: &str, during: Duration, mut look: impl AsyncFnMut() -> T) {
    let end = Instant::now() + during;
    while Instant::now() < end {
        if let Err(seen) = look().await.found() {
            panic!("{what}: no longer so; seen: {seen}");
        }
        tokio::time::sleep(ms(10)).await;
    }
}

/// `future`'s outcome, or a panic that names `what` if it has none `within` the time.
pub(crate) async fn bounded<F: Future>(what: &str, within: Duration, future: F) -> F::Output {
    match tokio::time::timeout(within, future).await {
        Ok(output) => output,
        Err(_) => panic!("{what}: not within {within:?}"),
    }
}

/// What a look can find: see [`eventually`].
pub(crate) trait Finding {
    /// What is found.
    type Found;
    /// It, or what was seen instead.
    fn found(self) -> Result<Self::Found, String>;
}

impl Finding for bool {
    type Found = ();
    fn found(self) -> Result<(), String> {
        self.then_some(()).ok_or_else(|| "false".to_owned())
    }
}

impl<T> Finding for Option<T> {
    type Found = T;
    fn found(self) -> Result<T, String> {
        self.ok_or_else(|| "none".to_owned())
    }
}

impl<T, E: Debug> Finding for Result<T, E> {
    type Found = T;
    fn found(self) -> Result<T, String> {
        self.map_err(|error| format!("{error:?}"))
    }
}
