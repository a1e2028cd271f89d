//! How a thread blocks here: never for longer than a slice without looking up.
//!
//! A worker that waits for a MetaServer answers those whose time is over, notices that its route moved, and
//! stops when nobody waits any more. All of it happens in the one closure that every blocking function
//! takes.

use std::time::Duration;

/// The longest time that a thread blocks without calling its [`Patience`]. Deadlines are kept to it.
pub const SLICE: Duration = Duration::from_millis(50);

/// What a worker does while it waits for a MetaServer.
pub trait Meanwhile {
    /// It waits without sleeping, for the answer is near: there is time for something short.
    fn spin(&self) {
        std::thread::yield_now();
    }

    /// It is about to sleep, or to do something long.
    fn be_away(&self) {}

    /// It has slept for a slice.
    fn look_up(&self) {}
}

/// Nothing.
impl Meanwhile for () {}

/// Called at least every [`SLICE`] by who blocks. False: stop waiting.
pub type Patience<'a> = dyn FnMut() -> bool + 'a;
