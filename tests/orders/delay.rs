//! How soon a stream shows what has been committed.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use sqlx::{Connection, PgConnection};
use tokio::time::{MissedTickBehavior, interval};

use crate::support::{Sse, World, eventually, ms, s};

const EVENTS: usize = 300;

/// The catalog is not asked, so that nothing but the feed is measured: the orders are somebody else's.
const PLACE: &str = "WITH placed AS (
        INSERT INTO orders (id, sku, quantity, total_cents, next_attempt_at)
        VALUES (gen_random_uuid(), 'SKU-1', 1, 100, now() + interval '30 seconds') RETURNING id, status
    ), event AS (INSERT INTO order_outbox (order_id, status) SELECT id, status FROM placed)
    SELECT id::text FROM placed";

/// When a stream showed which order.
type Seen = Arc<Mutex<HashMap<String, Instant>>>;

async fn follow(mut stream: Sse, seen: Seen) {
    while let Some(event) = stream.next().await {
        let order = event.json()["id"].as_str().expect("an order has an id").to_owned();
        seen.lock().expect("no holder panics").entry(order).or_insert_with(Instant::now);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_reach_every_stream_within_100_ms_at_p99() {
    let world = World::new().await;
    let (one, two) = tokio::join!(world.serve(), world.serve());
    let mut seen = Vec::new();
    for service in [&one, &two] {
        let stream = Sse::open(service.http().await, "/v1/orders/events", None).await;
        seen.push(Seen::default());
        tokio::spawn(follow(stream, Arc::clone(&seen[seen.len() - 1])));
    }
    let mut writer = PgConnection::connect(&world.database.url()).await.expect("it answers");
    let mut ticks = interval(ms(20));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut committed = Vec::new();
    for _ in 0..EVENTS {
        ticks.tick().await;
        let id: String = sqlx::query_scalar(PLACE).fetch_one(&mut writer).await.expect("it is SQL");
        committed.push((id, Instant::now()));
    }
    for seen in seen {
        let all = async || seen.lock().expect("no holder panics").len() >= EVENTS;
        eventually("every event is seen", s(10), all).await;
        let seen = seen.lock().expect("no holder panics");
        let mut delays: Vec<Duration> =
            committed.iter().map(|(id, at)| seen[id].saturating_duration_since(*at)).collect();
        delays.sort();
        let p99 = delays[EVENTS * 99 / 100];
        println!("{EVENTS} events: p50 {:?}, p99 {p99:?}, all within {:?}", delays[EVENTS / 2], delays[EVENTS - 1]);
        assert!(p99 < ms(100), "{p99:?}");
    }
}
