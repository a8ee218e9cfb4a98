//! The worker on bad days: many replicas, crashes, poison and clocks.

use std::{sync::Arc, time::Instant};

use futures_util::future::join_all;

use crate::{
    all_settled, becomes, order,
    support::{Service, Signal, Sse, World, eventually, ms, s},
};

#[tokio::test]
async fn ten_replicas_share_one_table_and_double_nothing() {
    let world = World::new().await;
    let launch = || world.service().set("database.max_connections", 2).set("worker.concurrency", 2);
    // ten processes on one machine
    let launch = || launch().set("catalog.timeout", "5s").set("database.acquire_timeout", "5s");
    let replicas = join_all((0..10).map(|_| launch().ready())).await;
    let mut placed = Vec::new();
    for number in 0..100 {
        placed.push(order(&replicas[number % 10], "SLOW-RESERVE-20").await);
    }
    all_settled(&world).await;
    let twice: Vec<_> = placed.iter().filter(|id| world.catalog().reserved(id) != 1).collect();
    assert!(twice.is_empty(), "asked for more than once: {twice:?}");
    let mut workers = 0;
    for replica in &replicas {
        workers += usize::from(replica.metrics().await.iter().any(|sample| sample.is("worker_jobs_total", &[])));
    }
    assert!(workers >= 5, "{workers} of ten have worked");
}

#[tokio::test]
async fn crashes_one_after_another_leave_every_order_settled_once() {
    let world = World::new().await;
    // four jobs hold a connection each
    let launch = || world.service().set("catalog.timeout", "5s").set("database.max_connections", 8).ready();
    for round in 0..4 {
        let crashing = launch().await;
        join_all((0..8).map(|_| order(&crashing, "SLOW-RESERVE-3000"))).await;
        let running = async || crashing.metric("in_flight", &[("kind", "job")]).await > Some(0.0);
        eventually("it is in the middle of a job", s(10), running).await;
        tokio::time::sleep(ms(17) * round).await;
        crashing.kill().await;
    }
    let _survivor = launch().await;
    all_settled(&world).await;
}

#[tokio::test]
async fn a_job_may_take_as_long_as_the_catalog_may() {
    let world = World::new().await;
    let service = world.service().set("catalog.timeout", "20s").ready().await;
    // past the 10 s after which the database ends a transaction in which nothing happens
    let id = order(&service, "SLOW-RESERVE-11000").await;
    becomes(&service, &id, "confirmed").await;
    assert_eq!(world.catalog().reserved(&id), 1);
}

#[tokio::test]
async fn poison_blocks_no_other_job() {
    let world = World::new().await;
    let service = world.service().set("worker.concurrency", 1).ready().await;
    // more than fit into the worker, and all due again and again
    for _ in 0..12 {
        order(&service, "FAIL-RESERVE-INVALID_ARGUMENT").await;
    }
    let asked = Instant::now();
    let good = order(&service, "SKU-1").await;
    becomes(&service, &good, "confirmed").await;
    assert!(asked.elapsed() < s(15), "{:?}", asked.elapsed());
}

#[tokio::test]
async fn a_clock_that_is_set_back_leaves_no_order_waiting() {
    let world = World::new().await;
    let service = world.serve().await;
    let id = order(&service, "FAIL-RESERVE-UNAVAILABLE-1000").await;
    eventually("it is tried", s(10), async || world.catalog().reserved(&id) > 1).await;
    // as if it had been postponed by a clock a year ahead; and mended meanwhile
    let jump = "UPDATE orders SET next_attempt_at = now() + interval '1 year', sku = 'SKU-1'";
    let old = async || {
        world.database.execute(jump).await;
        world.database.one::<bool>("SELECT bool_and(sku = 'SKU-1') FROM orders").await
    };
    eventually("the clock jumps", s(5), old).await;
    becomes(&service, &id, "confirmed").await;
    // and one far behind
    let id = order(&service, "SLOW-RESERVE-700").await;
    world.database.execute("UPDATE orders SET next_attempt_at = '1970-01-01' WHERE status = 'pending'").await;
    becomes(&service, &id, "confirmed").await;
    all_settled(&world).await;
}

/// Places orders one after the other for so long, and returns how long each took, the quickest first.
async fn times(service: &Service, clients: usize, during: std::time::Duration) -> Vec<std::time::Duration> {
    let client = async || {
        let (began, mut times) = (Instant::now(), Vec::new());
        while began.elapsed() < during {
            let asked = Instant::now();
            order(service, "SKU-1").await;
            times.push(asked.elapsed());
        }
        times
    };
    let mut times = join_all((0..clients).map(|_| client())).await.concat();
    times.sort();
    times
}

#[tokio::test]
async fn a_frozen_replica_makes_no_answer_of_another_late() {
    let world = World::new().await;
    let launch = || world.service().set("database.max_connections", 8).ready();
    let (frozen, healthy) = tokio::join!(launch(), launch());
    let frozen = Arc::new(frozen);
    let mut events = Sse::open(healthy.http().await, "/v1/orders/events", None).await;
    for _ in 0..3 {
        // so many that it is most likely frozen in the middle of a write
        let busy = Arc::clone(&frozen);
        let load = tokio::spawn(async move { while crate::place(&busy, "SKU-1").await.status == 201 {} });
        times(&healthy, 2, ms(300)).await;
        frozen.signal(Signal::STOP);
        let times = times(&healthy, 2, s(3)).await;
        let p99 = times[times.len() * 99 / 100];
        println!("{} orders beside a frozen replica, p99 {p99:?}, slowest {:?}", times.len(), times.last());
        assert!(p99 < ms(500), "{p99:?}");
        let asked = Instant::now();
        let mark = order(&healthy, "SKU-2").await;
        events.until(|event| event.json()["id"] == mark.as_str()).await;
        assert!(asked.elapsed() < ms(500), "events are late too: {:?}", asked.elapsed());
        load.abort();
        frozen.signal(Signal::CONT);
    }
    all_settled(&world).await;
}

#[tokio::test]
async fn a_frozen_replicas_jobs_are_soon_anothers() {
    let world = World::new().await;
    let frozen = world.service().set("catalog.timeout", "30s").ready().await;
    let id = order(&frozen, "SLOW-RESERVE-20000").await;
    eventually("it is being reserved", s(10), async || world.catalog().reserved(&id) == 1).await;
    frozen.signal(Signal::STOP);
    let other = world.service().ready().await;
    let asked = Instant::now();
    becomes(&other, &id, "confirmed").await;
    assert!(asked.elapsed() < s(8), "{:?}", asked.elapsed());
    frozen.signal(Signal::CONT);
    all_settled(&world).await;
}
