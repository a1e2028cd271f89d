//! A stop, as far as it concerns clients: nobody is read any more, and each client leaves when it has its answers.
//!
//! ```text
//! under way ─▶ answered ─▶ taken ─▶ goodbye: no more is sent, what comes is discarded ─▶ closed
//!     └ not in time   └ nothing for a second, or not in time ──────────────────────────────▲
//! ```
//! What comes is discarded because a close with unread input would reset the connection, and destroy answers that are
//! on their way.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{info, warn};

use super::connection::{CloseReason, Connection};
use super::note::{ConnectionKey, StopBy};

/// A client that takes nothing for as long is waited for no longer.
const STALLED: Duration = Duration::from_secs(1);
/// How long a client that has all its answers may take to close its side.
const GOODBYE: Duration = Duration::from_secs(1);

/// A stop under way.
pub struct Stop {
    by: StopBy,
    /// Clients that have all their answers and have been told so, since when.
    goodbyes: HashMap<ConnectionKey, Instant>,
    /// Queries that stay without an answer.
    lost_queries: u32,
    /// Clients that did not take their answers.
    cut_clients: usize,
}

impl Stop {
    /// Begins one.
    pub fn new(by: StopBy) -> Self {
        Stop { by, goodbyes: HashMap::new(), lost_queries: 0, cut_clients: 0 }
    }

    /// It is to be over sooner.
    pub fn hasten(&mut self, by: StopBy) {
        self.by.answered = self.by.answered.min(by.answered);
        self.by.taken = self.by.taken.min(by.taken);
    }

    /// Says goodbye to a client that has all its answers, and closes one that is waited for no longer.
    pub fn look_after(&mut self, connection: &Arc<Connection>, now: Instant) {
        if let Some(since) = self.goodbyes.get(&connection.key()) {
            if now >= *since + GOODBYE || now >= self.by.taken {
                connection.close(CloseReason::Stop);
            }
            return;
        }
        if connection.finish_if_done() {
            self.goodbyes.insert(connection.key(), now);
            self.hear(connection);
            return;
        }
        let pending = connection.pending();
        let is_over = match connection.unsent_since() {
            Some(since) if pending == 0 => now >= (since + STALLED).min(self.by.taken),
            _ => now >= self.by.answered.min(self.by.taken),
        };
        if is_over && !connection.is_closed() {
            self.lost_queries += pending;
            self.cut_clients += usize::from(pending == 0);
            connection.close(CloseReason::Stop);
        }
    }

    /// A client that was said goodbye may have closed its side.
    pub fn hear(&self, connection: &Arc<Connection>) {
        if self.goodbyes.contains_key(&connection.key()) && connection.discard() {
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
