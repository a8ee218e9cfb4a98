//! Supervised background work: restarted with back-off when it panics or ends, told when to claim nothing new, waited
//! for at the stop.

use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use backon::BackoffBuilder;
use futures_util::FutureExt;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A worker that ran this long before it fell starts its back-off afresh.
const SETTLED: Duration = Duration::from_secs(60);

/// The service's workers. Cloning shares them.
#[derive(Debug, Clone, Default)]
pub struct Workers {
    tasks: TaskTracker,
    claim_nothing: CancellationToken,
    cut: CancellationToken,
}

impl Workers {
    /// Runs `work` until the stop. It is given a token that is cancelled when it must claim nothing new, and returns
    /// after that; where it panics or returns before, it is started again, after 100 ms at first and 30 s at most.
    pub fn spawn<Run>(&self, name: &'static str, mut work: impl FnMut(CancellationToken) -> Run + Send + 'static)
    where
        Run: Future<Output = ()> + Send,
    {
        let (claim_nothing, cut) = (self.claim_nothing.clone(), self.cut.clone());
        let supervised = async move {
            let mut pauses = backoff();
            while !claim_nothing.is_cancelled() {
                let began = Instant::now();
                let ended = AssertUnwindSafe(work(claim_nothing.clone())).catch_unwind().await;
                if claim_nothing.is_cancelled() {
                    break;
                }
                if began.elapsed() > SETTLED {
                    pauses = backoff();
                }
                let pause = pauses.next().unwrap_or(SETTLED);
                let reason = if ended.is_err() { "panicked" } else { "ended" };
                tracing::error!(worker = name, reason, ?pause, "worker fell: it is started again");
                metrics::counter!("worker_restarts_total", "worker" => name).increment(1);
                claim_nothing.run_until_cancelled(tokio::time::sleep(pause)).await;
            }
        };
        self.tasks.spawn(async move { cut.run_until_cancelled(supervised).await });
    }

    /// From now on nothing new is claimed.
    pub fn claim_nothing(&self) {
        self.claim_nothing.cancel();
    }

    /// Completes when every running job has finished or been handed back.
    pub async fn drain(self) {
        self.claim_nothing();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Drops what still runs: a job's transaction is rolled back, and the job is another replica's.
    pub fn cut(&self) {
        self.cut.cancel();
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
