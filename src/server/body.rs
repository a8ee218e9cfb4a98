//! Response bodies that hold something until their last byte has been handed over, or nobody wants it any more.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use bytes::Bytes;
use http_body::{Frame, SizeHint};

use super::wire::Traffic;

/// Bytes of an answer that hyper is given at a time.
const PIECE: usize = 16 * 1024;

/// A body and a guard.
pub(super) struct Guarded<Guard> {
    body: Body,
    _guard: Guard,
}

impl<Guard> Guarded<Guard> {
    pub(super) fn new(body: Body, guard: Guard) -> Self {
        Self { body, _guard: guard }
    }
}

impl<Guard: Unpin> http_body::Body for Guarded<Guard> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A request that is under way on its connection until this is dropped.
pub(super) struct Counted(pub(super) Arc<Traffic>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.answered();
    }
}

/// A response's body. It ends when hyper has taken the last of it; what it holds, above all the register's guard, is
/// held until that has also been written: a request is under way for as long as the kernel has not taken its answer.
/// It is given in pieces, for hyper takes a piece whole, however little of it the client does.
pub(super) struct Answer {
    number: u64,
    body: Body,
    /// Of the body's last frame, what hyper has not been given.
    rest: Bytes,
    counted: Counted,
}

impl Answer {
    pub(super) fn new(body: Body, counted: Counted) -> Self {
        Self { number: counted.0.begin_answer(), body, rest: Bytes::new(), counted }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.counted.0.hold_until_flushed(self.number, std::mem::take(&mut self.body));
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
        this.counted.0.asked(this.number, frame.is_ready());
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
