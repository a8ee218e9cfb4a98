//! Products, from a cache.

use serde_json::json;

use crate::support::{Catalog, Proxy, World, bounded, eventually, ms, s};

#[tokio::test]
async fn a_product_is_what_the_catalog_says() {
    let world = World::new().await;
    let service = world.serve().await;
    let reply = service.get("/v1/products/SKU-12").await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.json(), json!({ "sku": "SKU-12", "name": "Product SKU-12", "price_cents": 1200 }));
}

#[tokio::test]
async fn an_unknown_product_is_404() {
    let world = World::new().await;
    let service = world.serve().await;
    for unknown in ["SKU-0", "SKU-101", "sku-1", "%00", "%ff"] {
        let reply = service.get(&format!("/v1/products/{unknown}")).await;
        assert!(reply.status == 404 || reply.status == 400, "{unknown}: {reply:?}");
        reply.problem();
    }
}

#[tokio::test]
async fn products_are_served_while_the_catalog_is_down() {
    let world = World::new().await;
    let service = world.serve().await;
    world.catalog().kill().await;
    for number in 1..=100 {
        let path = format!("/v1/products/SKU-{number}");
        assert_eq!(bounded("from the cache", ms(500), service.get(&path)).await.status, 200);
    }
}

#[tokio::test]
async fn it_is_not_ready_before_the_cache_is_warm() {
    let world = World::new().await;
    let proxy = Proxy::before(("127.0.0.1".to_owned(), world.catalog().address.port()));
    proxy.blackhole();
    let launch = world.service().set("catalog.endpoint", format!("http://{}", proxy.address));
    let service = launch.set("readiness.catalog", "required").spawn();
    let named = async || {
        let checks = service.probe("/readyz").await.json();
        checks["checks"]["products"]["status"] == "fail" && checks["checks"]["postgres"]["status"] == "pass"
    };
    eventually("the cache is what is missing", s(5), named).await;
    assert_eq!(service.probe("/readyz").await.status, 503);
    assert_eq!(service.probe("/livez").await.status, 200);
    proxy.pass();
    service.ready().await;
    assert_eq!(service.get("/v1/products/SKU-1").await.status, 200, "from its first moment");
}

#[tokio::test]
async fn the_cache_is_read_again_in_the_background() {
    let world = World::new().await;
    let proxy = Proxy::before(("127.0.0.1".to_owned(), world.catalog().address.port()));
    let launch = world.service().set("catalog.endpoint", format!("http://{}", proxy.address));
    let service = launch.set("catalog.refresh_interval", "100ms").ready().await;
    let before = proxy.connections();
    proxy.reset();
    eventually("it tries again", s(5), async || proxy.connections() > before + 1).await;
    assert_eq!(service.get("/v1/products/SKU-1").await.status, 200, "a failure forgets nothing");
    proxy.pass();
    service.ready().await;
}

#[tokio::test]
async fn a_catalog_that_comes_back_is_used_again() {
    let world = World::new().await;
    let service = world.serve().await;
    let address = world.catalog().address.to_string();
    world.catalog().kill().await;
    let order = json!({ "sku": "SKU-1", "quantity": 1 });
    assert_eq!(service.post("/v1/orders", &order).await.status, 503);
    let _another = Catalog::start_at(&address).await;
    eventually("orders are taken again", s(10), async || service.post("/v1/orders", &order).await.status == 201).await;
}

#[tokio::test]
async fn a_catalog_that_sends_too_much_is_an_error() {
    let world = World::new().await;
    for (bound, value) in [("products.max_count", "99"), ("products.max_size", "1KiB")] {
        let service = world.service().set(bound, value).spawn();
        let refused = async || {
            let lines = service.logged("cannot read the catalog: products are served as they were");
            lines.iter().any(|line| line["error"].as_str().is_some_and(|error| error.contains("more than products.")))
        };
        eventually(&format!("{bound} is passed"), s(10), refused).await;
        assert_eq!(service.probe("/readyz").await.status, 503);
    }
    world.service().set("products.max_count", 100).ready().await;
}

#[tokio::test]
async fn a_catalog_that_sends_for_too_long_is_an_error() {
    let world = World::new().await;
    let proxy = Proxy::before(("127.0.0.1".to_owned(), world.catalog().address.port()));
    proxy.slow(ms(300));
    let launch = world.service().set("catalog.endpoint", format!("http://{}", proxy.address));
    let service = launch.set("products.timeout", "200ms").spawn();
    let late = async || {
        let lines = service.logged("cannot read the catalog: products are served as they were");
        lines.iter().any(|line| line["error"].as_str().is_some_and(|error| error.contains("200ms")))
    };
    eventually("the reading is given up", s(10), late).await;
}
