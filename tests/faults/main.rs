//! A dependency's bad day is an answer with a reason: never a hang, a restart or a lost order.
//!
//! The servers are real, and are killed and frozen; between them and the service stands a proxy that can cut. What the
//! service promises its orders' clients on an ordinary bad day is in `tests/orders/outages.rs`.

#![allow(clippy::disallowed_methods, reason = "its tasks end with it")]

#[path = "../support/mod.rs"]
mod support;

mod breaker;
mod catalog;
mod chaos;
mod clients;
mod cluster;
mod credentials;
mod database;
mod flaky;
mod killed;
mod load;
mod model;
mod names;
mod pgbouncer;
mod pool;
mod process;
mod security;
mod settings;
mod stage;
mod worker;

use serde_json::{Value, json};

use support::{Reply, Service, World, eventually, post, s};

/// Places an order.
async fn place(service: &Service, sku: &str) -> Reply {
    service.send(post("/v1/orders", &json!({ "sku": sku, "quantity": 1 }))).await
}

/// Places an order that is accepted, and returns its id.
async fn order(service: &Service, sku: &str) -> String {
    let reply = place(service, sku).await;
    assert_eq!(reply.status, 201, "{reply:?}");
    reply.json()["id"].as_str().expect("an order has an id").to_owned()
}

/// Waits until an order has this status.
async fn becomes(service: &Service, id: &str, status: &str) {
    let look = async || {
        let order: Value = service.get(&format!("/v1/orders/{id}")).await.json();
        if order["status"] == status { Ok(()) } else { Err(order.to_string()) }
    };
    eventually(&format!("the order is {status}"), s(30), look).await;
}

/// Waits until no order is pending, and checks that each has taken its two steps, each once.
async fn all_settled(world: &World) {
    let pending = "SELECT count(*) FROM orders WHERE status = 'pending'";
    let none = async || Some(world.database.one::<i64>(pending).await).filter(|pending| *pending == 0);
    eventually("no order is pending", s(60), none).await;
    // events are numbered a moment after their commit
    let wrong = async || Some(world.database.one::<i64>(model::WRONG_HISTORIES).await).filter(|wrong| *wrong == 0);
    eventually("each order's history is pending and then one end", s(5), wrong).await;
}

/// A 503 that says when to come back and nothing of what is inside.
fn is_503(reply: &Reply) {
    assert_eq!(reply.status, 503, "{reply:?}");
    assert!(reply.header("retry-after").parse::<u32>().is_ok_and(|seconds| seconds > 0), "{reply:?}");
    reply.problem();
    for inside in ["sqlx", "postgres", "SELECT", "INSERT", "orders_", "127.0.0.1"] {
        assert!(!reply.text().contains(inside), "{inside}: {reply:?}");
    }
}
