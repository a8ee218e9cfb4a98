//! A client that goes away takes its work with it: its query does not go on in the database.

use sqlx::{Executor, Postgres, Transaction};

use super::support::{
    Raw, Service, World, eventually,
    http2::{Http2, kind},
    s,
};

/// Its query waits while [`locked`] is held.
const PATH: &str = "/locked";

/// A service whose queries may take long.
async fn serve(world: &World, request_timeout: &str) -> Service {
    let launch = world.stand().set("database.statement_timeout", "30s").set("http.request_timeout", request_timeout);
    launch.set("database.max_connections", 10).ready().await
}

/// Keeps everybody from that lock.
async fn locked(world: &World) -> Transaction<'static, Postgres> {
    let mut transaction = world.database.pool().begin().await.expect("it begins");
    transaction.execute("SELECT pg_advisory_xact_lock(1)").await.expect("nobody else has it");
    transaction
}

/// Waits until so many queries run in the database.
async fn queries(world: &World, wanted: i64) {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
               AND state = 'active' AND wait_event_type = 'Lock' AND query LIKE '%pg_advisory_xact_lock_shared%'";
    let look = async || Some(world.database.one::<i64>(sql).await).filter(|found| *found == wanted).ok_or("another");
    // Well before its own statement_timeout of 30 s would end it.
    eventually(&format!("{wanted} queries"), s(4), look).await;
}

#[tokio::test]
async fn a_client_that_closes_cancels_its_query() {
    let world = World::new().await;
    let service = serve(&world, "30s").await;
    let lock = locked(&world).await;
    let mut raw = Raw::connect(service.http().await).await;
    raw.get(PATH).await;
    queries(&world, 1).await;
    drop(raw);
    queries(&world, 0).await;
    drop(lock);
    assert_eq!(service.get(PATH).await.status, 200, "and its connection is not lost to others");
}

#[tokio::test]
async fn an_http_2_client_that_resets_cancels_its_query_and_no_other() {
    let world = World::new().await;
    let service = serve(&world, "30s").await;
    let lock = locked(&world).await;
    let mut connection = Http2::connect(service.http().await, &[]).await;
    connection.get(1, PATH).await;
    connection.get(3, PATH).await;
    queries(&world, 2).await;
    connection.write(kind::RST_STREAM, 0, 1, &8_u32.to_be_bytes()).await;
    queries(&world, 1).await;
    drop(lock);
    let head = connection.until(|frame| frame.kind == kind::HEADERS).await.expect("an answer");
    assert_eq!((head.stream, head.status()), (3, 200));
}

#[tokio::test]
async fn a_request_that_takes_too_long_cancels_its_query() {
    let world = World::new().await;
    let service = serve(&world, "1s").await;
    let _lock = locked(&world).await;
    let mut raw = Raw::connect(service.http().await).await;
    raw.get(PATH).await;
    queries(&world, 1).await;
    assert_eq!(raw.reply().await.status, 504);
    queries(&world, 0).await;
    super::timed_out(&service, "request").await;
}
