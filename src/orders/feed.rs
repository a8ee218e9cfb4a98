//! What happens to orders, as it happens: over Server-Sent Events and WebSocket, on any replica, with nothing missed
//! and nothing twice.
//!
//! The event table is the truth, and its ids become visible in ascending order: a writer puts an event into an outbox,
//! and a follower in each process numbers what is committed (see the migration), reads what is new, writes it down once
//! and hands it to every stream. A stream first reads from the table what its client has missed, and again if it was
//! too slow for the follower; so neither holds more than a page.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use axum::extract::State;
use axum::extract::ws::{Utf8Bytes, WebSocketUpgrade};
use axum::response::Response;
use bytes::Bytes;
use futures_util::{FutureExt, Stream, StreamExt, stream};
use http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::{Notify, OnceCell, Semaphore};
use tokio::time::Instant;
use utoipa::IntoParams;

use super::Orders;
use super::order::{Order, Status};
use crate::lifecycle::{Kind, Lifecycle};
use crate::postgres::{Error, Postgres};
use crate::server::{self, Connection, Problem, Query};

/// How often the events of another replica are looked for while anybody listens; this one's own are looked for at once.
/// An event may take two looks, if another replica is numbering it during the first, and should take less than 100 ms.
const POLL_INTERVAL: Duration = Duration::from_millis(40);

/// While nobody listens, the outbox is emptied this often.
const IDLE_INTERVAL: Duration = Duration::from_secs(1);

/// Between two looks, however often the follower is woken: under load a look finds many events.
const PACE: Duration = Duration::from_millis(10);

/// Between two looks at the whole outbox. The others leave out what was there before the last but one.
const WHOLE_INTERVAL: Duration = Duration::from_secs(10);

/// After a reading that failed.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Events that a stream may be behind the follower before it reads the table again.
const BEHIND: usize = 256;

/// Connections that streams may take to read what they have missed, however many come back at once.
const REPLAYS: usize = 2;

/// A message of the feed, written down once for all who listen.
#[derive(Debug)]
struct Event {
    /// Its position. A client that comes back with it gets what came after.
    id: i64,
    /// Whether the client must read the orders anew, because its position is not one of this table.
    resets: bool,
    /// A block of an event stream.
    sse: Bytes,
    /// A message of a WebSocket; empty if there is none to send.
    json: Utf8Bytes,
}

impl Event {
    /// An order took a status.
    fn told(id: i64, order: Order) -> Self {
        #[derive(Serialize)]
        struct Message {
            event_id: i64,
            #[serde(flatten)]
            order: Order,
        }
        // neither can fail: both are maps of numbers and text, and both times are of this era
        let data = serde_json::to_string(&order).unwrap_or_default();
        let sse = format!("event: {}\nid: {id}\ndata: {data}\n\n", order.status.name());
        let json = serde_json::to_string(&Message { event_id: id, order }).unwrap_or_default();
        Self { id, resets: false, sse: sse.into(), json: json.into() }
    }

    /// Where a stream begins: a client that has seen no event yet comes back with this.
    fn begins(id: i64) -> Self {
        Self { id, resets: false, sse: format!("id: {id}\n\n").into(), json: Utf8Bytes::default() }
    }

    /// The table does not have the client's position: retention has removed it, or the database was restored or failed
    /// over to an older state.
    fn reset(id: i64) -> Self {
        let json = format!(r#"{{"event_id":{id},"reset":"events are missing before this one: read the orders anew"}}"#);
        Self { id, resets: true, sse: format!("event: reset\nid: {id}\ndata: {json}\n\n").into(), json: json.into() }
    }
}

/// What the follower and the streams share.
#[derive(Debug)]
pub(super) struct Feed {
    postgres: Postgres,
    events: broadcast::Sender<Arc<Event>>,
    /// The last event that was handed out. Set before the first stream begins: were it set after, what came in between
    /// would be in neither that stream's first reading nor in what it is handed.
    last: OnceCell<AtomicI64>,
    /// Up to here the outbox has been looked at.
    looked: AtomicI64,
    woken: Notify,
    replays: Semaphore,
}

/// Starts to hand out what is new, for as long as the service serves.
pub(super) fn start(orders: &Arc<Orders>, lifecycle: &Lifecycle) {
    let orders = Arc::clone(orders);
    lifecycle.background("order events", move || {
        let orders = Arc::clone(&orders);
        async move { orders.feed.follow().await }
    });
}

impl Feed {
    pub(super) fn new(postgres: &Postgres) -> Self {
        Self {
            postgres: postgres.in_background(),
            events: broadcast::Sender::new(BEHIND),
            last: OnceCell::new(),
            looked: AtomicI64::new(0),
            woken: Notify::new(),
            replays: Semaphore::new(REPLAYS),
        }
    }

