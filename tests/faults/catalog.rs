//! The catalog killed, frozen, cut off and failing: bounded answers, a circuit breaker, and no job dropped.

use std::time::{Duration, Instant};

use service::{
    config,
    grpc::{Peer, Retry},
};

use crate::{
    all_settled, becomes, is_503, order, place,
    support::{Catalog, Proxy, Service, Signal, World, always, eventually, ms, s},
};

const TIMEOUT: &str = "2s";
/// Longer than that, by what a busy machine takes.
const BOUND: Duration = ms(3500);

/// An order is refused in time, and by whose fault; products are served from the cache, with their age.
async fn answers_in_time(service: &Service) {
    let asked = Instant::now();
    let reply = place(service, "SKU-1").await;
    assert!(asked.elapsed() < BOUND, "{:?}", asked.elapsed());
    assert!(matches!(reply.status, 503 | 504), "{reply:?}");
    reply.problem();
    let product = service.get("/v1/products/SKU-1").await;
    assert_eq!(product.status, 200, "{product:?}");
    assert!(product.header("age").parse::<u64>().is_ok(), "{product:?}");
    assert_eq!(service.get("/v1/orders").await.status, 200);
}

async fn takes_orders_again(service: &Service) {
    eventually("it takes orders", s(15), async || place(service, "SKU-1").await.status == 201).await;
}

/// A service whose catalog is behind a proxy.
async fn behind_a_proxy(world: &World) -> (Proxy, Service) {
    let proxy = Proxy::before(("127.0.0.1".to_owned(), world.catalog().address.port()));
    let launch = world.service().set("catalog.endpoint", format!("http://{}", proxy.address));
    let launch = launch.set("catalog.timeout", TIMEOUT);
    (proxy, launch.set("readiness.catalog", "advisory").ready().await)
}

#[tokio::test]
async fn however_the_catalog_fails_answers_are_in_time() {
    let world = World::new().await;
    let (proxy, service) = behind_a_proxy(&world).await;
    type Fault = fn(&World, &Proxy);
    let faults: [(&str, Fault); 4] = [
        ("frozen", |world, _| world.catalog().signal(Signal::STOP)),
        ("reset", |_, proxy| proxy.reset()),
        ("refused", |_, proxy| proxy.refuse()),
        ("blackholed", |_, proxy| proxy.blackhole()),
    ];
    for (name, break_it) in faults {
        println!("{name}");
        order(&service, "SKU-1").await;
        break_it(&world, &proxy);
        for _ in 0..3 {
            answers_in_time(&service).await;
        }
        world.catalog().signal(Signal::CONT);
        proxy.pass();
        takes_orders_again(&service).await;
    }
    all_settled(&world).await;
}

#[tokio::test]
async fn a_catalog_blackholed_from_the_start_is_used_once_it_is_there() {
    let world = World::new().await;
    let proxy = Proxy::before(("127.0.0.1".to_owned(), world.catalog().address.port()));
    proxy.blackhole();
    let launch = world.service().set("catalog.endpoint", format!("http://{}", proxy.address));
    let service = launch.set("catalog.timeout", TIMEOUT).set("readiness.catalog", "advisory").ready().await;
    let asked = Instant::now();
    let reply = place(&service, "SKU-1").await;
    assert!(matches!(reply.status, 503 | 504), "{reply:?}");
    assert!(asked.elapsed() < BOUND, "{:?}", asked.elapsed());
    let product = service.get("/v1/products/SKU-1").await;
    is_503(&product);
    proxy.pass();
    takes_orders_again(&service).await;
    eventually("products are there", s(10), async || service.get("/v1/products/SKU-1").await.status == 200).await;
}

#[tokio::test]
async fn a_cached_products_age_grows_while_the_catalog_is_away() {
    let world = World::new().await;
    let service = world.service().set("catalog.refresh_interval", "200ms").ready().await;
    let age = async || service.get("/v1/products/SKU-1").await.header("age").parse::<u64>().ok();
    always("it is read again and again", s(2), async || age().await <= Some(1)).await;
    world.catalog().kill().await;
    eventually("it is three seconds old", s(10), async || age().await >= Some(3)).await;
}

#[tokio::test]
async fn the_breaker_opens_after_failures_in_a_row_and_half_opens() {
    let world = World::new().await;
    let service = world.service().set("worker.poll_interval", "1h").ready().await;
    let called = || world.catalog().calls("GetProduct", "sku", "FAIL-UNAVAILABLE").len();
    let refused = || {
        let not_called = |error: &str| error.contains("not called");
        service.logged("peer").iter().filter(|line| line["error"].as_str().is_some_and(not_called)).count()
    };
    eventually("it opens", s(40), async || {
        is_503(&place(&service, "FAIL-UNAVAILABLE").await);
        refused() > 0
    })
    .await;
    let before = called();
    for _ in 0..5 {
        is_503(&place(&service, "FAIL-UNAVAILABLE").await);
    }
    // it may have half-opened meanwhile: then one call, with its retries, went through
    assert!(called() <= before + 4, "it is given a moment: {before} calls, then {}", called());
    takes_orders_again(&service).await;
    for _ in 0..3 {
        assert_eq!(place(&service, "SKU-1").await.status, 201, "closed again");
    }
}

