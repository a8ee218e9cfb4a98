//! Peers that mean harm: memory stays bounded, and others are served as if nothing were.

use std::time::Instant;

use super::{
    CHEAP, counted, serves,
    support::{
        Raw, Service, WebSocket, World, eventually,
        http2::{END_HEADERS, END_STREAM, Http2, field, frame, get_head, kind},
        ms, narrow, os, s,
    },
    timed_out,
};

const MIB: u64 = 1024 * 1024;

/// A service that was used a little, and its memory then.
async fn warm(world: &World) -> (Service, u64) {
    let service = world.stand().set("http.request_timeout", "1s").ready().await;
    for _ in 0..50 {
        serves(&service).await;
    }
    let memory = os::resident(service.pid());
    (service, memory)
}

/// It serves others, and has not grown by more than so much.
async fn is_unharmed(service: &Service, before: u64, mib: u64) {
    serves(service).await;
    let grown = os::resident(service.pid()).saturating_sub(before) / MIB;
    println!("{grown} MiB more");
    assert!(grown < mib, "{grown} MiB more");
}

#[tokio::test]
async fn an_http_2_rapid_reset_harms_no_other_connection() {
    let world = World::new().await;
    let (service, before) = warm(&world).await;
    let mut connection = Http2::connect(service.http().await, &[]).await;
    let reset = |stream: u32| {
        let open = frame(kind::HEADERS, END_STREAM | END_HEADERS, stream, &get_head(CHEAP));
        [open, frame(kind::RST_STREAM, 0, stream, &8_u32.to_be_bytes())].concat()
    };
    let flood: Vec<u8> = (0..50_000).flat_map(|number| reset(2 * number + 1)).collect();
    let write = async {
        for part in flood.chunks(60_000) {
            connection.raw(part).await;
            serves(&service).await;
        }
    };
    write.await;
    let (frames, _) = connection.rest().await;
    let reason = frames.iter().find(|frame| frame.kind == kind::GOAWAY).map(|frame| frame.number(4));
    assert_eq!(reason, Some(11), "ENHANCE_YOUR_CALM");
    is_unharmed(&service, before, 32).await;
}

#[tokio::test]
async fn a_flood_of_headers_is_held_in_little_memory() {
    let world = World::new().await;
    let (service, before) = warm(&world).await;
    let mut clients = Vec::new();
    for _ in 0..100 {
        let mut raw = Raw::connect(service.http().await).await;
        raw.write(format!(
            "GET / HTTP/1.1\r\nhost: test\r\n{}",
            "x: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n".repeat(1000)
        ))
        .await;
        clients.push(raw);
    }
    is_unharmed(&service, before, 64).await;
    for client in &mut clients {
        assert!([408, 431].contains(&client.reply().await.status));
    }
}

#[tokio::test]
async fn an_http_2_head_that_unpacks_to_megabytes_is_not_unpacked() {
    let world = World::new().await;
    let (service, before) = warm(&world).await;
    // A field of 4,000 bytes that goes into the table, and then its place there, a byte each.
    let mut head = get_head(CHEAP);
    head.extend([0x40, 1, b'x', 0x7f, 0xa1, 0x1e]);
    head.extend([b'y'; 4000]);
    head.extend([0xbe; 12_000]);
    let mut connections = Vec::new();
    for _ in 0..20 {
        let mut connection = Http2::connect(service.http().await, &[]).await;
        connection.write(kind::HEADERS, END_STREAM | END_HEADERS, 1, &head).await;
        let answer =
            connection.until(|frame| matches!(frame.kind, kind::HEADERS | kind::RST_STREAM | kind::GOAWAY)).await;
        let refused = answer.as_ref().is_ok_and(|frame| frame.kind != kind::HEADERS || frame.status() == 431);
        assert!(refused, "{answer:?}");
        connections.push(connection);
    }
    is_unharmed(&service, before, 32).await;
}

#[tokio::test]
async fn an_http_2_head_that_never_ends_ends_its_connection() {
    let world = World::new().await;
    let (service, before) = warm(&world).await;
    let mut connection = Http2::connect(service.http().await, &[]).await;
    connection.write(kind::HEADERS, END_STREAM, 1, &get_head(CHEAP)).await;
    let more = frame(kind::CONTINUATION, 0, 1, &field("x", &"y".repeat(120)).repeat(100));
    let began = Instant::now();
    while connection.stream.try_write(&more).is_ok_and(|written| written == more.len()) && began.elapsed() < s(5) {
        tokio::time::sleep(ms(1)).await;
    }
    let (frames, _) = connection.rest().await;
    assert!(frames.iter().any(|frame| frame.kind == kind::GOAWAY), "{frames:?}");
    is_unharmed(&service, before, 32).await;
}

