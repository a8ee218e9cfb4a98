//! Every setting of the service: typed, one struct a concern, validated all at once.
//!
//! `config/default.toml` lists each with its default and its meaning and is compiled in; [`Config::load`] lays a file
//! and the environment over it (see [`load`]). A setting that is read anywhere is a field here.

mod changes;
mod load;
mod values;

use std::fmt::Display;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};
use tracing_subscriber::filter::Targets;

pub use changes::Change;
pub use load::{Fault, InvalidConfig};
pub use values::{DatabaseUrl, LogFormat, Policy};
use values::{address, duration, duration_or_off, limit, size};

/// How much longer than the deadline the grace period must be: the time a kubelet may take from a container's exit to
/// seeing it, and the clock's start before ours.
const GRACE_MARGIN: Duration = Duration::from_secs(2);

const MOMENT: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(3600);
/// Less would time out what works.
const PATIENCE: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(3600);
const BUDGET: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(3600);

/// All settings.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[allow(missing_docs, reason = "each section documents itself")]
pub struct Config {
    pub http: Http,
    pub admin: Admin,
    pub lifecycle: Lifecycle,
    pub readiness: Readiness,
    pub database: Database,
    pub catalog: Catalog,
    pub products: Products,
    pub worker: Worker,
    pub retention: Retention,
    pub telemetry: Telemetry,
}

/// The public server: where it listens and how long and how much a client may take.
#[derive(Debug, Clone, Deserialize, Serialize)]
pub struct Http {
    /// Where to listen. Port 0 takes a free one, which the log names.
    #[serde(deserialize_with = "address")]
    pub address: SocketAddr,
    /// From a request's head to the head of its answer.
    #[serde(with = "duration")]
    pub request_timeout: Duration,
    /// For a new connection's first byte, and from a head's first byte to its last.
    #[serde(with = "duration")]
    pub header_timeout: Duration,
    /// For a kept-alive connection between requests.
    #[serde(with = "duration")]
    pub idle_timeout: Duration,
    /// The largest request body.
    #[serde(deserialize_with = "size")]
    pub body_limit: ByteSize,
    /// Bytes of heads and bodies held at once, of all requests together.
    #[serde(deserialize_with = "size")]
    pub max_buffered: ByteSize,
    /// Connections open at once.
    pub max_connections: usize,
    /// How old a connection may become before its client is asked to make a new one.
    #[serde(with = "duration_or_off")]
    pub max_connection_age: Option<Duration>,
    /// Requests at once.
    pub max_in_flight: usize,
}

/// The second port.
#[derive(Debug, Clone, Deserialize, Serialize)]
pub struct Admin {
    /// Where to listen. Port 0 takes a free one, which the log names.
    #[serde(deserialize_with = "address")]
    pub address: SocketAddr,
}

/// Budgets of the stop, and limits of liveness.
#[derive(Debug, Clone, Deserialize, Serialize)]
pub struct Lifecycle {
    /// Still serving while endpoints propagate.
    #[serde(with = "duration")]
    pub drain_delay: Duration,
    /// For requests in flight and streams.
    #[serde(with = "duration")]
    pub drain_http: Duration,
    /// For jobs that run.
    #[serde(with = "duration")]
    pub drain_workers: Duration,
    /// For the gRPC channel to close.
    #[serde(with = "duration")]
    pub grpc_channel: Duration,
    /// For the pool to close.
    #[serde(with = "duration")]
    pub database_pool: Duration,
    /// For telemetry to be flushed.
    #[serde(with = "duration")]
    pub telemetry: Duration,
    /// From the first stop signal to the exit.
    #[serde(with = "duration")]
    pub deadline: Duration,
    /// What Kubernetes grants before SIGKILL.
    #[serde(with = "duration")]
    pub termination_grace_period: Duration,
    /// How long the runtime may run nothing before `/livez` turns 503.
    #[serde(with = "duration")]
    pub stall_threshold: Duration,
    /// Live tasks past which `/livez` turns 503.
    #[serde(with = "limit")]
    pub max_tasks: Option<usize>,
    /// Resident memory past which `/livez` turns 503.
    #[serde(with = "limit")]
    pub max_memory: Option<ByteSize>,
}

