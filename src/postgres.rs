//! PostgreSQL: the pool, its check, its migrations, its close, and what its failures look like from outside.
//!
//! Queries run through [`Postgres::run`], which bounds them on this side of the network too (a frozen server still
//! acknowledges at the kernel's level) and never gives a connection back to the pool that was abandoned in the middle
//! of something (sqlx issue 4349).

use std::str::FromStr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::StatusCode;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};
use sqlx::{ConnectOptions, Connection};
use tokio::sync::Mutex;
use tokio_util::task::TaskTracker;

use crate::config;
use crate::server::Problem;
use crate::telemetry::chain;

static MIGRATOR: Migrator = sqlx::migrate!();

/// Lets the server's own `statement_timeout` fire first.
const MARGIN: Duration = Duration::from_millis(250);

/// A statement that writes, on a server that has become a standby.
const READ_ONLY: &str = "25006";

/// Runs of a transaction that the database undoes for another's sake.
const MAX_ATTEMPTS: u32 = 3;

/// For a connection to show that it is fit to be given back.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(1);

/// How soon the server notices that a query's client is gone (PostgreSQL 14 and later).
const CLIENT_CHECK: &str = "500ms";

/// After this the server takes the locks of a process that was stopped in the middle of a transaction.
const IDLE_IN_TRANSACTION: Duration = Duration::from_secs(10);

/// The database. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Postgres {
    pool: PgPool,
    options: PgConnectOptions,
    statement_timeout: Duration,
    connect_timeout: Duration,
    check: Arc<Mutex<Check>>,
    /// Connections older than this are used no more: they may lead to a server that takes no writes.
    usable_since: Arc<RwLock<Instant>>,
    /// Connections on their way back to the pool.
    releases: TaskTracker,
}

#[derive(Debug, Default)]
struct Check {
    /// Its own, so that a busy pool is not an unready service.
    connection: Option<PgConnection>,
    /// Whether the server took no writes when it was last asked.
    read_only: bool,
}

/// What went wrong with the database.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum Error {
    #[error("{}", chain(.0))]
    Sqlx(#[from] sqlx::Error),
    #[error("the database did not answer within {0:?}")]
    Silent(Duration),
    #[error("the schema is at version {found}, this build needs {needed}: run `service migrate`")]
    Schema { found: i64, needed: i64 },
    #[error("migration failed, and was rolled back: {}", chain(.0))]
    Migrate(#[from] MigrateError),
}

impl Postgres {
    /// Connects when first used.
    ///
    /// # Errors
    /// Where the URL is not one.
    pub fn new(settings: &config::Database) -> Result<Self, sqlx::Error> {
        let options = PgConnectOptions::from_str(settings.url.reveal())?
            .application_name(env!("CARGO_PKG_NAME"))
            .options([("client_connection_check_interval", CLIENT_CHECK)])
            .log_slow_statements(tracing::log::LevelFilter::Warn, settings.statement_timeout / 2);
        let millis = |duration: Duration| format!("{}ms", duration.as_millis());
        let bounded = options.clone().options([
            ("statement_timeout", millis(settings.statement_timeout)),
            ("idle_in_transaction_session_timeout", millis(settings.statement_timeout.max(IDLE_IN_TRANSACTION))),
        ]);
        let usable_since = Arc::new(RwLock::new(Instant::now()));
        let since = Arc::clone(&usable_since);
        let pool = PgPoolOptions::new()
            .max_connections(settings.max_connections)
            .acquire_timeout(settings.acquire_timeout)
            .before_acquire(move |_, connection| {
                let since = *since.read().unwrap_or_else(PoisonError::into_inner);
                std::future::ready(Ok(connection.age <= since.elapsed())).boxed()
            })
            .connect_lazy_with(bounded);
        let (statement_timeout, connect_timeout) = (settings.statement_timeout, settings.acquire_timeout);
        Ok(Self {
            pool,
            options,
            statement_timeout,
            connect_timeout,
            check: Arc::default(),
            usable_since,
            releases: TaskTracker::new(),
        })
    }

    /// Runs `work`, a query or a transaction, on a connection of the pool, for at most `statement_timeout`. It is run
    /// again where the database undid it for another's sake (serialization failure, deadlock).
    ///
    /// # Errors
    /// No connection within `acquire_timeout`, no end in time, or what the database says.
    pub async fn run<T>(&self, work: impl Work<T>) -> Result<T, Error> {
        self.run_for(self.statement_timeout, work).await
    }

    /// The same for work that waits for others too, and so may take longer.
    ///
    /// # Errors
    /// As [`Postgres::run`].
    #[allow(clippy::disallowed_methods, reason = "the one place that acquires")]
    pub async fn run_for<T>(&self, timeout: Duration, work: impl Work<T>) -> Result<T, Error> {
        let timeout = timeout + MARGIN;
        let mut lease =
            Lease { connection: self.pool.acquire().await?, abandoned: true, releases: self.releases.clone() };
        let attempts = async {
            let mut attempts = 1;
            loop {
                match work(&mut lease.connection).await.map_err(Error::from) {
                    Err(error) if error.is_conflict() && attempts < MAX_ATTEMPTS => attempts += 1,
                    result => break result,
                }
            }
        };
        let result = tokio::time::timeout(timeout, attempts).await.map_err(|_| Error::Silent(timeout))?;
        lease.abandoned = result.as_ref().is_err_and(Error::is_connections);
        result
    }

    /// Whether the database answers and has the schema that this build needs. A newer one is well: during a rollout
    /// the new version has migrated already.
    ///
    /// # Errors
    /// Why not.
    pub async fn check(self) -> Result<(), Error> {
        let mut check = self.check.lock().await;
        let mut connection = match check.connection.take() {
            Some(connection) => connection,
            None if self.pool.is_closed() => return Err(sqlx::Error::PoolClosed.into()),
            None => self.options.connect().await?,
        };
        let (found, read_only) = schema_version(&mut connection).await?;
        if read_only || check.read_only {
            // it may have been the primary once: until one that takes writes is found, nobody stays where he is
            *self.usable_since.write().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        }
        check.connection = Some(connection).filter(|_| !read_only);
        check.read_only = read_only;
        let needed = MIGRATOR.iter().map(|migration| migration.version).max().unwrap_or(0);
        if found < needed { Err(Error::Schema { found, needed }) } else { Ok(()) }
    }

    /// Applies what is missing, one transaction a migration. Replicas that do so at once wait for one another.
    ///
    /// # Errors
    /// Where the database cannot be reached, or a migration fails: then it is rolled back and named.
    pub async fn migrate(&self) -> Result<(), Error> {
        let connect = tokio::time::timeout(self.connect_timeout, self.options.connect());
        let mut connection = connect.await.map_err(|_| Error::Silent(self.connect_timeout))??;
        MIGRATOR.run_direct(None, &mut connection, false).await?;
        Ok(connection.close().await?)
    }

    /// Closes every connection. To be called when nobody needs one any more: from now on none is given out.
    pub async fn close(self) {
        let closed = self.pool.close();
        if let Some(connection) = self.check.lock().await.connection.take() {
            let _ = connection.close().await;
        }
        closed.await;
    }

    /// Reads the pool's gauges.
    pub fn report(&self) {
        let idle = self.pool.num_idle();
        let used = (self.pool.size() as usize).saturating_sub(idle);
        metrics::gauge!("db_client_connections", "state" => "idle").set(idle as f64);
        metrics::gauge!("db_client_connections", "state" => "used").set(used as f64);
        metrics::gauge!("db_client_connections_max").set(self.pool.options().get_max_connections());
    }
}

/// What [`Postgres::run`] runs: `move |connection| find(connection, id).boxed()`.
pub trait Work<T>: for<'c> Fn(&'c mut PgConnection) -> BoxFuture<'c, Result<T, sqlx::Error>> {}

