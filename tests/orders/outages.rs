//! A dependency's bad day is an answer with a reason, in time, and nothing half done.

use std::time::Instant;

use serde_json::json;
use sqlx::{Connection, PgConnection};

use crate::{
    id, order, place, read,
    support::{Proxy, Service, Signal, World, eventually, ms, s},
};

async fn orders(world: &World) -> i64 {
    world.database.one("SELECT count(*) FROM orders").await
}

/// Both a read and a write are answered 503 with `Retry-After`, and in time.
async fn says_503(service: &Service, id: &str) {
    for _ in 0..3 {
        let asked = Instant::now();
        let read = service.get(&format!("/v1/orders/{id}")).await;
        let written = place(service, "SKU-1", 1, None).await;
        for reply in [read, written] {
            assert_eq!(reply.status, 503, "{reply:?}");
            assert!(reply.header("retry-after").parse::<u32>().is_ok(), "{reply:?}");
            reply.problem();
        }
        assert!(asked.elapsed() < s(6), "{:?}", asked.elapsed());
    }
}

#[tokio::test]
async fn while_the_database_refuses_it_is_503_and_then_all_is_well() {
    let world = World::new().await;
    let proxy = Proxy::before(world.database.address());
    let launch = world.service().set("database.url", world.database.url_at(proxy.address));
    let service = launch.set("readiness.failures", 1000).ready().await;
    let id = id(&order(&service, "SKU-1", 1).await);
    proxy.refuse();
    says_503(&service, &id).await;
    proxy.pass();
    eventually("it serves again", s(5), async || service.get(&format!("/v1/orders/{id}")).await.status == 200).await;
    assert_eq!(orders(&world).await, 1);
}

#[tokio::test]
async fn while_the_database_resets_it_is_503() {
    let world = World::new().await;
    let proxy = Proxy::before(world.database.address());
    let launch = world.service().set("database.url", world.database.url_at(proxy.address));
    let service = launch.set("readiness.failures", 1000).ready().await;
    let id = id(&order(&service, "SKU-1", 1).await);
    proxy.reset();
    says_503(&service, &id).await;
}

#[tokio::test]
async fn an_exhausted_pool_is_503_within_the_time_to_get_a_connection() {
    let world = World::new().await;
    let launch = world.service().set("database.max_connections", 1).set("database.acquire_timeout", "500ms");
    let service = launch.set("worker.poll_interval", "1h").ready().await;
    let id = id(&order(&service, "SKU-1", 1).await);
    let mut blocker = PgConnection::connect(&world.database.url()).await.expect("the database answers");
    let lock = "BEGIN; LOCK TABLE orders IN ACCESS EXCLUSIVE MODE";
    sqlx::raw_sql(lock).execute(&mut blocker).await.expect("the table is there");

    let path = format!("/v1/orders/{id}");
    let stuck = service.get(&path);
    let shed = async {
        let waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'orders'::regclass";
        eventually("a query waits", s(5), async || world.database.one::<i64>(waits).await > 0).await;
        let asked = Instant::now();
        let reply = service.get(&path).await;
        assert_eq!(reply.status, 503, "{reply:?}");
        assert_eq!(reply.header("retry-after").parse::<u32>().map(|seconds| seconds > 0), Ok(true));
        assert!(asked.elapsed() < ms(1500), "{:?}", asked.elapsed());
        assert_eq!(service.probe("/readyz").await.status, 200, "the check has a connection of its own");
        blocker.close().await.expect("it closes");
    };
    let (stuck, ()) = tokio::join!(stuck, shed);
    // The worker and the feed may have had the connection instead.
    assert!(matches!(stuck.status, 200 | 503), "{stuck:?}");
    eventually("it serves", s(2), async || service.get(&path).await.status == 200).await;
}

