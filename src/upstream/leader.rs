//! Whom to ask next. Pure: addresses and time in, an address out.
//!
//! [`Memory`] belongs to a cluster and outlives calls: who led last, who failed lately. A [`Plan`] belongs to
//! one round of one call: the leader first, then the others, those that failed lately last, nobody twice.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// How long a server that failed is tried last. Longer than a leader election takes a client to notice,
/// shorter than an operator's patience after a restart.
const DISTRUST: Duration = Duration::from_secs(3);

/// Servers outside the list that one round follows forwards to: a true forward names the leader, so one
/// is enough; more are servers that disagree, or lie.
const MAX_FORWARDS: usize = 3;

/// What calls have learned of the MetaServers of one cluster.
#[derive(Debug, Default)]
pub struct Memory {
    leader: Option<SocketAddr>,
    failed_at: HashMap<SocketAddr, Instant>,
}

impl Memory {
    /// Who answered last as leader.
    pub fn leader(&self) -> Option<SocketAddr> {
        self.leader
    }

    /// `addr` answered as leader. True: it is another one than before.
    pub fn led(&mut self, addr: SocketAddr) -> bool {
        self.failed_at.remove(&addr);
        self.leader.replace(addr) != Some(addr)
    }

    /// `addr` gave no usable answer.
    pub fn failed(&mut self, addr: SocketAddr, now: Instant) {
        // Forget what no longer counts, so that the map holds only who failed just now.
        self.failed_at.retain(|_, at| now < *at + DISTRUST);
        self.failed_at.insert(addr, now);
        self.deposed(addr);
    }

    /// `addr` does not lead.
    pub fn deposed(&mut self, addr: SocketAddr) {
        if self.leader == Some(addr) {
            self.leader = None;
        }
    }

    /// The order of one round over `servers`.
    pub fn plan(&self, servers: &[SocketAddr], now: Instant) -> Plan {
        let distrusted =
            |addr: &SocketAddr| self.failed_at.get(addr).is_some_and(|at| now < *at + DISTRUST);
        let mut order: Vec<SocketAddr> = self.leader.into_iter().collect();
        order.extend(servers.iter().copied().filter(|addr| !distrusted(addr)));
        order.extend(servers.iter().copied().filter(distrusted));
        Plan { order: order.into(), seen: Vec::new(), forwards: 0 }
    }
}

/// One round of asking.
#[derive(Debug)]
pub struct Plan {
    order: VecDeque<SocketAddr>,
    seen: Vec<SocketAddr>,
    forwards: usize,
}

impl Plan {
    /// Whom to ask now; `None` when the round is over.
    pub fn next_server(&mut self) -> Option<SocketAddr> {
        loop {
            let addr = self.order.pop_front()?;
            if !self.seen.contains(&addr) {
                self.seen.push(addr);
                return Some(addr);
            }
        }
    }

    /// A follower named the leader: it is next, unless this round has asked it.
    pub fn forward(&mut self, leader: SocketAddr) {
        if self.forwards < MAX_FORWARDS && !self.seen.contains(&leader) {
            self.forwards += 1;
            self.order.push_front(leader);
        }
    }

    /// Whether there is somebody left to ask.
    pub fn has_more(&self) -> bool {
        self.order.iter().any(|addr| !self.seen.contains(addr))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(n: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], n))
    }

    fn round(mut plan: Plan) -> Vec<u16> {
        std::iter::from_fn(|| plan.next_server()).map(|addr| addr.port()).collect()
    }

    #[test]
    fn the_leader_first_and_who_failed_last() {
        let servers = [server(1), server(2), server(3)];
        let start = Instant::now();
        let mut memory = Memory::default();
        assert_eq!(round(memory.plan(&servers, start)), [1, 2, 3]);
        assert!(memory.led(server(3)));
        assert!(!memory.led(server(3)));
        assert_eq!(round(memory.plan(&servers, start)), [3, 1, 2]);
        memory.failed(server(3), start);
        memory.failed(server(1), start);
        assert_eq!(round(memory.plan(&servers, start)), [2, 1, 3]);
        assert_eq!(round(memory.plan(&servers, start + DISTRUST)), [1, 2, 3], "forgiven");
        memory.led(server(9));
        assert_eq!(round(memory.plan(&servers, start)), [9, 2, 1, 3], "a leader outside the list");
    }

    #[test]
    fn a_forward_is_followed_at_once_but_not_in_circles() {
        let servers = [server(1), server(2)];
        let mut plan = Memory::default().plan(&servers, Instant::now());
        assert_eq!(plan.next_server(), Some(server(1)));
        plan.forward(server(9));
        assert_eq!(plan.next_server(), Some(server(9)));
        plan.forward(server(1));
        assert_eq!(plan.next_server(), Some(server(2)), "1 has been asked");
        for liar in 20..30 {
            plan.forward(server(liar));
        }
        assert_eq!(round(plan).len(), MAX_FORWARDS - 1, "liars cannot keep a call busy");
    }
}
