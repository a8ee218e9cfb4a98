//! Where a reader stands: told before its first event, found again on any replica, and said to be gone if it is.

use std::{collections::BTreeSet, time::Instant};

use sqlx::{Connection, PgConnection, Row};

use crate::{
    all_events, becomes, id, order,
    support::{Database, Proxy, Raw, Service, Sse, WebSocket, World, eventually, ms, s},
    told,
};

async fn open(service: &Service, last: Option<&str>) -> Sse {
    Sse::open(service.http().await, "/v1/orders/events", last).await
}

#[tokio::test]
async fn a_stream_begins_with_its_position() {
    let world = World::new().await;
    let service = world.serve().await;
    let mut raw = Raw::connect(service.http().await).await;
    raw.write("GET /v1/orders/events HTTP/1.1\r\nhost: test\r\n\r\n").await;
    assert_eq!(raw.head().await.status, 200);
    let mut text = Vec::new();
    while !text.ends_with(b"id: 0\n\n") {
        text.extend(raw.chunk().await);
        assert!(!text.windows(4).any(|window| window == b"data"), "{}", String::from_utf8_lossy(&text));
    }
}

#[tokio::test]
async fn a_reader_that_has_seen_no_event_misses_none() {
    let world = World::new().await;
    let (one, two) = tokio::join!(world.serve(), world.serve());
    let old = id(&order(&one, "SKU-1", 1).await);
    becomes(&one, &old, "confirmed").await;
    // an event that the test itself waits for, so that the position of "now" is known to be past the first order
    let mut events = open(&one, None).await;
    let new = id(&order(&one, "SKU-2", 1).await);
    events.next().await.expect("an event");
    drop(events);
    let mut again = open(&two, Some("2")).await;
    let seen = again.until(|event| event.event == "confirmed").await;
    assert_eq!(
        (told(&seen, &old), told(&seen, &new)),
        (Vec::new(), vec!["pending".to_owned(), "confirmed".to_owned()])
    );
}

#[tokio::test]
async fn a_position_that_is_not_there_is_said() {
    let world = World::new().await;
    let service = world.serve().await;
    order(&service, "SKU-1", 1).await;
    all_events(&service).await.until(|event| event.event == "confirmed").await;
    for last in ["1000000", "-1", "9223372036854775807"] {
        let mut events = open(&service, Some(last)).await;
        let reset = events.next().await.expect("an event");
        let newest: i64 = world.database.one("SELECT max(id) FROM order_events").await;
        assert_eq!((reset.event.as_str(), reset.id.parse()), ("reset", Ok(newest)), "{last}: {reset:?}");
        assert!(reset.json()["reset"].is_string());
        let placed = order(&service, "SKU-1", 1).await;
        assert_eq!(events.next().await.expect("it goes on").json()["id"], placed["id"]);
        assert_eq!(events.next().await.expect("its end").event, "confirmed");
    }
    let mut socket = WebSocket::open(service.http().await, "/v1/orders/ws?after=1000000").await;
    assert!(socket.next().await.expect("a message")["reset"].is_string());
}

#[tokio::test]
async fn an_open_stream_is_told_of_an_older_database() {
    let world = World::new().await;
    let service = world.serve().await;
    let mut events = all_events(&service).await;
    order(&service, "SKU-1", 1).await;
    events.until(|event| event.event == "confirmed").await;
    // as after a restore, or a failover to a standby that was behind
    world.database.execute("DELETE FROM order_events WHERE status = 'confirmed'").await;
    let reset = events.next().await.expect("an event");
    assert_eq!((reset.event.as_str(), reset.id.as_str()), ("reset", "1"));
    let placed = order(&service, "SKU-1", 1).await;
    assert_eq!(events.next().await.expect("it goes on").json()["id"], placed["id"]);
}