/// The checks behind `/readyz`.
#[derive(Debug, Clone, Deserialize, Serialize)]
pub struct Readiness {
    /// Between two runs of a check.
    #[serde(with = "duration")]
    pub interval: Duration,
    /// For one run.
    #[serde(with = "duration")]
    pub timeout: Duration,
    /// Failures in a row before a check that passed fails.
    pub failures: u32,
    /// What a failing database means for readiness.
    pub postgres: Policy,
    /// What a failing catalog means for readiness.
    pub catalog: Policy,
}

/// PostgreSQL.
#[derive(Debug, Clone, Deserialize, Serialize)]
pub struct Database {
    /// `postgres://user:password@host/database`.
    pub url: DatabaseUrl,
    /// The file that the URL came from, which is followed.
    #[serde(skip)]
    pub url_file: Option<PathBuf>,
    /// Connections of the pool.
    pub max_connections: u32,
    /// Requests that may wait for one of them at once.
    pub max_waiting: usize,
    /// Waiting for one of them.
    #[serde(with = "duration")]
    pub acquire_timeout: Duration,
    /// For a statement, enforced by the server.
    #[serde(with = "duration")]
    pub statement_timeout: Duration,
    /// Prepared statements that a connection keeps.
    pub statement_cache: usize,
    /// Whether the timeouts are sent when a connection is opened.
    pub startup_options: bool,
    /// Whether to apply migrations before serving.
    pub migrate_on_start: bool,
}

/// The gRPC peer.
#[derive(Debug, Clone, Deserialize, Serialize)]
pub struct Catalog {
    /// `http://host:port`, or `https://`.
    pub endpoint: String,
    /// For a connection to be made.
    #[serde(with = "duration")]
    pub connect_timeout: Duration,
    /// For a call, its retries included.
    #[serde(with = "duration")]
    pub timeout: Duration,
    /// Between two readings of the whole catalog.
    #[serde(with = "duration")]
    pub refresh_interval: Duration,
}

/// What one reading of the whole catalog may take.
#[derive(Debug, Clone, Deserialize, Serialize)]
pub struct Products {
    /// From its first byte to its last.
    #[serde(with = "duration")]
    pub timeout: Duration,
    /// Products.
    pub max_count: usize,
    /// All products together.
    #[serde(deserialize_with = "size")]
    pub max_size: ByteSize,
}

/// Background jobs.
#[derive(Debug, Clone, Deserialize, Serialize)]
pub struct Worker {
    /// Jobs at once.
    pub concurrency: usize,
    /// Between two looks for work when there was none.
    #[serde(with = "duration")]
    pub poll_interval: Duration,
}

/// How long things are kept.
#[derive(Debug, Clone, Deserialize, Serialize)]
pub struct Retention {
    /// Events: a client that was away for longer is told so.
    #[serde(with = "duration_or_off")]
    pub events: Option<Duration>,
    /// Idempotency keys: a request that is repeated later is a new one.
    #[serde(with = "duration_or_off")]
    pub idempotency_keys: Option<Duration>,
}

/// Logs; traces follow OpenTelemetry's own `OTEL_*` variables.
#[derive(Debug, Clone, Deserialize, Serialize)]
pub struct Telemetry {
    /// What is logged: directives such as `info` or `info,service=debug`.
    pub log_filter: String,
    /// How a log line looks.
    pub log_format: LogFormat,
}

