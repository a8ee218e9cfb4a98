//! The stream of events, as Server-Sent Events.

use std::collections::HashSet;

use crate::{
    all_events, becomes, id, order,
    support::{Event, Proxy, Service, Sse, World, bounded, eventually, ms, s},
    told,
};

/// A stream that begins now. It has begun once its head is there.
async fn from_now(service: &Service) -> Sse {
    Sse::open(service.http().await, "/v1/orders/events", None).await
}

fn number(event: &Event) -> i64 {
    event.id.parse().unwrap_or_else(|error| panic!("{error}: {event:?}"))
}

#[tokio::test]
async fn an_orders_events_are_told_as_they_happen() {
    let world = World::new().await;
    let service = world.serve().await;
    let mut events = from_now(&service).await;
    let placed = order(&service, "SKU-3", 2).await;
    let (pending, confirmed) = (events.next().await.expect("one"), events.next().await.expect("two"));
    assert_eq!(pending.event, "pending");
    assert_eq!(pending.json(), placed);
    assert_eq!(confirmed.event, "confirmed");
    assert_eq!(confirmed.json()["id"], placed["id"]);
    assert_eq!(confirmed.json()["status"], "confirmed");
    assert!(number(&confirmed) > number(&pending));
    assert!(events.retry.is_some_and(|retry| (100..500).contains(&retry)), "soon, and not all at once");
}

#[tokio::test]
async fn a_rejected_order_is_told_as_such() {
    let world = World::new().await;
    let service = world.serve().await;
    let mut events = from_now(&service).await;
    let id = id(&order(&service, "SKU-3", 999).await);
    let events = events.until(|event| event.event == "rejected").await;
    assert_eq!(told(&events, &id), ["pending", "rejected"]);
}

#[tokio::test]
async fn no_cache_and_no_proxy_holds_the_stream_back() {
    let world = World::new().await;
    let service = world.serve().await;
    let events = from_now(&service).await;
    let cache = events.headers.get("cache-control").and_then(|value| value.to_str().ok()).unwrap_or_default();
    assert!(cache.contains("no-cache") || cache.contains("no-store"), "{:?}", events.headers);
}

#[tokio::test]
async fn without_a_last_event_id_the_stream_begins_now() {
    let world = World::new().await;
    let service = world.serve().await;
    let old = id(&order(&service, "SKU-1", 1).await);
    becomes(&service, &old, "confirmed").await;
    let mut events = from_now(&service).await;
    let new = id(&order(&service, "SKU-1", 1).await);
    assert_eq!(events.next().await.expect("an event").json()["id"], new.as_str());
}

#[tokio::test]
async fn a_stream_older_than_the_first_read_misses_nothing() {
    let world = World::new().await;
    let proxy = Proxy::before(world.database.address());
    proxy.refuse();
    let launch = world.service().set("database.url", world.database.url_at(proxy.address));
    let service = launch.set("readiness.postgres", "advisory").ready().await;
    let looked = async || !service.logged("cannot read events").is_empty();
    eventually("it has looked in vain", s(5), looked).await;
    proxy.pass();
    // a stream that opens while the database is away begins when it is back, which may be after the order
    eventually("it is reached", s(5), async || service.get("/v1/orders").await.status == 200).await;
    let mut events = from_now(&service).await;
    order(&service, "SKU-1", 1).await;
    assert_eq!(events.next().await.expect("an event").event, "pending");
}

#[tokio::test]
async fn last_event_id_misses_nothing_on_any_replica() {
    let world = World::new().await;
    let (one, two) = tokio::join!(world.serve(), world.serve());
    let mut events = from_now(&one).await;
    let first = id(&order(&one, "SKU-1", 1).await);
    let seen = events.until(|event| event.event == "confirmed").await;
    assert_eq!(told(&seen, &first), ["pending", "confirmed"]);
    drop(events);

    let second = id(&order(&one, "SKU-2", 1).await);
    becomes(&one, &second, "confirmed").await;
    let last = seen.last().expect("there are two").id.clone();
    let mut events = Sse::open(two.http().await, "/v1/orders/events", Some(&last)).await;
    let third = id(&order(&two, "SKU-3", 1).await);
    let after = events.until(|event| event.event == "confirmed" && event.json()["id"] == third.as_str()).await;
    assert_eq!(told(&after, &first), [""; 0], "nothing twice");
    assert_eq!(told(&after, &second), ["pending", "confirmed"]);
    assert_eq!(told(&after, &third), ["pending", "confirmed"]);
}

#[tokio::test]
async fn every_event_is_told_once_however_many_write_at_once() {
    let world = World::new().await;
    let (one, two) = tokio::join!(world.serve(), world.serve());
    let (mut here, mut there) = (from_now(&one).await, from_now(&two).await);
    let mut placed = HashSet::new();
    for round in 0..5 {
        let services = [&one, &two, &one, &two, &one, &two, &one, &two];
        let orders = services.map(|service| order(service, "SKU-1", 1 + round));
        placed.extend(futures_util::future::join_all(orders).await.iter().map(id));
    }
    for events in [&mut here, &mut there] {
        let mut confirmed = HashSet::new();
        let mut seen = Vec::new();
        while confirmed.len() < placed.len() {
            let event = events.next().await.expect("the stream goes on");
            if event.event == "confirmed" {
                confirmed.insert(event.json()["id"].as_str().unwrap_or_default().to_owned());
            }
            seen.push(event);
        }
        assert_eq!(seen.len(), 2 * placed.len());
        assert!(seen.is_sorted_by(|one, two| number(one) < number(two)), "in the order of their numbers");
        for id in &placed {
            assert_eq!(told(&seen, id), ["pending", "confirmed"]);
        }
    }
}

#[tokio::test]
async fn many_read_at_once_and_each_is_told_everything() {
    let world = World::new().await;
    let service = world.serve().await;
    let mut readers = Vec::new();
    for _ in 0..20 {
        readers.push(from_now(&service).await);
    }
    let id = id(&order(&service, "SKU-1", 1).await);
    for mut reader in readers {
        let events = reader.until(|event| event.event == "confirmed").await;
        assert_eq!(told(&events, &id), ["pending", "confirmed"]);
    }
}

#[tokio::test]
async fn a_reader_counts_while_it_is_there() {
    let world = World::new().await;
    let service = world.serve().await;
    let readers = async || service.metric("in_flight", &[("kind", "sse")]).await;
    let events = all_events(&service).await;
    eventually("it is counted", s(5), async || readers().await == Some(1.0)).await;
    drop(events);
    eventually("it is gone", s(5), async || readers().await == Some(0.0)).await;
}

#[tokio::test]
async fn a_stream_outlasts_the_time_that_a_request_may_take() {
    let world = World::new().await;
    let service = world.service().set("http.request_timeout", "2s").ready().await;
    let mut events = from_now(&service).await;
    let nothing = bounded("nothing", s(5), events.try_next());
    let quiet = tokio::time::timeout(ms(2500), nothing).await;
    assert!(quiet.is_err(), "{quiet:?}");
    order(&service, "SKU-1", 1).await;
    assert_eq!(events.next().await.expect("it goes on").event, "pending");
}
