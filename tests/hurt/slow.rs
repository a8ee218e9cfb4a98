//! Slow readers, and clients that send what nobody asked for: bounded in time, in memory and in what they keep from others.

use serde_json::json;
use tokio::io::AsyncReadExt;

use crate::{
    BIG, CHEAP, count, flood, is_unharmed, memory, ms, narrow, none_in_flight, post, s, serves,
    support::{Raw, Sse, World, eventually},
};

/// Takes a byte now and then, until the connection ends.
async fn sip(mut raw: Raw) {
    while let Ok(1) = raw.stream.read(&mut [0]).await {
        tokio::time::sleep(ms(50)).await;
    }
}

#[tokio::test]
async fn readers_of_a_byte_now_and_then_are_dropped() {
    let world = World::new().await;
    let service = world.service().set("http.max_in_flight", 2).set("http.request_timeout", "1s").ready().await;
    let before = memory(&service).await;
    let mut readers = Vec::new();
    for _ in 0..20 {
        let mut raw = narrow(service.http().await).await;
        for _ in 0..3 {
            raw.get(BIG).await;
        }
        readers.push(tokio::spawn(sip(raw)));
    }
    let dropped = async || count(&service, "http_server_timeouts_total", &[("bound", "write")]).await;
    eventually("all are dropped", s(10), async || {
        serves(&service).await;
        dropped().await >= 20.0
    })
    .await;
    is_unharmed(&service, before, 24).await;
    none_in_flight(&service, "http").await;
    readers.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn an_event_source_opens_when_every_place_is_taken() {
    let world = World::new().await;
    let service = world.service().set("http.max_in_flight", 1).set("catalog.timeout", "20s").ready().await;
    let mut raw = Raw::connect(service.http().await).await;
    let body = json!({ "sku": "SLOW-3000", "quantity": 1 }).to_string();
    raw.write(post(&format!("content-length: {}", body.len())) + &body).await;
    let asked = async || !world.catalog().calls("GetProduct", "sku", "SLOW-3000").is_empty();
    eventually("the catalog is asked", s(5), asked).await;
    assert_eq!(service.get(CHEAP).await.status, 503);
    let mut streams = Vec::new();
    for _ in 0..5 {
        streams.push(Sse::open(service.http().await, "/v1/orders/events", None).await);
    }
    assert_eq!(raw.reply().await.status, 201);
    for stream in &mut streams {
        stream.next().await.expect("an event");
    }
}

#[tokio::test]
async fn a_post_that_claims_to_be_a_stream_takes_a_place() {
    let world = World::new().await;
    let service = world.service().set("http.max_in_flight", 1).set("catalog.timeout", "20s").ready().await;
    let mut raw = Raw::connect(service.http().await).await;
    let body = json!({ "sku": "SLOW-2000", "quantity": 1 }).to_string();
    raw.write(post(&format!("accept: text/event-stream\r\ncontent-length: {}", body.len())) + &body).await;
    let asked = async || !world.catalog().calls("GetProduct", "sku", "SLOW-2000").is_empty();
    eventually("the catalog is asked", s(5), asked).await;
    assert_eq!(service.get(CHEAP).await.status, 503);
    assert_eq!(raw.reply().await.status, 201);
}

#[tokio::test]
async fn bytes_without_end_on_a_stream_of_events_cost_little() {
    let world = World::new().await;
    let service = world.service().set("http.request_timeout", "2s").ready().await;
    let before = memory(&service).await;
    let mut streams = Vec::new();
    for bytes in [&b"\r\n"[..], b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", b"\0"] {
        let mut raw = Raw::connect(service.http().await).await;
        raw.get("/v1/orders/events").await;
        assert_eq!(raw.head().await.status, 200);
        flood(&mut raw, &bytes.repeat(10_000), 1000).await;
        is_unharmed(&service, before, 16).await;
        streams.push(raw);
    }
    let order = service.post("/v1/orders", &json!({ "sku": "SKU-1", "quantity": 1 })).await.json();
    let id = order["id"].as_str().expect("an id");
    for raw in &mut streams {
        let mut text = String::new();
        while !text.contains(id) {
            text += &String::from_utf8_lossy(&raw.chunk().await);
        }
    }
    assert_eq!(service.stop().await.code, Some(0), "and they hold no stop up");
}
