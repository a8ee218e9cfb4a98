//! PostgreSQL killed, frozen, cut off and failed over under load.

use std::time::{Duration, Instant};

use sqlx::{Connection, PgConnection};

use crate::{
    cluster::Cluster,
    load::Load,
    model,
    support::{Catalog, Launch, Proxy, Service, always, eventually, ms, s},
};

const ACQUIRE_TIMEOUT: Duration = ms(1000);
const STATEMENT_TIMEOUT: Duration = ms(1500);
/// For a machine that is busy with other tests.
const MARGIN: Duration = ms(1500);
const BOUND: Duration = s(4);

const POOL: usize = 4;

fn launch(url: String, catalog: &Catalog) -> Launch {
    assert!(ACQUIRE_TIMEOUT + STATEMENT_TIMEOUT + MARGIN <= BOUND);
    Launch::new()
        .set("database.url", url)
        .set("catalog.endpoint", catalog.endpoint())
        .set("database.max_connections", POOL)
        .set("database.acquire_timeout", "1s")
        .set("database.statement_timeout", "1500ms")
        .set("readiness.interval", "200ms")
        .set("worker.poll_interval", "100ms")
        .set("worker.concurrency", 2)
        // the catalog shares this machine with the load
        .set("catalog.timeout", "2500ms")
}

/// Such a service, which its clients are served by and go on asking.
async fn under_load(url: String, catalog: &Catalog) -> (Service, Load) {
    let service = launch(url, catalog).ready().await;
    let load = Load::on(&service).await;
    let begun = Instant::now();
    eventually("it serves", s(10), async || load.serves(begun)).await;
    (service, load)
}

/// Everything is as it was: same process, ready, and the pool can be used to its last connection.
async fn is_whole(service: &Service, load: &Load, since: Instant, within: Duration) {
    let left = within.saturating_sub(since.elapsed());
    eventually("reads and writes go well", left, async || load.serves(since)).await;
    eventually("it is ready", s(5), async || service.probe("/readyz").await.status == 200).await;
    assert!(service.ended().is_none());
    assert_eq!(service.metric("db_client_connections_max", &[]).await, Some(POOL as f64));
}

/// So many of the pool's connections can be in use at once as it has; a permit that leaked would be missing.
async fn every_place_of_the_pool_is_usable(service: &Service, connection: &mut PgConnection) {
    let mut lock = connection.begin().await.expect("it answers");
    sqlx::raw_sql("LOCK TABLE orders IN ACCESS EXCLUSIVE MODE").execute(&mut *lock).await.expect("it is there");
    let address = service.http().await;
    let ask = |_| tokio::spawn(crate::support::send(address, crate::support::get("/v1/orders")));
    let asked: Vec<_> = (0..2 * POOL).map(ask).collect();
    let all = async || {
        let used = service.metric("db_client_connections", &[("state", "used")]).await;
        let sql = "SELECT count(DISTINCT pid) FROM pg_locks WHERE NOT granted AND relation = 'orders'::regclass";
        let waiting: i64 = sqlx::query_scalar(sql).fetch_one(&mut *lock).await.expect("it answers");
        if waiting == POOL as i64 { Ok(()) } else { Err((used, waiting)) }
    };
    eventually("each waits for the lock on a connection of its own", s(5), all).await;
    lock.rollback().await.expect("it answers");
    for answer in asked {
        answer.await.expect("it does not panic").expect("it is answered");
    }
}

/// Every order that was accepted is there, and has come to one end.
async fn nothing_is_lost(load: Load, connection: &mut PgConnection) {
    let accepted = load.stop().await;
    let sql = "SELECT count(*) FILTER (WHERE status = 'pending'), count(*) FROM orders";
    let settled = async || {
        let counts: (i64, i64) = sqlx::query_as(sql).fetch_one(&mut *connection).await.expect("it answers");
        if counts.0 == 0 { Ok(counts.1) } else { Err(counts) }
    };
    let orders = eventually("no order is pending", s(60), settled).await;
    assert!(orders >= accepted as i64, "{accepted} were accepted, {orders} are there");
    // events are numbered after their orders are committed
    let right = async || {
        let wrong: i64 =
            sqlx::query_scalar(model::WRONG_HISTORIES).fetch_one(&mut *connection).await.expect("it answers");
        if wrong == 0 { Ok(()) } else { Err(wrong) }
    };
    eventually("every history is right", s(5), right).await;
}

async fn stays_alive(service: &Service, during: Duration) {
    always("it is alive", during, async || service.probe("/livez").await.status == 200).await;
}

