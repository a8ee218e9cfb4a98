//! What a client must not send on a WebSocket (RFC 6455) ends with the code that says so, awaited like any other Close.

use std::time::Instant;

use tokio::io::AsyncReadExt;

use crate::{
    MIB, flood, is_unharmed, memory, ms, none_in_flight, order, s,
    support::{End, Raw, World, bounded},
    upgraded,
};

/// A frame with a mask of zeros: its first byte, and its payload.
fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let length = match u8::try_from(payload.len()) {
        Ok(short @ ..126) => vec![0x80 | short],
        _ => [&[0xff_u8][..], &(payload.len() as u64).to_be_bytes()].concat(),
    };
    [&[first], &*length, &[0; 4], payload].concat()
}

/// Reads past PINGs and messages to the payload of a Close.
async fn close(raw: &mut Raw) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let length = match *bytes {
            [_, short @ ..126, ..] => Some((2, usize::from(short))),
            [_, 126, high, low, ..] => Some((4, usize::from(u16::from_be_bytes([high, low])))),
            _ => None,
        };
        match length.filter(|(head, length)| bytes.len() >= head + length) {
            Some((head, length)) if bytes[0] == 0x88 => return bytes[head..head + length].to_vec(),
            Some((head, length)) => drop(bytes.drain(..head + length)),
            None => {
                let read = bounded("a frame", s(5), raw.stream.read_buf(&mut bytes)).await.expect("it is open");
                assert!(read > 0, "it ended without a Close: {bytes:x?}");
            }
        }
    }
}

/// What is answered with which code.
fn faults() -> Vec<(&'static str, Vec<u8>, u16)> {
    let text = 0x81;
    vec![
        ("bad UTF-8", masked(text, b"\xff\xfe"), 1007),
        ("half a character", masked(text, b"\xe2\x82"), 1007),
        ("bad UTF-8 in two fragments", [masked(0x01, b"a\xe2"), masked(0x80, b"\x41")].concat(), 1007),
        ("an opcode that is none", masked(0x83, b""), 1002),
        ("a control opcode that is none", masked(0x8b, b""), 1002),
        ("a frame without a mask", vec![text, 1, b'a'], 1002),
        ("a first reserved bit", masked(0xc1, b"a"), 1002),
        ("a third reserved bit", masked(0x91, b"a"), 1002),
        ("a PING in fragments", masked(0x09, b""), 1002),
        ("a PING that is too long", masked(0x89, &[b'a'; 126]), 1002),
        ("a continuation of nothing", masked(0x80, b"a"), 1002),
        ("a text within a text", [masked(0x01, b"a"), masked(text, b"b")].concat(), 1002),
        ("a Close of one byte", masked(0x88, b"\x03"), 1002),
        ("a Close with a code that is none", masked(0x88, &999_u16.to_be_bytes()), 1002),
        ("a Close with a code that is not sent", masked(0x88, &1005_u16.to_be_bytes()), 1002),
        ("a Close whose reason is no text", masked(0x88, b"\x03\xe8\xff\xfe"), 1007),
        ("a message that is too long", masked(0x82, &[0; 70_000]), 1009),
        (
            "a message that is too long in fragments",
            [masked(0x02, &[0; 40_000]), masked(0x80, &[0; 40_000])].concat(),
            1009,
        ),
    ]
}

#[tokio::test]
async fn each_fault_has_its_code_and_its_echo_is_awaited() {
    let world = World::new().await;
    let service = world.serve().await;
    for (what, bytes, code) in faults() {
        let mut raw = upgraded(&service).await;
        raw.write(bytes).await;
        let payload = close(&mut raw).await;
        assert_eq!(payload.get(..2).map(|code| u16::from_be_bytes([code[0], code[1]])), Some(code), "{what}");
        let told = Instant::now();
        raw.write(masked(0x88, &code.to_be_bytes())).await;
        let (rest, end) = raw.rest().await;
        assert_eq!((&*rest, end), (&b""[..], End::Clean), "{what}");
        assert!(told.elapsed() < ms(900), "{what}: the echo has come");
    }
    none_in_flight(&service, "websocket").await;
}

