//! The clients that follow the orders: by Server-Sent Events or WebSocket, each resuming where it was cut off.

use std::{
    collections::BTreeSet,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::StreamExt as _;
use http_body_util::BodyExt as _;
use hyper::StatusCode;
use serde_json::Value;
use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};
use tokio_tungstenite::{
    client_async,
    tungstenite::{self, Message, protocol::frame::coding::CloseCode},
};
use tokio_util::sync::CancellationToken;

use crate::{
    client::{Call, Connection, Failure, Lost, PATIENCE, Unanswered, Version},
    load::Shop,
    report::Kind,
};

/// Orders are made all the time, so a feed that shows nothing for so long is as good as cut.
const SILENCE: Duration = Duration::from_secs(60);

/// An order has changed, as a feed showed it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Event {
    pub(crate) sequence: i64,
    pub(crate) order: String,
    pub(crate) status: String,
}

/// One follower and all that it was shown, over however many connections.
#[derive(Debug)]
pub(crate) struct Feed {
    pub(crate) kind: Kind,
    version: Version,
    seen: Mutex<Vec<Event>>,
    opened: AtomicUsize,
}

impl Feed {
    pub(crate) fn new(kind: Kind, version: Version) -> Self {
        Self { kind, version, seen: Mutex::default(), opened: AtomicUsize::new(0) }
    }

