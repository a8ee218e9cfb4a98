//! One connection, from its first byte to its last: what its wire, its requests and the server know of it.

use std::io;
use std::mem::MaybeUninit;
use std::net::{Shutdown, SocketAddr};
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use http::header::TRANSFER_ENCODING;
use http_body::Body as _;
use hyper::body::Incoming;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use parking_lot::{Mutex, MutexGuard};
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::framing::{Chunks, HeadEnd};
use super::limits::{
    BLANK, CLOSING_LINGER, HEAD_BUFFER, LAST_MOMENT, LINGER, Limits, PIPELINED, READ, Room, UNSENT, UNSENT_LOOK,
    USER_TIMEOUT,
};
use super::listener::Shared;
use super::request::Exchange;
use super::wire::{NO_REQUEST, NO_ROOM, TIMED_OUT, Wire};
use super::{http1, http2};

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

/// What is under way on a connection.
#[derive(Debug)]
pub(super) struct State {
    pub(super) phase: Phase,
    /// Since when it is in that phase; on HTTP/2, since when the number of streams is what it is.
    since: Instant,
    /// When the peer was last heard.
    heard: Instant,
    /// Bytes of the next request, read with the last of this one.
    pub(super) held: Vec<u8>,
    /// hyper has been told to wait with reading, though there is something to read.
    pub(super) reread: bool,
    /// Requests that are not answered whole; at most one on HTTP/1.
    open: usize,
    /// Those of them whose body is on its way.
    reading: usize,
    /// Since when the peer takes nothing.
    pub(super) stalled: Option<Instant>,
    /// HTTP/2: since when hyper has not asked for more of an answer, because its stream has no window.
    offered: Vec<(u64, Instant)>,
    answers: u64,
    /// hyper has taken all of an answer, and the kernel has not; and what that answer holds.
    unflushed: bool,
    exchange: Option<Exchange>,
    head: usize,
    /// Bytes of empty lines before it.
    blank: usize,
    room: Room,
}

/// What an HTTP/1 connection is doing.
#[derive(Debug)]
pub(super) enum Phase {
    /// Nothing of a request has come.
    Idle,
    /// A head is on its way.
    Head(HeadEnd),
    /// A head is complete, and hyper parses it.
    HeadRead,
    /// A body is on its way.
    Body(Body),
    /// A request has come whole and is answered.
    Answering,
    /// It speaks another protocol now, such as WebSocket.
    Upgraded,
    /// It is HTTP/2, whose requests come and are answered side by side.
    Http2,
    /// Its stream is closed.
    Gone,
}

/// How the end of a body is known.
#[derive(Debug)]
pub(super) enum Body {
    Left(u64),
    Chunked(Chunks),
    /// It is answered, and the rest is read for order's sake.
    Answered(Box<Body>),
}

impl Body {
    fn find(&mut self, bytes: &[u8]) -> Option<usize> {
        match self {
            Self::Left(left) if *left > bytes.len() as u64 => {
                *left -= bytes.len() as u64;
                None
            }
            // it fits: it is no more than the bytes there are
            Self::Left(left) => Some(*left as usize),
            Self::Chunked(chunks) => chunks.find(bytes),
            Self::Answered(body) => body.find(bytes),
        }
    }
}

impl Phase {
    fn name(&self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Head(_) => "head",
            Self::HeadRead => "head read",
            Self::Body(_) => "body",
            Self::Answering => "answering",
            Self::Upgraded => "upgraded",
            Self::Http2 => "HTTP/2",
            Self::Gone => "gone",
        }
    }
}

impl State {
    fn enter(&mut self, phase: Phase) {
        tracing::trace!(phase = phase.name(), "connection");
        self.phase = phase;
        self.since = Instant::now();
    }

