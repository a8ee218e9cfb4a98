//! Clients for the two kinds of stream: Server-Sent Events and WebSockets.

use std::{net::SocketAddr, time::Duration};

use futures_util::{SinkExt, StreamExt};
use http_body_util::BodyExt;
use hyper::{HeaderMap, body::Incoming};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Message, protocol::CloseFrame},
};

use super::{
    Connection, bounded,
    http::{Failure, With, get},
    s,
};

/// No event takes longer, whatever the test is about.
const PATIENCE: Duration = s(30);

/// An event, as a browser would dispatch it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Event {
    /// Its id.
    pub(crate) id: String,
    /// Its name.
    pub(crate) event: String,
    /// Its data, the lines joined.
    pub(crate) data: String,
}

impl Event {
    /// Its data as JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.data).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// A stream of events.
#[derive(Debug)]
pub(crate) struct Sse {
    /// The headers it came with.
    pub(crate) headers: HeaderMap,
    /// What `retry:` said last, in milliseconds.
    pub(crate) retry: Option<u64>,
    /// What `id:` said last: where to come back.
    pub(crate) position: String,
    body: Incoming,
    text: String,
    /// Without it the connection would close.
    connection: Connection,
}

impl Sse {
    /// Opens one on a connection of its own, after the event `last` if there is one.
    pub(crate) async fn open(address: SocketAddr, path: &str, last: Option<&str>) -> Self {
        let connection = Connection::h1(address).await.expect("it accepts connections");
        Self::open_on(connection, path, last).await
    }

    /// Opens one on this connection.
    pub(crate) async fn open_on(mut connection: Connection, path: &str, last: Option<&str>) -> Self {
        let mut request = get(path).with("accept", "text/event-stream");
        if let Some(last) = last {
            request = request.with("last-event-id", last);
        }
        let opened = bounded("the stream's head", PATIENCE, connection.open(request)).await;
        let head = opened.unwrap_or_else(|error| panic!("{path}: {error}"));
        Self::of(head, connection).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    /// The stream of an answer that may be none.
    pub(crate) fn of(answer: hyper::Response<Incoming>, connection: Connection) -> Result<Self, Failure> {
        let (head, body) = answer.into_parts();
        if head.status != 200 || head.headers["content-type"] != "text/event-stream" {
            return Err(format!("it is no stream: {head:?}").into());
        }
        Ok(Self { headers: head.headers, retry: None, position: String::new(), body, text: String::new(), connection })
    }

    /// The next event. `None` where the stream ended, and ended between two events.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        bounded("an event", PATIENCE, self.try_next()).await.unwrap_or_else(|error| panic!("the stream broke: {error}"))
    }

    /// The same, for a stream that may break.
    pub(crate) async fn try_next(&mut self) -> Result<Option<Event>, Failure> {
        loop {
            while let Some((block, rest)) = self.text.split_once("\n\n") {
                let (event, retry) = parse(block);
                self.text = rest.to_owned();
                self.retry = retry.or(self.retry);
                if !event.id.is_empty() {
                    self.position.clone_from(&event.id);
                }
                // a browser dispatches nothing for a block without data
                if !event.data.is_empty() {
                    return Ok(Some(event));
                }
            }
            match self.body.frame().await.transpose()? {
                None if self.text.is_empty() => return Ok(None),
                None => return Err(format!("it ended within an event: {:?}", self.text).into()),
                Some(frame) => {
                    let bytes = frame.into_data().unwrap_or_default();
                    self.text.push_str(std::str::from_utf8(&bytes)?);
                }
            }
        }
    }

    /// Events up to the first that `wanted` accepts, that one included.
    pub(crate) async fn until(&mut self, wanted: impl Fn(&Event) -> bool) -> Vec<Event> {
        let mut events = Vec::new();
        loop {
            let event = self.next().await.unwrap_or_else(|| panic!("the stream ended after {events:#?}"));
            let last = wanted(&event);
            events.push(event);
            if last {
                return events;
            }
        }
    }
}

/// The event of a block of lines, and what it said about `retry`.
fn parse(block: &str) -> (Event, Option<u64>) {
    let mut event = Event::default();
    let mut data = Vec::new();
    let mut retry = None;
    for line in block.lines() {
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "id" => event.id = value.to_owned(),
            "event" => event.event = value.to_owned(),
            "data" => data.push(value),
            "retry" => retry = value.parse().ok(),
            // A comment, which has no name, or what this reader does not know.
            _ => {}
        }
    }
    event.data = data.join("\n");
    (event, retry)
}

/// A WebSocket.
#[derive(Debug)]
pub(crate) struct WebSocket {
    /// The library's own, for what is not here.
    pub(crate) inner: WebSocketStream<TcpStream>,
}

impl WebSocket {
    /// Opens one on a connection of its own.
    pub(crate) async fn open(address: SocketAddr, path: &str) -> Self {
        let stream = TcpStream::connect(address).await.expect("it accepts connections");
        let url = format!("ws://{address}{path}");
        let opened = bounded("the handshake", PATIENCE, client_async(&url, stream)).await;
        let (inner, _) = opened.unwrap_or_else(|error| panic!("{url}: {error}"));
        Self { inner }
    }

    /// The next text message as JSON. `None` where the server closed; [`WebSocket::close`] is for those who want to
    /// know how.
    pub(crate) async fn next(&mut self) -> Option<Value> {
        loop {
            match self.message().await? {
                Message::Text(text) => {
                    return Some(serde_json::from_str(&text).expect("a message is JSON"));
                }
                Message::Close(_) => return None,
                _ => {}
            }
        }
    }

    /// Reads up to the Close frame and returns it, after this side's has been sent.
    pub(crate) async fn close(&mut self) -> Option<CloseFrame> {
        // PINGs go on for ever, so the whole of it is bounded and not each message
        bounded("a Close frame", PATIENCE, async {
            while let Some(message) = self.message().await {
                if let Message::Close(frame) = message {
                    let _ = self.inner.flush().await;
                    return frame;
                }
            }
            panic!("the connection ended without a Close frame");
        })
        .await
    }

    async fn message(&mut self) -> Option<Message> {
        let next = bounded("a message", PATIENCE, self.inner.next()).await;
        next.map(|message| message.unwrap_or_else(|error| panic!("the socket broke: {error}")))
    }
}
