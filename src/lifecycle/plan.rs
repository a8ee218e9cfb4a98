//! The stop, as a list of named steps that run one after the other, each under a budget of its own.
//!
//! No step is skipped, even if one before it ran out of time or panicked. What each step took is logged when it ends,
//! and kept for the status page and the metrics.

use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::{Mutex, MutexGuard};
use serde::Serialize;

use super::remind::reminding;
use super::{Kind, Lifecycle, Phase};

/// Timers fire late on a busy machine: a step that ends within this time of its budget is done.
const SLACK: Duration = Duration::from_millis(100);

/// The steps of a stop, in order.
#[must_use = "a plan stops nothing until it is handed to `Control::run`"]
#[derive(Debug, Default)]
pub struct Plan {
    steps: Vec<Step>,
}

struct Step {
    name: &'static str,
    budget: Duration,
    work: BoxFuture<'static, ()>,
    cut: Option<Box<dyn FnOnce() + Send>>,
}

/// How a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It finished.
    Done,
    /// It panicked.
    Failed,
    /// It ran out of its budget, and what was left of it was aborted.
    Timeout,
}

impl Outcome {
    /// As it stands in logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Timeout => "timeout",
        }
    }
}

/// One step, for people.
#[derive(Debug, Clone)]
pub struct StepReport {
    /// Its name.
    pub step: &'static str,
    /// What it may take.
    pub budget: Duration,
    /// When it began, if it has.
    pub began: Option<Instant>,
    /// How it ended and what it took, if it has ended.
    pub ended: Option<(Outcome, Duration)>,
}

impl Plan {
    /// Adds a step that is given `budget` to complete.
    pub fn step(
        mut self,
        name: &'static str,
        budget: Duration,
        work: impl Future<Output = ()> + Send + 'static,
    ) -> Self {
        self.steps.push(Step { name, budget, work: work.boxed(), cut: None });
        self
    }

    /// What to do with the rest of the step just added should it run out of its budget.
    pub fn or_abort(mut self, cut: impl FnOnce() + Send + 'static) -> Self {
        if let Some(step) = self.steps.last_mut() {
            step.cut = Some(Box::new(cut));
        }
        self
    }

    /// Makes the plan known to the status page before it runs.
    pub(super) fn announce(&self, lifecycle: &Lifecycle) {
        let report = |step: &Step| StepReport { step: step.name, budget: step.budget, began: None, ended: None };
        *lifecycle.0.steps.lock() = self.steps.iter().map(report).collect();
    }

    /// Runs every step; the worst outcome among them.
    pub(super) async fn run(self, lifecycle: &Lifecycle) -> Outcome {
        let mut worst = Outcome::Done;
        for (index, step) in self.steps.into_iter().enumerate() {
            let began = Instant::now();
            lifecycle.0.steps.lock()[index].began = Some(began);
            let limit = step.budget + SLACK;
            let work = reminding(AssertUnwindSafe(step.work).catch_unwind(), || {
                let left = lifecycle.in_flight().list(&Kind::ALL).join("; ");
                tracing::warn!(step = step.name, so_far = seconds(began.elapsed()), left, "step is still running");
            });
            let outcome = match tokio::time::timeout(limit, work).await {
                Ok(Ok(())) => Outcome::Done,
                Ok(Err(_panic)) => Outcome::Failed,
                Err(_elapsed) => {
                    step.cut.into_iter().for_each(|cut| cut());
                    Outcome::Timeout
                }
            };
            let took = began.elapsed();
            lifecycle.0.steps.lock()[index].ended = Some((outcome, took));
            log(step.name, outcome, took, step.budget);
            worst = worst.max(outcome);
        }
        lifecycle.advance(Phase::Stopped, None);
        metrics::counter!("lifecycle_stops_completed_total", "outcome" => worst.name()).increment(1);
        worst
    }
}

fn log(step: &str, outcome: Outcome, took: Duration, budget: Duration) {
    let (took, budget) = (seconds(took), seconds(budget));
    match outcome {
        Outcome::Done => tracing::info!(step, outcome = outcome.name(), took, budget, "step"),
        Outcome::Failed | Outcome::Timeout => {
            tracing::error!(step, outcome = outcome.name(), took, budget, "step")
        }
    }
}

/// Seconds, to the millisecond.
fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1000.0).round() / 1000.0
}

impl std::fmt::Debug for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Step").field("name", &self.name).field("budget", &self.budget).finish_non_exhaustive()
    }
}

/// How far the plan has come.
#[derive(Debug, Default)]
pub(super) struct Progress(Mutex<Vec<StepReport>>);

impl Progress {
    fn lock(&self) -> MutexGuard<'_, Vec<StepReport>> {
        self.0.lock()
    }

    pub(super) fn report(&self) -> Vec<StepReport> {
        self.lock().clone()
    }

    /// The step that was under way at `instant`: the last that had begun by then.
    pub(super) fn at(&self, instant: Instant) -> Option<&'static str> {
        self.lock().iter().rfind(|step| step.began.is_some_and(|began| began <= instant)).map(|step| step.step)
    }
}
