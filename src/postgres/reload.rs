//! A URL that changes while the service runs: a Secret is rotated, and Kubernetes swaps the file that holds it.

use std::time::Duration;

use sqlx::Connection;

use super::target::Target;
use super::{Error, Postgres};
use crate::config::DatabaseUrl;

/// Between two looks at the file.
const INTERVAL: Duration = Duration::from_secs(1);

impl Postgres {
    /// Replaces every connection by one to this URL, if it is another. It is tried first: until a connection can be had
    /// with it the old one stays in force, so that a password may change in the file and in the database in any order.
    ///
    /// # Errors
    /// If the URL is malformed, or no connection can be had with it.
    pub async fn reload(&self, url: DatabaseUrl) -> Result<(), Error> {
        let pool = &self.inner.pool;
        if pool.target().url == url {
            return Ok(());
        }
        if !url.is_well_formed() {
            return Err(Error::MalformedUrl);
        }
        let target = Target::new(&self.inner.settings, url)?;
        let tried = target.connect_unbounded(self.inner.settings.acquire_timeout).await?;
        tracing::info!(url = %target.url, "the database's URL has changed: every connection is replaced");
        pool.aim(target);
        let _ = tried.close().await;
        Ok(())
    }

    /// Follows the file that the URL came from, if it came from one.
    pub async fn follow(self) {
        let Some(file) = &self.inner.settings.url_file else { return };
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut said = None;
        loop {
            ticks.tick().await;
            let result = match DatabaseUrl::from_file(file) {
                Ok(url) => self.reload(url).await.map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            };
            // a new reason is worth a line; the same one every second is not
            let error = result.err();
            if let Some(error) = error.as_ref().filter(|error| said.as_ref() != Some(*error)) {
                tracing::warn!(error, "the database's new URL is not used");
            }
            said = error;
        }
    }
}