    /// Those of the bytes that belong to the request that is being read, or what its client is told last.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Result<Range<usize>, &'static [u8]> {
        let mut begin = 0;
        if let Phase::Idle = self.phase {
            // empty lines before a request are nothing (RFC 9112, section 2.2)
            begin = bytes.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
            self.blank += begin;
            if self.blank > BLANK {
                return Err(NO_REQUEST);
            }
            if begin < bytes.len() {
                (self.head, self.blank) = (0, 0);
                self.enter(Phase::Head(HeadEnd::default()));
            }
        }
        let ours = &bytes[begin..];
        let (end, next) = match &mut self.phase {
            Phase::Head(end) => {
                let end = end.find(ours);
                self.head += end.unwrap_or(ours.len());
                // hyper's buffer doubles, and stays as large as its largest head
                let bytes = 2 * self.head.saturating_sub(HEAD_BUFFER);
                self.room.grow_to(bytes).map_err(|_no_room| NO_ROOM)?;
                (end, Phase::HeadRead)
            }
            Phase::Body(body) => {
                let end = body.find(ours);
                (end, if matches!(body, Body::Answered(_)) { Phase::Idle } else { Phase::Answering })
            }
            _ => {
                self.heard = Instant::now();
                (None, Phase::Idle)
            }
        };
        if end.is_some() {
            self.enter(next);
        }
        Ok(begin..begin + end.unwrap_or(ours.len()))
    }

    /// Whether it waits for its peer between requests (`true`) or within a head, and since when.
    pub(super) fn waiting(&self) -> Option<(bool, Instant)> {
        match self.phase {
            Phase::Idle => Some((true, self.since)),
            Phase::Head(_) | Phase::HeadRead => Some((false, self.since)),
            _ => None,
        }
    }

    /// Since when it has only waited for its peer, the more patient first: an idle one has nothing to lose.
    fn idle(&self) -> Option<(bool, Instant)> {
        match self.phase {
            Phase::Idle => Some((false, self.since)),
            // of one that is gone all is said, and it lingers
            Phase::Head(_) | Phase::HeadRead | Phase::Body(_) | Phase::Gone => Some((true, self.since)),
            Phase::Answering => self.stalled.map(|since| (true, since)),
            Phase::Http2 if self.open == 0 => Some((false, self.since)),
            Phase::Http2 if self.open == self.reading + self.offered.len() => Some((true, self.heard)),
            Phase::Http2 | Phase::Upgraded => None,
        }
    }
}

