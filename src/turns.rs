//! A queue in which hosts take turns, so that a host with many items delays only itself. Pure.
//!
//! ```text
//! push(host, item) ─▶ the host's own queue        order: hosts with something in their queue
//! pop ─▶ the first host's first item; the host goes to the end of the order if it has more
//! ```
//! Before an item, `pop` returns at most one item of each other host for each earlier item of the same host and for
//! itself.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;

/// Keep the empty queues of this many hosts, so that a host that comes again needs no allocation.
const MAX_KEPT: usize = 256;

/// Items by host.
#[derive(Debug)]
pub struct Turns<T> {
    queues: HashMap<IpAddr, VecDeque<T>>,
    order: VecDeque<IpAddr>,
    len: usize,
}

impl<T> Default for Turns<T> {
    fn default() -> Self {
        Turns { queues: HashMap::new(), order: VecDeque::new(), len: 0 }
    }
}

impl<T> Turns<T> {
    /// Adds an item behind the others of its host.
    pub fn push(&mut self, host: IpAddr, item: T) {
        let queue = self.queues.entry(host).or_default();
        if queue.is_empty() {
            self.order.push_back(host);
        }
        queue.push_back(item);
        self.len += 1;
    }

    /// Removes and returns the next item: the first one of the host whose turn it is.
    pub fn pop(&mut self) -> Option<T> {
        let host = self.order.pop_front()?;
        let queue = self.queues.get_mut(&host).expect("a host in the order has a queue");
        let item = queue.pop_front().expect("a host in the order has an item");
        self.len -= 1;
        if !queue.is_empty() {
            self.order.push_back(host);
        } else if self.queues.len() > MAX_KEPT {
            self.queues.remove(&host);
        }
        Some(item)
    }

    /// Number of items.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Drops the items for which `is_kept` is false.
    pub fn retain(&mut self, mut is_kept: impl FnMut(&T) -> bool) {
        self.queues.values_mut().for_each(|queue| queue.retain(&mut is_kept));
        self.queues.retain(|_, queue| !queue.is_empty());
        self.order.retain(|host| self.queues.contains_key(host));
        self.len = self.queues.values().map(VecDeque::len).sum();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn host(n: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, n])
    }

    #[test]
    fn a_host_with_much_waits_for_those_with_little() {
        let mut turns = Turns::default();
        (0..4).for_each(|n| turns.push(host(1), n));
        turns.push(host(2), 20);
        turns.push(host(3), 30);
        let order: Vec<_> = std::iter::from_fn(|| turns.pop()).collect();
        assert_eq!(order, [0, 20, 30, 1, 2, 3]);
        assert!(turns.is_empty());
    }

    #[test]
    fn dropped_items_take_no_turn() {
        let mut turns = Turns::default();
        (0..4).for_each(|n| turns.push(host(1), n));
        turns.push(host(2), 21);
        turns.retain(|n| n % 2 == 0);
        assert_eq!(turns.len(), 2);
        let order: Vec<_> = std::iter::from_fn(|| turns.pop()).collect();
        assert_eq!(order, [0, 2]);
    }

    #[test]
    fn hosts_without_items_take_no_memory() {
        let mut turns = Turns::default();
        for n in 0..2 * MAX_KEPT {
            turns.push(IpAddr::from([10, 0, (n / 256) as u8, n as u8]), n);
        }
        while turns.pop().is_some() {}
        assert!(turns.queues.len() <= MAX_KEPT);
    }

    proptest! {
        /// Before an item, there is at most one item of each other host for each earlier item of the same host and for
        /// itself.
        #[test]
        fn no_item_waits_for_more_than_a_turn_of_each_host(
            steps in proptest::collection::vec((0..6u8, any::<bool>()), 1..300),
        ) {
            let mut turns = Turns::default();
            // For each item: its host, earlier items of the same host, number of pops at its arrival.
            let (mut before, mut pops) = ([0usize; 6], 0usize);
            let check = |(of, ahead, came): (u8, usize, usize), pops: usize, before: &mut [usize; 6]| {
                before[of as usize] -= 1;
                prop_assert!(pops - came <= (ahead + 1) * 6, "{} waited {} of {}", of, pops - came, ahead);
                Ok(())
            };
            for (of, pushes) in steps {
                if pushes {
                    turns.push(host(of), (of, before[of as usize], pops));
                    before[of as usize] += 1;
                } else if let Some(item) = turns.pop() {
                    pops += 1;
                    check(item, pops, &mut before)?;
                }
            }
            while let Some(item) = turns.pop() {
                pops += 1;
                check(item, pops, &mut before)?;
            }
            prop_assert_eq!(before, [0; 6]);
        }
    }
}
