//! What can go wrong with the database, what each SQLSTATE means, and what a caller sees of it.

use std::time::Duration;

use http::StatusCode;
use sqlx::migrate::MigrateError;
use sqlx::postgres::{PgDatabaseError, PgSeverity};

use crate::server::Problem;
use crate::telemetry::chain;

/// What went wrong with the database.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum Error {
    #[error("{}", chain(.0))]
    Sqlx(#[from] sqlx::Error),
    #[error("the database did not answer within {0:?}")]
    Silent(Duration),
    #[error("no connection to the database within {0:?}")]
    NoConnection(Duration),
    #[error("{0} requests wait for a connection already")]
    Crowded(usize),
    #[error("the pool is closed")]
    Closed,
    #[error("the database's URL is malformed")]
    MalformedUrl,
    #[error("the schema is at version {found}, this build needs {needed}: run `service migrate`")]
    Schema { found: i64, needed: i64 },
    #[error("migration failed, and was rolled back: {}", chain(.0))]
    Migrate(#[from] MigrateError),
}

/// What an error means for the work, for its caller and for the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The database undid the work for another's sake: the same work, run again, may succeed. 503 if it does not.
    Undone,
    /// A prepared statement is of no more use, and nothing was done: run again with it prepared anew. 503 otherwise.
    Stale,
    /// The database is at fault and not the work: 503. The connection is as good as before.
    Unavailable,
    /// 503 as well, and the connection is of no more use: broken, or to a server that ends or takes no writes.
    Lost,
    /// The work is at fault: 500.
    Ours,
}

/// Appendix A of PostgreSQL's manual, decided: each class, before it the conditions that differ from the rest of it.
/// The first entry that an SQLSTATE begins with decides. An SQLSTATE that has none is a function's own, so ours.
const VERDICTS: [(&str, Verdict); 55] = [
    ("00", Verdict::Ours),
    ("01", Verdict::Ours),
    ("02", Verdict::Ours),
    ("03", Verdict::Ours),
    // connection exception; PgBouncer says all that it has to say with 08P01
    ("08", Verdict::Lost),
    ("09", Verdict::Ours),
    ("0A", Verdict::Ours),
    ("0B", Verdict::Ours),
    ("0F", Verdict::Ours),
    ("0L", Verdict::Ours),
    ("0P", Verdict::Ours),
    ("0Z", Verdict::Ours),
    // XQuery, since version 17
    ("10", Verdict::Ours),
    ("20", Verdict::Ours),
    ("21", Verdict::Ours),
    ("22", Verdict::Ours),
    ("23", Verdict::Ours),
    ("24", Verdict::Ours),
    // 25006 is a server that has become a standby; the others say that the session is not in the state it should be in
    ("25", Verdict::Lost),
    // a pooler gave the next transaction to a backend that has not prepared the statement
    ("26", Verdict::Stale),
    ("27", Verdict::Ours),
    // the password has changed, or the role may not log in
    ("28", Verdict::Unavailable),
    ("2B", Verdict::Ours),
    ("2D", Verdict::Ours),
    ("2F", Verdict::Ours),
    ("34", Verdict::Ours),
    ("38", Verdict::Ours),
    ("39", Verdict::Ours),
    ("3B", Verdict::Ours),
    // no such database: it is being restored
    ("3D", Verdict::Unavailable),
    ("3F", Verdict::Ours),
    // a constraint that was checked at the end
    ("40002", Verdict::Ours),
    // whether it was committed is not known
    ("40003", Verdict::Lost),
    ("40", Verdict::Undone),
    // the name of a prepared statement is taken, by another client of the pooler
    ("42P05", Verdict::Stale),
    ("42", Verdict::Ours),
    ("44", Verdict::Ours),
    // out of memory, of disk, of connections
    ("53", Verdict::Unavailable),
    ("54", Verdict::Ours),
    // a lock is not available, an object is in use
    ("55", Verdict::Unavailable),
    // a statement was cancelled, mostly by statement_timeout
    ("57014", Verdict::Unavailable),
    ("57000", Verdict::Unavailable),
    // the server shuts down, starts, has crashed; the database was dropped; the session was idle for too long
    ("57", Verdict::Lost),
    // the system below the server: input and output
    ("58", Verdict::Unavailable),
    // snapshot too old, until version 17: the next one is new
    ("72", Verdict::Undone),
    // the server's own configuration
    ("F0", Verdict::Unavailable),
    // foreign servers: one that cannot be reached, or has no memory, is an outage; the rest is how they are used
    ("HV00L", Verdict::Unavailable),
    ("HV00M", Verdict::Unavailable),
    ("HV00N", Verdict::Unavailable),
    ("HV001", Verdict::Unavailable),
    ("HV", Verdict::Ours),
    ("P0", Verdict::Ours),
    // a table or an index is damaged: to try again does not help, and somebody must look
    ("XX001", Verdict::Ours),
    ("XX002", Verdict::Ours),
    ("XX", Verdict::Ours),
];

