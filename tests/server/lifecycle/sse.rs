//! Server-Sent Events at the stop: the last event whole, and a clean end of stream.

use serde_json::json;
use tokio::sync::Notify;

use super::{
    CHEAP, drain, echo,
    support::{
        self, Connection, End, Raw, Service, Signal, Sse, World, bounded,
        http2::{Frame, Http2, kind},
        ms, s,
    },
};

const EVENTS: &str = "/events";

/// Has events told, one after the other, until the service is gone.
async fn make_events(service: &Service) -> usize {
    let mut made = 0;
    while let Ok(reply) = service.try_send(support::post("/echo", &json!({}))).await {
        made += usize::from(reply.status == 201);
    }
    made
}

/// Begins the stop when an event has been told.
async fn drain_when(service: &Service, told: &Notify) {
    bounded("an event is told", s(10), told.notified()).await;
    drain(service).await;
}

#[tokio::test]
async fn on_http_1_the_last_event_is_whole_and_the_last_chunk_is_sent() {
    let world = World::new().await;
    let service = world.stand().ready().await;
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
    let (text, made, ()) = tokio::join!(reading, make_events(&service), drain_when(&service, &told));
    let text = String::from_utf8(text).expect("it is text");
    assert!(text.ends_with("}\n\n") && made > 0, "after {made} events: {text}");
    assert_eq!(raw.ends().await, End::Clean);
    assert_eq!(service.exit(s(10)).await.code, Some(0));
}

#[tokio::test]
async fn on_http_2_the_last_event_is_whole_and_the_stream_is_ended() {
    let world = World::new().await;
    let service = world.stand().ready().await;
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
    let ((frames, end), made, ()) = tokio::join!(reading, make_events(&service), drain_when(&service, &told));
    let data: Vec<_> = frames.iter().filter(|frame| frame.kind == kind::DATA).collect();
    assert!(data.last().is_some_and(|frame| frame.ends_stream()), "{frames:?}");
    let text: Vec<u8> = data.iter().flat_map(|frame| frame.payload.clone()).collect();
    assert!(text.ends_with(b"}\n\n") && made > 0, "after {made} events: {text:?}");
    assert!(!frames.iter().any(|frame: &Frame| frame.kind == kind::RST_STREAM));
    assert_eq!(end, End::Clean);
    assert_eq!(service.exit(s(10)).await.code, Some(0));
}

#[tokio::test]
async fn clients_are_told_to_come_back_at_once() {
    let world = World::new().await;
    let service = world.stand().ready().await;
    let mut events = Sse::open(service.http().await, EVENTS, None).await;
    service.signal(Signal::TERM);
    assert_eq!(events.next().await, None);
    assert!(events.retry.is_some_and(|retry| (100..500).contains(&retry)), "milliseconds: {:?}", events.retry);
}

#[tokio::test]
async fn a_stream_opened_during_the_delay_ends_as_well() {
    let world = World::new().await;
    let service = world.stand().set("lifecycle.drain_delay", "2s").ready().await;
    drain(&service).await;
    let mut events = Sse::open(service.http().await, EVENTS, None).await;
    assert_eq!(events.next().await, None);
    assert_eq!(service.exit(s(10)).await.code, Some(0));
    assert!(service.step("drain_http").took < ms(1400));
}

#[tokio::test]
async fn a_reader_on_a_connection_used_again_gets_the_last_event() {
    let world = World::new().await;
    let service = world.stand().set("lifecycle.drain_delay", "3s").ready().await;
    let mut connection = Connection::h1(service.http().await).await.expect("it accepts");
    connection.send(support::get(CHEAP)).await.expect("an answer");
    let mut events = Sse::open_on(connection, EVENTS, None).await;
    drain(&service).await;
    let mut raw = Raw::connect(service.http().await).await;
    raw.write(echo()).await;
    assert_eq!(raw.reply().await.status, 201);
    assert_eq!(events.next().await.map(|event| event.event).as_deref(), Some("echo"));
    while events.next().await.is_some() {}
    assert_eq!(service.exit(s(10)).await.code, Some(0));
}
