//! Where the database is, and how a session with it begins.

use std::str::FromStr;
use std::time::Duration;

use sqlx::ConnectOptions;
use sqlx::postgres::{PgConnectOptions, PgConnection};

use super::Error;
use crate::config::{self, DatabaseUrl};

/// How soon the server notices that a query's client is gone (PostgreSQL 14 and later).
const CLIENT_CHECK: &str = "500ms";

/// After this the server takes the locks of a process that was stopped in the middle of a transaction.
const IDLE_IN_TRANSACTION: Duration = Duration::from_secs(10);

/// A URL and what follows from it. It has no `Debug`, because the options would print their password.
pub(super) struct Target {
    pub(super) url: DatabaseUrl,
    /// For statements that may take long: the check's is bounded by its caller, a migration by nobody.
    unbounded: PgConnectOptions,
    /// For the pool.
    bounded: PgConnectOptions,
}

impl Target {
    pub(super) fn new(settings: &config::Database, url: DatabaseUrl) -> Result<Self, sqlx::Error> {
        let options = PgConnectOptions::from_str(url.reveal())?;
        // the URL's parser keeps the brackets around an IPv6 address, which no resolver knows
        let host = options.get_host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let unbounded = options
            .host(&host)
            .application_name(env!("CARGO_PKG_NAME"))
            // rows come in binary form, which has every digit: one parameter less for a pooler to refuse
            .extra_float_digits(None)
            .statement_cache_capacity(settings.statement_cache.max(1))
            .log_slow_statements(tracing::log::LevelFilter::Warn, settings.statement_timeout / 2);
        if !settings.startup_options {
            return Ok(Self { url, bounded: unbounded.clone(), unbounded });
        }
        let unbounded = unbounded.options([("client_connection_check_interval", CLIENT_CHECK)]);
        let millis = |duration: Duration| format!("{}ms", duration.as_millis());
        let bounded = unbounded.clone().options([
            ("statement_timeout", millis(settings.statement_timeout)),
            ("idle_in_transaction_session_timeout", millis(settings.statement_timeout.max(IDLE_IN_TRANSACTION))),
        ]);
        Ok(Self { url, unbounded, bounded })
    }

    /// A connection for the pool.
    pub(super) async fn connect(&self, timeout: Duration) -> Result<PgConnection, Error> {
        connect(&self.bounded, timeout).await
    }

    /// A connection for statements that may take long.
    pub(super) async fn connect_unbounded(&self, timeout: Duration) -> Result<PgConnection, Error> {
        connect(&self.unbounded, timeout).await
    }
}

async fn connect(options: &PgConnectOptions, timeout: Duration) -> Result<PgConnection, Error> {
    let connected = tokio::time::timeout(timeout, options.connect()).await;
    Ok(connected.map_err(|_| Error::Silent(timeout))??)
}