/// The server's function that finds that a prepared statement's result has another type since the schema changed. The
/// message itself is translated, and its SQLSTATE, 0A000, is that of much else.
const STALE_PLAN: &str = "RevalidateCachedQuery";

impl Verdict {
    fn of(code: &str) -> Self {
        let decided = VERDICTS.iter().find(|(prefix, _)| code.starts_with(prefix));
        decided.map_or(Self::Ours, |(_, verdict)| *verdict)
    }

    fn of_database(error: &(dyn sqlx::error::DatabaseError + 'static)) -> Self {
        let postgres = error.try_downcast_ref::<PgDatabaseError>();
        let is_last = |error: &PgDatabaseError| matches!(error.severity(), PgSeverity::Fatal | PgSeverity::Panic);
        match postgres {
            // the session ends with it, whatever it is
            Some(error) if is_last(error) => Self::Lost,
            Some(error) if error.routine() == Some(STALE_PLAN) => Self::Stale,
            _ => error.code().map_or(Self::Ours, |code| Self::of(&code)),
        }
    }
}

impl Error {
    pub(super) fn verdict(&self) -> Verdict {
        match self {
            Self::Sqlx(sqlx::Error::Database(error)) => Verdict::of_database(&**error),
            Self::Sqlx(sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_)) | Self::Silent(_) => {
                Verdict::Lost
            }
            Self::NoConnection(_) | Self::Crowded(_) | Self::Closed | Self::Schema { .. } => Verdict::Unavailable,
            Self::Sqlx(_) | Self::MalformedUrl | Self::Migrate(_) => Verdict::Ours,
        }
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let problem = match error.verdict() {
            Verdict::Ours => Self::internal(),
            _ => Self::unavailable("the database does not answer; try again in a moment"),
        };
        let status = problem.status().as_u16();
        match problem.status() {
            StatusCode::SERVICE_UNAVAILABLE => tracing::warn!(%error, status, "database"),
            _ => tracing::error!(%error, status, "database"),
        }
        problem
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every class of appendix A, of each version from 14 to 18.
    const CLASSES: [&str; 44] = [
        "00", "01", "02", "03", "08", "09", "0A", "0B", "0F", "0L", "0P", "0Z", "10", "20", "21", "22", "23", "24",
        "25", "26", "27", "28", "2B", "2D", "2F", "34", "38", "39", "3B", "3D", "3F", "40", "42", "44", "53", "54",
        "55", "57", "58", "72", "F0", "HV", "P0", "XX",
    ];

    #[test]
    fn every_class_is_decided_once() {
        let decided: Vec<_> = VERDICTS.iter().map(|(prefix, _)| *prefix).filter(|prefix| prefix.len() == 2).collect();
        assert_eq!(decided, CLASSES);
    }

    #[test]
    fn no_decision_hides_another() {
        for (place, (prefix, _)) in VERDICTS.iter().enumerate() {
            let hidden = VERDICTS[..place].iter().find(|(earlier, _)| prefix.starts_with(earlier));
            assert_eq!(hidden, None, "{prefix} is decided before");
        }
    }

    #[test]
    fn a_condition_may_differ_from_its_class() {
        for (code, verdict) in [
            ("23505", Verdict::Ours),
            ("25006", Verdict::Lost),
            ("26000", Verdict::Stale),
            ("3D000", Verdict::Unavailable),
            ("40001", Verdict::Undone),
            ("40002", Verdict::Ours),
            ("40P01", Verdict::Undone),
            ("42P05", Verdict::Stale),
            ("42P01", Verdict::Ours),
            ("53300", Verdict::Unavailable),
            ("55P03", Verdict::Unavailable),
            ("57014", Verdict::Unavailable),
            ("57P01", Verdict::Lost),
            ("ZZ999", Verdict::Ours),
        ] {
            assert_eq!(Verdict::of(code), verdict, "{code}");
        }
    }
}
