//! After the delay: what is in flight on HTTP/1 finishes, however slow its client is.

use tokio::io::AsyncReadExt;

use crate::{
    CHEAP, Stage, drain, narrow, order, patient, post, slow,
    support::{End, Raw, Service, eventually, get, ms, s, send},
    under_way, world,
};

/// Waits until the listener is closed.
async fn no_longer_accepts(service: &Service) {
    eventually("it stops accepting", s(5), async || service.steps().len() >= 3).await;
}

/// A service whose drain has begun with this client on it, which has written so much.
async fn draining_with(stage: &Stage, written: &str) -> (Service, Raw) {
    let service = patient(stage).await;
    let mut raw = Raw::connect(service.http().await).await;
    raw.write(written).await;
    // Else the rest might be there before the first look.
    tokio::time::sleep(ms(50)).await;
    drain(&service).await;
    no_longer_accepts(&service).await;
    (service, raw)
}

#[tokio::test]
async fn a_slow_handler_finishes() {
    let stage = world().await;
    let service = patient(&stage).await;
    let mut raw = Raw::connect(service.http().await).await;
    raw.write(slow(1500)).await;
    under_way(&stage, 1500).await;
    drain(&service).await;
    let reply = raw.reply().await;
    assert_eq!((reply.status, reply.header("connection")), (201, "close"));
    assert_eq!(raw.ends().await, End::Clean);
    assert_eq!(service.exit(s(10)).await.code, Some(0));
}

#[tokio::test]
async fn a_slow_upload_finishes() {
    let stage = world().await;
    let request = order("SKU-1");
    let (first, rest) = request.split_at(request.len() - 12);
    let (service, mut raw) = draining_with(&stage, first).await;
    for byte in rest.as_bytes() {
        tokio::time::sleep(ms(50)).await;
        raw.write([*byte]).await;
    }
    assert_eq!(raw.reply().await.status, 201);
    assert_eq!(service.exit(s(10)).await.code, Some(0));
}

#[tokio::test]
async fn a_slow_upload_in_chunks_finishes() {
    let stage = world().await;
    let head = post("/v1/orders", "transfer-encoding: chunked");
    let (service, mut raw) = draining_with(&stage, &(head + "10\r\n{\"sku\":\"SKU-1\", \r\n")).await;
    for part in ["d\r\n\"qua", "ntity\":1}\r\n", "0\r\n", "\r\n"] {
        tokio::time::sleep(ms(100)).await;
        raw.write(part).await;
    }
    assert_eq!(raw.reply().await.status, 201);
    assert_eq!(service.exit(s(10)).await.code, Some(0));
}

#[tokio::test]
async fn a_slow_download_finishes_byte_for_byte() {
    const LARGE: &str = "/docs/swagger-ui-bundle.js";
    let stage = world().await;
    let service = stage.service().set("lifecycle.drain_http", "12s").ready().await;
    let whole = service.get(LARGE).await.body;
    assert!(whole.len() > 1_000_000, "more than sockets hold");
    let mut raw = narrow(service.http().await).await;
    raw.get(LARGE).await;
    raw.stream.readable().await.expect("it answers");
    drain(&service).await;
    no_longer_accepts(&service).await;
    let mut answer = Vec::new();
    while answer.len() < 100_000 {
        tokio::time::sleep(ms(5)).await;
        raw.stream.read_buf(&mut answer).await.expect("it goes on");
    }
    raw.stream.read_to_end(&mut answer).await.expect("it ends in order");
    assert!(answer.ends_with(&whole));
    assert_eq!(service.exit(s(10)).await.code, Some(0));
}

#[tokio::test]
async fn a_body_that_waits_for_100_continue_is_asked_for_and_taken() {
    let stage = world().await;
    let service = patient(&stage).await;
    let body = r#"{"sku":"SKU-1","quantity":1}"#;
    let mut raw = Raw::connect(service.http().await).await;
    raw.write(post("/v1/orders", &format!("expect: 100-continue\r\ncontent-length: {}", body.len()))).await;
    assert_eq!(raw.head().await.status, 100);
    drain(&service).await;
    no_longer_accepts(&service).await;
    raw.write(body).await;
    assert_eq!(raw.reply().await.status, 201);
    assert_eq!(service.exit(s(10)).await.code, Some(0));
}

#[tokio::test]
async fn pipelined_requests_are_all_answered_in_their_order() {
    let stage = world().await;
    let get = |sku| format!("GET /v1/products/SKU-{sku} HTTP/1.1\r\nhost: test\r\n\r\n");
    let requests = slow(1000) + &get(1) + &get(2) + &order("SKU-3") + &get(4);
    let (service, mut raw) = draining_with(&stage, &requests).await;
    let mut statuses = Vec::new();
    for _ in 0..5 {
        statuses.push(raw.reply().await.status);
    }
    assert_eq!(statuses, [201, 200, 200, 201, 200]);
    assert_eq!(raw.ends().await, End::Clean);
    assert_eq!(service.exit(s(10)).await.code, Some(0));
}

#[tokio::test]
async fn a_head_that_had_begun_to_arrive_is_awaited_and_its_request_answered() {
    let stage = world().await;
    let (service, mut raw) = draining_with(&stage, "GET /v1/products/SKU-1 HTTP/1.1\r\nho").await;
    raw.write("st: test\r\n\r\n").await;
    let reply = raw.reply().await;
    assert_eq!((reply.status, reply.header("connection")), (200, "close"));
    assert_eq!(service.exit(s(10)).await.code, Some(0));
}

#[tokio::test]
async fn requests_in_flight_on_many_connections_all_finish() {
    let stage = world().await;
    let service = patient(&stage).await;
    let address = service.http().await;
    let mut clients = Vec::new();
    for _ in 0..30 {
        let mut raw = Raw::connect(address).await;
        raw.write(slow(700)).await;
        clients.push(raw);
    }
    under_way(&stage, 700).await;
    drain(&service).await;
    for raw in &mut clients {
        assert_eq!(raw.reply().await.status, 201);
    }
    assert_eq!(service.exit(s(10)).await.code, Some(0));
    assert!(send(address, get(CHEAP)).await.is_err());
}
