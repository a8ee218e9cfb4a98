//! A database that refuses, conflicts, is full or has become read-only; and readiness while it does.

use sqlx::{Connection, PgConnection};

use crate::{
    is_503, place,
    support::{Launch, Proxy, World, always, eventually, ms, s},
};

#[tokio::test]
async fn readiness_follows_the_database_and_liveness_does_not() {
    let world = World::new().await;
    let proxy = Proxy::before(world.database.address());
    let launch = world.service().set("database.url", world.database.url_at(proxy.address));
    let service = launch.set("readiness.failures", 4).set("readiness.interval", "500ms").ready().await;
    let check = async || service.probe("/readyz").await.json()["checks"]["postgres"].clone();

    proxy.refuse();
    eventually("a check fails", s(5), async || check().await["error"].is_string()).await;
    proxy.pass();
    let ready = async || service.probe("/readyz").await.status == 200;
    always("one failure is no outage", s(1), ready).await;
    eventually("it passes again", s(5), async || check().await["error"].is_null()).await;
    assert!(service.logged("check fails: not ready").is_empty());

    proxy.refuse();
    eventually("it is not ready", s(10), async || service.probe("/readyz").await.status == 503).await;
    let line = async || service.logged("check fails: not ready").pop();
    let line = eventually("it is logged", s(5), line).await;
    assert_eq!((&line["check"], &line["failures"]), (&"postgres".into(), &4.into()));
    always("it is alive", s(1), async || service.probe("/livez").await.status == 200).await;
    proxy.pass();
    eventually("it is ready", s(5), ready).await;
    let turns = async || {
        let lines = service.logged("check passes");
        // at the start, and with the first success
        if lines.iter().filter(|line| line["check"] == "postgres").count() == 2 { Ok(()) } else { Err(lines) }
    };
    eventually("it is logged", s(2), turns).await;
}

#[tokio::test]
async fn a_saturated_pool_stays_ready_and_is_not_used_by_probes() {
    let world = World::new().await;
    let launch = world.service().set("database.statement_timeout", "60s").set("http.request_timeout", "60s");
    let launch = launch.set("readiness.failures", 1).set("readiness.timeout", "5s");
    let service = launch.set("database.max_connections", 2).ready().await;
    let mut blocker = PgConnection::connect(&world.database.url()).await.expect("it answers");
    let lock = "BEGIN; LOCK TABLE order_events, orders IN ACCESS EXCLUSIVE MODE";
    sqlx::raw_sql(lock).execute(&mut blocker).await.expect("the tables are there");
    let full = async || service.metric("db_client_connections", &[("state", "used")]).await == Some(2.0);
    eventually("worker and feed hold the pool", s(10), full).await;
    always("it is ready", s(4), async || service.probe("/readyz").await.status == 200).await;
    is_503(&service.get("/v1/orders").await);
    blocker.close().await.expect("it closes");
    eventually("it serves", s(5), async || service.get("/v1/orders").await.status == 200).await;
}

#[tokio::test]
async fn probes_cause_no_query() {
    let world = World::new().await;
    let launch = world.service().set("readiness.interval", "1h").set("worker.poll_interval", "1h");
    let service = launch.ready().await;
    // but the feed's, which looks for events twice a second
    let queries = "SELECT coalesce(string_agg(pid || ' ' || query_start, ', ' ORDER BY pid), '') FROM pg_stat_activity
                   WHERE datname = current_database() AND application_name <> '(test)' AND query NOT LIKE '%order_events%'
                     AND query NOT IN ('', 'ROLLBACK', 'COMMIT', 'BEGIN')";
    let mut before: String = world.database.one(queries).await;
    // what the start began ends
    eventually("it is quiet", s(10), async || {
        tokio::time::sleep(ms(700)).await;
        let now = world.database.one(queries).await;
        let same = now == before;
        before = now;
        same
    })
    .await;
    assert!(!before.is_empty(), "the check has a connection");
    for _ in 0..100 {
        for probe in ["/readyz", "/livez", "/startupz"] {
            assert_eq!(service.probe(probe).await.status, 200);
        }
    }
    assert_eq!(world.database.one::<String>(queries).await, before);
}