#[tokio::test]
async fn a_flood_of_pings_is_answered_from_little_memory() {
    let world = World::new().await;
    let (service, before) = warm(&world).await;
    let mut connection = Http2::over(narrow(service.http().await).await.stream, &[]).await;
    // Nothing of the answers is read.
    let pings = frame(kind::PING, 0, 0, &[0; 8]).repeat(1000);
    let flood = async {
        for _ in 0..2000 {
            connection.raw(&pings).await;
        }
    };
    let _ = tokio::time::timeout(s(2), flood).await;
    is_unharmed(&service, before, 32).await;
}

#[tokio::test]
async fn a_huge_message_on_a_websocket_is_1009() {
    let world = World::new().await;
    let (service, before) = warm(&world).await;
    let mut socket = WebSocket::open(service.http().await, "/ws").await;
    let message = tokio_tungstenite::tungstenite::Message::binary(vec![0; 200_000]);
    let _ = futures_util::SinkExt::send(&mut socket.inner, message).await;
    assert_eq!(socket.close().await.map(|frame| u16::from(frame.code)), Some(1009));
    is_unharmed(&service, before, 32).await;
}

#[tokio::test]
async fn a_frame_that_only_says_it_is_huge_is_1009_before_it_comes() {
    let world = World::new().await;
    let (service, before) = warm(&world).await;
    let mut socket = WebSocket::open(service.http().await, "/ws").await;
    // A masked binary frame of 4 GiB, of which there is nothing yet.
    let head = [&[0x82, 0xff][..], &(1_u64 << 32).to_be_bytes(), &[0; 4]].concat();
    tokio::io::AsyncWriteExt::write_all(socket.inner.get_mut(), &head).await.expect("it is open");
    assert_eq!(socket.close().await.map(|frame| u16::from(frame.code)), Some(1009));
    is_unharmed(&service, before, 32).await;
}

#[tokio::test]
async fn slow_readers_of_events_are_dropped_with_a_reason() {
    let world = World::new().await;
    let (service, before) = warm(&world).await;
    let mut slow = Vec::new();
    for _ in 0..20 {
        let mut raw = narrow(service.http().await).await;
        raw.write("GET /events?count=10000 HTTP/1.1\r\nhost: test\r\n\r\n").await;
        slow.push(raw);
    }
    counted(&service, "http_server_timeouts_total", &[("bound", "write")], 20.0).await;
    is_unharmed(&service, before, 48).await;
    let none = async || service.metric("in_flight", &[("kind", "sse")]).await == Some(0.0);
    eventually("they are gone", s(3), none).await;
    assert!(service.text(false).contains("takes no bytes"), "the log says why");
}

#[tokio::test]
async fn a_slow_reader_of_events_over_http_2_is_dropped_with_a_reason() {
    let world = World::new().await;
    let (service, before) = warm(&world).await;
    let mut connection = Http2::connect(service.http().await, &[]).await;
    connection.get(1, "/events?count=5000").await;
    // Reads everything, and lets the server send no more than the first 64 KiB of it.
    let polite = tokio::spawn(async move { connection.rest().await });
    eventually("it streams", s(5), async || service.metric("in_flight", &[("kind", "sse")]).await == Some(1.0)).await;
    timed_out(&service, "write").await;
    polite.abort();
    is_unharmed(&service, before, 32).await;
}

#[tokio::test]
async fn a_slow_reader_of_a_websocket_is_dropped() {
    let world = World::new().await;
    let (service, before) = warm(&world).await;
    let mut raw = narrow(service.http().await).await;
    let head = "GET /ws?count=10000 HTTP/1.1\r\nhost: test\r\nconnection: upgrade\r\nupgrade: websocket";
    raw.write(format!("{head}\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\r\n"))
        .await;
    timed_out(&service, "write").await;
    is_unharmed(&service, before, 32).await;
    eventually("it is gone", s(3), async || service.metric("in_flight", &[("kind", "websocket")]).await == Some(0.0))
        .await;
}
