//! Metrics, as Prometheus reads them.

use std::io::Write;
use std::process::{Command, Stdio};

use hyper::Method;

use crate::support::{World, request};

const DURATION: &str = "http_server_request_duration_seconds";

#[tokio::test]
async fn promtool_finds_nothing_to_say() {
    let tool = Command::new("promtool").args(["check", "metrics"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let Ok(mut tool) = tool else {
        return eprintln!("skipped: no promtool, which Debian has in its package prometheus");
    };
    let world = World::new().await;
    let service = world.serve().await;
    service.get("/openapi.json").await;
    let page = service.probe("/metrics").await.text();
    tool.stdin.take().expect("it is piped").write_all(page.as_bytes()).expect("it reads");
    let output = tool.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{}\n{page}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn a_request_counts_by_method_route_and_status() {
    let world = World::new().await;
    let service = world.serve().await;
    for _ in 0..3 {
        service.get("/openapi.json").await;
    }
    service.send(request(Method::from_bytes(b"BREW").expect("a token"), "/openapi.json")).await;
    service.get("/nowhere").await;
    service.get("/nowhere/else").await;
    let count = async |method: &str, route: &str, status: &str| {
        let labels = [("http_request_method", method), ("http_route", route), ("http_response_status_code", status)];
        service.metric(&format!("{DURATION}_count"), &labels).await
    };
    assert_eq!(count("GET", "/openapi.json", "200").await, Some(3.0));
    assert_eq!(count("_OTHER", "/openapi.json", "405").await, Some(1.0));
    assert_eq!(count("GET", "", "404").await, Some(2.0));
    let buckets = service.metrics().await;
    for bound in ["0.0005", "0.001", "0.005", "10"] {
        let found = buckets.iter().any(|sample| sample.is(&format!("{DURATION}_bucket"), &[("le", bound)]));
        assert!(found, "no bucket of {bound} s");
    }
}
