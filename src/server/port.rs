//! A port from its address to its last connection: bound, served, and stopped in three stages: stop accepting, drain, abort.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use parking_lot::{Mutex, MutexGuard};
use slab::Slab;
use socket2::Socket;
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::layer::layer_fn;

use super::connection::{Connection, Stages};
use super::limits::{BACKLOG, Buffers, FRESH, Limits, MAKE_ROOM};
use super::listener::bind;
use super::request::NoteRoute;
use crate::config::Config;
use crate::lifecycle::{Kind, Lifecycle};

/// What axum's extractors take unless they are told otherwise.
const AXUM_BODY_LIMIT: usize = 2 * 1024 * 1024;

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
    pub(super) stop_accepting: CancellationToken,
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

impl Shared {
    pub(super) fn is_public(&self) -> bool {
        self.port == Port::Public
    }

    /// Serves a connection. `room` is its place among `max_connections`; those taken from the backlog at the end have none.
    pub(super) fn spawn(self: &Arc<Self>, connection: Connection, router: Router, room: Option<OwnedSemaphorePermit>) {
        let registered =
            Registered { key: self.open().insert(connection.clone()), server: Arc::clone(self), _room: room };
        self.connections.spawn(async move {
            let _registered = registered;
            connection.serve(router).await;
        });
    }

    /// Room for one more connection. If there is none, the one that has waited for its peer the longest is closed.
    pub(super) async fn make_room(&self) -> OwnedSemaphorePermit {
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
