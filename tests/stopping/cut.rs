//! What outlasts its budget is cut, counted by kind and named, and the exit code says so.

use crate::{
    Stage, drain, narrow, slow,
    support::{
        Raw, Service, WebSocket, eventually,
        http2::{Http2, INITIAL_WINDOW_SIZE, kind},
        s,
    },
    under_way, world,
};

/// A service that has so long for the drain.
async fn serve(stage: &Stage, budget: &str) -> Service {
    let launch = stage.service().set("catalog.timeout", "20s").set("http.request_timeout", "20s");
    launch.set("lifecycle.drain_http", budget).ready().await
}

/// One that has half a second.
async fn hasty(stage: &Stage) -> Service {
    serve(stage, "500ms").await
}

/// Begins the stop while a job runs that keeps the service for a while after the drain: so its metrics can be read.
async fn drain_with_a_job(stage: &Stage, service: &Service) {
    let order = serde_json::json!({ "sku": "SLOW-RESERVE-3500", "quantity": 1 });
    let id = service.post("/v1/orders", &order).await.json()["id"].as_str().expect("an id").to_owned();
    eventually("the job runs", s(5), async || stage.catalog().reserved(&id) == 1).await;
    drain(service).await;
}

/// Begins the stop and waits for the cut of one thing of that kind: what the log and the exit code say.
async fn cut_of(stage: &Stage, service: &Service, kind: &str) -> String {
    drain_with_a_job(stage, service).await;
    crate::counted(service, "http_server_aborted_total", &[("kind", kind)], 1.0).await;
    assert_eq!(service.metric("http_server_aborted_total", &[("kind", kind)]).await, Some(1.0));
    assert_eq!(service.exit(s(10)).await.code, Some(3));
    assert_eq!(service.step("drain_http").outcome, "timeout");
    let lines = service.log().into_iter().map(|line| line.to_string());
    let mut named = lines.filter(|line| line.contains("\"ERROR\"") && line.contains("aborted"));
    let line = named.next().expect("what was cut is named");
    assert_eq!(named.next(), None, "and nothing else is");
    line
}

/// The line says who it was, and how old.
fn names(line: &str, what: [&str; 2], raw: &tokio::net::TcpStream) {
    let peer = raw.local_addr().expect("it was connected").to_string();
    for part in what.into_iter().chain([peer.as_str()]) {
        assert!(line.contains(part), "{part} is not in {line}");
    }
    let age = line.contains("ms") || line.contains("age") || line.contains("for ");
    assert!(age, "no age in {line}");
}

#[tokio::test]
async fn a_request_is_cut_counted_and_named() {
    let stage = world().await;
    let service = hasty(&stage).await;
    let mut raw = Raw::connect(service.http().await).await;
    raw.write(slow(15_000)).await;
    under_way(&stage, 15_000).await;
    names(&cut_of(&stage, &service, "http").await, ["POST", "/v1/orders"], &raw.stream);
    let (answer, _) = raw.rest().await;
    assert_eq!(String::from_utf8_lossy(&answer), "", "half an answer is none");
}

#[tokio::test]
async fn a_websocket_is_cut_counted_and_named() {
    let stage = world().await;
    let service = hasty(&stage).await;
    // Reads nothing, and so echoes nothing.
    let socket = WebSocket::open(service.http().await, "/v1/orders/ws").await;
    names(&cut_of(&stage, &service, "websocket").await, ["GET", "/v1/orders/ws"], socket.inner.get_ref());
}

#[tokio::test]
async fn a_stream_of_events_is_cut_counted_and_named() {
    let stage = world().await;
    crate::sse::write_events(&stage, 5000).await;
    let service = hasty(&stage).await;
    let mut raw = narrow(service.http().await).await;
    raw.write("GET /v1/orders/events HTTP/1.1\r\nhost: test\r\nlast-event-id: 0\r\n\r\n").await;
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
    names(&cut_of(&stage, &service, "sse").await, ["GET", "/v1/orders/events"], &raw.stream);
    let (rest, _) = raw.rest().await;
    assert!(!rest.ends_with(b"0\r\n\r\n"), "it does not look like a clean end");
}

#[tokio::test]
async fn an_answer_that_its_client_does_not_take_is_cut_counted_and_named() {
    let stage = world().await;
    let service = hasty(&stage).await;
    let mut raw = narrow(service.http().await).await;
    raw.get("/docs/swagger-ui-bundle.js").await;
    assert_eq!(raw.head().await.status, 200);
    names(&cut_of(&stage, &service, "http").await, ["GET", "/docs"], &raw.stream);
}

#[tokio::test]
async fn an_http_2_stream_that_takes_no_bytes_is_cut_counted_and_named() {
    let stage = world().await;
    let service = hasty(&stage).await;
    let mut connection = Http2::connect(service.http().await, &[(INITIAL_WINDOW_SIZE, 0)]).await;
    connection.get(1, "/v1/orders?limit=7").await;
    connection.until(|frame| frame.kind == kind::HEADERS).await.expect("an answer's head");
    names(&cut_of(&stage, &service, "http").await, ["GET", "/v1/orders"], &connection.stream);
}

#[tokio::test]
async fn an_http_2_answer_of_which_its_client_takes_a_part_is_cut_counted_and_named() {
    let stage = world().await;
    let service = hasty(&stage).await;
    let mut connection = Http2::connect(service.http().await, &[]).await;
    connection.get(1, "/docs/swagger-ui-bundle.js").await;
    connection.until(|frame| frame.kind == kind::DATA).await.expect("its beginning");
    names(&cut_of(&stage, &service, "http").await, ["GET", "/docs"], &connection.stream);
}

#[tokio::test]
async fn what_is_cut_ends_then_and_not_with_the_process() {
    let stage = world().await;
    let service = hasty(&stage).await;
    let mut raw = Raw::connect(service.http().await).await;
    raw.write(slow(15_000)).await;
    under_way(&stage, 15_000).await;
    drain_with_a_job(&stage, &service).await;
    raw.rest().await;
    let after = service.steps().into_iter().find(|step| step.name == "drain_workers");
    assert!(after.is_none(), "a job still runs, which needs what the request had: {after:?}");
}

#[tokio::test]
async fn what_has_time_enough_is_not_cut() {
    let stage = world().await;
    let service = serve(&stage, "3s").await;
    let mut raw = Raw::connect(service.http().await).await;
    raw.write(slow(1000)).await;
    under_way(&stage, 1000).await;
    drain_with_a_job(&stage, &service).await;
    assert_eq!(raw.reply().await.status, 201);
    drop(raw);
    assert_eq!(service.exit(s(10)).await.code, Some(0));
}
