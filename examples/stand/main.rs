//! The service with routes made for tests: slow, large and endless answers can be had from outside. It is composed as the
//! service is, and stays if the example goes.
//!
//! | route | answers |
//! |---|---|
//! | `GET /cheap` | at once, and needs nothing |
//! | `POST /echo` | 201 with the JSON it was sent and a number; all listeners get the same |
//! | `POST /slow/{milliseconds}` | 201 after that time |
//! | `GET /large` | 1.5 MB |
//! | `GET /events?count=N`, `GET /ws?count=N` | N messages at once, then the echoes: Server-Sent Events, a WebSocket |
//! | `GET /locked` | when it has had a lock in the database |
//! | `POST /jobs/{milliseconds}` | 202, and a worker has a job that takes that time |

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::extract::ws::WebSocketUpgrade;
use axum::response::Response;
use axum::routing::{get, post};
use bytes::Bytes;
use futures_util::{FutureExt, Stream, StreamExt, stream};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use service::config::Config;
use service::lifecycle::{Control, InFlight, Kind, Lifecycle, Workers};
use service::postgres::Postgres;
use service::server::{self, Connection, Json, Path, Problem, Query};
use service::telemetry::Telemetry;
use sqlx::PgConnection;
use tokio::sync::{Mutex, broadcast, mpsc};
use tokio_stream::wrappers::BroadcastStream;
use tokio_util::sync::CancellationToken;
use utoipa_axum::router::OpenApiRouter;

/// The service's own: tests look at memory.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> anyhow::Result<ExitCode> {
    let control = Control::new()?;
    let config = Config::load()?;
    let telemetry = {
        let _context = control.handle().enter();
        Telemetry::start(&config.telemetry)?
    };
    service::app::serve_with(&config, control, &telemetry, routes)
}

struct Stand {
    postgres: Postgres,
    in_flight: InFlight,
    /// How many echoes there were.
    echoed: AtomicU64,
    echoes: broadcast::Sender<Message>,
    jobs: mpsc::Sender<u64>,
    large: Bytes,
}

/// Its number, and the JSON with the number in it.
type Message = (u64, String);

fn routes(postgres: &Postgres, lifecycle: &Lifecycle, workers: &Workers) -> OpenApiRouter {
    let (jobs, waiting) = mpsc::channel(16);
    let waiting = Arc::new(Mutex::new(waiting));
    workers.spawn("jobs", move |claim_nothing| work(Arc::clone(&waiting), claim_nothing));
    let stand = Stand {
        postgres: postgres.clone(),
        in_flight: lifecycle.in_flight().clone(),
        echoed: AtomicU64::new(0),
        echoes: broadcast::Sender::new(1024),
        jobs,
        large: (0..375_000_u32).flat_map(u32::to_le_bytes).collect(),
    };
    let router = Router::new()
        .route("/cheap", get(async || "cheap"))
        .route("/echo", post(echo))
        .route("/slow/{milliseconds}", post(slow))
        .route("/large", get(async |State(stand): State<Arc<Stand>>| stand.large.clone()))
        .route("/events", get(events))
        .route("/ws", get(websocket))
        .route("/locked", get(locked))
        .route("/jobs/{milliseconds}", post(job));
    router.with_state(Arc::new(stand)).into()
}

async fn echo(State(stand): State<Arc<Stand>>, Json(body): Json<Value>) -> (StatusCode, Json<Value>) {
    let id = stand.echoed.fetch_add(1, Ordering::Relaxed) + 1;
    tracing::info!(id, "echo");
    let message = json!({ "id": id, "echo": body });
    // nobody may be listening
    let _ = stand.echoes.send((id, message.to_string()));
    (StatusCode::CREATED, Json(message))
}

async fn slow(Path(milliseconds): Path<u64>, Json(body): Json<Value>) -> (StatusCode, Json<Value>) {
    tracing::info!(milliseconds, "slow");
    tokio::time::sleep(Duration::from_millis(milliseconds)).await;
    (StatusCode::CREATED, Json(body))
}

#[derive(Deserialize)]
struct Count {
    count: Option<u64>,
}

fn messages(stand: &Stand, count: Option<u64>) -> impl Stream<Item = Message> + Send + use<> {
    let echoes = BroadcastStream::new(stand.echoes.subscribe()).filter_map(async |echo| echo.ok());
    let filler = "x".repeat(200);
    let first = (1..=count.unwrap_or(0)).map(move |id| (id, json!({ "id": id, "echo": filler }).to_string()));
    stream::iter(first).chain(echoes)
}

async fn events(
    State(stand): State<Arc<Stand>>,
    connection: Connection,
    Query(Count { count }): Query<Count>,
) -> Response {
    let blocks = messages(&stand, count).map(|(id, data)| format!("id: {id}\nevent: echo\ndata: {data}\n\n").into());
    server::sse(&connection, blocks)
}

async fn websocket(
    State(stand): State<Arc<Stand>>,
    connection: Connection,
    Query(Count { count }): Query<Count>,
    upgrade: WebSocketUpgrade,
) -> Response {
    let guard = stand.in_flight.enter(Kind::WebSocket, format!("GET /ws from {}", connection.peer()));
    server::websocket(upgrade, &connection, guard, messages(&stand, count).map(|(_, text)| text.into()))
}

async fn locked(State(stand): State<Arc<Stand>>) -> Result<&'static str, Problem> {
    stand.postgres.read(|connection| lock(connection).boxed()).await?;
    Ok("unlocked")
}

async fn lock(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query("SELECT pg_advisory_xact_lock_shared(1)").execute(connection).await.map(drop)
}

async fn job(State(stand): State<Arc<Stand>>, Path(milliseconds): Path<u64>) -> StatusCode {
    let taken = stand.jobs.try_send(milliseconds);
    if taken.is_ok() { StatusCode::ACCEPTED } else { StatusCode::SERVICE_UNAVAILABLE }
}

/// One job at a time, until nothing more is to be claimed.
async fn work(waiting: Arc<Mutex<mpsc::Receiver<u64>>>, claim_nothing: CancellationToken) {
    let mut waiting = waiting.lock().await;
    while let Some(Some(milliseconds)) = claim_nothing.run_until_cancelled(waiting.recv()).await {
        tracing::info!(milliseconds, "job");
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
    }
}
