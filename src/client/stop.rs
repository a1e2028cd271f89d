//! Lets a client go: first it gets all its answers, then a goodbye.
//!
//! ```text
//! a stop: under way ─▶ answered ─▶ taken ─▶ goodbye: stop sending, discard what the client sends ─▶ closed
//!             └ not in time    └ nothing for a second, or not in time ───────────────────────────────▲
//! a drain: idle ─────────────────────────▶ goodbye
//! ```
//! The proxy discards bytes that come after the goodbye. A close with unread input would reset the connection and
//! destroy answers that are on their way.

use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{info, warn};

use super::connection::{CloseReason, Connection};
use super::deadlines::Deadlines;
use super::note::{ConnectionKey, StopBy};

/// A stop does not wait for a client that takes nothing for this long.
const STALLED: Duration = Duration::from_secs(1);
/// How long a client may take to close its side.
const GOODBYE: Duration = Duration::from_secs(1);

/// Clients to which the proxy sends nothing more, until they close.
#[derive(Default)]
pub struct Goodbyes {
    until: Deadlines<ConnectionKey>,
}

impl Goodbyes {
    /// Ends sending to a client that has all its answers and that no worker reads.
    pub fn say(&mut self, connection: &Arc<Connection>, now: Instant) {
        connection.end_sending();
        self.until.set(connection.key(), Some(now + GOODBYE));
        self.hear(connection);
    }

    /// Handles an event of a client that may have closed its side. False: the client has got no goodbye.
    pub fn hear(&self, connection: &Arc<Connection>) -> bool {
        let is_leaving = self.until.contains(connection.key());
        if is_leaving && connection.discard() {
            connection.close(CloseReason::Stop);
        }
        is_leaving
    }

    /// Forgets a closed connection.
    pub fn forget(&mut self, key: ConnectionKey) {
        self.until.set(key, None);
    }

    /// When the first goodbye times out.
    pub fn first(&self) -> Option<Instant> {
        self.until.first()
    }

    /// Removes a client whose goodbye has timed out.
    pub fn pop_over(&mut self, now: Instant) -> Option<ConnectionKey> {
        self.until.pop_over(now)
    }
}

/// A stop under way.
pub struct Stop {
    by: StopBy,
    /// Queries that get no answer.
    lost_queries: u32,
    /// Clients that did not take their answers.
    cut_clients: usize,
}

impl Stop {
    pub fn new(by: StopBy) -> Self {
        Stop { by, lost_queries: 0, cut_clients: 0 }
    }

    /// Ends the stop earlier if `by` is earlier.
    pub fn hasten(&mut self, by: StopBy) {
        self.by.answered = self.by.answered.min(by.answered);
        self.by.taken = self.by.taken.min(by.taken);
    }

    /// Says goodbye to a client that has all its answers, and closes a client whose time is over.
    pub fn look_after(
        &mut self,
        connection: &Arc<Connection>,
        goodbyes: &mut Goodbyes,
        now: Instant,
    ) {
        if now >= self.by.taken.max(self.by.answered) {
            self.cut(connection);
        } else if goodbyes.until.contains(connection.key()) {
            // The client has its answers; the goodbye has its own time-out.
        } else if connection.is_done() {
            goodbyes.say(connection, now);
        } else if now >= self.patience_with(connection) {
            self.cut(connection);
        }
    }

    fn patience_with(&self, connection: &Connection) -> Instant {
        match connection.unsent_since() {
            Some(since) if connection.pending() == 0 => (since + STALLED).min(self.by.taken),
            _ => self.by.answered,
        }
    }

    fn cut(&mut self, connection: &Arc<Connection>) {
        if !connection.is_closed() {
            let pending = connection.pending();
            self.lost_queries += pending;
            self.cut_clients += usize::from(pending == 0 && connection.unsent_since().is_some());
            connection.close(CloseReason::Stop);
        }
    }

    /// Logs how the stop went.
    pub fn log_end(&self) {
        match (self.lost_queries, self.cut_clients) {
            (0, 0) => info!("stopping: all queries are answered"),
            (queries, clients) => warn!(
                "stopping: {queries} queries stay without an answer, \
                 {clients} clients did not take their answers in time"
            ),
        }
    }
}
