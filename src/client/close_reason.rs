//! Why a connection closed: for the log, and for the metric that counts it.

use std::fmt;
use std::io;

use crate::metrics::Closed;
use crate::wire::frame::Malformed;

/// Why a connection closed.
#[derive(Debug)]
pub enum CloseReason {
    /// The client closed it and has all its answers.
    Peer,
    /// Reading or writing failed.
    Io(io::Error),
    /// The client sent what can never become a request.
    Malformed(Malformed),
    /// A frame was begun and not finished in time.
    HalfFrame,
    /// The client took none of its answers for too long.
    Unread(usize),
    /// Clients hold more than they may together, and this one takes nothing and holds most.
    HoldsMost(usize),
    /// A query was lost by a fault of ours; closing tells the client, silence would not.
    QueryLost,
    /// The proxy drains or stops.
    Stop,
}

impl CloseReason {
    /// How it is counted.
    pub fn kind(&self) -> Closed {
        match self {
            CloseReason::Peer => Closed::Client,
            CloseReason::Io(_) => Closed::Io,
            CloseReason::Malformed(_) => Closed::Malformed,
            CloseReason::HalfFrame => Closed::HalfFrame,
            CloseReason::Unread(_) | CloseReason::HoldsMost(_) => Closed::Unread,
            CloseReason::QueryLost => Closed::QueryLost,
            CloseReason::Stop => Closed::Stop,
        }
    }

    /// Whether it is worth a line in the log: everything that clients do not do every day.
    pub fn is_odd(&self) -> bool {
        !matches!(self, CloseReason::Peer | CloseReason::Io(_) | CloseReason::Stop)
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CloseReason::Peer => write!(f, "closed by the client"),
            CloseReason::Io(e) => write!(f, "{e}"),
            CloseReason::Malformed(why) => write!(f, "malformed: {why}"),
            CloseReason::HalfFrame => write!(f, "half a frame, not finished in time"),
            CloseReason::Unread(bytes) => write!(f, "{bytes} bytes of answers not taken"),
            CloseReason::HoldsMost(bytes) => write!(
                f,
                "limit max_unread_total_bytes reached, and this client holds {bytes} bytes of \
                 answers not taken and of a frame not finished"
            ),
            CloseReason::QueryLost => write!(f, "a query was lost"),
            CloseReason::Stop => write!(f, "the proxy drains or stops"),
        }
    }
}
