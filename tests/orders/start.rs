//! The start, as far as the orders have a part in it.

use crate::support::{Catalog, Database, Launch, Proxy, Signal, World, eventually, s};

#[tokio::test]
async fn sigterm_while_it_warms_its_cache_is_a_clean_exit() {
    let world = World::new().await;
    let proxy = Proxy::before(("127.0.0.1".to_owned(), world.catalog().address.port()));
    proxy.blackhole();
    let launch = world.service().set("catalog.endpoint", format!("http://{}", proxy.address));
    let service = launch.unset("lifecycle.drain_delay").spawn();
    eventually("it asks the catalog", s(5), async || proxy.connections() > 0).await;
    let asked = std::time::Instant::now();
    service.signal(Signal::TERM);
    let exit = service.exit(s(10)).await;
    assert_eq!(exit.code, Some(0));
    assert!(exit.at - asked < s(1), "{:?}", exit.at - asked);
}

#[tokio::test]
async fn it_waits_for_a_catalog_that_comes_later() {
    let world = World::new().await;
    let address = world.catalog().address.to_string();
    world.catalog().kill().await;
    let service = world.service().spawn();
    let checks = async || {
        let checks = service.probe("/readyz").await.json();
        checks["checks"]["catalog"]["status"] == "fail" && checks["checks"]["postgres"]["status"] == "pass"
    };
    eventually("the catalog is named", s(5), checks).await;
    let _late = Catalog::start_at(&address).await;
    service.ready_within(s(5)).await;
}

#[tokio::test]
async fn a_migration_that_fails_is_an_error_and_changes_nothing() {
    let database = Database::empty().await;
    database.execute("CREATE TABLE orders (what INT)").await;
    let failed = Launch::new().args(["migrate"]).set("database.url", database.url()).run().await;
    assert_eq!(failed.code, Some(1), "{failed:#?}");
    assert!((failed.stdout + &failed.stderr).contains("orders"), "it says what is in the way");
    let tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public' AND tablename <> '_sqlx_migrations'";
    assert_eq!(database.one::<i64>(tables).await, 1, "what was there before");
}
