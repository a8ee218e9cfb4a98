//! The pool: a permit for each connection that there may be, and those that are idle.
//!
//! sqlx's own pool asks the server for a sign of life before each use and after it, which makes three round trips of
//! one. Here a connection is asked only if it has been idle for long or if another one has broken since, and goes back
//! without a word. What its work left in the middle is ended in the background: the request's client may have gone, the
//! connection is still good.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use sqlx::Connection;
use sqlx::postgres::PgConnection;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError, oneshot};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::lease::{Fitness, Held, Lease, Place};
use super::target::Target;
use super::{Error, config};

/// For the server's answer to the shortest of questions, and for a connection's end.
pub(super) const SIGN_OF_LIFE: Duration = Duration::from_secs(1);

/// A connection that has been idle for longer is asked for a sign of life: load balancers and firewalls forget it.
const TRUSTED: Duration = Duration::from_secs(30);

/// A connection that nobody has needed for so long is closed.
const MAX_IDLE: Duration = Duration::from_secs(600);

/// A connection that is so old is closed: its backend's memory grows, and its name may lead elsewhere by now.
const MAX_AGE: Duration = Duration::from_secs(1800);

pub(super) struct Pool {
    size: u32,
    max_waiting: usize,
    acquire_timeout: Duration,
    permits: Arc<Semaphore>,
    waiting: AtomicUsize,
    state: Mutex<State>,
    /// Connections in use, on their way in and on their way out: the close waits for them.
    busy: TaskTracker,
    /// Cancelled by the close, which waits for no answer of the server's.
    closing: CancellationToken,
}

struct State {
    target: Arc<Target>,
    idle: Vec<Idle>,
    /// Connections that were begun before are used no more: they lead to a server that takes no writes, or were opened
    /// with another password.
    usable_since: Instant,
    /// Connections that have been idle since before are asked for a sign of life: another one has broken.
    trusted_since: Instant,
}

struct Idle {
    connection: PgConnection,
    begun: Instant,
    since: Instant,
}

/// Who needs a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Caller {
    /// One of any number.
    Request,
    /// One of few.
    Background,
}

impl Pool {
    pub(super) fn new(settings: &config::Database, target: Target) -> Arc<Self> {
        let now = Instant::now();
        let state = State { target: Arc::new(target), idle: Vec::new(), usable_since: now, trusted_since: now };
        Arc::new(Self {
            size: settings.max_connections,
            max_waiting: settings.max_waiting,
            acquire_timeout: settings.acquire_timeout,
            permits: Arc::new(Semaphore::new(settings.max_connections as usize)),
            waiting: AtomicUsize::new(0),
            state: Mutex::new(state),
            busy: TaskTracker::new(),
            closing: CancellationToken::new(),
        })
    }

    /// A connection, for which a place is waited for and which is opened if none is idle; within `acquire_timeout`.
    pub(super) async fn acquire(self: &Arc<Self>, caller: Caller) -> Result<Lease, Error> {
        match timeout(self.acquire_timeout, self.lease(caller)).await {
            Ok(lease) => lease,
            Err(_elapsed) => {
                metrics::counter!("db_client_connections_refused_total", "reason" => "timeout").increment(1);
                Err(Error::NoConnection(self.acquire_timeout))
            }
        }
    }

    async fn lease(self: &Arc<Self>, caller: Caller) -> Result<Lease, Error> {
        let permit = match Arc::clone(&self.permits).try_acquire_owned() {
            Ok(permit) => permit,
            Err(TryAcquireError::NoPermits) => self.wait(caller).await?,
            Err(TryAcquireError::Closed) => return Err(Error::Closed),
        };
        let place = Place::new(permit, self.busy.token());
        let (idle, trusted_since) = {
            let mut state = self.lock();
            (state.idle.pop(), state.trusted_since)
        };
        let Some(Idle { connection, begun, since }) = idle else {
            return self.connect(place).await;
        };
        let mut lease = Lease::new(self, Held { connection, begun, place });
        if since > trusted_since && since.elapsed() < TRUSTED {
            return Ok(lease);
        }
        if matches!(timeout(SIGN_OF_LIFE, lease.ping()).await, Ok(Ok(()))) {
            return Ok(lease);
        }
        self.distrust();
        self.connect(lease.into_place()).await
    }

