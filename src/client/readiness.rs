//! Who may drain a connection: at most one worker at a time, and no readiness is ever lost.
//!
//! ```text
//!            notify: to the lobby           begin
//!   IDLE ───────────────────────▶ QUEUED ──────────▶ RUNNING ──notify──▶ NOTIFIED
//!    ▲ └────────────────────────── resume: linger ──▶ │                    │
//!    │                              ▲                 │  ▲                │   │
//!    │                              └───── requeue ───┼──┼────────────────┘   │
//!    └───────────────── end: drained ─────────────────┘  └── end: drain again ┘
//! ```
//! mio registers a connection once, edge-triggered: an edge that arrives while a worker reads tells of
//! bytes that this worker may or may not have seen. NOTIFIED makes it look again before it lets go, so
//! no epoll_ctl is needed per request. Pure: one atomic, no socket.

#[cfg(loom)]
use loom::sync::atomic::AtomicU8;
#[cfg(not(loom))]
use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering::{AcqRel, Acquire};

const IDLE: u8 = 0;
const QUEUED: u8 = 1;
const RUNNING: u8 = 2;
const NOTIFIED: u8 = 3;

/// The state of one connection.
#[derive(Debug)]
pub struct Readiness(AtomicU8);

impl Default for Readiness {
    fn default() -> Self {
        Readiness(AtomicU8::new(IDLE))
    }
}

impl Readiness {
    /// The socket became readable. True: the caller must put the connection in the lobby.
    pub fn notify(&self) -> bool {
        let before = self.step(|state| match state {
            IDLE => QUEUED,
            RUNNING => NOTIFIED,
            same => same,
        });
        before == IDLE
    }

    /// A worker took the connection from the lobby and starts to read.
    pub fn begin(&self) {
        let before = self.0.swap(RUNNING, AcqRel);
        debug_assert_eq!(before, QUEUED, "one worker takes it from the lobby");
    }

    /// A worker takes the connection without the lobby, because its client may speak at once. False: another has
    /// it, or will.
    pub fn resume(&self) -> bool {
        self.0.compare_exchange(IDLE, RUNNING, AcqRel, Acquire).is_ok()
    }

    /// The worker has read all there was. True: it must read again, more may have come meanwhile.
    pub fn end(&self) -> bool {
        let before = self.step(|state| match state {
            NOTIFIED => RUNNING,
            _ => IDLE,
        });
        before == NOTIFIED
    }

    /// The worker stops although there may be more to read; the caller must put the connection in the lobby.
    pub fn requeue(&self) {
        self.0.swap(QUEUED, AcqRel);
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
    use loom::sync::Arc;
    use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
    use loom::thread;

    /// A connection whose socket is a counter of unread bytes, and the queue of its jobs.
    #[derive(Default)]
    struct World {
        readiness: Readiness,
        unread: AtomicUsize,
        jobs: AtomicUsize,
        reading: AtomicBool,
    }

    impl World {
        /// The kernel delivers a byte, then `accept` sees the edge.
        fn arrive(&self) {
            self.unread.fetch_add(1, SeqCst);
            if self.readiness.notify() {
                self.jobs.fetch_add(1, SeqCst);
            }
        }

        /// A worker takes a job if there is one. `fair`: it goes to the end of the queue once, as with a
        /// client that always has more to say.
        fn work(&self, mut fair: bool) {
            while self.jobs.fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1)).is_ok() {
                self.readiness.begin();
                loop {
                    assert!(!self.reading.swap(true, SeqCst), "two workers read at once");
                    self.unread.swap(0, SeqCst);
                    self.reading.store(false, SeqCst);
                    if std::mem::take(&mut fair) {
                        self.readiness.requeue();
                        self.jobs.fetch_add(1, SeqCst);
                        break;
                    }
                    if !self.readiness.end() {
                        break;
                    }
                }
            }
        }
    }

    impl World {
        /// A worker that has just served the connection looks again by itself.
        fn linger(&self) {
            while self.readiness.resume() {
                assert!(!self.reading.swap(true, SeqCst), "two workers read at once");
                let read = self.unread.swap(0, SeqCst);
                self.reading.store(false, SeqCst);
                while self.readiness.end() {
                    self.unread.swap(0, SeqCst);
                }
                if read == 0 {
                    return;
                }
            }
        }
    }

    #[test]
    fn the_same_when_a_worker_lingers() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(|| {
            let world = Arc::new(World::default());
            let workers = [world.clone(), world.clone()];
            let [first, second] = workers;
            let lingering = thread::spawn(move || first.linger());
            let working = thread::spawn(move || second.work(false));
            world.arrive();
            world.arrive();
            lingering.join().unwrap();
            working.join().unwrap();
            world.work(false);
            assert_eq!(world.unread.load(SeqCst), 0, "bytes that nobody will read");
        });
    }

    fn check(fair: bool) {
        let mut model = loom::model::Builder::new();
        // Every order with up to this many preemptions; faults of such protocols need two.
        model.preemption_bound = Some(3);
        model.check(move || {
            let world = Arc::new(World::default());
            let others: Vec<_> = (0..2)
                .map(|worker| {
                    let world = world.clone();
                    thread::spawn(move || world.work(fair && worker == 0))
                })
                .collect();
            world.arrive();
            world.arrive();
            for other in others {
                other.join().unwrap();
            }
            world.work(false);
            assert_eq!(world.unread.load(SeqCst), 0, "bytes that nobody will read");
            assert_eq!(world.jobs.load(SeqCst), 0);
        });
    }

    #[test]
    fn no_readiness_is_lost_and_one_worker_reads() {
        check(false);
    }

    #[test]
    fn the_same_when_a_worker_gives_others_their_turn() {
        check(true);
    }
}
