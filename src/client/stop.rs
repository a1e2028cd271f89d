//! How a client is let go: with all its answers, and by a goodbye.
//!
//! ```text
//! a stop: under way ─▶ answered ─▶ taken ─▶ goodbye: no more is sent, what comes is discarded ─▶ closed
//!             └ not in time    └ nothing for a second, or not in time ─────────────────────────────▲
//! a drain: idle ─────────────────────────▶ goodbye
//! ```
//! Bytes that come after the goodbye are discarded, because a close with unread input would reset the connection and destroy
//! answers that are on their way.

use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{info, warn};

use super::connection::{CloseReason, Connection};
use super::deadlines::Deadlines;
use super::note::{ConnectionKey, StopBy};

/// A client that takes nothing for as long is waited for no longer.
const STALLED: Duration = Duration::from_secs(1);
/// How long a client may take to close its side.
const GOODBYE: Duration = Duration::from_secs(1);

/// Clients that are sent nothing more, until they close.
#[derive(Default)]
pub struct Goodbyes {
    until: Deadlines<ConnectionKey>,
}

impl Goodbyes {
    /// To a client that has all its answers and is read by nobody.
    pub fn say(&mut self, connection: &Arc<Connection>, now: Instant) {
        connection.end_sending();
        self.until.set(connection.key(), Some(now + GOODBYE));
        self.hear(connection);
    }

    /// The client may have closed its side. False: it was not said goodbye.
    pub fn hear(&self, connection: &Arc<Connection>) -> bool {
        let is_leaving = self.until.contains(connection.key());
        if is_leaving && connection.discard() {
            connection.close(CloseReason::Stop);
        }
        is_leaving
    }

    /// It is closed.
    pub fn forget(&mut self, key: ConnectionKey) {
        self.until.set(key, None);
    }

    /// When somebody is waited for no longer.
    pub fn first(&self) -> Option<Instant> {
        self.until.first()
    }

    /// Takes out one that is waited for no longer.
    pub fn pop_over(&mut self, now: Instant) -> Option<ConnectionKey> {
        self.until.pop_over(now)
    }
}

/// A stop under way.
pub struct Stop {
    by: StopBy,
    /// Queries that stay without an answer.
    lost_queries: u32,
    /// Clients that did not take their answers.
    cut_clients: usize,
}

impl Stop {
    /// Begins one.
    pub fn new(by: StopBy) -> Self {
        Stop { by, lost_queries: 0, cut_clients: 0 }
    }

    /// It is to be over sooner.
    pub fn hasten(&mut self, by: StopBy) {
        self.by.answered = self.by.answered.min(by.answered);
        self.by.taken = self.by.taken.min(by.taken);
    }

    /// Says goodbye to a client that has all its answers, and closes one that is waited for no longer.
    pub fn look_after(
        &mut self,
        connection: &Arc<Connection>,
        goodbyes: &mut Goodbyes,
        now: Instant,
    ) {
        if now >= self.by.taken.max(self.by.answered) {
            self.cut(connection);
        } else if goodbyes.until.contains(connection.key()) {
            // It has what it asked for, and its own time to close.
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

    /// Tells how it went.
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
