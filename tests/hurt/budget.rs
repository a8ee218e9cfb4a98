//! `http.max_buffered`, the bytes that all requests together hold; and what is held beside them.

use serde_json::json;

use crate::{
    CHEAP, MIB, count, http2, is_unharmed, memory, post, serves,
    support::{
        Raw, Service, World, eventually,
        http2::{END_HEADERS, END_STREAM, INITIAL_WINDOW_SIZE, frame, get_head, kind},
        os, s,
    },
};

/// It may hold a megabyte.
async fn small(world: &World) -> Service {
    world.service().set("http.max_buffered", "1MiB").set("http.request_timeout", "20s").ready().await
}

async fn order_status(service: &Service) -> u16 {
    service.post("/v1/orders", &json!({ "sku": "SKU-1", "quantity": 1 })).await.status
}

/// A GET whose head is of 50 KB.
fn large_get() -> String {
    format!("GET {CHEAP} HTTP/1.1\r\nhost: test\r\nx: {}\r\n\r\n", "y".repeat(50_000))
}

#[tokio::test]
async fn over_max_buffered_it_is_503_and_then_well_again() {
    let world = World::new().await;
    let service = small(&world).await;
    let mut stalled = Vec::new();
    for _ in 0..24 {
        let mut raw = Raw::connect(service.http().await).await;
        raw.write(post("content-length: 65000") + &" ".repeat(60_000)).await;
        stalled.push(raw);
    }
    let mut raw = Raw::connect(service.http().await).await;
    let full = async || count(&service, "http_server_shed_total", &[("reason", "max_buffered")]).await >= 1.0;
    eventually("a body finds no room", s(5), full).await;
    let held = count(&service, "http_server_buffered_bytes", &[]).await;
    assert!(held <= MIB as f64, "{held} bytes");
    raw.write(post("content-length: 65000") + &" ".repeat(65_000)).await;
    let reply = raw.reply().await;
    assert_eq!((reply.status, reply.header("retry-after")), (503, "1"));
    reply.problem();
    serves(&service).await;
    drop(stalled);
    eventually("it takes orders again", s(8), async || order_status(&service).await == 201).await;
    let held = async || count(&service, "http_server_buffered_bytes", &[]).await == 0.0;
    eventually("nothing is held", s(8), held).await;
}

#[tokio::test]
async fn large_heads_one_after_the_other_are_not_added_up() {
    let world = World::new().await;
    let service = small(&world).await;
    let mut raw = Raw::connect(service.http().await).await;
    for _ in 0..40 {
        raw.write(large_get()).await;
        assert_eq!(raw.reply().await.status, 200);
    }
    assert_eq!(order_status(&service).await, 201);
}

#[tokio::test]
async fn large_heads_of_the_past_keep_nobody_out() {
    let world = World::new().await;
    let service = small(&world).await;
    let mut idle = Vec::new();
    for number in 0..40 {
        let mut raw = Raw::connect(service.http().await).await;
        raw.write(large_get()).await;
        assert_eq!(raw.reply().await.status, 200, "{number}");
        idle.push(raw);
    }
    assert_eq!(order_status(&service).await, 201);
}

#[tokio::test]
async fn half_heads_at_their_largest_are_503_over_max_buffered() {
    let world = World::new().await;
    let service = small(&world).await;
    let before = memory(&service).await;
    let mut clients = Vec::new();
    for _ in 0..100 {
        let mut raw = Raw::connect(service.http().await).await;
        raw.write(large_get().trim_end()).await;
        clients.push(raw);
    }
    is_unharmed(&service, before, 16).await;
    let mut statuses: Vec<u16> = Vec::new();
    for raw in &mut clients {
        statuses.push(raw.reply().await.status);
    }
    statuses.sort_unstable();
    statuses.dedup();
    assert_eq!(statuses, [408, 503]);
}

#[tokio::test]
async fn http_2_bodies_that_do_not_come_are_bounded_in_memory() {
    let world = World::new().await;
    let service = world.serve().await;
    let mut connections = http2(&service, 20, &[]).await;
    for connection in &mut connections {
        for number in 0..200 {
            connection.post_head(2 * number + 1, "/v1/orders").await;
        }
    }
    serves(&service).await;
    let resident = os::resident(service.pid()) / MIB;
    println!("{resident} MiB");
    assert!(resident < 128, "{resident} MiB");
}

#[tokio::test]
async fn http_2_answers_that_are_not_taken_are_bounded_in_memory() {
    let world = World::new().await;
    let service = world.serve().await;
    for _ in 0..50 {
        assert_eq!(order_status(&service).await, 201);
    }
    let mut connections = http2(&service, 50, &[(INITIAL_WINDOW_SIZE, 0)]).await;
    let get = |stream| frame(kind::HEADERS, END_STREAM | END_HEADERS, stream, &get_head("/v1/orders?limit=50"));
    let requests: Vec<u8> = (0..200).flat_map(|number| get(2 * number + 1)).collect();
    for connection in &mut connections {
        connection.raw(&requests).await;
        let answered = connection.until(|frame| frame.kind == kind::HEADERS && frame.stream > 300).await;
        answered.expect("an answer's head");
    }
    serves(&service).await;
    let resident = os::resident(service.pid()) / MIB;
    println!("{resident} MiB");
    assert!(resident < 160, "{resident} MiB");
}
