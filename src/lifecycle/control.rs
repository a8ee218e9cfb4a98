//! The control thread: signals, the admin server, the watchdog and the stop, on a runtime of their own, so that probes
//! are answered and budgets kept however busy or wedged the rest is.

use std::io;
use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use nix::sys::signal::SigSet;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::task::TaskTracker;

use super::{Lifecycle, Outcome, Plan, Trigger, deadline, watchdog};

/// The exit code where the service could not start, or a step of the stop panicked.
const FAILURE: u8 = 1;

/// For the main runtime's threads to end once everything on them is closed; one that hangs is left behind.
const THREADS_TIMEOUT: Duration = Duration::from_millis(100);

/// The thread it is made on, which should be the process's first, with the signal handlers installed.
#[derive(Debug)]
pub struct Control {
    runtime: Runtime,
    signals: Signals,
}

/// SIGTERM and SIGINT, from the moment they are installed.
#[derive(Debug)]
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Control {
    /// Installs the signal handlers. To be called before anything else in `main`: as PID 1 a process without a handler
    /// does not get the signal at all.
    ///
    /// # Errors
    /// Where the system has no threads or file descriptors left.
    pub fn new() -> io::Result<Self> {
        // held back until there is somebody to take them: a handler that has only half been installed loses the signal
        let mut ours = SigSet::empty();
        ours.add(nix::sys::signal::SIGTERM);
        ours.add(nix::sys::signal::SIGINT);
        ours.thread_block()?;
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let context = runtime.enter();
        let signals =
            Signals { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? };
        drop(context);
        ours.thread_unblock()?;
        Ok(Self { runtime, signals })
    }

    /// Where to run what must go on while the main runtime is busy.
    pub fn handle(&self) -> &Handle {
        self.runtime.handle()
    }

    /// Runs `work` to its end, or until a stop signal: then `None`.
    pub fn run_command<T>(mut self, work: impl Future<Output = T>) -> Option<T> {
        let result = self.runtime.block_on(async {
            tokio::select! {
                result = work => Some(result),
                _ = self.signals.next() => None,
            }
        });
        self.runtime.shutdown_timeout(THREADS_TIMEOUT);
        result
    }

    /// Serves until a stop is asked for, then runs the plan.
    ///
    /// `start` runs on `main` and is dropped where the stop comes first; an error of it is a stop with exit code 1.
    pub fn run<E>(
        self,
        lifecycle: &Lifecycle,
        main: Runtime,
        start: impl Future<Output = Result<(), E>> + Send + 'static,
        plan: Plan,
    ) -> ExitCode
    where
        E: std::fmt::Display + Send + 'static,
    {
        plan.announce(lifecycle);
        let Self { runtime, signals } = self;
        let worst = runtime.block_on(async {
            // these two live as long as the control runtime does
            let background = TaskTracker::new();
            background.spawn(watchdog::watch(lifecycle.clone(), main.handle().clone()));
            background.spawn(signals.stop(lifecycle.clone()));
            lifecycle.background_on(main.handle(), begin(lifecycle.clone(), start));
            lifecycle.stop_requested().await;
            plan.run(lifecycle).await
        });
        main.shutdown_timeout(THREADS_TIMEOUT);
        let passed = lifecycle.deadline().filter(|deadline| *deadline <= Instant::now());
        if let Some(deadline) = passed {
            deadline::report(lifecycle, deadline);
        }
        let exit_code = match worst {
            _ if passed.is_some() => deadline::EXIT,
            Outcome::Timeout => deadline::EXIT,
            Outcome::Failed => FAILURE,
            Outcome::Done if lifecycle.has_failed() => FAILURE,
            Outcome::Done => 0,
        };
        let took = lifecycle.since_stop().unwrap_or_default().as_secs_f64();
        tracing::info!(exit_code, took, "exit");
        ExitCode::from(exit_code)
    }
}

/// Runs the start. It is dropped where the stop comes first, since it is background work.
async fn begin<E: std::fmt::Display>(lifecycle: Lifecycle, start: impl Future<Output = Result<(), E>>) {
    match AssertUnwindSafe(start).catch_unwind().await {
        Ok(Ok(())) => lifecycle.set_ready(),
        Ok(Err(error)) => {
            tracing::error!(error = format!("{error:#}"), "cannot start");
            lifecycle.stop(Trigger::Failure);
        }
        Err(_panic) => lifecycle.stop(Trigger::Failure),
    }
}

impl Signals {
    async fn next(&mut self) -> Trigger {
        tokio::select! {
            _ = self.terminate.recv() => Trigger::Sigterm,
            _ = self.interrupt.recv() => Trigger::Sigint,
        }
    }

    /// The first signal begins the stop, or joins the one that is under way; the second ends the process at once.
    async fn stop(mut self, lifecycle: Lifecycle) {
        lifecycle.stop(self.next().await);
        let second = self.next().await;
        let code = 128 + if second == Trigger::Sigterm { 15 } else { 2 };
        deadline::exit(code, move || {
            tracing::error!(signal = second.name(), exit_code = code, "second signal: leaving at once")
        });
    }
}
