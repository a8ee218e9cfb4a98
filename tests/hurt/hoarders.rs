//! Hoarders of connections: probes are answered, always, and so are clients, because the longest idle makes room.

use std::{net::SocketAddr, time::Instant};

use crate::{
    CHEAP, many_sockets, ms, post, s,
    support::{Connection, Raw, Service, World, always, get},
};

/// What each of them does and then no more.
const KINDS: [&str; 5] = [
    "",
    "GET / HTTP/1.1\r\nhost: te",
    "GET /livez HTTP/1.1\r\nhost: test\r\n\r\n",
    "garbage\r\n\r\n",
    "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
];

async fn hoard(address: SocketAddr, count: usize, bytes: &str) -> Vec<Raw> {
    let mut hoard = Vec::new();
    for _ in 0..count {
        let mut raw = Raw::connect(address).await;
        raw.write(bytes).await;
        hoard.push(raw);
    }
    hoard
}

/// Each probe is answered in under a second.
async fn is_probed(service: &Service, seconds: u64, what: &str) {
    always("/livez answers", s(seconds), async || {
        let asked = Instant::now();
        assert_eq!(service.probe("/livez").await.status, 200, "{what:?}");
        assert!(asked.elapsed() < s(1), "{:?}: {what:?}", asked.elapsed());
        true
    })
    .await;
}

#[tokio::test]
async fn probes_are_answered_whoever_hoards_the_admin_port() {
    many_sockets();
    let world = World::new().await;
    let service = world.serve().await;
    let slow_body = post("content-length: 1000").replace("/v1/orders", "/drain") + "{";
    for kind in KINDS.into_iter().chain([&*slow_body]) {
        let hoard = hoard(service.admin().await, 300, kind).await;
        is_probed(&service, 1, kind).await;
        drop(hoard);
    }
}

#[tokio::test]
async fn probes_are_answered_while_the_admin_port_is_stormed() {
    many_sockets();
    let world = World::new().await;
    let service = world.serve().await;
    let address = service.admin().await;
    let storm = tokio::spawn(async move {
        let mut hoards = std::collections::VecDeque::new();
        loop {
            for kind in KINDS {
                hoards.push_back(hoard(address, 20, kind).await);
            }
            hoards.truncate(hoards.len().min(30));
            while hoards.len() > 20 {
                hoards.pop_front();
            }
            tokio::time::sleep(ms(20)).await;
        }
    });
    is_probed(&service, 5, "a storm").await;
    storm.abort();
}

#[tokio::test]
async fn clients_are_answered_whoever_hoards_the_public_port() {
    many_sockets();
    let world = World::new().await;
    let service = world.service().set("http.max_connections", 50).ready().await;
    let slow_body = post("content-length: 1000") + "{";
    for kind in KINDS.into_iter().chain([&*slow_body]) {
        let hoard = hoard(service.http().await, 200, kind).await;
        for _ in 0..20 {
            let asked = Instant::now();
            let mut client = Connection::h1(service.http().await).await.expect("it accepts");
            assert_eq!(client.send(get(CHEAP)).await.expect("an answer").status, 200, "{kind:?}");
            assert!(asked.elapsed() < s(1), "{:?}: {kind:?}", asked.elapsed());
        }
        drop(hoard);
    }
}