#[tokio::test]
async fn postgres_killed_under_load_is_only_503s_for_5_s() {
    let Some(mut cluster) = Cluster::start().await else { return };
    let catalog = Catalog::start().await;
    let (service, load) = under_load(cluster.url(), &catalog).await;
    for _ in 0..2 {
        let killed = Instant::now();
        cluster.kill().await;
        stays_alive(&service, s(2)).await;
        assert_eq!(service.probe("/readyz").await.status, 503);
        cluster.restart().await;
        is_whole(&service, &load, Instant::now(), s(5)).await;
        load.only_503s(killed, BOUND);
    }
    let mut connection = cluster.connect().await;
    nothing_is_lost(load, &mut connection).await;
    every_place_of_the_pool_is_usable(&service, &mut connection).await;
}

#[tokio::test]
async fn postgres_frozen_under_load_is_only_503s_and_then_usable() {
    let Some(cluster) = Cluster::start().await else { return };
    let catalog = Catalog::start().await;
    let (service, load) = under_load(cluster.url(), &catalog).await;
    let frozen = Instant::now();
    cluster.freeze();
    stays_alive(&service, s(8)).await;
    assert_eq!(service.probe("/readyz").await.status, 503);
    cluster.thaw();
    is_whole(&service, &load, Instant::now(), s(5)).await;
    load.only_503s(frozen, BOUND);
    let mut connection = cluster.connect().await;
    nothing_is_lost(load, &mut connection).await;
    every_place_of_the_pool_is_usable(&service, &mut connection).await;
}

#[tokio::test]
async fn postgres_blackholed_and_healed_serves_within_10_s() {
    let world = crate::support::World::new().await;
    let proxy = Proxy::before(world.database.address());
    let (service, load) = under_load(world.database.url_at(proxy.address), world.catalog()).await;
    let cut = Instant::now();
    proxy.blackhole();
    stays_alive(&service, s(5)).await;
    proxy.pass();
    is_whole(&service, &load, Instant::now(), s(10)).await;
    load.only_503s(cut, BOUND);
    let mut connection = PgConnection::connect(&world.database.url()).await.expect("it answers");
    nothing_is_lost(load, &mut connection).await;
    every_place_of_the_pool_is_usable(&service, &mut connection).await;
}

/// The service has no connection to it any more.
async fn nobody_is_left_with(primary: &Cluster) {
    let mut connection = primary.connect().await;
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE client_addr IS NOT NULL AND application_name = $1";
    let none = async || {
        let left = sqlx::query_scalar::<_, i64>(sql).bind(env!("CARGO_PKG_NAME")).fetch_one(&mut connection).await;
        if left.as_ref().is_ok_and(|left| *left == 0) { Ok(()) } else { Err(left) }
    };
    eventually("nobody is left with the old primary", s(10), none).await;
}

#[tokio::test]
async fn a_failover_under_load_is_only_503s_and_leaves_the_primary() {
    let Some(primary) = Cluster::start().await else { return };
    let standby = primary.standby().await;
    let catalog = Catalog::start().await;
    let proxy = Proxy::before(primary.address());
    let (service, load) = under_load(Cluster::url_at(proxy.address.port()), &catalog).await;
    let failed = Instant::now();
    primary.fail_over_to(&standby).await;
    proxy.redirect(standby.address());
    is_whole(&service, &load, Instant::now(), s(5)).await;
    load.only_503s(failed, BOUND);
    nobody_is_left_with(&primary).await;
    let mut connection = standby.connect().await;
    nothing_is_lost(load, &mut connection).await;
    every_place_of_the_pool_is_usable(&service, &mut connection).await;
}

#[tokio::test]
async fn a_failover_is_noticed_by_those_who_only_read() {
    let Some(primary) = Cluster::start().await else { return };
    let standby = primary.standby().await;
    let catalog = Catalog::start().await;
    let proxy = Proxy::before(primary.address());
    let launch = launch(Cluster::url_at(proxy.address.port()), &catalog).set("worker.poll_interval", "1h");
    let service = launch.ready().await;
    assert_eq!(service.get("/v1/orders").await.status, 200);
    primary.fail_over_to(&standby).await;
    proxy.redirect(standby.address());
    let reads = async {
        loop {
            assert_eq!(service.get("/v1/orders").await.status, 200);
        }
    };
    tokio::select! {
        () = nobody_is_left_with(&primary) => {}
        () = reads => {}
    }
}
