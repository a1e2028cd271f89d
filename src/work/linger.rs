//! A worker lingers at a client that asks again as soon as it has its answer: it looks for the next query itself, for
//! some microseconds, instead of having `accept` and another worker woken for it, which takes several times as
//! long as the rest of the query.
//!
//! ```text
//! served, and it is its habit ─▶ unwatched (epoll forgets it) ─▶ look, yield, look ... ─┬─ a query: serve it, again
//!                                                                                       └─ none: watched again
//! ```
//! Few workers linger at once, and a processor that others want is theirs: looking yields. While a call of such a
//! client is slow, its socket is watched again, so that what it pipelines is served beside it.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use crate::client::connection::{CloseReason, Connection};
use crate::patience::Meanwhile;
use crate::query::router::Router;

/// How long a worker looks for the next query.
const LINGER: Duration = Duration::from_micros(60);

/// How many workers may linger.
pub struct Lounge {
    free: AtomicUsize,
}

impl Lounge {
    /// For half of the processors, at least one.
    pub fn new() -> Self {
        let processors = thread::available_parallelism().map_or(1, |n| n.get());
        Lounge { free: AtomicUsize::new((processors / 2).max(1)) }
    }

    fn enter(&self) -> Option<Seat<'_>> {
        let take = |free: usize| free.checked_sub(1);
        self.free.fetch_update(SeqCst, SeqCst, take).ok().map(|_| Seat(self))
    }
}

impl Default for Lounge {
    fn default() -> Self {
        Self::new()
    }
}

struct Seat<'a>(&'a Lounge);

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        self.0.free.fetch_add(1, SeqCst);
    }
}

/// A connection that `accept` does not watch while this lives.
struct Unwatched<'a> {
    connection: &'a Arc<Connection>,
    is_watched: Cell<bool>,
}

impl Unwatched<'_> {
    fn watch(&self) {
        if !self.is_watched.replace(true)
            && let Err(e) = self.connection.watch_socket()
        {
            // Nobody would hear of its client any more.
            self.connection.close(CloseReason::Io(e));
        }
    }
}

impl Meanwhile for Unwatched<'_> {
    fn look_up(&self) {
        self.watch();
    }
}

impl Drop for Unwatched<'_> {
    fn drop(&mut self) {
        self.watch();
    }
}

/// Serves the connection as long as its client goes on asking at once. The caller has just served it.
pub fn linger(
    lounge: &Lounge,
    router: &Router,
    connection: &Arc<Connection>,
    scratch: &mut Vec<u8>,
) {
    let Some(_seat) = lounge.enter() else {
        return;
    };
    if !connection.is_quiet() || connection.unwatch_socket().is_err() {
        return;
    }
    let unwatched = Unwatched { connection, is_watched: Cell::new(false) };
    let mut until = Instant::now() + LINGER;
    while connection.is_quiet() && !unwatched.is_watched.get() && connection.resume(Instant::now())
    {
        let mut flights = Vec::new();
        if router.read(connection, scratch, &mut flights) {
            router.take_off(flights, &unwatched);
            until = Instant::now() + LINGER;
        } else if Instant::now() < until {
            thread::yield_now();
        } else {
            return;
        }
    }
}