#[tokio::test]
async fn a_statement_that_takes_too_long_is_503_and_ends() {
    let world = World::new().await;
    let launch = world.service().set("database.max_connections", 1).set("database.statement_timeout", "300ms");
    let service = launch.set("worker.poll_interval", "1h").ready().await;
    let id = id(&order(&service, "SKU-1", 1).await);
    let mut blocker = PgConnection::connect(&world.database.url()).await.expect("the database answers");
    let lock = "BEGIN; LOCK TABLE orders IN ACCESS EXCLUSIVE MODE";
    sqlx::raw_sql(lock).execute(&mut blocker).await.expect("the table is there");
    for _ in 0..3 {
        let reply = service.get(&format!("/v1/orders/{id}")).await;
        assert_eq!(reply.status, 503, "{reply:?}");
    }
    blocker.close().await.expect("it closes");
    eventually("it serves", s(2), async || service.get(&format!("/v1/orders/{id}")).await.status == 200).await;
}

#[tokio::test]
async fn while_the_catalog_is_down_it_is_503_and_nothing_is_written() {
    let world = World::new().await;
    let service = world.serve().await;
    world.catalog().kill().await;
    let asked = Instant::now();
    let reply = place(&service, "SKU-1", 1, None).await;
    assert_eq!(reply.status, 503, "{reply:?}");
    assert!(reply.header("retry-after").parse::<u32>().is_ok(), "{reply:?}");
    reply.problem();
    assert!(asked.elapsed() < s(3), "{:?}", asked.elapsed());
    assert_eq!(orders(&world).await, 0);
}

#[tokio::test]
async fn a_slow_catalog_is_504_in_time_and_nothing_is_written() {
    let world = World::new().await;
    let service = world.service().set("catalog.timeout", "1s").ready().await;
    let asked = Instant::now();
    let reply = place(&service, "SLOW-20000", 1, None).await;
    assert_eq!(reply.status, 504, "{reply:?}");
    reply.problem();
    assert!(asked.elapsed() < s(2), "{:?}", asked.elapsed());
    assert_eq!(orders(&world).await, 0);
}

#[tokio::test]
async fn a_frozen_catalog_is_504_within_its_timeout() {
    let world = World::new().await;
    let service = world.service().set("catalog.timeout", "1s").ready().await;
    world.catalog().signal(Signal::STOP);
    let asked = Instant::now();
    let reply = place(&service, "SKU-1", 1, None).await;
    assert_eq!(reply.status, 504, "{reply:?}");
    assert!(asked.elapsed() < s(2), "{:?}", asked.elapsed());
    world.catalog().signal(Signal::CONT);
    eventually("it takes orders again", s(5), async || place(&service, "SKU-1", 1, None).await.status == 201).await;
}

#[tokio::test]
async fn what_the_catalog_says_is_told_apart() {
    let world = World::new().await;
    let service = world.serve().await;
    for (sku, status) in [
        ("FAIL-UNAVAILABLE", 503),
        ("FAIL-RESOURCE_EXHAUSTED", 503),
        ("FAIL-DEADLINE_EXCEEDED", 504),
        ("FAIL-NOT_FOUND", 422),
    ] {
        let reply = place(&service, sku, 1, None).await;
        assert_eq!(reply.status, status, "{sku}: {reply:?}");
        assert!(!reply.text().contains("as the sku says"), "its words are not for our callers: {reply:?}");
    }
    // more often than would open the breaker, were it the catalog's absence
    for _ in 0..12 {
        let broken = place(&service, "FAIL-INTERNAL", 1, None).await;
        assert_eq!(broken.status, 502, "it is not this service that is broken: {broken:?}");
    }
    assert_eq!(orders(&world).await, 0);
    assert_eq!(place(&service, "SKU-1", 1, None).await.status, 201, "what it refuses to one is not kept from another");
}

#[tokio::test]
async fn reads_go_on_while_the_catalog_is_down() {
    let world = World::new().await;
    let service = world.serve().await;
    let placed = order(&service, "SKU-1", 1).await;
    world.catalog().kill().await;
    assert_eq!(read(&service, &id(&placed)).await["id"], placed["id"]);
    assert_eq!(service.get("/v1/orders").await.status, 200);
    assert_eq!(service.post("/v1/orders", &json!({ "sku": "SKU-1", "quantity": 0 })).await.status, 422);
}
