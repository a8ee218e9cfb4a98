//! What only the kernel knows of a connection, and how its end is made an orderly one.

use std::io;
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::limits::{LINGER, READ, UNSENT, UNSENT_LOOK, USER_TIMEOUT};

pub(super) fn set_options(stream: &TcpStream) {
    let socket = SockRef::from(stream);
    // Nagle's delay would hold the last segment of an answer back for the peer's delayed ACK
    let _ = socket.set_tcp_nodelay(true);
    let _ = socket.set_tcp_notsent_lowat(UNSENT);
    let _ = socket.set_tcp_user_timeout(Some(USER_TIMEOUT));
}

/// Whether bytes that nobody has read are in the socket. Asks the kernel, because the runtime's own knowledge is as old
/// as its last look.
pub(super) fn has_unread(stream: &TcpStream) -> bool {
    let mut byte = [MaybeUninit::uninit()];
    matches!(SockRef::from(stream).peek(&mut byte), Ok(1))
}

/// Says that nothing more comes.
pub(super) fn shut_down(stream: &TcpStream) -> io::Result<()> {
    match SockRef::from(stream).shutdown(Shutdown::Write) {
        Err(error) if error.kind() != io::ErrorKind::NotConnected => Err(error),
        _ => Ok(()),
    }
}

/// Waits until the kernel has sent what it holds, which would otherwise end with the pod.
pub(super) async fn all_sent(stream: &TcpStream, patience: Duration) {
    // a socket is writable while less than that is unsent
    let _ = SockRef::from(stream).set_tcp_notsent_lowat(1);
    let unsent = || {
        let mut polled = [PollFd::new(stream.as_fd(), PollFlags::POLLOUT)];
        matches!(poll(&mut polled, PollTimeout::ZERO), Ok(0))
    };
    let send = async {
        while unsent() {
            tokio::time::sleep(UNSENT_LOOK).await;
        }
    };
    let _ = timeout(patience, send).await;
}

/// Says that nothing more comes, and reads and discards what the peer still sends, until it is silent for so long.
pub(super) async fn linger(stream: &TcpStream, silence: Duration) {
    let _ = shut_down(stream);
    let discard = async {
        while let Ok(Ok(())) = timeout(silence, stream.readable()).await {
            let mut bytes = [0; READ];
            match stream.try_read(&mut bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
    };
    let _ = timeout(LINGER, discard).await;
}
