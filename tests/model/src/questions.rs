//! Questions shared by threads behind one lock, as a cluster has them: queries join, calls take what waits, and the
//! MetaServer's answer changes at any moment.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc as StdArc;
use std::time::{Duration, Instant};

use loom::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use loom::sync::{Arc, Mutex};
use loom::thread;

use crate::sharing::{Key, Sharing, Waiter};

/// A query: how new the MetaServer's table was when it was asked.
#[derive(Clone, Copy, PartialEq, PartialOrd)]
struct Asked {
    version: usize,
    deadline: Instant,
}

impl Waiter for Asked {
    fn host(&self) -> IpAddr {
        IpAddr::from([10, 0, 0, 1])
    }

    fn deadline(&self) -> Instant {
        self.deadline
    }

    fn is_gone(&self) -> bool {
        false
    }
}

struct State {
    sharing: Sharing<Asked>,
    free_places: usize,
}

struct Cluster {
    state: Mutex<State>,
    /// The version that the MetaServer would answer now.
    version: AtomicUsize,
    answered: AtomicUsize,
    start: Instant,
}

impl Cluster {
    fn new(places: usize) -> Arc<Self> {
        Arc::new(Cluster {
            state: Mutex::new(State { sharing: Sharing::default(), free_places: places }),
            version: AtomicUsize::new(0),
            answered: AtomicUsize::new(0),
            start: Instant::now(),
        })
    }

    /// As `Cluster::join` and `Place::run` do it.
    fn query(&self, key: &Key) {
        let deadline = self.start + Duration::from_secs(60);
        let asked = Asked { version: self.version.load(SeqCst), deadline };
        let mut state = self.state.lock().unwrap();
        state.sharing.join(key.clone(), asked);
        if !state.sharing.is_ready() || state.free_places == 0 {
            return;
        }
        state.free_places -= 1;
        drop(state);
        let server = SocketAddr::from(([10, 0, 0, 2], 1));
        loop {
            let mut state = self.state.lock().unwrap();
            let Some(batch) = state.sharing.next(64, self.start, |_, _| Some(server)) else {
                state.free_places += 1;
                return;
            };
            drop(state);
            let answer = self.version.load(SeqCst);
            for sent in &batch.questions {
                let answered: Vec<Asked> =
                    self.state.lock().unwrap().sharing.answered(sent).collect();
                for asked in answered {
                    let version = asked.version;
                    assert!(version <= answer, "an answer of {answer} to a query of {version}");
                    self.answered.fetch_add(1, SeqCst);
                }
            }
        }
    }
}

fn check(tables: [&'static str; 3], places: usize) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(move || {
        let cluster = Cluster::new(places);
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
fn queries_of_two_tables_in_one_place() {
    check(["t", "u", "t"], 1);
}

#[test]
fn queries_of_two_tables_in_two_places() {
    check(["t", "u", "t"], 2);
}
