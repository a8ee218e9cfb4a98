//! No request is lost: the public server under stop, bad peers and overload. `docs/lifecycle.md` lists every promise
//! with the test here that keeps it.
//!
//! Races are made certain, not likely: the service is frozen (SIGSTOP), what is to race is done, and it is thawed.

#![allow(clippy::disallowed_methods, reason = "its tasks end with it")]

#[path = "../support/mod.rs"]
mod support;

mod backlog;
mod bounds;
mod cancel;
mod cut;
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
mod triggers;
mod websocket;

use std::{
    any::Any,
    fmt::{self, Debug, Formatter},
    net::SocketAddr,
    ops::Deref,
    time::{Duration, Instant},
};

use serde_json::json;
use tokio::{net::TcpSocket, sync::RwLock};

use support::{Raw, Service, Signal, World, eventually, ms, s};

/// Held by every test: shared by most, alone by those that measure.
static STAGE: RwLock<()> = RwLock::const_new(());

/// A world, and the right to use the machine for it.
struct Stage {
    world: World,
    _turn: Box<dyn Any + Send + Sync>,
}

impl Deref for Stage {
    type Target = World;
    fn deref(&self) -> &World {
        &self.world
    }
}

impl Debug for Stage {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.world.fmt(f)
    }
}

/// A world of the test's own.
async fn world() -> Stage {
    let turn = STAGE.read().await;
    Stage { world: World::new().await, _turn: Box::new(turn) }
}

/// The same while no other test of this crate runs, for those that measure.
async fn alone() -> Stage {
    let turn = STAGE.write().await;
    Stage { world: World::new().await, _turn: Box::new(turn) }
}

/// A cheap path, which needs no dependency.
const CHEAP: &str = "/v1/products/SKU-1";

/// A service that takes no notice of a slow catalogue, so that a test can have slow requests, nor of a queue for its
/// database.
async fn patient(stage: &Stage) -> Service {
    let launch = stage.service().set("catalog.timeout", "20s").set("http.request_timeout", "20s");
    launch.set("database.acquire_timeout", "10s").ready().await
}

/// A request, to be written to a socket, that is answered 201 after that many milliseconds.
fn slow(milliseconds: u64) -> String {
    order(&format!("SLOW-{milliseconds}"))
}

/// An order, to be written to a socket.
fn order(sku: &str) -> String {
    let body = json!({ "sku": sku, "quantity": 1 }).to_string();
    post("/v1/orders", &format!("content-length: {}", body.len())) + &body
}

/// The head of a POST with JSON, and these headers.
fn post(path: &str, headers: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\n{headers}\r\n\r\n")
}

/// Waits until a slow request has come as far as the catalogue.
async fn under_way(stage: &Stage, milliseconds: u64) {
    let sku = format!("SLOW-{milliseconds}");
    let asked = async || !stage.catalog().calls("GetProduct", "sku", &sku).is_empty();
    eventually("the catalogue is asked", s(5), asked).await;
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

/// A connection whose kernel takes no more than a few kilobytes that nobody reads.
async fn narrow(address: SocketAddr) -> Raw {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(4096).expect("it is new");
    Raw::over(socket.connect(address).await.unwrap_or_else(|error| panic!("{address}: {error}")))
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
