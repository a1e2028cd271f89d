//! The phases of the proxy: whether it is ready, which clients must leave, and when a stop is over.
//!
//! ```text
//! Starting ─▶ Serving ◀── drain, undrain ──▶ Draining: open and not ready; idle clients leave
//!                └──────────── SIGTERM ──────────┴──▶ Stopping
//!
//! Stopping:  0 ─── not ready ─── delay ─── no new clients, idle ones leave ─── grace: over
//! ```
//! This file decides what is due in each phase, by values alone; `client::accept` carries it out.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::config::StopSettings;

/// How often to look for clients that may leave.
pub const TICK: Duration = Duration::from_millis(100);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Starting,
    Serving,
    /// The proxy still serves, but an operator wants clients to go to other proxies.
    Draining,
    /// The proxy stops in order.
    Stopping {
        /// When the stop began.
        since: Instant,
    },
}

/// Actions that are due.
#[derive(Debug, PartialEq, Eq)]
pub struct Due {
    /// Whether to accept new clients.
    pub accepts: bool,
    /// Close idle connections of at least this age.
    pub leave_at_age: Option<Duration>,
    /// The grace time is over: do not wait for the remaining clients.
    pub is_over: bool,
    /// When to look again.
    pub next: Option<Instant>,
}

impl Phase {
    fn due(self, stop: &StopSettings, now: Instant) -> Due {
        let as_ever = Due { accepts: true, leave_at_age: None, is_over: false, next: None };
        match self {
            Phase::Starting | Phase::Serving => as_ever,
            Phase::Draining => {
                Due { leave_at_age: Some(stop.min_age), next: Some(now + TICK), ..as_ever }
            }
            Phase::Stopping { since } => {
                let (closes, ends) = (since + stop.delay, since + stop.grace);
                if now < closes.min(ends) {
                    Due { next: Some(closes.min(ends)), ..as_ever }
                } else {
                    Due {
                        accepts: false,
                        leave_at_age: Some(stop.min_age),
                        is_over: now >= ends,
                        next: (now < ends).then(|| ends.min(now + TICK)),
                    }
                }
            }
        }
    }
}

/// The phase, shared by the threads that change it, show it and act on it.
pub struct Life {
    state: Mutex<State>,
}

struct State {
    phase: Phase,
    stop: StopSettings,
    /// Wakes `accept`, which acts on the phase.
    wake: Arc<dyn Fn() + Send + Sync>,
}

impl Life {
    pub fn new(stop: StopSettings) -> Self {
        let state = State { phase: Phase::Starting, stop, wake: Arc::new(|| ()) };
        Life { state: Mutex::new(state) }
    }

    /// The proxy serves from now on. Each later change calls `wake`, which must not block.
    pub fn serve(&self, wake: impl Fn() + Send + Sync + 'static) {
        self.state.lock().wake = Arc::new(wake);
        self.change(|phase| match phase {
            Phase::Starting => Phase::Serving,
            other => other,
        });
    }

    /// Whether new clients should use this proxy, or the reason why not.
    pub fn is_ready(&self) -> Result<(), &'static str> {
        match self.phase() {
            Phase::Starting => Err("starting"),
            Phase::Serving => Ok(()),
            Phase::Draining => Err("draining"),
            Phase::Stopping { .. } => Err("stopping"),
        }
    }

    pub fn phase(&self) -> Phase {
        self.state.lock().phase
    }

    /// Drains: the proxy is not ready, and lets idle clients go, but serves all queries.
    pub fn drain(&self) -> Phase {
        self.change(|phase| match phase {
            Phase::Serving => Phase::Draining,
            other => other,
        })
    }

    /// Undoes a drain.
    pub fn undrain(&self) -> Phase {
        self.change(|phase| match phase {
            Phase::Draining => Phase::Serving,
            other => other,
        })
    }

    /// Begins a stop, which cannot be undone.
    pub fn stop(&self) -> Phase {
        self.change(|phase| match phase {
            Phase::Stopping { since } => Phase::Stopping { since },
            _ => Phase::Stopping { since: Instant::now() },
        })
    }

    /// Changes the settings of a stop.
    pub fn set(&self, stop: StopSettings) {
        self.state.lock().stop = stop;
        self.change(|same| same);
    }

    /// Returns the actions that are due now.
    pub fn due(&self, now: Instant) -> Due {
        let state = self.state.lock();
        state.phase.due(&state.stop, now)
    }

    /// The latest end of the stop that is under way, or of one that would begin now.
    pub fn grace_end(&self, now: Instant) -> Instant {
        let state = self.state.lock();
        let since = match state.phase {
            Phase::Stopping { since } => since,
            _ => now,
        };
        since + state.stop.grace
    }

    fn change(&self, next: impl FnOnce(Phase) -> Phase) -> Phase {
        let mut state = self.state.lock();
        state.phase = next(state.phase);
        let (phase, wake) = (state.phase, state.wake.clone());
        drop(state);
        wake();
        phase
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn settings() -> StopSettings {
        StopSettings { delay: 500 * MS, min_age: 6_000 * MS, grace: 7_000 * MS }
    }

    #[test]
    fn a_stop_follows_its_settings() {
        let since = Instant::now();
        let due = |after: u32| Phase::Stopping { since }.due(&settings(), since + after * MS);
        let next = |at: u32| Some(since + at * MS);
        let as_ever = Due { accepts: true, leave_at_age: None, is_over: false, next: next(500) };
        assert_eq!(due(0), as_ever);
        assert_eq!(due(499), as_ever);
        let leave_at_age = Some(6_000 * MS);
        let leaving = |next| Due { accepts: false, leave_at_age, is_over: false, next };
        assert_eq!(due(500), leaving(next(600)));
        assert_eq!(due(6_950), leaving(next(7_000)), "no longer than it may take");
        assert_eq!(due(7_000), Due { is_over: true, ..leaving(None) });
        let mut hasty = settings();
        hasty.grace = 100 * MS;
        let due = Phase::Stopping { since }.due(&hasty, since + 100 * MS);
        assert!(due.is_over, "a grace shorter than the delay ends it");
    }

    #[test]
    fn an_operator_drains_and_undrains_until_the_proxy_stops() {
        let life = Life::new(settings());
        assert_eq!(life.is_ready(), Err("starting"));
        assert_eq!(life.drain(), Phase::Starting);
        life.serve(|| ());
        assert_eq!(life.is_ready(), Ok(()));
        assert_eq!(life.drain(), Phase::Draining);
        assert_eq!(life.is_ready(), Err("draining"));
        let now = Instant::now();
        assert!(life.due(now).accepts && life.due(now).leave_at_age.is_some());
        assert_eq!(life.undrain(), Phase::Serving);
        assert_eq!(life.due(now).leave_at_age, None);
        let stopping = life.stop();
        assert_eq!((life.stop(), life.undrain(), life.drain()), (stopping, stopping, stopping));
        assert_eq!(life.is_ready(), Err("stopping"));
        let Phase::Stopping { since } = stopping else { panic!("{stopping:?}") };
        assert_eq!(life.grace_end(since + 100 * MS), since + 7_000 * MS, "not from now on");
    }
}
