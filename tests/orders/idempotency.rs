//! A key makes a POST safe to send again, whatever became of the first.

use std::sync::Arc;

use serde_json::json;

use crate::{
    becomes, history, id, order, place,
    support::{Proxy, Service, Signal, With, World, eventually, ms, post, request, s},
};

#[tokio::test]
async fn a_replayed_key_gets_the_first_answer() {
    let world = World::new().await;
    let service = world.serve().await;
    let first = place(&service, "SKU-1", 2, Some("key-1")).await;
    assert_eq!(first.status, 201);
    becomes(&service, &id(&first.json()), "confirmed").await;
    let again = place(&service, "SKU-1", 2, Some("key-1")).await;
    assert_eq!(again.status, 201);
    assert_eq!(again.json(), first.json(), "as it was answered then, pending");
    assert_eq!(again.header("location"), first.header("location"));
    assert_eq!(history(&service).await.len(), 2, "one order, pending and confirmed");
}

#[tokio::test]
async fn a_replayed_key_gets_it_from_every_replica() {
    let world = World::new().await;
    let (one, two) = tokio::join!(world.serve(), world.serve());
    let first = place(&one, "SKU-1", 2, Some("key-1")).await;
    assert_eq!(place(&two, "SKU-1", 2, Some("key-1")).await.json(), first.json());
}

#[tokio::test]
async fn a_replayed_key_gets_it_while_the_catalog_is_down() {
    let world = World::new().await;
    let service = world.serve().await;
    let first = place(&service, "SKU-1", 2, Some("key-1")).await;
    world.catalog().kill().await;
    let again = place(&service, "SKU-1", 2, Some("key-1")).await;
    assert_eq!((again.status, again.json()), (201, first.json()));
}

#[tokio::test]
async fn a_key_raced_by_twenty_makes_one_order() {
    let world = World::new().await;
    let (one, two) = tokio::join!(world.serve(), world.serve());
    let services = [Arc::new(one), Arc::new(two)];
    let mut racers = tokio::task::JoinSet::new();
    for racer in 0..20 {
        let service: Arc<Service> = Arc::clone(&services[racer % 2]);
        racers.spawn(async move { place(&service, "SKU-1", 2, Some("raced")).await });
    }
    let replies = racers.join_all().await;
    for reply in &replies {
        assert_eq!(reply.status, 201, "{reply:?}");
        assert_eq!(reply.json(), replies[0].json());
    }
    becomes(&services[0], &id(&replies[0].json()), "confirmed").await;
    assert_eq!(history(&services[0]).await.len(), 2);
}

#[tokio::test]
async fn the_same_key_with_another_body_is_422() {
    let world = World::new().await;
    let service = world.serve().await;
    assert_eq!(place(&service, "SKU-1", 2, Some("key-1")).await.status, 201);
    for (sku, quantity) in [("SKU-1", 3), ("SKU-2", 2)] {
        let reply = place(&service, sku, quantity, Some("key-1")).await;
        assert_eq!(reply.status, 422, "{reply:?}");
        reply.problem();
    }
}

#[tokio::test]
async fn the_same_order_written_otherwise_is_the_same_body() {
    let world = World::new().await;
    let service = world.serve().await;
    let first = place(&service, "SKU-1", 2, Some("key-1")).await;
    let request = request(hyper::Method::POST, "/v1/orders").with("content-type", "application/json");
    let request = request.with("idempotency-key", "key-1").carrying("{ \"quantity\" : 2,\n \"sku\" : \"SKU-1\" }");
    let again = service.send(request).await;
    assert_eq!((again.status, again.json()), (201, first.json()));
}

#[tokio::test]
async fn a_key_whose_order_was_refused_may_be_used_again() {
    let world = World::new().await;
    let service = world.serve().await;
    assert_eq!(place(&service, "SKU-999", 1, Some("key-1")).await.status, 422);
    assert_eq!(place(&service, "FAIL-UNAVAILABLE", 1, Some("key-1")).await.status, 503);
    assert_eq!(place(&service, "SKU-9", 1, Some("key-1")).await.status, 201);
}

#[tokio::test]
async fn without_a_key_every_post_is_an_order() {
    let world = World::new().await;
    let service = world.serve().await;
    let (one, two) = (order(&service, "SKU-1", 1).await, order(&service, "SKU-1", 1).await);
    assert_ne!(one["id"], two["id"]);
}

#[tokio::test]
async fn a_key_that_is_none_is_400() {
    let world = World::new().await;
    let service = world.serve().await;
    for key in [String::new(), "x".repeat(256), "with space".to_owned(), "caf\u{e9}".to_owned()] {
        let reply = place(&service, "SKU-1", 1, Some(&key)).await;
        assert_eq!(reply.status, 400, "{key}: {reply:?}");
        reply.problem();
    }
    assert_eq!(place(&service, "SKU-1", 1, Some(&"x".repeat(255))).await.status, 201);
}

#[tokio::test]
async fn a_crash_between_commit_and_answer_makes_no_second_order() {
    let world = World::new().await;
    let proxy = Proxy::before(world.database.address());
    let launch = world.service().set("database.url", world.database.url_at(proxy.address));
    let launch = launch.set("database.acquire_timeout", "30s").set("database.statement_timeout", "30s");
    let crashing = launch.set("http.request_timeout", "60s").ready().await;
    let address = crashing.http().await;
    // For so long is on its way what the database says about the commit.
    proxy.slow(ms(500));
    let body = json!({ "sku": "SKU-1", "quantity": 2 });
    let request = post("/v1/orders", &body).with("idempotency-key", "key-1");
    let client = tokio::spawn(crate::support::send(address, request));
    let committed = async || world.database.one::<i64>("SELECT count(*) FROM orders").await == 1;
    eventually("it is committed", s(20), committed).await;
    crashing.signal(Signal::KILL);
    assert!(client.await.expect("it does not panic").is_err(), "the client was not answered");

    let service = world.serve().await;
    let again = place(&service, "SKU-1", 2, Some("key-1")).await;
    assert_eq!(again.status, 201);
    becomes(&service, &id(&again.json()), "confirmed").await;
    assert_eq!(world.database.one::<i64>("SELECT count(*) FROM orders").await, 1);
}
