//! The same events on a WebSocket.

use futures_util::{SinkExt, StreamExt};
use tokio_tungstenite::tungstenite::Message;

use crate::{
    becomes, id, order,
    support::{Service, WebSocket, World, bounded, eventually, s},
};

async fn open(service: &Service, query: &str) -> WebSocket {
    WebSocket::open(service.http().await, &format!("/v1/orders/ws{query}")).await
}

#[tokio::test]
async fn an_orders_events_are_told_as_they_happen() {
    let world = World::new().await;
    let service = world.serve().await;
    let mut socket = open(&service, "").await;
    let placed = order(&service, "SKU-3", 2).await;
    let (mut pending, confirmed) = (socket.next().await.expect("one"), socket.next().await.expect("two"));
    assert!(confirmed["event_id"].as_i64() > pending["event_id"].as_i64());
    assert_eq!(confirmed["status"], "confirmed");
    pending.as_object_mut().expect("an object").remove("event_id");
    assert_eq!(pending, placed);
}

#[tokio::test]
async fn who_comes_back_misses_nothing_on_any_replica() {
    let world = World::new().await;
    let (one, two) = tokio::join!(world.serve(), world.serve());
    let mut socket = open(&one, "").await;
    order(&one, "SKU-1", 1).await;
    let first = socket.next().await.expect("an event");
    drop(socket);
    let second = id(&order(&one, "SKU-2", 1).await);
    becomes(&one, &second, "confirmed").await;

    let mut socket = open(&two, &format!("?after={}", first["event_id"])).await;
    let mut told = Vec::new();
    while told.len() < 3 {
        let event = socket.next().await.expect("an event");
        told.push(event["status"].as_str().unwrap_or_default().to_owned());
    }
    told.sort();
    assert_eq!(told, ["confirmed", "confirmed", "pending"], "the first's end, and all of the second");
}

#[tokio::test]
async fn a_ping_is_answered() {
    let world = World::new().await;
    let service = world.serve().await;
    let mut socket = open(&service, "").await;
    socket.inner.send(Message::Ping("there?".into())).await.expect("it is open");
    let answered = async {
        while let Some(Ok(message)) = socket.inner.next().await {
            if matches!(&message, Message::Pong(text) if text == "there?") {
                return true;
            }
        }
        false
    };
    assert!(bounded("an answer", s(5), answered).await);
}

#[tokio::test]
async fn a_client_that_closes_is_answered_and_gone() {
    let world = World::new().await;
    let service = world.serve().await;
    let sockets = async || service.metric("in_flight", &[("kind", "websocket")]).await;
    let mut socket = open(&service, "").await;
    eventually("it is counted", s(5), async || sockets().await == Some(1.0)).await;
    socket.inner.close(None).await.expect("it is open");
    socket.close().await;
    eventually("it is gone", s(5), async || sockets().await == Some(0.0)).await;
}

#[tokio::test]
async fn a_client_that_is_lost_is_gone_too() {
    let world = World::new().await;
    let service = world.serve().await;
    let socket = open(&service, "").await;
    drop(socket);
    let sockets = async || service.metric("in_flight", &[("kind", "websocket")]).await == Some(0.0);
    eventually("it is gone", s(5), sockets).await;
}

#[tokio::test]
async fn a_get_that_asks_for_no_websocket_is_told_so() {
    let world = World::new().await;
    let service = world.serve().await;
    let reply = service.get("/v1/orders/ws").await;
    assert!(matches!(reply.status, 400 | 426), "{reply:?}");
    reply.problem();
}
