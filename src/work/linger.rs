//! A worker lingers at a client that sends its next query as soon as it has its answer. For some microseconds the
//! worker looks for that query itself. Waking `accept` and another worker would take several times as long as the rest
//! of the query.
//!
//! ```text
//! a quick client was served ─▶ unwatched (no epoll events) ─▶ look, yield, look ... ─┬─ a query: serve it, again
//!                                                                                    └─ none: watched again
//! ```
//! Few workers linger at once, and they yield the processor between looks. A worker stops lingering when other clients
//! wait, or when an answer does not come at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use super::job::{Job, Jobs};
use crate::client::connection::{CloseReason, Connection};
use crate::query::router::Router;
use crate::upstream::cluster::Place;

/// How long a worker looks for the next query.
const LINGER: Duration = Duration::from_micros(60);

/// How many workers may linger.
pub struct Permits {
    free: AtomicUsize,
}

impl Permits {
    /// Permits for half of the processors, at least one.
    pub fn new() -> Self {
        let processors = thread::available_parallelism().map_or(1, |n| n.get());
        Permits { free: AtomicUsize::new((processors / 2).max(1)) }
    }

    fn take(&self) -> Option<Permit<'_>> {
        let take = |free: usize| free.checked_sub(1);
        self.free.fetch_update(SeqCst, SeqCst, take).ok().map(|_| Permit(self))
    }
}

impl Default for Permits {
    fn default() -> Self {
        Self::new()
    }
}

struct Permit<'a>(&'a Permits);

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.0.free.fetch_add(1, SeqCst);
    }
}

/// A connection whose events `accept` does not get while this value lives.
struct Unwatched<'a>(&'a Arc<Connection>);

impl Drop for Unwatched<'_> {
    fn drop(&mut self) {
        if let Err(e) = self.0.watch_socket() {
            // No thread would notice its client any more.
            self.0.close(CloseReason::Io(e));
        }
    }
}

/// Serves the connection as long as its client sends the next query at once. The caller has just served it.
pub fn linger(
    permits: &Permits,
    router: &Router,
    jobs: &Jobs,
    connection: &Arc<Connection>,
    scratch: &mut Vec<u8>,
) {
    let Some(_permit) = permits.take() else {
        return;
    };
    if !connection.is_quiet() || connection.unwatch_socket().is_err() {
        return;
    }
    let _unwatched = Unwatched(connection);
    let mut until = Instant::now() + LINGER;
    while connection.is_quiet() && connection.resume(Instant::now()) {
        let mut places = Vec::new();
        if router.read(connection, scratch, &mut places) {
            let last = places.pop();
            places.into_iter().for_each(|place| jobs.send(Job::Call(place)));
            last.into_iter().for_each(Place::run);
            until = Instant::now() + LINGER;
        } else if Instant::now() < until {
            thread::yield_now();
        } else {
            return;
        }
    }
}
