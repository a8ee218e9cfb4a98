//! The end of the delay: whoever's connection the kernel has accepted, or whose request has reached the socket, is
//! answered. Then new connections are refused.

use std::{
    io::ErrorKind,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use tokio::{net::TcpStream, time::timeout};

use super::{
    CHEAP, drain, first_fin, kept, patient, slow,
    support::{
        End, Raw, Service, Signal, World, eventually,
        http2::{Frame, Http2, kind},
        ms, s,
    },
    under_way,
};

/// Freezes a service that has a delay of 1.5 s, lets `act` do what comes at the delay's very end, and thaws it when the
/// delay is over: for the service, all of that has happened at once.
async fn at_the_end_of_the_delay<T>(service: &Service, act: impl Future<Output = T>) -> T {
    drain(service).await;
    service.signal(Signal::STOP);
    assert!(service.steps().len() < 2, "the test is late: the delay is over");
    let acted = act.await;
    tokio::time::sleep(ms(1600)).await;
    service.signal(Signal::CONT);
    acted
}

async fn service(world: &World) -> Service {
    world.stand().set("lifecycle.drain_delay", "1500ms").ready().await
}

#[tokio::test]
async fn every_request_in_the_backlog_is_answered() {
    let world = World::new().await;
    let service = service(&world).await;
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
async fn a_connection_in_the_backlog_may_ask_after_the_close() {
    let world = World::new().await;
    let service = service(&world).await;
    let address = service.http().await;
    let mut client = at_the_end_of_the_delay(&service, Raw::connect(address)).await;
    eventually("it stops accepting", s(5), async || service.steps().len() >= 3).await;
    client.get(CHEAP).await;
    assert_eq!(client.reply().await.status, 200);
    assert_eq!(service.exit(s(10)).await.code, Some(0));
}

#[tokio::test]
async fn a_request_in_an_idle_connections_socket_is_answered() {
    let world = World::new().await;
    let service = service(&world).await;
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
async fn a_request_in_an_http_2_connections_socket_is_answered() {
    let world = World::new().await;
    let service = service(&world).await;
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
    let world = World::new().await;
    for _ in 0..5 {
        let service = world.stand().ready().await;
        let mut client = kept(&service).await;
        let began = Instant::now();
        drain(&service).await;
        eventually("it stops accepting", s(5), async || service.steps().len() >= 3).await;
        client.get(CHEAP).await;
        let in_time = Instant::now() < first_fin(&service, began);
        match client.try_reply().await {
            Ok(reply) => return assert_eq!(reply.status, 200),
            Err(end) => assert!(!in_time, "{end:?}"),
        }
    }
    panic!("the test was late each time");
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
    let world = World::new().await;
    for _ in 0..3 {
        let service = world.stand().set("lifecycle.drain_delay", "50ms").ready().await;
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

/// Asks on one connection for as long as it is kept, then on another, until it is refused; like [`knock`].
async fn stay(address: SocketAddr, answered: Arc<AtomicUsize>) -> Result<(), String> {
    loop {
        let mut raw = match timeout(s(5), TcpStream::connect(address)).await {
            Ok(Ok(stream)) => Raw::over(stream),
            Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => return Ok(()),
            other => return Err(format!("after {answered:?}: {other:?}")),
        };
        loop {
            raw.get(CHEAP).await;
            let reply = raw.try_reply().await.map_err(|end| format!("after {answered:?}: {end:?}"))?;
            answered.fetch_add(1, Ordering::Relaxed);
            if reply.header("connection") == "close" {
                break;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_keep_their_connections_lose_no_request() {
    let world = World::new().await;
    let service = world.stand().ready().await;
    let address = service.http().await;
    let counters: [Arc<AtomicUsize>; 16] = Default::default();
    let staying = counters.each_ref().map(|answered| tokio::spawn(stay(address, Arc::clone(answered))));
    let all = async || counters.iter().all(|answered| answered.load(Ordering::Relaxed) > 10);
    eventually("each has been answered more than ten times", s(30), all).await;
    drain(&service).await;
    for client in staying {
        assert_eq!(client.await.expect("no panic"), Ok(()));
    }
    assert_eq!(service.exit(s(10)).await.code, Some(0));
}

#[tokio::test]
async fn new_connections_are_refused_while_requests_finish() {
    let world = World::new().await;
    let service = patient(&world).await;
    let mut raw = Raw::connect(service.http().await).await;
    raw.write(slow(2000)).await;
    under_way(&service, 2000).await;
    drain(&service).await;
    eventually("it stops accepting", s(5), async || service.steps().len() >= 3).await;
    let refused = TcpStream::connect(service.http().await).await.map_err(|error| error.kind());
    assert_eq!(refused.map(drop), Err(ErrorKind::ConnectionRefused));
    assert_eq!(raw.reply().await.status, 201);
}
