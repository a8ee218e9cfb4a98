//! Listening, accepting, and the three stages of the stop: stop accepting, drain, cut.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use nix::errno::Errno;
use socket2::{Domain, SockFilter, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::connection::Connection;
use super::streams::Drain;
use crate::config;
use crate::lifecycle::{Kind, Lifecycle, Phase};

/// Connections that the kernel completes and nobody has accepted yet; it takes at most `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Longer than a round trip within a region: for handshakes that had begun when the listener stopped taking new ones.
const HANDSHAKE: Duration = Duration::from_millis(100);

/// What a host without IPv6 answers: the kernel has none, or no address.
const NO_IPV6: i32 = Errno::EAFNOSUPPORT as i32;
const NO_IPV6_ADDRESS: i32 = Errno::EADDRNOTAVAIL as i32;

/// Out of file descriptors or memory: others must give some back first.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// What a client may take.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "they are settings, and documented there")]
pub struct Limits {
    pub header_timeout: Duration,
    pub idle_timeout: Duration,
    pub request_timeout: Duration,
    pub max_connections: usize,
}

impl From<&config::Http> for Limits {
    fn from(http: &config::Http) -> Self {
        Self {
            header_timeout: http.header_timeout,
            idle_timeout: http.idle_timeout,
            request_timeout: http.request_timeout,
            max_connections: http.max_connections,
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
    name: &'static str,
    address: SocketAddr,
    /// Bound; taken when it begins to listen.
    socket: Arc<Mutex<Option<Socket>>>,
    shared: Arc<Shared>,
}

/// What a server shares with its connections.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) limits: Limits,
    /// Cancelled by [`Server::drain`], in phase `stopping` and not before: connections are to end as soon as nothing is
    /// under way on them.
    pub(super) draining: CancellationToken,
    /// Cancelled when they are to end whatever is under way.
    pub(super) cut: CancellationToken,
    lifecycle: Lifecycle,
    drain_began: OnceLock<Instant>,
    stop_accepting: CancellationToken,
    places: Arc<Semaphore>,
    /// The accept loop; empty when the listener is closed.
    accepting: TaskTracker,
    connections: TaskTracker,
}

impl Shared {
    /// Whether answers ask their clients to leave: from the first trigger on.
    pub(super) fn asks_to_leave(&self) -> bool {
        self.lifecycle.phase() >= Phase::Draining
    }

    /// When the drain began; now, if it has not.
    pub(super) fn drain_began(&self) -> Instant {
        self.drain_began.get().copied().unwrap_or_else(Instant::now)
    }
}

impl Server {
    /// Takes the address without listening on it: clients are refused until [`Server::serve`], and a taken port is an
    /// error now. `name` is both the server's and its section's in the settings.
    ///
    /// # Errors
    /// Where the address is taken or not this host's.
    pub fn bind(
        name: &'static str,
        address: SocketAddr,
        limits: Limits,
        lifecycle: &Lifecycle,
    ) -> Result<Self, BindError> {
        let bound = bind(address);
        let failed = |source| BindError {
            server: name,
            setting: format!("APP__{}__ADDRESS", name.to_uppercase()),
            address,
            source,
        };
        let (socket, address) = bound.map_err(failed)?;
        let shared = Shared {
            draining: CancellationToken::new(),
            cut: CancellationToken::new(),
            lifecycle: lifecycle.clone(),
            drain_began: OnceLock::new(),
            stop_accepting: CancellationToken::new(),
            places: Arc::new(Semaphore::new(limits.max_connections)),
            accepting: TaskTracker::new(),
            connections: TaskTracker::new(),
            limits,
        };
        Ok(Self { name, address, socket: Arc::new(Mutex::new(Some(socket))), shared: Arc::new(shared) })
    }

    /// Where it listens, or will.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Tells streams when to end.
    pub fn drain_signal(&self) -> Drain {
        Drain { draining: self.shared.draining.clone(), cut: self.shared.cut.clone() }
    }

    /// Listens and serves on the current runtime. Does nothing the second time, or after [`Server::stop_accepting`].
    ///
    /// # Errors
    /// Where the system has no file descriptors left.
    pub fn serve(&self, router: Router) -> io::Result<()> {
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(socket) = socket.filter(|_| !self.shared.stop_accepting.is_cancelled()) else {
            return Ok(());
        };
        socket.listen(BACKLOG)?;
        let listener = TcpListener::from_std(socket.into())?;
        tracing::info!(server = self.name, address = %self.address, "listening");
        let shared = Arc::clone(&self.shared);
        self.shared.accepting.spawn(async move { shared.accept(listener, router).await });
        Ok(())
    }

    /// Reads the gauge of connections open now, those that wait to be accepted not counted.
    pub fn report(&self) {
        let open = self.shared.limits.max_connections - self.shared.places.available_permits();
        metrics::gauge!("http_server_connections").set(open as f64);
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
        self.shared.draining.cancel();
        self.shared.connections.close();
        self.shared.connections.wait().await;
        // each HTTP/2 stream is a task of its own
        self.shared.lifecycle.in_flight().none_of(&Kind::PUBLIC).await;
    }

    /// Ends what is left, and names it.
    pub fn cut(&self) {
        let in_flight = self.shared.lifecycle.in_flight();
        for kind in Kind::PUBLIC {
            metrics::counter!("http_server_cut_total", "kind" => kind.name()).increment(in_flight.count(kind) as u64);
        }
        for left in in_flight.list(&Kind::PUBLIC) {
            tracing::error!(left, "cut: it outlasted its budget");
        }
        self.shared.cut.cancel();
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
    socket.bind(&address.into())?;
    let bound = socket.local_addr()?.as_socket().unwrap_or(address);
    Ok((socket, bound))
}

impl Shared {
    async fn accept(self: Arc<Self>, listener: TcpListener, router: Router) {
        let stop = self.stop_accepting.clone();
        let serve = |stream, peer, place| {
            let connection = Connection::new(stream, peer, Arc::clone(&self), router.clone(), place);
            self.connections.spawn(connection.serve());
        };
        stop.run_until_cancelled(async {
            loop {
                let place = Arc::clone(&self.places).acquire_owned().await.ok();
                match listener.accept().await {
                    Ok((stream, peer)) => serve(stream, peer, place),
                    Err(error) => recover(&error).await,
                }
            }
        })
        .await;

        // Whosever connection the kernel has accepted gets an answer. Closing the listener resets those that wait in
        // its backlog, so: no new handshakes, a moment for the ones under way, then all that wait, then close.
        if let Err(error) = refuse_handshakes(&listener) {
            // some kernels grant it to root alone; then a connection made in the instant the listener closes is reset
            tracing::debug!(%error, "cannot filter the listener");
        }
        let accept_rest = async {
            loop {
                match listener.accept().await {
                    Ok((stream, peer)) => serve(stream, peer, None),
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
                serve(stream, peer, None);
            }
        }
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