#[tokio::test]
async fn after_a_fault_what_is_still_sent_is_not_met_with_a_reset() {
    let world = World::new().await;
    let service = world.serve().await;
    for (what, bytes, code) in faults().into_iter().step_by(5) {
        let mut raw = upgraded(&service).await;
        raw.write([&*bytes, &masked(0x82, b"and more").repeat(1000)].concat()).await;
        assert_eq!(close(&mut raw).await[..2], code.to_be_bytes(), "{what}");
        raw.write(masked(0x88, &code.to_be_bytes())).await;
        assert_eq!(raw.rest().await.1, End::Clean, "{what}");
    }
    none_in_flight(&service, "websocket").await;
}

#[tokio::test]
async fn a_close_is_echoed_with_its_code() {
    let world = World::new().await;
    let service = world.serve().await;
    for payload in [&b""[..], b"\x03\xe8", b"\x03\xe9bye", b"\x0f\xa0mine"] {
        let mut raw = upgraded(&service).await;
        raw.write(masked(0x88, payload)).await;
        let echo = close(&mut raw).await;
        println!("{payload:?}: {echo:?}");
        assert_eq!(echo.get(..2), payload.get(..2), "{payload:?}");
        assert_eq!(raw.ends().await, End::Clean);
    }
}

#[tokio::test]
async fn a_ping_is_answered_with_its_payload_within_a_fragmented_text() {
    let world = World::new().await;
    let service = world.serve().await;
    let mut raw = upgraded(&service).await;
    raw.write([masked(0x01, b"a"), masked(0x89, b"hello"), masked(0x80, b"b")].concat()).await;
    let mut bytes = Vec::new();
    while !bytes.windows(7).any(|window| window == b"\x8a\x05hello") {
        bounded("a PONG", s(5), raw.stream.read_buf(&mut bytes)).await.expect("it is open");
    }
}

#[tokio::test]
async fn a_flood_of_frames_is_held_in_little_memory() {
    let world = World::new().await;
    let service = world.serve().await;
    let before = memory(&service).await;
    // its answers are not read
    for frames in [masked(0x89, b"ping").repeat(1000), masked(0x81, b"").repeat(1000), masked(0x01, b"").repeat(1000)] {
        let mut raw = upgraded(&service).await;
        flood(&mut raw, &frames, 1500).await;
        is_unharmed(&service, before, 16).await;
    }
    assert!(before < 64 * MIB);
}

#[tokio::test]
async fn a_handshake_that_is_none_is_refused() {
    let world = World::new().await;
    let service = world.serve().await;
    let key = "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let version = "sec-websocket-version: 13\r\n";
    let upgrade = "connection: upgrade\r\nupgrade: websocket\r\n";
    for (headers, status) in [
        (format!("{upgrade}{key}"), 400),
        (format!("{upgrade}{version}"), 400),
        (format!("{upgrade}{key}sec-websocket-version: 8\r\n"), 426),
        (format!("{key}{version}"), 426),
        (format!("{upgrade}{version}sec-websocket-key: short\r\n"), 400),
        (String::new(), 426),
    ] {
        let mut raw = Raw::connect(service.http().await).await;
        raw.write(format!("GET /v1/orders/ws HTTP/1.1\r\nhost: a\r\n{headers}\r\n")).await;
        let reply = raw.reply().await;
        println!("{headers:?} {}", reply.status);
        assert_eq!(reply.status, status, "{headers:?}");
        if status == 426 {
            assert_eq!(reply.header("sec-websocket-version"), "13", "{headers:?}");
        }
        raw.write(order()).await;
        assert_eq!(raw.reply().await.status, 201, "it is HTTP as before");
    }
}
