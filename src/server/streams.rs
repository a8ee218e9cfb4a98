//! Streams that end well: the last event whole, a Close frame, and nothing that outlives the drain.

use std::error::Error;
use std::time::Duration;

use axum::body::Body;
use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket, WebSocketUpgrade, close_code};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_tungstenite::tungstenite;

use super::connection::Connection;
use super::limits::{CLOSE_TIMEOUT, KEEP_ALIVE, WEBSOCKET_BUFFER, WEBSOCKET_MESSAGE, WEBSOCKET_UNSENT};
use crate::lifecycle::Guard;

/// Milliseconds after which a client comes back when its stream ends: soon, which at a stop is to another replica, and not
/// together with all others.
const RETRY: std::ops::Range<u128> = 100..500;

/// Answers with a stream of events until it ends or the connection is to close. Each of `events` is one or more whole
/// blocks of `text/event-stream`, with the empty line that ends them.
pub fn sse(connection: &Connection, events: impl Stream<Item = Bytes> + Send + 'static) -> Response {
    let close = connection.stages().close.clone().cancelled_owned();
    // the low bits of an id are random
    let spread = uuid::Uuid::now_v7().as_u128() % (RETRY.end - RETRY.start);
    let retry = Bytes::from(format!("retry: {}\n\n", RETRY.start + spread));
    let events = stream::iter([retry]).chain(events);
    let events = with_comments(events).take_until(close).map(Ok::<_, std::convert::Infallible>);
    let headers = [(CONTENT_TYPE, "text/event-stream"), (CACHE_CONTROL, "no-cache")];
    (headers, Body::from_stream(events)).into_response()
}

/// A comment whenever nothing else has been sent for a while.
fn with_comments(events: impl Stream<Item = Bytes> + Send + 'static) -> impl Stream<Item = Bytes> + Send + 'static {
    let quiet = Box::pin(tokio::time::sleep(KEEP_ALIVE));
    stream::unfold((Box::pin(events), quiet), async |(mut events, mut quiet)| {
        let event = tokio::select! {
            event = events.next() => event?,
            () = quiet.as_mut() => Bytes::from_static(b":\n\n"),
        };
        quiet.as_mut().reset(Instant::now() + KEEP_ALIVE);
        Some((event, (events, quiet)))
    })
}

/// Answers with a WebSocket on which `messages` are sent until they end, the peer closes, or the connection is to close:
/// then Close 1001, and a second for the peer's echo. What the peer sends is read and ignored; what it must not send ends
/// with the code that says so. `guard` is held until all of this is over.
pub fn websocket(
    upgrade: WebSocketUpgrade,
    connection: &Connection,
    guard: Guard,
    messages: impl Stream<Item = Utf8Bytes> + Send + 'static,
) -> Response {
    let connection = connection.clone();
    let upgrade = upgrade
        .max_message_size(WEBSOCKET_MESSAGE)
        .max_frame_size(WEBSOCKET_MESSAGE)
        .read_buffer_size(WEBSOCKET_BUFFER)
        .write_buffer_size(0)
        .max_write_buffer_size(WEBSOCKET_UNSENT);
    upgrade.on_upgrade(async move |socket| {
        let _guard = guard;
        connection.stages().abort.run_until_cancelled(converse(socket, &connection, messages)).await;
    })
}

async fn converse(mut socket: WebSocket, connection: &Connection, messages: impl Stream<Item = Utf8Bytes>) {
    let mut messages = std::pin::pin!(messages);
    let mut pings = tokio::time::interval(KEEP_ALIVE);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut heard = Instant::now();
    let close = connection.stages().close.cancelled();
    let mut close = std::pin::pin!(close);
    let (code, reason) = loop {
        let message = tokio::select! {
            biased;
            () = close.as_mut() => break (close_code::AWAY, "the server is stopping: connect again"),
            received = socket.recv() => {
                heard = Instant::now();
                match received {
                    // the library has answered already; what is below sees it sent
                    Some(Ok(Message::Close(_))) => break (close_code::NORMAL, ""),
                    Some(Ok(_)) => continue,
                    Some(Err(error)) => match fault(&error) {
                        Some(fault) => break fault,
                        None => return,
                    },
                    None => return,
                }
            },
            message = messages.next() => match message {
                Some(text) => Message::Text(text),
                None => break (close_code::AGAIN, "the feed has ended: connect again"),
            },
            _ = pings.tick() => {
                if heard.elapsed() > SILENCE {
                    return tracing::debug!(peer = %connection.peer(), "dropped: it answers no ping");
                }
                Message::Ping(Bytes::new())
            }
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

/// A peer that has answered neither of two pings is gone.
const SILENCE: Duration = Duration::from_secs(2 * KEEP_ALIVE.as_secs() + 1);

/// The code that tells a peer what it did wrong (RFC 6455, section 7.4.1), or `None` if there is nobody to tell.
fn fault(error: &axum::Error) -> Option<(u16, &'static str)> {
    use tungstenite::Error::{Capacity, Protocol, Utf8};
    match error.source()?.downcast_ref()? {
        Capacity(_) => Some((close_code::SIZE, "a message is over 64 KiB")),
        Utf8(_) => Some((close_code::INVALID, "a text is not UTF-8")),
        Protocol(tungstenite::error::ProtocolError::ResetWithoutClosingHandshake) => None,
        Protocol(_) => Some((close_code::PROTOCOL, "this is not WebSocket's protocol")),
        _ => None,
    }
}
