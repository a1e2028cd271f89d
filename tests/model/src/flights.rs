//! Flights shared by threads behind one lock, as a cluster has them: queries join, whoever leads makes the calls, and the
//! MetaServer's answer changes at any moment.

use std::net::IpAddr;
use std::sync::Arc as StdArc;

use loom::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use loom::sync::{Arc, Mutex};
use loom::thread;

use crate::flight::{Flights, Key, Waiter};

/// A query: how new the MetaServer's table was when it was asked.
#[derive(Clone, Copy, PartialEq, PartialOrd)]
struct Asked(usize);

impl Waiter for Asked {
    fn host(&self) -> IpAddr {
        IpAddr::from([10, 0, 0, 1])
    }
}

struct Cluster {
    flights: Mutex<Flights<Asked>>,
    /// What the MetaServer would answer.
    version: AtomicUsize,
    answered: AtomicUsize,
}

impl Cluster {
    fn query(&self, key: &Key) {
        let asked = Asked(self.version.load(SeqCst));
        let mut lead = self.flights.lock().unwrap().join(key.clone(), asked);
        while let Some(mut call) = lead {
            self.flights.lock().unwrap().depart(&call.key, &mut call.aboard);
            let answer = Asked(self.version.load(SeqCst));
            let next = self.flights.lock().unwrap().land(&call.key);
            for asked in call.aboard {
                assert!(asked <= answer, "an answer of {} to a question of {}", answer.0, asked.0);
                self.answered.fetch_add(1, SeqCst);
            }
            lead = next;
        }
    }
}

fn check(tables: [&'static str; 3], places: usize) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(move || {
        let cluster = Arc::new(Cluster {
            flights: Mutex::new(Flights::new(places)),
            version: AtomicUsize::new(0),
            answered: AtomicUsize::new(0),
        });
        let threads: Vec<_> = tables[..2]
            .iter()
            .map(|table| {
                let (cluster, key) = (cluster.clone(), StdArc::from(table.as_bytes()));
                thread::spawn(move || cluster.query(&key))
            })
            .collect();
        cluster.version.fetch_add(1, SeqCst);
        cluster.query(&StdArc::from(tables[2].as_bytes()));
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(cluster.answered.load(SeqCst), 3, "a query without an answer");
    });
}

#[test]
fn queries_of_one_table_get_answers_as_new_as_they_are() {
    check(["t", "t", "t"], 1);
}

#[test]
fn the_same_with_two_tables_and_one_place() {
    check(["t", "u", "t"], 1);
}

#[test]
fn the_same_with_two_places() {
    check(["t", "u", "t"], 2);
}
