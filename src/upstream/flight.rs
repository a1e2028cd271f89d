//! Who shares a call. Queries with the same argument bytes share one, and none gets an answer older than
//! its question: a query that arrives while a call is under way waits for the *next* one.
//!
//! ```text
//!             a place is free                 land, nobody waits
//!   join ───────────────────────▶ FLYING ─────────────────────────▶ gone
//!     │                           │    ▲ join: waits for the next call, or for `depart`
//!     │ all places taken          │ land, somebody waits
//!     ▼                           ▼
//!   QUEUED ◀──────────────────────┘        join: is aboard when it starts
//!     └── first in the queue, a place is free ──▶ FLYING
//! ```
//! Between the [`Lead`] and the first byte of its call time may pass: other answers are written, a worker is woken. Who
//! comes in that time is taken aboard by [`Flights::depart`], just before the call.
//!
//! A place is the right to one call at a time; a cluster has a few. Whoever gets a [`Lead`] makes the call
//! and lands it; waiting queries are values in a list and hold no thread. Pure: no lock, clock or socket.
//!
//! Who asks for very much at once waits for those who ask for little: the first questions of each host stand in one
//! queue, its others in a second one, which moves when the first is empty.

use std::collections::{HashMap, VecDeque};
use std::mem;
use std::net::IpAddr;
use std::sync::Arc;

/// The argument bytes of a query.
pub type Key = Arc<[u8]>;

/// Questions of one host that stand among those of others: far more than the tables that its clients open at once.
const MAX_EARLY: usize = 32;

/// A query that waits.
pub trait Waiter {
    /// The host that asks.
    fn host(&self) -> IpAddr;
}

/// The duty to make one call for all who are aboard, and to [`Flights::land`] it.
#[derive(Debug, PartialEq, Eq)]
pub struct Lead<W> {
    /// What to ask.
    pub key: Key,
    /// Who gets the answer.
    pub aboard: Vec<W>,
}

enum Flight<W> {
    /// Waits for a place; these will be aboard. If it stands in the late queue, they are all of one host.
    Queued { waiters: Vec<W>, is_late: bool },
    /// A call is under way; these came after it started and wait for the next.
    Flying(Vec<W>),
}

impl<W> Flight<W> {
    fn waiters(&self) -> &[W] {
        let (Flight::Queued { waiters, .. } | Flight::Flying(waiters)) = self;
        waiters
    }
}

/// All flights of one cluster.
pub struct Flights<W> {
    flights: HashMap<Key, Flight<W>>,
    /// With the host that each counts for.
    early: VecDeque<(Key, IpAddr)>,
    early_of: HashMap<IpAddr, usize>,
    /// Some are in the early queue, too, or under way, since another host asked for the same.
    late: VecDeque<Key>,
    max_early: usize,
    free_places: usize,
}

impl<W: Waiter> Flights<W> {
    /// With room for so many calls at once.
    pub fn new(places: usize) -> Self {
        Self::with_early(places, MAX_EARLY)
    }

    fn with_early(places: usize, max_early: usize) -> Self {
        Flights {
            flights: HashMap::new(),
            early: VecDeque::new(),
            early_of: HashMap::new(),
            late: VecDeque::new(),
            max_early,
            free_places: places,
        }
    }

    /// A query arrives. `Some`: the caller makes the call. `None`: somebody else will.
    pub fn join(&mut self, key: Key, waiter: W) -> Option<Lead<W>> {
        match self.flights.get_mut(&key) {
            Some(Flight::Flying(waiters)) => waiters.push(waiter),
            Some(Flight::Queued { waiters, is_late }) => {
                let host = waiter.host();
                let is_of_another = waiters.first().is_none_or(|first| first.host() != host);
                waiters.push(waiter);
                if *is_late && is_of_another {
                    *is_late = false;
                    self.enqueue_early(key, host);
                }
            }
            None if self.free_places > 0 => {
                self.free_places -= 1;
                self.flights.insert(key.clone(), Flight::Flying(Vec::new()));
                return Some(Lead { key, aboard: vec![waiter] });
            }
            None => self.enqueue(key, vec![waiter]),
        }
        None
    }

