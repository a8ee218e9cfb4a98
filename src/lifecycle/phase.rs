//! The five phases, one way.

use serde::Serialize;

/// Where the process is in its life. Ordered: a life only goes forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Migrations, and the first pass of every required check. The public port refuses.
    Starting,
    /// Serving.
    Ready,
    /// A stop has begun: unready, and still serving everyone who comes.
    Draining,
    /// New connections are refused; what is under way finishes, then everything closes in order.
    Stopping,
    /// Nothing is left but the exit.
    Stopped,
}

impl Phase {
    /// All of them, in order.
    pub const ALL: [Self; 5] = [Self::Starting, Self::Ready, Self::Draining, Self::Stopping, Self::Stopped];

    /// As it stands in logs, metrics and probes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
        }
    }
}
