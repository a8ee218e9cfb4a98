//! The worker: takes pending orders, reserves their stock, and settles them.
//!
//! An order is claimed by locking its row (`FOR UPDATE SKIP LOCKED`) in the transaction that also settles it. Whatever
//! ends the process, the connection or the database in between ends the transaction: the order is pending again, and
//! the next to claim it asks the catalogue again, which gives the same order the same answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use sqlx::{Connection, PgConnection};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Orders;
use super::catalog::Reservation;
use super::order::Status;
use crate::config::Config;
use crate::grpc;
use crate::lifecycle::{Kind, Workers};

/// Answers of the catalogue that are its refusal, not its absence: so many, and the order is rejected.
const MAX_REFUSALS: i32 = 5;

/// Starts `worker.concurrency` of them, or fewer: while the catalogue is slow each holds a connection, and the last one
/// of the pool is left to requests.
pub(super) fn start(orders: &Orders, config: &Config, workers: &Workers) {
    let leaving_one = config.database.max_connections.saturating_sub(1).max(1);
    for _ in 0..config.worker.concurrency.min(leaving_one as usize) {
        let (orders, poll_interval) = (orders.clone(), config.worker.poll_interval);
        // a job waits for the catalogue in the middle of its transaction
        let timeout = config.database.statement_timeout + config.catalog.timeout;
        workers.spawn("orders", move |claim_nothing| work(orders.clone(), timeout, poll_interval, claim_nothing));
    }
}

async fn work(orders: Orders, timeout: Duration, poll_interval: Duration, claim_nothing: CancellationToken) {
    let postgres = orders.postgres.in_background();
    while !claim_nothing.is_cancelled() {
        let claimed = Arc::new(AtomicBool::new(false));
        let found = tokio::select! {
            found = postgres.run_for(timeout, |connection| {
                settle_one(orders.clone(), timeout, claimed.clone(), connection).boxed()
            }) => found,
            () = may_leave(&claim_nothing, &claimed) => return,
        };
        let found = found.unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot work on orders");
            metrics::counter!("worker_jobs_total", "outcome" => "failed").increment(1);
            Found::Nothing
        });
        match found {
            Found::Order => orders.feed.wake(),
            Found::Nothing => {
                let woken = tokio::time::timeout(poll_interval, orders.arrived.notified());
                claim_nothing.run_until_cancelled(woken).await;
            }
        }
    }
}

/// Completes when nothing more is to be claimed and nothing is: a job that runs is finished, one that waits for a
/// connection is not begun.
async fn may_leave(claim_nothing: &CancellationToken, claimed: &AtomicBool) {
    claim_nothing.cancelled().await;
    if claimed.load(Ordering::Relaxed) {
        std::future::pending().await
    }
}

/// Whether there was anything to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Order,
    Nothing,
}

struct Job {
    id: Uuid,
    sku: String,
    quantity: i32,
    /// Tries so far.
    attempts: i32,
    /// Those that the catalogue answered, with a refusal.
    refusals: i32,
}

async fn settle_one(
    orders: Orders,
    timeout: Duration,
    claimed: Arc<AtomicBool>,
    connection: &mut PgConnection,
) -> Result<Found, sqlx::Error> {
    let mut transaction = Connection::begin(connection).await?;
    let Some(job) = claim(&mut transaction).await? else {
        return Ok(Found::Nothing);
    };
    claimed.store(true, Ordering::Relaxed);
    let _guard = orders.in_flight.enter(Kind::Job, format!("order {}", job.id));
    // the server is to have patience while the catalogue is asked
    let patience = format!("{}ms", timeout.as_millis());
    sqlx::query_scalar!("SELECT set_config('idle_in_transaction_session_timeout', $1, true)", patience)
        .fetch_one(&mut *transaction)
        .await?;
    let outcome = match orders.catalog.reserve(job.id, &job.sku, job.quantity).await {
        Ok(Reservation::Accepted) => settle(&mut transaction, &job, Status::Confirmed, None).await?,
        Ok(Reservation::Declined(reason)) => settle(&mut transaction, &job, Status::Rejected, Some(&reason)).await?,
        // nobody was asked: the order is given back as it was
        Err(grpc::Error::Open) => return Ok(Found::Nothing),
        Err(error) if error.is_refusal() && job.refusals + 1 >= MAX_REFUSALS => {
            settle(&mut transaction, &job, Status::Rejected, Some(&error.to_string())).await?
        }
        Err(error) => postpone(&mut transaction, &job, &error).await?,
    };
    transaction.commit().await?;
    metrics::counter!("worker_jobs_total", "outcome" => outcome).increment(1);
    Ok(Found::Order)
}

/// An order nobody else works on. One that is to wait longer than any pause is long was given its time by a clock that
/// has been set back since.
async fn claim(connection: &mut PgConnection) -> Result<Option<Job>, sqlx::Error> {
    sqlx::query_as!(
        Job,
        "SELECT id, sku, quantity, attempts, refusals FROM orders
         WHERE status = 'pending' AND (next_attempt_at <= now() OR next_attempt_at > now() + interval '1 minute')
         ORDER BY next_attempt_at LIMIT 1 FOR UPDATE SKIP LOCKED"
    )
    .fetch_optional(connection)
    .await
}

async fn settle(
    connection: &mut PgConnection,
    job: &Job,
    status: Status,
    reason: Option<&str>,
) -> Result<&'static str, sqlx::Error> {
    sqlx::query!("UPDATE orders SET status = $2, reason = $3 WHERE id = $1", job.id, status.name(), reason)
        .execute(&mut *connection)
        .await?;
    sqlx::query!("INSERT INTO order_events (order_id, status) VALUES ($1, $2)", job.id, status.name())
        .execute(&mut *connection)
        .await?;
    tracing::info!(order = %job.id, status = status.name(), reason, "order settled");
    Ok(status.name())
}

/// Lets the order wait: 1 s at first, 30 s at most. While the catalogue is away it waits without end; what the
/// catalogue refuses is counted.
async fn postpone(connection: &mut PgConnection, job: &Job, error: &grpc::Error) -> Result<&'static str, sqlx::Error> {
    tracing::warn!(order = %job.id, %error, attempts = job.attempts, "order waits");
    sqlx::query!(
        "UPDATE orders SET attempts = attempts + 1, refusals = refusals + $2,
                next_attempt_at = now() + least(30, power(2, least(attempts, 5))) * interval '1 second'
         WHERE id = $1",
        job.id,
        i32::from(error.is_refusal())
    )
    .execute(connection)
    .await?;
    Ok("postponed")
}