impl Connection {
    pub(super) fn new(stream: TcpStream, peer: SocketAddr, server: &Arc<Shared>) -> Self {
        let now = Instant::now();
        let state = State {
            phase: Phase::Idle,
            since: now,
            heard: now,
            held: Vec::new(),
            reread: false,
            open: 0,
            reading: 0,
            stalled: None,
            offered: Vec::new(),
            answers: 0,
            unflushed: false,
            exchange: None,
            head: 0,
            blank: 0,
            room: server.buffers.room(),
        };
        // an IPv4 client of a dual-stack port is shown by its IPv4 address
        let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
        Self(Arc::new(Inner {
            local: stream.local_addr().map_or(([0; 4], 0).into(), canonical),
            stream,
            peer: canonical(peer),
            stages: server.stages.child(),
            server: Arc::clone(server),
            state: Mutex::new(state),
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
        let socket = SockRef::from(self.stream());
        // Nagle's delay would hold the last segment of an answer back for the peer's delayed ACK
        let _ = socket.set_tcp_nodelay(true);
        let _ = socket.set_tcp_notsent_lowat(UNSENT);
        let _ = socket.set_tcp_user_timeout(Some(USER_TIMEOUT));
        self.trace("accepted");
        let serve = async {
            let ended = match self.first_bytes().await {
                None => return,
                Some(first) if first.starts_with(HTTP2_PREFACE) => Box::pin(http2::serve(&self, router, first)).await,
                Some(first) => http1::serve(&self, router, first).await,
            };
            self.trace("ended");
            if self.made_room() {
                return;
            }
            if let Err(error) = ended {
                if error.is_parse() {
                    metrics::counter!("http_server_bad_requests_total").increment(1);
                }
                tracing::debug!(peer = %self.peer(), error = %crate::telemetry::chain(&error), "connection ended");
            } else {
                self.all_sent().await;
            }
            self.linger().await;
        };
        let serve = async {
            let mut serve = std::pin::pin!(serve);
            tokio::select! {
                () = serve.as_mut() => {}
                () = self.age() => {
                    self.stages().leave.cancel();
                    serve.await;
                }
            }
        };
        if self.stages().abort.run_until_cancelled(serve).await.is_none() {
            self.trace("aborted");
        }
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
        let mut state = self.state();
        state.open += 1;
        match state.phase {
            Phase::Http2 => state.since = Instant::now(),
            _ if request.headers().contains_key(TRANSFER_ENCODING) => {
                state.enter(Phase::Body(Body::Chunked(Chunks::default())));
            }
            _ => match request.body().size_hint().exact() {
                None | Some(0) => state.enter(Phase::Answering),
                Some(length) => state.enter(Phase::Body(Body::Left(length))),
            },
        }
        drop(state);
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
        let mut state = self.state();
        if !std::mem::take(&mut state.unflushed) {
            return None;
        }
        let exchange = state.exchange.take();
        match std::mem::replace(&mut state.phase, Phase::Idle) {
            // the rest of the body is still to be read
            Phase::Body(body) => state.phase = Phase::Body(Body::Answered(Box::new(body))),
            Phase::Answering => state.enter(Phase::Idle),
            other => state.phase = other,
        }
        let reread = std::mem::take(&mut state.reread);
        drop(state);
        // outside of the lock, because what ends here has things to say
        drop(exchange);
        self.rests();
        Some(reread)
    }

    /// A request is done.
    fn rests(&self) {
        if matches!(self.idle(), Some((false, _))) {
            self.0.server.evict(self);
        }
    }

    pub(super) fn wire_is_gone(&self) {
        let mut state = self.state();
        state.enter(Phase::Gone);
        // hyper's buffers have gone with it
        let held = (state.exchange.take(), std::mem::replace(&mut state.room, self.server().buffers.room()));
        drop(state);
        drop(held);
        self.0.gone.notify_one();
    }

    /// Whether bytes that nobody has read are in the socket. Asks the kernel, because the runtime's own knowledge is as
    /// old as its last look.
    pub(super) fn has_unread(&self) -> bool {
        let mut byte = [MaybeUninit::uninit()];
        matches!(SockRef::from(self.stream()).peek(&mut byte), Ok(1))
    }

    pub(super) fn shut_down(&self) -> io::Result<()> {
        match SockRef::from(self.stream()).shutdown(Shutdown::Write) {
            Err(error) if error.kind() != io::ErrorKind::NotConnected => Err(error),
            _ => Ok(()),
        }
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

    /// HTTP/2: when to look again, and what the connection is like until then.
    pub(super) fn http2(&self) -> Http2 {
        let state = self.state();
        let stalled = state.offered.iter().map(|(_, since)| *since).min();
        Http2 { idle_since: (state.open == 0).then_some(state.since), stalled }
    }

    /// Waits until the kernel has sent what it holds, which would otherwise end with the pod; no longer than for a head.
    async fn all_sent(&self) {
        // a socket is writable while less than that is unsent
        let _ = SockRef::from(self.stream()).set_tcp_notsent_lowat(1);
        let unsent = || {
            let mut polled = [PollFd::new(self.stream().as_fd(), PollFlags::POLLOUT)];
            matches!(poll(&mut polled, PollTimeout::ZERO), Ok(0))
        };
        let send = async {
            while unsent() {
                tokio::time::sleep(UNSENT_LOOK).await;
            }
        };
        let _ = tokio::time::timeout(self.limits().header_timeout, send).await;
    }

    /// Says that nothing more comes, and reads and discards what the peer still sends, for a moment.
    async fn linger(&self) {
        let _ = self.shut_down();
        let silence = if self.stages().close.is_cancelled() { CLOSING_LINGER } else { LINGER };
        let discard = async {
            while let Ok(Ok(())) = tokio::time::timeout(silence, self.stream().readable()).await {
                let mut bytes = [0; READ];
                match self.stream().try_read(&mut bytes) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Ok(0) | Err(_) => return,
                    Ok(_) => {}
                }
            }
        };
        let _ = tokio::time::timeout(LINGER, discard).await;
    }
}

/// See [`Connection::http2`].
pub(super) struct Http2 {
    pub(super) idle_since: Option<Instant>,
    /// Since when an answer has not moved.
    pub(super) stalled: Option<Instant>,
}

/// A request that is under way on its connection until this is dropped.
#[derive(Debug)]
pub(super) struct Begun(pub(super) Connection);

impl Begun {
    /// The request's body is on its way until the guard is dropped.
    pub(super) fn reading(&self) -> Reading<'_> {
        self.0.state().reading += 1;
        Reading(self)
    }

    /// HTTP/2: an answer begins; its number.
    pub(super) fn begin_answer(&self) -> u64 {
        let mut state = self.0.state();
        state.answers += 1;
        state.answers
    }

    /// HTTP/2: hyper has asked for more of an answer, and got some or not.
    pub(super) fn offer(&self, answer: u64, got: bool) {
        let mut state = self.0.state();
        if let Phase::Http2 = state.phase {
            state.offered.retain(|(number, _)| *number != answer);
            if got {
                state.offered.push((answer, Instant::now()));
            }
        }
    }

    /// hyper has taken all of an answer. On HTTP/1 what the answer holds is held until the kernel has it too.
    pub(super) fn answered(&self, answer: u64, exchange: Option<Exchange>) {
        let mut state = self.0.state();
        match state.phase {
            Phase::Http2 => state.offered.retain(|(number, _)| *number != answer),
            Phase::Upgraded | Phase::Gone => {}
            _ => {
                (state.unflushed, state.exchange) = (true, exchange);
                return;
            }
        }
        drop(state);
        drop(exchange);
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.open = state.open.saturating_sub(1);
        let http2 = matches!(state.phase, Phase::Http2);
        if http2 {
            state.since = Instant::now();
        }
        drop(state);
        if http2 {
            self.0.rests();
        }
    }
}

/// See [`Begun::reading`].
pub(super) struct Reading<'a>(&'a Begun);

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.0.0.state().reading -= 1;
    }
}

pub(super) fn count_timeout(bound: &'static str) {
    metrics::counter!("http_server_timeouts_total", "bound" => bound).increment(1);
}
