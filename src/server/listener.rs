//! Listening, accepting, and the three stages of the stop: stop accepting, drain, abort.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use nix::errno::Errno;
use parking_lot::{Mutex, MutexGuard};
use slab::Slab;
use socket2::{Domain, SockFilter, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::layer::layer_fn;

use super::connection::{Connection, Stages};
use super::limits::{BACKLOG, Buffers, EXHAUSTED_PAUSE, FRESH, HANDSHAKE, Limits, MAKE_ROOM, RECEIVE_BUFFER};
use super::request::NoteRoute;
use crate::config::Config;
use crate::lifecycle::{Kind, Lifecycle};

/// What axum's extractors take unless they are told otherwise.
const AXUM_BODY_LIMIT: usize = 2 * 1024 * 1024;

/// What a host without IPv6 answers: the kernel has none, or no address.
const NO_IPV6: i32 = Errno::EAFNOSUPPORT as i32;
const NO_IPV6_ADDRESS: i32 = Errno::EADDRNOTAVAIL as i32;

/// Which of the two ports; each is a section of the settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    /// The service's own: its requests are admitted, logged and measured.
    Public,
    /// For the platform and the people who run it: its requests are only answered.
    Admin,
}

impl Port {
    fn name(self) -> &'static str {
        match self {
            Self::Public => "http",
            Self::Admin => "admin",
        }
    }
}

/// The address cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} for {server}, {setting} takes another")]
pub struct BindError {
    server: &'static str,
    setting: String,
    address: SocketAddr,
    source: io::Error,
}

/// A server on one address. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Server {
    address: SocketAddr,
    /// Bound; taken when it begins to listen.
    socket: Arc<Mutex<Option<Socket>>>,
    shared: Arc<Shared>,
}

/// What a server shares with its connections.
#[derive(Debug)]
pub(super) struct Shared {
    port: Port,
    pub(super) limits: Limits,
    pub(super) lifecycle: Lifecycle,
    pub(super) stages: Stages,
    /// When connections were told to close, if they were: phase `stopping`.
    pub(super) drain_began: OnceLock<Instant>,
    /// Bytes of heads and bodies.
    pub(super) buffers: Buffers,
    /// For requests that are handled, `http.max_in_flight`; and for streams that open, as many as connections.
    pub(super) places: Semaphore,
    pub(super) streams: Semaphore,
    /// Each connection is a task here, and so is each HTTP/2 stream.
    pub(super) connections: TaskTracker,
    /// For connections, `http.max_connections`.
    room: Arc<Semaphore>,
    open: Mutex<Slab<Connection>>,
    /// A connection waits for another to end, and none has been told to.
    crowded: AtomicBool,
    stop_accepting: CancellationToken,
    /// The accept loop; empty when the listener is closed.
    accepting: TaskTracker,
}

impl Server {
    /// Takes the port's address without listening on it: clients are refused until [`Server::serve`], and a taken port is
    /// an error now.
    ///
    /// # Errors
    /// The address is taken, or not this host's.
    pub fn bind(port: Port, config: &Config, lifecycle: &Lifecycle) -> Result<Self, BindError> {
        let (address, limits) = match port {
            Port::Public => (config.http.address, Limits::public(&config.http, lifecycle.liveness().memory_limit())),
            Port::Admin => (config.admin.address, Limits::admin(&config.http)),
        };
        let failed = |source| BindError {
            server: port.name(),
            setting: format!("APP__{}__ADDRESS", port.name().to_uppercase()),
            address,
            source,
        };
        let (socket, address) = bind(address).map_err(failed)?;
        let stages = Stages {
            leave: lifecycle.stop_token().child_token(),
            close: CancellationToken::new(),
            abort: CancellationToken::new(),
        };
        let shared = Shared {
            port,
            stages,
            lifecycle: lifecycle.clone(),
            drain_began: OnceLock::new(),
            buffers: Buffers::new(limits.max_buffered),
            places: Semaphore::new(limits.max_in_flight),
            streams: Semaphore::new(limits.max_connections),
            connections: TaskTracker::new(),
            room: Arc::new(Semaphore::new(limits.max_connections)),
            open: Mutex::default(),
            crowded: AtomicBool::new(false),
            stop_accepting: CancellationToken::new(),
            accepting: TaskTracker::new(),
            limits,
        };
        Ok(Self { address, socket: Arc::new(Mutex::new(Some(socket))), shared: Arc::new(shared) })
    }

