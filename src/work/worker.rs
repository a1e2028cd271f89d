//! Threads `worker-NNN`: clients and jobs in, one at a time. A worker blocks on nothing but the queue and, for a slice, the
//! MetaServer of the call that it makes.
//!
//! ```text
//! next ─┬─ read ─▶ clients, one after the other ─▶ calls to make? ─▶ make one, leave the others to other workers
//!       └─ job ──▶ look up again, refuse, make calls, go on with a parked call
//! ```

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use log::error;

use super::job::{Job, Jobs};
use super::linger::{Permits, linger};
use super::queue::Next;
use crate::activity::{self, SERVING};
use crate::client::ask::refuse_all;
use crate::client::connection::{CloseReason, Connection};
use crate::query::router::Router;
use crate::upstream::call;
use crate::upstream::cluster::Place;

/// Clients read before a call that one of them needs is made.
const CLIENTS_BEFORE_CALL: usize = 64;
/// Time for which a call waits while other clients are read, so that their questions share it.
const BOARDING: Duration = Duration::from_micros(100);

/// All workers.
pub struct Workers {
    jobs: Arc<Jobs>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    /// Starts `count` workers on this queue.
    pub fn start(count: usize, jobs: Arc<Jobs>, router: &Arc<Router>) -> io::Result<Self> {
        let permits = Arc::new(Permits::new());
        let start = |index| {
            let (jobs, router, permits) = (jobs.clone(), router.clone(), permits.clone());
            let work = move || {
                let mut worker =
                    Worker { jobs: &jobs, router: &router, permits: &permits, scratch: Vec::new() };
                worker.work();
            };
            thread::Builder::new().name(format!("worker-{index:03}")).spawn(work)
        };
        let threads = (0..count).map(start).collect::<io::Result<_>>()?;
        Ok(Workers { jobs, threads })
    }

    /// Lets the workers finish the jobs that are queued, and ends them.
    pub fn stop(self) {
        self.jobs.stop();
        for thread in self.threads {
            let _ = thread.join();
        }
    }
}

struct Worker<'a> {
    jobs: &'a Jobs,
    router: &'a Router,
    permits: &'a Permits,
    /// Read buffer.
    scratch: Vec<u8>,
}

impl Worker<'_> {
    fn work(&mut self) {
        activity::now(SERVING, &[]);
        loop {
            match self.jobs.next() {
                Next::Stop => return,
                Next::Read => self.read(),
                // The watchdog may have stopped waiting for it.
                Next::Job(Job::Beat(heard)) => drop(heard.try_send(())),
                Next::Job(job) => _ = panicked(|| self.run(job)),
            }
            // Clients that wait are read before this thread sleeps: that costs no wake-up.
            while self.jobs.enter() {
                self.read();
            }
        }
    }

    fn run(&self, job: Job) {
        let mut places = Vec::new();
        match job {
            Job::Retry(asks) => {
                let route = |ask| self.router.route(ask, &mut places).err();
                refuse_all(asks.into_iter().filter_map(route));
            }
            Job::Refuse(asks, why) => refuse_all(asks.into_iter().map(|ask| (ask, why))),
            Job::Call(place) => places.push(place),
            Job::Resume(parked) => call::resume(parked),
            Job::Beat(_) => unreachable!("a beat is answered where it is taken"),
        }
        self.make_calls(places);
    }

    /// Makes the calls of one place here, and leaves the others to other workers.
    fn make_calls(&self, mut places: Vec<Place>) {
        let last = places.pop();
        places.into_iter().for_each(|place| self.jobs.send(Job::Call(place)));
        last.into_iter().for_each(Place::run);
    }

    /// As a reader: reads clients, then makes the calls that came of it.
    fn read(&mut self) {
        let start = Instant::now();
        let (mut places, mut served) = (Vec::new(), Vec::new());
        while served.len() < CLIENTS_BEFORE_CALL
            && (places.is_empty() || start.elapsed() < BOARDING)
            && let Some(connection) = self.jobs.next_readable()
        {
            self.serve(&connection, &mut places);
            served.push(connection);
        }
        self.jobs.leave();
        let quick = match &served[..] {
            [only] if only.asks_again_at_once(start) => Some(only),
            _ => None,
        };
        panicked(|| self.make_calls(places));
        served.iter().for_each(|connection| connection.mark_served());
        if let Some(connection) = quick {
            let (permits, router, jobs) = (self.permits, self.router, self.jobs);
            let scratch = &mut self.scratch;
            if panicked(|| linger(permits, router, jobs, connection, scratch)) {
                connection.close(CloseReason::QueryLost);
            }
        }
    }

    fn serve(&mut self, connection: &Arc<Connection>, places: &mut Vec<Place>) {
        let (router, scratch) = (self.router, &mut self.scratch);
        if panicked(|| router.serve(connection, scratch, places)) {
            connection.close(CloseReason::QueryLost);
        }
    }
}

/// Whether `work` panicked. The queries that it held were dropped on the way, which closes their connections:
/// their clients learn of it. The panic hook has logged thread and place.
fn panicked(work: impl FnOnce()) -> bool {
    let is_lost = catch_unwind(AssertUnwindSafe(work)).is_err();
    if is_lost {
        error!("a job was lost by a panic, its clients are disconnected");
    }
    is_lost
}
