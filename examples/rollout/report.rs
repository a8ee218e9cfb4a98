//! What every request came to, by kind of client and by step.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use crate::client::{Failure, Lost};

/// A kind of client.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Kind {
    KeepAlive,
    PerRequest,
    Http2,
    Http2PerRequest,
    WebSocket,
    Sse,
}

impl Kind {
    pub(crate) const ALL: [Self; 6] =
        [Self::KeepAlive, Self::PerRequest, Self::Http2, Self::Http2PerRequest, Self::WebSocket, Self::Sse];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::KeepAlive => "HTTP/1.1, kept alive",
            Self::PerRequest => "HTTP/1.1, one connection each",
            Self::Http2 => "HTTP/2, kept alive",
            Self::Http2PerRequest => "HTTP/2, one connection each",
            Self::WebSocket => "WebSocket",
            Self::Sse => "Server-Sent Events",
        }
    }
}

/// A request: when it began, how long it took, and what went wrong. For a stream it is the opening, and its end if that was not clean.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    pub(crate) kind: Kind,
    pub(crate) at: Duration,
    pub(crate) took: Duration,
    /// Whether it was to make an order.
    pub(crate) orders: bool,
    pub(crate) failure: Option<Failure>,
}

/// Where clients write down their requests. Clones share one book.
#[derive(Clone, Debug)]
pub(crate) struct Recorder(Arc<Book>);

#[derive(Debug)]
struct Book {
    start: Instant,
    samples: Mutex<Vec<Sample>>,
    unsent: AtomicU64,
    refused: AtomicU64,
    shown: AtomicUsize,
}

/// So many failures are shown as they happen; the table has them all.
const SHOWN: usize = 20;

impl Recorder {
    pub(crate) fn new() -> Self {
        let (samples, unsent, refused, shown) = Default::default();
        Self(Arc::new(Book { start: Instant::now(), samples, unsent, refused, shown }))
    }

    /// The time since the start of the run.
    pub(crate) fn now(&self) -> Duration {
        self.0.start.elapsed()
    }

    /// A request that began at `at` has ended.
    pub(crate) fn ended(&self, kind: Kind, orders: bool, at: Duration, outcome: Result<(), Lost>) {
        let took = self.now().saturating_sub(at);
        let failure = outcome.err().map(|Lost(failure, why)| {
            if self.0.shown.fetch_add(1, Ordering::Relaxed) < SHOWN {
                eprintln!("{:8.3} s  lost: {}, {failure} after {took:.3?}: {why}", at.as_secs_f64(), kind.name());
            }
            failure
        });
        self.0.samples.lock().expect("no writer panics").push(Sample { kind, at, took, orders, failure });
    }

    pub(crate) fn unsent(&self) {
        self.0.unsent.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn refused(&self) {
        self.0.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// How many requests have ended so far.
    pub(crate) fn count(&self) -> usize {
        self.0.samples.lock().expect("no writer panics").len()
    }

    pub(crate) fn report(&self, steps: Vec<Step>) -> Report {
        let mut samples = self.0.samples.lock().expect("no writer panics").clone();
        samples.sort_by_key(|sample| sample.at);
        let sent_again = (self.0.unsent.load(Ordering::Relaxed), self.0.refused.load(Ordering::Relaxed));
        Report { samples, steps, sent_again }
    }
}

/// What is held against a step.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Promise {
    /// No request is lost.
    NoneLost,
    /// Orders may be refused, with 503 or 504, while the catalog is away; nothing that reads is lost.
    MayRefuseOrders,
    /// Requests may be refused while a dependency is away; streams still miss nothing.
    MayRefuse,
}

impl Promise {
    /// Whether a request that ended like this breaks it.
    fn is_broken_by(self, sample: &Sample) -> bool {
        let refused = sample.orders && matches!(sample.failure, Some(Failure::Status(503 | 504)));
        sample.failure.is_some() && self != Self::MayRefuse && !(refused && self == Self::MayRefuseOrders)
    }
}

/// A part of the run. A request belongs to the step in which it began.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) name: String,
    pub(crate) from: Duration,
    pub(crate) to: Duration,
    pub(crate) promise: Promise,
}

#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) samples: Vec<Sample>,
    pub(crate) steps: Vec<Step>,
    sent_again: (u64, u64),
}

impl Report {
    fn of(&self, step: &Step) -> impl Iterator<Item = &Sample> {
        let (from, to) = (step.from, step.to);
        self.samples.iter().filter(move |sample| (from..to).contains(&sample.at))
    }

    /// The requests lost that a step had promised not to lose.
    pub(crate) fn broken_promises(&self) -> usize {
        let broken = |step: &Step| self.of(step).filter(|sample| step.promise.is_broken_by(sample)).count();
        self.steps.iter().map(broken).sum()
    }

    /// The requests that ended well and those that did not.
    pub(crate) fn totals(&self) -> (usize, usize) {
        let failed = self.samples.iter().filter(|sample| sample.failure.is_some()).count();
        (self.samples.len() - failed, failed)
    }

    /// Requests, failures, median and 99th percentile of each kind of client in each step.
    pub(crate) fn table(&self) -> String {
        let mut table =
            format!("{:<30} {:<30} {:>9} {:>7} {:>10} {:>10}\n", "step", "client", "requests", "failed", "p50", "p99");
        let mut causes: BTreeMap<(&str, Kind, Failure), usize> = BTreeMap::new();
        for step in &self.steps {
            let title = step.name.replace('\n', " ");
            let mut name = title.as_str();
            for kind in Kind::ALL {
                let samples: Vec<&Sample> = self.of(step).filter(|sample| sample.kind == kind).collect();
                if samples.is_empty() {
                    continue;
                }
                let failures = samples.iter().filter_map(|sample| sample.failure);
                let failed =
                    failures.map(|failure| *causes.entry((&step.name, kind, failure)).or_default() += 1).count();
                let mut took: Vec<Duration> = samples.iter().map(|sample| sample.took).collect();
                took.sort_unstable();
                let (p50, p99) = (milliseconds(took[took.len() / 2]), milliseconds(took[took.len() * 99 / 100]));
                let _ = writeln!(
                    table,
                    "{name:<30} {:<30} {:>9} {failed:>7} {p50:>10} {p99:>10}",
                    kind.name(),
                    samples.len()
                );
                name = "";
            }
        }
        for ((step, kind, failure), count) in causes {
            let _ = writeln!(table, "lost in {}, {}: {count} × {failure}", step.replace('\n', " "), kind.name());
        }
        let (unsent, refused) = self.sent_again;
        let _ = writeln!(
            table,
            "not counted as lost: {unsent} requests sent on another connection because theirs was closed before a byte was written,"
        );
        let _ = writeln!(
            table,
            "                     {refused} HTTP/2 streams that the server said it had not begun (GOAWAY, REFUSED_STREAM) and that were sent again"
        );
        table
    }
}

fn milliseconds(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1000.0)
}
