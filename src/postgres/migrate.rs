//! The schema: what is missing is applied, one transaction a migration.

use std::sync::LazyLock;
use std::time::Duration;

use sqlx::Connection;
use sqlx::migrate::{Migrate, MigrateError, Migrator};
use sqlx::postgres::PgConnection;

use super::{Error, Postgres};

/// An older build leaves a newer schema alone; the lock is taken here, because it is held across attempts.
static MIGRATOR: LazyLock<Migrator> = LazyLock::new(|| {
    let mut migrator = sqlx::migrate!();
    migrator.set_ignore_missing(true).set_locking(false);
    migrator
});

/// While a migration waits for a lock, everybody queues behind it: so it waits no longer than this, and tries again.
const LOCK_TIMEOUT: Duration = Duration::from_secs(1);

/// The pause before a migration tries again is doubled up to this.
const MAX_PAUSE: Duration = Duration::from_secs(10);

/// So often a migration asks for its locks, in about four minutes.
const MAX_ATTEMPTS: u32 = 25;

const LOCK_NOT_AVAILABLE: &str = "55P03";

/// The version that this build needs.
pub(super) fn newest() -> i64 {
    MIGRATOR.iter().map(|migration| migration.version).max().unwrap_or(0)
}

impl Postgres {
    /// Applies what is missing. Replicas that do so at once wait for one another.
    ///
    /// # Errors
    /// If the database cannot be reached, or if a migration fails: then it is rolled back and named.
    pub async fn migrate(&self) -> Result<(), Error> {
        let target = self.inner.pool.target();
        let mut connection = target.connect_unbounded(self.inner.settings.acquire_timeout).await?;
        connection.lock().await?;
        connection.ensure_migrations_table(&MIGRATOR.table_name).await?;
        let applied = connection.list_applied_migrations(&MIGRATOR.table_name).await?;
        let applied: Vec<_> = applied.into_iter().map(|migration| migration.version).collect();
        let needed = newest();
        if let Some(missing) = applied.iter().find(|version| **version < needed && !MIGRATOR.version_exists(**version))
        {
            return Err(MigrateError::VersionMissing(*missing).into());
        }
        for migration in MIGRATOR.iter().filter(|migration| !applied.contains(&migration.version)) {
            // what runs outside a transaction, such as CREATE INDEX CONCURRENTLY, waits without anybody behind it, and
            // would leave a half-made index if it gave up
            let lock_timeout = if migration.no_tx { Duration::ZERO } else { LOCK_TIMEOUT };
            apply(&mut connection, migration.version, lock_timeout).await?;
        }
        // compares the checksums of those that were there
        MIGRATOR.run_direct(None, &mut connection, false).await?;
        match applied.iter().max().filter(|found| **found > needed) {
            Some(found) => tracing::info!(found, needed, "the schema is newer than this build: nothing to migrate"),
            None => tracing::info!(version = needed, "the schema is up to date"),
        }
        connection.close().await?;
        Ok(())
    }
}

/// Applies the migration, however often it has to ask for its locks.
async fn apply(connection: &mut PgConnection, version: i64, lock_timeout: Duration) -> Result<(), Error> {
    let bound = format!("SET lock_timeout = {}", lock_timeout.as_millis());
    sqlx::raw_sql(sqlx::AssertSqlSafe(bound)).execute(&mut *connection).await?;
    let mut pause = LOCK_TIMEOUT;
    let mut attempt = 1;
    loop {
        match MIGRATOR.run_direct(Some(version), connection, false).await {
            Err(error) if is_lock_timeout(&error) && attempt < MAX_ATTEMPTS => {
                tracing::warn!(version, attempt, ?pause, "the migration waits for a lock that others hold");
            }
            result => return Ok(result?),
        }
        // sends the ROLLBACK
        connection.ping().await?;
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(MAX_PAUSE);
        attempt += 1;
    }
}

fn is_lock_timeout(error: &MigrateError) -> bool {
    let (MigrateError::ExecuteMigration(sqlx, _) | MigrateError::Execute(sqlx)) = error else { return false };
    sqlx.as_database_error().is_some_and(|error| error.code().as_deref() == Some(LOCK_NOT_AVAILABLE))
}
