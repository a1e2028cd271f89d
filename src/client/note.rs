//! Messages to `accept` that are no event of a socket. Values only: a note names its connection, it does not hold it.

use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::Sender;

use crate::config::{AcceptLimits, ClientLimits};

/// Names a connection: its place in `accept`'s registry, and its number, because places are used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionKey {
    /// Its place.
    pub slot: usize,
    /// Its number since the start.
    pub id: u64,
}

/// A message to `accept`.
pub enum Note {
    /// This connection is closed: forget it.
    Closed(ConnectionKey),
    /// It holds half a frame, or unsent answers: see to its deadline.
    Watch(ConnectionKey),
    /// It was not read while its answers were unsent, and may be read again.
    Readable(ConnectionKey),
    /// Clients hold more than they may together: close those that take nothing.
    Overfull,
    /// Life has changed: see what is due.
    Life,
    /// Take these limits for clients that come from now on.
    Limits(AcceptLimits, Arc<ClientLimits>),
    /// Have a worker tell that it took a job.
    Beat(Sender<()>),
    /// Read nobody any more, wait for what is under way and unsent, then end.
    Stop(StopBy),
}

/// How long a stop waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StopBy {
    /// For queries under way.
    pub answered: Instant,
    /// For clients that still take their answers.
    pub taken: Instant,
}
