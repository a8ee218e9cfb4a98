//! SIGKILL at any moment: no accepted order is lost, none ends twice.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use serde_json::json;

use crate::{
    becomes, history, id, order,
    support::{Signal, With, World, eventually, post, s, send},
    told,
};

#[tokio::test]
async fn a_job_interrupted_by_a_crash_is_done_by_another_replica() {
    let world = World::new().await;
    let crashing = world.service().set("catalog.timeout", "30s").ready().await;
    let id = id(&order(&crashing, "SLOW-RESERVE-20000", 1).await);
    eventually("it is being reserved", s(10), async || world.catalog().reserved(&id) == 1).await;
    crashing.kill().await;

    let service = world.serve().await;
    becomes(&service, &id, "confirmed").await;
    assert_eq!(told(&history(&service).await, &id), ["pending", "confirmed"]);
}

#[tokio::test]
async fn whenever_it_crashes_nothing_is_lost_or_ends_twice() {
    let world = World::new().await;
    let mut accepted = Vec::new();
    for round in 0..6 {
        let service = world.serve().await;
        let address = service.http().await;
        let count = Arc::new(AtomicUsize::new(0));
        let clients: Vec<_> = (0..4)
            .map(|client| tokio::spawn(place_until_it_crashes(address, round, client, Arc::clone(&count))))
            .collect();
        // Another moment each time: what the others are at when one is accepted is anybody's guess.
        let enough = async || count.load(Ordering::Relaxed) > 3 * round;
        eventually("some are accepted", s(30), enough).await;
        service.signal(Signal::KILL);
        for client in clients {
            accepted.extend(client.await.expect("a client does not panic"));
        }
    }

    let service = world.serve().await;
    for (key, id) in &accepted {
        becomes(&service, id, "confirmed").await;
        let body = json!({ "sku": "SLOW-RESERVE-5", "quantity": 1 });
        let again = service.send(post("/v1/orders", &body).with("idempotency-key", key)).await;
        assert_eq!(again.json()["id"], id.as_str(), "the key {key} still has its order");
    }
    let events = history(&service).await;
    for (_, id) in &accepted {
        assert_eq!(told(&events, id), ["pending", "confirmed"], "{id}");
    }
}

/// Places one order after the other, each with a key of its own; returns the key and the id of those accepted.
async fn place_until_it_crashes(
    address: SocketAddr,
    round: usize,
    client: usize,
    count: Arc<AtomicUsize>,
) -> Vec<(String, String)> {
    let mut accepted = Vec::new();
    for number in 0.. {
        let key = format!("{round}-{client}-{number}");
        let body = json!({ "sku": "SLOW-RESERVE-5", "quantity": 1 });
        match send(address, post("/v1/orders", &body).with("idempotency-key", &key)).await {
            Ok(reply) if reply.status == 201 => {
                accepted.push((key, id(&reply.json())));
                count.fetch_add(1, Ordering::Relaxed);
            }
            Ok(_) => {}
            Err(_) => break,
        }
    }
    accepted
}

#[tokio::test]
async fn a_reader_interrupted_by_a_crash_misses_nothing() {
    let world = World::new().await;
    let (crashing, service) = tokio::join!(world.serve(), world.serve());
    let mut events = crate::all_events(&crashing).await;
    let first = id(&order(&service, "SKU-1", 1).await);
    let mut seen = events.until(|event| event.event == "pending").await;
    crashing.kill().await;
    while let Ok(Some(event)) = events.try_next().await {
        seen.push(event);
    }
    becomes(&service, &first, "confirmed").await;
    let second = id(&order(&service, "SKU-1", 1).await);
    let last = seen.last().expect("there is one").id.clone();
    let mut events = crate::Sse::open(service.http().await, "/v1/orders/events", Some(&last)).await;
    seen.extend(events.until(|event| event.event == "confirmed" && event.json()["id"] == second.as_str()).await);
    assert_eq!(told(&seen, &first), ["pending", "confirmed"]);
    assert_eq!(told(&seen, &second), ["pending", "confirmed"]);
}
