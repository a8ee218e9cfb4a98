//! Every query reads its page and no more, whatever the size of the tables and the age of the statistics.

use std::{fs, path::Path};

use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use crate::support::World;

/// The largest batch is 1,000 rows.
const PAGE: f64 = 1000.0;

/// What a query looks like to the database, from `.sqlx/`: its text, and the types of its parameters.
fn queries() -> Vec<(String, Vec<String>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(".sqlx");
    let files = fs::read_dir(folder).expect("make prepare has made it");
    let queries = files.map(|file| {
        let text = fs::read_to_string(file.expect("a file").path()).expect("it is text");
        let data: Value = serde_json::from_str(&text).expect("it is JSON");
        let types = data["describe"]["parameters"]["Left"].as_array().cloned().unwrap_or_default();
        (data["query"].as_str().expect("a query").to_owned(), types.iter().map(name).collect())
    });
    queries.collect()
}

fn name(type_: &Value) -> String {
    type_.as_str().map_or_else(|| type_.to_string(), str::to_owned)
}

/// A value that no order has, or a page's size: what is found is not the point, but how.
fn sample(type_: &str) -> &'static str {
    match type_ {
        "Uuid" => "'00000000-0000-7000-8000-000000000000'",
        "UuidArray" => "ARRAY['00000000-0000-7000-8000-000000000000']::uuid[]",
        "Text" | "Varchar" => "'confirmed'",
        "Int4" => "1",
        "Int8" => "100",
        "Float8" => "5",
        "Timestamptz" => "now()",
        "Interval" => "'1 second'",
        other => panic!("no sample of the type {other}: add one"),
    }
}

/// The rows that a plan's scans of tables have read.
fn rows_read(plan: &Value) -> f64 {
    let number = |field: &str| plan[field].as_f64().unwrap_or_default();
    let rows = ["Actual Rows", "Rows Removed by Filter", "Rows Removed by Index Recheck"].map(number);
    let scans =
        plan["Relation Name"].is_string() && plan["Node Type"].as_str().is_some_and(|kind| kind.ends_with("Scan"));
    let own = if scans { rows.iter().sum::<f64>() * number("Actual Loops") } else { 0.0 };
    let inner = plan["Plans"].as_array().into_iter().flatten().map(rows_read);
    own.max(inner.clone().fold(0.0, f64::max))
}

async fn check(connection: &mut PgConnection, when: &str) {
    let queries = queries();
    assert!(queries.len() >= 10, "{queries:?}");
    for (query, types) in queries {
        for mode in ["force_generic_plan", "force_custom_plan"] {
            let mut transaction = connection.begin().await.expect("it begins");
            let values = types.iter().map(|type_| sample(type_)).collect::<Vec<_>>().join(", ");
            let execute = if types.is_empty() { "EXECUTE q".to_owned() } else { format!("EXECUTE q({values})") };
            transaction
                .execute(AssertSqlSafe(format!("SET LOCAL plan_cache_mode = {mode}; PREPARE q AS {query}")))
                .await
                .unwrap_or_else(|error| panic!("{error}: {query}"));
            let explain = format!("EXPLAIN (ANALYZE, BUFFERS, TIMING off, FORMAT json) {execute}");
            let explained = sqlx::raw_sql(AssertSqlSafe(explain)).fetch_one(&mut *transaction).await;
            let row = explained.unwrap_or_else(|error| panic!("{error}: {query}"));
            let plan: Value = sqlx::Row::try_get::<sqlx::types::JsonValue, _>(&row, 0)
                .or_else(|_| sqlx::Row::try_get::<String, _>(&row, 0).map(|text| text.parse().expect("it is JSON")))
                .expect("a plan");
            let plan = &plan[0]["Plan"];
            let read = rows_read(plan);
            assert!(read <= PAGE, "{when}, {mode}: {read} rows are read by {query}\n{plan:#}");
            // what a function does is seen only in the pages it touches: some 20 for each row it may write
            let pages =
                ["Shared Hit Blocks", "Shared Read Blocks"].map(|field| plan[field].as_f64().unwrap_or_default());
            let pages = pages.iter().sum::<f64>();
            assert!(pages <= 20.0 * PAGE, "{when}, {mode}: {pages} pages are read by {query}");
            transaction.execute("DEALLOCATE q").await.expect("it is prepared");
            transaction.rollback().await.expect("it ends");
        }
    }
}

#[tokio::test]
async fn no_query_reads_more_than_its_page() {
    let world = World::new().await;
    let fill = "INSERT INTO orders (id, sku, quantity, total_cents, status, created_at, next_attempt_at, idempotency_key)
                SELECT (lpad(to_hex(n), 12, '0') || '70008' || lpad(to_hex(n), 15, '0'))::uuid, 'SKU-1', 1, 100,
                       CASE WHEN n % 3 = 0 THEN 'pending' ELSE 'confirmed' END,
                       now() - interval '1 day', now() - n * interval '1 millisecond', CASE WHEN n % 2 = 0 THEN n::text END
                FROM generate_series(1, 150000) n;
                INSERT INTO order_events (id, order_id, status) SELECT row_number() OVER (ORDER BY id), id, status FROM orders";
    let mut connection = PgConnection::connect(&world.database.url()).await.expect("it answers");
    connection.execute("ALTER TABLE orders SET (autovacuum_enabled = off); ALTER TABLE order_events SET (autovacuum_enabled = off)").await.expect("they are there");
    connection.execute(AssertSqlSafe(fill)).await.expect("it fits");
    check(&mut connection, "without statistics").await;
    connection.execute("ANALYZE").await.expect("it can");
    check(&mut connection, "with statistics").await;
    // an hour without the catalog: few orders were pending, or none, and now they are a backlog
    for (when, pending) in
        [("no order was pending", "false"), ("a few orders were postponed", "idempotency_key ~ '00$'")]
    {
        for sql in [
            format!(
                "UPDATE orders SET status = CASE WHEN {pending} THEN 'pending' ELSE 'confirmed' END,
                        next_attempt_at = now() + interval '30 seconds'"
            ),
            "VACUUM ANALYZE orders".to_owned(),
            "UPDATE orders SET status = 'pending', next_attempt_at = now() - interval '1 hour' WHERE quantity = 1"
                .to_owned(),
        ] {
            connection.execute(AssertSqlSafe(sql)).await.expect("it is SQL");
        }
        check(&mut connection, &format!("with statistics from when {when}")).await;
    }
}
