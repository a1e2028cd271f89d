//! The parts that all connections share: notes to `accept`, sums, clock, counters.

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

pub struct ClientHub {
    notes: Sender<Note>,
    waker: Waker,
    registry: Registry,
    sums: Arc<Sums>,
    /// Whether a note to `accept` says that clients hold too many bytes, and `accept` has not looked yet.
    is_overfull_told: AtomicBool,
    /// Whether the proxy stops, and workers read no client any more.
    is_stopping: AtomicBool,
    epoch: Instant,
    pub metrics: Arc<Metrics>,
    /// Which client uses which table.
    pub usage: Usage,
}

impl ClientHub {
    /// Notes go to `notes`; `waker` wakes `accept`, which reads them. The channel is unbounded, but each connection has
    /// at most two notes of a kind under way, and operators and the watchdog send few.
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

    /// Sends a note to `accept`.
    pub fn tell(&self, note: Note) {
        // Both calls fail only when `accept` has ended, and then every connection is closed.
        if self.notes.send(note).is_ok() {
            let _ = self.waker.wake();
        }
    }

    /// Queries under way and bytes held, of all connections.
    pub fn sums(&self) -> &Arc<Sums> {
        &self.sums
    }

    /// Sends a note to `accept` if connections hold more than this. Sends no second one before `accept` has looked.
    pub fn check_held(&self, max_bytes: usize) {
        if self.sums.held_bytes() > max_bytes && !self.is_overfull_told.swap(true, SeqCst) {
            self.tell(Note::Overfull);
        }
    }

    /// `accept` has looked at the bytes that connections hold.
    pub fn overfull_seen(&self) {
        self.is_overfull_told.store(false, SeqCst);
    }

    /// From now on workers read only clients whose bytes `accept` has already noticed.
    pub fn stop_reading(&self) {
        self.is_stopping.store(true, SeqCst);
    }

    /// Whether the proxy stops, and workers read no client any more.
    pub fn is_stopping(&self) -> bool {
        self.is_stopping.load(SeqCst)
    }

    /// From now on `accept` gets events of this socket.
    pub fn register(&self, socket: RawFd, token: Token) -> io::Result<()> {
        self.registry.register(
            &mut SourceFd(&socket),
            token,
            Interest::READABLE | Interest::WRITABLE,
        )
    }

    /// `accept` gets no events of this socket until it is registered again, which reports what happened meanwhile.
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

    /// The inverse of [`ClientHub::ms`]; `None` for 0.
    pub fn instant(&self, ms: u64) -> Option<Instant> {
        (ms > 0).then(|| self.epoch + Duration::from_millis(ms))
    }

    /// `now` on this clock, us.
    pub fn us(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.epoch).as_micros() as u64
    }

    /// The start of this clock.
    pub fn epoch(&self) -> Instant {
        self.epoch
    }
}
