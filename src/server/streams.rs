//! Streams that end well: the last event whole, a Close frame, and nothing that outlives the drain.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket, WebSocketUpgrade, close_code};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::lifecycle::Guard;

/// Tells a client how soon to come back when its stream ends: soon, which at a stop is to another replica.
const RETRY: Duration = Duration::from_millis(100);

/// Milliseconds over which the clients of a stream that ends are spread.
const RETRY_SPREAD: u64 = 400;

/// Keeps proxies from taking a quiet stream for a dead one, and finds the peers that are.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// What a peer may take to echo a Close frame.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// What a peer may send us on a stream that is ours to speak on.
const MAX_MESSAGE: usize = 64 * 1024;

/// When streams are to end.
#[derive(Debug, Clone)]
pub struct Drain {
    pub(super) draining: CancellationToken,
    pub(super) cut: CancellationToken,
}

/// Answers with a stream of events, each a block that is ready to send, until it ends or the server drains.
pub fn sse(drain: &Drain, blocks: impl Stream<Item = Bytes> + Send + 'static) -> Response {
    // the low bits of an id are random: whoever is cut off together does not come back together
    let spread = Duration::from_millis(Uuid::now_v7().as_u128() as u64 % RETRY_SPREAD);
    let retry = Bytes::from(format!("retry: {}\n\n", (RETRY + spread).as_millis()));
    let quiet = stream::unfold(Box::pin(blocks), async |mut blocks| {
        match tokio::time::timeout(KEEP_ALIVE, blocks.next()).await {
            Ok(block) => block.map(|block| (block, blocks)),
            Err(_) => Some((Bytes::from_static(b":\n\n"), blocks)),
        }
    });
    let blocks = stream::iter([retry]).chain(quiet).take_until(drain.draining.clone().cancelled_owned());
    let headers = [(CONTENT_TYPE, "text/event-stream"), (CACHE_CONTROL, "no-cache")];
    (headers, Body::from_stream(blocks.map(Ok::<_, Infallible>))).into_response()
}

/// Answers with a WebSocket on which `messages` are sent until they end, the peer closes, or the server drains: then
/// Close 1001, and a second for the peer's echo. What the peer sends is read and ignored; over 64 KiB it is 1009.
/// `guard` is held until all of this is over.
pub fn websocket(
    upgrade: WebSocketUpgrade,
    drain: &Drain,
    guard: Guard,
    messages: impl Stream<Item = Utf8Bytes> + Send + 'static,
) -> Response {
    let drain = drain.clone();
    upgrade.max_message_size(MAX_MESSAGE).max_frame_size(MAX_MESSAGE).on_upgrade(async move |socket| {
        let _guard = guard;
        drain.cut.run_until_cancelled(converse(socket, &drain.draining, messages)).await;
    })
}

async fn converse(mut socket: WebSocket, draining: &CancellationToken, messages: impl Stream<Item = Utf8Bytes>) {
    let mut messages = std::pin::pin!(messages);
    let mut pings = tokio::time::interval(KEEP_ALIVE);
    let (code, reason) = loop {
        let message = tokio::select! {
            biased;
            () = draining.cancelled() => break (close_code::AWAY, "the server is stopping: connect again"),
            received = socket.recv() => match received {
                // the library has answered already; what is below sees it sent
                Some(Ok(Message::Close(_))) => break (close_code::NORMAL, ""),
                Some(Ok(_)) => continue,
                Some(Err(error)) if is_too_large(&error) => break (close_code::SIZE, "a message is over 64 KiB"),
                Some(Err(_)) | None => return,
            },
            message = messages.next() => match message {
                Some(text) => Message::Text(text),
                None => break (close_code::AGAIN, "the feed has ended: connect again"),
            },
            _ = pings.tick() => Message::Ping(bytes::Bytes::new()),
        };
        if socket.send(message).await.is_err() {
            return;
        }
    };
    let close = CloseFrame { code, reason: reason.into() };
    let farewell = async {
        // an error here means that a Close has been sent: then the peer's end of the stream is all there is to wait for
        let _ = socket.send(Message::Close(Some(close))).await;
        while let Some(Ok(_)) = socket.recv().await {}
    };
    let _ = tokio::time::timeout(CLOSE_TIMEOUT, farewell).await;
}

/// Over the size that was asked for; tungstenite calls it a capacity error and axum boxes it.
fn is_too_large(error: &axum::Error) -> bool {
    let error: &(dyn std::error::Error + 'static) = error;
    let mut causes = std::iter::successors(Some(error), |&error| error.source());
    causes.any(|cause| cause.to_string().contains("too long"))
}
