//! What the project is for: a process that starts, serves and stops in a known order and says so.
//!
//! This module knows phases, checks, workers and named steps with a budget. It knows nothing of axum, sqlx or tonic:
//! what is checked, run and stopped is handed to it by `app.rs`.
//!
//! | file | is about |
//! |---|---|
//! | `phase` | starting → ready → draining → stopping → stopped |
//! | `control` | the control thread: signals, admin server, watchdog, the stop |
//! | `plan` | the stop as a list of named steps, each with a budget |
//! | `deadline` | the thread that ends the process when all else fails |
//! | `exit` | the exit codes |
//! | `readiness` | checks of what the service depends on, behind `/readyz` |
//! | `watchdog` | whether the process itself is alive, behind `/livez` |
//! | `memory` | what the process uses, and what its container may |
//! | `supervise` | work that is started again when it ends |
//! | `workers` | jobs that the stop waits for |
//! | `remind` | waits that say what they wait for |
//! | `in_flight` | what is under way right now |

mod control;
mod deadline;
mod exit;
mod in_flight;
mod memory;
mod phase;
mod plan;
mod readiness;
mod remind;
mod supervise;
mod watchdog;
mod workers;

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use control::{Control, main_runtime};
pub use exit::Exit;
pub use in_flight::{Guard, InFlight, Kind};
pub use phase::Phase;
pub use plan::{Outcome, Plan, StepReport};
pub use readiness::{CheckReport, Readiness};
pub use watchdog::{Liveness, Vitals};
pub use workers::Workers;

use crate::config;

/// The process's life, shared by everything that takes part in it. Cloning is cheap and shares.
#[derive(Debug, Clone)]
pub struct Lifecycle(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    settings: config::Lifecycle,
    phase: watch::Sender<Phase>,
    stop: OnceLock<Stop>,
    stop_requested: CancellationToken,
    /// Cancelled when phase `stopping` begins.
    stopping: CancellationToken,
    steps: plan::Progress,
    readiness: Readiness,
    liveness: Liveness,
    in_flight: InFlight,
    /// Tasks that end when phase `stopping` begins.
    background: TaskTracker,
}

/// When and why the stop began.
#[derive(Debug, Clone, Copy)]
struct Stop {
    at: Instant,
    trigger: Trigger,
    /// Whether the service had been ready, so that callers may still be on their way.
    was_ready: bool,
}

/// What began the stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Trigger {
    PreStop,
    Sigterm,
    Sigint,
    /// The service cannot go on.
    Failure,
}

impl Trigger {
    fn name(self) -> &'static str {
        match self {
            Self::PreStop => "pre-stop",
            Self::Sigterm => "SIGTERM",
            Self::Sigint => "SIGINT",
            Self::Failure => "failure",
        }
    }
}

impl Lifecycle {
    /// A life in phase `starting`.
    pub fn new(settings: &config::Lifecycle, readiness: &config::Readiness) -> Self {
        tracing::info!(phase = Phase::Starting.name(), "phase");
        Self(Arc::new(Inner {
            settings: settings.clone(),
            phase: watch::Sender::new(Phase::Starting),
            stop: OnceLock::new(),
            stop_requested: CancellationToken::new(),
            stopping: CancellationToken::new(),
            steps: plan::Progress::default(),
            readiness: Readiness::new(readiness),
            liveness: Liveness::new(settings),
            in_flight: InFlight::default(),
            background: TaskTracker::new(),
        }))
    }

    /// The phase now.
    pub fn phase(&self) -> Phase {
        *self.0.phase.borrow()
    }

    /// The checks behind `/readyz`.
    pub fn readiness(&self) -> &Readiness {
        &self.0.readiness
    }

    /// The vital signs behind `/livez`.
    pub fn liveness(&self) -> &Liveness {
        &self.0.liveness
    }

    /// What is under way.
    pub fn in_flight(&self) -> &InFlight {
        &self.0.in_flight
    }

    /// How far the stop has come, step by step.
    pub fn steps(&self) -> Vec<StepReport> {
        self.0.steps.report()
    }

