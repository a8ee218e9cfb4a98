//! Logs on standard output, one line an event, that never block the service: a line that finds the queue full, or that
//! cannot be written, is counted and forgotten.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use opentelemetry_sdk::trace::SdkTracer;
use tracing::Level;
use tracing_subscriber::filter::{FilterExt, Targets, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, reload};

use super::TelemetryError;
use super::json::Json;
use super::queue::Queue;
use crate::config::{self, LogFormat};

/// What a reader may take for the last lines.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// The log. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Logs {
    queue: Arc<Queue>,
    filter: reload::Handle<Targets, Registry>,
}

/// Writes what is queued when it is dropped, for at most a second.
#[derive(Debug)]
pub(super) struct Writer(Arc<Queue>);

impl Drop for Writer {
    fn drop(&mut self) {
        self.0.close(FLUSH_TIMEOUT);
    }
}

/// Installs the subscriber. Spans go to the tracer, if there is one.
pub(super) fn start(settings: &config::Telemetry, tracer: Option<SdkTracer>) -> Result<(Logs, Writer), TelemetryError> {
    let (filter, handle) = reload::Layer::new(parse(&settings.log_filter)?);
    let queue = Arc::new(Queue::default());
    let stdout = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    std::thread::Builder::new().name("log".to_owned()).spawn({
        let queue = Arc::clone(&queue);
        move || queue.run(stdout)
    })?;
    let lines = match settings.log_format {
        LogFormat::Json => Json(Arc::clone(&queue)).boxed(),
        LogFormat::Pretty => {
            let lines = tracing_subscriber::fmt::layer().with_target(false).with_ansi(io::stdout().is_terminal());
            let queue = Arc::clone(&queue);
            lines.with_writer(move || Whole(Arc::clone(&queue))).boxed()
        }
    };
    // the log shows no spans: without a tracer they cost nothing
    let lines = lines.with_filter(filter_fn(|metadata| metadata.is_event()).and(filter));
    let spans = tracer.map(|tracer| {
        let spans = tracing_opentelemetry::layer().with_tracer(tracer).with_location(false).with_threads(false);
        let spans = spans.with_tracked_inactivity(false).with_target(false).with_level(false);
        // those of libraries, the exporter's own among them, are theirs
        let is_own = |target: &str| target.starts_with(env!("CARGO_CRATE_NAME"));
        spans.with_filter(filter_fn(move |metadata| {
            metadata.is_span() && *metadata.level() <= Level::INFO && is_own(metadata.target())
        }))
    });
    tracing_subscriber::registry().with(lines).with(spans).init();
    std::panic::set_hook(Box::new(panicked));
    Ok((Logs { queue: Arc::clone(&queue), filter: handle }, Writer(queue)))
}

impl Logs {
    /// Sets what is logged from now on, in the form of `telemetry.log_filter`: `info,service::server=trace`.
    ///
    /// # Errors
    /// If `directives` cannot be read: nothing changes.
    pub fn set_filter(&self, directives: &str) -> Result<(), TelemetryError> {
        let filter = parse(directives)?;
        // the other error is that the subscriber has gone, and it is the process's
        let _ = self.filter.reload(filter);
        Ok(())
    }

    /// Brings the counters of lost lines up to date.
    pub(super) fn report(&self) {
        let Queue { queue_full, cannot_write, .. } = &*self.queue;
        for (reason, lines) in [("queue full", queue_full), ("cannot write", cannot_write)] {
            metrics::counter!("log_lines_dropped_total", "reason" => reason).absolute(lines.load(Ordering::Relaxed));
        }
    }
}

fn parse(directives: &str) -> Result<Targets, TelemetryError> {
    Ok(directives.parse()?)
}

/// Logs a panic as one line.
fn panicked(panic: &std::panic::PanicHookInfo<'_>) {
    let backtrace = std::backtrace::Backtrace::force_capture();
    tracing::error!(
        panic = panic.payload_as_str().unwrap_or("no message"),
        place = panic.location().map(tracing::field::display),
        thread = std::thread::current().name(),
        %backtrace,
        "panic"
    );
}

/// Hands lines on whole, as the pretty format writes them.
struct Whole(Arc<Queue>);

impl Write for Whole {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn a_panic_is_one_line_with_place_and_backtrace() {
        let queue = Arc::new(Queue::default());
        let subscriber = tracing_subscriber::registry().with(Json(Arc::clone(&queue)));
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(panicked));
        let caught = tracing::subscriber::with_default(subscriber, || std::panic::catch_unwind(|| panic!("oh {}", 7)));
        std::panic::set_hook(before);
        assert!(caught.is_err());
        let line: Value = serde_json::from_slice(&queue.take()).expect("one JSON object");
        assert_eq!(line["level"], "ERROR");
        assert_eq!(line["message"], "panic");
        assert_eq!(line["panic"], "oh 7");
        assert!(line["place"].as_str().is_some_and(|place| place.contains("logs.rs:")), "{line}");
        assert!(line["backtrace"].as_str().is_some_and(|backtrace| backtrace.contains("0: ")), "{line}");
    }
}
