//! The parts that all connections share: their way to `accept`, their sums, their clock.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token, Waker};

use super::note::Note;
use super::share::Sums;
use super::usage::Usage;
use crate::metrics::Metrics;

/// The parts that all connections share.
pub struct ClientHub {
    notes: Sender<Note>,
    waker: Waker,
    registry: Registry,
    sums: Arc<Sums>,
    /// Whether `accept` has been told that clients hold too much.
    is_overfull_told: AtomicBool,
    /// Whether nobody is read any more.
    is_stopping: AtomicBool,
    epoch: Instant,
    /// The proxy's counters.
    pub metrics: Arc<Metrics>,
    /// Which client uses which table.
    pub usage: Usage,
}

impl ClientHub {
    /// Notes go to `notes`; `waker` makes their reader look. The channel is unbounded, what it holds is
    /// not: a connection has one note of each kind under way, or two, and operators and the watchdog send few.
    pub fn new(
        notes: Sender<Note>,
        waker: Waker,
        registry: Registry,
        metrics: Arc<Metrics>,
    ) -> Self {
        ClientHub {
            notes,
            waker,
            registry,
            sums: Arc::default(),
            is_overfull_told: AtomicBool::new(false),
            is_stopping: AtomicBool::new(false),
            epoch: Instant::now(),
            metrics,
            usage: Usage::default(),
        }
    }

    /// Tells `accept`.
    pub fn tell(&self, note: Note) {
        // Both fail only when `accept` has ended, and then every connection is closed.
        if self.notes.send(note).is_ok() {
            let _ = self.waker.wake();
        }
    }

    /// Queries under way and bytes held, of all connections.
    pub fn sums(&self) -> &Arc<Sums> {
        &self.sums
    }

    /// Tells `accept`, once until it looks, if connections hold more than this.
    pub fn check_held(&self, max_bytes: usize) {
        if self.sums.held_bytes() > max_bytes && !self.is_overfull_told.swap(true, SeqCst) {
            self.tell(Note::Overfull);
        }
    }

    /// `accept` looks at what connections hold.
    pub fn overfull_seen(&self) {
        self.is_overfull_told.store(false, SeqCst);
    }

    /// Nobody is read any more, but for those whose bytes were noticed before.
    pub fn stop_reading(&self) {
        self.is_stopping.store(true, SeqCst);
    }

    /// Whether nobody is read any more.
    pub fn is_stopping(&self) -> bool {
        self.is_stopping.load(SeqCst)
    }

    /// `accept` is told what happens to a socket.
    pub fn register(&self, socket: RawFd, token: Token) -> io::Result<()> {
        self.registry.register(
            &mut SourceFd(&socket),
            token,
            Interest::READABLE | Interest::WRITABLE,
        )
    }

    /// `accept` is told nothing more of a socket, until it is registered again; what happens meanwhile is told then.
    pub fn deregister(&self, socket: RawFd) -> io::Result<()> {
        self.registry.deregister(&mut SourceFd(&socket))
    }

    /// Time of this clock, ms; 0 means never.
    pub fn now_ms(&self) -> u64 {
        self.ms(Instant::now())
    }

    /// `now` on this clock, ms.
    pub fn ms(&self, now: Instant) -> u64 {
        1 + now.saturating_duration_since(self.epoch).as_millis() as u64
    }

    /// The other way round; `None` for never.
    pub fn instant(&self, ms: u64) -> Option<Instant> {
        (ms > 0).then(|| self.epoch + Duration::from_millis(ms))
    }

    /// `now` on this clock, us.
    pub fn us(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.epoch).as_micros() as u64
    }

    /// The beginning of this clock.
    pub fn epoch(&self) -> Instant {
        self.epoch
    }
}
