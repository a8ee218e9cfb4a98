//! The last resort: a plain thread that ends the process when the deadline passes.
//!
//! It starts at the first stop signal and shares nothing with the rest that could be wedged: no runtime, no lock that is
//! held across an await. Another thread writes its last log line, in case that blocks.

use std::sync::Once;
use std::time::{Duration, Instant};

use super::{Exit, Kind, Lifecycle};

/// For the log's writer to put the last line out.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// Starts the thread that ends the process at `passes`.
pub(super) fn start(lifecycle: Lifecycle, passes: Instant) {
    spawn("deadline", move || {
        std::thread::sleep(passes.saturating_duration_since(Instant::now()));
        exit(Exit::Deadline, move || report(&lifecycle, passes));
    });
}

/// Logs once that the deadline has passed, with the step that was under way then and what is left now.
///
/// Both the thread above and the end of a late stop call it: after the whole machine stood still, either may come first.
pub(super) fn report(lifecycle: &Lifecycle, passed: Instant) {
    static SAID: Once = Once::new();
    SAID.call_once(|| {
        let left = lifecycle.in_flight().list(&Kind::ALL).join("; ");
        let step = lifecycle.0.steps.at(passed);
        tracing::error!(step, left, exit_code = Exit::Deadline.code(), "deadline passed");
    });
}

/// Ends the process after `last_words`, or without them if they take too long. Runs no destructors and no `atexit`
/// handlers: nothing in the process is trusted to finish.
pub(super) fn exit(exit: Exit, last_words: impl FnOnce() + Send + 'static) -> ! {
    spawn("last-words", last_words);
    std::thread::sleep(LAST_WORDS);
    signal_hook::low_level::exit(exit.code().into())
}

/// Starts a thread. If the system has none left, the caller goes on without it.
fn spawn(name: &str, work: impl FnOnce() + Send + 'static) {
    if let Err(error) = std::thread::Builder::new().name(name.to_owned()).spawn(work) {
        tracing::error!(%error, name, "cannot start a thread");
    }
}