    /// Where it listens, or will.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Listens and serves on the current runtime. Does nothing the second time, or after [`Server::stop_accepting`].
    ///
    /// # Errors
    /// The system has no file descriptors left.
    pub fn serve(&self, router: Router) -> io::Result<()> {
        let socket = self.socket.lock().take();
        let Some(socket) = socket.filter(|_| !self.shared.stop_accepting.is_cancelled()) else {
            return Ok(());
        };
        let mut router = router.layer(layer_fn(NoteRoute));
        if self.shared.limits.body_limit > AXUM_BODY_LIMIT {
            router = router.layer(DefaultBodyLimit::disable());
        }
        socket.listen(BACKLOG)?;
        let listener = TcpListener::from_std(socket.into())?;
        tracing::info!(server = self.shared.port.name(), address = %self.address, "listening");
        let shared = Arc::clone(&self.shared);
        self.shared.accepting.spawn(async move { shared.accept(listener, router).await });
        Ok(())
    }

    /// Reads the gauges of what clients hold now.
    pub fn report(&self) {
        metrics::gauge!("http_server_connections").set(self.shared.open().len() as f64);
        metrics::gauge!("http_server_buffered_bytes").set(self.shared.buffers.held() as f64);
    }

    /// Accepts what the kernel has already accepted, and closes the listener.
    pub async fn stop_accepting(self) {
        self.shared.stop_accepting.cancel();
        self.shared.accepting.close();
        self.shared.accepting.wait().await;
    }

    /// Completes when everything under way has finished and every connection is closed.
    pub async fn drain(self) {
        self.shared.drain_began.get_or_init(Instant::now);
        self.shared.stages.close.cancel();
        self.shared.connections.close();
        self.shared.connections.wait().await;
        // a WebSocket's task is axum's
        self.shared.lifecycle.in_flight().none_of(&Kind::PUBLIC).await;
    }

    /// Ends what is left, and names it.
    pub fn abort(&self) {
        let in_flight = self.shared.lifecycle.in_flight();
        for kind in Kind::PUBLIC {
            metrics::counter!("http_server_aborted_total", "kind" => kind.name())
                .increment(in_flight.count(kind) as u64);
        }
        for left in in_flight.list(&Kind::PUBLIC) {
            tracing::error!(left, "aborted: it outlasted its budget");
        }
        self.shared.stages.abort.cancel();
    }
}

/// Binds `address`. `[::]` takes IPv4 connections as well, and is `0.0.0.0` on a host that has no IPv6.
fn bind(address: SocketAddr) -> io::Result<(Socket, SocketAddr)> {
    let every = address.is_ipv6() && address.ip().is_unspecified();
    match bind_one(address) {
        Err(error) if every && matches!(error.raw_os_error(), Some(NO_IPV6 | NO_IPV6_ADDRESS)) => {
            bind_one((Ipv4Addr::UNSPECIFIED, address.port()).into())
        }
        bound => bound,
    }
}

fn bind_one(address: SocketAddr) -> io::Result<(Socket, SocketAddr)> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    if address.is_ipv6() {
        // whatever the host's default is
        socket.set_only_v6(false)?;
    }
    socket.set_nonblocking(true)?;
    // a restart must not wait for the last process's connections in TIME_WAIT
    socket.set_reuse_address(true)?;
    // inherited by the connections
    socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    socket.bind(&address.into())?;
    let bound = socket.local_addr()?.as_socket().unwrap_or(address);
    Ok((socket, bound))
}

impl Shared {
    pub(super) fn is_public(&self) -> bool {
        self.port == Port::Public
    }

    async fn accept(self: Arc<Self>, listener: TcpListener, router: Router) {
        let stop = self.stop_accepting.clone();
        while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
            match accepted {
                Ok((stream, peer)) => {
                    let connection = Connection::new(stream, peer, &self);
                    let room = stop.run_until_cancelled(self.make_room()).await;
                    self.spawn(connection, router.clone(), room);
                }
                Err(error) => drop(stop.run_until_cancelled(recover(&error)).await),
            }
        }

