//! The worker: every order ends, and ends once.

use std::{sync::Arc, time::Instant};

use crate::{
    becomes, history, id, order, read,
    support::{Catalog, World, always, eventually, ms, s},
    told,
};

#[tokio::test]
async fn replicas_share_the_work_and_do_none_of_it_twice() {
    let world = World::new().await;
    let (one, two) = tokio::join!(world.serve(), world.serve());
    let services = [Arc::new(one), Arc::new(two)];
    let mut placed = Vec::new();
    for number in 0..40 {
        placed.push(id(&order(&services[number % 2], "SLOW-RESERVE-20", 1).await));
    }
    for id in &placed {
        becomes(&services[0], id, "confirmed").await;
        assert_eq!(world.catalog().reserved(id), 1);
    }
    let events = history(&services[1]).await;
    for id in &placed {
        assert_eq!(told(&events, id), ["pending", "confirmed"]);
    }
    for service in &services {
        let done = service.metrics().await.into_iter().filter(|sample| sample.is("worker_jobs_total", &[]));
        assert!(done.map(|sample| sample.value).sum::<f64>() > 0.0, "each has done some");
    }
}

#[tokio::test]
async fn jobs_run_at_once() {
    let world = World::new().await;
    let service = world.service().set("worker.concurrency", 3).set("catalog.timeout", "20s").ready().await;
    for _ in 0..3 {
        order(&service, "SLOW-RESERVE-10000", 1).await;
    }
    let running = async || service.metric("in_flight", &[("kind", "job")]).await == Some(3.0);
    eventually("three at once", s(5), running).await;
}

#[tokio::test]
async fn jobs_that_wait_for_the_catalog_leave_requests_a_connection() {
    let world = World::new().await;
    let launch = world.service().set("database.max_connections", 2).set("worker.concurrency", 4);
    let service = launch.set("catalog.timeout", "5s").set("database.acquire_timeout", "500ms").ready().await;
    for _ in 0..4 {
        let id = id(&order(&service, "SLOW-RESERVE-4000", 1).await);
        assert_eq!(read(&service, &id).await["status"], "pending");
    }
}

#[tokio::test]
async fn an_order_waits_for_the_catalog_to_be_confirmed() {
    let world = World::new().await;
    let service = world.service().set("readiness.catalog", "advisory").ready().await;
    let id = id(&order(&service, "FAIL-RESERVE-UNAVAILABLE", 1).await);
    eventually("it is tried more than once", s(10), async || world.catalog().reserved(&id) > 1).await;
    assert_eq!(read(&service, &id).await["status"], "pending");
}

#[tokio::test]
async fn a_job_that_fails_is_tried_again_until_it_works() {
    let world = World::new().await;
    let service = world.serve().await;
    let id = id(&order(&service, "FAIL-RESERVE-UNAVAILABLE-3", 1).await);
    becomes(&service, &id, "confirmed").await;
    assert_eq!(told(&history(&service).await, &id), ["pending", "confirmed"]);
}

#[tokio::test]
async fn a_job_whose_answer_came_too_late_is_not_reserved_twice() {
    let world = World::new().await;
    let service = world.service().set("catalog.timeout", "1s").ready().await;
    let id = id(&order(&service, "SLOW-RESERVE-3000", 1).await);
    becomes(&service, &id, "confirmed").await;
    assert!(world.catalog().reserved(&id) > 1, "it was asked again, for the same order");
    assert_eq!(told(&history(&service).await, &id), ["pending", "confirmed"]);
}

#[tokio::test]
async fn a_job_that_never_works_blocks_no_other() {
    let world = World::new().await;
    let service = world.service().set("worker.concurrency", 1).ready().await;
    let poison = id(&order(&service, "FAIL-RESERVE-INTERNAL", 1).await);
    eventually("it fails", s(10), async || world.catalog().reserved(&poison) > 0).await;
    for _ in 0..5 {
        let other = id(&order(&service, "SKU-1", 1).await);
        becomes(&service, &other, "confirmed").await;
    }
}

