//! Server-Sent Events at the stop: the last event whole, a clean end of stream, and nothing missed or doubled after it.

use std::collections::BTreeMap;

use serde_json::json;
use tokio::sync::Notify;

use crate::{
    drain, order,
    support::{
        Connection, End, Event, Raw, Service, Sse, bounded,
        http2::{Frame, Http2, kind},
        ms, s,
    },
    world,
};

const EVENTS: &str = "/v1/orders/events";

/// Places orders, one after the other, until the service is gone.
async fn place_orders(service: &Service) -> usize {
    let order = json!({ "sku": "SKU-1", "quantity": 1 });
    let mut placed = 0;
    while let Ok(reply) = service.try_send(crate::support::post("/v1/orders", &order)).await {
        placed += usize::from(reply.status == 201);
    }
    placed
}

/// Begins the stop when an order has been told.
async fn drain_when(service: &Service, told: &Notify) {
    bounded("an order is told", s(10), told.notified()).await;
    drain(service).await;
}

#[tokio::test]
async fn on_http_1_the_last_event_is_whole_and_the_last_chunk_is_sent() {
    let stage = world().await;
    let service = stage.serve().await;
    let mut raw = Raw::connect(service.http().await).await;
    raw.write(format!("GET {EVENTS} HTTP/1.1\r\nhost: test\r\nlast-event-id: 0\r\n\r\n")).await;
    assert_eq!(raw.head().await.status, 200);
    let told = Notify::new();
    let reading = async {
        let mut text = Vec::new();
        loop {
            match raw.chunk().await {
                chunk if chunk.is_empty() => break text,
                chunk => text.extend(chunk),
            }
            if text.ends_with(b"}\n\n") {
                told.notify_one();
            }
        }
    };
    let (text, placed, ()) = tokio::join!(reading, place_orders(&service), drain_when(&service, &told));
    let text = String::from_utf8(text).expect("it is text");
    assert!(text.ends_with("}\n\n") && placed > 0, "after {placed} orders: {text}");
    assert_eq!(raw.ends().await, End::Clean);
    assert_eq!(service.exit(s(10)).await.code, Some(0));
}

#[tokio::test]
async fn on_http_2_the_last_event_is_whole_and_the_stream_is_ended() {
    let stage = world().await;
    let service = stage.serve().await;
    let mut connection = Http2::connect(service.http().await, &[]).await;
    connection.get(1, EVENTS).await;
    connection.until(|frame| frame.kind == kind::HEADERS).await.expect("an answer");
    let told = Notify::new();
    let reading = async {
        let is_event = |frame: &Frame| frame.kind == kind::DATA && frame.payload.ends_with(b"}\n\n");
        let mut frames = vec![connection.until(is_event).await.expect("an event")];
        told.notify_one();
        let (rest, end) = connection.rest().await;
        frames.extend(rest);
        (frames, end)
    };
    let ((frames, end), placed, ()) = tokio::join!(reading, place_orders(&service), drain_when(&service, &told));
    let data: Vec<_> = frames.iter().filter(|frame| frame.kind == kind::DATA).collect();
    assert!(data.last().is_some_and(|frame| frame.ends_stream()), "{frames:?}");
    let text: Vec<u8> = data.iter().flat_map(|frame| frame.payload.clone()).collect();
    assert!(text.ends_with(b"}\n\n") && placed > 0, "after {placed} orders: {text:?}");
    assert!(!frames.iter().any(|frame: &Frame| frame.kind == kind::RST_STREAM));
    assert_eq!(end, End::Clean);
    assert_eq!(service.exit(s(10)).await.code, Some(0));
}

#[tokio::test]
async fn clients_are_told_to_come_back_at_once() {
    let stage = world().await;
    let service = stage.serve().await;
    let mut events = Sse::open(service.http().await, EVENTS, None).await;
    service.signal(crate::support::Signal::TERM);
    assert_eq!(events.next().await, None);
    assert!(events.retry.is_some_and(|retry| (100..500).contains(&retry)), "milliseconds: {:?}", events.retry);
}

#[tokio::test]
async fn a_stream_opened_during_the_delay_ends_as_well() {
    let stage = world().await;
    let service = stage.service().set("lifecycle.drain_delay", "2s").ready().await;
    drain(&service).await;
    let mut events = Sse::open(service.http().await, EVENTS, None).await;
    assert_eq!(events.next().await, None);
    assert_eq!(service.exit(s(10)).await.code, Some(0));
    assert!(service.step("drain_http").took < ms(1400));
}

#[tokio::test]
async fn who_comes_back_to_another_replica_misses_nothing_and_gets_nothing_twice() {
    let stage = world().await;
    let (first, second) = tokio::join!(stage.serve(), stage.serve());
    let mut seen = Vec::new();
    let placing = async {
        let order = json!({ "sku": "SKU-1", "quantity": 1 });
        for _ in 0..40 {
            assert_eq!(second.post("/v1/orders", &order).await.status, 201);
        }
    };
    let reading = async {
        let mut events = Sse::open(first.http().await, EVENTS, Some("0")).await;
        seen.extend(events.next().await);
        first.signal(crate::support::Signal::TERM);
        while let Some(event) = events.next().await {
            seen.push(event);
        }
        let last = seen.last().map(|event| event.id.clone());
        let mut events = Sse::open(second.http().await, EVENTS, last.as_deref()).await;
        while seen.len() < 80 {
            seen.push(events.next().await.expect("it goes on"));
        }
    };
    tokio::join!(placing, reading);
    let ids: Vec<u64> = seen.iter().map(|event| event.id.parse().expect("a number")).collect();
    assert!(ids.is_sorted_by(|one, next| one < next), "{ids:?}");
    assert_eq!(told_of_each(&seen), vec![["pending", "confirmed"]; 40]);
}

/// What was told of each order.
fn told_of_each(events: &[Event]) -> Vec<Vec<&str>> {
    let mut orders = BTreeMap::<String, Vec<&str>>::new();
    for event in events {
        orders.entry(event.json()["id"].to_string()).or_default().push(&event.event);
    }
    orders.into_values().collect()
}

#[tokio::test]
async fn a_reader_on_a_connection_that_is_used_again_is_not_cut_short() {
    let stage = world().await;
    let service = stage.service().set("lifecycle.drain_delay", "3s").ready().await;
    let mut connection = Connection::h1(service.http().await).await.expect("it accepts");
    connection.send(crate::support::get(crate::CHEAP)).await.expect("an answer");
    let mut events = Sse::open_on(connection, EVENTS, None).await;
    drain(&service).await;
    let mut raw = Raw::connect(service.http().await).await;
    raw.write(order("SKU-1")).await;
    assert_eq!(raw.reply().await.status, 201);
    assert_eq!(events.next().await.map(|event| event.event).as_deref(), Some("pending"));
    while events.next().await.is_some() {}
    assert_eq!(service.exit(s(10)).await.code, Some(0));
}

/// Puts so many events into the table, as if they had happened before.
pub(crate) async fn write_events(stage: &crate::Stage, events: i32) {
    let sql = "WITH made AS (INSERT INTO orders (id, sku, quantity, total_cents, status)
                 SELECT gen_random_uuid(), 'SKU-1', 1, 1, 'confirmed' FROM generate_series(1, $1) RETURNING id)
               INSERT INTO order_events (order_id, status) SELECT id, 'confirmed' FROM made";
    sqlx::query(sql).bind(events).execute(stage.database.pool()).await.expect("they are written");
}
