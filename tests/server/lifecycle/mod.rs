//! No request is lost: the public server under stop, bad peers and overload. `docs/lifecycle.md` lists every promise
//! with the test here that keeps it. What is tested has the routes of `examples/stand`.
//!
//! Races are made certain, not likely: the service is frozen (SIGSTOP), what is to race is done, and it is thawed.

mod abort;
mod backlog;
mod bounds;
mod cancel;
mod delay;
mod docs;
mod drain;
mod exhaustion;
mod floods;
mod http2;
mod liveness;
mod output;
mod overload;
mod quiet;
mod smuggling;
mod sse;
mod steps;
mod triggers;
mod websocket;

use std::time::{Duration, Instant};

use crate::support::{self, Raw, Service, Signal, World, eventually, ms, s};

/// A cheap path, which needs no dependency.
const CHEAP: &str = "/cheap";

/// A service that has time for slow requests.
async fn patient(world: &World) -> Service {
    world.stand().set("http.request_timeout", "20s").ready().await
}

/// A request, to be written to a socket, that is answered 201 after that many milliseconds.
fn slow(milliseconds: u64) -> String {
    post(&format!("/slow/{milliseconds}"), "content-length: 2") + "{}"
}

/// A request with a body, to be written to a socket, that is answered 201.
fn echo() -> String {
    let body = r#"{"text":"28 bytes of JSON."}"#;
    post("/echo", &format!("content-length: {}", body.len())) + body
}

/// The head of a POST with JSON, and these headers.
fn post(path: &str, headers: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\n{headers}\r\n\r\n")
}

/// Waits until a slow request has come as far as its handler.
async fn under_way(service: &Service, milliseconds: u64) {
    let begun = async || service.logged("slow").iter().any(|line| line["milliseconds"] == milliseconds);
    eventually("the request is under way", s(5), begun).await;
}

/// A connection that has had an answer and is kept.
async fn kept(service: &Service) -> Raw {
    let mut raw = Raw::connect(service.http().await).await;
    raw.get(CHEAP).await;
    assert_eq!(raw.reply().await.status, 200);
    raw
}

/// Begins the stop.
async fn drain(service: &Service) {
    service.signal(Signal::TERM);
    service.phase("draining").await;
}

/// The earliest at which a stop that was asked for after `began`, and has closed the listener, ends an idle connection.
fn first_fin(service: &Service, began: Instant) -> Instant {
    let listened: Duration = service.steps().iter().take(3).map(|step| step.took).sum();
    // LAST_MOMENT is 250 ms; the log rounds
    began + listened + ms(240)
}

/// What a counter says; 0 where it has not counted yet.
async fn count(service: &Service, name: &str, labels: &[(&str, &str)]) -> f64 {
    service.metric(name, labels).await.unwrap_or(0.0)
}

/// Waits for a counter.
async fn counted(service: &Service, name: &str, labels: &[(&str, &str)], wanted: f64) {
    let look = async || Some(count(service, name, labels).await).filter(|count| *count >= wanted).ok_or("less");
    eventually(&format!("{name}{labels:?} is {wanted}"), s(30), look).await;
}

/// How many have timed out for want of this.
async fn timed_out(service: &Service, bound: &str) {
    counted(service, "http_server_timeouts_total", &[("bound", bound)], 1.0).await;
}

/// It still does its work, and without delay.
async fn serves(service: &Service) {
    let asked = Instant::now();
    assert_eq!(service.get(CHEAP).await.status, 200);
    assert!(asked.elapsed() < ms(1000), "others wait: {:?}", asked.elapsed());
}
