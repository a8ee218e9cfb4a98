//! What is old goes, and a reader that wanted it is told.

use crate::{
    becomes, id, order, place,
    support::{Sse, World, eventually, s},
};

const MANY: i64 = 2500;

#[tokio::test]
async fn old_events_go_and_a_reader_behind_them_is_told() {
    let world = World::new().await;
    let fill = "INSERT INTO orders (id, sku, quantity, total_cents, status)
                SELECT gen_random_uuid(), 'SKU-1', 1, 1, 'confirmed' FROM generate_series(1, 2500);
                INSERT INTO order_events (id, order_id, status, at)
                SELECT nextval('order_events_id'), id, status, now() - interval '31 days' FROM orders";
    world.database.execute(fill).await;
    let service = world.serve().await;
    let old = "SELECT count(*) FROM order_events";
    eventually("all but the newest are gone", s(20), async || world.database.one::<i64>(old).await == 1).await;
    for (last, name) in [("0", "reset"), ("7", "reset"), ("2499", "confirmed")] {
        let mut events = Sse::open(service.http().await, "/v1/orders/events", Some(last)).await;
        let event = events.next().await.expect("an event");
        assert_eq!((event.event.as_str(), event.id.parse()), (name, Ok(MANY)), "after {last}");
    }
}

#[tokio::test]
async fn old_idempotency_keys_go_and_young_ones_stay() {
    let world = World::new().await;
    let fill = "INSERT INTO orders (id, sku, quantity, total_cents, status, created_at, idempotency_key)
                SELECT lpad(to_hex(n), 32, '0')::uuid, 'SKU-1', 1, 1, 'confirmed', now() - interval '8 days', 'old-' || n
                FROM generate_series(1, 2500) n";
    world.database.execute(fill).await;
    let service = world.serve().await;
    let first = place(&service, "SKU-2", 1, Some("young")).await.json();
    let old = "SELECT count(*) FROM orders WHERE idempotency_key LIKE 'old-%'";
    eventually("they are gone", s(20), async || world.database.one::<i64>(old).await == 0).await;
    assert_eq!(place(&service, "SKU-2", 1, Some("young")).await.json(), first);
    assert_eq!(place(&service, "SKU-2", 1, Some("old-7")).await.status, 201, "it is a new one");
}

#[tokio::test]
async fn with_retention_off_nothing_goes() {
    let world = World::new().await;
    let launch = world.service().set("retention.events", "off").set("retention.idempotency_keys", "off");
    let service = launch.ready().await;
    let placed = id(&order(&service, "SKU-1", 1).await);
    becomes(&service, &placed, "confirmed").await;
    world.database.execute("UPDATE order_events SET at = now() - interval '10 years'").await;
    let other = world.service().set("retention.events", "1s").ready().await;
    let gone = async || world.database.one::<i64>("SELECT count(*) FROM order_events").await == 1;
    eventually("they go where it is on", s(10), gone).await;
    drop(other);
}