#[tokio::test]
async fn a_job_that_cannot_succeed_is_rejected_with_its_reason() {
    let world = World::new().await;
    let service = world.serve().await;
    let poison = order(&service, "FAIL-RESERVE-FAILED_PRECONDITION").await;
    eventually("it is rejected", s(60), async || {
        // what would be half a minute of pauses
        world.database.execute("UPDATE orders SET next_attempt_at = now() WHERE status = 'pending'").await;
        world.database.one::<i64>("SELECT count(*) FROM orders WHERE status = 'rejected'").await == 1
    })
    .await;
    assert_eq!(world.catalog().reserved(&poison), 5);
    let reason: Option<String> = world.database.one("SELECT reason FROM orders").await;
    assert!(reason.as_deref().is_some_and(|reason| reason.contains("FailedPrecondition")), "{reason:?}");
    all_settled(&world).await;
}

#[tokio::test]
async fn a_connection_that_breaks_during_a_call_is_no_refusal() {
    let world = World::new().await;
    // one more refusal, and an order is rejected
    world.database.execute("ALTER TABLE orders ALTER COLUMN refusals SET DEFAULT 4").await;
    let proxy = Proxy::before(("127.0.0.1".to_owned(), world.catalog().address.port()));
    let launch = world.service().set("catalog.endpoint", format!("http://{}", proxy.address));
    let service = launch.set("catalog.timeout", "30s").ready().await;
    let id = order(&service, "SLOW-RESERVE-20000").await;
    eventually("it is being reserved", s(10), async || world.catalog().reserved(&id) == 1).await;
    proxy.reset();
    let given_back = "SELECT count(*) FROM orders WHERE attempts > 0 OR status <> 'pending'";
    eventually("the job has failed", s(10), async || world.database.one::<i64>(given_back).await == 1).await;
    proxy.pass();
    becomes(&service, &id, "confirmed").await;
    all_settled(&world).await;
}

#[tokio::test]
async fn jobs_wait_for_the_catalog_and_none_is_dropped() {
    let world = World::new().await;
    let (proxy, service) = behind_a_proxy(&world).await;
    let mut placed = Vec::new();
    for _ in 0..20 {
        placed.push(order(&service, "SLOW-RESERVE-300").await);
    }
    proxy.refuse();
    let tried = "SELECT count(*) FROM orders WHERE status = 'pending' AND attempts > 0";
    eventually("some have been tried in vain", s(15), async || world.database.one::<i64>(tried).await > 0).await;
    // each of them as often as an hour of trying would
    world.database.execute("UPDATE orders SET attempts = 200 WHERE status = 'pending'").await;
    let pending = "SELECT count(*) FROM orders WHERE status = 'pending'";
    let before: i64 = world.database.one(pending).await;
    always("they wait", s(2), async || world.database.one::<i64>(pending).await == before).await;
    proxy.pass();
    world.database.execute("UPDATE orders SET next_attempt_at = now() WHERE status = 'pending'").await;
    for id in &placed {
        becomes(&service, id, "confirmed").await;
    }
    all_settled(&world).await;
}

/// The client that the service uses, for a call that the example has none of.
pub(crate) fn peer(catalog: &Catalog) -> Peer {
    let settings =
        config::Catalog { endpoint: catalog.endpoint(), connect_timeout: s(1), timeout: s(5), refresh_interval: s(30) };
    Peer::new(&settings).expect("it is an address")
}

pub(crate) mod contract {
    #![allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic, reason = "generated")]
    tonic::include_proto!("catalog.v1");
}

async fn ask(peer: &Peer, remaining: Duration, retry: Retry, sku: &str) -> bool {
    let request = contract::GetProductRequest { sku: sku.to_owned() };
    let call = |request| {
        let mut client = contract::catalog_client::CatalogClient::new(peer.channel());
        async move { client.get_product(request).await }
    };
    peer.call(remaining, retry, request, call).await.is_ok()
}

#[tokio::test]
async fn only_an_idempotent_call_is_sent_again() {
    let catalog = Catalog::start().await;
    let peer = peer(&catalog);
    // its line may come after its answer
    let sent = async |sku: &str, times: usize| {
        let sent = async || catalog.calls("GetProduct", "sku", sku).len() == times;
        eventually(&format!("{sku} is sent {times} times"), s(5), sent).await;
        always("and no more", ms(300), sent).await;
    };
    assert!(!ask(&peer, s(5), Retry::Never, "FAIL-UNAVAILABLE-1").await);
    sent("FAIL-UNAVAILABLE-1", 1).await;
    assert!(ask(&peer, s(5), Retry::Idempotent, "FAIL-UNAVAILABLE-2").await);
    sent("FAIL-UNAVAILABLE-2", 3).await;
    assert!(!ask(&peer, s(5), Retry::Idempotent, "FAIL-INTERNAL-1").await, "nor is what has been looked at");
    sent("FAIL-INTERNAL-1", 1).await;
}

#[tokio::test]
async fn the_catalog_is_told_the_callers_remaining_time() {
    let catalog = Catalog::start().await;
    let peer = peer(&catalog);
    assert!(ask(&peer, s(5), Retry::Never, "SKU-1").await, "it is connected");
    let asked = Instant::now();
    assert!(!ask(&peer, ms(300), Retry::Idempotent, "SLOW-20000").await);
    assert!(asked.elapsed() < ms(1500), "{:?}", asked.elapsed());
    let call = async || catalog.calls("GetProduct", "sku", "SLOW-20000").pop();
    let call = eventually("it was asked", s(5), call).await;
    let told = call.split("grpc-timeout=").nth(1).and_then(|rest| rest.split(' ').next()).expect("it is told");
    let (number, unit) = told.split_at(told.len() - 1);
    let unit = match unit {
        "n" => Duration::from_nanos(1),
        "u" => Duration::from_micros(1),
        "m" => ms(1),
        _ => s(1),
    };
    assert!(unit * number.parse::<u32>().expect("a number") <= ms(300), "{call}");
}
