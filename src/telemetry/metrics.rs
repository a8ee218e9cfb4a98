//! Metrics, for Prometheus to read. Counters and histograms are recorded where things happen; gauges are read when
//! somebody asks.

use std::cell::RefCell;
use std::collections::HashMap;
use std::time::Duration;

use http::Method;
use metrics::Histogram;
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

use super::logs::Logs;
use crate::lifecycle::{Kind, Lifecycle, Phase};

/// Bounds in seconds. OpenTelemetry advises to begin at 5 ms, where everything that is well would be in the first.
const SECONDS: [f64; 14] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

const REQUEST_DURATION: &str = "http_server_request_duration_seconds";

const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// The process's recorder. Cloning shares it.
#[derive(Clone)]
pub struct Metrics(PrometheusHandle, Logs);

impl Metrics {
    pub(super) fn install(logs: Logs) -> Result<Self, BuildError> {
        let builder = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("duration_seconds".to_owned()), &SECONDS)?;
        let handle = builder.install_recorder()?;
        describe();
        let labels = [
            ("name", env!("CARGO_PKG_NAME")),
            ("version", env!("CARGO_PKG_VERSION")),
            ("commit", env!("BUILD_COMMIT")),
        ];
        metrics::gauge!("build_info", &labels).set(1);
        Ok(Self(handle, logs))
    }

    /// In Prometheus's text format.
    pub fn render(&self) -> String {
        self.1.report();
        self.0.render()
    }

    /// Folds what histograms collect, for ever, lest it pile up where nobody scrapes.
    pub async fn upkeep(self) {
        let mut ticks = tokio::time::interval(UPKEEP_INTERVAL);
        loop {
            ticks.tick().await;
            self.0.run_upkeep();
        }
    }
}

/// Reads the gauges of the process's own life.
pub fn report(lifecycle: &Lifecycle, main: &tokio::runtime::Handle) {
    for kind in Kind::ALL {
        metrics::gauge!("in_flight", "kind" => kind.name()).set(lifecycle.in_flight().count(kind) as f64);
    }
    for phase in Phase::ALL {
        metrics::gauge!("lifecycle_phase", "phase" => phase.name()).set(u8::from(lifecycle.phase() == phase));
    }
    for step in lifecycle.steps() {
        if let Some((outcome, took)) = step.ended {
            metrics::gauge!("lifecycle_step_duration_seconds", "step" => step.step, "outcome" => outcome.name())
                .set(took);
        }
    }
    for (check, report) in lifecycle.readiness().report() {
        metrics::gauge!("readiness_check_passing", "check" => check).set(u8::from(report.passes()));
    }
    let runtime = main.metrics();
    metrics::gauge!("tokio_workers").set(runtime.num_workers() as f64);
    metrics::gauge!("tokio_alive_tasks").set(runtime.num_alive_tasks() as f64);
    metrics::gauge!("tokio_global_queue_depth").set(runtime.global_queue_depth() as f64);
    metrics::gauge!("process_resident_memory_bytes").set(lifecycle.liveness().vitals().resident_memory as f64);
    if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
        metrics::gauge!("process_open_fds").set(open.count() as f64);
    }
}

/// `http_server_request_duration_seconds`, its histograms found by a look in the thread's own map: to have one from the
/// recorder costs ten times as much.
#[derive(Debug, Clone, Copy)]
pub struct RequestDuration;

impl RequestDuration {
    /// Records a request that was answered, or given up, after that long. `route` is the pattern that its path matched,
    /// or nothing.
    pub fn record(method: &Method, route: &str, status: u16, took: Duration) {
        type Histograms = Vec<(&'static str, u16, Histogram)>;
        thread_local! {
            static ROUTES: RefCell<HashMap<String, Histograms>> = RefCell::default();
        }
        let method = super::traces::method(method);
        ROUTES.with_borrow_mut(|routes| {
            if !routes.contains_key(route) {
                routes.insert(route.to_owned(), Vec::new());
            }
            let Some(histograms) = routes.get_mut(route) else { return };
            let known = histograms.iter().position(|(known, code, _)| *known == method && *code == status);
            let index = known.unwrap_or_else(|| {
                let labels = [
                    ("http_request_method", method.to_owned()),
                    ("http_route", route.to_owned()),
                    ("http_response_status_code", status.to_string()),
                ];
                histograms.push((method, status, metrics::histogram!(REQUEST_DURATION, &labels)));
                histograms.len() - 1
            });
            histograms[index].2.record(took);
        });
    }
}

fn describe() {
    use metrics::{describe_counter as counter, describe_gauge as gauge, describe_histogram as histogram};
    histogram!(REQUEST_DURATION, "From a request's head to the head of its answer.");
    gauge!("http_server_connections", "Open connections of the public server.");
    gauge!("http_server_buffered_bytes", "Bytes of requests' heads and bodies that are held.");
    counter!("http_server_evicted_total", "Idle connections closed to make room for others.");
    counter!("http_server_timeouts_total", "Peers that took too long, by what for.");
    counter!("http_server_shed_total", "Requests turned away with 503 by this process's own limits.");
    counter!("http_server_aborted_total", "Requests and streams that outlasted the drain.");
    counter!("http_server_bad_requests_total", "Requests that are not HTTP.");
    counter!("http_server_accept_errors_total", "Connections that could not be accepted.");
    gauge!("in_flight", "What is under way.");
    gauge!("lifecycle_phase", "1 for the phase the process is in.");
    gauge!("lifecycle_step_duration_seconds", "What a step of the stop took.");
    counter!("lifecycle_stops_begun_total", "Stops that began, by trigger.");
    counter!("lifecycle_stops_completed_total", "Stops that ended, by their worst step's outcome.");
    gauge!("readiness_check_passing", "1 while the check passes.");
    gauge!("db_client_connections", "Connections of the pool.");
    gauge!("db_client_connections_max", "Connections the pool may have.");
    gauge!("db_client_connections_waiting", "Callers that wait for a connection of the pool.");
    histogram!("db_client_connection_wait_duration_seconds", "How long a caller waited, if no connection was free.");
    counter!("db_client_connections_refused_total", "Callers that got no connection, by why.");
    counter!("db_client_connections_opened_total", "Connections that the pool has opened.");
    counter!("log_lines_dropped_total", "Log lines lost, by why.");
    counter!("worker_restarts_total", "Workers and background tasks that panicked or ended, and were started again.");
    counter!("worker_jobs_total", "Jobs, by how they ended.");
    gauge!("tokio_workers", "Threads of the main runtime.");
    gauge!("tokio_alive_tasks", "Live tasks of the main runtime.");
    gauge!("tokio_global_queue_depth", "Tasks that wait for a thread of the main runtime.");
    gauge!("process_resident_memory_bytes", "Memory in use.");
    gauge!("process_open_fds", "Open file descriptors.");
    gauge!("build_info", "1; the labels say what runs.");
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}
