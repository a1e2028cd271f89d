//! Threads `worker-NNN`: jobs in, one at a time. A worker blocks on nothing but its queue and the
//! MetaServer of the call that it makes.
//!
//! ```text
//! Read ─▶ lobby: clients, one after the other ─▶ a call to make? ─▶ make it: ─┬─ the answer is near: read on meanwhile
//!           ▲                                                                └─ it takes long: leave the lobby, sleep
//!           └──── somebody waits ◀── give the answers ◀────────────────────────────────────┘
//! ```

use std::cell::{Cell, RefCell};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use log::error;

use super::linger::{Lounge, linger};
use super::lobby::Lobby;
use crate::activity::{self, SERVING};
use crate::client::connection::{CloseReason, Connection};
use crate::patience::Meanwhile;
use crate::query::router::Router;
use crate::upstream::cluster::Flight;
use crate::work::job::Job;
use crate::work::jobs::Jobs;

/// Clients read before a call that one of them needs is made: some dozen microseconds, in which many come to share it.
const CLIENTS_BEFORE_CALL: usize = 64;

/// All workers.
pub struct Workers {
    jobs: Jobs<Job>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    /// Starts `count` workers on these jobs.
    pub fn start(
        count: usize,
        jobs: Jobs<Job>,
        lobby: &Arc<Lobby>,
        router: &Arc<Router>,
    ) -> io::Result<Self> {
        let lounge = Arc::new(Lounge::new());
        let start = |index| {
            let jobs = jobs.clone();
            let (router, lobby, lounge) = (router.clone(), lobby.clone(), lounge.clone());
            let work = move || {
                let scratch = RefCell::default();
                let is_reader = Cell::new(false);
                let (router, lobby, lounge) = (&*router, &*lobby, &*lounge);
                Worker { router, lobby, lounge, scratch, is_reader }.work(&jobs);
            };
            thread::Builder::new().name(format!("worker-{index:03}")).spawn(work)
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

struct Worker<'a> {
    router: &'a Router,
    lobby: &'a Lobby,
    lounge: &'a Lounge,
    /// Read buffer.
    scratch: RefCell<Vec<u8>>,
    /// Whether the lobby counts on it.
    is_reader: Cell<bool>,
}

impl Worker<'_> {
    fn work(&self, jobs: &Jobs<Job>) {
        activity::now(SERVING, &[]);
        loop {
            match jobs.next() {
                Job::Stop => return,
                Job::Read => self.is_reader.set(true),
                // Who waited for it may have given up.
                Job::Beat(heard) => drop(heard.try_send(())),
                other => {
                    let mut flights = Vec::new();
                    lost_by_panic(|| self.router.resume(other, &mut flights));
                    lost_by_panic(|| self.router.take_off(flights, self));
                    self.is_reader.set(self.is_reader.get() || self.lobby.enter());
                }
            }
            while self.is_reader.get() {
                self.read();
                self.is_reader.set(self.is_reader.get() || self.lobby.enter());
            }
        }
    }

    /// Reads who waits, and makes the calls that came of it.
    fn read(&self) {
        let start = Instant::now();
        let (mut flights, mut served) = (Vec::new(), Vec::new());
        while served.len() < CLIENTS_BEFORE_CALL
            && let Some(connection) = self.lobby.next()
        {
            self.serve(&connection, &mut flights);
            served.push(connection);
        }
        if served.len() < CLIENTS_BEFORE_CALL && flights.is_empty() {
            self.leave();
        }
        let quick = match &served[..] {
            [only] if only.asks_again_at_once(start) => Some(only),
            _ => None,
        };
        lost_by_panic(|| self.router.take_off(flights, self));
        served.iter().for_each(|connection| connection.mark_served());
        if let Some(connection) = quick {
            self.leave();
            let mut scratch = self.scratch.borrow_mut();
            if lost_by_panic(|| linger(self.lounge, self.router, connection, &mut scratch)) {
                connection.close(CloseReason::QueryLost);
            }
        }
    }

    fn serve(&self, connection: &Arc<Connection>, flights: &mut Vec<Flight>) {
        let mut scratch = self.scratch.borrow_mut();
        if lost_by_panic(|| self.router.serve(connection, &mut scratch, flights)) {
            connection.close(CloseReason::QueryLost);
        }
    }

    fn leave(&self) {
        if self.is_reader.replace(false) {
            self.lobby.leave();
        }
    }
}

impl Meanwhile for Worker<'_> {
    fn spin(&self) {
        let next = self.is_reader.get().then(|| self.lobby.next()).flatten();
        let Some(connection) = next else {
            return thread::yield_now();
        };
        let mut flights = Vec::new();
        self.serve(&connection, &mut flights);
        self.router.hand_over(flights);
    }

    fn be_away(&self) {
        self.leave();
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
