//! A circuit breaker: after failures in a row a peer is not called for a moment, then by one call that tries.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Failures in a row that open it.
pub(super) const FAILURES: u32 = 10;

/// How long it stays open: half of this to all of it, twice as long after each try that fails, up to the second.
const PAUSE: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(6));

/// Lets calls through, or not.
#[derive(Debug)]
pub(super) struct Breaker(Mutex<State>);

#[derive(Debug, Clone, Copy)]
enum State {
    Closed {
        failures: u32,
    },
    Open {
        until: Instant,
        pause: Duration,
    },
    /// One call tries whether the peer is back. `pause` was the last one.
    HalfOpen {
        pause: Duration,
    },
}

/// A call that is let through. Dropped without an outcome, because its caller has gone away, it counts as neither: if it
/// was the one that tries, the next call is.
#[must_use = "a call says how it ended"]
#[derive(Debug)]
pub(super) struct Permit<'breaker> {
    breaker: &'breaker Breaker,
    /// Whether it is the one call of a half-open breaker.
    tries: bool,
}

impl Breaker {
    /// Closed: every call is let through.
    pub(super) fn new() -> Self {
        Self(Mutex::new(State::Closed { failures: 0 }))
    }

    /// `None` while the peer is given a moment, and while another call tries.
    pub(super) fn permit(&self) -> Option<Permit<'_>> {
        let mut state = self.0.lock();
        let tries = match *state {
            State::Closed { .. } => false,
            State::Open { until, pause } if until <= Instant::now() => {
                *state = State::HalfOpen { pause };
                true
            }
            State::Open { .. } | State::HalfOpen { .. } => return None,
        };
        Some(Permit { breaker: self, tries })
    }
}

impl Permit<'_> {
    /// The peer has answered.
    pub(super) fn succeeded(self) {
        let mut state = self.breaker.0.lock();
        // an answer to a call from before it opened is old news
        if self.tries || matches!(*state, State::Closed { .. }) {
            *state = State::Closed { failures: 0 };
        }
    }

    /// The peer is not there.
    pub(super) fn failed(self) {
        let mut state = self.breaker.0.lock();
        *state = match *state {
            State::HalfOpen { pause } if self.tries => open((pause * 2).min(PAUSE.1)),
            State::Closed { failures } if failures + 1 >= FAILURES => open(PAUSE.0),
            State::Closed { failures } => State::Closed { failures: failures + 1 },
            other => other,
        };
    }
}

/// Replicas that lose the peer at the same time do not all try it at the same time.
fn open(pause: Duration) -> State {
    State::Open { until: Instant::now() + pause.mul_f64(0.5 + 0.5 * fastrand::f64()), pause }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        let mut state = self.breaker.0.lock();
        // `succeeded` and `failed` have left this state by now
        if let State::HalfOpen { pause } = *state
            && self.tries
        {
            *state = State::Open { until: Instant::now(), pause };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fail(breaker: &Breaker, times: u32) {
        for _ in 0..times {
            breaker.permit().expect("it lets calls through").failed();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_opens_after_failures_in_a_row() {
        let breaker = Breaker::new();
        fail(&breaker, FAILURES - 1);
        breaker.permit().expect("it is closed").succeeded();
        fail(&breaker, FAILURES - 1);
        assert!(breaker.permit().is_some());
        fail(&breaker, 1);
        assert!(breaker.permit().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn half_open_it_lets_one_call_through() {
        let breaker = Breaker::new();
        fail(&breaker, FAILURES);
        tokio::time::advance(PAUSE.0).await;
        let permit = breaker.permit().expect("one tries");
        assert!(breaker.permit().is_none(), "and no other");
        permit.succeeded();
        let _both = (breaker.permit().expect("it is closed"), breaker.permit().expect("to all"));
    }

    #[tokio::test(start_paused = true)]
    async fn it_waits_longer_after_each_try_that_fails() {
        let breaker = Breaker::new();
        fail(&breaker, FAILURES);
        for pause in [PAUSE.0, PAUSE.0 * 2, PAUSE.1, PAUSE.1] {
            tokio::time::advance(pause / 2 - Duration::from_millis(1)).await;
            assert!(breaker.permit().is_none(), "half of {pause:?} at least");
            tokio::time::advance(pause / 2 + Duration::from_millis(1)).await;
            fail(&breaker, 1);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_whose_caller_has_gone_counts_as_neither() {
        let breaker = Breaker::new();
        fail(&breaker, FAILURES - 1);
        for _ in 0..FAILURES {
            drop(breaker.permit().expect("it is no failure"));
        }
        fail(&breaker, 1);
        assert!(breaker.permit().is_none(), "it is no success either");
        tokio::time::advance(PAUSE.0).await;
        drop(breaker.permit().expect("one tries"));
        breaker.permit().expect("then the next one tries").failed();
        assert!(breaker.permit().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn what_began_before_it_opened_says_nothing_afterwards() {
        let breaker = Breaker::new();
        let (old, older) = (breaker.permit().expect("it is closed"), breaker.permit().expect("it is closed"));
        fail(&breaker, FAILURES);
        old.succeeded();
        assert!(breaker.permit().is_none(), "it stays open");
        tokio::time::advance(PAUSE.0).await;
        let permit = breaker.permit().expect("one tries");
        older.failed();
        assert!(breaker.permit().is_none(), "that one still does");
        permit.succeeded();
        assert!(breaker.permit().is_some());
    }
}
