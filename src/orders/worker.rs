//! The worker: takes pending orders, reserves their stock, and settles them.
//!
//! One claimer a process hands orders to `worker.concurrency` jobs. A claim is a lease: it sets the order's next attempt
//! a few seconds ahead, and is renewed while the job runs. So nothing is locked while the catalog is asked, and if the
//! process is killed or frozen, the order is soon another replica's, which asks the catalog again and gets the same
//! answer. An order is settled only while it is pending, so it is settled once.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use sqlx::PgConnection;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Orders;
use super::catalog::Reservation;
use super::order::Status;
use crate::config;
use crate::grpc;
use crate::lifecycle::{Kind, Workers};
use crate::postgres::Error;

/// Answers of the catalog that are its refusal, not its absence: so many, and the order is rejected.
const MAX_REFUSALS: i32 = 5;

/// How long an order stays with a replica that is not heard of again.
const LEASE: Duration = Duration::from_secs(5);

/// The same during a stop, which may end a job at any moment.
const LEASE_WHILE_STOPPING: Duration = Duration::from_secs(1);

/// For a claim that is under way at the stop.
const CLAIM_GRACE: Duration = Duration::from_millis(300);

/// Between two renewals of the leases.
const RENEWAL: Duration = Duration::from_millis(500);

/// Characters of a reason that are kept.
const MAX_REASON: usize = 500;

/// Starts the claimer.
pub(super) fn start(orders: &Arc<Orders>, settings: &config::Worker, workers: &Workers) {
    let (orders, settings) = (Arc::clone(orders), settings.clone());
    workers.spawn("orders", move |claim_nothing| work(Arc::clone(&orders), settings.clone(), claim_nothing));
}

#[derive(Debug)]
struct Job {
    id: Uuid,
    sku: String,
    quantity: i32,
    /// Tries so far.
    attempts: i32,
    /// Those that the catalog answered, with a refusal.
    refusals: i32,
}

/// How a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    Done,
    /// The catalog is away: so it is for the next order.
    HandedBack,
}

async fn work(orders: Arc<Orders>, settings: config::Worker, claim_nothing: CancellationToken) {
    let mut jobs = JoinSet::new();
    let mut leased = HashMap::new();
    let mut renewal = tokio::time::interval(RENEWAL);
    renewal.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut next_look = Instant::now();
    let mut turn = 0;
    loop {
        let stopping = claim_nothing.is_cancelled();
        let free = if stopping { 0 } else { settings.concurrency - jobs.len() };
        if stopping && jobs.is_empty() {
            return;
        }
        if free > 0 && next_look <= Instant::now() {
            turn = 1 - turn;
            let claimed = tokio::select! {
                claimed = orders.claim(free, turn) => claimed,
                // a claim that the database does not answer holds no stop up; what it leases is free again by itself
                () = grace(&claim_nothing) => Vec::new(),
            };
            // a full hand means that there is more
            let pause = if claimed.len() == free { Duration::ZERO } else { settings.poll_interval };
            next_look = Instant::now() + pause;
            if claim_nothing.is_cancelled() {
                if !claimed.is_empty() {
                    orders.lease(claimed.iter().map(|job| job.id).collect(), Duration::ZERO).await;
                }
                continue;
            }
            for job in claimed {
                let id = job.id;
                leased.insert(jobs.spawn(run(Arc::clone(&orders), job)).id(), id);
            }
            continue;
        }
        tokio::select! {
            Some(ended) = jobs.join_next_with_id() => {
                if release(ended, &mut leased) == Ended::HandedBack {
                    next_look = Instant::now() + settings.poll_interval;
                }
            }
            _ = renewal.tick(), if !jobs.is_empty() => {
                let lease = if stopping { LEASE_WHILE_STOPPING } else { LEASE };
                orders.lease(leased.values().copied().collect(), lease).await;
            }
            () = orders.arrived.notified(), if free > 0 => next_look = Instant::now(),
            () = tokio::time::sleep_until(next_look), if free > 0 => {}
            () = claim_nothing.cancelled(), if !stopping => renewal.reset_immediately(),
        }
    }
}

