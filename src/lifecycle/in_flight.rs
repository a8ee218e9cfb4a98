//! What is under way right now: counted by kind for metrics and drains, named for the log when it has to be cut.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;

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
    register: Mutex<Register>,
    left: Notify,
}

#[derive(Debug, Default)]
struct Register {
    next: u64,
    entries: HashMap<u64, Entry>,
}

#[derive(Debug)]
struct Entry {
    kind: Kind,
    what: String,
    since: Instant,
}

impl InFlight {
    /// Registers work until the guard is dropped. `what` is for people: `GET /v1/things/{id} from 10.0.0.7:4711`.
    pub fn enter(&self, kind: Kind, what: String) -> Guard {
        let mut register = self.lock();
        let id = register.next;
        register.next += 1;
        register.entries.insert(id, Entry { kind, what, since: Instant::now() });
        drop(register);
        Guard { id, all: self.clone() }
    }

    /// How much of a kind is under way.
    pub fn count(&self, kind: Kind) -> usize {
        self.lock().entries.values().filter(|entry| entry.kind == kind).count()
    }

    /// What is under way of these kinds, oldest first, each as `kind what for 1.234s`.
    pub fn list(&self, kinds: &[Kind]) -> Vec<String> {
        let register = self.lock();
        let mut entries: Vec<_> = register.entries.values().filter(|entry| kinds.contains(&entry.kind)).collect();
        entries.sort_by_key(|entry| entry.since);
        let line = |entry: &&Entry| format!("{} {} for {:.3?}", entry.kind.name(), entry.what, entry.since.elapsed());
        entries.iter().map(line).collect()
    }

    /// Completes when nothing of these kinds is under way.
    pub async fn none_of(&self, kinds: &[Kind]) {
        loop {
            let left = self.0.left.notified();
            if kinds.iter().all(|kind| self.count(*kind) == 0) {
                return;
            }
            left.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Register> {
        self.0.register.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Work that is under way until this is dropped.
#[must_use = "the work counts as under way only while the guard lives"]
#[derive(Debug)]
pub struct Guard {
    id: u64,
    all: InFlight,
}

impl Guard {
    /// A request has turned out to be a stream.
    pub fn turn_into(&self, kind: Kind) {
        if let Some(entry) = self.all.lock().entries.get_mut(&self.id) {
            entry.kind = kind;
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.all.lock().entries.remove(&self.id);
        self.all.0.left.notify_waiters();
    }
}
