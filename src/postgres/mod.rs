//! PostgreSQL: queries, the check, migrations, the close, and what its failures look like from outside.
//!
//! Queries run through [`Postgres::run`] and [`Postgres::read`], which bound them on this side of the network too: a
//! frozen server still acknowledges at the kernel's level.
//!
//! | file | is about |
//! |---|---|
//! | `pool` | connections that are used again |
//! | `lease` | one of them, while it is in use |
//! | `target` | the URL, and how a session begins |
//! | `reload` | a URL that changes while the service runs |
//! | `migrate` | the schema |
//! | `error` | what each SQLSTATE means |

mod error;
mod lease;
mod migrate;
mod pool;
mod reload;
mod target;

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use sqlx::postgres::PgConnection;
use sqlx::{Connection, Row};
use tokio::sync::Mutex;

use crate::config;
pub use error::Error;
use error::Verdict;
use lease::{Fitness, Lease};
use pool::{Caller, Pool};
use target::Target;

/// Lets the server's own `statement_timeout` fire first.
const MARGIN: Duration = Duration::from_millis(250);

/// Runs of work that the database undoes.
const MAX_ATTEMPTS: u32 = 3;

/// The check connects afresh so often: "ready" means that a new connection can be had.
const CHECK_AFRESH: Duration = Duration::from_secs(30);

/// The database. Cloning shares it.
#[derive(Clone)]
pub struct Postgres {
    inner: Arc<Inner>,
    caller: Caller,
}

struct Inner {
    settings: config::Database,
    pool: Arc<Pool>,
    check: Mutex<Check>,
}

#[derive(Default)]
struct Check {
    /// Its own, so that a busy pool is not an unready service; and since when it is open.
    connection: Option<(PgConnection, Instant)>,
    /// Whether the server took no writes when it was last asked.
    read_only: bool,
}

impl Postgres {
    /// Connects when first used.
    ///
    /// # Errors
    /// If the URL is malformed.
    pub fn new(settings: &config::Database) -> Result<Self, sqlx::Error> {
        let pool = Pool::new(settings, Target::new(settings, settings.url.clone())?);
        let inner = Inner { settings: settings.clone(), pool, check: Mutex::default() };
        Ok(Self { inner: Arc::new(inner), caller: Caller::Request })
    }

    /// The same database for work in the background: its callers are few, so `max_waiting` is not for them. Requests
    /// that overload the pool delay such work, and never keep it out.
    pub fn in_background(&self) -> Self {
        Self { inner: Arc::clone(&self.inner), caller: Caller::Background }
    }

    /// Runs `work`, one query or one transaction, on a connection of the pool, for at most `statement_timeout`. The
    /// work is run again if the database undid it: serialization failure, deadlock, a statement that must be prepared
    /// anew.
    ///
    /// # Errors
    /// No connection within `acquire_timeout`, no end in time, or what the database says.
    pub async fn run<T>(&self, work: impl Work<T>) -> Result<T, Error> {
        self.run_for(self.inner.settings.statement_timeout, work).await
    }

    /// The same for work that waits for others too, and so may take longer.
    ///
    /// # Errors
    /// As [`Postgres::run`].
    pub async fn run_for<T>(&self, timeout: Duration, work: impl Work<T>) -> Result<T, Error> {
        self.run_on(self.acquire().await?, timeout, &work).await
    }

    /// The same for work that only reads: it is also run again, once, if its connection breaks.
    ///
    /// # Errors
    /// As [`Postgres::run`].
    pub async fn read<T>(&self, work: impl Work<T>) -> Result<T, Error> {
        let timeout = self.inner.settings.statement_timeout;
        match self.run_on(self.acquire().await?, timeout, &work).await {
            // silence has taken its time already
            Err(error) if error.verdict() == Verdict::Lost && !matches!(error, Error::Silent(_)) => {
                self.run_on(self.acquire().await?, timeout, &work).await
            }
            result => result,
        }
    }

    async fn acquire(&self) -> Result<Lease, Error> {
        self.inner.pool.acquire(self.caller).await
    }

    async fn run_on<T>(&self, mut lease: Lease, timeout: Duration, work: &impl Work<T>) -> Result<T, Error> {
        let timeout = timeout + MARGIN;
        let attempts = self.attempts(&mut lease, work);
        let result = tokio::time::timeout(timeout, attempts).await.unwrap_or(Err(Error::Silent(timeout)));
        let is_lost = result.as_ref().is_err_and(|error| error.verdict() == Verdict::Lost);
        lease.mark(if is_lost { Fitness::Broken } else { Fitness::Fit });
        result
    }

