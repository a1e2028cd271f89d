//! Messages to `accept`, beside the events of sockets. Values only: a note names its connection by key and does not
//! hold it.

use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::Sender;

use crate::config::{AcceptLimits, ClientLimits};

/// Names a connection by its place in the registry of `accept` and its number, because places are reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionKey {
    pub slot: usize,
    /// Number of the connection since the start.
    pub id: u64,
}

pub enum Note {
    /// This connection is closed: forget it.
    Closed(ConnectionKey),
    /// This connection has an unfinished frame or unsent answers: check its deadline.
    Watch(ConnectionKey),
    /// This connection was paused because of unsent answers: put it in the queue again.
    Readable(ConnectionKey),
    /// Clients hold more bytes than they may: close those that take nothing.
    Overfull,
    /// `Life` has changed: look what is due.
    Life,
    /// Use these limits for clients that connect from now on.
    Limits(AcceptLimits, Arc<ClientLimits>),
    /// Have a worker answer, which shows that `accept` and a worker run.
    Beat(Sender<()>),
    /// Stop: read no client any more, wait for queries under way and unsent answers, then end.
    Stop(StopBy),
}

/// Until when a stop waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StopBy {
    /// For queries under way.
    pub answered: Instant,
    /// For clients that still take their answers.
    pub taken: Instant,
}
