//! `service migrate`: once, whoever else does the same, and never half.

use sqlx::{Connection, PgConnection};

use crate::support::{Database, Launch, Proxy, Signal, eventually, free_address, s};

fn migrate(url: impl ToString) -> Launch {
    Launch::new().args(["migrate"]).set("database.url", url)
}

/// Makes every migration wait for the test: it cannot note that it was applied until what this returns is dropped.
pub(crate) async fn hold(database: &Database) -> PgConnection {
    database
        .execute(
            "CREATE TABLE _sqlx_migrations (
                 version BIGINT PRIMARY KEY,
                 description TEXT NOT NULL,
                 installed_on TIMESTAMPTZ NOT NULL DEFAULT now(),
                 success BOOLEAN NOT NULL,
                 checksum BYTEA NOT NULL,
                 execution_time BIGINT NOT NULL
             )",
        )
        .await;
    let mut connection = PgConnection::connect(&database.url()).await.expect("the database answers");
    let lock = "BEGIN; LOCK TABLE _sqlx_migrations IN SHARE MODE";
    sqlx::raw_sql(lock).execute(&mut connection).await.expect("nobody else has it");
    connection
}

/// How many wait for somebody's migration to end.
pub(crate) async fn waiting(database: &Database) -> i64 {
    let sql = "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid)
               WHERE locktype = 'advisory' AND NOT granted AND datname = current_database()";
    database.one(sql).await
}

/// How many wait for [`hold`].
async fn held(database: &Database) -> i64 {
    let sql = "SELECT count(*) FROM pg_locks WHERE relation = '_sqlx_migrations'::regclass AND NOT granted
               AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    database.one(sql).await
}

/// How many tables there are besides the migrations' own.
async fn tables(database: &Database) -> i64 {
    database.one("SELECT count(*) FROM pg_tables WHERE schemaname = 'public' AND tablename <> '_sqlx_migrations'").await
}

#[tokio::test]
async fn replicas_that_migrate_at_once_apply_each_migration_once() {
    let database = Database::empty().await;
    let run = || migrate(database.url()).run();
    let (one, two, three) = tokio::join!(run(), run(), run());
    for migrated in [one, two, three] {
        assert_eq!(migrated.code, Some(0), "{migrated:#?}");
    }
    if Database::has_migrations() {
        let applied: i64 = database.one("SELECT count(*) FROM _sqlx_migrations WHERE success").await;
        assert_eq!(usize::try_from(applied), Ok(Database::migrations()));
    }
}

#[tokio::test]
async fn migrating_again_changes_nothing() {
    let database = Database::migrated().await;
    let before = tables(&database).await;
    let again = migrate(database.url()).run().await;
    assert_eq!(again.code, Some(0), "{again:#?}");
    assert_eq!(tables(&database).await, before);
}

#[tokio::test]
async fn a_stop_while_it_waits_its_turn_is_a_prompt_and_clean_exit() {
    if !Database::has_migrations() {
        return println!("skipped: there are no migrations");
    }
    let database = Database::empty().await;
    let held = hold(&database).await;
    let first = migrate(database.url()).spawn();
    eventually("one is at it", s(10), async || self::held(&database).await == 1).await;
    let second = migrate(database.url()).spawn();
    eventually("the other waits its turn", s(10), async || waiting(&database).await == 1).await;

    let exit = stop(&second, Signal::TERM).await;
    assert_eq!(exit, Some(0));
    drop(held);
    assert_eq!(first.exit(s(10)).await.code, Some(0));
}

#[tokio::test]
async fn a_stop_in_the_middle_leaves_nothing_half_applied() {
    if !Database::has_migrations() {
        return println!("skipped: there are no migrations");
    }
    let database = Database::empty().await;
    let held = hold(&database).await;
    let migration = migrate(database.url()).spawn();
    eventually("it is in the middle", s(10), async || self::held(&database).await == 1).await;

    let exit = stop(&migration, Signal::INT).await;
    assert_eq!(exit, Some(0));
    let said = migration.text(false) + &migration.text(true);
    assert!(said.contains("rolled back"), "{said}");
    eventually("its backend is gone", s(5), async || self::held(&database).await == 0).await;
    assert_eq!(tables(&database).await, 0);
    drop(held);
    let again = migrate(database.url()).run().await;
    assert_eq!(again.code, Some(0), "{again:#?}");
}

#[tokio::test]
async fn a_schema_newer_than_the_build_is_left_alone() {
    let database = Database::migrated().await;
    database
        .execute(
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
             VALUES (99991231235959, 'a later build', true, '', 0)",
        )
        .await;
    let before = tables(&database).await;
    let older = migrate(database.url()).run().await;
    assert_eq!(older.code, Some(0), "{older:#?}");
    assert!(older.stdout.contains("the schema is newer than this build"), "{older:#?}");
    assert_eq!(tables(&database).await, before);
}

#[tokio::test]
async fn a_migration_that_gets_no_lock_lets_others_pass() {
    if !Database::has_migrations() {
        return println!("skipped: there are no migrations");
    }
    let database = Database::empty().await;
    let held = hold(&database).await;
    let migration = migrate(database.url()).spawn();
    for _ in 0..2 {
        eventually("it waits for a lock", s(10), async || self::held(&database).await == 1).await;
        eventually("it gives way", s(5), async || self::held(&database).await == 0).await;
    }
    let warned = migration.logged("the migration waits for a lock that others hold");
    assert!(!warned.is_empty());
    drop(held);
    assert_eq!(migration.exit(s(10)).await.code, Some(0));
    assert!(tables(&database).await > 0);
}

async fn stop(migration: &crate::support::Service, signal: Signal) -> Option<i32> {
    let asked = std::time::Instant::now();
    migration.signal(signal);
    let exit = migration.exit(s(10)).await;
    let took = exit.at - asked;
    assert!(took < s(1), "{took:?}");
    exit.code
}

#[tokio::test]
async fn a_database_that_refuses_is_an_error_in_bounded_time() {
    let address = free_address();
    let failed = migrate(format!("postgres://nobody@{address}/nothing")).run().await;
    assert_eq!(failed.code, Some(1), "{failed:#?}");
    assert!(failed.took < s(10), "{failed:#?}");
    assert!((failed.stdout + &failed.stderr).contains("refused"));
}

#[tokio::test]
async fn a_database_that_says_nothing_is_an_error_in_bounded_time() {
    let database = Database::empty().await;
    let proxy = Proxy::before(database.address());
    proxy.blackhole();
    let failed = migrate(database.url_at(proxy.address)).run().await;
    assert_eq!(failed.code, Some(1), "{failed:#?}");
    assert!(failed.took < s(15), "{failed:#?}");
}

#[tokio::test]
async fn it_tells_no_password() {
    let address = free_address();
    let failed = migrate(format!("postgres://shop:hunter2@{address}/nothing")).run().await;
    assert_eq!(failed.code, Some(1), "{failed:#?}");
    assert!(!(failed.stdout + &failed.stderr).contains("hunter2"));
}
