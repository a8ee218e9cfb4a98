//! Checks of what the service depends on. Each runs by itself at an interval; a probe only reads the last result.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use parking_lot::{Mutex, MutexGuard};
use serde::Serialize;
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::Lifecycle;
use super::remind::reminding;
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
    /// Whether it has ever passed.
    passed: bool,
    failures: u32,
    error: Option<String>,
    ran: Option<Instant>,
}

/// One check, for probes and people.
#[derive(Debug, Clone, Serialize)]
pub struct CheckReport {
    /// `pass` or `fail`.
    pub status: &'static str,
    /// What a failure of it means.
    pub policy: Policy,
    /// Whether `/readyz` is 503 if it fails now.
    pub required: bool,
    /// Its last error, even if that has not made it fail yet.
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

    /// Completes when every required check passes. Until then says every 15 s which one does not.
    pub async fn passed(&self) {
        let mut passes = self.0.passes.subscribe();
        let wait = passes.wait_for(|passes| *passes);
        // an error would mean that the sender is gone, and it lives in self
        let _ = reminding(wait, || tracing::warn!(waiting_for = self.failure(), "not ready yet")).await;
    }

    /// The required checks that fail, with their errors; `None` if all of them pass.
    pub(super) fn failure(&self) -> Option<String> {
        let checks = self.lock();
        let failing = checks.iter().filter(|(_, check)| check.is_required() && !check.passing);
        let line = |(name, check): (&&str, &Check)| format!("{name}: {}", check.error.as_deref().unwrap_or("fails"));
        let failing: Vec<_> = failing.map(line).collect();
        (!failing.is_empty()).then(|| failing.join("; "))
    }

    /// Every check by name.
    pub fn report(&self) -> BTreeMap<&'static str, CheckReport> {
        let report = |check: &Check| CheckReport {
            status: if check.passing { "pass" } else { "fail" },
            policy: check.policy,
            required: check.is_required(),
            error: check.error.clone(),
            age: check.ran.map(|ran| (ran.elapsed().as_secs_f64() * 1000.0).round() / 1000.0),
        };
        self.lock().iter().map(|(name, check)| (*name, report(check))).collect()
    }

    fn add(&self, name: &'static str, policy: Policy) {
        let error = Some("has not run yet".to_owned());
        let check = Check { policy, passing: false, passed: false, failures: 0, error, ran: None };
        let mut checks = self.lock();
        checks.insert(name, check);
        self.publish(&checks);
    }

    /// A passing check fails after `failures` consecutive failures; one success restores it.
    fn record(&self, name: &'static str, result: Result<(), String>) {
        let mut checks = self.lock();
        let Some(check) = checks.get_mut(name) else {
            return;
        };
        let passing = check.passing;
        check.ran = Some(Instant::now());
        match result {
            Ok(()) => {
                check.failures = 0;
                check.passing = true;
                check.passed = true;
                check.error = None;
            }
            Err(error) => {
                check.failures += 1;
                check.passing &= check.failures < self.0.settings.failures;
                check.log_failure(name, &error);
                check.error = Some(error);
            }
        }
        if check.passing != passing {
            check.log_turn(name);
        }
        self.publish(&checks);
    }

    fn publish(&self, checks: &BTreeMap<&'static str, Check>) {
        let passes = checks.values().all(|check| check.passing || !check.is_required());
        self.0.passes.send_if_modified(|was| std::mem::replace(was, passes) != passes);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, Check>> {
        self.0.checks.lock()
    }
}

impl Check {
    fn is_required(&self) -> bool {
        match self.policy {
            Policy::Required => true,
            Policy::Startup => !self.passed,
            Policy::Advisory => false,
        }
    }

    /// Logs a reason once, and not again at every interval.
    fn log_failure(&self, name: &str, error: &str) {
        if self.error.as_deref() != Some(error) {
            tracing::warn!(check = name, error, failures = self.failures, "check failed");
        }
    }

    fn log_turn(&self, name: &str) {
        match (self.passing, &self.error) {
            (true, _) => tracing::info!(check = name, "check passes"),
            (false, error) if self.is_required() => {
                tracing::error!(check = name, error, failures = self.failures, "check fails: not ready")
            }
            (false, error) => tracing::warn!(check = name, error, failures = self.failures, "check fails"),
        }
    }
}

impl Lifecycle {
    /// Registers a check and runs it at once and then at every `readiness.interval`, each time for at most
    /// `readiness.timeout`, until the service stops. It fails until it first passes, and it fails if it panics.
    pub fn check<E, Run>(&self, name: &'static str, policy: Policy, mut check: impl FnMut() -> Run + Send + 'static)
    where
        E: Display,
        Run: Future<Output = Result<(), E>> + Send,
    {
        let readiness = self.readiness().clone();
        readiness.add(name, policy);
        let checking = async move {
            let config::Readiness { interval, timeout, .. } = readiness.0.settings;
            let mut ticks = tokio::time::interval(interval);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                let run = AssertUnwindSafe(async { check().await }).catch_unwind();
                let result = match tokio::time::timeout(timeout, run).await {
                    Ok(Ok(result)) => result.map_err(|error| error.to_string()),
                    Ok(Err(_panic)) => Err("it panicked".to_owned()),
                    Err(_elapsed) => Err(format!("no answer within {}", text(timeout))),
                };
                readiness.record(name, result);
            }
        };
        self.until_stopping(&Handle::current(), checking);
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

    fn fail(readiness: &Readiness, name: &'static str, times: u32) {
        for _ in 0..times {
            readiness.record(name, Err("slow".to_owned()));
        }
    }

    #[test]
    fn a_required_check_fails_after_three_failures_in_a_row() {
        let readiness = readiness();
        readiness.add("db", Policy::Required);
        assert!(!readiness.passes(), "before it has run");
        readiness.record("db", Ok(()));
        assert!(readiness.passes());
        fail(&readiness, "db", 2);
        assert!(readiness.passes(), "one bad answer is no outage");
        fail(&readiness, "db", 1);
        assert!(!readiness.passes());
        assert_eq!(readiness.failure().as_deref(), Some("db: slow"));
        readiness.record("db", Ok(()));
        assert!(readiness.passes(), "one success restores it");
    }

    #[test]
    fn a_startup_check_is_required_until_it_has_passed_once() {
        let readiness = readiness();
        readiness.add("catalog", Policy::Startup);
        fail(&readiness, "catalog", 3);
        assert!(!readiness.passes());
        assert!(readiness.report()["catalog"].required);
        readiness.record("catalog", Ok(()));
        assert!(readiness.passes());
        fail(&readiness, "catalog", 3);
        assert!(readiness.passes(), "it has passed once");
        let report = &readiness.report()["catalog"];
        assert_eq!((report.status, report.required), ("fail", false), "and is still reported");
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