/// Makes the next `times` attempts to write an order fail as the database would.
async fn writes_fail(world: &World, code: &str, times: u32) {
    let sql = format!(
        "DROP SEQUENCE IF EXISTS failures CASCADE; CREATE SEQUENCE failures;
         CREATE OR REPLACE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             IF nextval('failures') <= {times} THEN
                 RAISE EXCEPTION 'what is inside' USING ERRCODE = '{code}';
             END IF;
             RETURN NEW;
         END $$;
         CREATE OR REPLACE TRIGGER fail BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION fail();"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(world.database.pool()).await.expect("it is SQL");
}

#[tokio::test]
async fn what_the_database_undoes_for_anothers_sake_is_tried_again() {
    let world = World::new().await;
    let service = world.serve().await;
    // serialization failure, deadlock
    for code in ["40001", "40P01"] {
        writes_fail(&world, code, 2).await;
        assert_eq!(place(&service, "SKU-1").await.status, 201, "{code}");
        writes_fail(&world, code, 1000).await;
        is_503(&place(&service, "SKU-1").await);
        let tries: i64 = world.database.one("SELECT last_value FROM failures").await;
        assert_eq!(tries, 3, "{code}: not for ever");
    }
    let orders: i64 = world.database.one("SELECT count(*) FROM orders").await;
    assert_eq!(orders, 2);
}

#[tokio::test]
async fn the_databases_fault_is_503_its_reason_only_in_the_log() {
    let world = World::new().await;
    let service = world.serve().await;
    let faults = [
        ("53100", "disk full"),
        ("53200", "out of memory"),
        ("53300", "too many connections"),
        ("57P01", "admin shutdown"),
        ("57P03", "cannot connect now"),
        ("58030", "io error"),
        ("28P01", "wrong password"),
        ("25006", "read-only"),
        ("3D000", "no such database"),
        ("55P03", "lock not available"),
    ];
    for (told, (code, what)) in faults.into_iter().enumerate() {
        writes_fail(&world, code, 1).await;
        let reply = place(&service, "SKU-1").await;
        is_503(&reply);
        assert!(!reply.text().contains("what is inside"), "{reply:?}");
        let logged = async || service.logged("database").into_iter().nth(told);
        let logged = eventually(&format!("{what} is logged"), s(5), logged).await;
        assert!(logged["error"].as_str().is_some_and(|error| error.contains("what is inside")), "{what}: {logged}");
        assert_eq!(place(&service, "SKU-1").await.status, 201, "after {what}");
    }
    writes_fail(&world, "22012", 1).await;
    let reply = place(&service, "SKU-1").await;
    assert_eq!(reply.status, 500, "a fault of our own is no outage");
    assert!(!reply.text().contains("what is inside"), "{reply:?}");
}

#[tokio::test]
async fn connections_to_a_primary_that_became_read_only_are_replaced() {
    let world = World::new().await;
    // Connections that are read-only for as long as they live, to a database that soon is not: as after a failover by
    // a name or an address that now leads to another server.
    let set = "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_read_only = on',
               current_database()); END $$";
    world.database.execute(set).await;
    let service = world.service().set("worker.poll_interval", "1h").ready().await;
    is_503(&place(&service, "SKU-1").await);
    let mut own = PgConnection::connect(&world.database.url()).await.expect("it answers");
    let reset = "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I RESET default_transaction_read_only',
                 current_database()); END $$";
    for sql in ["SET default_transaction_read_only = off", reset] {
        sqlx::raw_sql(sql).execute(&mut own).await.expect("it is SQL");
    }
    let (mut refused, mut in_a_row) = (0, 0);
    eventually("each old one refuses once at most, and is gone", s(20), async || {
        let taken = place(&service, "SKU-1").await.status == 201;
        (refused, in_a_row) = if taken { (refused, in_a_row + 1) } else { (refused + 1, 0) };
        in_a_row == 20
    })
    .await;
    assert!(refused <= 4, "more than the pool has connections: {refused}");
}

#[tokio::test]
async fn connections_that_an_administrator_ends_are_replaced() {
    let world = World::new().await;
    let service = world.serve().await;
    let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
               WHERE datname = current_database() AND application_name <> '(test)'";
    for _ in 0..3 {
        assert!(world.database.one::<i64>(end).await > 0);
        for _ in 0..4 {
            let reply = service.get("/v1/orders").await;
            assert!(matches!(reply.status, 200 | 503), "{reply:?}");
        }
        eventually("it serves", s(2), async || place(&service, "SKU-1").await.status == 201).await;
        let checked = async || service.probe("/readyz").await.json()["checks"]["postgres"]["error"].is_null();
        eventually("the check has a new one too", s(5), checked).await;
    }
    assert!(service.logged("check fails: not ready").is_empty());
}

#[tokio::test]
async fn no_connection_left_or_a_changed_password_is_503_meanwhile() {
    let Some(cluster) = crate::cluster::Cluster::start().await else { return };
    let catalog = crate::support::Catalog::start().await;
    let mut owner = cluster.connect().await;
    let role = "CREATE ROLE shop LOGIN; GRANT ALL ON ALL TABLES IN SCHEMA public TO shop;
                GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO shop";
    sqlx::raw_sql(role).execute(&mut owner).await.expect("it is SQL");
    let url = cluster.url().replace("postgres@", "shop@");
    let launch = Launch::new().set("database.url", url).set("catalog.endpoint", catalog.endpoint());
    let launch = launch.set("worker.poll_interval", "100ms").set("readiness.failures", 1000);
    let service = launch.ready().await;
    // one that is just starting has no role yet
    let end = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
               WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
    for (refuse, allow, reason) in [
        ("ALTER ROLE shop CONNECTION LIMIT 0", "ALTER ROLE shop CONNECTION LIMIT -1", "too many connections"),
        // a role that may not log in is refused in the same class, 28, as one with another password
        ("ALTER ROLE shop NOLOGIN", "ALTER ROLE shop LOGIN", "not permitted to log in"),
    ] {
        sqlx::raw_sql(refuse).execute(&mut owner).await.expect("it is SQL");
        while !sqlx::query(end).fetch_all(&mut owner).await.expect("it is SQL").is_empty() {}
        is_503(&service.get("/v1/orders").await);
        is_503(&place(&service, "SKU-1").await);
        let named = async || service.log().iter().any(|line| line.to_string().contains(reason));
        eventually(&format!("{reason} is logged"), s(5), named).await;
        assert_eq!(service.probe("/livez").await.status, 200);
        sqlx::raw_sql(allow).execute(&mut owner).await.expect("it is SQL");
        eventually("it serves", s(5), async || place(&service, "SKU-1").await.status == 201).await;
    }
}
