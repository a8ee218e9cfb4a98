//! Readers that are too slow for what they missed: the feed holds a page for each, and the server drops them.

use crate::support::{World, eventually, narrow, os, s};

const MIB: u64 = 1024 * 1024;

#[tokio::test]
async fn slow_readers_of_history_are_never_buffered_without_limit() {
    let world = World::new().await;
    let service = world.service().set("http.request_timeout", "1s").ready().await;
    for _ in 0..50 {
        assert_eq!(service.get("/v1/products/SKU-1").await.status, 200);
    }
    let before = os::resident(service.pid());
    write_events(&world, 10_000).await;
    let mut slow = Vec::new();
    for _ in 0..20 {
        let mut raw = narrow(service.http().await).await;
        raw.write("GET /v1/orders/events HTTP/1.1\r\nhost: test\r\nlast-event-id: 0\r\n\r\n").await;
        slow.push(raw);
    }
    let dropped = async || service.metric("http_server_timeouts_total", &[("bound", "write")]).await.unwrap_or(0.0);
    eventually("they are dropped", s(30), async || dropped().await >= 20.0).await;
    let grown = os::resident(service.pid()).saturating_sub(before) / MIB;
    assert!(grown < 48, "{grown} MiB more");
    let none = async || service.metric("in_flight", &[("kind", "sse")]).await == Some(0.0);
    eventually("they are gone", s(3), none).await;
}

/// Puts so many events into the table, as if they had happened before.
async fn write_events(world: &World, events: i32) {
    let sql = "WITH made AS (INSERT INTO orders (id, sku, quantity, total_cents, status)
                 SELECT gen_random_uuid(), 'SKU-1', 1, 1, 'confirmed' FROM generate_series(1, $1) RETURNING id)
               INSERT INTO order_events (order_id, status) SELECT id, 'confirmed' FROM made";
    sqlx::query(sql).bind(events).execute(world.database.pool()).await.expect("they are written");
}
