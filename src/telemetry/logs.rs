//! Logs on standard output, one line an event, that never block the service: lines go through a queue with a bound, and
//! one that finds it full, or cannot be written, is counted and forgotten.

use std::io::{self, IsTerminal, Write};
use std::sync::mpsc;
use std::time::Duration;

use opentelemetry_sdk::trace::SdkTracer;
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use super::TelemetryError;
use crate::config::{self, LogFormat};

/// Lines that may wait; at some 400 bytes each, 1 MB.
const QUEUE: usize = 2048;

const DROPPED: &str = "log_lines_dropped_total";

/// What a reader may take for the last lines.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// Writes what is queued when it is dropped.
#[derive(Debug)]
pub struct Writer {
    worker: Option<WorkerGuard>,
}

impl Drop for Writer {
    fn drop(&mut self) {
        let worker = self.worker.take();
        let (done, flushed) = mpsc::channel();
        // on a thread of its own: where nobody reads, the guard ends up printing to the very pipe that is full
        let flush = move || {
            drop(worker);
            let _ = done.send(());
        };
        if std::thread::Builder::new().name("log-flush".to_owned()).spawn(flush).is_ok() {
            let _ = flushed.recv_timeout(FLUSH_TIMEOUT);
        }
    }
}

/// Lines that were lost to a full queue. Read when metrics are.
static QUEUED: std::sync::OnceLock<tracing_appender::non_blocking::ErrorCounter> = std::sync::OnceLock::new();

/// Installs the subscriber.
pub(super) fn start(settings: &config::Telemetry, tracer: SdkTracer) -> Result<Writer, TelemetryError> {
    let filter = EnvFilter::builder().parse(&settings.log_filter)?;
    let (queue, worker) = NonBlockingBuilder::default().buffered_lines_limit(QUEUE).lossy(true).finish(Stdout);
    let _ = QUEUED.set(queue.error_counter());
    let lines = tracing_subscriber::fmt::layer().with_writer(queue);
    let lines = match settings.log_format {
        LogFormat::Json => lines.json().flatten_event(true).with_span_list(false).boxed(),
        LogFormat::Pretty => lines.with_target(false).with_ansi(io::stdout().is_terminal()).boxed(),
    };
    let spans = tracing_opentelemetry::layer().with_tracer(tracer);
    tracing_subscriber::registry().with(spans).with(lines).with(filter).init();
    Ok(Writer { worker: Some(worker) })
}

/// Brings the counter of lost lines up to date.
pub(super) fn report() {
    let queued = QUEUED.get().map_or(0, tracing_appender::non_blocking::ErrorCounter::dropped_lines);
    metrics::counter!(DROPPED, "reason" => "queue full").absolute(queued as u64);
}

/// Standard output, on which an error is an event to count: it may be closed, and there is nobody to tell.
struct Stdout;

impl Write for Stdout {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if io::stdout().write_all(line).is_err() {
            metrics::counter!(DROPPED, "reason" => "cannot write").increment(1);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let _ = io::stdout().flush();
        Ok(())
    }
}