    /// Whether `/readyz` is 200.
    pub fn is_ready(&self) -> bool {
        self.unready_reason().is_none()
    }

    /// Why `/readyz` is 503: the phase, a runtime that stands still, little memory, or a check.
    pub fn unready_reason(&self) -> Option<String> {
        let (phase, liveness) = (self.phase(), self.liveness());
        if phase > Phase::Ready {
            return Some(phase.name().to_owned());
        }
        liveness.stall().or_else(|| liveness.memory_shortage()).or_else(|| self.readiness().failure()).or_else(|| {
            // every check passes, and the public port does not listen yet
            (phase < Phase::Ready).then(|| phase.name().to_owned())
        })
    }

    /// Everything is up. Has no effect once the stop has begun.
    pub fn set_ready(&self) {
        self.advance(Phase::Ready, None);
    }

    /// Begins the stop: `/readyz` is 503 when this returns and the deadline is running. Later calls change nothing:
    /// there is one delay and one deadline, counted from the first.
    pub fn stop(&self, trigger: Trigger) {
        let was_ready = self.phase() == Phase::Ready;
        let stop = Stop { at: Instant::now(), trigger, was_ready };
        if self.0.stop.set(stop).is_ok() {
            self.advance(Phase::Draining, Some(trigger));
            metrics::counter!("lifecycle_stops_begun_total", "trigger" => trigger.name()).increment(1);
            deadline::start(self.clone(), stop.at + self.0.settings.deadline);
            self.0.stop_requested.cancel();
        }
    }

    /// Whether it was the service itself that could not go on.
    fn has_failed(&self) -> bool {
        self.0.stop.get().is_some_and(|stop| stop.trigger == Trigger::Failure)
    }

    /// Completes when the stop has begun.
    pub async fn stop_requested(&self) {
        self.0.stop_requested.cancelled().await;
    }

    /// Cancelled when the stop begins, before [`Lifecycle::stop`] returns.
    pub fn stop_token(&self) -> &CancellationToken {
        &self.0.stop_requested
    }

    /// How long ago the stop began, if it has.
    pub fn since_stop(&self) -> Option<Duration> {
        self.0.stop.get().map(|stop| stop.at.elapsed())
    }

    /// When it has to be over, if the stop has begun.
    fn deadline(&self) -> Option<Instant> {
        self.0.stop.get().map(|stop| stop.at + self.0.settings.deadline)
    }

    /// Completes at the end of the drain delay, counted from the first trigger; at once if the service never was
    /// ready, because no caller was ever sent here. Then phase `stopping` begins, and background work ends.
    pub async fn drain_delay(self) {
        if let Some(stop) = self.0.stop.get().filter(|stop| stop.was_ready) {
            tokio::time::sleep_until((stop.at + self.0.settings.drain_delay).into()).await;
        }
        self.advance(Phase::Stopping, None);
    }

    /// Keeps `work` running on the current runtime until phase `stopping` begins, which drops it. Work that panics or
    /// ends is started again, after a pause; `name` says in the log and in `worker_restarts_total` which it was.
    pub fn background<Run>(&self, name: &'static str, work: impl FnMut() -> Run + Send + 'static)
    where
        Run: Future<Output = ()> + Send + 'static,
    {
        let supervised = supervise::supervise(name, self.0.stopping.clone(), work);
        self.until_stopping(&Handle::current(), supervised);
    }

    /// Runs `work` once, until its end or until phase `stopping` begins.
    fn until_stopping(&self, runtime: &Handle, work: impl Future<Output = ()> + Send + 'static) {
        let stopping = self.0.stopping.clone();
        self.0.background.spawn_on(async move { stopping.run_until_cancelled(work).await }, runtime);
    }

    fn advance(&self, to: Phase, trigger: Option<Trigger>) {
        self.0.phase.send_if_modified(|phase| {
            let forward = to > *phase;
            if forward {
                *phase = to;
                // here, so that the log has the phases in their order whichever threads they come from
                tracing::info!(phase = to.name(), trigger = trigger.map(Trigger::name), "phase");
            }
            forward
        });
        if to >= Phase::Stopping {
            self.0.stopping.cancel();
        }
    }
}
