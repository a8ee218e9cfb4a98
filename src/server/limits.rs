//! What a client may take: the settings, the constants that are not settings, and whether all of it together fits the
//! container.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytesize::ByteSize;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::config;

/// Connections that the kernel completes before they are accepted; it takes at most `net.core.somaxconn`.
pub(super) const BACKLOG: i32 = 4096;

/// A round trip within a region, and more: for handshakes under way when the listener stops taking new ones.
pub(super) const HANDSHAKE: Duration = Duration::from_millis(100);

/// The accept loop's pause when descriptors or memory have run out: others must give some back first.
pub(super) const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// A connection that waits for less does not make room for the next; nor does one that was told to and then had a
/// request: after that long another is looked for.
pub(super) const MAKE_ROOM: Duration = Duration::from_millis(100);

/// One that has been idle for less is not thought idle if there is another choice.
pub(super) const FRESH: Duration = Duration::from_secs(1);

/// At the stop an idle connection waits that long for a request that is on its way.
pub(super) const LAST_MOMENT: Duration = Duration::from_millis(250);

/// At the stop a client that pipelines requests without end is answered that long.
pub(super) const PIPELINED: Duration = Duration::from_secs(2);

/// A connection that was closed in order is still read that long, because the kernel answers a late byte with RST, which
/// would take the answer from the peer's own buffer (RFC 9112, section 9.6).
pub(super) const LINGER: Duration = Duration::from_secs(1);

/// At the stop, the silence that ends the lingering: a round trip within a region.
pub(super) const CLOSING_LINGER: Duration = Duration::from_millis(200);

/// Between two looks at whether the kernel has sent all of a last answer; it tells nobody.
pub(super) const UNSENT_LOOK: Duration = Duration::from_millis(10);

/// Bytes of one read.
pub(super) const READ: usize = 4096;

/// Bytes of empty lines before a request, which are nothing; more is 400.
pub(super) const BLANK: usize = 1024;

/// A request's head in bytes; more is 431.
pub(super) const MAX_HEAD: usize = 64 * 1024;

/// hyper's first buffer, which is part of a connection's own cost. What a head takes beyond it is counted.
pub(super) const HEAD_BUFFER: usize = 8 * 1024;

/// Bytes of an answer that hyper gets at a time, because it keeps a piece whole until the client has taken its last byte.
pub(super) const PIECE: usize = 16 * 1024;

/// Bytes that the kernel holds for a connection: received and not read, and written and not sent. Else it holds up to
/// 6 MB for a client that sends what nobody reads, and 4 MB for one that reads nothing.
pub(super) const RECEIVE_BUFFER: usize = 64 * 1024;
pub(super) const UNSENT: u32 = 128 * 1024;

/// A peer that acknowledges nothing for so long is gone. Every quiet stream sends something twice as often.
pub(super) const USER_TIMEOUT: Duration = Duration::from_secs(30);

/// Keeps proxies from taking a quiet stream for a dead one, and finds the peers that are.
pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// HTTP/2: streams of a connection, the bytes of one that nobody has read, and of all of them, and of an answer that the
/// client has no window for.
pub(super) const HTTP2_STREAMS: u32 = 200;
pub(super) const HTTP2_STREAM_WINDOW: u32 = 64 * 1024;
pub(super) const HTTP2_CONNECTION_WINDOW: u32 = 256 * 1024;
pub(super) const HTTP2_SEND_BUFFER: usize = 64 * 1024;
pub(super) const HTTP2_MAX_HEAD: u32 = 16 * 1024;
pub(super) const HTTP2_PING_INTERVAL: Duration = Duration::from_secs(20);
pub(super) const HTTP2_PING_TIMEOUT: Duration = Duration::from_secs(5);

/// WebSocket: bytes of a message from the client, and each of the two buffers.
pub(super) const WEBSOCKET_MESSAGE: usize = 64 * 1024;
pub(super) const WEBSOCKET_BUFFER: usize = 4 * 1024;
/// Bytes of messages that a client has not taken.
pub(super) const WEBSOCKET_UNSENT: usize = 256 * 1024;
/// For the echo of a Close frame.
pub(super) const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// The admin port: a kubelet, a Prometheus and a few people.
const ADMIN_CONNECTIONS: usize = 64;
const ADMIN_BUFFERED: usize = 1024 * 1024;

/// Descriptors for everything but clients: the pool, the check, gRPC, both listeners, files, and room to breathe.
const OTHER_DESCRIPTORS: usize = 128;

/// Bytes, measured: of the process with nothing to do, of an idle connection, and of a request under way with an answer
/// of a page.
const IDLE: usize = 16 * 1024 * 1024;
const PER_CONNECTION: usize = 16 * 1024;
const PER_REQUEST: usize = 48 * 1024;

