//! The pool of connections: what it costs, what it bounds, and what becomes of a connection.

use std::time::Instant;

use futures_util::future::join_all;

use crate::{
    becomes,
    cluster::Cluster,
    is_503, order, place,
    support::{Catalog, Launch, Proxy, Raw, World, eventually, get, ms, s, send},
};

#[tokio::test]
async fn a_read_is_one_round_trip() {
    let world = World::new().await;
    let proxy = Proxy::before(world.database.address());
    let launch = world.service().set("database.url", world.database.url_at(proxy.address));
    let service = launch.set("worker.poll_interval", "1h").ready().await;
    let mut fastest = s(10);
    proxy.slow(ms(100));
    for _ in 0..10 {
        let begun = Instant::now();
        assert_eq!(service.get("/v1/orders").await.status, 200);
        fastest = fastest.min(begun.elapsed());
    }
    assert!((ms(200)..ms(350)).contains(&fastest), "{fastest:?}");
}

#[tokio::test]
async fn clients_that_abort_a_query_cost_no_connection() {
    let world = World::new().await;
    let proxy = Proxy::before(world.database.address());
    let launch = world.service().set("database.url", world.database.url_at(proxy.address));
    let service = launch.set("worker.poll_interval", "1h").ready().await;
    proxy.slow(ms(20));
    let address = service.http().await;
    join_all((0..8).map(async |_| {
        for _ in 0..20 {
            let mut raw = Raw::connect(address).await;
            raw.get("/v1/orders").await;
            // in the middle of the query
            tokio::time::sleep(ms(25)).await;
        }
    }))
    .await;
    assert_eq!(service.get("/v1/orders").await.status, 200);
    // the check has one, and the pool four
    assert!(proxy.connections() <= 6, "{}", proxy.connections());
}

#[tokio::test]
async fn a_frozen_database_leaves_cached_reads_alone() {
    let Some(cluster) = Cluster::start().await else { return };
    let catalog = Catalog::start().await;
    let launch = Launch::new().set("database.url", cluster.url()).set("catalog.endpoint", catalog.endpoint());
    let launch = launch.set("database.max_connections", 4).set("database.max_waiting", 8);
    let service = launch.set("http.max_in_flight", 32).ready().await;
    let address = service.http().await;
    eventually("products are cached", s(5), async || service.get("/v1/products/SKU-1").await.status == 200).await;
    cluster.freeze();
    let asked: Vec<_> = (0..100).map(|_| tokio::spawn(send(address, get("/v1/orders")))).collect();
    let refused = async || {
        let labels = [("reason", "crowded")];
        service.metric("db_client_connections_refused_total", &labels).await.is_some_and(|refused| refused >= 80.0)
    };
    eventually("most are refused", s(5), refused).await;
    for _ in 0..20 {
        let begun = Instant::now();
        assert_eq!(service.get("/v1/products/SKU-1").await.status, 200);
        assert!(begun.elapsed() < ms(500), "{:?}", begun.elapsed());
        is_503(&service.get("/v1/orders").await);
    }
    cluster.thaw();
    for reply in join_all(asked).await {
        let reply = reply.expect("it does not panic").expect("it is answered");
        assert!(matches!(reply.status, 200 | 503), "{reply:?}");
    }
    eventually("it serves", s(10), async || service.get("/v1/orders").await.status == 200).await;
}

#[tokio::test]
async fn no_read_fails_when_connections_are_ended() {
    let world = World::new().await;
    let service = world.service().set("worker.poll_interval", "1h").ready().await;
    let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
               WHERE datname = current_database() AND application_name <> '(test)'";
    for _ in 0..5 {
        join_all((0..4).map(|_| service.get("/v1/orders"))).await;
        assert!(world.database.one::<i64>(end).await > 0);
        for _ in 0..8 {
            assert_eq!(service.get("/v1/orders").await.status, 200);
        }
    }
}

#[tokio::test]
async fn a_column_that_changes_its_type_fails_nobody() {
    let world = World::new().await;
    let service = world.serve().await;
    order(&service, "SKU-1").await;
    for kind in ["varchar(64)", "text"] {
        for reply in join_all((0..20).map(|_| service.get("/v1/orders"))).await {
            assert_eq!(reply.status, 200, "{reply:?}");
        }
        let alter = format!("ALTER TABLE orders ALTER sku TYPE {kind}");
        sqlx::raw_sql(sqlx::AssertSqlSafe(alter)).execute(world.database.pool()).await.expect("it is SQL");
        for reply in join_all((0..20).map(|_| service.get("/v1/orders"))).await {
            assert_eq!(reply.status, 200, "{reply:?}");
        }
        let id = order(&service, "SKU-1").await;
        becomes(&service, &id, "confirmed").await;
    }
}

#[tokio::test]
async fn a_transaction_that_was_given_up_holds_no_lock() {
    let world = World::new().await;
    let service = world.service().set("worker.poll_interval", "1h").ready().await;
    let fail = "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$;
                CREATE TRIGGER fail BEFORE INSERT ON order_outbox FOR EACH ROW EXECUTE FUNCTION fail()";
    world.database.execute(fail).await;
    assert_eq!(place(&service, "SKU-1").await.status, 500);
    let open = "SELECT count(*) FROM pg_stat_activity
                WHERE datname = current_database() AND state LIKE 'idle in transaction%'";
    eventually("no transaction is open", s(2), async || world.database.one::<i64>(open).await == 0).await;
}

#[tokio::test]
async fn a_database_on_ipv6_is_reached() {
    let Some(cluster) = Cluster::start().await else { return };
    let url = cluster.url().replace("127.0.0.1", "[::1]");
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        return println!("skipped: this machine has no IPv6");
    }
    let catalog = Catalog::start().await;
    let launch = Launch::new().set("database.url", url).set("catalog.endpoint", catalog.endpoint());
    let service = launch.ready().await;
    assert_eq!(place(&service, "SKU-1").await.status, 201);
}
