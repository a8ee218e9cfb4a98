//! One connection, from its first byte to its last: how long it waits for its peer, and how it ends.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use hyper::body::Incoming;
use parking_lot::{Mutex, MutexGuard};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::body::Begun;
use super::framing::HeadEnd;
use super::limits::{CLOSING_LINGER, LAST_MOMENT, LINGER, Limits, PIPELINED, READ};
use super::port::Shared;
use super::state::{Phase, State};
use super::wire::{TIMED_OUT, Wire};
use super::{http1, http2, socket};

const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A connection. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Connection(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    stream: TcpStream,
    peer: SocketAddr,
    local: SocketAddr,
    server: Arc<Shared>,
    stages: Stages,
    state: Mutex<State>,
    /// The wire is gone; an upgrade takes it elsewhere.
    gone: Notify,
}

/// How a connection is told to end, each a stage further.
#[derive(Debug)]
pub(super) struct Stages {
    /// Its client is to be told to leave: the stop has begun, or it has been open for `http.max_connection_age`.
    pub(super) leave: CancellationToken,
    /// It is to close when nothing is under way: phase `stopping`, or to make room for another.
    pub(super) close: CancellationToken,
    /// It ends whatever is under way.
    pub(super) abort: CancellationToken,
}

impl Stages {
    /// Those of one connection, which end with the server's.
    fn child(&self) -> Self {
        let Self { leave, close, abort } = self;
        Self { leave: leave.child_token(), close: close.child_token(), abort: abort.child_token() }
    }
}

impl Connection {
    pub(super) fn new(stream: TcpStream, peer: SocketAddr, server: &Arc<Shared>) -> Self {
        // an IPv4 client of a dual-stack port is shown by its IPv4 address
        let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
        Self(Arc::new(Inner {
            local: stream.local_addr().map_or(([0; 4], 0).into(), canonical),
            stream,
            peer: canonical(peer),
            stages: server.stages.child(),
            server: Arc::clone(server),
            state: Mutex::new(State::new(canonical(peer), server.buffers.room())),
            gone: Notify::new(),
        }))
    }

    /// The other end.
    pub fn peer(&self) -> SocketAddr {
        self.0.peer
    }

    /// This end.
    pub fn local(&self) -> SocketAddr {
        self.0.local
    }

    pub(super) fn stages(&self) -> &Stages {
        &self.0.stages
    }

    pub(super) fn stream(&self) -> &TcpStream {
        &self.0.stream
    }

    pub(super) fn server(&self) -> &Arc<Shared> {
        &self.0.server
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.0.server.limits
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock()
    }

    /// When phase `stopping` began, if it has.
    pub(super) fn stop_began(&self) -> Option<Instant> {
        self.0.server.drain_began.get().copied()
    }

    pub(super) fn trace(&self, what: &str) {
        tracing::trace!(peer = %self.0.peer, "{what}");
    }

    /// Serves it until it ends or is aborted.
    pub(super) async fn serve(self, router: Router) {
        socket::set_options(self.stream());
        self.trace("accepted");
        let Stages { leave, abort, .. } = self.stages();
        // pinned here and polled by reference, because each move would make a connection's memory larger by its size
        let mut converse = std::pin::pin!(self.converse(router));
        loop {
            tokio::select! {
                () = converse.as_mut() => return self.trace("ended"),
                () = abort.cancelled() => return self.trace("aborted"),
                () = self.age(), if !leave.is_cancelled() => leave.cancel(),
            }
        }
    }

    async fn converse(&self, router: Router) {
        let ended = match self.first_bytes().await {
            None => return,
            Some(first) if first.starts_with(HTTP2_PREFACE) => Box::pin(http2::serve(self, router, first)).await,
            Some(first) => http1::serve(self, router, first).await,
        };
        if self.made_room() {
            return;
        }
        match ended {
            Ok(()) => socket::all_sent(self.stream(), self.limits().header_timeout).await,
            Err(error) => {
                if error.is_parse() {
                    metrics::counter!("http_server_bad_requests_total").increment(1);
                }
                tracing::debug!(peer = %self.peer(), error = %crate::telemetry::chain(&error), "connection ended");
            }
        }
        self.linger().await;
    }

    async fn linger(&self) {
        let silence = if self.stages().close.is_cancelled() { CLOSING_LINGER } else { LINGER };
        socket::linger(self.stream(), silence).await;
    }

    /// Completes when its client is to look for another replica. A tenth of the age is left to chance, so that connections
    /// which were made together do not end together.
    async fn age(&self) {
        match self.limits().max_connection_age {
            Some(age) => {
                let spread = f64::from(self.peer().port() % 100) / 1000.0;
                tokio::time::sleep(age.mul_f64(0.9 + spread)).await;
            }
            None => std::future::pending().await,
        }
    }

