//! Lines on their way to thread `log`. A thread that logs appends a line and never waits for the disk; the thread `log`
//! takes all waiting lines at once. When the disk stalls, the queue fills, and lines are dropped and counted.

use std::mem;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::config::Keep;

/// Most waiting bytes: tens of thousands of lines, which is seconds of the worst case.
const MAX_BYTES: usize = 4 * 1024 * 1024;

/// Orders for the thread, to carry out after it has written the earlier lines.
#[derive(Default)]
pub struct Orders {
    /// Reopen the file.
    pub reopen: bool,
    /// Change how much of the log to keep.
    pub keep: Option<Keep>,
}

/// All waiting lines and orders.
#[derive(Default)]
pub struct Batch {
    pub text: Vec<u8>,
    /// Number of lines dropped after these, because the queue was full.
    pub dropped: u64,
    pub orders: Orders,
    /// Number of the batch, for [`Queue::done`].
    pub number: u64,
}

#[derive(Default)]
struct State {
    waiting: Batch,
    /// `waiting` has something.
    is_news: bool,
    /// Number of records and orders since the start, and how many of them are done.
    came: u64,
    done: u64,
}

#[derive(Default)]
pub struct Queue {
    state: Mutex<State>,
    filled: Condvar,
    emptied: Condvar,
}

impl Queue {
    /// Appends the lines of a record, or counts them if the queue is full. Never blocks.
    pub fn push(&self, lines: &str) {
        let mut state = self.state.lock();
        if state.waiting.text.len() + lines.len() <= MAX_BYTES {
            state.waiting.text.extend_from_slice(lines.as_bytes());
        } else {
            state.waiting.dropped += count(lines.as_bytes());
        }
        self.wake(state);
    }

    /// Gives the thread an order.
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

    /// Takes all waiting lines and orders; empty if nothing comes within `patience`.
    pub fn take(&self, patience: Duration) -> Batch {
        let mut state = self.state.lock();
        if !state.is_news {
            self.filled.wait_for(&mut state, patience);
        }
        state.is_news = false;
        Batch { number: state.came, ..mem::take(&mut state.waiting) }
    }

    /// The batch of this number is done: its lines are written or lost, and its orders are carried out.
    pub fn done(&self, number: u64) {
        self.state.lock().done = number;
        self.emptied.notify_all();
    }

    /// Waits until all earlier lines and orders are done, at most for `patience`. False: they are not.
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

/// Number of lines in a text.
pub fn count(text: &[u8]) -> u64 {
    text.iter().filter(|&&byte| byte == b'\n').count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn lines_without_room_are_counted_and_no_thread_waits() {
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