/// Completes a moment after nothing more is to be claimed.
async fn grace(claim_nothing: &CancellationToken) {
    claim_nothing.cancelled().await;
    tokio::time::sleep(CLAIM_GRACE).await;
}

fn release(ended: Result<(Id, Ended), JoinError>, leased: &mut HashMap<Id, Uuid>) -> Ended {
    let (task, ended) = ended.unwrap_or_else(|error| {
        // its order is tried again when the lease ends
        tracing::error!(order = leased.get(&error.id()).map(tracing::field::display), "job panicked");
        count("panicked");
        (error.id(), Ended::Done)
    });
    leased.remove(&task);
    ended
}

fn count(outcome: &'static str) {
    metrics::counter!("worker_jobs_total", "outcome" => outcome).increment(1);
}

/// One order, to its end or its next attempt. Whatever goes wrong postpones this order alone.
async fn run(orders: Arc<Orders>, job: Job) -> Ended {
    let _guard = orders.in_flight.enter(Kind::Job, format!("order {}", job.id));
    let settled = match orders.catalog.reserve(job.id, &job.sku, job.quantity).await {
        Ok(Reservation::Accepted) => orders.settle(&job, Status::Confirmed, None).await,
        Ok(Reservation::Declined(reason)) => orders.settle(&job, Status::Rejected, Some(fit(&reason))).await,
        Err(grpc::Error::Open) => {
            orders.lease(vec![job.id], Duration::ZERO).await;
            return Ended::HandedBack;
        }
        Err(error) if error.is_refusal() && job.refusals + 1 >= MAX_REFUSALS => {
            orders.settle(&job, Status::Rejected, Some(fit(&error.to_string()))).await
        }
        Err(error) => {
            tracing::warn!(order = %job.id, %error, attempts = job.attempts, "order waits");
            orders.postpone(&job, error.is_refusal(), "postponed").await;
            return Ended::Done;
        }
    };
    if let Err(error) = settled {
        tracing::error!(order = %job.id, %error, attempts = job.attempts, "cannot settle the order: it waits");
        orders.postpone(&job, false, "failed").await;
    }
    Ended::Done
}

/// Text from outside, as PostgreSQL takes it: without NUL, and not too long.
fn fit(text: &str) -> String {
    text.chars().filter(|character| *character != '\0').take(MAX_REASON).collect()
}

impl Orders {
    /// Leases orders that are due: one part the oldest, one the newest, so that neither waits for the other.
    async fn claim(&self, free: usize, turn: usize) -> Vec<Job> {
        let oldest = (free + turn) / 2;
        let (oldest, newest) = (oldest as i64, (free - oldest) as i64);
        let claimed =
            self.postgres.in_background().run(move |connection| claim(connection, oldest, newest).boxed()).await;
        claimed.unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot look for orders");
            count("failed");
            Vec::new()
        })
    }

    /// From now on so long; zero hands the orders back.
    async fn lease(&self, orders: Vec<Uuid>, lease: Duration) {
        let leased =
            self.postgres.in_background().run(|connection| renew(connection, orders.clone(), lease).boxed()).await;
        if let Err(error) = leased {
            tracing::warn!(%error, "cannot renew leases: other replicas may ask the catalog again");
        }
    }

    async fn settle(&self, job: &Job, status: Status, reason: Option<String>) -> Result<(), Error> {
        let id = job.id;
        if self
            .postgres
            .in_background()
            .run(|connection| settle(connection, id, status, reason.clone()).boxed())
            .await?
        {
            tracing::info!(order = %id, status = status.name(), reason, "order settled");
            count(status.name());
            self.feed.wake();
        }
        Ok(())
    }

    async fn postpone(&self, job: &Job, refused: bool, outcome: &'static str) {
        let id = job.id;
        count(outcome);
        if let Err(error) =
            self.postgres.in_background().run(|connection| postpone(connection, id, refused).boxed()).await
        {
            tracing::warn!(order = %id, %error, "cannot postpone the order: it waits for the end of its lease");
        }
    }
}

