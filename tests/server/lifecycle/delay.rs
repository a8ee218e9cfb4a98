//! The drain delay: unready, and still answering everyone who comes.

use hyper::Version;

use super::{
    CHEAP, drain, echo, kept,
    support::{Connection, End, Raw, Service, World, get, s},
};

/// Ready, and with a delay that lasts longer than the test.
async fn serve(world: &World) -> Service {
    world.stand().set("lifecycle.drain_delay", "10s").ready().await
}

#[tokio::test]
async fn it_is_unready_and_alive() {
    let world = World::new().await;
    let service = serve(&world).await;
    drain(&service).await;
    let readiness = service.probe("/readyz").await;
    assert_eq!((readiness.status, &readiness.json()["phase"]), (503, &"draining".into()));
    assert_eq!(service.probe("/livez").await.status, 200);
}

#[tokio::test]
async fn new_connections_are_accepted_and_answered() {
    let world = World::new().await;
    let service = serve(&world).await;
    drain(&service).await;
    for _ in 0..20 {
        assert_eq!(service.get(CHEAP).await.status, 200);
    }
    assert!(service.ended().is_none());
}

#[tokio::test]
async fn new_http_2_connections_are_accepted_and_answered() {
    let world = World::new().await;
    let service = serve(&world).await;
    drain(&service).await;
    let mut connection = Connection::h2(service.http().await).await.expect("it accepts");
    for _ in 0..3 {
        assert_eq!(connection.send(get(CHEAP)).await.expect("an answer").status, 200);
    }
}

#[tokio::test]
async fn answers_ask_http_1_clients_to_leave_and_they_are_let_go() {
    let world = World::new().await;
    let service = serve(&world).await;
    let mut old = kept(&service).await;
    drain(&service).await;
    let mut new = Raw::connect(service.http().await).await;
    for raw in [&mut old, &mut new] {
        raw.get(CHEAP).await;
        assert_eq!(raw.reply().await.header("connection"), "close");
        assert_eq!(raw.ends().await, End::Clean);
    }
}

#[tokio::test]
async fn before_the_stop_no_answer_asks_a_client_to_leave() {
    let world = World::new().await;
    let service = serve(&world).await;
    let mut raw = Raw::connect(service.http().await).await;
    for _ in 0..3 {
        raw.get(CHEAP).await;
        assert_eq!(raw.reply().await.header("connection"), "");
    }
}

#[tokio::test]
async fn an_http_1_0_client_that_would_stay_is_told_to_leave() {
    let world = World::new().await;
    let service = serve(&world).await;
    let mut raw = Raw::connect(service.http().await).await;
    let request = format!("GET {CHEAP} HTTP/1.0\r\nconnection: keep-alive\r\n\r\n");
    raw.write(&request).await;
    assert_eq!(raw.reply().await.header("connection"), "keep-alive");
    drain(&service).await;
    raw.write(&request).await;
    assert_eq!(raw.reply().await.header("connection"), "close");
    assert_eq!(raw.ends().await, End::Clean);
}

#[tokio::test]
async fn an_http_2_answer_never_has_a_connection_header() {
    let world = World::new().await;
    let service = serve(&world).await;
    let mut connection = Connection::h2(service.http().await).await.expect("it accepts");
    drain(&service).await;
    let reply = connection.send(get(CHEAP)).await.expect("an answer");
    assert_eq!((reply.version, reply.header("connection")), (Version::HTTP_2, ""));
}

#[tokio::test]
async fn a_switch_of_protocols_is_not_asked_to_leave() {
    let world = World::new().await;
    let service = serve(&world).await;
    drain(&service).await;
    let mut raw = Raw::connect(service.http().await).await;
    let key = "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13";
    raw.write(format!("GET /ws HTTP/1.1\r\nhost: test\r\nconnection: upgrade\r\nupgrade: websocket\r\n{key}\r\n\r\n"))
        .await;
    let head = raw.head().await;
    assert_eq!((head.status, head.header("connection").to_lowercase().as_str()), (101, "upgrade"));
}

#[tokio::test]
async fn pipelined_requests_are_answered_and_the_last_says_close() {
    let world = World::new().await;
    let service = serve(&world).await;
    drain(&service).await;
    let mut raw = Raw::connect(service.http().await).await;
    raw.write(format!("GET {CHEAP} HTTP/1.1\r\nhost: test\r\n\r\n").repeat(5)).await;
    for last in [false, false, false, false, true] {
        let reply = raw.reply().await;
        assert_eq!((reply.status, reply.header("connection") == "close"), (200, last));
    }
    assert_eq!(raw.ends().await, End::Clean);
}

#[tokio::test]
async fn a_request_behind_one_with_a_body_is_answered() {
    let world = World::new().await;
    let service = serve(&world).await;
    drain(&service).await;
    let mut raw = Raw::connect(service.http().await).await;
    raw.write(echo() + &format!("GET {CHEAP} HTTP/1.1\r\nhost: test\r\n\r\n")).await;
    assert_eq!((raw.reply().await.status, raw.reply().await.status), (201, 200));
    assert_eq!(raw.ends().await, End::Clean);
}

#[tokio::test]
async fn it_lasts_as_long_as_it_is_set_to() {
    let world = World::new().await;
    let service = world.stand().set("lifecycle.drain_delay", "1s").ready().await;
    drain(&service).await;
    service.exit(s(10)).await;
    let took = service.step("drain_delay").took.as_secs_f64();
    assert!((0.9..1.4).contains(&took), "{took}");
}
