//! After the delay: what is in flight on HTTP/1 finishes, however slow its client is.

use tokio::io::AsyncReadExt;

use super::{
    CHEAP, drain, echo, patient, post, slow,
    support::{End, Raw, Service, World, eventually, get, ms, narrow, s, send},
    under_way,
};

/// Waits until the listener is closed.
async fn no_longer_accepts(service: &Service) {
    eventually("it stops accepting", s(5), async || service.steps().len() >= 3).await;
}

/// A service whose drain has begun with this client on it, which has written so much.
async fn draining_with(world: &World, written: &str) -> (Service, Raw) {
    let service = patient(world).await;
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
    let world = World::new().await;
    let service = patient(&world).await;
    let mut raw = Raw::connect(service.http().await).await;
    raw.write(slow(1500)).await;
    under_way(&service, 1500).await;
    drain(&service).await;
    let reply = raw.reply().await;
    assert_eq!((reply.status, reply.header("connection")), (201, "close"));
    assert_eq!(raw.ends().await, End::Clean);
    assert_eq!(service.exit(s(10)).await.code, Some(0));
}

#[tokio::test]
async fn a_slow_upload_finishes() {
    let world = World::new().await;
    let request = echo();
    let (first, rest) = request.split_at(request.len() - 12);
    let (service, mut raw) = draining_with(&world, first).await;
    for byte in rest.as_bytes() {
        tokio::time::sleep(ms(50)).await;
        raw.write([*byte]).await;
    }
    assert_eq!(raw.reply().await.status, 201);
    assert_eq!(service.exit(s(10)).await.code, Some(0));
}

#[tokio::test]
async fn a_slow_upload_in_chunks_finishes() {
    let world = World::new().await;
    let head = post("/echo", "transfer-encoding: chunked");
    let (service, mut raw) = draining_with(&world, &(head + "10\r\n{\"text\": \"hello\"\r\n")).await;
    for part in ["d\r\n,\"chu", "nks\": 2}\r\n", "0\r\n", "\r\n"] {
        tokio::time::sleep(ms(100)).await;
        raw.write(part).await;
    }
    assert_eq!(raw.reply().await.status, 201);
    assert_eq!(service.exit(s(10)).await.code, Some(0));
}

#[tokio::test]
async fn a_slow_download_finishes_byte_for_byte() {
    const LARGE: &str = "/large";
    let world = World::new().await;
    let service = world.stand().set("lifecycle.drain_http", "12s").ready().await;
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
    let world = World::new().await;
    let service = patient(&world).await;
    let body = r#"{"text":"28 bytes of JSON."}"#;
    let mut raw = Raw::connect(service.http().await).await;
    raw.write(post("/echo", &format!("expect: 100-continue\r\ncontent-length: {}", body.len()))).await;
    assert_eq!(raw.head().await.status, 100);
    drain(&service).await;
    no_longer_accepts(&service).await;
    raw.write(body).await;
    assert_eq!(raw.reply().await.status, 201);
    assert_eq!(service.exit(s(10)).await.code, Some(0));
}

#[tokio::test]
async fn pipelined_requests_are_all_answered_in_their_order() {
    let world = World::new().await;
    let get = format!("GET {CHEAP} HTTP/1.1\r\nhost: test\r\n\r\n");
    let requests = slow(1000) + &get + &get + &echo() + &get;
    let (service, mut raw) = draining_with(&world, &requests).await;
    let mut statuses = Vec::new();
    for _ in 0..5 {
        statuses.push(raw.reply().await.status);
    }
    assert_eq!(statuses, [201, 200, 200, 201, 200]);
    assert_eq!(raw.ends().await, End::Clean);
    assert_eq!(service.exit(s(10)).await.code, Some(0));
}

#[tokio::test]
async fn a_request_whose_head_has_begun_to_arrive_is_answered() {
    let world = World::new().await;
    let (service, mut raw) = draining_with(&world, &format!("GET {CHEAP} HTTP/1.1\r\nho")).await;
    raw.write("st: test\r\n\r\n").await;
    let reply = raw.reply().await;
    assert_eq!((reply.status, reply.header("connection")), (200, "close"));
    assert_eq!(service.exit(s(10)).await.code, Some(0));
}

#[tokio::test]
async fn requests_in_flight_on_many_connections_all_finish() {
    let world = World::new().await;
    let service = patient(&world).await;
    let address = service.http().await;
    let mut clients = Vec::new();
    for _ in 0..30 {
        let mut raw = Raw::connect(address).await;
        raw.write(slow(700)).await;
        clients.push(raw);
    }
    under_way(&service, 700).await;
    drain(&service).await;
    for raw in &mut clients {
        assert_eq!(raw.reply().await.status, 201);
    }
    assert_eq!(service.exit(s(10)).await.code, Some(0));
    assert!(send(address, get(CHEAP)).await.is_err());
}
