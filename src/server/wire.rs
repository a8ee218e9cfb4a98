//! The TCP stream as hyper sees it.
//!
//! A drain must know what hyper does not tell: whether a request is under way on an HTTP/1 connection, has begun to
//! arrive, or waits unread. So reads end where a request's head ends (`\r\n\r\n`), the rest being held back for the
//! next read: when hyper calls the service, what it has read is exactly that head and nothing of the next request.

use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use axum::body::Body;
use hyper::rt::{Read, ReadBufCursor, Write};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::time::Sleep;
use tokio_util::sync::DropGuard;

const HEAD_END: &[u8] = b"\r\n\r\n";

/// What is known of the requests on a connection. Shared by the wire, the service and the connection's own loop.
#[derive(Debug)]
pub(super) struct Traffic(Mutex<State>);

#[derive(Debug)]
struct State {
    /// Requests whose answer is not complete; at most one on HTTP/1.
    in_flight: usize,
    /// Since when the connection is in the state it is in.
    since: Instant,
    /// When the peer was last heard.
    heard: Instant,
    /// Bytes given to hyper since the last request's head.
    delivered: u64,
    /// The last request's body in bytes, where its length is known.
    body: Option<u64>,
    /// Bytes read from the socket and not yet given to hyper.
    held: usize,
    /// Since when hyper has not asked for more of an answer, though it was given some: its client takes nothing. `None`
    /// while it is the answer that has nothing to give.
    offered: HashMap<u64, Option<Instant>>,
    answers: u64,
    /// Whether answers are held until they are flushed. On HTTP/2 another task than the one that ends an answer writes
    /// it, and may have done so before.
    holds: bool,
    /// Answers that hyper has taken whole and the kernel has not.
    unflushed: Vec<Body>,
    upgraded: bool,
}

/// What a connection is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Activity {
    /// Between requests since then.
    Idle(Instant),
    /// A request's head is arriving since then.
    Head(Instant),
    /// A request is being answered.
    Busy,
    /// It speaks another protocol now, such as WebSocket.
    Upgraded,
}

impl Traffic {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self(Mutex::new(State {
            in_flight: 0,
            since: now,
            heard: now,
            delivered: 0,
            body: Some(0),
            held: 0,
            offered: HashMap::new(),
            answers: 0,
            holds: false,
            unflushed: Vec::new(),
            upgraded: false,
        }))
    }

    pub(super) fn activity(&self) -> Activity {
        let state = self.lock();
        match () {
            () if state.upgraded => Activity::Upgraded,
            () if state.in_flight > 0 || !state.unflushed.is_empty() => Activity::Busy,
            () if state.has_more() => Activity::Head(state.since),
            () => Activity::Idle(state.since),
        }
    }

    /// The first byte is there: from now on a head is arriving.
    pub(super) fn first_byte(&self) {
        self.lock().since = Instant::now();
    }

    /// An answer begins; its number.
    pub(super) fn begin_answer(&self) -> u64 {
        let mut state = self.lock();
        state.answers += 1;
        let number = state.answers;
        state.offered.insert(number, Some(Instant::now()));
        number
    }

    /// Hyper has asked for more of an answer, and got it or not.
    pub(super) fn asked(&self, answer: u64, got: bool) {
        self.lock().offered.insert(answer, got.then(Instant::now));
    }

    /// Since when the peer takes nothing of an answer, where there is such a one; of several, the longest.
    pub(super) fn stalled_since(&self) -> Option<Instant> {
        self.lock().offered.values().flatten().min().copied()
    }

    /// Keeps what an answer held until all of it has been written.
    pub(super) fn hold_until_flushed(&self, answer: u64, body: Body) {
        let mut state = self.lock();
        state.offered.remove(&answer);
        if state.holds {
            state.unflushed.push(body);
        } else {
            // outside of the lock, as below
            drop(state);
            drop(body);
        }
    }

    fn flushed(&self) {
        let mut state = self.lock();
        let flushed = std::mem::take(&mut state.unflushed);
        if !flushed.is_empty() {
            state.since = Instant::now();
        }
        drop(state);
        // outside of the lock: what ends here has things to say
        drop(flushed);
    }

    /// When the peer was last heard.
    pub(super) fn heard(&self) -> Instant {
        self.lock().heard
    }

    /// A request's head is complete. `body` is its length where that is known.
    pub(super) fn request(&self, body: Option<u64>) {
        let mut state = self.lock();
        state.in_flight += 1;
        state.delivered = 0;
        state.body = body;
    }

    /// An answer is complete, or nobody waits for it any more.
    pub(super) fn answered(&self) {
        let mut state = self.lock();
        state.in_flight = state.in_flight.saturating_sub(1);
        state.since = Instant::now();
        if state.body.is_none() {
            // a chunked body has been read to its end: what comes next is a head
            (state.delivered, state.body) = (0, Some(0));
        }
    }

    pub(super) fn upgraded(&self) {
        self.lock().upgraded = true;
    }

    /// Whether the next request has already begun to arrive, as far as this process has read.
    pub(super) fn has_more(&self) -> bool {
        self.lock().has_more()
    }

    /// Whether the last request's body has been read to its end, as far as its length is known.
    pub(super) fn body_is_read(&self) -> bool {
        let state = self.lock();
        state.body.is_some_and(|body| state.delivered + state.held as u64 >= body)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Of a body whose length is unknown (chunked) nothing can be said: then the answer is no.
    fn has_more(&self) -> bool {
        self.body.is_some_and(|body| self.delivered + self.held as u64 > body)
    }
}

