//! Retention: events and idempotency keys go after a while, in small batches, by one replica at a time.
//!
//! Each batch is one statement that reads one page and locks only rows that no request writes any more. A stop drops the
//! statement in the middle.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use sqlx::PgConnection;
use sqlx::postgres::types::PgInterval;
use uuid::Uuid;

use super::Orders;
use crate::config;
use crate::lifecycle::Lifecycle;
use crate::postgres::Error;

/// Between two looks for what is old.
const INTERVAL: Duration = Duration::from_secs(60);

/// Between two batches if there is more, so that requests come first.
const PAUSE: Duration = Duration::from_millis(100);

/// Rows that one statement looks at; the same number stands in each.
const BATCH: u64 = 1000;

/// Starts what the settings ask for.
pub(super) fn start(orders: &Arc<Orders>, settings: &config::Retention, lifecycle: &Lifecycle) {
    if let Some(age) = settings.events {
        let (orders, age) = (Arc::clone(orders), interval(age));
        lifecycle.background("old events", move || forget_events(Arc::clone(&orders), age));
    }
    if let Some(age) = settings.idempotency_keys {
        let (orders, age) = (Arc::clone(orders), interval(age));
        lifecycle.background("old idempotency keys", move || forget_keys(Arc::clone(&orders), age));
    }
}

fn interval(age: Duration) -> PgInterval {
    // only what is below a microsecond cannot be told PostgreSQL, and the settings have a lower bound
    PgInterval { months: 0, days: 0, microseconds: i64::try_from(age.as_micros()).unwrap_or(i64::MAX) }
}

async fn forget_events(orders: Arc<Orders>, age: PgInterval) {
    loop {
        let removed = orders.postgres.in_background().run(|connection| remove_events(connection, age).boxed()).await;
        pause("events", removed, |removed| *removed == BATCH).await;
    }
}

/// Goes through all orders once, in the order of their ids, and then waits where the young ones begin.
async fn forget_keys(orders: Arc<Orders>, age: PgInterval) {
    let mut after = Uuid::nil();
    loop {
        let page = orders.postgres.in_background().run(|connection| remove_keys(connection, after, age).boxed()).await;
        if let Ok(Some(last)) = &page {
            after = *last;
        }
        pause("idempotency keys", page, Option::is_some).await;
    }
}

async fn pause<T>(of: &str, batch: Result<T, Error>, more: impl Fn(&T) -> bool) {
    let more = batch.as_ref().is_ok_and(more);
    if let Err(error) = batch {
        tracing::warn!(%error, of, "cannot remove what is old");
    }
    tokio::time::sleep(if more { PAUSE } else { INTERVAL }).await;
}

/// Removes old events among the first ones; the newest stays, because it says where a stream begins. How many.
async fn remove_events(connection: &mut PgConnection, age: PgInterval) -> Result<u64, sqlx::Error> {
    let removed = sqlx::query!(
        "DELETE FROM order_events WHERE id = ANY (ARRAY(
             SELECT id FROM (SELECT id, at FROM order_events ORDER BY id LIMIT 1000) AS page
             WHERE at < now() - $1::interval AND id < (SELECT max(id) FROM order_events)
               AND (SELECT pg_try_advisory_xact_lock(hashtext('order retention')))
         ))",
        age
    );
    Ok(removed.execute(connection).await?.rows_affected())
}

/// Takes the keys from the next page of orders. The page's end, if all of the page is old and there is more.
async fn remove_keys(connection: &mut PgConnection, after: Uuid, age: PgInterval) -> Result<Option<Uuid>, sqlx::Error> {
    sqlx::query_scalar!(
        r#"WITH page AS MATERIALIZED (
               SELECT id, created_at < now() - $2::interval
                          AND (SELECT pg_try_advisory_xact_lock(hashtext('order retention'))) AS old
               FROM orders WHERE id > $1 ORDER BY id LIMIT 1000
           ), keyed AS (
               UPDATE orders SET idempotency_key = NULL
               WHERE id = ANY (ARRAY(SELECT id FROM page WHERE old)) AND idempotency_key IS NOT NULL
           )
           SELECT max(id::text)::uuid AS last FROM page HAVING count(*) = 1000 AND bool_and(old)"#,
        after,
        age
    )
    .fetch_optional(connection)
    .await
    .map(Option::flatten)
}
