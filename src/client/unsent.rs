//! Whether answers wait for a client to read, and since when: what `accept` must know when a socket becomes writable.
//!
//! ```text
//! worker, under the lock: write ─▶ refused ─▶ note: SOME ─▶ write once more ─▶ refused ─▶ unlock
//! accept, socket writable: NONE: nothing to do        SOME: lock, write, note
//! ```
//! Nearly every event of a socket says that it is writable, so `accept` does not lock for each. An event that comes
//! between the write that was refused and the note finds nothing to do, and is not repeated; hence the second write:
//! if there is room by then it uses it, and if not, the system has one more event to tell. Pure: one atomic.

#[cfg(loom)]
use loom::sync::atomic::AtomicU64;
#[cfg(not(loom))]
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;

/// Belongs to one connection. It is written under the lock of the outbox, and read without.
#[derive(Debug)]
pub struct Unsent {
    /// When the client last took some of what waits, ms; 0: nothing waits.
    since_ms: AtomicU64,
}

impl Default for Unsent {
    fn default() -> Self {
        Unsent { since_ms: AtomicU64::new(0) }
    }
}

impl Unsent {
    /// A write has left `after` bytes of `before`, at `now_ms`, which is not 0. True: write once more.
    #[must_use]
    pub fn note(&self, before: usize, after: usize, now_ms: impl FnOnce() -> u64) -> bool {
        if after == 0 {
            self.since_ms.store(0, SeqCst);
            return false;
        }
        let was_none = self.since_ms() == 0;
        if was_none || after < before {
            self.since_ms.store(now_ms(), SeqCst);
        }
        was_none
    }

    /// When the client last took some of what waits, ms; 0: nothing waits.
    pub fn since_ms(&self) -> u64 {
        self.since_ms.load(SeqCst)
    }

    /// Whether nothing waits.
    pub fn is_none(&self) -> bool {
        self.since_ms() == 0
    }
}

#[cfg(all(test, loom))]
mod model {
    use super::Unsent;
    use loom::sync::{Arc, Mutex};
    use loom::thread;

    /// Has room for some bytes, and tells `accept` once when there is room after a write was refused.
    #[derive(Default)]
    struct Socket {
        room: usize,
        refused: bool,
        is_event: bool,
    }

    #[derive(Default)]
    struct World {
        socket: Mutex<Socket>,
        /// Bytes in the outbox.
        outbox: Mutex<usize>,
        unsent: Unsent,
    }

    impl World {
        fn write(&self, outbox: &mut usize) {
            loop {
                let before = *outbox;
                let mut socket = self.socket.lock().unwrap();
                let taken = socket.room.min(*outbox);
                socket.room -= taken;
                *outbox -= taken;
                socket.refused |= *outbox > 0;
                drop(socket);
                if !self.unsent.note(before, *outbox, || 1) {
                    return;
                }
            }
        }

        /// The client reads.
        fn make_room(&self) {
            let mut socket = self.socket.lock().unwrap();
            socket.room += 1;
            socket.is_event |= std::mem::take(&mut socket.refused);
        }

        /// `accept` takes the event if there is one.
        fn poll(&self) {
            let is_event = std::mem::take(&mut self.socket.lock().unwrap().is_event);
            if is_event && !self.unsent.is_none() {
                self.write(&mut self.outbox.lock().unwrap());
            }
        }
    }

    #[test]
    fn what_a_client_makes_room_for_is_sent() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(|| {
            let world = Arc::new(World::default());
            let [worker, client] = [world.clone(), world.clone()];
            let worker = thread::spawn(move || {
                let mut outbox = worker.outbox.lock().unwrap();
                *outbox += 2;
                worker.write(&mut outbox);
            });
            let client = thread::spawn(move || {
                client.make_room();
                client.make_room();
            });
            world.poll();
            world.poll();
            worker.join().unwrap();
            client.join().unwrap();
            world.poll();
            assert_eq!(*world.outbox.lock().unwrap(), 0, "bytes that nobody will send");
        });
    }
}
