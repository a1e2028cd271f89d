//! The one queue of the workers. It has readable clients, where hosts take turns, and jobs.
//!
//! ```text
//! accept ── arrive ─▶ readable ──next_readable──▶ a reader: a worker that has come to read
//!                        └─ too many wait for the present readers ─▶ one more reader is called
//! watch, zk-watch, workers ── send ─▶ jobs ──next──▶ any worker
//! ```
//! Waking a worker costs several times as much as reading a client, so the queue calls as few readers as it needs. A
//! reader that is about to make a call leaves, and calls another reader if clients wait. A worker that has finished a
//! job looks into the queue before it sleeps, so under load no worker needs waking.
//!
//! The queue is one mutex and one condition variable. A channel would be too slow: its `recv` spins and yields before
//! it sleeps, and with dozens of workers and jobs of some microseconds that took a quarter of all processor time. The
//! queue is bounded: each connection is in it at most once, and jobs carry pending queries and calls under way.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::thread;

#[cfg(not(loom))]
use parking_lot::{Condvar, Mutex};

#[cfg(loom)]
use crate::locks::{Condvar, Mutex};
use crate::turns::Turns;

/// The queue calls one reader for this many waiting clients: they take some hundred microseconds to read.
const CLIENTS_PER_READER: usize = 64;

/// A worker's next task.
pub enum Next<J> {
    /// Read clients: [`Queue::next_readable`] until [`Queue::leave`].
    Read,
    /// Do this job.
    Job(J),
    /// End the worker.
    Stop,
}

/// A queue of jobs `J` and clients `C`.
pub struct Queue<J, C> {
    state: Mutex<State<J, C>>,
    bell: Condvar,
    /// More readers than processors read no faster.
    max_readers: usize,
}

struct State<J, C> {
    jobs: VecDeque<J>,
    readable: Turns<C>,
    /// Workers that read, or are called to read.
    readers: usize,
    /// Readers that are called and have not begun.
    called: usize,
    is_stopping: bool,
}

impl<J, C> Default for Queue<J, C> {
    fn default() -> Self {
        Self::with_readers(thread::available_parallelism().map_or(2, |n| n.get()))
    }
}

impl<J, C> Queue<J, C> {
    fn with_readers(max_readers: usize) -> Self {
        let state = State {
            jobs: VecDeque::new(),
            readable: Turns::default(),
            readers: 0,
            called: 0,
            is_stopping: false,
        };
        Queue { state: Mutex::new(state), bell: Condvar::new(), max_readers }
    }

    pub fn send(&self, job: J) {
        self.state.lock().jobs.push_back(job);
        self.bell.notify_one();
    }

    /// Adds clients that have become readable, each with its host.
    pub fn arrive(&self, clients: impl IntoIterator<Item = (IpAddr, C)>) {
        let mut state = self.state.lock();
        clients.into_iter().for_each(|(host, client)| state.readable.push(host, client));
        let calls = self.call_reader(&mut state);
        drop(state);
        if calls {
            self.bell.notify_one();
        }
    }

    fn call_reader(&self, state: &mut State<J, C>) -> bool {
        let calls = state.readers < self.max_readers
            && state.readable.len() > CLIENTS_PER_READER * state.readers;
        state.readers += usize::from(calls);
        state.called += usize::from(calls);
        calls
    }

    /// Returns the caller's next task. Sleeps until there is one.
    pub fn next(&self) -> Next<J> {
        let mut state = self.state.lock();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                return Next::Job(job);
            }
            if state.called > 0 {
                state.called -= 1;
                return Next::Read;
            }
            if state.is_stopping {
                return Next::Stop;
            }
            self.bell.wait(&mut state);
        }
    }

    /// Makes the caller a reader without being called. False: no reader is needed.
    pub fn enter(&self) -> bool {
        let mut state = self.state.lock();
        let is_of_use = !state.readable.is_empty() && state.readers < self.max_readers;
        state.readers += usize::from(is_of_use);
        is_of_use
    }

    /// The next client, for a reader.
    pub fn next_readable(&self) -> Option<C> {
        self.state.lock().readable.pop()
    }

    /// Ends the caller's reading. If clients wait, calls another reader.
    pub fn leave(&self) {
        let mut state = self.state.lock();
        state.readers -= 1;
        let calls = self.call_reader(&mut state);
        drop(state);
        if calls {
            self.bell.notify_one();
        }
    }

    /// Number of queued jobs.
    pub fn jobs(&self) -> usize {
        self.state.lock().jobs.len()
    }

    /// Ends the workers once they find no job.
    pub fn stop(&self) {
        self.state.lock().is_stopping = true;
        self.bell.notify_all();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::Arc;

    const HOST: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn clients(range: std::ops::Range<usize>) -> impl Iterator<Item = (IpAddr, usize)> {
        range.map(|n| (HOST, n))
    }

    /// Number of called readers; each of them begins.
    fn called(queue: &Queue<(), usize>) -> usize {
        queue.stop();
        std::iter::repeat_with(|| queue.next())
            .take_while(|next| matches!(next, Next::Read))
            .count()
    }

    #[test]
    fn the_queue_calls_as_few_readers_as_it_needs() {
        let queue = Queue::with_readers(2);
        queue.arrive(clients(0..1));
        assert_eq!(called(&queue), 1, "somebody must come");
        queue.arrive(clients(1..CLIENTS_PER_READER));
        assert_eq!(called(&queue), 0, "one reader can take them all");
        queue.arrive(clients(CLIENTS_PER_READER..CLIENTS_PER_READER + 1));
        assert_eq!(called(&queue), 1, "too many for one");
        queue.arrive(clients(CLIENTS_PER_READER + 1..500));
        assert_eq!(called(&queue), 0, "no more than may read");
        assert!(!queue.enter());
        let all = (0..500).map(|_| queue.next_readable().unwrap());
        assert_eq!(all.collect::<Vec<_>>(), Vec::from_iter(0..500));
    }

    #[test]
    fn no_client_waits_without_a_reader() {
        let queue = Queue::with_readers(2);
        queue.arrive(clients(0..1));
        assert_eq!(called(&queue), 1);
        assert_eq!((queue.next_readable(), queue.next_readable()), (Some(0), None));
        // The reader has found nothing and is about to leave.
        queue.arrive(clients(1..2));
        assert_eq!(called(&queue), 0);
        queue.leave();
        assert_eq!(called(&queue), 1, "the one who left did not see it");
        assert_eq!(queue.next_readable(), Some(1));
        queue.leave();
        assert!(!queue.enter(), "nobody waits");
        assert_eq!(called(&queue), 0);
    }

    #[test]
    fn every_job_is_done_once_and_before_the_end() {
        let queue = Arc::new(Queue::<u64, ()>::default());
        let workers: Vec<_> = (0..4)
            .map(|_| {
                let queue = queue.clone();
                thread::spawn(move || {
                    let mut sum = 0;
                    while let Next::Job(n) = queue.next() {
                        sum += n;
                    }
                    sum
                })
            })
            .collect();
        (1..=10_000).for_each(|n| queue.send(n));
        queue.stop();
        let sum: u64 = workers.into_iter().map(|worker| worker.join().unwrap()).sum();
        assert_eq!(sum, 10_000 * 10_001 / 2);
    }
}
