//! Why a connection closed: for the log, and for the metric that counts it.

use std::fmt;
use std::io;

use crate::metrics::Closed;
use crate::wire::frame::Malformed;

#[derive(Debug)]
pub enum CloseReason {
    /// The client closed it and has all its answers.
    Peer,
    /// A read or write failed.
    Io(io::Error),
    /// The client sent bytes that can never become a request.
    Malformed(Malformed),
    /// The client began a frame and did not finish it in time.
    HalfFrame,
    /// The client took none of its answers for too long. The number of unsent bytes.
    Unread(usize),
    /// All clients hold more bytes than they may, and this one takes nothing and holds most. The number of its bytes.
    HoldsMost(usize),
    /// The proxy lost a query by a bug. The close tells the client, which would wait otherwise.
    QueryLost,
    /// The proxy drains or stops.
    Stop,
}

impl CloseReason {
    /// The label of the metric that counts it.
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

    /// Whether the log has a warning: the reason is unusual.
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
            CloseReason::HalfFrame => write!(f, "unfinished frame, the rest did not come in time"),
            CloseReason::Unread(bytes) => write!(f, "{bytes} bytes of answers not taken in time"),
            CloseReason::HoldsMost(bytes) => write!(
                f,
                "limit max_unread_total_bytes reached, and this client holds {bytes} bytes of \
                 answers not taken and of a frame not finished"
            ),
            CloseReason::QueryLost => write!(f, "the proxy lost a query"),
            CloseReason::Stop => write!(f, "the proxy drains or stops"),
        }
    }
}
