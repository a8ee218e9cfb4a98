//! The end of the delay: whoever's connection the kernel has accepted, or whose request has reached the socket, is
//! answered. Then new connections are refused.

use std::{io::ErrorKind, net::SocketAddr};

use tokio::{net::TcpStream, time::timeout};

use crate::{
    CHEAP, drain, kept, patient, slow,
    support::{
        End, Raw, Service, Signal, eventually,
        http2::{Frame, Http2, kind},
        ms, s,
    },
    under_way, world,
};

/// Freezes a service that has a delay of 300 ms, lets `act` do what comes at the delay's very end, and thaws it when the
/// delay is over: for the service, all of that has happened at once.
async fn at_the_end_of_the_delay<T>(service: &Service, act: impl Future<Output = T>) -> T {
    drain(service).await;
    service.signal(Signal::STOP);
    let acted = act.await;
    tokio::time::sleep(ms(400)).await;
    service.signal(Signal::CONT);
    acted
}

async fn service(stage: &crate::Stage) -> Service {
    stage.service().set("lifecycle.drain_delay", "300ms").ready().await
}

#[tokio::test]
async fn every_request_in_the_backlog_at_the_end_of_the_delay_is_answered() {
    let stage = world().await;
    let service = service(&stage).await;
    let address = service.http().await;
    let clients = at_the_end_of_the_delay(&service, async {
        let mut clients = Vec::new();
        for _ in 0..20 {
            let mut client = Raw::connect(address).await;
            client.get(CHEAP).await;
            clients.push(client);
        }
        clients
    });
    for client in &mut clients.await {
        assert_eq!(client.reply().await.status, 200);
        assert_eq!(client.ends().await, End::Clean);
    }
    assert_eq!(service.exit(s(10)).await.code, Some(0));
}

#[tokio::test]
async fn a_connection_in_the_backlog_may_ask_after_the_listener_has_closed() {
    let stage = world().await;
    let service = service(&stage).await;
    let address = service.http().await;
    let mut client = at_the_end_of_the_delay(&service, Raw::connect(address)).await;
    eventually("it stops accepting", s(5), async || service.steps().len() >= 3).await;
    client.get(CHEAP).await;
    assert_eq!(client.reply().await.status, 200);
    assert_eq!(service.exit(s(10)).await.code, Some(0));
}

#[tokio::test]
async fn a_request_in_an_idle_connections_socket_when_the_drain_begins_is_answered() {
    let stage = world().await;
    let service = service(&stage).await;
    let mut clients = Vec::new();
    for _ in 0..20 {
        clients.push(kept(&service).await);
    }
    at_the_end_of_the_delay(&service, async {
        for client in &mut clients {
            client.get(CHEAP).await;
        }
    })
    .await;
    for client in &mut clients {
        assert_eq!(client.reply().await.status, 200);
        assert_eq!(client.ends().await, End::Clean);
    }
}

#[tokio::test]
async fn a_request_in_an_http_2_connections_socket_when_the_drain_begins_is_answered() {
    let stage = world().await;
    let service = service(&stage).await;
    let mut connection = Http2::connect(service.http().await, &[]).await;
    connection.get(1, CHEAP).await;
    connection.until(Frame::ends_stream).await.expect("an answer");
    at_the_end_of_the_delay(&service, connection.get(3, CHEAP)).await;
    let head = connection.until(|frame| frame.stream == 3 && frame.kind == kind::HEADERS).await;
    assert_eq!(head.map(|head| head.status()), Ok(200));
    drop(connection);
    assert_eq!(service.exit(s(10)).await.code, Some(0));
}

#[tokio::test]
async fn a_request_on_its_way_when_the_listener_closes_is_answered() {
    let stage = world().await;
    let service = service(&stage).await;
    let mut client = kept(&service).await;
    drain(&service).await;
    eventually("it stops accepting", s(5), async || service.steps().len() >= 3).await;
    client.get(CHEAP).await;
    assert_eq!(client.reply().await.status, 200);
}

/// Connects and asks until it is refused; how often it was answered, or how it was let down.
async fn knock(address: SocketAddr) -> Result<usize, String> {
    let mut answered = 0;
    loop {
        // A handshake that the closing listener ignored is sent again by the kernel a second later, and refused.
        let mut raw = match timeout(s(5), TcpStream::connect(address)).await {
            Ok(Ok(stream)) => Raw::over(stream),
            Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => return Ok(answered),
            other => return Err(format!("after {answered}: {other:?}")),
        };
        raw.get(CHEAP).await;
        let (answer, end) = raw.rest().await;
        if !answer.starts_with(b"HTTP/1.1 200") {
            return Err(format!("after {answered}: {:?} and {end:?}", String::from_utf8_lossy(&answer)));
        }
        answered += 1;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_race_the_close_are_answered_or_refused() {
    let stage = world().await;
    for _ in 0..3 {
        let service = stage.service().set("lifecycle.drain_delay", "50ms").ready().await;
        let address = service.http().await;
        drain(&service).await;
        let knocking: Vec<_> = (0..16).map(|_| tokio::spawn(knock(address))).collect();
        for client in knocking {
            let answered = client.await.expect("no panic");
            assert!(answered.is_ok(), "{answered:?}");
        }
        assert_eq!(service.exit(s(10)).await.code, Some(0));
    }
}

/// Asks on one connection for as long as it is kept, then on another; like [`knock`].
async fn stay(address: SocketAddr) -> Result<usize, String> {
    let mut answered = 0;
    loop {
        let mut raw = match timeout(s(5), TcpStream::connect(address)).await {
            Ok(Ok(stream)) => Raw::over(stream),
            Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => return Ok(answered),
            other => return Err(format!("after {answered}: {other:?}")),
        };
        loop {
            raw.get(CHEAP).await;
            let reply = raw.try_reply().await.map_err(|end| format!("after {answered}: {end:?}"))?;
            answered += 1;
            if reply.header("connection") == "close" {
                break;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_keep_their_connections_lose_no_request() {
    let stage = world().await;
    let service = service(&stage).await;
    let address = service.http().await;
    let staying: Vec<_> = (0..16).map(|_| tokio::spawn(stay(address))).collect();
    tokio::time::sleep(ms(200)).await;
    drain(&service).await;
    for client in staying {
        let answered = client.await.expect("no panic");
        assert!(answered.as_ref().is_ok_and(|answered| *answered > 10), "{answered:?}");
    }
    assert_eq!(service.exit(s(10)).await.code, Some(0));
}

#[tokio::test]
async fn after_the_delay_new_connections_are_refused_while_those_in_flight_finish() {
    let stage = world().await;
    let service = patient(&stage).await;
    let mut raw = Raw::connect(service.http().await).await;
    raw.write(slow(2000)).await;
    under_way(&stage, 2000).await;
    drain(&service).await;
    eventually("it stops accepting", s(5), async || service.steps().len() >= 3).await;
    let refused = TcpStream::connect(service.http().await).await.map_err(|error| error.kind());
    assert_eq!(refused.map(drop), Err(ErrorKind::ConnectionRefused));
    assert_eq!(raw.reply().await.status, 201);
}
