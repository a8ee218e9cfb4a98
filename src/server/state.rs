//! What is under way on a connection: a small state machine that its wire, its requests and its answers move on.

use std::net::SocketAddr;
use std::ops::Range;
use std::time::Instant;

use http::header::TRANSFER_ENCODING;
use http_body::Body as _;
use hyper::body::Incoming;

use super::access::Exchange;
use super::framing::{Chunks, HeadEnd};
use super::limits::{BLANK, HEAD_BUFFER, Room};
use super::wire::{NO_REQUEST, NO_ROOM};

/// What is under way on a connection.
#[derive(Debug)]
pub(super) struct State {
    /// Whose connection it is, for the trace.
    peer: SocketAddr,
    pub(super) phase: Phase,
    /// Since when it is in that phase; on HTTP/2, since when the number of streams is what it is.
    pub(super) since: Instant,
    /// When the peer was last heard.
    heard: Instant,
    /// Bytes of the next request, read with the last of this one.
    pub(super) held: Vec<u8>,
    /// hyper has been told to wait with reading, though there is something to read.
    pub(super) reread: bool,
    /// Requests that are not answered whole; at most one on HTTP/1.
    open: usize,
    /// Those of them whose body is on its way.
    pub(super) reading: usize,
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
    pub(super) room: Room,
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
    pub(super) fn new(peer: SocketAddr, room: Room) -> Self {
        let now = Instant::now();
        Self {
            peer,
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
            room,
        }
    }

    pub(super) fn enter(&mut self, phase: Phase) {
        tracing::trace!(peer = %self.peer, phase = phase.name(), "connection");
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
    pub(super) fn idle(&self) -> Option<(bool, Instant)> {
        match self.phase {
            Phase::Idle => Some((false, self.since)),
            // one that is gone has said all, and lingers
            Phase::Head(_) | Phase::HeadRead | Phase::Body(_) | Phase::Gone => Some((true, self.since)),
            Phase::Answering => self.stalled.map(|since| (true, since)),
            Phase::Http2 if self.open == 0 => Some((false, self.since)),
            Phase::Http2 if self.open == self.reading + self.offered.len() => Some((true, self.heard)),
            Phase::Http2 | Phase::Upgraded => None,
        }
    }

    /// A request's head is complete, and says how its body ends.
    pub(super) fn begin(&mut self, request: &hyper::Request<Incoming>) {
        self.open += 1;
        match self.phase {
            Phase::Http2 => self.since = Instant::now(),
            _ if request.headers().contains_key(TRANSFER_ENCODING) => {
                self.enter(Phase::Body(Body::Chunked(Chunks::default())));
            }
            _ => match request.body().size_hint().exact() {
                None | Some(0) => self.enter(Phase::Answering),
                Some(length) => self.enter(Phase::Body(Body::Left(length))),
            },
        }
    }

    /// A request is answered, or given up. Returns whether nothing is under way on an HTTP/2 connection now.
    pub(super) fn end(&mut self) -> bool {
        self.open = self.open.saturating_sub(1);
        let http2 = matches!(self.phase, Phase::Http2);
        if http2 {
            self.since = Instant::now();
        }
        http2 && self.open == 0
    }

    /// HTTP/2: an answer begins; its number.
    pub(super) fn begin_answer(&mut self) -> u64 {
        self.answers += 1;
        self.answers
    }

    /// HTTP/2: hyper has asked for more of an answer, and got some or not.
    pub(super) fn offer(&mut self, answer: u64, got: bool) {
        if let Phase::Http2 = self.phase {
            self.offered.retain(|(number, _)| *number != answer);
            if got {
                self.offered.push((answer, Instant::now()));
            }
        }
    }

    /// hyper has taken all of an answer. On HTTP/1 what the answer holds is held until the kernel has it too; else it is
    /// given back.
    pub(super) fn answered(&mut self, answer: u64, exchange: Option<Exchange>) -> Option<Exchange> {
        match self.phase {
            Phase::Http2 => self.offered.retain(|(number, _)| *number != answer),
            Phase::Upgraded | Phase::Gone => {}
            _ => {
                (self.unflushed, self.exchange) = (true, exchange);
                return None;
            }
        }
        exchange
    }

    /// The kernel has all of what was written. If that ends an answer: what the answer held, and whether hyper has been
    /// told to wait with reading.
    pub(super) fn flushed(&mut self) -> Option<(Option<Exchange>, bool)> {
        if !std::mem::take(&mut self.unflushed) {
            return None;
        }
        match std::mem::replace(&mut self.phase, Phase::Idle) {
            // the rest of the body is still to be read
            Phase::Body(body) => self.phase = Phase::Body(Body::Answered(Box::new(body))),
            Phase::Answering => self.enter(Phase::Idle),
            other => self.phase = other,
        }
        Some((self.exchange.take(), std::mem::take(&mut self.reread)))
    }

    /// The wire is gone, with all that it was to write and hyper's buffers. Returns what is to be dropped outside of the
    /// lock; `nothing` takes the room's place.
    pub(super) fn gone(&mut self, nothing: Room) -> (Option<Exchange>, Room) {
        self.enter(Phase::Gone);
        (self.exchange.take(), std::mem::replace(&mut self.room, nothing))
    }

    /// HTTP/2: what the connection is like now.
    pub(super) fn http2(&self) -> Http2 {
        let stalled = self.offered.iter().map(|(_, since)| *since).min();
        Http2 { idle_since: (self.open == 0).then_some(self.since), stalled }
    }
}

/// See [`State::http2`].
pub(super) struct Http2 {
    pub(super) idle_since: Option<Instant>,
    /// Since when an answer has not moved.
    pub(super) stalled: Option<Instant>,
}
