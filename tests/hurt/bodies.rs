//! A body costs its bytes, whatever is in it and however it comes; and while it comes it takes nobody's place.

use crate::{
    CHEAP, MIB, http2, is_unharmed, memory, order, post, serves,
    support::{
        End, Raw, Service, World,
        http2::{END_STREAM, frame, kind},
        os, s,
    },
};

const LENGTH: usize = 256 * 1024;

/// A service that takes bodies of 256 KiB.
async fn generous(world: &World) -> Service {
    world.service().set("http.body_limit", "1MiB").set("http.request_timeout", "20s").ready().await
}

/// Ten bodies, each written in pieces of that size but for the last byte, are held in little memory and then answered.
async fn costs_little(headers: &str, body: &[u8], piece: usize) {
    let world = World::new().await;
    let service = generous(&world).await;
    let before = memory(&service).await;
    let (last, most) = body.split_last().expect("it is long");
    let mut clients = Vec::new();
    for _ in 0..10 {
        let mut raw = Raw::connect(service.http().await).await;
        raw.write(post(headers)).await;
        for piece in most.chunks(piece) {
            raw.write(piece).await;
        }
        clients.push(raw);
    }
    is_unharmed(&service, before, 24).await;
    for raw in &mut clients {
        raw.write([*last]).await;
        let status = raw.reply().await.status;
        assert!([400, 422].contains(&status), "{status}: it is no order");
        raw.get(CHEAP).await;
        assert_eq!(raw.reply().await.status, 200, "and the next request is found behind it");
    }
}

fn of_length(body: &[u8]) -> String {
    format!("content-length: {}", body.len())
}

/// The same bytes in chunks of that size.
fn chunked(body: &[u8], size: usize) -> Vec<u8> {
    let chunk = |bytes: &[u8]| [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat();
    body.chunks(size).flat_map(chunk).chain(*b"0\r\n\r\n").collect()
}

#[tokio::test]
async fn a_body_of_empty_lines_costs_its_bytes() {
    let body = "\r\n\r\n".repeat(LENGTH / 4).into_bytes();
    costs_little(&of_length(&body), &body, 64 * 1024).await;
    // ten times 8,000 chunks take an unoptimized build some seconds
    costs_little("transfer-encoding: chunked", &chunked(&body[..LENGTH / 8], 4), 64 * 1024).await;
}

#[tokio::test]
async fn a_body_that_looks_like_requests_or_chunks_costs_its_bytes() {
    for text in ["GET / HTTP/1.1\r\nhost: a\r\n\r\n", "0\r\n\r\n", "\n", "\r"] {
        let body = text.repeat(LENGTH / text.len()).into_bytes();
        costs_little(&of_length(&body), &body, 1000).await;
    }
}

#[tokio::test]
async fn a_body_in_chunks_of_a_byte_costs_its_bytes() {
    let body = b"\r\n".repeat(LENGTH / 8);
    costs_little("transfer-encoding: chunked", &chunked(&body, 1), 64 * 1024).await;
}

#[tokio::test]
async fn a_body_in_segments_of_a_byte_costs_its_bytes() {
    let body = b"\r\n".repeat(4 * 1024);
    costs_little(&of_length(&body), &body, 1).await;
    costs_little("transfer-encoding: chunked", &chunked(&body, 16), 1).await;
}

#[tokio::test]
async fn a_body_in_http_2_frames_of_a_byte_costs_its_bytes() {
    let world = World::new().await;
    let service = generous(&world).await;
    let before = memory(&service).await;
    for (count, code) in [(100, 400), (65_000, 11)] {
        let frames = frame(kind::DATA, 0, 1, b"\n").repeat(count);
        let mut connections = http2(&service, 10, &[]).await;
        for connection in &mut connections {
            connection.post_head(1, "/v1/orders").await;
            connection.raw(&frames).await;
        }
        is_unharmed(&service, before, 24).await;
        for connection in &mut connections {
            connection.write(kind::DATA, END_STREAM, 1, b"\n").await;
            let end = connection.until(|frame| matches!(frame.kind, kind::HEADERS | kind::GOAWAY)).await;
            // ENHANCE_YOUR_CALM: h2 has a budget for frames that carry next to nothing
            let end =
                end.map(|frame| if frame.kind == kind::HEADERS { frame.status().into() } else { frame.number(4) });
            assert_eq!(end, Ok(code), "{count} frames");
        }
    }
}

#[tokio::test]
async fn empty_http_2_frames_cost_nothing() {
    let world = World::new().await;
    let service = generous(&world).await;
    let before = memory(&service).await;
    let frames = frame(kind::DATA, 0, 1, b"").repeat(200_000);
    let mut connections = http2(&service, 5, &[]).await;
    for connection in &mut connections {
        connection.post_head(1, "/v1/orders").await;
        let _ = tokio::time::timeout(s(2), connection.raw(&frames)).await;
    }
    is_unharmed(&service, before, 24).await;
}

#[tokio::test]
async fn bodies_that_do_not_come_take_no_place() {
    let world = World::new().await;
    let service = world.service().set("http.max_in_flight", 64).ready().await;
    let mut stalled = Vec::new();
    for _ in 0..128 {
        let mut raw = Raw::connect(service.http().await).await;
        raw.write(post("content-length: 100") + "{").await;
        stalled.push(raw);
    }
    let mut connection = http2(&service, 1, &[]).await.remove(0);
    for number in 0..128 {
        connection.post_head(2 * number + 1, "/v1/orders").await;
    }
    for _ in 0..20 {
        serves(&service).await;
    }
    let mut raw = Raw::connect(service.http().await).await;
    raw.write(order()).await;
    assert_eq!(raw.reply().await.status, 201);
    for raw in &mut stalled {
        assert_eq!(raw.reply().await.status, 408);
        assert_eq!(raw.ends().await, End::Clean);
    }
}

#[tokio::test]
async fn a_body_over_the_limit_is_413_however_it_comes() {
    let world = World::new().await;
    let service = world.service().set("http.body_limit", "32KiB").ready().await;
    let body = b" ".repeat(32 * 1024 + 1);
    for (headers, body) in
        [(of_length(&body), body.clone()), ("transfer-encoding: chunked".to_owned(), chunked(&body, 100))]
    {
        let mut raw = Raw::connect(service.http().await).await;
        raw.write(post(&headers)).await;
        raw.write(body).await;
        let reply = raw.reply().await;
        assert_eq!(reply.status, 413);
        reply.problem();
    }
    let mut connection = http2(&service, 1, &[]).await.remove(0);
    connection.post_head(1, "/v1/orders").await;
    for part in body.chunks(16_000) {
        connection.write(kind::DATA, 0, 1, part).await;
    }
    let head = connection.until(|frame| frame.kind == kind::HEADERS).await;
    assert_eq!(head.map(|head| head.status()), Ok(413));
    assert!(os::resident(service.pid()) < 64 * MIB);
}