    async fn attempts<T>(&self, lease: &mut Lease, work: &impl Work<T>) -> Result<T, Error> {
        let mut attempt = 1;
        loop {
            let error = match self.attempt(lease, work).await {
                Ok(result) => return Ok(result),
                Err(error) => Error::from(error),
            };
            let verdict = error.verdict();
            if verdict == Verdict::Stale {
                lease.clear_cached_statements().await?;
            }
            if !matches!(verdict, Verdict::Stale | Verdict::Undone) || attempt == MAX_ATTEMPTS {
                return Err(error);
            }
            attempt += 1;
        }
    }

    /// Without prepared statements that outlast their transaction, a pooler may give each transaction to another
    /// backend: so all is one transaction, and what it has prepared goes with it.
    async fn attempt<T>(&self, connection: &mut PgConnection, work: &impl Work<T>) -> Result<T, sqlx::Error> {
        if self.inner.settings.statement_cache > 0 {
            return work(connection).await;
        }
        let mut transaction = connection.begin().await?;
        let result = work(&mut transaction).await;
        let cleared = transaction.clear_cached_statements().await;
        match result {
            Ok(result) => {
                cleared?;
                transaction.commit().await?;
                Ok(result)
            }
            Err(error) => {
                // what it was matters more than whether that worked
                let _ = transaction.rollback().await;
                Err(error)
            }
        }
    }

    /// Whether the database answers and has the schema that this build needs. A newer one is well: during a rollout
    /// the new version has migrated already.
    ///
    /// # Errors
    /// Why not.
    pub async fn check(self) -> Result<(), Error> {
        let Inner { settings, pool, check } = &*self.inner;
        pool.sweep();
        let mut check = check.lock().await;
        let (mut connection, since) = match check.connection.take() {
            Some((connection, since)) if since.elapsed() < CHECK_AFRESH && since >= pool.usable_since() => {
                (connection, since)
            }
            _ if pool.is_closed() => return Err(Error::Closed),
            old => {
                if let Some((old, _)) = old {
                    let _ = old.close().await;
                }
                let since = Instant::now();
                (pool.target().connect_unbounded(settings.acquire_timeout).await?, since)
            }
        };
        let (found, read_only) = schema_version(&mut connection).await?;
        if read_only || check.read_only {
            // it may have been the primary once: retire every connection until a server that takes writes is found
            pool.retire();
        }
        check.connection = Some((connection, since)).filter(|_| !read_only);
        check.read_only = read_only;
        let needed = migrate::newest();
        if found < needed { Err(Error::Schema { found, needed }) } else { Ok(()) }
    }

    /// Closes every connection. To be called when nobody needs one any more: from now on none is given out.
    pub async fn close(self) {
        let check = async {
            if let Some((connection, _)) = self.inner.check.lock().await.connection.take() {
                let _ = connection.close().await;
            }
        };
        tokio::join!(self.inner.pool.close(), check);
    }

    /// Reads the pool's gauges.
    pub fn report(&self) {
        self.inner.pool.report();
    }
}

impl std::fmt::Debug for Postgres {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Postgres").field("settings", &self.inner.settings).finish_non_exhaustive()
    }
}

/// What [`Postgres::run`] runs: `move |connection| find(connection, id).boxed()`.
pub trait Work<T>: for<'c> Fn(&'c mut PgConnection) -> BoxFuture<'c, Result<T, sqlx::Error>> {}

impl<T, W: for<'c> Fn(&'c mut PgConnection) -> BoxFuture<'c, Result<T, sqlx::Error>>> Work<T> for W {}

/// The newest migration applied, 0 if there is none; and whether the server takes no writes.
async fn schema_version(connection: &mut PgConnection) -> Result<(i64, bool), sqlx::Error> {
    // sqlx's own table, which exists once a migration has run; so not one of the checked queries. Not a prepared
    // statement either, which not every pooler keeps
    let version = "SELECT coalesce(max(version), 0), current_setting('transaction_read_only')::bool
                   FROM _sqlx_migrations WHERE success";
    match sqlx::raw_sql(version).fetch_one(connection).await {
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("42P01") => Ok((0, false)),
        row => row.and_then(|row| Ok((row.try_get(0)?, row.try_get(1)?))),
    }
}
