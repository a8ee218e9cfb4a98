//! One connection, from its first byte to its last.
//!
//! hyper parses and writes; this file bounds how long a peer may take for its first byte, a head and between requests,
//! and decides when a connection may be closed without losing what the peer has already sent.

use std::convert::Infallible;
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::response::Response;
use http::header::{CONNECTION, TRANSFER_ENCODING};
use http::{HeaderValue, StatusCode, Version};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::Local;
use super::body::{Answer, Counted};
use super::listener::Shared;
use super::wire::{Activity, Traffic, Wire, has_unread, has_unsent};

const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How long after the listener closed an idle connection still waits for a request that is on its way.
const LAST_MOMENT: Duration = Duration::from_millis(250);

/// Between two looks at a connection that is to end as soon as it is idle.
const DRAINING_LOOK: Duration = Duration::from_millis(10);

/// Between two looks at whether the kernel has sent all of a last answer.
const UNSENT_LOOK: Duration = Duration::from_millis(10);

/// How long a connection that was closed in order is still read, so that the kernel does not answer a late byte with
/// RST, which would take the answer from the peer's own buffer (RFC 9112, section 9.6).
const LINGER: Duration = Duration::from_secs(1);

/// The silence that ends it while the service drains: a round trip within a region, and nobody is waited for longer who has had an answer.
const DRAINING_LINGER: Duration = Duration::from_millis(200);

const HTTP2_STREAMS: u32 = 200;
const HTTP2_PING_INTERVAL: Duration = Duration::from_secs(20);
const HTTP2_PING_TIMEOUT: Duration = Duration::from_secs(5);
const MAX_HEAD: usize = 64 * 1024;

/// Bytes of an answer that the kernel may hold unsent.
const UNSENT: u32 = 128 * 1024;

/// Why an HTTP/1 connection should end.
enum End {
    Idle,
    HeadOverdue,
}

/// A connection that was accepted.
pub(super) struct Connection {
    stream: Arc<TcpStream>,
    peer: SocketAddr,
    local: SocketAddr,
    traffic: Arc<Traffic>,
    shared: Arc<Shared>,
    router: Router,
    /// Cancelled when the wire is gone.
    ended: CancellationToken,
    /// Its place among `max_connections`; none for those taken from the backlog at the very end.
    _place: Option<OwnedSemaphorePermit>,
}

impl Connection {
    pub(super) fn new(
        stream: TcpStream,
        peer: SocketAddr,
        shared: Arc<Shared>,
        router: Router,
        place: Option<OwnedSemaphorePermit>,
    ) -> Self {
        // an IPv4 client of a dual-stack port is shown by its IPv4 address
        let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
        let (peer, local) = (canonical(peer), stream.local_addr().map_or(([0; 4], 0).into(), canonical));
        let (stream, traffic) = (Arc::new(stream), Arc::new(Traffic::new()));
        Self { stream, peer, local, traffic, shared, router, ended: CancellationToken::new(), _place: place }
    }

    /// Serves it until it ends or is cut.
    pub(super) async fn serve(self) {
        // Nagle's delay would hold the last segment of an answer back for the peer's delayed ACK
        let _ = self.stream.set_nodelay(true);
        // else the kernel holds up to 4 MB for each peer that takes nothing, and nobody notices that it takes nothing
        let _ = SockRef::from(&*self.stream).set_tcp_notsent_lowat(UNSENT);
        let cut = self.shared.cut.clone();
        cut.run_until_cancelled(async {
            match self.first_bytes().await {
                Some(first) if first == HTTP2_PREFACE => self.http2(first).await,
                Some(first) => self.http1(first).await,
                None => {}
            }
        })
        .await;
    }

    /// Reads until the protocol is known: the whole HTTP/2 preface, or a byte that is not of it.
    async fn first_bytes(&self) -> Option<Vec<u8>> {
        let timeout = self.shared.limits.header_timeout;
        let mut first = Vec::new();
        let Ok(read) = tokio::time::timeout(timeout, self.read_on(&mut first)).await else {
            count_timeout("first_byte");
            return None;
        };
        read.ok()?;
        self.traffic.first_byte();
        let rest = async {
            while first.len() < HTTP2_PREFACE.len() && HTTP2_PREFACE.starts_with(&first) {
                self.read_on(&mut first).await?;
            }
            io::Result::Ok(())
        };
        match tokio::time::timeout(timeout, rest).await {
            Ok(read) => read.ok().map(|()| first),
            Err(_elapsed) => {
                self.time_out_head().await;
                None
            }
        }
    }