        // Every connection that the kernel has accepted is answered. Closing the listener resets those that wait in its
        // backlog, so: no new handshakes, a moment for the ones under way, then all that wait, then close.
        if let Err(error) = refuse_handshakes(&listener) {
            // some kernels grant it to root alone; then a connection made in the instant the listener closes is reset
            tracing::debug!(%error, "cannot filter the listener");
        }
        let serve = |stream, peer| self.spawn(Connection::new(stream, peer, &self), router.clone(), None);
        let accept_rest = async {
            loop {
                match listener.accept().await {
                    Ok((stream, peer)) => serve(stream, peer),
                    Err(error) => recover(&error).await,
                }
            }
        };
        let _ = tokio::time::timeout(HANDSHAKE, accept_rest).await;
        // the runtime's knowledge of the listener is as old as its last look: ask the kernel
        let Ok(listener) = listener.into_std() else {
            return;
        };
        while let Ok((stream, peer)) = listener.accept() {
            let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
            if let Ok(stream) = stream {
                serve(stream, peer);
            }
        }
    }

    /// Serves a connection. `room` is its place among `max_connections`; those taken from the backlog at the end have none.
    fn spawn(self: &Arc<Self>, connection: Connection, router: Router, room: Option<OwnedSemaphorePermit>) {
        let registered =
            Registered { key: self.open().insert(connection.clone()), server: Arc::clone(self), _room: room };
        self.connections.spawn(async move {
            let _registered = registered;
            connection.serve(router).await;
        });
    }

    /// Room for one more connection. If there is none, the one that has waited for its peer the longest is closed.
    async fn make_room(&self) -> OwnedSemaphorePermit {
        loop {
            if let Ok(room) = Arc::clone(&self.room).try_acquire_owned() {
                return room;
            }
            self.crowded.store(true, Ordering::SeqCst);
            if let Some(longest) = self.longest_idle() {
                self.evict(&longest);
            }
            // one that was told to go may have got a request meanwhile: then it is another's turn
            let room = tokio::time::timeout(MAKE_ROOM, Arc::clone(&self.room).acquire_owned()).await;
            if let Ok(Ok(room)) = room {
                return room;
            }
        }
    }

    fn longest_idle(&self) -> Option<Connection> {
        let (open, now) = (self.open(), Instant::now());
        let idle = open.iter().filter_map(|(_, connection)| Some((connection.idle()?, connection)));
        // one that was told to close and did not, because a head had come, may be aborted
        let idle = idle.filter(|((busy, since), connection)| {
            let Stages { close, abort, .. } = connection.stages();
            let told = abort.is_cancelled() || (!*busy && close.is_cancelled());
            // what a new one asks is on its way
            !told && now.duration_since(*since) >= MAKE_ROOM
        });
        // nor is one of less than a second thought idle if there is another choice
        let rank = |(busy, since): (bool, Instant)| (busy || now.duration_since(since) < FRESH, since);
        idle.min_by_key(|(idle, _)| rank(*idle)).map(|(_, connection)| connection.clone())
    }

    /// Ends a connection that only waits for its peer, if another waits for its place.
    pub(super) fn evict(&self, connection: &Connection) {
        if self.crowded.load(Ordering::SeqCst) && self.crowded.swap(false, Ordering::SeqCst) {
            metrics::counter!("http_server_evicted_total", "server" => self.port.name()).increment(1);
            connection.make_room();
        }
    }

    fn open(&self) -> MutexGuard<'_, Slab<Connection>> {
        self.open.lock()
    }
}

/// A connection among the open ones, until this is dropped.
struct Registered {
    key: usize,
    server: Arc<Shared>,
    _room: Option<OwnedSemaphorePermit>,
}

impl Drop for Registered {
    fn drop(&mut self) {
        let connection = self.server.open().try_remove(self.key);
        // outside of the lock
        drop(connection);
    }
}

/// Makes the kernel drop connection requests (SYN without ACK) that come to this listener, as if the network had: the
/// client's own retransmission, a second later, finds the port closed and is refused in order.
fn refuse_handshakes(listener: &TcpListener) -> io::Result<()> {
    // classic BPF: the packet begins with the TCP header, whose byte 13 is the flags
    const LOAD_BYTE: u16 = 0x30;
    const AND: u16 = 0x54;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    const FLAGS: u32 = 13;
    const SYN: u32 = 0x02;
    const ACK: u32 = 0x10;
    SockRef::from(listener).attach_filter(&[
        SockFilter::new(LOAD_BYTE, 0, 0, FLAGS),
        SockFilter::new(AND, 0, 0, SYN | ACK),
        SockFilter::new(JUMP_IF_EQUAL, 0, 1, SYN),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
    ])
}

/// A connection that broke before it was accepted is nothing; running out of descriptors or memory needs a pause.
async fn recover(error: &io::Error) {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    metrics::counter!("http_server_accept_errors_total", "error" => error.kind().to_string()).increment(1);
    if !matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset) {
        tracing::error!(%error, "cannot accept connections");
        tokio::time::sleep(EXHAUSTED_PAUSE).await;
    }
}
