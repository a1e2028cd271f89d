//! What a worker is asked to do.

use crossbeam_channel::Sender;

use crate::client::ask::Ask;
use crate::upstream::cluster::Flight;
use crate::wire::error_code::OwnError;

/// What a worker does next.
pub enum Job {
    /// Come and read the clients that wait in the lobby.
    Read,
    /// Look these tables up again: what was missing is there, or their route moved.
    Retry(Vec<Ask>),
    /// Tell these why they get no answer.
    Refuse(Vec<Ask>, OwnError),
    /// Make this call.
    Call(Flight),
    /// Tell that a worker took this.
    Beat(Sender<()>),
    /// End.
    Stop,
}
