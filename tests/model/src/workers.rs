//! Workers at the queue, as `work::worker` uses it: clients arrive and jobs are sent at any moment, and every one of them is
//! taken, once. Whoever takes the last one ends the workers, so a wake-up that is lost is a deadlock, which loom reports.

use std::net::IpAddr;

use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use loom::thread;

use crate::queue::{Next, Queue};

const HOSTS: [[u8; 4]; 2] = [[10, 0, 0, 1], [10, 0, 0, 2]];

struct Work {
    queue: Queue<usize, usize>,
    taken: AtomicUsize,
    all: usize,
}

impl Work {
    fn take(&self) {
        if self.taken.fetch_add(1, SeqCst) + 1 == self.all {
            self.queue.stop();
        }
    }

    fn read(&self) {
        while self.queue.next_readable().is_some() {
            self.take();
        }
        self.queue.leave();
    }

    /// Takes one client, and then makes a call that does not end.
    fn call_for_one_client(&self) {
        loop {
            match self.queue.next() {
                Next::Stop => return,
                Next::Job(_) => self.take(),
                Next::Read => {
                    let client = self.queue.next_readable();
                    self.queue.leave();
                    if client.is_some() {
                        return self.take();
                    }
                }
            }
        }
    }

    fn work(&self) {
        loop {
            match self.queue.next() {
                Next::Stop => return,
                Next::Read => self.read(),
                Next::Job(_) => self.take(),
            }
            while self.queue.enter() {
                self.read();
            }
        }
    }
}

fn check(work_on: fn(&Work), workers: usize, clients: usize, jobs: usize) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(move || {
        let work = Arc::new(Work {
            queue: Queue::default(),
            taken: AtomicUsize::new(0),
            all: clients + jobs,
        });
        let threads: Vec<_> = (0..workers)
            .map(|_| {
                let work = work.clone();
                thread::spawn(move || work_on(&work))
            })
            .collect();
        for client in 0..clients {
            work.queue.arrive([(IpAddr::from(HOSTS[client % HOSTS.len()]), client)]);
        }
        (0..jobs).for_each(|job| work.queue.send(job));
        threads.into_iter().for_each(|thread| thread.join().expect("a worker ends"));
        assert_eq!(work.taken.load(SeqCst), clients + jobs);
    });
}

#[test]
fn one_worker_takes_all() {
    check(Work::work, 1, 2, 1);
}

#[test]
fn two_workers_take_all() {
    check(Work::work, 2, 2, 1);
}

#[test]
fn a_worker_that_makes_a_call_leaves_clients_to_another() {
    check(Work::call_for_one_client, 2, 2, 0);
}