    fn enqueue(&mut self, key: Key, waiters: Vec<W>) {
        let Some(host) = waiters.first().map(Waiter::host) else {
            return;
        };
        let is_late = self.early_of.get(&host).is_some_and(|count| *count >= self.max_early)
            && waiters.iter().all(|waiter| waiter.host() == host);
        self.flights.insert(key.clone(), Flight::Queued { waiters, is_late });
        match is_late {
            true => self.late.push_back(key),
            false => self.enqueue_early(key, host),
        }
    }

    fn enqueue_early(&mut self, key: Key, host: IpAddr) {
        *self.early_of.entry(host).or_default() += 1;
        self.early.push_back((key, host));
    }

    fn dequeue(&mut self) -> Option<Key> {
        let Some((key, host)) = self.early.pop_front() else {
            return self.late.pop_front();
        };
        if let Some(count) = self.early_of.get_mut(&host) {
            *count -= 1;
            if *count == 0 {
                self.early_of.remove(&host);
            }
        }
        Some(key)
    }

    /// The call of this lead starts now: who came since it was given is aboard, too.
    pub fn depart(&mut self, key: &Key, aboard: &mut Vec<W>) {
        match self.flights.get_mut(key) {
            Some(Flight::Flying(waiters)) => aboard.append(waiters),
            Some(Flight::Queued { .. }) | None => unreachable!("only who leads departs"),
        }
    }

    /// A call ended, well or not. `Some`: the caller makes this call next, in the same place.
    pub fn land(&mut self, key: &Key) -> Option<Lead<W>> {
        match self.flights.remove(key) {
            // Behind those that have waited longer: one hot table starves no other.
            Some(Flight::Flying(next)) => self.enqueue(key.clone(), next),
            Some(Flight::Queued { .. }) | None => unreachable!("only a flying call lands"),
        }
        while let Some(key) = self.dequeue() {
            // Under way already, or all who waited have gone, if it is not queued.
            if let Some(Flight::Queued { waiters, .. }) = self.flights.get_mut(&key) {
                let aboard = mem::take(waiters);
                self.flights.insert(key.clone(), Flight::Flying(Vec::new()));
                return Some(Lead { key, aboard });
            }
        }
        self.free_places += 1;
        None
    }

    /// Calls that could start now.
    pub fn free_places(&self) -> usize {
        self.free_places
    }

    /// Those who wait for a call that has not started.
    pub fn waiting(&self) -> usize {
        self.flights.values().map(|flight| flight.waiters().len()).sum()
    }

    /// One of those who wait, for each call that has not started.
    pub fn first_waiters(&self) -> impl Iterator<Item = &W> {
        self.flights.values().filter_map(|flight| flight.waiters().first())
    }

    /// Takes out those who wait for a call that has not started and for whom `gone` is true.
    pub fn take(&mut self, gone: impl Fn(&W) -> bool) -> Vec<W> {
        let mut taken = Vec::new();
        for flight in self.flights.values_mut() {
            let (Flight::Queued { waiters, .. } | Flight::Flying(waiters)) = flight;
            taken.extend(waiters.extract_if(.., |w| gone(w)));
        }
        let before = self.flights.len();
        self.flights.retain(|_, flight| match flight {
            Flight::Queued { waiters, .. } => !waiters.is_empty(),
            Flight::Flying(_) => true,
        });
        if self.flights.len() < before {
            self.forget_left();
        }
        taken
    }