/// Whether bytes that nobody has read wait in the socket, asked of the kernel itself: the runtime's own knowledge is
/// as old as its last look.
pub(super) fn has_unread(stream: &TcpStream) -> bool {
    let mut byte = [MaybeUninit::uninit()];
    matches!(SockRef::from(stream).peek(&mut byte), Ok(1))
}

/// Whether the kernel holds bytes that it has not sent, because the peer takes no more at the moment.
pub(super) fn has_unsent(stream: &TcpStream) -> bool {
    // a socket is writable while less than that is unsent
    let _ = SockRef::from(stream).set_tcp_notsent_lowat(1);
    let mut polled = [PollFd::new(stream.as_fd(), PollFlags::POLLOUT)];
    matches!(poll(&mut polled, PollTimeout::ZERO), Ok(0))
}

/// See the module.
#[derive(Debug)]
pub(super) struct Wire {
    stream: Arc<TcpStream>,
    traffic: Arc<Traffic>,
    /// Tells the connection that this is gone; an upgrade takes it elsewhere.
    _gone: DropGuard,
    /// Whether reads end at heads: HTTP/1 only.
    by_heads: bool,
    held: Vec<u8>,
    /// How much of [`HEAD_END`] the last read ended with.
    matched: usize,
    /// A peer that takes no byte for so long is gone.
    write_timeout: Duration,
    write_stalled: Option<Pin<Box<Sleep>>>,
}

impl Wire {
    /// `first` is what has already been read of the stream.
    pub(super) fn new(
        stream: Arc<TcpStream>,
        traffic: Arc<Traffic>,
        gone: DropGuard,
        first: Vec<u8>,
        by_heads: bool,
        write_timeout: Duration,
    ) -> Self {
        {
            let mut state = traffic.lock();
            (state.held, state.holds) = (first.len(), by_heads);
        }
        Self { stream, traffic, _gone: gone, by_heads, held: first, matched: 0, write_timeout, write_stalled: None }
    }

    /// How many of these bytes to give to hyper: up to and including the end of a head.
    fn cut(&mut self, bytes: &[u8]) -> usize {
        if !self.by_heads {
            return bytes.len();
        }
        for (index, byte) in bytes.iter().enumerate() {
            self.matched = match *byte == HEAD_END[self.matched] {
                true => self.matched + 1,
                false => usize::from(*byte == HEAD_END[0]),
            };
            if self.matched == HEAD_END.len() {
                self.matched = 0;
                return index + 1;
            }
        }
        bytes.len()
    }

    /// Notes what hyper is given, and since when a head is arriving.
    fn delivered(&self, count: usize) {
        let mut state = self.traffic.lock();
        let now = Instant::now();
        if state.in_flight == 0 && !state.has_more() {
            state.since = now;
        }
        state.heard = now;
        state.delivered += count as u64;
        state.held = self.held.len();
    }
}

impl Read for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, mut buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let room = buf.remaining();
        if room == 0 {
            return Poll::Ready(Ok(()));
        }
        if this.held.is_empty() {
            let mut read = [0; 8192];
            let count = loop {
                ready!(this.stream.poll_read_ready(cx))?;
                match this.stream.try_read(&mut read[..room.min(8192)]) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    read => break read?,
                }
            };
            let whole = this.cut(&read[..count]);
            this.held.extend_from_slice(&read[whole..count]);
            buf.put_slice(&read[..whole]);
            this.delivered(whole);
        } else {
            let held = std::mem::take(&mut this.held);
            let whole = this.cut(&held[..held.len().min(room)]);
            this.held = held[whole..].to_vec();
            buf.put_slice(&held[..whole]);
            this.delivered(whole);
        }
        Poll::Ready(Ok(()))
    }
}

impl Write for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().write(cx, |stream| stream.try_write(buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().write(cx, |stream| stream.try_write_vectored(bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.traffic.flushed();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match SockRef::from(&*self.stream).shutdown(std::net::Shutdown::Write) {
            Err(error) if error.kind() != io::ErrorKind::NotConnected => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(())),
        }
    }
}

impl Wire {
    fn write(
        &mut self,
        cx: &mut Context<'_>,
        try_write: impl Fn(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        while let Poll::Ready(ready) = self.stream.poll_write_ready(cx) {
            ready?;
            match try_write(&self.stream) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => {
                    self.write_stalled = None;
                    return Poll::Ready(written);
                }
            }
        }
        let timeout = self.write_timeout;
        let stalled = self.write_stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        ready!(stalled.as_mut().poll(cx));
        metrics::counter!("http_server_timeouts_total", "bound" => "write").increment(1);
        tracing::warn!(peer = ?self.stream.peer_addr().ok(), "dropped: it takes no bytes");
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer takes no bytes")))
    }
}