impl Config {
    /// What no single type can say: ranges, and settings that must agree.
    fn check(&self, faults: &mut Vec<Fault>) {
        let mut check = Check { faults };
        self.http.check(&mut check);
        self.lifecycle.check(&mut check);
        self.readiness.check(&mut check);
        self.database.check(&mut check);
        self.catalog.check(&mut check);
        check.number("worker.concurrency", self.worker.concurrency, 1..=1000);
        check.duration("worker.poll_interval", self.worker.poll_interval, MOMENT);
        check.duration("products.timeout", self.products.timeout, PATIENCE);
        check.number("products.max_count", self.products.max_count, 1..=100_000_000);
        check.size("products.max_size", self.products.max_size, ByteSize::b(1)..=ByteSize::gib(64));
        self.retention.check(&mut check);
        if self.telemetry.log_filter.parse::<Targets>().is_err() {
            let allowed = "directives such as info or info,service=debug, here or in RUST_LOG";
            check.fault("telemetry.log_filter", self.telemetry.log_filter.clone(), allowed);
        }
    }
}

impl Http {
    fn check(&self, check: &mut Check<'_>) {
        check.duration("http.request_timeout", self.request_timeout, PATIENCE);
        check.duration("http.header_timeout", self.header_timeout, PATIENCE);
        check.duration("http.idle_timeout", self.idle_timeout, PATIENCE);
        check.size("http.body_limit", self.body_limit, ByteSize::b(1)..=ByteSize::gib(1));
        check.size("http.max_buffered", self.max_buffered, ByteSize::mib(1)..=ByteSize::tib(1));
        if self.max_buffered < self.body_limit {
            let least = format!("at least http.body_limit, {}: raise it or lower that", self.body_limit);
            check.fault("http.max_buffered", self.max_buffered.to_string(), least);
        }
        check.number("http.max_connections", self.max_connections, 1..=1_000_000);
        if let Some(age) = self.max_connection_age {
            check.duration("http.max_connection_age", age, Duration::from_secs(1)..=Duration::from_secs(7 * 24 * 3600));
        }
        check.number("http.max_in_flight", self.max_in_flight, 1..=1_000_000);
    }
}

