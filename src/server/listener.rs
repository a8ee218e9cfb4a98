//! Binding, accepting, and closing the listener so that no connection is lost.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use axum::Router;
use nix::errno::Errno;
use socket2::{Domain, SockFilter, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpStream};

use super::connection::Connection;
use super::limits::{EXHAUSTED_PAUSE, HANDSHAKE, RECEIVE_BUFFER};
use super::port::Shared;

/// What a host without IPv6 answers: the kernel has none, or no address.
const NO_IPV6: i32 = Errno::EAFNOSUPPORT as i32;
const NO_IPV6_ADDRESS: i32 = Errno::EADDRNOTAVAIL as i32;

/// Binds `address`. `[::]` takes IPv4 connections as well, and is `0.0.0.0` on a host that has no IPv6.
pub(super) fn bind(address: SocketAddr) -> io::Result<(Socket, SocketAddr)> {
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
    /// Accepts connections until the stop, and then those that the kernel has accepted.
    pub(super) async fn accept(self: Arc<Self>, listener: TcpListener, router: Router) {
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