    /// Waits for a place, unless too many do already: requests that wait hold what other requests need.
    async fn wait(&self, caller: Caller) -> Result<OwnedSemaphorePermit, Error> {
        let waiting = Waiting(&self.waiting);
        let before = waiting.0.fetch_add(1, Ordering::Relaxed);
        if before >= self.max_waiting && caller == Caller::Request {
            metrics::counter!("db_client_connections_refused_total", "reason" => "crowded").increment(1);
            return Err(Error::Crowded(self.max_waiting));
        }
        let begun = Instant::now();
        let permit = Arc::clone(&self.permits).acquire_owned().await;
        metrics::histogram!("db_client_connection_wait_duration_seconds").record(begun.elapsed());
        permit.map_err(|_closed| Error::Closed)
    }

    /// Opens a connection, in the background: a caller that leaves leaves it to the next.
    async fn connect(self: &Arc<Self>, place: Place) -> Result<Lease, Error> {
        let (send, receive) = oneshot::channel();
        let pool = Arc::clone(self);
        self.spawn(async move {
            let begun = Instant::now();
            let connected = pool.target().connect(pool.acquire_timeout).await.map(|connection| {
                metrics::counter!("db_client_connections_opened_total").increment(1);
                let mut lease = Lease::new(&pool, Held { connection, begun, place });
                lease.mark(Fitness::Fit);
                lease
            });
            // the lease comes back, and is dropped, if nobody waits for it any more
            let _ = send.send(connected);
        });
        let mut lease = receive.await.map_err(|_ended| Error::Closed)??;
        lease.mark(Fitness::Abandoned);
        Ok(lease)
    }

    /// Runs `work` in the background, for as long as the pool is open; the close waits for it.
    pub(super) fn spawn(self: &Arc<Self>, work: impl Future<Output = ()> + Send + 'static) {
        let pool = Arc::clone(self);
        self.busy.spawn(async move {
            pool.closing.run_until_cancelled(work).await;
        });
    }

    /// Puts a connection back, if it is still to be used.
    pub(super) fn put(&self, held: Held) {
        let mut state = self.lock();
        let is_usable = held.begun >= state.usable_since && held.begun.elapsed() < MAX_AGE;
        if is_usable && !self.permits.is_closed() {
            state.idle.push(Idle { connection: held.connection, begun: held.begun, since: Instant::now() });
        } else {
            drop(state);
            self.busy.spawn(async move {
                end(held.connection).await;
                drop(held.place);
            });
        }
    }

    /// What new connections lead to.
    pub(super) fn target(&self) -> Arc<Target> {
        Arc::clone(&self.lock().target)
    }

    /// Lets new connections lead elsewhere, and replaces all that there are.
    pub(super) fn aim(&self, target: Target) {
        self.lock().target = Arc::new(target);
        self.retire();
    }

    /// Replaces every connection: the idle ones now, the others when their work is done.
    pub(super) fn retire(&self) {
        let idle = {
            let mut state = self.lock();
            state.usable_since = Instant::now();
            std::mem::take(&mut state.idle)
        };
        self.end_all(idle);
    }

    pub(super) fn usable_since(&self) -> Instant {
        self.lock().usable_since
    }

    /// Closes what nobody has needed for long, and what is old.
    pub(super) fn sweep(&self) {
        let swept: Vec<_> = {
            let mut state = self.lock();
            let stays = |idle: &mut Idle| idle.since.elapsed() < MAX_IDLE && idle.begun.elapsed() < MAX_AGE;
            state.idle.extract_if(.., |idle| !stays(idle)).collect()
        };
        self.end_all(swept);
    }

    fn end_all(&self, idle: Vec<Idle>) {
        if !idle.is_empty() {
            self.busy.spawn(join_all(idle.into_iter().map(|idle| end(idle.connection))));
        }
    }

    /// From now on each idle connection is asked for a sign of life before it is used.
    pub(super) fn distrust(&self) {
        self.lock().trusted_since = Instant::now();
    }

    /// Gives out nothing more, and completes when every connection has been closed.
    pub(super) async fn close(&self) {
        self.permits.close();
        self.closing.cancel();
        self.retire();
        self.busy.close();
        self.busy.wait().await;
    }

    pub(super) fn is_closed(&self) -> bool {
        self.permits.is_closed()
    }

    pub(super) fn report(&self) {
        let idle = self.lock().idle.len();
        let used = (self.size as usize).saturating_sub(self.permits.available_permits());
        metrics::gauge!("db_client_connections", "state" => "idle").set(idle as f64);
        metrics::gauge!("db_client_connections", "state" => "used").set(used as f64);
        metrics::gauge!("db_client_connections_max").set(self.size);
        metrics::gauge!("db_client_connections_waiting").set(self.waiting.load(Ordering::Relaxed) as f64);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts a caller for as long as it waits.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Takes leave of the server, which then ends the backend at once.
async fn end(connection: PgConnection) {
    let _ = timeout(SIGN_OF_LIFE, connection.close()).await;
}