impl<T, W: for<'c> Fn(&'c mut PgConnection) -> BoxFuture<'c, Result<T, sqlx::Error>>> Work<T> for W {}

/// A connection on loan from the pool.
struct Lease {
    connection: PoolConnection<sqlx::Postgres>,
    /// Whether its work was dropped in the middle, so that it must be closed: who waits for a query that nobody reads
    /// waits for the server, and the server may never come back.
    abandoned: bool,
    releases: TaskTracker,
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.abandoned {
            self.connection.close_on_drop();
        } else {
            // the pool asks the server for a sign of life first, without a bound (sqlx issue 4349)
            let back = tokio::time::timeout(RELEASE_TIMEOUT, self.connection.return_to_pool());
            self.releases.spawn(back);
        }
    }
}

/// The newest migration applied, 0 where there is none; and whether the server takes no writes.
async fn schema_version(connection: &mut PgConnection) -> Result<(i64, bool), sqlx::Error> {
    // sqlx's own table, which exists once a migration has run; so not one of the checked queries
    let version = "SELECT coalesce(max(version), 0), current_setting('transaction_read_only')::bool
                   FROM _sqlx_migrations WHERE success";
    match sqlx::query_as(version).fetch_one(connection).await {
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("42P01") => Ok((0, false)),
        found => found,
    }
}

impl Error {
    /// Whether the same transaction, run again, may succeed.
    pub fn is_conflict(&self) -> bool {
        matches!(self.code().as_deref(), Some("40001" | "40P01"))
    }

    /// Whether the connection itself is of no more use: broken, or to a server that is going or has become read-only.
    fn is_connections(&self) -> bool {
        match self {
            Self::Sqlx(sqlx::Error::Database(_)) => {
                self.code().is_some_and(|code| code == READ_ONLY || code.starts_with("57P") || code.starts_with("08"))
            }
            Self::Sqlx(error) => matches!(error, sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_)),
            _ => false,
        }
    }

    fn code(&self) -> Option<String> {
        match self {
            Self::Sqlx(sqlx::Error::Database(error)) => error.code().map(Into::into),
            _ => None,
        }
    }

    /// Whether the database, and not the query, is at fault: the classes of SQLSTATE that say so, and no answer at all.
    fn is_unavailable(&self) -> bool {
        const CLASSES: [&str; 6] = ["08", "25", "28", "53", "57", "58"];
        match self {
            Self::Sqlx(sqlx::Error::Database(_)) => {
                self.is_conflict()
                    || self.code().is_some_and(|code| CLASSES.iter().any(|class| code.starts_with(class)))
            }
            Self::Sqlx(error) => matches!(
                error,
                sqlx::Error::Io(_)
                    | sqlx::Error::Tls(_)
                    | sqlx::Error::PoolTimedOut
                    | sqlx::Error::PoolClosed
                    | sqlx::Error::Protocol(_)
            ),
            Self::Silent(_) | Self::Schema { .. } => true,
            Self::Migrate(_) => false,
        }
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let problem = match error.is_unavailable() {
            true => Self::unavailable("the database does not answer; try again in a moment"),
            false => Self::internal(),
        };
        let status = problem.status().as_u16();
        match problem.status() {
            StatusCode::SERVICE_UNAVAILABLE => tracing::warn!(%error, status, "database"),
            _ => tracing::error!(%error, status, "database"),
        }
        problem
    }
}
