//! The TCP stream as hyper sees it.
//!
//! On HTTP/1 hyper gets the bytes of one request at a time: its head, its body, and nothing of the next one until the
//! answer is written. So whatever has come of the next request is in [`State`](super::state::State) or in the kernel, where the stop
//! can see it. Waiting for a peer ends here as well: a connection that has been idle for too long, or is to close, ends
//! as if its peer had closed it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use hyper::rt::{Read, ReadBufCursor, Write};
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::Sleep;
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::connection::{Connection, count_timeout};
use super::limits::{LAST_MOMENT, READ};
use super::socket;
use super::state::Phase;

/// Written to a peer whose head takes too long, that sends only empty lines, or whose head finds no room. Nothing of an
/// answer is on its way then.
pub(super) const TIMED_OUT: &[u8] = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
pub(super) const NO_REQUEST: &[u8] = b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
pub(super) const NO_ROOM: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

/// A peer must take that much, or all there is, within `http.request_timeout`: a byte now and then is not enough.
const PROGRESS: usize = 16 * 1024;

/// See the module.
#[derive(Debug)]
pub(super) struct Wire {
    connection: Connection,
    /// Fires no later than the connection's patience ends.
    patience: Option<Pin<Box<Sleep>>>,
    /// Completes when the connection is to close.
    close: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    /// Since the peer takes no bytes: fires when it is gone.
    stalled: Option<Pin<Box<Sleep>>>,
    /// Bytes that were taken since.
    taken: usize,
}

impl Wire {
    pub(super) fn new(connection: Connection) -> Self {
        Self { connection, patience: None, close: None, stalled: None, taken: 0 }
    }

    /// Reads what the kernel has, if anything.
    fn poll_socket(&self, cx: &mut Context<'_>, bytes: &mut [u8]) -> Poll<io::Result<usize>> {
        let stream = self.connection.stream();
        loop {
            ready!(stream.poll_read_ready(cx))?;
            match stream.try_read(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => {
                    if matches!(read, Ok(count) if count < bytes.len()) {
                        // there is no more: saves the read that would find nothing
                        let nothing = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
                        let _ = stream.try_io(Interest::READABLE, nothing);
                    }
                    return Poll::Ready(read);
                }
            }
        }
    }

    /// While a request is answered: completes when its client has gone, and reads nothing.
    fn poll_gone(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let stream = self.connection.stream();
        loop {
            ready!(stream.poll_read_ready(cx))?;
            let mut byte = [std::mem::MaybeUninit::uninit()];
            match stream.try_io(Interest::READABLE, || SockRef::from(stream).peek(&mut byte)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(0) => return Poll::Ready(Ok(())),
                Ok(_) => {
                    // the next request; hyper asks again when this one's answer is written
                    self.connection.state().reread = true;
                    return Poll::Pending;
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Between requests and within a head: completes, which to hyper is the stream's end, when the wait is over.
    fn poll_patience(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let connection = &self.connection;
        let token = &connection.stages().close;
        let close = self.close.get_or_insert_with(|| Box::pin(token.clone().cancelled_owned()));
        let closes = token.is_cancelled() || close.as_mut().poll(cx).is_ready();
        loop {
            let Some((idle, since)) = connection.state().waiting() else { return Poll::Pending };
            let limits = connection.limits();
            let due = match (idle, closes) {
                (false, _) => since + limits.header_timeout,
                (true, false) => since + limits.idle_timeout,
                // a request may be on its way at the stop; one that makes room for another goes at once
                (true, true) => connection.stop_began().map_or(since, |began| began.max(since) + LAST_MOMENT),
            };
            let now = Instant::now();
            if now < due {
                let patience = self.patience.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due.into())));
                if patience.is_elapsed() || patience.deadline() > due.into() {
                    patience.as_mut().reset(due.into());
                }
                ready!(patience.as_mut().poll(cx));
            } else if connection.has_unread() {
                // the runtime has not heard of it yet, and will
                return Poll::Pending;
            } else if idle {
                if !closes {
                    count_timeout("idle");
                }
                connection.trace("closes: nothing is under way");
                return Poll::Ready(Ok(()));
            } else {
                count_timeout("head");
                return self.refuse(TIMED_OUT);
            }
        }
    }

    /// Says so while there is somebody to say it to, and ends.
    fn refuse(&self, answer: &[u8]) -> Poll<io::Result<()>> {
        let _ = self.connection.stream().try_write(answer);
        Poll::Ready(Ok(()))
    }
}

impl Read for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, mut buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let mut read = [0; READ];
        loop {
            let mut state = this.connection.state();
            let held = std::mem::take(&mut state.held);
            let answering = matches!(state.phase, Phase::Answering);
            if answering && !held.is_empty() {
                (state.held, state.reread) = (held, true);
                return Poll::Pending;
            }
            drop(state);
            if answering {
                return this.poll_gone(cx);
            }
            let room = buf.remaining().min(READ);
            let bytes = if held.is_empty() {
                match this.poll_socket(cx, &mut read[..room])? {
                    Poll::Ready(0) => return Poll::Ready(Ok(())),
                    Poll::Ready(count) => &read[..count],
                    Poll::Pending => return this.poll_patience(cx),
                }
            } else {
                &held[..held.len().min(buf.remaining())]
            };
            let mut state = this.connection.state();
            let ours = match state.take(bytes) {
                Ok(ours) => ours,
                Err(answer) => {
                    drop(state);
                    return this.refuse(answer);
                }
            };
            state.held = [&bytes[ours.end..], held.get(bytes.len()..).unwrap_or_default()].concat();
            drop(state);
            if !ours.is_empty() {
                buf.put_slice(&bytes[ours]);
                return Poll::Ready(Ok(()));
            }
        }
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

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.stalled.take().is_some() {
            this.connection.state().stalled = None;
        }
        if let Some(reread) = this.connection.flushed() {
            // hyper reads again only if it is woken; then the wait for the next request begins
            let waits = this.patience.as_ref().is_some_and(|patience| !patience.is_elapsed());
            if reread || !waits || this.connection.stages().close.is_cancelled() {
                cx.waker().wake_by_ref();
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(socket::shut_down(self.connection.stream()))
    }
}

impl Wire {
    fn write(
        &mut self,
        cx: &mut Context<'_>,
        try_write: impl Fn(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        let stream = self.connection.stream();
        while let Poll::Ready(ready) = stream.poll_write_ready(cx) {
            ready?;
            match try_write(stream) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => {
                    self.taken += *written.as_ref().unwrap_or(&0);
                    if self.taken >= PROGRESS && self.stalled.take().is_some() {
                        self.connection.state().stalled = None;
                    }
                    return Poll::Ready(written);
                }
            }
        }
        let timeout: Duration = self.connection.limits().request_timeout;
        if self.stalled.is_none() {
            self.connection.state().stalled = Some(Instant::now());
            self.taken = 0;
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        ready!(stalled.as_mut().poll(cx));
        count_timeout("write");
        tracing::warn!(peer = %self.connection.peer(), "dropped: it takes no bytes");
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer takes no bytes")))
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.connection.wire_is_gone();
    }
}
