//! What happens to orders, as it happens: over Server-Sent Events and WebSocket, on any replica, with nothing missed
//! and nothing twice.
//!
//! The event table is the truth, and its ids become visible in order (see the migration). One follower a process reads
//! it and hands what is new to every stream. A stream first reads what it has missed from the table itself, and again
//! where it was too slow for the follower; so neither holds more than a page.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use axum::extract::State;
use axum::extract::ws::WebSocketUpgrade;
use axum::response::Response;
use futures_util::{FutureExt, Stream, StreamExt, stream};
use http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::{Notify, OnceCell};
use utoipa::IntoParams;

use super::Orders;
use super::order::{Order, Status};
use crate::lifecycle::Kind;
use crate::postgres::{Error, Postgres};
use crate::server::{self, Connection, Problem, Query};

/// How soon the events of another replica are seen; this one's own are at once.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// After a reading that failed.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

const PAGE: i64 = 100;

/// Events that a stream may be behind the follower before it reads the table again.
const BEHIND: usize = 256;

/// An order took a status.
#[derive(Debug, Clone, Serialize)]
struct Event {
    /// Ascending in the order in which events became visible.
    event_id: i64,
    #[serde(flatten)]
    order: Order,
}

/// The follower. Cloning shares it.
#[derive(Debug, Clone)]
pub(super) struct Feed {
    postgres: Postgres,
    events: broadcast::Sender<Arc<Event>>,
    /// The last event that was handed out. Set before the first stream begins: were it set after, what came in between
    /// would be in neither that stream's first reading nor in what it is handed.
    last: Arc<OnceCell<AtomicI64>>,
    woken: Arc<Notify>,
}

impl Feed {
    pub(super) fn new(postgres: &Postgres) -> Self {
        Self {
            postgres: postgres.in_background(),
            events: broadcast::Sender::new(BEHIND),
            last: Arc::default(),
            woken: Arc::default(),
        }
    }

    /// There is something new.
    pub(super) fn wake(&self) {
        self.woken.notify_one();
    }

    /// Hands out what is new, for ever.
    pub(super) async fn follow(self) {
        loop {
            let pause = match self.read_on().await {
                Ok(()) => POLL_INTERVAL,
                Err(error) => {
                    tracing::warn!(%error, "cannot read events");
                    RETRY_INTERVAL
                }
            };
            // an elapsed time is the usual case: nothing woke it
            let _ = tokio::time::timeout(pause, self.woken.notified()).await;
        }
    }

    async fn read_on(&self) -> Result<(), Error> {
        let last = self.last().await?;
        loop {
            let page = self.page(last.load(Ordering::Relaxed)).await?;
            let whole = page.len() as i64 == PAGE;
            for event in page {
                last.store(event.event_id, Ordering::Relaxed);
                // an error means that nobody listens
                let _ = self.events.send(Arc::new(event));
            }
            if !whole {
                return Ok(());
            }
        }
    }

    /// Where the follower is; at first the newest event there is.
    async fn last(&self) -> Result<&AtomicI64, Error> {
        self.last.get_or_try_init(async || self.newest().await.map(AtomicI64::new)).await
    }

    async fn newest(&self) -> Result<i64, Error> {
        self.postgres.read(|connection| newest(connection).boxed()).await
    }

    async fn page(&self, after: i64) -> Result<Vec<Event>, Error> {
        self.postgres.read(move |connection| after_id(connection, after).boxed()).await
    }

    /// Every event after that one, or from now on.
    async fn stream(&self, after: Option<i64>) -> Result<impl Stream<Item = Arc<Event>> + use<>, Error> {
        let live = self.events.subscribe();
        self.last().await?;
        let after = match after {
            Some(after) => after,
            None => self.newest().await?,
        };
        let cursor = Cursor { feed: self.clone(), live, after, page: VecDeque::new(), behind: true };
        Ok(stream::unfold(cursor, async |mut cursor| cursor.next().await.map(|event| (event, cursor))))
    }
}

/// Where one stream is.
struct Cursor {
    feed: Feed,
    live: broadcast::Receiver<Arc<Event>>,
    after: i64,
    page: VecDeque<Event>,
    /// Whether the table has more than has been read of it.
    behind: bool,
}

