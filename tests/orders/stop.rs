//! The stop, with orders under way. What the server does with any request is in `tests/server/lifecycle`.

use std::{collections::BTreeMap, time::Instant};

use serde_json::json;

use crate::{
    becomes, history, id, order,
    support::{Event, Signal, Sse, World, eventually, s},
    told,
};

#[tokio::test]
async fn a_reader_goes_on_elsewhere_and_misses_and_repeats_nothing() {
    let world = World::new().await;
    let (first, second) = tokio::join!(world.serve(), world.serve());
    let mut seen = Vec::new();
    let placing = async {
        let order = json!({ "sku": "SKU-1", "quantity": 1 });
        for _ in 0..40 {
            assert_eq!(second.post("/v1/orders", &order).await.status, 201);
        }
    };
    let reading = async {
        let mut events = Sse::open(first.http().await, "/v1/orders/events", Some("0")).await;
        seen.extend(events.next().await);
        first.signal(Signal::TERM);
        while let Some(event) = events.next().await {
            seen.push(event);
        }
        let last = seen.last().map(|event| event.id.clone());
        let mut events = Sse::open(second.http().await, "/v1/orders/events", last.as_deref()).await;
        while seen.len() < 80 {
            seen.push(events.next().await.expect("it goes on"));
        }
    };
    tokio::join!(placing, reading);
    let ids: Vec<u64> = seen.iter().map(|event| event.id.parse().expect("a number")).collect();
    assert!(ids.is_sorted_by(|one, next| one < next), "{ids:?}");
    assert_eq!(told_of_each(&seen), vec![["pending", "confirmed"]; 40]);
}

/// What was told of each order.
fn told_of_each(events: &[Event]) -> Vec<Vec<&str>> {
    let mut orders = BTreeMap::<String, Vec<&str>>::new();
    for event in events {
        orders.entry(event.json()["id"].to_string()).or_default().push(&event.event);
    }
    orders.into_values().collect()
}

#[tokio::test]
async fn an_unready_service_leaves_an_orders_work_to_others() {
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
