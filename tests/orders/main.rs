//! The example domain, from outside: every route, every way to misuse it, and what is never lost.
//!
//! Goes with `src/orders/`.

#![allow(clippy::disallowed_methods, reason = "its tasks end with it")]

#[path = "../support/mod.rs"]
mod support;

mod bad_input;
mod contract;
mod crash;
mod create;
mod delay;
mod events;
mod idempotency;
mod outages;
mod pages;
mod plans;
mod positions;
mod products;
mod retention;
mod slow_readers;
mod start;
mod stop;
mod websocket;
mod worker;

use serde_json::{Value, json};

use support::{Event, Reply, Service, Sse, With, eventually, post, s};

/// Places an order, with a key if there is one.
async fn place(service: &Service, sku: &str, quantity: i64, key: Option<&str>) -> Reply {
    let mut request = post("/v1/orders", &json!({ "sku": sku, "quantity": quantity }));
    if let Some(key) = key {
        request = request.with("idempotency-key", key);
    }
    service.send(request).await
}

/// Places an order that is accepted, and returns it.
async fn order(service: &Service, sku: &str, quantity: i64) -> Value {
    let reply = place(service, sku, quantity, None).await;
    assert_eq!(reply.status, 201, "{reply:?}");
    reply.json()
}

/// An order's id.
fn id(order: &Value) -> String {
    order["id"].as_str().unwrap_or_else(|| panic!("no id: {order}")).to_owned()
}

/// The order as it is now.
async fn read(service: &Service, id: &str) -> Value {
    let reply = service.get(&format!("/v1/orders/{id}")).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    reply.json()
}

/// Waits until an order has this status.
async fn becomes(service: &Service, id: &str, status: &str) {
    let look = async || {
        let order = read(service, id).await;
        if order["status"] == status { Ok(()) } else { Err(order.to_string()) }
    };
    eventually(&format!("the order is {status}"), s(20), look).await;
}

/// The stream of events, from the first there ever was.
async fn all_events(service: &Service) -> Sse {
    Sse::open(service.http().await, "/v1/orders/events", Some("0")).await
}

/// Every event there is, up to those of an order placed for the purpose, which are left out.
async fn history(service: &Service) -> Vec<Event> {
    let mark = id(&order(service, "SKU-100", 1).await);
    let ours = |event: &Event| event.json()["id"] == mark.as_str();
    let mut events = all_events(service).await;
    let events = events.until(|event| ours(event) && event.event != "pending").await;
    events.into_iter().filter(|event| !ours(event)).collect()
}

/// What became of an order, by the names of its events.
fn told(events: &[Event], id: &str) -> Vec<String> {
    let ours = events.iter().filter(|event| event.json()["id"] == id);
    ours.map(|event| event.event.clone()).collect()
}