impl Cursor {
    async fn next(&mut self) -> Option<Arc<Event>> {
        loop {
            if let Some(event) = self.page.pop_front() {
                self.after = event.event_id;
                return Some(Arc::new(event));
            }
            if self.behind {
                self.read().await;
                continue;
            }
            match self.live.recv().await {
                Ok(event) if event.event_id > self.after => {
                    self.after = event.event_id;
                    return Some(event);
                }
                Ok(_seen) => {}
                Err(RecvError::Lagged(_)) => self.behind = true,
                Err(RecvError::Closed) => return None,
            }
        }
    }

    async fn read(&mut self) {
        match self.feed.page(self.after).await {
            Ok(page) => {
                self.behind = !page.is_empty();
                self.page = page.into();
            }
            Err(error) => {
                tracing::warn!(%error, "cannot read events for a stream");
                tokio::time::sleep(RETRY_INTERVAL).await;
            }
        }
    }
}

async fn newest(connection: &mut PgConnection) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar!(r#"SELECT coalesce(max(id), 0) AS "id!" FROM order_events"#).fetch_one(connection).await
}

async fn after_id(connection: &mut PgConnection, after: i64) -> Result<Vec<Event>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"SELECT events.id AS event_id, events.status AS "status: Status", orders.id, sku, quantity, total_cents, created_at
           FROM order_events events JOIN orders ON orders.id = events.order_id
           WHERE events.id > $1 ORDER BY events.id LIMIT $2"#,
        after,
        PAGE
    );
    let rows = rows.fetch_all(connection).await?;
    let event = |row: _| row;
    Ok(rows
        .into_iter()
        .map(event)
        .map(|row| Event {
            event_id: row.event_id,
            order: Order {
                id: row.id,
                sku: row.sku,
                quantity: row.quantity,
                total_cents: row.total_cents,
                status: row.status,
                created_at: row.created_at,
            },
        })
        .collect())
}

/// Orders as Server-Sent Events: each is named after the order's new status, its id is the event's, its data the order.
///
/// A client that comes back with `Last-Event-ID`, to whichever replica, gets what it has missed first.
#[utoipa::path(
    get, path = "/v1/orders/events", tag = "orders",
    params(("Last-Event-ID" = Option<i64>, Header, description = "the id of the last event seen")),
    responses(
        (status = 200, content_type = "text/event-stream", body = String),
        (status = 400, description = "Last-Event-ID is not the id of an event"),
    )
)]
pub(super) async fn events(
    State(orders): State<Orders>,
    connection: Connection,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let after = match headers.get("last-event-id") {
        None => None,
        Some(id) => {
            let id = id.to_str().ok().and_then(|id| id.parse().ok());
            Some(id.ok_or_else(|| Problem::new(StatusCode::BAD_REQUEST, "Last-Event-ID is not the id of an event"))?)
        }
    };
    let events = orders.feed.stream(after).await?.filter_map(async |event| {
        let status = event.order.status.name();
        let data = serde_json::to_string(&event.order).ok()?;
        Some(bytes::Bytes::from(format!("event: {status}\nid: {}\ndata: {data}\n\n", event.event_id)))
    });
    Ok(server::sse(&connection, events))
}

/// From where to listen.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct After {
    /// The `event_id` of the last message seen; from now on where it is left out.
    after: Option<i64>,
}

/// The same feed on a WebSocket: each message is the order and its `event_id`, as JSON text.
#[utoipa::path(
    get, path = "/v1/orders/ws", tag = "orders", params(After),
    responses(
        (status = 101, description = "switching to WebSocket"),
        (status = 400, description = "it is no WebSocket handshake, or `after` not the id of an event"),
    )
)]
pub(super) async fn websocket(
    State(orders): State<Orders>,
    connection: Connection,
    Query(After { after }): Query<After>,
    upgrade: WebSocketUpgrade,
) -> Result<Response, Problem> {
    let messages =
        orders.feed.stream(after).await?.filter_map(async |event| serde_json::to_string(&*event).ok().map(Into::into));
    let guard = orders.in_flight.enter(Kind::WebSocket, format!("GET /v1/orders/ws from {}", connection.peer()));
    Ok(server::websocket(upgrade, &connection, guard, messages))
}
