//! Threads `worker-NNN`: jobs in, one at a time. A worker blocks on nothing but its queue and the
//! MetaServer of the call that it makes.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use log::error;

use super::connection::CloseReason;
use super::linger::{Lounge, linger};
use crate::jobs::Jobs;
use crate::query::{Job, Router};

/// All workers.
pub struct Workers {
    jobs: Jobs<Job>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    /// Starts `count` workers on these jobs.
    pub fn start(count: usize, jobs: Jobs<Job>, router: &Arc<Router>) -> io::Result<Self> {
        let lounge = Arc::new(Lounge::new());
        let start = |index| {
            let (jobs, router, lounge) = (jobs.clone(), router.clone(), lounge.clone());
            thread::Builder::new()
                .name(format!("worker-{index:03}"))
                .spawn(move || work(&jobs, &router, &lounge))
        };
        let threads = (0..count).map(start).collect::<io::Result<_>>()?;
        Ok(Workers { jobs, threads })
    }

    /// Lets the workers finish the jobs that are queued, and ends them.
    pub fn stop(self) {
        for _ in &self.threads {
            self.jobs.send(Job::Stop);
        }
        for thread in self.threads {
            let _ = thread.join();
        }
    }
}

fn work(jobs: &Jobs<Job>, router: &Router, lounge: &Lounge) {
    let mut scratch = Vec::new();
    loop {
        let mut flights = Vec::new();
        let mut again = None;
        match jobs.next() {
            Job::Stop => return,
            Job::Serve(connections) => {
                let start = Instant::now();
                for connection in &connections {
                    if lost_by_panic(|| router.serve(connection, &mut scratch, &mut flights)) {
                        connection.close(CloseReason::QueryLost);
                    }
                }
                if let [only] = &connections[..]
                    && only.asks_again_at_once(start)
                {
                    again = Some(only.clone());
                }
                // Only now, when all connections of the job are given back, does the worker block.
                lost_by_panic(|| router.take_off(flights, &|| ()));
                connections.iter().for_each(|connection| connection.is_served());
            }
            other => {
                lost_by_panic(|| router.resume(other, &mut flights));
                lost_by_panic(|| router.take_off(flights, &|| ()));
            }
        }
        if let Some(connection) = again
            && lost_by_panic(|| linger(lounge, router, &connection, &mut scratch))
        {
            connection.close(CloseReason::QueryLost);
        }
    }
}

/// Whether `work` panicked. The queries that it held were dropped on the way, which closes their connections:
/// their clients learn of it. The panic hook has logged thread and place.
fn lost_by_panic(work: impl FnOnce()) -> bool {
    let is_lost = catch_unwind(AssertUnwindSafe(work)).is_err();
    if is_lost {
        error!("a job was lost by a panic, its clients are disconnected");
    }
    is_lost
}
