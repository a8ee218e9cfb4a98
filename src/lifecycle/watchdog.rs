//! Whether the process itself is alive. Never asks a dependency: a slow database must not restart every pod.
//!
//! The control thread hands the main runtime a heartbeat to stamp and counts how long it goes unanswered. Only time in
//! which the control thread itself ran on time is counted: on a starved machine, or after SIGSTOP, both are late and
//! the runtime is not to blame.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use serde::Serialize;
use tokio::runtime::Handle;

use super::{Lifecycle, memory};
use crate::config;

/// A look costs a wake-up of each runtime, so there are no more of them than a stall needs to be seen in time.
const LOOKS_PER_STALL: u32 = 4;
const LONGEST_TICK: Duration = Duration::from_secs(1);

/// After a tick that is later than this, the machine is to blame for the silence, and not the runtime.
const LATE: Duration = Duration::from_millis(250);

/// The vital signs as the watchdog last saw them.
#[derive(Debug)]
pub struct Liveness {
    stall_threshold: Duration,
    max_tasks: Option<usize>,
    max_memory: Option<u64>,
    started: AtomicBool,
    stalled_millis: AtomicU64,
    tasks: AtomicUsize,
    resident_memory: AtomicU64,
    memory_limit: Option<u64>,
    short_of_memory: AtomicBool,
}

/// What `/livez` says.
#[derive(Debug, Clone, Serialize)]
pub struct Vitals {
    /// How long the main runtime has run nothing, in seconds.
    pub stalled_for: f64,
    /// Live tasks of the main runtime.
    pub tasks: usize,
    /// Bytes.
    pub resident_memory: u64,
    /// What is wrong, if anything is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Liveness {
    pub(super) fn new(settings: &config::Lifecycle) -> Self {
        Self {
            stall_threshold: settings.stall_threshold,
            max_tasks: settings.max_tasks,
            max_memory: settings.max_memory.map(|size| size.as_u64()),
            started: AtomicBool::new(false),
            stalled_millis: AtomicU64::new(0),
            tasks: AtomicUsize::new(0),
            resident_memory: AtomicU64::new(memory::resident().unwrap_or(0)),
            memory_limit: memory::limit(),
            short_of_memory: AtomicBool::new(false),
        }
    }

    /// Whether the main runtime has run since the start: what `/startupz` says.
    pub fn has_started(&self) -> bool {
        self.started.load(Ordering::Relaxed)
    }

    /// Whether the main runtime runs what it is given.
    pub fn is_running(&self) -> bool {
        self.stalled_for() < self.stall_threshold
    }

    /// Whether the container's memory limit is near: from 90 % of it until under 80 %. New requests had better go to
    /// another replica. A restart would lose what is under way.
    pub fn is_short_of_memory(&self) -> bool {
        self.short_of_memory.load(Ordering::Relaxed)
    }

    /// Bytes at which the kernel kills the process, if its container has a limit.
    pub fn memory_limit(&self) -> Option<u64> {
        self.memory_limit
    }

    /// The vital signs, and what is wrong with them.
    pub fn vitals(&self) -> Vitals {
        let tasks = self.tasks.load(Ordering::Relaxed);
        let resident_memory = self.resident_memory.load(Ordering::Relaxed);
        let error = if let Some(stall) = self.stall() {
            Some(stall)
        } else if self.max_tasks.is_some_and(|max| tasks > max) {
            Some(format!("{tasks} live tasks are more than lifecycle.max_tasks"))
        } else if self.max_memory.is_some_and(|max| resident_memory > max) {
            Some(format!("{resident_memory} bytes of resident memory are more than lifecycle.max_memory"))
        } else {
            None
        };
        Vitals { stalled_for: self.stalled_for().as_secs_f64(), tasks, resident_memory, error }
    }

    /// What to say of a runtime that stands still.
    pub(super) fn stall(&self) -> Option<String> {
        let stalled_for = self.stalled_for();
        (!self.is_running())
            .then(|| format!("the runtime has run nothing for {stalled_for:.1?}: every worker thread is blocked"))
    }

    /// What to say of too little memory.
    pub(super) fn memory_shortage(&self) -> Option<String> {
        let limit = self.memory_limit.filter(|_| self.is_short_of_memory())?;
        let (resident, limit) = (ByteSize::b(self.resident_memory.load(Ordering::Relaxed)), ByteSize::b(limit));
        Some(format!("short of memory: {resident} of {limit} are in use"))
    }

    /// Looks at the memory in use.
    fn look_at_memory(&self) {
        let Some(resident) = memory::resident() else {
            return;
        };
        self.resident_memory.store(resident, Ordering::Relaxed);
        let Some(limit) = self.memory_limit else {
            return;
        };
        let was_short = self.is_short_of_memory();
        let short = memory::is_short(was_short, resident, limit);
        self.short_of_memory.store(short, Ordering::Relaxed);
        match (was_short, short) {
            (false, true) => tracing::error!(resident, limit, "short of memory: not ready"),
            (true, false) => tracing::info!(resident, limit, "enough memory again"),
            _ => {}
        }
    }

    fn stalled_for(&self) -> Duration {
        Duration::from_millis(self.stalled_millis.load(Ordering::Relaxed))
    }
}

/// Watches the main runtime from the control thread, for ever.
pub(super) async fn watch(lifecycle: Lifecycle, main: Handle) {
    let liveness = lifecycle.liveness();
    let tick = LONGEST_TICK.min(liveness.stall_threshold / LOOKS_PER_STALL);
    let mut ticks = tokio::time::interval(tick);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut heartbeat = beat(&main, &lifecycle);
    let mut last = Instant::now();
    let mut stalled = Duration::ZERO;
    loop {
        ticks.tick().await;
        let since = last.elapsed();
        last = Instant::now();
        if heartbeat.load(Ordering::Relaxed) {
            stalled = Duration::ZERO;
            heartbeat = beat(&main, &lifecycle);
        } else if since < tick + LATE {
            stalled += since;
        }
        let was_running = liveness.is_running();
        liveness.stalled_millis.store(u64::try_from(stalled.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
        if was_running != liveness.is_running() {
            tracing::error!(
                ?stalled,
                alive = !was_running,
                "the main runtime has {}",
                if was_running { "stalled" } else { "recovered" }
            );
        }
        liveness.tasks.store(main.metrics().num_alive_tasks(), Ordering::Relaxed);
        liveness.look_at_memory();
    }
}

/// Asks the main runtime to set a flag: from outside, so that any of its workers may run it.
fn beat(main: &Handle, lifecycle: &Lifecycle) -> Arc<AtomicBool> {
    let beaten = Arc::new(AtomicBool::new(false));
    let (beat, lifecycle) = (beaten.clone(), lifecycle.clone());
    lifecycle.0.background.clone().spawn_on(
        async move {
            lifecycle.liveness().started.store(true, Ordering::Relaxed);
            beat.store(true, Ordering::Relaxed);
        },
        main,
    );
    beaten
}
