//! What outlasts its budget is aborted, counted by kind and named, and the exit code says so.

use serde_json::json;

use super::{
    CHEAP, drain, slow,
    support::{
        Raw, STEPS, Service, WebSocket, World, eventually,
        http2::{Http2, INITIAL_WINDOW_SIZE, kind},
        narrow, s,
    },
    under_way,
};

/// A service that has so long for the drain.
async fn serve(world: &World, budget: &str) -> Service {
    let launch = world.stand().set("http.request_timeout", "20s");
    launch.set("lifecycle.drain_http", budget).ready().await
}

/// One that has half a second.
async fn hasty(world: &World) -> Service {
    serve(world, "500ms").await
}

/// Begins the stop while a job runs that keeps the service for a while after the drain: so its metrics can be read.
async fn drain_with_a_job(service: &Service) {
    assert_eq!(service.post("/jobs/3500", &json!({})).await.status, 202);
    eventually("the job runs", s(5), async || !service.logged("job").is_empty()).await;
    drain(service).await;
}

/// Begins the stop and waits until one thing of that kind is aborted: what the log and the exit code say.
async fn aborted(service: &Service, kind: &str) -> String {
    drain_with_a_job(service).await;
    super::counted(service, "http_server_aborted_total", &[("kind", kind)], 1.0).await;
    assert_eq!(service.metric("http_server_aborted_total", &[("kind", kind)]).await, Some(1.0));
    assert_eq!(service.exit(s(10)).await.code, Some(3));
    assert_eq!(service.step("drain_http").outcome, "timeout");
    assert_eq!(service.steps().len(), STEPS.len(), "the steps after it are not skipped");
    let mut named = service.logged("aborted: it outlasted its budget").into_iter();
    let line = named.next().expect("what was aborted is named");
    assert!(named.next().is_none(), "and nothing else is");
    assert_eq!(line["level"], "ERROR");
    line["left"].as_str().expect("a text").to_owned()
}

/// It says who it was, and how old: `http POST /echo from 127.0.0.1:1234 for 1.234s`.
fn check_names(left: &str, what: [&str; 2], raw: &tokio::net::TcpStream) {
    let peer = raw.local_addr().expect("it was connected").to_string();
    for part in what.into_iter().chain([peer.as_str()]) {
        assert!(left.contains(part), "{part} is not in {left}");
    }
    let age = left.rsplit_once(" for ").map_or("", |(_, age)| age);
    let seconds = match age.strip_suffix("ms") {
        Some(milliseconds) => milliseconds.parse::<f64>().map(|milliseconds| milliseconds / 1000.0),
        None => age.trim_end_matches('s').parse(),
    };
    assert!(seconds.as_ref().is_ok_and(|age| (0.5..10.0).contains(age)), "{seconds:?} in {left}");
}

#[tokio::test]
async fn a_request_is_aborted_counted_and_named() {
    let world = World::new().await;
    let service = hasty(&world).await;
    let mut raw = Raw::connect(service.http().await).await;
    raw.write(slow(15_000)).await;
    under_way(&service, 15_000).await;
    check_names(&aborted(&service, "http").await, ["POST", "/slow"], &raw.stream);
    let (answer, _) = raw.rest().await;
    assert_eq!(String::from_utf8_lossy(&answer), "", "half an answer is none");
}

#[tokio::test]
async fn a_websocket_is_aborted_counted_and_named() {
    let world = World::new().await;
    let service = hasty(&world).await;
    // Reads nothing, and so echoes nothing.
    let socket = WebSocket::open(service.http().await, "/ws").await;
    check_names(&aborted(&service, "websocket").await, ["GET", "/ws"], socket.inner.get_ref());
}

#[tokio::test]
async fn a_stream_of_events_is_aborted_counted_and_named() {
    let world = World::new().await;
    let service = hasty(&world).await;
    let mut raw = narrow(service.http().await).await;
    raw.write("GET /events?count=5000 HTTP/1.1\r\nhost: test\r\n\r\n").await;
    assert_eq!(raw.head().await.status, 200);
    let (ours, theirs) = (raw.stream.local_addr(), raw.stream.peer_addr());
    let [ours, theirs] = [ours, theirs].map(|address| format!(":{:04X}", address.expect("it is connected").port()));
    eventually("the kernel takes no more for it", s(5), async || {
        let table = std::fs::read_to_string("/proc/net/tcp").expect("it is Linux");
        let rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let mut row = rows.filter(|row| row[1].ends_with(&theirs) && row[2].ends_with(&ours));
        let unsent = row.next().and_then(|row| u32::from_str_radix(row[4].split(':').next()?, 16).ok());
        unsent.filter(|unsent| *unsent >= 128 * 1024).ok_or(unsent)
    })
    .await;
    check_names(&aborted(&service, "sse").await, ["GET", "/events"], &raw.stream);
    let (rest, _) = raw.rest().await;
    assert!(!rest.ends_with(b"0\r\n\r\n"), "it does not look like a clean end");
}

#[tokio::test]
async fn an_answer_that_is_not_taken_is_aborted_and_named() {
    let world = World::new().await;
    let service = hasty(&world).await;
    let mut raw = narrow(service.http().await).await;
    raw.get("/large").await;
    assert_eq!(raw.head().await.status, 200);
    check_names(&aborted(&service, "http").await, ["GET", "/large"], &raw.stream);
}

#[tokio::test]
async fn an_http_2_answer_that_is_not_taken_is_aborted_and_named() {
    let world = World::new().await;
    let service = hasty(&world).await;
    let mut connection = Http2::connect(service.http().await, &[(INITIAL_WINDOW_SIZE, 0)]).await;
    connection.get(1, CHEAP).await;
    connection.until(|frame| frame.kind == kind::HEADERS).await.expect("an answer's head");
    check_names(&aborted(&service, "http").await, ["GET", CHEAP], &connection.stream);
}

#[tokio::test]
async fn an_http_2_answer_half_taken_is_aborted_and_named() {
    let world = World::new().await;
    let service = hasty(&world).await;
    let mut connection = Http2::connect(service.http().await, &[]).await;
    connection.get(1, "/large").await;
    connection.until(|frame| frame.kind == kind::DATA).await.expect("its beginning");
    check_names(&aborted(&service, "http").await, ["GET", "/large"], &connection.stream);
}

#[tokio::test]
async fn what_is_aborted_ends_then_and_not_with_the_process() {
    let world = World::new().await;
    let service = hasty(&world).await;
    let mut raw = Raw::connect(service.http().await).await;
    raw.write(slow(15_000)).await;
    under_way(&service, 15_000).await;
    drain_with_a_job(&service).await;
    raw.rest().await;
    let after = service.steps().into_iter().find(|step| step.name == "drain_workers");
    assert!(after.is_none(), "a job still runs, which needs what the request had: {after:?}");
}

#[tokio::test]
async fn what_has_time_enough_is_not_aborted() {
    let world = World::new().await;
    let service = serve(&world, "3s").await;
    let mut raw = Raw::connect(service.http().await).await;
    raw.write(slow(1000)).await;
    under_way(&service, 1000).await;
    drain_with_a_job(&service).await;
    assert_eq!(raw.reply().await.status, 201);
    drop(raw);
    assert_eq!(service.exit(s(10)).await.code, Some(0));
}
