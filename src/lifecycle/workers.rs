//! Workers: supervised work that is told to claim nothing new, and waited for at the stop.

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::supervise::supervise;

/// The service's workers. Cloning shares them.
#[derive(Debug, Clone, Default)]
pub struct Workers {
    tasks: TaskTracker,
    claim_nothing: CancellationToken,
    abort: CancellationToken,
}

impl Workers {
    /// Runs `work` until the stop. Its token is cancelled when the work must claim nothing new; the work returns after
    /// that. Work that panics or returns earlier is started again.
    pub fn spawn<Run>(&self, name: &'static str, mut work: impl FnMut(CancellationToken) -> Run + Send + 'static)
    where
        Run: Future<Output = ()> + Send + 'static,
    {
        let (claim_nothing, abort) = (self.claim_nothing.clone(), self.abort.clone());
        let supervised = supervise(name, claim_nothing.clone(), move || work(claim_nothing.clone()));
        self.tasks.spawn(async move { abort.run_until_cancelled(supervised).await });
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

    /// Drops the jobs that still run: their transactions are rolled back, and another replica takes them.
    pub fn abort(&self) {
        self.abort.cancel();
    }
}