#[tokio::test]
async fn a_stream_opens_while_the_database_is_away() {
    let world = World::new().await;
    let proxy = Proxy::before(world.database.address());
    let launch = world.service().set("database.url", world.database.url_at(proxy.address));
    let service = launch.set("readiness.failures", 1000).ready().await;
    order(&service, "SKU-1", 1).await;
    proxy.refuse();
    let mut events = all_events(&service).await;
    proxy.pass();
    assert_eq!(events.next().await.expect("an event").event, "pending");
}

#[tokio::test]
async fn older_and_newer_builds_number_the_same_events() {
    let world = World::new().await;
    let service = world.serve().await;
    let mut events = all_events(&service).await;
    // what an older build's handler does, beside this build's
    let old = async {
        let mut connection = PgConnection::connect(&world.database.url()).await.expect("it answers");
        for _ in 0..100 {
            let mut transaction = connection.begin().await.expect("it begins");
            let order = "WITH placed AS (INSERT INTO orders (id, sku, quantity, total_cents, status)
                             VALUES (gen_random_uuid(), 'OLD', 1, 1, 'confirmed') RETURNING id)
                         INSERT INTO order_events (order_id, status) SELECT id, 'confirmed' FROM placed";
            sqlx::raw_sql(order).execute(&mut *transaction).await.expect("it is written");
            transaction.commit().await.expect("it ends");
        }
    };
    let new = async {
        for _ in 0..50 {
            order(&service, "SKU-1", 1).await;
        }
    };
    // and its follower
    let reader = async {
        let (mut seen, mut last) = (Vec::new(), 0_i64);
        let deadline = Instant::now() + s(30);
        while seen.len() < 200 && Instant::now() < deadline {
            let page = sqlx::query("SELECT id FROM order_events WHERE id > $1 ORDER BY id LIMIT 100").bind(last);
            for row in page.fetch_all(world.database.pool()).await.expect("it answers") {
                last = row.get(0);
                seen.push(last);
            }
            tokio::time::sleep(ms(1)).await;
        }
        seen
    };
    let ((), (), seen_by_old) = tokio::join!(old, new, reader);
    let mut seen = Vec::new();
    while seen.len() < 200 {
        seen.push(events.next().await.expect("it goes on").id.parse::<i64>().expect("a number"));
    }
    assert!(seen.is_sorted_by(|one, two| one < two));
    assert_eq!(seen_by_old, seen, "both have seen all of them, in the same order");
    assert_eq!(seen.iter().collect::<BTreeSet<_>>().len(), 200);
}

#[tokio::test]
async fn without_a_newer_build_an_older_one_numbers_what_was_left() {
    let world = World::new().await;
    let service = world.service().ready().await;
    let left = id(&order(&service, "SKU-1", 1).await);
    service.kill().await;
    world.database.execute("INSERT INTO order_outbox (order_id, status) SELECT id, 'rejected' FROM orders").await;
    let insert =
        "WITH placed AS (INSERT INTO orders (id, sku, quantity, total_cents) VALUES (gen_random_uuid(), 'OLD', 1, 1)
                      RETURNING id)
                  INSERT INTO order_events (order_id, status) SELECT id, 'pending' FROM placed";
    world.database.execute(insert).await;
    let last: String = world
        .database
        .one("SELECT sku FROM order_events JOIN orders ON orders.id = order_id ORDER BY order_events.id DESC LIMIT 1")
        .await;
    assert_eq!(last, "OLD", "{left}");
    assert_eq!(world.database.one::<i64>("SELECT count(*) FROM order_outbox").await, 0);
}

#[tokio::test]
async fn a_long_transaction_elsewhere_delays_no_event() {
    let world = World::new().await;
    let service = world.serve().await;
    let mut long = PgConnection::connect(&world.database.url()).await.expect("it answers");
    sqlx::raw_sql("CREATE TABLE elsewhere (n int); BEGIN; INSERT INTO elsewhere VALUES (1)")
        .execute(&mut long)
        .await
        .expect("it begins");
    let mut events = all_events(&service).await;
    let asked = Instant::now();
    let placed = order(&service, "SKU-1", 1).await;
    assert_eq!(events.next().await.expect("an event").json()["id"], placed["id"]);
    assert!(asked.elapsed() < s(2), "{:?}", asked.elapsed());
}

