//! The stop, with work under way.

use std::time::Instant;

use serde_json::json;

use crate::{
    all_events, becomes, history, id, order, place,
    support::{Raw, Signal, Sse, WebSocket, World, eventually, s},
    told,
};

#[tokio::test]
async fn a_request_under_way_is_answered() {
    let world = World::new().await;
    let service = world.service().set("catalog.timeout", "5s").ready().await;
    let slow = place(&service, "SLOW-1500", 1, None);
    let stop = async {
        eventually("the catalogue is asked", s(5), async || {
            !world.catalog().calls("GetProduct", "sku", "SLOW-1500").is_empty()
        })
        .await;
        service.stop().await
    };
    let (reply, exit) = tokio::join!(slow, stop);
    assert_eq!(reply.status, 201);
    assert_eq!(reply.header("connection").to_lowercase(), "close");
    assert_eq!(exit.code, Some(0));
}

#[tokio::test]
async fn a_request_that_outstays_its_budget_is_cut_and_named_and_the_exit_code_says_so() {
    let world = World::new().await;
    let launch = world.service().set("catalog.timeout", "60s").set("http.request_timeout", "60s");
    let service = launch.set("lifecycle.drain_http", "700ms").ready().await;
    let mut raw = Raw::connect(service.http().await).await;
    let body = json!({ "sku": "SLOW-50000", "quantity": 1 }).to_string();
    let head = "POST /v1/orders HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\ncontent-length";
    raw.write(format!("{head}: {}\r\n\r\n{body}", body.len())).await;
    eventually("the catalogue is asked", s(5), async || {
        !world.catalog().calls("GetProduct", "sku", "SLOW-50000").is_empty()
    })
    .await;
    assert_eq!(service.stop().await.code, Some(3));
    assert_eq!(service.step("drain_http").outcome, "timeout");
    assert_eq!(service.steps().len(), 8, "the steps after it are not skipped");
    let left: Vec<_> = service.log().iter().filter_map(|line| line["left"].as_str().map(str::to_owned)).collect();
    let named = left.iter().any(|left| left.contains("POST /v1/orders") && left.contains("127.0.0.1:"));
    assert!(named, "what was cut is named, and whose it was: {left:?}");
}

#[tokio::test]
async fn a_websocket_is_told_that_the_server_goes_away() {
    let world = World::new().await;
    let service = world.serve().await;
    let mut socket = WebSocket::open(service.http().await, "/v1/orders/ws").await;
    service.signal(Signal::TERM);
    let frame = socket.close().await.expect("it has a reason");
    assert_eq!(u16::from(frame.code), 1001);
    assert_eq!(service.exit(s(10)).await.code, Some(0));
}

#[tokio::test]
async fn a_stream_of_events_ends_between_two_events_and_goes_on_elsewhere() {
    let world = World::new().await;
    let (stopping, staying) = tokio::join!(world.serve(), world.serve());
    let mut events = all_events(&stopping).await;
    let first = id(&order(&staying, "SKU-1", 1).await);
    let mut seen = vec![events.next().await.expect("an event")];
    stopping.signal(Signal::TERM);
    while let Some(event) = events.next().await {
        seen.push(event);
    }
    assert_eq!(stopping.exit(s(10)).await.code, Some(0));

    let second = id(&order(&staying, "SKU-2", 1).await);
    let last = seen.last().expect("there is one").id.clone();
    let mut events = Sse::open(staying.http().await, "/v1/orders/events", Some(&last)).await;
    seen.extend(events.until(|event| event.event == "confirmed" && event.json()["id"] == second.as_str()).await);
    assert_eq!(told(&seen, &first), ["pending", "confirmed"]);
    assert_eq!(told(&seen, &second), ["pending", "confirmed"]);
}

#[tokio::test]
async fn streams_go_on_during_the_delay() {
    let world = World::new().await;
    let service = world.service().set("lifecycle.drain_delay", "2s").ready().await;
    let mut events = all_events(&service).await;
    service.signal(Signal::TERM);
    service.phase("draining").await;
    let placed = order(&service, "SKU-1", 1).await;
    assert_eq!(events.next().await.expect("an event").json()["id"], placed["id"]);
    assert!(service.ended().is_none());
}

#[tokio::test]
async fn an_unready_service_takes_orders_and_leaves_their_work_to_others() {
    let world = World::new().await;
    let service = world.service().set("lifecycle.drain_delay", "2s").ready().await;
    service.signal(Signal::TERM);
    eventually("it is unready", s(5), async || !service.steps().is_empty()).await;
    let id = id(&order(&service, "SKU-1", 1).await);
    assert_eq!(service.exit(s(10)).await.code, Some(0));
    assert_eq!(world.catalog().reserved(&id), 0, "it claims nothing new");
    let other = world.serve().await;
    becomes(&other, &id, "confirmed").await;
}

#[tokio::test]
async fn a_job_under_way_is_finished() {
    let world = World::new().await;
    let service = world.service().set("catalog.timeout", "5s").ready().await;
    let id = id(&order(&service, "SLOW-RESERVE-1500", 1).await);
    eventually("it is being reserved", s(10), async || world.catalog().reserved(&id) == 1).await;
    assert_eq!(service.stop().await.code, Some(0));
    let status: String = world.database.one("SELECT status::text FROM orders").await;
    assert_eq!(status, "confirmed");
}

#[tokio::test]
async fn a_job_that_outstays_its_budget_is_handed_back() {
    let world = World::new().await;
    let launch = world.service().set("catalog.timeout", "60s").set("lifecycle.drain_workers", "300ms");
    let service = launch.ready().await;
    let id = id(&order(&service, "SLOW-RESERVE-50000", 1).await);
    eventually("it is being reserved", s(10), async || world.catalog().reserved(&id) == 1).await;
    let asked = Instant::now();
    let exit = service.stop().await;
    assert!(exit.at - asked < s(4), "{:?}", exit.at - asked);
    assert!(service.step("drain_workers").took < s(1));

    let other = world.serve().await;
    becomes(&other, &id, "confirmed").await;
    assert_eq!(told(&history(&other).await, &id), ["pending", "confirmed"]);
}
