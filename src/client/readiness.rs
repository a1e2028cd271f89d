//! Decides which worker may read a connection: one at a time, and no readiness is lost.
//!
//! ```text
//!            notify: to the queue           begin
//!   IDLE ───────────────────────▶ QUEUED ──────────▶ RUNNING ──notify──▶ NOTIFIED
//!    ▲ └────────────────────────── resume: linger ──▶ │ │ │                 │
//!    │                              ▲ ▲ ▲             │ │ │                 │
//!    │                              │ │ └─ requeue ───┼─┼─┘                 │
//!    │                              │ └─── unpause ───┼─┼─ PAUSED ◀─ pause ─┤
//!    │                              └─────────────────┼─┼─ end: it said more ┘
//!    └───────────────── end: drained ─────────────────┘ └─ pause ─▶ PAUSED
//!   IDLE, PAUSED ── seize: a stop ─▶ SEIZED, for good
//! ```
//! mio registers a connection once, edge-triggered. An edge that arrives while a worker reads may be for bytes that
//! this worker has seen, or for later ones. In state NOTIFIED the worker therefore puts the connection at the end of
//! the queue again. So no request needs an epoll_ctl, and a client that always has more to read takes turns with the
//! others.
//!
//! A connection is PAUSED while its client has too many unsent answers. Edges that come meanwhile change nothing: the
//! thread that unpauses the connection always puts it in the queue again. Pure: one atomic, no socket.

#[cfg(loom)]
use loom::sync::atomic::AtomicU8;
#[cfg(not(loom))]
use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering::{AcqRel, Acquire};

const IDLE: u8 = 0;
const QUEUED: u8 = 1;
const RUNNING: u8 = 2;
const NOTIFIED: u8 = 3;
const PAUSED: u8 = 4;
const SEIZED: u8 = 5;

/// The state of one connection.
#[derive(Debug)]
pub struct Readiness(AtomicU8);

impl Default for Readiness {
    fn default() -> Self {
        Readiness(AtomicU8::new(IDLE))
    }
}

impl Readiness {
    /// The socket became readable. True: the caller must put the connection in the queue.
    pub fn notify(&self) -> bool {
        let before = self.step(|state| match state {
            IDLE => QUEUED,
            RUNNING => NOTIFIED,
            same => same,
        });
        before == IDLE
    }

    /// A worker took the connection from the queue and starts its turn.
    pub fn begin(&self) {
        let before = self.0.swap(RUNNING, AcqRel);
        debug_assert_eq!(before, QUEUED, "one worker takes it from the queue");
    }

    /// A worker takes the connection without the queue, because its client may send at once. False: another worker has
    /// it, or will have it.
    pub fn resume(&self) -> bool {
        self.0.compare_exchange(IDLE, RUNNING, AcqRel, Acquire).is_ok()
    }

    /// The worker has read all bytes. True: more may have come meanwhile, and the caller must put the connection in the
    /// queue.
    pub fn end(&self) -> bool {
        let before = self.step(|state| match state {
            NOTIFIED => QUEUED,
            _ => IDLE,
        });
        before == NOTIFIED
    }

    /// The worker ends its turn although there may be more to read; the caller must put the connection in the queue.
    pub fn requeue(&self) {
        self.0.swap(QUEUED, AcqRel);
    }

    /// The worker does not read, because the client has too many unsent answers. The caller must hold the lock of the
    /// outbox.
    pub fn pause(&self) {
        self.0.swap(PAUSED, AcqRel);
    }

    /// Workers may read the client again. The caller must hold the lock of the outbox. True: the caller must put the
    /// connection in the queue.
    pub fn unpause(&self) -> bool {
        self.0.compare_exchange(PAUSED, QUEUED, AcqRel, Acquire).is_ok()
    }

    /// Whether workers do not read the client because of its unsent answers.
    pub fn is_paused(&self) -> bool {
        self.0.load(Acquire) == PAUSED
    }

    /// Takes the connection away from workers for good. False: a worker has it, or will have it.
    pub fn seize(&self) -> bool {
        let before = self.step(|state| match state {
            IDLE | PAUSED => SEIZED,
            same => same,
        });
        matches!(before, IDLE | PAUSED | SEIZED)
    }

    fn step(&self, next: impl Fn(u8) -> u8) -> u8 {
        self.0
            .fetch_update(AcqRel, Acquire, |state| Some(next(state)))
            .expect("every state has a next one")
    }
}

#[cfg(all(test, loom))]
mod model {
    use super::Readiness;
    use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
    use loom::sync::{Arc, Mutex};
    use loom::thread;

