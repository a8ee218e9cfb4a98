//! A wait that lasts says again and again what it waits for.

use std::pin::pin;
use std::time::Duration;

/// Between two reminders.
const INTERVAL: Duration = Duration::from_secs(15);

/// Completes with `wait`, and calls `remind` at every 15 s until then.
pub(super) async fn reminding<T>(wait: impl Future<Output = T>, remind: impl Fn()) -> T {
    let mut wait = pin!(wait);
    loop {
        match tokio::time::timeout(INTERVAL, wait.as_mut()).await {
            Ok(result) => return result,
            Err(_elapsed) => remind(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_wait_of_40_s_is_said_twice_and_a_short_one_never() {
        let said = AtomicU32::new(0);
        let remind = || {
            said.fetch_add(1, Ordering::Relaxed);
        };
        reminding(tokio::time::sleep(Duration::from_secs(14)), remind).await;
        assert_eq!(said.load(Ordering::Relaxed), 0);
        reminding(tokio::time::sleep(Duration::from_secs(40)), remind).await;
        assert_eq!(said.load(Ordering::Relaxed), 2);
    }
}
