//! Readable clients, and the workers that read them: as few as it takes, because waking a worker costs several
//! times as much as reading a client.
//!
//! ```text
//! accept ─▶ arrive ─▶ waiting ─▶ next ─▶ a reader: a worker that has come to read
//!              └─ more wait than the readers there are can take soon ─▶ Job::Read: one more reader
//! ```
//! A reader that is about to block leaves, and has another one called if somebody waits. Who is done with its
//! answers looks here before it goes to sleep, so under load nobody is woken at all.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread;

use crossbeam_channel::Sender;
use parking_lot::Mutex;

use crate::client::connection::Connection;
use crate::work::job::Job;
use crate::work::jobs::Jobs;

/// Clients that wait for each reader before one more is called: some dozen microseconds of reading. Fewer would be read
/// no sooner, and share fewer calls.
const CLIENTS_PER_READER: usize = 64;

/// Where readable clients wait.
pub struct Lobby<C = Arc<Connection>> {
    state: Mutex<State<C>>,
    jobs: Jobs<Job>,
    /// More readers than processors read no faster.
    max_readers: usize,
}

struct State<C> {
    waiting: VecDeque<C>,
    /// Workers that read, or are called to.
    readers: usize,
}

impl<C> Lobby<C> {
    /// Readers are called by way of `jobs`.
    pub fn new(jobs: Jobs<Job>) -> Self {
        Self::with_readers(jobs, thread::available_parallelism().map_or(2, |n| n.get()))
    }

    fn with_readers(jobs: Jobs<Job>, max_readers: usize) -> Self {
        let state = State { waiting: VecDeque::new(), readers: 0 };
        Lobby { state: Mutex::new(state), jobs, max_readers }
    }

    /// These became readable.
    pub fn arrive(&self, clients: impl IntoIterator<Item = C>) {
        let mut state = self.state.lock();
        state.waiting.extend(clients);
        let calls = self.lacks_reader(&mut state);
        drop(state);
        if calls {
            self.jobs.send(Job::Read);
        }
    }

    /// Has a worker tell that it took a job.
    pub fn beat(&self, heard: Sender<()>) {
        self.jobs.send(Job::Beat(heard));
    }

    /// The caller becomes a reader, if one is of use.
    pub fn enter(&self) -> bool {
        let mut state = self.state.lock();
        let is_of_use = !state.waiting.is_empty() && state.readers < self.max_readers;
        state.readers += usize::from(is_of_use);
        is_of_use
    }

    /// The next client, for a reader.
    pub fn next(&self) -> Option<C> {
        self.state.lock().waiting.pop_front()
    }

    /// The caller is no reader any more. Who waits is another's to read.
    pub fn leave(&self) {
        let mut state = self.state.lock();
        state.readers -= 1;
        let calls = self.lacks_reader(&mut state);
        drop(state);
        if calls {
            self.jobs.send(Job::Read);
        }
    }

    fn lacks_reader(&self, state: &mut State<C>) -> bool {
        let lacks = state.readers < self.max_readers
            && state.waiting.len() > CLIENTS_PER_READER * state.readers;
        state.readers += usize::from(lacks);
        lacks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Jobs that are queued, taken out.
    fn calls(jobs: &Jobs<Job>) -> usize {
        jobs.send(Job::Stop);
        std::iter::repeat_with(|| jobs.next()).take_while(|job| matches!(job, Job::Read)).count()
    }

    #[test]
    fn as_few_are_called_as_it_takes() {
        let jobs = Jobs::default();
        let lobby = Lobby::with_readers(jobs.clone(), 2);
        lobby.arrive([0]);
        assert_eq!(calls(&jobs), 1, "somebody must come");
        lobby.arrive(1..CLIENTS_PER_READER);
        assert_eq!(calls(&jobs), 0, "who comes can take them all");
        lobby.arrive([CLIENTS_PER_READER]);
        assert_eq!(calls(&jobs), 1, "too many for one");
        lobby.arrive(CLIENTS_PER_READER + 1..500);
        assert_eq!(calls(&jobs), 0, "no more than may read");
        assert!(!lobby.enter());
        let all = (0..500).map(|_| lobby.next().unwrap());
        assert_eq!(all.collect::<Vec<_>>(), Vec::from_iter(0..500));
    }

    #[test]
    fn nobody_is_left_waiting_without_a_reader() {
        let jobs = Jobs::default();
        let lobby = Lobby::with_readers(jobs.clone(), 2);
        lobby.arrive([0]);
        assert_eq!((calls(&jobs), lobby.next(), lobby.next()), (1, Some(0), None));
        // The reader has found nothing and is on its way out.
        lobby.arrive([1]);
        assert_eq!(calls(&jobs), 0);
        lobby.leave();
        assert_eq!(calls(&jobs), 1, "the one who left did not see it");
        assert_eq!(lobby.next(), Some(1));
        lobby.leave();
        assert!(!lobby.enter(), "nobody waits");
        assert_eq!(calls(&jobs), 0);
    }
}
