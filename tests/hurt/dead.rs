//! A peer that is gone without a word, because its machine or the network is: found within a minute.

use serde_json::json;
use socket2::{SockFilter, SockRef};

use crate::{
    count, http2,
    support::{
        Raw, World, eventually,
        http2::{END_HEADERS, END_STREAM, get_head, kind},
        s,
    },
    upgraded,
};

/// From now on whatever comes to this socket is dropped before the kernel sees it: nothing is acknowledged.
fn unplug(stream: &tokio::net::TcpStream) {
    SockRef::from(stream).attach_filter(&[SockFilter::new(0x06, 0, 0, 0)]).expect("it is our own");
}

#[tokio::test]
async fn dead_peers_of_streams_are_found_in_a_minute() {
    let world = World::new().await;
    let service = world.serve().await;
    let mut events = Raw::connect(service.http().await).await;
    events.get("/v1/orders/events").await;
    assert_eq!(events.head().await.status, 200);
    let socket = upgraded(&service).await;
    let mut over_http2 = http2(&service, 1, &[]).await.remove(0);
    over_http2.write(kind::HEADERS, END_STREAM | END_HEADERS, 1, &get_head("/v1/orders/events")).await;
    over_http2.until(|frame| frame.kind == kind::HEADERS).await.expect("it is open");
    let streams = async || {
        let sse = count(&service, "in_flight", &[("kind", "sse")]).await;
        (sse, count(&service, "in_flight", &[("kind", "websocket")]).await)
    };
    eventually("all are under way", s(5), async || streams().await == (2.0, 1.0)).await;
    unplug(&events.stream);
    unplug(&socket.stream);
    unplug(&over_http2.stream);
    eventually("they are gone", s(60), async || streams().await == (0.0, 0.0)).await;
}

#[tokio::test]
async fn dead_peers_that_are_sent_something_are_found_in_a_minute() {
    let world = World::new().await;
    let service = world.serve().await;
    let mut events = Raw::connect(service.http().await).await;
    events.get("/v1/orders/events").await;
    assert_eq!(events.head().await.status, 200);
    let socket = upgraded(&service).await;
    unplug(&events.stream);
    unplug(&socket.stream);
    // what is sent to them takes the keep-alive's place
    eventually("they are gone", s(60), async || {
        service.post("/v1/orders", &json!({ "sku": "SKU-1", "quantity": 1 })).await;
        let sse = count(&service, "in_flight", &[("kind", "sse")]).await;
        sse + count(&service, "in_flight", &[("kind", "websocket")]).await == 0.0
    })
    .await;
}
