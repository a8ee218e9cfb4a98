//! The bodies of a request and of its answer, and what counts the request as under way until its answer is written.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use super::access::Exchange;
use super::connection::Connection;
use super::limits::{NoRoom, PIECE, Room};

/// A request's body cannot be had.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub(super) enum ReadError {
    #[error("the body is larger than this service takes")]
    TooLarge,
    #[error("this instance holds as many bytes as it may; try again in a moment")]
    NoRoom,
    #[error("the body could not be read")]
    Broken,
}

impl From<NoRoom> for ReadError {
    fn from(_: NoRoom) -> Self {
        Self::NoRoom
    }
}

/// Reads all of a body, in one piece however it comes: hyper keeps a buffer of 8 KiB alive for each frame that is kept.
pub(super) async fn read(mut body: Incoming, limit: usize, room: &mut Room) -> Result<Bytes, ReadError> {
    if body.size_hint().lower() > limit as u64 {
        return Err(ReadError::TooLarge);
    }
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        // trailers are passed over
        let Ok(data) = frame.map_err(|_| ReadError::Broken)?.into_data() else { continue };
        if whole.len() + data.len() > limit {
            return Err(ReadError::TooLarge);
        }
        room.grow(data.len())?;
        whole.extend_from_slice(&data);
    }
    Ok(whole.freeze())
}

/// An answer's body, and what is to be held until its last byte is written: the request is under way as long.
#[derive(Debug)]
pub(super) struct Answer {
    number: u64,
    body: Body,
    /// Of the body's last frame, what hyper has not been given.
    rest: Bytes,
    exchange: Option<Exchange>,
    begun: Begun,
}

impl Answer {
    pub(super) fn new(body: Body, exchange: Option<Exchange>, begun: Begun) -> Self {
        let number = begun.0.state().begin_answer();
        Self { number, body, rest: Bytes::new(), exchange, begun }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        let exchange = self.begun.0.state().answered(self.number, self.exchange.take());
        // outside of the lock, because what ends here has things to say
        drop(exchange);
    }
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        let mut frame = match this.rest.is_empty() {
            true => Pin::new(&mut this.body).poll_frame(cx),
            false => Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut this.rest))))),
        };
        if let Poll::Ready(Some(Ok(frame))) = &mut frame
            && let Some(data) = frame.data_mut()
            && data.len() > PIECE
        {
            this.rest = data.split_off(PIECE);
        }
        this.begun.0.state().offer(this.number, frame.is_ready());
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (hint, rest) = (self.body.size_hint(), self.rest.len() as u64);
        let mut whole = SizeHint::new();
        whole.set_lower(hint.lower() + rest);
        if let Some(upper) = hint.upper() {
            whole.set_upper(upper + rest);
        }
        whole
    }
}

/// A request that is under way on its connection until this is dropped.
#[derive(Debug)]
pub(super) struct Begun(pub(super) Connection);

impl Begun {
    /// The request's body is on its way until the guard is dropped.
    pub(super) fn reading(&self) -> Reading<'_> {
        self.0.state().reading += 1;
        Reading(self)
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        let rests = self.0.state().end();
        if rests {
            self.0.rests();
        }
    }
}

/// See [`Begun::reading`].
pub(super) struct Reading<'a>(&'a Begun);

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.0.0.state().reading -= 1;
    }
}
