//! A client that goes away takes its work with it: its query does not go on in the database.

use sqlx::{Executor, Postgres, Transaction};

use crate::{
    Stage,
    support::{
        Raw, Service, eventually,
        http2::{Http2, kind},
        s,
    },
    world,
};

/// An order nobody has, whose look-up waits while [`locked`] is held.
const PATH: &str = "/v1/orders/0197a0f4-0000-7000-8000-000000000000";

/// A service whose queries may take long, and that has connections left when its workers wait as well.
async fn serve(stage: &Stage, request_timeout: &str) -> Service {
    let launch = stage.service().set("database.statement_timeout", "30s").set("http.request_timeout", request_timeout);
    launch.set("worker.concurrency", 1).set("database.max_connections", 10).ready().await
}

/// Keeps everybody from the orders.
async fn locked(stage: &Stage) -> Transaction<'static, Postgres> {
    let mut transaction = stage.database.pool().begin().await.expect("it begins");
    transaction.execute("LOCK TABLE orders IN ACCESS EXCLUSIVE MODE").await.expect("nobody else has it");
    transaction
}

/// Waits until so many look-ups run in the database.
async fn look_ups(stage: &Stage, wanted: i64) {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
               AND state = 'active' AND wait_event_type = 'Lock' AND query LIKE '%FROM orders WHERE id = $1%'";
    let look = async || Some(stage.database.one::<i64>(sql).await).filter(|found| *found == wanted).ok_or("another");
    // Well before its own statement_timeout of 30 s would end it.
    eventually(&format!("{wanted} look-ups"), s(4), look).await;
}

#[tokio::test]
async fn a_client_that_closes_cancels_its_query() {
    let stage = world().await;
    let service = serve(&stage, "30s").await;
    let lock = locked(&stage).await;
    let mut raw = Raw::connect(service.http().await).await;
    raw.get(PATH).await;
    look_ups(&stage, 1).await;
    drop(raw);
    look_ups(&stage, 0).await;
    drop(lock);
    assert_eq!(service.get(PATH).await.status, 404, "and its connection is not lost to others");
}

#[tokio::test]
async fn an_http_2_client_that_resets_its_stream_cancels_its_query_and_no_other() {
    let stage = world().await;
    let service = serve(&stage, "30s").await;
    let lock = locked(&stage).await;
    let mut connection = Http2::connect(service.http().await, &[]).await;
    connection.get(1, PATH).await;
    connection.get(3, PATH).await;
    look_ups(&stage, 2).await;
    connection.write(kind::RST_STREAM, 0, 1, &8_u32.to_be_bytes()).await;
    look_ups(&stage, 1).await;
    drop(lock);
    let head = connection.until(|frame| frame.kind == kind::HEADERS).await.expect("an answer");
    assert_eq!((head.stream, head.status()), (3, 404));
}

#[tokio::test]
async fn a_request_that_takes_too_long_cancels_its_query() {
    let stage = world().await;
    let service = serve(&stage, "1s").await;
    let _lock = locked(&stage).await;
    let mut raw = Raw::connect(service.http().await).await;
    raw.get(PATH).await;
    look_ups(&stage, 1).await;
    assert_eq!(raw.reply().await.status, 504);
    look_ups(&stage, 0).await;
    crate::timed_out(&service, "request").await;
}