impl Lifecycle {
    /// The budgets of the stop with their settings' names, in the order they are spent.
    pub fn budgets(&self) -> [(&'static str, Duration); 6] {
        [
            ("lifecycle.drain_delay", self.drain_delay),
            ("lifecycle.drain_http", self.drain_http),
            ("lifecycle.drain_workers", self.drain_workers),
            ("lifecycle.grpc_channel", self.grpc_channel),
            ("lifecycle.database_pool", self.database_pool),
            ("lifecycle.telemetry", self.telemetry),
        ]
    }

    fn check(&self, check: &mut Check<'_>) {
        for (setting, budget) in self.budgets() {
            check.duration(setting, budget, BUDGET);
        }
        check.duration("lifecycle.deadline", self.deadline, MOMENT);
        check.duration("lifecycle.termination_grace_period", self.termination_grace_period, MOMENT);
        check.duration("lifecycle.stall_threshold", self.stall_threshold, Duration::from_secs(1)..=*MOMENT.end());
        if let Some(tasks) = self.max_tasks {
            check.number("lifecycle.max_tasks", tasks, 100..=100_000_000);
        }
        if let Some(memory) = self.max_memory {
            check.size("lifecycle.max_memory", memory, ByteSize::mib(16)..=ByteSize::tib(1));
        }
        let spent: Duration = self.budgets().iter().map(|(_, budget)| *budget).sum();
        if spent > self.deadline {
            let names = self.budgets().map(|(setting, _)| setting).join(", ");
            check.fault(
                "lifecycle.deadline",
                duration::text(self.deadline),
                format!(
                    "at least {}, which is what {names} add up to: raise it or lower one of them",
                    duration::text(spent)
                ),
            );
        }
        if self.deadline + GRACE_MARGIN > self.termination_grace_period {
            check.fault(
                "lifecycle.termination_grace_period",
                duration::text(self.termination_grace_period),
                format!(
                    "at least {}, lifecycle.deadline and {} more: raise it, and terminationGracePeriodSeconds with it, or lower the deadline",
                    duration::text(self.deadline + GRACE_MARGIN),
                    duration::text(GRACE_MARGIN)
                ),
            );
        }
    }
}

impl Readiness {
    fn check(&self, check: &mut Check<'_>) {
        check.duration("readiness.interval", self.interval, Duration::from_millis(10)..=*MOMENT.end());
        check.duration("readiness.timeout", self.timeout, PATIENCE);
        check.number("readiness.failures", self.failures as usize, 1..=1000);
    }
}

impl Database {
    fn check(&self, check: &mut Check<'_>) {
        if self.url.reveal().is_empty() {
            check.fault(
                "database.url",
                "nothing".to_owned(),
                "postgres://user:password@host/database: set DATABASE_URL, or APP__DATABASE__URL_FILE to a file that holds it"
                    .to_owned(),
            );
        } else if !self.url.is_well_formed() {
            check.fault("database.url", self.url.to_string(), "postgres://user:password@host/database".to_owned());
        }
        check.number("database.max_connections", self.max_connections as usize, 1..=10_000);
        check.number("database.max_waiting", self.max_waiting, 1..=1_000_000);
        check.number("database.statement_cache", self.statement_cache, 0..=10_000);
        check.duration("database.acquire_timeout", self.acquire_timeout, PATIENCE);
        check.duration("database.statement_timeout", self.statement_timeout, PATIENCE);
    }
}

impl Catalog {
    fn check(&self, check: &mut Check<'_>) {
        let endpoint = self.endpoint.parse::<http::Uri>().ok();
        let scheme = endpoint.as_ref().and_then(|uri| uri.scheme_str());
        if !matches!(scheme, Some("http" | "https")) {
            check.fault("catalog.endpoint", self.endpoint.clone(), "http://host:port or https://host:port".to_owned());
        }
        check.duration("catalog.connect_timeout", self.connect_timeout, PATIENCE);
        check.duration("catalog.timeout", self.timeout, PATIENCE);
        check.duration("catalog.refresh_interval", self.refresh_interval, Duration::from_millis(10)..=*MOMENT.end());
    }
}

impl Retention {
    fn check(&self, check: &mut Check<'_>) {
        let allowed = Duration::from_secs(1)..=Duration::from_secs(100 * 365 * 24 * 3600);
        for (setting, age) in [("events", self.events), ("idempotency_keys", self.idempotency_keys)] {
            if let Some(age) = age {
                check.duration(&format!("retention.{setting}"), age, allowed.clone());
            }
        }
    }
}

/// Collects what [`Config::check`] finds.
struct Check<'a> {
    faults: &'a mut Vec<Fault>,
}

impl Check<'_> {
    fn fault(&mut self, setting: &str, given: String, allowed: impl Display) {
        self.faults.push(Fault {
            setting: setting.to_owned(),
            given: Some(given),
            problem: format!("allowed is {allowed}"),
        });
    }

    fn number(&mut self, setting: &str, value: usize, allowed: RangeInclusive<usize>) {
        self.within(setting, value, allowed, |number| number.to_string());
    }

    fn size(&mut self, setting: &str, value: ByteSize, allowed: RangeInclusive<ByteSize>) {
        self.within(setting, value, allowed, |size| size.to_string());
    }

    fn duration(&mut self, setting: &str, value: Duration, allowed: RangeInclusive<Duration>) {
        self.within(setting, value, allowed, duration::text);
    }

    fn within<T: PartialOrd + Copy>(
        &mut self,
        setting: &str,
        value: T,
        allowed: RangeInclusive<T>,
        text: fn(T) -> String,
    ) {
        if !allowed.contains(&value) {
            self.fault(setting, text(value), format!("{} to {}", text(*allowed.start()), text(*allowed.end())));
        }
    }
}
