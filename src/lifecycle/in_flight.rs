//! What is under way right now: counted by kind for metrics and drains, named for the log if it has to be aborted.

use std::fmt::{self, Debug, Display, Formatter};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use parking_lot::{Mutex, MutexGuard};
use slab::Slab;
use tokio::sync::Notify;

/// Parts of the register, so that the threads which serve do not wait for one another.
const SHARDS: usize = 16;

/// What kind of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Kind {
    Http,
    WebSocket,
    Sse,
    Job,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Http, Self::WebSocket, Self::Sse, Self::Job];
    /// Those that come over the public port.
    pub const PUBLIC: [Self; 3] = [Self::Http, Self::WebSocket, Self::Sse];

    /// As it stands in logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::WebSocket => "websocket",
            Self::Sse => "sse",
            Self::Job => "job",
        }
    }
}

/// The register of what is under way. Cloning shares it.
#[derive(Debug, Clone, Default)]
pub struct InFlight(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    shards: [Mutex<Slab<Entry>>; SHARDS],
    /// Whether anybody waits for work to end: only then is there somebody to notify.
    awaited: AtomicBool,
    left: Notify,
}

struct Entry {
    kind: Kind,
    what: Box<dyn Display + Send>,
    since: Instant,
}

impl InFlight {
    /// Registers work until the guard is dropped. `what` is for people: `GET /v1/things/{id} from 10.0.0.7:4711`.
    pub fn enter(&self, kind: Kind, what: impl Display + Send + 'static) -> Guard {
        let shard = own_shard();
        let key = self.lock(shard).insert(Entry { kind, what: Box::new(what), since: Instant::now() });
        Guard { shard, key, all: self.clone() }
    }

    /// How much of a kind is under way.
    pub fn count(&self, kind: Kind) -> usize {
        let of_kind = |shard| self.lock(shard).iter().filter(|(_, entry)| entry.kind == kind).count();
        (0..SHARDS).map(of_kind).sum()
    }

    /// What is under way of these kinds, oldest first, each as `kind what for 1.234s`.
    pub fn list(&self, kinds: &[Kind]) -> Vec<String> {
        let mut lines = Vec::new();
        for shard in 0..SHARDS {
            for (_, Entry { kind, what, since }) in
                self.lock(shard).iter().filter(|(_, entry)| kinds.contains(&entry.kind))
            {
                lines.push((*since, format!("{} {what} for {:.3?}", kind.name(), since.elapsed())));
            }
        }
        lines.sort();
        lines.into_iter().map(|(_, line)| line).collect()
    }

    /// Completes when nothing of these kinds is under way.
    pub async fn none_of(&self, kinds: &[Kind]) {
        loop {
            let left = self.0.left.notified();
            // before the count: work that ends after it will notify
            self.0.awaited.store(true, Ordering::SeqCst);
            if kinds.iter().all(|kind| self.count(*kind) == 0) {
                return;
            }
            left.await;
        }
    }

    fn lock(&self, shard: usize) -> MutexGuard<'_, Slab<Entry>> {
        self.0.shards[shard].lock()
    }
}

/// The part of the register that the current thread uses.
fn own_shard() -> usize {
    static THREADS: AtomicUsize = AtomicUsize::new(0);
    thread_local!(static SHARD: usize = THREADS.fetch_add(1, Ordering::Relaxed) % SHARDS);
    SHARD.with(|shard| *shard)
}

impl Debug for Entry {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.name(), self.what)
    }
}

/// Work that is under way until this is dropped.
#[must_use = "the work counts as under way only while the guard lives"]
#[derive(Debug)]
pub struct Guard {
    shard: usize,
    key: usize,
    all: InFlight,
}

impl Guard {
    /// A request has turned out to be a stream.
    pub fn turn_into(&self, kind: Kind) {
        if let Some(entry) = self.all.lock(self.shard).get_mut(self.key) {
            entry.kind = kind;
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let entry = self.all.lock(self.shard).try_remove(self.key);
        // outside of the lock
        drop(entry);
        if self.all.0.awaited.load(Ordering::SeqCst) {
            self.all.0.left.notify_waiters();
        }
    }
}
