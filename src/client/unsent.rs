//! Whether answers wait for a client to take them, and since when. `accept` needs this when a socket becomes writable.
//!
//! ```text
//! worker, under the lock: write ─▶ refused ─▶ note: SOME ─▶ write once more ─▶ refused ─▶ unlock
//! accept, socket writable: NONE: nothing to do        SOME: lock, write, note
//! ```
//! Nearly every event of a socket says that it is writable, so `accept` does not lock for each event. An event between
//! the refused write and the note finds nothing to do, and does not come again. So the worker writes a second time
//! after the note: either the socket has room now, or epoll reports one more event. Pure: one atomic.

#[cfg(loom)]
use loom::sync::atomic::AtomicU64;
#[cfg(not(loom))]
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;

/// One per connection. Written under the lock of the outbox, read without it.
#[derive(Debug)]
pub struct Unsent {
    /// When the client last took some of the waiting answers, ms; 0: no answer waits.
    since_ms: AtomicU64,
}

impl Default for Unsent {
    fn default() -> Self {
        Unsent { since_ms: AtomicU64::new(0) }
    }
}

impl Unsent {
    /// Records that a write has left `after` of `before` bytes, at `now_ms`, which is not 0. True: the caller must
    /// write once more.
    #[must_use]
    pub fn record_write(&self, before: usize, after: usize, now_ms: impl FnOnce() -> u64) -> bool {
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

    /// When the client last took some of the waiting answers, ms; 0: no answer waits.
    pub fn since_ms(&self) -> u64 {
        self.since_ms.load(SeqCst)
    }

    pub fn is_none(&self) -> bool {
        self.since_ms() == 0
    }
}

#[cfg(all(test, loom))]
mod model {
    use super::Unsent;
    use loom::sync::{Arc, Mutex};
    use loom::thread;

    /// Has room for some bytes. Reports one event to `accept` when there is room again after a refused write.
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
                if !self.unsent.record_write(before, *outbox, || 1) {
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
    fn answers_leave_as_soon_as_the_client_makes_room() {
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