#[tokio::test]
async fn orders_of_when_the_catalog_is_away_are_done_afterwards() {
    let world = World::new().await;
    let service = world.service().set("worker.poll_interval", "3s").ready().await;
    let address = world.catalog().address.to_string();
    let id = id(&order(&service, "SLOW-RESERVE-2000", 1).await);
    eventually("it is being reserved", s(10), async || world.catalog().reserved(&id) == 1).await;
    world.catalog().kill().await;
    always("it is pending", ms(300), async || read(&service, &id).await["status"] == "pending").await;
    let back = Catalog::start_at(&address).await;
    becomes(&service, &id, "confirmed").await;
    assert!(back.reserved(&id) >= 1);
    assert_eq!(told(&history(&service).await, &id), ["pending", "confirmed"]);
}

#[tokio::test]
async fn odd_text_from_the_catalog_is_made_fit() {
    let world = World::new().await;
    let service = world.service().set("worker.concurrency", 1).ready().await;
    let odd = id(&order(&service, "ODD-1", 1).await);
    let behind = id(&order(&service, "SKU-1", 1).await);
    becomes(&service, &odd, "rejected").await;
    becomes(&service, &behind, "confirmed").await;
    let reason: String = world.database.one("SELECT reason FROM orders WHERE sku = 'ODD-1'").await;
    assert!(reason.starts_with("outof stock!!") && reason.len() == 500, "{reason}");
}

#[tokio::test]
async fn an_order_that_cannot_be_settled_waits_alone() {
    let world = World::new().await;
    world.database.execute("ALTER TABLE orders ADD CHECK (sku <> 'SKU-13' OR status = 'pending')").await;
    let service = world.service().set("worker.concurrency", 1).ready().await;
    let poison = id(&order(&service, "SKU-13", 1).await);
    for _ in 0..5 {
        let other = id(&order(&service, "SKU-1", 1).await);
        becomes(&service, &other, "confirmed").await;
    }
    let failed = async || service.metric("worker_jobs_total", &[("outcome", "failed")]).await >= Some(2.0);
    eventually("it is tried again, and counted", s(10), failed).await;
    assert_eq!(read(&service, &poison).await["status"], "pending");
    let tries: i32 = world.database.one("SELECT attempts FROM orders WHERE sku = 'SKU-13'").await;
    assert!((2..8).contains(&tries), "with a pause that grows: {tries}");
}

#[tokio::test]
async fn a_running_job_holds_no_lock_and_no_transaction() {
    let world = World::new().await;
    let service = world.service().set("catalog.timeout", "20s").ready().await;
    let id = id(&order(&service, "SLOW-RESERVE-3000", 1).await);
    eventually("it is being reserved", s(10), async || world.catalog().reserved(&id) == 1).await;
    let open = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in%'";
    assert_eq!(world.database.one::<i64>(open).await, 0);
    world.database.execute("SET lock_timeout = '100ms'; UPDATE orders SET reason = 'touched'").await;
    becomes(&service, &id, "confirmed").await;
}

#[tokio::test]
async fn a_backlog_of_200_000_keeps_no_new_order_waiting() {
    let world = World::new().await;
    world
        .database
        .execute(
            "INSERT INTO orders (id, sku, quantity, total_cents, created_at, next_attempt_at)
             SELECT gen_random_uuid(), 'SKU-1', 1, 100, now() - interval '1 hour', now() - interval '1 hour'
             FROM generate_series(1, 200000)",
        )
        .await;
    let service = world.serve().await;
    let settled = async || {
        let settled = service.metric("worker_jobs_total", &[("outcome", "confirmed")]).await.unwrap_or_default();
        Some(settled).filter(|settled| *settled > 0.0)
    };
    let before = eventually("the backlog is worked on", s(10), settled).await;
    let began = Instant::now();
    for _ in 0..5 {
        let asked = Instant::now();
        let new = id(&order(&service, "SKU-2", 1).await);
        becomes(&service, &new, "confirmed").await;
        assert!(asked.elapsed() < s(3), "{:?}", asked.elapsed());
    }
    let enough = async || settled().await > Some(before + 200.0);
    eventually("and the old ones get their turn", s(20), enough).await;
    let rate = (settled().await.unwrap_or_default() - before) / began.elapsed().as_secs_f64();
    println!("{rate:.0} orders/s from a backlog of 200,000");
}