    pub(crate) fn name(&self) -> &'static str {
        match (self.kind, self.version) {
            (Kind::WebSocket, _) => "WebSocket",
            (_, Version::Http1) => "SSE over HTTP/1.1",
            (_, Version::Http2) => "SSE over HTTP/2",
        }
    }

    pub(crate) fn seen(&self) -> Vec<Event> {
        self.seen.lock().expect("no writer panics").clone()
    }

    pub(crate) fn orders(&self) -> BTreeSet<String> {
        self.seen.lock().expect("no writer panics").iter().map(|event| event.order.clone()).collect()
    }

    /// How often it had to connect.
    pub(crate) fn opened(&self) -> usize {
        self.opened.load(Ordering::Relaxed)
    }

    fn last(&self) -> Option<i64> {
        self.seen.lock().expect("no writer panics").last().map(|event| event.sequence)
    }

    /// Follows until told to stop. Each opening is a request; an end is one more, lost, if it was not a clean one.
    pub(crate) async fn follow(self: std::sync::Arc<Self>, shop: Shop, stop: CancellationToken) {
        let forever = async {
            loop {
                let at = shop.recorder.now();
                let outcome = match self.kind {
                    Kind::WebSocket => self.websocket(&shop, at).await,
                    _ => self.events(&shop, at).await,
                };
                if let Err((at, lost)) = outcome {
                    shop.recorder.ended(self.kind, false, at, Err(lost));
                    // Whoever is turned away does not come back at once.
                    sleep(Duration::from_millis(500)).await;
                }
            }
        };
        stop.run_until_cancelled(forever).await;
    }

    fn open(&self, shop: &Shop, at: Duration) {
        self.opened.fetch_add(1, Ordering::Relaxed);
        shop.recorder.ended(self.kind, false, at, Ok(()));
    }

    /// One connection of a follower by Server-Sent Events, to its end.
    async fn events(&self, shop: &Shop, at: Duration) -> Result<(), (Duration, Lost)> {
        let opened = async {
            let mut call = Call::get("/v1/orders/events").header("accept", "text/event-stream");
            if let Some(sequence) = self.last() {
                call = call.header("last-event-id", sequence.to_string());
            }
            let mut connection = Connection::open(shop.address, self.version).await?;
            let answer = connection.send(&call).await.map_err(|why| match why {
                Unanswered::Lost(lost) => lost,
                other => Lost::new(Failure::Cut, format!("{other:?}")),
            })?;
            match answer.status() {
                StatusCode::OK => Ok((connection, answer.into_body())),
                status => Err(Lost::new(Failure::Status(status.as_u16()), status)),
            }
        };
        // The connection is held for as long as its answer lasts.
        let (_connection, mut body) = opened.await.map_err(|lost| (at, lost))?;
        self.open(shop, at);

        let (mut buffer, mut retry) = (Vec::new(), Duration::from_secs(3));
        let ended = async {
            loop {
                let frame = timeout(SILENCE, body.frame()).await.map_err(|late| Lost::new(Failure::Timeout, late))?;
                let Some(frame) = frame else { break };
                let frame = frame.map_err(|error| Lost::cut(&error))?;
                buffer.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
                while let Some(end) = buffer.windows(2).position(|pair| pair == b"\n\n") {
                    let block: Vec<u8> = buffer.drain(..end + 2).collect();
                    self.block(&String::from_utf8_lossy(&block), &mut retry)?;
                }
            }
            if buffer.is_empty() { Ok(()) } else { Err(Lost::new(Failure::Cut, "the last event is not whole")) }
        };
        ended.await.map_err(|lost| (shop.recorder.now(), lost))?;
        sleep(retry).await;
        Ok(())
    }

    /// One block of the event stream: an event, a comment, or how soon to come back.
    fn block(&self, block: &str, retry: &mut Duration) -> Result<(), Lost> {
        let field =
            |name: &str| block.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim_start()));
        if let Some(milliseconds) = field("retry").and_then(|text| text.parse().ok()) {
            *retry = Duration::from_millis(milliseconds);
        }
        let Some(data) = field("data") else {
            return Ok(());
        };
        let order: Value = serde_json::from_str(data).map_err(|error| Lost::new(Failure::Wrong, error))?;
        let sequence = field("id").and_then(|id| id.parse().ok());
        if field("event") != order["status"].as_str() {
            return Err(Lost::new(Failure::Wrong, block));
        }
        self.note(sequence, &order)
    }

    /// One connection of a follower by WebSocket, to its end.
    async fn websocket(&self, shop: &Shop, at: Duration) -> Result<(), (Duration, Lost)> {
        let opened = async {
            let stream = TcpStream::connect(shop.address).await.map_err(|error| Lost::new(Failure::Connect, error))?;
            let after = self.last().map(|sequence| format!("?after={sequence}")).unwrap_or_default();
            let handshake = timeout(PATIENCE, client_async(format!("ws://service/v1/orders/ws{after}"), stream)).await;
            match handshake.map_err(|late| Lost::new(Failure::Timeout, late))? {
                Ok((socket, _)) => Ok(socket),
                Err(tungstenite::Error::Http(answer)) => {
                    Err(Lost::new(Failure::Status(answer.status().as_u16()), "instead of 101"))
                }
                Err(error) => Err(Lost::cut(&error)),
            }
        };
        let mut socket = opened.await.map_err(|lost| (at, lost))?;
        self.open(shop, at);

        let ended = async {
            loop {
                let message =
                    timeout(SILENCE, socket.next()).await.map_err(|late| Lost::new(Failure::Timeout, late))?;
                match message {
                    Some(Ok(Message::Text(text))) => {
                        let order: Value =
                            serde_json::from_str(&text).map_err(|error| Lost::new(Failure::Wrong, error))?;
                        self.note(order["event_id"].as_i64(), &order)?;
                    }
                    Some(Ok(Message::Close(Some(frame)))) if frame.code == CloseCode::Away => {
                        // Reading on sends the echo; what comes of the connection after that says nothing any more.
                        let echo = async { while let Some(Ok(_)) = socket.next().await {} };
                        drop(timeout(PATIENCE, echo).await);
                        return Ok(());
                    }
                    Some(Ok(Message::Close(frame))) => {
                        return Err(Lost::new(Failure::Cut, format!("closed with {frame:?}")));
                    }
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Err(Lost::cut(&error)),
                    None => return Err(Lost::new(Failure::Cut, "ended without a Close")),
                }
            }
        };
        ended.await.map_err(|lost| (shop.recorder.now(), lost))
    }

    fn note(&self, sequence: Option<i64>, order: &Value) -> Result<(), Lost> {
        let (Some(sequence), Some(id), Some(status)) = (sequence, order["id"].as_str(), order["status"].as_str())
        else {
            return Err(Lost::new(Failure::Wrong, order));
        };
        let event = Event { sequence, order: id.to_owned(), status: status.to_owned() };
        self.seen.lock().expect("no writer panics").push(event);
        Ok(())
    }
}