    /// There is something new.
    pub(super) fn wake(&self) {
        self.woken.notify_one();
    }

    async fn follow(&self) {
        // when all of the outbox was looked at last, and where it ended then
        let (mut whole, mut end) = (Instant::now(), 0);
        loop {
            let began = Instant::now();
            let is_whole = began - whole > WHOLE_INTERVAL;
            if is_whole {
                self.looked.store(0, Ordering::Relaxed);
            }
            let pause = match self.read_on().await {
                Ok(now) => {
                    if is_whole {
                        self.looked.store(end, Ordering::Relaxed);
                        (whole, end) = (began, now);
                    }
                    if self.events.receiver_count() > 0 { POLL_INTERVAL } else { IDLE_INTERVAL }
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot read events");
                    RETRY_INTERVAL
                }
            };
            // an elapsed time is the usual case: nothing woke the follower
            let _ = tokio::time::timeout(pause, self.woken.notified()).await;
            tokio::time::sleep_until(began + PACE).await;
        }
    }

    /// Numbers what is committed, and hands out what is new. The end of the outbox.
    async fn read_on(&self) -> Result<i64, Error> {
        let last = self.last().await?;
        let (newest, end) = self.newest().await?;
        let mut at = last.load(Ordering::Relaxed);
        if newest < at {
            tracing::warn!(last = at, newest, "the newest event is gone: the database is an older one");
            let _ = self.events.send(Arc::new(Event::reset(newest)));
        }
        if newest < at || self.events.receiver_count() == 0 {
            last.store(newest, Ordering::Relaxed);
            return Ok(end);
        }
        while at < newest {
            let page = self.page(at).await?;
            let Some(end) = page.last().map(|event| event.id) else { break };
            for event in page {
                // an error means that the last listener has just gone
                let _ = self.events.send(Arc::new(event));
            }
            at = end;
            last.store(at, Ordering::Relaxed);
        }
        Ok(end)
    }

    /// Where the follower is; at first the newest event there is.
    async fn last(&self) -> Result<&AtomicI64, Error> {
        self.last.get_or_try_init(async || self.newest().await.map(|(newest, _)| newest.into())).await
    }

    async fn newest(&self) -> Result<(i64, i64), Error> {
        let looked = self.looked.load(Ordering::Relaxed);
        self.postgres.run(move |connection| number(connection, looked).boxed()).await
    }

    async fn page(&self, after: i64) -> Result<Vec<Event>, Error> {
        self.postgres.run(move |connection| after_id(connection, after).boxed()).await
    }
}

/// Every event after that one, or from now on; first of all, where that is.
async fn stream(orders: &Arc<Orders>, after: Option<i64>) -> impl Stream<Item = Arc<Event>> + use<> {
    let mut cursor = Cursor {
        orders: Arc::clone(orders),
        live: orders.feed.events.subscribe(),
        wanted: after,
        after: None,
        page: VecDeque::new(),
        behind: false,
    };
    orders.feed.wake();
    // before the answer's head, so that "now" is when the client asked. While the database is away the stream opens all
    // the same, because a browser never comes back after an error.
    let begins = cursor.begin().await.inspect_err(|error| tracing::warn!(%error, "a stream waits for the database"));
    stream::iter(begins.ok())
        .chain(stream::unfold(cursor, async |mut cursor| cursor.next().await.map(|event| (event, cursor))))
}

/// Where one stream is.
struct Cursor {
    orders: Arc<Orders>,
    live: broadcast::Receiver<Arc<Event>>,
    /// The position to begin at; `None` is now.
    wanted: Option<i64>,
    /// The last event that was handed on. `None` until the table was asked.
    after: Option<i64>,
    page: VecDeque<Event>,
    /// Whether the table has more than has been read of it.
    behind: bool,
}

impl Cursor {
    /// Finds out where the stream begins.
    async fn begin(&mut self) -> Result<Arc<Event>, Error> {
        self.orders.feed.last().await?;
        let _place = self.orders.feed.replays.acquire().await;
        let (newest, _) = self.orders.feed.newest().await?;
        let first = match self.wanted {
            None => Event::begins(newest),
            Some(wanted) => {
                let oldest = self.orders.feed.postgres.run(|connection| oldest(connection).boxed()).await?;
                let is_there = (oldest..=newest).contains(&wanted);
                if is_there { Event::begins(wanted) } else { Event::reset(newest) }
            }
        };
        self.after = Some(first.id);
        self.behind = first.id < newest;
        Ok(Arc::new(first))
    }

