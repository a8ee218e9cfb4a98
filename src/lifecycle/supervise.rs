//! Work that has to go on: started again when it panics or ends.

use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use backon::BackoffBuilder;
use futures_util::FutureExt;
use tokio_util::sync::CancellationToken;

/// Work that has run for this long begins its pauses afresh.
const SETTLED: Duration = Duration::from_secs(60);

/// Runs `work` until `enough` is cancelled and the work has returned. Work that panics or returns earlier is started
/// again, after 100 ms at first and 30 s at most.
pub(super) async fn supervise<Run>(name: &'static str, enough: CancellationToken, mut work: impl FnMut() -> Run)
where
    Run: Future<Output = ()>,
{
    let mut pauses = backoff();
    while !enough.is_cancelled() {
        let began = Instant::now();
        let ended = AssertUnwindSafe(async { work().await }).catch_unwind().await;
        if enough.is_cancelled() {
            break;
        }
        if began.elapsed() > SETTLED {
            pauses = backoff();
        }
        let pause = pauses.next().unwrap_or(SETTLED);
        let reason = if ended.is_err() { "panicked" } else { "ended" };
        tracing::error!(worker = name, reason, ?pause, "worker is started again");
        metrics::counter!("worker_restarts_total", "worker" => name).increment(1);
        enough.run_until_cancelled(tokio::time::sleep(pause)).await;
    }
}

fn backoff() -> backon::ExponentialBackoff {
    backon::ExponentialBuilder::new()
        .with_min_delay(Duration::from_millis(100))
        .with_max_delay(Duration::from_secs(30))
        .with_jitter()
        .without_max_times()
        .build()
}