#[tokio::test]
async fn a_writer_that_stops_before_its_commit_holds_up_nobody() {
    let world = World::new().await;
    let service = world.serve().await;
    let mut events = all_events(&service).await;
    let mut frozen = PgConnection::connect(&world.database.url()).await.expect("it answers");
    let begun = "BEGIN;
                 WITH placed AS (INSERT INTO orders (id, sku, quantity, total_cents, status)
                     VALUES (gen_random_uuid(), 'FROZEN', 1, 1, 'confirmed') RETURNING id)
                 INSERT INTO order_outbox (order_id, status) SELECT id, 'confirmed' FROM placed";
    sqlx::raw_sql(begun).execute(&mut frozen).await.expect("it is written");
    let asked = Instant::now();
    let placed = order(&service, "SKU-1", 1).await;
    assert_eq!(events.next().await.expect("an event").json()["id"], placed["id"]);
    events.next().await.expect("its end");
    assert!(asked.elapsed() < s(2), "{:?}", asked.elapsed());
    sqlx::raw_sql("COMMIT").execute(&mut frozen).await.expect("it ends");
    let late = events.next().await.expect("the late one is not missed");
    assert_eq!(late.json()["sku"], "FROZEN");
    let empty = async || world.database.one::<i64>("SELECT count(*) FROM order_outbox").await == 0;
    eventually("the outbox is empty", s(5), empty).await;
}

#[tokio::test]
async fn a_position_outlives_a_dump_and_restore() {
    let world = World::new().await;
    let service = world.serve().await;
    let first = id(&order(&service, "SKU-1", 1).await);
    let last = all_events(&service).await.until(|event| event.event == "confirmed").await.pop().expect("two").id;
    service.stop().await;
    // an event that no replica has numbered yet
    let left =
        "WITH placed AS (INSERT INTO orders (id, sku, quantity, total_cents) VALUES (gen_random_uuid(), 'LEFT', 1, 1)
                    RETURNING id)
                INSERT INTO order_outbox (order_id, status) SELECT id, 'pending' FROM placed";
    world.database.execute(left).await;

    let restored = Database::empty().await;
    // without the parameters that are for sqlx
    let [from, to] =
        [world.database.url(), restored.url()].map(|url| url.split('?').next().map(str::to_owned).expect("a URL"));
    let copy = format!("pg_dump '{from}' | psql --quiet --set ON_ERROR_STOP=1 '{to}'");
    let copied =
        std::process::Command::new("bash").args(["-o", "pipefail", "-c", &copy]).output().expect("bash is there");
    if String::from_utf8_lossy(&copied.stderr).contains("command not found") {
        return println!("not run: pg_dump or psql is not on this machine");
    }
    assert!(copied.status.success(), "{copied:?}");
    let service = world.service().set("database.url", restored.url()).ready().await;
    let mut events = open(&service, Some(&last)).await;
    let pending = events.next().await.expect("an event");
    assert_eq!((pending.event.as_str(), &pending.json()["sku"]), ("pending", &"LEFT".into()), "nothing twice: {first}");
    events.until(|event| event.event == "rejected").await;
}

#[tokio::test]
async fn an_order_that_was_deleted_keeps_no_event_back() {
    let world = World::new().await;
    let service = world.serve().await;
    let mut events = open(&service, None).await;
    let gone = "INSERT INTO order_outbox (order_id, status) VALUES (gen_random_uuid(), 'pending')";
    world.database.execute(gone).await;
    let new = id(&order(&service, "SKU-1", 1).await);
    let seen = events.until(|event| event.event == "confirmed").await;
    assert_eq!(told(&seen, &new), ["pending", "confirmed"]);
}