    async fn next(&mut self) -> Option<Arc<Event>> {
        loop {
            let Some(after) = self.after else {
                match self.begin().await {
                    Ok(first) => return Some(first),
                    Err(_) => tokio::time::sleep(RETRY_INTERVAL).await,
                }
                continue;
            };
            if let Some(event) = self.page.pop_front() {
                self.after = Some(event.id);
                return Some(Arc::new(event));
            }
            if self.behind {
                self.read(after).await;
                continue;
            }
            match self.live.recv().await {
                Ok(event) if event.id > after || event.resets => {
                    self.after = Some(event.id);
                    return Some(event);
                }
                Ok(_seen) => {}
                Err(RecvError::Lagged(_)) => (self.wanted, self.after) = (Some(after), None),
                Err(RecvError::Closed) => return None,
            }
        }
    }

    async fn read(&mut self, after: i64) {
        let _place = self.orders.feed.replays.acquire().await;
        match self.orders.feed.page(after).await {
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

/// Numbers the events that are committed. The newest number there is, and the end of the outbox.
async fn number(connection: &mut PgConnection, looked: i64) -> Result<(i64, i64), sqlx::Error> {
    // a sequence that nobody has used yet says 1, which is the number of the first event to come
    let numbered = sqlx::query!(
        r#"SELECT order_events_number($1) AS "newest!", CASE WHEN is_called THEN last_value ELSE 0 END AS "end!"
           FROM order_outbox_seq_seq"#,
        looked
    );
    numbered.fetch_one(connection).await.map(|numbered| (numbered.newest, numbered.end))
}

/// The position before the oldest event.
async fn oldest(connection: &mut PgConnection) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar!(r#"SELECT coalesce(min(id) - 1, 0) AS "oldest!" FROM order_events"#).fetch_one(connection).await
}

async fn after_id(connection: &mut PgConnection, after: i64) -> Result<Vec<Event>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"SELECT events.id AS event_id, events.status AS "status: Status", orders.id, sku, quantity, total_cents, created_at
           FROM order_events events JOIN orders ON orders.id = events.order_id
           WHERE events.id > $1 ORDER BY events.id LIMIT 100"#,
        after
    );
    let rows = rows.fetch_all(connection).await?;
    let events = rows.into_iter().map(|row| {
        let (sku, created_at) = (row.sku, row.created_at);
        let (quantity, total_cents) = (row.quantity, row.total_cents);
        Event::told(row.event_id, Order { id: row.id, sku, quantity, total_cents, status: row.status, created_at })
    });
    Ok(events.collect())
}

/// Orders as Server-Sent Events: each is named after the order's new status, its id is its position, its data the order.
///
/// The stream begins with a block that has only an `id:`, so that a client which has seen no event comes back to the
/// right place too. With `Last-Event-ID`, to whichever replica, the client first gets what it has missed. If that
/// position is no longer there, an event `reset` says so: read `GET /v1/orders` anew, the stream goes on from now.
#[utoipa::path(
    get, path = "/v1/orders/events", tag = "orders",
    params(("Last-Event-ID" = Option<i64>, Header, description = "the last `id:` seen; 0 is before the first event")),
    responses(
        (status = 200, content_type = "text/event-stream", body = String),
        (status = 400, description = "Last-Event-ID is not a position"),
    )
)]
pub(super) async fn events(
    State(orders): State<Arc<Orders>>,
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
    let blocks = stream(&orders, after).await.map(|event| event.sse.clone());
    Ok(server::sse(&connection, blocks))
}

/// From where to listen.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct After {
    /// The `event_id` of the last message seen; from now on if it is left out.
    after: Option<i64>,
}

/// The same feed on a WebSocket: each message is the order and its `event_id`, as JSON text.
///
/// If the position `after` is no longer there, the first message is `{"event_id", "reset"}`: read `GET /v1/orders` anew.
#[utoipa::path(
    get, path = "/v1/orders/ws", tag = "orders", params(After),
    responses(
        (status = 101, description = "switching to WebSocket"),
        (status = 400, description = "not a WebSocket handshake, or `after` not a position"),
    )
)]
pub(super) async fn websocket(
    State(orders): State<Arc<Orders>>,
    connection: Connection,
    Query(After { after }): Query<After>,
    upgrade: WebSocketUpgrade,
) -> Response {
    let messages = stream(&orders, after).await;
    let messages = messages.map(|event| event.json.clone()).filter(|text| std::future::ready(!text.is_empty()));
    let guard = orders.in_flight.enter(Kind::WebSocket, format!("GET /v1/orders/ws from {}", connection.peer()));
    server::websocket(upgrade, &connection, guard, messages)
}
