//! Checks of what the service depends on. Each runs by itself at an interval; a probe only reads the last result.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::watch;

use super::Lifecycle;
use crate::config::{self, Policy};

/// The checks and their last results. Cloning shares them.
#[derive(Debug, Clone)]
pub struct Readiness(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    settings: config::Readiness,
    checks: Mutex<BTreeMap<&'static str, Check>>,
    passes: watch::Sender<bool>,
}

#[derive(Debug)]
struct Check {
    policy: Policy,
    passing: bool,
    failures: u32,
    error: Option<String>,
    ran: Option<Instant>,
}

/// One check, for probes and people.
#[derive(Debug, Clone, Serialize)]
pub struct CheckReport {
    /// `pass` or `fail`.
    pub status: &'static str,
    /// Whether `/readyz` is 503 while it fails.
    pub required: bool,
    /// Its last error, also of a failure that has not yet made it fail.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Seconds since it last ran.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub age: Option<f64>,
}

impl CheckReport {
    /// Whether it passes.
    pub fn passes(&self) -> bool {
        self.status == "pass"
    }
}

impl Readiness {
    pub(super) fn new(settings: &config::Readiness) -> Self {
        let inner = Inner { settings: settings.clone(), checks: Mutex::default(), passes: watch::Sender::new(false) };
        Self(Arc::new(inner))
    }

    /// Whether every required check passes.
    pub fn passes(&self) -> bool {
        *self.0.passes.borrow()
    }

    /// Completes when every required check passes.
    pub async fn passed(&self) {
        // an error would mean that the sender is gone, and it lives in self
        let _ = self.0.passes.subscribe().wait_for(|passes| *passes).await;
    }

    /// Every check by name.
    pub fn report(&self) -> BTreeMap<&'static str, CheckReport> {
        let report = |check: &Check| CheckReport {
            status: if check.passing { "pass" } else { "fail" },
            required: check.policy == Policy::Required,
            error: check.error.clone(),
            age: check.ran.map(|ran| (ran.elapsed().as_secs_f64() * 1000.0).round() / 1000.0),
        };
        self.lock().iter().map(|(name, check)| (*name, report(check))).collect()
    }

    fn add(&self, name: &'static str, policy: Policy) {
        let error = Some("has not run yet".to_owned());
        let check = Check { policy, passing: false, failures: 0, error, ran: None };
        let mut checks = self.lock();
        checks.insert(name, check);
        self.publish(&checks);
    }

    /// One failure does not turn a check that passed: `failures` in a row do, and one success turns it back.
    fn record(&self, name: &'static str, result: Result<(), String>) {
        let mut checks = self.lock();
        let Some(check) = checks.get_mut(name) else {
            return;
        };
        let passed = check.passing;
        check.ran = Some(Instant::now());
        match result {
            Ok(()) => {
                check.failures = 0;
                check.passing = true;
                check.error = None;
            }
            Err(error) => {
                check.failures += 1;
                check.passing &= check.failures < self.0.settings.failures;
                check.log_failure(name, &error);
                check.error = Some(error);
            }
        }
        if check.passing != passed {
            check.log_turn(name);
        }
        self.publish(&checks);
    }

    fn publish(&self, checks: &BTreeMap<&'static str, Check>) {
        let passes = checks.values().all(|check| check.passing || check.policy == Policy::Advisory);
        self.0.passes.send_if_modified(|was| std::mem::replace(was, passes) != passes);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, Check>> {
        self.0.checks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Check {
    /// A new reason is worth a line; the same one every two seconds is not.
    fn log_failure(&self, name: &str, error: &str) {
        if self.error.as_deref() != Some(error) {
            tracing::warn!(check = name, error, failures = self.failures, "check failed");
        }
    }

    fn log_turn(&self, name: &str) {
        match (self.passing, &self.error) {
            (true, _) => tracing::info!(check = name, "check passes"),
            (false, error) => tracing::error!(check = name, error, failures = self.failures, "check fails: not ready"),
        }
    }
}

impl Lifecycle {
    /// Registers a check and runs it at once and then at every `readiness.interval`, each time for at most
    /// `readiness.timeout`, until the service stops. A check has not passed until it first does.
    pub fn check<E, Run>(&self, name: &'static str, policy: Policy, mut check: impl FnMut() -> Run + Send + 'static)
    where
        E: Display,
        Run: Future<Output = Result<(), E>> + Send,
    {
        let readiness = self.readiness().clone();
        readiness.add(name, policy);
        self.background(async move {
            let config::Readiness { interval, timeout, .. } = readiness.0.settings;
            let mut ticks = tokio::time::interval(interval);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                let result = match tokio::time::timeout(timeout, check()).await {
                    Ok(result) => result.map_err(|error| error.to_string()),
                    Err(_elapsed) => Err(format!("no answer within {}", text(timeout))),
                };
                readiness.record(name, result);
            }
        });
    }
}

fn text(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn readiness() -> Readiness {
        let second = Duration::from_secs(1);
        let (postgres, catalog) = (Policy::Required, Policy::Required);
        Readiness::new(&config::Readiness { interval: second, timeout: second, failures: 3, postgres, catalog })
    }

    #[test]
    fn three_failures_in_a_row_turn_a_check_and_one_success_turns_it_back() {
        let readiness = readiness();
        readiness.add("db", Policy::Required);
        assert!(!readiness.passes(), "before it has run");
        readiness.record("db", Ok(()));
        assert!(readiness.passes());
        for _ in 0..2 {
            readiness.record("db", Err("slow".to_owned()));
            assert!(readiness.passes(), "one bad answer is no outage");
        }
        readiness.record("db", Err("slow".to_owned()));
        assert!(!readiness.passes());
        readiness.record("db", Ok(()));
        assert!(readiness.passes());
    }

    #[test]
    fn an_advisory_check_is_reported_and_changes_nothing() {
        let readiness = readiness();
        readiness.add("catalog", Policy::Advisory);
        readiness.record("catalog", Err("down".to_owned()));
        assert!(readiness.passes());
        assert_eq!(readiness.report()["catalog"].error.as_deref(), Some("down"));
    }
}
