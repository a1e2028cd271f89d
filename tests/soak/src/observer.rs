//! A client of ZooKeeper that is none of ours, the `zookeeper` crate, beside the proxies' and the test's own: what it reads
//! is what was written, and what it writes is what the proxies show. So all three see one tree.

use std::time::Duration;

use harness::rng::Rng;
use harness::wait::poll;
use zookeeper::ZooKeeper as Stranger;

use crate::crowd::another_cluster;
use crate::history::Value;
use crate::world::World;

const SESSION_TIMEOUT: Duration = Duration::from_secs(30);
/// A follower may learn of the last writes a little later than the server that they went to.
const SAME_WITHIN: Duration = Duration::from_secs(5);

/// Reads all tables from one server by that client and fails the run if one is not as it was written; then moves the first
/// of each `step` tables. ZooKeeper must be well, and who calls has not shut the gate.
pub fn read_and_write(world: &World, server: usize, step: usize, rng: &mut Rng) {
    let gate = world.shut_gate();
    let addr = world.server(server).addr().to_string();
    let Ok(stranger) = Stranger::connect(&addr, SESSION_TIMEOUT, |_| {}) else {
        return world.end.fail(|| format!("another client cannot connect to server {server}"));
    };
    let mut otherwise = Vec::new();
    let is_same = || {
        otherwise = world.seen_otherwise(&stranger);
        (otherwise.is_empty() || world.end.is_over()).then_some(())
    };
    if poll(SAME_WITHIN, is_same).is_none() {
        let why = || format!("another client does not see what was written: {otherwise:?}");
        return world.end.fail(why);
    }
    for table in (rng.below(step)..world.writable()).step_by(step) {
        let exists = matches!(world.history(table).last().value, Value::Cluster(_));
        let next = another_cluster(&world.history(table), rng);
        if exists && let Value::Cluster(next) = next {
            world.write_as_stranger(table, next, &stranger);
        }
    }
    drop(gate);
}