    /// Reads until the protocol is known: the HTTP/2 preface, or a byte that is not of it.
    async fn first_bytes(&self) -> Option<Vec<u8>> {
        let mut first = Vec::new();
        while first.len() < HTTP2_PREFACE.len() && HTTP2_PREFACE.starts_with(&first) {
            let due = self.state().since + self.limits().header_timeout;
            let readable = tokio::select! {
                readable = tokio::time::timeout_at(due.into(), self.stream().readable()) => readable,
                () = self.closes_unused(), if first.is_empty() => return None,
            };
            if readable.is_err() {
                count_timeout(if first.is_empty() { "first_byte" } else { "head" });
                if !first.is_empty() {
                    let _ = self.stream().try_write(TIMED_OUT);
                    self.linger().await;
                }
                return None;
            }
            let mut bytes = [0; READ];
            match self.stream().try_read(&mut bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(0) | Err(_) => return None,
                Ok(count) => {
                    if first.is_empty() {
                        self.state().enter(Phase::Head(HeadEnd::default()));
                    }
                    first.extend_from_slice(&bytes[..count]);
                }
            }
        }
        Some(first)
    }

    /// Completes when a connection that has sent nothing is to close.
    async fn closes_unused(&self) {
        self.stages().close.cancelled().await;
        if let Some(began) = self.stop_began() {
            tokio::time::sleep_until((began + LAST_MOMENT).into()).await;
        }
        if self.has_unread() {
            std::future::pending().await
        }
    }

    /// Hands it over to a protocol, which reads `first` once more.
    pub(super) fn speaks(&self, phase: Phase, first: Vec<u8>) -> Wire {
        let mut state = self.state();
        state.enter(phase);
        state.held = first;
        drop(state);
        Wire::new(self.clone())
    }

    /// Counts a request in. Must run synchronously when hyper has its head and before it reads on: an async function
    /// would count the request only when it is first polled.
    pub(super) fn begin(&self, request: &hyper::Request<Incoming>) -> Begun {
        self.state().begin(request);
        Begun(self.clone())
    }

    /// Whether its client is to be told to leave: see [`Stages`]; or it holds memory, since a large head, that is scarce.
    pub(super) fn may_leave(&self) -> bool {
        self.stages().leave.is_cancelled() || (self.server().buffers.is_scarce() && !self.state().room.is_empty())
    }

    /// Whether the next request has been sent behind the one that is answered: then this answer is not the last.
    pub(super) fn next_waits(&self) -> bool {
        if self.stop_began().is_some_and(|began| began.elapsed() > PIPELINED) {
            return false;
        }
        let state = self.state();
        matches!(state.phase, Phase::Answering) && (!state.held.is_empty() || self.has_unread())
    }

    /// The rest is another protocol's.
    pub(super) fn upgraded(&self) {
        self.state().enter(Phase::Upgraded);
    }

    /// Completes when an upgraded connection is closed.
    pub(super) async fn upgrade_ended(&self) {
        if matches!(self.state().phase, Phase::Upgraded) {
            self.0.gone.notified().await;
        }
    }

    /// The kernel has all of what was written. If that ends an answer: whether hyper has been told to wait with reading.
    pub(super) fn flushed(&self) -> Option<bool> {
        let flushed = self.state().flushed();
        let (exchange, reread) = flushed?;
        // outside of the lock, because what ends here has things to say
        drop(exchange);
        self.rests();
        Some(reread)
    }

    /// A request is done: the connection ends if another waits for its place.
    pub(super) fn rests(&self) {
        if matches!(self.idle(), Some((false, _))) {
            self.0.server.evict(self);
        }
    }

    pub(super) fn wire_is_gone(&self) {
        let held = self.state().gone(self.server().buffers.room());
        drop(held);
        self.0.gone.notify_one();
    }

    /// Whether bytes that nobody has read are in the socket.
    pub(super) fn has_unread(&self) -> bool {
        socket::has_unread(self.stream())
    }

    /// Ends, to make room for another connection.
    pub(super) fn make_room(&self) {
        self.trace("makes room for another");
        match self.state().idle() {
            Some((false, _)) => self.stages().close.cancel(),
            _ => self.stages().abort.cancel(),
        }
    }

    /// Whether it ends to make room for another.
    pub(super) fn made_room(&self) -> bool {
        self.stages().close.is_cancelled() && self.stop_began().is_none()
    }

    /// Since when it has only waited for its peer, and whether something was under way then.
    pub(super) fn idle(&self) -> Option<(bool, Instant)> {
        self.state().idle()
    }
}

pub(super) fn count_timeout(bound: &'static str) {
    metrics::counter!("http_server_timeouts_total", "bound" => bound).increment(1);
}