/// Each part reads a few entries at one end of `orders_pending`, however many orders are due. An order that is to wait
/// longer than any pause is long was given its time by a clock that has been set back since: it is due too.
async fn claim(connection: &mut PgConnection, oldest: i64, newest: i64) -> Result<Vec<Job>, sqlx::Error> {
    sqlx::query_as!(
        Job,
        "WITH oldest AS MATERIALIZED (
             SELECT id FROM orders WHERE status = 'pending' AND next_attempt_at <= now()
             ORDER BY next_attempt_at LIMIT $1 FOR UPDATE SKIP LOCKED
         ), newest AS MATERIALIZED (
             SELECT id FROM orders WHERE status = 'pending' AND next_attempt_at <= now()
             ORDER BY next_attempt_at DESC LIMIT $2 FOR UPDATE SKIP LOCKED
         ), astray AS MATERIALIZED (
             SELECT id FROM orders WHERE status = 'pending' AND next_attempt_at > now() + interval '1 minute'
             ORDER BY next_attempt_at DESC LIMIT $2 FOR UPDATE SKIP LOCKED
         )
         UPDATE orders SET next_attempt_at = now() + $3 * interval '1 second'
         WHERE id = ANY (ARRAY(SELECT id FROM oldest UNION SELECT id FROM newest UNION SELECT id FROM astray LIMIT $1 + $2))
         RETURNING id, sku, quantity, attempts, refusals",
        oldest,
        newest,
        LEASE.as_secs_f64()
    )
    .fetch_all(connection)
    .await
}

/// An order is found by its id. `status = 'pending'` would let the database look for it in `orders_pending`, which it takes
/// to be empty while its statistics are older than a backlog: each renewal would read the whole backlog.
async fn renew(connection: &mut PgConnection, orders: Vec<Uuid>, lease: Duration) -> Result<(), sqlx::Error> {
    let renewed = sqlx::query!(
        "UPDATE orders SET next_attempt_at = now() + $2 * interval '1 second'
         WHERE id = ANY($1) AND status NOT IN ('confirmed', 'rejected')",
        &orders,
        lease.as_secs_f64()
    );
    renewed.execute(connection).await.map(drop)
}

/// `false` if the order has been settled meanwhile, by a replica that took it over.
async fn settle(
    connection: &mut PgConnection,
    order: Uuid,
    status: Status,
    reason: Option<String>,
) -> Result<bool, sqlx::Error> {
    let settled = sqlx::query!(
        "WITH settled AS (
             UPDATE orders SET status = $2, reason = $3
             WHERE id = $1 AND status NOT IN ('confirmed', 'rejected') RETURNING id, status
         )
         INSERT INTO order_outbox (order_id, status) SELECT id, status FROM settled",
        order,
        status.name(),
        reason
    );
    Ok(settled.execute(connection).await?.rows_affected() == 1)
}

/// Lets the order wait: 1 s at first, 30 s at most. While the catalog is away it waits without end; what the catalog
/// refuses is counted.
async fn postpone(connection: &mut PgConnection, order: Uuid, refused: bool) -> Result<(), sqlx::Error> {
    let postponed = sqlx::query!(
        "UPDATE orders SET attempts = attempts + 1, refusals = refusals + $2,
                next_attempt_at = now() + least(30, power(2, least(attempts, 5))) * interval '1 second'
         WHERE id = $1 AND status NOT IN ('confirmed', 'rejected')",
        order,
        i32::from(refused)
    );
    postponed.execute(connection).await.map(drop)
}