/// What the clients of one server may take.
#[derive(Debug, Clone)]
pub(super) struct Limits {
    pub(super) header_timeout: Duration,
    pub(super) idle_timeout: Duration,
    pub(super) request_timeout: Duration,
    pub(super) body_limit: usize,
    pub(super) max_connections: usize,
    pub(super) max_connection_age: Option<Duration>,
    pub(super) max_in_flight: usize,
    pub(super) max_buffered: usize,
}

impl Limits {
    /// Those of the settings, as far as the process's descriptors and the container's memory carry them. What they do
    /// not carry is logged.
    pub(super) fn public(http: &config::Http, memory_limit: Option<u64>) -> Self {
        let limits = Self {
            header_timeout: http.header_timeout,
            idle_timeout: http.idle_timeout,
            request_timeout: http.request_timeout,
            body_limit: bytes(http.body_limit),
            max_connections: within_descriptors(http.max_connections),
            max_connection_age: http.max_connection_age,
            max_in_flight: http.max_in_flight,
            max_buffered: bytes(http.max_buffered),
        };
        if let Some(limit) = memory_limit.filter(|limit| limits.worst_case() as u64 > *limit) {
            tracing::warn!(
                needed = %ByteSize::b(limits.worst_case() as u64),
                memory_limit = %ByteSize::b(limit),
                "http.max_connections × 16 KiB, http.max_in_flight × 48 KiB and http.max_buffered are more than the \
                 container's memory: lower them, or raise resources.limits.memory"
            );
        }
        limits
    }

    /// Those of the admin port.
    pub(super) fn admin(http: &config::Http) -> Self {
        Self {
            header_timeout: http.header_timeout,
            idle_timeout: http.idle_timeout,
            request_timeout: http.request_timeout,
            body_limit: 1024,
            max_connections: ADMIN_CONNECTIONS,
            max_connection_age: None,
            max_in_flight: ADMIN_CONNECTIONS,
            max_buffered: ADMIN_BUFFERED,
        }
    }

    /// Bytes that the process takes when clients take all they may.
    fn worst_case(&self) -> usize {
        IDLE + self.max_connections * PER_CONNECTION + self.max_in_flight * PER_REQUEST + self.max_buffered
    }
}

fn bytes(size: ByteSize) -> usize {
    usize::try_from(size.as_u64()).unwrap_or(usize::MAX)
}

/// Raises the soft limit of file descriptors to the hard one, and holds `connections` to what is left of it.
fn within_descriptors(connections: usize) -> usize {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return connections;
    };
    let raised = setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map_or(soft, |()| hard);
    let descriptors = usize::try_from(raised).unwrap_or(usize::MAX);
    let carried = descriptors.saturating_sub(OTHER_DESCRIPTORS + ADMIN_CONNECTIONS).max(1);
    if carried < connections {
        tracing::warn!(
            descriptors,
            max_connections = carried,
            "http.max_connections is {connections}, which the limit of open files does not carry: raise `ulimit -n`"
        );
    }
    connections.min(carried)
}

/// Bytes of heads and bodies that a server holds, and how many it may. Cloning shares the account.
#[derive(Debug, Clone)]
pub(super) struct Buffers(Arc<Account>);

#[derive(Debug)]
struct Account {
    held: AtomicUsize,
    max: usize,
}

/// There is no room for more.
#[derive(Debug)]
pub(super) struct NoRoom;

impl Buffers {
    pub(super) fn new(max: usize) -> Self {
        Self(Arc::new(Account { held: AtomicUsize::new(0), max }))
    }

    /// Room for nothing, which can grow.
    pub(super) fn room(&self) -> Room {
        Room { buffers: self.clone(), bytes: 0 }
    }

    pub(super) fn held(&self) -> usize {
        self.0.held.load(Ordering::Relaxed)
    }

    /// Whether more than half of them is held.
    pub(super) fn is_scarce(&self) -> bool {
        self.held() > self.0.max / 2
    }
}

/// Room for some bytes, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Room {
    buffers: Buffers,
    bytes: usize,
}

impl Room {
    pub(super) fn grow(&mut self, bytes: usize) -> Result<(), NoRoom> {
        let account = &self.buffers.0;
        if account.held.fetch_add(bytes, Ordering::Relaxed) + bytes > account.max {
            account.held.fetch_sub(bytes, Ordering::Relaxed);
            return Err(NoRoom);
        }
        self.bytes += bytes;
        Ok(())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Makes it room for that many bytes in all, if it is less.
    pub(super) fn grow_to(&mut self, bytes: usize) -> Result<(), NoRoom> {
        self.grow(bytes.saturating_sub(self.bytes))
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.buffers.0.held.fetch_sub(self.bytes, Ordering::Relaxed);
        }
    }
}
