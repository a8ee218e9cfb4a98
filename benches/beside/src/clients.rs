//! Clients that wrk cannot be: connections that stay, streams, and a clock at the far end of an event.

use std::{
    cell::RefCell,
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Notify,
    task::{LocalSet, spawn_local},
    time::timeout,
};

const PATIENCE: Duration = Duration::from_secs(10);

/// An answer with all of its body, if that has a length.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
}

/// Connections that are open until dropped.
#[derive(Debug)]
pub(crate) struct Held(Vec<TcpStream>);

impl Held {
    /// The connections themselves.
    pub(crate) fn into_streams(self) -> Vec<TcpStream> {
        self.0
    }
}

/// One `GET` on a connection of its own.
pub(crate) async fn get(address: SocketAddr, path: &str) -> anyhow::Result<Answer> {
    exchange(&mut TcpStream::connect(address).await?, &format!("GET {path} HTTP/1.1\r\nhost: bench\r\n\r\n")).await
}

/// Opens `count` connections, each of which has sent `request` and had an answer with that status.
pub(crate) async fn hold(address: SocketAddr, count: usize, request: &str, status: u16) -> anyhow::Result<Held> {
    let mut held = Held(Vec::with_capacity(count));
    for number in 0..count {
        let mut stream = TcpStream::connect(address).await.with_context(|| format!("connection {number}"))?;
        let answer = exchange(&mut stream, request).await?;
        ensure!(answer.status == status, "connection {number}: status {}", answer.status);
        held.0.push(stream);
    }
    Ok(held)
}

/// Makes an order, and returns its id.
pub(crate) async fn create(address: SocketAddr) -> anyhow::Result<String> {
    let answer = exchange(&mut TcpStream::connect(address).await?, &order()).await?;
    ensure!(answer.status == 201, "POST: status {}", answer.status);
    let order: serde_json::Value = serde_json::from_slice(&answer.body)?;
    Ok(order["id"].as_str().context("an order without id")?.to_owned())
}

/// Sends the request `count` times on one connection.
pub(crate) async fn repeat(address: SocketAddr, count: usize, request: &str) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    for _ in 0..count {
        exchange(&mut stream, request).await?;
    }
    Ok(())
}

/// One request, and its answer.
async fn exchange(stream: &mut TcpStream, request: &str) -> anyhow::Result<Answer> {
    stream.write_all(request.as_bytes()).await?;
    let mut read = Vec::with_capacity(1024);
    let answer = async {
        loop {
            if let Some(end) = read.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                let head = String::from_utf8_lossy(&read[..end]).to_ascii_lowercase();
                let status = head.split(' ').nth(1).context("no status")?.parse()?;
                let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
                let length: usize = length.map_or(Ok(0), |length| length.trim().parse())?;
                if read.len() >= end + 4 + length {
                    return Ok(Answer { status, body: read.split_off(end + 4) });
                }
            }
            if stream.read_buf(&mut read).await? == 0 {
                bail!("closed before the answer's end");
            }
        }
    };
    timeout(PATIENCE, answer).await.context("no answer")?
}

/// What the streams of a fan-out have seen.
#[derive(Debug, Default)]
struct Seen {
    pending: RefCell<Vec<Instant>>,
    settled: RefCell<usize>,
    changed: Notify,
}

/// Opens that many event streams, then makes orders one by one. Returns the times from each `POST`'s begin to each
/// stream's `pending` event.
pub(crate) async fn fan_out(address: SocketAddr, streams: usize, orders: usize) -> anyhow::Result<Vec<Duration>> {
    let local = LocalSet::new();
    local.run_until(fan_out_here(address, streams, orders)).await
}

async fn fan_out_here(address: SocketAddr, streams: usize, orders: usize) -> anyhow::Result<Vec<Duration>> {
    let seen = Rc::new(Seen::default());
    for stream in hold(address, streams, EVENTS, 200).await?.0 {
        spawn_local(follow(stream, seen.clone()));
    }
    let mut poster = TcpStream::connect(address).await?;
    poster.set_nodelay(true)?;
    let mut delays = Vec::with_capacity(streams * orders);
    for _ in 0..orders {
        let began = Instant::now();
        let answer = exchange(&mut poster, &order()).await?;
        ensure!(answer.status == 201, "POST: status {}", answer.status);
        // the next order waits for the worker too, or its second event would be in the way of the next first one
        while seen.pending.borrow().len() < streams || *seen.settled.borrow() < streams {
            timeout(PATIENCE, seen.changed.notified()).await.context("an event did not reach every stream")?;
        }
        delays.extend(seen.pending.take().into_iter().map(|at| at - began));
        seen.settled.replace(0);
    }
    Ok(delays)
}

async fn follow(mut stream: TcpStream, seen: Rc<Seen>) {
    let mut read = Vec::with_capacity(4096);
    while stream.read_buf(&mut read).await.is_ok_and(|count| count > 0) {
        while let Some(end) = read.windows(2).position(|bytes| bytes == b"\n\n") {
            let block = String::from_utf8_lossy(&read[..end]);
            if block.contains("event: pending") {
                seen.pending.borrow_mut().push(Instant::now());
            } else if block.contains("event: ") {
                *seen.settled.borrow_mut() += 1;
            }
            drop(read.drain(..end + 2));
            seen.changed.notify_one();
        }
    }
}

pub(crate) const PRODUCT: &str = "GET /v1/products/SKU-1 HTTP/1.1\r\nhost: bench\r\n\r\n";
pub(crate) const EVENTS: &str = "GET /v1/orders/events HTTP/1.1\r\nhost: bench\r\n\r\n";
pub(crate) const WEBSOCKET: &str = "GET /v1/orders/ws HTTP/1.1\r\nhost: bench\r\nconnection: upgrade\r\n\
    upgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
pub(crate) const NEW_ORDER: &str = r#"{"sku":"SKU-1","quantity":2}"#;

/// `POST /v1/orders`.
fn order() -> String {
    format!(
        "POST /v1/orders HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{NEW_ORDER}",
        NEW_ORDER.len()
    )
}
