//! A connection on loan from the pool, and what becomes of it when the loan ends.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Instant;

use sqlx::Connection;
use sqlx::postgres::PgConnection;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::pool::{Pool, SIGN_OF_LIFE};

/// A connection on loan. Unless its work says how it ended, the connection is taken for abandoned in the middle.
pub(super) struct Lease {
    pool: Arc<Pool>,
    /// Taken when it is dropped.
    held: Option<Held>,
    state: Fitness,
}

pub(super) struct Held {
    pub(super) connection: PgConnection,
    pub(super) begun: Instant,
    pub(super) place: Place,
}

/// One of the pool's places.
pub(super) struct Place {
    _permit: OwnedSemaphorePermit,
    _busy: TaskTrackerToken,
}

/// What a connection is fit for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fitness {
    /// Its work has ended.
    Fit,
    /// Its work was dropped in the middle.
    Abandoned,
    /// It is of no more use.
    Broken,
}

impl Place {
    pub(super) fn new(permit: OwnedSemaphorePermit, busy: TaskTrackerToken) -> Self {
        Self { _permit: permit, _busy: busy }
    }
}

impl Lease {
    pub(super) fn new(pool: &Arc<Pool>, held: Held) -> Self {
        Self { pool: Arc::clone(pool), held: Some(held), state: Fitness::Abandoned }
    }

    /// Gives the connection up and keeps its place.
    pub(super) fn into_place(mut self) -> Place {
        self.held.take().expect("it is taken only when the lease ends").place
    }

    /// Says how its work has ended.
    pub(super) fn mark(&mut self, state: Fitness) {
        self.state = state;
        if state == Fitness::Broken {
            self.pool.distrust();
        }
    }
}

impl Deref for Lease {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.held.as_ref().expect("it is taken only when the lease ends").connection
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.held.as_mut().expect("it is taken only when the lease ends").connection
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(mut held) = self.held.take() else { return };
        // a transaction that was dropped leaves its ROLLBACK to be sent
        let is_done = self.state == Fitness::Fit && !held.connection.should_flush();
        if is_done {
            self.pool.put(held);
        } else if self.state != Fitness::Broken {
            let pool = Arc::clone(&self.pool);
            self.pool.spawn(async move {
                // reads on to the end of what was asked; and sqlx does not know of a BEGIN that it was dropped in
                let settle = sqlx::raw_sql("BEGIN; ROLLBACK").execute(&mut held.connection);
                if matches!(timeout(SIGN_OF_LIFE, settle).await, Ok(Ok(_))) {
                    pool.put(held);
                }
            });
        }
    }
}