    /// Reads at least a byte, and no further than an HTTP/2 preface would go.
    async fn read_on(&self, first: &mut Vec<u8>) -> io::Result<()> {
        loop {
            self.stream.readable().await?;
            let mut bytes = [0; HTTP2_PREFACE.len()];
            match self.stream.try_read(&mut bytes[..HTTP2_PREFACE.len() - first.len()]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    first.extend_from_slice(&bytes[..count]);
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }

    async fn http1(&self, first: Vec<u8>) {
        let wire = self.wire(first, true);
        let service = hyper::service::service_fn(|request| {
            let counted = self.count(&request);
            self.call(request, counted)
        });
        let mut builder = http1::Builder::new();
        // hyper's own timeout would end a connection that is merely idle as well, after 30 s
        builder.timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(MAX_HEAD);
        let mut connection = pin!(builder.serve_connection(wire, service).with_upgrades());
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            end = self.end() => match end {
                End::Idle => {
                    // the kernel says that nothing waits, and hyper that nothing is under way: this ends with FIN
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
                End::HeadOverdue => return self.time_out_head().await,
            },
        };
        if self.traffic.activity() == Activity::Upgraded {
            self.ended.cancelled().await;
        }
        match ended {
            Ok(()) => self.all_sent().await,
            Err(error) => self.note(&error),
        }
        self.linger().await;
    }

    async fn http2(&self, first: Vec<u8>) {
        let wire = self.wire(first, false);
        let service = hyper::service::service_fn(|request| {
            // heads and bodies of several streams come in turn: nothing is said of how far each has come
            self.traffic.request(Some(0));
            let counted = Counted(Arc::clone(&self.traffic));
            let answered = answer(self.router.clone(), request, self.peer, Local(self.local));
            async { Ok::<_, Infallible>(answered.await.map(|body| Answer::new(body, counted))) }
        });
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .keep_alive_interval(HTTP2_PING_INTERVAL)
            .keep_alive_timeout(HTTP2_PING_TIMEOUT)
            .max_concurrent_streams(HTTP2_STREAMS)
            .max_header_list_size(MAX_HEAD as u32)
            .max_pending_accept_reset_streams(HTTP2_STREAMS as usize)
            .max_send_buf_size(MAX_HEAD);
        let mut connection = pin!(builder.serve_connection(wire, service));
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = self.may_goaway() => {
                connection.as_mut().graceful_shutdown();
                tokio::select! {
                    ended = connection.as_mut() => ended,
                    () = self.stalled() => Ok(()),
                    () = self.deaf() => Ok(()),
                }
            }
        };
        match ended {
            Ok(()) => self.all_sent().await,
            Err(error) => self.note(&error),
        }
        self.linger().await;
    }

    fn wire(&self, first: Vec<u8>, by_heads: bool) -> Wire {
        let write_timeout = self.shared.limits.request_timeout;
        let gone = self.ended.clone().drop_guard();
        Wire::new(Arc::clone(&self.stream), Arc::clone(&self.traffic), gone, first, by_heads, write_timeout)
    }

    /// Counts a request in. To be called when hyper has its head and before it reads on, which an async function, that
    /// does nothing until it is polled, would not be.
    fn count(&self, request: &hyper::Request<Incoming>) -> Counted {
        let chunked = request.headers().contains_key(TRANSFER_ENCODING);
        self.traffic.request(if chunked { None } else { request.body().size_hint().exact() });
        Counted(Arc::clone(&self.traffic))
    }

    async fn call(&self, request: hyper::Request<Incoming>, counted: Counted) -> Result<Response<Answer>, Infallible> {
        let version = request.version();
        let response = answer(self.router.clone(), request, self.peer, Local(self.local)).await;
        let mut response = response.map(|body| Answer::new(body, counted));
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            self.traffic.upgraded();
        } else if version <= Version::HTTP_11 && self.shared.asks_to_leave() && !self.next_waits() {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            if version == Version::HTTP_10 {
                // else hyper would add a keep-alive to it
                *response.version_mut() = version;
            }
        }
        Ok(response)
    }

    /// Whether another request has been sent behind the one being answered: then its answer is not yet the last.
    fn next_waits(&self) -> bool {
        self.traffic.has_more() || (self.traffic.body_is_read() && has_unread(&self.stream))
    }

    /// Completes when an HTTP/1 connection should end: it was idle for too long, or is idle while the service drains and
    /// nothing of a request has arrived, or a head takes too long.
    async fn end(&self) -> End {
        let limits = &self.shared.limits;
        loop {
            let now = Instant::now();
            let draining = self.shared.draining.is_cancelled();
            let due = match self.traffic.activity() {
                Activity::Head(since) if now >= since + limits.header_timeout => return End::HeadOverdue,
                Activity::Head(since) => since + limits.header_timeout,
                Activity::Idle(since) => {
                    let due = match draining {
                        true => since.max(self.shared.drain_began()) + LAST_MOMENT,
                        false => since + limits.idle_timeout,
                    };
                    if now >= due && !has_unread(&self.stream) {
                        if !draining {
                            count_timeout("idle");
                        }
                        return End::Idle;
                    }
                    due
                }
                Activity::Busy => now + limits.idle_timeout,
                Activity::Upgraded => std::future::pending().await,
            };
            // what changes in between is noticed at the next look
            let look = if draining { DRAINING_LOOK } else { limits.header_timeout / 4 };
            let next = due.min(now + look).max(now + Duration::from_millis(1));
            match draining {
                true => tokio::time::sleep_until(next.into()).await,
                false => self.until(next).await,
            }
        }
    }

