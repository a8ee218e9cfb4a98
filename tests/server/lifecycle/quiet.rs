//! Connections on which nothing is under way: they end with FIN and hold nobody up.

use tokio::io::AsyncWriteExt as _;

use std::time::{Duration, Instant};

use super::{
    CHEAP, drain, first_fin, kept,
    support::{
        End, Raw, Service, World,
        http2::{self, Http2},
        ms, s,
    },
};

/// Such a service whose clients have half a second for a first byte and for a head.
async fn serve(world: &World) -> Service {
    world.stand().set("http.header_timeout", "500ms").ready().await
}

/// The same with time enough for a test to be late, in the delay or with half a head.
async fn serve_at_leisure(world: &World) -> Service {
    world.stand().set("http.header_timeout", "2s").set("lifecycle.drain_delay", "1s").ready().await
}

/// The stop ends in order, and the drain took no longer than that timeout, and a second for the client to close as well:
/// by default it would be five.
async fn stops_in_time(service: &Service) {
    drains_within(s(2), service).await;
}

async fn drains_within(bound: Duration, service: &Service) {
    assert_eq!(service.exit(s(10)).await.code, Some(0));
    let took = service.step("drain_http").took;
    assert!(took < bound, "{took:?}");
}

#[tokio::test]
async fn idle_connections_end_with_fin() {
    let world = World::new().await;
    let service = serve(&world).await;
    let mut clients = Vec::new();
    for _ in 0..20 {
        clients.push(kept(&service).await);
    }
    drain(&service).await;
    for client in &mut clients {
        assert_eq!(client.ends().await, End::Clean);
    }
    drop(clients);
    stops_in_time(&service).await;
}

#[tokio::test]
async fn a_request_that_crosses_the_fin_is_not_met_with_a_reset() {
    let world = World::new().await;
    'attempts: for _ in 0..5 {
        let service = serve(&world).await;
        let mut client = kept(&service).await;
        let began = Instant::now();
        drain(&service).await;
        assert_eq!(client.ends().await, End::Clean);
        // for a second it is read on, unless there is nothing to read for 200 ms
        let fin = first_fin(&service, began);
        let mut last = fin;
        for _ in 0..5 {
            let writes = Instant::now();
            // one that was reset is told when it writes
            let request = format!("GET {CHEAP} HTTP/1.1\r\nhost: test\r\n\r\n");
            let written = client.stream.write_all(request.as_bytes()).await;
            let in_time = last.elapsed() < ms(200) && fin.elapsed() < s(1);
            last = writes;
            tokio::time::sleep(ms(20)).await;
            // it is told again that there will be no answer, and no more
            if written.is_err() || client.ends().await != End::Clean {
                assert!(!in_time, "it is met with a reset");
                continue 'attempts;
            }
        }
        return;
    }
    panic!("the test was late each time");
}

#[tokio::test]
async fn a_silent_connection_holds_it_up_for_its_timeout_alone() {
    let world = World::new().await;
    let service = serve(&world).await;
    let mut silent = Raw::connect(service.http().await).await;
    drain(&service).await;
    assert_eq!(silent.ends().await, End::Clean);
    stops_in_time(&service).await;
}

#[tokio::test]
async fn half_a_head_holds_it_up_for_its_timeout_alone() {
    let world = World::new().await;
    let service = serve_at_leisure(&world).await;
    let mut raw = Raw::connect(service.http().await).await;
    drain(&service).await;
    raw.write("GET / HTTP/1.1\r\nho").await;
    assert_eq!(raw.reply().await.status, 408);
    assert_eq!(raw.ends().await, End::Clean);
    drains_within(s(3), &service).await;
}

#[tokio::test]
async fn half_a_second_head_holds_it_up_for_its_timeout_alone() {
    let world = World::new().await;
    let service = serve_at_leisure(&world).await;
    let mut raw = kept(&service).await;
    drain(&service).await;
    raw.write("GET / HTTP/1.1\r\nho").await;
    assert_eq!(raw.reply().await.status, 408);
    assert_eq!(raw.ends().await, End::Clean);
    drains_within(s(3), &service).await;
}

#[tokio::test]
async fn half_an_http_2_preface_holds_it_up_for_its_timeout_alone() {
    let world = World::new().await;
    let service = serve(&world).await;
    let mut raw = Raw::connect(service.http().await).await;
    drain(&service).await;
    raw.write(&http2::PREFACE[..12]).await;
    assert_eq!(raw.rest().await.1, End::Clean);
    stops_in_time(&service).await;
}

#[tokio::test]
async fn a_preface_without_settings_holds_it_up_for_that_alone() {
    let world = World::new().await;
    let service = serve(&world).await;
    let mut raw = Raw::connect(service.http().await).await;
    drain(&service).await;
    raw.write(http2::PREFACE).await;
    raw.rest().await;
    stops_in_time(&service).await;
}

#[tokio::test]
async fn a_peer_that_answers_no_ping_holds_it_up_for_that_alone() {
    let world = World::new().await;
    let service = serve(&world).await;
    let mut connection = Http2::connect(service.http().await, &[]).await;
    connection.get(1, CHEAP).await;
    connection.until(http2::Frame::ends_stream).await.expect("an answer");
    drain(&service).await;
    // Reads, and says nothing.
    while connection.frame().await.is_ok() {}
    stops_in_time(&service).await;
}

#[tokio::test]
async fn with_nobody_there_the_drain_takes_no_time() {
    let world = World::new().await;
    let service = world.stand().ready().await;
    drop(kept(&service).await);
    let asked = Instant::now();
    drain(&service).await;
    assert_eq!(service.exit(s(10)).await.code, Some(0));
    assert!(service.step("drain_http").took < ms(100), "{:?}", asked.elapsed());
}
