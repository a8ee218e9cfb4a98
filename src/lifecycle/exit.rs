//! The process's exit codes, all of them.

use std::process::ExitCode;

/// How the process ended, for whoever started it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// It did what it was asked to.
    Clean = 0,
    /// It could not start, could not go on, or a step of the stop panicked.
    Failure = 1,
    /// The settings or the command line cannot be used.
    BadConfiguration = 2,
    /// A step of the stop passed its budget, or the stop its deadline.
    Deadline = 3,
    /// A second SIGINT ended it at once: 128 and the signal's number.
    Interrupted = 130,
}

impl Exit {
    /// All of them in one line, for people.
    pub const HELP: &str = "Exit codes: 0 clean, 1 runtime failure, 2 bad configuration, \
                            3 a budget of the stop or its deadline was passed, 130 a second SIGINT.";

    /// The number.
    pub fn code(self) -> u8 {
        self as u8
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}
