//! No client can hurt it: whatever one sends, memory stays bounded, probes are answered, and the others are served.
//! `battery` does all of it at once. `docs/http.md` says which requirement of HTTP each test keeps.

#![allow(clippy::disallowed_methods, reason = "its tasks end with it")]

#[path = "../support/mod.rs"]
mod support;

mod attacks;
mod battery;
mod bodies;
mod budget;
mod dead;
mod descriptors;
mod docs;
mod hoarders;
mod log;
mod requests;
mod slow;
mod websocket;

use std::{net::SocketAddr, time::Instant};

use serde_json::json;
use tokio::net::TcpSocket;

use support::{Raw, Service, eventually, http2::Http2, ms, os, s};

const MIB: u64 = 1024 * 1024;

/// A cheap path, which needs no dependency.
const CHEAP: &str = "/v1/products/SKU-1";

/// A path whose answer is over a megabyte.
const BIG: &str = "/docs/swagger-ui-bundle.js";

/// An order, to be written to a socket.
fn order() -> String {
    let body = json!({ "sku": "SKU-1", "quantity": 1 }).to_string();
    post(&format!("content-length: {}", body.len())) + &body
}

/// The head of an order's POST, with these headers.
fn post(headers: &str) -> String {
    format!("POST /v1/orders HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\n{headers}\r\n\r\n")
}

/// It still does its work, and without delay.
async fn serves(service: &Service) {
    let asked = Instant::now();
    assert_eq!(service.get(CHEAP).await.status, 200);
    assert!(asked.elapsed() < s(1), "others wait: {:?}", asked.elapsed());
}

/// Its memory when it has been used a little.
async fn memory(service: &Service) -> u64 {
    for _ in 0..50 {
        serves(service).await;
    }
    os::resident(service.pid())
}

/// It serves others, and has not grown by more than so much.
async fn is_unharmed(service: &Service, before: u64, mib: u64) {
    serves(service).await;
    let grown = os::resident(service.pid()).saturating_sub(before) / MIB;
    println!("{grown} MiB more");
    assert!(grown < mib, "{grown} MiB more");
}

/// A connection whose kernel takes no more than a few kilobytes that nobody reads.
async fn narrow(address: SocketAddr) -> Raw {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(4096).expect("it is new");
    Raw::over(socket.connect(address).await.unwrap_or_else(|error| panic!("{address}: {error}")))
}

/// A WebSocket of bytes: it answers nothing by itself.
async fn upgraded(service: &Service) -> Raw {
    let mut raw = Raw::connect(service.http().await).await;
    let head = "GET /v1/orders/ws HTTP/1.1\r\nhost: test\r\nconnection: upgrade\r\nupgrade: websocket";
    raw.write(format!("{head}\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\r\n"))
        .await;
    assert_eq!(raw.head().await.status, 101);
    raw
}

/// As many HTTP/2 connections, with these settings.
async fn http2(service: &Service, count: usize, settings: &[(u16, u32)]) -> Vec<Http2> {
    let mut connections = Vec::new();
    for _ in 0..count {
        connections.push(Http2::connect(service.http().await, settings).await);
    }
    connections
}

/// What a counter says; 0 where it has not counted yet.
async fn count(service: &Service, name: &str, labels: &[(&str, &str)]) -> f64 {
    service.metric(name, labels).await.unwrap_or(0.0)
}

/// Waits until nothing of this kind is under way.
async fn none_in_flight(service: &Service, kind: &str) {
    let none = async || service.metric("in_flight", &[("kind", kind)]).await == Some(0.0);
    eventually(&format!("no {kind} is under way"), s(90), none).await;
}

/// Writes as fast as the peer takes it, for a while.
async fn flood(raw: &mut Raw, bytes: &[u8], milliseconds: u64) {
    let write = async {
        loop {
            raw.write(bytes).await;
            // a connection that is gone takes no time
            tokio::task::yield_now().await;
        }
    };
    let _ = tokio::time::timeout(ms(milliseconds), write).await;
}

/// Lets this process have as many sockets as it may.
fn many_sockets() {
    os::limit_open_files(rustix::process::getpid(), 20_000);
}
