//! HTTP/2 at the stop: GOAWAY, open streams finish, new ones are refused so that clients retry elsewhere.

use super::{
    CHEAP, drain, patient,
    support::{
        End, Service, World,
        http2::{END_STREAM, Frame, Http2, kind},
        ms, narrow, s,
    },
    under_way,
};

/// What a first GOAWAY names: the stop has begun, and it is not yet known which stream is the last.
const ANY_STREAM: u32 = u32::MAX >> 1;

fn is_goaway(frame: &Frame) -> bool {
    frame.kind == kind::GOAWAY
}

/// A connection with a request on stream 1 that takes so long.
async fn with_a_slow_request(world: &World, milliseconds: u64) -> (Service, Http2) {
    let service = patient(world).await;
    let mut connection = Http2::connect(service.http().await, &[]).await;
    connection.post(1, &format!("/slow/{milliseconds}"), "{}").await;
    under_way(&service, milliseconds).await;
    (service, connection)
}

#[tokio::test]
async fn clients_are_told_to_go_away_and_which_stream_is_the_last() {
    let world = World::new().await;
    let (service, mut connection) = with_a_slow_request(&world, 800).await;
    drain(&service).await;
    let first = connection.until(is_goaway).await.expect("a warning");
    let second = connection.until(is_goaway).await.expect("the last word");
    assert_eq!((first.number(0), second.number(0)), (ANY_STREAM, 1));
    assert_eq!((first.number(4), second.number(4)), (0, 0), "NO_ERROR");
}

#[tokio::test]
async fn an_open_stream_finishes_and_then_the_connection_ends() {
    let world = World::new().await;
    let (service, mut connection) = with_a_slow_request(&world, 1000).await;
    drain(&service).await;
    let (frames, end) = connection.rest().await;
    let head = frames.iter().find(|frame| frame.kind == kind::HEADERS).expect("an answer");
    assert_eq!((head.stream, head.status()), (1, 201));
    assert!(frames.iter().any(|frame| frame.stream == 1 && frame.ends_stream()), "to its end");
    assert_eq!(end, End::Clean);
    assert_eq!(service.exit(s(10)).await.code, Some(0));
}

#[tokio::test]
async fn a_slow_upload_finishes() {
    let world = World::new().await;
    let service = patient(&world).await;
    let mut connection = Http2::connect(service.http().await, &[]).await;
    let body = br#"{"text":"28 bytes of JSON."}"#;
    connection.post_head(1, "/echo").await;
    connection.write(kind::DATA, 0, 1, &body[..9]).await;
    // It has read all that when it answers this.
    connection.get(3, CHEAP).await;
    connection.until(|frame| frame.stream == 3 && frame.ends_stream()).await.expect("an answer");
    drain(&service).await;
    connection.until(|frame| is_goaway(frame) && frame.number(0) == 3).await.expect("the last word");
    connection.write(kind::DATA, END_STREAM, 1, &body[9..]).await;
    let head = connection.until(|frame| frame.stream == 1 && frame.kind == kind::HEADERS).await;
    assert_eq!(head.map(|head| head.status()), Ok(201));
    assert_eq!(service.exit(s(10)).await.code, Some(0));
}

#[tokio::test]
async fn a_slow_download_finishes_byte_for_byte() {
    const LARGE: &str = "/large";
    let world = World::new().await;
    let service = world.stand().set("lifecycle.drain_http", "12s").ready().await;
    let whole = service.get(LARGE).await.body;
    let mut connection = Http2::over(narrow(service.http().await).await.stream, &[]).await;
    connection.get(1, LARGE).await;
    connection.until(|frame| frame.kind == kind::HEADERS).await.expect("an answer");
    drain(&service).await;
    let (mut body, mut is_whole) = (Vec::new(), false);
    while !is_whole {
        let frame =
            connection.frame().await.unwrap_or_else(|end| panic!("{end:?} after {} of {}", body.len(), whole.len()));
        connection.acknowledge(&frame).await;
        is_whole = frame.ends_stream();
        if frame.kind == kind::DATA {
            body.extend(&frame.payload);
            tokio::time::sleep(ms(5)).await;
            connection.widen(1, frame.payload.len()).await;
        }
    }
    assert_eq!(body, whole);
    drop(connection);
    assert_eq!(service.exit(s(10)).await.code, Some(0));
}

#[tokio::test]
async fn a_stream_opened_before_the_last_word_is_answered() {
    let world = World::new().await;
    let (service, mut connection) = with_a_slow_request(&world, 800).await;
    drain(&service).await;
    // The PING behind the first GOAWAY is not yet answered, so the server has to count with more streams.
    while !is_goaway(&connection.frame().await.expect("a warning")) {}
    connection.get(3, CHEAP).await;
    let head = connection.until(|frame| frame.stream == 3 && frame.kind == kind::HEADERS).await;
    assert_eq!(head.map(|head| head.status()), Ok(200));
}

#[tokio::test]
async fn a_stream_opened_after_the_last_word_is_not_worked_on() {
    let world = World::new().await;
    let (service, mut connection) = with_a_slow_request(&world, 3000).await;
    drain(&service).await;
    connection.until(|frame| is_goaway(frame) && frame.number(0) == 1).await.expect("the last word");
    connection.get(3, CHEAP).await;
    let (frames, end) = connection.rest().await;
    assert!(!frames.iter().any(|frame| frame.stream == 3 && frame.kind == kind::HEADERS), "{frames:?}");
    assert!(frames.iter().any(|frame| frame.stream == 1 && frame.ends_stream()), "the open one finishes");
    assert_eq!(end, End::Clean);
    assert_eq!(service.exit(s(10)).await.code, Some(0));
}

#[tokio::test]
async fn an_idle_connection_is_told_and_ends_with_fin() {
    let world = World::new().await;
    let service = world.stand().ready().await;
    let mut connection = Http2::connect(service.http().await, &[]).await;
    connection.get(1, CHEAP).await;
    connection.until(Frame::ends_stream).await.expect("an answer");
    drain(&service).await;
    let (frames, end) = connection.rest().await;
    assert!(frames.iter().any(is_goaway), "{frames:?}");
    assert_eq!(end, End::Clean);
    drop(connection);
    assert_eq!(service.exit(s(10)).await.code, Some(0));
    assert!(service.step("drain_http").took < ms(500));
}

#[tokio::test]
async fn idle_connections_that_were_silent_for_long_are_told_as_well() {
    let world = World::new().await;
    let service = world.stand().set("http.header_timeout", "1s").ready().await;
    let mut connections = Vec::new();
    for _ in 0..8 {
        let mut connection = Http2::connect(service.http().await, &[]).await;
        connection.get(1, CHEAP).await;
        connection.until(Frame::ends_stream).await.expect("an answer");
        connections.push(connection);
    }
    tokio::time::sleep(ms(1500)).await;
    drain(&service).await;
    for connection in &mut connections {
        let (frames, end) = connection.rest().await;
        assert!(frames.iter().any(is_goaway), "{frames:?}");
        assert_eq!(end, End::Clean);
    }
}
