//! The jobs of workers.

use std::sync::Arc;

use crossbeam_channel::Sender;

use super::queue::Queue;
use crate::client::ask::Ask;
use crate::client::connection::Connection;
use crate::upstream::cluster::{Parked, Place, Work};
use crate::wire::error_code::OwnError;

/// The queue of the workers.
pub type Jobs = Queue<Job, Arc<Connection>>;

/// A worker's task other than reading clients.
pub enum Job {
    /// Look up the routes of these queries again: the missing route is there now, or the route has moved.
    Retry(Vec<Ask>),
    /// Refuse these queries with this error.
    Refuse(Vec<Ask>, OwnError),
    /// Make a call to a cluster.
    Call(Place),
    /// Continue a parked call.
    Resume(Parked),
    /// Answer, which shows that a worker runs.
    Beat(Sender<()>),
}

impl Work for Jobs {
    fn call(&self, place: Place) {
        self.send(Job::Call(place));
    }

    fn resume(&self, parked: Parked) {
        self.send(Job::Resume(parked));
    }

    fn ask_again(&self, asks: Vec<Ask>) {
        self.send(Job::Retry(asks));
    }

    fn refuse(&self, asks: Vec<Ask>, error: OwnError) {
        self.send(Job::Refuse(asks, error));
    }
}