    /// A connection whose socket is a counter of unread bytes, and the queue of its turns.
    #[derive(Default)]
    struct World {
        readiness: Readiness,
        unread: AtomicUsize,
        queue: AtomicUsize,
        reading: AtomicBool,
        /// Unsent answers; workers read the client only if there are none.
        unsent: Mutex<usize>,
    }

    impl World {
        fn arrive(&self) {
            self.unread.fetch_add(1, SeqCst);
            if self.readiness.notify() {
                self.queue.fetch_add(1, SeqCst);
            }
        }

        fn read(&self) -> usize {
            assert!(!self.reading.swap(true, SeqCst), "two workers read at once");
            let read = self.unread.swap(0, SeqCst);
            self.reading.store(false, SeqCst);
            read
        }

        /// A worker takes a turn if there is one. `has_more`: once the client has more than a turn reads.
        fn work(&self, mut has_more: bool) {
            while self.queue.fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1)).is_ok() {
                self.readiness.begin();
                let unsent = self.unsent.lock().unwrap();
                if *unsent > 0 {
                    self.readiness.pause();
                    continue;
                }
                drop(unsent);
                self.read();
                if std::mem::take(&mut has_more) {
                    self.readiness.requeue();
                    self.queue.fetch_add(1, SeqCst);
                } else if self.readiness.end() {
                    self.queue.fetch_add(1, SeqCst);
                }
            }
        }

        /// The client takes all its answers.
        fn flush(&self) {
            let mut unsent = self.unsent.lock().unwrap();
            *unsent = 0;
            if self.readiness.unpause() {
                self.queue.fetch_add(1, SeqCst);
            }
        }

        /// A worker that has just served the connection looks again by itself.
        fn linger(&self) {
            while self.readiness.resume() {
                let read = self.read();
                if self.readiness.end() {
                    self.queue.fetch_add(1, SeqCst);
                }
                if read == 0 {
                    return;
                }
            }
        }

        fn assert_all_read(&self) {
            self.work(false);
            assert_eq!(self.unread.load(SeqCst), 0, "bytes that nobody will read");
            assert_eq!(self.queue.load(SeqCst), 0);
        }
    }

    fn check(scenario: impl Fn(&Arc<World>) + Sync + Send + 'static) {
        let mut model = loom::model::Builder::new();
        // Every order with up to this many preemptions; faults of such protocols need two.
        model.preemption_bound = Some(3);
        model.check(move || scenario(&Arc::default()));
    }

    #[test]
    fn nothing_is_lost_when_a_worker_lingers() {
        check(|world| {
            let [first, second] = [world.clone(), world.clone()];
            let lingering = thread::spawn(move || first.linger());
            let working = thread::spawn(move || second.work(false));
            world.arrive();
            world.arrive();
            lingering.join().unwrap();
            working.join().unwrap();
            world.assert_all_read();
        });
    }

    fn check_turns(has_more: bool) {
        check(move |world| {
            let others: Vec<_> = (0..2)
                .map(|worker| {
                    let world = world.clone();
                    thread::spawn(move || world.work(has_more && worker == 0))
                })
                .collect();
            world.arrive();
            world.arrive();
            for other in others {
                other.join().unwrap();
            }
            world.assert_all_read();
        });
    }

    #[test]
    fn no_readiness_is_lost_and_one_worker_reads() {
        check_turns(false);
    }

    #[test]
    fn nothing_is_lost_when_a_worker_gives_others_their_turn() {
        check_turns(true);
    }

    #[test]
    fn a_paused_client_is_read_again_when_it_has_taken_its_answers() {
        check(|world| {
            *world.unsent.lock().unwrap() = 1;
            let [worker, sender] = [world.clone(), world.clone()];
            let working = thread::spawn(move || worker.work(false));
            let flushing = thread::spawn(move || sender.flush());
            world.arrive();
            world.arrive();
            working.join().unwrap();
            flushing.join().unwrap();
            world.assert_all_read();
            assert!(!world.readiness.is_paused(), "paused for ever");
        });
    }

    #[test]
    fn no_worker_reads_a_seized_connection() {
        check(|world| {
            let worker = world.clone();
            world.arrive();
            let working = thread::spawn(move || worker.work(false));
            let is_seized = world.readiness.seize();
            if is_seized {
                assert!(!world.reading.swap(true, SeqCst), "a worker reads what is seized");
            }
            world.unread.fetch_add(1, SeqCst);
            assert!(!is_seized || !world.readiness.notify(), "seized, and queued");
            working.join().unwrap();
        });
    }
}
