//! Threads `worker-NNN`: each reads clients and does jobs, one at a time. A worker blocks only on the queue and, for a
//! slice, on the MetaServer of its call.
//!
//! ```text
//! next ─┬─ read ─▶ clients, one after the other ─▶ calls to make? ─▶ make one, leave the others to other workers
//!       └─ job ──▶ route again, refuse, make calls, continue a parked call
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

/// Read at most this many clients before the call that one of them needs.
const CLIENTS_BEFORE_CALL: usize = 64;
/// A call waits at most this long while the worker reads other clients, so that their queries share it.
const BOARDING: Duration = Duration::from_micros(100);

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
    scratch: Vec<u8>,
}

impl Worker<'_> {
    fn work(&mut self) {
        activity::now(SERVING, &[]);
        loop {
            match self.jobs.next() {
                Next::Stop => return,
                Next::Read => self.read(),
                // The send fails if the watchdog has stopped waiting.
                Next::Job(Job::Beat(heard)) => drop(heard.try_send(())),
                Next::Job(job) => _ = panicked(|| self.run(job)),
            }
            // Read waiting clients before this thread sleeps: that saves waking another one.
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
            Job::Beat(_) => unreachable!("beats are answered in work()"),
        }
        self.make_calls(places);
    }

    /// Makes the calls of one place here, and leaves the other places to other workers.
    fn make_calls(&self, mut places: Vec<Place>) {
        let last = places.pop();
        places.into_iter().for_each(|place| self.jobs.send(Job::Call(place)));
        last.into_iter().for_each(Place::run);
    }

    /// Reads clients, then makes the calls that their queries need.
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

/// Whether `work` panicked. The panic dropped the queries that it held, which closes their connections, so their
/// clients notice. The panic hook has logged thread and place.
fn panicked(work: impl FnOnce()) -> bool {
    let is_lost = catch_unwind(AssertUnwindSafe(work)).is_err();
    if is_lost {
        error!("a job panicked and is lost, the proxy closes its clients");
    }
    is_lost
}
