//! The control thread: signals, the admin server, the watchdog and the stop, on a runtime of their own, so that probes
//! are answered and budgets kept however busy or wedged the rest is.

use std::io;
use std::num::NonZero;
use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use nix::sys::signal::SigSet;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::task::TaskTracker;

use super::{Exit, Lifecycle, Outcome, Plan, Trigger, deadline, watchdog};

/// For the main runtime's threads to end once everything on them is closed; one that hangs is left behind.
const THREADS_TIMEOUT: Duration = Duration::from_millis(100);

/// Fewer worker threads than this, and a handler that computes holds up all others.
const LEAST_THREADS: usize = 2;

/// The runtime for the work: `TOKIO_WORKER_THREADS` threads, or one a processor, and at least two, whatever the CPU
/// request or quota.
///
/// # Errors
/// If the system has no threads or file descriptors left.
pub fn main_runtime() -> io::Result<Runtime> {
    let asked = std::env::var("TOKIO_WORKER_THREADS").ok().and_then(|threads| threads.parse().ok());
    let threads = asked.or_else(|| std::thread::available_parallelism().ok()).map_or(LEAST_THREADS, NonZero::get);
    Builder::new_multi_thread().worker_threads(threads.max(LEAST_THREADS)).enable_all().build()
}

/// The thread that makes it, which should be the process's first, with the signal handlers installed.
#[derive(Debug)]
pub struct Control {
    runtime: Runtime,
    signals: Signals,
}

/// What SIGHUP does.
type Reload = Arc<dyn Fn() + Send + Sync>;

/// The signals that the process handles, from the moment they are installed.
#[derive(Debug)]
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Control {
    /// Installs the signal handlers. Call it before anything else in `main`: the kernel discards a signal to PID 1 that
    /// has no handler, and SIGHUP ends any other process.
    ///
    /// # Errors
    /// If the system has no threads or file descriptors left.
    pub fn new() -> io::Result<Self> {
        // blocked until somebody receives them: a handler that is only half installed loses the signal
        let mut ours = SigSet::empty();
        ours.add(nix::sys::signal::SIGTERM);
        ours.add(nix::sys::signal::SIGINT);
        ours.add(nix::sys::signal::SIGHUP);
        ours.thread_block()?;
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let context = runtime.enter();
        let signals = Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        };
        drop(context);
        ours.thread_unblock()?;
        Ok(Self { runtime, signals })
    }

    /// The runtime for what must go on while the main runtime is busy.
    pub fn handle(&self) -> &Handle {
        self.runtime.handle()
    }

    /// Runs `work` to its end, or until a stop signal: then `None`.
    pub fn run_command<T>(mut self, work: impl Future<Output = T>) -> Option<T> {
        let result = self.runtime.block_on(async {
            tokio::select! {
                result = work => Some(result),
                _ = self.signals.terminate.recv() => None,
                _ = self.signals.interrupt.recv() => None,
            }
        });
        self.runtime.shutdown_timeout(THREADS_TIMEOUT);
        result
    }

    /// Serves until a stop is asked for, then runs the plan.
    ///
    /// `start` runs on `main` and is dropped if the stop comes first; its error is a stop with exit code 1. `reload` is
    /// called at each SIGHUP, on a thread on which it may block.
    pub fn run<E>(
        self,
        lifecycle: &Lifecycle,
        main: Runtime,
        start: impl Future<Output = Result<(), E>> + Send + 'static,
        plan: Plan,
        reload: impl Fn() + Send + Sync + 'static,
    ) -> ExitCode
    where
        E: std::fmt::Display + Send + 'static,
    {
        plan.announce(lifecycle);
        let Self { runtime, signals } = self;
        let worst = runtime.block_on(async {
            // both live as long as the control runtime does
            let background = TaskTracker::new();
            background.spawn(watchdog::watch(lifecycle.clone(), main.handle().clone()));
            background.spawn(signals.obey(lifecycle.clone(), main.handle().clone(), Arc::new(reload)));
            lifecycle.until_stopping(main.handle(), begin(lifecycle.clone(), start));
            lifecycle.stop_requested().await;
            plan.run(lifecycle).await
        });
        main.shutdown_timeout(THREADS_TIMEOUT);
        let passed = lifecycle.deadline().filter(|deadline| *deadline <= Instant::now());
        if let Some(deadline) = passed {
            deadline::report(lifecycle, deadline);
        }
        let exit = match worst {
            _ if passed.is_some() => Exit::Deadline,
            Outcome::Timeout => Exit::Deadline,
            Outcome::Failed => Exit::Failure,
            Outcome::Done if lifecycle.has_failed() => Exit::Failure,
            Outcome::Done => Exit::Clean,
        };
        let took = lifecycle.since_stop().unwrap_or_default().as_secs_f64();
        tracing::info!(exit_code = exit.code(), took, "exit");
        exit.into()
    }
}

/// Runs the start, which ends in phase `ready` or begins the stop.
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
    /// SIGTERM and SIGINT begin the stop, or join the one under way: process managers send SIGTERM twice, to the group
    /// and to the process. A second SIGINT is a person's, and ends the process at once. SIGHUP ends nothing.
    async fn obey(mut self, lifecycle: Lifecycle, main: Handle, reload: Reload) {
        let reloads = TaskTracker::new();
        let mut interrupted = false;
        loop {
            tokio::select! {
                _ = self.terminate.recv() => lifecycle.stop(Trigger::Sigterm),
                _ = self.interrupt.recv() => {
                    if std::mem::replace(&mut interrupted, true) {
                        deadline::exit(Exit::Interrupted, || {
                            tracing::error!(exit_code = Exit::Interrupted.code(), "second SIGINT: exit at once")
                        });
                    }
                    lifecycle.stop(Trigger::Sigint);
                }
                _ = self.hangup.recv() => {
                    let reload = Arc::clone(&reload);
                    reloads.spawn_blocking_on(move || reload(), &main);
                }
            }
        }
    }
}