    /// Completes when an HTTP/2 connection should be told to go away: it was idle for too long, its client takes nothing
    /// of an answer, or the service drains.
    async fn may_goaway(&self) {
        let (idle_timeout, stall_timeout) = (self.shared.limits.idle_timeout, self.shared.limits.request_timeout);
        while !self.shared.draining.is_cancelled() {
            let now = Instant::now();
            let due = match self.traffic.activity() {
                // between requests any byte, such as a PING's, looks like a head
                Activity::Idle(since) | Activity::Head(since) => since + idle_timeout,
                Activity::Busy | Activity::Upgraded => now + idle_timeout,
            };
            if due <= now {
                return count_timeout("idle");
            }
            let stall_due = self.traffic.stalled_since().unwrap_or(now) + stall_timeout;
            if stall_due <= now {
                return;
            }
            self.until(due.min(stall_due)).await;
        }
    }

    /// Completes when a peer that was told to go away has taken nothing of an answer for twice the time it has: what
    /// else is on its connection had time to finish. Not the socket need be full, which the wire would notice, but the
    /// stream's own window closed.
    async fn stalled(&self) {
        let patience = 2 * self.shared.limits.request_timeout;
        loop {
            let waited = self.traffic.stalled_since().map_or(Duration::ZERO, |since| since.elapsed());
            if waited >= patience {
                break;
            }
            tokio::time::sleep(patience - waited).await;
        }
        count_timeout("write");
        tracing::warn!(peer = %self.peer, "dropped: it takes no bytes of a stream");
    }

    /// Completes when a peer that was told to go away has no stream open and has not been heard for a while: it would
    /// never answer the PING that hyper waits for.
    async fn deaf(&self) {
        let (told, patience) = (Instant::now(), self.shared.limits.header_timeout);
        loop {
            let silent = self.traffic.heard().max(told).elapsed();
            if silent >= patience && !matches!(self.traffic.activity(), Activity::Busy) {
                return;
            }
            tokio::time::sleep(patience.saturating_sub(silent).max(Duration::from_millis(50))).await;
        }
    }

    /// Sleeps until then, or until the drain begins.
    async fn until(&self, until: Instant) {
        self.shared.draining.run_until_cancelled(tokio::time::sleep_until(until.into())).await;
    }

    /// Says so while there is somebody to say it to: nothing of an answer has been written yet.
    async fn time_out_head(&self) {
        count_timeout("head");
        let answer = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
        let _ = self.stream.try_write(answer);
        self.linger().await;
    }

    /// Waits until the kernel has sent what it holds, which otherwise ends with the pod. Who takes nothing for too long is
    /// waited for no more.
    async fn all_sent(&self) {
        let send = async {
            while has_unsent(&self.stream) {
                tokio::time::sleep(UNSENT_LOOK).await;
            }
        };
        let _ = tokio::time::timeout(self.shared.limits.header_timeout, send).await;
    }

    /// Says that nothing more comes, and reads and discards what the peer still sends, for a moment.
    async fn linger(&self) {
        let _ = SockRef::from(&*self.stream).shutdown(Shutdown::Write);
        let silence = if self.shared.draining.is_cancelled() { DRAINING_LINGER } else { LINGER };
        let discard = async {
            let mut bytes = [0; 4096];
            while let Ok(Ok(())) = tokio::time::timeout(silence, self.stream.readable()).await {
                match self.stream.try_read(&mut bytes) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Ok(0) | Err(_) => return,
                    Ok(_) => {}
                }
            }
        };
        let _ = tokio::time::timeout(LINGER, discard).await;
    }

    fn note(&self, error: &hyper::Error) {
        if error.is_parse() {
            metrics::counter!("http_server_bad_requests_total").increment(1);
        }
        tracing::debug!(peer = %self.peer, error = %crate::telemetry::chain(error), "connection ended");
    }
}

fn count_timeout(bound: &'static str) {
    metrics::counter!("http_server_timeouts_total", "bound" => bound).increment(1);
}

async fn answer(router: Router, request: hyper::Request<Incoming>, peer: SocketAddr, local: Local) -> Response {
    let mut request = request.map(Body::new);
    request.extensions_mut().insert(ConnectInfo(peer));
    request.extensions_mut().insert(local);
    router.oneshot(request).await.unwrap_or_else(|never: Infallible| match never {})
}
