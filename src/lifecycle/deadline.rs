//! The last resort: a plain thread that ends the process when the deadline passes.
//!
//! It is started at the first stop signal and shares nothing that could be wedged with the rest: no runtime, no lock
//! that is held across an await. What it has to say is said by yet another thread, should saying it block.

use std::sync::Once;
use std::time::{Duration, Instant};

use super::{Kind, Lifecycle};

/// The exit code when the deadline, or a step's own budget, was passed.
pub(super) const EXIT: u8 = 3;

/// For the log's writer to put the last line out.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// Starts the clock, which runs out at `passes`, whenever this thread gets to run.
pub(super) fn start(lifecycle: Lifecycle, passes: Instant) {
    spawn("deadline", move || {
        std::thread::sleep(passes.saturating_duration_since(Instant::now()));
        exit(EXIT, move || report(&lifecycle, passes));
    });
}

/// Says, once, that the deadline has passed, the step that was under way then and what is left now.
///
/// Both the thread above and the end of a stop that is late say it: where the whole machine stood still, either may
/// come first.
pub(super) fn report(lifecycle: &Lifecycle, passed: Instant) {
    static SAID: Once = Once::new();
    SAID.call_once(|| {
        let left = lifecycle.in_flight().list(&Kind::ALL).join("; ");
        let step = lifecycle.0.steps.at(passed);
        tracing::error!(step, left, exit_code = EXIT, "deadline passed");
    });
}

/// Ends the process with `code` after `last_words`, or without them if they take too long. Runs no destructors and no
/// `atexit` handlers: nothing in the process is trusted to finish.
pub(super) fn exit(code: u8, last_words: impl FnOnce() + Send + 'static) -> ! {
    spawn("last-words", last_words);
    std::thread::sleep(LAST_WORDS);
    signal_hook::low_level::exit(code.into())
}

/// A thread, or nothing where the system has none left: then the caller goes on without it.
fn spawn(name: &str, work: impl FnOnce() + Send + 'static) {
    if let Err(error) = std::thread::Builder::new().name(name.to_owned()).spawn(work) {
        tracing::error!(%error, name, "cannot start a thread");
    }
}
