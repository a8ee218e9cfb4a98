//! WebSockets at the stop: Close 1001, the echo awaited for a second, the handler finished before what it uses closes.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use tokio::io::AsyncReadExt;
use tokio_tungstenite::tungstenite::Message;

use super::{
    count, drain,
    support::{End, Raw, Service, WebSocket, World, bounded, eventually, ms, s},
};

/// A WebSocket of bytes: it answers nothing by itself.
async fn upgraded(service: &Service) -> Raw {
    let mut raw = Raw::connect(service.http().await).await;
    let head = "GET /ws HTTP/1.1\r\nhost: test\r\nconnection: upgrade\r\nupgrade: websocket";
    raw.write(format!("{head}\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\r\n"))
        .await;
    assert_eq!(raw.head().await.status, 101);
    raw
}

/// Reads past the PINGs to the code of a Close.
async fn close_code(raw: &mut Raw) -> u16 {
    let mut frames = Vec::new();
    loop {
        match *frames {
            [0x89, length, ref rest @ ..] if rest.len() >= usize::from(length) => {
                drop(frames.drain(..2 + usize::from(length)))
            }
            [0x88, _, high, low, ..] => return u16::from_be_bytes([high, low]),
            _ => _ = bounded("a frame", s(5), raw.stream.read_buf(&mut frames)).await.expect("it is open"),
        }
    }
}

/// What the drain took.
async fn drained(service: &Service) -> Duration {
    assert_eq!(service.exit(s(10)).await.code, Some(0));
    service.step("drain_http").took
}

#[tokio::test]
async fn the_client_is_told_1001_and_the_connection_ends_with_fin() {
    let world = World::new().await;
    let service = world.stand().ready().await;
    let mut socket = WebSocket::open(service.http().await, "/ws").await;
    drain(&service).await;
    let frame = socket.close().await.expect("it has a reason");
    assert_eq!(u16::from(frame.code), 1001);
    assert!(socket.inner.next().await.is_none(), "and that is all");
    drop(socket);
    assert!(drained(&service).await < ms(900), "the echo has come");
}

#[tokio::test]
async fn during_the_delay_it_goes_on() {
    let world = World::new().await;
    let service = world.stand().set("lifecycle.drain_delay", "10s").ready().await;
    let mut old = WebSocket::open(service.http().await, "/ws").await;
    drain(&service).await;
    let mut new = WebSocket::open(service.http().await, "/ws").await;
    let echo = service.post("/echo", &serde_json::json!({})).await.json();
    for socket in [&mut old, &mut new] {
        assert_eq!(socket.next().await.expect("a message")["id"], echo["id"]);
    }
}

#[tokio::test]
async fn the_echo_is_awaited_for_a_second() {
    let world = World::new().await;
    let service = world.stand().ready().await;
    let mut mute = upgraded(&service).await;
    drain(&service).await;
    assert_eq!(close_code(&mut mute).await, 1001);
    assert_eq!(mute.rest().await.1, End::Clean);
    let took = drained(&service).await;
    assert!((ms(950)..ms(2700)).contains(&took), "and then a second for the client to close as well: {took:?}");
}

#[tokio::test]
async fn a_late_echo_is_heard() {
    let world = World::new().await;
    let service = world.stand().ready().await;
    let mut late = upgraded(&service).await;
    drain(&service).await;
    assert_eq!(close_code(&mut late).await, 1001);
    tokio::time::sleep(ms(200)).await;
    // Close 1001, masked with zeros.
    late.write([0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe9]).await;
    assert_eq!(late.rest().await.1, End::Clean);
    drop(late);
    let took = drained(&service).await;
    assert!((ms(150)..ms(950)).contains(&took), "{took:?}");
}

#[tokio::test]
async fn a_client_that_talks_on_holds_it_up_for_no_longer() {
    let world = World::new().await;
    let service = world.stand().ready().await;
    let mut socket = WebSocket::open(service.http().await, "/ws").await;
    drain(&service).await;
    let talking = async {
        while socket.inner.send(Message::text("and another thing")).await.is_ok() {
            tokio::time::sleep(ms(10)).await;
        }
    };
    let (took, ()) = tokio::join!(drained(&service), talking);
    assert!(took < ms(2700), "{took:?}");
}

#[tokio::test]
async fn its_handler_has_finished_before_the_database_closes() {
    let world = World::new().await;
    let service = world.stand().ready().await;
    let _mute = upgraded(&service).await;
    drain(&service).await;
    eventually("it stops accepting", s(5), async || service.steps().len() >= 3).await;
    assert_eq!(service.metric("in_flight", &[("kind", "websocket")]).await, Some(1.0));
    assert!(world.database.backends().await > 0, "which is still there");
    assert!(drained(&service).await > ms(900));
    assert_eq!(count_of_errors(&service), 0);
}

fn count_of_errors(service: &Service) -> usize {
    service.log().iter().filter(|line| line["level"] == "ERROR" || line["level"] == "WARN").count()
}

#[tokio::test]
async fn it_counts_as_under_way_until_its_client_has_gone() {
    let world = World::new().await;
    let service = world.stand().ready().await;
    let socket = upgraded(&service).await;
    let kind = [("kind", "websocket")];
    assert_eq!(service.metric("in_flight", &kind).await, Some(1.0));
    drop(socket);
    eventually("it is gone", s(5), async || count(&service, "in_flight", &kind).await == 0.0).await;
}
