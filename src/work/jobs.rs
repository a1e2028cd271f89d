//! The queue between who has work and the workers: a crossbeam channel, and a count of its jobs to sleep on.
//!
//! A blocking `recv` of the channel spins and yields before it sleeps; with dozens of workers and jobs of
//! some microseconds that was a quarter of all the processor time that a query took.

use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, unbounded};
use parking_lot::{Condvar, Mutex};

/// Both ends of a queue. What bounds it is what the jobs are about.
pub struct Jobs<T> {
    sender: Sender<T>,
    inbox: Receiver<T>,
    bell: Arc<Bell>,
}

#[derive(Default)]
struct Bell {
    /// Jobs that are queued and that no worker has claimed.
    unclaimed: Mutex<usize>,
    rung: Condvar,
}

impl<T> Clone for Jobs<T> {
    fn clone(&self) -> Self {
        let (sender, inbox) = (self.sender.clone(), self.inbox.clone());
        Jobs { sender, inbox, bell: self.bell.clone() }
    }
}

impl<T> Default for Jobs<T> {
    fn default() -> Self {
        let (sender, inbox) = unbounded();
        Jobs { sender, inbox, bell: Arc::default() }
    }
}

impl<T> Jobs<T> {
    /// Queues a job and wakes a worker if one sleeps.
    pub fn send(&self, job: T) {
        self.sender.send(job).unwrap_or_else(|_| unreachable!("this queue holds its own inbox"));
        *self.bell.unclaimed.lock() += 1;
        self.bell.rung.notify_one();
    }

    /// Jobs that are queued.
    pub fn len(&self) -> usize {
        self.sender.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The next job; sleeps until there is one.
    pub fn next(&self) -> T {
        let mut unclaimed = self.bell.unclaimed.lock();
        while *unclaimed == 0 {
            self.bell.rung.wait(&mut unclaimed);
        }
        *unclaimed -= 1;
        drop(unclaimed);
        self.inbox.try_recv().expect("a claim is made after its job is queued")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn every_job_is_done_once() {
        let jobs = Jobs::default();
        let workers: Vec<_> = (0..4)
            .map(|_| {
                let jobs = jobs.clone();
                thread::spawn(move || {
                    let mut sum = 0;
                    loop {
                        match jobs.next() {
                            0 => return sum,
                            n => sum += n,
                        }
                    }
                })
            })
            .collect();
        (1..=10_000u64).for_each(|n| jobs.send(n));
        workers.iter().for_each(|_| jobs.send(0));
        let sum: u64 = workers.into_iter().map(|worker| worker.join().unwrap()).sum();
        assert_eq!(sum, 10_000 * 10_001 / 2);
    }
}
