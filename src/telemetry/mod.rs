//! Logs, traces and metrics: what an operator sees.

mod json;
pub mod logs;
pub mod metrics;
mod otlp;
mod queue;
pub mod traces;

use std::error::Error;

use crate::config;

/// Everything that observes the service. Lives in `main`, to be the last thing that ends.
#[derive(Debug)]
pub struct Telemetry {
    logs: logs::Logs,
    _writer: logs::Writer,
    traces: traces::Traces,
    metrics: metrics::Metrics,
}

/// Telemetry cannot be set up as the environment asks.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum TelemetryError {
    #[error("RUST_LOG is not a list of directives such as info,service=debug: {0}")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    #[error("OTEL_EXPORTER_OTLP_* cannot be used: {0}")]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
    #[error("{variable} is {given}: allowed is grpc (a collector's port 4317) or http/protobuf (4318)")]
    Protocol { variable: String, given: String },
    #[error("telemetry cannot be set up: {0}")]
    Io(#[from] std::io::Error),
    #[error("a metrics recorder is installed already: {0}")]
    Metrics(#[from] metrics_exporter_prometheus::BuildError),
}

impl Telemetry {
    /// Sets up logs, traces and metrics for the process. Traces are exported on the runtime it is called on.
    ///
    /// # Errors
    /// Where `RUST_LOG` or `OTEL_*` cannot be used.
    pub fn start(settings: &config::Telemetry) -> Result<Self, TelemetryError> {
        let traces = traces::Traces::from_env()?;
        let (logs, writer) = logs::start(settings, traces.install())?;
        let metrics = metrics::Metrics::install(logs.clone())?;
        Ok(Self { logs, _writer: writer, traces, metrics })
    }

    /// For changing what is logged.
    pub fn logs(&self) -> logs::Logs {
        self.logs.clone()
    }

    /// For `/metrics`.
    pub fn metrics(&self) -> metrics::Metrics {
        self.metrics.clone()
    }

    /// For the stop.
    pub fn traces(&self) -> traces::Traces {
        self.traces.clone()
    }
}

/// An error with what caused it, in one line.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |&error| error.source());
    let mut line = Vec::new();
    for cause in causes.map(ToString::to_string) {
        // many errors already end with their source's message
        if !line.last().is_some_and(|last: &String| last.ends_with(&cause)) {
            line.push(cause);
        }
    }
    line.join(": ")
}
