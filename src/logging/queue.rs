//! Lines on their way to thread `log`. A thread that logs appends a line and goes on, whatever the disk does; the thread
//! takes all that is there at once. When the disk stalls the queue fills, and lines are dropped and counted.

use std::mem;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::config::Keep;

/// Bytes that wait at most: tens of thousands of lines, which is seconds of the worst that can happen here.
const MAX_BYTES: usize = 4 * 1024 * 1024;

/// An order to the thread, for when it has written the lines that came before.
#[derive(Default)]
pub struct Orders {
    /// Open the file again by its name.
    pub reopen: bool,
    /// From now on so much is kept.
    pub keep: Option<Keep>,
}

/// All that waited.
#[derive(Default)]
pub struct Batch {
    /// Whole lines.
    pub text: Vec<u8>,
    /// Lines for which there was no room after these.
    pub dropped: u64,
    /// The order.
    pub orders: Orders,
    /// For [`Queue::done`].
    pub number: u64,
}

#[derive(Default)]
struct State {
    waiting: Batch,
    /// Something is in `waiting`.
    is_news: bool,
    /// Records and orders since the start, and how many of them are done with.
    came: u64,
    done: u64,
}

/// See the top of the file.
#[derive(Default)]
pub struct Queue {
    state: Mutex<State>,
    filled: Condvar,
    emptied: Condvar,
}

impl Queue {
    /// Appends a record's lines, if there is room. Never blocks.
    pub fn push(&self, lines: &str) {
        let mut state = self.state.lock();
        if state.waiting.text.len() + lines.len() <= MAX_BYTES {
            state.waiting.text.extend_from_slice(lines.as_bytes());
        } else {
            state.waiting.dropped += count(lines.as_bytes());
        }
        self.wake(state);
    }

    /// Has the thread do something.
    pub fn order(&self, order: impl FnOnce(&mut Orders)) {
        let mut state = self.state.lock();
        order(&mut state.waiting.orders);
        self.wake(state);
    }

    fn wake(&self, mut state: parking_lot::MutexGuard<'_, State>) {
        state.is_news = true;
        state.came += 1;
        drop(state);
        self.filled.notify_one();
    }

    /// All that waits; empty if there is nothing within `patience`.
    pub fn take(&self, patience: Duration) -> Batch {
        let mut state = self.state.lock();
        if !state.is_news {
            self.filled.wait_for(&mut state, patience);
        }
        state.is_news = false;
        Batch { number: state.came, ..mem::take(&mut state.waiting) }
    }

    /// The batch of this number is written, or lost for good, and its orders are obeyed.
    pub fn done(&self, number: u64) {
        self.state.lock().done = number;
        self.emptied.notify_all();
    }

    /// Waits until all that came before is done with, but not for ever. False: it is not.
    pub fn flush(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut state = self.state.lock();
        let came = state.came;
        while state.done < came {
            if self.emptied.wait_until(&mut state, deadline).timed_out() {
                return state.done >= came;
            }
        }
        true
    }
}

/// Lines in a text.
pub fn count(text: &[u8]) -> u64 {
    text.iter().filter(|&&byte| byte == b'\n').count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn what_finds_no_room_is_counted_and_nobody_waits() {
        let queue = Queue::default();
        let line = format!("{}\n", "x".repeat(1023));
        let fits = MAX_BYTES / line.len();
        (0..fits + 7).for_each(|_| queue.push(&line));
        let batch = queue.take(Duration::ZERO);
        assert_eq!((count(&batch.text), batch.dropped), (fits as u64, 7));
        queue.push("next\n");
        let batch = queue.take(Duration::ZERO);
        assert_eq!((&batch.text[..], batch.dropped), (&b"next\n"[..], 0));
        assert!(queue.take(Duration::ZERO).text.is_empty());
    }

    #[test]
    fn a_flush_waits_for_what_came_before_it_and_no_longer_than_it_may() {
        let queue = Queue::default();
        assert!(queue.flush(Duration::ZERO), "there is nothing to wait for");
        queue.push("a\n");
        assert!(!queue.flush(Duration::from_millis(1)), "nobody writes");
        thread::scope(|scope| {
            scope.spawn(|| {
                let batch = queue.take(Duration::from_secs(10));
                queue.done(batch.number);
            });
            assert!(queue.flush(Duration::from_secs(10)));
        });
    }

    #[test]
    fn an_order_wakes_the_thread_and_comes_with_the_lines_before_it() {
        let queue = Queue::default();
        queue.push("a\n");
        queue.order(|orders| orders.reopen = true);
        let batch = queue.take(Duration::from_secs(10));
        assert_eq!(batch.text, b"a\n");
        assert!(batch.orders.reopen);
        assert!(!queue.take(Duration::ZERO).orders.reopen, "once");
        assert!(!queue.flush(Duration::ZERO), "it is not obeyed yet");
        queue.done(batch.number);
        assert!(queue.flush(Duration::ZERO));
    }
}
