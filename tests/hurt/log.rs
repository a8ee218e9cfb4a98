//! What a client makes the service log is bounded, line by line and all together.

use crate::{
    CHEAP, count, is_unharmed, memory, s,
    support::{Output, Raw, World, always},
};

/// A path of 30 KB.
fn long_path() -> String {
    format!("/{}", "x".repeat(30_000))
}

#[tokio::test]
async fn everything_that_is_logged_of_a_request_is_cut() {
    let world = World::new().await;
    let service = world.service().set("telemetry.log_filter", "trace").ready().await;
    let (path, long) = (long_path(), "y".repeat(20_000));
    let mut raw = Raw::connect(service.http().await).await;
    let headers = ["x-request-id", "user-agent", "traceparent", "tracestate", "referer", "x-forwarded-for"];
    let headers = headers.map(|name| format!("{name}: {}\r\n", &long[..4000])).concat();
    raw.write(format!("GET {path} HTTP/1.1\r\nhost: a\r\n{headers}\r\n")).await;
    assert_eq!(raw.reply().await.status, 404);
    raw.write(format!("{} / HTTP/1.1\r\nhost: a\r\n\r\n", "M".repeat(1000))).await;
    raw.reply().await;
    raw.write(format!("GET /v1/orders/{long} HTTP/1.1\r\nhost: a\r\n\r\n")).await;
    raw.reply().await;
    raw.write(format!("GET / HTTP/1.1\r\nhost: a\r\n{long}\r\n\r\n")).await;
    raw.rest().await;
    let text = service.text(false) + &service.text(true);
    let longest = text.lines().max_by_key(|line| line.len()).unwrap_or_default();
    assert!(longest.len() < 8000, "{} bytes: {longest:.300}", longest.len());
    assert!(text.lines().any(|line| line.contains("/xxxx")), "the path is there");
}

#[tokio::test]
async fn long_paths_cost_little_while_the_logs_pipe_is_full() {
    let world = World::new().await;
    let service = world.service().stdout(Output::Unread).spawn();
    service.ready_within(s(15)).await;
    let before = memory(&service).await;
    let mut raw = Raw::connect(service.http().await).await;
    let path = long_path();
    for _ in 0..3000 {
        raw.get(&path).await;
        assert_eq!(raw.reply().await.status, 404);
    }
    is_unharmed(&service, before, 24).await;
    let dropped = service.metrics().await.into_iter().any(|sample| sample.name.contains("log") && sample.value > 0.0);
    assert!(dropped, "it is counted");
    always("it serves", s(1), async || service.get(CHEAP).await.status == 200).await;
    assert_eq!(count(&service, "in_flight", &[("kind", "http")]).await, 0.0);
    assert_eq!(service.stop().await.code, Some(0));
}
