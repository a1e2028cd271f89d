//! A worker lingers at a client that asks again as soon as it has its answer: it looks for the next query itself, for
//! some microseconds, instead of having `accept` and another worker woken for it, which takes several times as
//! long as the rest of the query.
//!
//! ```text
//! served, and it is its habit ─▶ unwatched (epoll forgets it) ─▶ look, yield, look ... ─┬─ a query: serve it, again
//!                                                                                       └─ none: watched again
//! ```
//! Few workers linger at once, and a processor that others want is theirs: looking yields. Clients that wait to be read
//! end it, and so does a query whose answer does not come at once.

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
    /// For half of the processors, at least one.
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

/// A connection that `accept` does not watch while this lives.
struct Unwatched<'a>(&'a Arc<Connection>);

impl Drop for Unwatched<'_> {
    fn drop(&mut self) {
        if let Err(e) = self.0.watch_socket() {
            // Nobody would hear of its client any more.
            self.0.close(CloseReason::Io(e));
        }
    }
}

/// Serves the connection as long as its client goes on asking at once. The caller has just served it.
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