    /// Takes questions that nobody waits for out of the queues.
    fn forget_left(&mut self) {
        let mut queued: Vec<(Key, IpAddr)> = self.early.drain(..).collect();
        queued.retain(|(key, _)| self.flights.contains_key(key));
        self.early_of.clear();
        queued.into_iter().for_each(|(key, host)| self.enqueue_early(key, host));
        self.late.retain(|key| self.flights.contains_key(key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By hundreds, a number is of this host.
    impl Waiter for u32 {
        fn host(&self) -> IpAddr {
            IpAddr::from([10, 0, 0, (*self / 100) as u8])
        }
    }

    fn key(name: &str) -> Key {
        Arc::from(name.as_bytes())
    }

    fn lead<const N: usize>(name: &str, aboard: [u32; N]) -> Option<Lead<u32>> {
        Some(Lead { key: key(name), aboard: aboard.to_vec() })
    }

    fn assert_is_empty<W>(flights: &Flights<W>) {
        assert!(flights.flights.is_empty() && flights.early.is_empty() && flights.late.is_empty());
        assert!(flights.early_of.is_empty());
    }

    #[test]
    fn who_comes_during_a_call_shares_the_next_one() {
        let mut flights = Flights::new(2);
        assert_eq!(flights.join(key("a"), 1), lead("a", [1]));
        assert_eq!(flights.join(key("a"), 2), None);
        assert_eq!(flights.join(key("a"), 3), None);
        assert_eq!(flights.join(key("b"), 4), lead("b", [4]), "another question, another call");
        assert_eq!(flights.land(&key("a")), lead("a", [2, 3]));
        assert_eq!(flights.land(&key("a")), None);
        assert_eq!(flights.join(key("a"), 5), lead("a", [5]));
    }

    #[test]
    fn who_comes_before_the_call_starts_is_aboard() {
        let mut flights = Flights::<u32>::new(1);
        let mut call = flights.join(key("a"), 1).unwrap();
        flights.join(key("a"), 2);
        flights.depart(&call.key, &mut call.aboard);
        assert_eq!(call.aboard, [1, 2]);
        flights.join(key("a"), 3);
        assert_eq!(flights.land(&key("a")), lead("a", [3]), "too late for the first call");
    }

    #[test]
    fn when_all_places_are_taken_flights_wait_in_order() {
        let mut flights = Flights::<u32>::new(1);
        assert_eq!(flights.join(key("hot"), 1), lead("hot", [1]));
        assert_eq!(flights.join(key("b"), 2), None);
        assert_eq!(flights.join(key("hot"), 3), None);
        assert_eq!(flights.join(key("b"), 4), None, "aboard: its call has not started");
        assert_eq!(flights.land(&key("hot")), lead("b", [2, 4]), "the hot table waits its turn");
        assert_eq!(flights.land(&key("b")), lead("hot", [3]));
        assert_eq!(flights.land(&key("hot")), None);
        assert_is_empty(&flights);
        assert_eq!(flights.free_places, 1);
    }

    #[test]
    fn a_flight_that_all_have_left_is_not_made() {
        let mut flights = Flights::<u32>::new(1);
        flights.join(key("a"), 1);
        flights.join(key("a"), 2);
        flights.join(key("b"), 3);
        let mut gone = flights.take(|_| true);
        gone.sort_unstable();
        assert_eq!(gone, [2, 3], "1 is aboard a call under way, its leader answers it");
        assert_eq!(flights.land(&key("a")), None);
        assert_is_empty(&flights);
    }

    #[test]
    fn a_host_that_asks_for_very_much_waits_for_those_who_ask_for_little() {
        let mut flights = Flights::<u32>::new(1);
        flights.join(key("under way"), 1);
        for n in 0..100 {
            flights.join(key(&format!("much {n}")), 100);
        }
        flights.join(key("little"), 200);
        flights.join(key("much 99"), 300);
        let mut order = Vec::new();
        let mut landed = key("under way");
        while let Some(call) = flights.land(&landed) {
            order.push(String::from_utf8(call.key.to_vec()).unwrap());
            landed = call.key;
        }
        let mut want: Vec<String> = (0..MAX_EARLY).map(|n| format!("much {n}")).collect();
        want.extend(["little".to_owned(), "much 99".to_owned()]);
        want.extend((MAX_EARLY..99).map(|n| format!("much {n}")));
        assert_eq!(order, want);
        assert_is_empty(&flights);
    }

    #[test]
    fn questions_that_all_have_left_take_no_room() {
        let mut flights = Flights::<u32>::new(1);
        flights.join(key("under way"), 1);
        for n in 0..100 {
            flights.join(key(&format!("much {n}")), 100);
        }
        assert_eq!(flights.take(|waiter| *waiter == 100).len(), 100);
        assert_eq!(flights.land(&key("under way")), None);
        assert_is_empty(&flights);
    }

    #[cfg(not(loom))]
    mod property {
        use super::*;
        use proptest::prelude::*;

        /// What may happen next; numbers are taken modulo what there is.
        #[derive(Clone, Debug)]
        enum Step {
            Join(u8),
            /// A call starts whose lead was given before.
            Depart(u8),
            Land(u8),
            /// Those who joined in this step and before have gone.
            Leave(u8),
        }

        fn step() -> impl Strategy<Value = Step> {
            prop_oneof![
                4 => (0..4u8).prop_map(Step::Join),
                3 => any::<u8>().prop_map(Step::Depart),
                3 => any::<u8>().prop_map(Step::Land),
                1 => any::<u8>().prop_map(Step::Leave),
            ]
        }

        /// A query by the step in which it joined, a call by the step in which it started, if it has.
        impl Waiter for usize {
            fn host(&self) -> IpAddr {
                IpAddr::from([10, 0, 0, (*self % 2) as u8])
            }
        }

        struct World {
            flights: Flights<usize>,
            calls: Vec<(Option<usize>, Lead<usize>)>,
            asked: HashMap<usize, u8>,
            now: usize,
        }

        impl World {
            fn start(&mut self, lead: Option<Lead<usize>>) {
                if let Some(lead) = lead {
                    assert!(!lead.aboard.is_empty(), "nobody wants this answer");
                    assert!(
                        self.calls.iter().all(|(_, other)| other.key != lead.key),
                        "two calls for one question"
                    );
                    self.calls.push((None, lead));
                }
            }

            fn depart(&mut self, which: u8) {
                let count = self.calls.len().max(1);
                if let Some((started @ None, lead)) = self.calls.get_mut(which as usize % count) {
                    *started = Some(self.now);
                    self.flights.depart(&lead.key, &mut lead.aboard);
                }
            }

            /// Also of a call that was given up before it started.
            fn land(&mut self, which: u8) {
                if self.calls.is_empty() {
                    return;
                }
                let (started, lead) = self.calls.remove(which as usize % self.calls.len());
                let started = started.unwrap_or(self.now);
                for joined in &lead.aboard {
                    assert!(*joined <= started, "an answer older than its question");
                    let table = self.asked.remove(joined).expect("answered once");
                    assert_eq!(*lead.key, [table], "another's answer");
                }
                let next = self.flights.land(&lead.key);
                self.start(next);
            }
        }

        proptest! {
            #[test]
            fn everyone_is_answered_once_and_not_from_before(
                places in 1..4usize,
                max_early in 0..3usize,
                steps in proptest::collection::vec(step(), 0..200),
            ) {
                let mut world = World {
                    flights: Flights::with_early(places, max_early),
                    calls: Vec::new(),
                    asked: HashMap::new(),
                    now: 0,
                };
                for step in steps {
                    world.now += 1;
                    match step {
                        Step::Join(table) => {
                            world.asked.insert(world.now, table);
                            let lead = world.flights.join(Arc::from([table]), world.now);
                            world.start(lead);
                        }
                        Step::Depart(which) => world.depart(which),
                        Step::Land(which) => world.land(which),
                        Step::Leave(when) => {
                            for gone in world.flights.take(|joined| *joined <= when as usize) {
                                prop_assert!(world.asked.remove(&gone).is_some());
                            }
                        }
                    }
                    prop_assert!(world.calls.len() <= places);
                }
                world.now += 1;
                while !world.calls.is_empty() {
                    world.land(0);
                }
                prop_assert!(world.asked.is_empty(), "never answered: {:?}", world.asked);
                prop_assert_eq!(world.flights.free_places, places);
                assert_is_empty(&world.flights);
            }
        }
    }
}
